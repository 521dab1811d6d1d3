//! A text in progress: what a model remembers of its tokens.
//!
//! Invariant: what a sequence holds follows from its tokens and the model alone, not from the steps that read
//! them or from the other sequences in these steps. Memory that two sequences share is written by neither.

use crate::kv_cache::{KvCache, KvType, LayerCache};
use crate::recurrent::{LayerMemory, Recurrent};
use bitnet_checkpoint::{Config, Mixer};
use bitnet_formats::{ErrorCode, FormatError};
use std::ops::Range;

/// What one layer remembers of a sequence.
#[derive(Debug, Clone)]
pub(crate) enum LayerState {
    /// Keys and values: which layer of the sequence's cache.
    Attention(usize),
    /// A recurrent state: which of those of the sequence.
    Recurrent(usize),
}

/// One text in progress, of one model.
#[derive(Debug)]
pub struct Sequence {
    model: u64,
    context: usize,
    position: usize,
    kept: usize,             // positions whose keys and values are in the cache
    states: Vec<LayerState>, // (layers,)
    cache: KvCache,          // of all layers with attention
    recurrent: Recurrent,    // of all layers with a state
}

impl Sequence {
    /// An empty sequence for some layers of the network of model number `model`.
    pub(crate) fn new(
        model: u64,
        config: &Config,
        layers: Range<usize>,
        kv_type: KvType,
        context: usize,
    ) -> Self {
        let (mut attentions, mut recurrents) = (Vec::new(), Vec::new());
        let states = layers.map(|layer| match config.block(layer).mixer {
            Mixer::Attention(attention) => {
                attentions.push(attention);
                LayerState::Attention(attentions.len() - 1)
            }
            Mixer::GatedDeltaNet(delta) => {
                recurrents.push(delta);
                LayerState::Recurrent(recurrents.len() - 1)
            }
        });
        let states = states.collect();
        Self {
            model,
            context,
            position: 0,
            kept: 0,
            cache: KvCache::new(&attentions, kv_type),
            recurrent: Recurrent::new(recurrents),
            states,
        }
    }

    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Most tokens it can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Forgets all tokens from `position` on, if there are any. Their memory is kept for the next ones.
    ///
    /// A recurrent state goes back to a snapshot; the next step reads the tokens behind it again.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
        self.kept = self.kept.min(self.position);
        self.recurrent.truncate(self.position);
    }

    /// Goes back to the `position` in front of a step that broke off.
    pub(crate) fn roll_back(&mut self, position: usize) {
        self.position = position;
        self.kept = self.kept.min(position);
        self.recurrent.truncate(position);
    }

    /// Goes back to what the recurrent states have read, if they lack tokens; which tokens follow.
    pub(crate) fn rewind(&mut self) -> Vec<u32> {
        if !self.recurrent.is_used() || self.recurrent.position() >= self.position {
            return Vec::new();
        }
        let unread = self.recurrent.unread(self.position);
        self.position = self.recurrent.position();
        unread
    }

    /// A step is about to read these tokens.
    pub(crate) fn begin_step(&mut self, tokens: &[u32]) {
        self.recurrent.begin_step(self.position, tokens);
    }

    /// Bytes of recurrent states and of their snapshots.
    pub fn recurrent_byte_len(&self) -> usize {
        self.recurrent.byte_len()
    }

    /// Another sequence that begins with the first `position` tokens of this one. The two share the memory of these
    /// tokens; a block of 256 that is not full is copied when one of them appends to it.
    ///
    /// # Errors
    /// `context-exceeded` for a position that this sequence has not reached.
    pub fn fork(&self, position: usize) -> Result<Self, FormatError> {
        if position > self.position {
            return Err(FormatError::new(
                ErrorCode::ContextExceeded,
                format!(
                    "expected a position up to {}, where the sequence ends, found {position}",
                    self.position
                ),
            ));
        }
        Ok(Self {
            position,
            kept: self.kept.min(position),
            states: self.states.clone(),
            cache: self.cache.fork(position),
            recurrent: self.recurrent.fork(position),
            ..*self
        })
    }

    /// Keys and values.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// The number of the model that it belongs to.
    pub(crate) fn model(&self) -> u64 {
        self.model
    }

    /// Makes room for so many tokens more.
    ///
    /// # Errors
    /// `context-exceeded`; `limit-exceeded` if the system has not so much memory. The sequence is then as it was.
    pub(crate) fn reserve(&mut self, tokens: usize) -> Result<(), FormatError> {
        if self.context - self.position < tokens {
            return Err(FormatError::new(
                ErrorCode::ContextExceeded,
                format!(
                    "{tokens} tokens do not fit behind {} in a context of {}",
                    self.position, self.context
                ),
            ));
        }
        self.recurrent.reserve()?;
        self.cache.reserve(self.position..self.position + tokens)
    }

    /// So many tokens more were read.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.position += tokens;
        self.kept = self.kept.max(self.position);
        self.recurrent.advance(tokens);
    }

    /// What a layer with a recurrent state remembers, to change.
    pub(crate) fn memory_mut(&mut self, state: usize) -> &mut LayerMemory {
        match self.states[state] {
            LayerState::Recurrent(layer) => self.recurrent.memory_mut(layer),
            LayerState::Attention(_) => unreachable!("a layer without a recurrent state"),
        }
    }

    /// How many of the next positions are in the cache: those that are read again for a recurrent state.
    pub(crate) fn kept(&self) -> usize {
        self.kept.saturating_sub(self.position)
    }

    /// The cache, and which of its layers a layer with attention has.
    pub(crate) fn keys_and_values_mut(&mut self, state: usize) -> (&mut KvCache, usize) {
        let layer = self.attention(state);
        (&mut self.cache, layer)
    }

    /// Keys and values of a layer with attention.
    pub(crate) fn keys_and_values(&self, state: usize) -> LayerCache<'_> {
        self.cache.layer(self.attention(state))
    }

    /// Which layer of the cache a layer with attention has.
    fn attention(&self, state: usize) -> usize {
        match self.states[state] {
            LayerState::Attention(layer) => layer,
            LayerState::Recurrent(_) => unreachable!("a layer without keys and values"),
        }
    }
}
