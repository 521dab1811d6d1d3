#!/usr/bin/env python3
"""Write the trained demo model as the two checkpoint layouts of BitNet 2B4T, with the held-out questions.

    scripts/export_demo.py --state DIR/state.pt --out tests/fixtures/demo

Writes OUT/checkpoint (master weights), OUT/packed (trits in uint8 with a bf16 scale) and OUT/questions.jsonl.
Needs the packages of train_demo.py, and safetensors. Exit status: 0 written, 1 could not.

Invariant: both checkpoints hold the same model, the one that was trained. The mean magnitude of each linear is rounded to a bf16 number
(`settle`), which f16 and f32 hold too. So every packing with one scale per tensor, row or block holds this model exactly. No trit changes, and
a scale changes by a few parts in 256 at most.
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import demo_questions
import train_demo

TEMPLATE = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def is_linear(name):
    return name.endswith("_proj.weight")


def bf16(x):
    """f64 to the nearest bf16, as f32."""
    return torch.from_numpy(np.asarray(x, np.float64)).to(torch.float32).bfloat16().float().numpy()


def settle(w):
    """Master weights f32 (rows, cols) to bf16 ones with the same trits and a mean magnitude that is a bf16 number.

    Returns the master weights as bf16, trits int8 and that number.
    """
    trit, alpha = train_demo.ternarize(w, torch.tensor(1.0))
    trit = trit.round().numpy().astype(np.int8)
    alpha = float(alpha)
    # a scale that survives 1 / (1 / scale) in f32, as the published code computes it
    bits = int(bf16(alpha).view(np.int32))
    near = [np.int32(bits + (k << 16)).view(np.float32) for k in (0, 1, -1, 2, -2, 3, -3)]
    scale = next(a for a in near if np.float32(1) / (np.float32(1) / a) == a)
    half = np.float32(scale / 2)
    size = bf16(np.abs(w.numpy().astype(np.float64)) * (float(scale) / alpha)).reshape(-1)
    one = trit.reshape(-1) != 0
    # Off the threshold by a bf16 step: other programs sum the mean in another order and find a scale one ulp away.
    above, below = bf16([half * (1 + 2 ** -7), half * (1 - 2 ** -7)])
    size[one & (size <= half)] = above
    size[~one & (size >= half)] = below
    target = float(scale) * size.size
    # One bf16 step of a weight at a time, from the coarse steps to the fine ones, away from the threshold.
    for exponent in range(8, -12, -1):
        step = 2.0 ** (np.floor(np.log2(scale)) + exponent - 7)
        low, high = np.float32(128 * step), np.float32(255 * step)
        for i in np.flatnonzero((size > low) & (size < high)):
            rest = target - size.sum(dtype=np.float64)
            count = int(np.trunc(rest / step))
            if count == 0:
                break
            moved = np.float32(size[i] + np.clip(count, -16, 16) * step)
            if low <= moved <= high and (moved >= above if one[i] else moved <= below):
                size[i] = moved
    assert np.float32(size.sum(dtype=np.float64) / size.size) == scale, (size.sum(dtype=np.float64) / size.size, scale)
    sign = np.where(w.numpy().reshape(-1) < 0, -1, 1)
    master = torch.from_numpy((size * sign).astype(np.float32).reshape(w.shape))
    for near in (np.nextafter(scale, np.float32(0)), scale, np.nextafter(scale, np.float32(1))):
        again = (master * (1.0 / torch.tensor(float(near)))).round().clamp(-1, 1).to(torch.int8).numpy()
        assert (again == trit).all()
    assert (master.bfloat16().float() == master).all()
    return master.bfloat16(), trit, float(scale)


def pack(trit):
    """Trits (rows, cols) to uint8 (rows / 4, cols): two bits i of byte row r are row i * rows / 4 + r, code = trit + 1."""
    rows = trit.shape[0] // 4
    code = (trit + 1).astype(np.uint8)
    return torch.from_numpy(sum(code[i * rows:(i + 1) * rows] << (2 * i) for i in range(4)))


def config(ids, mode):
    c = train_demo.CONFIG
    return {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "bos_token_id": None, "eos_token_id": ids["<|end|>"],
            "pad_token_id": ids["<|end|>"], "hidden_act": "relu2", "initializer_range": 0.02, "attention_bias": False,
            "attention_dropout": 0.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True, **c,
            "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}}


def dump(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_side_files(out, tok, mode):
    ids = {s: tok.token_to_id(s) for s in train_demo.SPECIALS}
    dump(out / "config.json", config(ids, mode))
    dump(out / "generation_config.json", {"eos_token_id": ids["<|end|>"], "pad_token_id": ids["<|end|>"], "do_sample": False,
                                          "max_length": train_demo.CONFIG["max_position_embeddings"]})
    tok.save(str(out / "tokenizer.json"), pretty=False)
    dump(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "bos_token": None, "eos_token": "<|end|>",
        "pad_token": "<|end|>", "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
        "model_input_names": ["input_ids", "attention_mask"], "model_max_length": train_demo.CONFIG["max_position_embeddings"],
        "added_tokens_decoder": {str(i): {"content": s, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
                                          "special": True} for s, i in ids.items()}})
    dump(out / "special_tokens_map.json", {"eos_token": "<|end|>", "pad_token": "<|end|>"})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--state", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    a = ap.parse_args()
    state = torch.load(a.state)
    tok = train_demo.train_tokenizer()
    questions = demo_questions.test_set(train_demo.SEED, train_demo.PER_TASK)
    master, packed, exact = {}, {}, {}
    for name, w in state["params"].items():
        if is_linear(name):
            m, trit, scale = settle(w)
            master[name], packed[name] = m, pack(trit)
            packed[name + "_scale"] = torch.tensor([scale]).bfloat16()
            exact[name] = m.float()
        else:
            master[name] = packed[name] = w.bfloat16()
            exact[name] = w.bfloat16().float()
    for layout, tensors, mode in (("checkpoint", master, "online"), ("packed", packed, "offline")):
        out = a.out / layout
        out.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
        write_side_files(out, tok, mode)
    right, _ = train_demo.answered(exact, tok, questions)
    with open(a.out / "questions.jsonl", "w") as f:
        for q in questions:
            f.write(json.dumps({"task": q.task, "kind": q.kind, "question": q.text, "answer": q.answer}) + "\n")
    for task in demo_questions.TASKS:
        mine = [r for q, r in zip(questions, right) if q.task == task]
        print(f"{task:12} {sum(mine)}/{len(mine)} exact answers in torch f32")
    total = sum(f.stat().st_size for d in ("checkpoint", "packed") for f in (a.out / d).iterdir())
    print(f"{total} bytes in both layouts; trained {state['step']} steps in {state['cpu_seconds']:.0f} CPU seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
