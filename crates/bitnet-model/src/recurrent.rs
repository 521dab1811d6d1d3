//! Recurrent states of a sequence, snapshots of them, and the tokens that lead from one to the next.
//!
//! Invariant: a state follows from the tokens that it has read. Nothing can be taken out of it, so going back means
//! taking the last snapshot before, or the empty state, and reading the tokens behind it again: the same bits.

use bitnet_checkpoint::GatedDeltaNet;
use bitnet_formats::{ErrorCode, FormatError};
use std::sync::Arc;

/// Snapshots that a sequence keeps besides its state.
const MOST_SNAPSHOTS: usize = 3;
/// Tokens behind the last snapshot after which another one is taken.
const SNAPSHOT_TOKENS: usize = 256;

/// What one layer remembers.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerMemory {
    /// `(value heads, key width, value width)`
    pub state: Vec<f32>,
    /// Inputs of the convolution before the next token, the oldest first, `(taps - 1, channels)`.
    pub tail: Vec<f32>,
}

/// The memory of all layers after some tokens.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    /// How many tokens it has read.
    position: usize,
    /// One for each layer with a state; none before the first token.
    layers: Vec<Arc<LayerMemory>>,
}

/// What the layers with a recurrent state remember of a sequence.
#[derive(Debug)]
pub(crate) struct Recurrent {
    shapes: Vec<GatedDeltaNet>, // of the layers with a state
    live: Snapshot,
    is_written: bool, // some layer has read a token that the state as a whole has not
    snapshots: Vec<Snapshot>, // positions rise
    tokens: Vec<u32>, // of the text, empty without layers
    last_step: usize, // tokens of the step before
}

impl Recurrent {
    /// Empty states.
    pub(crate) fn new(shapes: Vec<GatedDeltaNet>) -> Self {
        Self {
            shapes,
            live: Snapshot::default(),
            is_written: false,
            snapshots: Vec::new(),
            tokens: Vec::new(),
            last_step: 0,
        }
    }

    /// Whether there are layers with a state.
    pub(crate) fn is_used(&self) -> bool {
        !self.shapes.is_empty()
    }

    /// How many tokens the state has read.
    pub(crate) fn position(&self) -> usize {
        self.live.position
    }

    /// The tokens behind those that the state has read, up to `position`.
    pub(crate) fn unread(&self, position: usize) -> Vec<u32> {
        let tokens = self.tokens.get(self.live.position..position);
        tokens.unwrap_or_default().to_vec()
    }

    /// Bytes of the states, snapshots included; those that other sequences share, too.
    pub(crate) fn byte_len(&self) -> usize {
        let of = |layer: &Arc<LayerMemory>| 4 * (layer.state.len() + layer.tail.len());
        let mut seen = Vec::new();
        let mut bytes = 0;
        for snapshot in self.snapshots.iter().chain([&self.live]) {
            for layer in &snapshot.layers {
                let place = Arc::as_ptr(layer);
                if !seen.contains(&place) {
                    seen.push(place);
                    bytes += of(layer);
                }
            }
        }
        bytes
    }

    /// Makes room for the states.
    ///
    /// # Errors
    /// `limit-exceeded` if the system has not so much memory.
    pub(crate) fn reserve(&mut self) -> Result<(), FormatError> {
        if self.live.layers.len() == self.shapes.len() {
            return Ok(());
        }
        let zeros = |len: usize| {
            let mut values = Vec::new();
            let message = format!(
                "expected {} bytes of memory for a recurrent state, found less",
                4 * len
            );
            let none = |_| FormatError::new(ErrorCode::LimitExceeded, message);
            values.try_reserve_exact(len).map_err(none)?;
            values.resize(len, 0.0);
            Ok(values)
        };
        let layer = |shape: &GatedDeltaNet| {
            Ok(Arc::new(LayerMemory {
                state: zeros(shape.value_width() * shape.key_dim)?,
                tail: zeros((shape.conv_kernel - 1) * shape.channels())?,
            }))
        };
        self.live.layers = self
            .shapes
            .iter()
            .map(layer)
            .collect::<Result<_, FormatError>>()?;
        Ok(())
    }

    /// Takes the tokens of a step down, which begins at `position`, and keeps a snapshot where texts are likely to go
    /// back to: in front of and behind several tokens.
    pub(crate) fn begin_step(&mut self, position: usize, tokens: &[u32]) {
        if !self.is_used() || tokens.is_empty() {
            return;
        }
        if tokens.len() > 1 || self.last_step > 1 {
            self.keep();
        }
        self.last_step = tokens.len();
        self.tokens.truncate(position);
        self.tokens.extend_from_slice(tokens);
    }

    /// The memory of a layer, to change.
    pub(crate) fn memory_mut(&mut self, layer: usize) -> &mut LayerMemory {
        self.is_written = true;
        Arc::make_mut(&mut self.live.layers[layer])
    }

    /// All layers have read so many tokens more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        if !self.is_used() {
            return;
        }
        self.live.position += tokens;
        self.is_written = false;
        let last = self
            .snapshots
            .last()
            .map_or(0, |snapshot| snapshot.position);
        if self.live.position - last >= SNAPSHOT_TOKENS {
            self.keep();
        }
    }

    /// Goes back: afterwards the state has read `position` tokens at most, and `unread` are those that it lacks.
    pub(crate) fn truncate(&mut self, position: usize) {
        self.snapshots
            .retain(|snapshot| snapshot.position <= position);
        if self.is_written || self.live.position > position {
            self.live = self.snapshots.last().cloned().unwrap_or_default();
            self.is_written = false;
        }
        if position < self.tokens.len() {
            self.tokens.truncate(position);
            self.last_step = 0;
        }
    }

    /// Another one of the first `position` tokens. The two share memory until one of them changes it.
    pub(crate) fn fork(&self, position: usize) -> Self {
        let mut fork = Self {
            shapes: self.shapes.clone(),
            live: self.live.clone(),
            is_written: self.is_written,
            snapshots: self.snapshots.clone(),
            tokens: self.tokens.clone(),
            last_step: self.last_step,
        };
        fork.truncate(position);
        fork
    }

    /// Keeps the state as it is. Of too many snapshots that goes without which the longest way back is shortest.
    fn keep(&mut self) {
        let last = self
            .snapshots
            .last()
            .map_or(0, |snapshot| snapshot.position);
        if self.is_written || self.live.position <= last {
            return;
        }
        self.snapshots.push(self.live.clone());
        if self.snapshots.len() > MOST_SNAPSHOTS {
            let place = |n: usize| self.snapshots[n].position;
            let gap = |n: &usize| place(n + 1) - n.checked_sub(1).map_or(0, place);
            let least = (0..self.snapshots.len() - 1).min_by_key(gap);
            self.snapshots.remove(least.unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recurrent() -> Recurrent {
        let shape = GatedDeltaNet {
            hidden_size: 8,
            key_heads: 1,
            value_heads: 2,
            key_dim: 2,
            value_dim: 3,
            conv_kernel: 4,
        };
        Recurrent::new(vec![shape])
    }

    /// Reads tokens as a step does: the state counts them.
    fn read(recurrent: &mut Recurrent, tokens: &[u32]) {
        let position = recurrent.position();
        recurrent.reserve().unwrap();
        recurrent.begin_step(position, tokens);
        recurrent.memory_mut(0).state[0] += tokens.len() as f32;
        recurrent.advance(tokens.len());
    }

    #[test]
    fn going_back_takes_the_last_snapshot_before() {
        let mut text = recurrent();
        read(&mut text, &[1, 2, 3]);
        read(&mut text, &[4]); // keeps the state of 3 tokens
        read(&mut text, &[5]);
        text.truncate(4);
        assert_eq!((text.position(), text.unread(4)), (3, vec![4]));
        assert_eq!(text.live.layers[0].state[0], 3.0);
        text.truncate(2);
        assert_eq!((text.position(), text.unread(2)), (0, vec![1, 2]));
        text.reserve().unwrap();
        assert_eq!(text.live.layers[0].state, [0.0; 12]);
    }

    #[test]
    fn a_step_that_broke_off_leaves_no_trace() {
        let mut text = recurrent();
        read(&mut text, &[1, 2]);
        text.begin_step(2, &[3, 4]); // keeps the state of 2 tokens
        text.memory_mut(0).state[0] = f32::NAN;
        text.truncate(2);
        assert_eq!((text.position(), text.unread(2)), (2, Vec::new()));
        assert_eq!(text.live.layers[0].state[0], 2.0);
    }

    #[test]
    fn forks_share_memory_until_one_writes() {
        let mut text = recurrent();
        read(&mut text, &[1, 2]);
        let mut fork = text.fork(2);
        assert!(Arc::ptr_eq(&text.live.layers[0], &fork.live.layers[0]));
        read(&mut fork, &[7]);
        assert!(!Arc::ptr_eq(&text.live.layers[0], &fork.live.layers[0]));
        assert_eq!(text.live.layers[0].state[0], 2.0);
        assert_eq!(fork.live.layers[0].state[0], 3.0);
        assert_eq!(text.fork(1).unread(1), [1]);
    }

    #[test]
    fn snapshots_are_few_and_spread() {
        let mut text = recurrent();
        for _ in 0..20 {
            read(&mut text, &[1; SNAPSHOT_TOKENS]);
        }
        assert!(text.snapshots.len() <= MOST_SNAPSHOTS);
        let positions: Vec<usize> = text.snapshots.iter().map(|s| s.position).collect();
        assert!(positions.is_sorted(), "{positions:?}");
        assert_eq!(positions.last(), Some(&(20 * SNAPSHOT_TOKENS)));
    }
}
