//! Whether the numbers can be those of a trained model.
//!
//! Invariant: every value is read once, one tensor at a time. What is only unusual is a warning.

use super::finding::{Examination, Finding, Patient, Severity};
use crate::blocks::{block_rows, row_bytes, widen};
use bitnet_checkpoint::{Checkpoint, DenseTensor, Slot};
use bitnet_formats::FormatError;
use bitnet_ternary::TernaryMatrix;

pub(super) const EXAMINATION: Examination = Examination {
    name: "weights",
    what: "zeros, constants, NaN, codes, statistics of trits and scales",
    examine: |patient, findings| {
        if let Some(checkpoint) = patient.checkpoint {
            let (mut has_zeros, mut without_zeros) = (false, Vec::new());
            for slot in checkpoint.slots_in_file_order() {
                let found = look(checkpoint, slot);
                // a healthy linear of three values has zeros
                has_zeros |= found.is_none() && checkpoint.is_ternary(slot);
                match found {
                    Some(finding) if finding.what == NO_ZEROS => without_zeros.push(finding),
                    found => findings.extend(found),
                }
            }
            // a model of one bit has no zeros anywhere
            if has_zeros {
                findings.append(&mut without_zeros);
            }
        }
        unused(patient, findings);
    },
};

// Bounds that were chosen, not measured: orders of magnitude around what the absmean rule makes of bell-shaped
// weights (a third of zeros, both signs alike, scales of 1e-3 to 10), so that only what is broken lies outside.

/// Shares of zeros that are not remarked on.
const ZEROS: std::ops::RangeInclusive<f64> = 0.02..=0.97;
/// Largest `|plus - minus| / (plus + minus)` that is not remarked on.
const IMBALANCE: f64 = 0.3;
/// Magnitudes of scales that are not remarked on.
const SCALES: std::ops::RangeInclusive<f32> = 1e-7..=1e4;

/// What to do about a tensor that cannot be right.
const AGAIN: &str = "compare with the source, or convert again";

/// What is said of a linear without zeros, in a model that has some.
const NO_ZEROS: &str = "no trit is 0, and other linears have zeros";

fn look(checkpoint: &Checkpoint, slot: Slot) -> Option<Finding> {
    let place = slot.to_string();
    let seen = if checkpoint.is_ternary(slot) {
        checkpoint
            .ternary(slot)
            .map(|matrix| ternary(&place, &matrix))
    } else {
        checkpoint
            .dense(slot)
            .and_then(|tensor| dense(&place, &tensor))
    };
    seen.unwrap_or_else(|error| Some(Finding::unreadable(place, &error)))
}

/// The worst thing about a linear.
fn ternary(place: &str, matrix: &TernaryMatrix) -> Option<Finding> {
    let [minus, zero, plus] = matrix.counts();
    let total = minus + zero + plus;
    let share = zero as f64 / total.max(1) as f64;
    if zero == total {
        let what = "every trit is 0";
        return Some(Finding::error("zero-tensor", place, what, AGAIN));
    }
    if plus == total || minus == total {
        let what = format!("every trit is {}", if plus == total { "+1" } else { "-1" });
        return Some(Finding::error("constant-tensor", place, what, AGAIN));
    }
    let cols = matrix.cols().max(1);
    let scales = matrix.scales();
    let mut odd = None;
    for (row, trits) in matrix.trits().chunks_exact(cols).enumerate() {
        if trits.iter().all(|t| *t == 0) {
            continue;
        }
        for column in (0..cols).step_by(32) {
            let end = (column + 32).min(cols);
            if trits[column..end].iter().any(|t| *t != 0) {
                let scale = scales.at(row, column, cols);
                if !SCALES.contains(&scale.abs()) {
                    odd.get_or_insert((row, column, scale));
                }
            }
        }
    }
    if let Some((row, column, scale)) = odd {
        let (code, severity) = match scale == 0.0 {
            true => ("zero-scale", Severity::Error),
            false => ("implausible-scale", Severity::Warning),
        };
        let what = format!(
            "the scale at row {row}, column {column} is {scale:e}, beside trits that are not 0"
        );
        return Some(Finding::new(code, severity, place, what, AGAIN));
    }
    let imbalance = plus.abs_diff(minus) as f64 / (plus + minus) as f64;
    if zero == 0 && imbalance <= IMBALANCE {
        return Some(Finding::warning(
            "implausible-trits",
            place,
            NO_ZEROS,
            AGAIN,
        ));
    }
    if zero > 0 && !ZEROS.contains(&share) {
        let what = format!("{} of the trits are 0", bitnet_cli::percent(share, 2));
        return Some(Finding::warning("implausible-trits", place, what, AGAIN));
    }
    if imbalance > IMBALANCE {
        let what = format!("{plus} trits are +1 and {minus} are -1");
        return Some(Finding::warning("unbalanced-trits", place, what, AGAIN));
    }
    None
}

/// Whether a dense tensor is all zero, or one value.
fn dense(place: &str, tensor: &DenseTensor<'_>) -> Result<Option<Finding>, FormatError> {
    let width = tensor.shape.last().copied().unwrap_or(1).max(1);
    let rows = tensor.shape.iter().product::<usize>() / width;
    let step = block_rows(width);
    let mut first = None;
    for start in (0..rows).step_by(step) {
        let end = rows.min(start + step);
        let bytes = row_bytes(tensor, rows, start, end);
        let values = widen(tensor, bytes, (end - start) * width)?;
        let of = *first.get_or_insert(values.first().copied().unwrap_or(0.0));
        if values.iter().any(|v| v.to_bits() != of.to_bits()) {
            return Ok(None);
        }
    }
    Ok(match first {
        Some(0.0) => Some(Finding::error(
            "zero-tensor",
            place,
            "every value is 0",
            AGAIN,
        )),
        // norms begin as ones
        Some(1.0) if tensor.shape.len() == 1 => Some(Finding::note(
            "untrained-norm",
            place,
            "every value is 1, as before training",
            "make sure that the norm was not lost on the way",
        )),
        Some(value) if rows * width > 1 => Some(Finding::warning(
            "constant-tensor",
            place,
            format!("every value is {value:e}"),
            AGAIN,
        )),
        _ => None,
    })
}

/// Space between and behind the tensors that no tensor claims, beyond alignment.
fn unused(patient: &Patient<'_>, findings: &mut Vec<Finding>) {
    for (part, source) in patient.file.parts.iter().enumerate() {
        let mut ends: Vec<(u64, u64)> = patient
            .file
            .tensors()
            .iter()
            .filter(|t| t.part == part)
            .map(|t| (t.offset, t.offset.saturating_add(t.len)))
            .collect();
        ends.sort_unstable();
        let Some(&(_, last)) = ends.last() else {
            continue;
        };
        let left = source.len().saturating_sub(last);
        if left > 4096 {
            let what = format!("{left} bytes behind the last tensor belong to nothing");
            let remedy = "harmless; a conversion to the same target leaves them out";
            let place = source.path().display().to_string();
            findings.push(Finding::note("trailing-bytes", place, what, remedy));
        }
    }
}
