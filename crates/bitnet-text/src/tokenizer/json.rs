//! `tokenizer.json` read in one pass: the long lists straight into a compact model, everything else
//! as a small JSON value.
//!
//! Invariant: nothing is held of a list but its compact form, and what is held as JSON is bounded in
//! values and in bytes before it is built, so reading takes less memory than the file has.

use super::bpe::{Bpe, Settings};
use super::pre_tokenizer::short;
use super::resolver::{Add, Resolver, Texts, assemble};
use super::words::Words;
use bitnet_formats::{ErrorCode, FormatError};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::fmt;

/// Most JSON values in one rule (`normalizer`, `pre_tokenizer`, `post_processor`, `decoder`).
pub(super) const RULE_VALUES: usize = 4096;
/// Most bytes of text in one rule. The longest published expression has 3,000.
pub(super) const RULE_BYTES: usize = 64 << 10;
/// Most entries of `added_tokens`. The longest published list has about 7,000.
pub(super) const ADDED_TOKENS: usize = 1 << 16;
/// Most bytes of text of all added tokens.
pub(super) const ADDED_BYTES: usize = 8 << 20;
/// Most tokens of a vocabulary.
pub(super) const TOKENS: usize = 1 << 22;
/// Most merges of a vocabulary.
pub(super) const MERGES: usize = 1 << 24;

/// A `tokenizer.json`.
pub(super) struct Reading {
    /// Everything but the vocabulary and the merges.
    pub(super) rules: Value,
    pub(super) bpe: Bpe,
}

pub(super) fn refuse(key: &str, what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what).in_tensor(key)
}

pub(super) fn exceeded(key: &str, what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::LimitExceeded, what).in_tensor(key)
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// Text that is not JSON, a model other than BPE, and lists or rules beyond the limits.
pub(super) fn read(bytes: &[u8]) -> Result<Reading, FormatError> {
    let failure = Failure::default();
    let bytes = bitnet_formats::without_byte_order_mark(bytes);
    // checked once: a reader of bytes checks every text by itself
    let text = simdutf8::compat::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to() as u64;
        FormatError::new(ErrorCode::Malformed, "not UTF-8")
            .at(at)
            .because(e)
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let file = File {
        failure: &failure,
        bytes: bytes.len(),
    };
    let read = file
        .deserialize(&mut deserializer)
        .and_then(|file| deserializer.end().map(|()| file));
    let (rules, model) = read.map_err(|e| failure.instead_of(e))?;
    let model = model.ok_or_else(|| refuse("model", "absent"))?;
    Ok(Reading {
        bpe: model.finish()?,
        rules,
    })
}

/// The error that a visitor means, which serde would flatten to text.
#[derive(Default)]
struct Failure(RefCell<Option<FormatError>>);

impl Failure {
    fn of<E: serde::de::Error>(&self, error: FormatError) -> E {
        let text = error.message.clone();
        *self.0.borrow_mut() = Some(error);
        E::custom(text)
    }

    fn instead_of(&self, error: serde_json::Error) -> FormatError {
        let own = self.0.borrow_mut().take();
        own.unwrap_or_else(|| {
            let code = match error.is_data() {
                true => ErrorCode::Tokenizer,
                false => ErrorCode::Malformed,
            };
            FormatError::new(code, error.to_string()).because(error)
        })
    }
}

/// What a visitor expects, for messages.
macro_rules! expects {
    ($what:literal) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str($what)
        }
    };
}

struct File<'f> {
    failure: &'f Failure,
    bytes: usize,
}

impl<'de> DeserializeSeed<'de> for File<'_> {
    type Value = (Value, Option<Model>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for File<'_> {
    type Value = (Value, Option<Model>);

    expects!("an object");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut rules, mut model) = (Map::new(), None);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "model" => {
                    let (fields, found) = map.next_value_seed(ModelSeed {
                        failure: self.failure,
                        bytes: self.bytes,
                    })?;
                    rules.insert(key, Value::Object(fields));
                    model = Some(found);
                }
                "version" | "normalizer" | "pre_tokenizer" | "post_processor" | "decoder"
                | "added_tokens" => {
                    let added = key == "added_tokens";
                    let budget = Budget {
                        failure: self.failure,
                        key: &key,
                        values: match added {
                            true => 16 * ADDED_TOKENS,
                            false => RULE_VALUES,
                        },
                        bytes: match added {
                            true => ADDED_BYTES,
                            false => RULE_BYTES,
                        },
                    };
                    let value = map.next_value_seed(Bounded(&RefCell::new(budget)))?;
                    rules.insert(key, value);
                }
                // transformers ignores `truncation` and `padding` unless asked
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok((Value::Object(rules), model))
    }
}

/// What may still be built of a part.
struct Budget<'f> {
    failure: &'f Failure,
    key: &'f str,
    values: usize,
    bytes: usize,
}

impl Budget<'_> {
    fn spend<E: serde::de::Error>(&mut self, text: usize) -> Result<(), E> {
        let left = self.values.checked_sub(1).zip(self.bytes.checked_sub(text));
        let Some((values, bytes)) = left else {
            let (values, bytes) = match self.key {
                "added_tokens" => (16 * ADDED_TOKENS, ADDED_BYTES),
                _ => (RULE_VALUES, RULE_BYTES),
            };
            return Err(self.failure.of(exceeded(
                self.key,
                format!(
                    "more than {values} JSON values or more than {bytes} bytes of text in `{}`",
                    self.key
                ),
            )));
        };
        (self.values, self.bytes) = (values, bytes);
        Ok(())
    }
}

/// A JSON value within a budget.
#[derive(Clone, Copy)]
struct Bounded<'b, 'f>(&'b RefCell<Budget<'f>>);

impl<'de> DeserializeSeed<'de> for Bounded<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_, '_> {
    type Value = Value;

    expects!("a JSON value");

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.0.borrow_mut().spend(0)?;
        Ok(Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.0.borrow_mut().spend(0)?;
        Ok(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.0.borrow_mut().spend(0)?;
        Ok(value.into())
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.0.borrow_mut().spend(0)?;
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.0.borrow_mut().spend(0)?;
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.0.borrow_mut().spend(value.len())?;
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.0.borrow_mut().spend(0)?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            list.push(value);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.0.borrow_mut().spend(0)?;
        let mut fields = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.0.borrow_mut().spend(key.len())?;
            fields.insert(key, map.next_value_seed(self)?);
        }
        Ok(fields.into())
    }
}

/// The keys of `model` that have been read so far.
#[derive(Default)]
struct Model {
    words: Option<Words>,
    merges: Option<Merges>,
    settings: Settings,
}

enum Merges {
    Known(Vec<[u32; 3]>),
    /// As texts, because the vocabulary comes behind them.
    Early(Texts),
}

impl Model {
    fn finish(self) -> Result<Bpe, FormatError> {
        let mut words = self
            .words
            .ok_or_else(|| refuse("model.vocab", "absent or no object"))?;
        words.finish().map_err(|e| e.in_tensor("model.vocab"))?;
        let merges = match self.merges {
            None => return Err(refuse("model.merges", "absent or no array")),
            Some(Merges::Known(list)) => list,
            Some(Merges::Early(early)) => Resolver::new(&words).look_up(0, &early)?,
        };
        Ok(Bpe::new(words, merges, self.settings))
    }
}

struct ModelSeed<'f> {
    failure: &'f Failure,
    bytes: usize,
}

impl<'de> DeserializeSeed<'de> for ModelSeed<'_> {
    type Value = (Map<String, Value>, Model);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed<'_> {
    type Value = (Map<String, Value>, Model);

    expects!("an object");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut fields, mut model) = (Map::new(), Model::default());
        let fail = |error| Err(self.failure.of::<A::Error>(error));
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                // the merges have the ids of the vocabulary in front of them
                "vocab" if matches!(model.merges, Some(Merges::Known(_))) => {
                    return fail(refuse("model.vocab", "stands twice"));
                }
                "vocab" => {
                    // a token and its merges take 60 to 130 bytes of the file
                    let mut words = Words::with_capacity((self.bytes / 128).min(TOKENS));
                    map.next_value_seed(Vocabulary {
                        failure: self.failure,
                        words: &mut words,
                    })?;
                    model.words = Some(words);
                }
                "merges" => {
                    let list = MergeList {
                        failure: self.failure,
                        bytes: self.bytes,
                        words: model.words.take(),
                    };
                    let (words, merges) = map.next_value_seed(list)?;
                    model.words = words;
                    model.merges = Some(merges);
                }
                _ => {
                    let budget = RefCell::new(Budget {
                        failure: self.failure,
                        key: &key,
                        values: 16,
                        bytes: RULE_BYTES,
                    });
                    let value = map.next_value_seed(Bounded(&budget))?;
                    if let Err(error) = setting(&mut model.settings, &key, &value) {
                        return fail(error);
                    }
                    fields.insert(key, value);
                }
            }
        }
        Ok((fields, model))
    }
}

/// Takes a setting of the model; refuses what would give other ids.
fn setting(settings: &mut Settings, key: &str, value: &Value) -> Result<(), FormatError> {
    let place = format!("model.{key}");
    let flag = || match value {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(refuse(&place, "expected true or false")),
    };
    match key {
        "type" => match value.as_str() {
            Some("BPE") => {}
            kind => {
                let kind = kind.unwrap_or("(no text)");
                return Err(refuse(
                    &place,
                    format!("tokenizer model `{}`, expected `BPE`", short(kind)),
                ));
            }
        },
        "continuing_subword_prefix" | "end_of_word_suffix"
            if !value.is_null() && value.as_str() != Some("") =>
        {
            return Err(refuse(&place, "expected none"));
        }
        "dropout" if !value.is_null() && value.as_f64() != Some(0.0) => {
            return Err(refuse(
                &place,
                "is not zero; the same text would give other ids every time",
            ));
        }
        "unk_token" => match value {
            Value::Null => settings.unk_token = None,
            Value::String(text) => settings.unk_token = Some(text.clone()),
            _ => return Err(refuse(&place, "expected a text")),
        },
        "fuse_unk" => settings.fuse_unk = flag()?,
        "byte_fallback" => settings.byte_fallback = flag()?,
        "ignore_merges" => settings.ignore_merges = flag()?,
        _ => {}
    }
    Ok(())
}

struct Vocabulary<'f, 'w> {
    failure: &'f Failure,
    words: &'w mut Words,
}

impl<'de> DeserializeSeed<'de> for Vocabulary<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Vocabulary<'_, '_> {
    type Value = ();

    expects!("an object of tokens and their ids in `model.vocab`");

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let fail = |error| self.failure.of::<A::Error>(error);
        let mut text = String::new();
        while map.next_key_seed(Copied(&mut text))?.is_some() {
            if self.words.len() >= TOKENS {
                return Err(fail(exceeded(
                    "model.vocab",
                    format!("more than {TOKENS} tokens"),
                )));
            }
            let id = map.next_value_seed(Id).map_err(|_| {
                fail(refuse(
                    "model.vocab",
                    format!("`{}` has no id", short(&text)),
                ))
            })?;
            self.words.push(&text, id).map_err(fail)?;
        }
        Ok(())
    }
}

struct Id;

impl<'de> DeserializeSeed<'de> for Id {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u32, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

/// A text that is copied to where it is needed.
struct Copied<'t>(&'t mut String);

impl<'de> DeserializeSeed<'de> for Copied<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Copied<'_> {
    type Value = ();

    expects!("a text");

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        self.0.clear();
        self.0.push_str(text);
        Ok(())
    }
}

struct MergeList<'f> {
    failure: &'f Failure,
    bytes: usize,
    /// The vocabulary, if it came before; not finished yet.
    words: Option<Words>,
}

impl<'de> DeserializeSeed<'de> for MergeList<'_> {
    type Value = (Option<Words>, Merges);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for MergeList<'_> {
    type Value = (Option<Words>, Merges);

    expects!("an array of pairs in `model.merges`");

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let fail = |error| self.failure.of::<A::Error>(error);
        let Some(words) = self.words else {
            let mut early = Texts::default();
            each_merge(&mut seq, self.failure, &mut |left, right| {
                early.add(left, right)
            })?;
            return Ok((None, Merges::Early(early)));
        };
        let (read, assembled) = assemble(self.bytes, words, |add| {
            each_merge(&mut seq, self.failure, add)
        });
        // what the lists mean comes first: how far they were read when this was known is chance
        let (words, list) = assembled.map_err(fail)?;
        read?;
        Ok((Some(words), Merges::Known(list)))
    }
}

/// Gives every merge to `add`.
fn each_merge<'de, A: SeqAccess<'de>>(
    seq: &mut A,
    failure: &Failure,
    add: Add<'_>,
) -> Result<(), A::Error> {
    let fail = |error| failure.of::<A::Error>(error);
    let (mut pair, mut pairs, mut lines) = (Pair::default(), false, false);
    let mut number: usize = 0;
    loop {
        let kind = match seq.next_element_seed(&mut pair) {
            Ok(Some(kind)) => kind,
            Ok(None) => return Ok(()),
            Err(_) if pair.is_other => {
                let what = format!("merge {number} is not two texts");
                return Err(fail(refuse("model.merges", what)));
            }
            Err(error) => return Err(error),
        };
        number = number.saturating_add(1);
        if number > MERGES {
            return Err(fail(exceeded(
                "model.merges",
                format!("more than {MERGES} merges"),
            )));
        }
        match kind {
            Kind::Comment => {
                lines = true;
                continue;
            }
            Kind::Line => lines = true,
            Kind::Pair => pairs = true,
        }
        if lines && pairs {
            return Err(fail(refuse(
                "model.merges",
                "has merges of both forms, pairs and texts; expected one form",
            )));
        }
        add(&pair.left, &pair.right).map_err(fail)?;
    }
}

/// How a merge is spelled.
#[derive(Clone, Copy)]
enum Kind {
    Pair,
    Line,
    /// The first line of `merges.txt`.
    Comment,
}

/// The merge that is being read: a pair, or a text with one space between two parts.
#[derive(Default)]
struct Pair {
    left: String,
    right: String,
    /// Whether something else was found.
    is_other: bool,
}

impl<'de> DeserializeSeed<'de> for &mut Pair {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        self.is_other = false;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Pair {
    type Value = Kind;

    expects!("two texts");

    fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Kind, E> {
        if line.starts_with("#version") {
            return Ok(Kind::Comment);
        }
        let parts = line.split_once(' ');
        let Some((left, right)) = parts.filter(|(_, right)| !right.contains(' ')) else {
            self.is_other = true;
            return Err(E::custom("not two texts"));
        };
        Copied(&mut self.left).visit_str::<E>(left)?;
        Copied(&mut self.right).visit_str::<E>(right)?;
        Ok(Kind::Line)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Kind, A::Error> {
        let left = seq.next_element_seed(Copied(&mut self.left))?;
        let right = seq.next_element_seed(Copied(&mut self.right))?;
        let more = seq.next_element::<IgnoredAny>()?;
        match (left, right, more) {
            (Some(()), Some(()), None) => Ok(Kind::Pair),
            _ => {
                self.is_other = true;
                Err(A::Error::custom("not two texts"))
            }
        }
    }
}
