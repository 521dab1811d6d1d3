#!/usr/bin/env python3
"""Make the vectors of formats/packing/tile32.md from those of formats/vectors/inputs.

    scripts/tile_vectors.py

Plain Python, written from the page without the programs: two implementations of one specification. Rewrites formats/vectors/tile32-* and their
lines of the top manifest.
Needs Python 3. Exit status: 0 written, 1 could not.
"""

import hashlib
import json
from pathlib import Path

VECTORS = Path(__file__).resolve().parent.parent / "formats" / "vectors"
INPUTS = [
    "ramp-1x256-00",
    "zero-4x256-04",
    "pos-4x256-05",
    "neg-4x256-06",
    "rand-4x64-14",
    "rand-6x320-15",
    "rand-3x100-16",
    "rand-32x2560-11",
    "rand-128x256-17",
]
LAYOUTS = {"tile32-1.6bit": (5, 3), "tile32-2bit": (4, 4)}  # trits of a byte, base


def packed(trits, rows, cols, fields, base):
    """The bytes of a matrix, straight from the picture of the page."""

    def code(row, col):
        return trits[row * cols + col] + 1 if row < rows and col < cols else 1

    out = bytearray()
    width = 4 * fields
    for tile in range(-(-rows // 32)):
        for block in range(-(-cols // width)):
            for row in range(32 * tile, 32 * tile + 32):
                for j in range(4):
                    first = block * width + j
                    out.append(sum(code(row, first + 4 * f) * base**f for f in range(fields)))
    return bytes(out)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def main():
    inputs = {e["name"]: e for e in json.loads((VECTORS / "inputs/manifest.json").read_text())["entries"]}
    top_path = VECTORS / "manifest.json"
    top = json.loads(top_path.read_text())
    for layout, (fields, base) in LAYOUTS.items():
        folder = VECTORS / layout
        folder.mkdir(exist_ok=True)
        entries = []
        for name in INPUTS:
            e = inputs[name]
            raw = (VECTORS / "inputs" / e["trits"]["file"]).read_bytes()
            trits = [b - 256 if b > 127 else b for b in raw]
            data = packed(trits, e["rows"], e["cols"], fields, base)
            file = f"{name}.bin"
            (folder / file).write_bytes(data)
            digest = {"file": file, "bytes": len(data), "sha256": sha256(data)}
            entries.append({"input": name, "peer": ["scripts/tile_vectors.py"], "packed": digest})
        write_json(folder / "manifest.json", {"format": layout, "entries": entries})
        manifest = (folder / "manifest.json").read_bytes()
        top["formats"][layout] = {"entries": len(entries), "manifest_sha256": sha256(manifest)}
    top["formats"] = dict(sorted(top["formats"].items()))
    write_json(top_path, top)


if __name__ == "__main__":
    main()
