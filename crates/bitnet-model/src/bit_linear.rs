//! Ternary linears: activations quantised once, products split over threads by rows and tokens.
//!
//! Invariant: a linear's input exists only as [`LinearInput`], made once and shared by every linear
//! that reads it (q, k and v; gate and up), and every value in it is finite. How the tokens lie in
//! parts and the rows in pieces changes no bit (`formats/numerics.md`).

use crate::threads;
use bitnet_checkpoint::ActivationQuantization;
use bitnet_checkpoint::Slot;
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
    part_tokens: usize, // tokens of every part but the last
    cols: usize,
    parts: Vec<ActivationBatch>, // (tokens / part_tokens,), unused without quantisation
    floats: Vec<f32>,            // (tokens, cols), unused with it
}

impl LinearInput {
    /// An empty input.
    pub(crate) fn new(backend: Backend, quantization: ActivationQuantization) -> Self {
        Self {
            backend,
            quantization,
            part_tokens: 1,
            cols: 1,
            parts: Vec::new(),
            floats: Vec::new(),
        }
    }

    /// Takes tokens of `cols` columns, each quantised as soon as it is made, while it is in the cache:
    /// `make` writes one from its row of `source`, `(tokens, width)`, which it may change. `slot` is the
    /// (first) linear that reads them: errors name it.
    pub(crate) fn prepare(
        &mut self,
        slot: Slot,
        cols: usize,
        (source, width): (&mut [f32], usize),
        make: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
    ) -> Result<(), FormatError> {
        let tokens = source.len() / width;
        let pieces = threads::pieces(threads::PER_ELEMENT * source.len());
        let pieces = pieces
            .min(threads::count())
            .min(tokens / PART_TOKENS)
            .max(1);
        self.cols = cols;
        self.part_tokens = tokens.div_ceil(pieces).max(1);
        let parts = tokens.div_ceil(self.part_tokens);
        self.parts
            .resize_with(parts.max(self.parts.len()), ActivationBatch::default);
        let floats = match self.quantization {
            ActivationQuantization::Int8PerToken => 0,
            ActivationQuantization::None => tokens * cols,
        };
        self.floats.resize(floats, 0.0);
        let mut floats = self.floats.chunks_mut(self.part_tokens * cols);
        let Self {
            backend,
            quantization,
            part_tokens,
            ..
        } = *self;
        let items = source
            .chunks_mut(part_tokens * width)
            .zip(&mut self.parts)
            .map(|(source, batch)| (source, batch, floats.next().unwrap_or_default()))
            .enumerate()
            .collect();
        threads::try_for_each(pieces, items, |(part, (source, batch, floats))| {
            let first = part * part_tokens;
            let tokens = source.len() / width;
            let mut make = |token: usize, x: &mut [f32]| {
                make(first + token, &mut source[token * width..][..width], x);
            };
            match quantization {
                ActivationQuantization::Int8PerToken => backend
                    .quantize_made((tokens, cols), batch, make)
                    .map_err(|(token, error)| not_finite(slot, first + token, error.index)),
                ActivationQuantization::None => {
                    for (token, x) in floats.chunks_exact_mut(cols).enumerate() {
                        make(token, x);
                    }
                    finite(slot, floats, cols, first)
                }
            }
        })
    }

    /// `out = x * matrix^T` for every pair, in one parallel region, where `x` is what
    /// [`prepare`](Self::prepare) took; every `out` is `(tokens, rows)`.
    pub(crate) fn multiply<const N: usize>(&self, products: [(&PackedMatrix, &mut [f32]); N]) {
        let tokens = products
            .first()
            .map_or(0, |(matrix, out)| out.len() / matrix.rows().max(1));
        let rows: usize = products.iter().map(|(matrix, _)| matrix.rows()).sum();
        let pieces = threads::pieces(rows * tokens * self.cols);
        let parts = tokens.div_ceil(self.part_tokens).max(1);
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
        let floats = |part: usize| {
            let from = part * self.part_tokens * self.cols;
            let x = &self.floats;
            &x[from..x.len().min(from + self.part_tokens * self.cols)]
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
                    ActivationQuantization::None => matrix.multiply_float(floats(part), &mut out),
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
