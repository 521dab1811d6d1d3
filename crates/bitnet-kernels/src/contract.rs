//! What a kernel computes, and the views it computes with.
//!
//! Invariant: nothing here knows a backend. A view says what lies where; which instructions may read it is known to
//! whoever holds the proof, [`Backend`](crate::Backend).

use crate::activations::{Activations, Panel};
use crate::lines::Line;
use crate::output::Places;
use std::ops::Range;

/// The layout of a kernel and its products.
///
/// Calling an `unsafe` entry is sound when the CPU has what the kernel requires; a
/// [`Backend`](crate::Backend) is the proof of that.
pub(crate) struct TernaryOps {
    /// The name of the layout, the same in every kernel that reads it; tiles that a file may hold are
    /// those of `formats/packing/tile32.md`.
    pub layout: &'static str,
    /// Rows that are computed together; a row range starts at a multiple.
    pub tile_rows: usize,
    /// How an [`ActivationBatch`](crate::ActivationBatch) interleaves tokens.
    pub panel: Panel,
    /// Bytes of activations that may stay in L2 while the tiles of a matrix pass by.
    pub block_bytes: usize,
    /// Lines of scratch that `dots` and `sums` want.
    pub scratch_lines: usize,
    /// Lines of one tile of this many columns.
    pub tile_lines: fn(cols: usize) -> usize,
    /// Writes row-major trits `(rows, cols)` as tiles; rows behind the last one are zero trits. Whether
    /// all of them are trits: otherwise the tiles mean nothing.
    pub pack: unsafe fn(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool,
    /// The inverse of `pack`.
    pub unpack: fn(tiles: &[Line], cols: usize, trits: &mut [i8]),
    /// Whether every byte is one that `pack` writes for some trits.
    pub are_codes: fn(tiles: &[Line]) -> bool,
    /// The contract: exact dots of one tile with some tokens.
    pub dots: Dots,
    /// Many tokens with many tiles at once, where that is faster than tile by tile.
    pub many_tokens: Option<ManyTokens>,
    /// The same sums over float activations `x: (tokens, cols)`, by rule 3 within each group.
    pub sums: unsafe fn(&Tile<'_>, x: &[f32], sums: &mut [f32]),
}

/// Leaves half of an L2 of 1 MiB to weights and outputs.
pub(crate) const BLOCK_BYTES: usize = 480 << 10;

/// Computes `dots: (tokens, groups, tile_rows)` with some scratch, and tells the sink. `tokens` starts at
/// a panel; `dots` has room for whole panels, unless there is only one token.
pub(crate) type Dots = unsafe fn(
    &Tile<'_>,
    &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    &mut dyn Sink<i32>,
);

/// Products whose preparation of the tokens pays over many rows.
pub(crate) struct ManyTokens {
    /// Fewest tokens, in a panel of their own, for which it does.
    pub fewest: usize,
    /// Computes the sums of some panels with all tiles and hands them out.
    pub sums: unsafe fn(&Tiles<'_>, &Activations, tokens: Range<usize>, done: Done<'_>),
}

/// Takes the sums of one tile and some tokens: `(tile, tokens, (tokens, tile_rows))`.
pub(crate) type Done<'a> = &'a mut dyn FnMut(usize, Range<usize>, &[f32]);

/// Some tiles of a packed matrix.
#[derive(Clone, Copy)]
// read by sums that are looked up, which only x86-64 has
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct Tiles<'a> {
    /// `(tiles, tile_lines)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales; `cols` when there is one group.
    pub group: usize,
    /// Group scales `(rows that exist, groups)` from the first tile on. With them a sum is that of rule 2,
    /// `sum_g dot_g * scale_g`; without it is the dot, which is exact in f32.
    pub scales: Option<&'a [f32]>,
}

#[cfg(target_arch = "x86_64")]
impl Tiles<'_> {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }
}

/// One tile of a packed matrix.
pub(crate) struct Tile<'a> {
    /// `(tile_lines,)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales; `cols` when there is one group.
    pub group: usize,
}

impl Tile<'_> {
    /// Groups per row.
    pub fn groups(&self) -> usize {
        self.cols / self.group
    }
}

/// Where a kernel puts the sums of a tile, some tokens at a time: they are scaled while the next ones
/// are being computed.
pub(crate) trait Sink<T> {
    /// Says that the sums of these tokens will come, but not at once: writing to memory that is not in
    /// the cache is what would take the time.
    fn soon(&mut self, tokens: Range<usize>);

    /// Where the sums of the tokens from `token` on will come to, for a kernel that spreads this over its
    /// products: requests that wait for memory are few, and all at once they hold up what L2 delivers.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    fn places(&self, token: usize) -> Places;

    /// Takes the sums of some tokens, `(tokens, groups, tile_rows)`.
    fn done(&mut self, tokens: Range<usize>, sums: &[T]);
}
