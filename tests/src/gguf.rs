//! GGUF files made from others.
//!
//! Invariant: tensors keep their names, types, shapes and bytes; only the metadata changes.

use bitnet_formats::{Container, Gguf, Limits, Metadata, PlannedTensor, TensorFile, WritePlan};
use std::path::{Path, PathBuf};

/// The GGUF file at `model` with other metadata, written to `to`.
pub fn rewritten(model: &Path, to: PathBuf, change: impl FnOnce(&mut Metadata)) -> PathBuf {
    let file: TensorFile = bitnet_formats::open(model, &Limits::default()).unwrap();
    let mut metadata = file.metadata.clone();
    change(&mut metadata);
    let tensors = file.tensors().iter().map(|t| PlannedTensor {
        name: t.name.clone(),
        encoding: t.encoding,
        shape: t.shape.clone(),
        len: t.len,
    });
    let plan = WritePlan {
        metadata,
        tensors: tensors.collect(),
    };
    let header = Gguf.header(&plan).unwrap();
    let mut bytes = header.bytes.clone();
    for (tensor, offset) in file.tensors().iter().zip(&header.offsets) {
        bytes.resize(*offset as usize, 0);
        bytes.extend_from_slice(&file.read(tensor).unwrap());
    }
    bytes.resize(header.total as usize, 0);
    std::fs::write(&to, bytes).unwrap();
    to
}
