//! What two files must agree on to be the same model, and the record that a conversion leaves.
//!
//! Invariant: a digest depends on the network alone, never on container, packing, row order, padding
//! or thread count. `formats/certificate.md` defines every byte.

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod consistency;
mod json;
mod partial;
mod stream;
mod text;

pub use self::consistency::Seal;
pub use self::partial::{HashedFile, PARTIAL_CERTIFICATE_VERSION, PartialCertificate};
pub use self::text::{Certified, TextDigest};

use self::consistency::{SEAL, seal_of, seal_of_pieces};
use self::json::{
    Field, config_from_json, config_to_json, dense_from_json, dense_to_json, file_from_json,
    file_to_json, ternary_from_json, ternary_to_json,
};
use crate::checkpoint::{DenseReader, DenseTensor};
use crate::config::Config;
use crate::slot::Slot;
use bitnet_formats::{Encoding, ErrorCode, FormatError, hex};
use bitnet_ternary::{Scales, TernaryMatrix, encode_quads};
use rayon::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The version of the certificate's layout.
pub const CERTIFICATE_VERSION: u64 = 1;

/// Values per block of a dense tensor's digest; part of the format.
const DENSE_BLOCK: usize = 1 << 20;

/// Digest of one ternary matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDigest {
    /// Canonical name, the `Display` of its slot.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Of the packed codes, lower-case hex.
    pub trits_sha256: String,
    /// `tensor`, `row` or `group-N`: the structure of the scales in normal form.
    pub scale_structure: String,
    /// Bits of the scale when there is one for the whole matrix.
    pub scale_bits: Option<u32>,
    /// Of the scales in normal form, f32 little-endian, lower-case hex.
    pub scales_sha256: String,
    /// The basis of the columns, if they are rotated.
    pub basis: Option<Basis>,
}

/// The basis of the columns of a rotated matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// Columns that are transformed together.
    pub block_size: usize,
    /// Of the signs of the columns, one byte each, 0x01 or 0xff; lower-case hex.
    pub signs_sha256: String,
}

impl TensorDigest {
    /// Digests one matrix, whose rows are in the order of the Hugging Face checkpoint.
    pub fn of(name: &str, matrix: &TernaryMatrix) -> Self {
        let shape = (matrix.rows(), matrix.cols());
        Self::with(name, shape, trit_sha256(matrix), &scale_normal_form(matrix))
    }

    /// Digests a matrix of which there are the codes ([`trit_codes`]) and one scale, 0 where no trit has it.
    pub fn of_codes(name: &str, shape: (usize, usize), codes: &[u8], scale: f32) -> Self {
        // -0 counts as 0
        let scale = Scales::PerTensor(if scale == 0.0 { 0.0 } else { scale });
        Self::with(name, shape, hex(&Sha256::digest(codes)), &scale)
    }

    fn with(
        name: &str,
        (rows, cols): (usize, usize),
        trits_sha256: String,
        scales: &Scales,
    ) -> Self {
        let mut digest = Sha256::new();
        for piece in scales.as_slice().chunks(1 << 14) {
            let bytes: Vec<u8> = piece.iter().flat_map(|s| s.to_le_bytes()).collect();
            digest.update(&bytes);
        }
        Self {
            name: name.to_owned(),
            rows,
            cols,
            trits_sha256,
            scale_structure: scales.structure(),
            scale_bits: match scales {
                Scales::PerTensor(s) => Some(s.to_bits()),
                _ => None,
            },
            scales_sha256: hex(&digest.finalize()),
            basis: None,
        }
    }

    /// The same digest of a matrix in this place of a network: rotated columns are another matrix.
    pub fn in_place(mut self, config: &Config, slot: Slot) -> Self {
        let rotation = config.rotation.as_deref();
        self.basis = rotation.filter(|r| r.turns(slot)).map(|rotation| {
            let signs = rotation
                .signs_of(self.cols)
                .iter()
                .map(|sign| sign.to_le_bytes()[0]);
            let mut bytes: Vec<u8> = signs.collect();
            bytes.resize(self.cols, 1);
            Basis {
                block_size: rotation.block_size,
                signs_sha256: hex(&Sha256::digest(&bytes)),
            }
        });
        self
    }

    /// The canonical line, newline included.
    pub fn line(&self) -> String {
        let Self {
            name,
            rows,
            cols,
            trits_sha256,
            scale_structure,
            scales_sha256,
            basis,
            ..
        } = self;
        let basis = basis.as_ref().map_or(String::new(), |basis| {
            format!(" hadamard-{} {}", basis.block_size, basis.signs_sha256)
        });
        format!("{name} {rows} {cols} {trits_sha256} {scale_structure} {scales_sha256}{basis}\n")
    }
}

/// Collects digests in any order.
#[derive(Debug, Clone, Default)]
pub struct TernaryHasher {
    tensors: BTreeMap<String, TensorDigest>,
}

impl TernaryHasher {
    /// Digests one matrix under its canonical name; a name added again replaces the first.
    pub fn add(&mut self, name: &str, matrix: &TernaryMatrix) -> TensorDigest {
        let digest = TensorDigest::of(name, matrix);
        self.insert(digest.clone());
        digest
    }

    /// Takes a digest computed elsewhere.
    pub fn insert(&mut self, digest: TensorDigest) {
        self.tensors.insert(digest.name.clone(), digest);
    }

    /// `ternary_sha256` of everything added so far.
    pub fn finish(&self) -> String {
        ternary_sha256(self.tensors.values())
    }

    /// The digests, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorDigest> {
        self.tensors.values()
    }
}

/// `ternary_sha256` of digests that are sorted by name, each name once.
fn ternary_sha256<'a>(sorted: impl Iterator<Item = &'a TensorDigest>) -> String {
    let mut whole = Sha256::new();
    for digest in sorted {
        whole.update(digest.line().as_bytes());
    }
    hex(&whole.finalize())
}

/// Bytes of the codes of a row.
pub fn code_row_len(cols: usize) -> usize {
    cols.div_ceil(4)
}

/// The codes of whole rows of trits, `(n, cols)`, as [`trit_sha256`] hashes them: `trit + 1`, four to a
/// byte, lowest bits first, every row padded with zero bits to a whole byte (`formats/certificate.md`).
pub fn trit_codes(trits: &[i8], cols: usize, codes: &mut [u8]) {
    if cols.is_multiple_of(4) {
        return encode_quads(trits, codes);
    }
    let rows = trits.chunks_exact(cols);
    for (row, codes) in rows.zip(codes.chunks_exact_mut(code_row_len(cols))) {
        encode_quads(row, codes);
    }
}

/// sha256 of the codes of all trits ([`trit_codes`]).
pub fn trit_sha256(matrix: &TernaryMatrix) -> String {
    let cols = matrix.cols();
    let mut digest = Sha256::new();
    let row_bytes = code_row_len(cols);
    const BYTES: usize = 1 << 16;
    let step = BYTES.checked_div(row_bytes).unwrap_or(BYTES).max(1); // rows packed at a time
    let mut codes = Vec::new();
    for trits in matrix.trits().chunks(step.saturating_mul(cols).max(1)) {
        let rows = trits.len().checked_div(cols).unwrap_or(0);
        codes.clear();
        codes.resize(rows.saturating_mul(row_bytes), 0);
        trit_codes(trits, cols, &mut codes);
        digest.update(&codes);
    }
    hex(&digest.finalize())
}

/// The scales every container of a model agrees on; -0 counts as 0.
pub fn scale_normal_form(matrix: &TernaryMatrix) -> Scales {
    let positive = |s: f32| if s == 0.0 { 0.0 } else { s };
    match matrix.normal_scales() {
        Scales::PerTensor(s) => Scales::PerTensor(positive(s)),
        Scales::PerRow(s) => Scales::PerRow(s.into_iter().map(positive).collect()),
        Scales::PerGroup { group, scales } => Scales::PerGroup {
            group,
            scales: scales.into_iter().map(positive).collect(),
        },
    }
}

/// sha256 of a dense tensor's values, whatever type they are stored in: widened to f32 (exact; see
/// [`DenseTensor::meaning`]),
/// little-endian, in blocks of 2^20 values; the digest is that of the blocks' digests one after
/// another, so that blocks can be hashed in parallel.
///
/// # Errors
/// A type that is not dense.
pub fn dense_sha256(tensor: &DenseTensor<'_>) -> Result<String, FormatError> {
    let mut digest = DensePieces::new(tensor)?;
    digest.update(tensor)?;
    Ok(digest.finish())
}

/// [`dense_sha256`] of a tensor that comes in pieces.
#[derive(Debug)]
pub struct DensePieces {
    /// Values and bytes of the smallest part of the type.
    unit: (usize, usize),
    blocks: Sha256,
}

/// Blocks of a piece.
const BLOCKS_OF_A_PIECE: usize = 8;

impl DensePieces {
    /// For a tensor, of which no bytes are read.
    ///
    /// # Errors
    /// A type that is not dense.
    pub fn new(tensor: &DenseTensor<'_>) -> Result<Self, FormatError> {
        let unit = match tensor.encoding {
            Encoding::Plain(plain) => (1, plain.size()),
            Encoding::Block(block) => (block.block(), block.block_bytes()),
            other => {
                let message = format!("expected a dense type, found {}", other.name());
                return Err(
                    FormatError::new(ErrorCode::WrongType, message).in_tensor(&tensor.info.name)
                );
            }
        };
        let blocks = Sha256::new();
        Ok(Self { unit, blocks })
    }

    /// The bytes of so many values.
    fn bytes_of(&self, values: usize) -> usize {
        let (unit_values, unit_bytes) = self.unit;
        let units = values.checked_div(unit_values).unwrap_or(0);
        units.saturating_mul(unit_bytes).max(1)
    }

    /// How many bytes each piece has but the last.
    pub fn piece_bytes(&self) -> usize {
        self.bytes_of(DENSE_BLOCK.saturating_mul(BLOCKS_OF_A_PIECE))
    }

    /// Adds a piece: whole blocks of values, or the last of the tensor.
    ///
    /// # Errors
    /// Bytes that are no whole values.
    pub fn update(&mut self, piece: &DenseTensor<'_>) -> Result<(), FormatError> {
        let (unit_values, unit_bytes) = self.unit;
        let blocks = piece.bytes.par_chunks(self.bytes_of(DENSE_BLOCK));
        let digests: Result<Vec<[u8; 32]>, FormatError> = blocks
            .map(|bytes| {
                let mut digest = Sha256::new();
                let (mut values, mut wide) = (Vec::new(), Vec::new());
                for part in bytes.chunks(self.bytes_of(1 << 14)) {
                    let units = part.len().checked_div(unit_bytes).unwrap_or(0);
                    values.resize(units.saturating_mul(unit_values), 0.0f32);
                    piece.widen(part, &mut values)?;
                    wide.clear();
                    wide.extend(values.iter().flat_map(|v| v.to_le_bytes()));
                    digest.update(&wide);
                }
                Ok(digest.finalize().into())
            })
            .collect();
        let digests = digests.map_err(|e| e.in_tensor(&piece.info.name))?;
        self.blocks.update(digests.concat());
        Ok(())
    }

    /// Lower-case hexadecimal.
    pub fn finish(self) -> String {
        hex(&self.blocks.finalize())
    }
}

/// [`dense_sha256`] of a tensor that is read in pieces.
///
/// # Errors
/// As [`DenseReader::read`].
pub fn dense_sha256_of(reader: &DenseReader<'_>) -> Result<String, FormatError> {
    let mut digest = DensePieces::new(reader.tensor())?;
    let (step, len) = (digest.piece_bytes() as u64, reader.len());
    for start in (0..len).step_by(digest.piece_bytes()) {
        digest.update(&reader.read(start..len.min(start.saturating_add(step)))?)?;
    }
    Ok(digest.finish())
}

/// How a tensor of the output compares with the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Verdict {
    /// Every value equal.
    Exact,
    /// Rounded, by at most this relative error.
    Rounded(f64),
}

impl Verdict {
    fn to_json(self) -> (Value, Option<Value>) {
        match self {
            Self::Exact => (json!("exact"), None),
            Self::Rounded(error) => (json!("rounded"), Some(json!(error))),
        }
    }
}

/// One file of a source or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRecord {
    /// File name, without directories.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// One ternary tensor of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryRecord {
    /// Digest of what the output holds.
    pub digest: TensorDigest,
    /// How its scales compare with the source (trits are always equal).
    pub verdict: Verdict,
}

/// One dense tensor of an output.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseRecord {
    /// Canonical name, the `Display` of its slot.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// [`dense_sha256`] of what the output holds.
    pub values_sha256: String,
    /// How its values compare with the source.
    pub verdict: Verdict,
}

/// What a conversion did: the content of `OUT.certificate.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// `bitnet-convert 0.1.0`
    pub tool: String,
    /// Family of the model.
    pub family: String,
    /// Name of the target, `gguf-tq2_0`.
    pub target: String,
    /// Sizes and wiring.
    pub config: Config,
    /// Files read.
    pub source: Vec<FileRecord>,
    /// Where they were read from, if not from a disk.
    pub origin: Option<SourceOrigin>,
    /// Files written, the certificate excepted.
    pub output: Vec<FileRecord>,
    /// Ternary tensors, by name.
    pub ternary: Vec<TernaryRecord>,
    /// Dense tensors, by name.
    pub dense: Vec<DenseRecord>,
    /// `ternary_sha256` of the source.
    pub source_ternary_sha256: String,
    /// `ternary_sha256` of the output; equal to the source's when nothing was rounded.
    pub ternary_sha256: String,
    /// Whether every tensor of the output equals the source's.
    pub lossless: bool,
    /// Tokenizer and chat template of the output.
    pub text: TextDigest,
    /// Whether it is as it was written; of one that is made, [`Seal::Whole`].
    pub seal: Seal,
}

/// Where a source was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceOrigin {
    /// `hf://OWNER/NAME`, or a URL without credentials.
    pub location: String,
    /// `OWNER/NAME`, of a source from a Hub.
    pub repository: Option<String>,
    /// The commit that was read.
    pub commit: Option<String>,
}

impl SourceOrigin {
    fn from_json(source: &Field<'_>) -> Result<Option<Self>, FormatError> {
        let text = |key: &str| source.maybe(key)?.map(|field| field.text()).transpose();
        Ok(match text("location")? {
            None => None,
            Some(location) => Some(Self {
                location,
                repository: text("repository")?,
                commit: text("commit")?,
            }),
        })
    }
}

impl Certificate {
    /// The JSON of `OUT.certificate.json`, with the hash over it unless it has none.
    ///
    /// # Errors
    /// A number that JSON has no word for.
    pub fn to_json(&self) -> Result<Value, FormatError> {
        let files = |files: &[FileRecord]| -> Value { files.iter().map(file_to_json).collect() };
        let mut object = json!({
            "certificate": CERTIFICATE_VERSION,
            "tool": self.tool,
            "family": self.family,
            "target": self.target,
            "lossless": self.lossless,
            "ternary_sha256": self.ternary_sha256,
            "source_ternary_sha256": self.source_ternary_sha256,
            "source": {"files": files(&self.source)},
            "output": {"files": files(&self.output)},
            "wiring": config_to_json(&self.config),
            "ternary": self.ternary.iter().map(ternary_to_json).collect::<Value>(),
            "dense": self.dense.iter().map(dense_to_json).collect::<Value>(),
        });
        if let (Some(origin), Some(source)) = (&self.origin, object.get_mut("source")) {
            set(source, "location", origin.location.as_str().into());
            for (key, value) in [
                ("repository", &origin.repository),
                ("commit", &origin.commit),
            ] {
                if let Some(value) = value {
                    set(source, key, value.as_str().into());
                }
            }
        }
        for (key, value) in self.text.to_json() {
            set(&mut object, key, value);
        }
        match &self.seal {
            Seal::Absent => {}
            Seal::Whole => {
                let seal = seal_of(&object)?;
                set(&mut object, SEAL, seal.into());
            }
            Seal::Broken { said, .. } => set(&mut object, SEAL, json!(said)),
        }
        Ok(object)
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// `malformed`, naming the key.
    pub fn from_json(value: &Value) -> Result<Self, FormatError> {
        let root = Field::root(value);
        check_keys(|key| value.get(key).is_some())?;
        check_version(&root)?;
        let ternary = root.at("ternary")?.each(ternary_from_json)?;
        let dense = root.at("dense")?.each(dense_from_json)?;
        Self::assemble(&root, ternary, dense, || seal_of(value))
    }

    /// Reads the text of what [`to_json`](Self::to_json) wrote. Takes memory of about three times the text.
    ///
    /// # Errors
    /// `malformed`, naming the key; `limit-exceeded` for more records or values than a certificate has.
    pub fn from_slice(text: &[u8]) -> Result<Self, FormatError> {
        let pieces = stream::read(text)?;
        let root = Field::root(&pieces.rest);
        check_keys(|key| match key {
            "ternary" => pieces.ternary.is_some(),
            "dense" => pieces.dense.is_some(),
            key => pieces.rest.get(key).is_some(),
        })?;
        check_version(&root)?;
        let missing = |key: &str| match root.at(key) {
            Err(missing) => missing,
            Ok(field) => field.bad("a list"),
        };
        let ternary = pieces.ternary.ok_or_else(|| missing("ternary"))?;
        let dense = pieces.dense.ok_or_else(|| missing("dense"))?;
        Self::assemble(&root, ternary, dense, || seal_of_pieces(pieces.canonical))
    }

    fn assemble(
        root: &Field<'_>,
        ternary: Vec<TernaryRecord>,
        dense: Vec<DenseRecord>,
        seal: impl FnOnce() -> Result<String, FormatError>,
    ) -> Result<Self, FormatError> {
        Ok(Self {
            tool: root.at("tool")?.text()?,
            family: root.at("family")?.text()?,
            target: root.at("target")?.text()?,
            config: config_from_json(&root.at("wiring")?)?,
            source: root.at("source")?.at("files")?.each(file_from_json)?,
            origin: SourceOrigin::from_json(&root.at("source")?)?,
            output: root.at("output")?.at("files")?.each(file_from_json)?,
            ternary,
            dense,
            source_ternary_sha256: root.at("source_ternary_sha256")?.digest()?,
            ternary_sha256: root.at("ternary_sha256")?.digest()?,
            lossless: root.at("lossless")?.flag()?,
            text: TextDigest::from_json(root)?,
            seal: match root.maybe(SEAL)? {
                None => Seal::Absent,
                Some(said) => match (said.digest()?, seal()?) {
                    (said, found) if said == found => Seal::Whole,
                    (said, found) => Seal::Broken { said, found },
                },
            },
        })
    }
}

/// Sets a key of an object.
fn set(object: &mut Value, key: &str, value: Value) {
    if let Value::Object(keys) = object {
        keys.insert(key.to_owned(), value);
    }
}

/// The keys that every certificate has.
const KEYS: [&str; 12] = [
    "certificate",
    "tool",
    "family",
    "target",
    "wiring",
    "source",
    "output",
    "ternary",
    "dense",
    "ternary_sha256",
    "source_ternary_sha256",
    "lossless",
];

/// Refuses JSON that is no certificate: the key with the version is missing.
fn check_keys(has: impl Fn(&str) -> bool) -> Result<(), FormatError> {
    if has("certificate") {
        return Ok(());
    }
    let missing = KEYS.iter().filter(|key| !has(key));
    let missing: Vec<String> = missing.map(|key| format!("`{key}`")).collect();
    let message = format!(
        "this JSON is no certificate of a conversion: it has no {}",
        missing.join(", ")
    );
    Err(FormatError::new(ErrorCode::Malformed, message).hint(OF_CONVERT))
}

/// What to give in place of something else.
const OF_CONVERT: &str = "give the certificate that bitnet-convert wrote: OUT.certificate.json beside a file, certificate.json in a directory";

/// Refuses a certificate of another version.
fn check_version(root: &Field<'_>) -> Result<(), FormatError> {
    let version = root.at("certificate")?;
    match version.number()? {
        CERTIFICATE_VERSION => Ok(()),
        _ => Err(version.bad(&CERTIFICATE_VERSION.to_string())),
    }
}

#[cfg(test)]
mod tests;
