//! MLPs: the part of a block that looks at each position by itself, one file each.
//!
//! Invariant: an MLP adds `y`, which the mixer left, to the residual stream, reads the stream, and leaves in `y`
//! what is to be added to it.

pub(crate) mod experts;
pub(crate) mod gated;

use crate::load::LayerTensors;
use crate::round::Round;
use crate::stream::Stream;
use bitnet_checkpoint::{self as config, LayerSlot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;
use experts::{Experts, ExpertsBuffers, Routing};
use gated::{Gated, GatedBuffers};

/// Scratch of MLPs, one of each kind.
#[derive(Debug, Default)]
pub(crate) struct MlpBuffers {
    gated: GatedBuffers,
    experts: ExpertsBuffers,
}

impl MlpBuffers {
    /// What the last layer of experts that ran chose.
    pub(crate) fn routing(&self) -> &Routing {
        self.experts.routing()
    }
}

/// The MLP of one block.
#[derive(Debug)]
pub(crate) enum Mlp {
    /// `down(act(gate(x)) * up(x))`.
    Gated(Box<Gated>),
    /// Some of many gated MLPs, chosen for each row.
    Experts(Experts),
}

impl Mlp {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Mlp,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        match shape {
            config::Mlp::Gated(shape) => Gated::load(layer, shape, tensors)
                .map(Box::new)
                .map(Self::Gated),
            config::Mlp::Experts(shape) => Experts::load(layer, shape, tensors).map(Self::Experts),
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
            Self::Experts(experts) => experts.forward(round, stream, &mut buffers.experts),
        }
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match self {
            Self::Gated(gated) => gated.linear(slot),
            Self::Experts(experts) => experts.linear(slot),
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Gated(gated) => gated.linears().to_vec(),
            Self::Experts(experts) => experts.linears(),
        }
    }

    /// Bytes of weights that one token does not read.
    pub(crate) fn idle_bytes(&self) -> usize {
        match self {
            Self::Gated(_) => 0,
            Self::Experts(experts) => experts.idle_bytes(),
        }
    }
}
