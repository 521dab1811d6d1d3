#!/usr/bin/env python3
"""Measure what formats, embedding types and int8 rounding cost a trained model, against transformers in f32.

    scripts/quality_demo.py

Prints two tables. The model is tests/fixtures/demo. The text is its held-out questions with their answers, and the measured positions are those
that predict a token of an answer. KL is of the reference's distribution against the measured one, in nats. The second table is about noise: the
same model in the same precision, computed by two correct programs, and by transformers in bf16, with trained weights and with random ones
(tests/fixtures/bitnet-2b4t-bf16, from its goldens).
Needs torch, transformers, safetensors, and the programs in target/release. Exit status: 0 printed, 1 could not.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "tests/fixtures/demo"
RANDOM = ROOT / "tests/fixtures/bitnet-2b4t-bf16"
EMBEDDINGS = ("bf16", "f16", "q8_0", "q6_k")


def program(name, *args):
    """The object that a program of this repository prints with --json."""
    done = subprocess.run([ROOT / "target/release" / name, *map(str, args), "--json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} {' '.join(map(str, args))}: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def questions():
    """Token ids of each conversation and where its answer begins."""
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(DEMO / "checkpoint")
    out = []
    for line in (DEMO / "questions.jsonl").read_text().splitlines():
        q = json.loads(line)
        prompt = tok.apply_chat_template([{"role": "user", "content": q["question"]}], add_generation_prompt=True,
                                         tokenize=False)
        start = tok.encode(prompt, add_special_tokens=False)
        out.append((start + tok.encode(q["answer"], add_special_tokens=False) + [tok.eos_token_id], len(start)))
    return out


@torch.no_grad()
def transformers_logits(dtype, asked):
    """Logits (tokens, vocabulary) f32 of every conversation."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(DEMO / "checkpoint", dtype=dtype, attn_implementation="eager").eval()
    return [model(torch.tensor([ids]), use_cache=False).logits[0].float() for ids, _ in asked]


def run_digest(model, ids, out, *more):
    """sha256 of the logits of `bitnet-run` for lists of ids."""
    (out / "prompts.json").write_text(json.dumps(ids))
    return program("bitnet-run", "logits", model, "--prompts", out / "prompts.json", *more)["logits_sha256"]


def run_logits(model, ids, out):
    """Logits of `bitnet-run` for lists of ids."""
    run_digest(model, ids, out, "-o", out / "logits.safetensors", "--force")
    tensors = load_file(out / "logits.safetensors")
    return [tensors[f"{i}.logits"] for i in range(len(ids))]


def answers(logits, asked):
    """Rows of `logits` that predict a token of an answer, and that token."""
    rows = torch.cat([l[at - 1:-1] for l, (_, at) in zip(logits, asked)])
    return rows, torch.tensor([t for ids, at in asked for t in ids[at:]])


def compare(reference, measured):
    """Mean, 99.9th percentile and largest KL, and the share of equal best tokens."""
    p, q = reference.double().log_softmax(-1), measured.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).clamp(min=0)
    same = (reference.argmax(-1) == measured.argmax(-1)).double().mean().item()
    return kl.mean().item(), kl.quantile(0.999).item(), kl.max().item(), same


def right(rows, target, asked):
    """Conversations whose answer greedy decoding gives exactly."""
    best, at, n = rows.argmax(-1) == target, 0, 0
    for ids, start in asked:
        length = len(ids) - start
        n += bool(best[at:at + length].all())
        at += length
    return n


def figures(reference, rows, target, asked=None):
    mean, high, most, same = compare(reference, rows)
    nll = F.cross_entropy(rows.double(), target).item()
    shift = nll - F.cross_entropy(reference.double(), target).item()
    score = f"{right(rows, target, asked)} of {len(asked)}" if asked else "-"
    return score, nll, shift, mean, high, most, same


def row(name, score, nll, shift, mean, high, most, same):
    print(f"| {name} | {score} | {shift:+.1e} | {mean:.1e} | {high:.1e} | {most:.1e} | {same:.4f} |")


def main():
    asked = questions()
    ids = [c for c, _ in asked]
    scratch = tempfile.TemporaryDirectory()
    out = Path(scratch.name)
    reference, target = answers(transformers_logits(torch.float32, asked), asked)
    print(f"{len(asked)} held-out questions, {len(target)} tokens of answers; "
          f"reference: transformers f32, {right(reference, target, asked)} right\n")
    targets = [t["name"] for t in program("bitnet-convert", "list")["targets"]]
    sizes, kept = {}, {}
    for name in targets:
        for kind in EMBEDDINGS:
            model = out / (f"{name}-{kind}" + (".gguf" if name.startswith("gguf") else ".safetensors" if name.startswith("packed") else ""))
            done = subprocess.run([ROOT / "target/release/bitnet-convert", DEMO / "checkpoint", "-o", model, "--to", name,
                                   "--embeddings", kind, "--json"], capture_output=True, text=True)
            report = json.loads(done.stdout)
            if done.returncode:
                sizes[name, kind] = "refused: " + report["error"]["code"]
                continue
            sizes[name, kind] = report["output"]["bytes"]
            kept.setdefault(kind, {}).setdefault(run_digest(model, ids, out), []).append(model)
    print("| embeddings | right | perplexity | mean KL | 99.9 % | largest KL | same top-1 | formats with these very bits |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, digests in kept.items():
        for holders in digests.values():
            score, nll, shift, mean, high, most, same = figures(reference, answers(run_logits(holders[0], ids, out), asked)[0], target, asked)
            print(f"| {kind} | {score} | {torch.tensor(nll).exp().item():.5f} | {mean:.1e} | {high:.1e} | {most:.1e} | {same:.4f} | {len(holders)} |")
    print("\n| format | " + " | ".join(EMBEDDINGS) + " |")
    print("|---|" + "---|" * len(EMBEDDINGS))
    for name in targets:
        print(f"| `{name}` | " + " | ".join(str(sizes[name, k]) for k in EMBEDDINGS) + " |")

    print("\n| weights | computed by | right | nll shift | mean KL | 99.9 % | largest KL | same top-1 |\n|---|---|---|---|---|---|---|---|")
    ours = run_logits(DEMO / "checkpoint", ids, out)
    row("trained | bitnet-run", *figures(reference, answers(ours, asked)[0], target, asked))
    row("trained | transformers bf16", *figures(reference, answers(transformers_logits(torch.bfloat16, asked), asked)[0], target, asked))
    golden = {d: load_file(RANDOM / f"golden/logits_{d}.safetensors") for d in ("f32", "bf16")}
    prompts = json.loads((RANDOM / "golden/prompts.json").read_text())
    names = [n for n in prompts if f"{n}.logits" in golden["f32"] and len(prompts[n]["ids"]) > 1]
    token = torch.tensor([t for n in names for t in prompts[n]["ids"][1:]])
    cut = lambda logits: torch.cat([l[:-1].float() for l in logits])
    exact = cut([golden["f32"][f"{n}.logits"] for n in names])
    ours = run_logits(RANDOM / "checkpoint", [prompts[n]["ids"] for n in names], out)
    row("random | bitnet-run", *figures(exact, cut(ours), token))
    row("random | transformers bf16", *figures(exact, cut([golden["bf16"][f"{n}.logits"] for n in names]), token))
    return 0


if __name__ == "__main__":
    sys.exit(main())
