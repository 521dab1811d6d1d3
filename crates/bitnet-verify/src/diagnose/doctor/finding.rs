//! What an examination sees, and what it finds.
//!
//! Invariant: a finding has a code, a severity, a sentence and a remedy.

use super::repair::Repair;
use crate::verdict::Difference;
use bitnet_checkpoint::{Certificate, Checkpoint, OpenOptions};
use bitnet_formats::{ErrorCode, FormatError, TensorFile};
use serde_json::{Value, json};
use std::fmt;
use std::path::Path;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// Some programs will stumble, or something looks unlike any trained model.
    Warning,
    /// The model cannot be read, cannot stop, or computes something else than it was trained for.
    Error,
}

impl Severity {
    /// As reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// A stable word (`formats/report.md`).
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Tensor, key or file.
    pub place: String,
    /// What was found, a sentence.
    pub what: String,
    /// What to do.
    pub remedy: String,
    /// What `--fix` does about it.
    pub repair: Option<Repair>,
}

impl Finding {
    pub(super) fn new(
        code: &'static str,
        severity: Severity,
        place: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            code,
            severity,
            place: place.into(),
            what: what.into(),
            remedy: remedy.into(),
            repair: None,
        }
    }

    pub(super) fn error(
        code: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(code, Severity::Error, place, what, remedy)
    }

    pub(super) fn warning(
        code: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(code, Severity::Warning, place, what, remedy)
    }

    pub(super) fn note(
        code: &'static str,
        place: impl Into<String>,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(code, Severity::Note, place, what, remedy)
    }

    /// A tensor, key or file that cannot be read.
    pub(super) fn unreadable(place: impl Into<String>, error: &FormatError) -> Self {
        let is_damage = matches!(
            error.code,
            ErrorCode::Truncated
                | ErrorCode::Malformed
                | ErrorCode::BadCode
                | ErrorCode::NonFinite
                | ErrorCode::UnknownContainer
        );
        let again = match is_damage {
            true => "get the file again from where it came from, or make it again",
            false => "compare with the source, or convert again",
        };
        let remedy = error.hint.clone().unwrap_or_else(|| again.to_owned());
        let code = error.code.as_str();
        Self::error(code, place, error.to_string(), remedy)
    }

    pub(super) fn mended_by(mut self, repair: Repair) -> Self {
        self.repair = Some(repair);
        self
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "code": self.code,
            "severity": self.severity.as_str(),
            "place": self.place,
            "what": self.what,
            "remedy": self.remedy,
            "repairable": self.repair.is_some(),
        })
    }
}

/// Who is examined.
pub struct Patient<'a> {
    /// As given.
    pub path: &'a Path,
    /// The files, whatever they hold.
    pub file: &'a TensorFile,
    /// The model in them, if it is one.
    pub checkpoint: Option<&'a Checkpoint>,
    /// Whether the model may be run.
    pub run: bool,
    /// The certificate to check it against, where one was named.
    pub certificate: Option<&'a Path>,
    /// How a model is compared with a certificate.
    pub compare: &'a Compare,
}

/// Compares the model at a path, opened so, with a certificate: the checks, which are above this module.
pub(crate) type Compare =
    dyn Fn(&Path, OpenOptions, &Certificate) -> Result<Compared, FormatError> + Sync;

/// What comparing a model with a certificate came to.
pub struct Compared {
    /// Why the certificate speaks of another model, if it does.
    pub other_model: Option<String>,
    /// Every difference.
    pub differences: Vec<Difference>,
}

/// One examination.
pub struct Examination {
    /// Its name: also its file.
    pub name: &'static str,
    /// What it looks at.
    pub what: &'static str,
    pub(super) examine: fn(&Patient<'_>, &mut Vec<Finding>),
}
