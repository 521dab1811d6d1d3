//! Containers: kinds of file that hold named tensors.
//!
//! Invariant: reading yields a [`TensorFile`] that keeps its promises; writing is planned in full
//! before the first byte, so that a header is written once and outputs stream.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod directory;
mod gguf;
mod pytorch;
mod remains;
mod safetensors;
mod shards;
#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests;

pub use directory::{adapter_alone, refuse_adapter_beside, stale_index};
pub use gguf::{
    Gguf, GgufEntry, LAYOUT_KEY as GGUF_LAYOUT_KEY, SPLIT_ID_KEY as GGUF_SPLIT_ID_KEY,
    gguf_type_rivals,
};
pub use pytorch::{Frames, Pytorch};
pub use remains::{Declared, HeaderRemains, header_remains};
pub use safetensors::Safetensors;

use crate::artifact::is_plain_file_name;
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::packing::Packing;
use crate::source::{Opener, open_source};
use crate::strange::HEAD;
use crate::tensor_file::{Metadata, TensorFile, TensorInfo};
use crate::unread::{Unread, UnreadBits};
use std::path::{Path, PathBuf};

/// A tensor about to be written. Tensors are written in plan order.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Name as stored.
    pub name: String,
    /// How its elements are stored.
    pub encoding: Encoding,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub len: u64,
}

/// Everything about a file that is known before its data.
#[derive(Debug, Clone, Default)]
pub struct WritePlan {
    /// Metadata, in order.
    pub metadata: Metadata,
    /// Tensors, in order.
    pub tensors: Vec<PlannedTensor>,
}

/// The laid-out file: header bytes, then each tensor at its offset; in between zeros, or what the frames
/// make of the tensors.
#[derive(Debug, Clone)]
pub struct Header {
    /// Everything before the first tensor (padding included).
    pub bytes: Vec<u8>,
    /// Absolute offset of each planned tensor.
    pub offsets: Vec<u64>,
    /// File length (the last tensor is padded where the container wants it).
    pub total: u64,
    /// For containers that have checksums between and behind their tensors.
    pub frames: Option<Frames>,
}

/// How files are read.
pub struct Reading<'a> {
    /// Bounds for untrusted headers.
    pub limits: &'a Limits,
    /// Where the types of a file leave several packings, this is the one.
    pub layout: Option<&'static dyn Packing>,
    /// How each file of the model is opened.
    pub open: &'a Opener<'a>,
}

impl<'a> Reading<'a> {
    /// Files of this disk whose types leave one packing.
    pub fn new(limits: &'a Limits) -> Self {
        Self {
            limits,
            layout: None,
            open: &open_source,
        }
    }
}

/// One kind of file that holds named tensors.
pub trait Container: Sync {
    /// `gguf`, `safetensors`: also its file and its page.
    fn name(&self) -> &'static str;
    /// Whether the first bytes of a file are this container's.
    fn recognises(&self, head: &[u8]) -> bool;
    /// Opens the model that `path` belongs to: a file, an index, or any part of a split one.
    ///
    /// # Errors
    /// Whatever is wrong with the files, with its place.
    fn read(&self, path: &Path, limits: &Limits) -> Result<TensorFile, FormatError> {
        self.read_with(path, &Reading::new(limits))
    }
    /// As [`read`](Self::read), with more to say about how.
    ///
    /// # Errors
    /// As `read`.
    fn read_with(&self, path: &Path, how: &Reading<'_>) -> Result<TensorFile, FormatError>;
    /// Bits of the files of `file`, tensors and the values of metadata aside, that no reader uses.
    ///
    /// # Errors
    /// As `read`.
    fn unread(&self, _file: &TensorFile) -> Result<Vec<Unread>, FormatError> {
        Ok(Vec::new())
    }
    /// Lays a file out.
    ///
    /// # Errors
    /// Names, shapes or types this container cannot hold.
    fn header(&self, plan: &WritePlan) -> Result<Header, FormatError>;
}

/// Every container. Adding one is a file, a `mod` line and a row.
pub static CONTAINERS: &[&dyn Container] = &[&Gguf, &Safetensors, &Pytorch];

/// The container of this name.
pub fn container_by_name(name: &str) -> Option<&'static dyn Container> {
    CONTAINERS.iter().copied().find(|c| c.name() == name)
}

/// What lies between the tensors of a part of a file, from `start` (where they may begin) to its end.
fn gaps(file: &TensorFile, part: usize, start: u64) -> Vec<Unread> {
    let Some(source) = file.parts.get(part) else {
        return Vec::new();
    };
    let mut gaps = Vec::new();
    let mut gap = |before: Option<&TensorInfo>, from: u64, to: u64| {
        if from < to {
            gaps.push(Unread {
                file: source.path().to_owned(),
                range: from..to,
                bits: UnreadBits::All,
                place: before.map_or(String::new(), |info| info.name.clone()),
                why: "padding to the alignment",
            });
        }
    };
    let mut at = start;
    let mut last = None;
    for info in file.tensors().iter().filter(|info| info.part == part) {
        gap(last, at, info.offset);
        at = at.max(info.offset.saturating_add(info.len));
        last = Some(info);
    }
    gap(last, at, source.len());
    gaps
}

/// Opens a model: a checkpoint directory, a file of any container, an index, or any part of a split
/// file.
///
/// In a directory the first of these counts: `model.safetensors` or `model.safetensors.index.json`,
/// the only `*.safetensors.index.json`, the only `*.safetensors`, `pytorch_model.bin` or
/// `pytorch_model.bin.index.json`, the only `.gguf` (or the parts of one split `.gguf`), the only `.pt`.
/// Of a file and an index beside it the file counts if no shard of the index is there; else both are
/// refused. A split model and a file of its name are two models.
///
/// # Errors
/// `unknown-container` when nothing recognizes the file or the directory has no model or several;
/// `adapter` when an adapter lies beside the model or instead of it; otherwise whatever is wrong with the
/// files.
pub fn open(path: &Path, limits: &Limits) -> Result<TensorFile, FormatError> {
    open_as(path, limits, None)
}

/// As [`open`]; where the types of a file leave several packings, `layout` is the one.
///
/// # Errors
/// As `open`.
pub fn open_as(
    path: &Path,
    limits: &Limits,
    layout: Option<&'static dyn Packing>,
) -> Result<TensorFile, FormatError> {
    let how = Reading {
        layout,
        ..Reading::new(limits)
    };
    open_with(path, &how)
}

/// As [`open`], with more to say about how.
///
/// # Errors
/// As `open`.
pub fn open_with(path: &Path, how: &Reading<'_>) -> Result<TensorFile, FormatError> {
    if matches!(path.try_exists(), Ok(false)) {
        return Err(crate::absent::no_model(path));
    }
    let found;
    let path = if path.is_dir() {
        found = directory::model_of_directory(path, how.limits)?;
        &found
    } else {
        path
    };
    if let Some(model) = path
        .to_str()
        .and_then(|p| p.strip_suffix(shards::INDEX_SUFFIX))
    {
        return if model.ends_with(pytorch::EXTENSION) {
            Pytorch.read_with(path, how)
        } else {
            Safetensors.read_with(path, how)
        };
    }
    let source = (how.open)(path)?;
    let head = source.read(0..source.len().min(HEAD as u64))?;
    match CONTAINERS.iter().find(|c| c.recognises(&head)) {
        Some(container) => {
            // opened once: what is recognized is what is read
            let open = |other: &Path| match other == path {
                true => Ok(source.clone()),
                false => (how.open)(other),
            };
            let open = &open;
            container.read_with(path, &Reading { open, ..*how })
        }
        None => {
            // of a file that changed meanwhile, the first bytes say nothing
            source.check()?;
            Err(unknown(path, &head))
        }
    }
}

/// Which files the model at a path consists of, its index among them, by names and indices alone: files of weights
/// may be placeholders. The first is the one to open.
///
/// # Errors
/// As [`open`], for what shows without a look into the weights.
pub fn weight_files(path: &Path, limits: &Limits) -> Result<Vec<PathBuf>, FormatError> {
    let model = match path.is_dir() {
        true => directory::model_of_directory(path, limits)?,
        false => path.to_owned(),
    };
    let name = model.file_name().and_then(|n| n.to_str());
    let name = name.unwrap_or_default();
    if let Some(split) = gguf::split_parts(&model) {
        return Ok(split);
    }
    let mut index = name.ends_with(shards::INDEX_SUFFIX).then(|| model.clone());
    for extension in [".safetensors", pytorch::EXTENSION] {
        if index.is_none() && name.ends_with(extension) {
            index = shards::index_of(&model, name, extension, limits)?;
        }
    }
    let Some(index) = index else {
        return Ok(vec![model]);
    };
    let shards = shards::shard_names(&index, limits)?;
    if let Some(shard) = shards.iter().find(|shard| !is_plain_file_name(shard)) {
        let message = format!("expected a file name in the same directory, found `{shard}`");
        return Err(FormatError::new(ErrorCode::Malformed, message).in_file(&index));
    }
    let shards = shards.iter().map(|shard| index.with_file_name(shard));
    Ok(std::iter::once(index.clone()).chain(shards).collect())
}

fn unknown(path: &Path, head: &[u8]) -> FormatError {
    let names: Vec<_> = CONTAINERS.iter().map(|c| c.name()).collect();
    crate::strange::unknown_container(path, head, &names.join(", "))
}
