//! Activations to int8: per token, symmetric, absmax.
//!
//! The definition (`formats/numerics.md`, rule 1; paper arXiv 2402.17764, section 2):
//!
//! ```text
//! a = max |x|        s = fl32(127 * fl32(1 / max(a, 1e-5)))
//! q = clamp(round_half_even(x * s), -128, 127)
//! ```
//!
//! Invariant: a reciprocal and two products, one rounding each, which is how PyTorch evaluates
//! `127 / tensor`: an ulp in `s` moves activations at a half by one level, and then a model gives
//! other logits than it was trained and published with. NaN and infinity are errors, never
//! numbers. Dequantized, `x ~ q / s`.

use std::fmt;

/// One token's activations as int8.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantizedActivations {
    /// `(cols,)`
    pub values: Vec<i8>,
    /// `s`: `x ~ values / scale`.
    pub scale: f32,
    /// Sum of `values`; kernels whose codes are `trit + 1` subtract it.
    pub sum: i32,
}

/// An activation that is not a number or not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActivationError {
    /// Column of the first offender.
    pub index: usize,
}

impl fmt::Display for ActivationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "activation {} is not finite", self.index)
    }
}

impl std::error::Error for ActivationError {}

/// `127 * (1 / max(a, 1e-5))`, each step rounded, for the largest magnitude `a` of a token.
#[inline(always)]
pub fn activation_scale(absmax: f32) -> f32 {
    127.0 * (1.0 / absmax.max(1e-5))
}

/// Quantizes one token. `out` is `(cols,)`; returns `(scale, sum of out)`.
///
/// # Errors
/// The first NaN or infinity.
pub fn quantize_row(x: &[f32], out: &mut [i8]) -> Result<(f32, i32), ActivationError> {
    let absmax = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    if absmax >= 0x7f80_0000 {
        return Err(ActivationError {
            index: x.iter().position(|v| !v.is_finite()).unwrap_or(0),
        });
    }
    let scale = activation_scale(f32::from_bits(absmax));
    // Adding 1.5 * 2^23 rounds to an integer, half to even, for |x * s| < 2^22; here it is <= 128.
    const ROUND: f32 = 12_582_912.0;
    let mut sum = 0i32;
    for (v, q) in x.iter().zip(out.iter_mut()) {
        let r = (v * scale + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let r = r.clamp(-128, 127);
        *q = r as i8;
        sum = sum.wrapping_add(r);
    }
    Ok((scale, sum))
}

impl QuantizedActivations {
    /// Quantizes one token `x` of shape `(cols,)`.
    ///
    /// # Errors
    /// The first NaN or infinity.
    pub fn from_row(x: &[f32]) -> Result<Self, ActivationError> {
        let mut values = vec![0; x.len()];
        let (scale, sum) = quantize_row(x, &mut values)?;
        Ok(Self { values, scale, sum })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_rule_as_written() {
        let mut state = 1u32;
        for magnitude in [1e-30f32, 1e-6, 0.3, 1.0, 777.0, 3e30] {
            let x: Vec<f32> = (0..999)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state as f32 / u32::MAX as f32 - 0.5) * magnitude
                })
                .collect();
            let q = QuantizedActivations::from_row(&x).unwrap();
            let a = x.iter().fold(0f32, |m, v| m.max(v.abs()));
            let s = (1.0 / a.max(1e-5)) * 127.0;
            assert_eq!(q.scale, s);
            let want: Vec<i8> = x
                .iter()
                .map(|v| (v * s).round_ties_even().clamp(-128.0, 127.0) as i8)
                .collect();
            assert_eq!(q.values, want);
            assert_eq!(q.sum, want.iter().map(|&v| i32::from(v)).sum::<i32>());
        }
    }

    #[test]
    fn ties_go_to_even_and_zero_rows_stay_zero() {
        let q = QuantizedActivations::from_row(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5]).unwrap();
        assert_eq!(q.values, [127, 0, 2, 2, 0, -2]);
        assert_eq!(
            QuantizedActivations::from_row(&[0.0; 5]).unwrap().values,
            [0; 5]
        );
    }

    #[test]
    fn refuses_what_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(
                QuantizedActivations::from_row(&[0.0, bad]),
                Err(ActivationError { index: 1 })
            );
        }
    }
}
