//! Token ids to text, all at once or one at a time.
//!
//! Invariant: text never ends in half a character, and a stream gives the same text as the whole,
//! because both are this one path: tokens are bytes, and bytes become text as soon as they can.

use super::engine::Engine;
use super::{Tokenizer, ggml, pre_tokenizer, refuse};
use bitnet_formats::FormatError;
use serde_json::Value;

/// How token texts become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoding {
    /// Letters stand for bytes.
    ByteLevel,
    /// `▁` stands for a space, `<0xHH>` for a byte; whether one space in front is dropped.
    SentencePiece { strip: bool },
    /// Tokens stand for themselves, with spaces between them (no decoder).
    Plain,
}

impl Decoding {
    /// The decoder of a `tokenizer.json`.
    pub(super) fn from_json(value: &Value) -> Result<Self, FormatError> {
        let decoder = value.get("decoder").unwrap_or(&Value::Null);
        let kind = |v: &Value| {
            v.get("type")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let steps: Vec<&Value> = match decoder.get("decoders").and_then(Value::as_array) {
            Some(steps) => steps.iter().collect(),
            None if decoder.is_null() => return Ok(Self::Plain),
            None => vec![decoder],
        };
        let kinds: Vec<String> = steps.iter().map(|s| kind(s)).collect();
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        match kinds.as_slice() {
            ["ByteLevel"] => Ok(Self::ByteLevel),
            ["Replace", "ByteFallback", "Fuse"] => Ok(Self::SentencePiece { strip: false }),
            ["Replace", "ByteFallback", "Fuse", "Strip"] => Ok(Self::SentencePiece { strip: true }),
            ["Metaspace"]
            | ["ByteFallback", "Metaspace"]
            | ["ByteFallback", "Fuse", "Metaspace"] => {
                let never = steps
                    .last()
                    .and_then(|s| s.get("prepend_scheme"))
                    .and_then(Value::as_str)
                    == Some("never");
                Ok(Self::SentencePiece { strip: !never })
            }
            _ => Err(refuse(format!(
                "unknown decoder {}",
                pre_tokenizer::short(&kinds.join(" → "))
            ))
            .in_tensor("decoder")),
        }
    }

    /// The bytes of one token; `None` if the id has no token or a special one is not wanted.
    pub(super) fn bytes(self, inner: &Engine, id: u32, skip_special: bool) -> Option<Vec<u8>> {
        let text = inner.id_to_token(id)?;
        if skip_special && inner.is_special(&text) {
            return None;
        }
        Some(match self {
            // a token with a letter that stands for no byte stands for itself
            Self::ByteLevel => text
                .chars()
                .map(byte_of)
                .collect::<Option<_>>()
                .unwrap_or_else(|| text.into_bytes()),
            Self::SentencePiece { .. } => match ggml::byte_piece(&text) {
                Some(byte) => vec![byte],
                None => text.replace('▁', " ").into_bytes(),
            },
            Self::Plain => text.into_bytes(),
        })
    }
}

/// The byte that a letter stands for in byte-level BPE: printable Latin-1 stands for itself, the
/// other bytes, in order, for the letters from U+0100.
fn byte_of(letter: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(letter);
    if printable(code) {
        return u8::try_from(code).ok();
    }
    let index = usize::try_from(code.checked_sub(0x100)?).ok()?;
    (0..=255u8).filter(|&b| !printable(b.into())).nth(index)
}

/// Text from ids one at a time; what it has given so far never ends in half a character.
#[derive(Debug)]
pub struct DecodeStream<'t> {
    tokenizer: &'t Tokenizer,
    skip_special: bool,
    /// Bytes of a character that is not complete yet: at most three.
    pending: Vec<u8>,
    /// Whether any text has come.
    started: bool,
    tokens: usize,
}

impl<'t> DecodeStream<'t> {
    pub(super) fn new(tokenizer: &'t Tokenizer) -> Self {
        Self {
            tokenizer,
            skip_special: true,
            pending: Vec::new(),
            started: false,
            tokens: 0,
        }
    }

    /// Special tokens give their text.
    #[must_use]
    pub fn keep_special(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// The text that one more token completes; often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> Result<String, FormatError> {
        let Some(bytes) =
            self.tokenizer
                .decoding
                .bytes(&self.tokenizer.inner, id, self.skip_special)
        else {
            return Ok(String::new());
        };
        if self.tokenizer.decoding == Decoding::Plain && self.tokens > 0 {
            self.pending.push(b' ');
        }
        self.tokens = self.tokens.saturating_add(1);
        self.pending.extend(bytes);
        Ok(self.flush(false))
    }

    /// Characters that no token has given yet and that stand in front of this one: bytes of a character that the token
    /// does not go on with.
    pub fn broken_before(&self, id: u32) -> usize {
        let bytes = |id| {
            let tokenizer = self.tokenizer;
            let decoding = tokenizer.decoding;
            decoding.bytes(&tokenizer.inner, id, self.skip_special)
        };
        let next = match self.pending.is_empty() {
            true => None,
            false => bytes(id).and_then(|bytes| bytes.first().copied()),
        };
        let Some(next) = next else {
            return 0;
        };
        let next = match self.tokenizer.decoding {
            Decoding::Plain => b' ',
            _ => next,
        };
        let joined = [&self.pending[..], &[next]].concat();
        match std::str::from_utf8(&joined) {
            Err(error) if error.error_len().is_some() => {
                let each = matches!(self.tokenizer.decoding, Decoding::SentencePiece { .. });
                if each { self.pending.len() } else { 1 }
            }
            _ => 0,
        }
    }

    /// What is left: U+FFFD if the last character never became complete.
    pub fn finish(mut self) -> Result<String, FormatError> {
        Ok(self.flush(true))
    }

    fn flush(&mut self, end: bool) -> String {
        let each = matches!(self.tokenizer.decoding, Decoding::SentencePiece { .. });
        let bytes = std::mem::take(&mut self.pending);
        let mut rest = bytes.as_slice();
        let mut text = String::new();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, tail) = rest
                .split_at_checked(error.valid_up_to())
                .unwrap_or_default();
            text.push_str(std::str::from_utf8(valid).unwrap_or_default());
            let bad = match error.error_len() {
                Some(n) => n,
                None if end => tail.len(),
                None => {
                    self.pending = tail.to_vec();
                    rest = &[];
                    break;
                }
            };
            text.extend(std::iter::repeat_n('\u{fffd}', if each { bad } else { 1 }));
            rest = tail.get(bad..).unwrap_or_default();
        }
        text.push_str(std::str::from_utf8(rest).unwrap_or_default());
        if !self.started && !text.is_empty() {
            self.started = true;
            if self.tokenizer.decoding == (Decoding::SentencePiece { strip: true })
                && text.starts_with(' ')
            {
                text.remove(0);
            }
        }
        text
    }
}
