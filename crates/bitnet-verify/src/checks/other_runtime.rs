//! Whether another runtime computed the same logits.
//!
//! Invariant: the other runtime is the reference, and the bounds are those of gates 4 and 5
//! (`formats/numerics.md`): no implementation of this network is closer to another than that. Where they do not
//! hold, the one deviation that gives the other's logits is named.

use super::check::{Check, Running, Subject};
use super::golden::explain_logits;
use super::report::{ComparedLogits, Report};
use super::runtime::Runtime;
use crate::checks::gates;
use crate::reference::divergence::Divergence;
use crate::reference::other_runtime::OtherRuntime;
use crate::reference::thresholds::Thresholds;
use crate::verdict::{Findings, Status, Verdict};
use bitnet_cli::fixed;
use bitnet_formats::FormatError;

pub(super) const CHECK: Check = Check {
    name: "other-runtime",
    what: "logits against those that another runtime wrote; with --logits-from",
    start: |subject| {
        subject
            .other
            .is_some()
            .then(|| Box::new(Compared) as Box<dyn Running>)
    },
};

struct Compared;

impl Running for Compared {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let (Some(other), Some(artifact)) = (subject.other, subject.artifact.model()) else {
            return;
        };
        let mut findings = Findings::default();
        let compared = match subject.runtime() {
            None => Ok(Divergence::default()),
            Some(Err(error)) => {
                report.checks.push(Verdict::error(CHECK.name, error));
                return;
            }
            Some(Ok(runtime)) => compare(subject, runtime, other, &mut findings),
        };
        let result = match compared {
            Ok(divergence) => {
                let compared = format!("{}: {}", other.name, divergence.summary());
                report.logits = Some(ComparedLogits {
                    reference: "other runtime",
                    divergence,
                });
                findings.into_verdict(CHECK.name, compared)
            }
            Err(error) => Verdict::error(CHECK.name, &error),
        };
        let differs = result.status == Status::Different;
        report.checks.push(result);
        if differs {
            explain_logits(&artifact.checkpoint, &other.recorded, CHECK.name, report);
        }
    }
}

fn compare(
    subject: &Subject<'_>,
    runtime: &Runtime,
    other: &OtherRuntime,
    findings: &mut Findings,
) -> Result<Divergence, FormatError> {
    let bounds = subject.thresholds;
    let measured = gates::end_to_end(&other.recorded, bounds, |tokens| runtime.logits(tokens))?;
    findings.extend(measured.violations(bounds));
    likelihood(&measured.ours, bounds, findings);
    Ok(measured.ours)
}

/// Gate 5 over the tokens of the prompts.
fn likelihood(divergence: &Divergence, bounds: &Thresholds, findings: &mut Findings) {
    if divergence.perplexities().is_none() {
        return;
    }
    let mean = |found| divergence.nll_spread(found).mean();
    let (expected, found) = (mean(false), mean(true));
    let shift = (found - expected).abs();
    if shift.is_nan() || shift > bounds.nll_shift {
        let text = format!(
            "mean negative log likelihood: expected {}, found {}, at most {} apart",
            fixed(expected, 4),
            fixed(found, 4),
            bounds.nll_shift
        );
        findings.different("logits", text);
    }
}
