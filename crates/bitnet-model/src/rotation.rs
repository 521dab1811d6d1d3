//! Rotations of the inputs of linears, of embedding rows and of what the output head reads.
//!
//! Invariant: an input is rotated once, as soon as it is made, for all linears that read it (`formats/numerics.md`,
//! "Rotated weights"): [`Rotation::new`] refuses networks in which these do not agree.

use crate::threads;
use bitnet_checkpoint::{Config, LayerSlot, Slot, TiledHeads};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A rotation as kernels read it.
#[derive(Debug)]
pub(crate) struct Rotation {
    declared: Arc<bitnet_checkpoint::Rotation>,
    signs: BTreeMap<usize, Vec<f32>>, // by width; +1 and -1
    head: bool,
    tiled: Option<TiledHeads>, // the order of value heads in which inputs of `out_proj` are rotated
}

/// The rotation of rows of one width.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn<'a> {
    block: usize,
    signs: &'a [f32], // (width,), or none, which count as ones
    order: Option<TiledHeads>,
}

impl Turn<'_> {
    /// `x = H (s * x)` of one row.
    pub(crate) fn apply(self, backend: Backend, x: &mut [f32]) {
        if let Some(order) = self.order {
            let grouped = x.to_vec(); // (width,)
            for (at, x) in x.iter_mut().enumerate() {
                *x = grouped[order.grouped(at)];
            }
        }
        backend.hadamard(x, self.signs, self.block);
    }
}

impl Rotation {
    /// The rotation of a network, if there is one.
    ///
    /// # Errors
    /// `unsupported-config` where linears that read one input are not all rotated.
    pub(crate) fn new(config: &Config) -> Result<Option<Arc<Self>>, FormatError> {
        let Some(declared) = config.rotation.clone() else {
            return Ok(None);
        };
        config.check_rotated_inputs()?;
        let wide = |signs: &Vec<i8>| signs.iter().map(|sign| f32::from(*sign)).collect();
        let signs = declared.signs.iter();
        Ok(Some(Arc::new(Self {
            signs: signs.map(|(width, signs)| (*width, wide(signs))).collect(),
            head: declared.turns(match config.tie_word_embeddings {
                true => Slot::TokenEmbeddings,
                false => Slot::OutputHead,
            }),
            tiled: match (&config.hybrid, declared.tiled_values) {
                (Some(hybrid), true) => TiledHeads::of(&hybrid.delta, 0, hybrid.delta.value_dim),
                _ => None,
            },
            declared,
        })))
    }

    fn turn(&self, width: usize) -> Turn<'_> {
        Turn {
            block: self.declared.block_size,
            signs: self.signs.get(&width).map_or(&[], Vec::as_slice),
            order: None,
        }
    }

    /// What is done to the input of a linear of a layer, of this width.
    pub(crate) fn of_input(&self, slot: Slot, width: usize) -> Option<Turn<'_>> {
        let is_core = matches!(slot, Slot::Layer(_, LayerSlot::OutProj));
        let turn = || Turn {
            order: self.tiled.filter(|_| is_core),
            ..self.turn(width)
        };
        self.declared.folded.contains(&slot).then(turn)
    }

    /// Turns a stored row of the embeddings back.
    pub(crate) fn turn_back(&self, backend: Backend, row: &mut [f32]) {
        if self.declared.embeddings {
            let Turn { block, signs, .. } = self.turn(row.len());
            backend.hadamard_inverse(row, signs, block);
        }
    }

    /// Rotates final hidden states, `(tokens, hidden)`, for the output head.
    pub(crate) fn turn_for_head(&self, backend: Backend, h: &mut [f32], hidden: usize) {
        if self.head {
            let turn = self.turn(hidden);
            threads::for_tokens(h, hidden, |_, h| {
                h.chunks_exact_mut(hidden)
                    .for_each(|h| turn.apply(backend, h));
            });
        }
    }
}
