//! Whether the model is the one a certificate speaks of, by the hashes of `formats/certificate.md`.
//!
//! Invariant: the hashes depend on the network alone, so any lossless container of the certified
//! model passes; whole files are compared only where the certificate names a file of the artifact.

use super::check::{Check, Pair, Running, Subject};
use super::metadata::{compare_text, compare_wiring};
use super::report::Report;
use super::side::{Input, Paired, Side, pair_lists};
use super::structure::compare_sizes;
use super::trits::rotated;
use super::unlike::Unlike;
use super::{dense, scales, trits};
use crate::diagnose::fault::{Fault, FaultName};
use crate::diagnose::naming::{of_digest, of_scales};
use crate::share::{ShareRecord, identity, lines};
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::{
    Certificate, Certified, Checkpoint, FileRecord, Slot, TensorDigest, TernaryHasher, TextDigest,
    trit_sha256,
};
use bitnet_formats::{FormatError, Sha256Stream, Source};
use bitnet_ternary::TernaryMatrix;
use std::path::Path;
use std::sync::Arc;

pub(super) const CHECK: Check = Check {
    name: "digest",
    what: "ternary_sha256 of both, and all that a certificate says",
    start: |subject| {
        let asked = subject.certificate.is_some() || subject.source.is_some();
        asked.then(|| Box::<Digests>::default() as Box<dyn Running>)
    },
};

#[derive(Default)]
struct Digests {
    artifact: TernaryHasher,
    source: TernaryHasher,
    findings: Findings,
    faults: Vec<Fault>,
    incomplete: bool,
}

impl Running for Digests {
    fn wants_ternary(&self) -> bool {
        true
    }

    fn ternary(&mut self, pair: &Pair<'_>, subject: &Subject<'_>) {
        let name = pair.slot.to_string();
        let add = |hasher: &mut TernaryHasher, matrix: &TernaryMatrix, side: Side<'_>| {
            hasher.insert(TensorDigest::of(&name, matrix).in_place(side.config(), pair.slot));
        };
        let (artifact, source) = (&mut self.artifact, &mut self.source);
        rayon::join(
            || {
                if let Ok(matrix) = pair.artifact {
                    add(artifact, matrix, subject.artifact);
                }
            },
            || {
                if let (Some(Ok(matrix)), Some(side)) = (pair.source, subject.source) {
                    add(source, matrix, side);
                }
            },
        );
        if let (Some(certificate), Ok(matrix)) = (subject.certificate, pair.artifact) {
            self.name(certificate, matrix, pair.slot, subject);
        }
        match (pair.artifact, pair.source) {
            (Ok(_), None | Some(Ok(_))) => return,
            // without a source there is no check of trits that would say why
            (Err(error), None) if subject.source.is_none() => self.findings.unreadable(name, error),
            _ => self.findings.not_compared(name),
        }
        self.incomplete = true;
    }

    fn finish(mut self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        if let Some((expected, found)) = subject.certificates() {
            report.checks.push(of_certificates(expected, found));
            return;
        }
        std::mem::take(&mut self.faults)
            .into_iter()
            .for_each(|fault| report.fault(fault));
        if let (Some(share), Some((source, artifact))) = (subject.share, subject.models()) {
            let identities = identity(artifact).and_then(|one| Ok([one, identity(source)?]));
            let models = match identities {
                Ok(models) => models,
                Err(error) => {
                    report.checks.push(Verdict::error(CHECK.name, &error));
                    return;
                }
            };
            let slots = artifact.slots().into_iter();
            let record = ShareRecord {
                share,
                linears: slots.filter(|slot| artifact.is_ternary(*slot)).count(),
                models,
                lines: [lines(&self.artifact), lines(&self.source)],
            };
            let compared = format!("{} of {} linears", record.lines[0].len(), record.linears);
            report.share = Some(record);
            report
                .checks
                .push(self.findings.into_verdict(CHECK.name, compared));
            return;
        }
        let found = self.artifact.finish();
        if subject.source.is_some() && !self.incomplete {
            self.findings
                .expect("ternary_sha256 (source)", &self.source.finish(), &found);
        }
        let mut compared = format!("ternary_sha256 {found}");
        let mut rows = vec![("ternary_sha256".to_owned(), found.clone())];
        if let (Some(certificate), Some(artifact)) = (subject.certificate, subject.artifact.model())
        {
            if !self.incomplete {
                let place = "ternary_sha256 (certificate)";
                let expected = &certificate.ternary_sha256;
                self.findings.expect(place, expected, &found);
            }
            let (text, listed) = self.certificate(certificate, artifact, subject, report);
            compared.push_str(&text);
            rows.extend(listed);
        }
        let verdict = self.findings.into_verdict(CHECK.name, compared);
        report.checks.push(verdict.with_rows(rows));
    }
}

/// What two certificates say of the whole, and whether each agrees with itself.
fn of_certificates(expected: &Certificate, found: &Certificate) -> Verdict {
    let mut findings = Findings::default();
    let (e, f) = (&expected.ternary_sha256, &found.ternary_sha256);
    findings.expect("ternary_sha256", e, f);
    let sides = ["the certificate", "the artifact's certificate"];
    for (certificate, side) in [expected, found].into_iter().zip(sides) {
        for (place, what) in certificate.contradictions() {
            findings.different(format!("{place} ({side})"), what);
        }
    }
    findings.into_verdict(CHECK.name, format!("ternary_sha256 {f}"))
}

impl Digests {
    /// Names what happened to a linear that is not the certified one.
    fn name(
        &mut self,
        certificate: &Certificate,
        matrix: &TernaryMatrix,
        slot: Slot,
        subject: &Subject<'_>,
    ) {
        let name = slot.to_string();
        let mut records = certificate.ternary.iter().map(|record| &record.digest);
        let expected = records.find(|expected| expected.name == name);
        let found = self.artifact.tensors().find(|found| found.name == name);
        let (Some(expected), Some(found)) = (expected, found) else {
            return;
        };
        if (expected.rows, expected.cols) != (found.rows, found.cols) {
            return;
        }
        let named = if expected.trits_sha256 != found.trits_sha256 {
            let is_right = |m: &TernaryMatrix| trit_sha256(m) == expected.trits_sha256;
            let changed = || {
                (
                    FaultName::ChangedTrits,
                    "expected trits of another hash".to_owned(),
                )
            };
            let named = of_digest(matrix, rotated(slot, subject), is_right);
            Some(named.unwrap_or_else(changed))
        } else if expected.scales_sha256 != found.scales_sha256 {
            let bits = expected.scale_bits.zip(found.scale_bits);
            let pair = bits.map(|(e, f)| (f32::from_bits(e), f32::from_bits(f)));
            let changed = || {
                (
                    FaultName::ChangedScale,
                    "expected scales of another hash".to_owned(),
                )
            };
            Some(of_scales(pair.into_iter()).unwrap_or_else(changed))
        } else {
            None
        };
        let fault = named.map(|(kind, what)| Fault::at(kind, CHECK.name, slot, what));
        self.faults.extend(fault);
    }

    /// Holds both models against a certificate; says what was compared, in a line and in rows.
    fn certificate(
        &mut self,
        certificate: &Certificate,
        artifact: &Input,
        subject: &Subject<'_>,
        report: &mut Report,
    ) -> (String, Vec<(String, String)>) {
        for (place, what) in certificate.contradictions() {
            self.findings.different(place, what);
        }
        let checkpoint = &artifact.checkpoint;
        let sides = (Side::Certificate(certificate), subject.artifact);
        compare_sizes(sides, &mut self.findings, &mut report.unlike);
        compare_wiring(CHECK.name, sides, &mut self.findings, report);
        self.linears(sides, &mut report.unlike);
        let (_, alone) = dense::by_hash(sides, &mut self.findings, &mut report.unlike);
        self.findings.extend(alone);
        let text = self.text(certificate, checkpoint);
        let files = self.files(&certificate.output, checkpoint);
        let mut compared = format!(
            "; certificate of {}: {} linears, {} dense tensors, {text}, {files} of {} files",
            certificate.tool,
            certificate.ternary.len(),
            certificate.dense.len(),
            certificate.output.len()
        );
        let named = |name: &str, value: String| (name.to_owned(), value);
        let mut rows = vec![
            named("certificate of", certificate.tool.clone()),
            named("target", certificate.target.clone()),
            named("linears", certificate.ternary.len().to_string()),
            named("dense tensors", certificate.dense.len().to_string()),
            named("text", text),
            named(
                "files of the artifact",
                format!("{files} of {}", certificate.output.len()),
            ),
        ];
        if let Some(source) = subject.source.and_then(Side::model) {
            let expected = &certificate.source_ternary_sha256;
            if !self.incomplete {
                let found = self.source.finish();
                let place = "source_ternary_sha256 (certificate)";
                self.findings.expect(place, expected, &found);
            }
            let files = self.files(&certificate.source, &source.checkpoint);
            let all = certificate.source.len();
            compared.push_str(&format!(", {files} of {all} source files"));
            rows.push(named("files of the source", format!("{files} of {all}")));
        }
        (compared, rows)
    }

    /// Linears by the hashes that the pass over them has made.
    fn linears(&mut self, sides: (Side<'_>, Side<'_>), unlike: &mut Unlike) {
        let found = self.artifact.tensors().cloned();
        let found = found.map(|digest| (digest.name.clone(), Ok(digest)));
        let Paired { both, alone } = pair_lists(sides, sides.0.linears(), found.collect());
        // what could not be read is reported already
        if !self.incomplete {
            self.findings.extend(alone);
        }
        for (name, expected, found) in both {
            let (Ok(expected), Ok(found)) = (expected, found) else {
                continue;
            };
            let differences = [
                trits::differ_by_hash(&expected, &found),
                scales::differ_by_hash(&expected, &found),
            ];
            unlike.linear(usize::from(differences[0].is_some()), 1);
            for what in differences.into_iter().flatten() {
                self.findings.different(&name, what);
            }
        }
    }

    /// Tokenizer and chat template, and whether the keys of a GGUF file that other readers use say the same.
    fn text(&mut self, certificate: &Certificate, checkpoint: &Checkpoint) -> String {
        if certificate.text.tokenizer == Certified::Unsaid {
            return "tokenizer not certified".to_owned();
        }
        let found = TextDigest::of_checkpoint(checkpoint);
        let compared = compare_text(&certificate.text, &found, &mut self.findings);
        if let Certified::Said(Some(digest)) = &found.tokenizer {
            match checkpoint.contradicting_tokenizer_keys(digest) {
                Err(error) => self.findings.unreadable("tokenizer.ggml", &error),
                Ok(contradictions) => {
                    for (key, expected, found) in contradictions {
                        self.findings.expect(key, expected, found);
                    }
                }
            }
        }
        compared
    }

    /// Compares whole files where a model has one of the names in a certificate; how many.
    fn files(&mut self, records: &[FileRecord], checkpoint: &Checkpoint) -> usize {
        let mut compared = 0;
        for expected in records {
            // a certificate is input too: a name with directories in it names nothing here
            if Path::new(&expected.name)
                .file_name()
                .is_none_or(|name| name.to_str() != Some(&expected.name))
            {
                continue;
            }
            let is_named = |part: &&Arc<dyn Source>| {
                part.path()
                    .file_name()
                    .is_some_and(|name| name.to_str() == Some(&expected.name))
            };
            let digest = match checkpoint.file.parts.iter().find(is_named) {
                Some(part) => part
                    .read(0..part.len())
                    .and_then(|bytes| hash(part.path(), &bytes)),
                None => match checkpoint.side_file(&expected.name) {
                    Ok(Some(bytes)) => hash(Path::new(&expected.name), &bytes),
                    Ok(None) => continue,
                    Err(error) => Err(error),
                },
            };
            compared += 1;
            match digest {
                Ok((bytes, sha256)) => {
                    let found = format!("{bytes} bytes of sha256 {sha256}");
                    let expected_text =
                        format!("{} bytes of sha256 {}", expected.bytes, expected.sha256);
                    self.findings.expect(&expected.name, expected_text, found);
                }
                Err(error) => self.findings.unreadable(&expected.name, &error),
            }
        }
        compared
    }
}

fn hash(path: &Path, bytes: &[u8]) -> Result<(u64, String), FormatError> {
    let mut sha256 = Sha256Stream::new();
    sha256.update(bytes);
    Ok((
        bytes.len() as u64,
        sha256.finish().map_err(|e| FormatError::io(path, &e))?,
    ))
}
