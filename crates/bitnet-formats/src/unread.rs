//! Bits of a file that no reader uses: gaps, tails, signs of zeros, spellings.
//!
//! Invariant: read off the layout of the bytes, never found out by changing them. What is named here
//! may be changed without any tensor, scale or setting becoming another; a reader may still refuse
//! the file, because some of these bits have to be well-formed.

mod json;

pub use json::{JsonEntry, JsonScalar, json_entries};

use std::ops::Range;
use std::path::PathBuf;

/// Some bits of a range of one file, and why nobody uses them.
#[derive(Debug, Clone, PartialEq)]
pub struct Unread {
    /// The file.
    pub file: PathBuf,
    /// Bytes of it.
    pub range: Range<u64>,
    /// Which of their bits.
    pub bits: UnreadBits,
    /// Tensor or key; empty for what belongs to neither.
    pub place: String,
    /// Why nobody uses them.
    pub why: &'static str,
}

/// Which bits of a range of bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum UnreadBits {
    /// Every one.
    All,
    /// The same of every byte.
    Mask(u8),
    /// Of each byte those of its own mask.
    Masks(Vec<u8>),
    /// Of floats of `size` bytes, little-endian, the sign of each zero.
    SignsOfZeros {
        /// Bytes of an element.
        size: usize,
    },
    /// Of JSON text, what could be spelled otherwise.
    JsonSpelling,
}

impl Unread {
    /// Sets the bits in `masks`; `bytes` are those of the range, and `masks` one for each of them.
    pub fn mark(&self, bytes: &[u8], masks: &mut [u8]) {
        match &self.bits {
            UnreadBits::All => masks.fill(0xff),
            UnreadBits::Mask(bits) => masks.iter_mut().for_each(|mask| *mask |= bits),
            UnreadBits::Masks(each) => {
                masks.iter_mut().zip(each).for_each(|(mask, m)| *mask |= m);
            }
            UnreadBits::SignsOfZeros { size } => {
                let size = (*size).max(1);
                let elements = bytes.chunks_exact(size).zip(masks.chunks_exact_mut(size));
                for (element, masks) in elements {
                    if let Some(last) = masks.last_mut().filter(|_| is_zero(element)) {
                        *last |= 0x80;
                    }
                }
            }
            UnreadBits::JsonSpelling => json::spelling(bytes, masks),
        }
    }

    /// How many bits these are; `bytes` are those of the range.
    pub fn count(&self, bytes: &[u8]) -> u64 {
        let ones = |mask: u8| u64::from(mask.count_ones());
        match &self.bits {
            UnreadBits::All => (bytes.len() as u64).saturating_mul(8),
            UnreadBits::Mask(bits) => ones(*bits).saturating_mul(bytes.len() as u64),
            UnreadBits::Masks(each) => each.iter().map(|m| ones(*m)).sum(),
            UnreadBits::SignsOfZeros { size } => {
                let elements = bytes.chunks_exact((*size).max(1));
                elements.filter(|e| is_zero(e)).count() as u64
            }
            UnreadBits::JsonSpelling => {
                let mut masks = vec![0; bytes.len()];
                json::spelling(bytes, &mut masks);
                masks.into_iter().map(ones).sum()
            }
        }
    }
}

/// Whether a little-endian float is 0 or -0.
fn is_zero(element: &[u8]) -> bool {
    let Some((last, rest)) = element.split_last() else {
        return false;
    };
    last & 0x7f == 0 && rest.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(bits: UnreadBits, bytes: &[u8]) -> Vec<u8> {
        let unread = Unread {
            file: PathBuf::new(),
            range: 0..bytes.len() as u64,
            bits,
            place: String::new(),
            why: "",
        };
        let mut masks = vec![0; bytes.len()];
        unread.mark(bytes, &mut masks);
        let ones: u64 = masks.iter().map(|m| u64::from(m.count_ones())).sum();
        assert_eq!(ones, unread.count(bytes), "{unread:?}");
        masks
    }

    #[test]
    fn signs_are_those_of_zeros_alone() {
        let bytes = [0, 0, 0, 0x80, 1, 0, 0, 0x3f];
        let expected = [0, 0x80, 0, 0x80, 0, 0, 0, 0];
        assert_eq!(
            masks(UnreadBits::SignsOfZeros { size: 2 }, &bytes),
            expected
        );
    }

    #[test]
    fn spellings_are_blanks_and_the_case_of_hexadecimal_letters_and_exponents() {
        let text = br#"{ "a e\u00eA":1e-05,"b":[ -2.5E3,true]}"#;
        let found = masks(UnreadBits::JsonSpelling, text);
        let named: Vec<(usize, u8)> = found
            .iter()
            .enumerate()
            .filter_map(|(i, m)| (*m != 0).then_some((i, *m)))
            .collect();
        let at = |what: &str| {
            let text = std::str::from_utf8(text).unwrap();
            text.find(what).unwrap()
        };
        assert_eq!(
            named,
            [
                (1, 0xff),
                (at("eA"), 0x20),
                (at("eA") + 1, 0x20),
                (at("e-05"), 0x20),
                (at(" -2.5"), 0xff),
                (at("E3"), 0x20),
            ]
        );
    }

    #[test]
    fn digits_that_no_float_holds_are_spelling() {
        // 17 digits tell all floats apart; the 20th tells none
        let text = b"[0.12345678901234567890]";
        let found = masks(UnreadBits::JsonSpelling, text);
        assert_ne!(found[text.len() - 2], 0);
        assert_eq!(found[5], 0);
    }
}
