//! Whether a run is worse than an earlier one: a check that passed and does not now, a figure that grew.
//!
//! Invariant: compared are two `--json` reports, nothing else, so a baseline is a file that a project commits. The
//! runtime is deterministic: equal programs and files have equal figures, and the slack is for intended changes.

use super::json;
use crate::checks::report::Report;
use crate::verdict::{Findings, Verdict};
use serde_json::Value;

/// Figures of the `logits` object, and whether more is worse.
const FIGURES: [(&str, bool); 8] = [
    ("max_abs", true),
    ("rms", true),
    ("kl_mean", true),
    ("kl_p999", true),
    ("kl_max", true),
    ("perplexity", true),
    ("top1_agreement", false),
    ("top5_agreement", false),
];

/// By how much, relatively, a figure may be worse.
pub const SLACK: f64 = 0.05;

/// Below this a figure is rounding and its growth says nothing: f32 arithmetic of a whole layer.
const NOISE: f64 = 1e-6;

/// The `baseline` row of the report.
pub fn compare(now: &Report, before: &Value, slack: f64) -> Verdict {
    let found = json::of(now);
    let mut findings = Findings::default();
    let name_of = |check: &Value| check["name"].as_str().unwrap_or_default().to_owned();
    let checks = |report: &'_ Value| report["checks"].as_array().cloned().unwrap_or_default();
    let mut compared = 0;
    for check in checks(before).iter().filter(|c| c["status"] == "same") {
        let name = name_of(check);
        compared += 1;
        let status = checks(&found)
            .iter()
            .find(|c| name_of(c) == name)
            .map_or("not run".to_owned(), |c| {
                c["status"].as_str().unwrap_or_default().to_owned()
            });
        if status != "same" {
            findings.different(name, format!("same in the baseline, {status} now"));
        }
    }
    let mut figure = |place: String, before: &Value, now: &Value, more_is_worse: bool| {
        let Some(expected) = number(before) else {
            return;
        };
        compared += 1;
        let Some(found) = number(now) else {
            findings.different(place, format!("{expected:.3e} in the baseline, absent now"));
            return;
        };
        let worse = match more_is_worse {
            true => found - expected,
            false => expected - found,
        };
        let allowed = (expected.abs() * slack).max(NOISE);
        if worse > allowed || worse.is_nan() {
            findings.different(
                place,
                format!("{expected:.3e} in the baseline, {found:.3e} now"),
            );
        }
    };
    for (key, more_is_worse) in FIGURES {
        figure(
            format!("logits.{key}"),
            &before["logits"][key],
            &found["logits"][key],
            more_is_worse,
        );
    }
    let layers = |report: &'_ Value| report["layers"]["relative_errors"].as_array().cloned();
    let (old, new) = (
        layers(before).unwrap_or_default(),
        layers(&found).unwrap_or_default(),
    );
    for (layer, error) in old.iter().enumerate() {
        let now = new.get(layer).unwrap_or(&Value::Null);
        figure(format!("layers.{layer}"), error, now, true);
    }
    if compared == 0 {
        findings.different(
            "baseline",
            "expected a report of `bitnet-verify --json`, found no check in it",
        );
    }
    findings.into_verdict(
        "baseline",
        format!("{compared} checks and figures of the baseline"),
    )
}

/// A figure of a report; infinity is written as text.
fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some("inf") => Some(f64::INFINITY),
        _ => value.as_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Status;

    fn report(layers: &[f64], same: bool) -> Report {
        let mut findings = Findings::default();
        if !same {
            findings.different("q_proj", "x");
        }
        Report {
            checks: vec![findings.into_verdict("trits", "all".to_owned())],
            layers: Some(("here", layers.to_vec())),
            ..Report::default()
        }
    }

    #[test]
    fn worse_is_found_and_better_is_not() {
        let before = json::of(&report(&[1e-3, 2e-3], true));
        let status = |now: Report| compare(&now, &before, SLACK).status;
        assert_eq!(status(report(&[1e-3, 2e-3], true)), Status::Same);
        assert_eq!(status(report(&[1e-4, 2.05e-3], true)), Status::Same);
        assert_eq!(status(report(&[1e-3, 2.2e-3], true)), Status::Different);
        assert_eq!(
            status(report(&[1e-3], true)),
            Status::Different,
            "a layer is gone"
        );
        assert_eq!(
            status(report(&[1e-3, f64::INFINITY], true)),
            Status::Different
        );
        assert_eq!(status(report(&[1e-3, 2e-3], false)), Status::Different);
    }

    #[test]
    fn an_empty_baseline_is_no_baseline() {
        let result = compare(&report(&[], true), &serde_json::json!({}), SLACK);
        assert_eq!(result.status, Status::Different);
    }
}
