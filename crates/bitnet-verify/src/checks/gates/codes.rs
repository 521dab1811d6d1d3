//! Gate 1: codes and scales are the recorded ones.
//!
//! Invariant: codes are equal, a stored scale is equal to the bit; only the mean of master weights may
//! be off, because the order of that sum is free.

use crate::diagnose::fault::FaultName;
use crate::diagnose::naming::{of_digest, of_scales};
use crate::reference::golden::{TernaryTruth, TrueScales, codes_sha256};
use bitnet_checkpoint::TensorDigest;
use bitnet_ternary::TernaryMatrix;
use sha2::{Digest, Sha256};

/// Units in the last place that the mean of master weights may be off (3 were seen).
const ABSMEAN_ULPS: u32 = 4;

/// Compares one linear, whatever structure its container gives the scales.
///
/// # Errors
/// What differs.
pub fn check_codes(truth: &TernaryTruth, matrix: &TernaryMatrix) -> Result<(), String> {
    let shape = [matrix.rows(), matrix.cols()];
    if truth.shape != shape {
        return Err(format!("expected shape {:?}, found {shape:?}", truth.shape));
    }
    let found = codes_sha256(matrix.trits());
    if found != truth.sha256 {
        return Err(format!(
            "expected codes of sha256 {}, found {found}",
            truth.sha256
        ));
    }
    // a linear of zeros has no scale that any container need keep
    if matrix.trits().iter().all(|&t| t == 0) {
        return Ok(());
    }
    match &truth.scales {
        TrueScales::One { alpha_bits, exact } => {
            // silent rows and groups are 0 in normal form
            let normal = matrix.normal_scales();
            let mut scales = normal.as_slice().iter().filter(|s| **s != 0.0);
            scales.try_for_each(|s| check_scale(*alpha_bits, *exact, *s))
        }
        TrueScales::Each { columns, sha256 } => {
            let found = scales_each_sha256(matrix, *columns);
            match found == *sha256 {
                true => Ok(()),
                false => Err(format!("expected scales of sha256 {sha256}, found {found}")),
            }
        }
        TrueScales::Several { structure, sha256 } => {
            let found = TensorDigest::of(&truth.name, matrix);
            if (&found.scale_structure, &found.scales_sha256) == (structure, sha256) {
                return Ok(());
            }
            Err(format!(
                "expected scales per {structure} of sha256 {sha256}, found them per {} of sha256 {}",
                found.scale_structure, found.scales_sha256
            ))
        }
    }
}

/// What happened to a linear that does not pass, judged by hashes, counts and scales; `head_dim` for linears whose
/// rows are rotated.
pub fn name_codes(
    truth: &TernaryTruth,
    matrix: &TernaryMatrix,
    head_dim: Option<usize>,
) -> Option<(FaultName, String)> {
    if truth.shape != [matrix.rows(), matrix.cols()] {
        return None;
    }
    if codes_sha256(matrix.trits()) != truth.sha256 {
        let is_right = |m: &TernaryMatrix| codes_sha256(m.trits()) == truth.sha256;
        let found = matrix.counts();
        return of_digest(matrix, head_dim, is_right).or_else(|| {
            let expected = truth.counts?;
            let what = format!("expected {expected:?} of -1, 0, +1, found {found:?}");
            Some(match expected == found {
                true => (
                    FaultName::MovedTrits,
                    "as many of each kind as expected, in other places".to_owned(),
                ),
                false => (FaultName::ChangedTrits, what),
            })
        });
    }
    match truth.scales {
        TrueScales::One { alpha_bits, .. } => {
            let expected = f32::from_bits(alpha_bits);
            let normal = matrix.normal_scales();
            let found = normal.as_slice().iter().filter(|s| **s != 0.0);
            of_scales(found.map(|found| (expected, *found)))
        }
        TrueScales::Each { .. } | TrueScales::Several { .. } => Some((
            FaultName::ChangedScale,
            "expected scales of another hash".to_owned(),
        )),
    }
}

/// sha256 of the scales of every row, or of every `columns` of a row: f32, 0 where all trits are.
fn scales_each_sha256(matrix: &TernaryMatrix, columns: Option<usize>) -> String {
    let cols = matrix.cols();
    let run = columns.unwrap_or(cols).max(1);
    let mut bytes = Vec::with_capacity(matrix.rows() * cols.div_ceil(run) * 4);
    for row in 0..matrix.rows() {
        for (n, trits) in matrix.row(row).chunks(run).enumerate() {
            let at = trits.iter().position(|trit| *trit != 0);
            let scale = at.map_or(0.0, |at| matrix.scales().at(row, n * run + at, cols));
            bytes.extend_from_slice(&scale.to_le_bytes());
        }
    }
    bitnet_formats::hex(&Sha256::digest(&bytes))
}

/// Compares one scale.
fn check_scale(alpha_bits: u32, exact: bool, found: f32) -> Result<(), String> {
    let most = if exact { 0 } else { ABSMEAN_ULPS };
    if found.to_bits().abs_diff(alpha_bits) <= most {
        return Ok(());
    }
    Err(format!(
        "expected scale {:e} (0x{alpha_bits:08x}) within {most} ulp, found {found:e} (0x{:08x})",
        f32::from_bits(alpha_bits),
        found.to_bits()
    ))
}
