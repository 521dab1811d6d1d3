//! What no reader uses of a GGUF file, and where its metadata stand.
//!
//! Invariant: the header is walked by the functions that read it, so both agree about every place.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::read::{read_tensor_infos, read_text, read_value};
use super::{MAGIC, MAX_KEY_BYTES, malformed};
use crate::bytes::Cursor;
use crate::container::gaps;
use crate::error::FormatError;
use crate::limits::Limits;
use crate::source::{Source, as_opened};
use crate::tensor_file::{MetaValue, Metadata, TensorFile};
use crate::unread::{Unread, UnreadBits};
use std::ops::Range;

/// Where one entry of the metadata stands in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct GgufEntry {
    /// Its key.
    pub key: String,
    /// The bytes of the key.
    pub key_range: Range<u64>,
    /// The first byte of the type of its value.
    pub kind_at: u64,
    /// Bits of that byte which name another type of as many bytes.
    pub kind_rivals: u8,
    /// The bytes of the value that are no length: a number, the text of a string, an array's numbers.
    /// Empty for an array of strings.
    pub value_range: Range<u64>,
}

pub(super) fn entries(source: &dyn Source, limits: &Limits) -> Result<Vec<GgufEntry>, FormatError> {
    as_opened(source, || walk(Cursor::over(source), limits)).map(|(entries, _)| entries)
}

/// The entries of a header in memory.
pub(super) fn entries_of(
    header: Cursor<'_>,
    limits: &Limits,
) -> Result<Vec<GgufEntry>, FormatError> {
    walk(header, limits).map(|(entries, _)| entries)
}

/// The metadata of a header.
pub(super) fn metadata(header: &[u8], limits: &Limits) -> Result<Metadata, FormatError> {
    let mut cursor = Cursor::new(header);
    if cursor.array::<4>("magic")? != MAGIC {
        return Err(malformed("expected the magic `GGUF`").at(0));
    }
    cursor.u32("version")?;
    cursor.u64("tensor count")?;
    let count = cursor.u64("metadata count")?;
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = read_text(&mut cursor, "metadata key", MAX_KEY_BYTES)?;
        metadata.0.push((key, read_value(&mut cursor, limits)?));
    }
    Ok(metadata)
}

pub(super) fn unread(file: &TensorFile) -> Result<Vec<Unread>, FormatError> {
    let mut all = Vec::new();
    for (part, source) in file.parts.iter().enumerate() {
        let limits = Limits::default();
        let walked = as_opened(&**source, || walk(Cursor::over(&**source), &limits));
        let (_, header_end) = walked.map_err(|e| e.in_file(source.path()))?;
        all.push(Unread {
            file: source.path().to_owned(),
            range: 4..5,
            // they differ in what big-endian machines wrote
            bits: UnreadBits::Mask(2 ^ 3),
            place: "version".to_owned(),
            why: "versions 2 and 3 are read alike",
        });
        all.extend(gaps(file, part, header_end));
    }
    Ok(all)
}

/// The entries of a header, and where it ends.
fn walk(mut cursor: Cursor<'_>, limits: &Limits) -> Result<(Vec<GgufEntry>, u64), FormatError> {
    if cursor.array::<4>("magic")? != MAGIC {
        return Err(malformed("expected the magic `GGUF`").at(0));
    }
    cursor.u32("version")?;
    let tensors = cursor.u64("tensor count")?;
    let count = cursor.u64("metadata count")?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let key = read_text(&mut cursor, "metadata key", MAX_KEY_BYTES)?;
        let kind_at = cursor.position();
        let kind = cursor.clone().u32("value type")?;
        let value = read_value(&mut cursor, limits)?;
        let end = cursor.position();
        // type, then for strings a length, for arrays a type and a length
        let head = match &value {
            MetaValue::String(_) => 12,
            MetaValue::Array(array) if !array.is_text() => 16,
            MetaValue::Array(_) => end.saturating_sub(kind_at),
            _ => 4,
        };
        entries.push(GgufEntry {
            key_range: kind_at.saturating_sub(key.len() as u64)..kind_at,
            key,
            kind_at,
            kind_rivals: rivals(kind),
            value_range: kind_at.saturating_add(head)..end,
        });
    }
    read_tensor_infos(&mut cursor, tensors, limits)?;
    Ok((entries, cursor.position()))
}

/// Bits of a type id that lead to another number of as many bytes.
fn rivals(kind: u32) -> u8 {
    let size = |kind: u32| match kind {
        0 | 1 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    };
    let leads = |bit: &u8| {
        let other = kind ^ u32::from(*bit);
        size(kind).is_some() && size(other) == size(kind)
    };
    (0..8).map(|n| 1 << n).filter(leads).fold(0, |a, b| a | b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_one_size_are_rivals() {
        assert_eq!(rivals(4), 0b011, "u32: i32, f32");
        assert_eq!(rivals(8), 0, "a string has a length");
        assert_eq!(rivals(7), 0, "not every byte is a bool");
        assert_eq!(rivals(12), 0, "f64: 8, 13, 14, 4");
    }
}
