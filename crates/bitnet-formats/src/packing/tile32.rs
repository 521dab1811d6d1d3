//! `tile32`: tiles of 32 rows, as this project's kernels read them where they lie
//! (`formats/packing/tile32.md`).
//!
//! Invariant: a tile is a row of blocks of `4 F` columns, 128 bytes each; byte `4 r + j` of a block holds
//! row `r`, columns `4 f + j` for `f` in `0..F`, code = trit + 1, as the digits of one number, the
//! first the lowest: five in base 3 (`tile32-1.6bit`) or four in base 4 (`tile32-2bit`). Whatever is
//! outside the matrix is written as trit 0. A byte that is no such number is refused wherever it
//! stands, because kernels would not agree on what it means.

use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, codes_of_4, div_rem, elements, outside_scales,
};
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

/// How the codes of `F` columns become a byte, four bytes at a time, and back, a block at a time.
pub(super) trait Digits<const F: usize>: Sync + Debug {
    const NAME: &'static str;

    /// Four bytes of four codes each, the first the lowest digit.
    fn join(codes: [u32; F]) -> u32;
    /// The codes of all bytes; any codes for a byte that [`join`](Self::join) never makes.
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
    fn join([a, b, c, d, e]: [u32; 5]) -> u32 {
        // at most 242 in each byte, so none carries into the next
        let codes = [(b, 3), (c, 9), (d, 27), (e, 81)];
        codes.into_iter().fold(a, |sum, (code, weight)| {
            sum.wrapping_add(code.wrapping_mul(weight))
        })
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
                *code = u8::from(once != *rest).wrapping_add(u8::from(twice != once));
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
    fn join([a, b, c, d]: [u32; 4]) -> u32 {
        a | b << 2 | c << 4 | d << 6
    }

    #[inline(always)]
    fn split(block: &[u8; BLOCK]) -> [[u8; BLOCK]; 4] {
        [
            block.map(|byte| byte & 3),
            block.map(|byte| byte >> 2 & 3),
            block.map(|byte| byte >> 4 & 3),
            block.map(|byte| byte >> 6),
        ]
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
    cols.div_ceil(width::<F>()).saturating_mul(BLOCK)
}

/// Columns of a block.
const fn width<const F: usize>() -> usize {
    QUAD.saturating_mul(F)
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
        let tiles = matrix.trits().chunks(cols.saturating_mul(ROWS)).skip(first);
        for (rows, tile) in tiles.zip(out.chunks_exact_mut(tile_len::<F>(cols))) {
            let nothing = D::join([0x0101_0101; F]).to_le_bytes();
            tile.as_chunks_mut::<QUAD>().0.fill(nothing);
            for (r, row) in rows.chunks_exact(cols).take(ROWS).enumerate() {
                // the last block may reach beyond the columns
                let edge = padded(row.chunks_exact(width::<F>()).remainder());
                let (quads, edge) = (row.as_chunks::<QUAD>().0, edge.as_chunks::<QUAD>().0);
                let whole = quads.as_chunks::<F>().0.iter();
                let all = whole.chain(edge.first_chunk::<F>());
                for (quads, block) in all.zip(tile.as_chunks_mut::<BLOCK>().0) {
                    if let Some(bytes) = block.as_chunks_mut::<QUAD>().0.get_mut(r) {
                        *bytes = D::join(quads.map(codes_of_4)).to_le_bytes();
                    }
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
        let end = first.saturating_add(div_rem(out.len(), cols).0);
        let mut rest = out;
        for t in first / ROWS..end.div_ceil(ROWS) {
            let start = t.saturating_mul(ROWS);
            let top = first.saturating_sub(start);
            let bottom = end.saturating_sub(start).min(ROWS);
            let asked = bottom.saturating_sub(top).saturating_mul(cols);
            let (trits, later) = rest.split_at_mut(asked);
            rest = later;
            // rows behind the last one are looked at with it
            let checked = if start.saturating_add(bottom) == rows {
                ROWS
            } else {
                bottom
            };
            let tile = bytes.chunks_exact(tile_len::<F>(cols)).nth(t);
            let blocks = tile.unwrap_or_default().as_chunks::<BLOCK>().0;
            for (from, block) in (0..).step_by(width::<F>()).zip(blocks) {
                let looked_at = block.as_chunks::<QUAD>().0.get(top..checked);
                let looked_at = looked_at.unwrap_or_default().as_flattened().iter();
                if looked_at.fold(0, |any, byte| any | D::wrong(*byte)) != 0 {
                    return Err(bad_byte::<F, D>(block, (start, from), top));
                }
                let codes = D::split(block);
                for (row, r) in trits.chunks_exact_mut(cols).zip(top..) {
                    let columns = row.get_mut(from..).unwrap_or_default();
                    let quads = codes.iter().map(|codes| {
                        let quad = codes.as_chunks::<QUAD>().0.get(r);
                        quad.copied()
                            .unwrap_or_default()
                            .map(|c| (c as i8).wrapping_sub(1))
                    });
                    if let Some(whole) = columns.get_mut(..width::<F>()) {
                        for (to, quad) in whole.as_chunks_mut().0.iter_mut().zip(quads) {
                            *to = quad;
                        }
                    } else {
                        columns
                            .iter_mut()
                            .zip(quads.flatten())
                            .for_each(|(to, t)| *to = t);
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

/// The last columns of a row, with zeros behind them.
#[cold]
fn padded(columns: &[i8]) -> [i8; MOST] {
    let mut padded = [0; MOST];
    for (to, trit) in padded.iter_mut().zip(columns) {
        *to = *trit;
    }
    padded
}

/// The error for the first wrong byte from row `top` on of the block at a row and a column.
#[cold]
fn bad_byte<const F: usize, D: Digits<F>>(
    block: &[u8; BLOCK],
    (row, col): (usize, usize),
    top: usize,
) -> FormatError {
    let looked_at = (0..).zip(block).skip(top.saturating_mul(QUAD));
    let wrong = looked_at
        .into_iter()
        .find(|(_, byte)| D::wrong(**byte) != 0);
    let (at, found): (usize, _) = wrong.unwrap_or((0, &0));
    let (row, col) = (row.saturating_add(at / QUAD), col.saturating_add(at % QUAD));
    FormatError::new(
        ErrorCode::BadCode,
        format!("row {row}, column {col}: expected the byte of {F} trits, found {found}"),
    )
    .hint("the file is damaged, or packed in another layout")
}
