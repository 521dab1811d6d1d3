//! Dense rows that stay in the mapped file: token embeddings and the output head.
//!
//! Invariant: nothing is copied or narrowed; a row is widened to f32 exactly when it is used, and a
//! logit is the canonical dot of a widened row and the final hidden state. Threads split rows.

use crate::checkpoint::{Checkpoint, DenseTensor};
use crate::slot::Slot;
use crate::threads;
use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType, TensorInfo, dense_to_f32};
use bitnet_kernels::{Backend, DenseType, Output};

/// Tokens whose hidden states pass over the rows together: they stay in L2.
const HEAD_TOKENS: usize = 32;

/// Rows are handed to threads in multiples of this.
const HEAD_ROWS: usize = 64;

/// A dense matrix of a checkpoint, by its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct DenseMatrix {
    slot: Slot,
    info: TensorInfo,
    rows: usize,
    cols: usize,
}

impl DenseMatrix {
    /// The dense matrix in a slot; its type and values are checked here, once.
    pub(crate) fn open(checkpoint: &Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        let DenseTensor {
            shape,
            info,
            encoding,
            bytes,
        } = checkpoint.dense(slot)?;
        let expected = checkpoint.config.shape(slot);
        let (&[rows, cols], true) = (shape, shape == expected) else {
            return Err(FormatError::new(
                ErrorCode::WrongShape,
                format!("expected shape {expected:?}, found {shape:?}"),
            )
            .in_tensor(&info.name));
        };
        // one row on trial: every row has the same type and length
        let row_bytes = bytes.len() / rows.max(1);
        dense_to_f32(encoding, &bytes[..row_bytes], &mut vec![0.0; cols])
            .map_err(|error| error.in_tensor(&info.name))?;
        Ok(Self {
            slot,
            info: info.clone(),
            rows,
            cols,
        })
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of the matrix.
    pub(crate) fn byte_len(&self) -> usize {
        self.info.len as usize
    }

    /// Widens one row into `out`, `(cols,)`.
    pub(crate) fn row(
        &self,
        checkpoint: &Checkpoint,
        row: usize,
        out: &mut [f32],
    ) -> Result<(), FormatError> {
        let bytes = checkpoint.file.bytes(&self.info);
        let row_bytes = bytes.len() / self.rows;
        let bytes = bytes
            .get(row * row_bytes..(row + 1) * row_bytes)
            .unwrap_or(&[]);
        dense_to_f32(self.info.encoding, bytes, out)
            .map_err(|error| error.in_tensor(&self.info.name))
    }

    /// `out[t][r] = dot(row r, x[t])`; `x` is `(tokens, cols)`, `out` is `(tokens, rows)`.
    pub(crate) fn multiply(
        &self,
        checkpoint: &Checkpoint,
        backend: Backend,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), FormatError> {
        crate::bit_linear::finite(self.slot, x, self.cols, 0)?;
        let tiles = x
            .chunks(HEAD_TOKENS * self.cols)
            .zip(out.chunks_mut(HEAD_TOKENS * self.rows));
        for (x, out) in tiles {
            let pieces = threads::pieces(x.len() * self.rows);
            let share = self.rows.div_ceil(4 * pieces).next_multiple_of(HEAD_ROWS);
            let mut rest = Output::new(out, x.len() / self.cols, self.rows);
            let mut parts = Vec::with_capacity(4 * pieces);
            while rest.rows().len() > share {
                let at = rest.rows().start + share;
                let (part, others) = rest.split_at(at);
                parts.push(part);
                rest = others;
            }
            parts.push(rest);
            threads::try_for_each(pieces, parts, |part| {
                self.part(checkpoint, backend, x, part)
            })?;
        }
        Ok(())
    }

    /// The rows that `out` owns.
    fn part(
        &self,
        checkpoint: &Checkpoint,
        backend: Backend,
        x: &[f32], // (tokens, cols)
        mut out: Output<'_>,
    ) -> Result<(), FormatError> {
        let dtype = match self.info.encoding {
            Encoding::Plain(PlainType::F32) => DenseType::F32,
            Encoding::Plain(PlainType::F16) => DenseType::F16,
            Encoding::Plain(PlainType::Bf16) => DenseType::Bf16,
            _ => return self.part_widened(checkpoint, backend, x, out),
        };
        backend.dense_rows(
            dtype,
            checkpoint.file.bytes(&self.info),
            self.cols,
            x,
            &mut out,
        );
        Ok(())
    }

    /// The same for block quantisations, which the kernels do not read: widened row by row.
    fn part_widened(
        &self,
        checkpoint: &Checkpoint,
        backend: Backend,
        x: &[f32],
        mut out: Output<'_>,
    ) -> Result<(), FormatError> {
        let mut wide = vec![0.0; self.cols]; // (cols,)
        let rows = out.rows();
        for row in rows.clone() {
            self.row(checkpoint, row, &mut wide)?;
            for (token, x) in x.chunks_exact(self.cols).enumerate() {
                out.token_mut(token)[row - rows.start] = backend.dot(&wide, x);
            }
        }
        Ok(())
    }
}
