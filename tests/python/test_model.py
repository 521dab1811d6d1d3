"""A model in memory: the texts, tokens and bits of `bitnet-run`; errors, threads, forks, signals."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import bitnet_toolchain as bt
import numpy as np
import pytest
from conftest import FIXTURES

WITH_TOKENIZER = ["bitnet-2b4t-bf16", "bitnet-2b4t-packed", "falcon-e", "qwen3-moe"]


def model_of(name):
    return FIXTURES / name / "checkpoint"


@pytest.fixture(scope="module")
def model(demo):
    with bt.Model(demo) as model:
        yield model


@pytest.mark.parametrize("name", ["bitnet-2b4t-bf16", "falcon-e", "qwen35", "qwen3-moe"])
def test_logits_are_the_bits_of_the_program(tmp_path, run, name):
    prompts = FIXTURES / name / "golden" / "prompts.json"
    status, report, err = run("bitnet-run", "logits", model_of(name), "--prompts", prompts, "-o", tmp_path / "l", "--json")
    assert status == 0, report
    data = (tmp_path / "l").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    model = bt.Model(model_of(name), threads=1, kernel="scalar")
    for prompt, entry in json.loads(prompts.read_text()).items():
        expected = header[f"{prompt}.logits"]
        begin, end = (8 + length + offset for offset in expected["data_offsets"])
        logits = model.logits(entry["ids"])
        assert logits.dtype == np.float32 and list(logits.shape) == expected["shape"]
        assert logits.shape == (len(entry["ids"]), model.vocab_size)
        assert logits.tobytes() == data[begin:end], f"{name}: {prompt}"
        if entry.get("text"):
            assert model.logits(entry["text"]).tobytes() == data[begin:end]


def test_long_prompts_are_the_bits_of_short_steps(model):
    ids = [i * 7 % model.vocab_size for i in range(150)]
    whole = model.logits(ids)
    assert np.array_equal(whole[:1], model.logits(ids[:1])) and np.isfinite(whole).all()
    assert np.array_equal(whole[:65], model.logits(np.array(ids[:65], dtype=np.uint16)))


@pytest.mark.parametrize("name", WITH_TOKENIZER)
def test_texts_come_back_from_their_tokens(name):
    with bt.Model(model_of(name)) as model:
        for text in ["Hello world", "def add(a, b):\n    return a + b\n", "Привет, 今天 café 😀", ""]:
            ids = model.tokenize(text, add_special_tokens=False)
            # a tokenizer without a token for a character cannot give it back
            known = model.detokenize(ids)
            assert model.detokenize(model.tokenize(known, add_special_tokens=False)) == known
            if "�" not in known:
                assert known.strip() == text.strip()
            with_special = model.tokenize(text)
            assert with_special[len(with_special) - len(ids) :] == ids
            assert model.detokenize(with_special) == known
            special = model.detokenize(with_special, skip_special_tokens=False)
            assert known in special


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, []),
        ({"temperature": 0.0}, ["--temp", "0"]),
        ({"temperature": 0.9, "seed": 7}, ["--temp", "0.9", "--seed", "7"]),
        ({"top_k": 3}, ["--top-k", "3"]),
        ({"temperature": 1.3, "top_k": 0, "top_p": 0.7, "min_p": 0.01, "seed": 2**64 - 1},
         ["--temp", "1.3", "--top-k", "0", "--top-p", "0.7", "--min-p", "0.01", "--seed", str(2**64 - 1)]),
        ({"stop": ["8", "="]}, ["--stop", "8", "--stop", "="]),
        ({"stop": "="}, ["--stop", "="]),
        ({"ignore_eos": True}, ["--ignore-eos"]),
    ],
)
def test_texts_are_those_of_the_program(model, demo, run, options, words):
    for prompt in ["<|user|>Add 34 and 28.<|end|><|assistant|>", "The"]:
        status, report, _ = run("bitnet-run", demo, "-p", prompt, "-n", 20, "--json", *words)
        assert status == 0, report
        assert model.generate(prompt, max_new_tokens=20, **options) == report["text"]
        pieces = list(model.generate(prompt, max_new_tokens=20, stream=True, **options))
        assert "".join(pieces) == report["text"] and all(pieces)
        if "stop" not in options:
            ids = model.generate_tokens(prompt, max_new_tokens=20, **options)
            assert ids == report["tokens"]


def test_tokens_are_continued_as_the_program_does(demo, run):
    ids = [5, 6, 7]
    status, report, _ = run("bitnet-run", demo, "--tokens", "5,6,7", "-n", 12, "--json")
    assert status == 0
    model = bt.Model(demo, kv_type="f32")
    assert model.generate_tokens(ids, 12, ignore_eos=True) == report["tokens"]
    assert model.generate(ids, 12, ignore_eos=True) == model.detokenize(report["tokens"])


def test_the_chat_template_is_that_of_the_program(model, demo, run):
    messages = [{"role": "user", "content": "Add 34 and 28."}]
    prompt = model.apply_chat_template(messages)
    status, report, _ = run("bitnet-run", demo, "--chat", "-p", "Add 34 and 28.", "--json")
    assert model.tokenize(prompt, add_special_tokens=False) == report["prompt_tokens"]
    assert model.generate(prompt, add_special_tokens=False) == report["text"] == model.chat(messages)
    assert "".join(model.chat(messages, stream=True)) == report["text"]
    shorter = model.apply_chat_template(messages, add_generation_prompt=False)
    assert prompt.startswith(shorter) and len(shorter) < len(prompt)


def test_a_stream_comes_in_pieces_and_can_be_left(model):
    stream = model.generate("The", max_new_tokens=200, ignore_eos=True, stream=True)
    assert iter(stream) is stream
    first = next(stream)
    assert isinstance(first, str) and first
    stream.close()
    assert list(stream) == []
    with pytest.raises(StopIteration):
        next(stream)
    # a stream that nobody reads keeps nobody from working
    abandoned = model.generate("The", max_new_tokens=200, ignore_eos=True, stream=True)
    next(abandoned)
    assert model.generate("The", max_new_tokens=3, ignore_eos=True).startswith(first)


def test_properties(model, demo):
    assert model.path == str(demo) and repr(model) == f"Model({str(demo)!r})"
    assert model.vocab_size > 0 and model.context_length > 0 and model.threads >= 1
    assert model.kernel and not model.closed
    assert bt.Model(demo, kernel="scalar", threads=3).threads == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.logits("text".encode()),
        lambda m: m.logits([1.5]),
        lambda m: m.logits(["1"]),
        lambda m: m.logits(3),
        lambda m: m.logits(None),
        lambda m: m.logits({1: 2}),
        lambda m: m.logits(np.zeros((2, 2), dtype=np.int64)),
        lambda m: m.logits(np.zeros(2)),
        lambda m: m.tokenize(3),
        lambda m: m.tokenize(b"x"),
        lambda m: m.detokenize("abc"),
        lambda m: m.apply_chat_template("hello"),
        lambda m: m.apply_chat_template([1]),
        lambda m: m.apply_chat_template([{"role": "user", "content": object()}]),
        lambda m: m.generate("x", max_new_tokens="3"),
        lambda m: m.generate("x", max_new_tokens=1.5),
        lambda m: m.generate("x", temperature="hot"),
        lambda m: m.generate("x", stop=[1]),
        lambda m: m.generate("x", seed=1.5),
    ],
)
def test_wrong_types_are_type_errors(model, call):
    with pytest.raises(TypeError):
        call(model)


@pytest.mark.parametrize(
    "call, code",
    [
        (lambda m: m.logits([-1]), "usage"),
        (lambda m: m.logits([0, m.vocab_size]), "usage"),
        (lambda m: m.logits([2**32]), "usage"),
        (lambda m: m.logits([2**80]), "usage"),
        (lambda m: m.logits([]), "tokenizer"),
        (lambda m: m.logits("", add_special_tokens=False), "tokenizer"),
        (lambda m: m.logits([1] * (m.context_length + 1)), "context-exceeded"),
        (lambda m: m.detokenize([10**9]), "usage"),
        (lambda m: m.detokenize([-5]), "usage"),
        (lambda m: m.generate([m.vocab_size]), "usage"),
        (lambda m: m.generate([]), "tokenizer"),
        (lambda m: m.generate("", add_special_tokens=False), "tokenizer"),
        (lambda m: m.generate("x", max_new_tokens=-1), "usage"),
        (lambda m: m.generate("x", temperature=-0.5), "usage"),
        (lambda m: m.generate("x", temperature=float("nan")), "usage"),
        (lambda m: m.generate("x", top_p=1.5), "usage"),
        (lambda m: m.generate("x", min_p=-0.1), "usage"),
        (lambda m: m.generate("x", top_k=-1), "usage"),
        (lambda m: m.generate("x", seed=-1), "usage"),
        (lambda m: m.generate("x", seed=2**64), "usage"),
        (lambda m: m.generate("x", stop=""), "usage"),
        (lambda m: m.generate("x", ctx=10**9), "context-exceeded"),
        (lambda m: m.generate("one two three four", ctx=1), "context-exceeded"),
        (lambda m: m.tokenize("\ud800"), "usage"),
        (lambda m: m.apply_chat_template([{"content": "x"}]), "usage"),
        (lambda m: m.apply_chat_template([{"role": "user", "content": float("nan")}]), "usage"),
    ],
)
def test_hostile_values_are_bitnet_errors(model, call, code):
    with pytest.raises(bt.BitnetError) as raised:
        call(model)
    assert raised.value.code == code, raised.value
    # and the model goes on
    assert model.logits([1, 2]).shape == (2, model.vocab_size)


def test_models_that_cannot_be_loaded(tmp_path, demo):
    for path, code in [
        (tmp_path / "absent", "io"),
        (FIXTURES / "bitnet-embedding-270m" / "checkpoint", "usage"),
    ]:
        with pytest.raises(bt.BitnetError) as raised:
            bt.Model(path)
        assert raised.value.code == code, raised.value
    for options, code in [
        ({"kernel": "sclar"}, "kernel"),
        ({"kv_type": "f8"}, "usage"),
        ({"threads": 0}, "usage"),
        ({"threads": 10**6}, "usage"),
        ({"layout": "nonsense"}, "usage"),
    ]:
        with pytest.raises(bt.BitnetError) as raised:
            bt.Model(demo, **options)
        assert raised.value.code == code, raised.value
    for path in (None, 3, b"x"):
        with pytest.raises(TypeError):
            bt.Model(path)


def test_a_closed_model_is_refused(demo):
    model = bt.Model(demo)
    stream = model.generate("The", max_new_tokens=6, ignore_eos=True, stream=True)
    model.close()
    model.close()
    assert model.closed
    for call in [
        lambda: model.logits([1]),
        lambda: model.tokenize("x"),
        lambda: model.generate("x"),
        lambda: model.vocab_size,
    ]:
        with pytest.raises(bt.BitnetError, match="closed"):
            call()
    # what had begun ends in peace
    assert "".join(stream)
    with bt.Model(demo) as other:
        assert not other.closed
    assert other.closed


def test_models_in_threads_of_their_own_and_one_model_in_two(demo, model):
    prompts = [f"<|user|>Add {n} and 28.<|end|><|assistant|>" for n in range(30, 36)]
    expected = [model.generate(prompt) for prompt in prompts]
    ids = list(range(40))
    logits = model.logits(ids)
    failures = []

    def work(mine):
        try:
            for prompt, answer in zip(prompts, expected):
                assert mine.generate(prompt) == answer
                assert np.array_equal(mine.logits(ids), logits)
        except BaseException as error:
            failures.append(error)

    own = [bt.Model(demo, threads=1), bt.Model(demo, threads=2)]
    threads = [threading.Thread(target=work, args=(m,)) for m in [*own, model, model]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_other_threads_run_while_a_model_works(model):
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        model.logits([1] * 200)
    stop.set()
    thread.join()
    gaps = np.diff(ticks)
    assert len(ticks) > 50 and gaps.max() < 0.25, (len(ticks), gaps.max())


FORKED = """
import os, sys, bitnet_toolchain as bt
model, checkpoint = bt.Model(sys.argv[1]), bt.Checkpoint(sys.argv[1])
model.logits([1, 2])
stream = model.generate("The", stream=True, ignore_eos=True)
next(stream)
child = os.fork()
if child == 0:
    refused = 0
    for call in [lambda: model.logits([1]), lambda: model.generate("x"), lambda: model.tokenize("x"), lambda: model.close(),
                 lambda: next(stream), lambda: checkpoint.linears(), lambda: bt.Model(sys.argv[1]), lambda: bt.inspect(sys.argv[1])]:
        try:
            call()
        except bt.BitnetError as error:
            refused += error.code == "usage" and "fork" in error.message and "spawn" in error.hint
    # the objects of the parent are dropped at the end of this process
    del model, stream, checkpoint
    import gc; gc.collect()
    sys.exit(40 + refused)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), model.logits([1]).shape[0])
"""


def test_a_forked_process_gets_errors_and_no_hang(script, demo):
    done = script(FORKED, demo, timeout=60)
    assert done.stdout.split() == ["48", "1"], (done.stdout, done.stderr)


def test_a_fork_before_the_first_work_is_free(script, demo):
    code = """
import os, sys, bitnet_toolchain as bt
child = os.fork()
rows = bt.Model(sys.argv[1]).logits([1, 2, 3]).shape[0]
if child == 0:
    sys.exit(rows)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), rows)
"""
    if not hasattr(os, "waitstatus_to_exitcode"):
        pytest.skip("skipped: os.waitstatus_to_exitcode needs Python 3.9")
    assert script(code, demo, timeout=60).stdout.split() == ["3", "3"]


INTERRUPTED = """
import sys, bitnet_toolchain as bt
model = bt.Model(sys.argv[1])
try:
    if sys.argv[2] == "stream":
        for number, piece in enumerate(model.generate("The", 10**6, ignore_eos=True, stream=True, ctx=model.context_length)):
            if number == 3:
                print("started", flush=True)
    else:
        print("started", flush=True)
        while True:
            model.generate("The", 200, ignore_eos=True)
    print("done")
except KeyboardInterrupt:
    print("stopped", model.logits([1, 2]).shape[0])
"""


@pytest.mark.parametrize("how", ["stream", "text"])
def test_ctrl_c_ends_a_generation_and_the_model_goes_on(demo, how):
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(demo), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "started\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert out.splitlines()[-1] == "stopped 2", out
