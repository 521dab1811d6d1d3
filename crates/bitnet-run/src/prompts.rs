//! Files of prompts.
//!
//! Invariant: order is kept (hashes depend on it), every prompt ends as token ids, and a prompt that
//! gives ids needs no tokenizer.

use crate::open;
use bitnet_cli::{ErrorCode, Failure, FormatError};
use bitnet_model::{Checkpoint, Tokenizer};
use serde_json::Value;
use std::io::Read;
use std::path::Path;

/// A prompt file larger than this is not one.
const MOST_BYTES: u64 = 1 << 30;

/// The whole of a prompt file; `-` is standard input.
fn bounded(path: &Path) -> Result<Vec<u8>, FormatError> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin()
            .lock()
            .take(MOST_BYTES + 1)
            .read_to_end(&mut bytes),
        false => std::fs::File::open(path)
            .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)),
    };
    read.map_err(|e| FormatError::io(path, &e))?;
    if bytes.len() as u64 > MOST_BYTES {
        let message = format!("expected a prompt file of at most {MOST_BYTES} bytes, found more");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message).in_file(path));
    }
    Ok(bytes)
}

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
    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, FormatError> {
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
    let before = (0..=added).find(|at| ids.get(*at..*at + own.len()) == Some(&own[..]));
    let (Some(before), Some(kept)) = (before, most.checked_sub(added)) else {
        let message = format!(
            "expected a text of at most {most} tokens, found {}",
            ids.len()
        );
        return Err(FormatError::new(ErrorCode::ContextExceeded, message));
    };
    let (front, behind) = (&ids[..before], &ids[before + own.len()..]);
    Ok([front, &own[..kept], behind].concat())
}

/// Reads a text from every line of a file, named by its number from 0; `-` is standard input.
pub fn lines(
    path: &Path,
    checkpoint: &Checkpoint,
    settings: TextSettings<'_>,
) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let bytes = bounded(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let message = format!("expected UTF-8 text: {e}");
        FormatError::new(ErrorCode::Malformed, message).in_file(path)
    })?;
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return Err(Failure::new(
            ErrorCode::Usage,
            format!("{}: no lines", path.display()),
        ));
    }
    encode(&lines, checkpoint, settings)
}

/// The tokens of texts, named by their number from 0.
pub fn encode<S: AsRef<str>>(
    texts: &[S],
    checkpoint: &Checkpoint,
    settings: TextSettings<'_>,
) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let tokenizer = open::tokenizer(checkpoint)?;
    let mut prompts = Vec::with_capacity(texts.len());
    for (number, text) in texts.iter().enumerate() {
        let ids = settings.encode(&tokenizer, text.as_ref())?;
        if ids.is_empty() {
            let message = format!("text {number} has no tokens, and this model adds none");
            return Err(Failure::new(ErrorCode::Tokenizer, message));
        }
        prompts.push((number.to_string(), ids));
    }
    Ok(prompts)
}

/// Reads `{name: {"text": …, "ids": […]}}`, `{name: "text"}`, `{name: [ids]}` or `[[ids] | "text", …]`.
pub fn read(
    path: &Path,
    checkpoint: &Checkpoint,
    settings: TextSettings<'_>,
) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let bytes = bounded(path)?;
    let malformed = |what: String| {
        Failure::from(
            FormatError::new(ErrorCode::Malformed, what)
                .in_file(path)
                .hint("expected {\"name\": {\"text\": \"…\", \"ids\": […]}} or [[ids], …]"),
        )
    };
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| malformed(e.to_string()))?;
    let entries: Vec<(String, Value)> = match value {
        Value::Object(map) => map.into_iter().collect(),
        Value::Array(list) => list
            .into_iter()
            .enumerate()
            .map(|(i, v)| (i.to_string(), v))
            .collect(),
        _ => return Err(malformed("neither an object nor a list".to_owned())),
    };
    if entries.is_empty() {
        return Err(malformed("no prompts".to_owned()));
    }
    let mut tokenizer: Option<Tokenizer> = None;
    let mut prompts = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let (ids, text) = match &entry {
            Value::Array(_) => (Some(&entry), None),
            Value::String(text) => (None, Some(text.as_str())),
            Value::Object(map) => (
                map.get("ids").filter(|v| !v.is_null()),
                map.get("text").and_then(Value::as_str),
            ),
            _ => (None, None),
        };
        let ids = match (ids, text) {
            (Some(Value::Array(ids)), _) => ids
                .iter()
                .map(|v| v.as_u64().and_then(|v| u32::try_from(v).ok()))
                .collect::<Option<Vec<u32>>>()
                .ok_or_else(|| malformed(format!("prompt `{name}`: ids are not token numbers")))?,
            (None, Some(text)) => {
                let tokenizer = match &tokenizer {
                    Some(t) => t,
                    None => tokenizer.insert(open::tokenizer(checkpoint)?),
                };
                settings.encode(tokenizer, text)?
            }
            _ => return Err(malformed(format!("prompt `{name}`: neither ids nor text"))),
        };
        if ids.is_empty() {
            return Err(malformed(format!("prompt `{name}`: no tokens")));
        }
        prompts.push((name, ids));
    }
    Ok(prompts)
}
