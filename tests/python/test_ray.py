"""Jobs of a plan on a Ray of this machine, with a worker that is killed."""

import os
import pathlib
import signal
import threading
import time

import bitnet_toolchain as bt
import bitnet_toolchain.ray as on_ray
import pytest
from conftest import listing

ray = pytest.importorskip("ray", reason="skipped: Ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def working():
    """Workers that run a job now, by their names as Ray sets them."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"ray::_job" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def test_the_result_is_that_of_one_machine_and_a_killed_worker_is_replaced(tmp_path, large):
    source = large(14)
    one, many = tmp_path / "one", tmp_path / "many"
    one.mkdir(), many.mkdir()
    expected = bt.convert(source, one / "m.gguf", to="gguf-i2_s", split_max_size="12MB")
    killed, heard = [], []
    mine = {os.getpid()}

    def kill():
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for pid in working():
                # a child of this machine's Ray, which this test started
                if pid not in mine:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    report = on_ray.convert(
        source,
        many / "m.gguf",
        "gguf-i2_s",
        split_max_size="12MB",
        progress=lambda done, total: heard.append((done, total)),
    )
    killer.join()
    assert killed, "no worker was killed"
    assert len(heard) == len(report["output"]["files"]) > 3
    assert heard == sorted(heard) and heard[-1][0] == heard[-1][1]
    assert report["ternary_sha256"] == expected["ternary_sha256"]
    assert listing(many) == listing(one)

    checked = on_ray.verify(many / f"m-00001-of-{len(heard):05d}.gguf", source, shards=3)
    assert checked["status"] == "same"
    with pytest.raises(bt.BitnetError) as raised:
        on_ray.convert(source, report["output"]["files"][0]["path"], "gguf-i2_s")
    assert raised.value.code == "exists"


def test_failures_of_tasks_are_bitnet_errors(tmp_path, master):
    bt.convert(master, tmp_path / "m.gguf")
    with pytest.raises(bt.BitnetError) as raised:
        on_ray.verify(tmp_path / "m.gguf", tmp_path / "absent", shards=2)
    assert raised.value.code == "io"
    for call in [
        lambda: on_ray.convert(master, tmp_path / "n.gguf", "nonsense"),
        lambda: on_ray.convert(master, tmp_path / "n.gguf", "packed", cpus=0),
        lambda: on_ray.verify(tmp_path / "m.gguf", master, shards=0),
    ]:
        with pytest.raises(bt.BitnetError) as raised:
            call()
        assert raised.value.code == "usage"
    assert not list(tmp_path.glob("n.*"))


def test_without_ray_the_error_says_what_to_install(script, master, tmp_path):
    code = """
import sys
sys.modules["ray"] = None
import bitnet_toolchain as bt, bitnet_toolchain.ray as on_ray
try:
    on_ray.verify(sys.argv[1], sys.argv[1])
except bt.BitnetError as error:
    print(error.code, "|", error.hint)
"""
    assert script(code, master).stdout == "usage | pip install bitnet-toolchain[ray]\n"
