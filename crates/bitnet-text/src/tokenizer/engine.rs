//! A tokenizer that encodes: our model under the `tokenizers` crate's rules.
//!
//! Invariant: this is the one place that calls the crate. A panic inside it is an error of this
//! program, and its message is not printed.

use super::bpe::Bpe;
use super::cut::{self, Cuts, Steps};
use super::json::{ADDED_TOKENS, Reading, exceeded, refuse};
use super::pre_tokenizer::short;
use bitnet_formats::{ErrorCode, FormatError};
use serde::Deserialize;
use serde_json::Value;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use tokenizers::{
    AddedToken, DecoderWrapper, PostProcessor, PostProcessorWrapper, TokenizerBuilder,
    TokenizerImpl,
};

/// The place of errors that the library's panics become.
pub(super) const LIBRARY: &str = "tokenizer";
/// Longest added token, bytes.
const LONGEST_ADDED: usize = 4096;
/// Most tokens that a post-processor may put around a text.
const MOST_AROUND: usize = 1024;
/// Most bytes that the crate may look at for added tokens that take spaces along or are whole words:
/// it looks at the whole text in front of each of them.
const MOST_LOOKED_AT: u64 = 1 << 32;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic inside is an error that names `what`. The panic hook of the process is
/// replaced once, by one that is silent on threads that are in here.
fn caught<T>(what: &str, work: impl FnOnce() -> Result<T, FormatError>) -> Result<T, FormatError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(outer);
    done.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(FormatError::new(
            ErrorCode::Tokenizer,
            format!(
                "the tokenizers library failed while {what}: {}",
                short(text).replace(['\n', '\r'], " ")
            ),
        )
        .in_tensor(LIBRARY))
    })
}

type Library = TokenizerImpl<Bpe, Steps, Cuts, PostProcessorWrapper, DecoderWrapper>;

/// A tokenizer that encodes.
#[derive(Debug)]
pub(super) struct Engine {
    inner: Library,
    /// Added tokens for which the crate looks at the whole text in front.
    costly: Vec<String>,
}

impl Engine {
    /// Builds what a file says; also gives back the rules.
    pub(super) fn new(reading: Reading) -> Result<(Self, Value), FormatError> {
        let Reading { rules, bpe } = reading;
        let engine = caught("reading the tokenizer", || {
            cut::watched(0, || Self::build(&rules, bpe))
        })?;
        Ok((engine, rules))
    }

    fn build(rules: &Value, bpe: Bpe) -> Result<Self, FormatError> {
        let rule = |key: &str| rules.get(key).unwrap_or(&Value::Null);
        match rule("version") {
            Value::Null => {}
            version if version.as_str() == Some("1.0") => {}
            version => {
                return Err(refuse(
                    "version",
                    format!("{}, expected \"1.0\"", short(&version.to_string())),
                ));
            }
        }
        let optional = |key: &str| Some(rule(key)).filter(|rule| !rule.is_null());
        let normalizer = Steps::new(rule("normalizer"))?;
        let pre_tokenizer = Cuts::new(rule("pre_tokenizer"))?;
        let post = optional("post_processor")
            .map(|rule| cut::library::<PostProcessorWrapper>(rule, "post_processor"))
            .transpose()?;
        // decoding is our own; the crate only checks the fields
        if let Some(decoder) = optional("decoder") {
            let _: DecoderWrapper = cut::library(decoder, "decoder")?;
        }
        if let Some(post) = &post {
            let around = post.added_tokens(false);
            if around > MOST_AROUND {
                return Err(exceeded(
                    "post_processor",
                    format!(
                        "adds {around} tokens to every text, at most {MOST_AROUND} are supported"
                    ),
                ));
            }
        }
        let added = added_tokens(rule("added_tokens"))?;
        let is_costly = |token: &&AddedToken| token.lstrip || token.single_word;
        let costly = added.iter().filter(is_costly).map(|t| t.content.clone());
        let costly = costly.filter(|text| !text.is_empty()).collect();
        let library = |e: tokenizers::Error| refuse("added_tokens", e.to_string()).because(e);
        let mut inner: Library = TokenizerBuilder::new()
            .with_model(bpe)
            .with_normalizer(normalizer)
            .with_pre_tokenizer(pre_tokenizer)
            .with_post_processor(post)
            .build()
            .map_err(library)?;
        inner.add_tokens(added).map_err(library)?;
        Ok(Self { inner, costly })
    }

    /// The ids of a text.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, FormatError> {
        let mut looked_at = 0u64;
        for token in &self.costly {
            let times = text.matches(token.as_str()).count() as u64;
            looked_at = looked_at.saturating_add(times.saturating_mul(text.len() as u64));
        }
        if looked_at > MOST_LOOKED_AT {
            return Err(exceeded(
                "added_tokens",
                "the text repeats added tokens with `lstrip` or `single_word` too often",
            ));
        }
        caught("encoding the text", || {
            cut::watched(text.len(), || {
                let encoding = self.inner.encode_fast(text, special).map_err(|e| {
                    FormatError::new(ErrorCode::Tokenizer, e.to_string()).because(e)
                })?;
                Ok(encoding.get_ids().to_vec())
            })
        })
    }

    pub(super) fn bpe(&self) -> &Bpe {
        self.inner.get_model()
    }

    /// Tokens, added ones included.
    pub(super) fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn token_to_id(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    pub(super) fn is_special(&self, text: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(text)
    }

    /// Added tokens, ids ascending.
    pub(super) fn added_tokens(&self) -> Vec<(u32, &AddedToken)> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        let mut all: Vec<_> = added.iter().map(|(id, token)| (*id, token)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }
}

/// The tokens of an `added_tokens` list.
pub(super) fn added_tokens(list: &Value) -> Result<Vec<AddedToken>, FormatError> {
    let key = "added_tokens";
    let list = match list {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) => list,
        _ => return Err(refuse(key, "expected an array")),
    };
    if list.len() > ADDED_TOKENS {
        return Err(exceeded(
            key,
            format!("{} tokens, at most {ADDED_TOKENS} are read", list.len()),
        ));
    }
    list.iter()
        .enumerate()
        .map(|(number, entry)| {
            let token = AddedToken::deserialize(entry)
                .map_err(|e| refuse(key, format!("entry {number}: {e}")).because(e))?;
            if entry.get("id").and_then(Value::as_u64).is_none() {
                return Err(refuse(key, format!("entry {number} has no id")));
            }
            if token.content.len() > LONGEST_ADDED {
                return Err(exceeded(
                    key,
                    format!(
                        "entry {number} has {} bytes, at most {LONGEST_ADDED} are read",
                        token.content.len()
                    ),
                ));
            }
            Ok(token)
        })
        .collect()
}
