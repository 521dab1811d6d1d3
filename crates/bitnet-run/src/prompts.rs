//! Files of prompts.
//!
//! Invariant: order is kept (hashes depend on it), every prompt ends as token ids, and a prompt that
//! gives ids needs no tokenizer.

use crate::open;
use bitnet_checkpoint::Checkpoint;
use bitnet_cli::{ErrorCode, Failure, FormatError};
use bitnet_formats::{read_file, read_to_limit, without_byte_order_mark};
use bitnet_text::{PROMPT_FILE_BYTES, PromptEntry, TextSettings, Tokenizer, parse_prompt_file};
use std::io::{BufRead, Read};
use std::path::Path;

/// Most texts of a file: each is a tensor of the output.
const MOST_TEXTS: usize = 1 << 16;
/// More bytes than a token stands for, as a rule. Texts that cannot fit the context are refused before the
/// tokenizer takes many times their size of memory.
const MOST_BYTES_PER_TOKEN: usize = 256;
/// The longest text.
const MOST_TEXT_BYTES: usize = 1 << 20;

/// A prompt on standard input that is longer than this is none.
const MOST_PROMPT_BYTES: u64 = 64 << 20;

/// The text that `-p` gives; `-` is standard input, without a line break at its end.
pub fn text(given: &str) -> Result<String, Failure> {
    match given {
        "-" => whole_text(std::io::stdin().lock(), Path::new("standard input")),
        text => Ok(text.to_owned()),
    }
}

/// The text of a file, without a line break at its end; `-` is standard input.
pub fn file(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        return text("-");
    }
    let file = std::fs::File::open(path).map_err(|e| FormatError::io(path, &e))?;
    whole_text(file, path)
}

fn whole_text(input: impl Read, place: &Path) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    input
        .take(MOST_PROMPT_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| FormatError::io(place, &e))?;
    if bytes.len() as u64 > MOST_PROMPT_BYTES {
        let message = format!("expected a prompt of at most {MOST_PROMPT_BYTES} bytes, found more");
        let error = FormatError::new(ErrorCode::LimitExceeded, message);
        return Err(error.in_file(place).into());
    }
    let mut text = utf8(bytes, place)?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The next line of standard input, without its end; `None` behind the last one.
pub fn line(input: &mut impl BufRead) -> Result<Option<String>, FormatError> {
    let place = Path::new("standard input");
    let mut line = Vec::new();
    let read = input
        .take(MOST_PROMPT_BYTES + 1)
        .read_until(b'\n', &mut line)
        .map_err(|e| FormatError::io(place, &e))?;
    if read as u64 > MOST_PROMPT_BYTES {
        let message = format!("expected a line of at most {MOST_PROMPT_BYTES} bytes, found more");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message).in_file(place));
    }
    if read == 0 {
        return Ok(None);
    }
    for end in [b'\n', b'\r'] {
        if line.last() == Some(&end) {
            line.pop();
        }
    }
    utf8(line, place).map(Some)
}

/// Bytes as text.
pub fn utf8(bytes: Vec<u8>, place: &Path) -> Result<String, FormatError> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let byte = e.as_bytes().get(at).copied().unwrap_or(0);
        let message = format!("expected UTF-8 text, found the byte 0x{byte:02x}");
        FormatError::new(ErrorCode::Malformed, message)
            .in_file(place)
            .at(at as u64)
            .hint("save the text as UTF-8")
    })
}

/// The whole text of a file of at most `most` bytes; `-` is standard input.
pub fn whole_file(path: &Path, most: u64) -> Result<String, FormatError> {
    if path == Path::new("-") {
        let place = Path::new("standard input");
        let bytes = read_to_limit(std::io::stdin().lock(), most).map_err(|e| e.in_file(place))?;
        return utf8(bytes, place);
    }
    utf8(read_file(path, most)?, path)
}

/// The whole of a prompt file; `-` is standard input.
fn bounded(path: &Path) -> Result<Vec<u8>, FormatError> {
    match path == Path::new("-") {
        true => read_to_limit(std::io::stdin().lock(), PROMPT_FILE_BYTES),
        false => read_file(path, PROMPT_FILE_BYTES),
    }
    .map_err(|e| e.in_file(path))
}

/// Refuses a text that is certainly longer than the context of the network.
fn check_length(text: &str, checkpoint: &Checkpoint, name: &str) -> Result<(), FormatError> {
    let tokens = checkpoint.config.max_position_embeddings;
    let most = tokens
        .saturating_mul(MOST_BYTES_PER_TOKEN)
        .min(MOST_TEXT_BYTES);
    if text.len() <= most {
        return Ok(());
    }
    let found = text.len();
    let message = format!(
        "prompt `{name}`: expected a text of at most {most} bytes for a context of {tokens} tokens, found {found}"
    );
    Err(FormatError::new(ErrorCode::LimitExceeded, message))
}

/// Reads a text from every line of a file, named by its number from 0; `-` is standard input.
pub fn lines(
    path: &Path,
    checkpoint: &Checkpoint,
    settings: TextSettings<'_>,
) -> Result<Vec<(String, Vec<u32>)>, Failure> {
    let bytes = bounded(path)?;
    let text = utf8(bytes, path)?;
    let count = text.lines().count();
    if count > MOST_TEXTS {
        let message = format!("expected at most {MOST_TEXTS} lines, found {count}");
        let error = FormatError::new(ErrorCode::LimitExceeded, message).in_file(path);
        return Err(error.hint("split the file").into());
    }
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
        check_length(text.as_ref(), checkpoint, &number.to_string())?;
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
    let entries =
        parse_prompt_file(without_byte_order_mark(&bytes)).map_err(|e| e.in_file(path))?;
    drop(bytes);
    if entries.is_empty() {
        return Err(malformed("no prompts".to_owned()));
    }
    let mut tokenizer: Option<Tokenizer> = None;
    let mut prompts = Vec::with_capacity(entries.len());
    for PromptEntry { name, ids, text } in entries {
        let ids = match (ids, text) {
            (Some(ids), _) => ids,
            (None, Some(text)) => {
                check_length(&text, checkpoint, &name).map_err(|e| e.in_file(path))?;
                let tokenizer = match &tokenizer {
                    Some(t) => t,
                    None => tokenizer.insert(open::tokenizer(checkpoint)?),
                };
                settings.encode(tokenizer, &text)?
            }
            (None, None) => {
                return Err(malformed(format!("prompt `{name}`: neither ids nor text")));
            }
        };
        if ids.is_empty() {
            return Err(malformed(format!("prompt `{name}`: no tokens")));
        }
        prompts.push((name, ids));
    }
    Ok(prompts)
}
