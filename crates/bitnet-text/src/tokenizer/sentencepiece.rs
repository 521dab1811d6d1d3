//! `tokenizer.model`: the protobuf that sentencepiece writes, the part that BPE models need. Written by hand, because a
//! protobuf library needs a build step and a compiler for a dozen fields, and copies every piece before a limit is checked.
//!
//! Invariant: nothing is allocated beyond the file's own length, every length is checked against the
//! bytes that are left, and a model whose text normalization we do not reproduce is refused.
//!
//! Field numbers are those of sentencepiece's published `sentencepiece_model.proto`.

use super::ggml::{GgmlTokenizer, Model, TokenType};
use bitnet_formats::{ErrorCode, FormatError};

/// Bytes of one message, read from the front.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Varint(u64),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
    Other,
}

fn malformed(what: &str) -> FormatError {
    FormatError::new(ErrorCode::Malformed, format!("sentencepiece model: {what}"))
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or_else(|| {
            malformed(&format!(
                "a field of {n} bytes where {} are left",
                self.0.len()
            ))
        })?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else {
                return Err(malformed("a number without end"));
            };
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(malformed("a number of more than ten bytes"))
    }

    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, FormatError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Other
            }
            2 => {
                let n = usize::try_from(self.varint()?)
                    .map_err(|_| malformed("a length beyond memory"))?;
                Field::Bytes(self.take(n)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(bytes.try_into().map_err(|_| malformed("a short number"))?)
            }
            t => return Err(malformed(&format!("wire type {t}"))),
        };
        Ok(Some((key >> 3, field)))
    }
}

/// Reads a model into the form that GGUF metadata has; ids 0.. are the pieces.
pub(super) fn parse(bytes: &[u8]) -> Result<GgmlTokenizer, FormatError> {
    let refuse = |what: String| {
        FormatError::new(ErrorCode::Tokenizer, what)
            .hint("put a tokenizer.json beside it (transformers writes one)")
    };
    let (mut tokens, mut scores) = (Vec::new(), Vec::new());
    let (mut model_type, mut byte_fallback) = (1, false); // unigram is the proto's default
    let (mut bos, mut eos, mut unk, mut pad) = (1i64, 2i64, 0i64, -1i64);
    let (mut charsmap, mut dummy_prefix, mut extra_spaces, mut escape, mut suffix) =
        (0, true, true, true, false);
    let mut message = Fields(bytes);
    while let Some((number, field)) = message.next()? {
        let Field::Bytes(inner) = field else { continue };
        let mut inner = Fields(inner);
        match number {
            1 => {
                let (mut piece, mut score, mut kind) = (&[][..], 0.0, 1);
                while let Some(entry) = inner.next()? {
                    match entry {
                        (1, Field::Bytes(b)) => piece = b,
                        (2, Field::Fixed32(b)) => score = f32::from_le_bytes(b),
                        (3, Field::Varint(v)) => kind = v,
                        _ => {}
                    }
                }
                let kind = match kind {
                    1 => TokenType::Normal,
                    2 => TokenType::Unknown,
                    3 => TokenType::Control,
                    4 => TokenType::UserDefined,
                    5 => TokenType::Unused,
                    6 => TokenType::Byte,
                    k => return Err(malformed(&format!("piece {} has type {k}", tokens.len()))),
                };
                let text = std::str::from_utf8(piece)
                    .map_err(|_| malformed(&format!("piece {} is not UTF-8", tokens.len())))?;
                tokens.push((text.to_owned(), kind));
                scores.push(score);
            }
            2 => {
                while let Some(entry) = inner.next()? {
                    match entry {
                        (3, Field::Varint(v)) => model_type = v,
                        (24, Field::Varint(v)) => suffix = v != 0,
                        (35, Field::Varint(v)) => byte_fallback = v != 0,
                        // int32: negative numbers are sign-extended to 64 bits
                        (40, Field::Varint(v)) => unk = v.cast_signed(),
                        (41, Field::Varint(v)) => bos = v.cast_signed(),
                        (42, Field::Varint(v)) => eos = v.cast_signed(),
                        (43, Field::Varint(v)) => pad = v.cast_signed(),
                        _ => {}
                    }
                }
            }
            3 => {
                while let Some(entry) = inner.next()? {
                    match entry {
                        (2, Field::Bytes(b)) => charsmap = b.len(),
                        (3, Field::Varint(v)) => dummy_prefix = v != 0,
                        (4, Field::Varint(v)) => extra_spaces = v != 0,
                        (5, Field::Varint(v)) => escape = v != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if tokens.is_empty() {
        return Err(malformed("no pieces"));
    }
    if model_type != 2 {
        let name = ["unknown", "unigram", "bpe", "word", "char"];
        let name = usize::try_from(model_type)
            .ok()
            .and_then(|i| name.get(i))
            .unwrap_or(&"unknown");
        return Err(refuse(format!(
            "sentencepiece model type {model_type} ({name}), expected 2 (bpe)"
        )));
    }
    if charsmap > 0 || extra_spaces || !escape || suffix {
        return Err(refuse(format!(
            "sentencepiece normalizer with a character map of {charsmap} bytes, remove_extra_whitespaces {extra_spaces}, escape_whitespaces {escape}, whitespace as suffix {suffix}; expected 0, false, true, false"
        )));
    }
    if !byte_fallback {
        // without it, bytes pieces are ordinary text and are never used for what is unknown
        for (_, kind) in &mut tokens {
            if *kind == TokenType::Byte {
                *kind = TokenType::Unused;
            }
        }
    }
    let id = |v: i64| {
        u32::try_from(v)
            .ok()
            .filter(|&i| (i as usize) < tokens.len())
    };
    Ok(GgmlTokenizer {
        model: Model::SentencePiece {
            space_prefix: dummy_prefix,
        },
        bos: id(bos),
        eos: id(eos),
        unk: id(unk),
        pad: id(pad),
        eot: None,
        add_bos: true,
        add_eos: false,
        scores: Some(scores),
        merges: None,
        tokens,
    })
}
