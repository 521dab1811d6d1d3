//! SSSE3 on the 2-bit [`tile`], for CPUs without AVX2.
//!
//! Invariant: `pmaddubsw` adds two products of an activation and a code (0..=2) into 16 bits, between -512 and 508; at
//! most 64 of those are added before they are widened to 32 bits, and `64 * -512` is exactly the smallest `i16`:
//! nothing saturates, -128 included.
//!
//! These CPUs have no fused multiply-add either: where a sum of fixed-point dots needs one, [`mul_add`] computes its bits.

use super::fixed_lookup::{self, Dots, Sums, Vector};
use super::streams::PREFETCH;
use super::tile::{self, BLOCK, COLS, ROWS, quads_of};
use super::tile_pack::{self, TwoBits};
use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, Done, FixedTiles, ManyFixed, Sink, TernaryOps, Tile};
use crate::fixed_point::{FixedPoint, FixedToken, GROUP, PLANES};
use crate::float_table;
use crate::kernel::{Kernel, lacking};
use crate::lines::{self, LINE, Line};
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "ssse3",
    requires: "SSSE3",
    is_available: || is_x86_feature_detected!("ssse3"),
    missing: || lacking!(x86: "ssse3" = "SSSE3"),
    ternary: TernaryOps {
        layout: tile_pack::TWO_BITS,
        tile_rows: ROWS,
        panel: Panel::NONE,
        block_bytes: BLOCK_BYTES,
        scratch_lines: 0,
        tile_lines: tile::lines::<4>,
        pack,
        unpack: tile_pack::unpack::<4, TwoBits>,
        are_codes: tile_pack::are_codes::<4, TwoBits>,
        dots,
        many_tokens: None,
        two_bits: None,
        fixed,
        by_tables: None,
        many_fixed: Some(ManyFixed {
            fewest: 6,
            sums: many_fixed,
        }),
    },
    grouped: None,
    tabled: None,
    float: float_table::instantiate!(#[target_feature(enable = "ssse3")]),
    peak: None,
};

/// Registers of four rows in a line.
const PARTS: usize = LINE / 16;

/// Blocks until 16-bit sums are widened: each adds four products of pairs, see the module's invariant.
const WIDEN: usize = 16;

const _: () = assert!(WIDEN * 4 * 2 * 2 * 128 == 1 << 15);

#[target_feature(enable = "ssse3")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    tile_pack::pack::<4, TwoBits>(trits, cols, tiles, |rows| transpose(rows))
}

/// A [`tile_pack::Transpose`] in registers: four rows at a time.
#[inline]
#[target_feature(enable = "ssse3")]
fn transpose(rows: [&[i8; 16]; 16]) -> [Line; 4] {
    let mut quads = [Line([0; LINE]); 4];
    for (part, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
        // SAFETY: the reference covers 16 bytes; the load is unaligned.
        let [a, b, c, d] = rows.map(|row| unsafe { _mm_loadu_si128(row.as_ptr().cast()) });
        let (ab_low, ab_high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
        let (cd_low, cd_high) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
        store(&mut quads[0], part, _mm_unpacklo_epi64(ab_low, cd_low));
        store(&mut quads[1], part, _mm_unpackhi_epi64(ab_low, cd_low));
        store(&mut quads[2], part, _mm_unpacklo_epi64(ab_high, cd_high));
        store(&mut quads[3], part, _mm_unpackhi_epi64(ab_high, cd_high));
    }
    quads
}

/// A quarter of a line: four rows.
#[inline]
#[target_feature(enable = "ssse3")]
fn load(line: &Line, part: usize) -> __m128i {
    assert!(part < PARTS);
    // SAFETY: a Line is 64 bytes at a 64-byte boundary, and part is below 4.
    unsafe { _mm_load_si128(line.0.as_ptr().add(16 * part).cast()) }
}

#[inline]
#[target_feature(enable = "ssse3")]
fn store(line: &mut Line, part: usize, v: __m128i) {
    assert!(part < PARTS);
    // SAFETY: a Line is 64 bytes at a 64-byte boundary, and part is below 4.
    unsafe { _mm_store_si128(line.0.as_mut_ptr().add(16 * part).cast(), v) }
}

/// The codes of field `F`; the mask drops what crosses bytes.
#[inline]
#[target_feature(enable = "ssse3")]
fn codes<const F: usize>(v: __m128i) -> __m128i {
    let v = match F {
        0 => v,
        1 => _mm_srli_epi16::<2>(v),
        2 => _mm_srli_epi16::<4>(v),
        _ => _mm_srli_epi16::<6>(v),
    };
    _mm_and_si128(v, _mm_set1_epi8(3))
}

#[target_feature(enable = "ssse3")]
fn dots(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    _scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    let blocks = tile.group.div_ceil(COLS);
    let tile_dots = dots.chunks_exact_mut(tile.groups() * ROWS);
    for (token, dots) in tokens.clone().zip(tile_dots) {
        let lines = tile.lines.as_chunks::<BLOCK>().0.chunks_exact(blocks);
        let quads = x.padded(token).as_chunks::<4>().0.as_chunks::<4>().0;
        let groups = lines.zip(quads.chunks_exact(blocks));
        let dots = dots.as_chunks_mut::<ROWS>().0.iter_mut();
        for (g, ((lines, quads), dots)) in groups.zip(dots).enumerate() {
            group_dots(lines, quads, x.group_sum(token, g, tile.group), dots);
        }
    }
    sink.done(tokens, dots);
}

/// `dots[row] = sum of u * a - sum` over the blocks of one group of scales.
#[inline]
#[target_feature(enable = "ssse3")]
fn group_dots(blocks: &[[Line; BLOCK]], quads: &[[[i8; 4]; 4]], sum: i32, dots: &mut [i32; ROWS]) {
    let mut sums = [_mm_set1_epi32(-sum); ROWS / 4];
    for (blocks, quads) in blocks.chunks(WIDEN).zip(quads.chunks(WIDEN)) {
        let mut acc = [_mm_setzero_si128(); ROWS / 4];
        for (block, quads) in blocks.iter().zip(quads) {
            for line in block {
                lines::prefetch(std::ptr::from_ref(line).wrapping_byte_add(PREFETCH));
            }
            add_field::<0>(block, quads, &mut acc);
            add_field::<1>(block, quads, &mut acc);
            add_field::<2>(block, quads, &mut acc);
            add_field::<3>(block, quads, &mut acc);
        }
        for i in 0..ROWS / 4 {
            sums[i] = _mm_add_epi32(sums[i], _mm_madd_epi16(acc[i], _mm_set1_epi16(1)));
        }
    }
    for (dots, sums) in dots.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
        // SAFETY: the reference covers 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_si128(dots.as_mut_ptr().cast(), sums) };
    }
}

/// Adds the products of field `F`, in 16 bits.
#[inline]
#[target_feature(enable = "ssse3")]
fn add_field<const F: usize>(
    block: &[Line; BLOCK],
    quads: &[[i8; 4]; 4],
    acc: &mut [__m128i; ROWS / 4],
) {
    let a = _mm_set1_epi32(tile::dword(&quads[F]));
    for i in 0..ROWS / 4 {
        let u = codes::<F>(load(&block[i / PARTS], i % PARTS));
        acc[i] = _mm_add_epi16(acc[i], _mm_maddubs_epi16(u, a));
    }
}

/// One token of fixed-point activations: `sums: (32,)`.
#[target_feature(enable = "ssse3")]
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    let width = tile.width() / COLS;
    let [low, middle, high] = x.planes.map(|plane| quads_of(plane, width));
    let blocks = tile.lines.as_chunks::<BLOCK>().0.chunks(width);
    let scales = tile.scales.as_chunks::<4>().0;
    let mut all = [_mm_setzero_ps(); ROWS / 4];
    let segments = blocks.zip(low.zip(middle).zip(high)).zip(&x.segments);
    for ((blocks, ((low, middle), high)), of) in segments {
        for pair in 0..ROWS / 8 {
            let dots = segment_dots(blocks, [low, middle, high], of.sum, pair);
            for i in 0..2 {
                let all = &mut all[2 * pair + i];
                let scale = scales.get(of.scale * (ROWS / 4) + 2 * pair + i);
                *all = close(dots[i], _mm_set1_ps(of.step), scale, *all);
            }
        }
    }
    for (sums, all) in sums.as_chunks_mut::<4>().0.iter_mut().zip(all) {
        // SAFETY: the reference covers 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_ps(sums.as_mut_ptr(), all) };
    }
}

/// The dots of a segment for the rows `8 pair ..`: two registers share what is broadcast.
#[inline]
#[target_feature(enable = "ssse3")]
fn segment_dots(
    blocks: &[[Line; BLOCK]],
    planes: [&[[[i8; 4]; 4]]; PLANES],
    sum: i32,
    pair: usize,
) -> [__m128i; 2] {
    const { assert!(GROUP <= WIDEN * COLS) };
    let mut acc = [[_mm_setzero_si128(); PLANES]; 2];
    let [low, middle, high] = planes;
    let quads = low.iter().zip(middle).zip(high);
    for (block, ((low, middle), high)) in blocks.iter().zip(quads) {
        let line = &block[pair / 2];
        if pair.is_multiple_of(2) {
            lines::prefetch(std::ptr::from_ref(line).wrapping_byte_add(PREFETCH));
        }
        let v = [load(line, pair % 2 * 2), load(line, pair % 2 * 2 + 1)];
        let quads = [low, middle, high];
        add_planes::<0>(v, quads, &mut acc);
        add_planes::<1>(v, quads, &mut acc);
        add_planes::<2>(v, quads, &mut acc);
        add_planes::<3>(v, quads, &mut acc);
    }
    let mut dots = [_mm_setzero_si128(); 2];
    for i in 0..2 {
        for plane in &mut acc[i] {
            *plane = _mm_madd_epi16(*plane, _mm_set1_epi16(1));
        }
        let [low, middle, high] = acc[i];
        let lower = _mm_add_epi32(low, _mm_slli_epi32::<8>(middle));
        let high = _mm_sub_epi32(_mm_slli_epi32::<16>(high), _mm_set1_epi32(sum));
        dots[i] = _mm_add_epi32(lower, high);
    }
    dots
}

/// As [`add_field`], of eight rows and three planes.
#[inline]
#[target_feature(enable = "ssse3")]
fn add_planes<const F: usize>(
    v: [__m128i; 2],
    quads: [&[[i8; 4]; 4]; PLANES],
    acc: &mut [[__m128i; PLANES]; 2],
) {
    let u = [codes::<F>(v[0]), codes::<F>(v[1])];
    for p in 0..PLANES {
        let a = _mm_set1_epi32(tile::dword(&quads[p][F]));
        for i in 0..2 {
            acc[i][p] = _mm_add_epi16(acc[i][p], _mm_maddubs_epi16(u[i], a));
        }
    }
}

/// Adds dots to sums, scaled.
#[inline]
#[target_feature(enable = "ssse3")]
fn close(dots: __m128i, step: __m128, scale: Option<&[f32; 4]>, sums: __m128) -> __m128 {
    let dots = _mm_cvtepi32_ps(dots);
    match scale {
        None => mul_add(dots, step, sums),
        Some(scale) => mul_add(_mm_mul_ps(dots, step), load_floats(scale), sums),
    }
}

#[inline]
#[target_feature(enable = "ssse3")]
fn load_floats(floats: &[f32; 4]) -> __m128 {
    // SAFETY: the reference covers 16 bytes; the load is unaligned.
    unsafe { _mm_loadu_ps(floats.as_ptr()) }
}

/// `a * b + c`, rounded once.
#[inline]
#[target_feature(enable = "ssse3")]
fn mul_add(a: __m128, b: __m128, c: __m128) -> __m128 {
    let high = |v| _mm_movehl_ps(v, v);
    let low = mul_add_wide(_mm_cvtps_pd(a), _mm_cvtps_pd(b), _mm_cvtps_pd(c));
    let upper = mul_add_wide(
        _mm_cvtps_pd(high(a)),
        _mm_cvtps_pd(high(b)),
        _mm_cvtps_pd(high(c)),
    );
    _mm_movelh_ps(_mm_cvtpd_ps(low), _mm_cvtpd_ps(upper))
}

/// `a * b + c` of numbers that are f32, in f64 rounded to odd: rounding that to f32 is rounding once, as 53 bits are
/// more than two behind the last of an f32.
#[inline]
#[target_feature(enable = "ssse3")]
fn mul_add_wide(a: __m128d, b: __m128d, c: __m128d) -> __m128d {
    let product = _mm_mul_pd(a, b); // exact: 48 bits
    let sum = _mm_add_pd(product, c);
    // what the sum was rounded by, exactly; of what is not finite, no number
    let part = _mm_sub_pd(sum, product);
    let error = _mm_add_pd(
        _mm_sub_pd(product, _mm_sub_pd(sum, part)),
        _mm_sub_pd(c, part),
    );
    // away from zero or towards it: the error with the sign that it has on the side of the sum
    let sign = _mm_and_pd(sum, _mm_set1_pd(-0.0));
    let outward = _mm_xor_pd(error, sign);
    let (zero, one) = (_mm_setzero_pd(), _mm_set1_epi64x(1));
    let down = _mm_castpd_si128(_mm_cmplt_pd(outward, zero));
    let up = _mm_castpd_si128(_mm_cmpgt_pd(outward, zero));
    let step = _mm_sub_epi64(down, up);
    // an odd last bit stays: the exact sum lies beside it
    let bits = _mm_castpd_si128(sum);
    let even = _mm_sub_epi64(_mm_and_si128(bits, one), one);
    _mm_castsi128_pd(_mm_add_epi64(bits, _mm_and_si128(step, even)))
}

/// Many tokens of fixed-point activations.
#[target_feature(enable = "ssse3")]
fn many_fixed(tiles: &FixedTiles<'_>, x: &FixedPoint, tokens: Range<usize>, done: Done<'_>) {
    // SAFETY: SSSE3 is enabled here.
    unsafe { fixed_lookup::sums::<Tokens>(tiles, x, tokens, done) }
}

/// The tokens of a panel in four registers.
#[derive(Clone, Copy)]
struct Tokens([__m128i; 4]);

impl Vector for Tokens {
    #[inline(always)]
    unsafe fn load(dots: &Dots) -> Self {
        let parts = dots.0.as_chunks::<4>().0;
        // SAFETY: a reference to a part of them covers 16 bytes at a 16-byte boundary; the CPU has SSSE3 (the caller's).
        let load = |part: usize| unsafe { _mm_load_si128(parts[part].as_ptr().cast()) };
        Self([load(0), load(1), load(2), load(3)])
    }

    #[inline(always)]
    unsafe fn store(self, dots: &mut Dots) {
        for (part, v) in dots.0.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            // SAFETY: as above.
            unsafe { _mm_store_si128(part.as_mut_ptr().cast(), v) }
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: &Dots) -> Self {
        // SAFETY: as above.
        unsafe {
            let other = Self::load(other).0;
            Self(std::array::from_fn(|i| _mm_add_epi32(self.0[i], other[i])))
        }
    }

    #[inline(always)]
    unsafe fn close(self, step: &[f32; 16], sums: &mut Sums) {
        let parts = sums.0.as_chunks_mut::<4>().0.iter_mut();
        for ((sums, step), dots) in parts.zip(step.as_chunks::<4>().0).zip(self.0) {
            // SAFETY: as above.
            unsafe {
                let sum = close(dots, load_floats(step), None, load_floats(sums));
                _mm_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn close_scaled(self, step: &[f32; 16], scale: f32, sums: &mut Sums) {
        let scale = [scale; 4];
        let parts = sums.0.as_chunks_mut::<4>().0.iter_mut();
        for ((sums, step), dots) in parts.zip(step.as_chunks::<4>().0).zip(self.0) {
            // SAFETY: as above.
            unsafe {
                let sum = close(dots, load_floats(step), Some(&scale), load_floats(sums));
                _mm_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn numbers<const F: u32>(line: &Line) -> [u16; 16] {
        // SAFETY: as above.
        unsafe {
            match F {
                0 => quad_numbers::<0>(line),
                2 => quad_numbers::<1>(line),
                4 => quad_numbers::<2>(line),
                _ => quad_numbers::<3>(line),
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose(sums: &[Sums; ROWS], to: &mut [f32; 16 * ROWS]) {
        for (token, to) in to.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            for (to, sums) in to.iter_mut().zip(sums) {
                *to = sums.0[token];
            }
        }
    }
}

/// The numbers of field `F`: `u0 + 3 u1 + 9 u2 + 27 u3`.
#[inline]
#[target_feature(enable = "ssse3")]
fn quad_numbers<const F: usize>(line: &Line) -> [u16; 16] {
    let base_three = _mm_set1_epi32(i32::from_le_bytes([1, 3, 9, 27]));
    let part = |part: usize| {
        let pairs = _mm_maddubs_epi16(codes::<F>(load(line, part)), base_three);
        _mm_madd_epi16(pairs, _mm_set1_epi16(1))
    };
    let mut numbers = [0; 16];
    for (half, numbers) in numbers.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = _mm_packs_epi32(part(2 * half), part(2 * half + 1));
        // SAFETY: the reference covers 16 bytes; the store is unaligned.
        unsafe { _mm_storeu_si128(numbers.as_mut_ptr().cast(), packed) };
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mul_add_rounds_once() {
        if !(KERNEL.is_available)() {
            return;
        }
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let special = [
            0.0,
            -0.0,
            1.0,
            f32::MAX,
            f32::MIN_POSITIVE,
            f32::from_bits(1),
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        for i in 0..2_000_000u32 {
            let mut number = |kind: u32| match kind {
                0 => special[next() as usize % special.len()],
                1 => f32::from_bits(next()),
                // of one size: sums that cancel, and ties
                _ => f32::from_bits(0x3f80_0000 | next() & 0x807f_f000),
            };
            let [a, b] = [number(i % 3), number(i / 3 % 3)];
            let c = match i / 9 % 4 {
                0 => -(a * b),
                1 => a * b * f32::EPSILON * 0.5,
                2 => a * b / (f32::EPSILON * 0.5),
                _ => number(i / 9 % 3),
            };
            let mut got = [0.0; 4];
            // SAFETY: the CPU has SSSE3, and the array is 16 bytes.
            unsafe {
                let sums = mul_add(_mm_set1_ps(a), _mm_set1_ps(b), _mm_set1_ps(c));
                _mm_storeu_ps(got.as_mut_ptr(), sums);
            }
            let want = a.mul_add(b, c);
            for got in got {
                let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                assert!(same, "{a:e} * {b:e} + {c:e}: {got:e} for {want:e}");
            }
        }
    }
}
