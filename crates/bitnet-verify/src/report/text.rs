//! The report for people: the answer, then one line per check, then what differs.

use super::statistics::statistics;
use crate::checks::report::Report;
use crate::verdict::Verdict;
use std::fmt::Write;

/// Most differences of one check that are printed.
pub(super) const PRINTED: usize = 8;

/// The lines, each with its end.
pub(crate) fn of(report: &Report) -> String {
    let mut out = format!("{}: {}\n", report.status(), report.sentence());
    if let Some(reason) = report.different_models() {
        let hint = "give the model that the artifact was made from; --json lists what differs";
        let _ = writeln!(out, "  these look like different models: {reason}");
        let _ = writeln!(out, "  hint: {hint}");
        for check in &report.checks {
            line(&mut out, check);
        }
        return out;
    }
    for fault in &report.faults {
        let _ = writeln!(out, "  fault: {}", fault.sentence());
        let _ = writeln!(out, "  hint: {}", fault.name.row().hint);
    }
    if let Some((from, errors)) = &report.layers {
        let list: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
        let list = list.join(" ");
        let _ = writeln!(out, "  relative error of each layer, {from}: {list}");
    }
    for check in &report.checks {
        line(&mut out, check);
        for difference in check.differences.iter().take(PRINTED) {
            let _ = writeln!(out, "    {difference}");
        }
        if let Some(more @ 1..) = check.differences.len().checked_sub(PRINTED) {
            let _ = writeln!(out, "    and {more} more, listed by --json");
        }
    }
    if let Some(logits) = &report.logits {
        let (reference, divergence) = (logits.reference, &logits.divergence);
        if divergence.is_bit_identical() {
            let positions = divergence.positions();
            let _ = writeln!(
                out,
                "  logits, against the {reference}: bit-identical at {positions} positions"
            );
            return out;
        }
        let _ = writeln!(out, "  logits, against the {reference}:");
        for (name, figure) in statistics(divergence) {
            let _ = writeln!(out, "    {name:<30}: {figure}");
        }
    }
    out
}

fn line(out: &mut String, check: &Verdict) {
    let Verdict {
        name,
        status,
        detail,
        ..
    } = check;
    let _ = writeln!(out, "  {name:<14} {status:<9}  {detail}");
}
