//! AVX-VNNI on the 2-bit [`tile`]: `vpdpbusd` for CPUs without AVX-512.
//!
//! Invariant: `vpdpbusd` takes codes (0..=2, or 4 times as much) as its unsigned and activations as its
//! signed operand and adds in 32 bits: nothing saturates, -128 included.
//!
//! One token reads the packed bytes once. Every second field goes into its accumulators as it lies in the
//! byte, 4 times too large, and is shifted down once at the end. Many tokens are looked up ([`lookup`]): that adds
//! 64 products where `vpdpbusd` multiplies 32.

use super::avx2::{self, Planes, field};
use super::avx2_lines::{fetch, load, prefetch, store_dots};
use super::lookup;
use super::streams::{PREFETCH, two_streams};
use super::tile::{self, BLOCK};
use crate::activations::Activations;
use crate::contract::{FixedTiles, ManyTokens, Sink, TernaryOps, Tile};
use crate::fixed_point::{FixedToken, PLANES};
use crate::kernel::{Kernel, lacking};
use crate::lines::Line;
use crate::peak;
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "avx_vnni",
    requires: "AVX2, FMA, AVX-VNNI",
    is_available: || (avx2::KERNEL.is_available)() && is_x86_feature_detected!("avxvnni"),
    missing: || lacking!(x86: "avx2" = "AVX2", "fma" = "FMA", "avxvnni" = "AVX-VNNI"),
    ternary: TernaryOps {
        dots,
        many_tokens: Some(MANY_TOKENS),
        fixed,
        ..avx2::TERNARY
    },
    peak: Some(peak::VPDPBUSD_YMM),
    ..avx2::KERNEL
};

/// Fewer are taken one by one, reading the packed bytes from L1. An estimate: more than for `avx2`, because one
/// by one is faster here.
const MANY_TOKENS: ManyTokens = ManyTokens {
    fewest: 8,
    sums: lookup::sums,
};

#[target_feature(enable = "avx2,avxvnni")]
fn dots(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    _scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    avx2::one_by_one(tile, x, tokens, dots, sink, |lines, quads, sum, dots| {
        group_dots(lines, quads, sum, dots)
    });
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn group_dots(
    blocks: &[[Line; BLOCK]],
    quads: &[[[i8; 4]; 4]],
    sum: i32,
    dots: &mut [[i32; 8]; 4],
) {
    let masks = [_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c)];
    // fields 0 and 2, and fields 1 and 3, which are 4 times too large: an accumulator for each of them and
    // for each 8 rows would be all the registers there are
    let mut acc = [[_mm256_setzero_si256(); 2]; 4];
    two_streams::<1, _>(blocks, quads, |block, quads, ahead| {
        prefetch(block, ahead);
        for i in 0..4 {
            let v = load(&block[i / 2], i % 2);
            let v = [v, _mm256_srli_epi16::<4>(v)];
            for f in 0..4 {
                let a = _mm256_set1_epi32(tile::dword(&quads[f]));
                let u = _mm256_and_si256(v[f / 2], masks[f % 2]);
                acc[i][f % 2] = _mm256_dpbusd_avx_epi32(acc[i][f % 2], u, a);
            }
        }
    });
    for (dots, [a, b]) in dots.iter_mut().zip(acc) {
        let sums = _mm256_add_epi32(a, _mm256_srai_epi32::<2>(b));
        store_dots(dots, sums, sum);
    }
}

#[target_feature(enable = "avx2,fma,avxvnni")]
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    avx2::fixed_one_by_one(tile, x, sums, |blocks, planes, sum, half| {
        segment_dots(blocks, planes, sum, half)
    });
}

/// The dots of a segment for the rows `16 half ..`. Six accumulators: with twelve, for fields in turn, some leave their
/// registers, which costs half of the speed.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn segment_dots(
    blocks: &[[Line; BLOCK]],
    planes: Planes<'_>,
    sum: i32,
    half: usize,
) -> [__m256i; 2] {
    let mut acc = [[_mm256_setzero_si256(); PLANES]; 2];
    let [low, middle, high] = planes;
    let quads = low.iter().zip(middle).zip(high);
    for (block, ((low, middle), high)) in blocks.iter().zip(quads) {
        let line = &block[half];
        fetch(line, PREFETCH);
        let quads = [low, middle, high];
        add_field::<0>(line, quads, &mut acc);
        add_field::<1>(line, quads, &mut acc);
        add_field::<2>(line, quads, &mut acc);
        add_field::<3>(line, quads, &mut acc);
    }
    [avx2::join(acc[0], sum), avx2::join(acc[1], sum)]
}

/// Adds the products of field `F`.
#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn add_field<const F: usize>(
    line: &Line,
    quads: [&[[i8; 4]; 4]; PLANES],
    acc: &mut [[__m256i; PLANES]; 2],
) {
    let code = _mm256_set1_epi8(3);
    let u = [
        _mm256_and_si256(field::<F>(load(line, 0)), code),
        _mm256_and_si256(field::<F>(load(line, 1)), code),
    ];
    for p in 0..PLANES {
        let a = _mm256_set1_epi32(tile::dword(&quads[p][F]));
        for i in 0..2 {
            acc[i][p] = _mm256_dpbusd_avx_epi32(acc[i][p], u[i], a);
        }
    }
}
