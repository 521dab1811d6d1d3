//! Many tokens by looking sums up instead of multiplying (AVX2), on the 2-bit [`tile`].
//!
//! The vector is 16 tokens. A quad of columns can add only 81 different sums of its four activations to a
//! dot, so a table holds all of them, one vector or two each, and a row adds one entry: 64 products in one
//! `vpaddw`, twice those of a `vpmaddubsw`, without one. Two vectors share the work of finding the entry. A pass
//! adds [`PASS`] quads to every row of a block; the tables are built once for all those rows, and what finds
//! the entries, the offsets, is unpacked once for all panels of tokens.
//!
//! Invariant: an entry lies between -512 and 512, and at most [`PASS`] x [`PASSES`] of them are added before
//! they are widened to 32 bits: nothing wraps, activations of -128 included.

use super::avx2_lines;
use super::tile::{self, BLOCK, COLS, ROWS};
use crate::activations::Activations;
use crate::contract::{Done, Tiles};
use crate::lanes::LANES;
use crate::lines::Line;
use std::arch::x86_64::*;
use std::ops::Range;

/// Tokens of a vector: one register of 16-bit sums.
const VECTOR: usize = 16;

/// Tokens of a panel.
pub(super) const PANEL: usize = VECTORS * VECTOR;

/// Vectors of a panel. Where its tokens fit one, one is computed.
const VECTORS: usize = 2;

/// Entries of a table: what four trits can make.
const ENTRIES: usize = 81;

/// Quads, and so tables, of a pass over the rows: 41 KiB, of an L1 of 48.
const PASS: usize = 8;

/// Columns of a pass; every group of scales is a multiple.
const PASS_COLS: usize = 4 * PASS;

/// Blocks of the 2-bit tile in a pass.
const PASS_BLOCKS: usize = PASS_COLS / COLS;

/// Passes until sums are widened.
const PASSES: usize = 7;

const _: () = assert!(PASSES * PASS * 4 * 128 <= i16::MAX as usize);

/// Most tiles that share tables: with the offsets and sums of so many rows a pass stays in L2.
const BLOCK_TILES: usize = 80;

/// Most panels that share offsets.
const BLOCK_PANELS: usize = 4;

/// The same for groups of scales, whose sums take up to 16 times the memory.
const GROUPED_TILES: usize = 32;
const GROUPED_PANELS: usize = 1;

/// Where the entries of a row are: bytes from the start of each table of one vector, two in a dword.
type Offsets = [u32; PASS / 2];

/// 16-bit sums of a vector's tokens, in the order 0, 8, 1, 9, ... 7, 15.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
struct Narrow([i16; VECTOR]);

const ENTRY: usize = size_of::<Narrow>();

/// 32-bit sums of a vector's tokens, in order; or, with scales, sums in f32.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Wide<T>([T; VECTOR]);

/// The tables of a pass, `(PASS, ENTRIES, vectors)`.
///
/// Four fields of a packed byte that is no code make at most number 120, so behind the last table there
/// is room for as much.
struct Tables([Narrow; VECTORS * ((PASS - 1) * ENTRIES + MOST_NUMBER + 1)]);

/// 3 + 3 * 3 + 3 * 9 + 3 * 27.
const MOST_NUMBER: usize = 120;

/// What is computed between two widenings: some passes of one group.
struct Period {
    group: usize,
    blocks: Range<usize>,
    opens_group: bool,
    closes_group: bool,
}

fn periods(cols: usize, group: usize) -> impl Iterator<Item = Period> {
    let per_group = group.div_ceil(PASSES * PASS_COLS);
    (0..cols / group * per_group).map(move |number| {
        let (group_number, i) = (number / per_group, number % per_group);
        let start = group_number * group + i * PASSES * PASS_COLS;
        let end = ((group_number + 1) * group).min(start + PASSES * PASS_COLS);
        Period {
            group: group_number,
            blocks: start / COLS..end.div_ceil(COLS),
            opens_group: i == 0,
            closes_group: i + 1 == per_group,
        }
    })
}

/// Memory of one block of rows and panels; a panel may use one of its vectors only.
struct Scratch {
    offsets: Vec<Offsets>,      // (passes of a period, rows)
    tables: Box<Tables>,        // of one pass and panel
    narrow: Vec<Narrow>,        // (rows, vectors) of one panel
    wide: Vec<Wide<i32>>,       // (panels, rows, vectors)
    lanes: Vec<Wide<f32>>,      // (panels, rows, vectors, lanes), with scales
    sums: [f32; VECTOR * ROWS], // (tokens, 32)
}

/// The entry of [`ManyTokens`](crate::contract::ManyTokens).
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums(tiles: &Tiles<'_>, x: &Activations, tokens: Range<usize>, done: Done<'_>) {
    let tile_lines = tile::lines::<4>(tiles.cols);
    let count = tiles.lines.len() / tile_lines;
    let (most_tiles, most_panels) = match tiles.scales {
        Some(_) => (GROUPED_TILES, GROUPED_PANELS),
        None => (BLOCK_TILES, BLOCK_PANELS),
    };
    // blocks of equal size
    let block_tiles = count.div_ceil(count.div_ceil(most_tiles).max(1)).max(1);
    let block_panels = most_panels.min(tokens.len().div_ceil(PANEL));
    let rows = block_tiles * ROWS;
    let lanes = tiles.scales.map_or(0, |_| tiles.groups().min(LANES));
    let mut scratch = Scratch {
        offsets: vec![[0; PASS / 2]; PASSES * rows],
        tables: Box::new(Tables([Narrow([0; VECTOR]); _])),
        narrow: vec![Narrow([0; VECTOR]); rows * VECTORS],
        wide: vec![Wide([0; VECTOR]); block_panels * rows * VECTORS],
        lanes: vec![Wide([0.0; VECTOR]); block_panels * rows * VECTORS * lanes],
        sums: [0.0; VECTOR * ROWS],
    };
    for tile in (0..count).step_by(block_tiles) {
        let end = count.min(tile + block_tiles);
        let block = Tiles {
            lines: &tiles.lines[tile * tile_lines..end * tile_lines],
            scales: tiles.scales.map(|s| &s[tile * ROWS * tiles.groups()..]),
            ..*tiles
        };
        for first in tokens.clone().step_by(block_panels * PANEL) {
            let tokens = first..tokens.end.min(first + block_panels * PANEL);
            block_sums(&block, x, tokens, &mut scratch, &mut |at, tokens, sums| {
                done(tile + at, tokens, sums)
            });
        }
    }
}

/// [`sums`] of one block of tiles and panels.
#[target_feature(enable = "avx2,fma")]
fn block_sums(
    tiles: &Tiles<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut Scratch,
    done: Done<'_>,
) {
    let tile_lines = tile::lines::<4>(tiles.cols);
    let rows = tiles.lines.len() / tile_lines * ROWS;
    for period in periods(tiles.cols, tiles.group) {
        let passes = period.blocks.len().div_ceil(PASS_BLOCKS);
        let offsets = &mut scratch.offsets[..passes * rows];
        for (t, lines) in tiles.lines.chunks_exact(tile_lines).enumerate() {
            let lines = &lines[period.blocks.start * BLOCK..period.blocks.end * BLOCK];
            for (offsets, lines) in offsets
                .chunks_exact_mut(rows)
                .zip(lines.chunks(PASS_BLOCKS * BLOCK))
            {
                unpack(lines, tile_lines, &mut offsets[t * ROWS..(t + 1) * ROWS]);
            }
        }
        for (p, first) in tokens.clone().step_by(PANEL).enumerate() {
            let quads = x.panel(first / PANEL).as_chunks::<PANEL>().0;
            let quads = &quads[period.blocks.start * 4..period.blocks.end * 4];
            match tokens.end - first > VECTOR {
                true => panel_period::<VECTORS>(tiles, rows, &period, p, quads, scratch),
                false => panel_period::<1>(tiles, rows, &period, p, quads, scratch),
            }
        }
    }
    let lanes = tiles.groups().min(LANES);
    for (p, first) in tokens.clone().step_by(PANEL).enumerate() {
        let vectors = (tokens.end - first).div_ceil(VECTOR).min(VECTORS);
        for tile in 0..rows / ROWS {
            for vector in 0..vectors {
                let first = first + vector * VECTOR;
                let live = first..tokens.end.min(first + VECTOR);
                let at = |row| (p * rows * VECTORS) + (tile * ROWS + row) * vectors + vector;
                match tiles.scales {
                    None => transpose(&mut scratch.sums, |row, half| {
                        scratch.wide[at(row)].load_as_floats(half)
                    }),
                    Some(_) => transpose(&mut scratch.sums, |row, half| {
                        add_lanes(&scratch.lanes[at(row) * lanes..][..lanes], half)
                    }),
                }
                done(tile, live.clone(), &scratch.sums[..live.len() * ROWS]);
            }
        }
    }
}

/// The passes of one period, of the block's panel `p` in `W` vectors; `quads` are the panel's of the period.
#[target_feature(enable = "avx2,fma")]
fn panel_period<const W: usize>(
    tiles: &Tiles<'_>,
    rows: usize,
    period: &Period,
    p: usize,
    quads: &[[i32; PANEL]],
    scratch: &mut Scratch,
) {
    let passes = period.blocks.len().div_ceil(PASS_BLOCKS);
    let scales = tiles.scales.filter(|_| period.closes_group);
    let narrow = scratch.narrow.as_chunks_mut::<W>().0;
    let narrow = &mut narrow[..rows];
    let wide = &mut scratch.wide[p * rows * VECTORS..];
    let wide = &mut wide.as_chunks_mut::<W>().0[..rows];
    for pass in 0..passes {
        let offsets = &scratch.offsets[pass * rows..(pass + 1) * rows];
        let quads = &quads[pass * PASS..quads.len().min((pass + 1) * PASS)];
        scratch.tables.build::<W>(quads);
        let (tables, opens) = (&scratch.tables, period.opens_group);
        let (first, last) = (pass == 0, pass + 1 == passes);
        let store = |_, narrow: &mut [Narrow; W], sums: [__m256i; W]| {
            for w in 0..W {
                narrow[w].store(sums[w]);
            }
        };
        let widen = |row: usize, _: &mut [Narrow; W], sums: [__m256i; W]| {
            for w in 0..W {
                widen(sums[w], opens, &mut wide[row][w]);
            }
        };
        match (first, last && scales.is_none()) {
            (true, false) => add_entries::<true, W>(offsets, tables, narrow, store),
            (false, false) => add_entries::<false, W>(offsets, tables, narrow, store),
            (true, true) => add_entries::<true, W>(offsets, tables, narrow, widen),
            (false, true) => add_entries::<false, W>(offsets, tables, narrow, widen),
        }
    }
    if let Some(scales) = scales {
        let groups = tiles.groups();
        let lanes = groups.min(LANES);
        let sums = &mut scratch.lanes[p * rows * VECTORS * lanes..][..rows * W * lanes];
        let wide = (!period.opens_group).then_some(&*wide);
        close_group::<W>(narrow, wide, period.group, scales, groups, sums);
    }
}

/// Offsets of one tile: 32 rows, and the quads of one pass (the second block may be missing). Fetches the
/// same quads of the next tile, `ahead` lines behind these.
#[target_feature(enable = "avx2")]
fn unpack(lines: &[Line], ahead: usize, offsets: &mut [Offsets]) {
    for line in lines {
        let next = std::ptr::from_ref(line).wrapping_add(ahead);
        _mm_prefetch::<_MM_HINT_T0>(next.cast());
    }
    let (blocks, _) = lines.as_chunks::<BLOCK>();
    for (i, offsets) in offsets.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let [low, high] = quad_offsets(avx2_lines::load(&blocks[0][i / 2], i % 2));
        // rows 0, 1, 4, 5 and rows 2, 3, 6, 7
        let first = [
            _mm256_unpacklo_epi32(low, high),
            _mm256_unpackhi_epi32(low, high),
        ];
        let mut second = [_mm256_setzero_si256(); 2];
        if let Some(block) = blocks.get(1) {
            let [low, high] = quad_offsets(avx2_lines::load(&block[i / 2], i % 2));
            second = [
                _mm256_unpacklo_epi32(low, high),
                _mm256_unpackhi_epi32(low, high),
            ];
        }
        for j in 0..2 {
            let even = _mm256_unpacklo_epi64(first[j], second[j]);
            let odd = _mm256_unpackhi_epi64(first[j], second[j]);
            store_offsets(&mut offsets[2 * j], _mm256_castsi256_si128(even));
            store_offsets(&mut offsets[2 * j + 1], _mm256_castsi256_si128(odd));
            store_offsets(&mut offsets[2 * j + 4], _mm256_extracti128_si256::<1>(even));
            store_offsets(&mut offsets[2 * j + 5], _mm256_extracti128_si256::<1>(odd));
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_offsets(offsets: &mut Offsets, v: __m128i) {
    // SAFETY: the reference covers 16 bytes; the store is unaligned.
    unsafe { _mm_storeu_si128(offsets.as_mut_ptr().cast(), v) }
}

/// Of 8 rows the offsets of the quads 0 and 1, and those of 2 and 3: `32 * (u0 + 3 u1 + 9 u2 + 27 u3)`.
#[inline]
#[target_feature(enable = "avx2")]
fn quad_offsets(v: __m256i) -> [__m256i; 2] {
    const { assert!(ENTRY == 32) };
    let base_three = _mm256_set1_epi32(i32::from_le_bytes([1, 3, 9, 27]));
    // field f is 4^f times too large as it lies in the byte
    let number = |v: __m256i, mask: i8, factor: i16| {
        let pairs = _mm256_maddubs_epi16(_mm256_and_si256(v, _mm256_set1_epi8(mask)), base_three);
        _mm256_madd_epi16(pairs, _mm256_set1_epi16(factor))
    };
    let [a, b] = [number(v, 0x03, 32), number(v, 0x0c, 8)];
    let [c, d] = [number(v, 0x30, 2), number(v, 0xc0u8 as i8, 1)];
    [
        _mm256_or_si256(a, _mm256_slli_epi32::<16>(b)),
        _mm256_or_si256(c, _mm256_slli_epi32::<15>(d)), // 64 times the number, not 32
    ]
}

impl Narrow {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(&self) -> __m256i {
        // SAFETY: the reference covers 32 bytes at a 32-byte boundary.
        unsafe { _mm256_load_si256(self.0.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&mut self, v: __m256i) {
        // SAFETY: the reference covers 32 bytes at a 32-byte boundary.
        unsafe { _mm256_store_si256(self.0.as_mut_ptr().cast(), v) }
    }
}

impl<T> Wide<T> {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(&self, half: usize) -> __m256i {
        const { assert!(size_of::<T>() == 4) };
        let half = &self.0.as_chunks::<8>().0[half];
        // SAFETY: the reference covers 32 bytes; the load is unaligned.
        unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn store(&mut self, half: usize, v: __m256i) {
        const { assert!(size_of::<T>() == 4) };
        let half = &mut self.0.as_chunks_mut::<8>().0[half];
        // SAFETY: the reference covers 32 bytes, any bits are an i32 or an f32; the store is unaligned.
        unsafe { _mm256_storeu_si256(half.as_mut_ptr().cast(), v) }
    }
}

impl Wide<i32> {
    /// Exact: dots are below 2^24.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load_as_floats(&self, half: usize) -> __m256 {
        _mm256_cvtepi32_ps(self.load(half))
    }
}

impl Tables {
    /// The tables of some quads, `(quads, tokens)` in order, in `W` vectors; those of no quad are 0.
    #[target_feature(enable = "avx2")]
    fn build<const W: usize>(&mut self, quads: &[[i32; PANEL]]) {
        let nothing = [0; PANEL];
        let tables = self.0.chunks_exact_mut(ENTRIES * W).take(PASS);
        for (q, table) in tables.enumerate() {
            let quads = quads.get(q).unwrap_or(&nothing).as_chunks::<VECTOR>().0;
            let table = table.as_chunks_mut::<W>().0;
            for w in 0..W {
                build(&quads[w], table, w);
            }
        }
    }

    /// Vector `w` of `W` of the entry of table `q` at an offset.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn entry<const W: usize>(&self, q: usize, offset: u32, w: usize) -> __m256i {
        debug_assert!(q < PASS && offset as usize <= MOST_NUMBER * ENTRY && w < W);
        const { assert!(W <= VECTORS) };
        // SAFETY: `q` and `w` are constants below PASS and W, and the offset one that `quad_offsets` computed: 32
        // times a number of at most MOST_NUMBER, whatever the packed bytes were. So the vector lies in the array.
        unsafe {
            let tables: *const Narrow = self.0.as_ptr();
            let table = tables.add(q * ENTRIES * W + w);
            _mm256_load_si256(table.byte_add(offset as usize * W).cast())
        }
    }
}

/// Vector `w` of the table of one quad, of its tokens of that vector.
#[inline]
#[target_feature(enable = "avx2")]
fn build<const W: usize>(quad: &[i32; VECTOR], table: &mut [[Narrow; W]], w: usize) {
    let zero = _mm256_setzero_si256();
    // columns 0 and 2, columns 1 and 3 of a token, in 16 bits each
    let (mut even, mut odd) = ([zero; 2], [zero; 2]);
    for half in 0..2 {
        let quad = &quad.as_chunks::<8>().0[half];
        // SAFETY: the reference covers 32 bytes; the load is unaligned.
        let v = unsafe { _mm256_loadu_si256(quad.as_ptr().cast()) };
        even[half] = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(v));
        odd[half] = _mm256_srai_epi16::<8>(v);
    }
    let [(a, c), (b, d)] = [split(even), split(odd)];
    let (low, high) = (nine(a, b), nine(c, d));
    for h in 0..9 {
        for l in 0..9 {
            table[9 * h + l][w].store(_mm256_add_epi16(low[l], high[h]));
        }
    }
}

/// From `[tokens 0-7, tokens 8-15]` of two columns, in turn, each column's tokens 0, 8, 1, 9, ...
#[inline]
#[target_feature(enable = "avx2")]
fn split([low, high]: [__m256i; 2]) -> (__m256i, __m256i) {
    (
        _mm256_blend_epi16::<0xaa>(low, _mm256_slli_epi32::<16>(high)),
        _mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(low), high),
    )
}

/// `t a + u b` at `(t + 1) + 3 (u + 1)`.
#[inline]
#[target_feature(enable = "avx2")]
fn nine(a: __m256i, b: __m256i) -> [__m256i; 9] {
    let zero = _mm256_setzero_si256();
    let (minus_a, minus_b) = (_mm256_sub_epi16(zero, a), _mm256_sub_epi16(zero, b));
    [
        _mm256_sub_epi16(minus_a, b),
        minus_b,
        _mm256_sub_epi16(a, b),
        minus_a,
        zero,
        a,
        _mm256_sub_epi16(b, a),
        b,
        _mm256_add_epi16(a, b),
    ]
}

/// Adds the entries of one pass to the sums of every row, which are 0 before the first, and hands them
/// out. Four rows at a time: their additions wait for each other only within a row.
#[inline]
#[target_feature(enable = "avx2")]
fn add_entries<const FIRST: bool, const W: usize>(
    offsets: &[Offsets],
    tables: &Tables,
    narrow: &mut [[Narrow; W]],
    mut done: impl FnMut(usize, &mut [Narrow; W], [__m256i; W]),
) {
    const AT_ONCE: usize = 4;
    let rows = offsets.as_chunks::<AT_ONCE>().0.iter();
    for (four, (offsets, narrow)) in rows.zip(narrow.as_chunks_mut::<AT_ONCE>().0).enumerate() {
        let mut sums = [[_mm256_setzero_si256(); W]; AT_ONCE];
        if !FIRST {
            for r in 0..AT_ONCE {
                for w in 0..W {
                    sums[r][w] = narrow[r][w].load();
                }
            }
        }
        for pair in 0..PASS / 2 {
            for r in 0..AT_ONCE {
                let offsets = offsets[r][pair];
                for w in 0..W {
                    let low = tables.entry::<W>(2 * pair, offsets & 0xffff, w);
                    let high = tables.entry::<W>(2 * pair + 1, offsets >> 16, w);
                    sums[r][w] = _mm256_add_epi16(_mm256_add_epi16(sums[r][w], low), high);
                }
            }
        }
        for r in 0..AT_ONCE {
            done(AT_ONCE * four + r, &mut narrow[r], sums[r]);
        }
    }
}

/// Tokens 0-7 and 8-15 in 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn widened(sums: __m256i) -> [__m256i; 2] {
    [
        _mm256_madd_epi16(sums, _mm256_set1_epi32(1)),
        _mm256_srai_epi32::<16>(sums),
    ]
}

/// `wide += sums`, or `=` if they are the first.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(sums: __m256i, first: bool, wide: &mut Wide<i32>) {
    let sums = widened(sums);
    for half in 0..2 {
        let sum = match first {
            true => sums[half],
            false => _mm256_add_epi32(wide.load(half), sums[half]),
        };
        wide.store(half, sum);
    }
}

/// Rule 2: the lane `group % 16` of every row takes the product of the group's dot, `wide + narrow`, and
/// its scale. `scales: (tiles, groups, 32)`, `sums: (rows, W, lanes)`.
#[target_feature(enable = "avx2,fma")]
fn close_group<const W: usize>(
    narrow: &[[Narrow; W]],
    wide: Option<&[[Wide<i32>; W]]>,
    group: usize,
    scales: &[f32],
    groups: usize,
    sums: &mut [Wide<f32>],
) {
    let lanes = groups.min(LANES);
    let scales = scales.as_chunks::<ROWS>().0.iter().skip(group);
    let rows = narrow
        .iter()
        .zip(sums.chunks_exact_mut(lanes * W))
        .zip(scales.step_by(groups).flatten());
    for (row, ((narrow, sums), scale)) in rows.enumerate() {
        let scale = _mm256_set1_ps(*scale);
        for (w, sums) in sums.chunks_exact_mut(lanes).enumerate() {
            let lane = &mut sums[group % LANES];
            let dots = widened(narrow[w].load());
            for half in 0..2 {
                let mut dot = dots[half];
                if let Some(wide) = wide {
                    dot = _mm256_add_epi32(dot, wide[row][w].load(half));
                }
                let so_far = match group < LANES {
                    true => _mm256_setzero_ps(),
                    false => _mm256_castsi256_ps(lane.load(half)),
                };
                let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, so_far);
                lane.store(half, _mm256_castps_si256(sum));
            }
        }
    }
}

/// Rule 3's sum of up to 16 lanes, of the tokens of one half; lanes that are missing are 0.
#[inline]
#[target_feature(enable = "avx2")]
fn add_lanes(lanes: &[Wide<f32>], half: usize) -> __m256 {
    let mut sums = [_mm256_setzero_ps(); LANES];
    for (sum, lane) in sums.iter_mut().zip(lanes) {
        *sum = _mm256_castsi256_ps(lane.load(half));
    }
    for distance in [8, 4, 2, 1] {
        for j in 0..distance {
            sums[j] = _mm256_add_ps(sums[j], sums[j + distance]);
        }
    }
    sums[0]
}

/// `sums: (16 tokens, 32 rows)` from `load(row, half)`, 8 tokens of one row.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(sums: &mut [f32; VECTOR * ROWS], load: impl Fn(usize, usize) -> __m256) {
    let to = sums.as_chunks_mut::<8>().0; // (tokens, 4) of 8 rows
    for rows in 0..ROWS / 8 {
        for half in 0..2 {
            let mut v = [_mm256_setzero_ps(); 8];
            for r in 0..8 {
                v[r] = load(8 * rows + r, half);
            }
            // pairs of rows, then fours, then eights: token t is in element t of every v[r]
            let mut pairs = v;
            for r in 0..4 {
                pairs[2 * r] = _mm256_unpacklo_ps(v[2 * r], v[2 * r + 1]);
                pairs[2 * r + 1] = _mm256_unpackhi_ps(v[2 * r], v[2 * r + 1]);
            }
            let mut fours = v;
            for r in 0..2 {
                for i in 0..2 {
                    let (a, b) = (pairs[4 * r + i], pairs[4 * r + 2 + i]);
                    fours[4 * r + 2 * i] = _mm256_shuffle_ps::<0x44>(a, b);
                    fours[4 * r + 2 * i + 1] = _mm256_shuffle_ps::<0xee>(a, b);
                }
            }
            for t in 0..4 {
                let low = _mm256_permute2f128_ps::<0x20>(fours[t], fours[4 + t]);
                let high = _mm256_permute2f128_ps::<0x31>(fours[t], fours[4 + t]);
                store_rows(&mut to[(8 * half + t) * (ROWS / 8) + rows], low);
                store_rows(&mut to[(8 * half + 4 + t) * (ROWS / 8) + rows], high);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_rows(to: &mut [f32; 8], v: __m256) {
    // SAFETY: the reference covers 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), v) }
}
