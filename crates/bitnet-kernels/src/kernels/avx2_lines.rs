//! Lines in AVX2 registers.
//!
//! Invariant: an access stays inside the reference it is given.

use super::tile::BLOCK;
use crate::lines::Line;
use std::arch::x86_64::*;

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
pub(super) fn store(line: &mut Line, half: usize, v: __m256i) {
    assert!(half < 2);
    // SAFETY: a Line is 64 bytes at a 64-byte boundary, and half is 0 or 1.
    unsafe { _mm256_store_si256(line.0.as_mut_ptr().add(32 * half).cast(), v) }
}

/// `dots = sums - sum`, of eight rows.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store_dots(dots: &mut [i32; 8], sums: __m256i, sum: i32) {
    let v = _mm256_sub_epi32(sums, _mm256_set1_epi32(sum));
    // SAFETY: the reference covers 32 bytes; the store is unaligned.
    unsafe { _mm256_storeu_si256(dots.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn prefetch(block: &[Line; BLOCK], ahead: usize) {
    for line in block {
        _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().wrapping_add(ahead).cast());
    }
}

/// Fetches the line some bytes behind this one.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fetch(line: &Line, ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().wrapping_add(ahead).cast());
}
