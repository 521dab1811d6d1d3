//! Why a program could not: one line, and what to do about it.
//!
//! Invariant: `message` is one line without a full stop, in lower case where it is ours, and every
//! failure has a code of `formats/report.md`. A closed pipe on our own output is no failure: it
//! travels as one so that `?` ends the work, and [`crate::Console::finish`] makes it success.

use bitnet_formats::{Cause, ErrorCode, FormatError};
use serde_json::{Value, json};
use std::error::Error;
use std::io;
use std::path::Path;

/// Why a program could not.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Stable word for scripts.
    pub code: ErrorCode,
    /// What and where, one line.
    pub message: String,
    /// What to do about it, one line each.
    pub hints: Vec<String>,
    closed_pipe: bool,
    cause: Option<Cause>,
}

impl Failure {
    /// A failure without hints.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: one_line(&message.into()),
            hints: Vec::new(),
            closed_pipe: false,
            cause: None,
        }
    }

    /// Bad usage that clap cannot see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Usage, message)
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(one_line(&hint.into()));
        self
    }

    /// Keeps the error that this one says in its own words.
    #[must_use]
    pub fn because(mut self, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause.get_or_insert_with(|| Cause::new(error));
        self
    }

    /// Whether this is only a reader that went away.
    pub fn is_closed_pipe(&self) -> bool {
        self.closed_pipe
    }

    /// The object that `--json` prints.
    pub fn to_json(&self) -> Value {
        let hint = if self.hints.is_empty() {
            Value::Null
        } else {
            self.hints.join("; ").into()
        };
        json!({
            "status": "error",
            "error": {"code": self.code.as_str(), "message": self.message, "hint": hint},
        })
    }
}

/// File names and metadata come from outside; a line break in one must not forge a second line.
fn one_line(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_ref().map(Cause::error)
    }
}

impl From<FormatError> for Failure {
    fn from(error: FormatError) -> Self {
        let mut failure = Self {
            cause: error.cause().cloned(),
            ..Self::new(error.code, error.to_string())
        };
        let again = error
            .file
            .as_deref()
            .and_then(|file| again(error.code, file));
        for hint in error.hint.into_iter().chain(again) {
            failure = failure.hint(hint);
        }
        failure
    }
}

/// What to do about content of the cache of a Hub that cannot be right.
fn again(code: ErrorCode, file: &Path) -> Option<String> {
    let is_content = matches!(
        code,
        ErrorCode::Truncated
            | ErrorCode::Malformed
            | ErrorCode::UnknownContainer
            | ErrorCode::BadCode
            | ErrorCode::NonFinite
            | ErrorCode::LimitExceeded
            | ErrorCode::Tokenizer
    );
    let cached = is_content.then(|| bitnet_remote::cached_file(file))??;
    Some(format!(
        "if the file in the cache is damaged, {}",
        cached.again()
    ))
}

/// For writes to `out` and `err`; errors on files carry their path as a [`FormatError`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self {
            closed_pipe,
            ..Self::new(ErrorCode::Io, format!("cannot write the output: {error}")).because(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_one_object() {
        let error = FormatError::new(ErrorCode::BadCode, "found 3")
            .in_tensor("a\nerror: b")
            .hint("look");
        let failure = Failure::from(error).hint("again");
        assert_eq!(failure.to_string(), "`a\\nerror: b`: found 3");
        let json = failure.to_json();
        assert_eq!(json["error"]["code"], "bad-code");
        assert_eq!(json["error"]["hint"], "look; again");
        assert!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_closed_pipe());
    }

    #[test]
    fn a_failure_keeps_what_it_was_made_from() {
        let full = || io::Error::from_raw_os_error(28);
        let number = |failure: &Failure| {
            let source = failure.source()?.downcast_ref::<io::Error>()?;
            source.raw_os_error()
        };
        assert_eq!(number(&Failure::from(full())), Some(28));
        let error = FormatError::io(std::path::Path::new("out"), &full());
        assert_eq!(number(&Failure::from(error)), Some(28));
        assert!(Failure::usage("x").source().is_none());
    }
}
