//! MLPs of the oracle, one file each.
//!
//! Invariant: it returns what joins the residual stream, norm and factor included.

mod gated;

use super::pass::{LayerTensors, Pass};
use bitnet_checkpoint as config;
use bitnet_formats::FormatError;
use candle_core::Tensor;
use gated::Gated;

/// The MLP of one layer.
pub(super) enum Mlp {
    Gated(Gated),
}

impl Mlp {
    pub(super) fn load(shape: config::Mlp, tensors: LayerTensors<'_>) -> Result<Self, FormatError> {
        match shape {
            config::Mlp::Gated(shape) => Gated::load(shape, tensors).map(Self::Gated),
        }
    }

    /// What it adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        match self {
            Self::Gated(gated) => gated.run(pass, x),
        }
    }
}
