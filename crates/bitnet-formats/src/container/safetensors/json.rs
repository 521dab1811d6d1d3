//! The JSON of headers and indices, read without trusting it.
//!
//! Invariant: no name or key comes twice, and no list grows past its limit.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Entry, METADATA};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::tensor_file::{MetaValue, Metadata};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// The header in file order.
#[derive(Debug, Default)]
pub(super) struct RawHeader {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<(String, Entry)>,
}

/// Where a JSON error happened and which code it has, because serde's errors carry text only.
#[derive(Debug, Default)]
pub(in crate::container) struct Place {
    pub(in crate::container) name: Option<String>,
    pub(in crate::container) code: Option<ErrorCode>,
}

impl Place {
    pub(in crate::container) fn add_to(self, error: JsonError, start: u64) -> FormatError {
        let mut out = FormatError::new(self.code.unwrap_or(ErrorCode::Malformed), error.message);
        out.tensor = self.name;
        out.offset = error.offset.map(|offset| offset.saturating_add(start));
        out
    }
}

pub(in crate::container) struct JsonError {
    pub(in crate::container) message: String,
    /// From the start of the JSON text, where it has one line.
    pub(in crate::container) offset: Option<u64>,
}

pub(in crate::container) fn parse_json<'de, S: DeserializeSeed<'de>>(
    text: &'de [u8],
    seed: S,
) -> Result<S::Value, JsonError> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let parsed = seed
        .deserialize(&mut json)
        .and_then(|value| json.end().map(|()| value));
    parsed.map_err(|e| {
        let message = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        let message = message.strip_suffix(&place).unwrap_or(&message).to_owned();
        let offset = (e.line() == 1).then(|| e.column().saturating_sub(1) as u64);
        JsonError { message, offset }
    })
}

/// Reads the whole header, refusing a name that comes twice (a JSON map would keep the last, other
/// readers the first: two programs would see two models).
pub(super) struct HeaderSeed<'s> {
    pub(super) raw: &'s mut RawHeader,
    pub(super) place: &'s mut Place,
    pub(super) limits: &'s Limits,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { raw, place, limits } = self;
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            place.name = Some(name.clone());
            if name.len() as u64 > limits.name_bytes {
                place.code = Some(ErrorCode::LimitExceeded);
                let (found, limit) = (name.len(), limits.name_bytes);
                let message = format!("name of {found} bytes, expected at most {limit}");
                return Err(A::Error::custom(message));
            }
            if !names.insert(name.clone()) {
                return Err(A::Error::custom("the header has this name twice"));
            }
            if name == METADATA {
                map.next_value_seed(StringsSeed {
                    entries: limits.metadata_entries,
                    place: &mut *place,
                    take: |key, value| raw.metadata.0.push((key, MetaValue::text(value))),
                })?;
            } else {
                if raw.tensors.len() as u64 >= limits.tensors {
                    place.code = Some(ErrorCode::LimitExceeded);
                    let message = format!("more than {} tensors", limits.tensors);
                    return Err(A::Error::custom(message));
                }
                let entry = map.next_value::<Entry>()?;
                raw.tensors.push((name, entry));
            }
        }
        place.name = None;
        Ok(())
    }
}

/// Reads a map of strings to strings, refusing a key that comes twice.
struct StringsSeed<'s, F> {
    entries: u64,
    place: &'s mut Place,
    take: F,
}

impl<'de, F: FnMut(String, String)> DeserializeSeed<'de> for StringsSeed<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(String, String)> Visitor<'de> for StringsSeed<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings to strings")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if keys.len() as u64 >= self.entries {
                self.place.code = Some(ErrorCode::LimitExceeded);
                return Err(A::Error::custom(format!(
                    "more than {} entries",
                    self.entries
                )));
            }
            if !keys.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key `{key}` comes twice")));
            }
            (self.take)(key, map.next_value()?);
        }
        Ok(())
    }
}

/// An index file: `weight_map` counts, the rest (`metadata.total_size`) is ignored.
pub(in crate::container) struct IndexSeed<'s> {
    pub(in crate::container) shard_of: &'s mut Vec<(String, String)>,
    pub(in crate::container) place: &'s mut Place,
    pub(in crate::container) limits: &'s Limits,
}

impl<'de> DeserializeSeed<'de> for IndexSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for IndexSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index with a `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self {
            shard_of,
            place,
            limits,
        } = self;
        let mut seen = false;
        while let Some(key) = map.next_key::<String>()? {
            if key != "weight_map" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if std::mem::replace(&mut seen, true) {
                return Err(A::Error::custom("`weight_map` comes twice"));
            }
            map.next_value_seed(StringsSeed {
                entries: limits.tensors,
                place: &mut *place,
                take: |tensor, shard| shard_of.push((tensor, shard)),
            })?;
        }
        if seen {
            Ok(())
        } else {
            Err(A::Error::custom("`weight_map` is missing"))
        }
    }
}
