//! What a certificate says of text: the tokenizer and the chat template, each by itself.
//!
//! Invariant: what cannot be certified is said to be so, with its reason; it is never left out, and
//! never makes a conversion fail that does not need it.

use super::json::Field;
use crate::checkpoint::Checkpoint;
use bitnet_formats::{FormatError, Metadata};
use bitnet_text::{ChatTemplates, TEMPLATE_TOKENS, TokenizerDigest};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What a certificate says of something that a model may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certified<T> {
    /// Nothing: it is of a version that did not.
    Unsaid,
    /// That it has no normal form, and why.
    Refused(String),
    /// What it is, or that there is none.
    Said(Option<T>),
}

impl<T> Certified<T> {
    fn of(found: Result<Option<T>, FormatError>) -> Self {
        match found {
            Ok(found) => Self::Said(found),
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

/// Tokenizer and chat template of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextDigest {
    /// How text becomes tokens and back.
    pub tokenizer: Certified<TokenizerDigest>,
    /// sha256 of the chat template's bytes.
    pub chat_template_sha256: Certified<String>,
    /// The same of the chat templates that have names; a certificate that says nothing of the chat template
    /// says nothing of these.
    pub additional_chat_templates: BTreeMap<String, String>,
}

/// The key of [`TextDigest::additional_chat_templates`].
const ADDITIONAL: &str = "additional_chat_templates";

impl TextDigest {
    /// Of an open model.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Self {
        Self::new(checkpoint.tokenizer_digest(), checkpoint.chat_templates())
    }

    /// Of the metadata of a GGUF file.
    pub fn of_gguf(metadata: &Metadata) -> Self {
        Self::new(
            TokenizerDigest::of_gguf(metadata),
            ChatTemplates::of_gguf(metadata),
        )
    }

    /// Of the files beside weights that are about to be written: name and bytes.
    pub fn of_files(files: &[(String, Vec<u8>)]) -> Self {
        Self::new(
            TokenizerDigest::of_files(files),
            ChatTemplates::of_files(files),
        )
    }

    fn new(
        tokenizer: Result<Option<TokenizerDigest>, FormatError>,
        templates: Result<ChatTemplates, FormatError>,
    ) -> Self {
        let (default, additional) = match templates.map(|templates| templates.hashes()) {
            Ok((default, additional)) => (Ok(default), additional),
            Err(error) => (Err(error), BTreeMap::new()),
        };
        Self {
            tokenizer: Certified::of(tokenizer),
            chat_template_sha256: Certified::of(default),
            additional_chat_templates: additional,
        }
    }

    /// The keys of a certificate.
    pub(super) fn to_json(&self) -> impl Iterator<Item = (&'static str, Value)> {
        let tokenizer = entry(&self.tokenizer, |digest| {
            let is_stated =
                |(key, part): &(&str, Value)| *key != TEMPLATE_TOKENS || !part.is_null();
            let parts = digest.parts().into_iter().filter(is_stated);
            let parts: Map<_, _> = parts.map(|(key, part)| (key.to_owned(), part)).collect();
            Value::Object(parts)
        });
        let template = entry(&self.chat_template_sha256, |sha256| json!(sha256));
        let additional = &self.additional_chat_templates;
        let additional = (!additional.is_empty()).then(|| json!(additional));
        [
            ("tokenizer", tokenizer),
            ("chat_template_sha256", template),
            (ADDITIONAL, additional),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
    }

    pub(super) fn from_json(root: &Field<'_>) -> Result<Self, FormatError> {
        Ok(Self {
            tokenizer: certified(root, "tokenizer", tokenizer_from_json)?,
            chat_template_sha256: certified(root, "chat_template_sha256", |f| f.digest())?,
            additional_chat_templates: additional_from_json(root)?,
        })
    }
}

fn entry<T>(certified: &Certified<T>, write: impl Fn(&T) -> Value) -> Option<Value> {
    match certified {
        Certified::Unsaid => None,
        Certified::Refused(why) => Some(json!({"refused": why})),
        Certified::Said(said) => Some(said.as_ref().map_or(Value::Null, write)),
    }
}

fn certified<T>(
    root: &Field<'_>,
    key: &str,
    read: impl Fn(&Field<'_>) -> Result<T, FormatError>,
) -> Result<Certified<T>, FormatError> {
    match root.value.get(key) {
        None => Ok(Certified::Unsaid),
        Some(Value::Null) => Ok(Certified::Said(None)),
        Some(value) if value.get("refused").is_some() => {
            Ok(Certified::Refused(root.at(key)?.at("refused")?.text()?))
        }
        Some(_) => read(&root.at(key)?).map(|found| Certified::Said(Some(found))),
    }
}

fn additional_from_json(root: &Field<'_>) -> Result<BTreeMap<String, String>, FormatError> {
    if root.value.get(ADDITIONAL).is_none() {
        return Ok(BTreeMap::new());
    }
    let field = root.at(ADDITIONAL)?;
    let Some(entries) = field.value.as_object() else {
        return Err(field.bad("an object of names and hashes"));
    };
    let entries = entries.keys();
    entries
        .map(|name| Ok((name.clone(), field.at(name)?.digest()?)))
        .collect()
}

fn tokenizer_from_json(field: &Field<'_>) -> Result<TokenizerDigest, FormatError> {
    let digest = |key: &str| field.at(key)?.digest();
    let ids = |key: &str| field.at(key)?.each(|id| id.token());
    let id = |key: &str| field.at(key)?.token_or_null();
    Ok(TokenizerDigest {
        tokens: field.at("tokens")?.size()?,
        vocabulary_sha256: digest("vocabulary_sha256")?,
        merges_sha256: digest("merges_sha256")?,
        added_tokens_sha256: digest("added_tokens_sha256")?,
        pre_tokenizer: field.at("pre_tokenizer")?.text()?,
        ignore_merges: field.at("ignore_merges")?.flag()?,
        decoder: field.at("decoder")?.text()?,
        prefix_token_ids: ids("prefix_token_ids")?,
        suffix_token_ids: ids("suffix_token_ids")?,
        bos_token_id: id("bos_token_id")?,
        eos_token_id: id("eos_token_id")?,
        stop_token_ids: ids("stop_token_ids")?,
        template_tokens: match field.value.get(TEMPLATE_TOKENS) {
            None => None,
            Some(_) => {
                let printed = field.at(TEMPLATE_TOKENS)?;
                let text = |key: &str| printed.at(key)?.text();
                Some((text("bos_token")?, text("eos_token")?))
            }
        },
    })
}
