"""A `bitnet-run serve` process of a check, the models that it serves, and what the programs say without a server.

Nothing here needs a package beyond the standard library.
"""

import http.client
import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "tests/fixtures/demo/packed"
EMBEDDING = ROOT / "tests/fixtures/bitnet-embedding-270m/checkpoint"
QUESTION = ("Mia has a pink map. Felix has a black cup. Felix is in the forest. Felix gives the cup to Mia. "
            "What colour is the map?")
ANSWER = "The map is pink."

# shows tools and calls as JSON between tags, as the templates of Hermes and Qwen do
TOOL_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}"
    "{% for message in messages %}{{ '<|' + ('user' if message['role'] == 'tool' else message['role']) + '|>' + "
    "message['content'] | trim }}{% for call in message.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ call.function.name }}\", "
    "\"arguments\": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def program():
    """The program under test."""
    return os.environ.get("BITNET_RUN") or str(ROOT / "target/release/bitnet-run")


def run(*words):
    """What a command prints as JSON."""
    done = subprocess.run([program(), *map(str, words), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr or done.stdout}"
    return json.loads(done.stdout)


def with_tools(directory):
    """The demo model with a chat template that shows tools."""
    model = Path(directory) / "with-tools"
    shutil.copytree(DEMO, model)
    path = model / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = TOOL_TEMPLATE
    path.write_text(json.dumps(config))
    return model


class Server:
    """A server on a free port, for a `with` block; at its end it has to stop with exit status 0."""

    def __init__(self, model, *flags):
        words = [program(), "serve", str(model), "--port", "0", "--json", *flags]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the server does not start: {self.process.communicate()[1]}")
        ready = json.loads(line)
        assert ready["status"] == "listening", ready
        self.url, self.model = ready["url"], ready["model"]
        self.port = int(self.url.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if kind is None else signal.SIGKILL)
        _, errors = self.process.communicate(timeout=60)
        if kind is None:
            assert self.process.returncode == 0, f"exit status {self.process.returncode}: {errors}"

    def request(self, path, body=None, headers=()):
        """Status and JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ask(self, path, body):
        """The answer to a request that succeeds."""
        status, answer = self.request(path, body)
        assert status == 200, f"{path}: {status} {answer}"
        return answer

    def metric(self, name):
        """A counter or gauge."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"bitnet_{name} "))

    def resident(self):
        """Bytes of memory that the process holds."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")
