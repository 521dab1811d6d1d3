//! Which tokenizer class transformers builds for a directory, and the `tokenizer.json` of the classes
//! that are built from `vocab.json` and `merges.txt`.
//!
//! Invariant: facts of transformers 5.24. A class without a row here is never guessed: with a
//! `tokenizer.json` the file decides, without one the class is refused by name.
//!
//! Some classes of transformers 5 take only vocabulary, merges and post-processor from
//! `tokenizer.json` and bring their own rules ([`Class::rebuilds`]). This program executes the rules
//! of the file; [`Class::departs`] says where the class has others.

use super::class::Class;
use super::huggingface::space_prefix;
use super::place::Place;
use super::pre_tokenizer::{self, short};
use super::side_files::SideFiles;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Map, Value, json};

/// The file that `AutoTokenizer` prefers.
pub(super) const TOKENIZER_JSON: &str = "tokenizer.json";
/// A sentencepiece model, or a tiktoken file of the same name.
pub(super) const TOKENIZER_MODEL: &str = "tokenizer.model";
/// Token and id, of tokenizers in two files.
pub(super) const VOCAB_JSON: &str = "vocab.json";
/// Pairs, best first, of tokenizers in two files.
pub(super) const MERGES_TXT: &str = "merges.txt";

/// Files that hold a vocabulary for other programs and are not read here.
const OTHER_FORMS: [(&str, &str); 6] = [
    ("qwen.tiktoken", "a tiktoken file"),
    ("tiktoken.model", "a tiktoken file"),
    ("tekken.json", "a Mistral tekken file"),
    ("spiece.model", "a sentencepiece model of another name"),
    (
        "sentencepiece.bpe.model",
        "a sentencepiece model of another name",
    ),
    ("vocab.txt", "a WordPiece vocabulary"),
];

impl Class {
    /// The class that `AutoTokenizer` takes. `json` is the parsed `tokenizer.json`, if any.
    pub(super) fn of(side: &SideFiles, json: Option<&Value>) -> Self {
        let stated = side.class_name();
        let model_type = side.model_type();
        let registered = match model_type {
            "qwen2" | "qwen2_moe" | "qwen3" | "qwen3_moe" | "qwen3_next" => Some("Qwen2Tokenizer"),
            "qwen3_5" | "qwen3_5_text" | "qwen3_5_moe" | "qwen3_5_moe_text" => {
                Some("Qwen3_5Tokenizer")
            }
            "gpt2" => Some("GPT2Tokenizer"),
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" => Some("GemmaTokenizer"),
            _ => None,
        };
        // types whose published files name the wrong class
        let corrected = matches!(
            model_type,
            "qwen2" | "qwen3_5" | "qwen3_5_moe" | "qwen3_5_moe_text"
        );
        let name = match (registered, stated) {
            (Some(registered), _) if corrected => registered,
            (_, Some(stated)) => stated,
            (Some(registered), None) => registered,
            (None, None) => "TokenizersBackend",
        };
        match name.strip_suffix("Fast").unwrap_or(name) {
            "TokenizersBackend" | "PreTrainedTokenizer" | "PythonBackend" => Self::Backend,
            // the class cannot express byte-level rules, so transformers takes the file
            "LlamaTokenizer" if json.is_some_and(is_byte_level) => Self::Backend,
            "LlamaTokenizer" => Self::Llama,
            "Qwen2Tokenizer" => Self::Qwen2,
            "Qwen3_5Tokenizer" => Self::Qwen35,
            "GPT2Tokenizer" => Self::Gpt2,
            "GemmaTokenizer" => Self::Gemma,
            other => Self::Other(other.to_owned()),
        }
    }

    /// `normalizer` and `pre_tokenizer` of the classes that are built of two files.
    fn rules(&self, prefix_space: bool) -> Option<(Value, Value)> {
        let (word, nfc) = match self {
            Self::Qwen2 => ("qwen2", true),
            Self::Qwen35 => ("qwen35", true),
            Self::Gpt2 => ("gpt-2", false),
            _ => return None,
        };
        let mut pre = pre_tokenizer::by_name(word).ok()?.to_json();
        let bytes = match pre.get_mut("pretokenizers").and_then(Value::as_array_mut) {
            Some(steps) => steps.last_mut(),
            None => Some(&mut pre),
        };
        if let Some(flag) = bytes.and_then(|step| step.get_mut("add_prefix_space")) {
            *flag = prefix_space.into();
        }
        let normalizer = if nfc {
            json!({"type": "NFC"})
        } else {
            Value::Null
        };
        Some((normalizer, pre))
    }

    /// How the rules of the class differ from those of `tokenizer.json`, in one sentence; `None`
    /// where they do not.
    pub(super) fn departs(&self, json: &Value, side: &SideFiles) -> Option<String> {
        let rule = |key: &str| json.get(key).unwrap_or(&Value::Null);
        let kind = |value: &Value| {
            let kind = value.get("type").and_then(Value::as_str);
            kind.unwrap_or("none").to_owned()
        };
        let (normalizer, pre) = (rule("normalizer"), rule("pre_tokenizer"));
        let differs = match self {
            Self::Llama => {
                let prefix = side.flag("add_prefix_space").unwrap_or(true);
                let scheme = match (prefix, side.flag("legacy").unwrap_or(false)) {
                    (false, _) => "never",
                    (true, true) => "always",
                    (true, false) => "first",
                };
                let own = kind(pre) == "Metaspace"
                    && pre.get("prepend_scheme").and_then(Value::as_str) == Some(scheme)
                    && pre.get("split").and_then(Value::as_bool) == Some(false);
                // without a space in front, both ways of writing the rule cut alike
                let same =
                    own && normalizer.is_null() || !prefix && space_prefix(json) == Some(false);
                (!same).then(|| {
                    format!(
                        "it replaces the normalizer (`{}`) and the pre-tokenizer (`{}`) by \
                         `Metaspace` with prepend_scheme `{scheme}`",
                        kind(normalizer),
                        kind(pre)
                    )
                })
            }
            Self::Gemma => (space_prefix(json) != Some(false)).then(|| {
                format!(
                    "it replaces the normalizer (`{}`) and the pre-tokenizer (`{}`) by rules that \
                     put no space in front of a text",
                    kind(normalizer),
                    kind(pre)
                )
            }),
            Self::Qwen2 | Self::Qwen35 | Self::Gpt2 => {
                let prefix = side.flag("add_prefix_space").unwrap_or(false);
                let (own_normalizer, own_pre) = self.rules(prefix)?;
                let row = |pre: &Value| pre_tokenizer::from_json(pre, false, "").ok();
                let same_cut = *pre == own_pre || row(pre).is_some() && row(pre) == row(&own_pre);
                let same_normalizer = kind(normalizer) == kind(&own_normalizer);
                let ignores = json.pointer("/model/ignore_merges");
                let ignores = ignores.and_then(Value::as_bool) == Some(true);
                (!same_cut || !same_normalizer || ignores).then(|| {
                    format!(
                        "it replaces the normalizer (`{}`), the pre-tokenizer (`{}`) and \
                         ignore_merges ({ignores}) of the file by its own",
                        kind(normalizer),
                        kind(pre)
                    )
                })
            }
            Self::Backend | Self::Other(_) => None,
        };
        differs.map(|how| {
            format!(
                "transformers 5 builds `{}` from the vocabulary alone: {how}; this program follows \
                 tokenizer.json, so some texts become other tokens there",
                self.name()
            )
        })
    }
}

/// Whether a `tokenizer.json` works on bytes.
fn is_byte_level(json: &Value) -> bool {
    fn any(value: &Value, depth: usize) -> bool {
        let own = value.get("type").and_then(Value::as_str) == Some("ByteLevel");
        let lists = ["pretokenizers", "decoders"];
        let mut steps = lists
            .iter()
            .filter_map(|key| value.get(key)?.as_array())
            .flatten();
        own || depth < 8 && steps.any(|step| any(step, depth.saturating_add(1)))
    }
    ["pre_tokenizer", "decoder"]
        .iter()
        .any(|key| json.get(key).is_some_and(|rule| any(rule, 0)))
}

/// The `tokenizer.json` that `vocab.json` and `merges.txt` mean, without added tokens and
/// post-processor; `None` if the directory has neither file.
pub(super) fn from_two_files(
    place: Place<'_>,
    side: &SideFiles,
) -> Result<Option<Value>, FormatError> {
    let vocab = place.read(VOCAB_JSON)?;
    let merges = place.read(MERGES_TXT)?;
    let (vocab, merges) = match (vocab, merges) {
        (Some(vocab), Some(merges)) => (vocab, merges),
        (None, None) => return refuse_other_forms(place),
        (Some(_), None) => return Err(alone(place, VOCAB_JSON, MERGES_TXT)),
        (None, Some(_)) => return Err(alone(place, MERGES_TXT, VOCAB_JSON)),
    };
    let class = &side.class;
    let prefix = side.flag("add_prefix_space").unwrap_or(false);
    let Some((normalizer, pre)) = class.rules(prefix) else {
        let what = format!(
            "vocab.json and merges.txt of tokenizer class `{}`, expected Qwen2Tokenizer, \
             Qwen3_5Tokenizer or GPT2Tokenizer, or a tokenizer.json",
            short(class.name())
        );
        let error = FormatError::new(ErrorCode::Tokenizer, what);
        return Err(error.in_file(&place.path(VOCAB_JSON)).hint(SAVE_AGAIN));
    };
    let vocab = place.parse_table(VOCAB_JSON, &vocab)?;
    if !vocab.is_object() {
        let error = FormatError::new(ErrorCode::Tokenizer, "expected an object of tokens and ids");
        return Err(error.in_file(&place.path(VOCAB_JSON)));
    }
    let merges = lines(&merges).map_err(|e| e.in_file(&place.path(MERGES_TXT)))?;
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let mut model = Map::new();
    for (key, value) in [
        ("type", "BPE".into()),
        ("dropout", Value::Null),
        ("unk_token", Value::Null),
        ("continuing_subword_prefix", "".into()),
        ("end_of_word_suffix", "".into()),
        ("fuse_unk", false.into()),
        ("byte_fallback", false.into()),
        ("ignore_merges", false.into()),
        ("vocab", vocab),
        ("merges", merges),
    ] {
        model.insert(key.to_owned(), value);
    }
    Ok(Some(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": null,
        "decoder": bytes, "model": Value::Object(model)
    })))
}

/// What a tokenizer needs that has no `tokenizer.json`.
const SAVE_AGAIN: &str = "write tokenizer.json beside the weights: \
    AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in Python";

/// Whether a directory without `tokenizer.json` has files of another tokenizer.
pub(super) fn has_other_forms(place: Place<'_>) -> bool {
    let other = OTHER_FORMS.iter().map(|(name, _)| *name);
    [VOCAB_JSON, MERGES_TXT]
        .into_iter()
        .chain(other)
        .any(|name| place.has(name))
}

fn alone(place: Place<'_>, there: &str, missing: &str) -> FormatError {
    let what = format!("{there} without {missing}: the tokenizer needs both");
    FormatError::new(ErrorCode::Tokenizer, what)
        .in_file(&place.path(there))
        .hint(format!("put {missing}, or a tokenizer.json, beside it"))
}

fn refuse_other_forms(place: Place<'_>) -> Result<Option<Value>, FormatError> {
    for (name, what) in OTHER_FORMS {
        if place.has(name) {
            let message = format!("{name} is {what}, expected tokenizer.json");
            let error = FormatError::new(ErrorCode::Tokenizer, message);
            return Err(error.in_file(&place.path(name)).hint(SAVE_AGAIN));
        }
    }
    Ok(None)
}

/// The pairs of `merges.txt`: one a line, a space between them, lines that begin with `#version`
/// left out.
fn lines(bytes: &[u8]) -> Result<Value, FormatError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| FormatError::new(ErrorCode::Tokenizer, "expected UTF-8"))?;
    let mut pairs = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.starts_with("#version") {
            continue;
        }
        match line.split_once(' ') {
            Some((left, right)) if !right.contains(' ') => pairs.push(json!([left, right])),
            _ => {
                let number = at.saturating_add(1);
                let what = format!("line {number}: expected two tokens with a space between them");
                return Err(FormatError::new(ErrorCode::Tokenizer, what));
            }
        }
    }
    Ok(Value::Array(pairs))
}

/// The refusal of a `tokenizer.model` that is a tiktoken file; `None` for other bytes.
pub(super) fn refuse_tiktoken(bytes: &[u8]) -> Option<FormatError> {
    let line = bytes.split(|&b| b == b'\n').next()?;
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let at = line.iter().position(|&b| b == b' ')?;
    let (token, rank) = (line.get(..at)?, line.get(at.saturating_add(1)..)?);
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    let is_entry = !token.is_empty()
        && token.len() % 4 == 0
        && token.iter().all(base64)
        && !rank.is_empty()
        && rank.iter().all(u8::is_ascii_digit);
    is_entry.then(|| {
        let what = "tokenizer.model is a tiktoken file, which is not read; expected tokenizer.json";
        FormatError::new(ErrorCode::Tokenizer, what).hint(SAVE_AGAIN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tiktoken_file_is_told_from_a_sentencepiece_model() {
        assert!(refuse_tiktoken(b"AA== 0\nAQ== 1\n").is_some());
        assert!(refuse_tiktoken(b"IQ== 0\r\n").is_some());
        assert!(refuse_tiktoken(b"\x0a\x0e\x0a\x05<unk>\x15").is_none());
        assert!(refuse_tiktoken(b"AA== x\n").is_none());
        assert!(refuse_tiktoken(b"").is_none());
    }

    #[test]
    fn merges_are_two_tokens_a_line() {
        let pairs = lines("#version: 0.2\nĠ t\nh e\r\n".as_bytes()).unwrap();
        assert_eq!(pairs, json!([["Ġ", "t"], ["h", "e"]]));
        for wrong in ["a b c\n", "ab\n", "a b\n\nc d\n"] {
            assert!(lines(wrong.as_bytes()).is_err(), "{wrong:?}");
        }
    }
}
