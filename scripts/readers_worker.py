"""Run one reader on many files: read a line of JSON, write a line of JSON. (Started by readers_check.py.)

A reader may end this process with a signal. So each answer is written before the next file is opened, and readers_check.py then starts a new
process.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))


class LlamaCpp:
    """llama.cpp: the libraries of the npm package that LLAMA_CPP_DIR names, the bindings of llama-cpp-py-sync.

    The libraries of llama-cpp-py-sync itself need a newer C library than Debian 12 has.
    """

    def __init__(self):
        import ctypes

        import llama_cpp_py_sync as package
        from llama_cpp_py_sync import _cffi_bindings as bindings

        root = Path(os.environ["LLAMA_CPP_DIR"])
        build = json.loads((root / "bins/linux-x64/_nlcBuildMetadata.json").read_text())["buildOptions"]["llamaCpp"]
        libraries = root / "bins" / "linux-x64"
        bindings._lib = bindings.ffi.dlopen(str(next(libraries.glob("libllama.*so"))))
        # the kernels are libraries of their own, one for each instruction set
        ggml = ctypes.CDLL(str(next(libraries.glob("libggml.*so"))))
        ggml.ggml_backend_load_all_from_path(str(libraries).encode())
        self.package = package
        npm = json.loads((root / "package.json").read_text())["version"]
        self.version = "llama.cpp %s (npm @node-llama-cpp/linux-x64 %s)" % (build["release"], npm)

    def open(self, path, tokens, _embedding):
        # attention without the flash kernels and an f32 cache: no rounding but that of the weights' products
        self.model = self.package.Llama(path, n_ctx=tokens, n_batch=tokens, n_threads=1, flash_attn_type=0,
                                        type_k="f32", type_v="f32")

    def tokenize(self, text):
        return self.model.tokenize(text, add_special=True, parse_special=True)

    def logits(self, ids):
        lib, context = self.model._lib, self.model._ctx
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        return decode(lib, context, ids, self.model.n_vocab, self.model._ffi)

    def embedding(self, ids):
        self.logits(ids)
        lib, ffi = self.model._lib, self.model._ffi
        row = lib.llama_get_embeddings_ith(self.model._ctx, len(ids) - 1)
        return np.frombuffer(ffi.buffer(row, 4 * self.model.n_embd), dtype=np.float32).copy()

    def close(self):
        self.model.close()


class IkLlamaCpp:
    """ik_llama.cpp, from the prebuilt libraries of ik-llama-cpp-python."""

    def __init__(self):
        from importlib.metadata import version

        import ik_llama_cpp

        self.package = ik_llama_cpp
        self.version = "ik-llama-cpp-python %s" % version("ik-llama-cpp-python")

    def open(self, path, tokens, _embedding):
        self.model = self.package.IkLlama(path, n_ctx=tokens, n_threads=1, flash_attn=False)

    def tokenize(self, text):
        return self.model.tokenize(text, add_bos=True, special=True)

    def logits(self, ids):
        from ik_llama_cpp import _ctypes_api as api

        self.model._context.kv_cache_clear()
        return decode(api, self.model.ctx, ids, self.model._model.n_vocab, None)

    def close(self):
        self.model.close()


def decode(lib, context, ids, vocab, ffi):
    """Logits of every position, through llama.cpp's C functions."""
    batch = lib.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        result = lib.llama_decode(context, batch)
        if result != 0:
            raise RuntimeError("llama_decode returned %d" % result)
        rows = [lib.llama_get_logits_ith(context, i) for i in range(len(ids))]
        if ffi:
            return np.stack([np.frombuffer(ffi.buffer(row, 4 * vocab), dtype=np.float32).copy() for row in rows])
        return np.stack([np.ctypeslib.as_array(row, (vocab,)).copy() for row in rows])
    finally:
        lib.llama_batch_free(batch)


class Transformers:
    """Hugging Face transformers, widened to f32 behind loading as scripts/other_logits.py does."""

    def __init__(self):
        import other_logits
        import torch
        import transformers

        self.module = other_logits
        self.torch = torch
        self.version = "transformers %s, torch %s" % (transformers.__version__, torch.__version__)

    def open(self, path, tokens, embedding):
        os.environ.update(TORCHDYNAMO_DISABLE="1", HF_HUB_OFFLINE="1")
        self.model = self.module.Transformers(path, tokens, headless=embedding)

    def logits(self, ids):
        return self.model.logits(ids)

    def embedding(self, ids):
        with self.torch.no_grad():
            return self.model.model(self.torch.tensor([ids])).last_hidden_state[0, -1].float().numpy()

    def close(self):
        self.model = None


class Mlx:
    """Apple's mlx-lm on the CPU, widened to f32 behind loading.

    Its packed layers have a Metal kernel only. Without Metal the same product is computed in Python.
    """

    def __init__(self):
        import mlx.core as mx
        import mlx_lm
        from importlib.metadata import version
        from mlx_lm.models import bitlinear_layers
        from mlx_lm.utils import load_model

        mx.set_default_device(mx.cpu)
        self.mx, self.load = mx, load_model
        self.version = "mlx-lm %s, mlx %s" % (mlx_lm.__version__, version("mlx"))

        def product(layer, x, packed):
            dtype = layer.weight_scale.dtype
            assert x.dtype == dtype, "Wrong type for input."
            codes = mx.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)])
            weights = codes.astype(mx.float32) - 1
            scale = layer.weight_scale.astype(mx.float32)
            scale = 1 / scale if layer.invert_weight_scales else scale
            return ((x.astype(mx.float32) @ weights.T) * scale).astype(dtype)

        bitlinear_layers.BitLinear.execute_matmul_kernel = product

    def open(self, path, _tokens, _embedding):
        self.model, _ = self.load(Path(path))
        # in its own types first: a reader that fails there fails
        self.mx.eval(self.model(self.mx.array([[1, 2]])))
        self.model.set_dtype(self.mx.float32)

    def logits(self, ids):
        return np.array(self.model(self.mx.array([ids]))[0].astype(self.mx.float32))

    def embedding(self, ids):
        return np.array(self.model.model(self.mx.array([ids]))[0, -1].astype(self.mx.float32))

    def close(self):
        self.model = None


class Tritium:
    """pytritium: greedy tokens only."""

    def __init__(self):
        from importlib.metadata import version

        import tritium

        self.package, self.version = tritium, "pytritium %s" % version("pytritium")

    def open(self, path, _tokens, _embedding):
        self.model = self.package.Model.load(path)

    def next_token(self, ids):
        return int(self.model.generate(ids, 1)[0])

    def close(self):
        self.model = None


class GgufPackage:
    """The gguf package of Python: opens files and dequantizes, runs nothing."""

    def __init__(self):
        from importlib.metadata import version

        import gguf

        self.package, self.version = gguf, "gguf %s" % version("gguf")

    def open(self, path, _tokens, _embedding):
        self.reader = self.package.GGUFReader(path)

    def weights(self):
        """Of each linear how many weights are negative, zero and positive, and the largest."""
        linears = [t for t in self.reader.tensors if t.name.startswith("blk.") and "norm" not in t.name and len(t.shape) == 2]
        found = {}
        for t in linears:
            w = self.package.dequantize(t.data, t.tensor_type)
            found[t.name] = np.array([(w < 0).sum(), (w == 0).sum(), (w > 0).sum(), np.abs(w).max()])
        return found

    def close(self):
        self.reader = None


READERS = {"llama.cpp": LlamaCpp, "ik_llama.cpp": IkLlamaCpp, "transformers": Transformers, "mlx-lm": Mlx,
           "pytritium": Tritium, "gguf-python": GgufPackage}


def run(reader, job):
    """What the reader makes of one file. Arrays go into the .npz file that the job names."""
    try:
        reader.open(job["path"], job["tokens"], job["embedding"])
    except BaseException as error:  # noqa: BLE001: whatever a reader says is its refusal
        return {"outcome": "refuses", "detail": "%s: %s" % (type(error).__name__, error)}
    arrays, answer = {}, {"outcome": "loads", "other_ids": []}
    try:
        if hasattr(reader, "weights"):
            arrays = reader.weights()
        elif hasattr(reader, "next_token"):
            arrays = {name: np.array([reader.next_token(ids[:n]) for n in job["prefixes"][name]])
                      for name, ids in job["prompts"].items()}
        else:
            for name, ids in job["prompts"].items():
                arrays[name] = reader.embedding(ids) if job["embedding"] else reader.logits(ids)
            if hasattr(reader, "tokenize"):
                answer["other_ids"] = [n for n, text in job["texts"].items() if reader.tokenize(text) != job["prompts"][n]]
    except BaseException as error:  # noqa: BLE001
        return {"outcome": "refuses", "detail": "while running: %s: %s" % (type(error).__name__, error)}
    np.savez(job["output"], **arrays)
    reader.close()
    return answer


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a reader prints is no answer
    try:
        reader = READERS[sys.argv[1]]()
    except BaseException as error:  # noqa: BLE001
        answers.write(json.dumps({"skipped": "%s: %s" % (type(error).__name__, error)}) + "\n")
        return
    answers.write(json.dumps({"version": reader.version}) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(run(reader, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
