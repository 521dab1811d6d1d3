//! Where a text had its last tokens before.
//!
//! Invariant: a token costs a bounded time to add, to remove and to look up, however long the text is. Every place that
//! is found is in front of the end of the text and behind the same [`GRAM`] tokens.

use std::collections::HashMap;

/// Tokens that two places have in common at least.
const GRAM: usize = 2;

/// Places that are compared at most, the latest first.
const MOST_PLACES: usize = 32;

/// Tokens that are compared at most.
const MOST_MATCH: usize = 32;

/// No place.
const NONE: u32 = u32::MAX;

/// The places behind every pair of tokens of a text.
#[derive(Debug, Default)]
pub(crate) struct Ngrams {
    last: HashMap<[u32; GRAM], u32>, // the latest place behind these tokens
    before: Vec<u32>, // (tokens,): of the place behind each token, the one before it behind the same tokens
}

/// A place of a text that is like its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    /// Tokens in front of the place.
    pub at: usize,
    /// Tokens in front of it that are those in front of the end.
    pub matched: usize,
}

impl Ngrams {
    /// Adds the last token of a text whose other tokens were added before.
    pub(crate) fn push(&mut self, tokens: &[u32]) {
        let before = match tokens.last_chunk::<GRAM>() {
            Some(gram) => {
                // a text of 2^32 - 1 tokens does not fit any context
                let place = u32::try_from(tokens.len()).unwrap_or(NONE);
                self.last.insert(*gram, place).unwrap_or(NONE)
            }
            None => NONE,
        };
        self.before.push(before);
    }

    /// Removes all tokens from `position` on of a text.
    pub(crate) fn truncate(&mut self, tokens: &[u32], position: usize) {
        while self.before.len() > position {
            let place = self.before.len();
            let before = self.before.pop().unwrap_or(NONE);
            if let Some(gram) = tokens[..place].last_chunk::<GRAM>() {
                match before {
                    NONE => self.last.remove(gram),
                    before => self.last.insert(*gram, before),
                };
            }
        }
    }

    /// The place with the longest match, of equal ones the latest.
    pub(crate) fn find(&self, tokens: &[u32]) -> Option<Found> {
        let mut best: Option<Found> = None;
        let mut place = *self.before.get(tokens.len().checked_sub(1)?)?;
        for _ in 0..MOST_PLACES {
            if place == NONE {
                break;
            }
            let at = place as usize;
            let here = tokens[..at].iter().rev().take(MOST_MATCH);
            let pairs = here.zip(tokens.iter().rev());
            let matched = pairs.take_while(|(a, b)| a == b).count();
            if best.is_none_or(|best| matched > best.matched) {
                best = Some(Found { at, matched });
            }
            if matched == MOST_MATCH {
                break;
            }
            place = self.before[at - 1];
        }
        best
    }
}

/// The `count` tokens behind a place; beyond the end of the text the same again.
pub(crate) fn continuation(tokens: &[u32], at: usize, count: usize) -> Vec<u32> {
    let behind = &tokens[at..];
    behind.iter().copied().cycle().take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(tokens: &[u32]) -> Ngrams {
        let mut ngrams = Ngrams::default();
        for end in 1..=tokens.len() {
            ngrams.push(&tokens[..end]);
        }
        ngrams
    }

    #[test]
    fn the_longest_match_wins_and_of_equal_ones_the_latest() {
        let text = [1, 2, 3, 9, 7, 2, 3, 8, 5, 2, 3, 6, 1, 2, 3];
        let found = index(&text).find(&text).unwrap();
        assert_eq!(found, Found { at: 3, matched: 3 });
        assert_eq!(continuation(&text, found.at, 3), [9, 7, 2]);
        let text = [4, 2, 3, 9, 7, 2, 3, 8, 5, 2, 3];
        let found = index(&text).find(&text).unwrap();
        assert_eq!(found, Found { at: 7, matched: 2 });
        for none in [&[][..], &[1], &[1, 1], &[1, 2, 3], &[1, 2, 3, 2]] {
            assert_eq!(index(none).find(none), None, "{none:?}");
        }
    }

    #[test]
    fn a_text_that_goes_in_circles_goes_on_so() {
        let text = [5, 1, 2, 3, 1, 2, 3];
        let found = index(&text).find(&text).unwrap();
        assert_eq!(found, Found { at: 4, matched: 3 });
        assert_eq!(continuation(&text, found.at, 7), [1, 2, 3, 1, 2, 3, 1]);
        let text = [6, 6, 6];
        let found = index(&text).find(&text).unwrap();
        assert_eq!(found, Found { at: 2, matched: 2 });
        assert_eq!(continuation(&text, found.at, 3), [6, 6, 6]);
    }

    #[test]
    fn an_index_that_went_back_is_that_of_the_shorter_text() {
        let mut state = 3u32;
        let text: Vec<u32> = (0..400)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) % 5
            })
            .collect();
        let mut ngrams = index(&text);
        for length in [400, 399, 200, 57, 3, 2, 1, 0] {
            ngrams.truncate(&text, length);
            let fresh = index(&text[..length]);
            assert_eq!(ngrams.last, fresh.last, "{length}");
            assert_eq!(ngrams.before, fresh.before, "{length}");
            if let Some(found) = fresh.find(&text[..length]) {
                assert!(found.at < length && found.matched >= GRAM);
            }
        }
    }
}
