//! JSON of which the first entries of long lists are kept.
//!
//! Invariant: what is not kept is counted while it is read and never held, so memory does not grow with a vocabulary.

use super::text::shortened;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::cell::Cell;
use std::fmt;

/// Characters of a string.
const TEXT: usize = 64 << 10;
/// Elements of a list and keys of an object that are kept; of longer ones the first [`FIRST`].
const LIST: usize = 1024;
const KEYS: usize = 1 << 14;
const FIRST: usize = 8;
/// Keys of an object that gives tokens their ids, and of one that describes tokens by id.
const IDS: usize = 64;
const TOKENS: usize = 512;
/// Keys of tokenizers whose values are vocabularies however short they are.
const VOCABULARIES: [&str; 2] = ["vocab", "merges"];

/// The value, and whether anything was left out of it; `None` for what is not JSON. `is_vocabulary`: the whole text is one.
pub(super) fn parse(text: &str, is_vocabulary: bool) -> Option<(Value, bool)> {
    let cut = Cell::new(false);
    let mut json = serde_json::Deserializer::from_str(text);
    let keep = Keep {
        is_vocabulary,
        cut: &cut,
    };
    let value = keep.deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some((value, cut.get()))
}

#[derive(Clone, Copy)]
struct Keep<'c> {
    is_vocabulary: bool,
    cut: &'c Cell<bool>,
}

impl Keep<'_> {
    fn most(self, usual: usize) -> usize {
        match self.is_vocabulary {
            true => FIRST,
            false => usual,
        }
    }

    fn beginning(self, entries: usize, first: Value) -> Value {
        self.cut.set(true);
        json!({"entries": entries, "first": first})
    }

    fn inside(self, key: &str) -> Self {
        Self {
            is_vocabulary: VOCABULARIES.contains(&key),
            ..self
        }
    }
}

impl<'de> DeserializeSeed<'de> for Keep<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Keep<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        let kept = shortened(value, TEXT);
        if kept.len() != value.len() {
            self.cut.set(true);
        }
        Ok(kept.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let most = self.most(LIST);
        let element = self.inside("");
        let mut kept = Vec::new();
        while kept.len() < most {
            match list.next_element_seed(element)? {
                Some(value) => kept.push(value),
                None => return Ok(kept.into()),
            }
        }
        let mut entries = kept.len();
        while list.next_element::<IgnoredAny>()?.is_some() {
            entries += 1;
        }
        if entries == kept.len() {
            return Ok(kept.into());
        }
        kept.truncate(FIRST);
        Ok(self.beginning(entries, kept.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let most = self.most(KEYS);
        let (mut kept, mut entries) = (Map::new(), 0);
        while kept.len() < most {
            let Some(key) = map.next_key::<String>()? else {
                break;
            };
            let value = map.next_value_seed(self.inside(&key))?;
            // of a key that stands twice one value would not be looked at
            if kept.insert(key, value).is_some() {
                self.cut.set(true);
            }
            entries += 1;
        }
        if kept.len() >= most {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                entries += 1;
            }
        }
        let is_whole = entries == kept.len() || kept.len() < most;
        if is_whole && kept.len() <= bound(&kept) {
            return Ok(kept.into());
        }
        let first: Map<String, Value> = kept.into_iter().take(FIRST).collect();
        Ok(self.beginning(entries, first.into()))
    }
}

/// How many keys an object may have, by what it seems to be.
fn bound(map: &Map<String, Value>) -> usize {
    let is_token = |value: &Value| value.get("content").is_some_and(Value::is_string);
    if map.values().all(Value::is_number) {
        IDS
    } else if map.values().all(is_token) {
        TOKENS
    } else {
        KEYS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_cut_and_settings_are_not() {
        let ids: Map<String, Value> = (0..70).map(|i| (format!("t{i}"), json!(i))).collect();
        let nine: Map<String, Value> = ids.clone().into_iter().take(9).collect();
        let text = json!({
            "ids": ids,
            "model": {"vocab": nine, "merges": ["a b", "b c"]},
            "modules": vec!["m"; 1000],
            "many": vec![1; 1025],
        });
        let (kept, is_cut) = parse(&text.to_string(), false).unwrap();
        assert!(is_cut);
        assert_eq!(kept["ids"]["entries"], 70);
        assert_eq!(kept["ids"]["first"].as_object().unwrap().len(), 8);
        assert_eq!(kept["model"]["vocab"]["entries"], 9);
        assert_eq!(kept["model"]["merges"], json!(["a b", "b c"]));
        assert_eq!(kept["modules"], text["modules"]);
        assert_eq!(kept["many"]["entries"], 1025);
        let (kept, is_cut) = parse(r#"{"a": [1, 2.5, null, true, "x", -3]}"#, false).unwrap();
        assert_eq!(kept, json!({"a": [1, 2.5, null, true, "x", -3]}));
        assert!(!is_cut);
        assert!(parse("{", false).is_none() && parse("{} x", false).is_none());
    }
}
