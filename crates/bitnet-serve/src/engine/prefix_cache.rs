//! Sequences that ended, for texts that begin alike.
//!
//! Invariant: a cached sequence holds exactly the tokens beside it. What is found is a fork, which shares its memory and
//! gives the bits of a sequence that read the tokens anew; a sequence that cannot be forked there is not used.

use bitnet_model::Sequence;

/// Most sequences kept, whatever they weigh.
const MOST_ENTRIES: usize = 1024;

#[derive(Debug)]
struct Entry {
    tokens: Vec<u32>,
    sequence: Sequence,
    bytes: usize,
    used: u64,
}

/// Sequences that ended, the least recently used of which goes first.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    entries: Vec<Entry>,
    bytes: usize,
    clock: u64,
}

/// How many tokens two texts begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl PrefixCache {
    /// Bytes of keys and values, those that entries share counted for each.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A sequence of at least one and at most `most` of the first tokens of `prompt`, as many as can be.
    pub(crate) fn find(&mut self, prompt: &[u32], most: usize) -> Option<Sequence> {
        let most = most.min(prompt.len());
        let lengths = self.entries.iter().map(|e| common(&e.tokens, prompt));
        let (best, length) = lengths
            .enumerate()
            .max_by_key(|(number, length)| (*length, std::cmp::Reverse(*number)))?;
        let length = length.min(most);
        if length == 0 {
            return None;
        }
        let found = self.entries[best].sequence.fork(length).ok()?;
        self.clock += 1;
        self.entries[best].used = self.clock;
        Some(found)
    }

    /// Keeps a sequence that has read `tokens`.
    pub(crate) fn insert(&mut self, tokens: Vec<u32>, sequence: Sequence) {
        if tokens.is_empty() || self.entries.iter().any(|e| e.tokens.starts_with(&tokens)) {
            return;
        }
        // what begins the new one is in it
        let mut kept = Vec::with_capacity(self.entries.len() + 1);
        for entry in self.entries.drain(..) {
            match tokens.starts_with(&entry.tokens) {
                true => self.bytes -= entry.bytes,
                false => kept.push(entry),
            }
        }
        self.entries = kept;
        let bytes = sequence.cache().byte_len() + sequence.recurrent_byte_len();
        self.bytes += bytes;
        self.clock += 1;
        self.entries.push(Entry {
            tokens,
            sequence,
            bytes,
            used: self.clock,
        });
        if self.entries.len() > MOST_ENTRIES {
            self.evict();
        }
    }

    /// Forgets the least recently used sequence; `false` if there is none.
    pub(crate) fn evict(&mut self) -> bool {
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, e)| e.used);
        let Some((oldest, _)) = oldest else {
            return false;
        };
        let entry = self.entries.swap_remove(oldest);
        self.bytes -= entry.bytes;
        true
    }
}
