//! `tokenizer.json` in GGUF's words.
//!
//! Invariant: a tokenizer that GGUF's keys cannot express is refused.

use super::engine::Engine;
use super::ggml::{GgmlTokenizer, Model, TokenType, byte_piece};
use super::pre_tokenizer::{self, short};
use super::side_files::{END_OF_TURN, SideFiles};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;
use std::cmp::Ordering;

fn refuse(key: &str, what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what).in_tensor(key)
}

/// How a byte-fallback tokenizer treats spaces: `Some(true)` puts one in front.
pub(super) fn space_prefix(json: &Value) -> Option<bool> {
    let kind = |v: &Value| {
        v.get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let text = |v: &Value, key: &str| {
        v.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let marks_spaces = |v: &Value| {
        kind(v) == "Replace"
            && v.pointer("/pattern/String").and_then(Value::as_str) == Some(" ")
            && text(v, "content") == "▁"
    };
    let prepends = |v: &Value| kind(v) == "Prepend" && text(v, "prepend") == "▁";
    let normalizer = json.get("normalizer").unwrap_or(&Value::Null);
    let pre = json.get("pre_tokenizer").unwrap_or(&Value::Null);
    let steps: Vec<&Value> = match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None if normalizer.is_null() => Vec::new(),
        None => vec![normalizer],
    };
    // after the replacement there is no space left to split at
    let no_split = pre.is_null()
        || (kind(pre) == "Split"
            && pre.pointer("/pattern/String").and_then(Value::as_str) == Some(" "));
    match steps.as_slice() {
        [one] if marks_spaces(one) && no_split => Some(false),
        [one, two] if prepends(one) && marks_spaces(two) && no_split => Some(true),
        [] if kind(pre) == "Metaspace"
            && pre.get("split").and_then(Value::as_bool) == Some(false) =>
        {
            match text(pre, "prepend_scheme").as_str() {
                "never" => Some(false),
                "first" | "always" => Some(true),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What the post-processor puts around a text, found by asking it.
pub(super) fn around(inner: &Engine) -> Result<(Vec<u32>, Vec<u32>), FormatError> {
    let ids = |text, special| inner.encode(text, special);
    // a text that has tokens of its own tells the front from the back
    for text in ["a", "0", ".", "▁"] {
        let bare = ids(text, false)?;
        if bare.is_empty() {
            continue;
        }
        let full = ids(text, true)?;
        for n in 0..=full.len().saturating_sub(bare.len()) {
            let (head, rest) = full.split_at_checked(n).unwrap_or_default();
            if let Some(tail) = rest.strip_prefix(bare.as_slice()) {
                return Ok((head.to_vec(), tail.to_vec()));
            }
        }
        return Err(refuse(
            "post_processor",
            "changes the tokens of the text itself",
        ));
    }
    Err(refuse(
        "model.vocab",
        "no letter, digit or punctuation has a token",
    ))
}

/// The special tokens of a tokenizer and the files beside it, as llama.cpp's converter sees them.
pub(super) struct Specials {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

impl Specials {
    /// `before` and `after` are what the post-processor adds.
    pub(super) fn find(
        side: &SideFiles,
        lookup: impl Fn(&str) -> Option<u32>,
        before: &[u32],
        after: &[u32],
    ) -> Self {
        let mut eot = END_OF_TURN.iter().find_map(|t| lookup(t));
        let configured = side.id("eos", &lookup);
        let eos = after.first().copied().or(configured);
        if eos != configured {
            eot = eot.or(configured);
        }
        Self {
            bos: before.first().copied().or_else(|| side.id("bos", &lookup)),
            eos,
            unk: side.id("unk", &lookup),
            pad: side.id("pad", &lookup),
            eot,
            add_bos: !before.is_empty(),
            add_eos: !after.is_empty(),
        }
    }
}

/// Every id that has a token, ascending, with the token's text and type.
pub(super) fn typed_tokens(inner: &Engine) -> Vec<(u32, &str, TokenType)> {
    let bytes = inner.bpe().settings().byte_fallback;
    let plain = inner.bpe().words().iter().map(|(id, text)| {
        let kind = match bytes && byte_piece(text).is_some() {
            true => TokenType::Byte,
            false => TokenType::Normal,
        };
        (id, text, kind)
    });
    let added = inner.added_tokens().into_iter().filter_map(|(id, token)| {
        let text = token.content.as_str();
        // a space run that merges make (Gemma) is an ordinary token, also if another file lists it
        let is_run = bytes && text.contains('▁') && inner.bpe().words().id(text).is_some();
        if !token.special && is_run {
            return None;
        }
        let kind = match token.special {
            true => TokenType::Control,
            false => TokenType::UserDefined,
        };
        Some((id, text, kind))
    });
    let mut all = Vec::with_capacity(inner.bpe().words().len());
    let (mut plain, mut added) = (plain.peekable(), added.peekable());
    loop {
        let order = match (plain.peek(), added.peek()) {
            (None, None) => return all,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((id, ..)), Some((over, ..))) => id.cmp(over),
        };
        if order != Ordering::Greater {
            let token = plain.next();
            all.extend(token.filter(|_| order == Ordering::Less));
        }
        if order != Ordering::Less {
            all.extend(added.next());
        }
    }
}

/// What a byte-level tokenizer does to characters before it cuts; `None` for what has no word.
pub(super) fn normalizer_word(normalizer: &Value) -> Option<&'static str> {
    let nothing = normalizer
        .get("normalizers")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty);
    match normalizer.get("type").and_then(Value::as_str) {
        Some("NFC") => Some("nfc"),
        _ if normalizer.is_null() || nothing => Some("none"),
        _ => None,
    }
}

/// A `tokenizer.json` in GGUF's words, with exactly `rows` tokens.
pub(super) fn to_ggml(
    json: &Value,
    inner: &Engine,
    side: &SideFiles,
    rows: usize,
) -> Result<GgmlTokenizer, FormatError> {
    let model = json.get("model").unwrap_or(&Value::Null);
    let flag = |key: &str| model.get(key).and_then(Value::as_bool).unwrap_or(false);
    let mut slots: Vec<Option<(String, TokenType)>> = vec![None; rows];
    let bytes = flag("byte_fallback");
    for (id, text, kind) in typed_tokens(inner) {
        let slot = usize::try_from(id)
            .ok()
            .and_then(|i| slots.get_mut(i))
            .ok_or_else(|| {
                refuse(
                    "model.vocab",
                    format!(
                        "token `{}` has id {id}, the model has {rows} rows (vocab_size)",
                        short(text)
                    ),
                )
                .hint("the tokenizer is of another model, or config.json has the wrong vocab_size")
            })?;
        *slot = Some((text.to_owned(), kind));
    }
    let first = slots
        .first()
        .and_then(Option::as_ref)
        .map(|(t, _)| t.as_str())
        .unwrap_or_default();
    let model_kind = if bytes {
        let space_prefix = space_prefix(json).ok_or_else(|| {
            refuse(
                "pre_tokenizer",
                "byte-fallback BPE whose treatment of spaces has no GGUF word",
            )
            .hint("write a Hugging Face target instead")
        })?;
        Model::SentencePiece { space_prefix }
    } else {
        let normalizer = json.get("normalizer").unwrap_or(&Value::Null);
        if normalizer_word(normalizer).is_none() {
            let kind = normalizer.get("type").and_then(Value::as_str);
            let kind = kind.unwrap_or_default();
            return Err(
                refuse("normalizer", format!("`{}` has no GGUF word", short(kind)))
                    .hint("write a Hugging Face target instead"),
            );
        }
        let pre = json.get("pre_tokenizer").unwrap_or(&Value::Null);
        Model::ByteLevel(pre_tokenizer::from_json(pre, flag("ignore_merges"), first)?)
    };
    let (before, after) = around(inner)?;
    if before.len() > 1 || after.len() > 1 {
        return Err(refuse(
            "post_processor",
            format!(
                "adds {} tokens before and {} after the text; GGUF can say one each",
                before.len(),
                after.len()
            ),
        ));
    }
    let lookup = |text: &str| inner.token_to_id(text);
    let mut special = Specials::find(side, lookup, &before, &after);
    special.unk = special
        .unk
        .or_else(|| lookup(model.get("unk_token")?.as_str()?));
    let within = |id: Option<u32>| id.filter(|&i| (i as usize) < rows);

    let tokens: Vec<(String, TokenType)> = slots
        .into_iter()
        .enumerate()
        .map(|(i, slot)| slot.unwrap_or_else(|| (super::ggml::padding(i), TokenType::Unused)))
        .collect();
    let merges = inner.bpe().merges();
    // a merge is written by its tokens' texts
    let is_spelled = |id: &u32| {
        let written = tokens.get(*id as usize).map(|(text, _)| text.as_str());
        written == inner.bpe().words().text(*id)
    };
    if let Some(id) = merges.iter().flatten().find(|id| !is_spelled(id)) {
        let what = format!("an added token takes id {id} from a token that merges need");
        return Err(refuse("added_tokens", what));
    }
    let scores = bytes.then(|| scores(&tokens, merges));
    Ok(GgmlTokenizer {
        model: model_kind,
        scores,
        merges: Some(merges.iter().map(|&[l, r, _]| (l, r)).collect()),
        bos: within(special.bos),
        eos: within(special.eos),
        unk: within(special.unk),
        pad: within(special.pad),
        eot: within(special.eot),
        add_bos: special.add_bos,
        add_eos: special.add_eos,
        tokens,
    })
}

/// Scores that make a reader who knows only scores merge in the order of the list: minus the rank
/// of the first merge that makes the token; tokens that no merge makes come after all of them.
/// (Readers of `merges`, ours included, need no scores; llama.cpp ignores merges in `llama` models.)
fn scores(tokens: &[(String, TokenType)], merges: &[[u32; 3]]) -> Vec<f32> {
    let mut ranks: Vec<Option<usize>> = vec![None; tokens.len()];
    for (rank, [_, _, made]) in merges.iter().enumerate() {
        if let Some(place) = ranks.get_mut(*made as usize) {
            place.get_or_insert(rank);
        }
    }
    let mut last = merges.len();
    tokens
        .iter()
        .zip(ranks)
        .map(|((_, kind), rank)| match kind {
            TokenType::Normal => {
                let rank = rank.unwrap_or_else(|| {
                    last = last.saturating_add(1);
                    last
                });
                -(rank as f32)
            }
            TokenType::Unused => -10_000.0,
            TokenType::Control | TokenType::UserDefined => -1_000.0,
            TokenType::Byte | TokenType::Unknown => 0.0,
        })
        .collect()
}
