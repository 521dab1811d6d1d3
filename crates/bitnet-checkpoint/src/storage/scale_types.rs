//! Which types hold which scales.
//!
//! Invariant: a float type holds `trit * scale` exactly if and only if it holds every scale that multiplies a
//! non-zero trit; of the groups and types that a target offers, the first that holds every known scale is taken.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitnet_formats::{ErrorCode, FormatError, PlainType, ScaleRounding};
use bitnet_ternary::{Scales, TernaryMatrix, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

/// Columns per scale that MLX has kernels for, fewest scales first.
const GROUPS: [usize; 3] = [LARGEST, 64, 32];
const LARGEST: usize = 128;

/// The stored value of a scale.
fn round_trip(scale: f32, to: PlainType) -> f32 {
    match to {
        PlainType::F16 => f16_to_f32(f32_to_f16(scale)),
        PlainType::Bf16 => bf16_to_f32(f32_to_bf16(scale)),
        _ => scale,
    }
}

/// Whether a type holds a scale.
pub fn is_exact_scale(scale: f32, to: PlainType) -> bool {
    round_trip(scale, to) == scale
}

/// Whether `trit * scale` can be stored as numbers of a type: the largest relative error.
///
/// # Errors
/// `scale-rounding` when it is not exact and `rounding` refuses; `target-cannot-hold` for a scale
/// that would become 0 or infinite.
pub fn check_float(
    matrix: &TernaryMatrix,
    to: PlainType,
    rounding: ScaleRounding,
) -> Result<f64, FormatError> {
    if to == PlainType::F32 {
        return Ok(0.0);
    }
    let name = to.safetensors_name().to_ascii_lowercase();
    let mut worst = (0.0, 0.0);
    for &scale in matrix.normal_scales().as_slice() {
        let stored = round_trip(scale, to);
        if stored == scale {
            continue;
        }
        if stored == 0.0 || !stored.is_finite() {
            let message = format!("the scale {scale:e} would become {stored} in {name}");
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message).hint("f32 holds it"));
        }
        let error = ((f64::from(stored) - f64::from(scale)) / f64::from(scale)).abs();
        if error > worst.0 {
            worst = (error, scale.into());
        }
    }
    let (error, scale) = worst;
    if error > 0.0 && rounding == ScaleRounding::Refuse {
        let message =
            format!("the scale {scale:e} is not exact in {name}, relative error {error:.3e}");
        return Err(FormatError::new(ErrorCode::ScaleRounding, message)
            .hint("choose a target with f32 scales, or --allow-scale-rounding"));
    }
    Ok(error)
}

/// What a reader of `trit * scale` numbers of a type will see.
///
/// # Errors
/// Never for a matrix that [`check_float`] accepted.
pub fn rounded_scales(matrix: &TernaryMatrix, to: PlainType) -> Result<TernaryMatrix, FormatError> {
    let each = |scales: &[f32]| scales.iter().map(|s| round_trip(*s, to)).collect();
    let scales = match matrix.scales() {
        Scales::PerTensor(scale) => Scales::PerTensor(round_trip(*scale, to)),
        Scales::PerRow(scales) => Scales::PerRow(each(scales)),
        Scales::PerGroup { group, scales } => Scales::PerGroup {
            group: *group,
            scales: each(scales),
        },
    };
    TernaryMatrix::new(
        matrix.rows(),
        matrix.cols(),
        matrix.trits().to_vec(),
        scales,
    )
    .map_err(|e| FormatError::new(ErrorCode::TargetCannotHold, e.to_string()).because(e))
}

/// What the scales of all linears of an MLX checkpoint have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedScales {
    /// Columns per scale.
    pub group: usize,
    /// Of scales and biases.
    pub plain: PlainType,
}

/// Group and type that fit all linears looked at so far.
pub struct ScaleTypes {
    groups: Vec<usize>,
    /// Which groups there are, for errors.
    said: &'static str,
    /// The type to take first, and the other one; whether each holds every scale.
    plains: [(PlainType, bool); 2],
}

impl ScaleTypes {
    /// All of them, `first` the type to take if it holds every scale.
    pub(super) fn new(first: PlainType) -> Self {
        let other = match first {
            PlainType::Bf16 => PlainType::F16,
            _ => PlainType::Bf16,
        };
        Self {
            groups: GROUPS.to_vec(),
            said: "MLX has groups of 32, 64 and 128 columns",
            plains: [(first, true), (other, true)],
        }
    }

    /// Those of a pack of rotated weights: f16, one scale for 128 columns.
    pub(super) fn of_packs() -> Self {
        Self {
            groups: vec![LARGEST],
            said: "a pack of rotated weights for MLX has groups of 128 columns",
            plains: [(PlainType::F16, true); 2],
        }
    }

    /// A linear of so many columns, with its scales if they are known.
    /// # Errors
    /// `target-cannot-hold` for columns that no group divides, and scales finer than any.
    pub fn meet(&mut self, cols: usize, known: Option<&TernaryMatrix>) -> Result<(), FormatError> {
        self.groups.retain(|group| cols.is_multiple_of(*group));
        if let Some(Scales::PerGroup { group: finest, .. }) = known.map(TernaryMatrix::scales) {
            self.groups.retain(|group| group <= finest);
        }
        if let Some(known) = known {
            for (plain, exact) in &mut self.plains {
                let error = check_float(known, *plain, ScaleRounding::Allow);
                *exact &= error.is_ok_and(|error| error == 0.0);
            }
        }
        if !self.groups.is_empty() {
            return Ok(());
        }
        let structure = known.map_or("tensor".to_owned(), |known| known.scales().structure());
        let message = format!(
            "{}, found {cols} columns and scales per {structure}",
            self.said
        );
        Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .hint("choose a target without groups, such as hf-packed"))
    }

    /// The fewest scales, in the first type that holds them all.
    pub fn chosen(&self) -> SharedScales {
        let [first, other] = self.plains;
        let take_other = !first.1 && other.1;
        SharedScales {
            // a linear that leaves none was refused
            group: self.groups.first().copied().unwrap_or(LARGEST),
            plain: if take_other { other.0 } else { first.0 },
        }
    }
}

/// How the scales of one matrix alone would be stored.
///
/// # Errors
/// `target-cannot-hold` for columns that no group divides, and scales finer than any.
pub(super) fn shared_scales_of(matrix: &TernaryMatrix) -> Result<SharedScales, FormatError> {
    let mut forms = ScaleTypes::new(PlainType::F16);
    forms.meet(matrix.cols(), Some(matrix))?;
    Ok(forms.chosen())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(scale: f32) -> Option<TernaryMatrix> {
        TernaryMatrix::new(1, 256, vec![1; 256], Scales::PerTensor(scale)).ok()
    }

    #[test]
    fn rounding_is_refused_named_and_measured() {
        let m = matrix(0.1).unwrap();
        assert_eq!(
            check_float(&m, PlainType::F32, ScaleRounding::Refuse).unwrap(),
            0.0
        );
        let refused = check_float(&m, PlainType::Bf16, ScaleRounding::Refuse).unwrap_err();
        assert_eq!(refused.code, ErrorCode::ScaleRounding);
        let error = check_float(&m, PlainType::Bf16, ScaleRounding::Allow).unwrap();
        assert!(error > 0.0 && error < 1.0 / 256.0, "{error}");
        let tiny = check_float(
            &matrix(1e-30).unwrap(),
            PlainType::F16,
            ScaleRounding::Allow,
        );
        assert_eq!(tiny.unwrap_err().code, ErrorCode::TargetCannotHold);
        assert_eq!(
            check_float(&matrix(0.5).unwrap(), PlainType::F16, ScaleRounding::Refuse).unwrap(),
            0.0
        );
    }
}
