//! `tokenizer.json`: checked before the `tokenizers` crate sees it, and said in GGUF's words.
//!
//! Invariant: a file that passes [`take`] makes the crate answer, not panic: merges whose result is
//! no token and prefixes longer than tokens are its known panics.

use super::ggml::{GgmlTokenizer, Model, TokenType, byte_piece};
use super::pre_tokenizer::{self, short};
use super::side_files::{END_OF_TURN, SideFiles};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

fn refuse(key: &str, what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what).in_tensor(key)
}

/// The two parts of a merge: a pair, or a text with one space between them.
fn merge(value: Value) -> Option<(String, String)> {
    match value {
        Value::String(line) => {
            let (left, right) = line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))?;
            Some((left.to_owned(), right.to_owned()))
        }
        Value::Array(pair) => match <[Value; 2]>::try_from(pair) {
            Ok([Value::String(left), Value::String(right)]) => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

/// The two long lists of a `tokenizer.json`.
pub(super) struct Lists {
    /// Token and id, in the order of the file.
    pub(super) vocab: Vec<(String, u32)>,
    /// Pairs, best first.
    pub(super) merges: Vec<(String, String)>,
}

/// Checks what must hold before the crate may have the file, and takes the long lists out of its
/// parsed form (as JSON values they are several times as large).
pub(super) fn take(json: &mut Value) -> Result<Lists, FormatError> {
    let mut nothing = Value::Null;
    let model = json.get_mut("model").unwrap_or(&mut nothing);
    let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(refuse(
            "model.type",
            format!("tokenizer model `{}`, expected `BPE`", short(kind)),
        ));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model
            .get(key)
            .and_then(Value::as_str)
            .is_some_and(|s| !s.is_empty())
        {
            return Err(refuse(&format!("model.{key}"), "expected none"));
        }
    }
    if model
        .get("dropout")
        .and_then(Value::as_f64)
        .is_some_and(|p| p != 0.0)
    {
        return Err(refuse(
            "model.dropout",
            "is not zero; the same text would give other ids every time",
        ));
    }
    let Some(Value::Object(vocab)) = model.get_mut("vocab").map(Value::take) else {
        return Err(refuse("model.vocab", "absent or no object"));
    };
    let Some(Value::Array(list)) = model.get_mut("merges").map(Value::take) else {
        return Err(refuse("model.merges", "absent or no array"));
    };
    let mut merges = Vec::with_capacity(list.len());
    let mut whole = String::new();
    for (i, value) in list.into_iter().enumerate() {
        if value.as_str().is_some_and(|s| s.starts_with("#version")) {
            continue; // the first line of merges.txt
        }
        let Some((left, right)) = merge(value) else {
            return Err(refuse(
                "model.merges",
                format!("merge {i} is not two texts"),
            ));
        };
        whole.clear();
        whole.push_str(&left);
        whole.push_str(&right);
        if let Some(absent) = [&left, &right, &whole]
            .into_iter()
            .find(|t| !vocab.contains_key(*t))
        {
            return Err(refuse(
                "model.merges",
                format!("merge {i} needs `{}`, which is no token", short(absent)),
            ));
        }
        merges.push((left, right));
    }
    let vocab = vocab
        .into_iter()
        .map(
            |(text, id)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => Ok((text, id)),
                None => Err(refuse(
                    "model.vocab",
                    format!("`{}` has no id", short(&text)),
                )),
            },
        )
        .collect::<Result<_, _>>()?;
    Ok(Lists { vocab, merges })
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
pub(super) fn around(inner: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>), FormatError> {
    let ids = |text, special| {
        inner
            .encode_fast(text, special)
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| FormatError::new(ErrorCode::Tokenizer, e.to_string()))
    };
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

/// Every id that has a token, with the token's text and type. `bytes` is `byte_fallback`.
pub(super) fn typed_tokens(
    bytes: bool,
    vocab: Vec<(String, u32)>,
    inner: &tokenizers::Tokenizer,
) -> BTreeMap<u32, (String, TokenType)> {
    let mut tokens = BTreeMap::new();
    let mut runs = HashSet::new(); // tokens with spaces in them, of models that spell them out
    for (text, id) in vocab {
        let byte = bytes && byte_piece(&text).is_some();
        if bytes && text.contains('▁') {
            runs.insert(text.clone());
        }
        let kind = match byte {
            true => TokenType::Byte,
            false => TokenType::Normal,
        };
        tokens.insert(id, (text, kind));
    }
    for (id, token) in inner.get_added_tokens_decoder() {
        // a space run that merges make (Gemma) is an ordinary token, whoever else lists it
        if !token.special && runs.contains(&token.content) {
            continue;
        }
        let kind = match token.special {
            true => TokenType::Control,
            false => TokenType::UserDefined,
        };
        tokens.insert(id, (token.content, kind));
    }
    tokens
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
    lists: Lists,
    inner: &tokenizers::Tokenizer,
    side: &SideFiles,
    rows: usize,
) -> Result<GgmlTokenizer, FormatError> {
    let model = json.get("model").unwrap_or(&Value::Null);
    let flag = |key: &str| model.get(key).and_then(Value::as_bool).unwrap_or(false);
    let Lists { vocab, merges } = lists;
    let mut slots: Vec<Option<(String, TokenType)>> = vec![None; rows];
    let bytes = flag("byte_fallback");
    for (id, (text, kind)) in typed_tokens(bytes, vocab, inner) {
        let slot = usize::try_from(id)
            .ok()
            .and_then(|i| slots.get_mut(i))
            .ok_or_else(|| {
                refuse(
                    "model.vocab",
                    format!(
                        "token `{}` has id {id}, the model has {rows} rows (vocab_size)",
                        short(&text)
                    ),
                )
                .hint("the tokenizer is of another model, or config.json has the wrong vocab_size")
            })?;
        *slot = Some((text, kind));
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
    let scores = bytes.then(|| scores(&tokens, &merges));
    Ok(GgmlTokenizer {
        model: model_kind,
        scores,
        merges: Some(merges),
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
fn scores(tokens: &[(String, TokenType)], merges: &[(String, String)]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
    for (rank, (left, right)) in merges.iter().enumerate() {
        ranks.entry(format!("{left}{right}")).or_insert(rank);
    }
    let mut last = merges.len();
    tokens
        .iter()
        .map(|(text, kind)| match kind {
            TokenType::Normal => {
                let rank = ranks.get(text).copied().unwrap_or_else(|| {
                    last += 1;
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
