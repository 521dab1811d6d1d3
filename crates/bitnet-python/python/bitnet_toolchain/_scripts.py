"""The programs as console scripts: the same process, streams, signals and exit status."""

from __future__ import annotations

import sys

from . import _native


def _main(program: str) -> int:
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
