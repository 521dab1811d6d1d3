//! safetensors: one JSON header, then the tensors end to end; large models in several files with
//! an index. The page is `formats/container/safetensors.md`.
//!
//! Invariant: the header describes every byte of the file exactly once: no holes, no overlaps,
//! nothing after the last tensor, no name twice, every range as long as its shape and type need.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Container, Header, WritePlan};
use crate::artifact::is_plain_file_name;
use crate::bytes::Cursor;
use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::mapped::Mapped;
use crate::tensor_file::{MetaValue, Metadata, TensorFile, TensorInfo};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::path::Path;

/// The key of the header that is not a tensor.
const METADATA: &str = "__metadata__";
/// The ending of the file that says which tensor is in which shard.
pub(super) const INDEX_SUFFIX: &str = ".index.json";
/// What transformers writes, and refuses to load without.
const FORMAT: (&str, &str) = ("format", "pt");
/// The format asks for 8; 64 is a cache line, and lets a reader use any vector load on a mapping.
const DATA_ALIGNMENT: u64 = 64;

/// The types of the format that we know; the others (F8, F4, complex) no BitNet model uses.
const TYPES: &[PlainType] = &[
    PlainType::F64,
    PlainType::F32,
    PlainType::F16,
    PlainType::Bf16,
    PlainType::I64,
    PlainType::I32,
    PlainType::I16,
    PlainType::I8,
    PlainType::U64,
    PlainType::U32,
    PlainType::U16,
    PlainType::U8,
    PlainType::Bool,
];

/// The safetensors container.
#[derive(Debug, Clone, Copy)]
pub struct Safetensors;

impl Container for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn recognises(&self, head: &[u8]) -> bool {
        let mut cursor = Cursor::new(head);
        cursor.u64("header length").is_ok() && cursor.u8("header").is_ok_and(|byte| byte == b'{')
    }

    fn read(&self, path: &Path, limits: &Limits) -> Result<TensorFile, FormatError> {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        if name.ends_with(INDEX_SUFFIX) {
            return read_index(path, limits);
        }
        if let Some(index) = index_of_shard(name).map(|index| path.with_file_name(index))
            && index.is_file()
        {
            return read_index(&index, limits);
        }
        let file = Mapped::open(path)?;
        let parsed = read_file(&file, 0, limits).map_err(|e| e.in_file(path))?;
        Ok(TensorFile::new(
            self.name(),
            vec![file],
            parsed.metadata,
            parsed.tensors,
        ))
    }

    fn header(&self, plan: &WritePlan) -> Result<Header, FormatError> {
        write_header(plan)
    }
}

/// `model-00001-of-00003.safetensors` belongs to `model.safetensors.index.json`.
fn index_of_shard(name: &str) -> Option<String> {
    let stem = name.strip_suffix(".safetensors")?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let is_number = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(count)).then(|| format!("{prefix}.safetensors{INDEX_SUFFIX}"))
}

fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, message)
}

/// One parsed file.
struct Parsed {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

fn read_file(file: &Mapped, part: usize, limits: &Limits) -> Result<Parsed, FormatError> {
    let mut cursor = Cursor::new(file.bytes());
    let header_len = cursor.u64("header length")?;
    if header_len > limits.header_bytes {
        let limit = limits.header_bytes;
        let message = format!("header of {header_len} bytes, expected at most {limit}");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message).at(0));
    }
    let header = cursor.take(header_len, "header")?;
    let data_start = cursor.position();
    let data_len = cursor.remaining();
    if header.first() != Some(&b'{') {
        return Err(malformed("the header does not begin with `{`").at(8));
    }

    let mut raw = RawHeader::default();
    let mut place = Place::default();
    parse_json(
        header,
        HeaderSeed {
            raw: &mut raw,
            place: &mut place,
            limits,
        },
    )
    .map_err(|e| place.add_to(e, 8))?;

    let mut tensors = Vec::with_capacity(raw.tensors.len());
    for (name, entry) in raw.tensors {
        let (start, end) = entry.data_offsets;
        let info = entry.check(name, part, data_start, data_len)?;
        tensors.push((start, end, info));
    }
    // a tensor without elements may share its offset with the next one
    tensors.sort_by(|(s, e, a), (t, f, b)| (s, e, &a.name).cmp(&(t, f, &b.name)));
    let mut expected = 0;
    for (start, end, info) in &tensors {
        if *start != expected {
            let what = if *start < expected {
                "overlaps the tensor before"
            } else {
                "leaves a hole"
            };
            let message = format!("{what}: expected its data at {expected}, found {start}");
            return Err(malformed(message).in_tensor(&info.name).at(info.offset));
        }
        expected = *end;
    }
    if expected != data_len {
        let message = format!("expected {expected} bytes of tensors, found {data_len}");
        let end = data_start.saturating_add(expected);
        return Err(malformed(message)
            .at(end)
            .hint("nothing may follow the last tensor"));
    }
    // the format's own implementation has the last word: what it refuses, its readers cannot open
    safetensors::SafeTensors::read_metadata(file.bytes())
        .map_err(|e| malformed(format!("the safetensors library refuses the header: {e}")).at(8))?;
    let tensors = tensors.into_iter().map(|(_, _, info)| info).collect();
    Ok(Parsed {
        metadata: raw.metadata,
        tensors,
    })
}

/// A tensor as the header spells it.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    fn check(
        self,
        name: String,
        part: usize,
        data_start: u64,
        data_len: u64,
    ) -> Result<TensorInfo, FormatError> {
        let Some(plain) = TYPES
            .iter()
            .copied()
            .find(|t| t.safetensors_name() == self.dtype)
        else {
            let known: Vec<_> = TYPES.iter().map(|t| t.safetensors_name()).collect();
            let message = format!(
                "expected one of {}, found dtype {}",
                known.join(", "),
                self.dtype
            );
            return Err(FormatError::new(ErrorCode::UnknownType, message).in_tensor(&name));
        };
        let (start, end) = self.data_offsets;
        let offset = data_start.saturating_add(start);
        let Some(len) = end.checked_sub(start) else {
            let message = format!("its data ends at {end}, before its start {start}");
            return Err(malformed(message).in_tensor(&name));
        };
        if end > data_len {
            let file_end = data_start.saturating_add(data_len);
            let message = format!("needs {len} bytes at {offset}, file ends at {file_end}");
            return Err(FormatError::new(ErrorCode::Truncated, message).in_tensor(&name));
        }
        let needed = (self.shape.iter())
            .try_fold(plain.size() as u64, |n, &size| n.checked_mul(size))
            .ok_or_else(|| {
                malformed(format!("shape {:?} overflows 64 bits", self.shape)).in_tensor(&name)
            })?;
        if needed != len {
            let message = format!(
                "expected {needed} bytes for {} {:?}, found {len}",
                self.dtype, self.shape
            );
            return Err(malformed(message).in_tensor(&name).at(offset));
        }
        let shape = (self.shape.iter().map(|&size| usize::try_from(size)))
            .collect::<Result<_, _>>()
            .map_err(|_| malformed("a size overflows this machine's address").in_tensor(&name))?;
        Ok(TensorInfo {
            name,
            encoding: Encoding::Plain(plain),
            shape,
            part,
            offset,
            len,
        })
    }
}

/// The header in file order.
#[derive(Debug, Default)]
struct RawHeader {
    metadata: Metadata,
    tensors: Vec<(String, Entry)>,
}

/// Where a JSON error happened and which code it has, because serde's errors carry text only.
#[derive(Debug, Default)]
struct Place {
    name: Option<String>,
    code: Option<ErrorCode>,
}

impl Place {
    fn add_to(self, error: JsonError, start: u64) -> FormatError {
        let mut out = FormatError::new(self.code.unwrap_or(ErrorCode::Malformed), error.message);
        out.tensor = self.name;
        out.offset = error.offset.map(|offset| offset.saturating_add(start));
        out
    }
}

struct JsonError {
    message: String,
    /// From the start of the JSON text, where it has one line.
    offset: Option<u64>,
}

fn parse_json<'de, S: DeserializeSeed<'de>>(
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
struct HeaderSeed<'s> {
    raw: &'s mut RawHeader,
    place: &'s mut Place,
    limits: &'s Limits,
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
struct IndexSeed<'s> {
    shard_of: &'s mut Vec<(String, String)>,
    place: &'s mut Place,
    limits: &'s Limits,
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

fn read_index(path: &Path, limits: &Limits) -> Result<TensorFile, FormatError> {
    let here = |e: FormatError| e.in_file(path);
    let index = Mapped::open(path)?;
    let len = index.bytes().len() as u64;
    if len > limits.json_bytes {
        let message = format!(
            "index of {len} bytes, expected at most {}",
            limits.json_bytes
        );
        return Err(here(FormatError::new(ErrorCode::LimitExceeded, message)));
    }
    let mut shard_of = Vec::new();
    let mut place = Place::default();
    parse_json(
        index.bytes(),
        IndexSeed {
            shard_of: &mut shard_of,
            place: &mut place,
            limits,
        },
    )
    .map_err(|e| here(place.add_to(e, 0)))?;

    for (tensor, shard) in &shard_of {
        if !is_plain_file_name(shard) {
            let message = format!("expected a file name in the same directory, found `{shard}`");
            let hint = "shards must lie beside their index";
            return Err(here(malformed(message).in_tensor(tensor).hint(hint)));
        }
    }
    let shards: BTreeSet<&str> = shard_of.iter().map(|(_, shard)| shard.as_str()).collect();
    let listed: HashMap<&str, &str> = shard_of
        .iter()
        .map(|(tensor, shard)| (tensor.as_str(), shard.as_str()))
        .collect();

    let mut parts = Vec::with_capacity(shards.len());
    let mut metadata = Metadata::default();
    let mut tensors = Vec::with_capacity(shard_of.len());
    let mut found: HashMap<String, &str> = HashMap::with_capacity(shard_of.len());
    for (number, shard) in shards.into_iter().enumerate() {
        let shard_path = path.with_file_name(shard);
        let file = Mapped::open(&shard_path).map_err(|e| e.hint("the index names this shard"))?;
        let parsed = read_file(&file, number, limits).map_err(|e| e.in_file(&shard_path))?;
        for tensor in &parsed.tensors {
            let extra = |message: String| {
                FormatError::new(ErrorCode::ExtraTensor, message)
                    .in_file(&shard_path)
                    .in_tensor(&tensor.name)
                    .hint("index and shards are not from one checkpoint")
            };
            if let Some(before) = found.insert(tensor.name.clone(), shard) {
                return Err(extra(format!("is in `{before}` and again here")));
            }
            match listed.get(tensor.name.as_str()) {
                Some(expected) if *expected == shard => {}
                Some(expected) => {
                    return Err(extra(format!("the index expects it in `{expected}`")));
                }
                None => return Err(extra("the index does not list it".to_owned())),
            }
        }
        for (key, value) in parsed.metadata.0 {
            // the shards of one checkpoint repeat each other
            if metadata.get(&key).is_none() {
                metadata.0.push((key, value));
            }
        }
        tensors.extend(parsed.tensors);
        parts.push(file);
    }
    for (tensor, shard) in &shard_of {
        if !found.contains_key(tensor.as_str()) {
            let message = format!("the index expects it in `{shard}`, found no such tensor there");
            return Err(FormatError::new(ErrorCode::MissingTensor, message)
                .in_file(path)
                .in_tensor(tensor)
                .hint("index and shards are not from one checkpoint"));
        }
    }
    Ok(TensorFile::new(
        Safetensors.name(),
        parts,
        metadata,
        tensors,
    ))
}

fn write_header(plan: &WritePlan) -> Result<Header, FormatError> {
    let mut json = String::from("{");
    push_string(&mut json, METADATA);
    json.push_str(":{");
    let mut entries = Vec::with_capacity(plan.metadata.0.len().saturating_add(1));
    if plan.metadata.get(FORMAT.0).is_none() {
        entries.push(FORMAT);
    }
    let mut keys = HashSet::new();
    for (key, value) in &plan.metadata.0 {
        let cannot =
            |message: &str| FormatError::new(ErrorCode::TargetCannotHold, message).in_tensor(key);
        let text = value
            .as_str()
            .ok_or_else(|| cannot("safetensors metadata must be text"))?;
        if !keys.insert(key) {
            return Err(cannot("the metadata has this key twice"));
        }
        entries.push((key, text));
    }
    for (i, (key, value)) in entries.into_iter().enumerate() {
        json.push_str(if i == 0 { "" } else { "," });
        push_string(&mut json, key);
        json.push(':');
        push_string(&mut json, value);
    }
    json.push('}');

    let mut starts = Vec::with_capacity(plan.tensors.len());
    let mut start = 0u64;
    let mut names = HashSet::new();
    for tensor in &plan.tensors {
        let fail = |code, message: String| FormatError::new(code, message).in_tensor(&tensor.name);
        if tensor.name == METADATA || !names.insert(tensor.name.as_str()) {
            let message = "expected each name once, and none of them `__metadata__`";
            return Err(fail(ErrorCode::TargetCannotHold, message.to_owned()));
        }
        // packed trits are bytes here; what they mean is said by the metadata or config.json
        let plain = match tensor.encoding {
            Encoding::Plain(plain) => plain,
            Encoding::Ternary(_) => PlainType::U8,
            Encoding::Block(_) | Encoding::Unknown(_) => {
                let message = format!("safetensors has no type {}", tensor.encoding.name());
                return Err(fail(ErrorCode::TargetCannotHold, message));
            }
        };
        let needed = (tensor.shape.iter())
            .try_fold(plain.size() as u64, |n, &size| n.checked_mul(size as u64));
        if needed != Some(tensor.len) {
            let message = format!(
                "{} {:?} does not take the planned {} bytes",
                plain.safetensors_name(),
                tensor.shape,
                tensor.len
            );
            return Err(fail(ErrorCode::WrongShape, message));
        }
        let end = start.checked_add(tensor.len).ok_or_else(|| {
            fail(
                ErrorCode::TargetCannotHold,
                "the file passes 2^64 bytes".to_owned(),
            )
        })?;
        json.push(',');
        push_string(&mut json, &tensor.name);
        json.push_str(&format!(
            ":{{\"dtype\":\"{}\",\"shape\":{:?},\"data_offsets\":[{start},{end}]}}",
            plain.safetensors_name(),
            tensor.shape
        ));
        starts.push(start);
        start = end;
    }
    json.push('}');

    let too_long = || {
        let message = format!(
            "the header passes the {} bytes that readers allow",
            Limits::default().header_bytes
        );
        FormatError::new(ErrorCode::TargetCannotHold, message)
    };
    let data_start = (json.len() as u64)
        .checked_add(8)
        .and_then(|len| len.checked_next_multiple_of(DATA_ALIGNMENT))
        .ok_or_else(too_long)?;
    let header_len = data_start.saturating_sub(8);
    if header_len > Limits::default().header_bytes {
        return Err(too_long());
    }
    let mut bytes = Vec::with_capacity(data_start as usize);
    bytes.extend_from_slice(&header_len.to_le_bytes());
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(data_start as usize, b' ');
    let total = data_start.checked_add(start).ok_or_else(too_long)?;
    // below `total`, so this cannot wrap
    let offsets = starts
        .into_iter()
        .map(|s| s.saturating_add(data_start))
        .collect();
    Ok(Header {
        bytes,
        offsets,
        total,
    })
}

/// Appends a JSON string literal.
fn push_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::Value::from(text).to_string());
}
