//! What files say about a rotation of their weights: metadata of GGUF, `hadamard.json` of MLX packs and
//! `hadamard_packing.json` of Hugging Face checkpoints (`formats/rotation.md`).
//!
//! Invariant: a file that says anything about a rotation says all of it and does not contradict itself, or is not
//! opened: a program that computes with such weights directly prints noise without any other sign.

mod keys;
mod manifest;
mod pack;
mod written;

pub(crate) use manifest::read_beside;
pub(crate) use pack::{files as pack_files, name as pack_name};
pub(crate) use written::{gguf_rotation, hf_rotation};

use super::Family;
use crate::config::Config;
use crate::rotation::{ROTATION_KEYS, Rotation};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError, MetaValue, Metadata, TensorFile};
use keys::{Keys, Names};
use serde_json::Value;
use std::collections::BTreeMap;

/// The one transform there is.
const TRANSFORM: &str = "normalized-sylvester-walsh-hadamard";
/// The axis it acts on.
const AXIS: &str = "input-last-dimension";
/// The file of MLX packs.
pub(crate) const MLX_FILE: &str = "hadamard.json";
/// The file of Hugging Face checkpoints.
pub(crate) const HF_FILE: &str = "hadamard_packing.json";
/// The `model_type` of such packs.
pub(crate) const MLX_PACK: &str = "prism_hadamard_qwen35";
/// The key of a `config.json` that names [`MLX_FILE`].
const MLX_KEY: &str = "hadamard_config";

/// The rotation that the metadata of a GGUF file declare.
///
/// # Errors
/// `unsupported-config` for one that this program does not know, `malformed` for one that contradicts itself or the
/// tensors of the file; the error names the key.
pub(crate) fn read_gguf(
    file: &TensorFile,
    family: &Family,
    config: &Config,
) -> Result<Option<Rotation>, FormatError> {
    let own = |(key, _): &&(String, _)| key.starts_with(ROTATION_KEYS);
    let entries: Vec<_> = file.metadata.0.iter().filter(own).cloned().collect();
    if entries.is_empty() {
        refuse_lost_keys(&file.metadata)?;
        return Ok(None);
    }
    let name = |slot| (family.gguf_tensor_name)(slot);
    let names = Names {
        slots: slots_by(config, name),
        is_there: &|name| file.tensor(name).is_some(),
        embeddings: name(Slot::TokenEmbeddings),
        head: name(Slot::OutputHead),
        has_own_head: file.tensor(&name(Slot::OutputHead)).is_some(),
        tiles_values: true,
    };
    Keys::new(Metadata(entries), |key| format!("{ROTATION_KEYS}{key}"))
        .read(&names, config)
        .map(Some)
}

/// Refuses a file that calls itself a model whose published weights are rotated, and says nothing of a rotation: a
/// program that does not know the keys dropped them.
fn refuse_lost_keys(metadata: &Metadata) -> Result<(), FormatError> {
    for key in ["general.name", "general.basename"] {
        let name = metadata.get(key).and_then(MetaValue::as_str).unwrap_or("");
        let lower = name.to_ascii_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let is_second = words.windows(2).any(|pair| pair == ["bonsai", "2"]);
        if is_second || words.contains(&"bonsai2") {
            let message = format!(
                "expected {ROTATION_KEYS}* in a file of {name}, whose weights are rotated, found no such key"
            );
            return Err(FormatError::new(ErrorCode::UnsupportedConfig, message)
                .in_tensor(key)
                .hint("convert the published file again: llama-quantize drops these keys, and without them every program computes noise"));
        }
    }
    Ok(())
}

/// Whether a `config.json` is that of a pack for MLX, whose keys no other checkpoint has.
pub(crate) fn is_pack(config_json: &Value) -> bool {
    config_json.get("model_type").is_some_and(|t| t == MLX_PACK)
}

/// Every place of a network, and that of an output head of its own, by name.
fn slots_by(config: &Config, name: impl Fn(Slot) -> String) -> BTreeMap<String, Vec<Slot>> {
    let mut slots = config.slots();
    slots.push(Slot::OutputHead);
    // the linears of all experts of a layer may be one tensor
    let mut by_name: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
    for slot in slots {
        by_name.entry(name(slot)).or_default().push(slot);
    }
    by_name
}
