#!/usr/bin/env python3
"""Check the links of a directory of HTML pages.

    scripts/docs_links.py DIRECTORY

A link inside the directory must lead to a file, and its fragment to an element with this id. A link to another site is only checked for
its form: nothing is requested. Prints one line for each broken link, then the numbers of pages and links.
Needs Python 3. Exit status: 0 all links are good, 1 a link is broken, 2 could not.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

HOST = re.compile(r"^(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$|^localhost$|^127\.0\.0\.1$", re.I)


class Page(HTMLParser):
    """The links and ids of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.links, self.ids = [], set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.ids.add(value)
            elif name in ("href", "src") and value is not None and tag != "base":
                self.links.append((self.getpos()[0], value))


def fault(root, page, link, pages):
    """What is wrong with a link of a page, or None."""
    if re.search(r"[\s<>\"{}|\\^`]", link):
        return "is not a URL"
    try:
        parts = urlsplit(link)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"is not a URL: {error}"
    if parts.scheme in ("http", "https"):
        return None if host and HOST.match(host) else "names no host"
    if parts.scheme in ("mailto", "data", "javascript"):
        return None
    if parts.scheme:
        return f"has the unknown scheme {parts.scheme}"
    if parts.netloc:
        return "names a host without a scheme"
    path = unquote(parts.path)
    if path.startswith("/"):
        # mdBook writes its error page for the root of a site
        file = root / path.lstrip("/")
    else:
        file = page.parent / path if path else page
    file = file.resolve()
    if not file.is_relative_to(root):
        return "leads out of the directory"
    if file.is_dir():
        file = file / "index.html"
    if not file.is_file():
        return "leads to no file"
    fragment = unquote(parts.fragment)
    if fragment and file in pages and fragment not in pages[file].ids:
        return f"leads to no element `{fragment}`"
    return None


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: scripts/docs_links.py DIRECTORY", file=sys.stderr)
        return 2
    root = Path(sys.argv[1]).resolve()
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(root.rglob("*.html"))}
    if not pages:
        print(f"error: {root} has no HTML pages", file=sys.stderr)
        return 2
    broken = links = 0
    for path, page in pages.items():
        for line, link in page.links:
            links += 1
            if what := fault(root, path, link, pages):
                broken += 1
                print(f"{path.relative_to(root)}:{line}: {link} {what}")
    print(f"{len(pages)} pages, {links} links, {broken} broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
