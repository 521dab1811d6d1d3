//! Whether the model is the one that the certificate beside it speaks of.
//!
//! Invariant: a file alone does not show that a weight was changed; what is said here rests on the hashes of a certificate.

use super::finding::{Examination, Finding, Patient};
use crate::reference::certificate;
use bitnet_checkpoint::OpenOptions;
use bitnet_formats::FormatError;
use std::path::{Path, PathBuf};

/// The code of a certificate that the model fits; taken out again by [`take_status`], since nothing is wrong.
const CHECKED: &str = "certificate-checked";
/// The code of one that it does not fit.
const MISMATCH: &str = "certificate-mismatch";

/// What comparing the model with its certificate came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateStatus {
    Same,
    Different,
    NotChecked,
}

impl CertificateStatus {
    /// As reports spell it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Same => "same",
            Self::Different => "different",
            Self::NotChecked => "not-checked",
        }
    }
}

/// How the comparison ended, by what it left among the findings.
pub(super) fn take_status(findings: &mut Vec<Finding>) -> CertificateStatus {
    let has = |code: &str| findings.iter().any(|f| f.code == code);
    let status = match (has(MISMATCH), has(CHECKED)) {
        (true, _) => CertificateStatus::Different,
        (false, true) => CertificateStatus::Same,
        (false, false) => CertificateStatus::NotChecked,
    };
    findings.retain(|f| f.code != CHECKED);
    status
}

/// Differences that are findings of their own; the last of them counts the rest.
const SHOWN: usize = 8;

pub(super) const EXAMINATION: Examination = Examination {
    name: "certificate",
    what: "settings, trits, scales and dense values against the certificate beside the model",
    examine: |patient, findings| {
        let beside = || beside(patient.path);
        let Some(path) = patient.certificate.map(Path::to_owned).or_else(beside) else {
            return;
        };
        if let Err(error) = compare(patient, &path, findings) {
            findings.push(Finding::unreadable(path.display().to_string(), &error));
        }
    },
};

/// Where `bitnet-convert` leaves the certificate of this model, if one is there.
pub(super) fn beside(model: &Path) -> Option<PathBuf> {
    let mut places = Vec::new();
    if model.is_dir() {
        places.push(model.join("certificate.json"));
    } else {
        let with_end = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".certificate.json");
            PathBuf::from(name)
        };
        places.push(with_end(model));
        places.extend(whole(model).as_deref().map(with_end));
        let extension = model.extension();
        if extension.is_some_and(|e| e == "safetensors" || e == "json") {
            places.push(model.with_file_name("certificate.json"));
        }
    }
    places.into_iter().find(|path| path.is_file())
}

/// `model.gguf` of `model-00001-of-00003.gguf`.
fn whole(part: &Path) -> Option<PathBuf> {
    let stem = part.file_stem()?.to_str()?;
    let (rest, _) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let is_number = number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| part.with_file_name(format!("{name}.gguf")))
}

fn compare(
    patient: &Patient<'_>,
    path: &Path,
    findings: &mut Vec<Finding>,
) -> Result<(), FormatError> {
    let certificate = certificate::read(path)?;
    let Some(checkpoint) = patient.checkpoint else {
        return Ok(()); // why it cannot be opened is said already
    };
    let options = OpenOptions {
        layout: checkpoint.layout.as_ref().map(|l| l.packing.to_owned()),
        ternary_trained: true,
        ..OpenOptions::default()
    };
    let compared = (patient.compare)(patient.path, options, &certificate)?;
    let name = path.display().to_string();
    let remedy = "get the file again, or convert again from the source; if the change was meant, write a new certificate";
    if let Some(reason) = compared.other_model {
        let what = format!("the certificate speaks of another model: {reason}");
        findings.push(Finding::error(MISMATCH, name, what, remedy));
        return Ok(());
    }
    let all = compared.differences;
    for difference in all.iter().take(SHOWN) {
        findings.push(Finding::error(
            MISMATCH,
            &difference.place,
            format!("{} (against {name})", difference.what),
            remedy,
        ));
    }
    if let Some(more) = all.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        let what = format!("{more} more differences from the certificate");
        let remedy = "list them with bitnet-verify MODEL --certificate FILE --json";
        findings.push(Finding::error(MISMATCH, &name, what, remedy));
    }
    if all.is_empty() {
        let what = "settings, trits, scales and dense values are those of the certificate";
        findings.push(Finding::note(CHECKED, name, what, "nothing"));
    }
    Ok(())
}
