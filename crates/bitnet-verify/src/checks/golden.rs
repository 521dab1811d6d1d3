//! Whether the runtime comes as close to transformers as two correct implementations do.
//!
//! Invariant: the five gates of `formats/numerics.md`, each a row of the report; a gate whose record
//! is absent is skipped, not passed.

use super::logits::Runtime;
use super::{Check, Running, Subject};
use crate::gates::{self, Forward};
use crate::golden::Golden;
use crate::report::{CheckResult, Findings, Report};
use bitnet_formats::FormatError;
use bitnet_model::Slot;
use sha2::{Digest, Sha256};

/// Units in the last place that the mean of master weights may be off (3 were seen).
const ALPHA_ULPS: u32 = 4;

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
        .filter(|slot| slot.is_ternary())
    {
        let (canonical, name) = (slot.to_string(), (checkpoint.family.tensor_name)(slot));
        let Some(truth) = golden
            .ternary
            .iter()
            .find(|t| t.name == name || t.name == canonical)
        else {
            findings.different(canonical, "not in ternary.json");
            continue;
        };
        match check_codes(subject, slot, truth) {
            Ok(None) => compared += 1,
            Ok(Some(text)) => findings.different(canonical, text),
            Err(error) => findings.unreadable(canonical, &error),
        }
    }
    findings.into_result(NAME, format!("codes and scales of {compared} linears"))
}

fn check_codes(
    subject: &Subject<'_>,
    slot: Slot,
    truth: &crate::golden::TernaryTruth,
) -> Result<Option<String>, FormatError> {
    let matrix = subject.artifact.checkpoint.ternary(slot)?;
    let codes: Vec<u8> = matrix.trits().iter().map(|&t| t as u8).collect();
    let digest = Sha256::digest(&codes);
    let found: String = digest.iter().map(|b| format!("{b:02x}")).collect();
    if found != truth.sha256 {
        return Ok(Some(format!(
            "expected codes of sha256 {}, found {found}",
            truth.sha256
        )));
    }
    // a linear of zeros has no scale that any container need keep
    if matrix.trits().iter().all(|&t| t == 0) {
        return Ok(None);
    }
    let most = if truth.exact { 0 } else { ALPHA_ULPS };
    let normal = matrix.normal_scales();
    let off = |s: &f32| s.to_bits().abs_diff(truth.alpha_bits);
    // silent rows and groups are 0 in normal form
    let bad = normal
        .as_slice()
        .iter()
        .find(|s| **s != 0.0 && off(s) > most);
    Ok(bad.map(|s| {
        let expected = f32::from_bits(truth.alpha_bits);
        format!(
            "expected scale {expected:e} (0x{:08x}) within {most} ulp, found {s:e} (0x{:08x})",
            truth.alpha_bits,
            s.to_bits()
        )
    }))
}

/// Gates 2 to 5.
fn forward(subject: &Subject<'_>, golden: &Golden, runtime: &Runtime, report: &mut Report) {
    let bounds = subject.thresholds;
    let layers = runtime.config().num_hidden_layers;
    let forward: &dyn Forward = runtime;

    gate(report, "golden-linears", |findings, _| {
        let errors = gates::linears(golden, forward, bounds, findings)?;
        let worst = errors.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        Ok((!errors.is_empty()).then(|| {
            format!(
                "{} linears, largest relative error {worst:.1e}",
                errors.len()
            )
        }))
    });
    gate(report, "golden-layers", |findings, report| {
        let errors = gates::layers(golden, forward, layers, bounds, findings)?;
        if errors.is_empty() {
            return Ok(None);
        }
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let compared = format!(
            "{} layers, largest relative error {worst:.1e}",
            errors.len()
        );
        report.layers = Some(("from the recorded hidden state", errors));
        Ok(Some(compared))
    });
    gate(report, "golden-logits", |findings, report| {
        let (ours, native) = gates::logits(golden, forward, bounds, findings)?;
        let (equal, compared) = gates::greedy(golden, forward, bounds, findings)?;
        report.logits = Some(ours.to_json("golden"));
        let native = native.map_or(String::new(), |n| {
            format!("; 16-bit reference kl mean {:.2e}", n.kl_mean())
        });
        Ok(Some(format!(
            "{}; {equal} of {compared} sure greedy tokens{native}",
            ours.summary()
        )))
    });
    gate(report, "golden-nll", |findings, _| {
        let nll = gates::stream(golden, forward, bounds, findings)?;
        Ok(nll.map(|(expected, found)| format!("mean nll {found:.4}, reference {expected:.4}")))
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
