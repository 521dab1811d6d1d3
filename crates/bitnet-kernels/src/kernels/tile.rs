//! Tiles of 32 rows, in blocks of a few quads of columns and of two lines each (rows 0-15, rows 16-31).
//!
//! A quad is four consecutive columns, what one dot-product instruction adds up. A block of `F` quads is
//! one dword per row: byte `4 * row + j` of a line holds the columns `4 f + j` of the block, for `f` in
//! `0..F`, the way a [`Code`](super::tile_pack::Code) says. In the 2-bit tile (`TwoBits`, `F` = 4) they are the codes
//! `u = trit + 1` in bits `2 f ..= 2 f + 1`, so that the field `f` of a line is a quad of 16 rows.
//!
//! Invariant: everything outside the matrix, columns behind the last and rows behind the last, has
//! code 1 (trit 0), so it adds `a` to a dot like every zero trit, and the sum of activations that is
//! subtracted in the end takes it out again.

use std::ops::Range;

/// Rows of a tile.
pub(super) const ROWS: usize = 32;
/// Lines of a block.
pub(super) const BLOCK: usize = 2;
/// Columns of a block of the 2-bit tile.
pub(super) const COLS: usize = 16;
/// Columns that are unpacked into L1 for many tokens: 32 rows are 16 KiB, a third of it.
pub(super) const CHUNK: usize = 512;

/// Lines of a tile of `cols` columns in blocks of `F` quads.
pub(super) fn lines<const F: usize>(cols: usize) -> usize {
    cols.div_ceil(4 * F) * BLOCK
}

/// Four activations as the dword that is broadcast to all rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn dword(quad: &[i8; 4]) -> i32 {
    let [a, b, c, d] = *quad;
    i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
}

/// Some columns of one group.
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

/// The chunks of at most `most` columns, in order, each of whole blocks of `F` quads (groups are, too).
pub(super) fn chunks_of<const F: usize>(
    most: usize,
    cols: usize,
    group: usize,
) -> impl Iterator<Item = Chunk> {
    let chunk = most / (4 * F) * (4 * F);
    let per_group = group.div_ceil(chunk);
    let of = cols / group * per_group;
    (0..of).map(move |number| {
        let (g, i) = (number / per_group, number % per_group);
        let start = g * group + i * chunk;
        let end = ((g + 1) * group).min(start + chunk);
        let blocks = start / (4 * F)..end.div_ceil(4 * F);
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
#[cfg(target_arch = "aarch64")]
#[inline(always)]
pub(super) fn start_at_minus_sums(
    tile: &crate::contract::Tile<'_>,
    x: &crate::activations::Activations,
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

/// The quads of a plane of fixed-point activations, some blocks at a time.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn quads_of(plane: &[i8], blocks: usize) -> std::slice::Chunks<'_, [[i8; 4]; 4]> {
    plane.as_chunks::<4>().0.as_chunks::<4>().0.chunks(blocks)
}
