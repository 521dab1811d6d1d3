//! The products of a [`screen`](crate::candidates) with AVX2.
//!
//! Invariant: `vpmaddubsw` adds two products of a code and a byte of `p = 256 h + l` into 16 bits, at most
//! `2 * 63 * 128`; two of those sums stay below 2^15 before they are widened to 32 bits. `256 h + l` is put
//! together modulo 2^32, which holds the sum of `v p` by the choice of `p`.

use super::avx2_lines::load;
use crate::candidates::{AHEAD, ScreenQuery, UpperBlock, each_query};
use crate::lines::prefetch_l2;
use std::arch::x86_64::*;

/// [`screen_dots`](crate::candidates::screen_dots): row after row, one stream for the prefetcher.
#[target_feature(enable = "avx2")]
pub(super) fn screen_dots(rows: &[UpperBlock], queries: &[ScreenQuery], sums: &mut [i32]) {
    each_query(queries, sums, |query, sums| dots(rows, query, sums));
}

#[inline]
#[target_feature(enable = "avx2")]
fn dots(rows: &[UpperBlock], query: &ScreenQuery, sums: &mut [i32]) {
    let (p, _) = query.bytes.as_chunks::<4>();
    for (row, sum) in rows.chunks_exact(p.len()).zip(sums) {
        let mut acc = [_mm256_setzero_si256(); 2];
        for (block, p) in row.iter().zip(p) {
            for line in block {
                prefetch_l2(std::ptr::from_ref(line).wrapping_add(AHEAD));
            }
            for part in 0..2 {
                let codes = codes(block, part);
                for half in 0..2 {
                    for g in [0, 2] {
                        let products = _mm256_add_epi16(
                            _mm256_maddubs_epi16(codes[g], load(&p[g][half], part)),
                            _mm256_maddubs_epi16(codes[g + 1], load(&p[g + 1][half], part)),
                        );
                        let products = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
                        acc[half] = _mm256_add_epi32(acc[half], products);
                    }
                }
            }
        }
        let [high, low] = acc;
        *sum = total(_mm256_add_epi32(_mm256_slli_epi32::<8>(high), low));
    }
}

/// The codes of half the bytes of a block: of columns `64 g + 32 part ..`, 32 each.
#[inline]
#[target_feature(enable = "avx2")]
fn codes(block: &UpperBlock, part: usize) -> [__m256i; 4] {
    let [ab, cd, tops] = [
        load(&block[0], part),
        load(&block[1], part),
        load(&block[2], part),
    ];
    // shifts of 16 bits: the masks drop what crosses a byte
    let lower = [
        ab,
        _mm256_srli_epi16::<4>(ab),
        cd,
        _mm256_srli_epi16::<4>(cd),
    ];
    let upper = [
        _mm256_slli_epi16::<4>(tops),
        _mm256_slli_epi16::<2>(tops),
        tops,
        _mm256_srli_epi16::<2>(tops),
    ];
    let (nibble, top) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x30));
    std::array::from_fn(|g| {
        let (lower, upper) = (lower[g], upper[g]);
        _mm256_or_si256(
            _mm256_and_si256(lower, nibble),
            _mm256_and_si256(upper, top),
        )
    })
}

#[inline]
#[target_feature(enable = "avx2")]
fn total(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b1110>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<1>(v)))
}
