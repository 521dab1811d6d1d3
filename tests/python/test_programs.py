"""The programs as functions: reports, bytes, errors, and the console scripts."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import bitnet_toolchain as bt
import pytest
from conftest import FIXTURES, SCRIPTS, listing

TIMES = ("seconds", "peak_rss_bytes", "rss_anon_peak_bytes")


def without_times(report):
    return {key: value for key, value in report.items() if key not in TIMES}


@pytest.mark.parametrize("to, name", [("gguf-i2_s", "m.gguf"), ("hf-packed", "m"), ("gguf-f32", "m.gguf")])
def test_a_conversion_has_the_report_and_the_bytes_of_the_program(tmp_path, master, run, to, name):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    here = os.getcwd()
    try:
        os.chdir(ours)
        report = bt.convert(master, name, to=to)
    finally:
        os.chdir(here)
    status, expected, _ = run("bitnet-convert", master, "-o", name, "--to", to, "--json", cwd=theirs)
    assert status == 0 and report["status"] == "converted"
    assert without_times(report) == without_times(expected)
    assert listing(ours) == listing(theirs) and listing(ours)
    checked = bt.verify(ours / name, against=master)
    status, expected, _ = run("bitnet-verify", ours / name, "--against", master, "--json")
    assert (status, checked["status"]) == (0, "same") and checked == expected


def test_a_difference_is_a_report_and_no_exception(tmp_path, master):
    out = tmp_path / "m.gguf"
    bt.convert(master, out)
    data = bytearray(out.read_bytes())
    # the end of the file is the payload of the last tensor
    data[-40] ^= 0x55
    out.write_bytes(data)
    report = bt.verify(out, against=master)
    assert report["status"] == "different"
    assert [check["name"] for check in report["checks"] if check["status"] == "different"]


def test_inspect_targets_and_doctor_are_the_programs(demo, run):
    assert bt.inspect(demo, tensors=True) == run("bitnet-convert", "inspect", demo, "--tensors", "--json")[1]
    assert bt.targets() == run("bitnet-convert", "list", "--json")[1]
    assert bt.doctor(demo)["status"] == "sound"


def test_failures_have_code_message_and_hint(tmp_path, master, run):
    out = tmp_path / "m.gguf"
    bt.convert(master, out)
    with pytest.raises(bt.BitnetError) as raised:
        bt.convert(master, out)
    _, expected, _ = run("bitnet-convert", master, "-o", out, "--json")
    error = raised.value
    assert {"code": error.code, "message": error.message, "hint": error.hint} == expected["error"]
    assert error.code == "exists" and "--force" in error.hint
    assert error.message in str(error) and error.hint in str(error)
    assert bt.convert(master, out, force=True)["status"] == "converted"

    with pytest.raises(bt.BitnetError) as raised:
        bt.convert(master, tmp_path / "n.gguf", to="gguf-i2s")
    assert raised.value.code == "usage" and "gguf-i2_s" in raised.value.hint
    with pytest.raises(bt.BitnetError) as raised:
        bt.verify(tmp_path / "absent.gguf", against=master)
    assert raised.value.code == "io"
    with pytest.raises(bt.BitnetError) as raised:
        bt.inspect(tmp_path.parent / "nothing")
    assert raised.value.code == "io" and raised.value.message


def test_errors_survive_pickle():
    import pickle

    error = pickle.loads(pickle.dumps(bt.BitnetError("io", "no", "try")))
    assert (error.code, error.message, error.hint) == ("io", "no", "try")


@pytest.mark.parametrize(
    "call",
    [
        lambda: bt.convert(3, "x"),
        lambda: bt.convert("x", None),
        lambda: bt.convert(b"x", "y"),
        lambda: bt.convert("x", "y", to=4.5),
        lambda: bt.convert("x", "y", progress=3),
        lambda: bt.run_job({}, 0),
        lambda: bt.run_job(5, 0),
        lambda: bt.run_job("x", "a"),
        lambda: bt.verify([], against="x"),
        lambda: bt.convert("x", "y", unknown=1),
    ],
)
def test_wrong_types_are_type_errors(call):
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: bt.convert("", "y"),
        lambda: bt.convert("x\0", "y"),
        lambda: bt.convert("x", "y", to="a\0"),
        lambda: bt.convert("x", "y", threads=-1),
        lambda: bt.convert("x", "y", threads=0),
        lambda: bt.convert("x", "y.gguf", split_max_size="many"),
        lambda: bt.run_job("x", []),
        lambda: bt.convert("\ud800", "y.gguf"),
        lambda: bt.convert("--version", "y.gguf"),
        lambda: bt.convert("ftp://x/y", "y.gguf"),
        lambda: bt.inspect("list"),
    ],
)
def test_hostile_values_are_bitnet_errors(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(bt.BitnetError) as raised:
        call()
    assert raised.value.code != "internal", raised.value


def test_names_that_look_like_flags_and_commands_are_paths(tmp_path, master, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(master, "list")
    os.symlink(master, "--json")
    for source, out in [("list", "-o.gguf"), ("--json", "list.gguf")]:
        assert bt.convert(source, out, to="gguf-i2_s")["status"] == "converted"
        assert bt.verify(out, against=source)["status"] == "same"


def test_progress_counts_to_the_size_of_the_output(tmp_path, large):
    source, heard = large(4), []
    report = bt.convert(source, tmp_path / "m.gguf", progress=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard) and heard[-1][0] == heard[-1][1]
    assert heard[-1][1] == report["output"]["files"][0]["bytes"]


def test_an_exception_of_the_callback_ends_the_conversion(tmp_path, large):
    source, heard = large(4), []

    def stop(done, total):
        heard.append(done)
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        bt.convert(source, tmp_path / "m.gguf", progress=stop)
    assert len(heard) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["large"]
    # nothing is left behind that would keep the next run from its work
    assert bt.convert(source, tmp_path / "m.gguf", threads=2)["status"] == "converted"


INTERRUPTED = """
import sys, bitnet_toolchain as bt
def started(done, total):
    print("started", flush=True)
try:
    bt.convert(sys.argv[1], sys.argv[2], progress=started)
    print("converted")
except KeyboardInterrupt:
    print("stopped")
"""


def test_ctrl_c_stops_a_conversion_and_leaves_nothing(tmp_path, large):
    source = large(14)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(source), str(tmp_path / "m.gguf")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines()[-1] == "stopped", out
    assert time.monotonic() - sent < 5
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_plan_jobs_and_finish_make_the_bytes_of_one_machine(tmp_path, master):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir(), parts.mkdir()
    bt.convert(master, whole / "m.gguf", to="gguf-i2_s", split_max_size=40_000)
    planned = bt.plan(master, parts / "m.gguf", to="gguf-i2_s", split_max_size=40_000)
    assert len(planned["jobs"]) > 2
    with pytest.raises(bt.BitnetError) as raised:
        bt.finish(planned)
    assert raised.value.code == "missing-part"
    for job in reversed(planned["jobs"][1:]):
        assert bt.run_job(planned, job["index"])["jobs"][0]["status"] == "done"
    done = bt.run_job(planned["plan"], [0, 1])
    assert [job["status"] for job in done["jobs"]] == ["done", "skipped"]
    with pytest.raises(bt.BitnetError) as raised:
        bt.run_job(planned, -1)
    assert raised.value.code == "usage"
    done = bt.finish(planned, remove_parts=True)
    again = bt.finish(planned, remove_parts=True)
    assert "already_finished" not in done and again["already_finished"] is True
    assert again["output"] == done["output"]
    pathlib.Path(planned["plan"]).unlink()
    assert listing(parts) == listing(whole)


def test_shares_join_to_one_report(tmp_path, master):
    bt.convert(master, tmp_path / "m.gguf")
    paths, reports = [], []
    for share in (1, 2):
        report = bt.verify(tmp_path / "m.gguf", against=master, shard=f"{share}/2")
        reports.append(report)
        paths.append(tmp_path / f"{share}.json")
        paths[-1].write_text(json.dumps(report))
    joined = bt.merge(paths)
    assert joined["status"] == "same"
    # what verify() returned, or files with it, or both
    assert bt.merge(reports) == joined
    assert bt.merge(iter([reports[1], str(paths[0])])) == joined
    with pytest.raises(bt.BitnetError) as raised:
        bt.merge([reports[0]])
    assert raised.value.code == "missing-part"
    with pytest.raises(bt.BitnetError) as raised:
        bt.merge([reports[0], reports[0]])
    assert raised.value.code == "usage"
    assert raised.value.message.startswith("report-0.json and report-1.json"), raised.value
    with pytest.raises(bt.BitnetError):
        bt.merge([{}, {}])
    for wrong in (reports[0], str(paths[0]), [1], [{"shard": object()}]):
        with pytest.raises(TypeError):
            bt.merge(wrong)


def test_push_shows_its_card(tmp_path, master):
    bt.convert(master, tmp_path / "m.gguf")
    report = bt.push(tmp_path / "m.gguf", "hf://me/model", dry_run=True)
    assert report["status"], report


# the console scripts


def test_scripts_are_the_programs(demo, run):
    status, out, _ = run("bitnet-run", demo, "--chat", "-p", "Add 34 and 28.", "--quiet")
    assert (status, out) == (0, "4+8=12, 1+3+2=6, so 62\n")
    for program in ("bitnet-convert", "bitnet-verify", "bitnet-run"):
        assert run(program, "--version")[1] == f"{program} {bt.__version__}\n" or bt.__version__ in run(program, "--version")[1]
        status, out, err = run(program, "--no-such-flag")
        assert status == 2 and out == "" and err.startswith("error: "), err
    status, report, _ = run("bitnet-verify", demo, "--against", FIXTURES / "bitnet-2b4t-bf16/checkpoint", "--json")
    assert status in (1, 2) and report["status"] in ("different", "error")


def test_a_script_reads_stdin_and_a_closed_pipe_is_success(demo):
    done = subprocess.run(
        [SCRIPTS / "bitnet-run", demo, "--chat", "-p", "-", "--quiet"],
        input=b"Add 34 and 28.\n",
        capture_output=True,
        timeout=60,
    )
    assert done.stdout == b"4+8=12, 1+3+2=6, so 62\n"
    command = f"'{SCRIPTS / 'bitnet-convert'}' list | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0" and not done.stderr


def test_ctrl_c_ends_a_script_with_130_and_leaves_nothing(tmp_path, large):
    source = large(28)
    # how long a conversion takes depends on the machine
    for delay in (0.7, 0.5, 0.35, 0.25):
        process = subprocess.Popen(
            [SCRIPTS / "bitnet-convert", source, "-o", tmp_path / "m.gguf"], stderr=subprocess.PIPE
        )
        time.sleep(delay)
        if process.poll() is None:
            break
        for path in tmp_path.glob("m.gguf*"):
            path.unlink()
    assert process.poll() is None, "the conversion is over too soon"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert b"Traceback" not in process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_the_demo_model_ships(tmp_path):
    demo = subprocess.run(
        [SCRIPTS / "bitnet-run", "demo", "--json"], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert demo.returncode == 0, demo.stderr
    assert json.loads(demo.stdout)["text"].rstrip().endswith("62"), demo.stdout
