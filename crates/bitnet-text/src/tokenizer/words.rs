//! The tokens of a vocabulary: text to id and back, in one piece of memory.
//!
//! Invariant: after [`Words::finish`] no two entries have the same text or the same id. Texts lie end
//! to end in one string and are found through one table of entry numbers, so a vocabulary takes
//! about 20 bytes a token beside its text.

use bitnet_formats::{ErrorCode, FormatError};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A hash of bytes that a file cannot predict, because its keys are new in every process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys(u64, u64);

impl Keys {
    pub(super) fn new() -> Self {
        let state = RandomState::new();
        Self(state.hash_one(0u8), state.hash_one(1u8) | 1)
    }

    fn fold(self, value: u64) -> u64 {
        let product = u128::from(value).saturating_mul(u128::from(self.1));
        (product as u64) ^ ((product >> 64) as u64)
    }

    fn bytes(self, bytes: &[u8]) -> u64 {
        let mut state = self.0 ^ bytes.len() as u64;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let word = chunk.try_into().map(u64::from_le_bytes).unwrap_or_default();
            state = self.fold(state ^ word);
        }
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(chunks.remainder()) {
            *to = *from;
        }
        self.fold(self.fold(state ^ u64::from_le_bytes(last)) ^ self.0)
    }

    /// The hash of two ids in their order.
    pub(super) fn pair(self, left: u32, right: u32) -> u64 {
        self.fold(self.0 ^ (u64::from(left) << 32 | u64::from(right)))
    }
}

/// Bits of a place that hold the entry; the others hold bits of its hash, which tell most other
/// entries apart without a look at them.
const ENTRY_BITS: u32 = 25;
const ENTRY: u32 = (1 << ENTRY_BITS) - 1;

/// Most entries of a table.
pub(super) const MOST_ENTRIES: usize = ENTRY as usize - 1;

/// Places of a table that is at most half full: entry numbers plus one, zero where there is none.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<u32>);

impl Places {
    /// A table for `count` entries.
    pub(super) fn for_entries(count: usize) -> Self {
        Self(vec![0; count.saturating_mul(2).next_power_of_two().max(16)])
    }

    pub(super) fn is_full(&self, count: usize) -> bool {
        count.saturating_mul(2) > self.0.len()
    }

    /// The entry that `fits` and its place, or the place where it belongs.
    pub(super) fn find(
        &self,
        hash: u64,
        fits: impl Fn(u32) -> bool,
    ) -> Result<(u32, usize), usize> {
        let mask = self.0.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        let tag = Self::tag(hash);
        loop {
            match self.0.get(at) {
                None | Some(0) => return Err(at),
                Some(&place)
                    if place & !ENTRY == tag && fits((place & ENTRY).saturating_sub(1)) =>
                {
                    return Ok(((place & ENTRY).saturating_sub(1), at));
                }
                Some(_) => at = at.wrapping_add(1) & mask,
            }
        }
    }

    fn tag(hash: u64) -> u32 {
        (hash >> 32) as u32 & !ENTRY
    }

    /// Puts an entry below [`MOST_ENTRIES`] at the place that [`Self::find`] gave for its hash.
    pub(super) fn set(&mut self, at: usize, hash: u64, entry: u32) {
        if let Some(place) = self.0.get_mut(at) {
            *place = (entry.wrapping_add(1) & ENTRY) | Self::tag(hash);
        }
    }
}

/// The tokens of a vocabulary.
#[derive(Debug)]
pub(super) struct Words {
    texts: String,
    /// Where the text of an entry ends; it begins where the one before ends.
    ends: Vec<u32>,
    /// By entry.
    ids: Vec<u32>,
    /// Entries in the order of their ids; empty where this is the order of the entries.
    by_id: Vec<u32>,
    places: Places,
    keys: Keys,
    is_finished: bool,
}

fn too_long() -> FormatError {
    FormatError::new(
        ErrorCode::LimitExceeded,
        "a vocabulary of more than 33 million tokens or 4 GiB of text",
    )
}

impl Words {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Self {
            texts: String::new(),
            ends: Vec::with_capacity(entries),
            ids: Vec::with_capacity(entries),
            by_id: Vec::new(),
            places: Places::default(),
            keys: Keys::new(),
            is_finished: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    fn text_of(&self, entry: u32) -> &str {
        let entry = entry as usize;
        let start = match entry.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or_default(),
            None => 0,
        };
        let end = self.ends.get(entry).copied().unwrap_or_default();
        self.texts
            .get(start as usize..end as usize)
            .unwrap_or_default()
    }

    fn entry(&self, hash: u64, text: &str) -> Result<u32, usize> {
        let found = self.places.find(hash, |entry| self.text_of(entry) == text);
        found.map(|(entry, _)| entry)
    }

    /// Adds a token; one that was added before gets the new id.
    ///
    /// # Errors
    /// More text than offsets can name.
    pub(super) fn put(&mut self, text: &str, id: u32) -> Result<(), FormatError> {
        self.is_finished = false;
        let hash = self.keys.bytes(text.as_bytes());
        let at = match self.entry(hash, text) {
            Ok(entry) => {
                if let Some(old) = self.ids.get_mut(entry as usize) {
                    *old = id;
                }
                return Ok(());
            }
            Err(at) => at,
        };
        if self.ids.len() >= MOST_ENTRIES {
            return Err(too_long());
        }
        let entry = u32::try_from(self.ids.len()).map_err(|_| too_long())?;
        self.texts.push_str(text);
        let end = u32::try_from(self.texts.len()).map_err(|_| too_long())?;
        self.ends.push(end);
        self.ids.push(id);
        self.places.set(at, hash, entry);
        if self.places.is_full(self.ids.len()) {
            self.places = Places::for_entries(self.ids.len().saturating_mul(2));
            for entry in 0..=entry {
                let hash = self.keys.bytes(self.text_of(entry).as_bytes());
                if let Err(at) = self.places.find(hash, |_| false) {
                    self.places.set(at, hash, entry);
                }
            }
        }
        Ok(())
    }

    /// Adds a token of a vocabulary of which no token was [put](Self::put); [`Self::finish`] makes it found, which
    /// takes half the time. One that was added before gets the new id.
    ///
    /// # Errors
    /// More text than offsets can name.
    pub(super) fn push(&mut self, text: &str, id: u32) -> Result<(), FormatError> {
        if self.ids.len() >= MOST_ENTRIES {
            return Err(too_long());
        }
        self.texts.push_str(text);
        let end = u32::try_from(self.texts.len()).map_err(|_| too_long())?;
        self.ends.push(end);
        self.ids.push(id);
        self.is_finished = false;
        Ok(())
    }

    /// Gives every entry its place. All at once, because one place after the other waits for memory.
    fn index(&mut self) {
        let count = self.ids.len() as u32;
        let mut places = Places::for_entries(self.ids.len());
        let mut last = Vec::new(); // of a text that comes twice: the first entry and the later one
        for entry in 0..count {
            let text = self.text_of(entry);
            let hash = self.keys.bytes(text.as_bytes());
            match places.find(hash, |entry| self.text_of(entry) == text) {
                Ok((first, _)) => last.push((first, entry)),
                Err(at) => places.set(at, hash, entry),
            }
        }
        self.places = places;
        if last.is_empty() {
            return;
        }
        for (first, entry) in &last {
            let id = self.ids.get(*entry as usize).copied();
            if let (Some(id), Some(old)) = (id, self.ids.get_mut(*first as usize)) {
                *old = id;
            }
        }
        let mut only = Self::with_capacity(self.ids.len());
        let mut later = last.iter().map(|(_, entry)| *entry).peekable();
        for (entry, id) in (0..count).zip(&self.ids) {
            if later.next_if_eq(&entry).is_none() {
                only.texts.push_str(self.text_of(entry));
                only.ends.push(only.texts.len() as u32);
                only.ids.push(*id);
            }
        }
        *self = only;
        self.index();
    }

    /// Ends the list and orders it by id; a second time this is nothing.
    ///
    /// # Errors
    /// Two tokens with one id.
    pub(super) fn finish(&mut self) -> Result<(), FormatError> {
        if self.is_finished {
            return Ok(());
        }
        if self.places.0.is_empty() {
            self.index();
        }
        let ascending = |(a, b): (&u32, &u32)| a < b;
        if !self.ids.iter().zip(self.ids.iter().skip(1)).all(ascending) {
            let mut by_id: Vec<u32> = (0..self.ids.len() as u32).collect();
            let id = |entry: u32| self.ids.get(entry as usize).copied().unwrap_or_default();
            by_id.sort_unstable_by_key(|entry| id(*entry));
            for (one, two) in by_id.iter().zip(by_id.iter().skip(1)) {
                if id(*one) == id(*two) {
                    let (first, second) = (*one.min(two), *one.max(two));
                    return Err(FormatError::new(
                        ErrorCode::Tokenizer,
                        format!(
                            "tokens `{}` and `{}` have the same id {}",
                            super::pre_tokenizer::short(self.text_of(first)),
                            super::pre_tokenizer::short(self.text_of(second)),
                            id(*one)
                        ),
                    ));
                }
            }
            self.by_id = by_id;
        }
        self.texts.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.ids.shrink_to_fit();
        self.is_finished = true;
        Ok(())
    }

    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let hash = self.keys.bytes(text.as_bytes());
        let entry = self.entry(hash, text).ok()?;
        self.ids.get(entry as usize).copied()
    }

    /// The id of each text of `texts`, which stand end to end from byte `start` on and end at `ends`.
    ///
    /// In steps over all texts, each of which reads memory that the step before gave the place of: so
    /// the reads of different texts wait at the same time.
    pub(super) fn ids(&self, texts: &str, start: u32, ends: &[u32], found: &mut Vec<Option<u32>>) {
        let bounds = || {
            std::iter::once(&start)
                .chain(ends)
                .copied()
                .zip(ends.iter().copied())
        };
        let text = |(start, end): (u32, u32)| {
            let range = start as usize..end as usize;
            texts.get(range).unwrap_or_default()
        };
        let hash = |range| self.keys.bytes(text(range).as_bytes());
        let hashes: Vec<u64> = bounds().map(hash).collect();
        // most often the only entry with these bits of the hash
        let entry = |hash: &u64| self.places.find(*hash, |_| true).ok();
        let entries: Vec<Option<(u32, usize)>> = hashes.iter().map(entry).collect();
        let first = |entry: &Option<(u32, usize)>| entry.map(|(entry, _)| self.text_of(entry));
        let candidates: Vec<Option<&str>> = entries.iter().map(first).collect();
        let looked_up = bounds()
            .zip(hashes)
            .zip(entries.into_iter().zip(candidates));
        found.clear();
        found.extend(looked_up.map(|((range, hash), (entry, candidate))| {
            let text = text(range);
            let entry = match (entry, candidate) {
                (Some((entry, _)), Some(candidate)) if candidate == text => entry,
                (None, _) => return None,
                _ => self.entry(hash, text).ok()?,
            };
            self.ids.get(entry as usize).copied()
        }));
    }

    /// As [`Self::id`], of a text that is often the entry `near` or the one behind it; `near` becomes
    /// the entry that was found.
    pub(super) fn id_near(&self, text: &str, near: &mut u32) -> Option<u32> {
        let close = [*near, near.saturating_add(1)];
        let close = close
            .into_iter()
            .find(|entry| (*entry as usize) < self.ids.len() && self.text_of(*entry) == text);
        let entry = match close {
            Some(entry) => entry,
            None => {
                let hash = self.keys.bytes(text.as_bytes());
                self.entry(hash, text).ok()?
            }
        };
        *near = entry;
        self.ids.get(entry as usize).copied()
    }

    /// The entry that is at `place` in the order of ids.
    fn at(&self, place: usize) -> Option<(u32, u32)> {
        let entry = match self.by_id.is_empty() {
            true => u32::try_from(place).ok()?,
            false => *self.by_id.get(place)?,
        };
        Some((entry, *self.ids.get(entry as usize)?))
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        // where ids have no gaps, the place is the id
        if let Some((entry, found)) = self.at(id as usize)
            && found == id
        {
            return Some(self.text_of(entry));
        }
        let (mut low, mut high) = (0, self.ids.len());
        while low < high {
            let middle = low.midpoint(high);
            let (entry, found) = self.at(middle)?;
            match found.cmp(&id) {
                std::cmp::Ordering::Less => low = middle.saturating_add(1),
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.text_of(entry)),
            }
        }
        None
    }

    /// Ids and texts, ids ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..self.ids.len()).filter_map(|place| {
            let (entry, id) = self.at(place)?;
            Some((id, self.text_of(entry)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_ids_are_found_in_any_order() {
        let mut words = Words::with_capacity(0);
        let all: Vec<(String, u32)> = (0..5000u32)
            .map(|i| (format!("token {i}"), i.wrapping_mul(7919) % 100_003))
            .collect();
        for (text, id) in &all {
            words.put(text, *id).unwrap();
        }
        words.put("", 200_000).unwrap();
        words.finish().unwrap();
        for (text, id) in &all {
            assert_eq!(words.id(text), Some(*id));
            assert_eq!(words.text(*id), Some(text.as_str()));
        }
        assert_eq!(words.text(200_000), Some(""));
        assert_eq!(words.id(""), Some(200_000));
        assert_eq!(words.text(200_001), None);
        assert_eq!(words.id("token"), None);
        let ids: Vec<u32> = words.iter().map(|(id, _)| id).collect();
        assert!(ids.is_sorted());
        assert_eq!(ids.len(), all.len() + 1);
    }

    #[test]
    fn the_last_id_of_a_text_wins_and_an_id_has_one_text() {
        let mut words = Words::with_capacity(4);
        words.put("a", 0).unwrap();
        words.put("b", 1).unwrap();
        words.put("a", 2).unwrap();
        words.finish().unwrap();
        assert_eq!((words.len(), words.id("a")), (2, Some(2)));
        assert_eq!((words.text(0), words.text(2)), (None, Some("a")));
        words.put("c", 1).unwrap();
        let error = words.finish().unwrap_err();
        assert!(error.message.contains("`b` and `c`"), "{error}");
    }

    #[test]
    fn tokens_pushed_or_put_give_the_same_vocabulary() {
        let all = ["a", "b", "a", "", "longer than a word", "b", "c", "a"];
        let (mut put, mut pushed) = (Words::with_capacity(0), Words::with_capacity(9));
        for (id, text) in (0..).zip(all) {
            put.put(text, id).unwrap();
            pushed.push(text, id).unwrap();
        }
        put.finish().unwrap();
        pushed.finish().unwrap();
        let ids = [Some(7), Some(5), Some(6), Some(3), Some(4), None];
        let (texts, mut found) = ("abclonger than a wordx", Vec::new());
        for words in [&put, &pushed] {
            assert!(
                words
                    .iter()
                    .eq([(3, ""), (4, all[4]), (5, "b"), (6, "c"), (7, "a")])
            );
            words.ids(texts, 0, &[1, 2, 3, 3, 21, 22], &mut found);
            assert_eq!(found, ids);
        }
    }
}
