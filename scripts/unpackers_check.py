"""Unpack random legal bytes with the decoders of other programs, and compare every number with ours.

scripts/unpackers-check installs the decoders and starts this script, and has the usage.

Each case is one small checkpoint whose tensors hold random bytes of one type. `bitnet-convert` widens it to f32. The decoder of another program
widens the same bytes. The bits of every number have to be the same, but for the sign of a zero.

Bytes are legal if the page of the format in formats/packing says so. What else is random: factors have every finite pattern, subnormal numbers
and zeros included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
HOME = Path(os.environ.get("UNPACKERS_CHECK_HOME", BIN.parent / "unpackers-check"))

HIDDEN, INTER, HEADS, KV_HEADS = 256, 512, 4, 2
LINEARS = [
    ("self_attn.q_proj", "attn_q", HIDDEN, HIDDEN),
    ("self_attn.k_proj", "attn_k", HIDDEN // 2, HIDDEN),
    ("self_attn.v_proj", "attn_v", HIDDEN // 2, HIDDEN),
    ("self_attn.o_proj", "attn_output", HIDDEN, HIDDEN),
    ("mlp.gate_proj", "ffn_gate", INTER, HIDDEN),
    ("mlp.up_proj", "ffn_up", INTER, HIDDEN),
    ("mlp.down_proj", "ffn_down", HIDDEN, INTER),
]

# Bytes of a block, and where its f16 factors stand.
BLOCKS = {
    "Q4_0": (18, [0]),
    "Q4_1": (20, [0, 2]),
    "Q5_0": (22, [0]),
    "Q5_1": (24, [0, 2]),
    "Q8_0": (34, [0]),
    "Q2_K": (84, [80, 82]),
    "Q3_K": (110, [108]),
    "Q4_K": (144, [0, 2]),
    "Q5_K": (176, [0, 2]),
    "Q6_K": (210, [208]),
    "TQ1_0": (54, [52]),
    "TQ2_0": (66, [64]),
}


class Skipped(Exception):
    """A decoder that is not there, or a type that one of the two does not read."""


def absent(package, error):
    """Why a package is not there."""
    reason = HOME / f"{package}.skipped"
    return Skipped(reason.read_text().strip() if reason.exists() else str(error))


def convert(source, out, *options):
    """Converts, or raises what `bitnet-convert` says."""
    words = [BIN / "bitnet-convert", source, "-o", out, "--json", "--quiet", *options]
    ran = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    report = json.loads(ran.stdout or "{}")
    if ran.returncode != 0:
        error = report.get("error", {})
        if error.get("code") == "unknown-type":
            raise Skipped("bitnet-convert does not read it")
        raise RuntimeError(error.get("message") or ran.stderr.strip())


def finite_halves(rng, count, positive=False):
    """Every finite pattern of f16 is as likely as another."""
    bits = rng.integers(0, 0x7C00, count, dtype=np.uint16)
    signs = rng.integers(0, 2, count, dtype=np.uint16) << np.uint16(15)
    return (bits if positive else bits | signs).astype("<u2")


def ternary_bytes(rng, name, blocks):
    """Codes of three values; of TQ1_0 any byte is one."""
    size, _ = BLOCKS[name]
    if name == "TQ1_0":
        return rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    codes = rng.integers(0, 3, (blocks, size, 4), dtype=np.uint8)
    return (codes << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(axis=2).astype(np.uint8)


def block_bytes(rng, name, rows, bytes_of_row):
    """Random legal bytes of a type, `(rows, bytes_of_row)`."""
    size, halves = BLOCKS[name]
    blocks = rows * bytes_of_row // size
    is_ternary = name.startswith("TQ")
    data = ternary_bytes(rng, name, blocks) if is_ternary else rng.integers(0, 256, (blocks, size), dtype=np.uint8)
    for at in halves:
        data[:, at : at + 2] = finite_halves(rng, blocks, is_ternary).view(np.uint8).reshape(blocks, 2)
    return data.reshape(rows, bytes_of_row)


def compare(name, ours, theirs):
    """Numbers that were compared, and the first that differs."""
    ours, theirs = np.ascontiguousarray(ours, np.float32).ravel(), np.ascontiguousarray(theirs, np.float32).ravel()
    if ours.shape != theirs.shape:
        return f"{name}: expected {theirs.size} numbers, found {ours.size}"
    differ = (ours.view(np.uint32) != theirs.view(np.uint32)) & ~((ours == 0) & (theirs == 0))
    if differ.any():
        at = int(np.argmax(differ))
        return f"{name}: element {at}: expected {theirs[at]!r}, found {ours[at]!r}; {int(differ.sum())} of {ours.size} differ"
    return None


# ---- blocks of GGUF, by the package gguf ----


def gguf_model(gguf, path, table, table_type, linears, linear_type):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INTER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tensor("token_embd.weight", table, raw_dtype=table_type)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(name + ".weight", np.ones(HIDDEN, np.float32))
    for name, data in linears.items():
        writer.add_tensor(f"blk.0.{name}.weight", data, raw_dtype=linear_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_type(gguf, name, rng, rows, tmp):
    from gguf.quants import dequantize

    kind = gguf.GGMLQuantizationType[name]
    is_ternary = name.startswith("TQ")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    # linears hold trits in every model
    linear_kind = kind if is_ternary else gguf.GGMLQuantizationType.TQ2_0
    if is_ternary:
        table, table_kind = rng.standard_normal((64, HIDDEN)).astype(np.float32), gguf.GGMLQuantizationType.F32
    else:
        table, table_kind = block_bytes(rng, name, rows, HIDDEN // block * size), kind
    linear_block, linear_size = gguf.GGML_QUANT_SIZES[linear_kind]
    linears = {}
    for _, short, m, k in LINEARS:
        linears[short] = block_bytes(rng, linear_kind.name, m, k // linear_block * linear_size)
    source, out = tmp / f"{name}.gguf", tmp / f"{name}-f32.gguf"
    gguf_model(gguf, source, table, table_kind, linears, linear_kind)
    convert(source, out, "--to", "gguf-f32", "--embeddings", "f32")
    found = {t.name: np.array(t.data) for t in gguf.GGUFReader(str(out)).tensors}
    compared, wrong = 0, []
    for short, data in linears.items():
        theirs = dequantize(data, linear_kind)
        wrong.append(compare(f"{linear_kind.name} {short}", found[f"blk.0.{short}.weight"], theirs))
        compared += theirs.size
    if not is_ternary:
        theirs = dequantize(table, kind)
        wrong.append(compare(f"{name} token_embd", found["token_embd.weight"], theirs))
        compared += theirs.size
    return compared, [w for w in wrong if w]


def gguf_cases():
    try:
        import gguf
    except ImportError as error:
        raise absent("gguf", error) from error
    import gguf.quants

    types = [kind.name for kind in gguf.GGMLQuantizationType if kind in gguf.quants._type_traits]
    for name in types:
        if name in BLOCKS:
            yield f"gguf {name}", lambda rng, rows, tmp, name=name: gguf_type(gguf, name, rng, rows, tmp)
        elif name not in ("F32", "F16", "BF16"):
            yield f"gguf {name}", lambda rng, rows, tmp: unread()


def unread():
    raise Skipped("bitnet-convert does not read it")


# ---- directories: codes of mlx, bytes of transformers ----


def directory(path, tensors, keys, rows):
    path.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "max_position_embeddings": 64,
        "num_attention_heads": HEADS,
        "num_hidden_layers": 1,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": rows,
    }
    config.update(keys)
    (path / "config.json").write_text(json.dumps(config))
    for name in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        tensors[name + ".weight"] = np.ones(HIDDEN, np.float32)
    save_file(tensors, str(path / "model.safetensors"), metadata={"format": "pt"})


def code_words(codes, bits):
    """Codes in 32-bit words, the first in the lowest bits."""
    rows, cols = codes.shape
    stream = (codes[:, :, None] >> np.arange(bits, dtype=np.uint32)) & 1
    stream = stream.reshape(rows, cols * bits // 32, 32).astype(np.uint64)
    return (stream << np.arange(32, dtype=np.uint64)).sum(axis=2).astype("<u4")


def halves_of_size(rng, shape, largest=255.0):
    """f16 numbers whose multiples f16 holds, too."""
    bits = rng.integers(1, np.float16(largest).view(np.uint16), shape, dtype=np.uint16)
    return bits.view(np.float16)


def mlx_module(mx, rng, m, k, bits, group):
    if bits == 2:
        codes = rng.integers(0, 3, (m, k), dtype=np.uint32)
        scales = halves_of_size(rng, (m, k // group))
        biases = -scales
    elif bits == 1:
        codes = rng.integers(0, 2, (m, k), dtype=np.uint32)
        biases = -halves_of_size(rng, (m, k // group))
        scales = -2 * biases
    else:
        codes = rng.integers(0, 1 << bits, (m, k), dtype=np.uint32)
        scales = halves_of_size(rng, (m, k // group)) * rng.choice(np.array([-1, 1], np.float16), (m, k // group))
        biases = halves_of_size(rng, (m, k // group)) * rng.choice(np.array([-1, 1], np.float16), (m, k // group))
    words = code_words(codes, bits)
    # our page asks for f32 numbers: product, then sum
    wide = [mx.array(a.astype(np.float32)) for a in (scales, biases)]
    theirs = np.array(mx.dequantize(mx.array(words), *wide, group_size=group, bits=bits))
    return words, scales, biases, theirs


def mlx_case(mx, bits, group, rng, rows, tmp):
    import gguf

    tensors, theirs = {}, {}
    width = bits if bits <= 2 else 2
    quantization = {"group_size": group, "bits": width}
    for long, short, m, k in LINEARS:
        words, scales, biases, numbers = mlx_module(mx, rng, m, k, width, group)
        module = "model.layers.0." + long
        tensors.update({module + ".weight": words, module + ".scales": scales, module + ".biases": biases})
        theirs[f"blk.0.{short}.weight"] = numbers
    if bits > 2:
        words, scales, biases, numbers = mlx_module(mx, rng, rows, HIDDEN, bits, group)
        module = "model.embed_tokens"
        tensors.update({module + ".weight": words, module + ".scales": scales, module + ".biases": biases})
        theirs["token_embd.weight"] = numbers
        quantization[module] = {"group_size": group, "bits": bits}
    else:
        tensors["model.embed_tokens.weight"] = rng.standard_normal((rows, HIDDEN)).astype(np.float32)
    source, out = tmp / f"mlx-{bits}-{group}", tmp / f"mlx-{bits}-{group}.gguf"
    directory(source, tensors, {"quantization": quantization}, rows)
    return widened(gguf, source, out, theirs)


def widened(gguf, source, out, theirs):
    convert(source, out, "--to", "gguf-f32", "--embeddings", "f32")
    found = {t.name: np.array(t.data) for t in gguf.GGUFReader(str(out)).tensors}
    wrong = []
    for name, numbers in theirs.items():
        ours = found[name]
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            # GGUF keeps rows of a head in pairs
            heads = HEADS if "attn_q" in name else KV_HEADS
            m, k = ours.shape
            ours = ours.reshape(heads, m // heads // 2, 2, k).swapaxes(1, 2).reshape(m, k)
        wrong.append(compare(name, ours, numbers))
    return sum(n.size for n in theirs.values()), [w for w in wrong if w]


def mlx_cases():
    try:
        import gguf  # noqa: F401
        import mlx.core as mx
    except ImportError as error:
        raise absent("mlx", error) from error
    for bits in (1, 2, 3, 4, 5, 6, 8):
        for group in (32, 64, 128):
            yield f"mlx {bits} bits, groups of {group}", lambda rng, rows, tmp, b=bits, g=group: mlx_case(mx, b, g, rng, rows, tmp)


def transformers_case(direction, rng, rows, tmp):
    import gguf
    import torch
    from transformers.integrations.bitnet import unpack_weights

    tensors, theirs = {}, {}
    for long, short, m, k in LINEARS:
        # a code of two bits for each of four rows
        codes = rng.integers(0, 3, (m // 4, k, 4), dtype=np.uint8)
        packed = (codes << np.array([0, 2, 4, 6], dtype=np.uint8)).sum(axis=2).astype(np.uint8)
        scale = np.float32(rng.uniform(0.01, 100.0))
        module = "model.layers.0." + long
        tensors[module + ".weight"] = packed
        tensors[module + ".weight_scale"] = np.array([scale], np.float32)
        trits = unpack_weights(torch.from_numpy(packed), dtype=torch.float32).numpy()
        factor = np.float32(1) / scale if direction == "bitlinear" else scale
        theirs[f"blk.0.{short}.weight"] = trits * factor
    tensors["model.embed_tokens.weight"] = rng.standard_normal((rows, HIDDEN)).astype(np.float32)
    keys = {"quantization_config": {"quant_method": "bitnet", "linear_class": direction, "quantization_mode": "offline"}}
    source, out = tmp / f"transformers-{direction}", tmp / f"transformers-{direction}.gguf"
    directory(source, tensors, keys, rows)
    return widened(gguf, source, out, theirs)


def transformers_cases():
    try:
        import gguf  # noqa: F401
        import torch  # noqa: F401
        from transformers.integrations.bitnet import unpack_weights  # noqa: F401
    except ImportError as error:
        raise absent("torch", error) from error
    for direction in ("autobitlinear", "bitlinear"):
        yield f"transformers {direction}", lambda rng, rows, tmp, d=direction: transformers_case(d, rng, rows, tmp)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="first seed of the random bytes")
    parser.add_argument("--rows", type=int, default=1024, help="rows of tables")
    args = parser.parse_args()
    failed = passed = numbers = 0
    for group in (gguf_cases, mlx_cases, transformers_cases):
        try:
            cases = list(group())
        except Skipped as error:
            print(f"skipped: {group.__name__.removesuffix('_cases')}: {error}")
            continue
        for name, case in cases:
            rng = np.random.default_rng([args.seed, *name.encode()])
            with tempfile.TemporaryDirectory() as tmp:
                try:
                    compared, wrong = case(rng, args.rows, Path(tmp))
                except Skipped as error:
                    print(f"skipped: {name}: {error}")
                    continue
                except RuntimeError as error:
                    compared, wrong = 0, [str(error)]
            numbers += compared
            passed += not wrong
            failed += bool(wrong)
            print(f"{name}: {'; '.join(wrong) if wrong else f'{compared} numbers the same'}", flush=True)
    print(f"{passed} passed, {failed} failed, {numbers} numbers")
    return 1 if failed else 0 if passed else 2


if __name__ == "__main__":
    sys.exit(main())
