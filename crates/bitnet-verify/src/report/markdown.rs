//! The report in Markdown, for a model card.
//!
//! Invariant: a text from a file stays in its cell, and starts no markup of its own.

use super::provenance::{ModelFacts, Provenance};
use super::statistics::statistics;
use super::words::{bytes, grouped, notes};
use super::{FEW, LISTED, headline, printable};
use crate::checks::report::Report;
use crate::verdict::Verdict;
use std::fmt::Write;

/// The report in Markdown. Nothing in it names this machine but its CPU.
pub(crate) fn of(report: &Report, provenance: &Provenance) -> String {
    let report = &provenance.publish(report);
    let mut text = format!(
        "## {}: {}\n\n",
        headline(report.status()),
        cell(&grouped(&report.sentence()))
    );
    let different_models = report.different_models();
    if let Some(reason) = &different_models {
        let reason = cell(&grouped(reason));
        let _ = writeln!(text, "**These look like different models:** {reason}.\n");
    }
    for (role, name) in &provenance.others {
        let _ = writeln!(text, "- {role}: {}", code(name));
    }
    provenance.models.iter().for_each(|m| model(&mut text, m));
    let _ = writeln!(text, "- command: {}", code(&provenance.command));
    let kernels = match provenance.kernels.is_empty() {
        true => String::new(),
        false => format!(", kernels {}", provenance.kernels.join(", ")),
    };
    let _ = writeln!(
        text,
        "- run: {}, {:.1} seconds on {}{kernels}",
        provenance.date,
        provenance.seconds,
        cell(&provenance.machine)
    );
    let faults = report.faults.iter().filter(|_| different_models.is_none());
    for fault in faults {
        let sentence = grouped(&fault.sentence().replace('`', "'"));
        let _ = writeln!(text, "- fault: {}", cell(&sentence));
    }
    text.push_str("\n| check | result | what |\n|---|---|---|\n");
    for check in &report.checks {
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            check.name,
            check.status,
            what(check)
        );
    }
    let most = match different_models {
        Some(_) => FEW,
        None => LISTED,
    };
    for check in report.checks.iter().filter(|c| !c.differences.is_empty()) {
        let _ = writeln!(text, "\n{}:\n", check.name);
        let notes = notes(&check.differences);
        for note in notes.iter().take(most) {
            let places: Vec<String> = note.places.iter().map(|place| code(place)).collect();
            let more = match note.more {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let what = cell(&grouped(note.what));
            let _ = writeln!(text, "- {}{more}: {what}", places.join(", "));
        }
        if let Some(more @ 1..) = notes.len().checked_sub(most) {
            let _ = writeln!(text, "- and {more} more");
        }
    }
    if let Some(logits) = &report.logits {
        let (reference, divergence) = (logits.reference, &logits.divergence);
        if divergence.is_bit_identical() {
            let positions = grouped(&divergence.positions().to_string());
            let _ = writeln!(
                text,
                "\nLogits against the {reference}: bit-identical at {positions} positions."
            );
        } else {
            let _ = writeln!(text, "\n| logits against the {reference} | |\n|---|---|");
            for (name, figure) in statistics(divergence) {
                let _ = writeln!(text, "| {} | {} |", cell(&name), cell(&grouped(&figure)));
            }
        }
    }
    let _ = writeln!(
        text,
        "\nMade by bitnet-verify {}.",
        env!("CARGO_PKG_VERSION")
    );
    text
}

fn model(text: &mut String, model: &ModelFacts) {
    let mut line = format!("- {}: {}", model.role, code(&model.name));
    if !model.format.is_empty() {
        let _ = write!(line, ", {}", cell(&model.format));
    }
    let _ = write!(line, ", {}", bytes(model.bytes));
    if let Some([linears, _]) = model.bits_per_weight {
        let _ = write!(line, ", {linears:.3} bits per weight of the linears");
    }
    if let Some(repository) = &model.repository {
        let _ = write!(line, ", repository {}", code(repository));
    }
    if let Some(commit) = &model.commit {
        let _ = write!(line, ", revision {}", code(commit));
    }
    let _ = writeln!(text, "{line}");
    for file in &model.files {
        let sha256 = file.sha256.as_deref().unwrap_or("not hashed");
        let _ = writeln!(text, "  - {}: sha256 {}", code(&file.name), code(sha256));
    }
}

fn what(check: &Verdict) -> String {
    if check.rows.is_empty() {
        return cell(&grouped(&check.detail));
    }
    let rows = check.rows.iter();
    let rows = rows.map(|(name, value)| format!("{}: {}", cell(name), cell(&grouped(value))));
    rows.collect::<Vec<_>>().join("<br>")
}

/// Text between backticks.
fn code(text: &str) -> String {
    format!("`{}`", cell(&text.replace('`', "'")))
}

/// Text for a cell of a table: one line, nothing that ends the cell or starts markup of its own, and nothing that a
/// terminal obeys.
fn cell(text: &str) -> String {
    printable(&text.replace(['\n', '\r'], " "))
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::report::ComparedLogits;
    use crate::reference::divergence::Divergence;
    use crate::report::html::tests::report;

    #[test]
    fn markdown_keeps_its_tables() {
        let provenance = Provenance {
            others: vec![("artifact", "m.gguf".to_owned())],
            ..Provenance::default()
        };
        let mut report = report();
        let text = of(&report, &provenance);
        assert!(text.starts_with("## Different: in trits\n"), "{text}");
        assert!(text.contains("expected 1 \\| found -1"));
        assert_eq!(cell("a\x1b[31m\nb|<c"), "a\u{fffd}[31m b\\|&lt;c");
        let tables = |text: &str| text.lines().filter(|l| l.starts_with("|---")).count();
        assert_eq!(tables(&text), 2);
        // no table of zeros
        let mut same = Divergence::default();
        same.add("p", None, 2, &[1.0, 0.0], &[1.0, 0.0]);
        report.logits = Some(ComparedLogits {
            reference: "source",
            divergence: same,
        });
        let text = of(&report, &provenance);
        assert_eq!(tables(&text), 1);
        assert!(text.contains("bit-identical at 1 positions"), "{text}");
        report.unlike.size("hidden_size", 256, 512);
        let text = of(&report, &provenance);
        let second = text.lines().nth(2).unwrap();
        let said = "**These look like different models:** hidden_size 256 against 512.";
        assert_eq!(second, said);
    }
}
