//! The certificate of an output, and the signed statement about it, after a writer was killed.
//!
//! Invariant: a statement belongs to the certificate whose sha256 it names. A signature does not say what it signs: of two,
//! the older one is that of the older output, which was there before the writer that was killed began.

use super::owned::is_signed_by_us;
use super::{Target, dead_files, file_digest};
use crate::input::read_file;
use crate::limits::Limits;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn with_ending(output: &OsStr, ending: &str) -> OsString {
    let mut name = output.to_owned();
    name.push(ending);
    name
}

pub(super) fn certificate_name(output: &OsStr) -> OsString {
    with_ending(output, ".certificate.json")
}

pub(super) fn statement_name(output: &OsStr) -> OsString {
    with_ending(output, ".certificate.intoto.json")
}

pub(super) fn signature_name(output: &OsStr) -> OsString {
    with_ending(output, ".certificate.intoto.json.sig")
}

/// The sha256 of a certificate, if it is there.
pub(super) fn sha256_of(certificate: &Path) -> Option<String> {
    file_digest(certificate).ok().map(|found| found.sha256)
}

/// Whether a file is a statement about the certificate with this sha256.
fn is_about(statement: &Path, certificate: Option<&str>) -> bool {
    let bytes = read_file(statement, Limits::default().certificate_bytes).unwrap_or_default();
    certificate.is_some_and(|sha256| {
        bytes
            .windows(sha256.len())
            .any(|part| part == sha256.as_bytes())
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// The statement, its signature, and what killed writers left of each.
struct Signed {
    statement: PathBuf,
    signature: PathBuf,
    statements: Vec<PathBuf>,
    signatures: Vec<PathBuf>,
}

impl Signed {
    fn of(target: &Target) -> Self {
        let names = [statement_name(&target.name), signature_name(&target.name)];
        let [statement, signature] = names.each_ref().map(|name| target.parent.join(name));
        let [statements, signatures] = names
            .each_ref()
            .map(|name| dead_files(&target.parent, name));
        Self {
            statement,
            signature,
            statements,
            signatures,
        }
    }
}

/// Puts the statement about the certificate `kept` back, which took the place of the certificate `gone`.
pub(super) fn restore_statement(target: &Target, kept: Option<&str>, gone: Option<&str>) {
    let signed = Signed::of(target);
    let mut is_back = is_about(&signed.statement, kept);
    if !is_back && let Some(older) = signed.statements.iter().find(|path| is_about(path, kept)) {
        is_back = fs::rename(older, &signed.statement).is_ok();
    }
    if is_back {
        let oldest = signed
            .signatures
            .iter()
            .filter_map(|path| Some((modified(path)?, path)))
            .min();
        if let Some((time, older)) = oldest
            && modified(&signed.signature).is_none_or(|there| time < there)
        {
            let _ = fs::rename(older, &signed.signature);
        }
        return;
    }
    // the older output was not signed: what the killed writer signed goes
    let statements = signed.statements.iter().chain([&signed.statement]);
    if statements.into_iter().any(|path| is_about(path, gone)) {
        if !signed.statement.exists() || is_about(&signed.statement, gone) {
            let _ = fs::remove_file(&signed.signature);
        }
        if is_about(&signed.statement, gone) {
            let _ = fs::remove_file(&signed.statement);
        }
    }
}

/// Removes the statement about a certificate that is gone.
pub(super) fn remove_statement(target: &Target, gone: Option<&str>) {
    let signed = Signed::of(target);
    if is_about(&signed.statement, gone) && is_signed_by_us(&signed.statement) {
        // the signature first: without the statement nobody knows whose it is
        if is_signed_by_us(&signed.signature) {
            let _ = fs::remove_file(&signed.signature);
        }
        let _ = fs::remove_file(&signed.statement);
    }
}
