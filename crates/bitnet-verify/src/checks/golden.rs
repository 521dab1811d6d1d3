//! Whether the runtime comes as close to transformers as two correct implementations do.
//!
//! Invariant: the five gates of `formats/numerics.md`, each a row of the report; a gate whose record
//! is absent is skipped, not passed.

use super::logits::Runtime;
use super::{Check, Running, Subject};
use crate::gates::{self, check_codes};
use crate::golden::Golden;
use crate::report::{CheckResult, ComparedLogits, Findings, Report};
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
        let (Some(golden), Some(&backend)) = (subject.golden, subject.kernels.first()) else {
            return;
        };
        report.checks.push(codes(subject, golden));
        match Runtime::load(subject.artifact, backend) {
            Ok(runtime) => forward(subject, golden, &runtime, report),
            Err(error) => report
                .checks
                .push(CheckResult::error("golden-logits", &error)),
        }
    }
}

/// Gate 1: codes and scales.
fn codes(subject: &Subject<'_>, golden: &Golden) -> CheckResult {
    const NAME: &str = "golden-codes";
    if golden.ternary.is_empty() {
        return CheckResult::skipped(NAME, "no ternary.json");
    }
    let checkpoint = &subject.artifact.checkpoint;
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
        match checkpoint.ternary(slot).map(|m| check_codes(truth, &m)) {
            Ok(Ok(())) => compared += 1,
            Ok(Err(text)) => findings.different(place, text),
            Err(error) => findings.unreadable(place, &error),
        }
    }
    findings.into_result(NAME, format!("codes and scales of {compared} linears"))
}

/// Gates 2 to 5.
fn forward(subject: &Subject<'_>, golden: &Golden, runtime: &Runtime, report: &mut Report) {
    let bounds = subject.thresholds;

    gate(report, "golden-linears", |findings, _| {
        let errors = gates::linears(golden, |slot, x, n| runtime.linear(slot, x, n))?;
        findings.violations(gates::linear_violations(&errors, bounds));
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
        findings.violations(errors.violations(bounds));
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
    gate(report, "golden-embeddings", |findings, _| {
        let measured = gates::embeddings(golden, |tokens| runtime.embed(tokens))?;
        findings.violations(measured.violations(bounds));
        Ok((!measured.ours.is_empty()).then(|| measured.summary()))
    });
    gate(report, "golden-logits", |findings, report| {
        if golden.logits.is_empty() {
            return Ok(None);
        }
        let measured = gates::end_to_end(golden, bounds, |tokens| runtime.logits(tokens))?;
        findings.violations(measured.violations(bounds));
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
        findings.violations(nll.and_then(|nll| nll.violation(bounds)));
        Ok(nll.map(|n| format!("mean nll {:.4}, reference {:.4}", n.found, n.expected)))
    });
}

/// Runs one gate; `Ok(None)` says that its record is absent.
fn gate(
    report: &mut Report,
    name: &'static str,
    run: impl FnOnce(&mut Findings, &mut Report) -> Result<Option<String>, FormatError>,
) {
    let mut findings = Findings::default();
    let result = match run(&mut findings, report) {
        Ok(Some(compared)) => findings.into_result(name, compared),
        Ok(None) => CheckResult::skipped(name, "not recorded"),
        Err(error) => CheckResult::error(name, &error),
    };
    report.checks.push(result);
}
