//! How what was found is told: to scripts, to a CI server, to people, and against an earlier run.
//!
//! Invariant: every form says the answer that the exit status says, and none says anything that is not in the
//! `--json` object.

pub(crate) mod baseline;
pub(crate) mod html;
pub(crate) mod json;
pub(crate) mod junit;
pub(crate) mod markdown;
pub(crate) mod provenance;
pub(crate) mod recorded;
pub(crate) mod statistics;
pub(crate) mod text;
mod words;

use crate::verdict::Status;

/// Most differences of one check that a page lists.
const LISTED: usize = 40;

/// Differences of a check that a page lists if everything differs.
const FEW: usize = 3;

/// The answer in one word for people.
fn headline(status: Status) -> &'static str {
    match status {
        Status::Same => "Same",
        Status::Different => "Different",
        Status::Skipped | Status::Error => "Could not compare",
    }
}

/// Text that XML can hold: names come from files, and some characters have no place in a document.
fn printable(text: &str) -> String {
    let is_foreign = |c: char| match c {
        '\n' | '\t' => false,
        '\u{fffe}' | '\u{ffff}' => true,
        c => c.is_control(),
    };
    text.replace(is_foreign, "\u{fffd}")
}
