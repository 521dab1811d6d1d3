//! The JSON files beside a tokenizer: which tokens are special, when to stop, the chat template.
//!
//! Invariant: a file larger than [`Limits::json_bytes`] is not read, and a key of an unexpected type
//! counts as absent (these files are written by hand and vary), except where the JSON is broken.

use super::huggingface::Specials;
use bitnet_formats::{ErrorCode, FormatError, Limits};
use serde_json::Value;
use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Texts that end a turn; their tokens stop generation even where no config says so.
pub(super) const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];

/// Where the files of a tokenizer are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// A checkpoint directory.
    Directory(&'a Path),
    /// Files that are about to be written: name and bytes.
    Written(&'a [(String, Vec<u8>)]),
}

impl<'a> Place<'a> {
    /// The path of a file, for messages.
    pub(super) fn path(self, name: &str) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(name),
            Self::Written(_) => name.into(),
        }
    }

    /// Reads a file of at most the limit; `None` if it is absent.
    pub(super) fn read(self, name: &str) -> Result<Option<Cow<'a, [u8]>>, FormatError> {
        let dir = match self {
            Self::Directory(dir) => dir,
            Self::Written(files) => {
                let file = files.iter().find(|(written, _)| written == name);
                return Ok(file.map(|(_, bytes)| Cow::Borrowed(bytes.as_slice())));
            }
        };
        let path = dir.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FormatError::io(&path, &e)),
        };
        let limit = Limits::default().json_bytes;
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| FormatError::io(&path, &e))?;
        if bytes.len() as u64 > limit {
            return Err(FormatError::new(
                ErrorCode::LimitExceeded,
                format!("larger than {limit} bytes"),
            )
            .in_file(&path));
        }
        Ok(Some(Cow::Owned(bytes)))
    }

    fn json(self, name: &str) -> Result<Value, FormatError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(Value::Null);
        };
        serde_json::from_slice(&bytes).map_err(|e| {
            FormatError::new(ErrorCode::Malformed, e.to_string()).in_file(&self.path(name))
        })
    }
}

/// What stands beside the tokenizer.
#[derive(Debug, Default)]
pub(super) struct SideFiles {
    config: Value,
    generation: Value,
    tokenizer: Value,
    special_map: Value,
    added: Value,
    pub(super) chat_template: Option<String>,
}

impl SideFiles {
    /// Reads what there is.
    pub(super) fn read(place: Place<'_>) -> Result<Self, FormatError> {
        let tokenizer = place.json("tokenizer_config.json")?;
        // transformers prefers the file of its own over the key
        let chat_template = match place.read("chat_template.jinja")? {
            Some(bytes) => Some(String::from_utf8(bytes.into_owned()).map_err(|_| {
                FormatError::new(ErrorCode::ChatTemplate, "not UTF-8")
                    .in_file(&place.path("chat_template.jinja"))
            })?),
            None => match template(&tokenizer) {
                Some(template) => Some(template),
                None => template(&place.json("chat_template.json")?),
            },
        };
        Ok(Self {
            config: place.json("config.json")?,
            generation: place.json("generation_config.json")?,
            special_map: place.json("special_tokens_map.json")?,
            added: place.json("added_tokens.json")?,
            tokenizer,
            chat_template,
        })
    }

    /// The text of `bos`, `eos`, `unk` or `pad` that the tokenizer's own files give.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let key = format!("{name}_token");
        [&self.tokenizer, &self.special_map]
            .into_iter()
            .find_map(|file| {
                let value = file.get(&key)?;
                value.as_str().or_else(|| value.get("content")?.as_str())
            })
    }

    /// The ids that the model's files give, `config.json` first.
    pub(super) fn ids(&self, name: &str) -> Vec<u32> {
        let key = format!("{name}_token_id");
        let mut out = Vec::new();
        for value in [
            self.config.get(&key),
            self.config.pointer(&format!("/text_config/{key}")),
            self.generation.get(&key),
        ] {
            match value {
                Some(Value::Array(list)) => out.extend(list.iter().filter_map(number)),
                Some(value) => out.extend(number(value)),
                None => {}
            }
        }
        out
    }

    /// The id of `bos`, `eos`, `unk` or `pad`.
    pub(super) fn id(&self, name: &str, lookup: impl Fn(&str) -> Option<u32>) -> Option<u32> {
        self.text(name)
            .and_then(lookup)
            .or_else(|| self.ids(name).first().copied())
    }

    /// Ids that these files name as ends of a text, the tokenizer's own first.
    pub(super) fn stop(&self, special: &Specials) -> Vec<u32> {
        special.eos.into_iter().chain(self.ids("eos")).collect()
    }

    /// A flag of `tokenizer_config.json`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.tokenizer.get(key)?.as_bool()
    }

    /// Tokens on top of a sentencepiece model: id, text, special.
    pub(super) fn added(&self) -> Vec<(u32, String, bool)> {
        let names: Vec<&str> = ["bos", "eos", "unk", "pad"]
            .into_iter()
            .filter_map(|n| self.text(n))
            .collect();
        let plain = self
            .added
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(text, id)| {
                Some((number(id)?, text.clone(), names.contains(&text.as_str())))
            });
        let described = self
            .tokenizer
            .get("added_tokens_decoder")
            .and_then(Value::as_object);
        let described = described.into_iter().flatten().filter_map(|(id, token)| {
            let special = token
                .get("special")
                .and_then(Value::as_bool)
                .unwrap_or(false);
            Some((
                id.parse().ok()?,
                token.get("content")?.as_str()?.to_owned(),
                special,
            ))
        });
        // the description comes last and wins
        plain.chain(described).collect()
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|v| u32::try_from(v).ok())
}

/// A template under `chat_template`: a text, or a list of named ones of which `default` is meant.
fn template(file: &Value) -> Option<String> {
    match file.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let named =
                |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            let only = (list.len() == 1).then(|| list.first()).flatten();
            list.iter()
                .find(named)
                .or(only)?
                .get("template")?
                .as_str()
                .map(str::to_owned)
        }
        _ => None,
    }
}
