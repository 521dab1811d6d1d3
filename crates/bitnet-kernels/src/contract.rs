//! What a kernel computes, and the views it computes with.
//!
//! Invariant: nothing here knows a backend. A view says what lies where; which instructions may read it is known to
//! whoever holds the proof, [`Backend`](crate::Backend).

use crate::activations::{Activations, Panel};
use crate::fixed_point::{FixedPoint, FixedToken, PANEL, Segment};
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
    /// What `fixed` and `many_fixed` read, if not these tiles: writes a tile of `cols` columns in the layout of
    /// [`Kernel::two_bits`](crate::kernel::Kernel::two_bits).
    pub two_bits: Option<TwoBits>,
    /// One token of fixed-point activations with one tile.
    pub fixed: Fixed,
    /// Fixed-point activations with these tiles by tables of their sums, in place of `fixed` and `many_fixed`.
    pub by_tables: Option<ByTables>,
    /// Many tokens of fixed-point activations, if that is faster.
    pub many_fixed: Option<ManyFixed>,
}

/// Writes `tile`, of some columns, as a tile of two bits a trit.
pub(crate) type TwoBits = unsafe fn(tile: &[Line], cols: usize, two_bits: &mut [Line]);

/// Computes `sums: (tile_rows,)` of one token (`formats/numerics.md`): over the segments in order, times
/// the scales if there are groups.
pub(crate) type Fixed = unsafe fn(&FixedTiles<'_>, &FixedToken<'_>, sums: &mut [f32]);

/// Fixed-point products whose preparation of the tokens pays over many rows.
pub(crate) struct ManyFixed {
    /// Fewest tokens, in a panel of their own, for which it does.
    pub fewest: usize,
    /// Computes the sums of some panels with all tiles and hands them out.
    pub sums: unsafe fn(&FixedTiles<'_>, &FixedPoint, tokens: Range<usize>, done: Done<'_>),
}

impl ManyFixed {
    /// How many of so many tokens are taken in panels; the others one by one.
    pub fn of(&self, tokens: usize) -> usize {
        match tokens % PANEL {
            rest if rest < self.fewest => tokens - rest,
            _ => tokens,
        }
    }
}

/// Fixed-point products that look up sums of a token's integers. All segments are
/// [`GROUP`](crate::fixed_point::GROUP) columns, but for the last of a row.
pub(crate) struct ByTables {
    /// Lines of the tables of a segment.
    pub lines: usize,
    /// Writes the tables, `(segments, lines)`, of a token's integers, `(cols,)`.
    pub build: unsafe fn(integers: &[i32], tables: &mut [Line]),
    /// Computes the sums of some tokens with all tiles, as [`Fixed`] does, and hands them out.
    pub sums: unsafe fn(&TableTiles<'_>, &FixedPoint, tokens: Range<usize>, done: Done<'_>),
}

/// Some tiles of a packed matrix, for products by tables.
// read by AVX-512 kernels
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) struct TableTiles<'a> {
    /// `(tiles, tile_lines)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales, if they are in groups.
    pub group: Option<usize>,
    /// The scales of groups.
    pub scales: GroupScales<'a>,
}

#[cfg(target_arch = "x86_64")]
impl TableTiles<'_> {
    /// Groups of scales per row; 0 without groups.
    pub fn groups(&self) -> usize {
        self.group.map_or(0, |group| self.cols / group)
    }
}

/// The scales of groups as a matrix keeps them, `(tiles, groups, tile_rows)`.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) enum GroupScales<'a> {
    None,
    F16(&'a [u16]),
    Bf16(&'a [u16]),
    F32(&'a [f32]),
}

/// Some tiles of a packed matrix, or one.
#[derive(Clone, Copy)]
pub(crate) struct FixedTiles<'a> {
    /// `(tiles, tile_lines)`
    pub lines: &'a [Line],
    /// Columns of the matrix, not 0.
    pub cols: usize,
    /// Columns per group of scales, if they are in groups.
    pub group: Option<usize>,
    /// With groups their scales, `(tiles, groups, tile_rows)`.
    pub scales: &'a [f32],
}

impl FixedTiles<'_> {
    /// The segments of a row, in order.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<> {
        Segment::all(self.cols, self.group)
    }

    /// Columns of every segment but the last.
    #[cfg(target_arch = "x86_64")]
    pub fn width(&self) -> usize {
        Segment::width(self.group)
    }

    /// Groups of scales per row; 0 without groups.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code)
    )]
    pub fn groups(&self) -> usize {
        self.group.map_or(0, |group| self.cols / group)
    }
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
    /// Group scales `(tiles, groups, tile_rows)`. With them a sum is that of rule 2,
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
