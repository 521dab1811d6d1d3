//! Dense rows that stay in the mapped file: token embeddings and the output head.
//!
//! Invariant: nothing is copied or narrowed; a row is widened to f32 exactly when it is used, and a
//! logit is the canonical dot of a widened row and the final hidden state. Threads split rows. Opening
//! reads no row: a NaN or an infinity is found, and named, in the row that is used or in the logit that
//! it makes.

use crate::checkpoint::{Checkpoint, DenseTensor};
use crate::slot::Slot;
use crate::threads;
use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType, TensorInfo, dense_to_f32};
use bitnet_kernels::{Backend, DenseType, Output, ScreenQuery, ScreenRows};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tokens whose hidden states pass over the rows together: they stay in L2.
const HEAD_TOKENS: usize = 32;

/// Rows are handed to threads in multiples of this.
const HEAD_ROWS: usize = 64;

/// Rows of one part of a screen: what a thread makes, and bounds, at a time.
const SCREEN_ROWS: usize = 2048;

/// Share of the rows that may be left to recompute one by one; beyond, the full product is faster.
const MOST_CANDIDATES: usize = 16;

/// Rows after which the pages around them are given back: 16 MB.
const MOST_TOUCHED: usize = 256;

/// Bounds for all logits of a matrix from its int8 copy (`bitnet_kernels::ScreenRows`).
#[derive(Debug)]
pub(crate) struct Screen {
    parts: Vec<ScreenRows>, // SCREEN_ROWS rows each, the last one fewer
    touched: AtomicUsize,   // rows of the file read since its pages were given back
}

impl Screen {
    /// Bytes that a pass reads.
    pub(crate) fn byte_len(&self) -> usize {
        self.parts.iter().map(ScreenRows::byte_len).sum()
    }
}

/// A dense matrix of a checkpoint, by its place in the file.
#[derive(Debug, Clone)]
pub(crate) struct DenseMatrix {
    slot: Slot,
    info: TensorInfo,
    rows: usize,
    cols: usize,
}

impl DenseMatrix {
    /// The dense matrix in a slot; its type is checked here, its values where they are used.
    pub(crate) fn open(checkpoint: &Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        let DenseTensor {
            shape,
            info,
            encoding,
            bytes,
        } = checkpoint.dense_unread(slot)?;
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

    /// Tells the system that the rows are not needed again soon.
    pub(crate) fn release(&self, checkpoint: &Checkpoint) {
        checkpoint.release(self.slot);
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
            .map_err(|error| error.in_tensor(&self.info.name))?;
        // a sum of exponent tests vectorises; the search runs only on failure
        if out.iter().fold(true, |all, v| all & v.is_finite()) {
            return Ok(());
        }
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(col) => Err(self.not_finite(
                checkpoint,
                format!("row {row}, column {col}: expected a finite number, found NaN or infinity"),
            )),
        }
    }

    /// Reads all rows into a screen; `None` for a matrix that no screen is made for. The pages of the
    /// file are given back: from now on hardly any of them is needed.
    pub(crate) fn screen(
        &self,
        checkpoint: &Checkpoint,
        backend: Backend,
    ) -> Result<Option<Screen>, FormatError> {
        let mut parts: Vec<Option<ScreenRows>> = Vec::new();
        parts.resize_with(self.rows.div_ceil(SCREEN_ROWS), || None);
        let items = parts.iter_mut().enumerate().collect();
        let pieces = threads::pieces(threads::PER_ELEMENT * self.rows * self.cols);
        threads::try_for_each(pieces, items, |(part, to)| {
            let first = part * SCREEN_ROWS;
            let rows = SCREEN_ROWS.min(self.rows - first);
            *to = ScreenRows::new(backend, rows, self.cols);
            let Some(to) = to else { return Ok(()) };
            let mut wide = vec![0.0; self.cols]; // (cols,)
            for row in 0..rows {
                self.row(checkpoint, first + row, &mut wide)?;
                to.set(row, &wide);
            }
            Ok(())
        })?;
        self.release(checkpoint);
        let parts: Option<Vec<ScreenRows>> = parts.into_iter().collect();
        Ok(parts.map(|parts| Screen {
            parts,
            touched: AtomicUsize::new(0),
        }))
    }

    /// The `k` largest of the logits of `x: (cols,)`, with their rows, in falling order and of equal
    /// ones the lower row first: the very numbers of [`multiply`](Self::multiply). `None` where the
    /// screen's bounds leave so many rows that the full product is faster.
    pub(crate) fn top_k(
        &self,
        checkpoint: &Checkpoint,
        backend: Backend,
        screen: &Screen,
        x: &[f32],
        k: usize,
    ) -> Result<Option<Vec<(u32, f32)>>, FormatError> {
        crate::bit_linear::finite(self.slot, x, self.cols, 0)?;
        let k = k.min(self.rows);
        if k == 0 {
            return Ok(Some(Vec::new()));
        }
        let query = ScreenQuery::new(x);
        let mut upper = vec![0.0; self.rows]; // (rows,)
        // the k largest lower bounds of every part
        let mut largest: Vec<Vec<f64>> = vec![Vec::new(); screen.parts.len()];
        let items = screen
            .parts
            .iter()
            .zip(upper.chunks_mut(SCREEN_ROWS))
            .zip(&mut largest)
            .collect();
        let pieces = threads::pieces(self.rows * self.cols);
        threads::for_each(pieces, items, |((part, upper), largest)| {
            let mut lower = vec![0.0; upper.len()];
            part.bounds(&query, &mut lower, upper);
            let k = k.min(lower.len());
            if k < lower.len() {
                lower.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                lower.truncate(k);
            }
            *largest = lower;
        });
        let mut largest = largest.concat();
        let (_, least, _) = largest.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let least = *least;

        let candidates: Vec<usize> = (0..self.rows).filter(|&row| upper[row] >= least).collect();
        if candidates.len() > k.max(self.rows / MOST_CANDIDATES) {
            return Ok(None);
        }
        let mut top: Vec<(u32, f32)> = candidates.iter().map(|row| (*row as u32, 0.0)).collect();
        let pieces = threads::pieces(4 * candidates.len() * self.cols); // from memory, row by row
        let share = top.len().div_ceil(pieces).max(1);
        let items = top.chunks_mut(share).collect();
        threads::try_for_each(pieces, items, |part: &mut [(u32, f32)]| {
            let mut wide = vec![0.0; self.cols]; // (cols,)
            for (row, logit) in part {
                self.row(checkpoint, *row as usize, &mut wide)?;
                *logit = backend.dot(&wide, x);
                if !logit.is_finite() {
                    return Err(self.beyond(checkpoint, *row as usize));
                }
            }
            Ok(())
        })?;
        // the system maps 16 pages around each that is touched: half the matrix after 100 tokens
        if screen.touched.fetch_add(top.len(), Ordering::Relaxed) > MOST_TOUCHED {
            screen.touched.store(0, Ordering::Relaxed);
            self.release(checkpoint);
        }
        crate::sampler::sort(&mut top);
        top.truncate(k);
        Ok(Some(top))
    }

    fn beyond(&self, checkpoint: &Checkpoint, row: usize) -> FormatError {
        let message = format!("the logit of row {row} is beyond f32 or no number");
        self.not_finite(checkpoint, message)
    }

    fn not_finite(&self, checkpoint: &Checkpoint, message: String) -> FormatError {
        let error = FormatError::new(ErrorCode::NonFinite, message).in_tensor(&self.info.name);
        match checkpoint.file.parts.get(self.info.part) {
            Some(part) => error.in_file(part.path()),
            None => error,
        }
    }

    /// Refuses a logit that is NaN or infinite. The hidden state was finite, so either its row is not,
    /// or both are beyond what f32 can multiply.
    fn check_logits(
        &self,
        checkpoint: &Checkpoint,
        out: &mut Output<'_>,
    ) -> Result<(), FormatError> {
        let first = out.rows().start;
        for token in 0..out.tokens() {
            let logits = out.token_mut(token);
            // a sum of exponent tests vectorises; the search runs only on failure
            if logits.iter().fold(true, |all, v| all & v.is_finite()) {
                continue;
            }
            let row = first + logits.iter().position(|v| !v.is_finite()).unwrap_or(0);
            self.row(checkpoint, row, &mut vec![0.0; self.cols])?; // names the column
            return Err(self.beyond(checkpoint, row));
        }
        Ok(())
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
            let share = self.rows.div_ceil(pieces).next_multiple_of(HEAD_ROWS);
            let mut rest = Output::new(out, x.len() / self.cols, self.rows);
            let mut parts = Vec::with_capacity(pieces);
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
        self.check_logits(checkpoint, &mut out)
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
        self.check_logits(checkpoint, &mut out)
    }
}
