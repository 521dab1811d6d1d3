//! What one job of a conversion adds to the certificate of the whole.
//!
//! Invariant: the records of all jobs of a plan together are those that one machine would have made. The lines of
//! `ternary_sha256` are sorted by name, so the order of the jobs does not matter.

use super::json::{
    Field, dense_from_json, dense_to_json, file_from_json, file_to_json, ternary_from_json,
    ternary_to_json,
};
use super::{DenseRecord, FileRecord, TernaryRecord};
use bitnet_formats::FormatError;
use serde_json::{Value, json};

/// The version of a partial certificate's layout.
pub const PARTIAL_CERTIFICATE_VERSION: u64 = 2;

/// A file of the source that a job read from its first to its last byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashedFile {
    /// Its number among the files with tensors of the source.
    pub number: usize,
    /// Its name, length and hash.
    pub file: FileRecord,
}

/// What a job did: the content of `job-I.json` (`formats/certificate.md`).
#[derive(Debug, Clone, PartialEq)]
pub struct PartialCertificate {
    /// The plan that the job belongs to.
    pub plan_sha256: String,
    /// The number of the job, from 0.
    pub job: usize,
    /// Files of the source that this job hashed.
    pub source: Vec<HashedFile>,
    /// When the files with tensors of the source were last changed, in their order: seconds since 1970 with nine decimals.
    /// `None` of a file that is not on this machine's disks, or is one commit of a repository.
    pub source_modified: Vec<Option<String>>,
    /// The file that it wrote, under the name that it has in the output.
    pub output: FileRecord,
    /// Its ternary tensors.
    pub ternary: Vec<TernaryRecord>,
    /// Its ternary tensors as the source has them, if scales were rounded.
    pub source_ternary: Vec<TernaryRecord>,
    /// Its dense tensors.
    pub dense: Vec<DenseRecord>,
    /// What the output does not hold exactly, as reports say it.
    pub losses: Vec<Value>,
    /// Master weights that became ternary: how many tensors, the sum of the squares of what the rule changed, and of the
    /// weights.
    pub masters: (usize, f64, f64),
}

impl PartialCertificate {
    /// The JSON of the file.
    pub fn to_json(&self) -> Value {
        let source = self.source.iter().map(|hashed| {
            let mut object = file_to_json(&hashed.file);
            super::set(&mut object, "number", hashed.number.into());
            object
        });
        let ternary =
            |records: &[TernaryRecord]| -> Value { records.iter().map(ternary_to_json).collect() };
        let (tensors, change, total) = self.masters;
        json!({
            "partial_certificate": PARTIAL_CERTIFICATE_VERSION,
            "plan_sha256": self.plan_sha256,
            "job": self.job,
            "source": source.collect::<Value>(),
            "source_modified": self.source_modified,
            "output": file_to_json(&self.output),
            "ternary": ternary(&self.ternary),
            "source_ternary": ternary(&self.source_ternary),
            "dense": self.dense.iter().map(dense_to_json).collect::<Value>(),
            "losses": self.losses,
            "masters": {"tensors": tensors, "change": change, "total": total},
        })
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// `malformed`, naming the key.
    pub fn from_json(value: &Value) -> Result<Self, FormatError> {
        let root = Field::root(value);
        let version = root.at("partial_certificate")?;
        if version.number()? != PARTIAL_CERTIFICATE_VERSION {
            return Err(version.bad(&PARTIAL_CERTIFICATE_VERSION.to_string()));
        }
        let masters = root.at("masters")?;
        Ok(Self {
            plan_sha256: root.at("plan_sha256")?.digest()?,
            job: root.at("job")?.size()?,
            source: root.at("source")?.each(|file| {
                Ok(HashedFile {
                    number: file.at("number")?.size()?,
                    file: file_from_json(file)?,
                })
            })?,
            source_modified: root.at("source_modified")?.each(|time| {
                Ok(match time.value {
                    Value::Null => None,
                    _ => Some(time.text()?),
                })
            })?,
            output: file_from_json(&root.at("output")?)?,
            ternary: root.at("ternary")?.each(ternary_from_json)?,
            source_ternary: root.at("source_ternary")?.each(ternary_from_json)?,
            dense: root.at("dense")?.each(dense_from_json)?,
            losses: root.at("losses")?.each(|loss| Ok(loss.value.clone()))?,
            masters: (
                masters.at("tensors")?.size()?,
                masters.at("change")?.float()?,
                masters.at("total")?.float()?,
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::{TensorDigest, Verdict};
    use bitnet_ternary::{Scales, TernaryMatrix};

    fn partial() -> PartialCertificate {
        let matrix = TernaryMatrix::new(1, 4, vec![1, 0, -1, 1], Scales::PerTensor(0.5)).unwrap();
        let digest = TensorDigest::of("model.layers.0.mlp.up_proj.weight", &matrix);
        let record = |verdict| TernaryRecord {
            digest: digest.clone(),
            verdict,
        };
        let file = |name: &str| FileRecord {
            name: name.to_owned(),
            bytes: 7,
            sha256: "ab".repeat(32),
        };
        PartialCertificate {
            plan_sha256: "01".repeat(32),
            job: 3,
            source: vec![HashedFile {
                number: 2,
                file: file("model-00003-of-00005.safetensors"),
            }],
            source_modified: vec![None, Some("1700000000.123456789".to_owned())],
            output: file("m-00004-of-00009.gguf"),
            ternary: vec![record(Verdict::Rounded(0.25))],
            source_ternary: vec![record(Verdict::Exact)],
            dense: vec![DenseRecord {
                name: "model.norm.weight".to_owned(),
                shape: vec![4],
                values_sha256: "cd".repeat(32),
                verdict: Verdict::Exact,
            }],
            losses: vec![json!({"tensor": "a", "kind": "scale-rounding"})],
            masters: (2, 0.1, 1e-300),
        }
    }

    #[test]
    fn comes_back_as_it_was() {
        let text = partial().to_json().to_string();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(PartialCertificate::from_json(&value).unwrap(), partial());
    }

    #[test]
    fn what_is_missing_or_of_another_form_is_named() {
        let whole = partial().to_json();
        let keys: Vec<String> = whole.as_object().unwrap().keys().cloned().collect();
        for key in keys {
            for other in [Value::Null, json!("x"), json!({}), json!(-1)] {
                let mut broken = whole.clone();
                broken[&key] = other;
                let error = PartialCertificate::from_json(&broken).unwrap_err();
                assert!(error.tensor.unwrap().starts_with(&key));
            }
        }
    }
}
