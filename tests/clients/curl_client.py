"""curl: streams, `[DONE]`, usage, and what is refused."""

import json
import subprocess

from server import ANSWER, DEMO, QUESTION, Server


def curl(*words, data=None):
    """Status and text of an answer."""
    words = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", "--write-out", "\n%{http_code}", *words]
    if data is not None:
        words += ["--data-binary", "@-"]
    done = subprocess.run(words, input=data, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    text, status = done.stdout.decode().rsplit("\n", 1)
    return int(status), text


def streams(server):
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": QUESTION}]}),
        ("/v1/completions", {"prompt": "One two", "max_tokens": 8}),
    ):
        whole = json.loads(curl(server.url + path, data=json.dumps(body).encode())[1])
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        status, text = curl(server.url + path, data=json.dumps(body).encode())
        events = [block for block in text.split("\n\n") if block]
        assert status == 200 and all(event.startswith("data: ") for event in events), text
        assert events[-1] == "data: [DONE]" and text.count("[DONE]") == 1
        chunks = [json.loads(event[len("data: "):]) for event in events[:-1]]
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        pieces = [chunk["choices"][0] for chunk in chunks[:-1]]
        text = "".join(piece.get("text") or piece.get("delta", {}).get("content") or "" for piece in pieces)
        choice = whole["choices"][0]
        assert text == (choice["text"] if "text" in choice else choice["message"]["content"])
    assert choice["finish_reason"] in ("length", "stop")


def refusals(server):
    url = server.url + "/v1/chat/completions"
    for data, status, code in (
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"", 400, "invalid_json"),
        (b'{"prompt": ' + b"[" * 100_000, 400, "invalid_json"),
        (b"[]", 400, "invalid_value"),
        (json.dumps({"messages": [{"role": "user", "content": "word " * (2 << 20)}]}).encode(), 400, "context_length_exceeded"),
        (b" " * (33 << 20), 413, "body_too_large"),
    ):
        found, text = curl(url, data=data)
        error = json.loads(text)["error"]
        assert (found, error["code"]) == (status, code), f"{data[:40]}: {found} {text}"
        assert error["message"] and error["type"] == "invalid_request_error"
    assert curl(server.url + "/v1/none", data=b"{}")[0] == 404
    assert curl(url)[0] == 405
    assert curl(url, "--header", "Origin: https://other.example", data=b"{}")[0] == 403
    body = json.dumps({"messages": [{"role": "user", "content": QUESTION}]}).encode()
    # sizes of bodies that are not said beforehand, and bodies that wait for a permission
    for more in (("--header", "Transfer-Encoding: chunked"), ("--header", "Expect: 100-continue"), ("--http1.0",)):
        status, text = curl(url, *more, data=body)
        assert status == 200 and json.loads(text)["choices"][0]["message"]["content"] == ANSWER, (more, text)


def check():
    with Server(DEMO) as server:
        for part in (streams, refusals):
            part(server)
            yield part.__name__
