"""Make the pages of `bitnet-verify --html` for equal, different and unrelated models, and look at them in headless Chromium.

scripts/report-check starts this script, and has the usage.

A page may not be wider than its screen, labels of charts keep their size on a telephone, every linear that differs is marked in every chart, a
click copies a hash, and the browser reports no error, so the content security policy of the page allows exactly its own script.
"""

import argparse
import base64
import collections
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib

from web_check import Driver, free_port

SOURCE = "tests/fixtures/demo/checkpoint"
OTHER = "tests/fixtures/bitnet-2b4t-packed/checkpoint"
WIDE, NARROW = 1000, 400
# the largest file that the repository keeps
MOST = 200_000


def pages(programs, folder):
    """The pages by name, made by the programs."""
    convert, verify = (os.path.join(programs, name) for name in ("bitnet-convert", "bitnet-verify"))
    model, damaged = folder / "model.gguf", folder / "damaged.gguf"
    subprocess.run([convert, SOURCE, "-o", model, "--to", "gguf-i2_s", "--quiet", "--ternary-trained"], check=True, stdout=subprocess.DEVNULL)
    content = bytearray(model.read_bytes())
    for place in (len(content) * 6 // 10, len(content) * 8 // 10):
        # of two-bit codes 0, 1, 2 one becomes another
        at = next(i for i in range(place, len(content)) if content[i] & 3 < 2)
        content[at] ^= 1
    damaged.write_bytes(content)
    certificate = f"{model}.certificate.json"
    runs = {
        "equal": ([model, "--against", SOURCE, "--logits"], 0),
        "different": ([damaged, "--against", SOURCE, "--logits"], 1),
        "models": ([model, "--against", OTHER], 1),
        "certificate": ([model, "--certificate", certificate], 0),
    }
    made = {}
    for name, (words, status) in runs.items():
        page = folder / f"{name}.html"
        words = [verify, *words, "--html", page, "--quiet", *(["--ternary-trained"] if SOURCE in words else [])]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600"}
        ran = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        assert ran.returncode == status, f"{name}: exit status {ran.returncode}, expected {status}: {ran.stdout}"
        made[name] = page.as_uri()
    return made


def screen(page, width, dark):
    page.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
    page.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width == NARROW)


def pixels(png):
    """Width, height, bytes of a pixel and the rows of a PNG file without interlacing."""
    at, data = 8, b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        content = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, color = struct.unpack(">IIBB", content[:10])
        elif kind == b"IDAT":
            data += content
        at += 12 + length
    size = {2: 3, 6: 4}[color]
    assert depth == 8
    raw, stride, rows, above = zlib.decompress(data), width * size, [], bytearray(width * size)
    for start in range(0, len(raw), stride + 1):
        row, how = bytearray(raw[start + 1 : start + 1 + stride]), raw[start]
        for i in range(stride) if how else ():
            left, up, corner = row[i - size] if i >= size else 0, above[i], above[i - size] if i >= size else 0
            if how == 4:
                guess = left + up - corner
                guess = min((left, up, corner), key=lambda value: abs(guess - value))
            else:
                guess = (0, left, up, (left + up) // 2)[how]
            row[i] = (row[i] + guess) & 255
        rows.append(row)
        above = row
    return width, height, size, rows


def with_palette(png):
    """The same picture in 256 colors: text and flat areas lose nothing that is seen, and three quarters of the bytes go."""
    width, height, size, rows = pixels(png)
    coarse = lambda row, i: (row[i] & 0xF8, row[i + 1] & 0xF8, row[i + 2] & 0xF8)  # noqa: E731
    lists = [[coarse(row, i) for i in range(0, len(row), size)] for row in rows]
    counted = collections.Counter(color for row in lists for color in row)
    palette = [color for color, _ in counted.most_common(256)]
    number = {color: i for i, color in enumerate(palette)}
    for color in counted.keys() - number.keys():
        number[color] = min(range(len(palette)), key=lambda i: sum(abs(a - b) for a, b in zip(palette[i], color)))
    # the top of each step, so that white stays white and black stays black
    spread = lambda value: value | value >> 5  # noqa: E731
    body = zlib.compress(b"".join(b"\0" + bytes(number[color] for color in row) for row in lists), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    colors = bytes(spread(value) for color in palette for value in color)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"PLTE", colors) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def shoot(page, folder, name):
    """Writes a screenshot of the whole page, and refuses one that the repository does not keep."""
    if not folder:
        return
    parameters = {"captureBeyondViewport": True, "format": "png"}
    shot = page.call("POST", "/goog/cdp/execute", {"cmd": "Page.captureScreenshot", "params": parameters})
    content = with_palette(base64.b64decode(shot["data"]))
    assert len(content) < MOST, f"{name}: {len(content)} bytes"
    with open(os.path.join(folder, name), "wb") as file:
        file.write(content)


def fits(page, width):
    wide = page.script("return document.documentElement.scrollWidth")
    assert wide <= width, f"the page is {wide} pixels wide on a screen of {width}"


def check(page, made, screenshots):
    for name, url in made.items():
        for width in (WIDE, NARROW):
            screen(page, width, dark=False)
            page.open(url)
            fits(page, width)
    screen(page, WIDE, dark=False)
    page.open(made["equal"])
    assert page.text("h1") == ["Same"]
    assert page.script("return document.querySelectorAll('.band').length") == 0, "equal models have no marks"
    assert page.script("return document.querySelector('#logits table')") is None, "equal logits are one line"
    button = page.script("return [...document.querySelectorAll('.copy')].every(b => !b.hidden)")
    assert button, "copy buttons are shown"
    page.click(".copy")
    page.wait("the click is answered", "document.querySelector('.copy').textContent !== 'copy'")
    page.wait("the button is ready again", "document.querySelector('.copy').textContent === 'copy'")
    shoot(page, screenshots, "report-equal.png")

    page.open(made["different"])
    assert page.text("h1") == ["Different"]
    marks = page.script("return ['layers', 'trits', 'scales'].map(id => document.querySelectorAll(`#${id} .band`).length)")
    assert marks == [2, 4, 2], f"two linears in two layers, in the source's and the artifact's picture: {marks}"
    light = page.script("return getComputedStyle(document.body).backgroundColor")
    shoot(page, screenshots, "report.png")
    screen(page, WIDE, dark=True)
    dark = page.script("return getComputedStyle(document.body).backgroundColor")
    assert dark != light, "dark colors"
    shoot(page, screenshots, "report-dark.png")
    screen(page, NARROW, dark=False)
    fits(page, NARROW)
    label = page.script("return Math.min(...[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height))")
    assert label >= 10, f"a label is {label} pixels high on a narrow screen"
    shoot(page, screenshots, "report-narrow.png")

    screen(page, WIDE, dark=False)
    page.open(made["models"])
    first = page.script("return document.querySelector('header strong').innerText")
    assert first.startswith("These look like different models"), first
    assert page.script("return document.querySelectorAll('.plot').length") == 0, "no pictures of unrelated models"
    shoot(page, screenshots, "report-models.png")
    page.open(made["certificate"])
    rows = page.script("return document.querySelectorAll('#checks .rows dt').length")
    assert rows >= 5, f"{rows} rows of a certificate"
    shoot(page, screenshots, "report-certificate.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", required=True, help="the directory of bitnet-convert and bitnet-verify")
    parser.add_argument("--screenshots", help="a folder for screenshots")
    given = parser.parse_args()
    port = free_port()
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            folder = pathlib.Path(folder)
            made = pages(given.programs, folder)
            page = Driver(port, folder / "profile")
            check(page, made, given.screenshots)
            severe = [entry["message"] for entry in page.call("POST", "/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]
            assert severe == [], severe
            page.call("DELETE", "")
    except (AssertionError, subprocess.CalledProcessError) as error:
        print(f"report-check: {error}", file=sys.stderr)
        return 1
    finally:
        driver.terminate()
    print("the pages of reports are as they should be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
