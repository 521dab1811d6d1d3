//! What a verification found, and how it is told.
//!
//! Invariant: the verdict follows from the checks alone. One difference makes it `different`;
//! otherwise one check that could not be done makes it `error`; a skipped check says why and never
//! counts as passed.

pub(crate) mod baseline;
pub(crate) mod html;
pub(crate) mod junit;

use crate::checks::gates::Violation;
use crate::checks::padding::Padding;
use crate::checks::unlike::Unlike;
use crate::diagnose::fault::Fault;
use crate::reference::divergence::Divergence;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Value, json};
use std::fmt;
use std::io::{self, Write};

/// Most differences of one check that are kept; the count goes on.
const KEPT: usize = 1000;
/// Most differences of one check that are printed for people.
const PRINTED: usize = 8;

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Everything compared is equal, or within the stated bound.
    Same,
    /// Something is not.
    Different,
    /// Not applicable here; the detail says why.
    Skipped,
    /// It could not be compared.
    Error,
}

impl Status {
    /// As reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::Skipped => "skipped",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One place where two things are not the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Tensor, key or prompt.
    pub place: String,
    /// Where in it and how: `row 3, column 7: expected 1, found -1; 12 differ`.
    pub what: String,
    /// For a failure to compare instead of a difference: its word for scripts.
    pub code: Option<ErrorCode>,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckResult {
    /// The check.
    pub name: &'static str,
    /// Its result.
    pub status: Status,
    /// One line.
    pub detail: String,
    /// What differs, the first in each place; at most a thousand.
    pub differences: Vec<Difference>,
    /// The first failure to compare.
    pub code: Option<ErrorCode>,
}

/// Collects what a check finds.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    differences: Vec<Difference>,
    differing: usize,
    unreadable: usize,
}

impl Findings {
    /// A difference.
    pub fn different(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.differing += 1;
        self.keep(place.into(), what.into(), None);
    }

    /// Gates that do not hold.
    pub fn violations(&mut self, violations: impl IntoIterator<Item = Violation>) {
        for Violation { place, what, .. } in violations {
            self.different(place, what);
        }
    }

    /// A comparison of two values of a key; equal ones leave no trace.
    pub fn expect<T: PartialEq + fmt::Display>(&mut self, place: &str, expected: T, found: T) {
        if expected != found {
            self.different(place, format!("expected {expected}, found {found}"));
        }
    }

    /// Something that could not be compared.
    pub fn unreadable(&mut self, place: impl Into<String>, error: &FormatError) {
        self.unreadable += 1;
        self.keep(place.into(), error.to_string(), Some(error.code));
    }

    /// Something that another check could not read, and reports.
    pub fn not_compared(&mut self, place: impl Into<String>) {
        self.unreadable += 1;
        self.keep(place.into(), "not compared, see `trits`".to_owned(), None);
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.differing + self.unreadable == 0
    }

    fn keep(&mut self, place: String, what: String, code: Option<ErrorCode>) {
        if self.differences.len() < KEPT {
            self.differences.push(Difference { place, what, code });
        }
    }

    /// The check's result; `compared` says what was compared, for the case that all is well.
    pub fn into_result(self, name: &'static str, compared: String) -> CheckResult {
        let status = match (self.differing, self.unreadable) {
            (0, 0) => Status::Same,
            (0, _) => Status::Error,
            _ => Status::Different,
        };
        let detail = match (self.differing, self.unreadable) {
            (0, 0) => compared,
            (0, n) => format!("{n} could not be compared ({compared})"),
            (n, 0) => format!("{n} different ({compared})"),
            (n, m) => format!("{n} different, {m} could not be compared ({compared})"),
        };
        let code = self.differences.iter().find_map(|d| d.code);
        CheckResult {
            name,
            status,
            detail,
            differences: self.differences,
            code,
        }
    }
}

impl CheckResult {
    /// A check that does not apply.
    pub fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Skipped,
            detail: why.into(),
            differences: Vec::new(),
            code: None,
        }
    }

    /// A check that could not be done.
    pub fn error(name: &'static str, why: &FormatError) -> Self {
        let (status, detail) = (Status::Error, why.to_string());
        Self {
            name,
            status,
            detail,
            differences: Vec::new(),
            code: Some(why.code),
        }
    }
}

/// Logits and what they were compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedLogits {
    /// `golden`, `other runtime`, `source` or `oracle`.
    pub reference: &'static str,
    /// How far they are apart.
    pub divergence: Divergence,
}

/// What one linear of the artifact holds, for pages that show it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearFigures {
    /// Its slot.
    pub name: String,
    /// How many trits are -1, 0, +1.
    pub trits: [u64; 3],
    /// The smallest, the median and the largest scale.
    pub scales: [f32; 3],
}

/// Everything a run found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// One line each, in the order of the table of checks.
    pub checks: Vec<CheckResult>,
    /// The figures of the logits, when they were compared.
    pub logits: Option<ComparedLogits>,
    /// Teacher-forced error of each layer, and from whose hidden states; told before the checks.
    pub layers: Option<(&'static str, Vec<f64>)>,
    /// What has a name among what differs, and where it begins.
    pub faults: Vec<Fault>,
    /// Every linear, in the order of the file, when a page was asked for.
    pub linears: Vec<LinearFigures>,
    /// Bits of the artifact that no reader uses.
    pub padding: Vec<Padding>,
    /// How much of the two sides differs.
    pub unlike: Unlike,
}

impl Report {
    /// Why the two sides look like different models, if they differ and do.
    pub fn different_models(&self) -> Option<String> {
        let reason = self.unlike.reason();
        reason.filter(|_| self.status() == Status::Different)
    }

    /// Adds a fault to those found.
    pub fn fault(&mut self, fault: Fault) {
        fault.join(&mut self.faults);
    }

    /// The verdict.
    pub fn status(&self) -> Status {
        let any = |status| self.checks.iter().any(|c| c.status == status);
        if any(Status::Different) {
            Status::Different
        } else if any(Status::Error) || !any(Status::Same) {
            Status::Error
        } else {
            Status::Same
        }
    }

    /// The `--json` object.
    pub fn to_json(&self) -> Value {
        let different_models = self.different_models();
        let most = match different_models {
            Some(_) => PRINTED,
            None => KEPT,
        };
        let checks = self.checks.iter().map(|check| check.to_json(most));
        let checks: Vec<Value> = checks.collect();
        let mut report = json!({"status": self.status().as_str(), "checks": checks});
        if let Some(reason) = different_models {
            report["different_models"] = reason.into();
        }
        if !self.faults.is_empty() {
            report["faults"] = self.faults.iter().map(Fault::to_json).collect();
        }
        if let Some(logits) = &self.logits {
            report["logits"] = logits.divergence.to_json(logits.reference);
        }
        if let Some((from, errors)) = &self.layers {
            let errors: Vec<Value> = errors.iter().map(|&e| number(e)).collect();
            report["layers"] = json!({"from": from, "relative_errors": errors});
        }
        if !self.padding.is_empty() {
            report["padding"] = self.padding.iter().map(Padding::to_json).collect();
        }
        if self.status() == Status::Error {
            let code = self
                .checks
                .iter()
                .find_map(|c| c.code)
                .unwrap_or(ErrorCode::Usage);
            let message = format!("{}: {}", self.status(), self.verdict());
            report["error"] = json!({"code": code.as_str(), "message": message, "hint": null});
        }
        report
    }

    /// For people: the verdict, then one line per check, then what differs.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {}", self.status(), self.verdict())?;
        if let Some(reason) = self.different_models() {
            writeln!(out, "  these look like different models: {reason}")?;
            let hint = "give the model that the artifact was made from; --json lists what differs";
            writeln!(out, "  hint: {hint}")?;
            for check in &self.checks {
                let CheckResult {
                    name,
                    status,
                    detail,
                    ..
                } = check;
                writeln!(out, "  {name:<14} {status:<9}  {detail}")?;
            }
            return Ok(());
        }
        for fault in &self.faults {
            writeln!(out, "  fault: {}", fault.sentence())?;
            writeln!(out, "  hint: {}", fault.kind.row().hint)?;
        }
        if let Some((from, errors)) = &self.layers {
            let list: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
            writeln!(
                out,
                "  relative error of each layer, {from}: {}",
                list.join(" ")
            )?;
        }
        for check in &self.checks {
            writeln!(
                out,
                "  {:<14} {:<9}  {}",
                check.name, check.status, check.detail
            )?;
            for d in check.differences.iter().take(PRINTED) {
                writeln!(out, "    `{}`: {}", d.place, d.what)?;
            }
            if let Some(more) = check
                .differences
                .len()
                .checked_sub(PRINTED)
                .filter(|n| *n > 0)
            {
                writeln!(out, "    and {more} more, listed by --json")?;
            }
        }
        if let Some(logits) = &self.logits
            && logits.divergence.is_bit_identical()
        {
            writeln!(
                out,
                "  logits, against the {}: bit-identical at {} positions",
                logits.reference,
                logits.divergence.positions()
            )?;
        } else if let Some(logits) = &self.logits {
            writeln!(out, "  logits, against the {}:", logits.reference)?;
            for (name, figure) in logits.divergence.statistics() {
                writeln!(out, "    {name:<30}: {figure}")?;
            }
        }
        Ok(())
    }

    /// The verdict in a sentence: which checks decided it.
    pub fn verdict(&self) -> String {
        let named = |status| -> Vec<&str> {
            self.checks
                .iter()
                .filter(|c| c.status == status)
                .map(|c| c.name)
                .collect()
        };
        match self.status() {
            Status::Different => format!("in {}", named(Status::Different).join(", ")),
            Status::Error | Status::Skipped => match named(Status::Error) {
                names if names.is_empty() => "nothing was compared".to_owned(),
                names => format!("could not compare {}", names.join(", ")),
            },
            Status::Same => match named(Status::Skipped) {
                names if names.is_empty() => named(Status::Same).join(", "),
                names => format!(
                    "{} (skipped: {})",
                    named(Status::Same).join(", "),
                    names.join(", ")
                ),
            },
        }
    }
}

impl CheckResult {
    fn to_json(&self, most: usize) -> Value {
        let mut check =
            json!({"name": self.name, "status": self.status.as_str(), "detail": self.detail});
        if !self.differences.is_empty() {
            let list = self
                .differences
                .iter()
                .take(most)
                .map(|d| json!({"place": d.place, "what": d.what}));
            check["differences"] = list.collect();
        }
        check
    }
}

/// JSON has no infinity: such a figure is written as the text `inf`.
pub(crate) fn number(x: f64) -> Value {
    if x.is_finite() {
        json!(x)
    } else {
        json!("inf")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status]) -> Report {
        let check = |&status| CheckResult {
            name: "x",
            status,
            detail: String::new(),
            differences: vec![],
            code: None,
        };
        Report {
            checks: statuses.iter().map(check).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn the_verdict_follows_from_the_checks() {
        use Status::{Different, Error, Same, Skipped};
        assert_eq!(report(&[Same, Skipped]).status(), Same);
        assert_eq!(report(&[Same, Error]).status(), Error);
        assert_eq!(report(&[Same, Error, Different]).status(), Different);
        assert_eq!(report(&[Skipped]).status(), Error, "a skip is never a pass");
        assert_eq!(report(&[]).status(), Error);
    }

    #[test]
    fn differences_are_counted_beyond_what_is_kept() {
        let mut findings = Findings::default();
        for i in 0..KEPT + 5 {
            findings.different(format!("t{i}"), "x");
        }
        let result = findings.into_result("trits", "all".to_owned());
        assert_eq!(result.differences.len(), KEPT);
        assert_eq!(result.detail, format!("{} different (all)", KEPT + 5));
    }
}
