//! Float operations in the canonical order, written once in safe Rust.
//!
//! Invariant: reductions run by the 16 lanes of [`lanes`](crate::lanes); elementwise bodies have no order.
//!
//! The bodies are `#[inline(always)]` so that [`float_table`](crate::float_table) can compile each of them once per
//! instruction set.

use crate::lanes::{LANES, add_lanes, exp1, fill_lanes, greater, mul_add_lanes, mul_add_tail};
use bitnet_ternary::{activation_scale, bf16_to_f32, f16_to_f32, f32_to_f16};

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks(), b.as_chunks());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        mul_add_lanes(a, b, &mut lanes);
    }
    if !a_tail.is_empty() {
        let (a, b) = (fill_lanes(a_tail), fill_lanes(b_tail));
        mul_add_tail(&a, &b, a_tail.len(), &mut lanes);
    }
    add_lanes(lanes)
}

#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    let (a, tail) = a.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for a in a {
        for j in 0..LANES {
            lanes[j] += a[j];
        }
    }
    if !tail.is_empty() {
        let a = fill_lanes(tail);
        for j in 0..LANES {
            lanes[j] = if j < tail.len() {
                lanes[j] + a[j]
            } else {
                lanes[j]
            };
        }
    }
    add_lanes(lanes)
}

#[inline(always)]
pub(crate) fn sum_squares(a: &[f32]) -> f32 {
    dot(a, a)
}

#[inline(always)]
pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter().zip(y) {
        *y = a.mul_add(*x, *y);
    }
}

#[inline(always)]
pub(crate) fn scale(a: f32, x: &mut [f32]) {
    for x in x {
        *x *= a;
    }
}

#[inline(always)]
pub(crate) fn add(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len());
    for (x, y) in x.iter().zip(y) {
        *y += x;
    }
}

#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let (x, tail) = x.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for x in x {
        for j in 0..LANES {
            lanes[j] = greater(lanes[j], x[j]);
        }
    }
    let lanes = lanes.into_iter().fold(f32::NEG_INFINITY, greater);
    tail.iter().copied().fold(lanes, greater)
}

#[inline(always)]
pub(crate) fn exp(x: &mut [f32]) {
    for x in x {
        *x = exp1(*x);
    }
}

#[inline(always)]
pub(crate) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp1(-*g)) * u;
    }
}

#[inline(always)]
pub(crate) fn relu2_mul(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len());
    for (g, u) in gate.iter_mut().zip(up) {
        let r = if *g > 0.0 { *g } else { 0.0 };
        *g = r * r * u;
    }
}

#[inline(always)]
pub(crate) fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
    // 0.5 x (1 + tanh z) = x / (1 + exp(-2 z)), z = sqrt(2 / pi) (x + 0.044715 x^3): the right side
    // has no cancellation for negative x
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    assert_eq!(gate.len(), up.len());
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        let z2 = TWICE_SQRT_2_OVER_PI * (0.044_715 * x * x).mul_add(x, x);
        *g = x / (1.0 + exp1(-z2)) * u;
    }
}

#[inline(always)]
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len());
    assert_eq!(x.len(), out.len());
    let r = 1.0 / (sum_squares(x) / x.len() as f32 + eps).sqrt();
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = w * (x * r);
    }
}

#[inline(always)]
pub(crate) fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = x.len() / 2;
    assert_eq!((x.len(), cos.len(), sin.len()), (2 * half, half, half));
    let (low, high) = x.split_at_mut(half);
    for (((l, h), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*l, *h) = (*l * c - *h * s, *h * c + *l * s);
    }
}

/// f32 to little-endian f16, rounded to nearest even.
#[inline(always)]
pub(crate) fn narrow(x: &[f32], out: &mut [u8]) {
    assert_eq!(2 * x.len(), out.len());
    for (x, out) in x.iter().zip(out.as_chunks_mut().0) {
        *out = f32_to_f16(*x).to_le_bytes();
    }
}

/// f16 to f32, exactly.
#[inline(always)]
pub(crate) fn widen_f16(bits: &[u16], out: &mut [f32]) {
    assert_eq!(bits.len(), out.len());
    for (bits, out) in bits.iter().zip(out) {
        *out = f16_to_f32(*bits);
    }
}

/// bf16 to f32, exactly.
#[inline(always)]
pub(crate) fn widen_bf16(bits: &[u16], out: &mut [f32]) {
    assert_eq!(bits.len(), out.len());
    for (bits, out) in bits.iter().zip(out) {
        *out = bf16_to_f32(*bits);
    }
}

/// [`bitnet_ternary::quantize_row`], the same bits: `(scale, sum of out)`, `None` if not finite.
#[inline(always)]
pub(crate) fn quantize(x: &[f32], out: &mut [i8]) -> Option<(f32, i32)> {
    assert_eq!(x.len(), out.len());
    let absmax = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    if absmax >= f32::INFINITY.to_bits() {
        return None;
    }
    let scale = activation_scale(f32::from_bits(absmax));
    const ROUND: f32 = 12_582_912.0; // as in exp1
    let mut sum = 0;
    for (v, q) in x.iter().zip(out) {
        let r = (v * scale + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let r = r.clamp(-128, 127);
        *q = r as i8;
        sum += r;
    }
    Some((scale, sum))
}
