"""Convert, verify and run ternary language models.

>>> import bitnet_toolchain as bt
>>> bt.convert("./checkpoint", "model.gguf", to="gguf-i2_s")            # doctest: +SKIP
>>> bt.verify("model.gguf", against="./checkpoint")["status"]           # doctest: +SKIP
'same'
>>> bt.Model("model.gguf").generate("Hello", max_new_tokens=8)          # doctest: +SKIP

A model or source is a Hugging Face checkpoint directory, a ``.safetensors`` file or its index, a ``.gguf`` file, or
``hf://OWNER/NAME``, ``https://...``, ``s3://...``. Functions that do the work of a program return the object that the
program prints with ``--json``. Every failure is a :class:`BitnetError`. Ctrl-C stops a conversion and leaves no
partial output.
"""

from ._checkpoint import Checkpoint
from ._errors import BitnetError
from ._model import Model
from ._native import __version__
from ._programs import (
    convert,
    doctor,
    finish,
    inspect,
    merge,
    plan,
    push,
    run_job,
    targets,
    verify,
)

__all__ = [
    "BitnetError",
    "Checkpoint",
    "Model",
    "__version__",
    "convert",
    "doctor",
    "finish",
    "inspect",
    "merge",
    "plan",
    "push",
    "run_job",
    "targets",
    "verify",
]
