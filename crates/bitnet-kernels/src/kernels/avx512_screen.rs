//! The products of a [`screen`](crate::candidates) with AVX-512 VNNI.
//!
//! Invariant: `vpdpbusd` takes codes as its unsigned and the bytes `h` and `l` of `p = 256 h + l` as its
//! signed operand and adds in 32 bits; sums of `v h` stay below `63 * 128 * 2^16 < 2^31`. `256 h + l` is
//! then put together modulo 2^32, which holds the sum of `v p` by the choice of `p`.

use super::avx512_lines::load;
use crate::candidates::{AHEAD, ScreenQuery, UpperBlock};
use crate::lines::{Line, prefetch_l2};
use std::arch::x86_64::*;

/// Sums of one row: those with `h` and those with `l`, twice each to hide the latency.
struct Sums([[__m512i; 2]; 2]);

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Self {
        Self([[_mm512_setzero_si512(); 2]; 2])
    }

    /// Adds 4 x 64 codes times the bytes of `p`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add(&mut self, codes: &[__m512i; 4], p: &[[Line; 2]; 4]) {
        for g in 0..4 {
            for half in 0..2 {
                let acc = &mut self.0[half][g % 2];
                *acc = _mm512_dpbusd_epi32(*acc, codes[g], load(&p[g][half]));
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn total(self) -> i32 {
        let [[a, b], [c, d]] = self.0;
        let high = _mm512_slli_epi32::<8>(_mm512_add_epi32(a, b));
        _mm512_reduce_add_epi32(_mm512_add_epi32(high, _mm512_add_epi32(c, d)))
    }
}

/// [`screen_dots`](crate::candidates::screen_dots): the codes of a row are taken out of their fields once for four queries.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn screen_dots(rows: &[UpperBlock], queries: &[ScreenQuery], sums: &mut [i32]) {
    let count = sums.len().checked_div(queries.len()).unwrap_or(0);
    let (four, rest) = queries.as_chunks::<4>();
    let (sums_of_four, sums_of_rest) = sums.split_at_mut(4 * four.len() * count);
    for (queries, sums) in four.iter().zip(sums_of_four.chunks_exact_mut(4 * count)) {
        dots(rows, queries, sums);
    }
    let (two, one) = rest.as_chunks::<2>();
    let (sums_of_two, sums_of_one) = sums_of_rest.split_at_mut(2 * two.len() * count);
    for (queries, sums) in two.iter().zip(sums_of_two.chunks_exact_mut(2 * count)) {
        dots(rows, queries, sums);
    }
    if let [query] = one {
        dots(rows, std::array::from_ref(query), sums_of_one);
    }
}

/// Row after row, one stream for the prefetcher; `sums: (N, rows)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots<const N: usize>(rows: &[UpperBlock], queries: &[ScreenQuery; N], sums: &mut [i32]) {
    let p = queries
        .each_ref()
        .map(|query| query.bytes.as_chunks::<4>().0);
    let blocks = p.iter().map(|p| p.len()).min().unwrap_or(0);
    let p = p.map(|p| &p[..blocks]);
    let count = sums.len() / N;
    let (nibble, top) = (_mm512_set1_epi8(0x0f), _mm512_set1_epi8(0x30));
    for (r, row) in rows.chunks_exact(blocks).enumerate() {
        let row = &row[..blocks];
        let mut acc: [Sums; N] = std::array::from_fn(|_| Sums::zero());
        for (b, block) in row.iter().enumerate() {
            for line in block {
                prefetch_l2(std::ptr::from_ref(line).wrapping_add(AHEAD));
            }
            let [ab, cd, tops] = [load(&block[0]), load(&block[1]), load(&block[2])];
            // shifts of 16 bits: the masks drop what crosses a byte
            let lower = [
                ab,
                _mm512_srli_epi16::<4>(ab),
                cd,
                _mm512_srli_epi16::<4>(cd),
            ];
            let upper = [
                _mm512_slli_epi16::<4>(tops),
                _mm512_slli_epi16::<2>(tops),
                tops,
                _mm512_srli_epi16::<2>(tops),
            ];
            let codes = std::array::from_fn(|g| {
                let lower = _mm512_and_si512(lower[g], nibble);
                // (a & b) | c
                _mm512_ternarylogic_epi32::<0xea>(upper[g], top, lower)
            });
            for n in 0..N {
                acc[n].add(&codes, &p[n][b]);
            }
        }
        for (n, acc) in acc.into_iter().enumerate() {
            sums[n * count + r] = acc.total();
        }
    }
}

/// [`screen_lower`](crate::candidates::screen_lower).
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn screen_lower(row: &[Line], query: &ScreenQuery) -> i32 {
    let mask = _mm512_set1_epi8(3);
    let mut acc = Sums::zero();
    for (line, p) in row.iter().zip(query.bytes.as_chunks::<4>().0) {
        let l = load(line);
        let fields = [
            l,
            _mm512_srli_epi16::<2>(l),
            _mm512_srli_epi16::<4>(l),
            _mm512_srli_epi16::<6>(l),
        ];
        acc.add(&fields.map(|l| _mm512_and_si512(l, mask)), p);
    }
    acc.total()
}
