//! The two things that a check compares: each is a model, or what a certificate says of one.
//!
//! Invariant: both kinds answer the same questions, by the same names, so no check asks which kind it has unless it
//! compares more than a certificate can hold: every value in place of a hash, every file in place of its meaning.

use crate::verdict::Difference;
use bitnet_checkpoint::{
    Certificate, Checkpoint, Config, OpenOptions, Slot, TensorDigest, TextDigest, dense_sha256_of,
};
use bitnet_formats::FormatError;
use std::collections::BTreeMap;
use std::path::Path;

/// An open model.
#[derive(Debug)]
pub struct Input {
    /// The open files, for everything that is checked.
    pub checkpoint: Checkpoint,
}

impl Input {
    /// Opens a model.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn open(path: &Path, options: OpenOptions) -> Result<Self, FormatError> {
        let checkpoint = Checkpoint::open(path, &options)?;
        Ok(Self { checkpoint })
    }
}

/// One of the two things that are compared.
#[derive(Debug, Clone, Copy)]
pub enum Side<'a> {
    /// A model.
    Model(&'a Input),
    /// What was written about one.
    Certificate(&'a Certificate),
}

/// Shape and hash of the values of a dense tensor.
pub(super) struct DenseDigest {
    pub(super) shape: Vec<usize>,
    pub(super) sha256: String,
}

impl<'a> Side<'a> {
    /// The model, if this is one.
    pub fn model(self) -> Option<&'a Input> {
        match self {
            Self::Model(input) => Some(input),
            Self::Certificate(_) => None,
        }
    }

    /// The certificate, if this is one.
    pub fn certificate(self) -> Option<&'a Certificate> {
        match self {
            Self::Certificate(certificate) => Some(certificate),
            Self::Model(_) => None,
        }
    }

    pub(super) fn config(self) -> &'a Config {
        match self {
            Self::Model(input) => &input.checkpoint.config,
            Self::Certificate(certificate) => &certificate.config,
        }
    }

    pub(super) fn family(self) -> &'a str {
        match self {
            Self::Model(input) => input.checkpoint.family.name,
            Self::Certificate(certificate) => &certificate.family,
        }
    }

    /// Name and shape of every tensor.
    pub(super) fn shapes(self) -> Vec<(String, Vec<usize>)> {
        match self {
            Self::Model(Input { checkpoint, .. }) => {
                let slots = checkpoint.slots().into_iter();
                let named = |slot: Slot| (slot.to_string(), checkpoint.config.shape(slot));
                slots.map(named).collect()
            }
            Self::Certificate(certificate) => {
                let linears = certificate.ternary.iter().map(|record| &record.digest);
                let linears = linears.map(|d| (d.name.clone(), vec![d.rows, d.cols]));
                let dense = certificate.dense.iter();
                let dense = dense.map(|record| (record.name.clone(), record.shape.clone()));
                linears.chain(dense).collect()
            }
        }
    }

    /// What hashes say of each linear; of a model every one is read.
    pub(super) fn linears(self) -> Vec<(String, Result<TensorDigest, FormatError>)> {
        match self {
            Self::Model(Input { checkpoint, .. }) => {
                let mut slots = checkpoint.slots_in_file_order();
                slots.retain(|slot| checkpoint.is_ternary(*slot));
                let digest = |slot: Slot| {
                    let name = slot.to_string();
                    let matrix = checkpoint.ternary(slot);
                    let digest = matrix.map(|matrix| {
                        TensorDigest::of(&name, &matrix).in_place(&checkpoint.config, slot)
                    });
                    (name, digest)
                };
                slots.into_iter().map(digest).collect()
            }
            Self::Certificate(certificate) => {
                let digests = certificate.ternary.iter().map(|record| &record.digest);
                digests.map(|d| (d.name.clone(), Ok(d.clone()))).collect()
            }
        }
    }

    /// What hashes say of each dense tensor; of a model every one is read.
    pub(super) fn dense(self) -> Vec<(String, Result<DenseDigest, FormatError>)> {
        match self {
            Self::Model(Input { checkpoint, .. }) => {
                let mut slots = checkpoint.slots();
                slots.retain(|slot| !checkpoint.is_ternary(*slot));
                let digest = |slot| {
                    let reader = checkpoint.dense_reader(slot)?;
                    let sha256 = dense_sha256_of(&reader)?;
                    let shape = reader.tensor().shape.to_vec();
                    Ok(DenseDigest { shape, sha256 })
                };
                let named = |slot: Slot| (slot.to_string(), digest(slot));
                slots.into_iter().map(named).collect()
            }
            Self::Certificate(certificate) => {
                let records = certificate.dense.iter();
                let records = records.map(|record| {
                    let (shape, sha256) = (record.shape.clone(), record.values_sha256.clone());
                    (record.name.clone(), Ok(DenseDigest { shape, sha256 }))
                });
                records.collect()
            }
        }
    }

    /// What hashes say of the tokenizer and the chat template.
    pub(super) fn text(self) -> TextDigest {
        match self {
            Self::Model(input) => TextDigest::of_checkpoint(&input.checkpoint),
            Self::Certificate(certificate) => certificate.text.clone(),
        }
    }
}

/// What the sides are called in a report.
fn names(expected: Side<'_>, found: Side<'_>) -> [&'static str; 2] {
    let expected = match expected {
        Side::Model(_) => "the source",
        Side::Certificate(_) => "the certificate",
    };
    let found = match found {
        Side::Model(_) => "the artifact",
        Side::Certificate(_) => "the artifact's certificate",
    };
    [expected, found]
}

/// What two sides say, by name.
pub(super) struct Paired<T> {
    /// What both speak of.
    pub(super) both: Vec<(String, T, T)>,
    /// What one of them lacks.
    pub(super) alone: Vec<Difference>,
}

/// Pairs what two sides say.
pub(super) fn pairs<'a, T>(
    (expected, found): (Side<'a>, Side<'a>),
    said: impl Fn(Side<'a>) -> Vec<(String, T)>,
) -> Paired<T> {
    pair_lists((expected, found), said(expected), said(found))
}

/// Pairs two lists, each of what a side says.
pub(super) fn pair_lists<T>(
    sides: (Side<'_>, Side<'_>),
    expected: Vec<(String, T)>,
    found: Vec<(String, T)>,
) -> Paired<T> {
    let [of_expected, of_found] = names(sides.0, sides.1);
    let order: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    let mut rest: BTreeMap<String, T> = found.into_iter().collect();
    let (mut both, mut alone) = (Vec::new(), Vec::new());
    for (name, expected) in expected {
        match rest.remove(&name) {
            Some(found) => both.push((name, expected, found)),
            None => {
                let what = format!("in {of_expected}, not in {of_found}");
                alone.push(Difference::new(name, what));
            }
        }
    }
    for name in order {
        if rest.remove(&name).is_some() {
            let what = format!("in {of_found}, not in {of_expected}");
            alone.push(Difference::new(name, what));
        }
    }
    Paired { both, alone }
}
