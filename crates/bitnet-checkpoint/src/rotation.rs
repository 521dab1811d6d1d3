//! Weights whose columns were rotated before they were made ternary (`formats/rotation.md`).
//!
//! Invariant: a rotation of a configuration names only matrices that the network has, each of a width that is whole
//! blocks and has its signs. Who multiplies with such a matrix rotates the input first.

use crate::slot::Slot;
use std::collections::{BTreeMap, BTreeSet};

/// All keys of a rotation begin so.
pub const ROTATION_KEYS: &str = "prism.hadamard.";

/// A rotation of the input features of some matrices: `w' = H (s * w)` row by row, `H` the normalized Walsh-Hadamard
/// transform of each block of features and `s` the signs of the width. Then `w' . H (s * x)` is `w . x`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// Features that are transformed together, a power of two.
    pub block_size: usize,
    /// Signs by width; no entry at all means that every sign is +1.
    pub signs: BTreeMap<usize, Vec<i8>>,
    /// Matrices that are stored rotated and multiply rotated inputs: linears of layers, an output head of its own.
    pub folded: BTreeSet<Slot>,
    /// Whether rows of the embeddings are stored rotated; a row is used as `s * (H z)`. A tied output head multiplies
    /// rotated inputs then.
    pub embeddings: bool,
    /// Whether the inputs of `out_proj` of a Gated DeltaNet are rotated with value heads tiled over the key heads, as
    /// GGUF keeps them; mostly they are in the order of the checkpoint.
    pub tiled_values: bool,
}

impl Rotation {
    /// The signs of a width; empty where every sign is +1.
    pub fn signs_of(&self, width: usize) -> &[i8] {
        self.signs.get(&width).map_or(&[], Vec::as_slice)
    }

    /// Whether the rows of a matrix are stored rotated.
    pub fn turns(&self, slot: Slot) -> bool {
        self.folded.contains(&slot) || self.embeddings && slot == Slot::TokenEmbeddings
    }

    /// How many matrices are stored rotated.
    pub fn matrices(&self) -> usize {
        self.folded.len().saturating_add(self.embeddings.into())
    }

    /// The row of the unrotated matrix that a stored row stands for, `s * (H z)`, in f64.
    pub fn unfold(&self, row: &mut [f64]) {
        let block = self.block_size.max(1);
        for block in row.chunks_exact_mut(block) {
            let mut stride = 1;
            while stride < block.len() {
                for pair in block.chunks_exact_mut(stride.saturating_mul(2)) {
                    let (low, high) = pair.split_at_mut(stride);
                    for (low, high) in low.iter_mut().zip(high) {
                        (*low, *high) = (*low + *high, *low - *high);
                    }
                }
                stride = stride.saturating_mul(2);
            }
        }
        let factor = 1.0 / (block as f64).sqrt();
        row.iter_mut().for_each(|x| *x *= factor);
        let signs = self.signs_of(row.len());
        for (x, sign) in row.iter_mut().zip(signs) {
            *x *= f64::from(*sign);
        }
    }
}

/// What to do about a rotation that is not whole.
pub(crate) const NOT_WHOLE: &str = "use the file as its author published it: programs that do not know the rotation damage it when they rewrite it";
