//! AVX2 and FMA on the 2-bit [`tile`].
//!
//! Invariant: `vpmaddubsw` adds two products of an activation and a code (0..=2), or 4 times as much, into
//! 16 bits, between -2048 and 2032; at most 16 of those are added before they are widened to 32 bits, and
//! `16 * -2048` is exactly the smallest `i16`: nothing saturates, -128 included.
//!
//! One token reads the packed bytes once. Every second field is multiplied as it lies in the byte, 4 times
//! too large, which saves half of the shifts. Many tokens are looked up ([`lookup`]).

use super::avx2_lines::{load, prefetch, store, store_dots};
use super::lookup;
use super::streams::two_streams;
use super::tile::{self, BLOCK, COLS, FLOAT_ROWS, ROWS};
use super::tile_pack::{self, TwoBits};
use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, ManyTokens, Sink, TernaryOps, Tile};
use crate::float_table::{self, FloatOps};
use crate::kernel::{Kernel, lacking};
use crate::lanes::{LANES, Lanes};
use crate::lines::{LINE, Line};
use crate::peak;
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "avx2",
    requires: "AVX2, FMA",
    is_available: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    missing: || lacking!(x86: "avx2" = "AVX2", "fma" = "FMA"),
    ternary: TERNARY,
    grouped: None,
    float: FloatOps {
        screen_dots: super::avx2_screen::screen_dots,
        ..float_table::instantiate!(#[target_feature(enable = "avx2,fma")])
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

/// Blocks until a 16-bit accumulator is widened: each adds two products of pairs, see the module's invariant.
const WIDEN: usize = 8;

const _: () = assert!(WIDEN * 2 * 2 * 4 * 2 * 128 == 1 << 15);

/// Fewer are taken one by one, reading the packed bytes from L1. An estimate: one by one makes half as many
/// products per second as the lookup of 16 tokens (80 and 150 GMAC/s, 2560 x 2560), and fewer than 16 cost
/// as much as 16.
const MANY_TOKENS: ManyTokens = ManyTokens {
    fewest: 5,
    sums: lookup::sums,
};

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
    x: &Activations,
    tokens: Range<usize>,
    _scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    one_by_one(tile, x, tokens, dots, sink, |lines, quads, sum, dots| {
        group_dots(lines, quads, sum, dots)
    });
}

/// The entry `dots` of a kernel whose `group_dots` computes `dots[row] = sum of u * a - sum` over the blocks
/// of one group of scales; the dots of 32 rows are eight at a time.
#[inline(always)]
pub(super) fn one_by_one(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
    group_dots: impl Fn(&[[Line; BLOCK]], &[[[i8; 4]; 4]], i32, &mut [[i32; 8]; 4]),
) {
    let blocks = tile.group.div_ceil(COLS);
    let tile_dots = dots.chunks_exact_mut(tile.groups() * ROWS);
    for (token, dots) in tokens.clone().zip(tile_dots) {
        let lines = tile.lines.as_chunks::<BLOCK>().0.chunks_exact(blocks);
        let quads = x.padded(token).as_chunks::<4>().0.as_chunks::<4>().0;
        let groups = lines.zip(quads.chunks_exact(blocks));
        let dots = dots.as_chunks_mut::<8>().0.as_chunks_mut::<4>().0;
        for (g, ((lines, quads), dots)) in groups.zip(dots).enumerate() {
            group_dots(lines, quads, x.group_sum(token, g, tile.group), dots);
        }
    }
    sink.done(tokens, dots);
}

#[inline]
#[target_feature(enable = "avx2")]
fn group_dots(
    blocks: &[[Line; BLOCK]],
    quads: &[[[i8; 4]; 4]],
    sum: i32,
    dots: &mut [[i32; 8]; 4],
) {
    let masks = [_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c)];
    let zero = _mm256_setzero_si256();
    // fields 0 and 2, and fields 1 and 3, which are 4 times too large
    let mut acc = [[zero; 2]; 4];
    let mut sums = [zero; 4]; // 4 times too large
    let mut left = WIDEN;
    two_streams::<1, _>(blocks, quads, |block, quads, ahead| {
        prefetch(block, ahead);
        for i in 0..4 {
            let v = load(&block[i / 2], i % 2);
            let v = [v, _mm256_srli_epi16::<4>(v)];
            for f in 0..4 {
                let a = _mm256_set1_epi32(tile::dword(&quads[f]));
                let u = _mm256_and_si256(v[f / 2], masks[f % 2]);
                acc[i][f % 2] = _mm256_add_epi16(acc[i][f % 2], _mm256_maddubs_epi16(u, a));
            }
        }
        left -= 1;
        if left == 0 {
            widen(&mut acc, &mut sums);
            left = WIDEN;
        }
    });
    widen(&mut acc, &mut sums);
    for (dots, sums) in dots.iter_mut().zip(sums) {
        store_dots(dots, _mm256_srai_epi32::<2>(sums), sum);
    }
}

/// Moves 16-bit sums to 8 of 32 bits: four columns of one row meet here.
#[inline]
#[target_feature(enable = "avx2")]
fn widen(acc: &mut [[__m256i; 2]; 4], sums: &mut [__m256i; 4]) {
    for i in 0..4 {
        let [a, b] = acc[i];
        let a = _mm256_madd_epi16(a, _mm256_set1_epi16(4));
        let b = _mm256_madd_epi16(b, _mm256_set1_epi16(1));
        sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(a, b));
        acc[i] = [_mm256_setzero_si256(); 2];
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
