//! Who signed the certificate and the files.
//!
//! Invariant: `same` means that a trusted key signed a statement that names the certificate and every file of the artifact
//! with the sha256 that they have now.

use super::check::{Check, Running, Signed, Subject};
use super::report::Report;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::{SignedStatement, signature_path};
use bitnet_formats::{FormatError, hex, open_source};
use sha2::{Digest, Sha256};
use std::path::{Component, Path};

pub(super) const CHECK: Check = Check {
    name: "signature",
    what: "the signed statement beside the certificate: signed by a trusted key, about these files; with --trusted-keys",
    start: |subject| {
        let signed = subject.signed.as_ref()?;
        Some(Box::new(Signature(signed.clone())))
    },
};

/// Bytes that are hashed at a time.
const PIECE: u64 = 4 << 20;

struct Signature(Signed);

impl Running for Signature {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let artifact = subject.artifact.model();
        let files = artifact.map(|artifact| artifact.checkpoint.file.parts.iter());
        let files: Vec<&Path> = files
            .into_iter()
            .flatten()
            .map(|part| part.path())
            .collect();
        let verdict = self.verdict(&files);
        let verdict = verdict.unwrap_or_else(|e| Verdict::error(CHECK.name, &e));
        report.checks.push(verdict);
    }
}

impl Signature {
    /// `weights` are the files of the artifact's weights; without any, the artifact is a certificate.
    fn verdict(&self, weights: &[&Path]) -> Result<Verdict, FormatError> {
        let statement = SignedStatement::beside(&self.0.certificate)?;
        let mut findings = Findings::default();
        let signer = statement.signer(&self.0.keys);
        if signer.is_none() {
            let path = signature_path(&self.0.certificate);
            let what = format!(
                "expected the signature of a trusted key over this statement, found a signature by {}, which is not \
                 trusted or signed something else",
                statement.fingerprint()
            );
            findings.different(path.display().to_string(), what);
            return Ok(findings.into_verdict(CHECK.name, String::new()));
        }
        let name_of = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let certificate = name_of(&self.0.certificate);
        let names = || statement.subjects().iter().map(|(name, _)| name);
        for name in weights
            .iter()
            .map(|path| name_of(path))
            .chain([certificate.clone()])
        {
            if !names().any(|listed| *listed == name) {
                findings.different(
                    name,
                    "expected a file that the statement names, found another",
                );
            }
        }
        let directory = weights.first().and_then(|path| path.parent());
        let mut compared = 0usize;
        for (name, expected) in statement.subjects() {
            let path = match (*name == certificate, directory) {
                (true, _) => self.0.certificate.clone(),
                (false, Some(directory)) if is_below(name) => directory.join(name),
                (false, Some(_)) => {
                    findings.different(name, "expected the name of a file beside the weights");
                    continue;
                }
                // of the model there is only its certificate
                (false, None) => continue,
            };
            if !path.exists() {
                findings.different(name, "expected a file, found none");
                continue;
            }
            findings.expect(name, expected, &sha256_of(&path)?);
            compared += 1;
        }
        let by = signer.unwrap_or_default();
        Ok(findings.into_verdict(CHECK.name, format!("signed by {by}: {compared} files")))
    }
}

/// Whether a name leads to a file of a directory, or of one below it.
fn is_below(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Of a file of this disk, or of a remote one that is read in ranges.
fn sha256_of(path: &Path) -> Result<String, FormatError> {
    let source = open_source(path)?;
    let (mut hash, mut at) = (Sha256::new(), 0);
    while at < source.len() {
        let end = source.len().min(at.saturating_add(PIECE));
        hash.update(&source.read(at..end)?);
        source.release(0..end);
        at = end;
    }
    source.intact()?;
    Ok(hex(&hash.finalize()))
}
