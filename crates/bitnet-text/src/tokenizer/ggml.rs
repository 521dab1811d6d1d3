//! What the `tokenizer.ggml.*` metadata of GGUF can say about a tokenizer, read, written and turned
//! into a `tokenizer.json`.
//!
//! Invariant: token `i` of the list has id `i`, no two tokens have the same text (llama.cpp aborts
//! on that), and the optional lists are as long as the token list.
//!
//! The conventions are llama.cpp's (`conversion/base.py`: `get_vocab_base`,
//! `_create_vocab_sentencepiece`; `gguf-py/gguf/vocab.py`: `SpecialVocab`; reader
//! `src/llama-vocab.cpp`), as seen in the release that llama-cpp-python 0.3.36 vendors:
//! * ids without a token are `[PADn]` of type 5 (unused); added tokens are type 3 (control) when
//!   special, else 4 (user-defined); `<0xHH>` of sentencepiece is 6 (byte), the rest 1 (normal).
//!   llama.cpp also types a non-special added token that merely looks special (`<|…|>`) as control;
//!   we keep what the tokenizer says;
//! * sentencepiece: `model` is `llama`, `pre` is `default`, scores are those of the model file,
//!   added tokens have score −1000 and padding −10000;
//! * `bos`, `eos`, `unknown`, `padding` ids come from `tokenizer_config.json`, then `config.json`;
//!   a token that the post-processor really adds at the end is `eos`, and the configured one `eot`;
//! * `add_bos_token`, `add_eos_token` say what the post-processor does, over what the config claims.
//!
//! ## How exactly `llama` models are rebuilt
//!
//! sentencepiece BPE merges, among adjacent pieces, the pair whose concatenation is the piece with
//! the highest score, leftmost first. Hugging Face BPE merges by rank of the *pair*. We list every
//! pair of pieces whose concatenation is a piece, ordered by that piece's score (the derivation of
//! transformers' own converter), so both take the same merges. They can differ only where one piece
//! has two decompositions that overlap in the text (`a`+`aa` and `aa`+`a` in `aaa`), where two
//! pieces have equal scores, or where a piece contains a character that is no piece itself. Control
//! tokens in text are recognized, as llama.cpp and transformers do and sentencepiece does not.

use super::bpe::{Bpe, Settings};
use super::json::Reading;
use super::pre_tokenizer::{self, PreTokenizer};
use super::resolver::assemble;
use super::words::Words;
use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata};
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Longest piece that merges are derived for, bytes (sentencepiece's own default is 16 characters).
const MERGED_PIECE: usize = 256;
/// Longest token list we accept: every known vocabulary is below 2^19.
const TOKENS: usize = 1 << 22;

/// `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    fn from_number(n: i64) -> Self {
        match n {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal, // 0 is "undefined"
        }
    }
}

/// `tokenizer.ggml.model` and what depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Model {
    /// `gpt2`.
    ByteLevel(&'static PreTokenizer),
    /// `llama`; whether a space is put before the text.
    SentencePiece { space_prefix: bool },
}

/// A tokenizer as GGUF metadata say it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GgmlTokenizer {
    pub(super) model: Model,
    /// By id.
    pub(super) tokens: Vec<(String, TokenType)>,
    pub(super) scores: Option<Vec<f32>>,
    /// Pairs of ids, best first.
    pub(super) merges: Option<Vec<(u32, u32)>>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) eot: Option<u32>,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
}

fn refuse(key: &str, what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what).in_tensor(key)
}

/// The name of an id that no token has.
pub(super) fn padding(id: usize) -> String {
    format!("[PAD{id}]")
}

/// Whether sentencepiece would call this a byte piece.
pub(super) fn byte_piece(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2)
        .then(|| u8::from_str_radix(hex, 16).ok())
        .flatten()
}

fn array<'m>(metadata: &'m Metadata, key: &str) -> Result<Option<&'m MetaArray>, FormatError> {
    match metadata.get(key) {
        None => Ok(None),
        Some(MetaValue::Array(a)) => Ok(Some(a)),
        Some(_) => Err(refuse(key, "expected an array")),
    }
}

/// The id under a key; ids without a token count as absent, as in llama.cpp.
fn id(metadata: &Metadata, name: &str, tokens: usize) -> Option<u32> {
    let v = metadata
        .get(&format!("tokenizer.ggml.{name}_token_id"))?
        .as_u64()?;
    u32::try_from(v).ok().filter(|&v| (v as usize) < tokens)
}

impl GgmlTokenizer {
    /// Reads `tokenizer.ggml.*`; `None` where the file has no tokenizer.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<Self>, FormatError> {
        let Some(model) = metadata.get("tokenizer.ggml.model") else {
            return Ok(None);
        };
        let model = model.as_str().unwrap_or_default();
        if matches!(model, "none" | "no_vocab") {
            return Ok(None);
        }
        if !matches!(model, "gpt2" | "llama") {
            return Err(refuse(
                "tokenizer.ggml.model",
                format!(
                    "unknown tokenizer model `{}`, expected gpt2 or llama",
                    pre_tokenizer::short(model)
                ),
            )
            .hint("give token ids, or convert from the checkpoint that has tokenizer.json"));
        }
        let Some(MetaArray::String(list)) = array(metadata, "tokenizer.ggml.tokens")? else {
            return Err(refuse(
                "tokenizer.ggml.tokens",
                "absent or no array of strings",
            ));
        };
        let n = list.len();
        if n > TOKENS {
            return Err(FormatError::new(
                ErrorCode::LimitExceeded,
                format!("{n} tokens, at most {TOKENS} are read"),
            )
            .in_tensor("tokenizer.ggml.tokens"));
        }
        let lengths = |key: &str, found: usize| {
            if found < n {
                Err(refuse(key, format!("{found} entries for {n} tokens")))
            } else {
                Ok(())
            }
        };
        let types: Option<Vec<TokenType>> = match array(metadata, "tokenizer.ggml.token_type")? {
            None => None,
            Some(MetaArray::I32(v)) => Some(
                v.iter()
                    .map(|&t| TokenType::from_number(t.into()))
                    .collect(),
            ),
            Some(MetaArray::U32(v)) => Some(
                v.iter()
                    .map(|&t| TokenType::from_number(t.into()))
                    .collect(),
            ),
            Some(_) => {
                return Err(refuse(
                    "tokenizer.ggml.token_type",
                    "expected an array of i32",
                ));
            }
        };
        let scores = match array(metadata, "tokenizer.ggml.scores")? {
            None => None,
            Some(MetaArray::F32(v)) => Some(v.clone()),
            Some(MetaArray::I32(v)) => Some(v.iter().map(|&s| s as f32).collect()),
            Some(_) => return Err(refuse("tokenizer.ggml.scores", "expected an array of f32")),
        };
        if let Some(v) = &types {
            lengths("tokenizer.ggml.token_type", v.len())?;
        }
        if let Some(v) = &scores {
            lengths("tokenizer.ggml.scores", v.len())?;
        }
        let llama = model == "llama";
        let default = |id: u32| (llama && (id as usize) < n).then_some(id);
        let bos = id(metadata, "bos", n).or(default(1));
        let eos = id(metadata, "eos", n).or(default(2));
        let unk = id(metadata, "unknown", n).or(default(0));
        let pad = id(metadata, "padding", n);
        let eot = id(metadata, "eot", n);

        let mut seen = Words::with_capacity(n);
        let mut tokens = Vec::with_capacity(n);
        for (i, bytes) in list.iter().enumerate() {
            // text that is not UTF-8 cannot be matched by text; it only needs a unique name
            let mut text = match std::str::from_utf8(bytes) {
                Ok("") => format!("[EMPTY_{i}]"), // llama.cpp's name for it
                Ok(text) => text.to_owned(),
                Err(_) => String::from_utf8_lossy(bytes).into_owned(),
            };
            let id = u32::try_from(i).unwrap_or(u32::MAX);
            let is_new = seen.id(&text).is_none();
            if !is_new {
                if std::str::from_utf8(bytes).is_ok() {
                    return Err(refuse(
                        "tokenizer.ggml.tokens",
                        format!(
                            "token {i} repeats the text `{}`",
                            pre_tokenizer::short(&text)
                        ),
                    ));
                }
                text = format!("[BYTES_{i}]");
            }
            seen.put(&text, id)?;
            let kind = match &types {
                Some(types) => types.get(i).copied().unwrap_or(TokenType::Normal),
                None if llama && byte_piece(&text).is_some() => TokenType::Byte,
                None if [bos, eos, pad, eot].contains(&Some(id)) => TokenType::Control,
                None => TokenType::Normal,
            };
            // older converters typed padding as user-defined
            let kind = if kind == TokenType::UserDefined && text == padding(i) {
                TokenType::Unused
            } else {
                kind
            };
            tokens.push((text, kind));
        }
        let model = if llama {
            let space_prefix = metadata
                .get("tokenizer.ggml.add_space_prefix")
                .and_then(MetaValue::as_bool)
                .unwrap_or(true);
            if metadata
                .get("tokenizer.ggml.remove_extra_whitespaces")
                .and_then(MetaValue::as_bool)
                == Some(true)
            {
                return Err(refuse(
                    "tokenizer.ggml.remove_extra_whitespaces",
                    "is true; this normalization is not supported",
                ));
            }
            Model::SentencePiece { space_prefix }
        } else {
            let first = tokens.first().map(|(t, _)| t.as_str()).unwrap_or_default();
            Model::ByteLevel(match metadata.get("tokenizer.ggml.pre") {
                Some(v) => pre_tokenizer::by_name(v.as_str().unwrap_or_default())?,
                None => pre_tokenizer::by_evidence(|t| seen.id(t).is_some(), first)?,
            })
        };
        let merges = match array(metadata, "tokenizer.ggml.merges")? {
            Some(MetaArray::String(list)) => Some(
                list.iter()
                    .map(|m| split_merge(m, &seen))
                    .collect::<Result<Vec<_>, _>>()?,
            ),
            None if llama => None,
            _ => {
                return Err(refuse(
                    "tokenizer.ggml.merges",
                    "absent or no array of strings",
                ));
            }
        };
        let flag = |key: &str| metadata.get(key).and_then(MetaValue::as_bool);
        let adds_bos = match model {
            Model::ByteLevel(pre) => pre.adds_bos && bos.is_some(),
            Model::SentencePiece { .. } => true,
        };
        Ok(Some(Self {
            model,
            tokens,
            scores,
            merges,
            bos,
            eos,
            unk,
            pad,
            eot,
            add_bos: flag("tokenizer.ggml.add_bos_token").unwrap_or(adds_bos),
            add_eos: flag("tokenizer.ggml.add_eos_token").unwrap_or(false),
        }))
    }

    /// The `tokenizer.ggml.*` entries, in the order in which llama.cpp's converter writes them.
    pub(super) fn to_metadata(&self) -> Vec<(String, MetaValue)> {
        let mut out = Vec::new();
        let mut put = |key: &str, value| out.push((format!("tokenizer.ggml.{key}"), value));
        let (model, pre, space) = match self.model {
            Model::ByteLevel(pre) => ("gpt2", pre.name, false),
            Model::SentencePiece { space_prefix } => ("llama", "default", space_prefix),
        };
        put("model", MetaValue::text(model));
        put("pre", MetaValue::text(pre));
        let texts = self
            .tokens
            .iter()
            .map(|(t, _)| t.clone().into_bytes())
            .collect();
        put("tokens", MetaValue::Array(MetaArray::String(texts)));
        if let Some(scores) = &self.scores {
            put("scores", MetaValue::Array(MetaArray::F32(scores.clone())));
        }
        let types = self.tokens.iter().map(|&(_, t)| t as i32).collect();
        put("token_type", MetaValue::Array(MetaArray::I32(types)));
        if let Some(merges) = &self.merges {
            let lines = merges
                .iter()
                .map(|&(a, b)| merge_line(self.text(a), self.text(b)).into_bytes())
                .collect();
            put("merges", MetaValue::Array(MetaArray::String(lines)));
        }
        for (name, id) in [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("unknown", self.unk),
            ("padding", self.pad),
        ] {
            if let Some(id) = id {
                put(&format!("{name}_token_id"), MetaValue::U32(id));
            }
        }
        put("add_bos_token", MetaValue::Bool(self.add_bos));
        put("add_eos_token", MetaValue::Bool(self.add_eos));
        put("add_space_prefix", MetaValue::Bool(space));
        out
    }

    /// Leaves the added tokens at the end out that have no row; gives their texts and ids.
    pub(super) fn drop_added_beyond(&mut self, rows: usize) -> Vec<(u32, String)> {
        let beyond = self.tokens.get(rows..).unwrap_or_default();
        let is_added = |kind: TokenType| {
            matches!(
                kind,
                TokenType::Control | TokenType::UserDefined | TokenType::Unused
            )
        };
        if !beyond.iter().all(|(_, kind)| is_added(*kind)) {
            return Vec::new(); // pieces of the model itself: a tokenizer of another model
        }
        let dropped = beyond
            .iter()
            .enumerate()
            .filter(|(_, (_, kind))| *kind != TokenType::Unused)
            .filter_map(|(i, (text, _))| {
                Some((u32::try_from(rows.saturating_add(i)).ok()?, text.clone()))
            })
            .collect();
        self.tokens.truncate(rows);
        if let Some(scores) = &mut self.scores {
            scores.truncate(rows);
        }
        let within = |id: Option<u32>| id.filter(|id| (*id as usize) < rows);
        self.bos = within(self.bos);
        self.eos = within(self.eos);
        self.unk = within(self.unk);
        self.pad = within(self.pad);
        self.eot = within(self.eot);
        dropped
    }

    fn special(&self, id: Option<u32>, what: &str) -> Result<(u32, &str), FormatError> {
        id.and_then(|i| Some((i, self.tokens.get(i as usize)?.0.as_str())))
            .ok_or_else(|| refuse(what, "is true, but the token is not named"))
    }

    fn text(&self, id: u32) -> &str {
        let token = self.tokens.get(id as usize);
        token.map_or("", |(text, _)| text)
    }

    /// Ids that have a token, and its text.
    fn named(&self) -> impl Iterator<Item = (u32, &str)> {
        let all = self.tokens.iter().enumerate();
        let named =
            all.filter(|(i, (text, kind))| *kind != TokenType::Unused || *text != padding(*i));
        named.map(|(i, (text, _))| (u32::try_from(i).unwrap_or(u32::MAX), text.as_str()))
    }

    /// What a `tokenizer.json` would say.
    pub(super) fn reading(&self) -> Result<Reading, FormatError> {
        let rules = self.rules_json()?;
        let mut words = Words::with_capacity(self.tokens.len());
        for (id, text) in self.named() {
            words.push(text, id)?;
        }
        let merges = self.merges_or_derived()?;
        let (added, assembled) = assemble(merges.len().saturating_mul(16), words, |add| {
            let mut pairs = merges.iter();
            pairs.try_for_each(|&(left, right)| add(self.text(left), self.text(right)))
        });
        let (words, merges) = assembled?;
        added?;
        let flag = |key: &str| rules.pointer(&format!("/model/{key}")) == Some(&Value::Bool(true));
        let settings = Settings {
            unk_token: rules
                .pointer("/model/unk_token")
                .and_then(Value::as_str)
                .map(str::to_owned),
            fuse_unk: flag("fuse_unk"),
            byte_fallback: flag("byte_fallback"),
            ignore_merges: flag("ignore_merges"),
        };
        Ok(Reading {
            bpe: Bpe::new(words, merges, settings),
            rules,
        })
    }

    /// A `tokenizer.json` that does what these metadata say.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, FormatError> {
        let failed = |e: serde_json::Error| refuse("tokenizer", e.to_string()).because(e);
        let mut out = serde_json::to_vec(&self.rules_json()?).map_err(failed)?;
        // `model` is the last key: its lists go in front of the two braces at the end
        out.truncate(out.len().saturating_sub(2));
        out.extend_from_slice(b",\"vocab\":{");
        for (number, (id, text)) in self.named().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, text).map_err(failed)?;
            out.extend_from_slice(format!(":{id}").as_bytes());
        }
        out.extend_from_slice(b"},\"merges\":[");
        for (number, (left, right)) in self.merges_or_derived()?.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            let pair = [self.text(*left), self.text(*right)];
            serde_json::to_writer(&mut out, &pair).map_err(failed)?;
        }
        out.extend_from_slice(b"]}}");
        Ok(out)
    }

    /// Everything but the vocabulary and the merges.
    fn rules_json(&self) -> Result<Value, FormatError> {
        let mut added = Vec::new();
        for (i, (text, kind)) in self.tokens.iter().enumerate() {
            if *kind == TokenType::Unused && *text == padding(i) {
                continue; // no token
            }
            if matches!(
                kind,
                TokenType::Control | TokenType::UserDefined | TokenType::Unknown
            ) {
                added.push(json!({
                    "id": i, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind != TokenType::UserDefined
                }));
            }
        }
        let mut before = Vec::new();
        let mut after = Vec::new();
        let mut specials = Map::new();
        if self.add_bos {
            before.push(self.special(self.bos, "tokenizer.ggml.add_bos_token")?);
        }
        if self.add_eos {
            after.push(self.special(self.eos, "tokenizer.ggml.add_eos_token")?);
        }
        for (id, text) in before.iter().chain(&after) {
            specials.insert(
                (*text).to_owned(),
                json!({"id": text, "ids": [id], "tokens": [text]}),
            );
        }
        let item = |(_, text): &(u32, &str)| json!({"SpecialToken": {"id": text, "type_id": 0}});
        let single: Vec<Value> = before
            .iter()
            .map(item)
            .chain([json!({"Sequence": {"id": "A", "type_id": 0}})])
            .chain(after.iter().map(item))
            .collect();
        let pair: Vec<Value> = single
            .iter()
            .cloned()
            .chain([json!({"Sequence": {"id": "B", "type_id": 1}})])
            .collect();
        let template = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials});

        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false
        });
        let (post, decoder);
        let (normalizer, pre) = self.rules();
        match self.model {
            Model::ByteLevel(row) => {
                let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
                post = json!({"type": "Sequence", "processors": [bytes, template]});
                decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
                set(&mut model, "ignore_merges", row.ignore_merges.into());
            }
            Model::SentencePiece { space_prefix } => {
                post = template;
                let mut steps = vec![
                    json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                    json!({"type": "ByteFallback"}),
                    json!({"type": "Fuse"}),
                ];
                if space_prefix {
                    steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
                }
                decoder = json!({"type": "Sequence", "decoders": steps});
                set(&mut model, "byte_fallback", self.has_bytes().into());
                set(&mut model, "fuse_unk", true.into());
                if let Some((text, _)) = self.unk.and_then(|i| self.tokens.get(i as usize)) {
                    set(&mut model, "unk_token", text.as_str().into());
                }
            }
        }
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post,
            "decoder": decoder, "model": model
        }))
    }

    /// `normalizer` and `pre_tokenizer` of a `tokenizer.json`.
    pub(super) fn rules(&self) -> (Value, Value) {
        match self.model {
            Model::ByteLevel(row) => {
                let normalizer = if row.nfc {
                    json!({"type": "NFC"})
                } else {
                    Value::Null
                };
                (normalizer, row.to_json())
            }
            Model::SentencePiece { space_prefix } => {
                let replace =
                    json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
                let normalizer = if space_prefix {
                    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
                } else {
                    replace
                };
                (normalizer, Value::Null)
            }
        }
    }

    /// Whether bytes that no piece has are tokens of their own.
    pub(super) fn has_bytes(&self) -> bool {
        self.is_sentencepiece() && self.tokens.iter().any(|(_, t)| *t == TokenType::Byte)
    }

    pub(super) fn is_sentencepiece(&self) -> bool {
        matches!(self.model, Model::SentencePiece { .. })
    }

    /// The merges, derived from the scores where none are listed.
    pub(super) fn merges_or_derived(&self) -> Result<Cow<'_, [(u32, u32)]>, FormatError> {
        match &self.merges {
            Some(merges) => Ok(Cow::Borrowed(merges)),
            None => self.merges_from_scores().map(Cow::Owned),
        }
    }

    /// The first token whose score puts it before one that an earlier merge makes: readers of scores
    /// (llama.cpp) would merge in another order than `merges` says. `None` where that is not so.
    pub(super) fn first_score_out_of_order(&self, merges: &[(u32, u32)]) -> Option<usize> {
        let scores = self.scores.as_ref().filter(|_| self.is_sentencepiece())?;
        // what is more than a piece has a score of its own
        let ids: HashMap<&str, usize> = (self.tokens.iter().enumerate())
            .filter(|(_, (_, kind))| *kind == TokenType::Normal)
            .map(|(id, (text, _))| (text.as_str(), id))
            .collect();
        let (mut seen, mut least) = (HashSet::new(), f32::INFINITY);
        for &(left, right) in merges {
            let made = format!("{}{}", self.text(left), self.text(right));
            let Some(id) = ids.get(made.as_str()).copied() else {
                continue;
            };
            if !seen.insert(id) {
                continue;
            }
            let score = scores.get(id).copied().unwrap_or(f32::NEG_INFINITY);
            // NaN is in no order
            if score > least || score.is_nan() {
                return Some(id);
            }
            least = score;
        }
        None
    }

    /// See "How exactly" above.
    fn merges_from_scores(&self) -> Result<Vec<(u32, u32)>, FormatError> {
        let Some(scores) = &self.scores else {
            return Err(refuse(
                "tokenizer.ggml.scores",
                "absent, and there are no merges either",
            ));
        };
        let ids: HashMap<&str, u32> = self
            .tokens
            .iter()
            .zip(0u32..)
            .filter(|((_, kind), _)| *kind == TokenType::Normal)
            .map(|((text, _), id)| (text.as_str(), id))
            .collect();
        let mut found = Vec::new();
        for (i, (text, kind)) in self.tokens.iter().enumerate() {
            if *kind != TokenType::Normal || text.len() > MERGED_PIECE {
                continue;
            }
            let score = scores.get(i).copied().unwrap_or(f32::NEG_INFINITY);
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    found.push((score, i, l, r));
                }
            }
        }
        found.sort_by(|a, b| {
            b.0.total_cmp(&a.0)
                .then(a.1.cmp(&b.1))
                .then(a.2.cmp(&b.2))
                .then(a.3.cmp(&b.3))
        });
        Ok(found.into_iter().map(|(_, _, l, r)| (l, r)).collect())
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// `left right`; a space inside a part would split wrongly, so it is written as byte-level BPE
/// writes a space (gguf-py does the same).
fn merge_line(left: &str, right: &str) -> String {
    let part = |s: &str| s.replace(' ', "Ġ");
    format!("{} {}", part(left), part(right))
}

/// Undoes [`merge_line`]: the first space that leaves two tokens; parts may contain spaces.
fn split_merge(line: &[u8], tokens: &Words) -> Result<(u32, u32), FormatError> {
    let key = "tokenizer.ggml.merges";
    let line = std::str::from_utf8(line).map_err(|_| refuse(key, "a merge is not UTF-8"))?;
    let ids = |left: &str, right: &str| Some((tokens.id(left)?, tokens.id(right)?));
    let mut spaces = line.match_indices(' ').filter(|&(at, _)| at > 0);
    spaces
        .find_map(|(at, _)| {
            let (left, right) = (line.get(..at)?, line.get(at.saturating_add(1)..)?);
            ids(left, right).or_else(|| ids(&left.replace('Ġ', " "), &right.replace('Ġ', " ")))
        })
        .ok_or_else(|| {
            refuse(
                key,
                format!("merge `{}` is not two tokens", pre_tokenizer::short(line)),
            )
        })
}
