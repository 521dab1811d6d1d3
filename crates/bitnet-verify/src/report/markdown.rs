//! The report in Markdown, for a model card.
//!
//! Invariant: a text from a file stays in its cell, and starts no markup of its own.

use super::statistics::statistics;
use super::{LISTED, Subjects, headline};
use crate::checks::report::Report;
use std::fmt::Write;

/// The report in Markdown.
pub(crate) fn of(report: &Report, subjects: &Subjects) -> String {
    let mut text = format!(
        "## {}: {}\n\n",
        headline(report.status()),
        cell(&report.sentence())
    );
    for (name, value) in subjects {
        let _ = writeln!(text, "- {name}: `{}`", cell(&value.replace('`', "'")));
    }
    for fault in &report.faults {
        let _ = writeln!(
            text,
            "- fault: {}",
            cell(&fault.sentence().replace('`', "'"))
        );
    }
    text.push_str("\n| check | result | what |\n|---|---|---|\n");
    for check in &report.checks {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            check.name,
            check.status,
            cell(&check.detail)
        );
    }
    for check in report.checks.iter().filter(|c| !c.differences.is_empty()) {
        let _ = writeln!(text, "\n{}:\n", check.name);
        for d in check.differences.iter().take(LISTED) {
            let place = d.place.replace('`', "'");
            let _ = writeln!(text, "- `{}`: {}", cell(&place), cell(&d.what));
        }
    }
    if let Some(logits) = &report.logits {
        let _ = writeln!(
            text,
            "\n| logits against the {} | |\n|---|---|",
            logits.reference
        );
        for (name, figure) in statistics(&logits.divergence) {
            let _ = writeln!(text, "| {} | {} |", cell(&name), cell(&figure));
        }
    }
    let _ = writeln!(
        text,
        "\nMade by bitnet-verify {}.",
        env!("CARGO_PKG_VERSION")
    );
    text
}

/// Text for a cell of a table: one line, nothing that ends the cell or starts markup of its own.
fn cell(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::html::tests::report;

    #[test]
    fn markdown_keeps_its_tables() {
        let text = of(&report(), &[("artifact", "m.gguf".to_owned())]);
        assert!(text.starts_with("## Different: in trits\n"), "{text}");
        assert!(text.contains("expected 1 \\| found -1"));
        let tables = text.lines().filter(|l| l.starts_with("|---")).count();
        assert_eq!(tables, 2);
    }
}
