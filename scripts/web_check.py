"""Drive the chat page in headless Chromium through the WebDriver protocol (https://www.w3.org/TR/webdriver2/).

scripts/web-check starts this script, and has the usage.

Two servers show the page: `bitnet-run serve` with the demo model, and a substitute that serves the same three files. The "model" of the
substitute prints slowly, prints markup and fails, which no real model does on demand. The page must make no request to any other host: its
content security policy forbids it, and this script checks what the page loaded.
"""

import argparse
import base64
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

ENTER, ESCAPE, SHIFT, ALT, RELEASE = "\ue007", "\ue00c", "\ue008", "\ue00a", "\ue000"
EDITED = "Anna has a red ring. Clara has a blue drum. Who has the ring?"
MARKUP = '<script>document.title = "taken"</script><img src=x onerror="document.title=\'taken\'"> & done'


class Driver:
    """A browser: the few commands of WebDriver that the checks need."""

    def __init__(self, port, profile):
        self.base = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                self.call("GET", "/status")
                break
            except OSError:
                time.sleep(0.1)
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
            "--disable-background-networking", "--disable-component-update", "--window-size=1100,800",
            "--force-device-scale-factor=1", f"--user-data-dir={profile}",
        ]  # fmt: skip
        options = {"args": arguments}
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}})
        self.base += "/session/" + session["sessionId"]

    def call(self, method, path, body=None):
        request = urllib.request.Request(
            self.base + path,
            method=method,
            data=None if method in ("GET", "DELETE") else json.dumps(body or {}).encode(),
            headers={"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, url):
        self.call("POST", "/url", {"url": url})

    def script(self, text, *arguments):
        return self.call("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def element(self, selector):
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def click(self, selector):
        self.call("POST", f"/element/{self.element(selector)}/click")

    def write(self, selector, text):
        self.call("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def keys(self, *keys):
        """Presses keys in turn on what has the focus; a tuple is a chord."""
        actions = []
        for key in keys:
            chord = key if isinstance(key, tuple) else (key,)
            actions += [{"type": "keyDown", "value": one} for one in chord]
            actions += [{"type": "keyUp", "value": one} for one in reversed(chord)]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def text(self, selector):
        return self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", selector)

    def wait(self, what, condition, *arguments, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            value = self.script("return " + condition, *arguments)
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {seconds} s; the page says: {self.script('return document.body.innerText')}")

    def command(self, name, **parameters):
        self.call("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def screenshot(self, folder, name):
        if folder:
            with open(os.path.join(folder, name), "wb") as file:
                file.write(base64.b64decode(self.call("GET", "/screenshot")))


class StandIn(http.server.BaseHTTPRequestHandler):
    """The page's three files, and a model that does what the last message asks for."""

    protocol_version = "HTTP/1.1"
    files = {}
    asked = []
    closed = []  # of answers whose reader went away

    def log_message(self, *_):
        pass

    def reply(self, status, kind, body):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v1/models":
            self.reply(200, "application/json", json.dumps({"data": [{"id": "<b>stand-in</b>"}]}).encode())
        elif self.path in self.files:
            kind, policy, body = self.files[self.path]
            self.send_response(200)
            self.send_header("content-type", kind)
            if policy:
                self.send_header("content-security-policy", policy)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.reply(404, "application/json", b'{"error":{"message":"no such route"}}')

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        wish = body["messages"][-1]["content"]
        if wish == "fail":
            self.reply(400, "application/json", json.dumps({"error": {"message": f"refused: {MARKUP}"}}).encode())
            return
        if wish == "locked" and self.headers.get("authorization") != "Bearer secret":
            self.reply(401, "application/json", b'{"error":{"message":"this server asks for an API key"}}')
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        pieces = {
            "markup": [MARKUP[i : i + 7] for i in range(0, len(MARKUP), 7)],
            "code": ["Text with `a < b` and **bold**.\n\n", "```html\n<script>\n", "</script>\n```\n", "After."],
        }.get(wish, [f"w{i} " for i in range(400)] if wish == "slowly" else ["Fine."])
        try:
            if wish == "think":
                self.event({"reasoning_content": "Let me "})
                self.event({"reasoning_content": "see <b>."})
            for piece in pieces:
                self.event({"content": piece}, logprobs=body.get("logprobs") and [
                    {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": [
                        {"token": piece, "logprob": -0.5}, {"token": "<i>other</i>", "logprob": -1.25}]}])
                if wish == "slowly":
                    time.sleep(0.05)
            self.event({}, finish="stop")
            self.wfile.write(b"data: " + json.dumps({"choices": [], "usage": {"completion_tokens": len(pieces)}}).encode() + b"\n\n")
            self.wfile.write(b"data: [DONE]\n\n")
        except OSError:
            self.closed.append(wish)

    def event(self, delta, finish=None, logprobs=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        self.wfile.flush()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


IDLE = "document.getElementById('stop').hidden && document.querySelectorAll('article.assistant').length"


def send(page, text):
    page.click("#input")
    page.write("#input", text)
    page.keys(ENTER)


def check_real(page, url, screenshots):
    """The demo model: streams, stops, reloads, edits, retries, shows probabilities."""
    page.open(url)
    page.wait("the model's name", "document.getElementById('model').textContent !== 'bitnet-run'")
    assert page.script("return document.activeElement.id") == "input", "the message field has the focus"
    outside = page.script("return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))")
    assert outside == [], f"the page asked other hosts: {outside}"

    page.script("""window.lengths = []; new MutationObserver(() => { const a = document.querySelector('article.assistant .body');
        if (a) window.lengths.push(a.textContent.length); }).observe(document.getElementById('messages'), {childList: true, subtree: true})""")
    send(page, "Mia has a pink map. Felix has a black cup. What colour is the map?")
    page.wait("an answer", IDLE)
    first = page.text("article.assistant .body")[0]
    assert first.strip(), "the answer has text"
    steps = page.script("return new Set(window.lengths.filter(n => n > 0)).size")
    print(f"  answer {first!r}, drawn in {steps} steps")
    figures = page.text("article.assistant .figures")[0]
    assert "tokens/s" in figures, f"the figures are {figures!r}"

    page.open(url)  # a reload keeps the chat
    page.wait("the chat after a reload", "document.querySelectorAll('article').length === 2")
    assert page.text("article.assistant .body")[0] == first

    page.click("#open-settings")
    page.write("#temperature", "0")
    page.click("#probabilities")
    page.keys(ESCAPE)
    assert page.script("return document.getElementById('settings').hidden"), "Escape closes the settings"
    page.keys((ALT, "r"))
    page.wait("the second answer", IDLE)
    page.wait("a button for tokens", "[...document.querySelectorAll('article.assistant .tools button')].some(b => b.textContent === 'Tokens')")
    page.script("[...document.querySelectorAll('article.assistant .tools button')].find(b => b.textContent === 'Tokens').click()")
    tokens = page.script("return [...document.querySelectorAll('.token')].map(e => e.textContent).join('')")
    page.script("document.querySelector('.token').click()")
    rows = page.text("#alternatives tr")
    assert tokens.strip() and len(rows) >= 5, (tokens, rows)
    page.screenshot(screenshots, "chat.png")
    page.keys(ESCAPE)

    page.keys((ALT, "e"))
    page.wait("an edit field", "document.querySelector('textarea.edit')")
    page.script("document.querySelector('textarea.edit').select()")
    page.write("textarea.edit", EDITED + ENTER)
    page.wait("the answer to the edited message", f"({IDLE}) && document.querySelector('article.user .body').textContent")
    assert page.text("article.user .body") == [EDITED], page.text("article.user .body")
    page.click("#new")
    assert page.text("article") == []


def check_stand_in(page, url, screenshots):
    """Markup stays text, slow answers stream and stop, errors are shown."""
    page.open(url)
    page.wait("the model's name", "document.getElementById('model').textContent === '<b>stand-in</b>'")
    title = page.script("return document.title")

    send(page, "markup")
    page.wait("the answer", IDLE)
    assert page.text("article.assistant .body") == [MARKUP], page.text("article.assistant .body")
    send(page, "fail")
    page.wait("the error", "document.querySelector('.error')")
    assert page.text(".error") == [f"refused: {MARKUP}"], page.text(".error")
    assert page.script("return document.title") == title, "markup ran"
    assert page.script("return document.querySelectorAll('#messages script, #messages img, #messages b').length") == 0

    page.click("#new")
    send(page, "slowly")
    early = page.wait("the first words", "(document.querySelector('article.assistant .body') || {}).textContent")
    page.wait("more words", "document.querySelector('article.assistant .body').textContent.length > arguments[0]", len(early))
    page.keys(ESCAPE)
    page.wait("the end", IDLE, seconds=5)
    stopped = page.text("article.assistant .body")[0]
    time.sleep(0.3)
    assert page.text("article.assistant .body")[0] == stopped and "w399" not in stopped, "the answer goes on after a stop"
    assert "stopped" in page.text("article.assistant .figures")[0]
    for _ in range(50):
        if StandIn.closed == ["slowly"]:
            break
        time.sleep(0.1)
    assert StandIn.closed == ["slowly"], "the page did not close the stream"

    page.click("#new")
    page.click("#open-settings")
    page.write("#system", "Be brief.")
    page.write("#top_k", "7")
    page.click("#probabilities")
    page.click("#open-settings")
    send(page, "code")
    page.wait("the answer", IDLE)
    assert page.text("article.assistant pre code")[0].strip() == "<script>\n</script>", page.text("article.assistant pre code")
    assert page.text("article.assistant p code") == ["a < b"] and page.text("article.assistant strong") == ["bold"]
    last = StandIn.asked[-1]
    assert last["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "code"}], last
    assert last["top_k"] == 7 and last["logprobs"] is True and "temperature" not in last, last
    page.script("[...document.querySelectorAll('article.assistant .tools button')].find(b => b.textContent === 'Tokens').click()")
    page.script("document.querySelector('.token').click()")
    assert any("<i>other</i>" in row and "28.7 %" in row for row in page.text("#alternatives tr")), page.text("#alternatives tr")
    page.keys(ESCAPE)

    send(page, "think")
    page.wait("the answer", IDLE + " === 2")
    thought = page.script("const d = [...document.querySelectorAll('details')].pop(); return [d.open, d.querySelector('div').textContent]")
    assert thought == [False, "Let me see <b>."], thought

    send(page, "locked")
    page.wait("the error", "document.querySelector('.error')")
    assert page.script("return document.activeElement.id") == "key", "a refused key leads to its field"
    page.write("#key", "secret")
    page.keys((ALT, "s"))
    page.keys((ALT, "r"))
    page.wait("the answer", IDLE + " === 3 && !document.querySelector('.error')")

    # dark colors and a phone
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.script("return getComputedStyle(document.body).backgroundColor")
    page.command("Emulation.setDeviceMetricsOverride", width=375, height=700, deviceScaleFactor=1, mobile=True)
    wide = page.script("return document.documentElement.scrollWidth")
    assert wide <= 375, f"the page is {wide} pixels wide on a screen of 375"
    page.screenshot(screenshots, "chat-narrow-dark.png")
    page.click("#open-settings")
    assert page.script("return document.documentElement.scrollWidth") <= 375
    page.click("#theme")
    light = page.script("return getComputedStyle(document.body).backgroundColor")
    assert dark != light and light == "rgb(255, 255, 255)", (dark, light)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bitnet-run", required=True, help="the program")
    parser.add_argument("--model", default="tests/fixtures/demo/checkpoint", help="a model with a chat template")
    parser.add_argument("--screenshots", help="a folder for screenshots")
    given = parser.parse_args()

    server = subprocess.Popen([given.bitnet_run, "serve", given.model, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stand_in = http.server.ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=stand_in.serve_forever, daemon=True).start()
    page = None
    try:
        url = json.loads(server.stdout.readline())["url"].rstrip("/")
        for path in ("/", "/chat.js", "/chat.css"):
            with urllib.request.urlopen(url + path) as file:
                policy = file.headers.get("content-security-policy")
                StandIn.files[path] = (file.headers["content-type"], policy, file.read())
        policy = StandIn.files["/"][1] or ""
        assert "default-src 'none'" in policy and "unsafe" not in policy, f"the page's policy is {policy!r}"
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            page = Driver(port, profile)
            print("the demo model")
            check_real(page, url + "/", given.screenshots)
            print("a stand-in that is slow, prints markup and fails")
            check_stand_in(page, f"http://127.0.0.1:{stand_in.server_port}/", given.screenshots)
            severe = [entry["message"] for entry in page.call("POST", "/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]
            severe = [message for message in severe if "/v1/chat/completions" not in message]
            assert severe == [], severe
            page.call("DELETE", "")
    except AssertionError as error:
        print(f"web-check: {error}", file=sys.stderr)
        return 1
    finally:
        server.terminate()
        driver.terminate()
        stand_in.shutdown()
    print("the chat page does what it should")
    return 0


if __name__ == "__main__":
    sys.exit(main())
