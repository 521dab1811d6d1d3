//! Whether the runtime comes as close to transformers as two correct implementations do.
//!
//! Invariant: the five gates of `formats/numerics.md`, each a row of the report; a gate whose record
//! is absent is skipped, not passed. A gate that does not hold is then explained if possible.

mod codes;
mod tokens;

use super::check::{Check, Running, Subject};
use super::report::{ComparedLogits, Report};
use super::runtime::Runtime;
use crate::checks::gates;
use crate::diagnose::fault::{Fault, FaultName};
use crate::diagnose::logits::of_logits;
use crate::diagnose::trace::{self, Diagnosis};
use crate::reference::golden::{Golden, Recorded};
use crate::verdict::Difference;
use crate::verdict::{Findings, Status, Verdict};
use bitnet_checkpoint::Checkpoint;
use bitnet_cli::fixed;
use bitnet_formats::FormatError;

pub(super) const CHECK: Check = Check {
    name: "golden",
    what: "the five gates against recorded outputs of transformers; with --golden",
    start: |subject| {
        subject
            .golden
            .is_some()
            .then(|| Box::new(Gates) as Box<dyn Running>)
    },
};

struct Gates;

impl Running for Gates {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some(golden) = subject.golden.filter(|_| !subject.kernels.is_empty()) else {
            return;
        };
        let Some(artifact) = subject.artifact.model() else {
            return;
        };
        let checkpoint = &artifact.checkpoint;
        let weights = codes::compare(subject, checkpoint, golden, report);
        tokens::compare(checkpoint, golden, report);
        let traced = trace(subject, checkpoint, golden, report);
        let departs = !traced.departures.is_empty();
        explain(weights, traced.faults, report);
        match subject.runtime() {
            None => {}
            Some(Ok(runtime)) => {
                let violations = forward(subject, golden, runtime, report);
                if report.faults.is_empty() && !departs {
                    unexplained(checkpoint, golden, &violations, report);
                }
            }
            Some(Err(error)) => report.checks.push(Verdict::error(LOGITS, error)),
        }
    }
}

/// Every operator and layer of the trace from its recorded input, by the oracle.
fn trace(
    subject: &Subject<'_>,
    checkpoint: &Checkpoint,
    golden: &Golden,
    report: &mut Report,
) -> Diagnosis {
    let mut diagnosis = Diagnosis::default();
    gate(report, trace::TRACE, |findings, _| {
        if golden.trace.is_empty() {
            return Ok(None);
        }
        diagnosis = trace::of_trace(checkpoint, golden, subject.thresholds);
        if let Some(error) = diagnosis.error.take() {
            return Err(error);
        }
        findings.extend(diagnosis.departures.iter().cloned());
        Ok(Some(format!(
            "{} places, largest relative error {:.1e}",
            diagnosis.compared, diagnosis.worst
        )))
    });
    diagnosis
}

/// Reports what codes and trace say, each fault once: a name goes before the bare fact that something departs.
fn explain(weights: Vec<Fault>, traced: Vec<Fault>, report: &mut Report) {
    let is_bare = |f: &Fault| {
        matches!(
            f.name,
            FaultName::MovedTrits | FaultName::ChangedTrits | FaultName::ChangedScale
        )
    };
    let is_at = |one: &Fault, other: &Fault| {
        // a whole layer departs where one of its tensors does
        one.tensor == other.tensor || other.tensor.starts_with(&format!("{}.", one.tensor))
    };
    let named = |f: &&Fault| f.name != FaultName::Unexplained;
    for fault in &weights {
        let better = traced
            .iter()
            .filter(named)
            .any(|t| t.tensor == fault.tensor);
        if !(is_bare(fault) && better) {
            report.fault(fault.clone());
        }
    }
    for fault in traced {
        let known =
            fault.name == FaultName::Unexplained && weights.iter().any(|w| is_at(&fault, w));
        if !known {
            report.fault(fault);
        }
    }
}

/// What neither weights nor trace show: the runtime itself, or, without a trace, what the logits alone tell.
fn unexplained(
    checkpoint: &Checkpoint,
    golden: &Golden,
    violations: &[Difference],
    report: &mut Report,
) {
    let failed = |c: &Verdict| c.name == LOGITS && c.status == Status::Different;
    if let (Some(first), false) = (violations.first(), golden.trace.is_empty()) {
        let what = first.what.clone();
        report.fault(Fault::of_key(
            FaultName::Runtime,
            "golden-layers",
            &first.place,
            what,
        ));
    } else if report.checks.iter().any(failed) {
        explain_logits(checkpoint, golden, LOGITS, report);
    }
}

/// Names what the logits alone tell of why they are others than recorded.
pub(super) fn explain_logits(
    checkpoint: &Checkpoint,
    golden: &Golden,
    check: &'static str,
    report: &mut Report,
) {
    let mut sequences: Vec<(&[u32], &Recorded)> = Vec::new();
    for prompt in &golden.prompts {
        let recorded = golden.logits.get(&prompt.name);
        sequences.extend(recorded.map(|recorded| (&prompt.ids[..], recorded)));
    }
    match of_logits(checkpoint, check, &sequences) {
        Ok(fault) => report.fault(fault),
        Err(error) => report.checks.push(Verdict::error("diagnosis", &error)),
    }
}

/// The row of gate 4.
const LOGITS: &str = "golden-logits";

/// Gates 2 to 5; returns what gates 2 and 3 say of the runtime.
fn forward(
    subject: &Subject<'_>,
    golden: &Golden,
    runtime: &Runtime,
    report: &mut Report,
) -> Vec<Difference> {
    let bounds = subject.thresholds;
    let mut forced = Vec::new();

    gate(report, "golden-linears", |findings, _| {
        let errors = gates::linears(golden, |slot, x, n| runtime.linear(slot, x, n))?;
        let violations = gates::linear_violations(&errors, bounds);
        forced.extend(violations.iter().cloned());
        findings.extend(violations);
        let worst = errors.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        Ok((!errors.is_empty()).then(|| {
            format!(
                "{} linears, largest relative error {worst:.1e}",
                errors.len()
            )
        }))
    });
    gate(report, "golden-layers", |findings, report| {
        let errors = gates::layers(golden, |layer, x, n| runtime.layer(layer, x, n))?;
        let violations = errors.violations(bounds);
        forced.extend(violations.iter().cloned());
        findings.extend(violations);
        if errors.layers.is_empty() {
            return Ok(None);
        }
        let compared = format!(
            "{} layers, largest relative error {:.1e}",
            errors.layers.len(),
            errors.worst()
        );
        report.layers = Some(("from the recorded hidden state", errors.layers));
        Ok(Some(compared))
    });
    gate(report, "golden-experts", |findings, _| {
        let measured = gates::experts(golden, |tokens| runtime.routing(tokens))?;
        let is_recorded = !golden.routing.is_empty();
        findings.extend(measured.differences.iter().cloned());
        Ok(is_recorded.then(|| {
            format!(
                "{} choices of experts, weights within {:.1e}, {} tokens with a tie",
                measured.equal, measured.weight, measured.ties
            )
        }))
    });
    gate(report, "golden-embeddings", |findings, _| {
        let measured = gates::embeddings(golden, |tokens| runtime.embed(tokens))?;
        findings.extend(measured.violations(bounds));
        Ok((!measured.ours.is_empty()).then(|| measured.summary()))
    });
    gate(report, LOGITS, |findings, report| {
        if golden.logits.is_empty() {
            return Ok(None);
        }
        let measured = gates::end_to_end(golden, bounds, |tokens| runtime.logits(tokens))?;
        findings.extend(measured.violations(bounds));
        report.logits = Some(ComparedLogits {
            reference: "golden",
            divergence: measured.ours.clone(),
        });
        let native = measured.native.map_or(String::new(), |n| {
            format!("; 16-bit reference kl mean {:.2e}", n.kl_mean())
        });
        Ok(Some(format!(
            "{}; {} of {} sure greedy tokens{native}",
            measured.ours.summary(),
            measured.greedy_equal,
            measured.greedy_compared
        )))
    });
    gate(report, "golden-nll", |findings, _| {
        let nll = gates::nll(golden, |tokens| runtime.logits(tokens))?;
        findings.extend(nll.and_then(|nll| nll.violation(bounds)));
        Ok(nll.map(|n| {
            let (found, expected) = (fixed(n.found, 4), fixed(n.expected, 4));
            format!("mean nll {found}, reference {expected}")
        }))
    });
    forced
}

/// Runs one gate; `Ok(None)` says that its record is absent.
fn gate(
    report: &mut Report,
    name: &'static str,
    run: impl FnOnce(&mut Findings, &mut Report) -> Result<Option<String>, FormatError>,
) {
    let mut findings = Findings::default();
    let result = match run(&mut findings, report) {
        Ok(Some(compared)) => findings.into_verdict(name, compared),
        Ok(None) => Verdict::skipped(name, "not recorded"),
        Err(error) => Verdict::error(name, &error),
    };
    report.checks.push(result);
}
