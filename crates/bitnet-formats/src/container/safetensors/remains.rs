//! The readable beginning of a safetensors header.
//!
//! Invariant: entries are kept up to the first byte that is no valid JSON.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::entry::{Entry, METADATA};
use super::json::parse_json;
use crate::bytes::Cursor;
use crate::container::{Declared, HeaderRemains};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::tensor_file::MetaValue;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// See [`crate::header_remains`].
pub(in crate::container) fn remains(
    mut cursor: Cursor<'_>,
    found: &mut HeaderRemains,
) -> Result<(), FormatError> {
    let limits = Limits::default();
    let len = cursor.u64("header length")?;
    found.counts.push(("header bytes", len));
    let there = len.min(cursor.remaining()).min(limits.header_bytes);
    let text = cursor.take(there, "header")?;
    parse_json(text, EntriesSeed { found, limits }).map_err(|e| {
        let error = FormatError::new(ErrorCode::Malformed, e.message);
        match e.offset {
            Some(offset) => error.at(offset.saturating_add(8)),
            None => error,
        }
    })
}

struct EntriesSeed<'s> {
    found: &'s mut HeaderRemains,
    limits: Limits,
}

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                let entries = map.next_value::<BTreeMap<String, String>>()?;
                let entries = entries.into_iter().map(|(k, v)| (k, MetaValue::text(v)));
                self.found.metadata.0.extend(entries);
                continue;
            }
            if self.found.tensors.len() as u64 >= self.limits.tensors {
                return Err(A::Error::custom("more tensors than are read"));
            }
            let entry = map.next_value::<Entry<'_>>()?;
            self.found.tensors.push(Declared {
                name,
                kind: entry.dtype.into_owned(),
                shape: entry.shape,
                offset: entry.data_offsets.0,
            });
        }
        Ok(())
    }
}
