//! MLPs of the oracle, one file each.
//!
//! Invariant: it returns what joins the residual stream, norm and factor included.

mod experts;
mod gated;

use super::pass::{LayerTensors, Pass};
use bitnet_checkpoint as config;
use bitnet_formats::FormatError;
use candle_core::Tensor;
use experts::Experts;
use gated::Gated;

/// The MLP of one layer.
pub(super) enum Mlp<'a> {
    Gated(Box<Gated>),
    Experts(Experts<'a>),
}

impl<'a> Mlp<'a> {
    pub(super) fn load(shape: config::Mlp, tensors: LayerTensors<'a>) -> Result<Self, FormatError> {
        match shape {
            config::Mlp::Gated(shape) => Gated::load(shape, tensors).map(Box::new).map(Self::Gated),
            config::Mlp::Experts(shape) => Experts::load(shape, tensors).map(Self::Experts),
        }
    }

    /// What it adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        match self {
            Self::Gated(gated) => gated.run(pass, x),
            Self::Experts(experts) => experts.run(pass, x),
        }
    }
}
