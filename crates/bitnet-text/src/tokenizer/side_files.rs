//! The JSON files beside a tokenizer: which tokens are special, when to stop, the chat template.
//!
//! Invariant: a key of an unexpected type counts as absent (these files are written by hand and vary), except where the
//! JSON is broken and under `chat_template`.

use super::class::Class;
use super::place::Place;
use super::templates::ChatTemplates;
use bitnet_formats::FormatError;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

/// Texts that end a turn; their tokens stop generation even where no config says so.
pub(super) const END_OF_TURN: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"];

/// The special tokens that every tokenizer of transformers may name, in its order.
pub(super) const NAMES: [&str; 7] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// What stands beside the tokenizer.
#[derive(Debug, Default)]
pub(super) struct SideFiles {
    config: Value,
    generation: Value,
    tokenizer: Value,
    special_map: Value,
    added: Value,
    /// What transformers builds; settled when the tokenizer is known.
    pub(super) class: Class,
    pub(super) templates: ChatTemplates,
}

impl SideFiles {
    /// Reads what there is.
    pub(super) fn read(place: Place<'_>) -> Result<Self, FormatError> {
        let tokenizer = place.json("tokenizer_config.json")?;
        let templates = ChatTemplates::of_place(place, &tokenizer)?;
        Ok(Self {
            config: place.json("config.json")?,
            generation: place.json("generation_config.json")?,
            special_map: place.json("special_tokens_map.json")?,
            added: place.json("added_tokens.json")?,
            tokenizer,
            class: Class::default(),
            templates,
        })
    }

    /// `tokenizer_class`, of `config.json` where the tokenizer's own file has none.
    pub(super) fn class_name(&self) -> Option<&str> {
        let name = |file: &'_ Value| file.get("tokenizer_class").is_some_and(Value::is_string);
        let files = [&self.tokenizer, &self.config];
        let file = files.into_iter().find(|file| name(file))?;
        file.get("tokenizer_class")?.as_str()
    }

    /// `model_type` of `config.json`.
    pub(super) fn model_type(&self) -> &str {
        let kind = self.config.get("model_type").and_then(Value::as_str);
        kind.unwrap_or_default()
    }

    /// What a key says. As in transformers 5, `special_tokens_map.json` counts only where
    /// `tokenizer_config.json` lists no added tokens, and then wins.
    fn stated(&self, key: &str) -> Option<&Value> {
        let map = match self.added_tokens_decoder() {
            Some(_) => None,
            None => self.special_map.get(key),
        };
        map.or_else(|| self.tokenizer.get(key))
    }

    /// The text of a special token (`bos`, ...) that the tokenizer's own files give, or its class.
    pub(super) fn special_text(&self, name: &str) -> Option<String> {
        match self.stated(&format!("{name}_token")) {
            Some(value) => token(value).map(|token| token.content),
            None => self.class.default_text(name).map(str::to_owned),
        }
    }

    /// Every token that has a name, in the order of transformers: the usual names first.
    pub(super) fn named_tokens(&self) -> Vec<AddedToken> {
        let usual = NAMES.iter().filter_map(|name| {
            let stated = self.stated(&format!("{name}_token")).and_then(token);
            let text = || self.special_text(name);
            stated.or_else(|| text().map(|text| AddedToken::from(text, true)))
        });
        usual.chain(self.further_named()).map(special).collect()
    }

    /// Tokens under other names (`image_token`, ...).
    fn further_named(&self) -> Vec<AddedToken> {
        let files = match self.added_tokens_decoder() {
            Some(_) => vec![&self.tokenizer],
            None => vec![&self.tokenizer, &self.special_map],
        };
        let mut found = Vec::new();
        for file in files {
            for (key, value) in file.as_object().into_iter().flatten() {
                let name = key.strip_suffix("_token");
                if name.is_some_and(|name| !NAMES.contains(&name)) {
                    found.extend(token(value));
                }
            }
            let named = file.get("extra_special_tokens").and_then(Value::as_object);
            found.extend(named.into_iter().flatten().filter_map(|(_, v)| token(v)));
        }
        found
    }

    /// Special tokens without a name.
    pub(super) fn extra_tokens(&self) -> Vec<AddedToken> {
        let list = |file: &Value, key: &str| -> Vec<AddedToken> {
            let list = file.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(token).collect()
        };
        let (extra, additional) = ("extra_special_tokens", "additional_special_tokens");
        let mut found = list(&self.tokenizer, extra);
        if found.is_empty() {
            found = list(&self.tokenizer, additional);
        }
        if self.added_tokens_decoder().is_none() {
            if found.is_empty() {
                found = list(&self.special_map, additional);
            }
            found.extend(list(&self.special_map, extra));
        }
        found.into_iter().map(special).collect()
    }

    /// The texts of all special tokens, each once.
    pub(super) fn special_texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for token in self.named_tokens().into_iter().chain(self.extra_tokens()) {
            if !texts.contains(&token.content) {
                texts.push(token.content);
            }
        }
        texts
    }

    /// The texts of special tokens that a file states, under the usual names or none.
    pub(super) fn stated_special_texts(&self) -> Vec<String> {
        let usual = NAMES
            .iter()
            .filter_map(|name| self.stated(&format!("{name}_token")).and_then(token));
        let all = usual.chain(self.extra_tokens());
        all.map(|token| token.content).collect()
    }

    /// `added_tokens_decoder` of `tokenizer_config.json`.
    pub(super) fn added_tokens_decoder(&self) -> Option<&Map<String, Value>> {
        self.tokenizer.get("added_tokens_decoder")?.as_object()
    }

    /// Text and id of `added_tokens.json`.
    pub(super) fn added_tokens_json(&self) -> Vec<(String, u32)> {
        let list = self.added.as_object().into_iter().flatten();
        list.filter_map(|(text, id)| Some((text.clone(), number(id)?)))
            .collect()
    }

    /// The ids that the model's files give, `config.json` first.
    pub(super) fn ids(&self, name: &str) -> Vec<u32> {
        let key = format!("{name}_token_id");
        let mut out = Vec::new();
        for value in [
            self.config.get(&key),
            self.config.pointer(&format!("/text_config/{key}")),
            self.generation.get(&key),
        ] {
            match value {
                Some(Value::Array(list)) => out.extend(list.iter().filter_map(number)),
                Some(value) => out.extend(number(value)),
                None => {}
            }
        }
        out
    }

    /// The id of `bos`, `eos`, `unk` or `pad`.
    pub(super) fn id(&self, name: &str, lookup: impl Fn(&str) -> Option<u32>) -> Option<u32> {
        self.special_text(name)
            .and_then(|text| lookup(&text))
            .or_else(|| self.ids(name).first().copied())
    }

    /// Ids that these files name as ends of a text, the tokenizer's own first.
    pub(super) fn stop(&self, eos: Option<u32>) -> Vec<u32> {
        eos.into_iter().chain(self.ids("eos")).collect()
    }

    /// A flag of `tokenizer_config.json`.
    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        self.tokenizer.get(key)?.as_bool()
    }

    /// Tokens on top of a sentencepiece model: id, text, special.
    pub(super) fn added(&self) -> Vec<(u32, String, bool)> {
        let names: Vec<String> = ["bos", "eos", "unk", "pad"]
            .into_iter()
            .filter_map(|n| self.special_text(n))
            .collect();
        let plain = self
            .added
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(text, id)| Some((number(id)?, text.clone(), names.contains(text))));
        let described = self
            .tokenizer
            .get("added_tokens_decoder")
            .and_then(Value::as_object);
        let described = described.into_iter().flatten().filter_map(|(id, token)| {
            let special = token
                .get("special")
                .and_then(Value::as_bool)
                .unwrap_or(false);
            Some((
                id.parse().ok()?,
                token.get("content")?.as_str()?.to_owned(),
                special,
            ))
        });
        // the description comes last and wins
        plain.chain(described).collect()
    }
}

/// A token as these files spell one: a text, or an object.
fn token(value: &Value) -> Option<AddedToken> {
    match value {
        Value::String(text) => Some(AddedToken::from(text.as_str(), true)),
        other => described(other, true),
    }
}

/// A token as a JSON object describes it; `special` where the object does not say.
pub(super) fn described(value: &Value, special: bool) -> Option<AddedToken> {
    let content = value.get("content")?.as_str()?;
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    let token = AddedToken::from(content, special);
    Some(AddedToken {
        single_word: flag("single_word").unwrap_or(token.single_word),
        lstrip: flag("lstrip").unwrap_or(token.lstrip),
        rstrip: flag("rstrip").unwrap_or(token.rstrip),
        normalized: flag("normalized").unwrap_or(token.normalized),
        ..token
    })
}

/// As transformers adds a token that has a name.
fn special(mut token: AddedToken) -> AddedToken {
    token.special = true;
    token
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|v| u32::try_from(v).ok())
}
