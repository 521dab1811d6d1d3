#!/usr/bin/env python3
"""Write the tables of character classes for chat templates from Python's character database.

    scripts/chat_template_unicode.py > crates/bitnet-text/src/chat_template/unicode_tables.rs

Chat templates call Python's string methods. So the tables are those of the Python that runs transformers.
Needs Python 3. Exit status: 0 written.
"""

import sys
import unicodedata


def ranges(test):
    found = []
    for code in range(128, sys.maxunicode + 1):
        if test(chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return found


def array(name, doc, kind, entries):
    print(f"\n/// {doc}\n#[rustfmt::skip]\npub(super) const {name}: &[{kind}] = &[")
    line = "   "
    for entry in entries:
        if len(line) + len(entry) > 118:
            print(line)
            line = "   "
        line += f" {entry},"
    print(f"{line}\n];")


def text(string):
    return '"' + "".join(f"\\u{{{ord(c):x}}}" for c in string) + '"'


def main():
    version = unicodedata.unidata_version
    print(f"//! Character classes beyond ASCII as Python's `str` methods see them (Unicode {version}).")
    print("//!\n//! Invariant: written by `scripts/chat_template_unicode.py`, never by hand; ranges ascend.")
    for name, method in [
        ("PRINTABLE", "isprintable"),
        ("ALPHABETIC", "isalpha"),
        ("DECIMAL", "isdecimal"),
        ("DIGIT", "isdigit"),
        ("NUMERIC", "isnumeric"),
    ]:
        pairs = ranges(lambda c: getattr(c, method)())
        array(name, f"`str.{method}`, first and last character.", "(u32, u32)",
              [f"(0x{a:x},0x{b:x})" for a, b in pairs])
    for name, doc, method, other in [
        ("TITLE", "`str.title` where it is not `str.upper`.", str.title, str.upper),
        ("FOLD", "`str.casefold` where it is not `str.lower`.", str.casefold, str.lower),
    ]:
        chars = [chr(c) for c in range(128, sys.maxunicode + 1)]
        array(name, doc, "(u32, &str)",
              [f"(0x{ord(c):x},{text(method(c))})" for c in chars if method(c) != other(c)])


main()
