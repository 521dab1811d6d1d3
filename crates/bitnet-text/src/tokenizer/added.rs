//! The added tokens of a checkpoint directory, as transformers 5.24 puts them together from
//! `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
//!
//! Invariant: the ids are those that transformers assigns. Where these contradict the ids that the
//! files state, the tokenizer is refused: one of the two is wrong, and nothing says which.

use super::class::Class;
use super::json::{ADDED_BYTES, exceeded};
use super::pre_tokenizer::short;
use super::side_files::{SideFiles, described};
use super::words::Words;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use tokenizers::AddedToken;

/// Most tokens that the files beside a tokenizer may add.
const MOST: usize = 1 << 16;

fn refuse(what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what)
}

/// The `added_tokens` of a `tokenizer.json`.
fn of_file(json: &Value) -> Vec<(u32, AddedToken)> {
    let list = json.get("added_tokens").and_then(Value::as_array);
    let token = |value: &Value| {
        let id = u32::try_from(value.get("id")?.as_u64()?).ok()?;
        Some((id, described(value, false)?))
    };
    list.into_iter().flatten().filter_map(token).collect()
}

/// What transformers adds to the tokenizer that it builds, in its order, and the ids that files state.
struct Additions {
    tokens: Vec<AddedToken>,
    stated: HashMap<String, u32>,
    /// Added once more, in a second step.
    again: Vec<AddedToken>,
}

impl Additions {
    fn of(own: &[(u32, AddedToken)], side: &SideFiles) -> Result<Self, FormatError> {
        let class = &side.class;
        let mut declared: BTreeMap<u32, AddedToken> = BTreeMap::new();
        let mut stated = HashMap::new();
        if let Some(decoder) = side.added_tokens_decoder() {
            for (id, value) in decoder {
                let token = described(value, false);
                let (Ok(id), Some(token)) = (id.parse(), token) else {
                    return Err(refuse(format!(
                        "added_tokens_decoder: `{}` is no id with a token",
                        short(id)
                    )));
                };
                stated.insert(token.content.clone(), id);
                declared.insert(id, token);
            }
        } else {
            let named = side.stated_special_texts();
            for (text, id) in side.added_tokens_json() {
                let special = named.contains(&text);
                stated.insert(text.clone(), id);
                declared.insert(id, AddedToken::from(text, special));
            }
            // those of the file win
            declared.extend(own.iter().cloned());
        }
        let named = side.named_tokens();
        let is_named = |text: &str| named.iter().any(|token| token.content == text);
        let mut tokens: Vec<AddedToken> = declared.into_values().collect();
        for token in &mut tokens {
            token.special |= is_named(&token.content);
        }
        let known = |text: &str, tokens: &[AddedToken]| {
            let kept = !class.rebuilds() && own.iter().any(|(_, t)| t.content == text);
            kept || tokens.iter().any(|t| t.content == text)
        };
        for token in named.iter().chain(&side.extra_tokens()) {
            if !token.content.is_empty() && !known(&token.content, &tokens) {
                tokens.push(token.clone());
            }
        }
        if tokens.len() > MOST {
            return Err(refuse(format!(
                "{} added tokens, at most {MOST} are read",
                tokens.len()
            )));
        }
        let again = if class.resets_special() {
            let texts = side.special_texts();
            texts
                .into_iter()
                .map(|t| AddedToken::from(t, true))
                .collect()
        } else {
            Vec::new()
        };
        Ok(Self {
            tokens,
            stated,
            again,
        })
    }

    /// Whether the tokenizer of the file has exactly these tokens already.
    fn change_nothing(&self, own: &[(u32, AddedToken)], class: &Class) -> bool {
        let by_text: HashMap<&str, &(u32, AddedToken)> = own
            .iter()
            .map(|token| (token.1.content.as_str(), token))
            .collect();
        let mut last: HashMap<&str, &AddedToken> = HashMap::new();
        for token in self.tokens.iter().chain(&self.again) {
            last.insert(&token.content, token);
        }
        let same = last.iter().all(|(text, token)| {
            by_text.get(text).is_some_and(|(id, own)| {
                own == *token && self.stated.get(*text).is_none_or(|stated| stated == id)
            })
        });
        same && (!class.rebuilds() || last.len() == by_text.len())
    }
}

/// The vocabulary under the added tokens.
pub(super) trait Vocabulary {
    /// Tokens.
    fn count(&self) -> usize;
    /// The id of a token.
    fn id_of(&self, text: &str) -> Option<u32>;
}

impl Vocabulary for Words {
    fn count(&self) -> usize {
        self.len()
    }

    fn id_of(&self, text: &str) -> Option<u32> {
        self.id(text)
    }
}

impl Vocabulary for serde_json::Map<String, Value> {
    fn count(&self) -> usize {
        self.len()
    }

    fn id_of(&self, text: &str) -> Option<u32> {
        u32::try_from(self.get(text)?.as_u64()?).ok()
    }
}

/// The ids that the `tokenizers` library gives to tokens that are added one after the other.
struct Assigner<'v> {
    vocab: &'v dyn Vocabulary,
    ids: HashMap<String, u32>,
    tokens: BTreeMap<u32, AddedToken>,
}

impl Assigner<'_> {
    fn add(&mut self, tokens: impl IntoIterator<Item = AddedToken>) {
        let size = u32::try_from(self.vocab.count()).unwrap_or(u32::MAX);
        let last = self.tokens.last_key_value().map(|(id, _)| *id);
        let mut next = match last {
            Some(last) if last >= size => last.saturating_add(1),
            _ => size,
        };
        for token in tokens {
            if token.content.is_empty() {
                continue;
            }
            let in_vocab = || self.vocab.id_of(&token.content);
            let id = match self.ids.get(&token.content).copied().or_else(in_vocab) {
                Some(id) => id,
                None => {
                    let id = next;
                    next = next.saturating_add(1);
                    id
                }
            };
            self.ids.insert(token.content.clone(), id);
            self.tokens.insert(id, token);
        }
    }
}

/// The added tokens of a `tokenizer.json`, and what the files beside it add.
pub(super) struct Added<'s> {
    own: Vec<(u32, AddedToken)>,
    additions: Additions,
    side: &'s SideFiles,
}

impl<'s> Added<'s> {
    /// `json` may lack the long lists.
    pub(super) fn of(json: &Value, side: &'s SideFiles) -> Result<Self, FormatError> {
        let own = of_file(json);
        let additions = Additions::of(&own, side)?;
        Ok(Self {
            own,
            additions,
            side,
        })
    }

    /// Whether the files beside a `tokenizer.json` change its added tokens.
    pub(super) fn are_changed(&self) -> bool {
        !self.additions.change_nothing(&self.own, &self.side.class)
    }

    /// Ids and texts of the `added_tokens` of the `tokenizer.json`.
    pub(super) fn ids_and_texts(&self) -> Vec<(u32, String)> {
        let own = self.own.iter();
        own.map(|(id, token)| (*id, token.content.clone()))
            .collect()
    }

    /// The added tokens of the directory, as a `tokenizer.json` lists them.
    pub(super) fn settled(self, vocab: &dyn Vocabulary) -> Result<Value, FormatError> {
        let mut assigner = Assigner {
            vocab,
            ids: HashMap::new(),
            tokens: BTreeMap::new(),
        };
        if !self.side.class.rebuilds() {
            assigner.add(self.own.iter().map(|(_, token)| token.clone()));
        }
        assigner.add(self.additions.tokens);
        assigner.add(self.additions.again);
        for (text, stated) in &self.additions.stated {
            let given = assigner.ids.get(text);
            if given.is_some_and(|given| given != stated) {
                let given = given.copied().unwrap_or_default();
                return Err(refuse(format!(
                    "added token `{}` is stated as id {stated}, but transformers gives it id {given}",
                    short(text)
                ))
                .hint("save the tokenizer again: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) in Python"));
            }
        }
        let texts = assigner.tokens.values().map(|token| token.content.len());
        if texts.sum::<usize>() > ADDED_BYTES {
            let what = format!("more than {ADDED_BYTES} bytes of text in `added_tokens`");
            return Err(exceeded("added_tokens", what));
        }
        let added = assigner
            .tokens
            .iter()
            .map(|(id, t)| {
                json!({
                    "id": id, "content": t.content, "single_word": t.single_word, "lstrip": t.lstrip,
                    "rstrip": t.rstrip, "normalized": t.normalized, "special": t.special
                })
            })
            .collect();
        Ok(Value::Array(added))
    }
}

/// Puts the added tokens of the directory into a whole `tokenizer.json`.
pub(super) fn settle(json: &mut Value, side: &SideFiles) -> Result<(), FormatError> {
    let nothing = serde_json::Map::new();
    let vocab = json.pointer("/model/vocab").and_then(Value::as_object);
    let added = Added::of(json, side)?.settled(vocab.unwrap_or(&nothing))?;
    put(json, added);
    Ok(())
}

/// Replaces the list of added tokens.
pub(super) fn put(json: &mut Value, added: Value) {
    if let Some(object) = json.as_object_mut() {
        object.insert("added_tokens".to_owned(), added);
    }
}

/// Adds what `add_bos_token` and `add_eos_token` ask for to a tokenizer that has no post-processor.
pub(super) fn post_process(json: &mut Value, side: &SideFiles) {
    let id = |json: &Value, text: &str| {
        let added = of_file(json).into_iter().find(|(_, t)| t.content == text);
        let vocab = || {
            let id = json.pointer("/model/vocab")?.get(text)?.as_u64()?;
            u32::try_from(id).ok()
        };
        added.map(|(id, _)| id).or_else(vocab)
    };
    let asked = |name: &str| {
        let text = side.flag(&format!("add_{name}_token")).unwrap_or(false);
        let text = text.then(|| side.special_text(name)).flatten()?;
        let id = id(json, &text)?;
        Some((text, id))
    };
    let (before, after) = (asked("bos"), asked("eos"));
    if before.is_none() && after.is_none() {
        return;
    }
    let piece = |token: &Option<(String, u32)>, kind: u32| {
        let (text, _) = token.as_ref()?;
        Some(json!({"SpecialToken": {"id": text, "type_id": kind}}))
    };
    let around = |sequence: &str, kind: u32| {
        piece(&before, kind)
            .into_iter()
            .chain([json!({"Sequence": {"id": sequence, "type_id": kind}})])
            .chain(piece(&after, kind))
            .collect::<Vec<_>>()
    };
    let (single, second) = (around("A", 0), around("B", 1));
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    let mut tokens = serde_json::Map::new();
    for (text, id) in before.iter().chain(&after) {
        tokens.insert(
            text.clone(),
            json!({"id": text, "ids": [id], "tokens": [text]}),
        );
    }
    if let Some(object) = json.as_object_mut() {
        let processor = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
        object.insert("post_processor".to_owned(), processor);
    }
}

/// Whether a tokenizer that was built of `json` gives its added tokens the ids that `json` states.
pub(super) fn check_ids(json: &Value, inner: &super::engine::Engine) -> Result<(), FormatError> {
    for (id, token) in of_file(json) {
        if inner.token_to_id(&token.content) != Some(id) {
            return Err(refuse(format!(
                "added token `{}` has id {id}, which the vocabulary leaves no place for",
                short(&token.content)
            )));
        }
    }
    Ok(())
}

/// Leaves the added tokens out that have no row, also of the vocabulary if `json` has one; gives their
/// ids and texts.
pub(super) fn drop_beyond(json: &mut Value, rows: usize) -> Vec<(u32, String)> {
    let id_beyond = |id: &Value| {
        let id = u32::try_from(id.as_u64()?).ok()?;
        usize::try_from(id).is_ok_and(|at| at >= rows).then_some(id)
    };
    let mut dropped = Vec::new();
    if let Some(Value::Array(added)) = json.get_mut("added_tokens") {
        added.retain(|token| {
            let id = token.get("id").and_then(id_beyond);
            let text = token.get("content").and_then(Value::as_str);
            let found = id.zip(text.map(str::to_owned));
            let is_kept = found.is_none();
            dropped.extend(found);
            is_kept
        });
    }
    if let Some(Value::Object(vocab)) = json.pointer_mut("/model/vocab") {
        for (_, text) in &dropped {
            if vocab.get(text).and_then(id_beyond).is_some() {
                vocab.shift_remove(text);
            }
        }
    }
    dropped
}
