//! What a certificate says twice, and whether it says the same: damage that needs no model to be found.
//!
//! Invariant: nothing is taken on trust that can be computed from the rest of the certificate.

use super::{Certificate, TernaryHasher, Verdict, hex};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;
use sha2::{Digest, Sha256};

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

/// The hash over a certificate: of the RFC 8785 form of the object without the hash itself.
pub(super) fn seal_of(certificate: &Value) -> Result<String, FormatError> {
    let mut rest = certificate.clone();
    if let Some(keys) = rest.as_object_mut() {
        keys.shift_remove(SEAL);
    }
    let bytes = serde_json_canonicalizer::to_vec(&rest)
        .map_err(|e| FormatError::new(ErrorCode::Malformed, e.to_string()))?;
    Ok(hex(&Sha256::digest(&bytes)))
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
        let mut hasher = TernaryHasher::default();
        for record in &self.ternary {
            let digest = &record.digest;
            hasher.insert(digest.clone());
            if let Some(bits) = digest.scale_bits {
                let expected = hex(&Sha256::digest(bits.to_le_bytes()));
                let place = format!("{} scales.sha256", digest.name);
                expect(&place, &expected, &digest.scales_sha256);
            }
        }
        expect("ternary_sha256", &hasher.finish(), &self.ternary_sha256);
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
