"""Tests of the installed wheel. `scripts/python-check` builds and installs it, and runs them.

Invariant: what Python gives is what the programs of the same wheel give: bytes, bits and words.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
SCRIPTS = pathlib.Path(sys.executable).parent


@pytest.fixture(scope="session")
def demo():
    """A trained model with a tokenizer and a chat template."""
    return FIXTURES / "demo" / "packed"


@pytest.fixture(scope="session")
def master():
    """Bfloat16 master weights."""
    return FIXTURES / "bitnet-2b4t-bf16" / "checkpoint"


@pytest.fixture(scope="session")
def run():
    """Runs a program of the wheel; gives its status, its JSON object or stdout, and stderr."""

    def call(program, *words, cwd=None, input=None):
        done = subprocess.run(
            [str(SCRIPTS / program), *map(str, words)],
            capture_output=True,
            text=True,
            cwd=cwd,
            input=input,
            timeout=120,
        )
        out = json.loads(done.stdout) if "--json" in words else done.stdout
        return done.returncode, out, done.stderr

    return call


@pytest.fixture
def script():
    """Runs Python code in a process of its own."""

    def call(code, *words, timeout=120, **more):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            **more,
        )

    return call


@pytest.fixture
def large(tmp_path):
    """A checkpoint that takes seconds to convert: many layers of random master weights."""

    def make(layers):
        import numpy as np

        config = json.loads((FIXTURES / "demo/checkpoint/config.json").read_text())
        target = tmp_path / "large"
        target.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(FIXTURES / "demo/checkpoint" / name, target)
        hidden, inner = 1024, 2816
        config.update(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        config.pop("head_dim", None)
        (target / "config.json").write_text(json.dumps(config))
        tensors = {
            "model.embed_tokens.weight": (config["vocab_size"], hidden),
            "model.norm.weight": (hidden,),
        }
        for layer in range(layers):
            at = f"model.layers.{layer}."
            tensors[at + "input_layernorm.weight"] = (hidden,)
            tensors[at + "post_attention_layernorm.weight"] = (hidden,)
            tensors[at + "self_attn.attn_sub_norm.weight"] = (hidden,)
            tensors[at + "mlp.ffn_sub_norm.weight"] = (inner,)
            for name in "qkvo":
                tensors[at + f"self_attn.{name}_proj.weight"] = (hidden, hidden)
            tensors[at + "mlp.gate_proj.weight"] = (inner, hidden)
            tensors[at + "mlp.up_proj.weight"] = (inner, hidden)
            tensors[at + "mlp.down_proj.weight"] = (hidden, inner)
        header, at = {}, 0
        for name, shape in tensors.items():
            size = 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        random = np.random.default_rng(7)
        # bfloat16 numbers near 1: sign and the lowest bits are random
        numbers = random.integers(0, 1 << 16, 1 << 20, dtype=np.uint16) & 0x807F | 0x3C00
        with open(target / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in tensors.values():
                count = int(np.prod(shape))
                file.write(np.resize(numbers, count).tobytes())
        return target

    return make


def listing(directory):
    """Every file below a directory with its bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file()
    }


def has_torch():
    """Whether PyTorch can be imported; its tests say that they are left out."""
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


needs_torch = pytest.mark.skipif(not has_torch(), reason="skipped: PyTorch is not installed")
os.environ.pop("BITNET_DEMO_MODEL", None)
