//! What a target stores in place of the values of a dense tensor: gains minus one, and biases over a scale.
//!
//! Invariant: what readers make of the stored numbers is the value, to the bit, unless rounding is allowed.

use crate::plan::{Plan, StoredAs};
use bitnet_checkpoint::{Checkpoint, Slot};
use bitnet_formats::{ErrorCode, FormatError, ScaleRounding};
use bitnet_ternary::Scales;

/// What is stored in place of the values of a dense tensor.
#[derive(Debug, Clone, Copy)]
pub enum Stored {
    /// The values minus one.
    MinusOne,
    /// The values over a scale.
    Over(f32),
}

impl Stored {
    /// What a plan stores in place of the values of a slot; `None` for the values themselves.
    ///
    /// # Errors
    /// Scales of a linear that cannot be read.
    pub fn of(
        plan: &Plan,
        checkpoint: &Checkpoint,
        slot: Slot,
    ) -> Result<Option<Self>, FormatError> {
        Ok(match plan.stored_as(checkpoint, slot) {
            StoredAs::Values => None,
            StoredAs::MinusOne => Some(Self::MinusOne),
            StoredAs::OverScale(linear) => Some(Self::Over(scale_of(checkpoint, linear)?)),
        })
    }

    /// The numbers to store.
    ///
    /// # Errors
    /// `target-cannot-hold` for a value that readers make of no f32.
    pub fn numbers(self, values: &[f32], rounding: ScaleRounding) -> Result<Vec<f32>, FormatError> {
        match self {
            Self::MinusOne => minus_ones(values),
            Self::Over(scale) => over_scale(values, scale, rounding),
        }
    }

    /// What readers make of the numbers.
    pub fn read(self, numbers: &[f32]) -> Vec<f32> {
        let value = |number: &f32| match self {
            Self::MinusOne => number + 1.0,
            Self::Over(scale) => number * scale,
        };
        numbers.iter().map(value).collect()
    }
}

/// The scale of a linear that has one, as every reader of the output computes with it.
fn scale_of(checkpoint: &Checkpoint, linear: Slot) -> Result<f32, FormatError> {
    if let Some(scale) = checkpoint.one_scale(linear) {
        return Ok(scale);
    }
    match checkpoint.ternary(linear)?.normal_scales() {
        Scales::PerTensor(scale) => Ok(scale),
        other => Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("expected one scale, found {}", other.structure()),
        )
        .in_tensor(&linear.to_string())),
    }
}

/// What a target stores that keeps gains minus one.
///
/// A network only ever sees `fl32(1 + w)`, so that is what has to survive, and it does whenever some f32 `w`
/// was there before: the difference is exact for a gain from 0.5 on, and a smaller gain that came from an f32
/// is a multiple of 2^-24. A gain that no `w` gives is refused.
pub fn minus_ones(gains: &[f32]) -> Result<Vec<f32>, FormatError> {
    let stored: Vec<f32> = gains.iter().map(|gain| gain - 1.0).collect();
    let lost = stored
        .iter()
        .zip(gains)
        .position(|(w, gain)| w + 1.0 != *gain);
    match lost {
        None => Ok(stored),
        Some(at) => Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("index {at}: no f32 plus 1 is the gain {:e}", gains[at]),
        )
        .hint("a GGUF target stores gains as they are")),
    }
}

/// The numbers that readers multiply by a scale to get biases.
///
/// # Errors
/// `target-cannot-hold` for a bias that no f32 times the scale gives, unless rounding is allowed.
fn over_scale(
    biases: &[f32],
    scale: f32,
    rounding: ScaleRounding,
) -> Result<Vec<f32>, FormatError> {
    let number = |(at, &bias): (usize, &f32)| {
        if bias == 0.0 {
            return Ok(bias);
        }
        let near = bias / scale;
        let all = [near, near.next_up(), near.next_down()];
        if let Some(exact) = all.into_iter().find(|number| number * scale == bias) {
            return Ok(exact);
        }
        if rounding == ScaleRounding::Allow && near.is_finite() {
            return Ok(near);
        }
        Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!(
                "index {at}: readers multiply the bias by weight_scale {scale:e}, and no f32 gives {bias:e} so"
            ),
        )
        .hint("pass --allow-scale-rounding to round the biases to f32, or choose a GGUF target"))
    };
    biases.iter().enumerate().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_of_some_f32_come_back_and_others_are_refused() {
        let weights = [
            0.0f32, -0.0, 0.01, -0.7, -1.0, -1.5, -3.25, 1e-9, -1e-9, 7.5, 1e6,
        ];
        let gains = weights.map(|w| 1.0 + w);
        let stored = minus_ones(&gains).unwrap();
        assert!(stored.iter().zip(gains).all(|(w, gain)| w + 1.0 == gain));
        let error = minus_ones(&[1.0, 1e-9]).unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold);
        assert!(error.message.starts_with("index 1"), "{error}");
    }

    #[test]
    fn biases_come_back_from_a_scale_or_are_refused() {
        let biases = [0.0f32, -0.0, 10.0, -3.25, 1e-9, 1e6, -7.5];
        for scale in [0.5f32, 2.0, 0.03125] {
            let stored = over_scale(&biases, scale, ScaleRounding::Refuse).unwrap();
            assert!(stored.iter().zip(biases).all(|(n, bias)| n * scale == bias));
        }
        // a seventh of numbers with few bits: most products with a scale of 24 bits are rounded
        let all: Vec<f32> = (1..200).map(|n| n as f32 / 7.0).collect();
        let scale = 1.9173_f32;
        let error = over_scale(&all, scale, ScaleRounding::Refuse).unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold);
        let rounded = over_scale(&all, scale, ScaleRounding::Allow).unwrap();
        let near = |(n, bias): (&f32, &f32)| (n * scale / bias - 1.0).abs() < 2e-7;
        assert!(rounded.iter().zip(&all).all(near));
        let none = over_scale(&[1.0], 0.0, ScaleRounding::Allow).unwrap_err();
        assert_eq!(none.code, ErrorCode::TargetCannotHold);
    }
}
