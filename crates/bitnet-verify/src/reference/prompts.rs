//! Token sequences to compute logits for.
//!
//! Invariant: every sequence is non-empty and inside the model's vocabulary and context, so what
//! computes them need not check again.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use bitnet_checkpoint::Config;
use bitnet_formats::{
    ErrorCode, FormatError, Limits, parse_json_value, read_file, without_byte_order_mark,
};
use bitnet_text::{PROMPT_FILE_BYTES, PromptEntry, parse_prompt_file};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// A named token sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Its name in reports.
    pub name: String,
    /// Token ids.
    pub ids: Vec<u32>,
}

/// Reads a JSON file of records: a golden file, a report.
pub(crate) fn read_json(path: &Path) -> Result<Value, FormatError> {
    let text = read_file(path, Limits::default().text_bytes)?;
    parse_json_value(&text).map_err(|e| e.in_file(path))
}

fn malformed(text: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, text)
}

/// Reads `{"name": {"text": …, "ids": [1, 2]}}`, `{"name": [1, 2]}` or `[[1, 2], [3]]`.
///
/// # Errors
/// A file that cannot be read or has another form.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>, FormatError> {
    read_entries(path).and_then(|entries| prompts_of(entries).map_err(|e| e.in_file(path)))
}

/// As [`read_prompts`], with the texts of those prompts that have one.
pub(crate) fn read_prompts_and_texts(
    path: &Path,
) -> Result<(Vec<Prompt>, BTreeMap<String, String>), FormatError> {
    let mut entries = read_entries(path)?;
    let text = |entry: &mut PromptEntry| Some((entry.name.clone(), entry.text.take()?));
    let texts = entries.iter_mut().filter_map(text).collect();
    let prompts = prompts_of(entries).map_err(|e| e.in_file(path))?;
    Ok((prompts, texts))
}

fn read_entries(path: &Path) -> Result<Vec<PromptEntry>, FormatError> {
    let bytes = read_file(path, PROMPT_FILE_BYTES)?;
    parse_prompt_file(without_byte_order_mark(&bytes)).map_err(|e| e.in_file(path))
}

fn prompts_of(entries: Vec<PromptEntry>) -> Result<Vec<Prompt>, FormatError> {
    let prompt = |PromptEntry { name, ids, .. }| match ids {
        Some(ids) => Ok(Prompt { name, ids }),
        None => Err(malformed("expected a list of token ids")
            .in_tensor(&name)
            .hint("write the ids; bitnet-verify does not tokenize text")),
    };
    entries.into_iter().map(prompt).collect()
}

/// A list of token ids.
pub(crate) fn token_ids(value: &Value) -> Result<Vec<u32>, FormatError> {
    let list = value.as_array().ok_or_else(|| {
        malformed("expected a list of token ids")
            .hint("write the ids; text alone is not tokenised here")
    })?;
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    list.iter()
        .map(|v| id(v).ok_or_else(|| malformed(format!("expected a token id, found {v}"))))
        .collect()
}

/// Checks that a network of this configuration can compute the prompts.
///
/// # Errors
/// The first prompt that is empty, too long, or has a token outside the vocabulary.
pub fn check_prompts(prompts: &[Prompt], config: &Config) -> Result<(), FormatError> {
    for Prompt { name, ids } in prompts {
        if ids.is_empty() {
            return Err(malformed("expected at least one token id, found none").in_tensor(name));
        }
        if ids.len() > config.max_position_embeddings {
            let (most, found) = (config.max_position_embeddings, ids.len());
            let text = format!("expected at most {most} tokens, found {found}");
            return Err(FormatError::new(ErrorCode::ContextExceeded, text).in_tensor(name));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            let text = format!("expected token ids below {}, found {id}", config.vocab_size);
            return Err(malformed(text).in_tensor(name));
        }
    }
    Ok(())
}

/// Sequences for a model without prompts: one token, a short and a longer walk over the whole
/// vocabulary, one token repeated.
pub fn built_in_prompts(config: &Config) -> Vec<Prompt> {
    let vocab = config.vocab_size as u64;
    // multiples of the golden section spread over the vocabulary whatever its size
    let walk = |seed: u64, len: usize| -> Vec<u32> {
        let len = len.min(config.max_position_embeddings) as u64;
        (0..len)
            .map(|i| {
                let at = seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                u32::try_from(at.checked_rem(vocab).unwrap_or(0)).unwrap_or(0)
            })
            .collect()
    };
    let first = config
        .bos_token_id
        .filter(|&id| u64::from(id) < vocab)
        .unwrap_or(0);
    [
        ("first", vec![first]),
        ("walk-8", walk(1, 8)),
        ("walk-32", walk(100, 32)),
        (
            "repeated",
            vec![first; 4.min(config.max_position_embeddings)],
        ),
    ]
    .map(|(name, ids)| Prompt {
        name: name.to_owned(),
        ids,
    })
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_are_read() {
        let want = |name: &str| {
            vec![Prompt {
                name: name.to_owned(),
                ids: vec![1, 2],
            }]
        };
        let read = |text: &str| prompts_of(parse_prompt_file(text.as_bytes())?);
        assert_eq!(
            read(r#"{"a": {"text": null, "ids": [1, 2]}}"#).unwrap(),
            want("a")
        );
        assert_eq!(read(r#"{"a": [1, 2]}"#).unwrap(), want("a"));
        assert_eq!(read("[[1, 2]]").unwrap(), want("0"));
        for bad in [
            "3",
            r#"{"a": {"text": "x"}}"#,
            "[[1.5]]",
            "[[-1]]",
            "[[4294967296]]",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
