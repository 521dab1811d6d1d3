//! Byte-pair encoding over a compact vocabulary, as a model of the `tokenizers` crate.
//!
//! Invariant: ids are those of the crate's own `BPE` for every setting that [`super::huggingface`]
//! accepts (the tests compare the two). A word of n characters takes O(n log n) steps. The crate's
//! hash maps of strings take 0.5 GB for a vocabulary of 262,144 tokens; these take about 30 MB.

use super::words::{Keys, Places, Words};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};
use tokenizers::models::bpe::BpeTrainer;
use tokenizers::{Model, Token};

/// Characters below this one have their ids in a list.
const LETTERS: u32 = 0x180;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Merges {
    /// Left, right and result; the best is first, its rank is its place.
    list: Vec<[u32; 3]>,
    places: Places,
    keys: Keys,
}

impl Merges {
    /// Of the list; where a pair comes twice, the later one counts.
    pub(super) fn new(list: Vec<[u32; 3]>) -> Self {
        let mut merges = Self {
            places: Places::for_entries(list.len()),
            keys: Keys::new(),
            list,
        };
        for rank in 0..merges.list.len() as u32 {
            let Some(&[left, right, _]) = merges.list.get(rank as usize) else {
                break;
            };
            let hash = merges.keys.pair(left, right);
            match merges.place(left, right) {
                Ok((_, at)) | Err(at) => merges.places.set(at, hash, rank),
            }
        }
        merges
    }

    fn place(&self, left: u32, right: u32) -> Result<(u32, usize), usize> {
        self.places.find(self.keys.pair(left, right), |rank| {
            matches!(self.list.get(rank as usize), Some(&[l, r, _]) if l == left && r == right)
        })
    }

    /// Rank and result of a pair.
    fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let (rank, _) = self.place(left, right).ok()?;
        Some((rank, self.list.get(rank as usize)?[2]))
    }

    /// Left, right and result, best first.
    pub(super) fn list(&self) -> &[[u32; 3]] {
        &self.list
    }
}

/// What else a model of this kind says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) unk_token: Option<String>,
    pub(super) fuse_unk: bool,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
}

/// A vocabulary, its merges and its settings.
#[derive(Debug)]
pub(super) struct Bpe {
    words: Words,
    merges: Merges,
    settings: Settings,
    unk: Option<u32>,
    letters: Vec<Option<u32>>,
    /// Ids of `<0xHH>`, for byte fallback.
    bytes: Vec<Option<u32>>,
}

/// A part of a word: its id, its neighbors and its length in bytes, which is zero once it is part
/// of the one on its left.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    id: u32,
    before: u32,
    after: u32,
    len: u32,
}

const NONE: u32 = u32::MAX;

impl Bpe {
    pub(super) fn new(words: Words, merges: Vec<[u32; 3]>, settings: Settings) -> Self {
        let mut buffer = [0; 4];
        let letters = (0..LETTERS)
            .map(|code| words.id(char::from_u32(code)?.encode_utf8(&mut buffer)))
            .collect();
        let bytes = match settings.byte_fallback {
            true => (0..=255u8)
                .map(|b| words.id(&format!("<{b:#04X}>")))
                .collect(),
            false => Vec::new(),
        };
        Self {
            unk: settings.unk_token.as_deref().and_then(|t| words.id(t)),
            merges: Merges::new(merges),
            settings,
            letters,
            bytes,
            words,
        }
    }

    pub(super) fn words(&self) -> &Words {
        &self.words
    }

    pub(super) fn merges(&self) -> &[[u32; 3]] {
        self.merges.list()
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    fn letter(&self, text: &str) -> Option<u32> {
        let code = text.chars().next().map_or(LETTERS, u32::from);
        match self.letters.get(code as usize) {
            Some(id) => *id,
            None => self.words.id(text),
        }
    }

    /// The ids of `<0xHH>` for each byte, if all have one.
    fn byte_ids(&self, text: &str) -> Option<Vec<u32>> {
        let id = |b: u8| self.bytes.get(usize::from(b)).copied().flatten();
        text.bytes().map(id).collect()
    }

    /// The characters of a word, before any merge.
    fn symbols(&self, word: &str) -> tokenizers::Result<Vec<Symbol>> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut add = |id: u32, len: usize| {
            let place = symbols.len() as u32;
            if let Some(last) = symbols.last_mut() {
                last.after = place;
            }
            symbols.push(Symbol {
                id,
                before: place.checked_sub(1).unwrap_or(NONE),
                after: NONE,
                len: len as u32,
            });
        };
        let mut unknown: Option<(u32, usize)> = None;
        for (start, letter) in word.char_indices() {
            let len = letter.len_utf8();
            let text = word
                .get(start..start.saturating_add(len))
                .unwrap_or_default();
            if let Some(id) = self.letter(text) {
                if let Some((id, len)) = unknown.take() {
                    add(id, len);
                }
                add(id, len);
                continue;
            }
            if self.settings.byte_fallback
                && let Some(ids) = self.byte_ids(text)
            {
                // an unknown run before it comes behind it: that is what the crate does
                for id in ids {
                    add(id, 1);
                }
                continue;
            }
            let Some(token) = &self.settings.unk_token else {
                continue;
            };
            let unk = self
                .unk
                .ok_or_else(|| format!("the `unk_token` `{token}` is not in the vocabulary"))?;
            unknown = match unknown {
                Some((id, before)) if self.settings.fuse_unk => {
                    Some((id, before.saturating_add(len)))
                }
                Some((id, before)) => {
                    add(id, before);
                    Some((unk, len))
                }
                None => Some((unk, len)),
            };
        }
        if let Some((id, len)) = unknown {
            add(id, len);
        }
        Ok(symbols)
    }

    /// Merges the pair of lowest rank, leftmost first, until none is left.
    fn merge(&self, symbols: &mut [Symbol]) {
        let get = |symbols: &[Symbol], at: u32| symbols.get(at as usize).copied();
        let mut queue: Vec<Reverse<u64>> = Vec::new();
        let entry = |rank: u32, at: u32| Reverse(u64::from(rank) << 32 | u64::from(at));
        for (at, (left, right)) in symbols.iter().zip(symbols.iter().skip(1)).enumerate() {
            if let Some((rank, _)) = self.merges.get(left.id, right.id) {
                queue.push(entry(rank, at as u32));
            }
        }
        let mut queue = BinaryHeap::from(queue);
        while let Some(Reverse(top)) = queue.pop() {
            let (rank, at) = ((top >> 32) as usize, top as u32);
            let Some(&[_, _, made]) = self.merges.list.get(rank) else {
                continue;
            };
            let Some(left) = get(symbols, at).filter(|s| s.len > 0) else {
                continue;
            };
            let Some(right) = get(symbols, left.after) else {
                continue;
            };
            // an entry of a pair that has changed since
            match self.merges.get(left.id, right.id) {
                Some((_, result)) if result == made => {}
                _ => continue,
            }
            if let Some(symbol) = symbols.get_mut(at as usize) {
                symbol.id = made;
                symbol.len = left.len.saturating_add(right.len);
                symbol.after = right.after;
            }
            if let Some(gone) = symbols.get_mut(left.after as usize) {
                gone.len = 0;
            }
            if let Some(next) = symbols.get_mut(right.after as usize) {
                next.before = at;
                let id = next.id;
                if let Some((rank, _)) = self.merges.get(made, id) {
                    queue.push(entry(rank, at));
                }
            }
            if let Some(before) = get(symbols, left.before)
                && let Some((rank, _)) = self.merges.get(before.id, made)
            {
                queue.push(entry(rank, left.before));
            }
        }
    }
}

impl Model for Bpe {
    type Trainer = BpeTrainer;

    /// Tokens carry ids and lengths; their text is left out, because only ids are asked for.
    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let token = |id, start, end| Token::new(id, String::new(), (start, end));
        if word.is_empty() {
            return Ok(Vec::new());
        }
        if u32::try_from(word.len()).is_err() {
            return Err("a word of more than 4 GiB".into());
        }
        if self.settings.ignore_merges
            && let Some(id) = self.words.id(word)
        {
            return Ok(vec![token(id, 0, word.len())]);
        }
        let mut symbols = self.symbols(word)?;
        self.merge(&mut symbols);
        let mut start: usize = 0;
        let left = symbols.iter().filter(|symbol| symbol.len > 0);
        Ok(left
            .map(|symbol| {
                let end = start.saturating_add(symbol.len as usize);
                let token = token(symbol.id, start, end);
                start = end;
                token
            })
            .collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.words.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.words.text(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        let all = self.words.iter();
        all.map(|(id, text)| (text.to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.words.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this model is read only".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}
