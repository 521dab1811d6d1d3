//! GGUF: typed metadata, tensor infos, then the tensors in the same order, each padded to the
//! alignment. The page is `formats/container/gguf.md`.
//!
//! Invariant: what this reader accepts, llama.cpp's reader accepts too as far as the container
//! goes: the offsets are exactly the running, padded sum of the lengths. Nothing is allocated
//! because a count says so; every count is first compared with the bytes that are left.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod joined;
mod read;
mod remains;
mod resolve;
mod split;
mod unread;
mod write;

pub(super) use self::remains::remains;
pub use self::resolve::gguf_type_rivals;
pub use self::unread::GgufEntry;

use self::joined::read_part;
use self::read::split_key;
use self::split::{SplitName, read_split};
use self::write::write_header;
use super::{Container, Header, Reading, WritePlan};
use crate::dense::blocks_len;
use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::input::read_directory;
use crate::limits::Limits;
use crate::packing::{PACKINGS, Packing};
use crate::source::{Source, open_source};
use crate::tensor_file::{MetaValue, Metadata, TensorFile};
use crate::unread::Unread;
use bitnet_ternary::BlockType;
use std::io;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// Where a file of ours says the name of its packing, parameters included (`formats/packing/tl1.md`).
pub const LAYOUT_KEY: &str = "bitnet.layout";
/// Where each part of a split model of ours says to which set it belongs: parts of two conversions are never
/// taken together.
pub const SPLIT_ID_KEY: &str = "bitnet.split_id";
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
static DENSE: [(u32, Encoding); 18] = [
    (0, Encoding::Plain(PlainType::F32)),
    (1, Encoding::Plain(PlainType::F16)),
    (30, Encoding::Plain(PlainType::Bf16)),
    (28, Encoding::Plain(PlainType::F64)),
    (24, Encoding::Plain(PlainType::I8)),
    (25, Encoding::Plain(PlainType::I16)),
    (26, Encoding::Plain(PlainType::I32)),
    (27, Encoding::Plain(PlainType::I64)),
    (2, Encoding::Block(BlockType::Q4_0)),
    (3, Encoding::Block(BlockType::Q4_1)),
    (6, Encoding::Block(BlockType::Q5_0)),
    (7, Encoding::Block(BlockType::Q5_1)),
    (8, Encoding::Block(BlockType::Q8_0)),
    (10, Encoding::Block(BlockType::Q2_K)),
    (11, Encoding::Block(BlockType::Q3_K)),
    (12, Encoding::Block(BlockType::Q4_K)),
    (13, Encoding::Block(BlockType::Q5_K)),
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

    fn read_with(&self, path: &Path, how: &Reading<'_>) -> Result<TensorFile, FormatError> {
        let file = (how.open)(path)?;
        let parsed = read_part(&*file, 0, how.limits, how.layout).map_err(|e| e.in_file(path))?;
        let count = split_key(&parsed.metadata, "split.count").map_err(|e| e.in_file(path))?;
        let name = SplitName::parse(path);
        match (name, count) {
            (Some(name), _) if name.count > 1 => read_split(&name, how),
            (_, Some(count)) if count > 1 => {
                let no = split_key(&parsed.metadata, "split.no").map_err(|e| e.in_file(path))?;
                let own = no.and_then(|no| usize::try_from(no).ok()).unwrap_or(0);
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let message = format!(
                    "is part {} of {count} of a split model, but not named as one",
                    own.saturating_add(1)
                );
                Err(FormatError::new(ErrorCode::Malformed, message)
                    .in_file(path)
                    .hint(format!(
                        "name the {count} parts {} to {} and put them into one directory; this one is {}",
                        Self::split_name(path, 0, count).display(),
                        Self::split_name(path, count.saturating_sub(1), count).display(),
                        Self::split_name(path, own, count).display()
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
    pub fn entries(source: &dyn Source, limits: &Limits) -> Result<Vec<GgufEntry>, FormatError> {
        unread::entries(source, limits)
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

    /// The model a file belongs to, by its name: the name without the numbers, and how many parts there are.
    /// A file that is not split is a set of 0.
    pub(super) fn set_name(name: &str) -> (PathBuf, usize) {
        let path = Path::new(name);
        match SplitName::parse(path) {
            Some(split) if split.count > 1 => (split.whole, split.count),
            _ => (path.to_owned(), 0),
        }
    }

    /// The set that a path is a part of, by its name: the path without the numbers, and how many parts there are.
    pub fn split_of(path: &Path) -> Option<(PathBuf, usize)> {
        let split = SplitName::parse(path).filter(|split| split.count > 1)?;
        Some((split.whole, split.count))
    }

    /// The files beside `output` that outputs called so have had, sorted: the file itself, and parts of any
    /// number.
    ///
    /// # Errors
    /// Whatever the operating system refuses.
    pub fn files_of_output(output: &Path) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        // as `split_name` makes it
        let of_one = Self::split_name(output, 0, 1);
        let whole = SplitName::parse(&of_one).map(|split| split.whole);
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        for entry in read_directory(parent)? {
            let path = output.with_file_name(entry?.file_name());
            let part = SplitName::parse(&path);
            if path == output || part.is_some() && part.map(|split| split.whole) == whole {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    /// Whether a file is a part of a set that this program wrote.
    pub fn has_split_id(path: &Path) -> bool {
        let Ok(file) = open_source(path) else {
            return false;
        };
        Self::entries(&*file, &Limits::default())
            .is_ok_and(|entries| entries.iter().any(|e| e.key == SPLIT_ID_KEY))
    }

    /// The metadata of a header.
    ///
    /// # Errors
    /// As [`read`](Container::read).
    pub fn metadata(header: &[u8], limits: &Limits) -> Result<Metadata, FormatError> {
        unread::metadata(header, limits)
    }

    /// Space for the id of a set, until all headers are known.
    pub fn split_id_placeholder() -> MetaValue {
        MetaValue::text(split::NO_ID)
    }

    /// Gives the headers of the parts of a set the id of the set. It follows from the headers and from `content`,
    /// which stands for the weights, so that the same conversion gives the same bytes, whichever part is written first.
    ///
    /// # Errors
    /// A header without the place for it.
    pub fn set_split_id(headers: &mut [&mut Vec<u8>], content: &[u8]) -> Result<(), FormatError> {
        split::set_id(headers, content)
    }
}

/// The parts of the split model that a path names one of.
pub(super) fn split_parts(path: &Path) -> Option<Vec<PathBuf>> {
    let split = SplitName::parse(path)?;
    let parts = 0..split.count;
    Some(
        parts
            .map(|part| Gguf::split_name(&split.whole, part, split.count))
            .collect(),
    )
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
        Encoding::Foreign(foreign) => match foreign.stored_len(shape) {
            None if foreign.has_size() => {
                let message = format!(
                    "expected rows of whole blocks of {}, found shape {shape:?}",
                    foreign.block
                );
                Err(malformed(message))
            }
            len => Ok(len),
        },
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
