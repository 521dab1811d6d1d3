//! AVX2 and FMA on the 2-bit [`tile`].
//!
//! Invariant: `vpmaddubsw` adds two products of an activation and a code (0..=2), or 4 times as much, into
//! 16 bits, between -2048 and 2032; at most 16 of those are added before they are widened to 32 bits, and
//! `16 * -2048` is exactly the smallest `i16`: nothing saturates, -128 included.
//!
//! One token reads the packed bytes once. Every second field is multiplied as it lies in the byte, 4 times
//! too large, which saves half of the shifts. Many tokens are looked up ([`lookup`]).

use super::avx2_lines::{fetch, load, prefetch, store, store_dots};
use super::fixed_lookup::{self, BASE_THREE, Dots, Sums, Vector};
use super::lookup;
use super::streams::{PREFETCH, two_streams};
use super::tile::{self, BLOCK, COLS, ROWS, quads_of};
use super::tile_pack::{self, TwoBits};
use crate::activations::{Activations, Panel};
use crate::contract::{
    BLOCK_BYTES, Done, FixedTiles, ManyFixed, ManyTokens, Sink, TernaryOps, Tile,
};
use crate::fixed_point::{FixedPoint, FixedToken, GROUP, PLANES};
use crate::float_table::{self, FloatOps};
use crate::kernel::{Kernel, lacking};
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
    tabled: None,
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
    two_bits: None,
    by_tables: None,
    fixed,
    many_fixed: Some(ManyFixed {
        fewest: 6,
        sums: many_fixed,
    }),
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

#[target_feature(enable = "avx2,fma")]
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    fixed_one_by_one(tile, x, sums, |blocks, planes, sum, half| {
        segment_dots(blocks, planes, sum, half)
    });
}

/// The quads of some blocks in the three planes.
pub(super) type Planes<'a> = [&'a [[[i8; 4]; 4]]; PLANES];

/// The entry `fixed` of a kernel whose `segment_dots` computes the dots of a segment for the rows `16 half ..`, from
/// its blocks, the activations and their sum.
#[inline(always)]
pub(super) fn fixed_one_by_one(
    tile: &FixedTiles<'_>,
    x: &FixedToken<'_>,
    sums: &mut [f32],
    segment_dots: impl Fn(&[[Line; BLOCK]], Planes<'_>, i32, usize) -> [__m256i; 2],
) {
    let [low, middle, high] = x.planes;
    let quads = |plane| quads_of(plane, tile.width() / COLS);
    let planes = quads(low).zip(quads(middle)).zip(quads(high));
    let blocks = tile.lines.as_chunks::<BLOCK>().0;
    let segments = blocks
        .chunks(tile.width() / COLS)
        .zip(planes)
        .zip(&x.segments);
    let scales = tile.scales.as_chunks::<8>().0.as_chunks::<4>().0;
    let mut all = [[0.0; 8]; 4];
    for ((blocks, ((low, middle), high)), of) in segments {
        for half in 0..2 {
            let dots = segment_dots(blocks, [low, middle, high], of.sum, half);
            for i in 0..2 {
                let scale = scales.get(of.scale).map(|scales| &scales[2 * half + i]);
                // SAFETY: this is part of a kernel with AVX2 and FMA.
                unsafe { add_dots(dots[i], of.step, scale, &mut all[2 * half + i]) };
            }
        }
    }
    sums.copy_from_slice(all.as_flattened());
}

/// Adds the dots of 8 rows and a segment, scaled.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_dots(dots: __m256i, step: f32, scale: Option<&[f32; 8]>, all: &mut [f32; 8]) {
    let (dots, step) = (_mm256_cvtepi32_ps(dots), _mm256_set1_ps(step));
    let so_far = load_floats(all);
    let sum = match scale {
        None => _mm256_fmadd_ps(dots, step, so_far),
        Some(scale) => _mm256_fmadd_ps(_mm256_mul_ps(dots, step), load_floats(scale), so_far),
    };
    // SAFETY: the reference covers 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), sum) }
}

/// The dots of a segment, at most [`WIDEN`] blocks, for the rows `16 half ..`: two registers of rows share what is
/// broadcast.
#[inline]
#[target_feature(enable = "avx2")]
fn segment_dots(
    blocks: &[[Line; BLOCK]],
    planes: Planes<'_>,
    sum: i32,
    half: usize,
) -> [__m256i; 2] {
    // four fields of two products, all as large as the code
    const { assert!(GROUP / COLS * 4 * 2 * 2 * 128 <= 1 << 15) };
    let mask = _mm256_set1_epi8(3);
    let mut acc = [[_mm256_setzero_si256(); PLANES]; 2];
    let [low, middle, high] = planes;
    let quads = low.iter().zip(middle).zip(high);
    for (block, ((low, middle), high)) in blocks.iter().zip(quads) {
        fetch(&block[half], PREFETCH);
        let v = [load(&block[half], 0), load(&block[half], 1)];
        let quads = [low, middle, high];
        add_field::<0>(v, quads, mask, &mut acc);
        add_field::<1>(v, quads, mask, &mut acc);
        add_field::<2>(v, quads, mask, &mut acc);
        add_field::<3>(v, quads, mask, &mut acc);
    }
    let mut dots = [_mm256_setzero_si256(); 2];
    for i in 0..2 {
        for plane in &mut acc[i] {
            *plane = _mm256_madd_epi16(*plane, _mm256_set1_epi16(1));
        }
        dots[i] = join(acc[i], sum);
    }
    dots
}

/// Adds the products of field `F`, in 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn add_field<const F: usize>(
    v: [__m256i; 2],
    quads: [&[[i8; 4]; 4]; PLANES],
    mask: __m256i,
    acc: &mut [[__m256i; PLANES]; 2],
) {
    let u = [
        _mm256_and_si256(field::<F>(v[0]), mask),
        _mm256_and_si256(field::<F>(v[1]), mask),
    ];
    for p in 0..PLANES {
        let a = _mm256_set1_epi32(tile::dword(&quads[p][F]));
        for i in 0..2 {
            acc[i][p] = _mm256_add_epi16(acc[i][p], _mm256_maddubs_epi16(u[i], a));
        }
    }
}

/// Field `F` in the lowest bits of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn field<const F: usize>(v: __m256i) -> __m256i {
    match F {
        0 => v,
        1 => _mm256_srli_epi16::<2>(v),
        2 => _mm256_srli_epi16::<4>(v),
        _ => _mm256_srli_epi16::<6>(v),
    }
}

/// The dots of a segment from those of its planes, and the sum of its activations; what wraps on the way comes back.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn join([low, middle, high]: [__m256i; PLANES], sum: i32) -> __m256i {
    let lower = _mm256_add_epi32(low, _mm256_slli_epi32::<8>(middle));
    let high = _mm256_sub_epi32(_mm256_slli_epi32::<16>(high), _mm256_set1_epi32(sum));
    _mm256_add_epi32(lower, high)
}

/// Many tokens of fixed-point activations.
#[target_feature(enable = "avx2,fma")]
fn many_fixed(tiles: &FixedTiles<'_>, x: &FixedPoint, tokens: Range<usize>, done: Done<'_>) {
    // SAFETY: AVX2 is enabled here.
    unsafe { fixed_lookup::sums::<Tokens>(tiles, x, tokens, done) }
}

/// The tokens of a panel in two registers.
#[derive(Clone, Copy)]
struct Tokens([__m256i; 2]);

impl Vector for Tokens {
    #[inline(always)]
    unsafe fn load(dots: &Dots) -> Self {
        let halves = dots.0.as_chunks::<8>().0;
        // SAFETY: a reference to half of them covers 32 bytes at a 32-byte boundary; the CPU has AVX2 and FMA (the caller's).
        let load = |half: usize| unsafe { _mm256_load_si256(halves[half].as_ptr().cast()) };
        Self([load(0), load(1)])
    }

    #[inline(always)]
    unsafe fn store(self, dots: &mut Dots) {
        for (half, v) in dots.0.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            // SAFETY: as above.
            unsafe { _mm256_store_si256(half.as_mut_ptr().cast(), v) }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: &Dots) -> Self {
        // SAFETY: as above.
        unsafe {
            let [low, high] = Self::load(other).0;
            Self([
                _mm256_add_epi32(self.0[0], low),
                _mm256_add_epi32(self.0[1], high),
            ])
        }
    }

    #[inline(always)]
    unsafe fn close(self, step: &[f32; 16], sums: &mut Sums) {
        let halves = sums.0.as_chunks_mut::<8>().0.iter_mut();
        for ((sums, step), dots) in halves.zip(step.as_chunks::<8>().0).zip(self.0) {
            // SAFETY: as above.
            unsafe {
                let dots = _mm256_cvtepi32_ps(dots);
                let sum = _mm256_fmadd_ps(dots, load_floats(step), load_floats(sums));
                _mm256_store_ps(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn close_scaled(self, step: &[f32; 16], scale: f32, sums: &mut Sums) {
        let halves = sums.0.as_chunks_mut::<8>().0.iter_mut();
        for ((sums, step), dots) in halves.zip(step.as_chunks::<8>().0).zip(self.0) {
            // SAFETY: as above.
            unsafe {
                let steps = _mm256_mul_ps(_mm256_cvtepi32_ps(dots), load_floats(step));
                let sum = _mm256_fmadd_ps(steps, _mm256_set1_ps(scale), load_floats(sums));
                _mm256_store_ps(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn numbers<const F: u32>(line: &Line) -> [u16; 16] {
        // SAFETY: as above.
        unsafe { quad_numbers(line, F as i32) }
    }

    #[inline(always)]
    unsafe fn transpose(sums: &[Sums; ROWS], to: &mut [f32; 16 * ROWS]) {
        // SAFETY: as above.
        unsafe { transpose_sums(sums, to) }
    }
}

/// The numbers of the field that lies `shift` bits from bit 0.
#[inline]
#[target_feature(enable = "avx2")]
fn quad_numbers(line: &Line, shift: i32) -> [u16; 16] {
    let half = |half: usize| {
        let shifted = _mm256_srl_epi32(load(line, half), _mm_cvtsi32_si128(shift));
        let codes = _mm256_and_si256(shifted, _mm256_set1_epi8(3));
        let products = _mm256_mullo_epi32(codes, _mm256_set1_epi32(BASE_THREE));
        _mm256_srli_epi32::<24>(products)
    };
    // packing takes the lanes of 128 bits in turn
    let packed = _mm256_packus_epi32(half(0), half(1));
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
    let mut numbers = [0; 16];
    // SAFETY: the array is 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), packed) };
    numbers
}

/// `(rows, tokens)` to `(tokens, rows)`.
#[target_feature(enable = "avx2")]
pub(super) fn transpose_sums(sums: &[Sums; ROWS], to: &mut [f32; 16 * ROWS]) {
    lookup::transpose(to, |row, half| {
        load_floats(&sums[row].0.as_chunks::<8>().0[half])
    });
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_floats(floats: &[f32; 8]) -> __m256 {
    // SAFETY: the reference covers 32 bytes; the load is unaligned.
    unsafe { _mm256_loadu_ps(floats.as_ptr()) }
}
