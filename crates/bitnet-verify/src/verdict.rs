//! What a check says: a [`Verdict`], and the [`Difference`]s it rests on.
//!
//! Invariant: a verdict follows from what was found. One difference makes it `different`; otherwise one place that
//! could not be compared makes it `error`. A check that was skipped says why, and never counts as passed.

use bitnet_formats::{ErrorCode, FormatError};
use std::fmt;

/// Most differences of one check that are kept; the count goes on.
pub(crate) const KEPT: usize = 1000;

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Tensor, key, layer or prompt.
    pub place: String,
    /// Where in it and how: `row 3, column 7: expected 1, found -1; 12 differ`.
    pub what: String,
    /// For a failure to compare instead of a difference: its word for scripts.
    pub code: Option<ErrorCode>,
}

impl Difference {
    /// What was expected and found at a place.
    pub fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            what: what.into(),
            code: None,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.place, self.what)
    }
}

/// What one check came to: one line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
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
    /// What the detail lists, as names and values, if it lists more than fits a line of a page.
    pub rows: Vec<(String, String)>,
}

impl Verdict {
    /// A check that found nothing that differs.
    pub fn same(name: &'static str, compared: impl Into<String>) -> Self {
        Self::of(name, Status::Same, compared.into())
    }

    /// A check that does not apply.
    pub fn skipped(name: &'static str, why: impl Into<String>) -> Self {
        Self::of(name, Status::Skipped, why.into())
    }

    /// A check that could not be done.
    pub fn error(name: &'static str, why: &FormatError) -> Self {
        Self {
            code: Some(why.code),
            ..Self::of(name, Status::Error, why.to_string())
        }
    }

    fn of(name: &'static str, status: Status, detail: String) -> Self {
        Self {
            name,
            status,
            detail,
            differences: Vec::new(),
            code: None,
            rows: Vec::new(),
        }
    }

    /// The same, with what its detail lists.
    #[must_use]
    pub(crate) fn with_rows(self, rows: Vec<(String, String)>) -> Self {
        Self { rows, ..self }
    }
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
        self.keep(Difference::new(place, what));
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
        self.keep(Difference {
            code: Some(error.code),
            ..Difference::new(place, error.to_string())
        });
    }

    /// Something that another check could not read, and reports.
    pub fn not_compared(&mut self, place: impl Into<String>) {
        self.unreadable += 1;
        self.keep(Difference::new(place, "not compared, see `trits`"));
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.differing + self.unreadable == 0
    }

    fn keep(&mut self, difference: Difference) {
        if self.differences.len() < KEPT {
            self.differences.push(difference);
        }
    }

    /// The check's verdict; `compared` says what was compared, for the case that all is well.
    pub fn into_verdict(self, name: &'static str, compared: String) -> Verdict {
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
        Verdict {
            name,
            status,
            detail,
            differences: self.differences,
            code,
            rows: Vec::new(),
        }
    }
}

/// Differences that were judged elsewhere: by the bounds of a gate.
impl Extend<Difference> for Findings {
    fn extend<I: IntoIterator<Item = Difference>>(&mut self, differences: I) {
        for difference in differences {
            self.differing += 1;
            self.keep(difference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_counted_beyond_what_is_kept() {
        let mut findings = Findings::default();
        for i in 0..KEPT + 5 {
            findings.different(format!("t{i}"), "x");
        }
        let verdict = findings.into_verdict("trits", "all".to_owned());
        assert_eq!(verdict.differences.len(), KEPT);
        assert_eq!(verdict.detail, format!("{} different (all)", KEPT + 5));
    }
}
