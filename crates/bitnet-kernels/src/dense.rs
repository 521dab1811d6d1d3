//! Dense rows times float activations: the head, and whatever else a checkpoint left unquantised.
//!
//! Invariant: every product is the canonical dot (`float_ops`); several rows and tokens run side by
//! side only to hide latency and to widen a row once for several tokens.

use crate::float_ops::{LANES, Lanes, add_lanes, fill_lanes, mul_add_lanes, mul_add_tail};
use crate::lines::{LINE, prefetch_l2};
use crate::output::Output;
use bitnet_ternary::{bf16_to_f32, f16_to_f32};

/// How a dense tensor stores its numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl DenseType {
    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A stored number that widens to `f32`.
pub(crate) trait Element {
    /// Bytes per number.
    const SIZE: usize;
    /// Widens the number at the start of `bytes`, exactly.
    fn widen(bytes: &[u8]) -> f32;

    /// Widens the 16 numbers of `bytes`.
    #[inline(always)]
    fn widen_lanes(bytes: &[u8]) -> Lanes {
        let mut lanes = [0.0; LANES];
        for j in 0..LANES {
            lanes[j] = Self::widen(&bytes[j * Self::SIZE..(j + 1) * Self::SIZE]);
        }
        lanes
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        f16_to_f32(u16::from_le_bytes([b[0], b[1]]))
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        bf16_to_f32(u16::from_le_bytes([b[0], b[1]]))
    }
}

/// 16 numbers from `16 * E::SIZE` bytes.
#[inline(always)]
pub(crate) fn widen_lanes<E: Element>(bytes: &[u8]) -> Lanes {
    E::widen_lanes(&bytes[..LANES * E::SIZE])
}

/// Fewer than 16 numbers, filled up with zeros.
#[inline(always)]
pub(crate) fn widen_tail<E: Element>(bytes: &[u8]) -> Lanes {
    let mut tail = [0; LANES * 4];
    tail[..bytes.len()].copy_from_slice(bytes);
    widen_lanes::<E>(&tail)
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
        tokens::<E, R, T>(rows, row, cols, x, out);
        row += R;
    }
    while row < range.end {
        tokens::<E, 1, T>(rows, row, cols, x, out);
        row += 1;
    }
}

/// The bytes of `R` rows from `row` on.
#[inline(always)]
fn rows_of<E: Element, const R: usize>(rows: &[u8], row: usize, cols: usize) -> [&[u8]; R] {
    let row_bytes = cols * E::SIZE;
    std::array::from_fn(|r| &rows[(row + r) * row_bytes..(row + r + 1) * row_bytes])
}

/// All tokens against `R` rows from `row` on.
#[inline(always)]
fn tokens<E: Element, const R: usize, const T: usize>(
    rows: &[u8],
    row: usize,
    cols: usize,
    x: &[f32],
    out: &mut Output<'_>,
) {
    let rows = rows_of::<E, R>(rows, row, cols);
    let at = row - out.rows().start;
    let mut token = 0;
    while token + T <= out.tokens() {
        block::<E, R, T>(&rows, cols, x, token, at, out);
        token += T;
    }
    while token < out.tokens() {
        block::<E, R, 1>(&rows, cols, x, token, at, out);
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
