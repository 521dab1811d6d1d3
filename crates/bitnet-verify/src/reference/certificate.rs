//! Certificates on disk.
//!
//! Invariant: a file is a certificate if it is a JSON object with the key `certificate`; a file that is named like
//! one and is cut off is refused as a certificate, not as a model.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitnet_checkpoint::Certificate;
use bitnet_formats::{ErrorCode, FormatError, Limits, open_regular, read_file};
use std::io::Read;
use std::path::Path;

/// Reads a certificate.
///
/// # Errors
/// Not a certificate, another version, or a key of this version is missing.
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
        // also one that its name alone says to be one
        Ok(says) if says || is_named_certificate(path) => Certificate::from_slice(&text)
            .map(Some)
            .map_err(|e| e.in_file(path)),
        // tensors may begin like an object; a certificate that is cut off is still one
        Err(error) if is_named_certificate(path) => {
            let message = format!("expected JSON: {error}");
            Err(FormatError::new(ErrorCode::Malformed, message)
                .in_file(path)
                .because(error))
        }
        Ok(_) | Err(_) => Ok(None),
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
    const HEAD: u64 = 64;
    let mut head = Vec::new();
    let opened = open_regular(path).ok();
    if let Some((file, _)) = opened.filter(|(_, metadata)| metadata.len() <= most) {
        // what cannot be read is no object
        let _ = file.take(HEAD).read_to_end(&mut head);
    }
    head.trim_ascii_start().first() == Some(&b'{')
}
