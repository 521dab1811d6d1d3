//! Whether a run is worse than an earlier one: a check that passed and does not now, a figure that grew.
//!
//! Invariant: compared are two `--json` reports, nothing else, so a baseline is a file that a project commits. The
//! runtime is deterministic: equal programs and files have equal figures, and the slack is for intended changes.

use super::{json, recorded};
use crate::checks::report::Report;
use crate::reference::prompts::read_json;
use crate::verdict::{Findings, Verdict};
use bitnet_cli::scientific;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;
use std::path::Path;

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

/// Reads the report of an earlier run.
///
/// # Errors
/// A file that cannot be read, is no report, contradicts itself, or has nothing to compare with.
pub fn read(path: &Path) -> Result<Value, FormatError> {
    let report = read_json(path)?;
    let refuse = |message: String| {
        FormatError::new(ErrorCode::Malformed, message)
            .in_file(path)
            .hint("give the output of an earlier `bitnet-verify ... --json`")
    };
    let checks = recorded::checks(&report).map_err(refuse)?;
    let passed = checks.iter().any(|check| check["status"] == "same");
    let layers = report["layers"]["relative_errors"].as_array();
    let has_figures = FIGURES
        .iter()
        .map(|(key, _)| &report["logits"][key])
        .chain(layers.into_iter().flatten())
        .any(|figure| number(figure).is_some());
    match passed || has_figures {
        true => Ok(report),
        false => Err(refuse(
            "expected a report with a check that passed or a figure, found neither".to_owned(),
        )),
    }
}

/// The `baseline` row of the report; `before` is what [`read`] returns.
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
            findings.different(
                place,
                format!("{} in the baseline, absent now", scientific(expected, 3)),
            );
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
                format!(
                    "{} in the baseline, {} now",
                    scientific(expected, 3),
                    scientific(found, 3)
                ),
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
    fn a_baseline_without_anything_to_compare_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        let read_of = |value: &Value| {
            std::fs::write(&path, value.to_string()).unwrap();
            read(&path)
        };
        let failed = json::of(&report(&[], false));
        for (value, is_one) in [
            (serde_json::json!({}), false),
            (serde_json::json!([[1, 2]]), false),
            (failed, false),
            (json::of(&report(&[1e-3], false)), true),
            (json::of(&report(&[], true)), true),
        ] {
            let found = read_of(&value);
            assert_eq!(found.is_ok(), is_one, "{value}: {found:?}");
            if let Err(error) = found {
                assert_eq!(error.code, ErrorCode::Malformed);
            }
        }
    }
}
