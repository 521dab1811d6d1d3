//! The weights of a network, block by block.
//!
//! Invariant: they own their bytes, or share those of a file that they keep open, and which tensors there are
//! follows from the configuration. Embeddings and head stay in the mapped file.

use crate::load::{LayerTensors, LoadOptions, gain};
use crate::mixer::{Mixer, MixerBuffers};
use crate::mlp::{Mlp, MlpBuffers};
use crate::profile::Part;
use crate::round::Round;
use crate::stream::Stream;
use crate::vocabulary::Vocabulary;
use bitnet_checkpoint::{Checkpoint, LayerSlot, Slot};
use bitnet_formats::{FormatError, Source};
use bitnet_kernels::PackedMatrix;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Everything the forward pass multiplies with.
#[derive(Debug)]
pub(crate) struct Weights {
    pub embeddings: Vocabulary, // (vocab, hidden)
    pub layers: Vec<Block>,
    pub output_norm: Vec<f32>,   // (hidden,)
    pub output_head: Vocabulary, // (vocab, hidden), the embeddings when tied
    files: Vec<Arc<dyn Source>>, // some weights may be views of these
}

/// One decoder layer.
#[derive(Debug)]
pub(crate) struct Block {
    mixer: Mixer,
    mlp: Mlp,
}

impl Block {
    /// The layer on `x` of a round, `(rows, hidden)`; `state` is the number of its state in the sequences.
    pub(crate) fn forward(
        &self,
        state: usize,
        round: &mut Round<'_>,
        stream: &mut Stream,
        mixer: &mut MixerBuffers,
        mlp: &mut MlpBuffers,
    ) -> Result<(), FormatError> {
        self.mixer.forward(state, round, stream, mixer)?;
        self.mlp.forward(round, stream, mlp)?;
        round.rows.add(&stream.y, &mut stream.x);
        round.clock.lap(Part::Elementwise);
        Ok(())
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        self.mixer.linear(slot).or_else(|| self.mlp.linear(slot))
    }

    /// Bytes of weights that one token does not read.
    pub(crate) fn idle_bytes(&self) -> usize {
        self.mlp.idle_bytes()
    }

    /// The bias of a linear, if it has one.
    pub(crate) fn bias(&self, slot: LayerSlot) -> Option<&[f32]> {
        self.mixer.bias(slot)
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> impl Iterator<Item = &PackedMatrix> {
        self.mixer.linears().into_iter().chain(self.mlp.linears())
    }
}

impl Weights {
    /// Loads every slot, in the order of the forward pass.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
    ) -> Result<Self, FormatError> {
        let config = &checkpoint.config;
        let total = config.slots().len();
        let done = AtomicUsize::new(0);
        let tick = || {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(progress) = options.progress {
                progress(done, total);
            }
        };
        let embeddings = Vocabulary::open(checkpoint, options, Slot::TokenEmbeddings)?;
        tick();
        let mut tensors = LayerTensors::read(checkpoint, options, &tick)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for (layer, block) in config.blocks().enumerate() {
            layers.push(Block {
                mixer: Mixer::load(layer, block.mixer, &mut tensors)?,
                mlp: Mlp::load(layer, block.mlp, &mut tensors)?,
            });
        }
        let output_norm = gain(checkpoint, Slot::OutputNorm)?;
        tick();
        let output_head = if config.tie_word_embeddings {
            embeddings.clone()
        } else {
            let head = Vocabulary::open(checkpoint, options, Slot::OutputHead)?;
            tick();
            head
        };
        Ok(Self {
            embeddings,
            layers,
            output_norm,
            output_head,
            files: checkpoint.file.parts.clone(),
        })
    }

    /// Whether the bytes of the weights are still those that were loaded.
    ///
    /// # Errors
    /// `input-changed`.
    pub(crate) fn intact(&self) -> Result<(), FormatError> {
        self.files.iter().try_for_each(|file| file.intact())
    }
}
