//! What headers say of files that are not, or not yet, open as a checkpoint.
//!
//! Invariant: no tensor is read.

use super::directory_of;
use crate::family;
use bitnet_formats::{Container, GGUF_LAYOUT_KEY, Gguf, Limits, TensorFile, read_side_file};
use std::path::Path;

/// Whether a family takes the network of a file, by its metadata or the `config.json` beside it. A configuration
/// that cannot be read at all counts as known: opening it reports what is wrong.
pub fn has_known_family(path: &Path, file: &TensorFile) -> bool {
    if brings_everything(file) {
        return family::family_of_gguf(file).is_ok();
    }
    let limit = Limits::default().config_bytes;
    match read_side_file(directory_of(path), "config.json", limit) {
        Ok(None) => false,
        Ok(Some(bytes)) => {
            let json = family::parse_json(&bytes).map(family::language_model);
            json.map_or(true, |(json, _)| family::family_of_config(&json).is_ok())
        }
        Err(_) => true,
    }
}

/// Whether a file is read by its own metadata, and not by a `config.json` beside it.
pub(super) fn brings_everything(file: &TensorFile) -> bool {
    file.container == Gguf.name() || file.metadata.get(family::GGUF_ARCHITECTURE_KEY).is_some()
}

/// Whether a file holds a vocabulary and no weights.
pub fn is_vocabulary_alone(file: &TensorFile) -> bool {
    file.container == Gguf.name() && file.tensors().is_empty()
}

/// Whether a file says which of several layouts of one type id its tensors have.
pub fn records_layout(file: &TensorFile) -> bool {
    file.metadata.get(GGUF_LAYOUT_KEY).is_some()
}
