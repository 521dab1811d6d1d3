//! Questions that Python's `str` methods ask of a character.
//!
//! Invariant: each answer is that of the Python whose tables `unicode_tables.rs` holds.

use super::unicode_tables::{ALPHABETIC, DECIMAL, DIGIT, FOLD, NUMERIC, PRINTABLE, TITLE};
use std::cmp::Ordering;

fn within(table: &[(u32, u32)], c: char) -> bool {
    let code = c as u32;
    let found = table.binary_search_by(|&(first, last)| {
        if last < code {
            Ordering::Less
        } else if first > code {
            Ordering::Greater
        } else {
            Ordering::Equal
        }
    });
    found.is_ok()
}

fn mapped(table: &'static [(u32, &'static str)], c: char) -> Option<&'static str> {
    let at = table.binary_search_by_key(&(c as u32), |&(from, _)| from);
    at.ok().and_then(|at| table.get(at)).map(|&(_, to)| to)
}

/// `str.isspace`, which is also what `\s` matches and `str.strip` removes.
pub(super) fn is_space(c: char) -> bool {
    matches!(c,
        '\t'..='\r' | '\x1c'..=' ' | '\u{85}' | '\u{a0}' | '\u{1680}' | '\u{2000}'..='\u{200a}'
        | '\u{2028}' | '\u{2029}' | '\u{202f}' | '\u{205f}' | '\u{3000}')
}

/// Where `str.splitlines` ends a line (`\r\n` counts once).
pub(super) fn is_line_end(c: char) -> bool {
    matches!(
        c,
        '\n'..='\r' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
    )
}

pub(super) fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        c if c.is_ascii() => false,
        c => within(PRINTABLE, c),
    }
}

pub(super) fn is_alpha(c: char) -> bool {
    c.is_ascii_alphabetic() || (!c.is_ascii() && within(ALPHABETIC, c))
}

pub(super) fn is_decimal(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && within(DECIMAL, c))
}

pub(super) fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && within(DIGIT, c))
}

pub(super) fn is_numeric(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && within(NUMERIC, c))
}

pub(super) fn is_alnum(c: char) -> bool {
    is_alpha(c) || is_numeric(c)
}

/// What `\w` matches.
pub(super) fn is_word(c: char) -> bool {
    c == '_' || is_alnum(c)
}

/// Whether a character is a letter of title case, such as `ǅ`.
pub(super) fn is_title(c: char) -> bool {
    matches!(c as u32, 0x1c5 | 0x1c8 | 0x1cb | 0x1f2)
        || (matches!(c as u32, 0x1f88..=0x1ffc) && !c.is_lowercase() && mapped_to_self(c))
}

fn mapped_to_self(c: char) -> bool {
    mapped(TITLE, c).is_some_and(|to| to.chars().eq([c]))
}

pub(super) fn is_lower(c: char) -> bool {
    c.is_lowercase()
}

pub(super) fn is_upper(c: char) -> bool {
    c.is_uppercase() && !is_title(c)
}

pub(super) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Appends a character in title case.
pub(super) fn push_title(out: &mut String, c: char) {
    match mapped(TITLE, c) {
        Some(to) => out.push_str(to),
        None => out.extend(c.to_uppercase()),
    }
}

/// `str.casefold`.
pub(super) fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match mapped(FOLD, c) {
            Some(to) => out.push_str(to),
            // not `str::to_lowercase`: a final sigma folds like any other
            None => out.extend(c.to_lowercase()),
        }
    }
    out
}
