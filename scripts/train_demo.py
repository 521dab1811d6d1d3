#!/usr/bin/env python3
"""Train the demo model: a small BitNet b1.58 network with the wiring of BitNet 2B4T that answers questions.

    scripts/train_demo.py --work DIR             train (continues from DIR/state.pt if it exists)
    scripts/train_demo.py --work DIR --measure   print the exact answers on the held-out questions, then stop

All text comes from demo_questions.py. `export_demo.py` writes the checkpoints.
Needs torch, tokenizers, numpy. Exit status: 0 done, 1 could not.

The forward pass is that of the published model: weights `trit * mean|w|` (absmean), activations int8 per token
(absmax), both with straight-through gradients; RMS norms before each block and inside it (sub-norms); ReLU squared.
Trits and int8 values are exact in bf16 and products accumulate in f32, so training in bf16 rounds only results.

Invariant: a run is a function of SEED and the settings below; stopping and resuming changes no step.
"""
import argparse
import json
import math
import os
import random
import sys
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy as np
import torch
import torch.nn.functional as F

import demo_questions

SEED = 20
CONFIG = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
              rms_norm_eps=1e-5, rope_theta=10000.0, vocab_size=576, max_position_embeddings=512)
SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
PER_TASK = 250                          # held-out questions per task
STEPS = 5000
MIX = {"story": 0.3, "arithmetic": 0.17, "sort": 0.14, "count": 0.13, "dates": 0.26}    # of the text
RECALL = 0.25, 700                       # share of an exercise beside the tasks at first, and the step at which it has faded out
ROWS = ((4250, 32, 128, 0.1), (STEPS, 16, 256, 0.6))   # until which step: rows, tokens per row, P(next question joins the chat)
DISTANCES = 1, 4, 2, 3                  # at which the heads of the first layer look back to begin with
SELECTED = 1792                         # positions per step that enter the loss
PROMPT_WEIGHT = 0.1                     # of a token that is not part of an answer
WARMUP, FLAT = 72, 2300                 # the rate rises until the first step, and falls from the second on
RAMP = 450                              # steps over which float weights turn ternary
LR_MATRIX, LR_DENSE = 3e-3, 4e-3        # Muon for linears, Adam for embeddings and norms
DECAY = 0.1                             # weight decay of linears in the first half, none in the second (BitNet papers)


# --- tokenizer ---------------------------------------------------------------
# Qwen2's expression: it gives every digit a token of its own, and GGUF readers know it by name.
PRE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
       r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_tokenizer():
    """Byte-level BPE over generated questions; deterministic."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PRE), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    # Content words weigh the same, so that rare ones get a token too.
    rng, text = random.Random(f"{SEED} tokenizer"), []
    q = demo_questions
    for word in sorted({*q.NAMES, *q.THINGS, *q.COLOURS, *q.PLACES, *q.WORDS, *q.DAYS, *q.MONTHS}):
        text += [" " + word] * 400
    for task in q.TASKS:
        for _ in range(800):
            for made in q.training(rng, task):
                text += [made.text, made.answer]
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"] - len(SPECIALS), initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[], show_progress=False))
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    assert tok.get_vocab_size() == CONFIG["vocab_size"], tok.get_vocab_size()
    return tok


def encode(tok, questions):
    """Ids of prompt and answer of each question, as the chat template writes one turn."""
    end, _, user, assistant = (tok.token_to_id(s) for s in SPECIALS)
    prompts = tok.encode_batch([q.text for q in questions], add_special_tokens=False)
    answers = tok.encode_batch([q.answer for q in questions], add_special_tokens=False)
    return [([user] + p.ids + [end, assistant], a.ids + [end]) for p, a in zip(prompts, answers)]


def chats(tok, made):
    """`encode` of chats: a list of turns for each."""
    turns = iter(encode(tok, [q for chat in made for q in chat]))
    return [[next(turns) for _ in chat] for chat in made]


# --- batches -----------------------------------------------------------------
def current(stages, step):
    """The stage of a list (until which step, ...) that a step is in."""
    return next(s for s in stages if step < s[0] or s is stages[-1])


def batch(tok, step, rows, width, join):
    """Rows of packed chats. Returns ids, positions, chat numbers (rows, width), and the positions, targets and
    weights (SELECTED,) of the loss: every answer token, and prompt tokens while there is room."""
    rng = random.Random(f"{SEED} step {step}")
    ids, pos, chat = (np.zeros((rows, width), np.int64) for _ in range(3))
    target = np.zeros((rows, width), np.int64)
    kind = np.zeros((rows, width), np.int8)              # 0 nothing, 1 prompt, 2 answer
    pool = []
    for r in range(rows):
        at, start, number = 0, 0, 0
        while True:
            if not pool:
                recall = RECALL[0] * max(0.0, 1 - step / RECALL[1])
                tasks = rng.choices([*MIX, "recall"], [*MIX.values(), recall / (1 - recall)], k=64)
                pool = chats(tok, [demo_questions.training(rng, t) for t in tasks])
            pick = next((i for i in range(len(pool) - 1, -1, -1) if at + sum(len(p) + len(a) for p, a in pool[i]) <= width), None)
            if pick is None:
                break
            if at == 0 or rng.random() >= join:
                start, number = at, number + 1
            for prompt, answer in pool.pop(pick):
                n, whole = len(prompt) + len(answer), prompt + answer
                ids[r, at:at + n] = whole
                pos[r, at:at + n] = range(at - start, at - start + n)
                chat[r, at:at + n] = number
                target[r, at:at + n - 1] = whole[1:]
                kind[r, at:at + len(prompt) - 1] = 1
                kind[r, at + len(prompt) - 1:at + n - 1] = 2
                at += n
    answers = np.flatnonzero(kind == 2)[:SELECTED]
    prompts = np.flatnonzero(kind == 1)
    np.random.default_rng(step).shuffle(prompts)
    chosen = np.concatenate((answers, prompts))[:SELECTED]
    chosen = np.pad(chosen, (0, SELECTED - len(chosen)))
    weight = np.where(np.arange(SELECTED) < len(answers), 1.0, PROMPT_WEIGHT) * (kind.reshape(-1)[chosen] > 0)
    weight = weight / weight.sum()
    return [torch.from_numpy(a) for a in (ids, pos, chat, chosen, target.reshape(-1)[chosen], weight.astype(np.float32))]


# --- network -----------------------------------------------------------------
def init_params():
    """Random weights, and in the first two layers the beginnings of looking things up (`look_back`)."""
    c, g = CONFIG, torch.Generator().manual_seed(SEED)
    H, I, L = c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"]
    kv = H // c["num_attention_heads"] * c["num_key_value_heads"]
    shared = torch.randn(H, generator=g).sign()                            # a direction that every token has in common
    p = {"model.embed_tokens.weight": 0.3 * (torch.randn(c["vocab_size"], H, generator=g) + shared),
         "model.norm.weight": torch.full((H,), 0.2)}
    for l in range(L):
        b = f"model.layers.{l}."
        for name, n in (("input_layernorm", H), ("post_attention_layernorm", H), ("self_attn.attn_sub_norm", H), ("mlp.ffn_sub_norm", I)):
            p[b + name + ".weight"] = torch.ones(n)
        for name, n, k in (("self_attn.q_proj", H, H), ("self_attn.k_proj", kv, H), ("self_attn.v_proj", kv, H),
                           ("self_attn.o_proj", H, H), ("mlp.gate_proj", I, H), ("mlp.up_proj", I, H), ("mlp.down_proj", H, I)):
            std = k ** -0.5 * (0.4 if name.endswith("o_proj") else 0.1 if name.endswith("down_proj") else 1.0)
            w = torch.randn(n, k, generator=g) * std
            if name.endswith(("q_proj", "k_proj")):
                w -= torch.outer(w @ shared, shared) / H
            p[b + name + ".weight"] = w
    look_back(p, shared, g)
    return p


def look_back(p, shared, g):
    """Attention that a network of this size and data finds late, if at all, as a starting point of the training.

    Layer 0: each head looks at a fixed distance (`DISTANCES`). What all tokens share makes the same query and key
    everywhere, of which RoPE turns each pair of dimensions by its frequency times the distance, so scores peak where
    the query's phase says. Rows are thinned out instead of scaled, as trits are all or nothing.
    Layers 1 and 2: heads that look for the token they stand on, and in layer 1 for what stood before it (induction).
    """
    c = CONFIG
    heads, groups = c["num_attention_heads"], c["num_attention_heads"] // c["num_key_value_heads"]
    H = c["hidden_size"]
    hd = H // heads
    w = lambda l, name: p[f"model.layers.{l}.self_attn.{name}_proj.weight"]
    part = lambda t, h: t[h * hd:(h + 1) * hd]
    thin = lambda share: shared * math.copysign(H ** -0.5, share) * (torch.rand(H, generator=g) < abs(share))
    for i in range(6):
        freq = c["rope_theta"] ** (-2 * i / hd)
        for h in range(c["num_key_value_heads"]):
            part(w(0, "k"), h)[i] = thin(0.5)
            part(w(0, "k"), h)[i + hd // 2] = 0
        for h, distance in enumerate(DISTANCES):
            part(w(0, "q"), h)[i] = thin(math.cos(distance * freq))
            part(w(0, "q"), h)[i + hd // 2] = thin(-math.sin(distance * freq))
    for l in (1, 2):
        for h in range(groups):
            part(w(l, "q"), h).copy_(part(w(l, "k"), 0))
    for h in range(groups, 2 * groups):
        part(w(1, "q"), h).copy_(part(w(1, "q"), groups))
    before = w(0, "o")[:, :hd] @ part(w(0, "v"), 0)                        # what layer 0 writes of the token before
    key = part(w(1, "q"), groups) @ before.T
    part(w(1, "k"), 1).copy_(key / key.norm() * part(w(1, "k"), 1).norm())


def rms_norm(x, gain):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]) * gain


def quantize_activations(x):
    """f32 (tokens, K) to int8 values, kept as float, and 1 / s per token. The gradient passes straight through."""
    s = 127.0 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    xs = x * s
    return xs + ((xs.round().clamp(-128, 127)) - xs).detach(), 1.0 / s


def ternarize(w, share):
    """Master weight to trits (as float) and the scale; `share` of the way from w/alpha to the trit."""
    alpha = w.detach().abs().mean().clamp(min=1e-5)
    wa = w / alpha
    # what the published code computes: w * (1 / mean)
    trit = (w.detach() * (1.0 / alpha)).round().clamp(-1, 1)
    return wa + (share * (trit - wa)).detach(), alpha


def linears(x, weights, share, dtype):
    """Several BitLinear layers that read the same input."""
    q, inv = quantize_activations(x)
    parts = [ternarize(w, share) for w in weights]
    t = torch.cat([p[0] for p in parts])
    y = F.linear(q.to(dtype), t.to(dtype)).float() * inv
    out, at = [], 0
    for w, (_, alpha) in zip(weights, parts):
        out.append(y[..., at:at + w.shape[0]] * alpha)
        at += w.shape[0]
    return out


def forward(p, ids, pos, chat, chosen, share, dtype):
    """Logits f32 (len(chosen), vocabulary) at the flat positions `chosen` of ids (rows, width)."""
    c = CONFIG
    R, T = ids.shape
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    hd = c["hidden_size"] // heads
    inv_freq = 1.0 / (c["rope_theta"] ** (torch.arange(0, hd, 2).float() / hd))
    angle = pos.float()[..., None] * inv_freq                              # (rows, width, hd/2)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    order = torch.arange(T)
    mask = (chat[:, :, None] == chat[:, None, :]) & (order[:, None] >= order[None, :])
    bias = torch.where(mask[:, None], 0.0, float("-inf"))                  # (rows, 1, width, width)
    x = F.embedding(ids, p["model.embed_tokens.weight"])

    def rotate(z):
        a, b = z[..., :hd // 2], z[..., hd // 2:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    for l in range(c["num_hidden_layers"]):
        b = f"model.layers.{l}."
        w = lambda name: p[b + name + ".weight"]
        h = rms_norm(x, w("input_layernorm"))
        q, k, v = linears(h, [w(f"self_attn.{n}_proj") for n in "qkv"], share, dtype)
        q = rotate(q.view(R, T, heads, hd).transpose(1, 2))
        k = rotate(k.view(R, T, kv, hd).transpose(1, 2)).repeat_interleave(heads // kv, 1)
        v = v.view(R, T, kv, hd).transpose(1, 2).repeat_interleave(heads // kv, 1)
        score = (q.to(dtype) @ k.to(dtype).transpose(2, 3)).float() * hd ** -0.5 + bias
        o = (score.softmax(-1).to(dtype) @ v.to(dtype)).float()
        o = rms_norm(o.transpose(1, 2).reshape(R, T, -1), w("self_attn.attn_sub_norm"))
        x = x + linears(o, [w("self_attn.o_proj")], share, dtype)[0]
        if l == c["num_hidden_layers"] - 1:
            x = x.reshape(R * T, -1)[chosen]                               # nothing after this looks at other tokens
        h = rms_norm(x, w("post_attention_layernorm"))
        gate, up = linears(h, [w("mlp.gate_proj"), w("mlp.up_proj")], share, dtype)
        h = rms_norm(F.relu(gate).square() * up, w("mlp.ffn_sub_norm"))
        x = x + linears(h, [w("mlp.down_proj")], share, dtype)[0]
    x = rms_norm(x, p["model.norm.weight"])
    return F.linear(x.to(dtype), p["model.embed_tokens.weight"].to(dtype)).float()


def loss_of(p, ids, pos, chat, chosen, target, weight, share):
    logits = forward(p, ids, pos, chat, chosen, share, torch.bfloat16)
    nll = F.cross_entropy(logits, target, reduction="none")
    return (nll * weight).sum(), nll.detach()


# --- optimizer ---------------------------------------------------------------
def orthogonalize(g):
    """Newton-Schulz iteration of Muon on a stack of matrices (n, rows, cols)."""
    x = g.bfloat16()
    wide = x.shape[1] > x.shape[2]
    x = x.mT.contiguous() if wide else x
    x = x / (x.float().square().sum((1, 2), keepdim=True).sqrt() + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if wide else x).float()


class Optimizer:
    """Muon with Nesterov momentum for the linears, in stacks of one shape; Adam for the rest."""

    def __init__(self, params):
        self.params = params
        self.dense = [n for n, t in params.items() if t.ndim == 1 or "embed" in n]
        self.groups = {}
        for n, t in params.items():
            if n not in self.dense:
                self.groups.setdefault(tuple(t.shape), []).append(n)
        self.state = {n: torch.zeros_like(t) for n, t in params.items()}
        self.square = {n: torch.zeros_like(params[n]) for n in self.dense}
        self.count = 0

    @torch.no_grad()
    def step(self, lr, decay):
        self.count += 1
        for shape, names in self.groups.items():
            g = torch.stack([self.params[n].grad for n in names])
            m = torch.stack([self.state[n] for n in names]).mul_(0.95).add_(g, alpha=0.05)
            u = orthogonalize(g * 0.05 + m * 0.95) * (0.2 * max(shape) ** 0.5)
            for i, n in enumerate(names):
                self.state[n].copy_(m[i])
                self.params[n].mul_(1 - lr * LR_MATRIX * decay).sub_(u[i], alpha=lr * LR_MATRIX)
        for n in self.dense:
            g, m, v = self.params[n].grad, self.state[n], self.square[n]
            m.lerp_(g, 0.1)
            v.lerp_(g.square(), 0.02)
            mh, vh = m / (1 - 0.9 ** self.count), v / (1 - 0.98 ** self.count)
            self.params[n].sub_(mh / (vh.sqrt() + 1e-8), alpha=lr * LR_DENSE * (1.0 if "norm" in n else 0.5))
        for t in self.params.values():
            t.grad = None


def schedule(step):
    """Learning rate (of 1), weight decay and share of ternary at a step: constant, then linear to zero."""
    lr = min(1.0, (step + 1) / WARMUP, 0.01 + (STEPS - step) / (STEPS - FLAT))
    return lr, DECAY if step < STEPS // 2 else 0.0, min(1.0, step / RAMP)


# --- measuring ---------------------------------------------------------------
@torch.no_grad()
def answered(p, tok, questions, dtype=torch.float32, share=1.0):
    """Per question, whether greedy decoding gives the answer exactly (every answer token is the best one after the
    right prefix), and the negative log likelihood of the answer."""
    encoded = encode(tok, questions)
    order = sorted(range(len(questions)), key=lambda i: len(encoded[i][0]))
    right, cost = [True] * len(questions), [0.0] * len(questions)
    for at in range(0, len(order), 64):
        part = order[at:at + 64]
        width = max(sum(map(len, encoded[i])) for i in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        chosen, want, row = [], [], []
        for r, i in enumerate(part):
            prompt, answer = encoded[i]
            ids[r, :len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            chosen += range(r * width + len(prompt) - 1, r * width + len(prompt) - 1 + len(answer))
            want += answer
            row += [i] * len(answer)
        pos = torch.arange(width).expand(len(part), width)
        logits = forward(p, ids, pos, torch.zeros_like(ids), torch.tensor(chosen), torch.tensor(share), dtype)
        nll = F.cross_entropy(logits, torch.tensor(want), reduction="none")
        for i, best, n in zip(row, (logits.argmax(-1) == torch.tensor(want)).tolist(), nll.tolist()):
            right[i] &= best
            cost[i] += n
    return right, cost


def scores(p, tok, questions, **kw):
    """Right answers, questions and mean negative log likelihood of an answer, per task and per kind."""
    table = {}
    for q, ok, nll in zip(questions, *answered(p, tok, questions, **kw)):
        for key in (q.task, f"{q.task}/{q.kind}"):
            t = table.setdefault(key, [0, 0, 0.0])
            t[0] += ok
            t[1] += 1
            t[2] += nll
    return {key: f"{right}/{n} {nll / n:.3f}" for key, (right, n, nll) in table.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, required=True, help="directory of the state and the log")
    ap.add_argument("--measure", action="store_true", help="measure the state in DIR and stop")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--until", type=int, default=STEPS, help="stop after this step; a later run goes on")
    ap.add_argument("--no-compile", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(SEED)
    a.work.mkdir(parents=True, exist_ok=True)
    state_file = a.work / "state.pt"
    tok = train_tokenizer()
    questions = demo_questions.test_set(SEED, PER_TASK)
    p = init_params()
    opt, first, used = Optimizer(p), 0, 0.0
    if state_file.exists():
        s = torch.load(state_file)
        for n in p:
            p[n].copy_(s["params"][n])
        opt.state, opt.square, opt.count = s["momentum"], s["square"], s["count"]
        first, used = s["step"], s["cpu_seconds"]
    if a.measure:
        for key, score in scores(p, tok, questions).items():
            print(f"{key:24} {score}")
        return 0
    for t in p.values():
        t.requires_grad_(True)
    step_loss = loss_of if a.no_compile else torch.compile(loss_of, dynamic=False)
    log = open(a.work / "log.jsonl", "a")
    began, ema, wall = time.process_time(), None, time.time()
    for step in range(first, a.until):
        _, rows, width, join = current(ROWS, step)
        lr, decay, share = schedule(step)
        data = batch(tok, step, rows, width, join)
        loss, nll = step_loss(p, *data, torch.tensor(share))
        loss.backward()
        opt.step(lr, decay)
        answer = nll[data[-1] == data[-1].max()].mean().item()
        ema = answer if ema is None else 0.95 * ema + 0.05 * answer
        done = step + 1
        if done % 25 == 0:
            row = {"step": done, "loss": round(loss.item(), 4), "answer_nll": round(ema, 4), "lr": round(lr, 4), "share": round(share, 3),
                   "cpu_seconds": round(used + time.process_time() - began, 1), "wall_per_step": round((time.time() - wall) / 25, 3)}
            wall = time.time()
            if done % 250 == 0 or done == STEPS:
                subset = questions if done == STEPS else questions[::5]
                row["right"] = scores(p, tok, subset, dtype=torch.bfloat16, share=share)
                wall = time.time()
            print(json.dumps(row), file=log, flush=True)
        if done % 100 == 0 or done == a.until:
            torch.save({"params": {n: t.detach() for n, t in p.items()}, "momentum": opt.state, "square": opt.square, "count": opt.count,
                        "step": done, "cpu_seconds": used + time.process_time() - began}, a.work / "state.tmp")
            os.replace(a.work / "state.tmp", state_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
