"""Load and faults: 10,000 requests at once, clients that do wrong, SIGTERM in the middle. No package is needed.

Invariant: every answer that arrives whole is the answer of its request alone.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

from server import DEMO, QUESTION, TOOL_TEMPLATE, Server

REQUESTS = int(os.environ.get("CLIENTS_CHECK_REQUESTS", "10000"))
AT_ONCE = 64
# what memory may grow by for each request once all kinds of requests have run: less than what a request leaves if it leaks
BYTES_PER_REQUEST = 400


class Gone(Exception):
    """The connection ended before an answer began."""


async def exchange(port, data, *, leave_after=None, pause=0.0):
    """Sends bytes; the status and the body, or None for a client that left after so many bytes."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        raise Gone from error
    try:
        try:
            writer.write(data)
            await writer.drain()
            if leave_after is not None:
                await reader.read(leave_after)
                return None
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Gone from error
        lines = head.decode().lower().split("\r\n")
        status = int(lines[0].split()[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        if "content-length" in headers:
            return status, await reader.readexactly(int(headers["content-length"]))
        body = b""
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if size == 0:
                return status, body
            await asyncio.sleep(pause)
    finally:
        writer.close()


def message(path, body, *more):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "".join(f"{line}\r\n" for line in (f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(data)}", *more))
    return head.encode() + b"\r\n" + data


def settled(body):
    """An answer without what differs between any two: the text of the events of a stream, or a body."""
    def without(value):
        return {key: value[key] for key in value if key not in ("id", "created", "created_at")} if isinstance(value, dict) else value

    text = body.decode()
    if not text.startswith(("data: ", "event: ")):
        return without(json.loads(text))
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", f"a stream without its end: {text[-200:]}"
    by_text = {}  # the events of several texts come in any order
    for event in map(json.loads, events[:-1]):
        by_text.setdefault(event["choices"][0]["index"] if event["choices"] else -1, []).append(without(event))
    return by_text


def kinds():
    """Requests of all kinds: path and body."""
    made = []
    for number in range(8):
        chat = {"messages": [{"role": "user", "content": f"What is {number} plus 25?"}], "max_tokens": 6}
        made += [
            ("/v1/completions", {"prompt": f"Request {number}:", "max_tokens": 3}),
            ("/v1/completions", {"prompt": [[10 + number, 20], [5]], "max_tokens": 4, "seed": number, "temperature": 2, "stream": True}),
            ("/v1/completions", {"prompt": "One two", "echo": True, "logprobs": 2, "max_tokens": number % 3}),
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "seed": number, "stream": True, "logprobs": True, "stream_options": {"include_usage": True}}),
            ("/v1/chat/completions", {**chat, "response_format": {"type": "json_schema", "json_schema": {
                "name": "a", "schema": {"type": "object", "properties": {"n": {"enum": [number]}}, "required": ["n"],
                                        "additionalProperties": False}}}, "max_tokens": 40}),
            ("/v1/embeddings", {"input": f"text {number}"}),
            ("/tokenize", {"content": f"text {number}"}),
            ("/v1/completions", {"prompt": "x", "temperature": -1 - number}),
            ("/v1/completions", b'{"prompt": "' + bytes([0xC3, 0x28 + number])),
        ]
    return [message(path, body) for path, body in made]


def slope(points):
    """Least squares: what y grows by for each x."""
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / sum((x - x_mean) ** 2 for x, _ in points)


async def alone(server, requests):
    found = []
    for data in requests:
        status, body = await exchange(server.port, data)
        found.append((status, settled(body)))
    return found


def many_requests():
    """10,000 requests at concurrency 64, of which some leave: right answers, and memory that does not grow."""
    requests = kinds()
    choose = random.Random(1)
    with Server(DEMO, "--parallel", "16", "--kv-memory", "16MB", "--threads", "2") as server:
        want = asyncio.run(alone(server, requests))
        assert {status for status, _ in want} == {200, 400}
        memory, left = [], 0

        async def worker(numbers):
            nonlocal left
            for number in numbers:
                which = choose.randrange(len(requests))
                if choose.randrange(20) == 0:
                    await exchange(server.port, requests[which], leave_after=choose.choice([1, 50, 500]))
                    left += 1
                else:
                    status, body = await exchange(server.port, requests[which])
                    assert (status, settled(body)) == want[which], (number, requests[which], body)
                if number % 100 == 0:
                    memory.append((number, server.resident()))

        async def all_at_once():
            numbers = iter(range(REQUESTS))
            await asyncio.gather(*[worker(numbers) for _ in range(AT_ONCE)])

        started = time.monotonic()
        asyncio.run(all_at_once())
        seconds = time.monotonic() - started
        grown = slope([point for point in memory if point[0] >= REQUESTS / 4])
        assert grown < BYTES_PER_REQUEST, f"memory grows by {grown:.0f} bytes per request: {memory[::10]}"
        assert server.metric("sequences_running") == server.metric("sequences_waiting") == 0
        return (f"{REQUESTS} requests, {REQUESTS / seconds:.0f} per second, {left} left early, "
                f"memory {grown:+.0f} bytes per request, {memory[-1][1] / 1e6:.0f} MB at the end")


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def bad_clients():
    """Slow readers, connections that say nothing, bodies that are too large or none, bombs: the others are served in time."""
    chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    long = "word " * (2 << 20)
    schema = {"type": "object", "properties": {f"p{n}": {"anyOf": [{"type": "string", "pattern": "^(a|b|ab)*c{1,200}$"}] * 8} for n in range(40)}}

    def with_schema(schema):
        return {**chat, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}

    doubling = {"$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {"type": "string"}},
                "$ref": "#/$defs/d0"}
    bombs = [
        ("/v1/chat/completions", {**chat, "chat_template_kwargs": nested(100)}),
        ("/v1/chat/completions", {**chat, "chat_template": "{% for i in range(999999999) %}x{% endfor %}"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "{{ 9 ** 99 }}{% for i in range(10**9) %}" * 5}], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 9000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 100_000}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}),
        ("/v1/completions", {"prompt": long}),
        ("/v1/completions", {"prompt": ["x" * 100_000] * 100}),
        ("/v1/completions", {"prompt": "x", "stop": ["a"] * 100_000}),
        ("/v1/completions", {"prompt": "x", "logit_bias": {str(n): 1 for n in range(100_000)}}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 4_000_000_000}),
        ("/v1/embeddings", {"input": long}),
        ("/tokenize", {"content": long}),
        ("/v1/chat/completions", with_schema(schema)),
        ("/v1/chat/completions", with_schema(doubling)),
        ("/v1/chat/completions", with_schema({"type": "string", "minLength": 10 ** 9})),
        ("/v1/chat/completions", with_schema({"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000})"})),
        ("/v1/chat/completions", with_schema({"$ref": "#"})),
        ("/v1/chat/completions", with_schema(nested(200))),
        ("/v1/completions", b"[" * 5_000_000),
        ("/v1/completions", b'{"prompt": "' + b"\xed\xa0\x80" * 100_000 + b'"}'),
        ("/v1/completions", b" " * (33 << 20)),
    ]

    async def run(server):
        ordinary = message("/v1/chat/completions", chat)
        (want,) = await alone(server, [ordinary])
        silent = []
        for part in (b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n", ordinary[:-10]) * 10:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(part)
            silent.append((reader, writer))
        for _, writer in silent[::3]:
            writer.write_eof()  # closed on one side
        slow_body = {"prompt": "One", "max_tokens": 200, "ignore_eos": True, "stream": True, "logprobs": 5}
        slow = [asyncio.create_task(exchange(server.port, message("/v1/completions", slow_body), pause=0.05)) for _ in range(8)]
        (of_slow,) = await alone(server, [message("/v1/completions", slow_body)])
        waits = []

        async def probe():
            while True:
                started = time.monotonic()
                status, body = await exchange(server.port, ordinary)
                assert (status, settled(body)) == want
                waits.append(time.monotonic() - started)
                await asyncio.sleep(0.05)

        probing = asyncio.create_task(probe())
        for path, body in bombs:
            started = time.monotonic()
            try:
                status, answer = await exchange(server.port, message(path, body))
            except Gone as error:
                raise AssertionError(f"no answer to {path} {str(body)[:80]}") from error
            took = time.monotonic() - started
            assert status in (200, 400, 413), (status, answer[:300])
            assert took < 30, f"{took:.0f} s for {path} {str(body)[:80]}"
            if status != 200:
                assert json.loads(answer)["error"]["message"]
        # all of the long prompts at once
        together = [message(path, body) for path, body in bombs if "word word" in str(body)[:100]]
        for status, _ in await asyncio.gather(*[exchange(server.port, data) for data in together * 4]):
            assert status == 400
        for status, body in await asyncio.gather(*slow):
            assert (status, settled(body)) == of_slow
        probing.cancel()
        for _, writer in silent:
            writer.close()
        assert waits and max(waits) < 20, f"{max(waits):.1f} s for an ordinary request"
        assert await alone(server, [ordinary]) == [want]
        return f"{len(bombs)} bombs, {len(waits)} ordinary requests beside them, the slowest in {max(waits):.1f} s"

    with Server(DEMO, "--parallel", "4", "--grace", "2") as server:
        before = server.resident()
        said = asyncio.run(run(server))
        grown = server.resident() - before
        assert grown < 1 << 30, f"{grown} bytes more"
        said += f", {grown / 1e6:.0f} MB more memory"
    # a model whose own template does not end
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory) / "model"
        shutil.copytree(DEMO, model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}"
        config["chat_template"] = loops + TOOL_TEMPLATE
        (model / "tokenizer_config.json").write_text(json.dumps(config))
        with Server(model) as server:
            started = time.monotonic()
            status, answer = server.request("/v1/chat/completions", chat)
            assert (status, answer["error"]["code"]) == (400, "limit_exceeded"), answer
            assert time.monotonic() - started < 30
            assert server.ask("/v1/completions", {"prompt": "One", "max_tokens": 2})["usage"]["completion_tokens"] == 2
    return said


def sigterm():
    """SIGTERM while 64 clients ask: each gets its whole, right answer, a refusal, or no connection."""
    requests = [data for data in kinds() if b"-1" not in data]
    counts = {"answered": 0, "refused": 0, "no connection": 0}
    for turn in range(3):
        with Server(DEMO, "--parallel", "16") as server:
            want = asyncio.run(alone(server, requests))
            choose = random.Random(turn)

            async def worker():
                while True:
                    which = choose.randrange(len(requests))
                    try:
                        status, body = await exchange(server.port, requests[which])
                    except Gone:
                        counts["no connection"] += 1
                        return
                    if status == 503:
                        assert json.loads(body)["error"]["code"] == "stopping"
                        counts["refused"] += 1
                        continue
                    assert (status, settled(body)) == want[which], (requests[which], body)
                    counts["answered"] += 1

            async def run():
                workers = [asyncio.create_task(worker()) for _ in range(AT_ONCE)]
                await asyncio.sleep(1)
                server.process.send_signal(signal.SIGTERM)
                await asyncio.gather(*workers)

            asyncio.run(run())
            assert server.process.wait(timeout=40) == 0
    assert counts["answered"] > 100, counts
    return ", ".join(f"{number} {what}" for what, number in counts.items())


def check():
    for part in (many_requests, bad_clients, sigterm):
        yield f"{part.__name__}: {part()}"
