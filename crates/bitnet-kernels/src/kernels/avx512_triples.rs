//! Fixed-point activations by looking sums up in registers (AVX-512): 1.75 bits a weight, for matrices
//! whose segments are 128 columns.
//!
//! Three columns can add only 27 different sums of their integers to a dot. Two registers hold all of them, and
//! `vpermi2d` reads them by five bits, for 16 rows at once: 48 products of 24 bits, where `vpdpbusd` makes 64 of 8. The
//! tables of a few tokens are built once, when they become fixed-point, and serve every matrix that reads them; those of
//! many are built for a block of tiles. A block is taken one segment after the other, so that tables stay in L1.
//!
//! Layout: 32 rows; a block is 128 columns, seven lines of rows 0-15 and seven of rows 16-31. A dword of a line is of one
//! row. Bits `5 f ..= 5 f + 4` of its line `d` hold `u0 + 3 u1 + 9 u2` of the columns `18 d + 3 f ..`, with `u` = trit + 1.
//! The highest bits of the lines 0 and 1 hold `u0 + 3 u1` of the last two columns, 126 and 127.
//!
//! Invariant: five bits never lead out of a table, whatever they are; and a sum of 128 integers is below 2^31
//! (`fixed_point`).

use super::avx512_lines::{load, load_floats, store};
use super::tile::{self, BLOCK, ROWS};
use crate::contract::{ByTables, Done, GroupScales, TableTiles, TernaryOps, Tile};
use crate::fixed_point::{FixedPoint, GROUP};
use crate::lines::{LINE, Line};
use std::arch::x86_64::*;
use std::ops::Range;

/// What a kernel with the 2-bit tile does with this layout. It brings `dots` of its own, for which [`two_bits_of`] is
/// there.
pub(super) const fn on(two_bits: TernaryOps) -> TernaryOps {
    TernaryOps {
        layout: "tile32-1.75bit",
        tile_lines,
        pack,
        unpack,
        are_codes,
        many_tokens: None,
        many_fixed: None,
        by_tables: Some(ByTables {
            lines: TABLES,
            build,
            sums,
        }),
        ..two_bits
    }
}

/// Lines of a block and half a tile.
const LINES: usize = 7;

/// Fields of a dword.
const FIELDS: usize = 6;

/// Bits of a field.
const BITS: usize = 5;

/// Tables of a segment; the last is of two columns.
const TRIPLES: usize = 43;

/// Lines of the tables of a segment.
const TABLES: usize = 2 * TRIPLES;

/// What a field holds of three zero trits.
const MOST: u32 = 26;

/// Rows of a line.
const LINE_ROWS: usize = LINE / 4;

/// Lines of a segment of a tile.
const SEGMENT: usize = ROWS / LINE_ROWS * LINES;

/// Most tiles of a block for a few tokens, and how many tiles ahead of the products lines are fetched.
const BLOCK_TILES: usize = 16;

/// Most tiles of a block for many tokens, for which tables are built.
const LONG_BLOCK_TILES: usize = 128;

/// Tokens that share numbers: three would not leave the sums in registers.
const TOKENS: usize = 2;

const _: () = assert!(LINES * FIELDS * 3 + 2 == GROUP && BITS * FIELDS + 2 == 32);

fn tile_lines(cols: usize) -> usize {
    cols.div_ceil(GROUP) * SEGMENT
}

/// Half a tile in one segment.
type Half = [Line; LINES];

#[target_feature(enable = "avx512f,avx512bw")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    let mut worst = 0;
    for (rows, tile) in trits
        .chunks(ROWS * cols)
        .zip(tiles.chunks_exact_mut(tile_lines(cols)))
    {
        for row in 0..ROWS {
            let trits = rows.get(row * cols..(row + 1) * cols).unwrap_or(&[]);
            for (s, segment) in tile.chunks_exact_mut(SEGMENT).enumerate() {
                let mut codes = [1u8; 3 * TRIPLES];
                codes[GROUP] = 0; // the last table has no third column
                let rest = trits.get(s * GROUP..).unwrap_or(&[]);
                for (code, trit) in codes[..GROUP].iter_mut().zip(rest) {
                    *code = (*trit as u8).wrapping_add(1);
                    worst = worst.max(*code);
                }
                let half: &mut Half = &mut segment.as_chunks_mut().0[row / LINE_ROWS];
                let dwords = dwords(codes.as_chunks().0);
                for (line, dword) in half.iter_mut().zip(dwords) {
                    line.0.as_chunks_mut().0[row % LINE_ROWS] = dword.to_le_bytes();
                }
            }
        }
    }
    worst <= 2
}

/// The dwords of one row and segment.
#[inline(always)]
fn dwords(codes: &[[u8; 3]]) -> [u32; LINES] {
    let number = |[a, b, c]: [u8; 3]| u32::from(a) + 3 * u32::from(b) + 9 * u32::from(c);
    let mut dwords = [0; LINES];
    for d in 0..LINES {
        for f in 0..FIELDS {
            dwords[d] |= number(codes[FIELDS * d + f]) << (BITS * f);
        }
    }
    let last = number(codes[TRIPLES - 1]);
    dwords[0] |= last << 30;
    dwords[1] |= last >> 2 << 30;
    dwords
}

/// The number of each triple of one row and segment.
fn numbers(half: &Half, row: usize) -> [u32; TRIPLES] {
    let dword = |d: usize| u32::from_le_bytes(half[d].0.as_chunks().0[row]);
    std::array::from_fn(|i| match i < TRIPLES - 1 {
        true => dword(i / FIELDS) >> (BITS * (i % FIELDS)) & 31,
        false => dword(0) >> 30 | dword(1) >> 30 << 2,
    })
}

fn unpack(tiles: &[Line], cols: usize, trits: &mut [i8]) {
    for (rows, tile) in trits
        .chunks_mut(ROWS * cols)
        .zip(tiles.chunks_exact(tile_lines(cols)))
    {
        for (row, trits) in rows.chunks_exact_mut(cols).enumerate() {
            for (trits, segment) in trits.chunks_mut(GROUP).zip(tile.chunks_exact(SEGMENT)) {
                let numbers = numbers(&segment.as_chunks().0[row / LINE_ROWS], row % LINE_ROWS);
                for (trits, number) in trits.chunks_mut(3).zip(numbers) {
                    let codes = [number % 3, number / 3 % 3, number / 9];
                    for (trit, code) in trits.iter_mut().zip(codes) {
                        *trit = code as i8 - 1;
                    }
                }
            }
        }
    }
}

fn are_codes(tiles: &[Line]) -> bool {
    let fine = |half: &Half, row: usize| {
        let numbers = numbers(half, row);
        let spare = (2..LINES).all(|d| half[d].0[4 * row + 3] >> 6 == 0);
        spare && numbers[TRIPLES - 1] < 9 && numbers.iter().all(|n| *n <= MOST)
    };
    let halves = tiles.as_chunks::<LINES>().0;
    halves
        .iter()
        .all(|half| (0..LINE_ROWS).all(|row| fine(half, row)))
}

/// The same tile in two bits a trit.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn two_bits_of(tile: &Tile<'_>) -> Vec<Line> {
    let mut lines = vec![Line([0; LINE]); tile::lines::<4>(tile.cols)];
    two_bits(tile.lines, &mut lines);
    lines
}

/// Blocks of the 2-bit tile in a segment.
const BLOCKS: usize = GROUP / tile::COLS;

/// Triples, and the parts of triples that two blocks of the 2-bit tile share.
const PARTS: usize = TRIPLES + 5;

/// Of each part in the order of blocks, which has bits of which triple: the dword of its codes in the 2-bit tile, by number.
const SPREAD: [[Line; 2]; PARTS] = {
    let mut tables = [[Line([0; LINE]); 2]; PARTS];
    let (mut part, mut block) = (0, 0);
    while block < BLOCKS {
        let (first, last) = triples(block);
        let mut triple = first;
        while triple <= last {
            let mut number = 0;
            while number < 32 {
                let (mut dword, mut j, mut rest) = (0u32, 0, number as u32);
                while j < 3 {
                    let col = 3 * triple + j;
                    if col / tile::COLS == block {
                        let (field, byte) = (col % tile::COLS / 4, col % 4);
                        dword |= (rest % 3) << (8 * byte + 2 * field);
                    }
                    rest /= 3;
                    j += 1;
                }
                let mut byte = 0;
                while byte < 4 {
                    let at = 4 * (number % LINE_ROWS) + byte;
                    tables[part][number / LINE_ROWS].0[at] = (dword >> (8 * byte)) as u8;
                    byte += 1;
                }
                number += 1;
            }
            part += 1;
            triple += 1;
        }
        block += 1;
    }
    assert!(part == PARTS);
    tables
};

/// The first and the last triple with columns in a block of the 2-bit tile.
const fn triples(block: usize) -> (usize, usize) {
    (
        block * tile::COLS / 3,
        (block * tile::COLS + tile::COLS - 1) / 3,
    )
}

/// The same trits in the 2-bit tile.
#[target_feature(enable = "avx512f,avx512bw")]
fn two_bits(tile: &[Line], to: &mut [Line]) {
    let segments = tile.as_chunks::<LINES>().0.as_chunks::<BLOCK>().0;
    let to = to.as_chunks_mut::<BLOCK>().0.chunks_mut(BLOCKS);
    for (halves, to) in segments.iter().zip(to) {
        for (h, half) in halves.iter().enumerate() {
            let mut parts = SPREAD.iter();
            for (block, to) in to.iter_mut().enumerate() {
                let (first, last) = triples(block);
                let mut dwords = _mm512_setzero_si512();
                for (triple, table) in (first..=last).zip(&mut parts) {
                    let numbers = match triple < TRIPLES - 1 {
                        true => {
                            let shift = (BITS * (triple % FIELDS)) as i32;
                            let shift = _mm_cvtsi32_si128(shift);
                            _mm512_srl_epi32(load(&half[triple / FIELDS]), shift)
                        }
                        false => last_numbers(load(&half[0]), load(&half[1])),
                    };
                    let part = look_up(numbers, load(&table[0]), load(&table[1]));
                    dwords = _mm512_or_si512(dwords, part);
                }
                store(&mut to[h], dwords);
            }
        }
    }
}

/// The numbers of the last two columns, from the lines 0 and 1.
#[inline]
#[target_feature(enable = "avx512f")]
fn last_numbers(low: __m512i, high: __m512i) -> __m512i {
    let high = _mm512_slli_epi32::<2>(_mm512_srli_epi32::<30>(high));
    _mm512_or_si512(_mm512_srli_epi32::<30>(low), high)
}

/// Of each dword the entry that its five lowest bits number.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up(numbers: __m512i, low: __m512i, high: __m512i) -> __m512i {
    _mm512_permutex2var_epi32(low, numbers, high)
}

/// The numbers from `16 register` on whose trit `j` has a code, as a mask.
const fn numbers_with(j: u32, code: u32, register: u32) -> __mmask16 {
    let (mut mask, mut lane) = (0, 0);
    while lane < 16 {
        let number = 16 * register + lane;
        if number <= MOST && number / 3u32.pow(j) % 3 == code {
            mask |= 1 << lane;
        }
        lane += 1;
    }
    mask
}

/// The tables of a token: what [`ByTables::build`] says.
#[target_feature(enable = "avx512f")]
fn build(integers: &[i32], tables: &mut [Line]) {
    for (integers, tables) in integers.chunks(GROUP).zip(tables.chunks_exact_mut(TABLES)) {
        let mut columns = [0; 3 * TRIPLES];
        columns[..integers.len()].copy_from_slice(integers);
        let triples = columns.as_chunks::<3>().0;
        for (triple, table) in triples.iter().zip(tables.as_chunks_mut::<2>().0) {
            let (a, b) = (_mm512_set1_epi32(triple[0]), _mm512_set1_epi32(triple[1]));
            let c = _mm512_set1_epi32(triple[2]);
            store(&mut table[0], sums_of::<0>(a, b, c));
            store(&mut table[1], sums_of::<1>(a, b, c));
        }
    }
}

/// The entries from `16 REGISTER` on of the table of three columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums_of<const REGISTER: u32>(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
    let zero = _mm512_setzero_si512();
    let v = const { numbers_with(0, 2, REGISTER) };
    let v = _mm512_maskz_mov_epi32(v, a);
    let v = _mm512_mask_sub_epi32(v, const { numbers_with(0, 0, REGISTER) }, zero, a);
    let v = _mm512_mask_add_epi32(v, const { numbers_with(1, 2, REGISTER) }, v, b);
    let v = _mm512_mask_sub_epi32(v, const { numbers_with(1, 0, REGISTER) }, v, b);
    let v = _mm512_mask_add_epi32(v, const { numbers_with(2, 2, REGISTER) }, v, c);
    _mm512_mask_sub_epi32(v, const { numbers_with(2, 0, REGISTER) }, v, c)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn sums(tiles: &TableTiles<'_>, x: &FixedPoint, tokens: Range<usize>, done: Done<'_>) {
    match tiles.scales {
        GroupScales::None => all::<false>(tiles, x, tokens, done, |_| _mm512_setzero_ps()),
        GroupScales::F16(scales) => {
            let scales = scales.as_chunks::<LINE_ROWS>().0;
            all::<true>(tiles, x, tokens, done, |at| {
                _mm512_cvtph_ps(load_narrow(&scales[at]))
            })
        }
        GroupScales::Bf16(scales) => {
            let scales = scales.as_chunks::<LINE_ROWS>().0;
            all::<true>(tiles, x, tokens, done, |at| {
                let wide = _mm512_cvtepu16_epi32(load_narrow(&scales[at]));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            })
        }
        GroupScales::F32(scales) => {
            let scales = scales.as_chunks::<LINE_ROWS>().0;
            all::<true>(tiles, x, tokens, done, |at| load_floats(&scales[at]))
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_narrow(numbers: &[u16; LINE_ROWS]) -> __m256i {
    // SAFETY: the reference covers 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_si256(numbers.as_ptr().cast()) }
}

/// 16 sums of each half of a tile.
type TileSums = [[f32; LINE_ROWS]; ROWS / LINE_ROWS];

/// Memory of one block of tiles and some tokens.
struct Scratch {
    sums: Vec<TileSums>,                   // (tiles, tokens)
    tables: Box<[[Line; TABLES]; TOKENS]>, // of a segment, of tokens that have none
}

/// [`sums`], block after block. `scales` loads 16 of `(tiles, groups, 32)`, if there are groups.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn all<const SCALED: bool>(
    tiles: &TableTiles<'_>,
    x: &FixedPoint,
    tokens: Range<usize>,
    done: Done<'_>,
    scales: impl Fn(usize) -> __m512,
) {
    let count = tiles.lines.len() / tile_lines(tiles.cols);
    if tokens.is_empty() || count == 0 {
        return;
    }
    let most = match x.tables(tokens.start) {
        Some(_) => BLOCK_TILES,
        None => LONG_BLOCK_TILES,
    };
    // blocks of equal size
    let size = count.div_ceil(count.div_ceil(most)).next_multiple_of(2);
    let mut scratch = Scratch {
        sums: vec![[[0.0; LINE_ROWS]; 2]; size * TOKENS],
        tables: Box::new([[Line([0; LINE]); TABLES]; TOKENS]),
    };
    for first in (0..count).step_by(size) {
        let block = first..count.min(first + size);
        let mut token = tokens.start;
        while token < tokens.end {
            let part = Part {
                tiles,
                block: block.clone(),
                x,
                token,
            };
            token += match tokens.end - token {
                1 => part.multiply::<SCALED, 1>(&mut scratch, done, &scales),
                _ => part.multiply::<SCALED, TOKENS>(&mut scratch, done, &scales),
            };
        }
    }
}

/// Some tiles and the first of some tokens.
struct Part<'a> {
    tiles: &'a TableTiles<'a>,
    block: Range<usize>,
    x: &'a FixedPoint,
    token: usize,
}

impl Part<'_> {
    /// The sums of `T` tokens, handed out; returns how many tokens.
    #[target_feature(enable = "avx512f,avx512bw")]
    fn multiply<const SCALED: bool, const T: usize>(
        &self,
        scratch: &mut Scratch,
        done: Done<'_>,
        scales: &impl Fn(usize) -> __m512,
    ) -> usize {
        let sums = scratch.sums.as_chunks_mut::<T>().0;
        let sums = &mut sums[..self.block.len()];
        sums.fill([[[0.0; LINE_ROWS]; 2]; T]);
        let (segments, groups) = (self.tiles.cols.div_ceil(GROUP), self.tiles.groups());
        for s in 0..segments {
            let group = s * GROUP / self.tiles.group.unwrap_or(usize::MAX).max(GROUP);
            let tables: [&[Line; TABLES]; T] = {
                let built = scratch.tables.first_chunk_mut::<T>();
                self.tables(s, built.expect("no more than TOKENS"))
            };
            let steps: [f32; T] = std::array::from_fn(|t| self.x.steps(self.token + t)[s]);
            let halves = self.tiles.lines.as_chunks::<LINES>().0; // (tiles, segments, 2)
            let halves = |tile: usize| {
                let at = (tile * segments + s) * 2;
                halves.get(at..)?.first_chunk::<2>()
            };
            // what is fetched: some tiles on, of this segment, of the next, or of the next block
            let soon = |tile: usize| {
                let (size, at) = (self.block.len(), tile - self.block.start + BLOCK_TILES);
                let (s, at) = (s + at / size, at % size);
                let (on, s) = match s < segments {
                    true => (0, s),
                    false => (size, (s - segments) % segments),
                };
                let at = ((self.block.start + on + at) * segments + s) * SEGMENT;
                self.tiles.lines.as_ptr().wrapping_add(at)
            };
            let mut close = |tile: usize, half: usize, dots: [__m512i; T]| {
                let scale = match SCALED {
                    true => scales((tile * groups + group) * 2 + half),
                    false => _mm512_setzero_ps(),
                };
                for t in 0..T {
                    let sums = &mut sums[tile - self.block.start][t][half];
                    let (dots, step) = (_mm512_cvtepi32_ps(dots[t]), _mm512_set1_ps(steps[t]));
                    let sum = match SCALED {
                        false => _mm512_fmadd_ps(dots, step, load_floats(sums)),
                        true => {
                            _mm512_fmadd_ps(_mm512_mul_ps(dots, step), scale, load_floats(sums))
                        }
                    };
                    // SAFETY: the reference covers 64 bytes; the store is unaligned.
                    unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), sum) };
                }
            };
            for tile in self.block.clone().step_by(2) {
                let Some([a, b]) = halves(tile) else { break };
                match halves(tile + 1).filter(|_| tile + 1 < self.block.end) {
                    Some([c, d]) => {
                        let soon = [soon(tile), soon(tile + 1)];
                        let dots = segment_dots([a, b, c, d], soon, tables);
                        for (h, dots) in dots.into_iter().enumerate() {
                            close(tile + h / 2, h % 2, dots);
                        }
                    }
                    None => {
                        let dots = segment_dots([a, b], [soon(tile)], tables);
                        for (h, dots) in dots.into_iter().enumerate() {
                            close(tile, h, dots);
                        }
                    }
                }
            }
        }
        for (tile, sums) in self.block.clone().zip(&*sums) {
            let tokens = self.token..self.token + T;
            done(tile, tokens, sums.as_flattened().as_flattened());
        }
        T
    }

    /// The tables of segment `s` of the tokens, which are built if there are none.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn tables<'t, const T: usize>(
        &'t self,
        s: usize,
        built: &'t mut [[Line; TABLES]; T],
    ) -> [&'t [Line; TABLES]; T] {
        for (t, built) in built.iter_mut().enumerate() {
            if self.x.tables(self.token + t).is_none() {
                let integers = self.x.integers(self.token + t, s);
                build(&integers, built);
            }
        }
        let built = &*built;
        std::array::from_fn(|t| match self.x.tables(self.token + t) {
            Some(tables) => &tables.as_chunks::<TABLES>().0[s],
            None => &built[t],
        })
    }
}

/// The dots of one segment for `H` times 16 rows and `T` tokens, while the lines of as many rows at `soon` are fetched.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn segment_dots<const H: usize, const N: usize, const T: usize>(
    halves: [&Half; H],
    soon: [*const Line; N],
    tables: [&[Line; TABLES]; T],
) -> [[__m512i; T]; H] {
    const { assert!(H == 2 * N && N <= 2) };
    let mut dots = [[_mm512_setzero_si512(); T]; H];
    for d in 0..LINES {
        let mut lines = [_mm512_setzero_si512(); H];
        for h in 0..H {
            lines[h] = load(&halves[h][d]);
        }
        // spread over the products: requests that come at once hold up the loads behind them
        let fetch = |n: usize, half: usize| {
            let line = soon[n].wrapping_add(half * LINES + d);
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        };
        let tables = tables.map(|tables| {
            let tables = tables.as_chunks::<2>().0.as_chunks::<FIELDS>().0;
            &tables[d]
        });
        fetch(0, 0);
        add_field::<0, H, T>(&lines, &tables, &mut dots);
        fetch(0, 1);
        add_field::<1, H, T>(&lines, &tables, &mut dots);
        fetch(N - 1, 0);
        add_field::<2, H, T>(&lines, &tables, &mut dots);
        fetch(N - 1, 1);
        add_field::<3, H, T>(&lines, &tables, &mut dots);
        add_field::<4, H, T>(&lines, &tables, &mut dots);
        add_field::<5, H, T>(&lines, &tables, &mut dots);
    }
    for h in 0..H {
        let numbers = last_numbers(load(&halves[h][0]), load(&halves[h][1]));
        for t in 0..T {
            let sums = _mm512_permutexvar_epi32(numbers, load(&tables[t][TABLES - 2]));
            dots[h][t] = _mm512_add_epi32(dots[h][t], sums);
        }
    }
    dots
}

/// Adds the sums that field `F` numbers; the tables are those of the line.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_field<const F: usize, const H: usize, const T: usize>(
    lines: &[__m512i; H],
    tables: &[&[[Line; 2]; FIELDS]; T],
    dots: &mut [[__m512i; T]; H],
) {
    let mut numbers = *lines;
    for numbers in &mut numbers {
        // what is above five bits does not count
        *numbers = match F {
            0 => *numbers,
            1 => _mm512_srli_epi32::<5>(*numbers),
            2 => _mm512_srli_epi32::<10>(*numbers),
            3 => _mm512_srli_epi32::<15>(*numbers),
            4 => _mm512_srli_epi32::<20>(*numbers),
            _ => _mm512_srli_epi32::<25>(*numbers),
        };
    }
    for t in 0..T {
        let [low, high] = &tables[t][F];
        let (low, high) = (load(low), load(high));
        for h in 0..H {
            let sums = look_up(numbers[h], low, high);
            dots[h][t] = _mm512_add_epi32(dots[h][t], sums);
        }
    }
}
