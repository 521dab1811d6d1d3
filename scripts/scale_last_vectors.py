#!/usr/bin/env python3
"""Make the vectors of `q2_0-g128-last` (formats/packing/q2_0.md) from those of formats/vectors/gguf-pq2_0.

    scripts/scale_last_vectors.py

Both have the same codes. In `q2_0-g128-last` the f16 scale follows the codes of a block. No file of the programs that write this layout was
seen. Rewrites formats/vectors/gguf-q2_0-g128-last.
Needs Python 3. Exit status: 0 written, 1 could not.
"""

import hashlib
import json
from pathlib import Path

VECTORS = Path(__file__).resolve().parent.parent / "formats" / "vectors"
BLOCK = 34


def scale_last(data):
    """Blocks with the scale moved from their first two bytes to their last."""
    blocks = (data[at : at + BLOCK] for at in range(0, len(data), BLOCK))
    return b"".join(block[2:] + block[:2] for block in blocks)


def main():
    source, folder = VECTORS / "gguf-pq2_0", VECTORS / "gguf-q2_0-g128-last"
    folder.mkdir(exist_ok=True)
    manifest = json.loads((source / "manifest.json").read_text())
    manifest["format"] = "GGUF id 42, 128 weights in 34 bytes, scale last"
    manifest["ggml_type_id"] = 42
    manifest["peer"] = "scripts/scale_last_vectors.py, from the vectors of gguf-pq2_0"
    # Gaussian input says nothing that is not said there
    manifest["cases"] = [case for case in manifest["cases"] if case["name"] == "ternary"]
    for case in manifest["cases"]:
        for key, entry in case["files"].items():
            data = (source / entry["file"]).read_bytes()
            if key == "packed":
                data = scale_last(data)
            (folder / entry["file"]).write_bytes(data)
            entry["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


if __name__ == "__main__":
    main()
