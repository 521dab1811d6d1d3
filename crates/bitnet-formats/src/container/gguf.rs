//! GGUF: typed metadata, tensor infos, then the tensors in the same order, each padded to the
//! alignment. The page is `formats/container/gguf.md`.
//!
//! Invariant: what this reader accepts, llama.cpp's reader accepts too as far as the container
//! goes: the offsets are exactly the running, padded sum of the lengths. Nothing is allocated
//! because a count says so; every count is first compared with the bytes that are left.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod read;
mod resolve;
mod split;
mod unread;
mod write;

pub use self::resolve::{gguf_type_rivals, gguf_unread_type};
pub use self::unread::GgufEntry;

use self::read::read_part;
use self::split::{SplitName, read_split, split_key};
use self::write::write_header;
use super::{Container, Header, WritePlan};
use crate::dense::blocks_len;
use crate::encoding::{BlockType, Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::mapped::Mapped;
use crate::packing::{PACKINGS, Packing};
use crate::tensor_file::TensorFile;
use crate::unread::Unread;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Where a file of ours says the name of its packing, parameters included (`formats/packing/tl1.md`).
pub const LAYOUT_KEY: &str = "bitnet.layout";
/// The specification's longest key.
const MAX_KEY_BYTES: u64 = 65535;
/// llama.cpp's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// Shortest key-value: key length, type, a one-byte value.
const MIN_KEY_VALUE: u64 = 13;
/// Shortest tensor info: name length, n_dims, one size, type, offset.
const MIN_TENSOR_INFO: u64 = 32;

/// Type ids, as in ggml.h, of the encodings that are no packing; the packings add theirs with
/// [`Packing::gguf_type`].
static DENSE: [(u32, Encoding); 10] = [
    (0, Encoding::Plain(PlainType::F32)),
    (1, Encoding::Plain(PlainType::F16)),
    (30, Encoding::Plain(PlainType::Bf16)),
    (28, Encoding::Plain(PlainType::F64)),
    (24, Encoding::Plain(PlainType::I8)),
    (25, Encoding::Plain(PlainType::I16)),
    (26, Encoding::Plain(PlainType::I32)),
    (27, Encoding::Plain(PlainType::I64)),
    (8, Encoding::Block(BlockType::Q8_0)),
    (14, Encoding::Block(BlockType::Q6_K)),
];

/// The GGUF container.
#[derive(Debug, Clone, Copy)]
pub struct Gguf;

impl Container for Gguf {
    fn name(&self) -> &'static str {
        "gguf"
    }

    fn recognises(&self, head: &[u8]) -> bool {
        head.starts_with(&MAGIC)
    }

    fn read(&self, path: &Path, limits: &Limits) -> Result<TensorFile, FormatError> {
        self.read_as(path, limits, None)
    }

    fn read_as(
        &self,
        path: &Path,
        limits: &Limits,
        layout: Option<&'static dyn Packing>,
    ) -> Result<TensorFile, FormatError> {
        let file = Mapped::open(path)?;
        let parsed = read_part(&file, 0, limits, layout).map_err(|e| e.in_file(path))?;
        let count = split_key(&parsed.metadata, "split.count").map_err(|e| e.in_file(path))?;
        let name = SplitName::parse(path);
        match (name, count) {
            (Some(name), _) if name.count > 1 => read_split(&name, limits, layout),
            (_, Some(count)) if count > 1 => {
                let example =
                    Self::split_name(path, 0, usize::try_from(count).unwrap_or(usize::MAX));
                let message = format!("is one of {count} parts, but not named as one");
                Err(FormatError::new(ErrorCode::Malformed, message)
                    .in_file(path)
                    .hint(format!(
                        "parts are found by their names: {}",
                        example.display()
                    )))
            }
            _ => Ok(TensorFile::new(
                self.name(),
                vec![file],
                parsed.metadata,
                parsed.tensors,
            )),
        }
    }

    fn header(&self, plan: &WritePlan) -> Result<Header, FormatError> {
        write_header(plan)
    }

    fn unread(&self, file: &TensorFile) -> Result<Vec<Unread>, FormatError> {
        unread::unread(file)
    }
}

impl Gguf {
    /// Where the metadata of one file stand in its bytes, in file order.
    ///
    /// # Errors
    /// As [`read`](Container::read).
    pub fn entries(bytes: &[u8], limits: &Limits) -> Result<Vec<GgufEntry>, FormatError> {
        unread::entries(bytes, limits)
    }

    /// The path of part `number` (counted from 0, as `split.no` is) of `count` parts of the model
    /// `path`: `model.gguf` becomes `model-00001-of-00003.gguf`.
    pub fn split_name(path: &Path, number: usize, count: usize) -> PathBuf {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        if path.extension().is_some_and(|e| e == "gguf") {
            name = path.file_stem().unwrap_or_default().to_owned();
        }
        name.push(format!(
            "-{:05}-of-{count:05}.gguf",
            number.saturating_add(1)
        ));
        path.with_file_name(name)
    }

    /// The name that a file would have if its model were not split: the parts of one model have
    /// the same.
    pub(super) fn whole_name(name: &str) -> PathBuf {
        let path = Path::new(name);
        SplitName::parse(path).map_or_else(|| path.to_owned(), |split| split.whole)
    }
}

fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, message)
}

fn limit_exceeded(what: &str, found: u64, limit: u64) -> FormatError {
    let message = format!("{found} {what}, expected at most {limit}");
    FormatError::new(ErrorCode::LimitExceeded, message)
}

// ---- reading: header ----

/// One id can belong to several layouts of one type; the one we write is the one to assume.
fn encoding_of(id: u32) -> Encoding {
    if let Some((_, dense)) = DENSE.iter().find(|(known, _)| *known == id) {
        return *dense;
    }
    let claims = || {
        PACKINGS
            .iter()
            .copied()
            .filter(|p| p.gguf_type() == Some(id))
    };
    let packing: Option<&'static dyn Packing> = claims()
        .find(|p| p.is_writable())
        .or_else(|| claims().next());
    packing.map_or(Encoding::Unknown(id), Encoding::Ternary)
}

/// A shape as a matrix: the innermost size are the columns, all others together the rows.
fn matrix(shape: &[usize]) -> Result<(usize, usize), FormatError> {
    let (cols, outer) = shape
        .split_last()
        .map_or((1, shape), |(cols, outer)| (*cols, outer));
    let rows = outer
        .iter()
        .try_fold(1usize, |n, &size| n.checked_mul(size));
    let overflow = || malformed(format!("shape {shape:?} overflows"));
    Ok((rows.ok_or_else(overflow)?, cols))
}

/// Bytes of a tensor that is not ternary.
fn dense_len(encoding: Encoding, shape: &[usize]) -> Result<u64, FormatError> {
    let (rows, cols) = matrix(shape)?;
    let elements = rows.checked_mul(cols);
    let elements = elements.ok_or_else(|| malformed(format!("shape {shape:?} overflows")))?;
    blocks_len(encoding, elements, cols).map_err(|e| malformed(e.message))
}

/// Bytes of a tensor, or `None` for a type we do not know.
fn stored_len(encoding: Encoding, shape: &[usize]) -> Result<Option<u64>, FormatError> {
    match encoding {
        Encoding::Unknown(_) => Ok(None),
        Encoding::Ternary(packing) => {
            let (rows, cols) = matrix(shape)?;
            packing.stored_len(rows, cols).map(Some)
        }
        Encoding::Plain(_) | Encoding::Block(_) => match type_id(encoding) {
            Some(_) => dense_len(encoding, shape).map(Some),
            None => Ok(None),
        },
    }
}

/// The id of an encoding that is no packing, if GGUF has one.
fn type_id(encoding: Encoding) -> Option<u32> {
    let row = DENSE.iter().find(|(_, dense)| *dense == encoding);
    row.map(|(id, _)| *id)
}
