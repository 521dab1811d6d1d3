//! PyTorch: the zip archives of `torch.save`, a pickled dict of tensors and a record per storage. The page is
//! `formats/container/pytorch.md`.
//!
//! Invariant: nothing in a pickle is executed, whatever it names; a tensor is a range of a record that is
//! stored as it is, as long as its shape and type need. Tensors may share a storage, so ranges of such
//! a file may overlap.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod pickle;
mod state_dict;
mod write;
mod zip;

pub use self::write::Frames;

use super::shards::{self, Parsed};
use super::{Container, Header, Reading, WritePlan};
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::source::{Source, as_opened};
use crate::tensor_file::{Metadata, TensorFile, TensorInfo};
use std::path::Path;

/// The record of the pickle, behind the name of the archive.
const PICKLE: &str = "/data.pkl";
/// Where storages lie, behind the name of the archive.
const STORAGES: &str = "/data/";
/// The record that says the byte order, behind the name of the archive.
const BYTE_ORDER: &str = "/byteorder";
/// The extension of shards that `index.json` names.
pub(super) const EXTENSION: &str = ".bin";

/// The PyTorch container.
#[derive(Debug, Clone, Copy)]
pub struct Pytorch;

impl Container for Pytorch {
    fn name(&self) -> &'static str {
        "pytorch"
    }

    fn recognises(&self, head: &[u8]) -> bool {
        head.starts_with(&zip::LOCAL)
    }

    fn read_with(&self, path: &Path, how: &Reading<'_>) -> Result<TensorFile, FormatError> {
        shards::read(self.name(), EXTENSION, path, how, read_file)
    }

    fn header(&self, plan: &WritePlan) -> Result<Header, FormatError> {
        write::write_header(plan)
    }
}

fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, message)
}

fn read_file(file: &dyn Source, part: usize, limits: &Limits) -> Result<Parsed, FormatError> {
    as_opened(file, || read_archive(file, part, limits))
}

fn read_archive(file: &dyn Source, part: usize, limits: &Limits) -> Result<Parsed, FormatError> {
    let records = zip::read(file, limits)?;
    let mut archives = records.keys().filter_map(|name| name.strip_suffix(PICKLE));
    let (Some(archive), None) = (archives.next(), archives.next()) else {
        let message = "expected a zip archive with one data.pkl, as torch.save writes";
        return Err(FormatError::new(ErrorCode::UnknownContainer, message)
            .hint("name the file of the weights, or save the model as safetensors"));
    };
    let record = |name: &str| {
        let record = records.get(name)?;
        Some(record.start..record.start.checked_add(record.len)?)
    };
    if let Some(range) = record(&format!("{archive}{BYTE_ORDER}")) {
        // a longer name is another one
        let end = range.start.saturating_add(16).min(range.end);
        let order = file.read(range.start..end)?;
        if order != *b"little" {
            let message = format!(
                "expected little-endian numbers, found `{}`",
                String::from_utf8_lossy(&order)
            );
            return Err(malformed(message).hint("save the model as safetensors"));
        }
    }
    let pickle = record(&format!("{archive}{PICKLE}")).unwrap_or_default();
    let (found, limit) = (pickle.end.saturating_sub(pickle.start), limits.pickle_bytes);
    if found > limit {
        let message = format!("pickle of {found} bytes, expected at most {limit}");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message));
    }
    let described = state_dict::read(&file.read(pickle)?)?;
    if described.len() as u64 > limits.tensors {
        let message = format!("more than {} tensors", limits.tensors);
        return Err(FormatError::new(ErrorCode::LimitExceeded, message));
    }
    let mut tensors = Vec::with_capacity(described.len());
    for tensor in described {
        let place = |e: FormatError| e.in_tensor(&tensor.name);
        let storage = format!("{archive}{STORAGES}{}", tensor.storage);
        let record = records.get(&storage).ok_or_else(|| {
            let message = format!("its storage `{storage}` is not in the archive");
            place(FormatError::new(ErrorCode::Truncated, message))
        })?;
        let size = tensor.plain.size() as u64;
        if tensor.elements.checked_mul(size) != Some(record.len) {
            let message = format!(
                "its storage has {} bytes, expected {} elements of {size}",
                record.len, tensor.elements
            );
            return Err(place(malformed(message)));
        }
        // both below the record's length: its elements fit, and the tensor fits them
        let first = tensor.first.saturating_mul(size);
        let count = tensor
            .shape
            .iter()
            .fold(size, |n, &s| n.saturating_mul(s as u64));
        tensors.push(TensorInfo {
            name: tensor.name,
            encoding: Encoding::Plain(tensor.plain),
            shape: tensor.shape,
            part,
            offset: record.start.saturating_add(first),
            len: count,
        });
    }
    tensors.sort_by(|a, b| (a.offset, a.len, &a.name).cmp(&(b.offset, b.len, &b.name)));
    Ok(Parsed {
        metadata: Metadata::default(),
        tensors,
    })
}
