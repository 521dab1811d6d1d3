//! An output that an earlier `finish` of the same plan made.
//!
//! Invariant: an output counts as finished only if its certificate is, to the byte, the one that this plan gives for the
//! hashes that stand there, and every file begins with the planned header and has its hash. Nothing is written.

use super::place::Place;
use crate::certificate::{self, Digests};
use crate::pipeline::QuantizedMasters;
use crate::plan::{Action, Item, Loss, Plan};
use crate::publish::{self, Published};
use crate::source_hash::sha256_hex;
use crate::targets::Kind;
use bitnet_checkpoint::{
    Certificate, Checkpoint, FileRecord, SigningKey, TernaryRecord, Verdict, signature_path,
    statement, statement_path,
};
use bitnet_cli::Progress;
use bitnet_formats::{FileDigest, FormatError, Limits, OlderFile, file_digest};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What `finish` is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a Plan,
    /// The path of the output, or one that stands for it.
    pub output: &'a Path,
    pub place: &'a Place,
    pub key: Option<&'a SigningKey>,
    pub threads: usize,
}

/// The output, if all of it is there and whole.
///
/// # Errors
/// Those of reading; what the store refuses.
pub fn find(asked: Asked<'_>, progress: &Progress) -> Result<Option<Published>, FormatError> {
    let Asked {
        checkpoint,
        plan,
        output,
        place,
        ..
    } = asked;
    let path = publish::certificate_path(output, plan.target.kind);
    let Some(text) = place.read(&path, Limits::default().certificate_bytes)? else {
        return Ok(None);
    };
    let Ok(certificate) = Certificate::from_slice(&text) else {
        return Ok(None);
    };
    let written = place.modified(&path);
    let Some(sources) = sources(checkpoint, &certificate, written)? else {
        return Ok(None);
    };
    let Some(outputs) = outputs(plan, output, &certificate) else {
        return Ok(None);
    };
    let expected = expected(checkpoint, plan, &certificate, &sources, &outputs)?;
    if bitnet_checkpoint::pretty_json(&expected.to_json()?) != text {
        return Ok(None);
    }
    if plan.target.kind == Kind::Gguf && place.is_on_disk() {
        // a file or parts of the same model's name are a second model
        let planned: Vec<PathBuf> = plan.files.iter().map(|file| file.path.clone()).collect();
        if !OlderFile::of_gguf(output, &planned, &path)?.is_empty() {
            return Ok(None);
        }
    }
    let signed = match asked.key {
        None => None,
        Some(key) => match signed(asked, key, &expected, &path, &text)? {
            None => return Ok(None),
            found => found,
        },
    };
    for file in &plan.files {
        if !place.begins_with(&file.path, &file.header.bytes)? {
            return Ok(None);
        }
    }
    if !place.are_whole(&outputs, asked.threads, progress)? {
        return Ok(None);
    }
    checkpoint.check_inputs()?;
    Ok(Some(Published {
        sources,
        outputs,
        certificate: path,
        signed,
        losses: losses(plan, &certificate),
        masters: QuantizedMasters {
            tensors: plan.quantized_masters(checkpoint),
            ..QuantizedMasters::default()
        },
        ternary_sha256: certificate.ternary_sha256,
        source_ternary_sha256: certificate.source_ternary_sha256,
        is_older: true,
    }))
}

/// The files of the source. The hashes of weights are those of the certificate: `plan_sha256` tells remote sources and
/// commits apart, and a file of this disk is read unless it is older than the certificate. `None` for another number of
/// files.
fn sources(
    checkpoint: &Checkpoint,
    certificate: &Certificate,
    written: Option<SystemTime>,
) -> Result<Option<Vec<FileDigest>>, FormatError> {
    let parts = &checkpoint.file.parts;
    if certificate.source.len() < parts.len() {
        return Ok(None);
    }
    let mut found = Vec::with_capacity(certificate.source.len());
    for (part, record) in parts.iter().zip(&certificate.source) {
        let path = part.path();
        let changed = || std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let is_known = bitnet_formats::origin_of(path).is_some()
            || written.is_some_and(|written| changed().is_some_and(|at| at < written));
        found.push(match is_known {
            true => FileDigest {
                path: path.to_owned(),
                bytes: part.len(),
                sha256: record.sha256.clone(),
            },
            false => file_digest(path)?,
        });
    }
    found.extend(certificate::side_digests(checkpoint)?);
    Ok(Some(found))
}

/// The files that the plan writes, weights with the hashes of the certificate. `None` for another number of files.
fn outputs(plan: &Plan, output: &Path, certificate: &Certificate) -> Option<Vec<FileDigest>> {
    let (weights, beside) = (plan.files.len(), plan.side_files.len());
    if certificate.output.len() != weights + beside {
        return None;
    }
    let records = certificate.output.iter();
    let weights = plan
        .files
        .iter()
        .zip(records)
        .map(|(file, record)| FileDigest {
            path: file.path.clone(),
            bytes: file.header.total,
            sha256: record.sha256.clone(),
        });
    let beside = plan.side_files.iter().map(|(name, bytes)| FileDigest {
        path: output.join(name),
        bytes: bytes.len() as u64,
        sha256: sha256_hex(bytes),
    });
    Some(weights.chain(beside).collect())
}

/// The certificate that `finish` writes for the digests of tensors that stand in this one.
fn expected(
    checkpoint: &Checkpoint,
    plan: &Plan,
    certificate: &Certificate,
    sources: &[FileDigest],
    outputs: &[FileDigest],
) -> Result<Certificate, FormatError> {
    let mut digests = Digests::default();
    for TernaryRecord { digest, verdict } in &certificate.ternary {
        if let Verdict::Rounded(error) = verdict {
            digests.rounded.insert(digest.name.clone(), *error);
        }
        digests.output.insert(digest.clone());
    }
    digests.source = digests.output.clone();
    for record in &certificate.dense {
        digests.dense.insert(record.name.clone(), record.clone());
    }
    let text = certificate::text(plan)?;
    let lossless = certificate.lossless;
    let mut expected =
        certificate::build(checkpoint, plan, sources, outputs, &digests, text, lossless);
    if !digests.rounded.is_empty() {
        // a certificate does not list the scales that the source has
        expected.source_ternary_sha256 = certificate.source_ternary_sha256.clone();
    }
    Ok(expected)
}

/// The signed statement of the output, if this key made it.
fn signed(
    asked: Asked<'_>,
    key: &SigningKey,
    object: &Certificate,
    certificate: &Path,
    text: &[u8],
) -> Result<Option<[PathBuf; 2]>, FormatError> {
    let record = FileRecord {
        name: certificate::name_below(asked.output, certificate),
        bytes: text.len() as u64,
        sha256: sha256_hex(text),
    };
    let statement = statement(object, &record)?;
    let signature = key.sign(&statement)?;
    let paths = [statement_path(certificate), signature_path(certificate)];
    for (path, expected) in paths.iter().zip([&statement, &signature]) {
        let found = asked.place.read(path, expected.len() as u64)?;
        if found.as_ref() != Some(expected) {
            return Ok(None);
        }
    }
    Ok(Some(paths))
}

/// What was rounded, in the order of the plan. A certificate has relative errors only.
fn losses(plan: &Plan, certificate: &Certificate) -> Vec<Loss> {
    let mut rounded: BTreeMap<&str, (&'static str, f64)> = BTreeMap::new();
    for TernaryRecord { digest, verdict } in &certificate.ternary {
        if let Verdict::Rounded(error) = verdict {
            rounded.insert(&digest.name, ("scale-rounding", *error));
        }
    }
    for record in &certificate.dense {
        if let Verdict::Rounded(error) = record.verdict {
            rounded.insert(&record.name, ("dense-rounding", error));
        }
    }
    let known = plan
        .losses
        .iter()
        .filter(|loss| loss.max_relative.is_some());
    let mut losses: Vec<Loss> = known.cloned().collect();
    let slot_of = |item: &Item| item.slot.map(|slot| slot.to_string());
    for item in &plan.items {
        if losses.iter().any(|loss| loss.tensor == item.tensor.name)
            && let Some(slot) = slot_of(item)
        {
            rounded.remove(slot.as_str());
        }
    }
    for item in &plan.items {
        let Some(slot) = slot_of(item) else {
            continue;
        };
        // the scales of a linear may have a tensor of their own, which has its slot
        let has_trits = matches!(
            item.action,
            Action::Pack(_) | Action::Dequantise(_) | Action::CopyPacked(_) | Action::CopyMaster
        );
        let is_of_item = |kind: &str| has_trits || kind == "dense-rounding";
        if rounded
            .get(slot.as_str())
            .is_some_and(|(kind, _)| is_of_item(kind))
            && let Some((kind, error)) = rounded.remove(slot.as_str())
        {
            losses.push(Loss {
                tensor: item.tensor.name.clone(),
                kind,
                max_relative: Some(error),
                max_absolute: None,
            });
        }
    }
    losses
}
