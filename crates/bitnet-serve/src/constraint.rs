//! What a text has to look like: a grammar that excludes tokens before each draw.
//!
//! Invariant: a mask follows from the grammar and the tokens so far alone. Tokens that the tokenizer calls special never
//! match text of a grammar.

use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::Constrain;
use bitnet_text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{
    InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::sync::Arc;

/// Longest grammar or schema, as text.
const MOST_GRAMMAR_BYTES: usize = 1 << 20;
/// Longest reason of a refusal that is passed on.
const MOST_REASON: usize = 300;

/// What the library calls `NoExtensionBias`.
const NOTHING_FITS: &str = "no text can follow the schema: a reference leads back to itself, or keywords contradict each other";

/// The tokens of a tokenizer, prepared for grammars.
pub struct Grammars(ParserFactory);

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammars")
    }
}

/// A trie of tokens. Which tokens spell a text is the model's choice.
struct Tokens(TokTrie);

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

fn refuse(what: &str, error: &impl std::fmt::Display) -> FormatError {
    let reason = error.to_string();
    let first = reason.lines().next().unwrap_or_default();
    if first.contains("NoExtensionBias") {
        return FormatError::new(ErrorCode::Usage, NOTHING_FITS);
    }
    let first: String = first.chars().take(MOST_REASON).collect();
    FormatError::new(ErrorCode::Usage, format!("{what}: {first}"))
}

impl Grammars {
    /// The tokens of a vocabulary of `vocab` rows; `stop` ends a text.
    ///
    /// # Errors
    /// `tokenizer` for a vocabulary that the library does not take.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, stop: &[u32]) -> Result<Self, FormatError> {
        let refused = |e: &dyn std::fmt::Display| {
            FormatError::new(
                ErrorCode::Tokenizer,
                format!("the vocabulary cannot be constrained: {e}"),
            )
        };
        let rows = u32::try_from(vocab).map_err(|e| refused(&e))?;
        let words: Vec<Vec<u8>> = (0..rows)
            .map(|id| {
                let bytes = tokenizer.token_bytes(id).unwrap_or_default();
                match tokenizer.is_special(id) || stop.contains(&id) {
                    true => [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat(),
                    false => bytes,
                }
            })
            .collect();
        let mut stop: Vec<u32> = stop.iter().copied().filter(|id| *id < rows).collect();
        stop.sort_unstable();
        stop.dedup();
        let Some(&first) = stop.first() else {
            return Err(refused(&"the model has no token that ends a text"));
        };
        let trie = TokTrie::from(&TokRxInfo::new(rows, first), &words).with_eos_tokens(&stop);
        let tokens: TokEnv = Arc::new(Tokens(trie));
        let mut factory = ParserFactory::new(&tokens, InferenceCapabilities::default(), &[])
            .map_err(|e| refused(&e))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self(factory))
    }

    /// A text that is JSON of a schema; `opened`: behind the rest of the reasoning that the prompt opened.
    ///
    /// # Errors
    /// `usage` for a schema that is refused.
    pub fn json(&self, schema: &Value, opened: bool) -> Result<Constraint, FormatError> {
        let schema = compact(schema);
        if opened {
            return self.lark(behind_thought(format!("start: THOUGHT %json {schema}\n")));
        }
        Self::check(schema.to_string().len())?;
        self.constraint(
            TopLevelGrammar::from_json_schema(schema),
            "the schema is refused",
        )
    }

    /// A text of a grammar in the library's own language.
    ///
    /// # Errors
    /// `usage` for a grammar that is refused.
    pub fn lark(&self, grammar: String) -> Result<Constraint, FormatError> {
        Self::check(grammar.len())?;
        self.constraint(TopLevelGrammar::from_lark(grammar), "a schema is refused")
    }

    /// A text of a grammar that a person wrote in the library's own language; `opened` as in [`json`](Self::json).
    ///
    /// # Errors
    /// `usage` for a grammar that is refused.
    pub fn grammar(&self, grammar: &str, opened: bool) -> Result<Constraint, FormatError> {
        Self::check(grammar.len())?;
        let grammar = match opened {
            true => behind_thought(format!(
                "start: THOUGHT answer\nanswer: %lark {{\n{grammar}\n}}\n"
            )),
            false => grammar.to_owned(),
        };
        self.constraint(
            TopLevelGrammar::from_lark(grammar),
            "the grammar is refused",
        )
    }

    fn check(bytes: usize) -> Result<(), FormatError> {
        if bytes <= MOST_GRAMMAR_BYTES {
            return Ok(());
        }
        let message =
            format!("expected a schema of at most {MOST_GRAMMAR_BYTES} bytes, found {bytes}");
        Err(FormatError::new(ErrorCode::Usage, message))
    }

    fn constraint(&self, grammar: TopLevelGrammar, what: &str) -> Result<Constraint, FormatError> {
        let parser = self
            .0
            .create_parser(grammar)
            .map_err(|e| refuse(what, &e))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            None => Ok(Constraint(matcher)),
            Some(error) => Err(refuse(what, &error)),
        }
    }
}

/// A grammar that may use the rest of the reasoning that the prompt opened, as `THOUGHT`.
pub(crate) fn behind_thought(mut grammar: String) -> String {
    grammar.push_str("THOUGHT: /(?s:.*)<\\/think>\\s*/\n");
    grammar
}

/// A schema whose JSON has one form of white space, that of Python's `json.dumps`: with free white space, a model may write
/// nothing else.
pub(crate) fn compact(schema: &Value) -> Value {
    let form = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        schema => schema.clone(),
    };
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-guidance".to_owned(), form);
    }
    schema
}

/// A grammar in the middle of a text.
#[derive(Clone)]
pub struct Constraint(Matcher);

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Constraint")
    }
}

impl Constrain for Constraint {
    fn mask(&mut self, logits: &mut [f32]) -> Result<(), FormatError> {
        let mask = self.0.compute_mask_or_eos().map_err(|e| complex(&e))?;
        for (id, logit) in logits.iter_mut().enumerate() {
            if id >= mask.len() || !mask.get(id) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<bool, FormatError> {
        self.0.consume_token(token).map_err(|e| complex(&e))?;
        Ok(self.0.is_stopped())
    }
}

fn complex(error: &impl std::fmt::Display) -> FormatError {
    let mut refused = refuse("the schema is too complex for this text", error);
    if refused.message != NOTHING_FITS {
        refused.code = ErrorCode::LimitExceeded;
    }
    refused
}
