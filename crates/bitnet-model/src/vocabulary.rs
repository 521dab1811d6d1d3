//! Rows by token: the embeddings, and the output head, dense or ternary.
//!
//! Invariant: a row is its stored numbers, exactly. A ternary head is a ternary linear whose input is
//! never quantised, whatever the layers do (`formats/numerics.md`), and packed or not it gives the
//! same bits, because tables of numbers that are trits times scales count as ternary, too. What a rotated table
//! multiplies was rotated before.

use crate::bit_linear::LinearInput;
use crate::dense_head::{DenseMatrix, Screen, TopLogits};
use crate::load::{LoadOptions, linear};
use bitnet_checkpoint::ActivationQuantization;
use bitnet_checkpoint::Checkpoint;
use bitnet_checkpoint::Slot;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{Backend, PackedMatrix};
use std::sync::Arc;

/// A table with one row per token.
#[derive(Debug, Clone)]
pub(crate) enum Vocabulary {
    /// Numbers in the mapped file.
    Dense(DenseMatrix),
    /// Trits in memory, or tiles in the mapped file.
    Ternary(Slot, Arc<PackedMatrix>),
}

impl Vocabulary {
    /// The table in a slot.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
        slot: Slot,
    ) -> Result<Self, FormatError> {
        if !checkpoint.is_ternary(slot) {
            return DenseMatrix::open(checkpoint, slot).map(Self::Dense);
        }
        let matrix = linear(checkpoint, options, slot)?;
        if !matrix.is_mapped() {
            checkpoint.release(slot);
        }
        Ok(Self::Ternary(slot, Arc::new(matrix)))
    }

    /// Rows of the table.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows(),
            Self::Ternary(_, matrix) => matrix.rows(),
        }
    }

    /// Bytes of the table.
    pub(crate) fn byte_len(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.byte_len(),
            Self::Ternary(_, matrix) => matrix.byte_len(),
        }
    }

    /// What a product reads in the kernel's own layout, if the table is ternary.
    pub(crate) fn packed_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Dense(_) => None,
            Self::Ternary(_, matrix) => Some(matrix.packed_bytes()),
        }
    }

    /// Reads one row by itself into `out`, `(cols,)`.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        match self {
            Self::Dense(matrix) => {
                matrix.row(row, out)?;
                matrix.count_touched();
            }
            Self::Ternary(_, matrix) => matrix.row(row, out),
        }
        Ok(())
    }

    /// A screen of a dense table. A ternary one has fewer bits than its screen would have.
    pub(crate) fn screen(&self, backend: Backend) -> Result<Option<Screen>, FormatError> {
        match self {
            Self::Dense(matrix) => matrix.screen(backend),
            Self::Ternary(..) => Ok(None),
        }
    }

    /// As [`DenseMatrix::top_k`]; `None` for a ternary table.
    pub(crate) fn top_k(
        &self,
        backend: Backend,
        screen: &Screen,
        x: &[f32],
        ks: &[usize],
    ) -> Result<Vec<Option<TopLogits>>, FormatError> {
        match self {
            Self::Dense(matrix) => matrix.top_k(backend, screen, x, ks),
            Self::Ternary(..) => Ok(vec![None; ks.len()]),
        }
    }

    /// `out[t][r] = row r times x[t]`; `x` is `(tokens, cols)`, `out` is `(tokens, rows)`.
    pub(crate) fn multiply(
        &self,
        backend: Backend,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), FormatError> {
        let (slot, matrix) = match self {
            Self::Dense(matrix) => return matrix.multiply(backend, x, out),
            Self::Ternary(slot, matrix) => (*slot, matrix),
        };
        let cols = matrix.cols();
        let mut input = LinearInput::new(backend, ActivationQuantization::None, None);
        let mut x = x.to_vec();
        input.prepare(slot, cols, (&mut x, cols), |_, x, to| to.copy_from_slice(x))?;
        input.multiply([(matrix, out)]);
        match out.iter().position(|logit| !logit.is_finite()) {
            None => Ok(()),
            Some(at) => Err(FormatError::new(
                ErrorCode::NonFinite,
                format!(
                    "the logit of row {} is beyond f32",
                    at % matrix.rows().max(1)
                ),
            )
            .in_tensor(&slot.to_string())),
        }
    }
}
