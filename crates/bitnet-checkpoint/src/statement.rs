//! Signed statements: who made an output, from what, with what.
//!
//! Invariant: a signature covers the bytes of a statement, and the statement names every file of the output and the
//! certificate by sha256. So a signature is worth nothing for any other file, and keys never appear in what is written.
//!
//! Sources: the in-toto Attestation Framework, "Statement" v1 (`_type`, `subject`, `predicateType`, `predicate`); SLSA
//! "Provenance" v1; OpenSSH `PROTOCOL.sshsig` for the signature, which `ssh-keygen -Y verify` reads.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

use crate::certificate::{Certificate, FileRecord};
use bitnet_formats::{ErrorCode, FormatError, read_file};
use serde_json::{Value, json};
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The namespace of the signatures: one made for another purpose with the same key does not count.
pub const SIGNATURE_NAMESPACE: &str = "bitnet-conversion";

/// The type of a statement (in-toto Attestation Framework).
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// The type of what a statement says (SLSA Provenance v1).
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";

/// Most bytes of a key, of a list of keys, of a signature.
const KEY_BYTES: u64 = 1 << 20;

/// Most bytes of a statement.
const STATEMENT_BYTES: u64 = 16 << 20;

/// Most keys of a list.
const MOST_KEYS: usize = 4096;

/// Where the statement of an output is: `OUT.certificate.json` gives `OUT.certificate.intoto.json`.
pub fn statement_path(certificate: &Path) -> PathBuf {
    certificate.with_extension("intoto.json")
}

/// Where its signature is: the name of the statement and `.sig`.
pub fn signature_path(certificate: &Path) -> PathBuf {
    let mut name: OsString = statement_path(certificate).into_os_string();
    name.push(".sig");
    name.into()
}

/// The statement of a conversion, as text.
///
/// `certificate` is the file of the certificate: its name and sha256 are subjects like those of the output.
///
/// # Errors
/// `malformed` if a part is not JSON.
pub fn statement(certificate: &Certificate, file: &FileRecord) -> Result<Vec<u8>, FormatError> {
    let subject = |file: &FileRecord| json!({"name": file.name, "digest": {"sha256": file.sha256}});
    let material = |file: &FileRecord| {
        let name = match &certificate.origin {
            Some(origin) => format!("{}/{}", origin.location, file.name),
            None => file.name.clone(),
        };
        json!({"name": name, "digest": {"sha256": file.sha256}})
    };
    let commit = certificate.origin.as_ref().and_then(|o| o.commit.as_ref());
    let subjects = certificate.output.iter().chain([file]).map(subject);
    let materials: Vec<Value> = certificate.source.iter().map(material).collect();
    let value = json!({
        "_type": STATEMENT_TYPE,
        "subject": subjects.collect::<Vec<_>>(),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": "bitnet-convert",
                "externalParameters": {"to": certificate.target, "commit": commit},
                "internalParameters": {
                    "family": certificate.family,
                    "lossless": certificate.lossless,
                    "ternary_sha256": certificate.ternary_sha256,
                },
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": certificate.tool}},
        },
    });
    Ok(crate::pretty_json(&value))
}

/// A key that signs.
pub struct SigningKey(PrivateKey);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.fingerprint())
    }
}

impl SigningKey {
    /// Reads an OpenSSH private key, as `ssh-keygen -t ed25519` makes them.
    ///
    /// # Errors
    /// `io`; `usage` for a key of another kind, and for one that a password protects.
    pub fn read(path: &Path) -> Result<Self, FormatError> {
        let refuse = |message: &str, hint: &str| {
            let error = FormatError::new(ErrorCode::Usage, message).in_file(path);
            Err(error.hint(hint))
        };
        const MAKE: &str =
            "make a key with `ssh-keygen -t ed25519 -f KEY`, and give KEY, not KEY.pub";
        let bytes = read_file(path, KEY_BYTES)?;
        let Ok(key) = PrivateKey::from_openssh(&bytes) else {
            return refuse("expected an OpenSSH private key of the kind ed25519", MAKE);
        };
        if key.algorithm() != ssh_key::Algorithm::Ed25519 {
            return refuse("expected an OpenSSH private key of the kind ed25519", MAKE);
        }
        if key.is_encrypted() {
            return refuse(
                "the key is protected by a password",
                "make a key for signing without one: `ssh-keygen -t ed25519 -N '' -f KEY`",
            );
        }
        Ok(Self(key))
    }

    /// What names the key: `SHA256:` and base64, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The signature of a statement, as a file.
    ///
    /// # Errors
    /// `usage` if the key cannot sign.
    pub fn sign(&self, statement: &[u8]) -> Result<Vec<u8>, FormatError> {
        let failed =
            |e: ssh_key::Error| FormatError::new(ErrorCode::Usage, format!("cannot sign: {e}"));
        let signature = self
            .0
            .sign(SIGNATURE_NAMESPACE, HashAlg::Sha512, statement)
            .map_err(failed)?;
        Ok(signature
            .to_pem(LineEnding::LF)
            .map_err(failed)?
            .into_bytes())
    }
}

/// Keys whose signatures count.
#[derive(Debug, Clone)]
pub struct TrustedKeys(Vec<(String, PublicKey)>);

impl TrustedKeys {
    /// Reads public keys, one in each line: `ssh-ed25519 AAAA... COMMENT` as in a `.pub` file, or
    /// `NAME ssh-ed25519 AAAA...` as in the file that `ssh-keygen -Y verify` calls allowed signers.
    ///
    /// # Errors
    /// `io`; `malformed` for a line that is neither, and for options of allowed signers, which this program does not know.
    pub fn read(path: &Path) -> Result<Self, FormatError> {
        let bytes = read_file(path, KEY_BYTES)?;
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().map(str::trim).zip(1..);
        let lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        let mut keys = Vec::new();
        for (line, number) in lines {
            let key = Self::line(line).map_err(|message| {
                let error =
                    FormatError::new(ErrorCode::Malformed, format!("line {number}: {message}"));
                error.in_file(path).hint(
                    "give one public key per line: ssh-ed25519 AAAA... or NAME ssh-ed25519 AAAA...",
                )
            })?;
            keys.push(key);
            if keys.len() > MOST_KEYS {
                let message = format!("more than {MOST_KEYS} keys");
                return Err(FormatError::new(ErrorCode::LimitExceeded, message).in_file(path));
            }
        }
        match keys.is_empty() {
            true => Err(FormatError::new(ErrorCode::Malformed, "no public key").in_file(path)),
            false => Ok(Self(keys)),
        }
    }

    fn line(line: &str) -> Result<(String, PublicKey), String> {
        const KIND: &str = "ssh-ed25519";
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, key, comment) = match words.as_slice() {
            [KIND, key, comment @ ..] => (None, *key, comment),
            [name, KIND, key, comment @ ..] => (Some(*name), *key, comment),
            [_, option, ..] if line.contains(KIND) => {
                return Err(format!("expected a key behind the name, found `{option}`"));
            }
            _ => return Err("expected an ed25519 public key".to_owned()),
        };
        let parsed = PublicKey::from_openssh(&format!("{KIND} {key}"));
        let parsed = parsed.map_err(|e| format!("not an ed25519 public key: {e}"))?;
        let fingerprint = || parsed.fingerprint(HashAlg::Sha256).to_string();
        let comment = comment.join(" ");
        let name = match (name, comment.is_empty()) {
            (Some(name), _) => name.to_owned(),
            (None, false) => comment,
            (None, true) => fingerprint(),
        };
        Ok((name, parsed))
    }

    /// The name of the key that signed a statement; `None` if the signature is of none of these keys, or of other bytes.
    fn signer(&self, statement: &[u8], signature: &SshSig) -> Option<&str> {
        let signed = self.0.iter().find(|(_, key)| {
            key.verify(SIGNATURE_NAMESPACE, statement, signature)
                .is_ok()
        });
        signed.map(|(name, _)| name.as_str())
    }
}

/// A statement and its signature, as they lie beside a certificate.
#[derive(Debug, Clone)]
pub struct SignedStatement {
    bytes: Vec<u8>,
    signature: SshSig,
    subjects: Vec<(String, String)>,
}

impl SignedStatement {
    /// Reads what lies beside a certificate.
    ///
    /// # Errors
    /// `io` if a file is absent; `malformed` if the statement is no in-toto statement, or the signature no SSH signature.
    pub fn beside(certificate: &Path) -> Result<Self, FormatError> {
        let hint = "sign with `bitnet-convert SRC -o OUT --sign KEY`";
        let path = statement_path(certificate);
        let bytes = read_file(&path, STATEMENT_BYTES).map_err(|e| e.hint(hint))?;
        let malformed =
            |what: String, path: &Path| FormatError::new(ErrorCode::Malformed, what).in_file(path);
        let value = bitnet_formats::parse_json_value(&bytes).map_err(|e| e.in_file(&path))?;
        for (key, expected) in [("_type", STATEMENT_TYPE), ("predicateType", PREDICATE_TYPE)] {
            let found = value.get(key).and_then(Value::as_str).unwrap_or("nothing");
            if found != expected {
                let what = format!("{key}: expected {expected}, found {found}");
                return Err(malformed(what, &path));
            }
        }
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let subject = |value: &Value| {
            Some((
                text(value.get("name"))?,
                text(value.pointer("/digest/sha256"))?,
            ))
        };
        let listed = value.get("subject").and_then(Value::as_array);
        let subjects = listed.and_then(|list| list.iter().map(subject).collect::<Option<Vec<_>>>());
        let Some(subjects) = subjects else {
            return Err(malformed(
                "subject: expected files with name and sha256".to_owned(),
                &path,
            ));
        };
        let path = signature_path(certificate);
        let pem = read_file(&path, KEY_BYTES).map_err(|e| e.hint(hint))?;
        let signature = SshSig::from_pem(&pem)
            .map_err(|e| malformed(format!("expected an SSH signature: {e}"), &path))?;
        Ok(Self {
            bytes,
            signature,
            subjects,
        })
    }

    /// The name of the trusted key that signed it, if any did.
    pub fn signer<'k>(&self, keys: &'k TrustedKeys) -> Option<&'k str> {
        keys.signer(&self.bytes, &self.signature)
    }

    /// What names the key of the signature, trusted or not.
    pub fn fingerprint(&self) -> String {
        let key = PublicKey::from(self.signature.public_key().clone());
        key.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Names and sha256 of the files that the statement is about.
    pub fn subjects(&self) -> &[(String, String)] {
        &self.subjects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_keys_are_read_or_refused() {
        let key = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
        let (name, _) = TrustedKeys::line(&format!("ssh-ed25519 {key} me@host and more")).unwrap();
        assert_eq!(name, "me@host and more");
        let (name, _) = TrustedKeys::line(&format!("release ssh-ed25519 {key}")).unwrap();
        assert_eq!(name, "release");
        let (name, _) = TrustedKeys::line(&format!("ssh-ed25519 {key}")).unwrap();
        assert!(name.starts_with("SHA256:"), "{name}");
        let options = format!("release namespaces=\"git\" ssh-ed25519 {key}");
        let error = TrustedKeys::line(&options).unwrap_err();
        assert_eq!(
            error,
            "expected a key behind the name, found `namespaces=\"git\"`"
        );
        for line in ["ssh-rsa AAAA", "ssh-ed25519", "ssh-ed25519 AAAA", "x"] {
            assert!(TrustedKeys::line(line).is_err(), "{line}");
        }
    }
}
