//! The text of a model: tokenizer, chat template, and the files or keys that hold them.
//!
//! Invariant: everything about text is asked here, once for files beside the weights and once for the metadata of
//! a file that brings everything along; nobody else chooses between the two.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Checkpoint, side_file_names};
use crate::family;
use bitnet_formats::{FormatError, Limits, MetaValue, Metadata};
use bitnet_text::{
    ChatTemplates, GgufTokenizerKeys, Tokenizer, TokenizerDigest, TokenizerNote,
    has_gguf_tokenizer, is_refused_tokenizer, normal_template_names, notes_of_directory,
    notes_of_gguf, tokenizer_class_note, tokenizer_files_from_gguf, tokenizer_to_gguf,
};
use serde_json::Value;

/// Files beside the weights that a tokenizer can be in, the one that is taken first.
const TOKENIZER_FILES: [&str; 3] = ["tokenizer.json", "tokenizer.model", "vocab.json"];

/// A tokenizer for people: where it is, and how many tokens it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenizerSummary {
    /// The file it is in, or what the metadata call it.
    pub name: Option<String>,
    /// Tokens, if it can be read.
    pub tokens: Option<u64>,
}

impl Checkpoint {
    /// The tokenizer: that of the files beside the weights, else that of the metadata. `None` if there is none.
    ///
    /// # Errors
    /// A tokenizer that cannot be read.
    pub fn tokenizer(&self) -> Result<Option<Tokenizer>, FormatError> {
        match &self.directory {
            Some(directory) => Tokenizer::from_directory(directory),
            None => Tokenizer::from_gguf(&self.file.metadata),
        }
    }

    /// The digest of the tokenizer.
    ///
    /// # Errors
    /// A tokenizer without a normal form.
    pub fn tokenizer_digest(&self) -> Result<Option<TokenizerDigest>, FormatError> {
        match &self.directory {
            Some(directory) => TokenizerDigest::of_directory(directory),
            None => TokenizerDigest::of_gguf(&self.file.metadata),
        }
    }

    /// The chat templates, with and without names.
    ///
    /// # Errors
    /// A template that cannot be read, or whose name cannot be kept.
    pub fn chat_templates(&self) -> Result<ChatTemplates, FormatError> {
        match &self.directory {
            Some(directory) => ChatTemplates::of_directory(directory),
            None => ChatTemplates::of_gguf(&self.file.metadata),
        }
    }

    /// What readers of the model have to know about its tokenizer. No vocabulary is read.
    pub fn tokenizer_notes(&self) -> Vec<TokenizerNote> {
        match &self.directory {
            Some(directory) => notes_of_directory(directory),
            None => notes_of_gguf(&self.file.metadata),
        }
    }

    /// How transformers departs from the tokenizer in the files beside the weights.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub fn tokenizer_class_note(&self) -> Result<Option<TokenizerNote>, FormatError> {
        match &self.directory {
            Some(directory) => tokenizer_class_note(directory),
            None => Ok(None),
        }
    }

    /// Refuses rules of the tokenizer in the files beside the weights that this program does not know.
    ///
    /// # Errors
    /// `tokenizer`.
    pub fn check_tokenizer_rules(&self) -> Result<(), FormatError> {
        match &self.directory {
            Some(directory) => bitnet_text::check_tokenizer_rules(directory),
            None => Ok(()),
        }
    }

    /// What keys that other readers use say otherwise than the tokenizer: key, expected, found.
    ///
    /// # Errors
    /// Keys that cannot be read.
    pub fn contradicting_tokenizer_keys(
        &self,
        digest: &TokenizerDigest,
    ) -> Result<Vec<(&'static str, String, String)>, FormatError> {
        match &self.directory {
            Some(_) => Ok(Vec::new()),
            None => digest.contradicted_by_gguf_keys(&self.file.metadata),
        }
    }

    /// The tokenizer for people.
    ///
    /// # Errors
    /// A tokenizer with rules that this program does not know.
    pub fn tokenizer_summary(&self) -> Result<TokenizerSummary, FormatError> {
        let Some(directory) = &self.directory else {
            let keys = GgufTokenizerKeys::of(&self.file.metadata);
            let name = |model: &str| match keys.pre_tokenizer {
                Some(pre) => format!("{model} ({pre})"),
                None => model.to_owned(),
            };
            return Ok(TokenizerSummary {
                name: keys.model.map(name),
                tokens: keys.tokens.map(|tokens| tokens.len() as u64),
            });
        };
        let is_there = |name: &&&str| directory.join(name).is_file();
        let Some(name) = TOKENIZER_FILES.iter().find(is_there) else {
            return Ok(TokenizerSummary::default());
        };
        // a tokenizer that does not load is worth knowing, but not a reason to say nothing
        let tokens = match self.tokenizer() {
            Ok(tokenizer) => tokenizer.map(|tokenizer| tokenizer.vocab_size() as u64),
            Err(error) if is_refused_tokenizer(&error) => return Err(error),
            Err(_) => None,
        };
        Ok(TokenizerSummary {
            name: Some((*name).to_owned()),
            tokens,
        })
    }

    /// The word for the pre-tokenizer, of a model whose metadata need one: `missing` where it is not there.
    pub fn stated_pre_tokenizer(&self) -> Option<&str> {
        let keys = GgufTokenizerKeys::of(&self.file.metadata);
        keys.is_byte_level()
            .then(|| keys.pre_tokenizer.unwrap_or("missing"))
    }

    /// The tokenizer as metadata of a GGUF file say it; `None` if there is none.
    ///
    /// # Errors
    /// A tokenizer that such metadata cannot express.
    pub fn gguf_tokenizer(&self) -> Result<Option<Vec<(String, MetaValue)>>, FormatError> {
        let mut pairs: Vec<(String, MetaValue)> = match &self.directory {
            Some(directory) => tokenizer_to_gguf(directory, self.config.vocab_size)?,
            // single ids without a tokenizer are settings of the network, compared as such
            None if !has_gguf_tokenizer(&self.file.metadata) => return Ok(None),
            None => {
                // llama.cpp writes ids of 4294967295 for tokens that the model does not have
                let is_none = |key: &str, value: &MetaValue| {
                    key.ends_with("_token_id") && value.as_u64() == Some(u64::from(u32::MAX))
                };
                let pairs = self.file.metadata.0.iter();
                pairs
                    .filter(|(key, value)| key.starts_with("tokenizer.") && !is_none(key, value))
                    .cloned()
                    .collect()
            }
        };
        normal_template_names(&mut pairs);
        Ok((!pairs.is_empty()).then_some(pairs))
    }

    /// Adds to the metadata of a GGUF file what they say besides the network: the tokenizer, and the keys of a GGUF
    /// source that describe the model. What readers of the output have to know about the tokenizer.
    ///
    /// # Errors
    /// A tokenizer that such metadata cannot express.
    pub fn add_gguf_text(
        &self,
        metadata: &mut Metadata,
    ) -> Result<Vec<TokenizerNote>, FormatError> {
        if let Some(directory) = &self.directory {
            let (entries, notes) =
                bitnet_text::tokenizer_to_gguf_with_notes(directory, self.config.vocab_size)?;
            for (key, value) in entries {
                metadata.set(key, value);
            }
            return Ok(notes);
        }
        metadata.add_missing(family::carried_keys(&self.file, self.family));
        Ok(notes_of_gguf(metadata))
    }

    /// The files beside the weights of a checkpoint directory of this model, but for `config.json`: those that lie
    /// there, or those that the metadata make.
    ///
    /// # Errors
    /// Files that cannot be read; metadata that make no tokenizer.
    pub fn side_files(&self) -> Result<Vec<(String, Vec<u8>)>, FormatError> {
        let mut files = Vec::new();
        if let Some(directory) = &self.directory {
            for name in side_file_names(directory, &Limits::default())? {
                if let Some(bytes) = self.side_file(&name)? {
                    files.push((name, bytes));
                }
            }
            return Ok(files);
        }
        files.extend(tokenizer_files_from_gguf(&self.file.metadata)?);
        let pooling = family::pooling_files(&self.config);
        if !pooling.is_empty() {
            // an embedding model generates nothing: stop tokens of its tokenizer are none of the model's
            files.retain(|(name, _)| name != "generation_config.json");
        }
        files.extend(
            pooling
                .into_iter()
                .map(|(name, json)| (name, pretty_json(&json))),
        );
        Ok(files)
    }
}

/// JSON as transformers writes it: two spaces, a line break at the end.
pub fn pretty_json(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
