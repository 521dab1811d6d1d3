"""Compare converted files with what the gguf package, llama.cpp and transformers make of them.

Four questions, strongest first:

1. Does the `gguf` package read every GGUF target, and do its own dequantisers give trit * scale for
   the types they know (F32, F16, BF16, TQ1_0, TQ2_0)? I2_S is bitnet.cpp's own type, which the
   package on PyPI refuses by number; it is told the size of type 36, as bitnet.cpp's copy of the
   package is, and then checks everything else about the file.
2. Does llama.cpp load the Llama-architecture files without a complaint, with the tokenizer
   that the golden prompts were made with (same ids for every prompt text)?
3. Are its logits those of the golden files? llama.cpp does not quantise activations as BitNet
   does: not at all beside f16/f32 weights, in blocks of 256 beside TQ. So the bounds below are
   noise floors of that difference (measured; the bf16 run of transformers itself differs from its
   f32 run by a mean KL of 0.008 to 0.020 on these fixtures). The fixture whose golden
   run is dense (falcon-e-bfloat16) has no such excuse and is held to a bound of rounding size.
4. Does transformers (with --transformers; needs torch) load the Hugging Face targets and compute the
   golden logits? It is the reference itself, so the bound is the flips of activation rounding;
   BitNet 2B4T loads in bf16 only, which rounds the f32 `weight_scale` of quantised master weights.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

from other_logits import LlamaCpp, Transformers

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
CONVERT = ROOT / "target" / "release" / "bitnet-convert"
TARGETS = ["gguf-i2_s", "gguf-tq1_0", "gguf-tq2_0", "gguf-f32", "gguf-f16", "gguf-bf16"]
ALL = ["bitnet-2b4t-bf16", "bitnet-2b4t-packed", "llama3-8b-1.58", "falcon3-1.58", "falcon-e",
       "falcon-e-prequantized", "falcon-e-bfloat16"]
LLAMA = ALL[2:]
LOADABLE = ["gguf-tq1_0", "gguf-tq2_0", "gguf-f32", "gguf-f16"]
# mean KL against the golden f32 logits; see question 3
DENSE_BOUND, QUANTISED_BOUND = 1e-3, 2e-2


class KnowsI2S:
    """gguf's enumeration of types, and number 36 beside it."""

    I2_S = "I2_S"

    def __call__(self, value):
        return self.I2_S if value == 36 else gguf.GGMLQuantizationType(value)

    def __getattr__(self, name):
        return getattr(gguf.GGMLQuantizationType, name)


gguf.gguf_reader.GGMLQuantizationType = KnowsI2S()
gguf.GGML_QUANT_SIZES[KnowsI2S.I2_S] = (4, 1)


def convert(family, target, out):
    cmd = [str(CONVERT), str(FIXTURES / family / "checkpoint"), "-o", str(out), "--to", target,
           "--allow-scale-rounding", "--quiet", "--json"]
    if family == "falcon-e-prequantized":
        cmd.append("--ternary-trained")
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode != 0:
        raise SystemExit("%s -> %s: %s" % (family, target, r.stderr or r.stdout))
    return json.loads(r.stdout)


def linears(reader):
    return [t for t in reader.tensors if any(k in t.name for k in (
        "attn_q.", "attn_k.", "attn_v.", "attn_output.", "ffn_gate.", "ffn_up.", "ffn_down."))]


def hugging_face_name(name):
    _, layer, rest = name.split(".", 2)
    module = {"attn_q.weight": "self_attn.q_proj", "attn_k.weight": "self_attn.k_proj",
              "attn_v.weight": "self_attn.v_proj", "attn_output.weight": "self_attn.o_proj",
              "ffn_gate.weight": "mlp.gate_proj", "ffn_up.weight": "mlp.up_proj",
              "ffn_down.weight": "mlp.down_proj"}[rest]
    return "model.layers.%s.%s.weight" % (layer, module)


def check_gguf(path, truth):
    """Opens the file; where the package can dequantise, every weight is 0 or +-one magnitude and
    the trit counts are those of ternary.json."""
    reader = gguf.GGUFReader(str(path))
    checked = 0
    for t in linears(reader):
        if t.tensor_type == KnowsI2S.I2_S:
            codes = np.asarray(t.data).reshape(-1)
            counts = sum(np.bincount((codes >> shift) & 3, minlength=4) for shift in (0, 2, 4, 6))
            want = truth[hugging_face_name(t.name)]
            assert counts.tolist() == [want["minus"], want["zero"], want["plus"], 0], (path.name, t.name, counts)
            checked += 1
            continue
        if t.tensor_type.name not in ("F32", "F16", "BF16", "TQ1_0", "TQ2_0"):
            continue
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float64)
        mags = np.unique(np.abs(w[w != 0]))
        assert len(mags) <= 1, "%s %s: %d magnitudes" % (path.name, t.name, len(mags))
        want = truth[hugging_face_name(t.name)]
        got = (int((w < 0).sum()), int((w == 0).sum()), int((w > 0).sum()))
        assert got == (want["minus"], want["zero"], want["plus"]), "%s %s" % (path.name, t.name)
        if len(mags):
            assert abs(mags[0] - want["alpha"]) <= 2.0 ** -8 * want["alpha"] + 2.0 ** -25, (t.name, mags, want["alpha"])
        checked += 1
    return len(reader.tensors), checked


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def llama_logits(path, prompts):
    model = LlamaCpp(path, 512)
    out, bad_ids = {}, []
    for name, p in prompts.items():
        if p["text"] and model.tokenize(p["text"]) != p["ids"]:
            bad_ids.append(name)
        out[name] = model.logits(p["ids"]).astype(np.float64)
    model.close()
    return out, bad_ids


# (fixture, target, bound of the mean KL); see question 4
HUGGING_FACE = [
    ("bitnet-2b4t-packed", "hf-packed", 2e-3), ("bitnet-2b4t-packed", "hf-bf16", 2e-3),
    ("bitnet-2b4t-bf16", "hf-packed", 2e-2), ("llama3-8b-1.58", "hf-packed", 1e-9),
    ("falcon3-1.58", "hf-packed", 1e-9), ("falcon-e", "hf-packed", 1e-9),
    ("falcon-e-prequantized", "hf-packed", 2e-3), ("falcon-e-bfloat16", "hf-bf16", 1e-9)]


def transformers_logits(path, prompts):
    model = Transformers(path, 0)
    return {name: model.logits(p["ids"]).astype(np.float64) for name, p in prompts.items()}


def check_transformers(tmp):
    failures = 0
    print("\n%-24s %-12s %9s %9s %7s" % ("transformers", "target", "mean KL", "max KL", "bound"))
    for family, target, bound in HUGGING_FACE:
        golden = FIXTURES / family / "golden"
        prompts = json.loads((golden / "prompts.json").read_text())
        want = load_file(str(golden / "logits_f32.safetensors"))
        path = Path(tmp) / ("%s-%s" % (family, target))
        convert(family, target, path)
        got = transformers_logits(path, prompts)
        la = log_softmax(np.concatenate([want[n + ".logits"].astype(np.float64) for n in prompts]))
        lb = log_softmax(np.concatenate([got[n] for n in prompts]))
        kl = (np.exp(la) * (la - lb)).sum(-1)
        failures += not kl.mean() <= bound
        print("%-24s %-12s %9.2e %9.2e %7.0e%s" % (
            family, target, kl.mean(), kl.max(), bound, "" if kl.mean() <= bound else "  FAILED"))
    return failures


def main():
    failures = 0
    with tempfile.TemporaryDirectory() as tmp:
        print("%-24s %-12s %8s %8s" % ("fixture", "target", "tensors", "checked"))
        for family in ALL:
            truth = json.loads((FIXTURES / family / "golden" / "ternary.json").read_text())
            for target in TARGETS:
                path = Path(tmp) / ("%s-%s.gguf" % (family, target))
                convert(family, target, path)
                print("%-24s %-12s %8d %8d" % (family, target, *check_gguf(path, truth)))
        print("\n%-24s %-12s %9s %9s %7s %7s  %s" % ("llama.cpp", "target", "mean KL", "max KL", "top-1", "bound", "token ids"))
        for family in LLAMA:
            golden = FIXTURES / family / "golden"
            prompts = json.loads((golden / "prompts.json").read_text())
            want = load_file(str(golden / "logits_f32.safetensors"))
            manifest = json.loads((golden / "manifest.json").read_text())
            for target in LOADABLE:
                got, bad_ids = llama_logits(Path(tmp) / ("%s-%s.gguf" % (family, target)), prompts)
                a = np.concatenate([want[n + ".logits"].astype(np.float64) for n in prompts])
                b = np.concatenate([got[n] for n in prompts])
                la, lb = log_softmax(a), log_softmax(b)
                kl = (np.exp(la) * (la - lb)).sum(-1)
                top1 = float((a.argmax(-1) == b.argmax(-1)).mean())
                dense = not manifest["activation_quantised"] and target in ("gguf-f32", "gguf-f16")
                bound = DENSE_BOUND if dense else QUANTISED_BOUND
                ok = kl.mean() <= bound and not bad_ids
                failures += not ok
                print("%-24s %-12s %9.2e %9.2e %7.3f %7.0e  %s%s" % (
                    family, target, kl.mean(), kl.max(), top1, bound,
                    "same" if not bad_ids else "DIFFERENT: %s" % bad_ids, "" if ok else "  FAILED"))
        if "--transformers" in sys.argv[1:]:
            failures += check_transformers(tmp)
    print("\n%s" % ("all comparisons within bounds" if not failures else "%d comparisons failed" % failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
