//! `tile32`: tiles of 32 rows, as this project's kernels read them where they lie
//! (`formats/packing/tile32.md`).
//!
//! Invariant: a tile is a row of blocks of `4 F` columns, 128 bytes each; byte `4 r + j` of a block holds
//! row `r`, columns `4 f + j` for `f` in `0..F`, code = trit + 1, as the digits of one number, the
//! first the lowest: five in base 3 (`tile32-1.6bit`) or four in base 4 (`tile32-2bit`). Whatever is
//! outside the matrix is written as trit 0. A byte that is no such number is refused wherever it
//! stands, because kernels would not agree on what it means.

use super::{PackedTensor, Packing, ScaleRounding, UnitRows, codes_of_4, elements, outside_scales};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};
use std::fmt::Debug;

/// Rows of a tile.
const ROWS: usize = 32;
/// Consecutive columns that a block keeps together.
const QUAD: usize = 4;
/// Columns of a block, of either kind at most.
const MOST: usize = QUAD * 5;
/// Bytes of a block.
const BLOCK: usize = ROWS * QUAD;

/// How the codes of `F` columns become a byte; a block at a time, so that vectors do it.
pub(super) trait Digits<const F: usize>: Sync + Debug {
    const NAME: &'static str;

    /// The byte of some codes, the first the lowest digit.
    fn join(codes: [u8; F]) -> u8;
    /// The inverse, of all bytes; anything for a byte that is none.
    fn split(block: &[u8; BLOCK]) -> [[u8; BLOCK]; F];
    /// 0 for a byte that [`join`](Self::join) makes.
    fn wrong(byte: u8) -> u8;
}

/// Five trits in base 3: 1.6 bits each.
#[derive(Debug)]
pub(super) struct BaseThree;

impl Digits<5> for BaseThree {
    const NAME: &'static str = "tile32-1.6bit";

    #[inline(always)]
    fn join([a, b, c, d, e]: [u8; 5]) -> u8 {
        let times_3 = |n: u8| n.wrapping_add(n).wrapping_add(n);
        times_3(times_3(times_3(times_3(e) + d) + c) + b) + a
    }

    #[inline(always)]
    fn split(block: &[u8; BLOCK]) -> [[u8; BLOCK]; 5] {
        let mut codes = [[0; BLOCK]; 5];
        let mut rest = *block;
        for (codes, weight) in codes.iter_mut().zip([1u8, 3, 9, 27, 81]).rev() {
            for (code, rest) in codes.iter_mut().zip(&mut rest) {
                // what wraps below 0 is above what it was taken from
                let once = (*rest).min(rest.wrapping_sub(weight));
                let twice = once.min(once.wrapping_sub(weight));
                *code = u8::from(once != *rest) + u8::from(twice != once);
                *rest = twice;
            }
        }
        codes
    }

    #[inline(always)]
    fn wrong(byte: u8) -> u8 {
        byte.saturating_sub(242)
    }
}

/// Four trits in base 4: 2 bits each.
#[derive(Debug)]
pub(super) struct BaseFour;

impl Digits<4> for BaseFour {
    const NAME: &'static str = "tile32-2bit";

    #[inline(always)]
    fn join([a, b, c, d]: [u8; 4]) -> u8 {
        a | b << 2 | c << 4 | d << 6
    }

    #[inline(always)]
    fn split(block: &[u8; BLOCK]) -> [[u8; BLOCK]; 4] {
        [0, 2, 4, 6].map(|shift| block.map(|byte| byte >> shift & 3))
    }

    #[inline(always)]
    fn wrong(byte: u8) -> u8 {
        byte & byte >> 1 & 0x55
    }
}

/// The packing with `F` digits a byte; see the module.
#[derive(Debug)]
pub(super) struct Tile32<const F: usize, D>(pub(super) D);

/// Bytes of a tile.
fn tile_len<const F: usize>(cols: usize) -> usize {
    cols.div_ceil(QUAD * F).saturating_mul(BLOCK)
}

impl<const F: usize, D: Digits<F>> Packing for Tile32<F, D> {
    fn name(&self) -> &'static str {
        D::NAME
    }

    fn gguf_type(&self) -> Option<u32> {
        None
    }

    fn gguf_file_type(&self) -> Option<u32> {
        None
    }

    fn holds_scales(&self) -> bool {
        false
    }

    /// `ceil(rows / 32) * ceil(cols / 4F) * 128`; every shape is legal.
    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        elements(rows, cols)?;
        elements(rows.div_ceil(ROWS), tile_len::<F>(cols))
    }

    /// The scales lie beside the codes, in f32, in their own structure.
    fn check_scales(&self, _: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        Ok(0.0)
    }

    /// One tile.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        tile_len::<F>(cols).max(1)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(ROWS)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let cols = matrix.cols();
        if cols == 0 {
            return;
        }
        let tiles = matrix.trits().chunks(ROWS * cols).skip(first);
        for (rows, tile) in tiles.zip(out.chunks_exact_mut(tile_len::<F>(cols))) {
            // the last block may reach beyond the columns
            let blocks = tile.as_chunks_mut::<BLOCK>().0.iter_mut();
            for (b, block) in blocks.enumerate() {
                let from = b * QUAD * F;
                // (F, 32, 4): digit, row, column of a quad
                let mut codes = [[1u8; BLOCK]; F];
                for (r, row) in rows.chunks_exact(cols).take(ROWS).enumerate() {
                    let mut edge = [0; MOST];
                    let trits = row.get(from..from + QUAD * F).unwrap_or_else(|| {
                        edge[..cols - from].copy_from_slice(&row[from..]);
                        &edge[..QUAD * F]
                    });
                    for (codes, quad) in codes.iter_mut().zip(trits.as_chunks().0) {
                        codes.as_chunks_mut().0[r] = codes_of_4(*quad).to_le_bytes();
                    }
                }
                for (i, byte) in block.iter_mut().enumerate() {
                    *byte = D::join(std::array::from_fn(|f| codes[f][i]));
                }
            }
        }
    }

    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_rows(self.stored_len(rows, cols)?, first, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let end = first + out.len() / cols;
        let mut rest = out;
        for t in first / ROWS..end.div_ceil(ROWS) {
            let (top, bottom) = (
                first.max(t * ROWS) - t * ROWS,
                end.min((t + 1) * ROWS) - t * ROWS,
            );
            let (trits, later) = rest.split_at_mut((bottom - top) * cols);
            rest = later;
            // rows behind the last one are looked at with it
            let checked = if t * ROWS + bottom == rows {
                ROWS
            } else {
                bottom
            };
            let tile = &bytes[t * tile_len::<F>(cols)..][..tile_len::<F>(cols)];
            for (b, block) in tile.as_chunks::<BLOCK>().0.iter().enumerate() {
                let wrong = block[QUAD * top..QUAD * checked]
                    .iter()
                    .fold(0, |any, byte| any | D::wrong(*byte));
                if wrong != 0 {
                    return Err(bad_byte::<F, D>(block, top, t, b));
                }
                let codes = D::split(block);
                let from = b * QUAD * F;
                for (row, r) in trits.chunks_exact_mut(cols).zip(top..) {
                    let mut edge = [0; MOST];
                    let whole = row.get_mut(from..from + QUAD * F);
                    let inside = whole.is_some();
                    let trits = whole.unwrap_or(&mut edge[..QUAD * F]);
                    for (quad, codes) in trits.as_chunks_mut::<QUAD>().0.iter_mut().zip(&codes) {
                        *quad = codes.as_chunks::<QUAD>().0[r].map(|c| (c as i8).wrapping_sub(1));
                    }
                    if !inside {
                        row[from..].copy_from_slice(&edge[..cols - from]);
                    }
                }
            }
        }
        Ok(())
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        outside_scales(tensor, self.name())
    }
}

/// The error for the first wrong byte from row `top` of a block on.
#[cold]
fn bad_byte<const F: usize, D: Digits<F>>(
    block: &[u8; BLOCK],
    top: usize,
    tile: usize,
    number: usize,
) -> FormatError {
    let wrong = (QUAD * top..BLOCK).find(|&i| D::wrong(block[i]) != 0);
    let at = wrong.unwrap_or(QUAD * top);
    let (row, col) = (tile * ROWS + at / QUAD, number * QUAD * F + at % QUAD);
    let found = block[at];
    FormatError::new(
        ErrorCode::BadCode,
        format!("row {row}, column {col}: expected the byte of {F} trits, found {found}"),
    )
    .hint("the file is damaged, or packed in another layout")
}
