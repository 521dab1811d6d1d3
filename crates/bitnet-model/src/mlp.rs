//! MLPs: the part of a block that looks at each position by itself, one file each.
//!
//! Invariant: an MLP adds `y`, which the mixer left, to the residual stream, reads the stream, and leaves in `y`
//! what is to be added to it.

pub(crate) mod gated;

use crate::load::LayerTensors;
use crate::round::Round;
use crate::stream::Stream;
use bitnet_checkpoint::{self as config, LayerSlot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;
use gated::{Gated, GatedBuffers};

/// Scratch of MLPs, one of each kind.
#[derive(Debug, Default)]
pub(crate) struct MlpBuffers {
    gated: GatedBuffers,
}

/// The MLP of one block.
#[derive(Debug)]
pub(crate) enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated(Gated),
}

impl Mlp {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Mlp,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        match shape {
            config::Mlp::Gated(shape) => Gated::load(layer, shape, tensors).map(Self::Gated),
        }
    }

    /// `x += y`, then `y` = what the MLP adds to `x`.
    pub(crate) fn forward(
        &self,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut MlpBuffers,
    ) -> Result<(), FormatError> {
        match self {
            Self::Gated(gated) => gated.forward(round, stream, &mut buffers.gated),
        }
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match self {
            Self::Gated(gated) => gated.linear(slot),
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Gated(gated) => gated.linears().to_vec(),
        }
    }
}
