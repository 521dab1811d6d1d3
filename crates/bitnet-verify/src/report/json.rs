//! The `--json` object (`formats/report.md`).
//!
//! Invariant: JSON has no infinity; a figure that is not finite is the text `inf`.

use super::text::PRINTED;
use crate::checks::padding::Padding;
use crate::checks::report::Report;
use crate::diagnose::fault::Fault;
use crate::reference::divergence::{Divergence, Spread};
use crate::verdict::{KEPT, Status, Verdict};
use bitnet_formats::{ErrorCode, Unread};
use serde_json::{Value, json};

/// The whole object.
pub(crate) fn of(report: &Report) -> Value {
    let different_models = report.different_models();
    let most = match different_models {
        Some(_) => PRINTED,
        None => KEPT,
    };
    let checks = report.checks.iter().map(|check| of_verdict(check, most));
    let checks: Vec<Value> = checks.collect();
    let mut object = json!({"status": report.status().as_str(), "checks": checks});
    if let Some(reason) = different_models {
        object["different_models"] = reason.into();
    }
    if !report.faults.is_empty() {
        object["faults"] = report.faults.iter().map(of_fault).collect();
    }
    if let Some(logits) = &report.logits {
        object["logits"] = of_divergence(&logits.divergence, logits.reference);
    }
    if let Some((from, errors)) = &report.layers {
        let errors: Vec<Value> = errors.iter().map(|&e| number(e)).collect();
        object["layers"] = json!({"from": from, "relative_errors": errors});
    }
    if let Some(share) = &report.share {
        object["shard"] = share.to_json();
    }
    if !report.padding.is_empty() {
        object["padding"] = report.padding.iter().map(of_padding).collect();
    }
    if report.status() == Status::Error {
        let code = report.checks.iter().find_map(|c| c.code);
        let code = code.unwrap_or(ErrorCode::Usage);
        let message = format!("{}: {}", report.status(), report.sentence());
        object["error"] = json!({"code": code.as_str(), "message": message, "hint": null});
    }
    object
}

/// A figure; what is not finite is the text `inf`.
pub(crate) fn number(x: f64) -> Value {
    match x.is_finite() {
        true => json!(x),
        false => json!("inf"),
    }
}

fn of_verdict(verdict: &Verdict, most: usize) -> Value {
    let Verdict {
        name,
        status,
        detail,
        differences,
        ..
    } = verdict;
    let mut check = json!({"name": name, "status": status.as_str(), "detail": detail});
    if !differences.is_empty() {
        let list = differences.iter().take(most);
        let list = list.map(|d| json!({"place": d.place, "what": d.what}));
        check["differences"] = list.collect();
    }
    check
}

fn of_fault(fault: &Fault) -> Value {
    json!({
        "name": fault.name.as_str(),
        "check": fault.check,
        "layer": fault.layer,
        "tensor": fault.tensor,
        "what": fault.what,
        "hint": fault.name.row().hint,
        "equally": fault.equally,
        "tensors": fault.tensors,
    })
}

fn of_padding(padding: &Padding) -> Value {
    let Unread {
        file,
        range,
        place,
        why,
        ..
    } = &padding.unread;
    let name = file.file_name().unwrap_or(file.as_os_str());
    json!({
        "file": name.to_string_lossy(), "place": place, "start": range.start, "end": range.end,
        "bits": padding.bits, "why": why,
    })
}

/// The `logits` object.
pub(crate) fn of_divergence(divergence: &Divergence, reference: &str) -> Value {
    let (kl_max, prompt, position) = divergence.kl_max();
    let mut object = json!({
        "reference": reference,
        "positions": divergence.positions(),
        "max_abs": number(divergence.max_abs()),
        "rms": number(divergence.rms()),
        "max_abs_in_logit_deviations": number(divergence.max_in_deviations()),
        "kl_mean": number(divergence.kl_mean()),
        "kl_p999": number(divergence.kl_p999()),
        "kl_max": number(kl_max),
        "kl_max_at": {"prompt": prompt, "position": position},
        "top1_agreement": divergence.top1_agreement(),
        "top5_agreement": divergence.top5_agreement(),
        "largest_flipped_margin": number(divergence.flipped_margin()),
        "kl": of_spread(&divergence.kl_spread()),
    });
    let Some((reference, found)) = divergence.perplexities() else {
        return object;
    };
    object["perplexity_reference"] = number(reference);
    object["perplexity"] = number(found);
    // of exp(x), to first order
    let error =
        |mean: f64, of_found| number(mean * divergence.nll_spread(of_found).standard_error());
    object["perplexity_reference_standard_error"] = error(reference, false);
    object["perplexity_standard_error"] = error(found, true);
    let (ratio, ratio_error) = divergence.ln_perplexity_ratio();
    object["ln_perplexity_ratio"] = number(ratio);
    object["ln_perplexity_ratio_standard_error"] = number(ratio_error);
    object["nll_correlation"] = number(divergence.nll_correlation());
    object["delta_p"] = of_spread(&divergence.delta_p());
    object
}

/// Quantiles of a report: name and share of the values that are not above.
const QUANTILES: [(&str, f64); 9] = [
    ("p999", 0.999),
    ("p99", 0.99),
    ("p95", 0.95),
    ("p90", 0.90),
    ("median", 0.5),
    ("p10", 0.10),
    ("p5", 0.05),
    ("p1", 0.01),
    ("p01", 0.001),
];

fn of_spread(spread: &Spread) -> Value {
    let mut object = json!({
        "mean": number(spread.mean()),
        "standard_error": number(spread.standard_error()),
        "rms": number(spread.rms()),
        "max": number(spread.max()),
        "min": number(spread.min()),
    });
    for (name, share) in QUANTILES {
        object[name] = number(spread.quantile(share));
    }
    object
}
