#!/usr/bin/env python3
"""Draw formats/speed.svg from formats/speed.json, which holds the output of scripts/bench-peers.

    scripts/speed_chart.py            writes formats/speed.svg
    scripts/speed_chart.py --check    compares formats/speed.svg with the measurement

Each test and thread count has one row of bars: bitnet-run, then the peer, in tokens per second.
Needs Python 3. Exit status: 0 done, 1 the chart is outdated, 2 could not.
"""

import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

FORMATS = Path(__file__).resolve().parent.parent / "formats"
NAMES = {"pp512": "prompt of 512 tokens", "tg128": "generate 128 tokens"}
LEFT, BAR, WIDTH = 210, 16, 720


def chart(measured):
    """The SVG text of one measurement."""
    rows = measured["report"]["rows"]
    largest = max(max(row["ours"]["median"], row["peer"]["median"]) for row in rows)
    step = 2 * BAR + 18
    height = 66 + step * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-weight="bold">Tokens per second, {escape(measured["machine"])}</text>',
        f'<rect x="12" y="34" width="12" height="12" fill="#1f6feb"/><text x="30" y="45">bitnet-run</text>',
        f'<rect x="120" y="34" width="12" height="12" fill="#9aa4b2"/><text x="138" y="45">{escape(measured["peer_name"])}</text>',
    ]
    for number, row in enumerate(rows):
        top = 62 + step * number
        threads = "1 thread" if row["threads"] == 1 else f'{row["threads"]} threads'
        lines.append(f'<text x="12" y="{top + BAR + 4}">{NAMES.get(row["test"], row["test"])}, {threads}</text>')
        for who, color, y in (("ours", "#1f6feb", top), ("peer", "#9aa4b2", top + BAR)):
            value = row[who]["median"]
            width = round((WIDTH - LEFT - 130) * value / largest)
            label = f"{value:.1f}" if who == "peer" else f'{value:.1f} ({row["ratio"]["median"]:.2f} times)'
            lines.append(f'<rect x="{LEFT}" y="{y}" width="{width}" height="{BAR - 2}" fill="{color}"/>')
            lines.append(f'<text x="{LEFT + width + 6}" y="{y + 12}">{label}</text>')
    return "\n".join(lines) + "\n</svg>\n"


def main():
    if sys.argv[1:] not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    text = chart(json.loads((FORMATS / "speed.json").read_text()))
    path = FORMATS / "speed.svg"
    if sys.argv[1:] == ["--check"]:
        if path.read_text() != text:
            print("error: formats/speed.svg is not what formats/speed.json says; hint: run scripts/speed_chart.py", file=sys.stderr)
            return 1
        return 0
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
