//! Whether the model is the one a certificate speaks of, by the hashes of `formats/certificate.md`.
//!
//! Invariant: the hashes depend on the network alone, so any lossless container of the certified
//! model passes; whole files are compared only where the certificate names a file of the artifact.

use super::metadata::compare_wiring;
use super::trits::rotated;
use super::{Check, Pair, Running, Subject};
use crate::checks::claims;
use crate::checks::unlike::Unlike;
use crate::diagnose::fault::{Fault, Kind, of_digest, of_scales};
use crate::report::{Findings, Report};
use bitnet_checkpoint::{
    Certificate, Certified, Checkpoint, FileRecord, Slot, TernaryHasher, TextDigest, dense_sha256,
    trit_sha256,
};
use bitnet_formats::{FormatError, Mapped, Sha256Stream};
use bitnet_ternary::TernaryMatrix;
use std::path::Path;

/// What the sides are called in a report.
const SIDES: [&str; 2] = ["the certificate", "the artifact"];

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
        let (artifact, source) = (&mut self.artifact, &mut self.source);
        rayon::join(
            || {
                pair.artifact
                    .as_ref()
                    .ok()
                    .map(|matrix| artifact.add(&name, matrix))
            },
            || {
                pair.source
                    .and_then(|s| s.as_ref().ok())
                    .map(|matrix| source.add(&name, matrix))
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
        std::mem::take(&mut self.faults)
            .into_iter()
            .for_each(|fault| report.fault(fault));
        let found = self.artifact.finish();
        if subject.source.is_some() && !self.incomplete {
            self.findings
                .expect("ternary_sha256 (source)", &self.source.finish(), &found);
        }
        let mut compared = format!("ternary_sha256 {found}");
        if let Some(certificate) = subject.certificate {
            if !self.incomplete {
                let place = "ternary_sha256 (certificate)";
                let expected = &certificate.ternary_sha256;
                self.findings.expect(place, expected, &found);
            }
            compared.push_str(&self.certificate(certificate, subject, report));
        }
        report
            .checks
            .push(self.findings.into_result(CHECK.name, compared));
    }
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
                    Kind::ChangedTrits,
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
                    Kind::ChangedScale,
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

    /// Holds both models against a certificate; says what was compared.
    fn certificate(
        &mut self,
        certificate: &Certificate,
        subject: &Subject<'_>,
        report: &mut Report,
    ) -> String {
        for (place, what) in certificate.contradictions() {
            self.findings.different(place, what);
        }
        let checkpoint = &subject.artifact.checkpoint;
        let configs = (&certificate.config, &checkpoint.config);
        claims::compare_sizes(configs.0, configs.1, &mut self.findings);
        claims::note_sizes(configs.0, configs.1, &mut report.unlike);
        compare_wiring(CHECK.name, configs, &mut self.findings, report);
        self.linears(certificate, &mut report.unlike);
        self.dense(certificate, checkpoint, &mut report.unlike);
        let text = self.text(certificate, checkpoint);
        let files = self.files(&certificate.output, checkpoint);
        let mut compared = format!(
            "; certificate of {}: {} linears, {} dense tensors, {text}, {files} of {} files",
            certificate.tool,
            certificate.ternary.len(),
            certificate.dense.len(),
            certificate.output.len()
        );
        if let Some(source) = subject.source {
            let expected = &certificate.source_ternary_sha256;
            if !self.incomplete {
                let found = self.source.finish();
                let place = "source_ternary_sha256 (certificate)";
                self.findings.expect(place, expected, &found);
            }
            let files = self.files(&certificate.source, &source.checkpoint);
            let all = certificate.source.len();
            compared.push_str(&format!(", {files} of {all} source files"));
        }
        compared
    }

    fn linears(&mut self, certificate: &Certificate, unlike: &mut Unlike) {
        let expected = certificate.ternary.iter().map(|record| &record.digest);
        let (expected, found) = (
            claims::named(expected),
            claims::named(self.artifact.tensors()),
        );
        let mut unpaired = Findings::default();
        let findings = match self.incomplete {
            // what could not be read is reported already
            true => &mut unpaired,
            false => &mut self.findings,
        };
        let pairs = claims::pairs(expected, found, SIDES, findings);
        for (name, expected, found) in pairs {
            let differences = [
                claims::trits(expected, found),
                claims::scales(expected, found),
            ];
            unlike.linear(usize::from(differences[0].is_some()), 1);
            for what in differences.into_iter().flatten() {
                self.findings.different(name, what);
            }
        }
    }

    fn dense(&mut self, certificate: &Certificate, checkpoint: &Checkpoint, unlike: &mut Unlike) {
        let mut slots = checkpoint.slots();
        slots.retain(|slot| !checkpoint.is_ternary(*slot));
        let found: Vec<_> = slots.iter().map(|slot| (slot.to_string(), *slot)).collect();
        let expected = certificate.dense.iter();
        let expected = expected.map(|record| (record.name.as_str(), Err(record)));
        let found = found.iter().map(|(name, slot)| (name.as_str(), Ok(*slot)));
        for pair in claims::pairs(expected, found, SIDES, &mut self.findings) {
            let (name, Err(expected), Ok(slot)) = pair else {
                continue;
            };
            match checkpoint
                .dense(slot)
                .and_then(|tensor| Ok((tensor.shape, dense_sha256(&tensor)?)))
            {
                Err(error) => self.findings.unreadable(name, &error),
                Ok((shape, _)) if shape != expected.shape => {
                    let what = format!("expected shape {:?}, found {shape:?}", expected.shape);
                    self.findings.different(name, what);
                }
                Ok((_, found)) => {
                    unlike.dense(usize::from(expected.values_sha256 != found), 1);
                    self.findings.expect(name, &expected.values_sha256, &found);
                }
            }
        }
    }

    /// Tokenizer and chat template, and whether the keys of a GGUF file that other readers use say the same.
    fn text(&mut self, certificate: &Certificate, checkpoint: &Checkpoint) -> String {
        if certificate.text.tokenizer == Certified::Unsaid {
            return "tokenizer not certified".to_owned();
        }
        let found = TextDigest::of_checkpoint(checkpoint);
        let compared = claims::compare_text(&certificate.text, &found, &mut self.findings);
        if let (Certified::Said(Some(digest)), true) = (&found.tokenizer, checkpoint.is_gguf()) {
            match digest.contradicted_by_gguf_keys(&checkpoint.file.metadata) {
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
            let is_named = |part: &&Mapped| {
                part.path()
                    .file_name()
                    .is_some_and(|name| name.to_str() == Some(&expected.name))
            };
            let digest = match checkpoint.file.parts.iter().find(is_named) {
                Some(part) => hash(part.path(), part.bytes()),
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
