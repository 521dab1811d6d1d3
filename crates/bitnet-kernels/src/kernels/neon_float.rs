//! Float operations of every NEON kernel.
//!
//! Invariant: the bodies are those of every instruction set; what differs is how 16 numbers of 16 bits are
//! widened, which the compiler does with loads of single lanes and with integer arithmetic, and how many
//! canonical sums fit the registers: each takes four.

use crate::attention::{self, AttentionOps, RowSteps};
use crate::dense;
use crate::float_table::{self, FloatOps};
use crate::lanes::{Bf16, Element, F16, F32, LANES, Lanes};
use crate::output::Output;
use std::arch::aarch64::*;

pub(super) const FLOAT: FloatOps = FloatOps {
    dense_f32: dense_rows::<F32>,
    dense_f16: dense_rows::<NeonF16>,
    dense_bf16: dense_rows::<NeonBf16>,
    attention: AttentionOps {
        f16: RowSteps {
            few: few::<NeonF16>,
            weigh: weigh::<NeonF16>,
            ..ATTENTION.f16
        },
        bf16: RowSteps {
            few: few::<NeonBf16>,
            weigh: weigh::<NeonBf16>,
            ..ATTENTION.bf16
        },
        ..ATTENTION
    },
    ..float_table::instantiate!(#[target_feature(enable = "neon")])
};

const ATTENTION: AttentionOps = attention::instantiate!(#[target_feature(enable = "neon")]);

// so that a type may stand for an instruction: a trait's methods cannot ask for features
const _: () = assert!(cfg!(target_feature = "neon"));

/// [`F16`] by `fcvtl`.
struct NeonF16;

/// [`Bf16`] by `shll`.
struct NeonBf16;

impl Element for NeonF16 {
    const SIZE: usize = F16::SIZE;

    #[inline(always)]
    fn widen(bytes: &[u8]) -> f32 {
        F16::widen(bytes)
    }

    #[inline(always)]
    fn widen_lanes(bytes: &[u8]) -> Lanes {
        let quarters = load_halves(bytes);
        let mut lanes = [0.0; LANES];
        for i in 0..4 {
            // SAFETY: NEON is part of every target that gets here (asserted above).
            let wide = unsafe { vcvt_f32_f16(vreinterpret_f16_u16(quarters[i])) };
            store(&mut lanes, i, wide);
        }
        lanes
    }
}

impl Element for NeonBf16 {
    const SIZE: usize = Bf16::SIZE;

    #[inline(always)]
    fn widen(bytes: &[u8]) -> f32 {
        Bf16::widen(bytes)
    }

    #[inline(always)]
    fn widen_lanes(bytes: &[u8]) -> Lanes {
        let quarters = load_halves(bytes);
        let mut lanes = [0.0; LANES];
        for i in 0..4 {
            // SAFETY: NEON is part of every target that gets here (asserted above).
            let wide = unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(quarters[i])) };
            store(&mut lanes, i, wide);
        }
        lanes
    }
}

/// Sixteen numbers of 16 bits, four a register.
#[inline(always)]
fn load_halves(bytes: &[u8]) -> [uint16x4_t; 4] {
    let quarters = bytes[..2 * LANES].as_chunks::<8>().0;
    // SAFETY: a quarter is 8 bytes; the load is unaligned.
    std::array::from_fn(|i| unsafe { vld1_u16(quarters[i].as_ptr().cast()) })
}

/// Lanes `4 i ..` of 16.
#[inline(always)]
fn store(lanes: &mut Lanes, i: usize, v: float32x4_t) {
    let to = &mut lanes.as_chunks_mut::<4>().0[i];
    // SAFETY: the reference covers 16 bytes.
    unsafe { vst1q_f32(to.as_mut_ptr(), v) };
}

/// Four rows: 16 registers of sums, four of weights and four of `x`.
#[target_feature(enable = "neon")]
fn dense_rows<E: Element>(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
    dense::rows::<E, 4, 1>(rows, cols, x, out)
}

#[target_feature(enable = "neon")]
fn few<E: Element>(keys: &[u8], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    attention::few::<E>(keys, dim, q, stride, scores)
}

#[target_feature(enable = "neon")]
fn weigh<E: Element>(values: &[u8], dim: usize, weights: &[f32], stride: usize, parts: &mut [f32]) {
    attention::weigh::<E>(values, dim, weights, stride, parts)
}
