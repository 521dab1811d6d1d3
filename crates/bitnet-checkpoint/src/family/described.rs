//! Keys of a GGUF header that describe the model: name, author, license, and what another file of it carries.
//!
//! Invariant: what describes the file, or is written anew, is never carried from one file to another.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::Family;
use super::gguf_keys::ARCHITECTURE;
use crate::rotation::ROTATION_KEYS;
use bitnet_formats::{
    GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY, MetaArray, MetaValue, Metadata, TensorFile,
};
use serde_json::{Value, json};

/// The key of the architecture.
pub const GGUF_ARCHITECTURE_KEY: &str = ARCHITECTURE;
/// The key of the type that most weights have (llama.cpp's `LLAMA_FTYPE`).
pub const GGUF_FILE_TYPE_KEY: &str = "general.file_type";
/// The key of the model's name.
const NAME: &str = "general.name";

fn text<'a>(metadata: &'a Metadata, key: &str) -> Option<&'a str> {
    metadata.get(key).and_then(MetaValue::as_str)
}

/// The architecture that metadata name, of any file.
pub fn gguf_architecture(file: &TensorFile) -> Option<&str> {
    text(&file.metadata, ARCHITECTURE)
}

/// The name of the model that metadata say.
pub(crate) fn gguf_name(file: &TensorFile) -> Option<&str> {
    text(&file.metadata, NAME)
}

/// Whether a key of one GGUF file belongs into another of the same model: what describes the model does
/// (author, license, tokenizer, keys of other programs), what describes the file or is written anew does not.
fn is_carried(key: &str) -> bool {
    let about_the_file = [
        ARCHITECTURE,
        GGUF_FILE_TYPE_KEY,
        "general.quantization_version",
        "general.quantized_by",
        "general.alignment",
        GGUF_LAYOUT_KEY,
        GGUF_SPLIT_ID_KEY,
    ];
    let begins = ["split.", "quantize.", "ternary.", ROTATION_KEYS];
    !about_the_file.contains(&key) && !begins.iter().any(|b| key.starts_with(b))
}

/// The keys that another file of the same model carries. Keys of the architecture were read under the name that the
/// source has for it; those under another name of the family are left out.
pub(crate) fn carried_keys<'a>(
    file: &'a TensorFile,
    family: &'static Family,
) -> impl Iterator<Item = (String, MetaValue)> + 'a {
    let is_stale = move |key: &str| {
        let mut others = family.gguf_architectures.iter().skip(1);
        others.any(|a| key.strip_prefix(a).is_some_and(|k| k.starts_with('.')))
    };
    let keys = file.metadata.0.iter();
    keys.filter(move |(key, _)| is_carried(key) && !is_stale(key))
        .cloned()
}

/// What the header says about the model besides its name, as text.
pub(crate) fn descriptions(file: &TensorFile) -> Vec<(String, String)> {
    let own = [NAME, "general.type"]; // `config.json` says these
    let describes =
        |key: &str| key.starts_with("general.") && is_carried(key) && !own.contains(&key);
    let keys = file.metadata.0.iter();
    keys.filter(|(key, _)| describes(key))
        .filter_map(|(key, value)| Some((key.clone(), as_text(value)?)))
        .collect()
}

/// A value as text, a list of strings as JSON; `None` for other arrays.
fn as_text(value: &MetaValue) -> Option<String> {
    match value {
        MetaValue::String(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        MetaValue::Bool(yes) => Some(yes.to_string()),
        MetaValue::Array(MetaArray::String(list)) => {
            let texts = list.iter().map(String::from_utf8_lossy);
            Some(texts.map(|text| json!(text)).collect::<Value>().to_string())
        }
        MetaValue::Array(_) => None,
        number => match number.as_u64() {
            Some(whole) => Some(whole.to_string()),
            None => number.as_f64().map(|n| n.to_string()),
        },
    }
}
