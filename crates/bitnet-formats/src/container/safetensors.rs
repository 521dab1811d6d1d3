//! safetensors: one JSON header, then the tensors end to end; large models in several files with
//! an index. The page is `formats/container/safetensors.md`.
//!
//! Invariant: the header describes every byte of the file exactly once: no holes, no overlaps,
//! nothing after the last tensor, no name twice, every range as long as its shape and type need.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod entry;
pub(super) mod json;
mod remains;
mod write;

use self::entry::{Data, malformed};
use self::json::{HeaderSeed, Place, RawHeader, parse_json};
pub(super) use self::remains::remains;
use self::write::write_header;
use super::shards::{self, Parsed};
use super::{Container, Header, Reading, WritePlan};
use crate::bytes::Cursor;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::source::{Source, as_opened};
use crate::tensor_file::{TensorFile, repeated};
use crate::unread::{Unread, UnreadBits};
use std::path::Path;
use std::sync::Arc;

/// The extension of the files, and of the shards that an index names.
pub(super) const EXTENSION: &str = ".safetensors";
/// What transformers writes, and refuses to load without.
const FORMAT: (&str, &str) = ("format", "pt");
/// The format asks for 8; 64 is a cache line, and lets a reader use any vector load on a mapping.
const DATA_ALIGNMENT: u64 = 64;
/// The library takes some 500 bytes of memory per tensor; headers of more tensors and entries are checked here alone.
const MOST_FOR_LIBRARY: usize = 1 << 14;

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

    fn read_with(&self, path: &Path, how: &Reading<'_>) -> Result<TensorFile, FormatError> {
        shards::read(self.name(), EXTENSION, path, how, read_file)
    }

    fn header(&self, plan: &WritePlan) -> Result<Header, FormatError> {
        write_header(plan)
    }

    /// The tensors leave no gaps; what the header says can be spelled in several ways.
    fn unread(&self, file: &TensorFile) -> Result<Vec<Unread>, FormatError> {
        let header = |part: &Arc<dyn Source>| {
            let len = Cursor::over(&**part).in_steps_of(8).u64("header length");
            let len = len.map_err(|e| e.in_file(part.path()))?;
            Ok(Unread {
                file: part.path().to_owned(),
                range: 8..len.saturating_add(8),
                bits: UnreadBits::JsonSpelling,
                place: String::new(),
                why: "another spelling of the same JSON",
            })
        };
        file.parts.iter().map(header).collect()
    }
}

fn read_file(file: &dyn Source, part: usize, limits: &Limits) -> Result<Parsed, FormatError> {
    as_opened(file, || read_header(Cursor::over(file), part, limits))
}

fn read_header(
    mut cursor: Cursor<'_>,
    part: usize,
    limits: &Limits,
) -> Result<Parsed, FormatError> {
    let header_len = cursor.u64("header length")?;
    if header_len > limits.header_bytes {
        let limit = limits.header_bytes;
        let message = format!("header of {header_len} bytes, expected at most {limit}");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message).at(0));
    }
    let data_len = cursor.remaining().saturating_sub(header_len);
    let header = cursor.take(header_len, "header")?;
    let data_start = header_len.saturating_add(8);
    if header.first() != Some(&b'{') {
        return Err(malformed("the header does not begin with `{`").at(8));
    }

    let mut raw = RawHeader::default();
    let mut place = Place::default();
    let data = Data {
        part,
        start: data_start,
        len: data_len,
    };
    parse_json(
        header,
        HeaderSeed {
            raw: &mut raw,
            place: &mut place,
            limits,
            data: &data,
        },
    )
    .map_err(|e| place.add_to(e, 8))?;
    let RawHeader {
        metadata,
        mut tensors,
    } = raw;
    if let Some(info) = repeated(&tensors, |info| &info.name) {
        return Err(malformed("the header has this name twice")
            .in_tensor(&info.name)
            .at(8));
    }
    // a tensor without elements may share its offset with the next one
    tensors.sort_unstable_by(|a, b| (a.offset, a.len, &a.name).cmp(&(b.offset, b.len, &b.name)));
    let mut expected = 0;
    for info in &tensors {
        let start = info.offset.saturating_sub(data_start);
        if start != expected {
            let what = if start < expected {
                "overlaps the tensor before"
            } else {
                "leaves a hole"
            };
            let message = format!("{what}: expected its data at {expected}, found {start}");
            return Err(malformed(message).in_tensor(&info.name).at(info.offset));
        }
        expected = start.saturating_add(info.len);
    }
    if expected != data_len {
        let message = format!("expected {expected} bytes of tensors, found {data_len}");
        let end = data_start.saturating_add(expected);
        return Err(malformed(message)
            .at(end)
            .hint("nothing may follow the last tensor"));
    }
    // the format's own implementation has the last word: what it refuses, its readers cannot open
    if tensors.len().saturating_add(metadata.0.len()) <= MOST_FOR_LIBRARY {
        let refused = |e: &dyn std::fmt::Display| {
            malformed(format!("the safetensors library refuses the header: {e}")).at(8)
        };
        let text = std::str::from_utf8(header).map_err(|e| refused(&e).because(e))?;
        serde_json::from_str::<safetensors::tensor::Metadata>(text)
            .map_err(|e| refused(&e).because(e))?;
    }
    Ok(Parsed { metadata, tensors })
}
