//! What lies beside the weights of a Hugging Face checkpoint.
//!
//! Invariant: a file that is copied is copied byte for byte; only `config.json` is rewritten, because
//! it says how the linears are stored, and of it only what changes.

use bitnet_checkpoint::{Checkpoint, HfStorage};
use bitnet_formats::{
    Container, FormatError, GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY, Gguf, Limits, MetaArray, MetaValue,
};
use serde_json::{Value, json};

/// The key transformers keeps a model's name under.
const NAME_KEY: &str = "_name_or_path";

/// The side files of a Hugging Face output.
pub fn collect(checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
    if checkpoint.file.container == Gguf.name() {
        let mut files = bitnet_text::tokenizer_files_from_gguf(&checkpoint.file.metadata)?;
        let pooling = bitnet_checkpoint::pooling_files(&checkpoint.config);
        if !pooling.is_empty() {
            // an embedding model generates nothing: stop tokens of its tokenizer are none of the model's
            files.retain(|(name, _)| name != "generation_config.json");
        }
        files.extend(
            pooling
                .into_iter()
                .map(|(name, json)| (name, pretty(&json))),
        );
        return Ok(files);
    }
    let Some(directory) = &checkpoint.directory else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for name in bitnet_checkpoint::side_file_names(directory, &Limits::default())? {
        if let Some(bytes) = checkpoint.side_file(&name)? {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

/// The name of the model, where the source has one. Never the name of a file or directory: the same
/// model gives the same bytes wherever it lies.
pub fn model_name(checkpoint: &Checkpoint) -> Option<String> {
    let name = if checkpoint.file.container == Gguf.name() {
        checkpoint.file.metadata.get("general.name")?.as_str()
    } else {
        checkpoint.config_json.as_ref()?.get(NAME_KEY)?.as_str()
    };
    name.filter(|n| !n.is_empty()).map(str::to_owned)
}

/// What a GGUF source says about its model (author, licence, tags) and no file of a Hugging Face checkpoint
/// has a place for, as text: for the metadata of the weights.
pub fn described(checkpoint: &Checkpoint) -> Vec<(String, String)> {
    if checkpoint.file.container != Gguf.name() {
        return Vec::new();
    }
    let own = ["general.name", "general.type"]; // `config.json` says these
    let describes =
        |key: &str| key.starts_with("general.") && is_carried(key) && !own.contains(&key);
    let keys = checkpoint.file.metadata.0.iter();
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

/// The `config.json` of a Hugging Face output.
pub fn config_json(checkpoint: &Checkpoint, storage: HfStorage) -> Vec<u8> {
    let original = checkpoint.config_json.as_ref();
    let mut config = checkpoint
        .family
        .hf_config_json(&checkpoint.config, original, storage);
    if let (None, Some(name), Value::Object(keys)) = (original, model_name(checkpoint), &mut config)
    {
        keys.insert(NAME_KEY.to_owned(), json!(name));
    }
    pretty(&config)
}

/// JSON as transformers writes it: two spaces, a line break at the end.
pub fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

/// Whether a key of one GGUF file belongs into another of the same model: what describes the model does
/// (author, licence, tokenizer, keys of other programs), what describes the file or is written anew does not.
pub fn is_carried(key: &str) -> bool {
    let about_the_file = [
        "general.architecture",
        "general.file_type",
        "general.quantization_version",
        "general.quantized_by",
        "general.alignment",
        GGUF_LAYOUT_KEY,
        GGUF_SPLIT_ID_KEY,
    ];
    let begins = ["split.", "quantize.", "ternary."];
    !about_the_file.contains(&key) && !begins.iter().any(|b| key.starts_with(b))
}
