#!/usr/bin/env python3
"""Find circles of modules inside each crate: files whose items use each other's items.

    scripts/circles.py [--root DIRECTORY] [CRATE...]

A file is a module with its inline modules. File A uses file B if code of A names an item that B defines, by a `use` or by a path
(`crate::b::item`, `super::item`, `b::item`). A name is followed through re-exports to the file that defines it. A module may declare, list and
re-export its own children, which are parts of it. Code under `#[cfg(test)]` does not count: a test may use every floor. Methods are not seen,
because calling one names no module.

If FLOORS lists the files of a crate, no file may use a file of a floor above its own, and every file must have a floor.
Prints the lines of each circle. Needs Python 3. Exit status: 0 no circle, 1 a circle or a use of a higher floor.
"""
import re
import sys
from pathlib import Path

# from the ground up; names are relative to src, without .rs
FLOORS = {
    "bitnet-kernels": [
        "lanes lines output peak primitives pool",
        "activations fixed_point contract stored_rows",
        "attention candidates delta dense float_ops hadamard scaling token_attention",
        "float_table",
        "kernel",
        "kernels/*",
        "kernels",
        "backend",
        "batch cpu packed packed/* probe screen",
        "lib",
    ],
}

IDENT = r"(?:r#)?[A-Za-z_]\w*"


def without_comments_and_strings(text):
    """The text with comments and literals blanked out; every line keeps its number."""
    pattern = re.compile(
        r"""//[^\n]*|/\*|b?c?r(?P<hashes>\#*)"|[bc]?"|b?'(?:\\(?:[^u]|u\{[^}]*\})|[^\\'])'|(?:r\#)?[A-Za-z_0-9]+""",
        re.X,
    )
    out, at = [], 0
    while m := pattern.search(text, at):
        token, end = m.group(), m.end()
        out.append(text[at : m.start()])
        if token == "/*":
            depth = 1
            while depth and (n := re.compile(r"/\*|\*/").search(text, end)):
                depth += 1 if n.group() == "/*" else -1
                end = n.end()
        elif m.group("hashes") is not None:
            close = text.find('"' + m.group("hashes"), end)
            end = len(text) if close < 0 else close + 1 + len(m.group("hashes"))
        elif token.endswith('"'):
            while end < len(text) and text[end] != '"':
                end += 2 if text[end] == "\\" else 1
            end += 1
        elif not (token.startswith("//") or token.endswith("'")):
            out.append(token)
            at = end
            continue
        out.append(re.sub(r"[^\n]", " ", text[m.start() : end]))
        at = end
    return "".join(out) + text[at:]


def block_end(text, at):
    """Behind the item that starts at `at`: its `;`, or the end of its braces."""
    depth = 0
    for i in range(at, len(text)):
        c = text[i]
        if c in "({[":
            depth += 1
        elif c in ")}]":
            depth -= 1
            if depth == 0 and c == "}":
                return i + 1
        elif c == ";" and depth == 0:
            return i + 1
    return len(text)


def blank(text, start, end):
    return text[:start] + re.sub(r"[^\n]", " ", text[start:end]) + text[end:]


TEST = re.compile(r"#\s*\[\s*cfg\s*\(\s*(?:all\s*\(\s*)?test\b[^\]]*\]\s*(?:#\s*\[[^\]]*\]\s*)*")


def without_tests(text):
    while m := TEST.search(text):
        text = blank(text, m.start(), block_end(text, m.end()))
    return text


def leaves(tree, prefix=()):
    """The paths of a `use` tree: (segments, name it is known by; None for a glob)."""
    tree = tree.strip()
    if tree.startswith("{"):
        depth, start, inner = 0, 0, tree[1 : tree.rindex("}")]
        for i, c in enumerate(inner + ","):
            depth += (c == "{") - (c == "}")
            if c == "," and depth == 0:
                if inner[start:i].strip():
                    yield from leaves(inner[start:i], prefix)
                start = i + 1
        return
    head, colons, rest = tree.partition("::")
    if colons and "{" not in head:
        yield from leaves(rest, prefix + ((head.strip(),) if head.strip() else ()))
        return
    name, _, alias = tree.partition(" as ")
    name = name.strip()
    if name == "*":
        yield prefix, None
    elif name == "self":
        yield prefix + ("self",), alias.strip() or prefix[-1]
    else:
        yield prefix + (name,), alias.strip() or name


class Module:
    def __init__(self, crate, file, name, parent, text, offset):
        self.crate, self.file, self.name, self.parent = crate, file, name, parent
        self.children, self.items, self.imports, self.globs = {}, set(), {}, []
        self.uses, self.references = [], []  # (line, segments)
        self.parse(text, offset)

    def parse(self, text, offset):
        line = lambda at: offset + text.count("\n", 0, at)
        # inline modules: their own scope, the same file
        inline = re.compile(rf"\bmod\s+({IDENT})\s*\{{")
        while m := inline.search(text):
            end = block_end(text, m.start())
            body = text[m.end() : end - 1]
            self.children[m.group(1)] = Module(self.crate, self.file, m.group(1), self, body, line(m.end()))
            text = blank(text, m.start(), end)
        for m in re.finditer(r"\buse\s+([^;]+);", text):
            tree = re.sub(r"\s+", " ", m.group(1))
            for segments, name in leaves(tree):
                self.uses.append((line(m.start(1)), segments))
                if name is None:
                    self.globs.append(segments)
                else:
                    self.imports.setdefault(name, segments)
            text = blank(text, m.start(), m.end())
        depth = 0
        item = re.compile(rf"[{{}}]|\bmacro_rules!\s*({IDENT})|\b(?:fn|struct|enum|union|trait|type|const|static)\s+(?:mut\s+)?({IDENT})")
        for m in item.finditer(text):
            if m.group() in "{}":
                depth += 1 if m.group() == "{" else -1
            elif depth == 0:
                self.items.add(m.group(1) or m.group(2))
        for m in re.finditer(rf"\bmod\s+({IDENT})\s*;", text):
            self.declare(m.group(1))
        path = re.compile(rf"(?<![\w.:])((?:\$?crate|{IDENT})(?:\s*::\s*{IDENT})+)")
        for m in path.finditer(text):
            segments = tuple(re.sub(r"\s", "", m.group(1)).lstrip("$").split("::"))
            self.references.append((line(m.start()), segments))

    def declare(self, name):
        file, inline = self.file, []
        module = self
        while module.parent and module.parent.file == file:
            inline.insert(0, module.name)
            module = module.parent
        folder = file.parent if file.name in ("lib.rs", "main.rs", "mod.rs") else file.with_suffix("")
        folder = folder.joinpath(*inline)
        for candidate in (folder / f"{name}.rs", folder / name / "mod.rs"):
            if candidate.exists():
                text = without_tests(without_comments_and_strings(candidate.read_text()))
                self.children[name] = Module(self.crate, candidate, name, self, text, 1)

    def root(self):
        return self.parent.root() if self.parent else self

    def all(self):
        yield self
        for child in self.children.values():
            yield from child.all()

    def is_inside(self, other):
        return self is other or (self.parent is not None and self.parent.is_inside(other))

    def resolve(self, segments, seen=()):
        """(module, item or None) that a path leads to; None for what is outside the crate."""
        here, rest = self, list(segments)
        first = rest[0]
        if first == "crate":
            here, rest = self.root(), rest[1:]
        elif first in ("self", "super"):
            while rest and rest[0] in ("self", "super"):
                here = here.parent if rest[0] == "super" else here
                if here is None:
                    return None
                rest = rest[1:]
        elif not (first in self.children or (first in self.imports and self.imports[first] != segments)):
            return None
        while rest:
            name, last = rest[0], len(rest) == 1
            if name == "self":
                return here, None
            if last and name in here.items:
                return here, name
            if name in here.children:
                here, rest = here.children[name], rest[1:]
                continue
            key = (id(here), name)
            if name in here.imports and key not in seen:
                found = here.resolve(here.imports[name], seen + (key,))
                if found is None or found[1] is not None:
                    return found  # an item: what follows is inside it
                here, rest = found[0], rest[1:]
                continue
            if name in here.items:
                return here, name
            for glob in here.globs:
                key = (id(here), glob, name)
                through = here.resolve(glob, seen + (key,)) if key not in seen else None
                if through and through[1] is None and through[0] is not here:
                    module = through[0]
                    if name in module.items or name in module.children or name in module.imports:
                        return module.resolve(("self", *rest), seen + (key,))
            return here, name
        return here, None


def edges(root):
    """{(file, file): [(line, path)]}"""
    found = {}

    def add(module, line, segments, target):
        if target is None or target[1] is None or target[0].is_inside(module):
            return
        if target[0].file != module.file:
            found.setdefault((module.file, target[0].file), []).append((line, "::".join(segments)))

    for module in root.all():
        for line, segments in module.uses + module.references:
            add(module, line, segments, module.resolve(segments))
    return found


def circles(graph):
    """The strongly connected components of more than one node (Tarjan)."""
    index, low, stack, out = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for to in sorted(graph.get(node, ())):
            if to not in index:
                visit(to)
                low[node] = min(low[node], low[to])
            elif to in stack:
                low[node] = min(low[node], index[to])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) - at > 1:
                out.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return out


def trespasses(name, source, root, found):
    """The uses of a floor above one's own, in words."""
    floors = {}
    for height, names in enumerate(FLOORS[name]):
        for pattern in names.split():
            for file in source.glob(f"{pattern}.rs"):
                floors[file] = (height, names)
    for file in sorted({module.file for module in root.all()} - floors.keys()):
        yield f"{file.relative_to(source)} of {name} has no floor in scripts/circles.py"
    for (a, b), uses in sorted(found.items()):
        if a in floors and b in floors and floors[a][0] < floors[b][0]:
            for line, path in uses:
                yield f"{a.relative_to(source)}:{line} of {name}: uses {path} of {b.stem}, a floor above its own"


def main():
    sys.setrecursionlimit(10_000)
    top, names = Path(__file__).resolve().parent.parent, sys.argv[1:]
    if names[:1] == ["--root"]:
        top, names = Path(names[1]), names[2:]
    names = names or sorted(p.name for p in (top / "crates").iterdir() if (p / "src/lib.rs").exists())
    bad = 0
    for name in names:
        file = top / "crates" / name / "src/lib.rs"
        text = without_tests(without_comments_and_strings(file.read_text()))
        root = Module(name, file, "crate", None, text, 1)
        found = edges(root)
        for words in trespasses(name, file.parent, root, found) if name in FLOORS else ():
            bad = 1
            print(words)
        graph = {}
        for a, b in found:
            graph.setdefault(a, set()).add(b)
        for circle in circles(graph):
            bad = 1
            print(f"circle of {len(circle)} modules in {name}: {', '.join(p.stem for p in circle)}")
            for a in circle:
                for b in circle:
                    for line, path in found.get((a, b), ()):
                        print(f"  {a.relative_to(top)}:{line}: uses {path} of {b.relative_to(top)}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
