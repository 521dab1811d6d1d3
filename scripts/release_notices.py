#!/usr/bin/env python3
"""Write the licenses of all packages that the programs are built from, and a list of the packages (CycloneDX 1.5).

  scripts/release_notices.py --licenses FILE --sbom FILE --version VERSION

Both come from `cargo metadata --locked` and the sources of the packages. A package without a license expression is an error.
"""
import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

PROGRAMS = ["bitnet-convert", "bitnet-verify", "bitnet-run"]
TEXTS = re.compile(r"(?i)^(licen[cs]e|copying|notice|unlicense)")


def packages():
    """The packages of the programs' normal and build dependencies, by id."""
    said = subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], check=True, capture_output=True, text=True)
    meta = json.loads(said.stdout)
    by_id = {package["id"]: package for package in meta["packages"]}
    needs = {node["id"]: node["deps"] for node in meta["resolve"]["nodes"]}
    todo = [package["id"] for package in meta["packages"] if package["name"] in PROGRAMS and package["source"] is None]
    seen = {}
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        wanted = [dep for dep in needs[one] if any(kind["kind"] != "dev" for kind in dep["dep_kinds"])]
        seen[one] = [dep["pkg"] for dep in wanted]
        todo += seen[one]
    return [by_id[one] for one in sorted(seen, key=lambda i: (by_id[i]["name"], by_id[i]["version"]))], seen


def checksums():
    """sha256 of the packages, from Cargo.lock."""
    found, package = {}, {}
    for line in Path("Cargo.lock").read_text().splitlines():
        match = re.match(r'^(name|version|checksum) = "(.*)"$', line)
        if line == "[[package]]":
            package = {}
        elif match:
            package[match[1]] = match[2]
            if match[1] == "checksum":
                found[package["name"], package["version"]] = match[2]
    return found


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def licenses(all_packages):
    """One block for each package: name, license expression, texts."""
    blocks, without = [], []
    for package in all_packages:
        if package["source"] is None:
            continue
        if not package["license"]:
            without.append(package["name"])
            continue
        folder = Path(package["manifest_path"]).parent
        head = f"{package['name']} {package['version']}: {package['license']}"
        texts = [p.read_text(errors="replace").strip() for p in sorted(folder.iterdir()) if p.is_file() and TEXTS.match(p.name)]
        blocks.append("\n\n".join([head, *texts]))
    if without:
        sys.exit(f"error: packages without a license: {', '.join(without)}")
    return ("\n\n" + "-" * 80 + "\n\n").join(blocks) + "\n"


def sbom(all_packages, needs, version):
    sums = checksums()
    components, ids = [], {package["id"]: purl(package) for package in all_packages}
    for package in all_packages:
        entry = {"type": "library", "bom-ref": purl(package), "name": package["name"], "version": package["version"],
                 "purl": purl(package), "scope": "required"}
        if package["license"]:
            entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        digest = sums.get((package["name"], package["version"]))
        if digest:
            entry["hashes"] = [{"alg": "SHA-256", "content": digest}]
        components.append(entry)
    graph = [{"ref": ids[one], "dependsOn": sorted({ids[dep] for dep in deps})} for one, deps in sorted(needs.items(), key=lambda i: ids[i[0]])]
    return {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": {"component": {"type": "application", "bom-ref": "bitnet-toolchain", "name": "bitnet-toolchain", "version": version}},
            "components": components,
            "dependencies": [{"ref": "bitnet-toolchain", "dependsOn": sorted(ids[p["id"]] for p in all_packages if p["name"] in PROGRAMS)}] + graph}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("licenses", "sbom", "version"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    all_packages, needs = packages()
    Path(args.licenses).write_text(licenses(all_packages))
    Path(args.sbom).write_text(json.dumps(sbom(all_packages, needs, args.version), indent=1) + "\n")
    print(f"{len(all_packages)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
