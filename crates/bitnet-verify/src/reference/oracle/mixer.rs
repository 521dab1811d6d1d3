//! Mixers of the oracle, one file each.
//!
//! Invariant: it returns what joins the residual stream, norm and factor included.

mod attention;
mod gated_delta_net;

use super::pass::{LayerTensors, Pass};
use attention::Attention;
use bitnet_checkpoint as config;
use bitnet_formats::FormatError;
use candle_core::Tensor;
use gated_delta_net::GatedDeltaNet;

/// The mixer of one layer.
pub(super) enum Mixer {
    Attention(Attention),
    GatedDeltaNet(GatedDeltaNet),
}

impl Mixer {
    pub(super) fn load(
        shape: config::Mixer,
        tensors: LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        match shape {
            config::Mixer::Attention(shape) => Attention::load(shape, tensors).map(Self::Attention),
            config::Mixer::GatedDeltaNet(shape) => {
                GatedDeltaNet::load(shape, tensors).map(Self::GatedDeltaNet)
            }
        }
    }

    /// What it adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        match self {
            Self::Attention(attention) => attention.run(pass, x),
            Self::GatedDeltaNet(delta) => delta.run(pass, x),
        }
    }
}
