//! Lines in NEON registers.
//!
//! Invariant: an access stays inside the reference it is given.

use crate::lines::Line;
use std::arch::aarch64::*;

/// Registers of a line, four rows each.
pub(super) const QUARTERS: usize = 4;

/// Sums of the four rows of a register.
pub(super) type RowSums = [i32; 4];

/// A quarter of a line: 4 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &Line, quarter: usize) -> uint8x16_t {
    assert!(quarter < QUARTERS);
    // SAFETY: a Line is 64 bytes, and quarter is at most 3.
    unsafe { vld1q_u8(line.0.as_ptr().add(16 * quarter)) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn store(line: &mut Line, quarter: usize, v: uint8x16_t) {
    assert!(quarter < QUARTERS);
    // SAFETY: a Line is 64 bytes, and quarter is at most 3.
    unsafe { vst1q_u8(line.0.as_mut_ptr().add(16 * quarter), v) }
}

/// `sums += v`
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn add_sums(sums: &mut RowSums, v: int32x4_t) {
    // SAFETY: the reference covers 16 bytes, for the load and for the store.
    unsafe { vst1q_s32(sums.as_mut_ptr(), vaddq_s32(vld1q_s32(sums.as_ptr()), v)) }
}
