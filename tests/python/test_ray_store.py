"""One conversion from an object store into it, on the two nodes of a Ray cluster of this machine, with a worker that is killed.

Invariant: the objects are the files of a conversion to this disk, to the byte, and nothing else is left in the store.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import xml.etree.ElementTree

import bitnet_toolchain as bt
import bitnet_toolchain.ray as on_ray
import pytest
from conftest import ROOT, SCRIPTS, listing

ray = pytest.importorskip("ray", reason="skipped: Ray is not installed")
moto = pytest.importorskip("moto.server", reason="skipped: the server of moto is not installed")

BUCKET = "models"
SPLIT = {"split_max_size": "300KB"}


class Store:
    """An S3 server on the loopback interface with one bucket."""

    def __init__(self):
        self.server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        self.call("PUT", "")

    def call(self, method, key, content=None):
        # the server checks no signature, but strangers see no objects that were put as a whole
        credential = "Credential=key/20260101/us-east-1/s3/aws4_request"
        headers = {
            "Authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0",
            # a body without a type is read as a form
            "Content-Type": "application/octet-stream",
        }
        place = f"{self.url}/{BUCKET}/{key}"
        request = urllib.request.Request(place, content, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def put_directory(self, directory, prefix):
        for name, content in listing(directory).items():
            self.call("PUT", f"{prefix}/{name}", content)

    def keys(self):
        found = xml.etree.ElementTree.fromstring(self.call("GET", "?list-type=2&max-keys=1000"))
        return sorted(element.text for element in found.iter() if element.tag.endswith("}Key"))

    def below(self, prefix):
        """The objects below a prefix, by their names below it."""
        keys = [key for key in self.keys() if key.startswith(prefix)]
        return {key[len(prefix) :]: self.call("GET", key) for key in keys}


@pytest.fixture(scope="module")
def store():
    started = Store()
    given = {
        "AWS_ENDPOINT_URL": started.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in given}
    # nodes have the environment of the process that starts them
    os.environ.update(given)
    yield started
    started.server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="module")
def cluster(store):
    from ray.cluster_utils import Cluster

    two = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    two.add_node(num_cpus=1)
    ray.init(address=two.address, log_to_driver=False)
    assert sum(node["Alive"] for node in ray.nodes()) == 2
    yield two
    ray.shutdown()
    two.shutdown()


def working():
    """Workers that run a job now, by their names as Ray sets them."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::_job"):
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def test_a_store_is_source_and_output_of_a_cluster(tmp_path, store, cluster, demo, run):
    store.put_directory(demo, "in/demo")
    source, output = f"s3://{BUCKET}/in/demo", f"s3://{BUCKET}/out/demo.gguf"
    plan = f"s3://{BUCKET}/plans/demo.json"
    here = tmp_path / "here"
    here.mkdir()
    expected = bt.convert(source, here / "demo.gguf", to="gguf-i2_s", **SPLIT)
    files = listing(here)
    killed, heard = [], []

    def kill():
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            for pid in working()[:1]:
                # a child of the cluster, which this test started
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    report = on_ray.convert(
        source,
        output,
        "gguf-i2_s",
        plan=plan,
        progress=lambda done, total: heard.append((done, total)),
        **SPLIT,
    )
    killer.join()
    assert killed, "no worker was killed"
    assert len(heard) > 2 and heard[-1][0] == heard[-1][1]
    assert report["ternary_sha256"] == expected["ternary_sha256"]
    assert report["output"]["path"].startswith(f"s3://{BUCKET}/out/demo-00001-of-")
    assert store.below("out/") == files
    # the weights are those of a source on this disk; its certificate does not name the store
    local = tmp_path / "local"
    local.mkdir()
    bt.convert(demo, local / "demo.gguf", to="gguf-i2_s", **SPLIT)
    weights = {name: content for name, content in listing(local).items() if name.endswith(".gguf")}
    assert weights == {name: content for name, content in files.items() if name.endswith(".gguf")}

    # again: nothing is written
    again = bt.finish(plan, remove_parts=True)
    assert again["already_finished"] is True
    assert again["ternary_sha256"] == expected["ternary_sha256"]
    assert [file["sha256"] for file in again["output"]["files"]] == [
        file["sha256"] for file in report["output"]["files"]
    ]
    checked = on_ray.verify(report["output"]["path"], source, shards=2)
    assert checked["status"] == "same"

    # the script does the same with the program
    second = f"s3://{BUCKET}/second/demo.gguf"
    words = [sys.executable, str(ROOT / "scripts/cluster/ray_convert.py"), source, second]
    words += ["--to", "gguf-i2_s", "--split-max-size", SPLIT["split_max_size"]]
    words += ["--address", cluster.address, "--program", str(SCRIPTS / "bitnet-convert")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ternary_sha256"] == expected["ternary_sha256"]
    found = store.below("second/")
    assert json.loads(found.pop("demo.gguf.plan.json"))["output"] == second
    assert found == files
    assert not [key for key in store.keys() if ".parts/" in key]
