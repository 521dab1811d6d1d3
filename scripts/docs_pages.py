#!/usr/bin/env python3
"""Write the pages of the documentation site, with their table of contents.

    scripts/docs_pages.py --programs target/release --out target/docs/src

Copies the Markdown pages of the repository in their directories (README.md becomes index.md, because mdBook's links need it) and the files
that they link to, and rewrites the links. Makes reference pages from `--help` of every program and subcommand, and from the JSON schemas.
SUMMARY.md lists every page: the tutorials as formats/guides/README.md lists them, the others as TOPICS says, and what neither names last.
A link to a file that the repository does not have is an error.
Needs Python 3 and the three programs. Exit status: 0 done, 2 could not.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ["bitnet-convert", "bitnet-verify", "bitnet-run"]
# heading, then pages or patterns of pages, in order
TOPICS = [
    ("Explanation", ["formats/exactness.md", "formats/numerics.md", "formats/absmean.md", "formats/rotation.md", "formats/fuzzing.md",
                     "formats/faults.md", "formats/model-families.md", "formats/platforms.md", "formats/speed.md", "formats/readers.md",
                     "crates/README.md"]),
    ("Files and formats", ["formats/README.md", "formats/support.md", "formats/container/*.md", "formats/packing/*.md",
                           "formats/packed.md", "formats/certificate.md", "formats/logits.md", "formats/vectors/README.md"]),
    ("Servers and sources", ["formats/serve.md", "formats/remote.md", "formats/scale.md"]),
    ("Project", [".github/CONTRIBUTING.md", ".github/SECURITY.md", "CHANGELOG.md", "tests/fixtures/demo/README.md"]),
]
# an inline link or image; the text may hold code, but no bracket
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\()([^()\s]+)(\))")
FENCE = re.compile(r"^\s*(```|~~~)")


class Fault(Exception):
    """What could not be done, for the user."""


def place(path):
    """Where a file of the repository lies in the book: no directory that begins with a dot, README.md as index.md."""
    parts = [part.lstrip(".") for part in path.parts]
    if parts[-1] == "README.md":
        parts[-1] = "index.md"
    return Path(*parts)


def title(text, path):
    for line in text.splitlines():
        if line.startswith("# "):
            return re.sub(r"[\[\]]", "", line[2:].strip())
    raise Fault(f"{path} has no title")


def pages():
    """The Markdown files of the repository that are pages."""
    found = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "crates/README.md", ROOT / "tests/fixtures/demo/README.md"]
    found += sorted((ROOT / ".github").glob("*.md"))
    found += sorted((ROOT / "formats").rglob("*.md"))
    return [path.relative_to(ROOT) for path in found]


def rewrite(text, path, known, assets):
    """The text of a page with the links of the book. Files that are no pages are added to `assets`."""

    def link(match):
        opening, target, closing = match.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:", target) or target.startswith("#"):
            return match[0]
        file, hash_, fragment = target.partition("#")
        other = Path(os.path.normpath(path.parent / file))
        if (ROOT / other).is_dir():
            other = other / "README.md"
        if not (ROOT / other).is_file() or other.parts[0] == "..":
            raise Fault(f"{path} links to {target}: there is no such file")
        if other.suffix == ".md" and other not in known:
            raise Fault(f"{path} links to {target}, which is no page of the book: add it to pages() of scripts/docs_pages.py")
        if other.suffix != ".md":
            assets.add(other)
        relative = os.path.relpath(place(other), place(path).parent).replace(os.sep, "/")
        return opening + relative + hash_ + fragment + closing

    lines, fenced = [], False
    for line in text.splitlines():
        if FENCE.match(line):
            fenced = not fenced
        if not fenced:
            # what stands in code is no link
            spans = re.split(r"(`+[^`]*`+)", line)
            if any("](" in span for span in spans[::2]):
                line = LINK.sub(link, line)
        lines.append(line)
    return "\n".join(lines) + "\n"


def help_of(program, words=()):
    ran = subprocess.run([program, *words, "--help"], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", check=False)
    if ran.returncode != 0:
        raise Fault(f"{program} {' '.join(words)} --help ended with {ran.returncode}: {ran.stderr.strip()}")
    return ran.stdout


def subcommands(text):
    """The names in the list `Commands:` of a help text."""
    block = re.search(r"^Commands:\n((?:[ \t]+.*\n|\n)*)", text, re.M)
    names = re.findall(r"^  ([a-z][a-z0-9-]*)", block[1], re.M) if block else []
    return [name for name in names if name != "help"]


def program_page(program):
    """The page of a program: its help, then that of every subcommand."""
    name = program.name
    text = help_of(program)
    out = [f"# {name}\n", f"What `{name} --help` prints.\n", f"```text\n{text.rstrip()}\n```\n"]
    for sub in subcommands(text):
        out += [f"## {name} {sub}\n", f"```text\n{help_of(program, [sub]).rstrip()}\n```\n"]
    return "\n".join(out)


def kind(schema):
    """The type of a value, in a few words of Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        return f"[`{name}`](#{name.lower()})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(kind(one) for one in schema[key])
    types = schema.get("type")
    if types == "array":
        return "list of " + kind(schema["items"]) if "items" in schema else "list"
    if isinstance(types, list):
        return " or ".join(types)
    return types or ("object" if "properties" in schema else "")


def rows(schema, prefix=""):
    """The rows of the table of an object, with the keys of objects and lists inside it."""
    needed = schema.get("required", [])
    properties = schema.get("properties", {})
    for key in [*properties, *(key for key in needed if key not in properties)]:
        value = properties.get(key, schema.get("additionalProperties", {}))
        text = value.get("description", "").replace("|", "\\|")
        yield f"| `{prefix}{key}` | {kind(value)} | {'yes' if key in needed else ''} | {text} |"
        inner, name = value, prefix + key
        while inner.get("type") == "array" and "items" in inner:
            inner, name = inner["items"], name + "[]"
        for one in [inner, *inner.get("anyOf", []), *inner.get("oneOf", [])]:
            yield from rows(one, name + ".")


def table(schema):
    found = list(rows(schema))
    for key in ("anyOf", "oneOf"):
        for i, one in enumerate(schema.get(key, [])):
            if "properties" in one or "required" in one:
                found += ["", f"{'One form' if i == 0 else 'Another form'}:", "", table(one)]
    if found and found[0].startswith("|"):
        found = ["| key | type | required | |", "|---|---|---|---|", *found]
    return "\n".join(found)


def schema_page(path, page):
    """The page of a JSON schema: a table for the object, and one for every definition."""
    schema = json.loads((ROOT / path).read_text("utf-8"))
    up = os.path.relpath(place(path), page.parent).replace(os.sep, "/")
    out = [f"# {path.name}\n", f"{schema['title']}. {schema['description']}\n", f"This page is made from [{path.name}]({up}).\n"]
    out.append(table(schema) + "\n")
    branches = []
    for branch in schema.get("allOf", []):
        condition = branch.get("if", {}).get("properties", {})
        then = branch.get("then", {})
        what = kind(then) if "$ref" in then or "anyOf" in then else ", ".join(f"`{key}`" for key in then.get("required", []))
        for key, value in condition.items():
            branches.append(f"| `{key}` is {kind(value)} | {what} |")
    if branches:
        out.append("| if | the object also has the keys of |\n|---|---|\n" + "\n".join(branches) + "\n")
    for name, definition in schema.get("$defs", {}).items():
        out.append(f"## {name}\n")
        if "description" in definition:
            out.append(definition["description"] + "\n")
        out.append((table(definition) or f"Type: {kind(definition)}.") + "\n")
    return "\n".join(out)


def write(out, path, text):
    file = out / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=Path, required=True, help="directory of the built programs")
    parser.add_argument("--out", type=Path, required=True, help="directory to write the pages into; it must not exist")
    args = parser.parse_args()
    if args.out.exists():
        raise Fault(f"{args.out} exists")

    known = pages()
    texts = {path: (ROOT / path).read_text("utf-8") for path in known}
    assets = set()
    for path, text in texts.items():
        write(args.out, place(path), rewrite(text, path, set(known), assets))

    reference = []
    for name in PROGRAMS:
        program = (args.programs / name).absolute()
        if not program.is_file():
            raise Fault(f"{program} is missing: build the programs first")
        page = Path("reference") / f"{name}.md"
        write(args.out, page, program_page(program))
        reference.append((name, page))
    for path in (Path("formats/report.schema.json"), Path("formats/certificate.schema.json")):
        page = Path("reference") / f"{path.name.removesuffix('.json')}.md"
        write(args.out, page, schema_page(path, page))
        assets.add(path)
        reference.append((path.name, page))
    for path in sorted(assets):
        (args.out / place(path)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, args.out / place(path))

    used = set()
    summary = ["# Summary", ""]

    def entry(path, name=None):
        used.add(path)
        summary.append(f"- [{name or title(texts[path], path)}]({place(path).as_posix()})")

    entry(Path("README.md"), "Introduction")
    guides = Path("formats/guides/README.md")
    summary += ["", "# Tutorials", ""]
    entry(guides, "All guides")
    for name, file in re.findall(r"^- \[([^\]]+)\]\(([^()#]+\.md)\)", texts[guides], re.M):
        entry(guides.parent / file, name)
    summary += ["", "# Reference", ""]
    entry(Path("formats/report.md"))
    summary += [f"- [{name}]({page.as_posix()})" for name, page in reference]
    for heading, patterns in TOPICS:
        summary += ["", f"# {heading}", ""]
        for pattern in patterns:
            for path in sorted(path for path in known if path.match(pattern) and path not in used):
                entry(path)
    rest = [path for path in known if path not in used]
    if rest:
        summary += ["", "# More", ""]
        for path in rest:
            entry(path)
    write(args.out, Path("SUMMARY.md"), "\n".join(summary) + "\n")
    print(f"{len(known)} pages of the repository, {len(reference)} of the reference, {len(assets)} other files")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Fault, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
