//! Files of prompts: named token ids and texts.
//!
//! Invariant: prompts keep their order, no name comes twice, and what is kept takes at most about twice the memory of
//! the text: token ids become numbers while they are read.

use bitnet_formats::{ErrorCode, FormatError};
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

/// Most prompts of a file: each is a tensor of the output.
const MOST_PROMPTS: usize = 1 << 16;

/// One prompt of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PromptEntry {
    /// Its name, or its number from 0.
    pub name: String,
    /// Token ids, if the file has them.
    pub ids: Option<Vec<u32>>,
    /// The text, if the file has one.
    pub text: Option<String>,
}

/// Longest file of prompts, bytes.
pub const PROMPT_FILE_BYTES: u64 = 64 << 20;

/// Parses `{name: {"text": …, "ids": […]}}`, `{name: "text"}`, `{name: [ids]}` or `[[ids] | "text", …]`.
///
/// # Errors
/// `malformed`; `limit-exceeded` for more prompts than 65536.
pub fn parse_prompt_file(text: &[u8]) -> Result<Vec<PromptEntry>, FormatError> {
    let too_many = Cell::new(false);
    let mut json = serde_json::Deserializer::from_slice(text);
    let entries = Entries {
        too_many: &too_many,
    };
    let parsed = entries
        .deserialize(&mut json)
        .and_then(|entries| json.end().map(|()| entries));
    let code = match too_many.get() {
        true => ErrorCode::LimitExceeded,
        false => ErrorCode::Malformed,
    };
    parsed.map_err(|e| {
        FormatError::new(code, e.to_string())
            .hint("expected {\"name\": {\"text\": \"…\", \"ids\": […]}} or [[ids], …]")
            .because(e)
    })
}

struct Entries<'a> {
    too_many: &'a Cell<bool>,
}

impl Entries<'_> {
    fn check<E: serde::de::Error>(&self, count: usize) -> Result<(), E> {
        if count < MOST_PROMPTS {
            return Ok(());
        }
        self.too_many.set(true);
        let message = format!("expected at most {MOST_PROMPTS} prompts, found more");
        Err(E::custom(message))
    }
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = Vec<PromptEntry>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = Vec<PromptEntry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of prompts or a list of prompts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<PromptEntry> = Vec::new();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            self.check(entries.len())?;
            if !names.insert(name.clone()) {
                return Err(A::Error::custom(format!("the prompt `{name}` comes twice")));
            }
            let entry = map.next_value_seed(Entry { name })?;
            entries.push(entry);
        }
        Ok(entries)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<PromptEntry> = Vec::new();
        loop {
            let name = entries.len().to_string();
            let Some(entry) = list.next_element_seed(Entry { name })? else {
                return Ok(entries);
            };
            self.check(entries.len())?;
            entries.push(entry);
        }
    }
}

/// One prompt: a list of token ids, a text, or an object with either.
struct Entry {
    name: String,
}

impl<'de> DeserializeSeed<'de> for Entry {
    type Value = PromptEntry;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<PromptEntry, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entry {
    type Value = PromptEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        write!(
            f,
            "token ids, a text, or an object with `ids` or `text` as prompt `{name}`"
        )
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<PromptEntry, E> {
        Ok(PromptEntry {
            name: self.name,
            ids: None,
            text: Some(text.to_owned()),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<PromptEntry, A::Error> {
        let ids = token_ids(list, &self.name)?;
        Ok(PromptEntry {
            name: self.name,
            ids: Some(ids),
            text: None,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PromptEntry, A::Error> {
        let mut entry = PromptEntry {
            name: self.name,
            ..PromptEntry::default()
        };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "ids" => entry.ids = map.next_value_seed(Ids { name: &entry.name })?,
                "text" => entry.text = map.next_value_seed(Text)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(entry)
    }
}

/// Token ids or null.
struct Ids<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Ids<'_> {
    type Value = Option<Vec<u32>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Ids<'_> {
    type Value = Option<Vec<u32>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of token ids in prompt `{}`", self.name)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        token_ids(list, self.name).map(Some)
    }
}

fn token_ids<'de, A: SeqAccess<'de>>(mut list: A, name: &str) -> Result<Vec<u32>, A::Error> {
    let mut ids = Vec::new();
    while let Some(id) = list.next_element_seed(Id { name })? {
        ids.push(id);
    }
    Ok(ids)
}

/// One token id.
struct Id<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Id<'_> {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<u32, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Id<'_> {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token id in prompt `{}`", self.name)
    }

    fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<u32, E> {
        u32::try_from(id).map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(id), &self))
    }
}

/// A text; anything else counts as absent.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, ids: Option<&[u32]>, text: Option<&str>) -> PromptEntry {
        PromptEntry {
            name: name.to_owned(),
            ids: ids.map(<[u32]>::to_vec),
            text: text.map(str::to_owned),
        }
    }

    #[test]
    fn every_form_is_read_in_order() {
        let text = br#"{"b": {"text": "x", "ids": [1, 2], "more": [{}]}, "a": "y", "c": [3], "d": {"ids": null, "text": null}}"#;
        let expected = [
            entry("b", Some(&[1, 2]), Some("x")),
            entry("a", None, Some("y")),
            entry("c", Some(&[3]), None),
            entry("d", None, None),
        ];
        assert_eq!(parse_prompt_file(text).unwrap(), expected);
        let expected = [entry("0", Some(&[7]), None), entry("1", None, Some("z"))];
        assert_eq!(parse_prompt_file(br#"[[7], "z"]"#).unwrap(), expected);
        assert_eq!(parse_prompt_file(b"{}").unwrap(), []);
    }

    #[test]
    fn other_forms_are_refused_by_the_name_of_their_prompt() {
        for (text, says) in [
            ("3", "an object of prompts"),
            (r#"{"q": 3}"#, "prompt `q`"),
            (r#"{"q": [1.5]}"#, "a token id in prompt `q`"),
            (r#"{"q": [-1]}"#, "a token id in prompt `q`"),
            (r#"{"q": [4294967296]}"#, "a token id in prompt `q`"),
            (
                r#"{"q": {"ids": "x"}}"#,
                "a list of token ids in prompt `q`",
            ),
            (r#"{"q": [1], "q": [2]}"#, "`q` comes twice"),
            ("[[1]] x", "trailing characters"),
        ] {
            let error = parse_prompt_file(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Malformed, "{text}: {error}");
            assert!(error.message.contains(says), "{text}: {error}");
        }
        let many = format!("[{}[1]]", "[1],".repeat(MOST_PROMPTS));
        let error = parse_prompt_file(many.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        assert!(error.message.contains("at most 65536 prompts"), "{error}");
    }
}
