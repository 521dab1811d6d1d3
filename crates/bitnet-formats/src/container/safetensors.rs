//! safetensors: one JSON header, then the tensors end to end; large models in several files with
//! an index. The page is `formats/container/safetensors.md`.
//!
//! Invariant: the header describes every byte of the file exactly once: no holes, no overlaps,
//! nothing after the last tensor, no name twice, every range as long as its shape and type need.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod json;
mod write;

use self::json::{HeaderSeed, IndexSeed, Place, RawHeader, parse_json};
use self::write::write_header;
use super::{Container, Header, WritePlan};
use crate::artifact::is_plain_file_name;
use crate::bytes::Cursor;
use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::mapped::Mapped;
use crate::tensor_file::{Metadata, TensorFile, TensorInfo};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
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
