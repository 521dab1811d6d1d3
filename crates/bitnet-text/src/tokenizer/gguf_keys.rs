//! What the tokenizer keys of a GGUF header say, without a tokenizer being built from them.
//!
//! Invariant: a key of another type counts as absent.

use bitnet_formats::{MetaArray, MetaValue, Metadata, Strings};

/// The key of the word for the pre-tokenizer.
pub const GGUF_PRE_TOKENIZER: &str = "tokenizer.ggml.pre";
/// The key of the token that ends a turn.
pub const GGUF_END_OF_TURN: &str = "tokenizer.ggml.eot_token_id";
/// The key of the token that ends a message.
const END_OF_MESSAGE: &str = "tokenizer.ggml.eom_token_id";
/// What all tokenizer keys that llama.cpp reads begin with.
const KEYS: &str = "tokenizer.ggml.";

/// The tokenizer that a GGUF header describes.
#[derive(Debug, Clone, Copy, Default)]
pub struct GgufTokenizerKeys<'a> {
    /// The kind of tokenizer: `gpt2`, `llama`.
    pub model: Option<&'a str>,
    /// The word for the pre-tokenizer.
    pub pre_tokenizer: Option<&'a str>,
    /// The vocabulary.
    pub tokens: Option<&'a Strings>,
}

impl<'a> GgufTokenizerKeys<'a> {
    /// What metadata say.
    pub fn of(metadata: &'a Metadata) -> Self {
        let text = |key: &str| metadata.get(key).and_then(MetaValue::as_str);
        Self {
            model: text("tokenizer.ggml.model"),
            pre_tokenizer: text(GGUF_PRE_TOKENIZER),
            tokens: match metadata.get("tokenizer.ggml.tokens") {
                Some(MetaValue::Array(MetaArray::String(tokens))) => Some(tokens),
                _ => None,
            },
        }
    }

    /// Whether the vocabulary is one of byte-level BPE, whose readers need a pre-tokenizer.
    pub fn is_byte_level(&self) -> bool {
        self.model == Some("gpt2")
    }
}

/// The tokens that end a turn and a message, where metadata name them.
pub fn gguf_ends_of_turn(metadata: &Metadata) -> impl Iterator<Item = u32> {
    let id = |key: &str| {
        let id = metadata.get(key)?.as_u64()?;
        // llama.cpp writes 4294967295 for none
        u32::try_from(id).ok().filter(|id| *id != u32::MAX)
    };
    [id(GGUF_END_OF_TURN), id(END_OF_MESSAGE)]
        .into_iter()
        .flatten()
}

/// Whether llama.cpp reads a key of metadata as one of the tokenizer.
pub fn is_gguf_tokenizer_key(key: &str) -> bool {
    key.starts_with(KEYS)
}
