//! What a target found, to compare two runs.
//!
//! Invariant: nothing is written or formatted unless two runs are compared.

use std::fmt::{Debug, Display};

/// Longest text of an error.
const LONGEST_ERROR: usize = 4000;

/// What a target found.
#[derive(Debug)]
pub struct Record {
    lines: Option<Vec<String>>,
}

impl Record {
    /// With `is_kept`, what is found is kept.
    pub fn new(is_kept: bool) -> Self {
        Self {
            lines: is_kept.then(Vec::new),
        }
    }

    /// Notes a result.
    pub fn note(&mut self, found: &dyn Debug) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{found:?}"));
        }
    }

    /// Notes an error, which has to be one line of bounded length.
    ///
    /// # Panics
    /// If it is not.
    pub fn error(&mut self, error: &dyn Display) {
        if let Some(lines) = &mut self.lines {
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.contains(['\n', '\r', '\u{1b}']),
                "the text of an error is not one line: {text:?}"
            );
            assert!(
                text.len() <= LONGEST_ERROR,
                "the text of an error has {} bytes: {text}",
                text.len()
            );
            lines.push(text);
        }
    }

    /// Notes a value or an error.
    pub fn result<T: Debug>(&mut self, result: &Result<T, impl Display>) {
        match result {
            Ok(value) => self.note(value),
            Err(error) => self.error(error),
        }
    }

    /// Whether what is found is kept.
    pub fn is_kept(&self) -> bool {
        self.lines.is_some()
    }

    pub(crate) fn expect_same(&self, other: &Self, target: &str) {
        let (Some(first), Some(second)) = (&self.lines, &other.lines) else {
            return;
        };
        if first != second {
            let differs = first.iter().zip(second).find(|(a, b)| a != b);
            panic!("{target}: two runs found different results: {differs:?}");
        }
    }
}
