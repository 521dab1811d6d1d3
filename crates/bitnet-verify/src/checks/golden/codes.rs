//! Gate 1: codes and scales, and what happened to those that differ.

use super::super::check::Subject;
use super::super::report::Report;
use super::super::trits::rotated;
use crate::checks::gates::{check_codes, name_codes};
use crate::diagnose::fault::{Fault, FaultName};
use crate::reference::golden::{Golden, codes_sha256};
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::{Checkpoint, LayerSlot, Slot};
use bitnet_ternary::TernaryMatrix;

const NAME: &str = "golden-codes";

/// Adds its row to the report; returns the faults that have a name.
pub(super) fn compare(
    subject: &Subject<'_>,
    checkpoint: &Checkpoint,
    golden: &Golden,
    report: &mut Report,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    if golden.ternary.is_empty() {
        let skipped = Verdict::skipped(NAME, "no ternary.json");
        report.checks.push(skipped);
        return faults;
    }
    let mut findings = Findings::default();
    let mut compared = 0;
    for slot in checkpoint
        .slots()
        .into_iter()
        .filter(|slot| checkpoint.is_ternary(*slot))
    {
        let place = slot.to_string();
        let Some(truth) = golden.truth_of(checkpoint, slot) else {
            findings.different(place, "not in ternary.json");
            continue;
        };
        let matrix = match checkpoint.ternary(slot) {
            Ok(matrix) => matrix,
            Err(error) => {
                findings.unreadable(place, &error);
                continue;
            }
        };
        let Err(text) = check_codes(truth, &matrix) else {
            compared += 1;
            continue;
        };
        findings.different(place, text);
        let named = match moved_expert(checkpoint, golden, slot, &matrix) {
            Some(what) => Some((FaultName::PermutedExperts, what)),
            None => name_codes(truth, &matrix, rotated(slot, subject)),
        };
        faults.extend(named.map(|(kind, what)| Fault::at(kind, NAME, slot, what)));
    }
    let compared = format!("codes and scales of {compared} linears");
    report.checks.push(findings.into_verdict(NAME, compared));
    faults
}

/// Which expert of its layer a matrix is, where it is another one than its place says.
fn moved_expert(
    checkpoint: &Checkpoint,
    golden: &Golden,
    slot: Slot,
    matrix: &TernaryMatrix,
) -> Option<String> {
    let Slot::Layer(layer, LayerSlot::Expert(own, linear)) = slot else {
        return None;
    };
    let experts = checkpoint.config.experts.as_ref()?;
    let found = codes_sha256(matrix.trits());
    let is_it = |other: &usize| {
        let slot = Slot::Layer(layer, LayerSlot::expert(*other, linear));
        let truth = golden.truth_of(checkpoint, slot);
        truth.is_some_and(|truth| truth.sha256 == found)
    };
    let other = (0..experts.count).find(is_it)?;
    (other != usize::from(own)).then(|| format!("expected expert {own}, found expert {other}"))
}
