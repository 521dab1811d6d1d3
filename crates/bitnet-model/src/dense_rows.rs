//! A small dense matrix in memory: rows times f32 activations.
//!
//! Invariant: numbers keep their stored type where kernels read it, and every product is the canonical dot
//! (`formats/numerics.md`).

use crate::threads;
use bitnet_checkpoint::{DenseMeaning, DenseTensor};
use bitnet_formats::{Encoding, FormatError, PlainType};
use bitnet_kernels::{Backend, DenseType, Output};

/// Fewest rows of a part that a thread takes.
const PART_ROWS: usize = 16;

/// A dense matrix, all numbers finite.
#[derive(Debug)]
pub(crate) struct DenseRows {
    dtype: DenseType,
    bytes: Vec<u8>, // (rows, cols) numbers
    rows: usize,
    cols: usize,
}

impl DenseRows {
    /// Copies a tensor of `rows` rows.
    pub(crate) fn new(
        tensor: &DenseTensor<'_>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, FormatError> {
        let dtype = match tensor.encoding {
            _ if tensor.meaning != DenseMeaning::AsStored => None,
            Encoding::Plain(PlainType::F32) => Some(DenseType::F32),
            Encoding::Plain(PlainType::F16) => Some(DenseType::F16),
            Encoding::Plain(PlainType::Bf16) => Some(DenseType::Bf16),
            _ => None,
        };
        let (dtype, bytes) = match dtype {
            Some(dtype) => (dtype, tensor.bytes.to_vec()),
            None => {
                let mut wide = vec![0.0; rows * cols];
                tensor.widen(&tensor.bytes, &mut wide)?;
                let bytes = wide.iter().flat_map(|v: &f32| v.to_le_bytes());
                (DenseType::F32, bytes.collect())
            }
        };
        Ok(Self {
            dtype,
            bytes,
            rows,
            cols,
        })
    }

    /// `out[t][r] = dot(row r, x[t])`; `x` is `(tokens, cols)`, `out` is `(tokens, rows)`.
    pub(crate) fn multiply(&self, backend: Backend, x: &[f32], out: &mut [f32]) {
        let tokens = x.len() / self.cols.max(1);
        let pieces = threads::pieces(x.len() * self.rows);
        let share = self.rows.div_ceil(pieces).next_multiple_of(PART_ROWS);
        let mut rest = Output::new(out, tokens, self.rows);
        let mut parts = Vec::with_capacity(pieces);
        while rest.rows().len() > share {
            let at = rest.rows().start + share;
            let (part, others) = rest.split_at(at);
            parts.push(part);
            rest = others;
        }
        parts.push(rest);
        threads::for_each(pieces, parts, |mut part| {
            backend.dense_rows(self.dtype, &self.bytes, self.cols, x, &mut part);
        });
    }
}
