"""Run other programs on converted fixtures and compare with the predictions of formats/readers.json.

scripts/readers-check installs the programs and starts this script, and has the usage.

Every checkpoint of tests/fixtures is converted to every target that takes it. Every reader that is installed
opens every file that it could be given. The outcome is compared with the verdict of
`bitnet-convert inspect --readers`:

* `refuses`: the reader reports an error, ends with a signal or hangs, on loading or on the first prompt;
* `loads`: it loads the file and computes what the file says;
* `differs`: it loads the file and computes something else.

The reference is what `bitnet-run` computes from the file, which the tests of this repository compare with golden logits. The measure is the mean
KL divergence of the next-token distribution over every position of every prompt, in f32, or 1 - cosine for embedding models. BOUNDS has the
limits.

No run can contradict the verdicts `depends` (on how the program was built or called) and `unknown`.
"""

import argparse
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(os.environ.get("BITNET_FIXTURES", ROOT / "tests" / "fixtures"))
BIN = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
HOME = Path(os.environ.get("READERS_CHECK_HOME", BIN.parent / "readers-check"))
RECORD = ROOT / "formats" / "readers-checked.json"
GGUF_READERS = ("llama.cpp", "ik_llama.cpp", "pytritium", "gguf-python")
# transformers also imports GGUF files; mlx-lm loads directories only
READERS = GGUF_READERS + ("transformers", "mlx-lm")
# a reader that takes longer for one file hangs
SECONDS = 120

# What `loads` allows, by the arithmetic of the reader. Random networks of one to four layers were measured.
#   plain: the same products in f32. bf16 weights take activations in bf16: up to 5e-4.
#   flips: transformers quantizes activations per token as we do. Sums in another order turn single int8 values into their
#     neighbors: up to 2.7e-3.
#   rounded_scales: transformers loads BitNet in bf16, which rounds an f32 weight_scale: up to 1.4e-2.
#   quantized: llama.cpp and ik_llama.cpp multiply packed weights by activations of 8 bits per block: up to 1.5e-2.
BOUNDS = {"plain": 2e-3, "flips": 6e-3, "rounded_scales": 2e-2, "quantized": 2e-2}
# What `differs` asks for. Activations that should be 8 bits per token and are not, or the reverse: 6e-4 to 5e-2. Everything else that was
# met is far above: rotary factors that are left out 3e-2, raw master weights 6, weights read in a wrong layout 30.
APART = 5e-4

# (target, type of embeddings): some readers have few types for tables
VARIANTS = [("gguf-i2_s", "f32"), ("gguf-tq2_0", "f16")]


class Case:
    """One file: where it came from, what is predicted, and what it says."""

    def __init__(self, fixture, target, path, options=()):
        self.fixture, self.target, self.path, self.options = fixture, target, Path(path), list(options)
        self.predicted, self.reference, self.problem = {}, None, None
        # whether inputs of linears are quantized per token
        self.int8 = True
        # a file of the same network that llama.cpp computes, where bitnet-run does not
        self.twin = None

    @property
    def is_gguf(self):
        return self.path.suffix == ".gguf"

    @property
    def packed(self):
        """Whether a GGUF file holds linears in a block type."""
        return self.is_gguf and not re.search(r"gguf-(f32|f16|bf16)", self.target)


class Fixture:
    """A checkpoint with its prompts."""

    def __init__(self, name):
        self.name, self.directory = name, FIXTURES / name
        self.checkpoint = self.directory / "checkpoint"
        config = json.loads((self.checkpoint / "config.json").read_text())
        self.architecture = config["architectures"][0]
        # the architectures of embedding models end so
        self.embedding = self.architecture.endswith("Model")
        golden = self.directory / "golden"
        if (golden / "prompts.json").exists():
            self.prompts = json.loads((golden / "prompts.json").read_text())
        else:
            rng = np.random.default_rng(1)
            lengths = (5, 24, 48)
            self.prompts = {"p%d" % n: {"text": None, "ids": rng.integers(0, 300, n).tolist()} for n in lengths}
        trits = golden / "ternary.json"
        self.trits = json.loads(trits.read_text()) if trits.exists() else None

    def own_files(self):
        """Checkpoint directories and GGUF files that ship with the fixture."""
        found = [d for d in sorted(self.directory.iterdir()) if (d / "config.json").exists()]
        return found + sorted(self.directory.glob("*.gguf"))


def program(name, *args):
    ran = subprocess.run([str(BIN / name), *map(str, args)], capture_output=True, text=True)
    return ran.returncode, ran.stdout, ran.stderr


def convert(source, target, out, *options):
    code, _, _ = program("bitnet-convert", source, "-o", out, "--to", target, "--quiet", "--json", *options)
    return code == 0


def prepare(fixture, targets, tmp):
    """Every file of a fixture."""
    tmp = Path(tmp) / fixture.name
    tmp.mkdir()
    # a slash tells a directory from a target
    cases = [Case(fixture, path.name + "/" * path.is_dir(), path) for path in fixture.own_files()]
    flags = ["--allow-scale-rounding", "--ternary-trained"]
    plain = [(target, target, []) for target in targets]
    if fixture.architecture == "BitNetForCausalLM":
        plain += [("%s %s" % v, v[0], ["--embeddings", v[1]]) for v in VARIANTS]
    for name, target, options in plain:
        out = tmp / (name.replace(" ", "-") + (".gguf" if target.startswith("gguf") else ""))
        if convert(fixture.checkpoint, target, out, *flags, *options):
            cases.append(Case(fixture, name, out, flags + options))
    cases += [c for c in map(rotated, list(cases)) if c]
    prompts = tmp / "prompts.json"
    prompts.write_text(json.dumps({n: {"ids": p["ids"]} for n, p in fixture.prompts.items()}))
    for number, case in enumerate(cases):
        describe(case, prompts, tmp / ("%d.ours.safetensors" % number))
    return cases


def describe(case, prompts, output):
    """What `inspect --readers` predicts of the file, and what `bitnet-run` computes from it."""
    code, out, err = program("bitnet-convert", "inspect", case.path, "--readers", "--json", "--ternary-trained")
    if code != 0:
        case.problem = "inspect: " + (err or out).strip()
        return
    report = json.loads(out)
    case.predicted = {r["program"]: r["verdict"] for r in report["readers"]}
    case.int8 = report["wiring"]["activation_quantization"] == "int8 per token"
    if case.twin:
        return
    embedding = case.fixture.embedding
    code, out, err = program("bitnet-run", "embed" if embedding else "logits", case.path, "--prompts", prompts, "-o", output)
    if code != 0:
        case.problem = "bitnet-run: " + err.strip()
        return
    arrays = load_file(str(output))
    suffix = ".embedding" if embedding else ".logits"
    case.reference = {n: arrays[n + suffix] for n in case.fixture.prompts}


# ---- rotated files ----

# features that are rotated together
BLOCK = 128


def rotated(case):
    """The file again, its weights declared to be rotated; `twin` has the network that this says, unrotated."""
    if case.fixture.name != "bonsai-1.7b" or case.target != "gguf-f16":
        return None
    try:
        import gguf
    except ImportError:
        return None
    reader = gguf.GGUFReader(str(case.path))
    linears = [t for t in reader.tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    widths = sorted({int(t.shape[0]) for t in linears})
    signs = {w: np.where(np.arange(w) % 3 == 0, -1, 1) for w in widths}

    def text(s):
        return struct.pack("<Q", len(s)) + s.encode()

    def integers(values):
        return struct.pack("<IIQ", 9, 5, len(values)) + np.array(values, dtype="<i4").tobytes()

    values = {
        "version": struct.pack("<II", 4, 1),
        "block_size": struct.pack("<II", 4, BLOCK),
        "transform": struct.pack("<I", 8) + text("normalized-sylvester-walsh-hadamard"),
        "axis": struct.pack("<I", 8) + text("input-last-dimension"),
        "sign_mode": struct.pack("<I", 8) + text("explicit"),
        "sign_widths": integers(widths),
        "sign_values": integers(np.concatenate([signs[w] for w in widths])),
        "weight_names": struct.pack("<IIQ", 9, 8, len(linears)) + b"".join(text(t.name) for t in linears),
    }
    data = case.path.read_bytes()
    count, = struct.unpack_from("<Q", data, 16)
    infos = reader.tensors[0].field.offset
    keys = b"".join(text("prism.hadamard." + name) + value for name, value in values.items())
    table = sum(8 + len(t.name) + 4 + 8 * len(t.shape) + 4 + 8 for t in reader.tensors)
    head = data[:16] + struct.pack("<Q", count + len(values)) + data[24:infos] + keys + data[infos:infos + table]
    path = case.path.with_name("rotated-" + case.path.name)
    path.write_bytes(head + b"\0" * (-len(head) % reader.alignment) + data[reader.data_offset:])

    twin = path.with_name("unrotated-" + case.path.name)
    if not convert(case.fixture.checkpoint, "gguf-f32", twin):
        return None
    hadamard = np.ones((1, 1))
    while len(hadamard) < BLOCK:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= np.sqrt(BLOCK)
    named = {t.name for t in linears}
    for t in gguf.GGUFReader(str(twin), "r+").tensors:
        if t.name in named:
            rows, width = t.data.shape
            turned = (t.data.reshape(rows, -1, BLOCK) @ hadamard).reshape(rows, width)
            t.data[:] = (turned * signs[width]).astype(np.float32)
    again = Case(case.fixture, case.target + " rotated", path)
    again.twin = twin
    return again


# ---- running a reader ----


class Worker:
    """A process that runs one reader; a new one after each that ended."""

    def __init__(self, reader):
        self.command = [sys.executable, str(ROOT / "scripts" / "readers_worker.py"), reader]
        self.log = tempfile.TemporaryFile()
        self.start()

    def start(self):
        environment = dict(os.environ, HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment)
        first = self.answer(600)
        self.version, self.skipped = first.get("version"), first.get("skipped") or first.get("detail")

    def answer(self, seconds):
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return json.loads(line)
        if not ready:
            self.process.kill()
        code = self.process.wait()
        how = "no answer in %d s" % seconds
        if ready:
            how = "signal " + signal.Signals(-code).name if code < 0 else "exit status %d" % code
        return {"outcome": "refuses", "ended": True, "detail": how}

    def ask(self, job):
        before = self.log.seek(0, os.SEEK_END)
        self.process.stdin.write((json.dumps(job) + "\n").encode())
        self.process.stdin.flush()
        answer = self.answer(SECONDS)
        self.log.seek(before)
        answer["log"] = self.log.read().decode(errors="replace")
        if answer.get("ended"):
            self.start()
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def takes(reader, case):
    """Whether it makes sense to give the file to the reader at all."""
    if not case.predicted or (case.reference is None and not case.twin):
        return False
    return case.is_gguf if reader in GGUF_READERS else reader == "transformers" or not case.is_gguf


def prefixes(ids):
    """Lengths of prefixes whose next token is asked for."""
    return sorted({max(1, len(ids) * k // 4) for k in (1, 2, 3, 4)})


def job_of(case, path, output):
    prompts = {n: p["ids"] for n, p in case.fixture.prompts.items()}
    return {"path": str(path), "tokens": max(max(map(len, prompts.values())), 8), "embedding": case.fixture.embedding,
            "output": output, "prompts": prompts, "prefixes": {n: prefixes(i) for n, i in prompts.items()},
            "texts": {n: p["text"] for n, p in case.fixture.prompts.items() if p["text"]}}


def run_reader(reader, cases, tmp):
    """The version of a reader, or why it was skipped, and what it made of every file."""
    reason = HOME / (reader + ".skipped")
    if reason.exists():
        return None, "not installed: " + reason.read_text().strip(), []
    worker = Worker(reader)
    if worker.skipped:
        return None, worker.skipped, []
    rows = []
    output = str(Path(tmp) / (reader + ".npz"))
    for case in cases:
        if not takes(reader, case):
            continue
        reference = case.reference
        if case.twin:
            if worker.ask(job_of(case, case.twin, output))["outcome"] != "loads" or reader in ("pytritium", "gguf-python"):
                continue
            reference = dict(np.load(output))
        start = time.monotonic()
        answer = worker.ask(job_of(case, case.path, output))
        row = {"reader": reader, "fixture": case.fixture.name, "target": case.target, "options": case.options,
               "predicted": case.predicted.get(reader, "unknown"), "seconds": round(time.monotonic() - start, 2)}
        row.update(judge(reader, case, reference, answer, output))
        row["agrees"] = row["predicted"] in row["observed"] or row["predicted"] in ("depends", "unknown")
        rows.append(row)
    worker.close()
    return worker.version, None, rows


# ---- judging ----


def judge(reader, case, reference, answer, output):
    """The verdicts that the outcome allows, the measure, and what the reader said."""
    detail = answer.get("detail", "").replace("\n", " ")
    if answer["outcome"] == "refuses":
        lines = [l.strip() for l in answer["log"].splitlines() if re.search(r"error|assert|failed|not supported", l, re.I)]
        return {"observed": ["refuses"], "measure": None, "detail": "; ".join([detail[:300], *lines[:2]])[:500]}
    got = dict(np.load(output))
    if reader == "gguf-python":
        wrong = wrong_weights(case, got)
        return {"observed": ["differs" if wrong else "loads"], "measure": None, "detail": wrong or ""}
    if reader == "pytritium":
        share = wrong_tokens(case, reference, got)
        return {"observed": ["differs" if share else "loads"], "measure": None,
                "detail": "%.0f %% of the clear next tokens differ" % (100 * share) if share else ""}
    if answer["other_ids"]:
        return {"observed": ["differs"], "measure": None, "detail": "other token ids: " + ", ".join(answer["other_ids"])}
    measure = distance(case, reference, got)
    bound = BOUNDS["plain"]
    if reader in GGUF_READERS and case.packed:
        bound = BOUNDS["quantized"]
    elif reader == "transformers" and not case.is_gguf and case.int8:
        is_rounded = case.fixture.architecture == "BitNetForCausalLM" and case.target == "hf-packed"
        bound = BOUNDS["rounded_scales" if is_rounded else "flips"]
    observed = ["loads"] * (measure <= bound) + ["differs"] * (not measure < APART)
    return {"observed": observed, "measure": measure, "detail": detail}


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def distance(case, want, got):
    """Mean KL divergence over the positions; of embeddings 1 - cosine."""
    if not all(np.isfinite(v).all() for v in got.values()):
        return float("inf")
    if case.fixture.embedding:
        def unit(x):
            x = x.reshape(-1).astype(np.float64)
            return x / np.linalg.norm(x)
        return float(np.mean([1 - unit(want[n]) @ unit(got[n]) for n in want]))
    a = log_softmax(np.concatenate([want[n] for n in want]))
    # some readers pad the vocabulary
    b = log_softmax(np.concatenate([got[n][:, : a.shape[-1]] for n in want]))
    return float((np.exp(a) * (a - b)).sum(-1).mean())


def hugging_face_name(name):
    """The golden files name tensors as Hugging Face does; None for stacked experts and what only hybrids have."""
    _, layer, rest = name.split(".", 2)
    modules = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
              "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
              "ffn_down": "mlp.down_proj"}
    module = modules.get(rest.removesuffix(".weight"))
    return module and "layers.%s.%s.weight" % (layer, module)


def wrong_weights(case, got):
    """The first linear whose signs are not the golden ones, or whose magnitude is not."""
    if case.fixture.trits is None:
        return None
    golden = {name.removeprefix("model.").removeprefix("language_model."): entry for name, entry in case.fixture.trits.items()}
    for name, (minus, zero, plus, largest) in got.items():
        want = golden.get(hugging_face_name(name))
        if want is None:
            continue
        if [minus, zero, plus] != [want["minus"], want["zero"], want["plus"]]:
            return "%s: other trits" % name
        # one f16 or bf16 rounding, and f16's smallest step
        if want.get("alpha") and abs(largest - want["alpha"]) > 2.0 ** -8 * want["alpha"] + 2.0 ** -25:
            return "%s: magnitude %g instead of %g" % (name, largest, want["alpha"])
    return None


def wrong_tokens(case, reference, got):
    """Share of next tokens that are not ours, among those where ours leads clearly."""
    wrong = asked = 0
    for name, p in case.fixture.prompts.items():
        for n, token in zip(prefixes(p["ids"]), got[name]):
            row = reference[name][n - 1]
            first, second = np.sort(row)[[-1, -2]]
            if first - second > 0.5:
                asked, wrong = asked + 1, wrong + (row.argmax() != token)
    return wrong / max(asked, 1)


# ---- reporting ----


def cell(row):
    if row is None:
        return "-"
    verdict = "/".join(row["observed"])
    measure = " %.1e" % row["measure"] if row["measure"] is not None else ""
    return verdict + measure + ("" if row["agrees"] else " !")


def print_table(results):
    readers = [r["reader"] for r in results if r["version"]]
    rows = [row for r in results for row in r["runs"]]
    lines = {}
    for row in rows:
        lines.setdefault((row["fixture"], row["target"]), {})[row["reader"]] = row
    print("%-22s %-18s" % ("fixture", "target") + "".join(" %-22s" % r for r in readers))
    for (fixture, target), found in lines.items():
        print(("%-22s %-18s" % (fixture, target) + "".join(" %-22s" % cell(found.get(r)) for r in readers)).rstrip())
    print()
    for r in results:
        print("%s: %s" % (r["reader"], r["version"] or "skipped, " + r["skipped"]))
    wrong = [row for row in rows if not row["agrees"]]
    for row in wrong:
        print("\n%s on %s as %s: predicted %s, observed %s\n  %s" % (
            row["reader"], row["fixture"], row["target"], row["predicted"], cell(row), row["detail"]))
    unknown = sum(row["predicted"] == "unknown" for row in rows)
    print("\n%d runs, %d without a prediction, %d contradict formats/readers.json" % (len(rows), unknown, len(wrong)))


def record(results):
    """Writes what was run into formats/readers-checked.json; runs of other readers and fixtures stay there."""
    def verdicts(row):
        entry = {"fixture": row["fixture"], "target": row["target"], "program": row["reader"], "observed": row["observed"]}
        if row["measure"] is not None:
            entry["measure"] = float("%.1e" % row["measure"]) if np.isfinite(row["measure"]) else None
        return entry
    before = json.loads(RECORD.read_text())
    programs = {p["program"]: p["version"] for p in before["programs"]}
    programs.update((r["reader"], r["version"]) for r in results if r["version"])
    new = [verdicts(row) for r in results for row in r["runs"]]
    done = {(run["program"], run["fixture"]) for run in new}
    kept = [run for run in before["runs"] if (run["program"], run["fixture"]) not in done]
    # each reader's runs together, fixtures in their order
    runs = sorted(kept + new, key=lambda run: (READERS.index(run["program"]), run["fixture"]))
    listed = ",\n".join("    " + json.dumps({"program": p, "version": programs[p]}) for p in READERS if p in programs)
    listed_runs = ",\n".join("    " + json.dumps(run) for run in runs)
    RECORD.write_text('{\n  "about": "Written by scripts/readers-check --record; formats/readers.md explains it.",\n'
                      '  "programs": [\n%s\n  ],\n  "runs": [\n%s\n  ]\n}\n' % (listed, listed_runs))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=READERS, help="run this reader only; may be repeated")
    parser.add_argument("--fixture", action="append", help="use this fixture only; may be repeated")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--record", action="store_true", help="write formats/readers-checked.json")
    args = parser.parse_args()
    names = sorted(d.name for d in FIXTURES.iterdir() if (d / "checkpoint" / "config.json").exists())
    for name in args.fixture or []:
        if name not in names:
            parser.error("no fixture %s; there are %s" % (name, ", ".join(names)))
    targets = [t["name"] for t in json.loads(program("bitnet-convert", "list", "--json")[1])["targets"]]
    with tempfile.TemporaryDirectory() as tmp, ThreadPoolExecutor(2) as pool:
        fixtures = [Fixture(name) for name in args.fixture or names]
        cases = [case for cases in pool.map(lambda f: prepare(f, targets, tmp), fixtures) for case in cases]
        problems = ["%s as %s: %s" % (c.fixture.name, c.target, c.problem) for c in cases if c.problem]
        readers = args.only or READERS
        found = pool.map(lambda reader: run_reader(reader, cases, tmp), readers)
        results = [{"reader": reader, "version": version, "skipped": skipped, "runs": rows}
                   for reader, (version, skipped, rows) in zip(readers, found)]
    wrong = sum(not row["agrees"] for r in results for row in r["runs"])
    if args.record:
        record(results)
    if args.json:
        print(json.dumps({"status": "different" if wrong else "same", "readers": results, "not_run": problems}))
    else:
        print_table(results)
        for problem in problems:
            print("not run: " + problem.splitlines()[0])
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
