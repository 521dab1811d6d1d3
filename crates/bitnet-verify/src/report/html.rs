//! The report as one HTML page that a person reads in a minute, and as Markdown for a model card.
//!
//! Invariant: a page stands alone: no script, no request to anywhere. It is well-formed XML as well, every
//! text from a file escaped, and says nothing that the `--json` report does not.

mod plot;

use crate::checks::gates::Thresholds;
use crate::report::junit::escape;
use crate::report::{CheckResult, Report, Status};
use std::fmt::Write;

/// Most differences of one check that a page lists.
const LISTED: usize = 40;

const STYLE: &str = include_str!("html/style.css");

/// What was compared with what: name and value, `artifact` first.
pub type Subjects = [(&'static str, String)];

/// The verdict in one word for people.
fn headline(status: Status) -> &'static str {
    match status {
        Status::Same => "Same",
        Status::Different => "Different",
        Status::Skipped | Status::Error => "Could not compare",
    }
}

/// The HTML page.
pub fn to_html(report: &Report, subjects: &Subjects, thresholds: &Thresholds) -> String {
    let status = report.status();
    let artifact = subjects.first().map_or("", |(_, value)| value.as_str());
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\" xmlns=\"http://www.w3.org/1999/xhtml\">\n<head>\n\
         <meta charset=\"utf-8\"/>\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{}: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        headline(status),
        escape(artifact)
    );
    let _ = write!(
        page,
        "<header id=\"verdict\" class=\"{status}\">\n<p>bitnet-verify {}</p>\n<h1>{}</h1>\n<p>{}</p>\n</header>\n",
        env!("CARGO_PKG_VERSION"),
        headline(status),
        escape(&report.verdict())
    );
    page.push_str("<section id=\"subject\">\n<h2>What was compared</h2>\n<dl>\n");
    for (name, value) in subjects {
        let _ = writeln!(page, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    page.push_str("</dl>\n</section>\n");
    faults(&mut page, report);
    checks(&mut page, report);
    differences(&mut page, report);
    if let Some((from, errors)) = &report.layers {
        let _ = write!(
            page,
            "<section id=\"layers\">\n<h2>Error of each layer</h2>\n<p>Relative, {}. Dashed: the bound of most tokens; \
             red: the bound of all.</p>\n{}</section>\n",
            escape(from),
            plot::layers(errors, thresholds)
        );
    }
    if let Some(logits) = &report.logits {
        let _ = write!(
            page,
            "<section id=\"logits\">\n<h2>Logits against the {}</h2>\n<table>\n",
            logits.reference
        );
        for (name, figure) in logits.divergence.statistics() {
            let _ = writeln!(
                page,
                "<tr><th>{}</th><td>{}</td></tr>",
                escape(&name),
                escape(&figure)
            );
        }
        page.push_str("</table>\n</section>\n");
    }
    if !report.linears.is_empty() {
        let _ = write!(
            page,
            "<section id=\"trits\">\n<h2>Trits of {n} linears</h2>\n<p>Shares of -1 (blue, below), 0 (grey) and +1 \
             (orange, above), in the order of the file.</p>\n{}</section>\n<section id=\"scales\">\n<h2>Scales</h2>\n<p>Smallest to largest of each linear, \
             with the median.</p>\n{}</section>\n",
            plot::trits(&report.linears),
            plot::scales(&report.linears),
            n = report.linears.len()
        );
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn faults(page: &mut String, report: &Report) {
    if report.faults.is_empty() {
        return;
    }
    page.push_str("<section id=\"faults\">\n<h2>Faults with a name</h2>\n<dl>\n");
    for fault in &report.faults {
        let _ = writeln!(
            page,
            "<dt>{}</dt><dd>{}<br/><small>{}</small></dd>",
            fault.kind.name(),
            escape(&fault.sentence()),
            escape(fault.kind.row().hint)
        );
    }
    page.push_str("</dl>\n</section>\n");
}

fn checks(page: &mut String, report: &Report) {
    page.push_str(
        "<section id=\"checks\">\n<h2>Checks</h2>\n<table>\n\
         <tr><th>check</th><th>result</th><th>what</th></tr>\n",
    );
    for check in &report.checks {
        let _ = writeln!(
            page,
            "<tr><th>{}</th><td class=\"{status}\">{status}</td><td>{}</td></tr>",
            escape(check.name),
            escape(&check.detail),
            status = check.status
        );
    }
    page.push_str("</table>\n</section>\n");
}

fn differences(page: &mut String, report: &Report) {
    let with: Vec<&CheckResult> = report
        .checks
        .iter()
        .filter(|c| !c.differences.is_empty())
        .collect();
    if with.is_empty() {
        return;
    }
    page.push_str("<section id=\"differences\">\n<h2>Where it differs</h2>\n");
    for check in with {
        let _ = writeln!(page, "<h3>{}</h3>\n<ul>", escape(check.name));
        for d in check.differences.iter().take(LISTED) {
            let _ = writeln!(
                page,
                "<li><code>{}</code> {}</li>",
                escape(&d.place),
                escape(&d.what)
            );
        }
        page.push_str("</ul>\n");
        if let Some(more @ 1..) = check.differences.len().checked_sub(LISTED) {
            let _ = writeln!(page, "<p>and {more} more, listed by --json</p>");
        }
    }
    page.push_str("</section>\n");
}

/// The report in Markdown.
pub fn to_markdown(report: &Report, subjects: &Subjects) -> String {
    let mut text = format!(
        "## {}: {}\n\n",
        headline(report.status()),
        cell(&report.verdict())
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
        for (name, figure) in logits.divergence.statistics() {
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
    use crate::diagnose::fault::{Fault, Kind};
    use crate::reference::divergence::Divergence;
    use crate::report::{ComparedLogits, Findings, LinearFigures};

    fn report() -> Report {
        let mut findings = Findings::default();
        findings.different("blk.0 <&>", "row 3: expected 1 | found -1");
        let mut divergence = Divergence::default();
        divergence.add(
            "p",
            Some(&[0, 1]),
            2,
            &[1.0, 0.0, 0.0, 1.0],
            &[1.0, 0.1, 0.0, 1.0],
        );
        Report {
            padding: Vec::new(),
            unlike: crate::checks::unlike::Unlike::default(),
            checks: vec![
                Findings::default().into_result("structure", "2 tensors".to_owned()),
                findings.into_result("trits", "all".to_owned()),
            ],
            logits: Some(ComparedLogits {
                reference: "oracle",
                divergence,
            }),
            faults: vec![Fault::of_key(Kind::PreTokenizer, "metadata", "a<b>", "x")],
            layers: Some(("from the hidden state", vec![1e-7, 0.0, f64::INFINITY])),
            linears: vec![LinearFigures {
                name: "model.layers.0.self_attn.q_proj".to_owned(),
                trits: [1, 2, 1],
                scales: [0.5, 1.0, 2.0],
            }],
        }
    }

    #[test]
    fn a_page_is_well_formed_and_stands_alone() {
        let subjects = [("artifact", "a<b>.gguf".to_owned())];
        let html = to_html(&report(), &subjects, &Thresholds::default());
        let document = html.strip_prefix("<!DOCTYPE html>\n").unwrap();
        let document = roxmltree::Document::parse(document).expect("well-formed");
        let by_id = |id: &str| {
            document
                .descendants()
                .find(|n| n.attribute("id") == Some(id))
                .unwrap_or_else(|| panic!("{id}"))
        };
        assert_eq!(by_id("verdict").attribute("class"), Some("different"));
        let rows = |id: &str| {
            by_id(id)
                .descendants()
                .filter(|n| n.has_tag_name("tr"))
                .count()
        };
        assert_eq!(rows("checks"), 3, "a head and two checks");
        let named = by_id("faults")
            .descendants()
            .filter(|n| n.has_tag_name("dt"));
        assert_eq!(named.count(), 1);
        let count = |id: &str, class: &str| {
            let all = by_id(id).descendants();
            all.filter(|n| n.attribute("class") == Some(class)).count()
        };
        assert_eq!(count("layers", "point"), 3, "one point per layer");
        assert_eq!((count("trits", "minus"), count("trits", "plus")), (1, 1));
        assert_eq!(count("scales", "median"), 1);
        for foreign in ["http://", "https://", "<script", "url("] {
            let own = html.replace("http://www.w3.org/", "");
            assert!(!own.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn markdown_keeps_its_tables() {
        let text = to_markdown(&report(), &[("artifact", "m.gguf".to_owned())]);
        assert!(text.starts_with("## Different: in trits\n"), "{text}");
        assert!(text.contains("expected 1 \\| found -1"));
        let tables = text.lines().filter(|l| l.starts_with("|---")).count();
        assert_eq!(tables, 2);
    }
}
