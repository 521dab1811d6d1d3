//! A model in memory, ready to compute: what checks see of the runtime.
//!
//! Invariant: tiles and pages of the file stay where they are, so a loaded model takes no second copy of the weights
//! that the file already holds.

use super::side::Input;
use crate::checks::gates::{Answer, Chosen};
use bitnet_checkpoint::{Pooling, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Logits, Model, Routing, TilesIn};

/// The runtime of one model on one kernel.
#[derive(Debug)]
pub struct Runtime(pub(super) Model);

impl Runtime {
    pub(super) fn load(input: &Input, backend: Backend) -> Result<Self, FormatError> {
        let options = LoadOptions {
            backend,
            tiles: TilesIn::FileOrMemory,
            threads: rayon::current_num_threads(),
            ..LoadOptions::default()
        };
        Ok(Self(Model::load(&input.checkpoint, &options)?))
    }

    /// One ternary linear: `x` is `(tokens, cols)`.
    pub(super) fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Answer {
        self.0.linear(slot, x, tokens)
    }

    /// One layer on the residual stream of positions `0..tokens`.
    pub(super) fn layer(&self, layer: usize, hidden: &[f32], tokens: usize) -> Answer {
        self.0.layer(layer, hidden, tokens)
    }

    /// The experts of every token of a text, layer by layer.
    pub(super) fn routing(&self, tokens: &[u32]) -> Result<Vec<Vec<Chosen>>, FormatError> {
        let of_row = |routing: &Routing, row| {
            let choices = routing.row(row).iter();
            choices.map(|c| (c.expert, c.weight)).collect::<Chosen>()
        };
        let of_layer = |routing: Option<Routing>| {
            routing.map_or_else(Vec::new, |routing| {
                (0..tokens.len()).map(|row| of_row(&routing, row)).collect()
            })
        };
        Ok(self.0.routing(tokens)?.into_iter().map(of_layer).collect())
    }

    /// The vector of a text, by the model's own pooling.
    pub(super) fn embed(&self, tokens: &[u32]) -> Answer {
        let pooling = self.0.config().pooling.unwrap_or(Pooling::Last);
        self.0.embed(tokens, pooling)
    }

    /// Logits of every position.
    pub(super) fn logits(&self, tokens: &[u32]) -> Answer {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let mut session = self.0.session(tokens.len())?;
        self.0.forward(&mut session, tokens, Logits::All)
    }
}
