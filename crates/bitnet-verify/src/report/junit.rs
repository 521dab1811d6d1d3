//! The report as JUnit XML, one test case per check.
//!
//! Invariant: well-formed XML 1.0 for every report: text is escaped, and characters that XML cannot
//! hold at all are replaced.

use crate::report::{CheckResult, Report, Status};
use std::fmt::Write;

/// The document; `subject` names the artifact.
pub fn to_junit(report: &Report, subject: &str, seconds: f64) -> String {
    let count = |status| report.checks.iter().filter(|c| c.status == status).count();
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"{seconds:.3}\"",
        report.checks.len(),
        count(Status::Different),
        count(Status::Error),
        count(Status::Skipped)
    );
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(xml, "<testsuites name=\"bitnet-verify\" {counts}>");
    let _ = writeln!(xml, "  <testsuite name=\"{}\" {counts}>", escape(subject));
    for check in &report.checks {
        case(&mut xml, check);
    }
    xml.push_str("  </testsuite>\n</testsuites>\n");
    xml
}

fn case(xml: &mut String, check: &CheckResult) {
    let detail = escape(&check.detail);
    let _ = write!(
        xml,
        "    <testcase classname=\"bitnet-verify\" name=\"{}\" time=\"0\"",
        check.name
    );
    let tag = match check.status {
        Status::Same => {
            let _ = writeln!(
                xml,
                ">\n      <system-out>{detail}</system-out>\n    </testcase>"
            );
            return;
        }
        Status::Skipped => {
            let _ = writeln!(
                xml,
                ">\n      <skipped message=\"{detail}\"/>\n    </testcase>"
            );
            return;
        }
        Status::Different => "failure",
        Status::Error => "error",
    };
    let _ = writeln!(
        xml,
        ">\n      <{tag} type=\"{}\" message=\"{detail}\">",
        check.status
    );
    for d in &check.differences {
        let _ = writeln!(xml, "{}: {}", escape(&d.place), escape(&d.what));
    }
    let _ = writeln!(xml, "      </{tag}>\n    </testcase>");
}

/// Escapes text and attribute values alike.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\r' | '\t' => {
                let _ = write!(out, "&#{};", c as u32);
            }
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Findings;
    use bitnet_formats::{ErrorCode, FormatError};

    #[test]
    fn writes_one_case_per_check_and_escapes() {
        let mut findings = Findings::default();
        findings.different("a<b>&\"'", "bad\u{1}\n");
        let report = Report {
            checks: vec![
                Findings::default().into_result("structure", "2 tensors".to_owned()),
                findings.into_result("trits", "all".to_owned()),
                CheckResult::skipped("logits", "not asked for"),
                CheckResult::error("dense", &FormatError::new(ErrorCode::Io, "no")),
            ],
            ..Report::default()
        };
        let xml = to_junit(&report, "m.gguf", 0.25);
        assert!(
            xml.contains("tests=\"4\" failures=\"1\" errors=\"1\" skipped=\"1\" time=\"0.250\"")
        );
        assert!(xml.contains("a&lt;b&gt;&amp;&quot;&apos;: bad\u{fffd}&#10;"));
        assert_eq!(xml.matches("<testcase ").count(), 4);
        assert_eq!(xml.matches("</testcase>").count(), 4);
    }
}
