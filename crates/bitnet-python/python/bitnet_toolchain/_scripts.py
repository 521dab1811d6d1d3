"""The programs as console scripts: the same process, streams, signals and exit status."""

from __future__ import annotations

import os
import sys

from . import _native

#: The package data with the demo model.
DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo")


def _main(program: str) -> int:
    if os.path.isdir(DEMO):
        os.environ.setdefault("BITNET_DEMO_MODEL", DEMO)
    return _native.main(program, [program, *sys.argv[1:]])


def convert() -> int:
    """``bitnet-convert``"""
    return _main("bitnet-convert")


def verify() -> int:
    """``bitnet-verify``"""
    return _main("bitnet-verify")


def run() -> int:
    """``bitnet-run``"""
    return _main("bitnet-run")
