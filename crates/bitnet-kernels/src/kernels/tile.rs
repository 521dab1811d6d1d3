//! The 2-bit tile: 32 rows, in blocks of 16 columns of two lines each (rows 0-15, rows 16-31).
//!
//! Byte `4 * row + j` of a line holds the codes `u = trit + 1` of the block's columns `4 f + j` in
//! bits `2 f ..= 2 f + 1`, for `f` in `0..4`: one dword per row, and the field `f` of a line is a
//! vector of four consecutive columns (a quad) of 16 rows, as dot-product instructions want it.
//!
//! Invariant: everything outside the matrix, columns behind the last and rows behind the last, has
//! code 1 (trit 0), so it adds `a` to a dot like every zero trit, and the sum of activations that is
//! subtracted in the end takes it out again.

use super::Tile;
use crate::activations::ActivationBatch;
use crate::float_ops::{LANES, add_lanes};
use crate::lines::{LINE, Line, as_bytes};
use std::ops::Range;

/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Columns of a block.
pub(super) const COLS: usize = 16;
/// Lines of a block.
pub(super) const BLOCK: usize = 2;
/// Columns that are unpacked at a time for many tokens: 32 rows are 16 KiB, a third of L1.
pub(super) const CHUNK: usize = 512;
/// Lines of scratch for one chunk: two per quad.
pub(super) const SCRATCH_LINES: usize = CHUNK / 4 * 2;

/// Four codes of trit 0.
const ZEROS: u32 = 0x0101_0101;

pub(super) fn lines(cols: usize) -> usize {
    cols.div_ceil(COLS) * BLOCK
}

/// 16 trits to one row's dword.
fn encode(trits: &[i8; COLS]) -> u32 {
    let (quads, _) = trits.as_chunks::<4>();
    quads.iter().enumerate().fold(0, |dword, (f, quad)| {
        let trits = u32::from_le_bytes(quad.map(|t| t as u8)) & (3 * ZEROS); // -1 is 3
        dword | (((trits + ZEROS) & (3 * ZEROS)) << (2 * f))
    })
}

/// The inverse of [`encode`].
fn decode(dword: u32) -> [i8; COLS] {
    std::array::from_fn(|k| (dword >> (8 * (k % 4) + 2 * (k / 4)) & 3) as i8 - 1)
}

/// Where row `row` of a tile keeps its dwords: line of each block, first byte in it.
fn place(row: usize) -> (usize, usize) {
    (row / 16, row % 16 * 4)
}

pub(super) fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) {
    tiles.fill(Line([encode(&[0; COLS]) as u8; LINE]));
    for (rows, tile) in trits
        .chunks(ROWS * cols)
        .zip(tiles.chunks_exact_mut(lines(cols)))
    {
        for (row, trits) in rows.chunks_exact(cols).enumerate() {
            let (line, byte) = place(row);
            for (trits, block) in trits.chunks(COLS).zip(tile.chunks_exact_mut(BLOCK)) {
                // the whole blocks, which is all but one, without a copy of variable length
                let dword = trits.first_chunk().map_or_else(
                    || {
                        let mut padded = [0; COLS];
                        padded[..trits.len()].copy_from_slice(trits);
                        encode(&padded)
                    },
                    encode,
                );
                block[line].0[byte..byte + 4].copy_from_slice(&dword.to_le_bytes());
            }
        }
    }
}

pub(super) fn unpack(tiles: &[Line], cols: usize, trits: &mut [i8]) {
    for (rows, tile) in trits
        .chunks_mut(ROWS * cols)
        .zip(tiles.chunks_exact(lines(cols)))
    {
        for (row, trits) in rows.chunks_exact_mut(cols).enumerate() {
            for (trits, dword) in trits.chunks_mut(COLS).zip(row_dwords(tile, row)) {
                trits.copy_from_slice(&decode(dword)[..trits.len()]);
            }
        }
    }
}

/// The dwords of one row of a tile, 16 columns each.
fn row_dwords(tile: &[Line], row: usize) -> impl Iterator<Item = u32> {
    let (line, byte) = place(row);
    as_bytes(tile)
        .chunks_exact(BLOCK * LINE)
        .filter_map(move |block| {
            block[line * LINE + byte..]
                .first_chunk()
                .map(|b| u32::from_le_bytes(*b))
        })
}

/// Four activations as the dword that is broadcast to all rows.
#[inline(always)]
pub(super) fn dword(quad: &[i8; 4]) -> i32 {
    let [a, b, c, d] = *quad;
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

/// At most [`CHUNK`] columns of one group.
pub(super) struct Chunk {
    /// The group of scales.
    pub group: usize,
    /// Its first columns?
    pub opens_group: bool,
    /// Blocks of these columns.
    pub blocks: Range<usize>,
    number: usize,
    of: usize,
}

impl Chunk {
    /// Whether these are the last columns of all.
    pub fn is_last(&self) -> bool {
        self.number + 1 == self.of
    }

    /// As large a part of a range as this chunk is of all columns.
    pub fn part(&self, range: Range<usize>) -> Range<usize> {
        let part = |number| range.start + range.len() * number / self.of;
        part(self.number)..part(self.number + 1)
    }
}

/// The chunks of all columns, in order.
pub(super) fn chunks(cols: usize, group: usize) -> impl Iterator<Item = Chunk> {
    let per_group = group.div_ceil(CHUNK);
    let of = cols / group * per_group;
    (0..of).map(move |number| {
        let (g, i) = (number / per_group, number % per_group);
        let start = g * group + i * CHUNK;
        let end = ((g + 1) * group).min(start + CHUNK);
        let blocks = start / COLS..end.div_ceil(COLS);
        Chunk {
            group: g,
            opens_group: i == 0,
            blocks,
            number,
            of,
        }
    })
}

/// Sets every dot of `dots: (tokens, groups, 32)` to minus the sum of its activations, by which
/// `sum of u * a` exceeds `sum of trit * a`.
#[inline(always)]
pub(super) fn start_at_minus_sums(
    tile: &Tile<'_>,
    x: &ActivationBatch,
    tokens: Range<usize>,
    dots: &mut [i32],
) {
    let groups = tile.groups();
    for (token, dots) in tokens.zip(dots.chunks_exact_mut(groups * ROWS)) {
        for (g, dots) in dots.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            *dots = [-x.group_sum(token, g, tile.group); ROWS];
        }
    }
}

/// Sums over float activations `x: (tokens, cols)`, by rule 3 in every group.
#[inline(always)]
pub(super) fn sums(tile: &Tile<'_>, x: &[f32], sums: &mut [f32]) {
    for (x, sums) in x
        .chunks_exact(tile.cols)
        .zip(sums.chunks_exact_mut(tile.groups() * ROWS))
    {
        for row in 0..ROWS {
            let mut dwords = row_dwords(tile.lines, row);
            for (g, x) in x.chunks_exact(tile.group).enumerate() {
                let mut lanes = [0.0; LANES];
                for (x, dword) in x.chunks(COLS).zip(&mut dwords) {
                    for (j, (x, trit)) in x.iter().zip(decode(dword)).enumerate() {
                        lanes[j] = f32::from(trit).mul_add(*x, lanes[j]);
                    }
                }
                sums[g * ROWS + row] = add_lanes(lanes);
            }
        }
    }
}
