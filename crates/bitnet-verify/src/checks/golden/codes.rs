//! Gate 1: codes and scales, and what happened to those that differ.

use super::super::check::Subject;
use super::super::report::Report;
use super::super::trits::rotated;
use crate::checks::gates::{check_codes, name_codes};
use crate::diagnose::fault::Fault;
use crate::reference::golden::Golden;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::Checkpoint;

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
        let named = name_codes(truth, &matrix, rotated(slot, subject));
        faults.extend(named.map(|(kind, what)| Fault::at(kind, NAME, slot, what)));
    }
    let compared = format!("codes and scales of {compared} linears");
    report.checks.push(findings.into_verdict(NAME, compared));
    faults
}
