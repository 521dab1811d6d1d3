//! Rotated weights as the dense weights that they stand for.
//!
//! Invariant: a row is turned back in f64, in which a row of trits and 16-bit scales is exact where the factor of the
//! transform is, and rounded once; what the rounding changes is measured against the f64 row.

use bitnet_checkpoint::{Checkpoint, Config, ROTATION_KEYS, Rotation, Slot, TiledHeads};
use bitnet_formats::{ErrorCode, FormatError, PlainType};
use bitnet_ternary::{TernaryMatrix, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

use crate::targets::Target;

/// The network of the output: the same without the rotation.
///
/// # Errors
/// `usage` for weights that are not rotated; `target-cannot-hold` for a target of packed trits.
pub fn network(checkpoint: &Checkpoint, target: &Target) -> Result<Config, FormatError> {
    if checkpoint.config.rotation.is_none() {
        let message = "--unfold: expected rotated weights, found weights that are not rotated";
        return Err(FormatError::new(ErrorCode::Usage, message)
            .in_file(&checkpoint.path)
            .hint("leave --unfold away"));
    }
    if target.packing().is_some() {
        let message = format!(
            "unrotated weights are not ternary, and {} holds trits",
            target.name
        );
        return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .in_tensor(ROTATION_KEYS)
            .hint("choose gguf-f32, gguf-f16, gguf-bf16, hf-f16 or hf-bf16"));
    }
    Ok(Config {
        rotation: None,
        ..checkpoint.config.clone()
    })
}

/// What rounding to the target's type changed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Largest absolute error.
    pub absolute: f64,
    /// Largest error in relation to the largest weight of its row.
    pub relative: f64,
}

impl Change {
    /// What two parts changed together.
    pub fn merge(self, other: Self) -> Self {
        Self {
            absolute: self.absolute.max(other.absolute),
            relative: self.relative.max(other.relative),
        }
    }
}

/// How a rotated matrix becomes an output tensor.
pub struct Unfolding<'a> {
    /// What was done to the rows.
    pub rotation: &'a Rotation,
    /// In which order the target keeps columns of value heads, where it is another one.
    pub columns: Option<TiledHeads>,
    /// Type of the numbers.
    pub to: PlainType,
}

impl Unfolding<'_> {
    /// Appends a stored row, turned back, as bytes and as the values that these hold.
    pub fn row(&self, stored: &[f64], bytes: &mut Vec<u8>, values: &mut Vec<f32>) -> Change {
        let mut row = stored.to_vec();
        self.rotation.unfold(&mut row);
        let mut change = Change::default();
        let mut largest = 0.0f64;
        for at in 0..row.len() {
            let place = self.columns.map_or(at, |heads| heads.grouped(at));
            let exact = row.get(place).copied().unwrap_or_default();
            let single = exact as f32;
            let held = match self.to {
                PlainType::F16 => {
                    let half = f32_to_f16(single);
                    bytes.extend_from_slice(&half.to_le_bytes());
                    f16_to_f32(half)
                }
                PlainType::Bf16 => {
                    let half = f32_to_bf16(single);
                    bytes.extend_from_slice(&half.to_le_bytes());
                    bf16_to_f32(half)
                }
                _ => {
                    bytes.extend_from_slice(&single.to_le_bytes());
                    single
                }
            };
            values.push(held);
            change.absolute = change.absolute.max((f64::from(held) - exact).abs());
            largest = largest.max(exact.abs());
        }
        if largest > 0.0 {
            change.relative = change.absolute / largest;
        }
        change
    }
}

/// A row of a ternary matrix, `trit * scale`.
pub fn stored_row(matrix: &TernaryMatrix, row: usize) -> Vec<f64> {
    let cols = matrix.cols();
    let trits = matrix.row(row).iter().enumerate();
    let value = |(col, trit): (usize, &i8)| {
        f64::from(*trit) * f64::from(matrix.scales().at(row, col, cols))
    };
    trits.map(value).collect()
}

/// Whether a matrix is stored rotated, and so unfolded.
pub fn is_unfolded(checkpoint: &Checkpoint, slot: Slot) -> bool {
    let rotation = checkpoint.config.rotation.as_deref();
    rotation.is_some_and(|rotation| rotation.turns(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn rows_are_turned_back_and_rounding_is_measured() {
        let rotation = Rotation {
            block_size: 4,
            signs: BTreeMap::from([(4, vec![1, -1, 1, 1])]),
            folded: BTreeSet::new(),
            embeddings: false,
            tiled_values: false,
        };
        let unfolding = |to| Unfolding {
            rotation: &rotation,
            columns: None,
            to,
        };
        // H of (2, 0, 0, 2) in blocks of 4 is (2, 0, 0, 2); the second sign is turned
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        let change = unfolding(PlainType::F32).row(&[2.0, 0.0, 0.0, 2.0], &mut bytes, &mut values);
        assert_eq!(values, [2.0, 0.0, 0.0, 2.0]);
        assert_eq!((bytes.len(), change.absolute), (16, 0.0));
        let (mut bytes, mut values) = (Vec::new(), Vec::new());
        let stored = [1.0 + 1.0 / 1024.0, 1.0, 0.0, 0.0];
        let change = unfolding(PlainType::Bf16).row(&stored, &mut bytes, &mut values);
        assert_eq!(bytes.len(), 8);
        assert!(change.absolute > 0.0 && change.relative >= change.absolute / 1.001);
        assert_eq!(values[0], 1.0);
    }
}
