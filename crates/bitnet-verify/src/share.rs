//! One share of a comparison, and what is joined again from all of them.
//!
//! Invariant: each tensor is in exactly one share. Joined reports say what one run over the whole says; shares that are missing,
//! given twice or of other models are refused.

use crate::report::recorded::{self, STATUSES};
use crate::verdict::KEPT;
use bitnet_checkpoint::{Checkpoint, TernaryHasher};
use bitnet_cli::{Console, ExitStatus, Failure};
use bitnet_formats::{ErrorCode, FormatError, Limits, Sha256Stream, read_file};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Part `index`, counted from 1, of `count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    index: usize,
    count: usize,
}

impl Share {
    /// Reads `I/N`.
    ///
    /// # Errors
    /// One line saying what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err("expected I/N with I from 1 to N, for example 2/8".to_owned()),
        }
    }

    /// Whether the tensor at a position of the list is in it.
    pub(crate) fn contains(self, position: usize) -> bool {
        position % self.count == self.index - 1
    }
}

/// What a report over one share says of the whole.
#[derive(Debug, Clone, PartialEq)]
pub struct ShareRecord {
    pub(crate) share: Share,
    /// Ternary tensors of the artifact, in all shares.
    pub(crate) linears: usize,
    /// What tells the two models from others.
    pub(crate) models: [String; 2],
    /// The lines of `ternary_sha256` of this share, of the artifact and of the source.
    pub(crate) lines: [Vec<String>; 2],
}

impl ShareRecord {
    /// As JSON.
    pub(crate) fn to_json(&self) -> Value {
        let [artifact, source] = &self.lines;
        json!({
            "index": self.share.index,
            "count": self.share.count,
            "linears": self.linears,
            "models": self.models,
            "artifact": artifact,
            "source": source,
        })
    }

    fn of_json(value: &Value) -> Option<Self> {
        let number = |key: &str| usize::try_from(value.get(key)?.as_u64()?).ok();
        let texts = |key: &str| -> Option<Vec<String>> {
            let list = value.get(key)?.as_array()?.iter();
            list.map(|text| Some(text.as_str()?.to_owned())).collect()
        };
        let share = Share::parse(&format!("{}/{}", number("index")?, number("count")?)).ok()?;
        Some(Self {
            share,
            linears: number("linears")?,
            models: texts("models")?.try_into().ok()?,
            lines: [texts("artifact")?, texts("source")?],
        })
    }
}

/// The lines of `ternary_sha256`, without their ends.
pub(crate) fn lines(hasher: &TernaryHasher) -> Vec<String> {
    hasher
        .tensors()
        .map(|digest| digest.line().trim_end().to_owned())
        .collect()
}

/// The hash of what a header says: files, names, shapes and types of all tensors.
///
/// # Errors
/// The hashing thread died.
pub(crate) fn identity(checkpoint: &Checkpoint) -> Result<String, FormatError> {
    let mut hash = Sha256Stream::new();
    for part in &checkpoint.file.parts {
        hash.update(format!("file {}\n", part.len()).as_bytes());
    }
    for tensor in checkpoint.file.tensors() {
        let line = format!(
            "{} {} {:?} {} {}\n",
            tensor.name,
            tensor.encoding.name(),
            tensor.shape,
            tensor.part,
            tensor.offset
        );
        hash.update(line.as_bytes());
    }
    hash.finish()
        .map_err(|e| FormatError::new(ErrorCode::Io, e.to_string()).because(e))
}

/// A report that was read.
struct Read {
    path: PathBuf,
    record: ShareRecord,
    checks: Vec<Map<String, Value>>,
    faults: Vec<Value>,
}

fn malformed(path: &Path, what: &str) -> Failure {
    Failure::new(ErrorCode::Malformed, format!("{}: {what}", path.display()))
        .hint("give the output of `bitnet-verify ARTIFACT --against SRC --shard I/N --json`")
}

fn read(path: &Path) -> Result<Read, Failure> {
    let bytes = read_file(path, Limits::default().certificate_bytes)?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|e| malformed(path, &format!("expected a JSON report, {e}")).because(e))?;
    if let Some(error) = value.get("error").filter(|_| value.get("shard").is_none()) {
        let message = error["message"].as_str().unwrap_or("no message");
        let message = format!(
            "{}: this share could not be verified: {message}",
            path.display()
        );
        return Err(Failure::new(ErrorCode::MissingPart, message).hint("run this share again"));
    }
    let record = value.get("shard").and_then(ShareRecord::of_json);
    let record = record.ok_or_else(|| malformed(path, "expected the report of a share"))?;
    let checks = recorded::checks(&value).map_err(|e| malformed(path, &e))?;
    Ok(Read {
        path: path.to_owned(),
        record,
        checks: checks
            .iter()
            .filter_map(|check| check.as_object().cloned())
            .collect(),
        faults: value["faults"].as_array().cloned().unwrap_or_default(),
    })
}

/// `bitnet-verify merge`.
pub(crate) fn merge(paths: &[PathBuf], console: &mut Console<'_>) -> Result<ExitStatus, Failure> {
    let mut reports: Vec<Read> = paths
        .iter()
        .map(|path| read(path))
        .collect::<Result<_, _>>()?;
    reports.sort_by_key(|report| report.record.share.index);
    let Some(first) = reports.first() else {
        return Err(Failure::usage("no reports to join").hint("name the reports of all shares"));
    };
    let ShareRecord {
        share: Share { count, .. },
        linears,
        models,
        ..
    } = first.record.clone();
    for report in &reports {
        let record = &report.record;
        if (record.share.count, record.linears, &record.models) != (count, linears, &models) {
            let message = format!(
                "{} and {} are reports of other models or of another number of shares",
                first.path.display(),
                report.path.display()
            );
            return Err(Failure::new(ErrorCode::MissingPart, message)
                .hint("join the reports of one artifact, one source and one N"));
        }
    }
    if let Some([one, two]) = reports.windows(2).find_map(|two| {
        let [one, other] = two else { return None };
        (one.record.share == other.record.share).then_some([one, other])
    }) {
        let message = format!(
            "{} and {} are reports of the same share {}/{count}",
            one.path.display(),
            two.path.display(),
            one.record.share.index
        );
        return Err(Failure::usage(message).hint("give one report of each share"));
    }
    let there = |index: usize| {
        reports
            .iter()
            .any(|report| report.record.share.index == index)
    };
    let missing: Vec<String> = (1..=count)
        .filter(|i| !there(*i))
        .map(|i| format!("{i}/{count}"))
        .take(20)
        .collect();
    if !missing.is_empty() {
        let message = format!(
            "expected reports of {count} shares, {} are missing: {}",
            count - reports.len(),
            missing.join(", ")
        );
        return Err(Failure::new(ErrorCode::MissingPart, message).hint(format!(
            "run bitnet-verify ARTIFACT --against SRC --shard {} --json",
            missing[0]
        )));
    }
    let hashes = [0, 1].map(|side| hash(&reports, side));
    let mut checks = joined(&reports);
    let [artifact, source] = hashes;
    let (artifact, source) = (artifact?, source?);
    // a linear that could not be read has no line, and its own check says why
    let is_complete = [0, 1].iter().all(|&side| {
        let lines: usize = reports
            .iter()
            .map(|report| report.record.lines[side].len())
            .sum();
        lines == linears
    });
    if let Some(digest) = checks.iter_mut().find(|check| check["name"] == "digest") {
        let same = is_complete && artifact == source;
        let (status, detail) = match (is_complete, same) {
            (_, true) => ("same", format!("ternary_sha256 {artifact}")),
            (true, _) => (
                "different",
                format!("1 different (ternary_sha256 {artifact})"),
            ),
            (false, _) => ("error", "some linears could not be compared".to_owned()),
        };
        digest["status"] = status.into();
        digest["detail"] = detail.into();
        if status == "different" {
            let what = format!("expected {source}, found {artifact}");
            digest["differences"] = json!([{"place": "ternary_sha256 (source)", "what": what}]);
        }
    } else {
        return Err(malformed(&first.path, "expected a check named `digest`"));
    }
    let status = STATUSES
        .into_iter()
        .find(|status| checks.iter().any(|check| check["status"] == *status));
    let status = status.unwrap_or("error");
    let faults: Vec<&Value> = reports.iter().flat_map(|report| &report.faults).collect();
    let mut object = json!({"status": status, "shards": count, "checks": checks, "ternary_sha256": is_complete.then_some(&artifact)});
    if !faults.is_empty() {
        object["faults"] = faults.into_iter().cloned().collect();
    }
    if status == "error" || status == "skipped" {
        let message = "a check could not be done; `checks` says why";
        object["status"] = "error".into();
        object["error"] =
            json!({"code": ErrorCode::MissingPart.as_str(), "message": message, "hint": null});
    }
    console.json(&object)?;
    console.line(format_args!(
        "{status}: {count} shares, {linears} ternary tensors"
    ))?;
    for check in &checks {
        let text = |key: &str| printable(&check[key]);
        console.line(format_args!(
            "  {:<10} {:<10} {}",
            text("status"),
            text("name"),
            text("detail")
        ))?;
        for difference in check["differences"]
            .as_array()
            .into_iter()
            .flatten()
            .take(8)
        {
            let text = |key: &str| printable(&difference[key]);
            console.line(format_args!("    `{}`: {}", text("place"), text("what")))?;
        }
    }
    Ok(match status {
        "same" => ExitStatus::Done,
        "different" => ExitStatus::Different,
        _ => ExitStatus::CouldNot,
    })
}

/// The text of a report for a terminal, which must not obey it.
fn printable(text: &Value) -> String {
    let text = text.as_str().unwrap_or_default().chars();
    text.map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// `ternary_sha256` of the lines of all shares.
fn hash(reports: &[Read], side: usize) -> Result<String, Failure> {
    let lines = reports.iter().flat_map(|report| &report.record.lines[side]);
    let by_name: BTreeMap<&str, &String> = lines
        .map(|line| (line.split(' ').next().unwrap_or_default(), line))
        .collect();
    let mut hash = Sha256Stream::new();
    for line in by_name.values() {
        hash.update(line.as_bytes());
        hash.update(b"\n");
    }
    hash.finish()
        .map_err(|e| Failure::new(ErrorCode::Io, e.to_string()))
}

/// The checks of all shares, one of each name.
fn joined(reports: &[Read]) -> Vec<Value> {
    let mut names: Vec<&str> = Vec::new();
    for check in reports.iter().flat_map(|report| &report.checks) {
        let name = check["name"].as_str().unwrap_or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let join = |name: &str| {
        let all: Vec<_> = reports
            .iter()
            .flat_map(|report| &report.checks)
            .filter(|check| check["name"] == name)
            .collect();
        let status = STATUSES
            .into_iter()
            .find(|status| all.iter().any(|check| check["status"] == *status));
        let mut details: Vec<&str> = Vec::new();
        for detail in all.iter().filter_map(|check| check["detail"].as_str()) {
            if !details.contains(&detail) {
                details.push(detail);
            }
        }
        let mut check = json!({"name": name, "status": status.unwrap_or("error"), "detail": details.join("; ")});
        let mut differences: Vec<Value> = Vec::new();
        for difference in all
            .iter()
            .filter_map(|check| check.get("differences")?.as_array())
            .flatten()
        {
            if differences.len() < KEPT && !differences.contains(difference) {
                differences.push(difference.clone());
            }
        }
        if !differences.is_empty() {
            check["differences"] = differences.into();
        }
        check
    };
    names.into_iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_is_in_one_share() {
        for count in [1, 2, 3, 8] {
            let shares: Vec<Share> = (1..=count)
                .map(|i| Share::parse(&format!("{i}/{count}")).unwrap())
                .collect();
            for position in 0..20 {
                assert_eq!(
                    shares
                        .iter()
                        .filter(|share| share.contains(position))
                        .count(),
                    1
                );
            }
        }
        for wrong in ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3", "-1/2"] {
            assert!(Share::parse(wrong).is_err(), "{wrong}");
        }
    }
}
