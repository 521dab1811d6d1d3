//! AVX2 and FMA on the 2-bit [`tile`].
//!
//! Invariant: `vpmaddubsw` adds two products of a code (0..=2) and an activation into 16 bits, between
//! -512 and 508; at most 64 of those are added before they are widened to 32 bits, and
//! `64 * -512` is exactly the smallest `i16`: nothing saturates, -128 included.
//!
//! One token reads the packed bytes once, shifting each field down. Many tokens are looked up
//! ([`lookup`]).

use super::tile::{self, BLOCK, COLS, FLOAT_ROWS, ROWS};
use super::tile_pack::{self, TwoBits};
use super::{BLOCK_BYTES, Kernel, ManyTokens, Panel, TernaryOps, Tile, lookup};
use crate::activations::ActivationBatch;
use crate::float_ops::{self, FloatOps, LANES, Lanes};
use crate::lines::{LINE, Line};
use crate::packed::Sink;
use crate::peak;
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "avx2",
    requires: "AVX2, FMA",
    is_available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    ternary: TERNARY,
    grouped: None,
    float: FloatOps {
        screen_dots: super::avx2_screen::screen_dots,
        ..float_ops::instantiate!(#[target_feature(enable = "avx2,fma")])
    },
    peak: Some(peak::VPMADDUBSW_YMM),
};

/// The 2-bit tile, and what each kernel with AVX2 does with it.
pub(super) const TERNARY: TernaryOps = TernaryOps {
    layout: tile_pack::TWO_BITS,
    tile_rows: ROWS,
    panel: Panel::of(lookup::PANEL),
    block_bytes: BLOCK_BYTES,
    scratch_lines: 0,
    tile_lines: tile::lines::<4>,
    pack,
    unpack: tile_pack::unpack::<4, TwoBits>,
    are_codes: tile_pack::are_codes::<4, TwoBits>,
    dots,
    many_tokens: Some(MANY_TOKENS),
    sums,
};

/// Products of one 16-bit accumulator before it is widened; see the module's invariant.
const PRODUCTS: usize = 64;

/// Fewer are taken one by one, reading the packed bytes from L1. An estimate: one by one makes half as many
/// products per second as the lookup of a full panel of 16 (80 and 168 GMAC/s, 2560 x 2560), and a panel costs
/// the same however full it is.
const MANY_TOKENS: ManyTokens = ManyTokens {
    fewest: 5,
    sums: lookup::sums,
};

/// Bytes ahead of the loads that are prefetched.
const PREFETCH: usize = 2048;

/// Half a line: 8 rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(line: &Line, half: usize) -> __m256i {
    assert!(half < 2);
    // SAFETY: a Line is 64 bytes at a 64-byte boundary, and half is 0 or 1.
    unsafe { _mm256_load_si256(line.0.as_ptr().add(32 * half).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(line: &mut Line, half: usize, v: __m256i) {
    assert!(half < 2);
    // SAFETY: a Line is 64 bytes at a 64-byte boundary, and half is 0 or 1.
    unsafe { _mm256_store_si256(line.0.as_mut_ptr().add(32 * half).cast(), v) }
}

/// `sums += v`
#[inline]
#[target_feature(enable = "avx2")]
fn add_sums(sums: &mut [i32; 8], v: __m256i) {
    let at: *mut __m256i = sums.as_mut_ptr().cast();
    // SAFETY: the reference covers 32 bytes; load and store are unaligned.
    unsafe { _mm256_storeu_si256(at, _mm256_add_epi32(_mm256_loadu_si256(at), v)) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch(line: &Line) {
    _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().wrapping_add(PREFETCH).cast());
}

/// 16 sums of 16 bits to 8 of 32: four columns of one row meet here.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(acc: __m256i) -> __m256i {
    _mm256_madd_epi16(acc, _mm256_set1_epi16(1))
}

#[target_feature(enable = "avx2")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    tile_pack::pack::<4, TwoBits>(trits, cols, tiles, |rows| transpose(rows))
}

/// A [`tile_pack::Transpose`] in registers: 8 rows are four in each of two lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(rows: [&[i8; 16]; 16]) -> [Line; 4] {
    let mut quads = [Line([0; LINE]); 4];
    for half in 0..2 {
        // SAFETY: the reference covers 16 bytes; the load is unaligned.
        let row = |row: usize| unsafe { _mm_loadu_si128(rows[8 * half + row].as_ptr().cast()) };
        let lanes = |first: usize| {
            let v = _mm256_castsi128_si256(row(first));
            _mm256_inserti128_si256::<1>(v, row(first + 4))
        };
        let (a, b, c, d) = (lanes(0), lanes(1), lanes(2), lanes(3));
        let (ab_low, ab_high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        store(&mut quads[0], half, _mm256_unpacklo_epi64(ab_low, cd_low));
        store(&mut quads[1], half, _mm256_unpackhi_epi64(ab_low, cd_low));
        store(&mut quads[2], half, _mm256_unpacklo_epi64(ab_high, cd_high));
        store(&mut quads[3], half, _mm256_unpackhi_epi64(ab_high, cd_high));
    }
    quads
}

#[target_feature(enable = "avx2")]
fn dots(
    tile: &Tile<'_>,
    x: &ActivationBatch,
    tokens: Range<usize>,
    _scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    tile::start_at_minus_sums(tile, x, tokens.clone(), dots);
    for (token, dots) in tokens
        .clone()
        .zip(dots.chunks_exact_mut(tile.groups() * ROWS))
    {
        one_token(tile, x, token, dots);
    }
    sink.done(tokens, dots);
}

/// The groups of scales of a tile: their lines, the quads of the token's activations, and where the dots of
/// 32 rows go, eight at a time.
#[inline(always)]
pub(super) fn groups<'a>(
    tile: &Tile<'a>,
    activations: &'a [i8],
    dots: &'a mut [i32],
) -> impl Iterator<Item = (&'a [Line], &'a [[i8; 4]], &'a mut [[i32; 8]; 4])> {
    let blocks = tile.group.div_ceil(COLS);
    let lines = tile.lines.chunks_exact(blocks * BLOCK);
    let quads = activations.as_chunks::<4>().0.chunks_exact(blocks * 4);
    let dots = dots.as_chunks_mut::<8>().0.as_chunks_mut::<4>().0;
    lines.zip(quads).zip(dots).map(|((l, q), d)| (l, q, d))
}

/// `dots: (groups, 32)`
#[target_feature(enable = "avx2")]
fn one_token(tile: &Tile<'_>, x: &ActivationBatch, token: usize, dots: &mut [i32]) {
    for (lines, quads, dots) in groups(tile, x.padded(token), dots) {
        // a block adds four products to every accumulator
        let parts = lines
            .chunks(PRODUCTS / 4 * BLOCK)
            .zip(quads.chunks(PRODUCTS));
        for (lines, quads) in parts {
            part_dots(lines, quads, dots);
        }
    }
}

/// `dots[row] += sum of u * a` over at most `PRODUCTS / 4` blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn part_dots(lines: &[Line], quads: &[[i8; 4]], dots: &mut [[i32; 8]; 4]) {
    let code = _mm256_set1_epi8(3);
    let mut acc = [_mm256_setzero_si256(); 4];
    for (block, quads) in lines
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(quads.as_chunks::<4>().0)
    {
        prefetch(&block[0]);
        prefetch(&block[1]);
        // no closure over vectors: `map` itself is compiled without AVX2 and would be called
        let mut a = [_mm256_setzero_si256(); 4];
        for f in 0..4 {
            a[f] = _mm256_set1_epi32(tile::dword(&quads[f]));
        }
        for i in 0..4 {
            let v = load(&block[i / 2], i % 2);
            let u = [
                _mm256_and_si256(v, code),
                _mm256_and_si256(_mm256_srli_epi16::<2>(v), code),
                _mm256_and_si256(_mm256_srli_epi16::<4>(v), code),
                _mm256_and_si256(_mm256_srli_epi16::<6>(v), code),
            ];
            for f in 0..4 {
                acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(u[f], a[f]));
            }
        }
    }
    for (acc, dots) in acc.into_iter().zip(dots) {
        add_sums(dots, widen(acc));
    }
}

/// Float activations: the 16 lanes of rule 3 are two registers.
#[target_feature(enable = "avx2,fma")]
pub(super) fn sums(tile: &Tile<'_>, x: &[f32], sums: &mut [f32]) {
    tile::sums(tile, x, sums, |lines, row, x| float_lanes(lines, row, x))
}

/// The lanes of [`FLOAT_ROWS`] rows from `row` on.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn float_lanes(lines: &[[Line; BLOCK]], row: usize, x: &[f32]) -> [Lanes; FLOAT_ROWS] {
    // lane k of a block is column k: where its code lies in the dword of the row
    let shifts = [
        _mm256_setr_epi32(0, 8, 16, 24, 2, 10, 18, 26),
        _mm256_setr_epi32(4, 12, 20, 28, 6, 14, 22, 30),
    ];
    // this permutation reads two bits of an index: the code
    let trits = _mm256_setr_ps(-1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 1.0, 0.0);
    let mut acc = [[_mm256_setzero_ps(); 2]; FLOAT_ROWS];
    for (block, x) in lines.iter().zip(x.chunks(COLS)) {
        // a column that is not there is 0, and adding a zero to a sum that is never -0 changes nothing
        let mut tail = [0.0; COLS];
        let columns = x.first_chunk().unwrap_or_else(|| {
            tail[..x.len()].copy_from_slice(x);
            &tail
        });
        let columns = [load_floats(columns, 0), load_floats(columns, 1)];
        let dwords = block[row / 16].0.as_chunks::<4>().0;
        for r in 0..FLOAT_ROWS {
            let dword = _mm256_set1_epi32(i32::from_le_bytes(dwords[row % 16 + r]));
            for i in 0..2 {
                let trit = _mm256_permutevar_ps(trits, _mm256_srlv_epi32(dword, shifts[i]));
                acc[r][i] = _mm256_fmadd_ps(trit, columns[i], acc[r][i]);
            }
        }
    }
    let mut lanes = [[0.0; LANES]; FLOAT_ROWS];
    for r in 0..FLOAT_ROWS {
        for i in 0..2 {
            let to = &mut lanes[r].as_chunks_mut::<8>().0[i];
            // SAFETY: the reference covers 32 bytes; the store is unaligned.
            unsafe { _mm256_storeu_ps(to.as_mut_ptr(), acc[r][i]) }
        }
    }
    lanes
}

/// Half of 16 columns.
#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(columns: &[f32; COLS], half: usize) -> __m256 {
    let columns = &columns.as_chunks::<8>().0[half];
    // SAFETY: the reference covers 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_ps(columns.as_ptr()) }
}
