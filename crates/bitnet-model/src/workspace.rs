//! Scratch of a step.
//!
//! Invariant: nothing in it outlives a step but its memory: what a step computes does not depend on the steps
//! before it. It grows with the tokens of a round, up to its limit, and shrinks when they get far fewer.

use crate::mixer::MixerBuffers;
use crate::mlp::MlpBuffers;
use crate::profile::{Clock, Profile};
use crate::rotation::Rotation;
use crate::stream::Stream;
use bitnet_checkpoint::Config;
use bitnet_kernels::Backend;
use std::sync::Arc;

/// Memory in which a model computes. Reuse it: one serves any sequences of its model, one step after the other.
#[derive(Debug)]
pub struct Workspace {
    pub(crate) model: u64,
    pub(crate) most_rows: usize,
    pub(crate) stream: Stream,
    pub(crate) mixer: MixerBuffers,
    pub(crate) mlp: MlpBuffers,
    pub(crate) h: Vec<f32>, // (rows whose logits are wanted, hidden): normed
    pub(crate) clock: Clock,
}

impl Workspace {
    /// For model number `model`, and rounds of `most_rows` tokens at most.
    pub(crate) fn new(
        model: u64,
        backend: Backend,
        (config, rotation): (&Config, Option<Arc<Rotation>>),
        most_rows: usize,
    ) -> Self {
        Self {
            model,
            most_rows: most_rows.max(1),
            stream: Stream::new(backend, config, rotation),
            mixer: MixerBuffers::default(),
            mlp: MlpBuffers::default(),
            h: Vec::new(),
            clock: Clock::default(),
        }
    }

    /// Measures where the time of the following steps goes.
    pub fn begin_profile(&mut self) {
        self.clock.begin();
    }

    /// Where the time of the steps since [`begin_profile`](Self::begin_profile) went; stops measuring.
    pub fn end_profile(&mut self) -> Profile {
        self.clock.end()
    }
}
