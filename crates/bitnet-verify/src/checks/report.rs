//! Everything a run found. How it is written is the business of the folder `report`.
//!
//! Invariant: the answer follows from the verdicts alone. One `different` makes it `different`; otherwise one check
//! that could not be done makes it `error`; a skipped check never counts as passed.

use super::padding::Padding;
use super::unlike::Unlike;
use crate::diagnose::fault::Fault;
use crate::reference::divergence::Divergence;
use crate::share::ShareRecord;
use crate::verdict::{Status, Verdict};

/// Logits and what they were compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedLogits {
    /// `golden`, `other runtime`, `source` or `oracle`.
    pub reference: &'static str,
    /// How far they are apart.
    pub divergence: Divergence,
}

/// What a ternary matrix holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatrixFigures {
    /// How many trits are -1, 0, +1.
    pub trits: [u64; 3],
    /// The smallest, the median and the largest scale.
    pub scales: [f32; 3],
}

/// What one linear holds, for pages that show it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearFigures {
    /// Its slot.
    pub name: String,
    /// Of the artifact.
    pub artifact: MatrixFigures,
    /// Of the source, if the artifact is compared with a model.
    pub source: Option<MatrixFigures>,
    /// Whether trits or scales are not the source's.
    pub differs: bool,
}

/// Everything a run found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// One line each, in the order of the table of checks.
    pub checks: Vec<Verdict>,
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
    /// What a run over a part of the tensors says of the whole.
    pub share: Option<ShareRecord>,
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

    /// The answer.
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

    /// The answer in a sentence: which checks decided it.
    pub fn sentence(&self) -> String {
        let named = |status| -> Vec<&str> {
            let checks = self.checks.iter().filter(|c| c.status == status);
            checks.map(|c| c.name).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn report(statuses: &[Status]) -> Report {
        let check = |&status| Verdict {
            status,
            ..Verdict::same("x", "")
        };
        Report {
            checks: statuses.iter().map(check).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn the_answer_follows_from_the_checks() {
        use Status::{Different, Error, Same, Skipped};
        assert_eq!(report(&[Same, Skipped]).status(), Same);
        assert_eq!(report(&[Same, Error]).status(), Error);
        assert_eq!(report(&[Same, Error, Different]).status(), Different);
        assert_eq!(report(&[Skipped]).status(), Error, "a skip is never a pass");
        assert_eq!(report(&[]).status(), Error);
    }
}
