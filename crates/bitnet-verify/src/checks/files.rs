//! Which files each of two certificates speaks of.
//!
//! Invariant: a note, never a difference. Containers of one model differ in bytes, and a certificate shows no file.

use super::check::{Check, Running, Subject};
use super::report::Report;
use crate::verdict::Verdict;
use bitnet_checkpoint::{Certificate, FileRecord};

pub(super) const CHECK: Check = Check {
    name: "files",
    what: "the bytes of the files that two certificates speak of: a note",
    start: |subject| {
        let certificates = subject.certificates();
        certificates.map(|_| Box::new(Files) as Box<dyn Running>)
    },
};

struct Files;

impl Running for Files {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some((expected, found)) = subject.certificates() else {
            return;
        };
        report.checks.push(compare(expected, found));
    }
}

fn compare(expected: &Certificate, found: &Certificate) -> Verdict {
    let hashes = |files: &[FileRecord]| -> Vec<(u64, String)> {
        let mut all: Vec<_> = files.iter().map(|f| (f.bytes, f.sha256.clone())).collect();
        all.sort_unstable();
        all
    };
    if hashes(&expected.output) == hashes(&found.output) {
        let files = expected.output.len();
        return Verdict::same(
            CHECK.name,
            format!("the same bytes in {files} output files"),
        );
    }
    let list = |certificate: &Certificate| -> String {
        let files = certificate.output.iter();
        let lines: Vec<String> = files
            .map(|f| format!("{} ({} bytes, sha256 {})", f.name, f.bytes, f.sha256))
            .collect();
        format!("{}: {}", certificate.target, lines.join(", "))
    };
    let source = match hashes(&expected.source) == hashes(&found.source) {
        true => "from the same source files",
        false => "from other source files",
    };
    let rows = |side: &str, certificate: &Certificate| -> Vec<(String, String)> {
        let files = certificate.output.iter();
        let row = |f: &FileRecord| {
            let place = format!("{} ({side}, {})", f.name, certificate.target);
            (place, format!("{} bytes, sha256 {}", f.bytes, f.sha256))
        };
        files.map(row).collect()
    };
    let rows = [
        rows("the artifact", found),
        rows("the certificate", expected),
    ];
    Verdict::skipped(
        CHECK.name,
        format!(
            "other bytes, as another container or tool writes them, {source}; {} against {}",
            list(found),
            list(expected)
        ),
    )
    .with_rows(rows.concat())
}
