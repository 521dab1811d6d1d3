//! What a certificate says twice, and whether it says the same: damage that needs no model to be found.
//!
//! Invariant: nothing is taken on trust that can be computed from the rest of the certificate.

use super::{Certificate, Verdict, ternary_sha256};
use bitnet_formats::hex;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The key of a certificate's hash over the rest of it.
pub(super) const SEAL: &str = "certificate_sha256";

/// Whether a certificate is as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seal {
    /// It does not say: it is of a version that had no hash over the certificate.
    Absent,
    /// Its hash over itself holds.
    Whole,
    /// It does not hold.
    Broken {
        /// What the certificate says.
        said: String,
        /// What it hashes to.
        found: String,
    },
}

/// An entry of a certificate: its key and the RFC 8785 form of its value.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) key: String,
    pub(super) form: Vec<u8>,
}

/// Appends the RFC 8785 form of a value.
pub(super) fn canonical(value: &Value, form: &mut Vec<u8>) -> Result<(), FormatError> {
    serde_json_canonicalizer::to_writer(value, form)
        .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()).because(e))
}

/// The hash over a certificate: of the RFC 8785 form of the object without the hash itself, from its entries in
/// any order.
pub(super) fn seal_of_pieces(mut pieces: Vec<Piece>) -> Result<String, FormatError> {
    // the order of RFC 8785
    pieces.sort_by(|a, b| a.key.encode_utf16().cmp(b.key.encode_utf16()));
    let mut hash = Sha256::new();
    hash.update(b"{");
    for (i, Piece { key, form }) in pieces.into_iter().enumerate() {
        let mut head = if i > 0 { vec![b','] } else { Vec::new() };
        canonical(&Value::from(key), &mut head)?;
        head.push(b':');
        hash.update(&head);
        hash.update(&form);
    }
    hash.update(b"}");
    Ok(hex(&hash.finalize()))
}

/// As [`seal_of_pieces`], of a whole object.
pub(super) fn seal_of(certificate: &Value) -> Result<String, FormatError> {
    let entries = certificate.as_object().into_iter().flatten();
    let piece = |(key, value): (&String, &Value)| {
        let (key, mut form) = (key.clone(), Vec::new());
        canonical(value, &mut form)?;
        Ok(Piece { key, form })
    };
    let rest = entries.filter(|(key, _)| *key != SEAL);
    seal_of_pieces(rest.map(piece).collect::<Result<_, FormatError>>()?)
}

impl Certificate {
    /// Every place where the certificate contradicts itself, and how; none in one that is whole.
    pub fn contradictions(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut expect = |place: &str, expected: &str, found: &str| {
            if expected != found {
                let what = format!("the rest of the certificate says {expected}, found {found}");
                all.push((place.to_owned(), what));
            }
        };
        if let Seal::Broken { said, found } = &self.seal {
            expect(SEAL, found, said);
        }
        let mut digests = BTreeMap::new();
        for record in &self.ternary {
            let digest = &record.digest;
            digests.insert(digest.name.as_str(), digest);
            if let Some(bits) = digest.scale_bits {
                let expected = hex(&Sha256::digest(bits.to_le_bytes()));
                let place = format!("{} scales.sha256", digest.name);
                expect(&place, &expected, &digest.scales_sha256);
            }
        }
        let found = ternary_sha256(digests.into_values());
        expect("ternary_sha256", &found, &self.ternary_sha256);
        let is_exact = |verdict: &Verdict| *verdict == Verdict::Exact;
        let exact_scales = self.ternary.iter().all(|t| is_exact(&t.verdict));
        if exact_scales {
            expect(
                "source_ternary_sha256",
                &self.ternary_sha256,
                &self.source_ternary_sha256,
            );
        }
        let lossless = exact_scales && self.dense.iter().all(|d| is_exact(&d.verdict));
        expect(
            "lossless",
            &lossless.to_string(),
            &self.lossless.to_string(),
        );
        all
    }
}
