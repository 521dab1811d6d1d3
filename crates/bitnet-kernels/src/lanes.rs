//! Sixteen lanes: what every float operation is made of.
//!
//! Invariant: the bits of a result depend on the operands alone, never on the instruction set. Every
//! reduction uses 16 lanes (`formats/numerics.md`, rule 3): lane `j` takes elements `j, j+16, ...` in
//! increasing order, the lanes are added pairwise at distances 8, 4, 2, 1, a short tail fills lanes
//! from 0. `mul_add` is written where it is meant; Rust never contracts or reassociates by itself.
//!
//! This is the lowest floor: lanes, the exponential, and how stored numbers widen to `f32`.

use bitnet_ternary::{bf16_to_f32, f16_to_f32};

/// Lanes of a canonical reduction: one AVX-512 register, two of AVX2, four of NEON.
pub(crate) const LANES: usize = 16;

/// The partial sums of a canonical reduction.
pub(crate) type Lanes = [f32; LANES];

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

/// The larger one; `a` if `b` is NaN.
#[inline(always)]
pub(crate) fn greater(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
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

/// How a dense tensor stores its numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl DenseType {
    /// Bytes per number.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A stored number that widens to `f32`.
pub(crate) trait Element {
    /// Bytes per number.
    const SIZE: usize;
    /// Widens the number at the start of `bytes`, exactly.
    fn widen(bytes: &[u8]) -> f32;

    /// Widens the 16 numbers of `bytes`.
    #[inline(always)]
    fn widen_lanes(bytes: &[u8]) -> Lanes {
        let mut lanes = [0.0; LANES];
        for j in 0..LANES {
            lanes[j] = Self::widen(&bytes[j * Self::SIZE..(j + 1) * Self::SIZE]);
        }
        lanes
    }
}

pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        f32::from_le_bytes([b[0], b[1], b[2], b[3]])
    }
}

impl Element for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        f16_to_f32(u16::from_le_bytes([b[0], b[1]]))
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn widen(b: &[u8]) -> f32 {
        bf16_to_f32(u16::from_le_bytes([b[0], b[1]]))
    }
}

/// 16 numbers from `16 * E::SIZE` bytes.
#[inline(always)]
pub(crate) fn widen_lanes<E: Element>(bytes: &[u8]) -> Lanes {
    E::widen_lanes(&bytes[..LANES * E::SIZE])
}

/// Fewer than 16 numbers, filled up with zeros.
#[inline(always)]
pub(crate) fn widen_tail<E: Element>(bytes: &[u8]) -> Lanes {
    let mut tail = [0; LANES * 4];
    tail[..bytes.len()].copy_from_slice(bytes);
    widen_lanes::<E>(&tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_one_ulp_of_f64() {
        check_exp((0..=u32::MAX).step_by(1009 * crate::every(4001)));
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
