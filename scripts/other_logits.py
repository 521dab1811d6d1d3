#!/usr/bin/env python3
"""Write the logits of another runtime, for `bitnet-verify MODEL --logits-from FILE` (formats/logits.md).

    scripts/other_logits.py MODEL.gguf PROMPTS.json -o logits.safetensors
    scripts/other_logits.py --runtime transformers CHECKPOINT_DIR PROMPTS.json -o logits.safetensors

PROMPTS.json is {"name": {"ids": [1, 2, 3]}}, {"name": [1, 2, 3]} or [[1, 2, 3]]. The runtime itself tokenizes `{"text": "..."}` without ids
(llama-cpp only).
Needs numpy, safetensors, and the runtime: llama-cpp-python, or torch and transformers. Exit status: 0 written, otherwise could not.
"""

import argparse
import json
import os
import sys
from pathlib import Path


def need(module, package):
    """Imports what may not be there, and says how to get it."""
    try:
        return __import__(module)
    except ImportError as error:
        sys.exit("error: expected the Python package %s, found none (%s)\nhint: pip install %s" % (package, error, package))


class LlamaCpp:
    """llama.cpp through llama-cpp-python. Logits are its own f32."""

    name = "llama-cpp-python"

    def __init__(self, path, tokens):
        import numpy

        self.numpy = numpy
        package = need("llama_cpp", "llama-cpp-python")
        self.version = package.__version__
        try:
            self.model = package.Llama(str(path), n_ctx=max(tokens, 8), n_batch=max(tokens, 8), logits_all=True, verbose=False)
        except ValueError as error:
            sys.exit("error: %s: llama.cpp does not load it (%s)\nhint: `bitnet-convert inspect --readers` says who does" % (path, error))
        self.vocab = self.model.n_vocab()

    def tokenize(self, text):
        return self.model.tokenize(text.encode(), add_bos=True, special=True)

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return self.numpy.array(self.model.scores[: len(ids), : self.vocab], dtype=self.numpy.float32)

    def close(self):
        self.model.close()


class Transformers:
    """Hugging Face transformers, computing in f32. BitNet 2B4T loads in its own type, bf16 as published, and is widened behind that."""

    name = "transformers"

    def __init__(self, path, _tokens, headless=False):
        os.environ.update(TORCHDYNAMO_DISABLE="1", HF_HUB_OFFLINE="1")
        self.torch = torch = need("torch", "torch")
        transformers = need("transformers", "transformers")
        self.version = "%s, torch %s" % (transformers.__version__, torch.__version__)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(1)
        path, more = Path(path), {}
        if path.suffix == ".gguf":
            path, more = path.parent, {"gguf_file": path.name}
        config = {} if more else json.loads((path / "config.json").read_text())
        dtype = torch.float32
        if config.get("model_type") == "bitnet":
            dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "bfloat16")
        auto = transformers.AutoModel if headless else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(str(path), dtype=dtype, attn_implementation="eager", **more)
        for t in [*model.parameters(), *model.buffers()]:
            if t.is_floating_point():
                t.data = t.data.float()
        self.model = model.eval()

    def tokenize(self, text):
        sys.exit("error: expected token ids in the prompts, found text alone")

    def logits(self, ids):
        with self.torch.no_grad():
            return self.model(self.torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    def close(self):
        pass


RUNTIMES = {"llama-cpp": LlamaCpp, "transformers": Transformers}


def read_prompts(path):
    """Name to ids, or to a text that is still to be tokenised."""
    prompts = json.loads(Path(path).read_text())
    if isinstance(prompts, list):
        prompts = {str(i): p for i, p in enumerate(prompts)}
    return {name: p.get("ids", p.get("text")) if isinstance(p, dict) else p for name, p in prompts.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file (llama-cpp), a checkpoint directory (transformers)")
    parser.add_argument("prompts", help="JSON of prompts")
    parser.add_argument("-o", "--output", required=True, help="the safetensors file to write")
    parser.add_argument("--runtime", choices=RUNTIMES, default="llama-cpp")
    args = parser.parse_args()
    np = need("numpy", "numpy")
    need("safetensors", "safetensors")
    from safetensors.numpy import save_file

    prompts = read_prompts(args.prompts)
    # a text has no more tokens than bytes, but for those that frame it
    most = max((len(p.encode()) + 8 if isinstance(p, str) else len(p) for p in prompts.values()), default=0)
    runtime = RUNTIMES[args.runtime](args.model, most)
    tensors = {}
    for name, prompt in prompts.items():
        ids = runtime.tokenize(prompt) if isinstance(prompt, str) else prompt
        if not ids:
            continue
        logits = runtime.logits(ids)
        if logits.shape[0] != len(ids):
            sys.exit("error: prompt %s: expected %d rows of logits, found %d" % (name, len(ids), logits.shape[0]))
        tensors[name + ".ids"] = np.array(ids, dtype=np.int64)
        tensors[name + ".logits"] = np.ascontiguousarray(logits, dtype=np.float32)
    runtime.close()
    metadata = {"format": "pt", "runtime": runtime.name, "version": runtime.version, "model": Path(args.model).name}
    save_file(tensors, args.output, metadata=metadata)
    print("%s %s: %d prompts, %d positions" % (
        runtime.name, runtime.version, len(tensors) // 2, sum(t.shape[0] for n, t in tensors.items() if n.endswith(".logits"))))


if __name__ == "__main__":
    main()
