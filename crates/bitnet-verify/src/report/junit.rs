//! The report as JUnit XML, one test case per check.
//!
//! Invariant: well-formed XML 1.0 for every report: text is escaped, and characters that XML cannot
//! hold at all are replaced.

use super::printable;
use crate::checks::report::Report;
use crate::verdict::{Status, Verdict};
use bitnet_formats::{ErrorCode, FormatError};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use std::fmt::Write;
use std::time::Duration;

const PROGRAM: &str = "bitnet-verify";

/// The document; `subject` names the artifact.
///
/// # Errors
/// Those of the XML writer; none is known.
pub(crate) fn of(report: &Report, subject: &str, took: Duration) -> Result<String, FormatError> {
    let mut suite = TestSuite::new(printable(subject));
    suite.set_time(took);
    suite.add_test_cases(report.checks.iter().map(case));
    let mut document = quick_junit::Report::new(PROGRAM);
    document.set_time(took).add_test_suite(suite);
    let cannot =
        |e: quick_junit::SerializeError| FormatError::new(ErrorCode::Io, e.to_string()).because(e);
    document.to_string().map_err(cannot)
}

fn case(check: &Verdict) -> TestCase {
    let detail = printable(&check.detail);
    let mut status = match check.status {
        Status::Same => TestCaseStatus::success(),
        Status::Skipped => TestCaseStatus::skipped(),
        Status::Different => TestCaseStatus::non_success(NonSuccessKind::Failure),
        Status::Error => TestCaseStatus::non_success(NonSuccessKind::Error),
    };
    match check.status {
        Status::Same => {}
        Status::Skipped => {
            status.set_message(&detail);
        }
        Status::Different | Status::Error => {
            let mut list = String::new();
            for d in &check.differences {
                // a line each
                let [place, what] = [&d.place, &d.what].map(|t| printable(t).replace('\n', " "));
                let _ = writeln!(list, "{place}: {what}");
            }
            status.set_type(check.status.as_str()).set_message(&detail);
            status.set_description(list);
        }
    }
    let is_same = check.status == Status::Same;
    let mut case = TestCase::new(check.name, status);
    case.set_classname(PROGRAM).set_time(Duration::ZERO);
    if is_same {
        case.set_system_out(detail);
    }
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Findings;
    use bitnet_formats::{ErrorCode, FormatError};

    #[test]
    fn writes_one_case_per_check_and_escapes() {
        let mut findings = Findings::default();
        findings.different("a<b>&\"'", "bad\u{1}\n");
        let report = Report {
            checks: vec![
                Findings::default().into_verdict("structure", "2 tensors".to_owned()),
                findings.into_verdict("trits", "all <&>\"\u{ffff}".to_owned()),
                Verdict::skipped("logits", "not asked for"),
                Verdict::error("dense", &FormatError::new(ErrorCode::Io, "no")),
            ],
            ..Report::default()
        };
        let xml = of(&report, "m\"<>&\u{1b}[2J.gguf", Duration::from_millis(250)).unwrap();
        let document = roxmltree::Document::parse(&xml).expect("well-formed");
        let suites = document.root_element();
        let suite = suites.first_element_child().unwrap();
        for node in [suites, suite] {
            for (name, value) in [
                ("tests", "4"),
                ("failures", "1"),
                ("errors", "1"),
                ("skipped", "1"),
                ("time", "0.250"),
            ] {
                assert_eq!(node.attribute(name), Some(value), "{name}: {xml}");
            }
        }
        assert_eq!(suite.attribute("name"), Some("m\"<>&\u{fffd}[2J.gguf"));
        let cases: Vec<_> = suite
            .children()
            .filter(|n| n.has_tag_name("testcase"))
            .collect();
        let names: Vec<_> = cases.iter().filter_map(|n| n.attribute("name")).collect();
        assert_eq!(names, ["structure", "trits", "logits", "dense"]);
        let inner: Vec<_> = cases
            .iter()
            .filter_map(|n| n.first_element_child())
            .collect();
        let tags: Vec<_> = inner.iter().map(|n| n.tag_name().name()).collect();
        assert_eq!(tags, ["system-out", "failure", "skipped", "error"]);
        assert_eq!(inner[0].text(), Some("2 tensors"));
        assert_eq!(inner[1].attribute("type"), Some("different"));
        assert_eq!(
            inner[1].attribute("message"),
            Some("1 different (all <&>\"\u{fffd})")
        );
        let text = inner[1].text().unwrap().trim();
        assert_eq!(text, "a<b>&\"': bad\u{fffd}");
        assert_eq!(inner[2].attribute("message"), Some("not asked for"));
        assert_eq!(inner[3].attribute("message"), Some("no"));
    }
}
