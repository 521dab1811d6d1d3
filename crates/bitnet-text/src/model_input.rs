//! What happens to a text before an embedding model sees its tokens.
//!
//! Invariant: as sentence-transformers does it: the prompt in front, then the tokens of the text cut to a limit between
//! the special ones.

use crate::tokenizer::Tokenizer;
use bitnet_formats::{ErrorCode, FormatError};

/// What happens to a text before the network sees its tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextSettings<'a> {
    /// What precedes the text.
    pub prompt: &'a str,
    /// Longer texts are cut to this number of tokens, special tokens included.
    pub max_seq_length: Option<usize>,
}

impl TextSettings<'_> {
    /// The tokens of a text with its special tokens.
    ///
    /// # Errors
    /// Those of the tokenizer; `context-exceeded` if the special tokens leave no room for the text.
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, FormatError> {
        let text = format!("{}{text}", self.prompt);
        let ids = tokenizer.encode(&text, true)?;
        match self.max_seq_length {
            Some(most) if ids.len() > most => cut(tokenizer, &text, &ids, most),
            _ => Ok(ids),
        }
    }
}

/// The first tokens of a text between all of its special ones, as sentence-transformers and tokenizers cut it.
fn cut(
    tokenizer: &Tokenizer,
    text: &str,
    ids: &[u32],
    most: usize,
) -> Result<Vec<u32>, FormatError> {
    let own = tokenizer.encode(text, false)?;
    let added = ids.len().saturating_sub(own.len());
    let before =
        (0..=added).find(|at| ids.get(*at..(*at).saturating_add(own.len())) == Some(&own[..]));
    let (Some(before), Some(kept)) = (before, most.checked_sub(added)) else {
        let message = format!(
            "expected a text of at most {most} tokens, found {}",
            ids.len()
        );
        return Err(FormatError::new(ErrorCode::ContextExceeded, message));
    };
    let front = ids.get(..before).unwrap_or_default();
    let behind = ids.get(before.saturating_add(own.len())..);
    let own = own.get(..kept).unwrap_or(&own);
    Ok([front, own, behind.unwrap_or_default()].concat())
}
