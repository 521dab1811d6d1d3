//! Whether the model is the one a certificate speaks of, by the hashes of `formats/certificate.md`.
//!
//! Invariant: the hashes depend on the network alone, so any lossless container of the certified
//! model passes; whole files are compared only where the certificate names a file of the artifact.

use super::metadata::compare_wiring;
use super::structure::sizes;
use super::trits::rotated;
use super::{Check, Pair, Running, Subject};
use crate::faults::{Fault, Kind, of_digest, of_scales};
use crate::report::{Findings, Report};
use bitnet_formats::{FormatError, Mapped, Sha256Stream};
use bitnet_model::{Certificate, Slot, TernaryHasher, dense_sha256, trit_sha256};
use bitnet_ternary::TernaryMatrix;
use std::path::Path;

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
                self.findings.expect(
                    "ternary_sha256 (certificate)",
                    &certificate.ternary_sha256,
                    &found,
                );
            }
            self.wiring(certificate, subject, report);
            self.linears(certificate);
            self.dense(certificate, subject);
            let files = self.files(certificate, subject);
            let (linears, dense) = (certificate.ternary.len(), certificate.dense.len());
            compared.push_str(&format!(
                "; certificate of {}: {linears} linears, {dense} dense tensors, {files} of {} files",
                certificate.tool,
                certificate.output.len()
            ));
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

    fn wiring(&mut self, certificate: &Certificate, subject: &Subject<'_>, report: &mut Report) {
        let (expected, found) = (&certificate.config, &subject.artifact.checkpoint.config);
        for ((key, expected), (_, found)) in sizes(expected).into_iter().zip(sizes(found)) {
            self.findings.expect(key, expected, found);
        }
        compare_wiring(CHECK.name, (expected, found), &mut self.findings, report);
    }

    fn linears(&mut self, certificate: &Certificate) {
        for expected in certificate.ternary.iter().map(|record| &record.digest) {
            let name = &expected.name;
            let Some(found) = self.artifact.tensors().find(|found| found.name == *name) else {
                if !self.incomplete {
                    self.findings
                        .different(name, "in the certificate, not in the artifact");
                }
                continue;
            };
            if (expected.rows, expected.cols) != (found.rows, found.cols) {
                let (e, f) = ((expected.rows, expected.cols), (found.rows, found.cols));
                self.findings
                    .different(name, format!("expected shape {e:?}, found {f:?}"));
            } else if expected.trits_sha256 != found.trits_sha256 {
                let text = format!(
                    "expected trits of sha256 {}, found {}",
                    expected.trits_sha256, found.trits_sha256
                );
                self.findings.different(name, text);
            }
            let scales = |d: &bitnet_model::TensorDigest| match d.scale_bits {
                Some(bits) => format!("one scale {:e} (0x{bits:08x})", f32::from_bits(bits)),
                None => format!(
                    "scales per {} of sha256 {}",
                    d.scale_structure, d.scales_sha256
                ),
            };
            if (&expected.scale_structure, &expected.scales_sha256)
                != (&found.scale_structure, &found.scales_sha256)
            {
                self.findings.different(
                    name,
                    format!("expected {}, found {}", scales(expected), scales(found)),
                );
            }
        }
    }

    fn dense(&mut self, certificate: &Certificate, subject: &Subject<'_>) {
        let checkpoint = &subject.artifact.checkpoint;
        for slot in checkpoint
            .slots()
            .into_iter()
            .filter(|slot| !checkpoint.is_ternary(*slot))
        {
            let name = slot.to_string();
            let Some(expected) = certificate.dense.iter().find(|record| record.name == name) else {
                self.findings.different(name, "not in the certificate");
                continue;
            };
            match checkpoint
                .dense(slot)
                .and_then(|tensor| Ok((tensor.shape, dense_sha256(&tensor)?)))
            {
                Err(error) => self.findings.unreadable(name, &error),
                Ok((shape, _)) if shape != expected.shape => {
                    self.findings.different(
                        name,
                        format!("expected shape {:?}, found {shape:?}", expected.shape),
                    );
                }
                Ok((_, found)) => self.findings.expect(&name, &expected.values_sha256, &found),
            }
        }
    }

    /// Compares whole files where the artifact has one of the certificate's names; how many.
    fn files(&mut self, certificate: &Certificate, subject: &Subject<'_>) -> usize {
        let checkpoint = &subject.artifact.checkpoint;
        let mut compared = 0;
        for expected in &certificate.output {
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
