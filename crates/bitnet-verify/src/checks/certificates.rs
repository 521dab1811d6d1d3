//! Two certificates against each other: whether they speak of one model, without the model.
//!
//! Invariant: the report has the checks of two files, and means by them what it means there; nothing
//! that only files could show is called compared. Bytes of files differ between containers of one model and
//! are told, not judged.

use crate::checks::claims;
use crate::checks::compare_wiring;
use crate::report::{CheckResult, Findings, Report, Status};
use bitnet_checkpoint::{Certificate, DenseRecord, FileRecord, TensorDigest};
use bitnet_formats::{ErrorCode, FormatError, Limits, open_regular, read_file};
use std::io::Read;
use std::path::Path;

/// What the sides are called in a report.
const SIDES: [&str; 2] = ["the certificate", "the artifact's certificate"];

/// Reads a certificate.
///
/// # Errors
/// A file that is none, of another version, or without a key of this one.
pub(crate) fn read(path: &Path) -> Result<Certificate, FormatError> {
    let text = read_file(path, Limits::default().certificate_bytes)?;
    Certificate::from_slice(&text).map_err(|e| e.in_file(path))
}

/// The certificate in a file, if that is what is in it: a JSON object with the key `certificate`.
///
/// # Errors
/// A certificate that cannot be read.
pub(crate) fn read_if_one(path: &Path) -> Result<Option<Certificate>, FormatError> {
    if !begins_as_object(path) {
        return Ok(None);
    }
    let text = read_file(path, Limits::default().certificate_bytes)?;
    match says_certificate(&text) {
        Ok(true) => Certificate::from_slice(&text)
            .map(Some)
            .map_err(|e| e.in_file(path)),
        // tensors may begin like an object; a certificate that is cut off is still one
        Err(error) if is_named_certificate(path) => {
            let message = format!("expected JSON: {error}");
            Err(FormatError::new(ErrorCode::Malformed, message).in_file(path))
        }
        Ok(false) | Err(_) => Ok(None),
    }
}

/// Whether JSON is an object with the key `certificate`. Keeps nothing of it.
fn says_certificate(text: &[u8]) -> Result<bool, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Version {
        certificate: Option<serde::de::IgnoredAny>,
    }
    let version: Version = serde_json::from_slice(text)?;
    Ok(version.certificate.is_some())
}

fn is_named_certificate(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with("certificate.json")
}

fn begins_as_object(path: &Path) -> bool {
    // a longer one is read, so that it is refused by its name
    let most = match is_named_certificate(path) {
        true => u64::MAX,
        false => Limits::default().certificate_bytes,
    };
    let mut head = [0; 64];
    let read = open_regular(path)
        .ok()
        .filter(|(_, metadata)| metadata.len() <= most)
        .and_then(|(mut file, _)| file.read(&mut head).ok());
    let head = head.get(..read.unwrap_or(0)).unwrap_or_default();
    head.trim_ascii_start().first() == Some(&b'{')
}

/// Compares `found`, the artifact's certificate, with another.
pub(crate) fn compare(expected: &Certificate, found: &Certificate) -> Report {
    let mut report = Report::default();
    let checks = [
        structure(expected, found),
        metadata(expected, found, &mut report),
        linears("trits", claims::trits, expected, found),
        linears("scales", claims::scales, expected, found),
        dense(expected, found),
        digest(expected, found),
        files(expected, found),
    ];
    report.checks.extend(checks);
    let unlike = &mut report.unlike;
    claims::note_sizes(&expected.config, &found.config, unlike);
    let (e, f) = (linears_of(expected), linears_of(found));
    for (_, e, f) in claims::pairs(e, f, SIDES, &mut Findings::default()) {
        unlike.linear(usize::from(claims::trits(e, f).is_some()), 1);
    }
    let (e, f) = (dense_of(expected), dense_of(found));
    for (_, e, f) in claims::pairs(e, f, SIDES, &mut Findings::default()) {
        unlike.dense(usize::from(e.values_sha256 != f.values_sha256), 1);
    }
    report
}

fn linears_of(certificate: &Certificate) -> impl Iterator<Item = (&str, &TensorDigest)> {
    claims::named(certificate.ternary.iter().map(|record| &record.digest))
}

fn dense_of(certificate: &Certificate) -> impl Iterator<Item = (&str, &DenseRecord)> {
    let records = certificate.dense.iter();
    records.map(|record| (record.name.as_str(), record))
}

fn structure(expected: &Certificate, found: &Certificate) -> CheckResult {
    let mut findings = Findings::default();
    findings.expect("family", &expected.family, &found.family);
    claims::compare_sizes(&expected.config, &found.config, &mut findings);
    let (e, f) = (linears_of(expected), linears_of(found));
    for (name, e, f) in claims::pairs(e, f, SIDES, &mut findings) {
        let (e, f) = ((e.rows, e.cols), (f.rows, f.cols));
        if e != f {
            findings.different(name, format!("expected shape {e:?}, found {f:?}"));
        }
    }
    let (e, f) = (dense_of(expected), dense_of(found));
    for (name, e, f) in claims::pairs(e, f, SIDES, &mut findings) {
        if e.shape != f.shape {
            let what = format!("expected shape {:?}, found {:?}", e.shape, f.shape);
            findings.different(name, what);
        }
    }
    let tensors = expected.ternary.len() + expected.dense.len();
    findings.into_result(
        "structure",
        format!("{}, {tensors} tensors", expected.family),
    )
}

fn metadata(expected: &Certificate, found: &Certificate, report: &mut Report) -> CheckResult {
    let mut findings = Findings::default();
    let configs = (&expected.config, &found.config);
    compare_wiring("metadata", configs, &mut findings, report);
    let text = claims::compare_text(&expected.text, &found.text, &mut findings);
    findings.into_result("metadata", format!("wiring, {text}"))
}

/// One comparison of all linears that both have; those that only one has are the business of `structure`.
fn linears(
    name: &'static str,
    differ: fn(&TensorDigest, &TensorDigest) -> Option<String>,
    expected: &Certificate,
    found: &Certificate,
) -> CheckResult {
    let mut findings = Findings::default();
    let (e, f) = (linears_of(expected), linears_of(found));
    let pairs = claims::pairs(e, f, SIDES, &mut Findings::default());
    for (tensor, e, f) in &pairs {
        if let Some(what) = differ(e, f) {
            findings.different(*tensor, what);
        }
    }
    findings.into_result(name, format!("hashes of {} linears", pairs.len()))
}

fn dense(expected: &Certificate, found: &Certificate) -> CheckResult {
    let mut findings = Findings::default();
    let (e, f) = (dense_of(expected), dense_of(found));
    let pairs = claims::pairs(e, f, SIDES, &mut Findings::default());
    for (name, e, f) in &pairs {
        findings.expect(name, &e.values_sha256, &f.values_sha256);
    }
    findings.into_result("dense", format!("hashes of {} tensors", pairs.len()))
}

fn digest(expected: &Certificate, found: &Certificate) -> CheckResult {
    let mut findings = Findings::default();
    let (e, f) = (&expected.ternary_sha256, &found.ternary_sha256);
    findings.expect("ternary_sha256", e, f);
    for (certificate, side) in [expected, found].into_iter().zip(SIDES) {
        for (place, what) in certificate.contradictions() {
            findings.different(format!("{place} ({side})"), what);
        }
    }
    findings.into_result("digest", format!("ternary_sha256 {f}"))
}

/// A note: which files each speaks of.
fn files(expected: &Certificate, found: &Certificate) -> CheckResult {
    let hashes = |files: &[FileRecord]| -> Vec<(u64, String)> {
        let mut all: Vec<_> = files.iter().map(|f| (f.bytes, f.sha256.clone())).collect();
        all.sort_unstable();
        all
    };
    if hashes(&expected.output) == hashes(&found.output) {
        let detail = format!("the same bytes in {} output files", expected.output.len());
        return CheckResult {
            name: "files",
            status: Status::Same,
            detail,
            differences: Vec::new(),
            code: None,
        };
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
    CheckResult::skipped(
        "files",
        format!(
            "other bytes, as another container or tool writes them, {source}; {} against {}",
            list(found),
            list(expected)
        ),
    )
}

/// What has to be asked differently when the artifact is a certificate.
pub(crate) fn refuse(what: &str) -> FormatError {
    FormatError::new(
        ErrorCode::Usage,
        format!("ARTIFACT is a certificate: there is no model to {what}"),
    )
}
