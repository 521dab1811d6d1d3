//! Many tokens of fixed-point activations by looking sums up, on the 2-bit [`tile`](super::tile).
//!
//! A vector is the 32-bit sums of 16 tokens. A quad of columns can add only 81 different sums of its four integers to
//! a dot, so a table holds all of them, one vector each, and a row adds one entry: 64 products of 24 bits. By planes
//! they would be three `vpdpbusd` of 64 products of 8 bits, or six of half a register. The tables of a pass, [`PASS`]
//! quads, are built once for all rows of a block of tiles; what finds the entries, the numbers of the rows, is
//! unpacked once for all panels of tokens of a block.
//!
//! The body is written once, for any [`Vector`], and compiled once per instruction set.
//!
//! Invariant: a segment is at most 128 columns, so its sums are below 2^31 (`fixed_point`).

use super::tile::{self, BLOCK, COLS, ROWS};
use crate::contract::{Done, FixedTiles};
use crate::fixed_point::{self, FixedPoint, GROUP, PANEL};
use crate::lines::Line;
use std::ops::Range;

/// Entries of a table: what four trits can make.
const ENTRIES: usize = 81;

/// Quads, and so tables, of a pass over the rows: 41 KiB, of an L1 of 48.
const PASS: usize = 8;

/// Columns of a pass; every segment but the last is a multiple.
const PASS_COLS: usize = 4 * PASS;

/// Blocks of the 2-bit tile in a pass.
const PASS_BLOCKS: usize = PASS_COLS / COLS;

/// Most passes of a segment.
const PASSES: usize = GROUP / PASS_COLS;

/// Rows that are added to at once, so that an addition does not wait for the one before it.
const AT_ONCE: usize = 4;

/// Most tiles that share tables: with the numbers and sums of so many rows a pass stays in L2.
const BLOCK_TILES: usize = 64;

/// Most panels that share numbers.
const BLOCK_PANELS: usize = 2;

/// 32-bit sums of the tokens of a panel.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Dots(pub [i32; PANEL]);

/// [`Dots`] in registers.
///
/// # Safety
/// Its functions may be called where the CPU has the instructions that the type stands for.
pub(super) trait Vector: Copy {
    unsafe fn load(dots: &Dots) -> Self;
    unsafe fn store(self, dots: &mut Dots);
    unsafe fn add(self, other: &Dots) -> Self;
    /// Adds the dots to the sums, by [`add`](crate::fixed_point::add).
    unsafe fn close(self, step: &[f32; PANEL], sums: &mut Sums);
    /// The same by [`add_scaled`](crate::fixed_point::add_scaled).
    unsafe fn close_scaled(self, step: &[f32; PANEL], scale: f32, sums: &mut Sums);
    /// Of the 16 rows of a line the numbers of field `F` (0, 2, 4, 6: how far its codes lie from bit 0).
    unsafe fn numbers<const F: u32>(line: &Line) -> [u16; 16];
    /// `(rows, tokens)` to `(tokens, rows)`.
    unsafe fn transpose(sums: &[Sums; ROWS], to: &mut [f32; PANEL * ROWS]);
}

/// Sums of the segments so far.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums(pub [f32; PANEL]);

/// The four codes of a quad, times this, add up in the highest byte: `u0 + 3 u1 + 9 u2 + 27 u3`.
pub(super) const BASE_THREE: i32 = i32::from_le_bytes([27, 9, 3, 1]);

/// The numbers in base three of some rows' trits: which entry of each table they add.
type Numbers = [[u16; AT_ONCE]; PASS];

/// The tables of a pass, `(PASS, ENTRIES)`. A packed byte that is no code makes at most number 120, so behind
/// the last table there is room for as much.
struct Tables([Dots; (PASS - 1) * ENTRIES + MOST_NUMBER + 1]);

/// 3 + 3 * 3 + 3 * 9 + 3 * 27.
const MOST_NUMBER: usize = 120;

/// Memory of one block of rows and panels.
struct Scratch {
    numbers: Vec<Numbers>,     // (passes of a segment, rows / 4)
    tables: Box<Tables>,       // of one pass and panel
    dots: Vec<Dots>,           // (rows,) of one panel
    sums: Vec<Sums>,           // (panels, rows)
    tile: [f32; PANEL * ROWS], // (tokens, 32)
}

/// The body of [`ManyFixed`](crate::contract::ManyFixed).
///
/// # Safety
/// That of `V`.
#[inline(always)]
pub(super) unsafe fn sums<V: Vector>(
    tiles: &FixedTiles<'_>,
    x: &FixedPoint,
    tokens: Range<usize>,
    done: Done<'_>,
) {
    let tile_lines = tile::lines::<4>(tiles.cols);
    let count = tiles.lines.len() / tile_lines;
    // blocks of equal size
    let block_tiles = count.div_ceil(count.div_ceil(BLOCK_TILES).max(1)).max(1);
    let block_panels = BLOCK_PANELS.min(tokens.len().div_ceil(PANEL));
    let rows = block_tiles * ROWS;
    let mut scratch = Scratch {
        numbers: vec![[[0; AT_ONCE]; PASS]; PASSES * rows / AT_ONCE],
        tables: Box::new(Tables([Dots([0; PANEL]); _])),
        dots: vec![Dots([0; PANEL]); rows],
        sums: vec![Sums([0.0; PANEL]); block_panels * rows],
        tile: [0.0; PANEL * ROWS],
    };
    let tile_scales = tiles.groups() * ROWS;
    for tile in (0..count).step_by(block_tiles) {
        let end = count.min(tile + block_tiles);
        let block = FixedTiles {
            lines: &tiles.lines[tile * tile_lines..end * tile_lines],
            scales: &tiles.scales[tile * tile_scales..end * tile_scales],
            ..*tiles
        };
        for first in tokens.clone().step_by(block_panels * PANEL) {
            let tokens = first..tokens.end.min(first + block_panels * PANEL);
            let mut done = |at, tokens, sums: &[f32]| done(tile + at, tokens, sums);
            // SAFETY: the caller's.
            unsafe { block_sums::<V>(&block, x, tokens, &mut scratch, &mut done) };
        }
    }
}

/// [`sums`] of one block of tiles and panels; so safe.
#[inline(always)]
unsafe fn block_sums<V: Vector>(
    tiles: &FixedTiles<'_>,
    x: &FixedPoint,
    tokens: Range<usize>,
    scratch: &mut Scratch,
    done: Done<'_>,
) {
    let tile_lines = tile::lines::<4>(tiles.cols);
    let rows = tiles.lines.len() / tile_lines * ROWS;
    let panels = tokens.len().div_ceil(PANEL);
    scratch.sums[..panels * rows].fill(Sums([0.0; PANEL]));
    for segment in tiles.segments() {
        let blocks = fixed_point::blocks(&segment, COLS);
        let passes = blocks.len().div_ceil(PASS_BLOCKS);
        let per_pass = rows / AT_ONCE;
        let numbers = &mut scratch.numbers[..passes * per_pass];
        for (t, lines) in tiles.lines.chunks_exact(tile_lines).enumerate() {
            let lines = &lines[blocks.start * BLOCK..blocks.end * BLOCK];
            for (numbers, lines) in numbers
                .chunks_exact_mut(per_pass)
                .zip(lines.chunks(PASS_BLOCKS * BLOCK))
            {
                // SAFETY: the caller's.
                unsafe {
                    unpack::<V>(
                        lines,
                        tile_lines,
                        &mut numbers[t * (ROWS / AT_ONCE)..][..ROWS / AT_ONCE],
                    )
                };
            }
        }
        for p in 0..panels {
            let panel = tokens.start / PANEL + p;
            let columns = &x.panel(panel)[segment.start..][..passes * PASS_COLS];
            let dots = &mut scratch.dots[..rows];
            for pass in 0..passes {
                let numbers = &scratch.numbers[pass * per_pass..(pass + 1) * per_pass];
                scratch
                    .tables
                    .build(&columns[pass * PASS_COLS..(pass + 1) * PASS_COLS]);
                let closing = Closing {
                    step: &x.panel_steps(panel)[segment.step()],
                    scales: tiles.scales.as_chunks().0,
                    groups: tiles.groups(),
                    group: segment.scale,
                    sums: scratch.sums[p * rows..(p + 1) * rows].as_chunks_mut().0,
                };
                let tables = &scratch.tables;
                // SAFETY: the caller's.
                unsafe {
                    match (pass == 0, pass + 1 == passes) {
                        (true, false) => add::<V, true, false>(numbers, tables, dots, closing),
                        (true, true) => add::<V, true, true>(numbers, tables, dots, closing),
                        (false, false) => add::<V, false, false>(numbers, tables, dots, closing),
                        (false, true) => add::<V, false, true>(numbers, tables, dots, closing),
                    }
                }
            }
        }
    }
    for p in 0..panels {
        let first = tokens.start + p * PANEL;
        let live = first..tokens.end.min(first + PANEL);
        let sums = scratch.sums[p * rows..(p + 1) * rows].as_chunks::<ROWS>().0;
        for (tile, sums) in sums.iter().enumerate() {
            // SAFETY: the caller's.
            unsafe { V::transpose(sums, &mut scratch.tile) };
            done(tile, live.clone(), &scratch.tile[..live.len() * ROWS]);
        }
    }
}

/// Numbers of one tile: 32 rows, and the quads of one pass (the second block may be missing). Fetches the
/// same quads of the next tile, `ahead` lines behind these.
#[inline(always)]
unsafe fn unpack<V: Vector>(lines: &[Line], ahead: usize, numbers: &mut [Numbers]) {
    for (l, line) in lines.iter().enumerate() {
        crate::lines::prefetch(std::ptr::from_ref(line).wrapping_add(ahead));
        let (block, half) = (l / BLOCK, l % BLOCK);
        let numbers = &mut numbers[half * (16 / AT_ONCE)..][..16 / AT_ONCE];
        // SAFETY: the caller's.
        let fields = unsafe {
            [
                V::numbers::<0>(line),
                V::numbers::<2>(line),
                V::numbers::<4>(line),
                V::numbers::<6>(line),
            ]
        };
        for (f, rows) in fields.iter().enumerate() {
            for (numbers, four) in numbers.iter_mut().zip(rows.as_chunks::<AT_ONCE>().0) {
                numbers[4 * block + f] = *four;
            }
        }
    }
    if lines.len() == BLOCK {
        // a pass that ends early adds entries of tables of zeros
        for numbers in numbers {
            numbers[4..].fill([0; AT_ONCE]);
        }
    }
}

impl Tables {
    /// The tables of some columns, `(PASS_COLS, tokens)`.
    #[inline(always)]
    fn build(&mut self, columns: &[[i32; PANEL]]) {
        let quads = columns.as_chunks::<4>().0.iter();
        for (quad, table) in quads.zip(self.0.chunks_exact_mut(ENTRIES)) {
            let (low, high) = (nine(&quad[0], &quad[1]), nine(&quad[2], &quad[3]));
            for (high, table) in high.iter().zip(table.as_chunks_mut::<9>().0) {
                for (low, entry) in low.iter().zip(table) {
                    let mut sum = [0; PANEL];
                    for t in 0..PANEL {
                        sum[t] = low[t] + high[t];
                    }
                    *entry = Dots(sum);
                }
            }
        }
    }

    /// The entry of table `q` at a number.
    #[inline(always)]
    fn entry(&self, q: usize, number: u16) -> &Dots {
        debug_assert!(q < PASS && usize::from(number) <= MOST_NUMBER);
        // SAFETY: `q` is a constant below PASS, and the number one that `unpack` computed: four fields of at most 3
        // in base three, at most MOST_NUMBER. So the entry lies in the array.
        unsafe { self.0.get_unchecked(q * ENTRIES + usize::from(number)) }
    }
}

/// `t a + u b` at `(t + 1) + 3 (u + 1)`.
#[inline(always)]
fn nine(a: &[i32; PANEL], b: &[i32; PANEL]) -> [[i32; PANEL]; 9] {
    let mut all = [[0; PANEL]; 9];
    for u in 0..3 {
        for t in 0..3 {
            for i in 0..PANEL {
                all[3 * u + t][i] = (t as i32 - 1) * a[i] + (u as i32 - 1) * b[i];
            }
        }
    }
    all
}

/// Where the dots of a segment go when they are complete.
struct Closing<'a> {
    step: &'a [f32; PANEL],
    scales: &'a [[f32; ROWS]], // (tiles, groups)
    groups: usize,
    group: usize,
    sums: &'a mut [[Sums; AT_ONCE]], // (rows / 4,)
}

/// Adds the entries of one pass to the dots of every row, which are 0 before the first pass; after the last they are
/// added to the sums.
#[inline(always)]
unsafe fn add<V: Vector, const FIRST: bool, const LAST: bool>(
    numbers: &[Numbers],
    tables: &Tables,
    dots: &mut [Dots],
    closing: Closing<'_>,
) {
    const ZERO: Dots = Dots([0; PANEL]);
    const FOURS: usize = ROWS / AT_ONCE;
    let dots = dots.as_chunks_mut::<AT_ONCE>().0;
    let rows = numbers.iter().zip(dots).zip(closing.sums);
    for (four, ((numbers, dots), sums)) in rows.enumerate() {
        // SAFETY: the caller's.
        unsafe {
            let mut now = [V::load(&ZERO); AT_ONCE];
            if !FIRST {
                for r in 0..AT_ONCE {
                    now[r] = V::load(&dots[r]);
                }
            }
            for q in 0..PASS {
                for r in 0..AT_ONCE {
                    now[r] = now[r].add(tables.entry(q, numbers[q][r]));
                }
            }
            if !LAST {
                for r in 0..AT_ONCE {
                    now[r].store(&mut dots[r]);
                }
            } else if closing.groups == 0 {
                for r in 0..AT_ONCE {
                    now[r].close(closing.step, &mut sums[r]);
                }
            } else {
                let scales = &closing.scales[four / FOURS * closing.groups + closing.group];
                let scales = &scales.as_chunks::<AT_ONCE>().0[four % FOURS];
                for r in 0..AT_ONCE {
                    now[r].close_scaled(closing.step, scales[r], &mut sums[r]);
                }
            }
        }
    }
}
