//! GGUF files made from others.
//!
//! Invariant: tensors keep their names and shapes, and what a test does not change.

use bitnet_formats::{
    Container, Encoding, Gguf, Limits, Metadata, PlannedTensor, TensorFile, TensorInfo, WritePlan,
};
use std::path::{Path, PathBuf};

/// The GGUF file at `model` with other metadata, written to `to`.
pub fn rewritten(model: &Path, to: PathBuf, change: impl FnOnce(&mut Metadata)) -> PathBuf {
    let file: TensorFile = bitnet_formats::open(model, &Limits::default()).unwrap();
    let mut metadata = file.metadata.clone();
    change(&mut metadata);
    write(&file, metadata, |_| None, to)
}

/// The GGUF file at `model` with other types and bytes of some tensors, written to `to`.
pub fn retyped(
    model: &Path,
    to: PathBuf,
    change: impl Fn(&TensorInfo) -> Option<(Encoding, Vec<u8>)>,
) -> PathBuf {
    let file: TensorFile = bitnet_formats::open(model, &Limits::default()).unwrap();
    let metadata = file.metadata.clone();
    write(&file, metadata, change, to)
}

fn write(
    file: &TensorFile,
    metadata: Metadata,
    change: impl Fn(&TensorInfo) -> Option<(Encoding, Vec<u8>)>,
    to: PathBuf,
) -> PathBuf {
    let tensors = file.tensors().iter();
    let changed: Vec<(Encoding, Vec<u8>)> = tensors
        .map(|t| change(t).unwrap_or_else(|| (t.encoding, file.read(t).unwrap().to_vec())))
        .collect();
    let tensors = file.tensors().iter().zip(&changed);
    let tensors = tensors.map(|(t, (encoding, bytes))| PlannedTensor {
        name: t.name.clone(),
        encoding: *encoding,
        shape: t.shape.clone(),
        len: bytes.len() as u64,
    });
    let plan = WritePlan {
        metadata,
        tensors: tensors.collect(),
    };
    let header = Gguf.header(&plan).unwrap();
    let mut bytes = header.bytes.clone();
    for ((_, tensor), offset) in changed.iter().zip(&header.offsets) {
        bytes.resize(*offset as usize, 0);
        bytes.extend_from_slice(tensor);
    }
    bytes.resize(header.total as usize, 0);
    std::fs::write(&to, bytes).unwrap();
    to
}
