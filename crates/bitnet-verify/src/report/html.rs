//! The report as one HTML page that a person reads in a minute.
//!
//! Invariant: a page stands alone: no request to anywhere, and no script but the one that copies hashes. It is well-formed
//! XML as well, every text from a file is escaped, and the page says nothing that the `--json` report does not.

mod plot;
mod sources;

use super::provenance::Provenance;
use super::statistics::statistics;
use super::words::{Note, grouped, notes};
use super::{FEW, LISTED, headline, printable};
use crate::checks::report::Report;
use crate::diagnose::fault::Fault;
use crate::reference::thresholds::Thresholds;
use crate::verdict::{Status, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::collections::BTreeSet;

const STYLE: &str = include_str!("html/style.css");

/// Elements without content, closed as XML wants it.
const META: &str = "<meta charset=\"utf-8\"/>\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>";

/// The whole page.
pub(crate) fn of(report: &Report, provenance: &Provenance, thresholds: &Thresholds) -> String {
    let report = &provenance.publish(report);
    let status = report.status();
    let different_models = report.different_models();
    let policy = sources::policy();
    let page = html! {
        (DOCTYPE)
        html lang="en" xmlns="http://www.w3.org/1999/xhtml" {
            head {
                (PreEscaped(META))
                (PreEscaped(format!("<meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\"/>")))
                title { (headline(status)) ": " (printable(provenance.subject())) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header #verdict class=(status) {
                    p { "bitnet-verify " (env!("CARGO_PKG_VERSION")) }
                    h1 { (headline(status)) }
                    @if let Some(reason) = &different_models {
                        p #models {
                            strong { "These look like different models: " (grouped(&printable(reason))) "." }
                            " Compare with the model that the artifact was made from."
                        }
                    }
                    p { (grouped(&printable(&report.sentence()))) }
                }
                (sources::section(provenance))
                @if !report.faults.is_empty() && different_models.is_none() { (faults(&report.faults)) }
                (checks(&report.checks))
                (differences(&report.checks, if different_models.is_some() { FEW } else { LISTED }))
                // of two models that have nothing in common, pictures say nothing
                @if different_models.is_none() { (figures(report, thresholds)) }
                (sources::script())
            }
        }
    };
    page.into_string()
}

fn faults(faults: &[Fault]) -> Markup {
    html! {
        section #faults {
            h2 { "Named faults" }
            dl {
                @for fault in faults {
                    dt { (fault.name.as_str()) }
                    dd {
                        (grouped(&printable(&fault.sentence())))
                        small { (fault.name.row().hint) }
                    }
                }
            }
        }
    }
}

fn checks(checks: &[Verdict]) -> Markup {
    html! {
        section #checks {
            h2 { "Checks" }
            table {
                tr { th { "check" } th { "result" } th { "what" } }
                @for check in checks {
                    tr {
                        th { (check.name) }
                        td class=(check.status) { (check.status) }
                        td { (what(check)) }
                    }
                }
            }
        }
    }
}

/// What a check compared: a line, or what it lists in rows.
fn what(check: &Verdict) -> Markup {
    let detail = printable(&check.detail);
    if check.rows.is_empty() {
        return sources::with_hashes(&grouped(&detail));
    }
    // the rest of the line is in the rows
    let brief = match check.status {
        Status::Same => None,
        _ => detail.split([';', '(']).next().map(str::trim),
    };
    html! {
        @if let Some(brief) = brief { p { (grouped(brief)) } }
        dl .rows {
            @for (name, value) in &check.rows {
                dt { (printable(name)) } dd { (sources::with_hashes(&grouped(value))) }
            }
        }
    }
}

fn differences(checks: &[Verdict], most: usize) -> Markup {
    let with: Vec<&Verdict> = checks
        .iter()
        .filter(|c| !c.differences.is_empty())
        .collect();
    html! {
        @if !with.is_empty() {
            section #differences {
                h2 { "Where it differs" }
                @for check in with {
                    h3 { (check.name) }
                    @let notes = notes(&check.differences);
                    ul { @for note in notes.iter().take(most) { li { (of_note(note)) } } }
                    @if let Some(more @ 1..) = notes.len().checked_sub(most) {
                        p { "and " (grouped(&more.to_string())) " more, listed by --json" }
                    }
                }
            }
        }
    }
}

fn of_note(note: &Note<'_>) -> Markup {
    html! {
        @for place in &note.places { code { (printable(place)) } " " }
        @if note.more > 0 { "and " (grouped(&note.more.to_string())) " more: " }
        (sources::with_hashes(&grouped(note.what)))
    }
}

/// The linears that differ: by their values, or in what a check lists.
fn differing(report: &Report) -> BTreeSet<&str> {
    let found = report.linears.iter().filter(|linear| linear.differs);
    let listed = report.checks.iter().flat_map(|check| &check.differences);
    let names = found
        .map(|linear| linear.name.as_str())
        .chain(listed.map(|difference| difference.place.as_str()));
    names.collect()
}

/// The layer of a tensor by its name.
fn layer(name: &str) -> Option<usize> {
    let (_, behind) = name.split_once("layers.")?;
    behind.split('.').next()?.parse().ok()
}

/// Errors of layers, statistics of logits, trits and scales, if they were measured.
fn figures(report: &Report, thresholds: &Thresholds) -> Markup {
    let differing = differing(report);
    let layers: BTreeSet<usize> = differing.iter().filter_map(|name| layer(name)).collect();
    let linears = &report.linears;
    let marked = linears
        .iter()
        .filter(|linear| differing.contains(linear.name.as_str()))
        .count();
    let has_source = linears.iter().all(|linear| linear.source.is_some());
    html! {
        @if let Some((from, errors)) = &report.layers {
            section #layers {
                h2 { "Error of each layer" }
                p { "Relative, " (from) "." }
                p .key {
                    span { i .dashed {} "bound of most tokens" }
                    span { i .bound {} "bound of all" }
                    @if !layers.is_empty() { span { i .bar {} "a tensor of the layer differs" } }
                }
                (plot::layers(errors, thresholds, &layers))
            }
        }
        @if let Some(logits) = &report.logits {
            section #logits {
                h2 { "Logits against the " (logits.reference) }
                @if logits.divergence.is_bit_identical() {
                    p {
                        "Bit-identical at "
                        (grouped(&logits.divergence.positions().to_string())) " positions."
                    }
                } @else {
                    table {
                        @for (name, figure) in statistics(&logits.divergence) {
                            tr { th { (name) } td { (grouped(&printable(&figure))) } }
                        }
                    }
                }
            }
        }
        @if !linears.is_empty() {
            section #trits {
                h2 { "Trits of " (linears.len()) " linears" }
                p { "Shares, in the order of the file." }
                p .key {
                    span { i .minus {} "-1" } span { i .zero {} "0" } span { i .plus {} "+1" }
                    @if marked > 0 { span { i .bar {} (marked) " of " (linears.len()) " linears differ" } }
                }
                (plot::trits(linears, &differing))
            }
            section #scales {
                h2 { "Scales" }
                p { "Smallest to largest of each linear, with the median as a dot." }
                p .key {
                    @if has_source { span { i .source {} "source" } }
                    span { i .artifact {} "artifact" }
                    @if marked > 0 { span { i .bar {} "the linear differs" } }
                }
                (plot::scales(linears, &differing))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::checks::report::{ComparedLogits, LinearFigures, MatrixFigures};
    use crate::checks::unlike::Unlike;
    use crate::diagnose::fault::FaultName;
    use crate::reference::divergence::Divergence;
    use crate::verdict::Findings;

    /// A name that tries to be markup, to end an attribute, and to be what XML cannot hold.
    const HOSTILE: &str = "a<b>&\"'\u{1}\u{1b}[31m\u{ffff}</title><script>";

    pub(crate) fn report() -> Report {
        let mut findings = Findings::default();
        findings.different("blk.0 <&>", "row 3: expected 1 | found -1");
        let mut divergence = Divergence::default();
        divergence.add(
            HOSTILE,
            Some(&[0, 1]),
            2,
            &[1.0, 0.0, 0.0, 1.0],
            &[1.0, 0.1, 0.0, 1.0],
        );
        Report {
            padding: Vec::new(),
            unlike: Unlike::default(),
            share: None,
            checks: vec![
                Findings::default().into_verdict("structure", "2 tensors".to_owned()),
                findings.into_verdict("trits", "all".to_owned()),
            ],
            logits: Some(ComparedLogits {
                reference: "oracle",
                divergence,
            }),
            faults: vec![Fault::of_key(
                FaultName::PreTokenizer,
                "metadata",
                HOSTILE,
                "x",
            )],
            layers: Some(("from the hidden state", vec![1e-7, 0.0, f64::INFINITY])),
            linears: vec![linear(HOSTILE, None)],
        }
    }

    const FIGURES: MatrixFigures = MatrixFigures {
        trits: [1, 2, 1],
        scales: [0.5, 1.0, 2.0],
    };

    fn linear(name: &str, source: Option<MatrixFigures>) -> LinearFigures {
        LinearFigures {
            name: name.to_owned(),
            artifact: FIGURES,
            source,
            differs: false,
        }
    }

    fn provenance(artifact: &str) -> Provenance {
        Provenance {
            others: vec![("artifact", artifact.to_owned())],
            ..Provenance::default()
        }
    }

    /// The page without its first line, which is no XML.
    fn xml(html: &str) -> roxmltree::Document<'_> {
        let document = html.strip_prefix("<!DOCTYPE html>").unwrap();
        roxmltree::Document::parse(document).expect("well-formed")
    }

    #[test]
    fn a_page_is_well_formed_and_stands_alone() {
        let html = of(&report(), &provenance("a<b>.gguf"), &Thresholds::default());
        let document = xml(&html);
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
        let count = |id: &str, class: &str| count(&document, id, class);
        assert_eq!(count("layers", "point"), 3, "one point per layer");
        // and one each in the key
        assert_eq!((count("trits", "minus"), count("trits", "plus")), (2, 2));
        assert_eq!(count("scales", "median"), 1);
        let own = html.replace("http://www.w3.org/", "");
        for foreign in ["http://", "https://", "url(", "src=", "onclick="] {
            assert!(!own.contains(foreign), "{foreign}");
        }
        // one script, the one that the policy of the page allows
        assert_eq!(html.matches("<script").count(), 1);
        assert!(html.contains(&format!("<script>{}</script>", sources::SCRIPT)));
        assert!(html.contains(&sources::policy()));
    }

    /// Elements of a class within an element.
    fn count(document: &roxmltree::Document<'_>, id: &str, class: &str) -> usize {
        let by_id = document.descendants();
        let mut by_id = by_id.filter(|n| n.attribute("id") == Some(id));
        let all = by_id.next().into_iter().flat_map(|n| n.descendants());
        all.filter(|n| n.attribute("class") == Some(class)).count()
    }

    #[test]
    fn linears_that_differ_are_marked_in_every_chart_beside_the_source() {
        let names = [
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.1.mlp.up_proj.weight",
            "model.layers.2.mlp.up_proj.weight",
        ];
        let mut report = report();
        report.linears = names.map(|name| linear(name, Some(FIGURES))).into();
        report.linears[1].differs = true;
        // known from a check alone, as of a certificate
        let mut findings = Findings::default();
        findings.different(names[2], "expected trits of another hash");
        let verdict = findings.into_verdict("digest", "all".to_owned());
        report.checks.push(verdict);
        let html = of(&report, &provenance("m"), &Thresholds::default());
        let document = xml(&html);
        assert_eq!(count(&document, "layers", "band"), 2);
        // the source's picture and the artifact's
        assert_eq!(count(&document, "trits", "band"), 4);
        assert_eq!(count(&document, "scales", "band"), 2);
        assert_eq!(count(&document, "trits", "plus"), 2 * 3 + 1, "and the key");
        assert_eq!(count(&document, "scales", "median source"), 3);
        assert_eq!(count(&document, "scales", "median"), 3);
        assert!(html.contains("2 of 3 linears differ"));
        // widths are shares of the page, so that labels keep their size
        assert!(!html.contains("viewBox"));
    }

    #[test]
    fn different_models_are_said_first_and_equal_logits_in_a_line() {
        let mut report = report();
        report.unlike.size("hidden_size", 16384, 32768);
        let html = of(&report, &provenance("m"), &Thresholds::default());
        let said =
            html.find("These look like different models: hidden_size 16,384 against 32,768.");
        let said = said.expect("said");
        assert!(said < html.find("id=\"subject\"").unwrap());
        for id in ["faults", "trits", "scales", "layers"] {
            assert!(!html.contains(&format!("id=\"{id}\"")), "{id}");
        }
        report.unlike = Unlike::default();
        let mut same = Divergence::default();
        same.add(
            "p",
            Some(&[0, 1]),
            2,
            &[1.0, 0.0, 0.0, 1.0],
            &[1.0, 0.0, 0.0, 1.0],
        );
        report.logits = Some(ComparedLogits {
            reference: "source",
            divergence: same,
        });
        let html = of(&report, &provenance("m"), &Thresholds::default());
        let document = xml(&html);
        let logits = document
            .descendants()
            .find(|n| n.attribute("id") == Some("logits"))
            .unwrap();
        assert!(!logits.descendants().any(|n| n.has_tag_name("table")));
        assert!(html.contains("Bit-identical at 2 positions."));
    }

    #[test]
    fn what_a_certificate_says_stands_in_rows_with_hashes_to_copy() {
        let sha256 = "0123456789abcdef".repeat(4);
        let rows = vec![
            ("ternary_sha256".to_owned(), sha256.clone()),
            ("linears".to_owned(), "12345".to_owned()),
        ];
        let mut report = report();
        let verdict = Findings::default().into_verdict("digest", "a; dense; cell".to_owned());
        report.checks = vec![verdict.with_rows(rows)];
        let html = of(&report, &provenance("m"), &Thresholds::default());
        assert!(!html.contains("dense; cell"));
        assert!(html.contains("<dd>12,345</dd>"));
        let code = format!("<code class=\"hash\">{sha256}</code> <button class=\"copy\"");
        assert!(html.contains(&code), "{html}");
    }

    #[test]
    fn names_of_files_and_tensors_are_text_whatever_is_in_them() {
        let html = of(&report(), &provenance(HOSTILE), &Thresholds::default());
        let document = xml(&html);
        let expected = HOSTILE.replace(['\u{1}', '\u{1b}', '\u{ffff}'], "\u{fffd}");
        let text = |tag: &str| -> Vec<String> {
            let all = document.descendants().filter(|n| n.has_tag_name(tag));
            let text = |n: roxmltree::Node<'_, '_>| {
                let texts = n.descendants().filter(|n| n.is_text());
                texts.filter_map(|n| n.text()).collect::<String>()
            };
            all.map(text).collect()
        };
        let titles = text("title");
        assert!(titles[0].ends_with(&format!(": {expected}")), "{titles:?}");
        assert!(
            titles
                .iter()
                .any(|t| *t == format!("{expected}: 25.00 % of minus"))
        );
        assert!(text("dd").contains(&expected), "{:?}", text("dd"));
        assert!(
            text("td").iter().any(|t| t.contains(&expected)),
            "the prompt"
        );
    }
}
