//! Ternary linears: activations quantised once, products split over threads by rows and tokens.
//!
//! Invariant: a linear's input exists only as [`LinearInput`], made once and shared by every linear
//! that reads it (q, k and v; gate and up), and every value in it is finite. How the tokens lie in
//! parts and the rows in pieces changes no bit (`formats/numerics.md`).

use crate::config::ActivationQuantization;
use crate::slot::Slot;
use crate::threads;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{ActivationBatch, Backend, Output, PackedMatrix};

/// Fewest tokens in a part: below, unpacking weights twice costs more than a second thread gives.
const PART_TOKENS: usize = 32;

/// Some tokens on their way into one or more ternary linears.
///
/// Reuse one to reuse its memory.
#[derive(Debug)]
pub(crate) struct LinearInput {
    backend: Backend,
    quantization: ActivationQuantization,
    part_tokens: usize,          // tokens of every part but the last
    parts: Vec<ActivationBatch>, // (tokens / part_tokens,), unused without quantisation
}

impl LinearInput {
    /// An empty input.
    pub(crate) fn new(backend: Backend, quantization: ActivationQuantization) -> Self {
        Self {
            backend,
            quantization,
            part_tokens: 1,
            parts: Vec::new(),
        }
    }

    /// Quantises `x`, `(tokens, cols)`, per token. `slot` is the (first) linear that reads it: errors
    /// name it.
    pub(crate) fn quantize(
        &mut self,
        slot: Slot,
        x: &[f32], // (tokens, cols)
        cols: usize,
    ) -> Result<(), FormatError> {
        let tokens = x.len() / cols;
        let pieces = threads::pieces(threads::PER_ELEMENT * x.len());
        let pieces = pieces
            .min(threads::count())
            .min(tokens / PART_TOKENS)
            .max(1);
        self.part_tokens = tokens.div_ceil(pieces).max(1);
        let parts = tokens.div_ceil(self.part_tokens);
        self.parts
            .resize_with(parts.max(self.parts.len()), ActivationBatch::default);
        let Self {
            backend,
            quantization,
            part_tokens,
            ..
        } = *self;
        let items = x
            .chunks(part_tokens * cols)
            .zip(&mut self.parts)
            .enumerate()
            .collect();
        threads::try_for_each(pieces, items, |(part, (x, batch))| {
            let first = part * part_tokens;
            match quantization {
                ActivationQuantization::Int8PerToken => backend
                    .quantize(x, cols, batch)
                    .map_err(|(token, error)| not_finite(slot, first + token, error.index)),
                ActivationQuantization::None => finite(slot, x, cols, first),
            }
        })
    }

    /// `out = x * matrix^T` for every pair, in one parallel region. `x` is what
    /// [`quantize`](Self::quantize) was given, `(tokens, cols)`; every `out` is `(tokens, rows)`.
    pub(crate) fn multiply<const N: usize>(
        &self,
        x: &[f32],
        products: [(&PackedMatrix, &mut [f32]); N],
    ) {
        let rows: usize = products.iter().map(|(matrix, _)| matrix.rows()).sum();
        let pieces = threads::pieces(rows * x.len());
        let cols = products.first().map_or(1, |(matrix, _)| matrix.cols());
        let parts = (x.len() / cols).div_ceil(self.part_tokens);
        let mut jobs: Vec<Vec<Job<'_>>> = (0..parts).map(|_| Vec::with_capacity(N)).collect();
        for (matrix, out) in products {
            let outs = out.chunks_mut(self.part_tokens * matrix.rows());
            for (part, (out, jobs)) in outs.zip(&mut jobs).enumerate() {
                let tokens = out.len() / matrix.rows();
                jobs.push(Job {
                    part,
                    matrix,
                    out: Output::new(out, tokens, matrix.rows()),
                });
            }
        }
        let items = jobs
            .into_iter()
            .flat_map(|jobs| cut(jobs, pieces.div_ceil(parts)))
            .collect();
        let x_part = |part: usize| {
            let from = part * self.part_tokens * cols;
            &x[from..x.len().min(from + self.part_tokens * cols)]
        };
        threads::for_each(pieces, items, |jobs: Vec<Job<'_>>| {
            for Job {
                part,
                matrix,
                mut out,
            } in jobs
            {
                match self.quantization {
                    ActivationQuantization::Int8PerToken => {
                        matrix.multiply(&self.parts[part], &mut out);
                    }
                    ActivationQuantization::None => matrix.multiply_float(x_part(part), &mut out),
                }
            }
        });
    }
}

/// Some rows of a matrix times one part of the tokens.
struct Job<'a> {
    part: usize,
    matrix: &'a PackedMatrix,
    out: Output<'a>, // (part tokens, some rows)
}

/// Cuts the rows of all jobs, end to end, into about `pieces` equal pieces of whole tiles.
fn cut(jobs: Vec<Job<'_>>, pieces: usize) -> Vec<Vec<Job<'_>>> {
    let total: usize = jobs.iter().map(|job| job.out.rows().len()).sum();
    let share = total.div_ceil(pieces).max(1);
    let mut done = Vec::with_capacity(pieces);
    let (mut piece, mut room) = (Vec::new(), share);
    for Job {
        part,
        matrix,
        mut out,
    } in jobs
    {
        loop {
            let rows = out.rows();
            let at = (rows.start + room).next_multiple_of(matrix.tile_rows());
            if at >= rows.end {
                room = room.saturating_sub(rows.len());
                piece.push(Job { part, matrix, out });
                break;
            }
            let (low, high) = out.split_at(at);
            piece.push(Job {
                part,
                matrix,
                out: low,
            });
            done.push(std::mem::take(&mut piece));
            (out, room) = (high, share);
        }
        if room == 0 {
            done.push(std::mem::take(&mut piece));
            room = share;
        }
    }
    if !piece.is_empty() {
        done.push(piece);
    }
    done
}

/// Refuses NaN and infinity in the input `x` of a linear that does not quantise it.
pub(crate) fn finite(slot: Slot, x: &[f32], cols: usize, first: usize) -> Result<(), FormatError> {
    // a sum of exponent tests vectorises; the search runs only on failure
    if x.iter().fold(true, |all, v| all & v.is_finite()) {
        return Ok(());
    }
    let at = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(not_finite(slot, first + at / cols, at % cols))
}

fn not_finite(slot: Slot, token: usize, index: usize) -> FormatError {
    FormatError::new(
        ErrorCode::NonFinite,
        format!("input value {index} of token {token} in this batch is NaN or infinite"),
    )
    .in_tensor(&slot.to_string())
    .hint("the checkpoint's norms, scales or embeddings are beyond f32, or damaged")
}
