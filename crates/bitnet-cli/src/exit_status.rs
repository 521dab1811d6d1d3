//! How a program ended, as its caller sees it.
//!
//! Invariant: three values and no others (an interrupted program exits 130 by signal convention,
//! and never gets here). The contract: `formats/report.md`, "Every program".

use std::process::ExitCode;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum ExitStatus {
    /// It did what was asked: 0.
    Done,
    /// A verification found a difference: 1.
    Different,
    /// It could not: bad usage, unreadable or unsupported input, a refused lossy step, no space: 2.
    CouldNot,
}

impl ExitStatus {
    /// The number a shell sees.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Different => 1,
            Self::CouldNot => 2,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.code())
    }
}
