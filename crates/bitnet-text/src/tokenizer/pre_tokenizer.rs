//! The pre-tokenizers that `tokenizer.ggml.pre` can name, and how `tokenizer.json` spells them.
//!
//! Invariant: a name stands for exactly one way of cutting text; a way that has no row here is
//! refused, because every wrong guess gives a model that works almost.
//!
//! Names and what they mean to readers are facts of llama.cpp (`src/llama-vocab.cpp`, the branch on
//! `tokenizer_pre`, and `conversion/base.py`, `get_vocab_base_pre`, which picks a name by hashing the
//! ids of a test text; we compare the pre-tokenizer itself instead). To llama.cpp `llama-bpe` and
//! `falcon3` are the same branch: the Llama-3 expression, whole words looked up before merging, BOS
//! added unless `add_bos_token` says otherwise. bitnet.cpp's `falcon_e` is the same again, but
//! llama.cpp does not know the word, so it is read and never written.

use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Value, json};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same without inline flags, as some exporters write it.
const LLAMA3_PLAIN: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_PLAIN: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Digits by threes, runs of Chinese and Japanese characters, words.
const HUNYUAN: [&str; 3] = [
    r"\p{N}{1,3}",
    "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
/// What llama.cpp does with `pre = "default"`: these four, one after the other.
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// How text is cut before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// One `Split` by a regular expression (any of these spellings; the first is written).
    Regex(&'static [&'static str]),
    /// The expression built into `ByteLevel`.
    Gpt2,
    /// Every digit alone, then the expression built into `ByteLevel`.
    DigitsGpt2,
    /// Several `Split`, one after the other.
    Splits(&'static [&'static str]),
    /// llama.cpp's `default`.
    Default,
}

/// One pre-tokenizer of byte-level BPE.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PreTokenizer {
    /// The word written to `tokenizer.ggml.pre`.
    pub(super) name: &'static str,
    /// Other words in files that mean the same.
    aliases: &'static [&'static str],
    cut: Cut,
    /// A word that is a token as a whole is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// What llama.cpp assumes where `add_bos_token` is absent.
    pub(super) adds_bos: bool,
    /// The models of this name normalise to NFC in `tokenizer.json` (llama.cpp does not).
    pub(super) nfc: bool,
}

const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        name: "llama-bpe",
        aliases: &["llama3", "llama-v3"],
        cut: Cut::Regex(&[LLAMA3, LLAMA3_PLAIN]),
        ignore_merges: true,
        adds_bos: true,
        nfc: false,
    },
    PreTokenizer {
        name: "falcon3",
        aliases: &["falcon_e", "falcon-e"],
        cut: Cut::Regex(&[LLAMA3, LLAMA3_PLAIN]),
        ignore_merges: false,
        adds_bos: true,
        nfc: false,
    },
    PreTokenizer {
        name: "smaug-bpe",
        aliases: &["dbrx"],
        cut: Cut::Regex(&[LLAMA3, LLAMA3_PLAIN]),
        ignore_merges: false,
        adds_bos: false,
        nfc: false,
    },
    PreTokenizer {
        name: "qwen2",
        aliases: &[],
        cut: Cut::Regex(&[QWEN2, QWEN2_PLAIN]),
        ignore_merges: false,
        adds_bos: false,
        nfc: true,
    },
    PreTokenizer {
        name: "qwen35",
        aliases: &[],
        cut: Cut::Regex(&[QWEN35]),
        ignore_merges: false,
        adds_bos: false,
        nfc: true,
    },
    PreTokenizer {
        name: "hunyuan-dense",
        aliases: &[],
        cut: Cut::Splits(&HUNYUAN),
        ignore_merges: false,
        adds_bos: false,
        nfc: false,
    },
    PreTokenizer {
        name: "gpt-2",
        aliases: &["phi-2"],
        cut: Cut::Gpt2,
        ignore_merges: false,
        adds_bos: false,
        nfc: false,
    },
    PreTokenizer {
        name: "smollm",
        aliases: &["starcoder"],
        cut: Cut::DigitsGpt2,
        ignore_merges: false,
        adds_bos: false,
        nfc: false,
    },
    PreTokenizer {
        name: "default",
        aliases: &[],
        cut: Cut::Default,
        ignore_merges: false,
        adds_bos: false,
        nfc: false,
    },
];

/// Names, for hints.
fn names() -> String {
    PRE_TOKENIZERS
        .iter()
        .map(|p| p.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Every row.
pub(super) fn all() -> &'static [PreTokenizer] {
    PRE_TOKENIZERS
}

/// The row of a `tokenizer.ggml.pre` value.
pub(super) fn by_name(name: &str) -> Result<&'static PreTokenizer, FormatError> {
    PRE_TOKENIZERS
        .iter()
        .find(|p| p.name == name || p.aliases.contains(&name))
        .ok_or_else(|| {
            FormatError::new(
                ErrorCode::Tokenizer,
                format!(
                    "unknown pre-tokenizer `{name}`, expected one of {}",
                    names()
                ),
            )
            .in_tensor("tokenizer.ggml.pre")
            .hint("convert from the checkpoint that has tokenizer.json, or give token ids")
        })
}

/// The row of a file that has no `tokenizer.ggml.pre`, from tokens that only one family has.
///
/// Older bitnet.cpp files of 2B-4T lack the key although their tokenizer is Llama-3's. llama.cpp
/// would use `default`, which cuts differently; we want evidence or refuse.
pub(super) fn by_evidence(
    has: impl Fn(&str) -> bool,
    first: &str,
) -> Result<&'static PreTokenizer, FormatError> {
    if has("<|begin_of_text|>") && has("<|eot_id|>") {
        by_name("llama-bpe")
    } else if first == ">>TITLE<<" && has("<|endoftext|>") {
        by_name("falcon3")
    } else if has("<|im_start|>") && has("<|object_ref_start|>") {
        by_name("qwen2")
    } else {
        Err(FormatError::new(
            ErrorCode::Tokenizer,
            "the file does not name its pre-tokenizer, and no token tells which it is",
        )
        .in_tensor("tokenizer.ggml.pre")
        .hint("convert the original checkpoint again, or give token ids"))
    }
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(regex: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

fn sequence(steps: Vec<Value>) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps})
}

impl PreTokenizer {
    /// As `tokenizer.json` spells it.
    pub(super) fn to_json(&self) -> Value {
        match self.cut {
            Cut::Regex(spellings) => sequence(
                spellings
                    .iter()
                    .take(1)
                    .map(|r| split(r))
                    .chain([byte_level(false)])
                    .collect(),
            ),
            Cut::Gpt2 => byte_level(true),
            Cut::DigitsGpt2 => sequence(vec![
                json!({"type": "Digits", "individual_digits": true}),
                byte_level(true),
            ]),
            Cut::Splits(expressions) => sequence(
                expressions
                    .iter()
                    .map(|r| split(r))
                    .chain([byte_level(false)])
                    .collect(),
            ),
            Cut::Default => sequence(
                DEFAULT
                    .iter()
                    .map(|r| split(r))
                    .chain([byte_level(false)])
                    .collect(),
            ),
        }
    }
}

/// The row of a byte-level `tokenizer.json` pre-tokenizer.
///
/// `ignore_merges` and the vocabulary's first token decide between names that share an expression:
/// Falcon's vocabularies start with `>>TITLE<<` and say `ignore_merges: false`.
pub(super) fn from_json(
    pre: &Value,
    ignore_merges: bool,
    first: &str,
) -> Result<&'static PreTokenizer, FormatError> {
    let refuse = |what: String| {
        FormatError::new(ErrorCode::Tokenizer, what)
            .in_tensor("pre_tokenizer")
            .hint(format!("GGUF readers know pre-tokenizers by name, and none matches ({}); write a Hugging Face target instead", names()))
    };
    let mut steps = Vec::new();
    flatten(pre, &mut steps, 0);
    let text = |v: &Value, key: &str| {
        v.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let flag =
        |v: &Value, key: &str, absent: bool| v.get(key).and_then(Value::as_bool).unwrap_or(absent);
    // the last step maps bytes to letters
    let Some((bytes, cuts)) = steps.split_last() else {
        return Err(refuse(
            "the pre-tokenizer is absent, expected byte-level BPE".into(),
        ));
    };
    if text(bytes, "type") != "ByteLevel" {
        return Err(refuse(format!(
            "the last pre-tokenizer is `{}`, expected `ByteLevel`",
            text(bytes, "type")
        )));
    }
    if flag(bytes, "add_prefix_space", true) {
        return Err(refuse(
            "`ByteLevel` adds a space in front, which no GGUF name says".into(),
        ));
    }
    let cut = match (cuts, flag(bytes, "use_regex", true)) {
        ([], true) => Cut::Gpt2,
        ([digits], true)
            if text(digits, "type") == "Digits" && flag(digits, "individual_digits", false) =>
        {
            Cut::DigitsGpt2
        }
        ([one], false) if text(one, "type") == "Split" => {
            let regex = one
                .pointer("/pattern/Regex")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if text(one, "behavior") != "Isolated" || flag(one, "invert", false) {
                return Err(refuse(format!(
                    "`Split` has behavior `{}` and invert {}, expected `Isolated` and false",
                    text(one, "behavior"),
                    flag(one, "invert", false)
                )));
            }
            PRE_TOKENIZERS
                .iter()
                .map(|p| p.cut)
                .find(|c| matches!(c, Cut::Regex(s) if s.contains(&regex)))
                .ok_or_else(|| refuse(format!("unknown splitting expression `{}`", short(regex))))?
        }
        (several @ [_, _, ..], false)
            if splits(several).is_some_and(|e| known_splits(&e).is_some()) =>
        {
            let expressions = splits(several).unwrap_or_default();
            known_splits(&expressions).unwrap_or(Cut::Default)
        }
        _ => {
            let kinds: Vec<_> = steps.iter().map(|s| text(s, "type")).collect();
            return Err(refuse(format!(
                "unknown pre-tokenizer sequence {}",
                short(&kinds.join(" → "))
            )));
        }
    };
    let rows = || PRE_TOKENIZERS.iter().filter(|p| p.cut == cut);
    let falcon = (first == ">>TITLE<<" && !ignore_merges)
        .then(|| rows().find(|p| p.name == "falcon3"))
        .flatten();
    falcon
        .or_else(|| rows().next())
        .ok_or_else(|| refuse("unknown pre-tokenizer".into()))
}

/// The expressions of steps that cut and keep every part; `None` if one of them does something else.
fn splits<'v>(steps: &[&'v Value]) -> Option<Vec<&'v str>> {
    let expression = |step: &&'v Value| {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        let inverts = step.get("invert").and_then(Value::as_bool).unwrap_or(false);
        let cuts = text("type") == Some("Split") && text("behavior") == Some("Isolated");
        let regex = step.pointer("/pattern/Regex").and_then(Value::as_str);
        regex.filter(|_| cuts && !inverts)
    };
    steps.iter().map(expression).collect()
}

/// The row of several expressions, one after the other.
fn known_splits(expressions: &[&str]) -> Option<Cut> {
    let mut cuts = PRE_TOKENIZERS.iter().map(|p| p.cut);
    cuts.find(|cut| matches!(cut, Cut::Splits(known) if *known == expressions))
}

/// Unfolds nested sequences.
fn flatten<'v>(value: &'v Value, into: &mut Vec<&'v Value>, depth: usize) {
    match value.get("pretokenizers").and_then(Value::as_array) {
        Some(inner) if depth < 8 => inner
            .iter()
            .for_each(|v| flatten(v, into, depth.saturating_add(1))),
        _ if value.is_null() => {}
        _ => into.push(value),
    }
}

/// Enough of a text for an error line.
pub(super) fn short(text: &str) -> String {
    let mut s: String = text.chars().take(120).collect();
    if s.len() < text.len() {
        s.push('…');
    }
    s
}
