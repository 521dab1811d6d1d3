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
use bitnet_ternary::{Q6_K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES, decode_q6_k, decode_q8_0};

/// How a dense matrix stores its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "as ggml writes them")]
pub enum MatrixType {
    /// Numbers, little-endian.
    Dense(DenseType),
    /// Blocks of 32 codes of eight bits with a scale.
    Q8_0,
    /// Blocks of 256 codes of six bits with scales of groups of 16.
    Q6_K,
}

impl MatrixType {
    /// Numbers of a block, which rows are whole multiples of.
    pub fn block(self) -> usize {
        match self {
            Self::Dense(_) => 1,
            Self::Q8_0 => Q8_0_BLOCK,
            Self::Q6_K => Q6_K_BLOCK,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Dense(dtype) => dtype.size(),
            Self::Q8_0 => Q8_0_BYTES,
            Self::Q6_K => Q6_K_BYTES,
        }
    }
}

impl From<DenseType> for MatrixType {
    fn from(dtype: DenseType) -> Self {
        Self::Dense(dtype)
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

/// Numbers in blocks that share scales.
pub(crate) trait Block {
    /// How a matrix of them is called.
    const TYPE: MatrixType;
    /// Widens the blocks of `row` to little-endian f32.
    fn widen(row: &[u8], wide: &mut [u8]);
}

pub(crate) struct Q8_0;
pub(crate) struct Q6K;

impl Block for Q8_0 {
    const TYPE: MatrixType = MatrixType::Q8_0;

    #[inline(always)]
    fn widen(row: &[u8], wide: &mut [u8]) {
        let blocks = row.as_chunks::<Q8_0_BYTES>().0.iter();
        let mut numbers = [0.0; Q8_0_BLOCK];
        for (block, wide) in blocks.zip(wide.as_chunks_mut::<{ 4 * Q8_0_BLOCK }>().0) {
            decode_q8_0(block, &mut numbers);
            store(&numbers, wide);
        }
    }
}

impl Block for Q6K {
    const TYPE: MatrixType = MatrixType::Q6_K;

    #[inline(always)]
    fn widen(row: &[u8], wide: &mut [u8]) {
        let blocks = row.as_chunks::<Q6_K_BYTES>().0.iter();
        let mut numbers = [0.0; Q6_K_BLOCK];
        for (block, wide) in blocks.zip(wide.as_chunks_mut::<{ 4 * Q6_K_BLOCK }>().0) {
            decode_q6_k(block, &mut numbers);
            store(&numbers, wide);
        }
    }
}

#[inline(always)]
fn store(numbers: &[f32], wide: &mut [u8]) {
    for (to, x) in wide.as_chunks_mut::<4>().0.iter_mut().zip(numbers) {
        *to = x.to_le_bytes();
    }
}

/// [`rows`] of blocks: `R` rows at a time are widened, which stay in the first cache for all tokens.
#[inline(always)]
pub(crate) fn widened_rows<B: Block, const R: usize, const T: usize>(
    rows: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut Output<'_>,
) {
    let range = out.rows();
    assert!(
        cols > 0 && cols.is_multiple_of(B::TYPE.block()),
        "rows of whole blocks"
    );
    let row_bytes = cols / B::TYPE.block() * B::TYPE.block_bytes();
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
            B::widen(row, wide);
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
