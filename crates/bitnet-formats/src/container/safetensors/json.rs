//! The JSON of headers and indices, read without trusting it.
//!
//! Invariant: no list grows past its limit, and no key comes twice. Whether the name of a tensor does is for the
//! caller to find, when all are there: looking each up on the way would need a copy of every name.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::entry::{Data, Entry, METADATA};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::tensor_file::{MetaValue, Metadata, TensorInfo, repeated};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::HashMap;
use std::fmt;

/// The header in file order.
#[derive(Debug, Default)]
pub(super) struct RawHeader {
    pub(super) metadata: Metadata,
    /// Ranges lie inside the file and are as long as shapes and types need.
    pub(super) tensors: Vec<TensorInfo>,
}

/// Where a JSON error happened and which code it has, because serde's errors carry text only.
#[derive(Debug, Default)]
pub(in crate::container) struct Place {
    pub(in crate::container) name: Option<String>,
    pub(in crate::container) code: Option<ErrorCode>,
    /// The error itself, where it is one of this crate.
    error: Option<FormatError>,
}

impl Place {
    pub(in crate::container) fn add_to(self, error: JsonError, start: u64) -> FormatError {
        if let Some(error) = self.error {
            return error;
        }
        let mut out = FormatError::new(self.code.unwrap_or(ErrorCode::Malformed), error.message)
            .because(error.cause);
        out.tensor = self.name;
        out.offset = error.offset.map(|offset| offset.saturating_add(start));
        out
    }
}

pub(in crate::container) struct JsonError {
    pub(in crate::container) message: String,
    /// From the start of the JSON text, where it has one line.
    pub(in crate::container) offset: Option<u64>,
    cause: serde_json::Error,
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
        JsonError {
            message,
            offset,
            cause: e,
        }
    })
}

/// Reads the whole header. A name that comes twice has to be refused: a JSON map would keep the last, other
/// readers the first, and two programs would see two models.
pub(super) struct HeaderSeed<'s> {
    pub(super) raw: &'s mut RawHeader,
    pub(super) place: &'s mut Place,
    pub(super) limits: &'s Limits,
    pub(super) data: &'s Data,
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
        let Self {
            raw,
            place,
            limits,
            data,
        } = self;
        let mut has_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            place.name = Some(name.clone());
            if name.len() as u64 > limits.name_bytes {
                place.code = Some(ErrorCode::LimitExceeded);
                let (found, limit) = (name.len(), limits.name_bytes);
                let message = format!("name of {found} bytes, expected at most {limit}");
                return Err(A::Error::custom(message));
            }
            if name == METADATA {
                if std::mem::replace(&mut has_metadata, true) {
                    return Err(A::Error::custom("the header has this name twice"));
                }
                map.next_value_seed(StringsSeed {
                    entries: limits.metadata_entries,
                    place: &mut *place,
                    take: |key, value| raw.metadata.0.push((key, MetaValue::text(value))),
                })?;
                if let Some((key, _)) = repeated(&raw.metadata.0, |(key, _)| key) {
                    return Err(A::Error::custom(format!("the key `{key}` comes twice")));
                }
            } else {
                if raw.tensors.len() as u64 >= limits.tensors {
                    place.code = Some(ErrorCode::LimitExceeded);
                    let message = format!("more than {} tensors", limits.tensors);
                    return Err(A::Error::custom(message));
                }
                let entry = map.next_value::<Entry<'_>>()?;
                match entry.check(name, data) {
                    Ok(info) => raw.tensors.push(info),
                    Err(error) => {
                        place.error = Some(error);
                        return Err(A::Error::custom("not a tensor of this file"));
                    }
                }
            }
        }
        place.name = None;
        Ok(())
    }
}

/// Reads a map of strings to strings, keys that come twice included.
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
        let mut count = 0u64;
        while let Some(key) = map.next_key::<String>()? {
            if count >= self.entries {
                self.place.code = Some(ErrorCode::LimitExceeded);
                return Err(A::Error::custom(format!(
                    "more than {} entries",
                    self.entries
                )));
            }
            count = count.saturating_add(1);
            (self.take)(key, map.next_value()?);
        }
        Ok(())
    }
}

/// Which tensor is in which shard.
#[derive(Debug, Default)]
pub(in crate::container) struct Index {
    /// Each shard once.
    pub(in crate::container) shards: Vec<String>,
    /// Names of tensors, each once, and where in `shards` theirs is.
    pub(in crate::container) tensors: Vec<(String, u32)>,
}

/// An index file: `weight_map` counts, the rest (`metadata.total_size`) is ignored.
pub(in crate::container) struct IndexSeed<'s> {
    pub(in crate::container) index: &'s mut Index,
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
            index,
            place,
            limits,
        } = self;
        let mut numbers: HashMap<String, u32> = HashMap::new();
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
                take: |tensor, shard: String| {
                    let Index { shards, tensors } = &mut *index;
                    let number = match numbers.get(&shard) {
                        Some(number) => *number,
                        None => {
                            let number = shards.len() as u32;
                            shards.push(shard.clone());
                            numbers.insert(shard, number);
                            number
                        }
                    };
                    tensors.push((tensor, number));
                },
            })?;
            if let Some((tensor, _)) = repeated(&index.tensors, |(tensor, _)| tensor) {
                return Err(A::Error::custom(format!("the key `{tensor}` comes twice")));
            }
        }
        if seen {
            Ok(())
        } else {
            Err(A::Error::custom("`weight_map` is missing"))
        }
    }
}
