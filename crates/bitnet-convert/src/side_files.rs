//! The `config.json` of a Hugging Face output.
//!
//! Invariant: it is rewritten, because it says how the linears are stored, and of it only what changes; every other
//! file beside the weights is copied byte for byte.

use bitnet_checkpoint::{Checkpoint, HfStorage, NAME_KEY, pretty_json};
use serde_json::{Value, json};

/// The `config.json` of a Hugging Face output.
pub fn config_json(checkpoint: &Checkpoint, storage: HfStorage) -> Vec<u8> {
    let original = checkpoint.config_json.as_ref();
    let mut config = checkpoint
        .family
        .hf_config_json(&checkpoint.config, original, storage);
    if let (None, Some(name), Value::Object(keys)) = (original, checkpoint.name(), &mut config) {
        keys.insert(NAME_KEY.to_owned(), json!(name));
    }
    pretty_json(&config)
}
