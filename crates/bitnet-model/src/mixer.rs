//! Mixers: the part of a block that looks at other positions, one file each.
//!
//! Invariant: a mixer reads the residual stream and leaves in `y` what is to be added to it. Its linears see all
//! rows of a round; only what depends on a sequence's past goes sequence by sequence.

pub(crate) mod attention;
pub(crate) mod gated_delta_net;

use crate::load::LayerTensors;
use crate::round::Round;
use crate::stream::Stream;
use attention::{Attention, AttentionBuffers};
use bitnet_checkpoint::{self as config, LayerSlot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;
use gated_delta_net::{DeltaBuffers, GatedDeltaNet};

/// Scratch of mixers, one of each kind.
#[derive(Debug, Default)]
pub(crate) struct MixerBuffers {
    attention: AttentionBuffers,
    delta: DeltaBuffers,
}

/// The mixer of one block.
#[derive(Debug)]
pub(crate) enum Mixer {
    /// Softmax attention to keys and values.
    Attention(Box<Attention>),
    /// A recurrent state.
    GatedDeltaNet(Box<GatedDeltaNet>),
}

impl Mixer {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Mixer,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        match shape {
            config::Mixer::Attention(shape) => Attention::load(layer, shape, tensors)
                .map(Box::new)
                .map(Self::Attention),
            config::Mixer::GatedDeltaNet(shape) => GatedDeltaNet::load(layer, shape, tensors)
                .map(Box::new)
                .map(Self::GatedDeltaNet),
        }
    }

    /// `y` = what the mixer adds to `x`; `state` is the number of the layer's state in the sequences.
    pub(crate) fn forward(
        &self,
        state: usize,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut MixerBuffers,
    ) -> Result<(), FormatError> {
        match self {
            Self::Attention(attention) => {
                attention.forward(state, round, stream, &mut buffers.attention)
            }
            Self::GatedDeltaNet(delta) => delta.forward(state, round, stream, &mut buffers.delta),
        }
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match self {
            Self::Attention(attention) => attention.linear(slot),
            Self::GatedDeltaNet(delta) => delta.linear(slot),
        }
    }

    /// The bias of a linear, if it has one.
    pub(crate) fn bias(&self, slot: LayerSlot) -> Option<&[f32]> {
        match self {
            Self::Attention(attention) => attention.bias(slot),
            Self::GatedDeltaNet(_) => None,
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Attention(attention) => attention.linears().to_vec(),
            Self::GatedDeltaNet(delta) => delta.linears().to_vec(),
        }
    }
}
