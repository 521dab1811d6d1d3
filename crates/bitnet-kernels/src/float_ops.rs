//! Float operations in the canonical order, written once in safe Rust.
//!
//! Invariant: the bits of a result depend on the operands alone, never on the instruction set. Every
//! reduction uses 16 lanes (`formats/numerics.md`, rule 3): lane `j` takes elements `j, j+16, ...` in
//! increasing order, the lanes are added pairwise at distances 8, 4, 2, 1, a short tail fills lanes
//! from 0. Elementwise bodies have no order. `mul_add` is written where it is meant; Rust never
//! contracts or reassociates by itself.
//!
//! The bodies are `#[inline(always)]` so that [`instantiate!`] can compile each of them once per
//! instruction set: Rust's baseline x86-64 has neither FMA nor wide registers.

use crate::attention::AttentionOps;
use crate::lines::Line;
use crate::output::Output;
use crate::packed::Finish;
use crate::screen::{Factors, RowBound, ScreenQuery, UpperBlock};
use bitnet_ternary::{activation_scale, f32_to_f16};

/// Lanes of a canonical reduction: one AVX-512 register, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;

/// The partial sums of a canonical reduction.
pub(crate) type Lanes = [f32; LANES];

/// [`quantize`], instantiated.
pub(crate) type Quantize = unsafe fn(&[f32], &mut [i8]) -> Option<(f32, i32)>;

/// [`screen_bounds`](crate::screen::screen_bounds), instantiated.
pub(crate) type Bound = unsafe fn(&[&[f32]; 3], &Factors, &[i32], &mut [f32], &mut [f32]);

/// One instruction set's instances of the bodies in this module, in `attention`, `dense` and
/// `packed`.
///
/// Calling an entry is sound when the CPU has the features it was instantiated with; a
/// [`Backend`](crate::Backend) is the proof of that.
pub(crate) struct FloatOps {
    pub dot: unsafe fn(&[f32], &[f32]) -> f32,
    pub sum: unsafe fn(&[f32]) -> f32,
    pub sum_squares: unsafe fn(&[f32]) -> f32,
    pub axpy: unsafe fn(f32, &[f32], &mut [f32]),
    pub scale: unsafe fn(f32, &mut [f32]),
    pub add: unsafe fn(&[f32], &mut [f32]),
    pub max: unsafe fn(&[f32]) -> f32,
    pub exp: unsafe fn(&mut [f32]),
    pub silu_mul: unsafe fn(&mut [f32], &[f32]),
    pub relu2_mul: unsafe fn(&mut [f32], &[f32]),
    pub gelu_tanh_mul: unsafe fn(&mut [f32], &[f32]),
    pub rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    pub rotate_halves: unsafe fn(&mut [f32], &[f32], &[f32]),
    pub narrow: unsafe fn(&[f32], &mut [u8]),
    pub quantize: Quantize,
    pub finish_dots: Finish<i32>,
    pub finish_sums: Finish<f32>,
    pub dense_f32: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub dense_f16: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub dense_bf16: unsafe fn(&[u8], usize, &[f32], &mut Output<'_>),
    pub attention: AttentionOps,
    pub screen_row: unsafe fn(&[f32], &mut [UpperBlock], &mut [Line]) -> RowBound,
    pub screen_dots: unsafe fn(&[UpperBlock], &ScreenQuery, &mut [i32]),
    pub screen_bounds: Bound,
    pub screen_lower: unsafe fn(&[Line], &ScreenQuery) -> i32,
}

/// Compiles every body under the given attributes and tabulates the instances.
macro_rules! instantiate {
    ($(#[$isa:meta])*) => {{
        use $crate::{Scales, attention, dense, float_ops, lines::Line, output::Output, screen, packed, packed::Place};
        $(#[$isa])* fn dot(a: &[f32], b: &[f32]) -> f32 { float_ops::dot(a, b) }
        $(#[$isa])* fn sum(a: &[f32]) -> f32 { float_ops::sum(a) }
        $(#[$isa])* fn sum_squares(a: &[f32]) -> f32 { float_ops::sum_squares(a) }
        $(#[$isa])* fn axpy(a: f32, x: &[f32], y: &mut [f32]) { float_ops::axpy(a, x, y) }
        $(#[$isa])* fn scale(a: f32, x: &mut [f32]) { float_ops::scale(a, x) }
        $(#[$isa])* fn add(x: &[f32], y: &mut [f32]) { float_ops::add(x, y) }
        $(#[$isa])* fn max(x: &[f32]) -> f32 { float_ops::max(x) }
        $(#[$isa])* fn exp(x: &mut [f32]) { float_ops::exp(x) }
        $(#[$isa])* fn silu_mul(gate: &mut [f32], up: &[f32]) { float_ops::silu_mul(gate, up) }
        $(#[$isa])* fn relu2_mul(gate: &mut [f32], up: &[f32]) { float_ops::relu2_mul(gate, up) }
        $(#[$isa])* fn gelu_tanh_mul(gate: &mut [f32], up: &[f32]) {
            float_ops::gelu_tanh_mul(gate, up)
        }
        $(#[$isa])* fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
            float_ops::rms_norm(x, weight, eps, out)
        }
        $(#[$isa])* fn rotate_halves(x: &mut [f32], cos: &[f32], sin: &[f32]) {
            float_ops::rotate_halves(x, cos, sin)
        }
        $(#[$isa])* fn narrow(x: &[f32], out: &mut [u8]) { float_ops::narrow(x, out) }
        $(#[$isa])* fn quantize(x: &[f32], out: &mut [i8]) -> Option<(f32, i32)> {
            float_ops::quantize(x, out)
        }
        $(#[$isa])* fn finish_dots(
            sums: &[i32], place: &Place, scales: &Scales, token: usize, s: &[f32],
            out: &mut Output<'_>,
        ) {
            packed::finish(sums, place, scales, token, s, out)
        }
        $(#[$isa])* fn finish_sums(
            sums: &[f32], place: &Place, scales: &Scales, token: usize, s: &[f32],
            out: &mut Output<'_>,
        ) {
            packed::finish(sums, place, scales, token, s, out)
        }
        $(#[$isa])* fn dense_f32(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<dense::F32, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn dense_f16(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<dense::F16, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn dense_bf16(rows: &[u8], cols: usize, x: &[f32], out: &mut Output<'_>) {
            dense::rows::<dense::Bf16, 8, 2>(rows, cols, x, out)
        }
        $(#[$isa])* fn screen_row(
            w: &[f32], upper: &mut [screen::UpperBlock], lower: &mut [Line],
        ) -> screen::RowBound {
            screen::screen_row(w, upper, lower)
        }
        $(#[$isa])* fn screen_dots(
            rows: &[screen::UpperBlock], query: &screen::ScreenQuery, sums: &mut [i32],
        ) {
            screen::screen_dots(rows, query, sums)
        }
        $(#[$isa])* fn screen_bounds(
            rows: &[&[f32]; 3], factors: &screen::Factors, sums: &[i32], estimates: &mut [f32],
            upper: &mut [f32],
        ) {
            screen::screen_bounds(rows, factors, sums, estimates, upper)
        }
        $(#[$isa])* fn screen_lower(row: &[Line], query: &screen::ScreenQuery) -> i32 {
            screen::screen_lower(row, query)
        }
        float_ops::FloatOps {
            dot, sum, sum_squares, axpy, scale, add, max, exp, silu_mul, relu2_mul, gelu_tanh_mul,
            rms_norm, rotate_halves, narrow, quantize, finish_dots, finish_sums, dense_f32, dense_f16, dense_bf16,
            attention: attention::instantiate!($(#[$isa])*), screen_row, screen_dots,
            screen_bounds, screen_lower,
        }
    }};
}
pub(crate) use instantiate;

/// Adds the lanes pairwise at distances 8, 4, 2, 1.
#[inline(always)]
pub(crate) fn add_lanes(mut lanes: Lanes) -> f32 {
    for distance in [8, 4, 2, 1] {
        for j in 0..distance {
            lanes[j] += lanes[j + distance];
        }
    }
    lanes[0]
}

/// `lanes[j] = a[j] * b[j] + lanes[j]`, each rounded once.
#[inline(always)]
pub(crate) fn mul_add_lanes(a: &Lanes, b: &Lanes, lanes: &mut Lanes) {
    for j in 0..LANES {
        lanes[j] = a[j].mul_add(b[j], lanes[j]);
    }
}

/// [`mul_add_lanes`] for a tail: lanes from `count` on keep their value.
///
/// Written without an index into `lanes` that varies, which would keep them out of registers.
#[inline(always)]
pub(crate) fn mul_add_tail(a: &Lanes, b: &Lanes, count: usize, lanes: &mut Lanes) {
    for j in 0..LANES {
        let full = a[j].mul_add(b[j], lanes[j]);
        lanes[j] = if j < count { full } else { lanes[j] };
    }
}

/// A tail of fewer than 16 elements, filled up with zeros.
#[inline(always)]
pub(crate) fn fill_lanes(tail: &[f32]) -> Lanes {
    let mut lanes = [0.0; LANES];
    lanes[..tail.len()].copy_from_slice(tail);
    lanes
}

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

/// The larger one; `a` if `b` is NaN.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
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

/// The one exponential (`formats/numerics.md`, rule 5).
///
/// `n = round(x / ln 2)`, `r = x - n ln 2` in two steps, `exp(r)` by the polynomial of Cephes'
/// `expf` (degree 7), times `2^n` in two exact factors so that subnormal results are rounded once.
/// At most 1 ulp from the true value; 0 below -104, infinity above 88.73, NaN stays NaN.
#[inline(always)]
pub(crate) fn exp1(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4; // 10 bits, 355 / 512: n * LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // adding 1.5 * 2^23 rounds to an integer, half to even, and leaves it in the low bits
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-104.5, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32; // -151..=128
    let nf = shifted - ROUND;
    let high = nf.mul_add(-LN2_HIGH, x); // exact
    let r = nf.mul_add(-LN2_LOW, high);
    let rest = nf.mul_add(-LN2_LOW, high - r); // what r was rounded by
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 0.5);
    let e = r + p.mul_add(r * r, rest) + 1.0;
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    e * power(half) * power(n.wrapping_sub(half))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_ulp_of_f64() {
        check_exp((0..=u32::MAX).step_by(1009));
    }

    #[test]
    #[ignore = "all 2^32 floats take minutes"]
    fn exp_is_within_one_ulp_of_f64_everywhere() {
        check_exp(0..=u32::MAX);
    }

    fn check_exp(patterns: impl Iterator<Item = u32>) {
        let mut worst = 0.0f64;
        for bits in patterns {
            let x = f32::from_bits(bits);
            let got = exp1(x);
            if x.is_nan() {
                assert!(got.is_nan());
                continue;
            }
            let want = f64::from(x).exp();
            if want >= f64::from(f32::MAX) * (1.0 + 2f64.powi(-25)) {
                assert_eq!(got, f32::INFINITY, "{x:e}");
                continue;
            }
            let ulp = 2f64.powi((want.log2().floor() as i32).max(-126) - 23);
            worst = worst.max((f64::from(got) - want).abs() / ulp);
        }
        assert!(worst <= 1.0, "{worst} ulp");
        assert_eq!(exp1(0.0), 1.0);
        assert_eq!(exp1(-0.0), 1.0);
        assert_eq!(exp1(-104.0).to_bits(), 0);
        assert_eq!(exp1(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp1(f32::INFINITY), f32::INFINITY);
    }
}
