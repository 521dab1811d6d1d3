//! The `config.json` of a Hugging Face output.
//!
//! Invariant: it is rewritten, because it says how the linears are stored, and of it only what changes; every other
//! file beside the weights is copied byte for byte.

use bitnet_checkpoint::{Checkpoint, Config, HfStorage, NAME_KEY, Slot, pretty_json};
use serde_json::{Value, json};

/// The `config.json` of a Hugging Face output.
///
/// `predictors` is the number of blocks that predict further tokens and come from a file without a `config.json`.
pub fn config_json(checkpoint: &Checkpoint, storage: HfStorage, predictors: usize) -> Vec<u8> {
    let original = checkpoint.config_json.as_ref();
    let mut config = checkpoint
        .family
        .hf_config_json(&checkpoint.config, original, storage);
    if let (None, Some(name), Value::Object(keys)) = (original, checkpoint.name(), &mut config) {
        keys.insert(NAME_KEY.to_owned(), json!(name));
    }
    if predictors > 0 {
        checkpoint.family.add_predictors(&mut config, predictors);
    }
    pretty_json(&config)
}

/// `config.json` and `hadamard.json` of a pack of rotated weights for MLX, with the matrices that are stored as codes.
pub fn pack(checkpoint: &Checkpoint, config: &Config, coded: &[Slot]) -> Vec<(String, Vec<u8>)> {
    let original = checkpoint.config_json.as_ref();
    let files = checkpoint.family.pack_files(config, original, coded);
    let named = |(name, mut json): (&str, Value)| {
        if let (None, Some(model), Value::Object(keys)) = (original, checkpoint.name(), &mut json)
            && name == "config.json"
        {
            keys.insert(NAME_KEY.to_owned(), json!(model));
        }
        (name.to_owned(), pretty_json(&json))
    };
    files.into_iter().map(named).collect()
}
