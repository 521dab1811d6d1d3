"""An open checkpoint: trits, scales, numbers, and the state dict of transformers."""

import json
import pathlib

import bitnet_toolchain as bt
import numpy as np
import pytest
from conftest import FIXTURES, needs_torch

NAMES = sorted(p.parent.name for p in FIXTURES.glob("*/checkpoint"))


def model_of(name):
    return FIXTURES / name / "checkpoint"


def safetensors(path):
    """Names with type, shape and bytes, of one file or of all files of a directory."""
    tensors = {}
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return tensors


def widened(entry):
    kind, shape, data = entry
    if kind == "BF16":
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[kind])
    return values.astype(np.float32).reshape(shape)


def test_trits_and_scales_of_packed_codes_are_those_of_the_file():
    """The codes of `hf-packed`, unpacked here: four to a byte, a quarter of the rows each."""
    path = model_of("bitnet-2b4t-packed")
    stored = safetensors(path)
    checkpoint = bt.Checkpoint(path)
    linears = checkpoint.linears()
    assert "model.layers.0.mlp.down_proj" in linears
    for name in linears:
        trits, scales = checkpoint.ternary(name)
        _, (quarter, cols), codes = stored[name + ".weight"]
        codes = np.frombuffer(codes, np.uint8).reshape(quarter, cols)
        expected = np.concatenate([(codes >> 2 * n & 3).astype(np.int8) - 1 for n in range(4)])
        assert trits.dtype == np.int8 and scales.dtype == np.float32
        assert np.array_equal(trits, expected[: trits.shape[0]])
        assert scales.shape == (1,)
        scale = widened(stored[name + ".weight_scale"]).ravel()[0]
        assert scales[0] in (scale, np.float32(1) / scale)
        assert np.array_equal(checkpoint.tensor(name), trits * scales)


def test_trits_of_master_weights_are_absmean(master):
    stored = safetensors(master)
    checkpoint = bt.Checkpoint(master)
    for name in checkpoint.linears():
        weight = widened(stored[name + ".weight"])
        trits, scales = checkpoint.ternary(name)
        assert np.allclose(scales, max(np.abs(weight).mean(), 1e-5), rtol=1e-2)
        ratio = weight / scales
        sure = np.abs(np.abs(ratio) - 0.5) > 0.02
        assert np.array_equal(trits[sure], np.clip(np.rint(ratio), -1, 1)[sure].astype(np.int8))


def test_every_container_gives_the_same_trits(tmp_path, master):
    first = bt.Checkpoint(master)
    for to, name in [("gguf-i2_s", "a.gguf"), ("hf-packed", "b"), ("packed", "c"), ("gguf-f32", "d.gguf")]:
        bt.convert(master, tmp_path / name, to=to)
        other = bt.Checkpoint(tmp_path / name)
        assert other.linears() == first.linears() and other.names() == first.names()
        for linear in first.linears():
            for one, two in zip(first.ternary(linear), other.ternary(linear)):
                assert np.array_equal(one, two), (to, linear)
        for tensor in first.names():
            assert np.array_equal(first.tensor(tensor), other.tensor(tensor)), (to, tensor)


@pytest.mark.parametrize("name", NAMES)
def test_every_fixture_has_its_tensors(name):
    checkpoint = bt.Checkpoint(model_of(name), ternary_trained=True)
    assert checkpoint.linears() and checkpoint.family
    for linear in checkpoint.linears():
        trits, scales = checkpoint.ternary(linear)
        assert set(np.unique(trits)) <= {-1, 0, 1}
        rows, cols = trits.shape
        if scales.shape == (1,):
            spread = scales
        else:
            assert scales.shape[0] == rows
            spread = np.repeat(scales, cols // scales.shape[1], axis=1)
        assert np.array_equal(checkpoint.tensor(linear), trits * spread)
        assert np.array_equal(checkpoint.tensor(linear + ".weight"), trits * spread)
    for tensor in checkpoint.names():
        assert np.isfinite(checkpoint.tensor(tensor)).all()
    config = checkpoint.config
    assert config.get("text_config", config)["hidden_size"] > 0


def test_a_gguf_file_has_a_configuration(tmp_path, master):
    bt.convert(master, tmp_path / "m.gguf")
    shown = bt.Checkpoint(tmp_path / "m.gguf").config
    assert shown["hidden_size"] == bt.Checkpoint(master).config["hidden_size"]


def test_wrong_names_and_closed_checkpoints(master):
    checkpoint = bt.Checkpoint(master)
    for name in ["", "model", "model.layers.99.mlp.down_proj", "\0", "x" * 10000]:
        with pytest.raises(bt.BitnetError) as raised:
            checkpoint.ternary(name)
        assert raised.value.code == "usage"
    with pytest.raises(bt.BitnetError) as raised:
        checkpoint.ternary("model.norm")
    assert raised.value.code == "wrong-type"
    for name in (None, 3, b"x"):
        with pytest.raises(TypeError):
            checkpoint.tensor(name)
    checkpoint.close()
    assert checkpoint.closed
    with pytest.raises(bt.BitnetError, match="closed"):
        checkpoint.linears()
    with pytest.raises(bt.BitnetError):
        bt.Checkpoint(pathlib.Path("/absent"))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_dict_has_the_names_and_shapes_that_transformers_reads(tmp_path, name):
    """Those of a conversion to `hf-bf16` or `hf-f16`, and its numbers where they are exact."""
    checkpoint = bt.Checkpoint(model_of(name), ternary_trained=True)
    native = checkpoint._native
    try:
        names = dict(native.state_names())
    except bt.BitnetError as error:
        # rotated weights, or a network that transformers does not compute
        assert error.code == "target-cannot-hold", error
        return
    for to in ("hf-bf16", "hf-f16"):
        try:
            bt.convert(model_of(name), tmp_path / to, to=to, ternary_trained=True, allow_scale_rounding=True)
        except bt.BitnetError:
            continue
        written = {key: value for key, value in safetensors(tmp_path / to).items() if not key.endswith("weight_scale")}
        carried = set(bt.inspect(tmp_path / to, ternary_trained=True).get("carried", []))
        assert set(names.values()) == set(written) - carried
        for own, hf in names.items():
            state = native.state_tensor(own)
            assert list(state.shape) == written[hf][1], hf
            if own.removesuffix(".weight") not in checkpoint.linears():
                near = widened(written[hf])
                assert np.allclose(state, near, rtol=2**-7, atol=1e-6), hf
        return
    pytest.fail(f"{name} has a state dict and no conversion to compare it with")


@needs_torch
def test_five_lines_against_transformers(master):
    import torch

    state = bt.Checkpoint(master).to_torch_state_dict()
    trits, scales = bt.Checkpoint(master).ternary("model.layers.0.mlp.down_proj")
    weight = state["model.layers.0.mlp.down_proj.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.from_numpy(trits * scales))
    assert bt.Checkpoint(master).to_torch_state_dict(torch.bfloat16)["model.norm.weight"].dtype == torch.bfloat16
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.load_state_dict({"weight": weight})


@needs_torch
def test_a_tied_head_is_the_embedding(master):
    state = bt.Checkpoint(master).to_torch_state_dict()
    tied = "lm_head.weight" not in bt.Checkpoint(master).names()
    assert tied and state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    untied = bt.Checkpoint(model_of("qwen2-untied"))
    state = untied.to_torch_state_dict()
    assert np.array_equal(state["lm_head.weight"].numpy(), untied.tensor("lm_head"))


@needs_torch
@pytest.mark.parametrize("name", ["qwen2", "qwen2-untied", "qwen3-moe", "trilm", "bitnet-2b4t-bf16", "falcon-e"])
def test_transformers_computes_the_same_with_the_state_dict(tmp_path, name):
    """Through a GGUF file: nothing of the checkpoint's own weights is left."""
    transformers = pytest.importorskip("transformers", reason="skipped: transformers is not installed")
    import torch

    path = model_of(name)
    bt.convert(path, tmp_path / "m.gguf", to="gguf-f32")
    state = bt.Checkpoint(tmp_path / "m.gguf").to_torch_state_dict()
    config = transformers.AutoConfig.from_pretrained(path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    kind = type(transformers.AutoModelForCausalLM.from_config(config))
    network = kind.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    ids = [1, 5, 9, 7, 3, 2]
    with torch.no_grad():
        theirs = network(torch.tensor([ids])).logits[0].float().numpy()
    ours = bt.Model(path).logits(ids)
    rounds_activations = name in ("bitnet-2b4t-bf16", "falcon-e")
    assert np.corrcoef(theirs.ravel(), ours.ravel())[0, 1] > 0.998
    if not rounds_activations:
        assert np.abs(theirs - ours).max() < 1e-4


def test_without_torch_the_error_says_what_to_install(script, master):
    code = """
import sys
sys.modules["torch"] = None
import bitnet_toolchain as bt
try:
    bt.Checkpoint(sys.argv[1]).to_torch_state_dict()
except bt.BitnetError as error:
    print(error.code, "|", error.hint)
"""
    assert script(code, master).stdout == "usage | pip install torch\n"
