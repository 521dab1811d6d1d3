//! What somebody who converts a tokenizer has to know: nothing is wrong with the file, but a reader of
//! the output does something else than a reader of the source.
//!
//! Invariant: a note has a stable code (`formats/report.md`) and names what differs.

use super::class::Class;
use super::class_rules::{self, TOKENIZER_JSON, TOKENIZER_MODEL};
use super::huggingface::normalizer_word;
use super::place::Place;
use super::pre_tokenizer::short;
use super::side_files::SideFiles;
use super::{HUGGINGFACE_JSON, Source};
use bitnet_formats::{FormatError, Metadata};
use serde_json::Value;
use std::path::Path;

/// Most tokens that a note lists.
const LISTED: usize = 8;

/// Something about a tokenizer that readers of the output have to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizerNote {
    /// A stable word.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
}

/// The source has no tokenizer.
pub(super) fn no_tokenizer() -> TokenizerNote {
    TokenizerNote {
        code: "no-tokenizer",
        message:
            "the source has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with \
                  merges.txt), so the output has none: it takes token ids only"
                .to_owned(),
    }
}

/// Added tokens that have no embedding row.
pub(super) fn without_row(dropped: &[(u32, String)], rows: usize) -> TokenizerNote {
    let texts = listed(
        dropped
            .iter()
            .map(|(id, text)| format!("`{}` ({id})", short(text))),
    );
    TokenizerNote {
        code: "token-without-row",
        message: format!(
            "the embedding has {rows} rows, and these added tokens have none: {texts}; \
             they are left out of the GGUF file"
        ),
    }
}

/// Added tokens of `tokenizer.json` that the class does not take.
pub(super) fn lost(lost: &[(u32, String)], class: &Class) -> Option<TokenizerNote> {
    let texts = listed(
        lost.iter()
            .map(|(id, text)| format!("`{}` ({id})", short(text))),
    );
    (!lost.is_empty()).then(|| TokenizerNote {
        code: "added-token-not-taken",
        message: format!(
            "transformers 5 builds `{}` with the added tokens of tokenizer_config.json alone, and \
             these tokens of tokenizer.json are not among them: {texts}; they are ordinary text",
            class.name()
        ),
    })
}

fn listed(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    let mut list = texts
        .iter()
        .take(LISTED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if let more @ 1.. = texts.len().saturating_sub(LISTED) {
        list.push_str(&format!(" and {more} more"));
    }
    list
}

impl Source<'_> {
    /// What readers of a GGUF file do otherwise than this tokenizer.
    pub(super) fn notes(&self) -> Vec<TokenizerNote> {
        let value = &self.parsed.value;
        let mut notes = Vec::new();
        let normalizer = value.get("normalizer").unwrap_or(&Value::Null);
        if normalizer_word(normalizer) == Some("nfc") {
            notes.push(TokenizerNote {
                code: "normalizer-not-in-gguf",
                message: "tokenizer.json normalizes text to NFC, and llama.cpp does not: there, \
                          text with combining marks (e + U+0301 for \u{e9}) becomes other tokens"
                    .to_owned(),
            });
        }
        let added = value.get("added_tokens").and_then(Value::as_array);
        let flags = ["lstrip", "rstrip", "single_word"];
        let flagged = added.into_iter().flatten().filter_map(|token| {
            let is_set = |key: &&&str| token.get(**key).and_then(Value::as_bool) == Some(true);
            let set: Vec<&str> = flags.iter().filter(is_set).copied().collect();
            let text = token.get("content")?.as_str()?;
            (!set.is_empty()).then(|| format!("`{}` ({})", short(text), set.join(", ")))
        });
        let flagged = listed(flagged);
        if !flagged.is_empty() {
            notes.push(TokenizerNote {
                code: "token-flags-not-in-gguf",
                message: format!(
                    "GGUF has no key for these flags of added tokens, and llama.cpp ignores them: \
                     {flagged}"
                ),
            });
        }
        notes.extend(self.class_note());
        notes
    }

    fn class_note(&self) -> Option<TokenizerNote> {
        let message = self.side.class.departs(&self.parsed.value, &self.side)?;
        (self.pieces.is_none()).then_some(TokenizerNote {
            code: "tokenizer-class",
            message,
        })
    }
}

/// What is to be known about the tokenizer of a directory that is copied as it is: that there is none.
/// No vocabulary is read.
pub fn notes_of_directory(dir: &Path) -> Vec<TokenizerNote> {
    let place = Place::Directory(dir);
    let has = [TOKENIZER_JSON, TOKENIZER_MODEL]
        .iter()
        .any(|name| place.has(name));
    match has || class_rules::has_other_forms(place) {
        true => Vec::new(),
        false => vec![no_tokenizer()],
    }
}

/// As [`notes_of_directory`], of a GGUF file.
pub fn notes_of_gguf(metadata: &Metadata) -> Vec<TokenizerNote> {
    match has_gguf_tokenizer(metadata) {
        true => Vec::new(),
        false => vec![no_tokenizer()],
    }
}

/// Whether GGUF metadata have a tokenizer; single keys of special tokens are none.
pub fn has_gguf_tokenizer(metadata: &Metadata) -> bool {
    let model = metadata.get("tokenizer.ggml.model");
    let model = model.map(|value| value.as_str().unwrap_or_default());
    metadata.get(HUGGINGFACE_JSON).is_some()
        || model.is_some_and(|model| !matches!(model, "none" | "no_vocab"))
}

/// How transformers 5 departs from the `tokenizer.json` of a directory because of its class.
///
/// # Errors
/// As [`super::Tokenizer::from_directory`].
pub fn tokenizer_class_note(dir: &Path) -> Result<Option<TokenizerNote>, FormatError> {
    let place = Place::Directory(dir);
    let Some(bytes) = place.read(TOKENIZER_JSON)? else {
        return Ok(None);
    };
    let value = super::json::read(bitnet_formats::without_byte_order_mark(&bytes))?.rules;
    let mut side = SideFiles::read(place)?;
    side.class = Class::of(&side, Some(&value));
    let message = side.class.departs(&value, &side);
    Ok(message.map(|message| TokenizerNote {
        code: "tokenizer-class",
        message,
    }))
}
