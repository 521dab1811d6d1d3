//! Dense rows times float activations: the head, and whatever else a checkpoint left unquantized.
//!
//! Invariant: every product is the canonical dot (`lanes`); several rows and tokens run side by
//! side only to hide latency and to widen a row once for several tokens.

use crate::lanes::{
    DenseType, Element, F32, LANES, Lanes, add_lanes, fill_lanes, mul_add_lanes, mul_add_tail,
    widen_lanes, widen_tail,
};
use crate::lines::{LINE, prefetch_l2};
use crate::output::Output;
use bitnet_ternary::BlockType;

/// How a dense matrix stores its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixType {
    /// Numbers, little-endian.
    Dense(DenseType),
    /// Blocks of codes that share scales.
    Blocks(BlockType),
}

impl MatrixType {
    /// Numbers of a block, which rows are whole multiples of.
    pub fn block(self) -> usize {
        match self {
            Self::Dense(_) => 1,
            Self::Blocks(block) => block.block(),
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Dense(dtype) => dtype.size(),
            Self::Blocks(block) => block.block_bytes(),
        }
    }
}

impl From<DenseType> for MatrixType {
    fn from(dtype: DenseType) -> Self {
        Self::Dense(dtype)
    }
}

impl From<BlockType> for MatrixType {
    fn from(block: BlockType) -> Self {
        Self::Blocks(block)
    }
}

/// `out[token][row] = dot(rows[row], x[token])` for the rows of `out`.
///
/// `rows` is the whole matrix (or at least as much as `out` reaches into), `x` is `(tokens, cols)`. `R`
/// rows and `T` tokens run side by side: as many as the registers hold.
#[inline(always)]
pub(crate) fn rows<E: Element, const R: usize, const T: usize>(
    rows: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut Output<'_>,
) {
    let range = out.rows();
    assert!(
        rows.len() / E::SIZE >= range.end * cols,
        "dense rows too short"
    );
    assert_eq!(x.len(), out.tokens() * cols);
    let mut row = range.start;
    // one token: rows come from memory, and four of them with the next four on their way keep it busy
    while out.tokens() == 1 && row + 4 <= range.end {
        block::<E, 4, 1>(
            &rows_of::<E, 4>(rows, row, cols),
            cols,
            x,
            0,
            row - range.start,
            out,
        );
        row += 4;
    }
    while row + R <= range.end {
        let at = row - range.start;
        tokens::<E, R, T>(&rows_of::<E, R>(rows, row, cols), cols, x, at, out);
        row += R;
    }
    while row < range.end {
        let at = row - range.start;
        tokens::<E, 1, T>(&rows_of::<E, 1>(rows, row, cols), cols, x, at, out);
        row += 1;
    }
}

/// Numbers that are widened at once: whole blocks of every type.
const WIDENED: usize = 256;

/// Widens the blocks of `row` to little-endian f32.
#[inline(always)]
fn widen(block: BlockType, row: &[u8], wide: &mut [u8]) {
    let piece = WIDENED / block.block() * block.block_bytes();
    let mut numbers = [0.0; WIDENED];
    for (codes, wide) in row.chunks(piece).zip(wide.chunks_mut(4 * WIDENED)) {
        let numbers = &mut numbers[..wide.len() / 4];
        block.widen(codes, numbers);
        store(numbers, wide);
    }
}

#[inline(always)]
fn store(numbers: &[f32], wide: &mut [u8]) {
    for (to, x) in wide.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *to = x.to_le_bytes();
    }
}

/// [`rows`] of blocks: `R` rows at a time are widened once, for all tokens.
#[inline(always)]
pub(crate) fn widened_rows<const R: usize, const T: usize>(
    block: BlockType,
    rows: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut Output<'_>,
) {
    let range = out.rows();
    assert!(
        cols > 0 && cols.is_multiple_of(block.block()),
        "rows of whole blocks"
    );
    let row_bytes = cols / block.block() * block.block_bytes();
    assert!(rows.len() / row_bytes >= range.end, "dense rows too short");
    assert_eq!(x.len(), out.tokens() * cols);
    let mut wide = vec![0; R.min(range.len()) * 4 * cols];
    let mut row = range.start;
    while row < range.end {
        let at = row - range.start;
        let count = if row + R <= range.end { R } else { 1 };
        let bytes = &rows[row * row_bytes..(row + count) * row_bytes];
        let ahead = rows.get((row + R) * row_bytes..).unwrap_or(&[]);
        for ((row, wide), ahead) in bytes
            .chunks_exact(row_bytes)
            .zip(wide.chunks_exact_mut(4 * cols))
            .zip(ahead.chunks(row_bytes).chain(std::iter::repeat(&[][..])))
        {
            for line in ahead.chunks(LINE) {
                prefetch_l2(line.as_ptr());
            }
            widen(block, row, wide);
        }
        match count == R {
            true => tokens::<F32, R, T>(&rows_of::<F32, R>(&wide, 0, cols), cols, x, at, out),
            false => tokens::<F32, 1, T>(&rows_of::<F32, 1>(&wide, 0, cols), cols, x, at, out),
        }
        row += count;
    }
}

/// The bytes of `R` rows from `row` on.
#[inline(always)]
fn rows_of<E: Element, const R: usize>(rows: &[u8], row: usize, cols: usize) -> [&[u8]; R] {
    let row_bytes = cols * E::SIZE;
    std::array::from_fn(|r| &rows[(row + r) * row_bytes..(row + r + 1) * row_bytes])
}

/// All tokens against `R` rows, the rows from `at` on of the view `out`.
#[inline(always)]
fn tokens<E: Element, const R: usize, const T: usize>(
    rows: &[&[u8]; R],
    cols: usize,
    x: &[f32],
    at: usize,
    out: &mut Output<'_>,
) {
    let mut token = 0;
    while token + T <= out.tokens() {
        block::<E, R, T>(rows, cols, x, token, at, out);
        token += T;
    }
    while token < out.tokens() {
        block::<E, R, 1>(rows, cols, x, token, at, out);
        token += 1;
    }
}

/// `R` rows times `T` tokens from `token` on, to the rows from `at` on of the view `out`.
#[inline(always)]
fn block<E: Element, const R: usize, const T: usize>(
    rows: &[&[u8]; R],
    cols: usize,
    x: &[f32],
    token: usize,
    at: usize,
    out: &mut Output<'_>,
) {
    let x: [&[f32]; T] = std::array::from_fn(|t| &x[(token + t) * cols..(token + t + 1) * cols]);
    let chunks = cols / LANES;
    let mut lanes = whole_chunks::<E, R, T>(rows, &x, chunks);
    let count = cols - chunks * LANES;
    if count > 0 {
        for r in 0..R {
            let w = widen_tail::<E>(&rows[r][chunks * LANES * E::SIZE..]);
            for t in 0..T {
                let x = fill_lanes(&x[t][chunks * LANES..]);
                mul_add_tail(&w, &x, count, &mut lanes[r][t]);
            }
        }
    }
    for t in 0..T {
        let out = &mut out.token_mut(token + t)[at..at + R];
        for r in 0..R {
            out[r] = add_lanes(lanes[r][t]);
        }
    }
}

/// The lanes over whole chunks of columns: apart from the tail, so that they stay in registers.
#[inline(always)]
fn whole_chunks<E: Element, const R: usize, const T: usize>(
    rows: &[&[u8]; R],
    x: &[&[f32]; T],
    chunks: usize,
) -> [[Lanes; T]; R] {
    let mut lanes = [[[0.0; LANES]; T]; R];
    for c in 0..chunks {
        let x: [&Lanes; T] =
            std::array::from_fn(|t| x[t][c * LANES..].first_chunk().unwrap_or(&[0.0; LANES]));
        let fetch = T == 1 && (c * LANES * E::SIZE).is_multiple_of(LINE);
        for r in 0..R {
            let w = &rows[r][c * LANES * E::SIZE..];
            if fetch {
                prefetch_l2(w.as_ptr().wrapping_add(R * rows[r].len()));
            }
            let w = widen_lanes::<E>(w);
            for t in 0..T {
                mul_add_lanes(&w, x[t], &mut lanes[r][t]);
            }
        }
    }
    lanes
}
