//! The report as one HTML page that a person reads in a minute.
//!
//! Invariant: a page stands alone: no script, no request to anywhere. It is well-formed XML as well, every
//! text from a file is escaped, and the page says nothing that the `--json` report does not.

mod plot;

use super::statistics::statistics;
use super::{LISTED, Subjects, headline, printable};
use crate::checks::report::Report;
use crate::diagnose::fault::Fault;
use crate::reference::thresholds::Thresholds;
use crate::verdict::{Difference, Verdict};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("html/style.css");

/// Elements without content, closed as XML wants it.
const META: &str = "<meta charset=\"utf-8\"/>\
    <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>";

/// The whole page.
pub(crate) fn of(report: &Report, subjects: &Subjects, thresholds: &Thresholds) -> String {
    let status = report.status();
    let artifact = subjects.first().map_or("", |(_, value)| value.as_str());
    let page = html! {
        (DOCTYPE)
        html lang="en" xmlns="http://www.w3.org/1999/xhtml" {
            head {
                (PreEscaped(META))
                title { (headline(status)) ": " (printable(artifact)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header #verdict class=(status) {
                    p { "bitnet-verify " (env!("CARGO_PKG_VERSION")) }
                    h1 { (headline(status)) }
                    p { (printable(&report.sentence())) }
                }
                section #subject {
                    h2 { "What was compared" }
                    dl {
                        @for (name, value) in subjects {
                            dt { (name) } dd { (printable(value)) }
                        }
                    }
                }
                @if !report.faults.is_empty() { (faults(&report.faults)) }
                (checks(&report.checks))
                (differences(&report.checks))
                (figures(report, thresholds))
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
                        (printable(&fault.sentence()))
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
                        td { (printable(&check.detail)) }
                    }
                }
            }
        }
    }
}

fn differences(checks: &[Verdict]) -> Markup {
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
                    ul {
                        @for Difference { place, what, .. } in check.differences.iter().take(LISTED) {
                            li { code { (printable(place)) } " " (printable(what)) }
                        }
                    }
                    @if let Some(more @ 1..) = check.differences.len().checked_sub(LISTED) {
                        p { "and " (more) " more, listed by --json" }
                    }
                }
            }
        }
    }
}

/// Errors of layers, statistics of logits, trits and scales, if they were measured.
fn figures(report: &Report, thresholds: &Thresholds) -> Markup {
    html! {
        @if let Some((from, errors)) = &report.layers {
            section #layers {
                h2 { "Error of each layer" }
                p {
                    "Relative, " (from) ". Dashed: the bound of most tokens; red: the bound of all."
                }
                (plot::layers(errors, thresholds))
            }
        }
        @if let Some(logits) = &report.logits {
            section #logits {
                h2 { "Logits against the " (logits.reference) }
                table {
                    @for (name, figure) in statistics(&logits.divergence) {
                        tr { th { (name) } td { (printable(&figure)) } }
                    }
                }
            }
        }
        @if !report.linears.is_empty() {
            section #trits {
                h2 { "Trits of " (report.linears.len()) " linears" }
                p {
                    "Shares of -1 (blue, below), 0 (grey) and +1 (orange, above), in the order of the file."
                }
                (plot::trits(&report.linears))
            }
            section #scales {
                h2 { "Scales" }
                p { "Smallest to largest of each linear, with the median." }
                (plot::scales(&report.linears))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::checks::report::{ComparedLogits, LinearFigures};
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
            linears: vec![LinearFigures {
                name: HOSTILE.to_owned(),
                trits: [1, 2, 1],
                scales: [0.5, 1.0, 2.0],
            }],
        }
    }

    /// The page without its first line, which is no XML.
    fn xml(html: &str) -> roxmltree::Document<'_> {
        let document = html.strip_prefix("<!DOCTYPE html>").unwrap();
        roxmltree::Document::parse(document).expect("well-formed")
    }

    #[test]
    fn a_page_is_well_formed_and_stands_alone() {
        let subjects = [("artifact", "a<b>.gguf".to_owned())];
        let html = of(&report(), &subjects, &Thresholds::default());
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
    fn names_of_files_and_tensors_are_text_whatever_is_in_them() {
        let subjects = [("artifact", HOSTILE.to_owned())];
        let html = of(&report(), &subjects, &Thresholds::default());
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
        assert_eq!(text("dd")[0], expected);
        assert!(
            text("td").iter().any(|t| t.contains(&expected)),
            "the prompt"
        );
    }
}
