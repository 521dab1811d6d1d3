//! Where things stand in a JSON text that a parser has accepted. Written by hand, because serde_json gives values
//! without their places in the text.
//!
//! Invariant: nothing here judges: text that is no JSON gives positions that mean nothing, in bounds
//! all the same.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::ops::Range;

/// Numbers of so many characters have no digit that an f64 drops.
const ALL_COUNT: usize = 15;

/// What a value without parts is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JsonScalar {
    /// Text in quotes.
    String,
    /// A number.
    Number,
    /// `true`, `false` or `null`.
    Literal,
}

/// A member of an object or an element of a list, at any depth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonEntry {
    /// Keys and numbers of elements from the top, `rope_scaling.factor`.
    pub path: String,
    /// The key without its quotes; `None` for an element.
    pub key: Option<Range<usize>>,
    /// The value, quotes included.
    pub value: Range<usize>,
    /// What it is, if it has no parts.
    pub scalar: Option<JsonScalar>,
}

enum Token {
    Punctuation(u8),
    Blank,
    Scalar(JsonScalar),
}

/// The tokens of a text, one behind the other without gaps.
struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl Iterator for Tokens<'_> {
    type Item = (Token, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.text.get(self.at..)?;
        let run = |what: fn(&u8) -> bool| rest.iter().take_while(|b| what(b)).count().max(1);
        let (token, len) = match *rest.first()? {
            b' ' | b'\t' | b'\r' | b'\n' => {
                let is_blank: fn(&u8) -> bool = |b| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
                (Token::Blank, run(is_blank))
            }
            b'"' => (Token::Scalar(JsonScalar::String), string_len(rest)),
            b'-' | b'0'..=b'9' => {
                let is_number: fn(&u8) -> bool =
                    |b| b.is_ascii_digit() || matches!(b, b'-' | b'+' | b'.' | b'e' | b'E');
                (Token::Scalar(JsonScalar::Number), run(is_number))
            }
            b'a'..=b'z' => (
                Token::Scalar(JsonScalar::Literal),
                run(u8::is_ascii_lowercase),
            ),
            other => (Token::Punctuation(other), 1),
        };
        let range = self.at..self.at.saturating_add(len);
        self.at = range.end;
        Some((token, range))
    }
}

fn tokens(text: &[u8]) -> Tokens<'_> {
    // some editors begin files with a byte order mark
    let at = if text.starts_with(b"\xef\xbb\xbf") {
        3
    } else {
        0
    };
    Tokens { text, at }
}

/// Bytes of the string that `text` begins with, quotes included.
fn string_len(text: &[u8]) -> usize {
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at.saturating_add(1),
            _ => {}
        }
    }
    text.len()
}

/// Every member and element of a JSON text, parents before their parts.
pub fn json_entries(text: &[u8]) -> Vec<JsonEntry> {
    let mut entries: Vec<JsonEntry> = Vec::new();
    // of each open object or list: its entry, and how many parts it has had
    let mut open: Vec<(Option<usize>, usize)> = Vec::new();
    let mut key: Option<Range<usize>> = None;
    // a string is a key exactly if a colon follows
    let mut string: Option<Range<usize>> = None;
    let begin = |entries: &mut Vec<JsonEntry>,
                 open: &mut Vec<(Option<usize>, usize)>,
                 key: Option<Range<usize>>,
                 value: Range<usize>,
                 scalar| {
        let (parent, count) = open.last_mut()?;
        let name = match &key {
            Some(key) => String::from_utf8_lossy(text.get(key.clone())?).into_owned(),
            None => count.to_string(),
        };
        *count = count.saturating_add(1);
        let path = match parent.and_then(|p| entries.get(p)) {
            Some(parent) => format!("{}.{name}", parent.path),
            None => name,
        };
        entries.push(JsonEntry {
            path,
            key,
            value,
            scalar,
        });
        entries.len().checked_sub(1)
    };
    for (token, range) in tokens(text) {
        if !matches!(token, Token::Blank | Token::Punctuation(b':'))
            && let Some(value) = string.take()
        {
            let scalar = Some(JsonScalar::String);
            begin(&mut entries, &mut open, key.take(), value, scalar);
        }
        match token {
            Token::Scalar(JsonScalar::String) => string = Some(range),
            Token::Scalar(scalar) => {
                begin(&mut entries, &mut open, key.take(), range, Some(scalar));
            }
            Token::Punctuation(b':') => {
                key = string
                    .take()
                    .map(|quoted| quoted.start.saturating_add(1)..quoted.end.saturating_sub(1));
            }
            Token::Punctuation(b'{' | b'[') => {
                let entry = begin(&mut entries, &mut open, key.take(), range, None);
                open.push((entry, 0));
            }
            Token::Punctuation(b'}' | b']') => {
                if let Some((Some(entry), _)) = open.pop()
                    && let Some(entry) = entries.get_mut(entry)
                {
                    entry.value.end = range.end;
                }
            }
            Token::Punctuation(_) | Token::Blank => {}
        }
    }
    entries
}

/// Marks what could be spelled otherwise: blanks, the case of hexadecimal letters and exponents, digits
/// beyond what a float holds.
pub(super) fn spelling(text: &[u8], masks: &mut [u8]) {
    const CASE: u8 = 0x20;
    for (token, range) in tokens(text) {
        let (Some(token_text), Some(masks)) = (text.get(range.clone()), masks.get_mut(range))
        else {
            return;
        };
        match token {
            Token::Blank => masks.fill(0xff),
            Token::Scalar(JsonScalar::String) => {
                let mut left: u8 = 0; // hexadecimal digits of an escape that are to come
                let mut escaped = false;
                for (byte, mask) in token_text.iter().zip(masks) {
                    if left > 0 {
                        left = left.saturating_sub(1);
                        if byte.is_ascii_alphabetic() {
                            *mask |= CASE;
                        }
                    } else if escaped {
                        escaped = false;
                        left = if *byte == b'u' { 4 } else { 0 };
                    } else {
                        escaped = *byte == b'\\';
                    }
                }
            }
            Token::Scalar(JsonScalar::Number) => number(token_text, masks),
            Token::Scalar(JsonScalar::Literal) | Token::Punctuation(_) => {}
        }
    }
}

fn number(text: &[u8], masks: &mut [u8]) {
    for (byte, mask) in text.iter().zip(masks.iter_mut()) {
        if matches!(byte, b'e' | b'E') {
            *mask |= 0x20;
        }
    }
    let is_whole = text.iter().all(|b| b.is_ascii_digit() || *b == b'-');
    if text.len() <= ALL_COUNT || is_whole {
        return;
    }
    let value = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<f64>().ok();
    let Some(own) = value(text) else { return };
    let mut other = text.to_vec();
    for (at, mask) in masks.iter_mut().enumerate() {
        for bit in 0..8 {
            let Some(byte) = other.get_mut(at).filter(|b| b.is_ascii_digit()) else {
                break;
            };
            *byte ^= 1 << bit;
            let is_digit = byte.is_ascii_digit();
            if is_digit && value(&other) == Some(own) {
                *mask |= 1 << bit;
            }
            if let (Some(byte), Some(own)) = (other.get_mut(at), text.get(at)) {
                *byte = *own;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_paths_and_places() {
        let text = br#" {"a": {"b\"c": [1, "x"]}, "d": null}"#;
        let found: Vec<(String, Option<&str>, &str)> = json_entries(text)
            .into_iter()
            .map(|e| {
                let of = |r: Range<usize>| std::str::from_utf8(&text[r]).unwrap();
                (e.path, e.key.map(of), of(e.value))
            })
            .collect();
        let expected = [
            ("a", Some("a"), r#"{"b\"c": [1, "x"]}"#),
            (r#"a.b\"c"#, Some(r#"b\"c"#), r#"[1, "x"]"#),
            (r#"a.b\"c.0"#, None, "1"),
            (r#"a.b\"c.1"#, None, r#""x""#),
            ("d", Some("d"), "null"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(path, key, value)| (path.to_string(), *key, *value))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_json_does_no_harm() {
        for text in [
            &b"\"abc\\"[..],
            b"}}]],,::",
            b"{\"a\"",
            b"[1,[2,{\"",
            b"\xff\x80-",
        ] {
            json_entries(text);
            spelling(text, &mut vec![0; text.len()]);
        }
    }
}
