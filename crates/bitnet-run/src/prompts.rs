//! Files of prompts.
//!
//! Invariant: order is kept (hashes depend on it), every prompt ends as token ids, and a prompt that
//! gives ids needs no tokenizer.

use crate::open;
use bitnet_cli::{ErrorCode, Failure, FormatError};
use bitnet_model::{Checkpoint, Tokenizer};
use serde_json::Value;
use std::path::Path;

/// A prompt file larger than this is not one.
const MOST_BYTES: u64 = 1 << 30;

/// Reads `{name: {"text": …, "ids": […]}}`, `{name: "text"}`, `{name: [ids]}` or `[[ids] | "text", …]`.
pub fn read(path: &Path, checkpoint: &Checkpoint) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let io = |e: &std::io::Error| FormatError::io(path, e);
    let length = std::fs::metadata(path).map_err(|e| io(&e))?.len();
    if length > MOST_BYTES {
        let message =
            format!("expected a prompt file of at most {MOST_BYTES} bytes, found {length}");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message)
            .in_file(path)
            .into());
    }
    let bytes = std::fs::read(path).map_err(|e| io(&e))?;
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
                tokenizer.encode(text, true)?
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
