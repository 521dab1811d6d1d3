#!/usr/bin/env python3
"""Write tiny checkpoints of families without activation quantization, with the results of transformers.

    scripts/bonsai_fixtures.py [tests/fixtures [NAME ...]]

Writes these fixtures beside the others:

  bonsai-1.7b   Qwen3, tied, YaRN as published; ternary with f16 scales per 128 columns, embeddings too
  bonsai-8b     Qwen3, an output head of its own, YaRN with an attention factor that is written out
  bonsai-1bit   Qwen3, tied, binary: -d and +d with a scale per 128 columns, embeddings too
  trilm         Llama, float16 numbers that are ternary with one scale per matrix or per shard of its rows
  bitcpm        MiniCPM: a Llama whose embeddings, residual additions and head input are scaled. This transformers
                has no such class, so it is its Llama with these products in hooks
  bitcpm-longrope  the same with `longrope` and a context beyond the original one: as its published code does, the
                rotary frequencies are divided by the long list and the tables multiplied, at every position
  qwen2         Qwen2, tied: biases of size 10 on q, k and v; bfloat16 numbers, one scale per matrix
  qwen2-untied  Qwen2 with an output head of its own

`checkpoint/` is a Hugging Face directory of dequantized float16 weights. `golden/` holds what transformers computes from it: logits, greedy
continuations, the likelihood of a text, the activations of layer 0, digests of codes and scales. `*.gguf` is the same Bonsai in the layouts of
the published files. It is written from the codes, not from the float16 numbers: group scales may be negative with reversed codes, and the
metadata name another vocabulary size than the tensors. The tokenizer is that of the fixture `bitnet-embedding-0.6b` without its last token
and its template.

Needs numpy, tokenizers, safetensors, torch and transformers. Exit status: 0 written, 1 could not.
"""
import hashlib
import json
import os
import platform
import shutil
import struct
import sys
from pathlib import Path

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from safetensors.torch import save_file

GROUP = 128
PROMPTS = {
    "short": "Hello world",
    "english": "The quick brown fox jumps over the lazy dog. What could we",
    "code": "def add(a, b):\n    return a + b\n",
    "unicode": "Привет, мир! 今天 café 😀",
}
NEW_TOKENS, STREAM_TOKENS, LONG_TOKENS = 32, 192, 64
SPARE = 391  # a token whose embedding row is all zero

BASE = dict(hidden=256, inter=128, heads=4, kv=2, dim=32, layers=1, tied=False, theta=1e6, eps=1e-6, context=1024)
FIXTURES = {
    "bonsai-1.7b": dict(BASE, seed=101, arch="qwen3", layers=2, tied=True, scales="group", context=512,
                        rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    "bonsai-8b": dict(BASE, seed=102, arch="qwen3", scales="group",
                      rope={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256,
                            "attention_factor": 1.25}),
    "bonsai-1bit": dict(BASE, seed=108, arch="qwen3", tied=True, scales="group", binary=True, store="bf16", rope=None),
    "trilm": dict(BASE, seed=103, arch="llama", scales="shards", theta=1e4, eps=1e-5, rope=None),
    "bitcpm": dict(BASE, seed=104, arch="minicpm", layers=2, scales="group", theta=1e4, eps=1e-5, rope=None,
                   factors={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64}),
    "bitcpm-longrope": dict(BASE, seed=105, arch="minicpm", layers=1, scales="group", theta=1e4, eps=1e-5, rope=None,
                            factors={"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64}, longrope=256, store="bf16"),
    "qwen2": dict(BASE, seed=106, arch="qwen2", layers=2, tied=True, scales="matrix", store="bf16", bias=10.0,
                  rope=None, context=512, dim=64, o_gain=0.03, table=0.2),
    "qwen2-untied": dict(BASE, seed=107, arch="qwen2", scales="matrix", store="bf16", bias=10.0, rope=None,
                         heads=8, o_gain=0.1),
}


# ---------------------------------------------------------------- weights
class Matrix:
    """Codes -1, 0, +1 and their scales (float16, one per group of columns); a scale may be negative."""

    def __init__(self, codes, scales, group):
        self.codes, self.scales, self.group = codes, scales, group

    def values(self):
        wide = np.repeat(self.scales, self.group, axis=1).astype(np.float32)
        numbers = self.codes * wide
        return numbers if self.scales.dtype == np.float32 else numbers.astype(np.float16)

    def truth(self):
        """Codes for scales that are not negative, and these scales in normal form (formats/certificate.md)."""
        flip = np.repeat(np.where(self.scales < 0, -1, 1), self.group, axis=1)
        codes = (self.codes * flip).astype(np.int8)
        silent = (codes.reshape(codes.shape[0], -1, self.group) == 0).all(axis=2)
        scales = np.where(silent, 0, np.abs(self.scales)).astype(np.float32)
        return codes, scales


def group_matrix(rng, rows, cols, gain):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    usual = gain * np.sqrt(1.5 / cols)
    scales = (usual * np.exp(rng.normal(0, 0.25, (rows, cols // GROUP)))).astype(np.float16)
    scales[rng.random(scales.shape) < 0.1] *= -1
    silent = rng.random(scales.shape) < 0.02
    codes[np.repeat(silent, GROUP, axis=1)] = 0
    return Matrix(codes, scales, GROUP)


def shard_matrix(rng, rows, cols, gain, shards):
    codes = rng.integers(-1, 2, (rows, cols)).astype(np.int8)
    usual = gain * np.sqrt(1.5 / cols)
    scales = np.repeat((usual * np.exp(rng.normal(0, 0.25, shards))).astype(np.float16), rows // shards)
    return Matrix(codes, scales[:, None], cols)


def bf16(x):
    """Rounded to bfloat16, as float32."""
    return torch.from_numpy(np.asarray(x, dtype=np.float32)).bfloat16().float().numpy()


def build(spec, vocab):
    """All tensors by Hugging Face name: a Matrix, or float16 numbers (float32 ones that bfloat16 holds)."""
    rng = np.random.default_rng(spec["seed"])
    h, inter, q, kv = spec["hidden"], spec["inter"], spec["heads"] * spec["dim"], spec["kv"] * spec["dim"]
    norm = lambda n: rng.normal(1, 0.15, n).astype(np.float16)
    out = {}

    def binary(matrix):
        if spec.get("binary"):
            matrix.codes[:] = rng.integers(0, 2, matrix.codes.shape) * 2 - 1
            matrix.scales = np.abs(matrix.scales)
        return matrix

    def linear(name, rows, cols, gain, shards=1):
        if spec["scales"] == "group":
            out[name] = binary(group_matrix(rng, rows, cols, gain))
        elif spec["scales"] == "matrix":
            out[name] = shard_matrix(rng, rows, cols, gain, 1)
        else:
            out[name] = shard_matrix(rng, rows, cols, gain, shards)

    if spec["scales"] == "group":
        table = binary(group_matrix(rng, vocab, h, 3.0 if spec["tied"] else 16.0))
        table.codes[SPARE] = 0
        if not spec.get("binary"):
            table.scales[7, 0] = np.float16(1e-5)  # a subnormal
        out["model.embed_tokens.weight"] = table
    else:
        table = rng.normal(0, spec.get("table", 1), (vocab, h)).astype(np.float16)
        table[SPARE] = 0
        out["model.embed_tokens.weight"] = table
    for i in range(spec["layers"]):
        p = "model.layers.%d." % i
        out[p + "input_layernorm.weight"] = norm(h)
        linear(p + "self_attn.q_proj.weight", q, h, 1.5, 2)
        linear(p + "self_attn.k_proj.weight", kv, h, 1.5)
        linear(p + "self_attn.v_proj.weight", kv, h, 1.0)
        if "bias" in spec:
            for role, rows in (("q", q), ("k", kv), ("v", kv)):
                out[p + "self_attn.%s_proj.bias" % role] = rng.normal(0, spec["bias"], rows)
        if spec["arch"] == "qwen3":
            out[p + "self_attn.q_norm.weight"] = norm(spec["dim"])
            out[p + "self_attn.k_norm.weight"] = norm(spec["dim"])
        linear(p + "self_attn.o_proj.weight", h, q, spec.get("o_gain", 1.0))
        out[p + "post_attention_layernorm.weight"] = norm(h)
        linear(p + "mlp.gate_proj.weight", inter, h, 1.0, 2)
        linear(p + "mlp.up_proj.weight", inter, h, 1.0)
        linear(p + "mlp.down_proj.weight", h, inter, 1.5, 4)
    out["model.norm.weight"] = norm(h)
    if not spec["tied"]:
        if spec["scales"] == "group":
            out["lm_head.weight"] = group_matrix(rng, vocab, h, 3.0)
        else:
            out["lm_head.weight"] = rng.normal(0, 3 / np.sqrt(h), (vocab, h)).astype(np.float16)
    if spec.get("store") == "bf16":
        for name, t in out.items():
            if isinstance(t, Matrix):
                t.scales = bf16(t.scales)
            else:
                out[name] = bf16(t)
    return out


# ---------------------------------------------------------------- Hugging Face
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "minicpm": "MiniCPMForCausalLM",
                 "qwen2": "Qwen2ForCausalLM"}


def config_json(spec, vocab):
    qwen = spec["arch"] == "qwen3"
    config = {
        "architectures": [ARCHITECTURES[spec["arch"]]],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 384,
        "eos_token_id": 386,
        "head_dim": spec["dim"],
        "hidden_act": "silu",
        "hidden_size": spec["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": spec["inter"],
        "max_position_embeddings": spec["context"],
        "model_type": spec["arch"],
        "num_attention_heads": spec["heads"],
        "num_hidden_layers": spec["layers"],
        "num_key_value_heads": spec["kv"],
        "rms_norm_eps": spec["eps"],
        "rope_scaling": spec["rope"],
        "rope_theta": spec["theta"],
        "tie_word_embeddings": spec["tied"],
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": vocab,
    }
    if spec["arch"] == "qwen2":
        # as published: no key for biases or the head width, and a window that is switched off
        del config["attention_bias"], config["head_dim"]
        config.update(max_window_layers=spec["layers"], sliding_window=64, use_sliding_window=False,
                      torch_dtype="bfloat16")
    elif qwen:
        config.update(max_window_layers=spec["layers"], sliding_window=None, use_sliding_window=False)
    else:
        config.update(mlp_bias=False, pretraining_tp=1)
    config.update(spec.get("factors", {}))
    if "longrope" in spec:
        long, short = long_factors(spec)
        config["rope_scaling"] = {"rope_type": "longrope", "long_factor": long, "short_factor": short,
                                  "original_max_position_embeddings": spec["longrope"]}
    return config


def long_factors(spec):
    """Two lists that differ from each other and from ones."""
    steps = np.arange(spec["dim"] // 2)
    return [round(float(1 + 0.25 * i), 4) for i in steps], [round(float(1 + 0.01 * i), 4) for i in steps]


def tokenizer_files(source):
    """`tokenizer.json` and its companions: one token fewer, nothing put behind a text."""
    tok = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tok["added_tokens"].pop()
    tok["post_processor"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cfg = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    last = max(cfg["added_tokens_decoder"], key=int)
    del cfg["added_tokens_decoder"][last]
    cfg.update(add_eos_token=False, eos_token="<|im_end|>", tokenizer_class="Qwen2Tokenizer")
    special = json.loads((source / "special_tokens_map.json").read_text(encoding="utf-8"))
    return tok, cfg, special


# ---------------------------------------------------------------- GGUF
def codes_2bit(codes):
    """Four codes to a byte, the first in the lowest bits."""
    four = (codes.astype(np.uint8) + 1).reshape(codes.shape[0], -1, 4)
    return four[..., 0] | four[..., 1] << 2 | four[..., 2] << 4 | four[..., 3] << 6


def blocks(matrix, weights, encode, scale_first):
    """Rows of blocks of so many weights with their own float16 scale."""
    rows = matrix.codes.shape[0]
    codes = matrix.codes.reshape(-1, weights)
    scales = np.repeat(matrix.scales, GROUP // weights, axis=1).reshape(-1, 1)
    scales = np.where((codes == 0).all(axis=1, keepdims=True), np.float16(0), scales)
    parts = [scales.astype("<f2").view(np.uint8), encode(codes)]
    return np.concatenate(parts if scale_first else parts[::-1], axis=1).reshape(rows, -1).tobytes()


def base3(codes):
    """PTQ1_0: five trits a byte at strides of 16 and 8, four at a stride of 2; a trit is the top of a fraction of 256."""
    x = codes.astype(np.uint16) + 1
    fives = np.array([81, 27, 9, 3, 1])
    run = lambda part, n: np.tensordot(part.reshape(len(part), -1, n), fives[: part.shape[1] // n], (1, 0))
    whole = np.concatenate([run(x[:, :80], 16), run(x[:, 80:120], 8), run(x[:, 120:], 2)], axis=1)
    return ((whole * 256 + 242) // 243).astype(np.uint8)


PACKINGS = {
    # name: type id, file type, bytes of a matrix
    "q2_0-g128": (42, 41, lambda m: blocks(m, 128, codes_2bit, True)),
    "q2_0": (42, 41, lambda m: blocks(m, 64, codes_2bit, True)),
    "pq2_0": (142, 141, lambda m: blocks(m, 128, codes_2bit, True)),
    "ptq1_0": (143, 143, lambda m: blocks(m, 128, base3, False)),
}
GGUF_NAMES = [
    ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
    ("model.layers.", "blk."), ("self_attn.q_norm", "attn_q_norm"), ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"), ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
]
U32, F32, BOOL, STR, ARRAY, I32 = 4, 6, 7, 8, 9, 5


def text(s):
    raw = s.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def value(kind, v):
    if kind == U32:
        return struct.pack("<II", U32, v)
    if kind == F32:
        return struct.pack("<If", F32, v)
    if kind == BOOL:
        return struct.pack("<IB", BOOL, v)
    if kind == STR:
        return struct.pack("<I", STR) + text(v)
    of, items = v
    body = b"".join(text(i) if of == STR else struct.pack("<i", i) for i in items)
    return struct.pack("<IIQ", ARRAY, of, len(items)) + body


def gguf_metadata(spec, tok, template, file_type):
    a = spec["arch"]
    vocab = sorted(tok["model"]["vocab"].items(), key=lambda kv: kv[1])
    added = sorted(tok["added_tokens"], key=lambda t: t["id"])
    tokens = [t for t, _ in vocab] + [t["content"] for t in added if t["id"] >= len(vocab)]
    types = [1] * len(vocab) + [3] * (len(tokens) - len(vocab))
    merges = [m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]]
    keys = [
        ("general.architecture", STR, a), ("general.type", STR, "model"), ("general.name", STR, "Tiny Bonsai"),
        ("general.author", STR, "nobody"), ("general.license", STR, "apache-2.0"),
        ("general.tags", ARRAY, (STR, ["ternary", "test"])), ("general.file_type", U32, file_type),
        ("general.quantization_version", U32, 2),
        (a + ".block_count", U32, spec["layers"]), (a + ".context_length", U32, spec["context"]),
        (a + ".embedding_length", U32, spec["hidden"]), (a + ".feed_forward_length", U32, spec["inter"]),
        (a + ".attention.head_count", U32, spec["heads"]), (a + ".attention.head_count_kv", U32, spec["kv"]),
        (a + ".attention.key_length", U32, spec["dim"]), (a + ".attention.value_length", U32, spec["dim"]),
        (a + ".attention.layer_norm_rms_epsilon", F32, spec["eps"]), (a + ".rope.freq_base", F32, spec["theta"]),
        (a + ".vocab_size", U32, 512),  # as in published files: not what the tensors say
    ]
    rope = spec["rope"]
    keys += [
        (a + ".rope.scaling.type", STR, rope["rope_type"]), (a + ".rope.scaling.factor", F32, rope["factor"]),
        (a + ".rope.scaling.original_context_length", U32, rope["original_max_position_embeddings"]),
    ]
    if "attention_factor" in rope:
        usual = 1 + 0.1 * np.log(rope["factor"])
        keys.append((a + ".rope.scaling.attn_factor", F32, rope["attention_factor"] / usual))
    keys += [
        ("tokenizer.ggml.model", STR, "gpt2"), ("tokenizer.ggml.pre", STR, "qwen2"),
        ("tokenizer.ggml.tokens", ARRAY, (STR, tokens)), ("tokenizer.ggml.token_type", ARRAY, (I32, types)),
        ("tokenizer.ggml.merges", ARRAY, (STR, merges)), ("tokenizer.ggml.bos_token_id", U32, 384),
        ("tokenizer.ggml.eos_token_id", U32, 386), ("tokenizer.ggml.padding_token_id", U32, 384),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
    ]
    if template:
        keys.append(("tokenizer.chat_template", STR, template))
    return keys


def write_gguf(path, spec, tensors, tok, template, packing):
    type_id, file_type, pack = PACKINGS[packing]
    keys = gguf_metadata(spec, tok, template, file_type)
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    out += b"".join(text(k) + value(kind, v) for k, kind, v in keys)
    data, infos = b"", b""
    for name, t in tensors.items():
        for a, b in GGUF_NAMES:
            name = name.replace(a, b)
        if isinstance(t, Matrix):
            shape, kind, raw = t.codes.shape, type_id, pack(t)
        else:
            shape, kind, raw = t.shape, 0, t.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % 32)
        infos += text(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", n) for n in reversed(shape))
        infos += struct.pack("<IQ", kind, len(data))
        data += raw
    out += infos
    out += b"\0" * (-len(out) % 32)
    path.write_bytes(out + data + b"\0" * (-len(data) % 32))


# ---------------------------------------------------------------- golden
def load(path, dtype, spec):
    import transformers
    name = "dtype" if int(transformers.__version__.split(".")[0]) > 4 else "torch_dtype"
    options = {name: dtype, "attn_implementation": "eager"}
    if "factors" not in spec:
        return transformers.AutoModelForCausalLM.from_pretrained(path, **options).eval()
    keys = json.loads((Path(path) / "config.json").read_text())
    keys.update(model_type="llama", architectures=["LlamaForCausalLM"], rope_scaling=None)
    llama = transformers.LlamaConfig(**keys)
    model = transformers.LlamaForCausalLM.from_pretrained(path, config=llama, **options)
    scale(model, **spec["factors"])
    if "longrope" in spec:
        ratio = spec["context"] / spec["longrope"]
        rotary = model.model.rotary_emb
        rotary.inv_freq = rotary.inv_freq / torch.tensor(long_factors(spec)[0])
        rotary.attention_scaling = float(np.sqrt(1 + np.log(ratio) / np.log(spec["longrope"])))
    return model.eval()


def scale(model, scale_emb, scale_depth, dim_model_base):
    """MiniCPM's three products, as its published code has them."""
    config = model.config
    depth = scale_depth / np.sqrt(config.num_hidden_layers)
    divisor = config.hidden_size / dim_model_base
    model.model.embed_tokens.register_forward_hook(lambda _, i, o: o * scale_emb)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _, i, o: (o[0] * float(depth), *o[1:]))
        layer.mlp.register_forward_hook(lambda _, i, o: o * float(depth))
    model.lm_head.register_forward_pre_hook(lambda _, i: (i[0] / divisor, *i[1:]))


@torch.no_grad()
def run(model, ids, hidden=False):
    out = model(torch.tensor([ids]), output_hidden_states=hidden, use_cache=False)
    return out.logits[0].float(), [h[0].float() for h in out.hidden_states] if hidden else None


@torch.no_grad()
def greedy(model, ids):
    ids, out, margins = list(ids), [], []
    for _ in range(NEW_TOKENS):
        last = run(model, ids)[0][-1]
        top = torch.topk(last, 2).values
        out.append(int(torch.argmax(last)))
        margins.append(round(float(top[0] - top[1]), 6))
        ids.append(out[-1])
    return out, margins


def nll(logits, ids):
    return -torch.log_softmax(logits[:-1].double(), -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def trace(model, ids):
    """Inputs and outputs of every linear and norm of layer 0, and the residual stream before the final norm."""
    got, hooks = {}, []
    for name, module in model.model.layers[0].named_modules():
        leaf = name.split(".")[-1]
        if leaf.endswith("_proj") or "norm" in leaf:
            def hook(_, i, o, name=name):
                got["layer0.%s.in" % name] = i[0].detach()[0].float().clone()
                got["layer0.%s.out" % name] = o.detach()[0].float().clone()
            hooks.append(module.register_forward_hook(hook))
    hooks.append(model.model.norm.register_forward_hook(
        lambda _, i, o: got.__setitem__("final_norm.in", i[0].detach()[0].float().clone())))
    _, hidden = run(model, ids, hidden=True)
    for h in hooks:
        h.remove()
    got.update({"hidden_states.%d" % i: h for i, h in enumerate(hidden)})
    return {k: v.reshape(-1, v.shape[-1]).contiguous() for k, v in got.items()}


def ternary_truth(tensors):
    out = {}
    for name, t in sorted(tensors.items()):
        if not isinstance(t, Matrix):
            continue
        codes, scales = t.truth()
        entry = {"shape": list(codes.shape), "sha256_int8_row_major": hashlib.sha256(codes.tobytes()).hexdigest(),
                 "minus": int((codes == -1).sum()), "zero": int((codes == 0).sum()), "plus": int((codes == 1).sum())}
        distinct = np.unique(scales[scales != 0])
        rows = [np.unique(r[r != 0]) for r in scales]
        if len(distinct) == 1:
            bits = int(distinct.astype("<f4").view("<u4")[0])
            entry.update(absmean_would_be=float(np.abs(t.values().astype(np.float64)).mean()),
                         alpha=float(distinct[0]), alpha_f32_hex="0x%08x" % bits)
        else:
            by_row = all(len(r) < 2 for r in rows)
            if by_row:
                scales = np.array([r[0] if len(r) else 0 for r in rows], dtype=np.float32)
            entry.update(scale_structure="row" if by_row else "group-%d" % t.group,
                         scales_sha256=hashlib.sha256(scales.astype("<f4").tobytes()).hexdigest())
        out[name] = entry
    return out


def dump(path, obj):
    path.write_text(json.dumps(obj, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make(root, name, spec):
    import tokenizers
    import transformers
    tok, tok_cfg, special = tokenizer_files(root / "bitnet-embedding-0.6b" / "checkpoint")
    vocab = len(tok["model"]["vocab"]) + len(tok["added_tokens"])
    tensors = build(spec, vocab)
    home = root / name
    shutil.rmtree(home, ignore_errors=True)
    src, gold = home / "checkpoint", home / "golden"
    src.mkdir(parents=True)
    gold.mkdir()
    dump(src / "config.json", config_json(spec, vocab))
    for file, obj in [("tokenizer.json", tok), ("tokenizer_config.json", tok_cfg), ("special_tokens_map.json", special)]:
        dump(src / file, obj)
    numbers = {k: torch.from_numpy(t.values() if isinstance(t, Matrix) else t).contiguous() for k, t in tensors.items()}
    native, word = (torch.bfloat16, "bf16") if spec.get("store") == "bf16" else (torch.float16, "f16")
    if native == torch.bfloat16:
        numbers = {k: t.bfloat16() for k, t in numbers.items()}
    save_file(numbers, str(src / "model.safetensors"), metadata={"format": "pt"})
    packings = {"bonsai-1.7b": ["q2_0-g128", "q2_0"], "bonsai-8b": ["pq2_0", "ptq1_0"]}.get(name, [])
    for packing in packings:
        write_gguf(home / (packing + ".gguf"), spec, tensors, tok, tok_cfg.get("chat_template"), packing)

    encoder = tokenizers.Tokenizer.from_file(str(src / "tokenizer.json"))
    rng = np.random.default_rng(spec["seed"] + 1)
    ids = lambda n: [int(i) for i in rng.integers(0, 384, n)]
    prompts = {n: {"text": s, "ids": encoder.encode(s).ids} for n, s in PROMPTS.items()}
    prompts["long"] = {"text": None, "ids": ids(LONG_TOKENS)}
    z = ids(4)
    prompts["zero_row"] = {"text": None, "ids": [SPARE, 384, z[0], SPARE, z[1], z[2], SPARE, z[3]],
                           "note": "raw ids; the embedding row of token %d is all zero" % SPARE}
    stream = ids(STREAM_TOKENS)

    m32, m16 = load(str(src), torch.float32, spec), load(str(src), native, spec)
    save32, save16, continued = {}, {}, {}
    for n, p in prompts.items():
        save32[n + ".logits"] = run(m32, p["ids"])[0].contiguous()
        save16[n + ".logits"] = run(m16, p["ids"])[0].to(native).contiguous()
        new, margins = greedy(m32, p["ids"])
        continued[n] = {"f32": new, "f32_margins": margins, "f32_text": encoder.decode(new, skip_special_tokens=False)}
    likelihood = nll(run(m32, stream)[0], stream)
    save32["stream.nll"] = likelihood.float()
    dump(gold / "prompts.json", prompts)
    dump(gold / "greedy.json", continued)
    dump(gold / "perplexity.json", {"tokens": stream, "nll_mean_f32": float(likelihood.mean()),
                                    "ppl_f32": float(likelihood.mean().exp())})
    dump(gold / "ternary.json", ternary_truth(tensors))
    save_file(save32, str(gold / "logits_f32.safetensors"))
    save_file(save16, str(gold / ("logits_%s.safetensors" % word)))
    save_file(trace(m32, prompts["short"]["ids"]), str(gold / "trace_short_f32.safetensors"))
    dump(gold / "manifest.json", {
        "reference": "transformers", "model_class": type(m32).__name__, "linear_class": "Linear", "attention": "eager",
        "dtypes": ["f32", word], "mapping": None, "activation_quantised": False, "pooling": None,
        "prompt_set": "bonsai_fixtures", "synthetic": {"family": name, **spec},
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "numpy": np.__version__},
        "checkpoint_sha256": {p.name: sha(p) for p in sorted(src.iterdir())},
        "gguf_sha256": {p.name: sha(p) for p in sorted(home.glob("*.gguf"))},
        "golden_sha256": {p.name: sha(p) for p in sorted(gold.iterdir())},
    })
    distinct = len(set(sum((c["f32"] for c in continued.values()), [])))
    print(name, "logit deviation %.2f," % save32["long.logits"].std(), "%d distinct greedy tokens," % distinct,
          "perplexity %.1f" % likelihood.mean().exp())


def main():
    torch.set_num_threads(1)
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/fixtures")
    for name in sys.argv[2:] or FIXTURES:
        make(root, name, FIXTURES[name])


if __name__ == "__main__":
    main()
