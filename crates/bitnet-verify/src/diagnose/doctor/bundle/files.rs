//! Configurations, templates and settings beside the weights.
//!
//! Invariant: a file is taken byte for byte, or it is listed under `changed` with the reason. Files are read with the
//! rules for files of strangers: no link leads out of the repository.

use super::archive::Entries;
use super::keep;
use super::text::is_text;
use crate::local::{Public, is_secret_key};
use bitnet_formats::{Sha256Stream, read_side_file};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Files that are taken, in the order of their importance.
pub(super) const FILES: [&str; 24] = [
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "quantization_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "hadamard.json",
    "hadamard_packing.json",
    "adapter_config.json",
    "params.json",
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "preprocessor_config.json",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "vocab.json",
];
/// A directory of templates with names.
const TEMPLATES: &str = "additional_chat_templates";
/// Templates with names that are taken.
const MOST_TEMPLATES: usize = 16;

/// Largest file that is read: tokenizers are, to say what they hold besides the vocabulary.
const READ: u64 = 64 << 20;
/// Largest file that is taken.
const TAKEN: usize = 1 << 20;
/// Largest text that is taken without that its parts are known: a template, or JSON that does not parse.
const PLAIN: usize = 256 << 10;
/// What is said of the files.
#[derive(Default)]
pub(super) struct Notes {
    /// Name, size and hash of each.
    pub(super) files: Vec<Value>,
    /// Names and reasons.
    pub(super) changed: Map<String, Value>,
    /// Names and reasons.
    pub(super) left_out: Map<String, Value>,
}

/// Takes the files of a directory.
pub(super) fn collect(directory: &Path, public: &Public, entries: &mut Entries, notes: &mut Notes) {
    let mut names: Vec<String> = FILES.iter().map(|name| (*name).to_owned()).collect();
    let templates = std::fs::read_dir(directory.join(TEMPLATES));
    let templates = templates.into_iter().flatten().flatten();
    let mut templates: Vec<String> = templates
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.ends_with(".jinja") && name.len() < 100 && is_text(name))
        .map(|name| format!("{TEMPLATES}/{name}"))
        .collect();
    templates.sort();
    templates.truncate(MOST_TEMPLATES);
    names.extend(templates);
    for name in names {
        let bytes = match read_side_file(directory, &name, READ) {
            Ok(None) => continue,
            Ok(Some(bytes)) => bytes,
            Err(error) => {
                let why = format!("{}: {}", error.code.as_str(), error.message);
                notes.left_out.insert(name, public.text(&why).into());
                continue;
            }
        };
        notes.files.push(json!({
            "name": name,
            "bytes": bytes.len(),
            "sha256": sha256(&bytes),
        }));
        take(&name, &bytes, public, entries, notes);
    }
}

fn sha256(bytes: &[u8]) -> Value {
    let mut stream = Sha256Stream::new();
    stream.update(bytes);
    stream.finish().map_or(Value::Null, Value::from)
}

/// Whether a text in quotes is the name of a secret.
fn names_a_secret(text: &str) -> bool {
    text.split('"').any(is_secret_key)
}

fn take(name: &str, bytes: &[u8], public: &Public, entries: &mut Entries, notes: &mut Notes) {
    let Some(text) = std::str::from_utf8(bytes).ok().filter(|t| is_text(t)) else {
        notes.left_out.insert(name.to_owned(), "not text".into());
        return;
    };
    let is_vocabulary = matches!(name, "vocab.json" | "added_tokens.json");
    let (taken, why) = match keep::parse(text, is_vocabulary) {
        Some((value, is_cut)) => {
            let clean = cleaned(&value, public);
            match (is_cut, clean == value) {
                (false, true) => (text.to_owned(), None),
                (false, false) => (format!("{clean:#}\n"), Some(SHORTENED)),
                (true, _) => (format!("{clean:#}\n"), Some(CUT)),
            }
        }
        // keys of broken JSON cannot be told from values, so none of it is taken if one may name a secret
        None if text.len() > PLAIN || name.ends_with(".json") && names_a_secret(text) => {
            let why = "not JSON, and it is long or may hold a secret";
            notes.left_out.insert(name.to_owned(), why.into());
            return;
        }
        None => {
            let clean = public.text(text);
            match clean == text {
                true => (clean, None),
                false => (clean, Some(SHORTENED)),
            }
        }
    };
    let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&taken).is_ok();
    if taken.len() > if is_json { TAKEN } else { PLAIN } {
        let why = format!("{} bytes are more than a bundle takes", bytes.len());
        notes.left_out.insert(name.to_owned(), why.into());
        return;
    }
    if !entries.add(format!("files/{name}"), taken.into_bytes()) {
        notes.left_out.insert(name.to_owned(), FULL.into());
    } else if let Some(why) = why {
        notes.changed.insert(name.to_owned(), why.into());
    }
}

const SHORTENED: &str = "paths are shortened, and what looks like a secret is removed";
const CUT: &str = "long lists and vocabularies are cut to their first entries";
const FULL: &str = "the bundle is full";

/// A chat template of metadata becomes a file; what stands in its place.
pub(super) fn template(
    key: &str,
    bytes: &[u8],
    public: &Public,
    entries: &mut Entries,
    notes: &mut Notes,
) -> Value {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let file: String = key
        .chars()
        .take(100)
        .map(|c| if plain(c) { c } else { '_' })
        .collect();
    let name = format!("{file}.jinja");
    let is_new = !notes.left_out.contains_key(&name) && !notes.changed.contains_key(&name);
    match std::str::from_utf8(bytes) {
        Ok(text) if is_text(text) && text.len() <= PLAIN && is_new => {
            let clean = public.text(text);
            let is_changed = clean != text;
            if entries.add(format!("files/{name}"), clean.into_bytes()) {
                if is_changed {
                    notes.changed.insert(name.clone(), SHORTENED.into());
                }
                return json!({"bytes": bytes.len(), "file": format!("files/{name}")});
            }
            json!({"bytes": bytes.len(), "not_shown": FULL})
        }
        Ok(text) if is_text(text) => {
            json!({"bytes": bytes.len(), "not_shown": "more than a bundle takes"})
        }
        _ => json!({"bytes": bytes.len(), "not_shown": "not text"}),
    }
}

/// The value with names in place of paths, and without secrets.
pub(super) fn cleaned(value: &Value, public: &Public) -> Value {
    match value {
        Value::String(text) => public.text(text).into(),
        Value::Array(list) => list.iter().map(|v| cleaned(v, public)).collect(),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| {
                let is_secret = is_secret_key(key) && value.as_str().is_some_and(|s| !s.is_empty());
                let value = match is_secret {
                    true => json!("[removed]"),
                    false => cleaned(value, public),
                };
                (public.text(key), value)
            };
            Value::Object(map.iter().map(entry).collect())
        }
        other => other.clone(),
    }
}
