//! Lines in AVX-512 registers.
//!
//! Invariant: an access stays inside the reference it is given.

use crate::lines::Line;
use std::arch::x86_64::*;

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(line: &Line) -> __m512i {
    // SAFETY: a Line is 64 bytes at a 64-byte boundary.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(line: &mut Line, v: __m512i) {
    // SAFETY: a Line is 64 bytes at a 64-byte boundary.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_sums(sums: &[i32; 16]) -> __m512i {
    // SAFETY: the reference covers 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_sums(sums: &mut [i32; 16], v: __m512i) {
    // SAFETY: the reference covers 64 bytes; the store is unaligned.
    unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn prefetch(line: &Line, ahead: usize) {
    _mm_prefetch::<_MM_HINT_T0>(line.0.as_ptr().wrapping_add(ahead).cast());
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(floats: &[f32; 16]) -> __m512 {
    // SAFETY: the reference covers 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_ps(floats.as_ptr()) }
}
