//! The products of a [`screen`](crate::candidates) with NEON dot products. Without them the body of every
//! instruction set is as good: what `smlal` saves it spends on widening.
//!
//! Invariant: codes and the bytes `h` and `l` of `p = 256 h + l` are signed bytes; sums with each are exact
//! in 32 bits, those with `h` below `63 * 128 * 2^16 < 2^31`. `256 h + l` is then put together modulo 2^32,
//! which holds the sum of `v p` by the choice of `p`.

use super::neon_lines::{QUARTERS, load};
use crate::candidates::{ScreenQuery, UpperBlock, each_query};
use std::arch::aarch64::*;
use std::arch::asm;

/// [`screen_dots`](crate::candidates::screen_dots): row after row, one stream for the prefetcher.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn screen_dots(rows: &[UpperBlock], queries: &[ScreenQuery], sums: &mut [i32]) {
    each_query(queries, sums, |query, sums| dots(rows, query, sums));
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dots(rows: &[UpperBlock], query: &ScreenQuery, sums: &mut [i32]) {
    let (p, _) = query.bytes.as_chunks::<4>();
    for (row, sum) in rows.chunks_exact(p.len()).zip(sums) {
        // with `h` and with `l`, and each quarter of a line apart to hide the latency
        let mut acc = [[vdupq_n_s32(0); 2]; QUARTERS];
        for (block, p) in row.iter().zip(p) {
            for quarter in 0..QUARTERS {
                let codes = codes(block, quarter);
                for half in 0..2 {
                    for g in 0..4 {
                        let p = vreinterpretq_s8_u8(load(&p[g][half], quarter));
                        acc[quarter][half] = dot(acc[quarter][half], codes[g], p);
                    }
                }
            }
        }
        let [mut high, mut low] = acc[0];
        for [h, l] in &acc[1..] {
            high = vaddq_s32(high, *h);
            low = vaddq_s32(low, *l);
        }
        *sum = vaddvq_s32(vaddq_s32(vshlq_n_s32::<8>(high), low));
    }
}

/// 64 codes of a block, from 16 bytes of each line: of columns `64 g + 16 quarter ..`.
#[inline]
#[target_feature(enable = "neon")]
fn codes([ab, cd, tops]: &UpperBlock, quarter: usize) -> [uint8x16_t; 4] {
    let [ab, cd, tops] = [load(ab, quarter), load(cd, quarter), load(tops, quarter)];
    let (nibble, code) = (vdupq_n_u8(0x0f), vdupq_n_u8(0x3f));
    let (b, d) = (vshrq_n_u8::<4>(ab), vshrq_n_u8::<4>(cd));
    // an insertion keeps the lower nibble
    [
        vandq_u8(vsliq_n_u8::<4>(ab, tops), code),
        vandq_u8(vsliq_n_u8::<4>(b, vshrq_n_u8::<2>(tops)), code),
        vbslq_u8(nibble, cd, vandq_u8(tops, vdupq_n_u8(0x30))),
        vsliq_n_u8::<4>(d, vshrq_n_u8::<6>(tops)),
    ]
}

/// `acc[i] += sum over j of u[4 i + j] * a[4 i + j]`; instead of `vdotq_s32`, which is
/// unstable in Rust 1.95 (rust-lang/rust#117224).
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot(mut acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: DotProd is enabled here; the instruction reads and writes nothing but these registers.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {u:v}.16b, {a:v}.16b",
            acc = inout(vreg) acc,
            u = in(vreg) u,
            a = in(vreg) a,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}
