//! Mixers: the part of a block that looks at other positions, one file each.
//!
//! Invariant: a mixer reads the residual stream and leaves in `y` what is to be added to it. Its linears see all
//! rows of a round; only what depends on a sequence's past goes sequence by sequence.

pub(crate) mod attention;

use crate::load::LayerTensors;
use crate::round::Round;
use crate::stream::Stream;
use attention::{Attention, AttentionBuffers};
use bitnet_checkpoint::{self as config, LayerSlot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;

/// Scratch of mixers, one of each kind.
#[derive(Debug, Default)]
pub(crate) struct MixerBuffers {
    attention: AttentionBuffers,
}

/// The mixer of one block.
#[derive(Debug)]
pub(crate) enum Mixer {
    /// Softmax attention to keys and values.
    Attention(Attention),
}

impl Mixer {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Mixer,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        match shape {
            config::Mixer::Attention(shape) => {
                Attention::load(layer, shape, tensors).map(Self::Attention)
            }
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
        }
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match self {
            Self::Attention(attention) => attention.linear(slot),
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> Vec<&PackedMatrix> {
        match self {
            Self::Attention(attention) => attention.linears().to_vec(),
        }
    }
}
