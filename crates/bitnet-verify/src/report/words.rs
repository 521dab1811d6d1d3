//! How pages for people write what checks say: long numbers in groups, equal notes once.
//!
//! Invariant: a digit of a hash, a name or a fraction is never moved; every place that differs is counted.

use crate::verdict::Difference;
use std::collections::HashMap;

/// Places of one note that are listed.
const PLACES: usize = 6;

/// The text with whole numbers of five digits and more in groups of three.
pub(super) fn grouped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = from.find(|c: char| !c.is_ascii_digit());
        let (digits, behind) = from.split_at(end.unwrap_or(from.len()));
        let is_part = |c: char| c.is_alphanumeric() || "_-.,".contains(c);
        let mut following = behind.chars();
        let next = following.next();
        // a sentence may end behind a number; a fraction goes on
        let goes_on = match next {
            Some('.' | ',') => following.next().is_some_and(char::is_alphabetic),
            Some(c) => is_part(c),
            None => false,
        };
        let begins = !out.chars().next_back().is_some_and(is_part);
        if begins && !goes_on && digits.len() >= 5 && !digits.starts_with('0') {
            for (i, digit) in digits.chars().enumerate() {
                if i > 0 && (digits.len() - i).is_multiple_of(3) {
                    out.push(',');
                }
                out.push(digit);
            }
        } else {
            out.push_str(digits);
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// What is said of one or of several places.
pub(super) struct Note<'a> {
    pub(super) what: &'a str,
    /// The first of the places.
    pub(super) places: Vec<&'a str>,
    /// How many more there are.
    pub(super) more: usize,
}

/// The notes in the order of their first places, equal ones once.
pub(super) fn notes(differences: &[Difference]) -> Vec<Note<'_>> {
    let mut notes: Vec<Note<'_>> = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for Difference { place, what, .. } in differences {
        let at = *seen.entry(what).or_insert_with(|| {
            notes.push(Note {
                what,
                places: Vec::new(),
                more: 0,
            });
            notes.len() - 1
        });
        if let Some(note) = notes.get_mut(at) {
            match note.places.len() < PLACES {
                true => note.places.push(place),
                false => note.more += 1,
            }
        }
    }
    notes
}

/// Bytes as people read them: `1.2 GB`; exact below a kilobyte.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in units {
        if value < 1000.0 {
            break;
        }
        (value, unit) = (value / 1000.0, larger);
    }
    match unit {
        "bytes" => format!("{bytes} bytes"),
        unit => format!("{value:.1} {unit} ({} bytes)", grouped(&bytes.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_grouped_and_names_are_not() {
        for (text, expected) in [
            (
                "1114112 trits of 14 linears",
                "1,114,112 trits of 14 linears",
            ),
            ("12345", "12,345"),
            ("1234", "1234"),
            ("row 123456, column 7.", "row 123,456, column 7."),
            ("(33030144 bytes)", "(33,030,144 bytes)"),
            ("model-00001-of-00002.gguf", "model-00001-of-00002.gguf"),
            ("0.123456 and 123456.123456", "0.123456 and 123,456.123456"),
            ("sha256 1234567890abcdef", "sha256 1234567890abcdef"),
            ("0x12345678, 1e100000", "0x12345678, 1e100000"),
            ("blk.12345.w", "blk.12345.w"),
        ] {
            assert_eq!(grouped(text), expected);
        }
        assert_eq!(bytes(999), "999 bytes");
        assert_eq!(bytes(33_030_144), "33.0 MB (33,030,144 bytes)");
    }

    #[test]
    fn equal_notes_are_told_once_with_their_places() {
        let mut all: Vec<Difference> = (0..9)
            .map(|i| Difference::new(format!("t{i}"), "not compared"))
            .collect();
        all.insert(1, Difference::new("u", "row 3"));
        let notes = notes(&all);
        let told: Vec<_> = notes
            .iter()
            .map(|n| (n.what, n.places.len(), n.more))
            .collect();
        assert_eq!(told, [("not compared", 6, 3), ("row 3", 1, 0)]);
    }
}
