//! Ternary linears: activations prepared once, int8 or in fixed point, products split over threads by rows and tokens.
//!
//! Invariant: a linear's input exists only as [`LinearInput`], made once and shared by every linear
//! that reads it (q, k and v; gate and up), and every value in it is finite. How the tokens lie in
//! parts and the rows in pieces changes no bit (`formats/numerics.md`).

use crate::rotation::Rotation;
use crate::threads;
use bitnet_checkpoint::ActivationQuantization;
use bitnet_checkpoint::Slot;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{ActivationBatch, Backend, Output, PackedMatrix};
use std::sync::Arc;

/// Fewest tokens in a part: below, unpacking weights twice costs more than a second thread gives.
const PART_TOKENS: usize = 32;

/// Parts of fixed-point activations are multiples of it, the tokens that a kernel looks up together.
const PANEL_TOKENS: usize = 16;

/// Some tokens on their way into one or more ternary linears.
///
/// Reuse one to reuse its memory.
#[derive(Debug)]
pub(crate) struct LinearInput {
    backend: Backend,
    quantization: ActivationQuantization,
    rotation: Option<Arc<Rotation>>,
    part_tokens: usize, // tokens of every part but the last
    cols: usize,
    parts: Vec<ActivationBatch>, // (tokens / part_tokens,)
}

impl LinearInput {
    /// An empty input.
    pub(crate) fn new(
        backend: Backend,
        quantization: ActivationQuantization,
        rotation: Option<Arc<Rotation>>,
    ) -> Self {
        Self {
            backend,
            quantization,
            rotation,
            part_tokens: 1,
            cols: 1,
            parts: Vec::new(),
        }
    }

    /// Takes tokens of `cols` columns, each prepared as soon as it is made, while it is in the cache:
    /// `make` writes one from its row of `source`, `(tokens, width)`, which it may change. `slot` is the
    /// (first) linear that reads them: errors name it, and if its weights are rotated, the tokens are.
    pub(crate) fn prepare(
        &mut self,
        slot: Slot,
        cols: usize,
        (source, width): (&mut [f32], usize),
        make: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
    ) -> Result<(), FormatError> {
        let tokens = source.len() / width;
        let pieces = threads::pieces(threads::PER_ELEMENT * source.len());
        // in fixed point the tables of the tokens are built for every piece of rows: rather cut the tokens
        let most = match self.quantization {
            ActivationQuantization::Int8PerToken => threads::count(),
            ActivationQuantization::None => pieces,
        };
        let pieces = pieces.min(most).min(tokens / PART_TOKENS).max(1);
        self.cols = cols;
        let share = tokens.div_ceil(pieces).max(1);
        self.part_tokens = match (pieces, self.quantization) {
            (2.., ActivationQuantization::None) => share.next_multiple_of(PANEL_TOKENS),
            _ => share,
        };
        let parts = tokens.div_ceil(self.part_tokens);
        self.parts
            .resize_with(parts.max(self.parts.len()), ActivationBatch::default);
        let Self {
            backend,
            quantization,
            part_tokens,
            ..
        } = *self;
        let rotation = self.rotation.as_deref();
        let turn = rotation.and_then(|rotation| rotation.of_input(slot, cols));
        let items = source
            .chunks_mut(part_tokens * width)
            .zip(&mut self.parts)
            .enumerate()
            .collect();
        threads::try_for_each(
            pieces,
            items,
            |(part, (source, batch)): (usize, (&mut [f32], &mut ActivationBatch))| {
                let first = part * part_tokens;
                let shape = (source.len() / width, cols);
                let make = |token: usize, x: &mut [f32]| {
                    make(first + token, &mut source[token * width..][..width], x);
                    if let Some(turn) = turn {
                        turn.apply(backend, x);
                    }
                };
                let made = match quantization {
                    ActivationQuantization::Int8PerToken => {
                        backend.quantize_made(shape, batch, make)
                    }
                    ActivationQuantization::None => backend.fix_made(shape, batch, make),
                };
                made.map_err(|(token, error)| not_finite(slot, first + token, error.index))
            },
        )
    }

    /// An empty input of the same network.
    pub(crate) fn like(other: &Self) -> Self {
        Self::new(other.backend, other.quantization, other.rotation.clone())
    }

    /// `out = x * matrix^T` of several inputs, in one parallel region, where `x` is what the input took; every `out`
    /// is `(tokens of its input, rows)`.
    pub(crate) fn multiply_each(products: Vec<(&Self, &PackedMatrix, &mut [f32])>) {
        let size = |input: &Self, out: &[f32]| out.len() * input.cols;
        let work = products.iter().map(|(x, _, out)| size(x, out)).sum();
        let pieces = threads::pieces(work);
        let share = work.div_ceil(pieces).max(1);
        let mut items = Vec::with_capacity(products.len());
        for (input, matrix, out) in products {
            let length = input.part_tokens * matrix.rows();
            for (part, out) in out.chunks_mut(length).enumerate() {
                let pieces = size(input, out).div_ceil(share);
                let tokens = out.len() / matrix.rows();
                let out = Output::new(out, tokens, matrix.rows());
                let jobs = cut(vec![Job { part, matrix, out }], pieces);
                items.extend(jobs.into_iter().map(|jobs| (input, jobs)));
            }
        }
        threads::for_each(pieces, items, |(input, jobs): (&Self, Vec<Job<'_>>)| {
            for Job {
                part,
                matrix,
                mut out,
            } in jobs
            {
                matrix.multiply(&input.parts[part], &mut out);
            }
        });
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
        threads::for_each(pieces, items, |jobs: Vec<Job<'_>>| {
            for Job {
                part,
                matrix,
                mut out,
            } in jobs
            {
                matrix.multiply(&self.parts[part], &mut out);
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
