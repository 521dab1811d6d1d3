//! The header of one file: metadata, tensor infos, and where the tensors are.
//!
//! Invariant: nothing is allocated because a count says so; every count is first compared with the
//! bytes that are left, and the offsets are exactly the running, padded sum of the lengths.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::resolve::{Placed, meanings, recorded_layout};
use super::write::VERSION;
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, MAX_KEY_BYTES, MIN_KEY_VALUE,
    MIN_TENSOR_INFO, limit_exceeded, malformed, stored_len,
};
use crate::bytes::Cursor;
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crate::limits::Limits;
use crate::packing::Packing;
use crate::tensor_file::{MetaArray, MetaValue, Metadata, Strings, TensorInfo, repeated};
use std::collections::BTreeMap;

/// One parsed part.
pub(super) struct Parsed {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorInfo>,
    /// Where the last tensor ends, padding not included.
    pub(super) end: u64,
    pub(super) alignment: u64,
}

/// A tensor info as the file spells it. One [`TensorInfo`] from reading to layout, so that headers of very many
/// tensors are held once: `encoding` is the type as the file numbers it, `offset` counts from the start of the data
/// section, and `len` is the place of the info itself.
pub(super) struct RawInfo(TensorInfo);

impl RawInfo {
    /// The type as the file numbers it.
    fn id(&self) -> u32 {
        match self.0.encoding {
            Encoding::Unknown(id) => id,
            _ => 0,
        }
    }

    /// Where the info itself is.
    fn at(&self) -> u64 {
        self.0.len
    }
}

/// The file that begins here; what stands behind its last tensor is not looked at.
pub(super) fn read_header(
    mut cursor: Cursor<'_>,
    part: usize,
    limits: &Limits,
    layout: Option<&'static dyn Packing>,
) -> Result<Parsed, FormatError> {
    if cursor.array::<4>("magic")? != MAGIC {
        return Err(malformed("expected the magic `GGUF`").at(0));
    }
    check_version(cursor.u32("version")?)?;
    let tensor_count = cursor.u64("tensor count")?;
    let entry_count = cursor.u64("metadata count")?;
    check_count(
        &cursor,
        "tensors",
        tensor_count,
        limits.tensors,
        MIN_TENSOR_INFO,
    )?;
    check_count(
        &cursor,
        "metadata entries",
        entry_count,
        limits.metadata_entries,
        MIN_KEY_VALUE,
    )?;

    let metadata = read_metadata(&mut cursor, entry_count, limits)?;
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(&MetaValue::U32(a)) if a.is_power_of_two() => a.into(),
        Some(other) => {
            let message = format!("expected a u32 that is a power of two, found {other:?}");
            return Err(malformed(message).in_tensor(ALIGNMENT_KEY));
        }
    };
    let layout = match layout {
        None => recorded_layout(&metadata)?,
        told => told,
    };
    let raw = read_tensor_infos(&mut cursor, tensor_count, limits)?;
    let tensors = lay_out(
        raw,
        part,
        cursor.position(),
        alignment,
        cursor.len(),
        layout,
    )?;
    let end = tensors.last().map_or(cursor.position(), |last| {
        last.offset.saturating_add(last.len)
    });
    Ok(Parsed {
        metadata,
        tensors,
        end,
        alignment,
    })
}

/// A `split.*` value; writers differ in the integer type.
pub(super) fn split_key(metadata: &Metadata, key: &str) -> Result<Option<u64>, FormatError> {
    let Some(value) = metadata.get(key) else {
        return Ok(None);
    };
    match value.as_u64() {
        Some(number) => Ok(Some(number)),
        None => Err(malformed(format!("expected a count, found {value:?}")).in_tensor(key)),
    }
}

fn check_version(version: u32) -> Result<(), FormatError> {
    let refuse = |message: String, hint: &str| {
        Err(FormatError::new(ErrorCode::UnknownContainer, message)
            .at(4)
            .hint(hint))
    };
    match version {
        2 | VERSION => Ok(()),
        // a small number with its bytes the other way round
        v if v & 0xffff == 0 && v != 0 => refuse(
            "expected a little-endian GGUF file, found a big-endian one".to_owned(),
            "convert it with gguf-py's gguf_convert_endian",
        ),
        1 => refuse(
            "expected GGUF version 2 or 3, found 1".to_owned(),
            "convert the model anew; no current program reads version 1",
        ),
        other => refuse(
            format!("expected GGUF version 2 or 3, found {other}"),
            "a newer program may have written it",
        ),
    }
}

/// Compares a count with its limit and with what the rest of the file could hold.
pub(super) fn check_count(
    cursor: &Cursor<'_>,
    what: &str,
    count: u64,
    limit: u64,
    min_len: u64,
) -> Result<(), FormatError> {
    let at = cursor.position();
    if count > limit {
        return Err(limit_exceeded(what, count, limit).at(at));
    }
    let (needed, left) = (count.checked_mul(min_len), cursor.remaining());
    match needed {
        Some(needed) if needed <= left => Ok(()),
        _ => {
            let message = format!("{count} {what} need at least {min_len} bytes each, {left} left");
            Err(FormatError::new(ErrorCode::Truncated, message).at(at))
        }
    }
}

fn read_string<'c>(
    cursor: &'c mut Cursor<'_>,
    what: &str,
    limit: u64,
) -> Result<&'c [u8], FormatError> {
    let at = cursor.position();
    let len = cursor.u64(what)?;
    if len > limit {
        return Err(limit_exceeded(&format!("bytes in a {what}"), len, limit).at(at));
    }
    cursor.take(len, what)
}

/// A string that has to be text: keys and tensor names.
pub(super) fn read_text(
    cursor: &mut Cursor<'_>,
    what: &str,
    limit: u64,
) -> Result<String, FormatError> {
    let at = cursor.position();
    let bytes = read_string(cursor, what, limit)?;
    match std::str::from_utf8(bytes) {
        Ok("") => Err(malformed(format!("empty {what}")).at(at)),
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(malformed(format!("{what} is not UTF-8")).at(at)),
    }
}

fn read_metadata(
    cursor: &mut Cursor<'_>,
    count: u64,
    limits: &Limits,
) -> Result<Metadata, FormatError> {
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = read_text(cursor, "metadata key", MAX_KEY_BYTES)?;
        let value = read_value(cursor, limits).map_err(|e| e.in_tensor(&key))?;
        metadata.0.push((key, value));
    }
    match repeated(&metadata.0, |(key, _)| key) {
        None => Ok(metadata),
        Some((key, _)) => Err(malformed("the metadata has this key twice").in_tensor(key)),
    }
}

pub(super) fn read_value(
    cursor: &mut Cursor<'_>,
    limits: &Limits,
) -> Result<MetaValue, FormatError> {
    let at = cursor.position();
    let kind = cursor.u32("value type")?;
    let what = "value";
    Ok(match kind {
        0 => MetaValue::U8(cursor.u8(what)?),
        1 => MetaValue::I8(i8::from_le_bytes(cursor.array(what)?)),
        2 => MetaValue::U16(u16::from_le_bytes(cursor.array(what)?)),
        3 => MetaValue::I16(i16::from_le_bytes(cursor.array(what)?)),
        4 => MetaValue::U32(cursor.u32(what)?),
        5 => MetaValue::I32(i32::from_le_bytes(cursor.array(what)?)),
        6 => MetaValue::F32(f32::from_le_bytes(cursor.array(what)?)),
        7 => MetaValue::Bool(boolean(cursor.u8(what)?).map_err(|e| e.at(at))?),
        8 => MetaValue::String(read_string(cursor, "string", limits.string_bytes)?.to_vec()),
        9 => MetaValue::Array(read_array(cursor, limits)?),
        10 => MetaValue::U64(cursor.u64(what)?),
        11 => MetaValue::I64(i64::from_le_bytes(cursor.array(what)?)),
        12 => MetaValue::F64(f64::from_le_bytes(cursor.array(what)?)),
        other => {
            return Err(malformed(format!("expected a value type up to 12, found {other}")).at(at));
        }
    })
}

fn boolean(byte: u8) -> Result<bool, FormatError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(malformed(format!("expected a bool, 0 or 1, found {other}"))),
    }
}

fn read_array(cursor: &mut Cursor<'_>, limits: &Limits) -> Result<MetaArray, FormatError> {
    let at = cursor.position();
    let kind = cursor.u32("element type")?;
    let count = cursor.u64("element count")?;
    if kind == 9 {
        let hint = "no known program writes or reads them";
        return Err(malformed("an array of arrays").at(at).hint(hint));
    }
    let size: u64 = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        other => {
            return Err(
                malformed(format!("expected an element type up to 12, found {other}")).at(at),
            );
        }
    };
    check_count(cursor, "array elements", count, limits.array_elements, size)?;
    if kind == 8 {
        let mut strings = Strings::default();
        for _ in 0..count {
            strings.push(read_string(cursor, "string", limits.string_bytes)?);
        }
        return Ok(MetaArray::String(strings));
    }
    // checked above: `count * size` bytes are there
    let bytes = cursor.take(count.saturating_mul(size), "array")?;
    Ok(match kind {
        0 => MetaArray::U8(bytes.to_vec()),
        1 => MetaArray::I8(numbers(bytes, i8::from_le_bytes)),
        2 => MetaArray::U16(numbers(bytes, u16::from_le_bytes)),
        3 => MetaArray::I16(numbers(bytes, i16::from_le_bytes)),
        4 => MetaArray::U32(numbers(bytes, u32::from_le_bytes)),
        5 => MetaArray::I32(numbers(bytes, i32::from_le_bytes)),
        6 => MetaArray::F32(numbers(bytes, f32::from_le_bytes)),
        7 => {
            let bools = bytes.iter().map(|&b| boolean(b)).collect::<Result<_, _>>();
            MetaArray::Bool(bools.map_err(|e| e.at(at))?)
        }
        10 => MetaArray::U64(numbers(bytes, u64::from_le_bytes)),
        11 => MetaArray::I64(numbers(bytes, i64::from_le_bytes)),
        _ => MetaArray::F64(numbers(bytes, f64::from_le_bytes)),
    })
}

fn numbers<T, const N: usize>(bytes: &[u8], from: fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|chunk| from(*chunk))
        .collect()
}

// ---- reading: tensors ----

pub(super) fn read_tensor_infos(
    cursor: &mut Cursor<'_>,
    count: u64,
    limits: &Limits,
) -> Result<Vec<RawInfo>, FormatError> {
    check_count(cursor, "tensors", count, limits.tensors, MIN_TENSOR_INFO)?;
    let mut infos = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let at = cursor.position();
        let name = read_text(cursor, "tensor name", limits.name_bytes)?;
        infos.push(read_tensor_info(cursor, name, at).map_err(|e| e.at(at))?);
    }
    match repeated(&infos, |info: &RawInfo| &info.0.name) {
        None => Ok(infos),
        Some(info) => Err(malformed("the file has this tensor twice")
            .in_tensor(&info.0.name)
            .at(info.at())),
    }
}

fn read_tensor_info(
    cursor: &mut Cursor<'_>,
    name: String,
    at: u64,
) -> Result<RawInfo, FormatError> {
    match read_placed(cursor) {
        Ok((shape, id, offset)) => Ok(RawInfo(TensorInfo {
            name,
            encoding: Encoding::Unknown(id),
            shape,
            part: 0,
            offset,
            len: at,
        })),
        Err(e) => Err(e.in_tensor(&name)),
    }
}

/// Shape (outermost first), type and offset.
pub(super) fn read_placed(cursor: &mut Cursor<'_>) -> Result<(Vec<usize>, u32, u64), FormatError> {
    let dims = cursor.u32("number of dimensions")?;
    if !(1..=MAX_DIMS).contains(&dims) {
        return Err(malformed(format!(
            "expected 1 to {MAX_DIMS} dimensions, found {dims}"
        )));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    let mut elements = 1u64;
    for _ in 0..dims {
        let size = cursor.u64("size")?;
        let product = elements.checked_mul(size).filter(|&n| n <= i64::MAX as u64);
        match (product, i64::try_from(size), usize::try_from(size)) {
            (Some(product), Ok(_), Ok(size)) => {
                elements = product;
                shape.push(size);
            }
            _ => {
                return Err(malformed(format!(
                    "size {size} brings it past 2^63 elements"
                )));
            }
        }
    }
    // innermost first in the file, outermost first everywhere else
    shape.reverse();
    let id = cursor.u32("type")?;
    let offset = cursor.u64("offset")?;
    Ok((shape, id, offset))
}

/// What the type ids of the tensors mean.
fn encodings(
    raw: &[RawInfo],
    data_len: u64,
    alignment: u64,
    layout: Option<&'static dyn Packing>,
) -> Result<BTreeMap<u32, Encoding>, FormatError> {
    let placed = raw.iter().map(|info| Placed {
        name: &info.0.name,
        shape: &info.0.shape,
        id: info.id(),
        offset: info.0.offset,
    });
    meanings(placed, data_len, alignment, layout)
}

/// Turns infos into checked ranges of the file.
fn lay_out(
    raw: Vec<RawInfo>,
    part: usize,
    header_end: u64,
    alignment: u64,
    file_len: u64,
    layout: Option<&'static dyn Packing>,
) -> Result<Vec<TensorInfo>, FormatError> {
    let data_start = header_end
        .checked_next_multiple_of(alignment)
        .ok_or_else(|| malformed(format!("alignment {alignment} overflows the file")))?;
    let Some(data_len) = file_len.checked_sub(data_start) else {
        // a part of a split model may end with its metadata
        if raw.is_empty() {
            return Ok(Vec::new());
        }
        let message = format!("expected data at {data_start}, file ends at {file_len}");
        return Err(FormatError::new(ErrorCode::Truncated, message));
    };
    let encodings = encodings(&raw, data_len, alignment, layout)?;
    let mut raw = raw;
    let mut nexts: Vec<Option<u64>> = raw.iter().skip(1).map(|next| Some(next.0.offset)).collect();
    nexts.push(None);
    let mut expected = 0u64;
    for (info, next) in raw.iter_mut().zip(nexts) {
        let encoding = encodings.get(&info.id()).copied();
        let encoding = encoding.unwrap_or(Encoding::Unknown(info.id()));
        let at = info.at();
        let info = &mut info.0;
        let (name, shape, offset) = (&info.name, &info.shape, info.offset);
        // below 2^63, as was checked when it was read
        let elements = shape
            .iter()
            .fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let place = |e: FormatError| e.in_tensor(name).at(at);
        if offset != expected {
            let what = match offset.checked_rem(alignment) {
                Some(0) if offset < expected => "overlaps the tensor before",
                Some(0) => "leaves a gap",
                _ => "is not aligned",
            };
            let message = format!("{what}: expected its data at {expected}, found {offset}");
            let hint = "llama.cpp refuses such files too: tensors must follow each other, padded";
            return Err(place(malformed(message).hint(hint)));
        }
        // `offset` was accepted, so it is aligned and at most `data_len` unless nothing is there
        let absolute = data_start.saturating_add(offset);
        let truncated = |len: u64| {
            let message = format!("needs {len} bytes at {absolute}, file ends at {file_len}");
            place(FormatError::new(ErrorCode::Truncated, message))
        };
        let len = match stored_len(encoding, shape).map_err(place)? {
            Some(len) => len,
            None => {
                let until = next.unwrap_or(data_len);
                match until.checked_sub(offset) {
                    Some(0) if elements > 0 => return Err(truncated(1)),
                    Some(len) => len,
                    None if next.is_none() => return Err(truncated(0)),
                    None => {
                        let message = format!("the next tensor begins before it, at {until}");
                        return Err(place(malformed(message)));
                    }
                }
            }
        };
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= data_len)
            .ok_or_else(|| truncated(len))?;
        expected = match (encoding, next) {
            // any aligned place will do, its length is what lies between
            (Encoding::Foreign(foreign), Some(next))
                if !foreign.has_size() && next.checked_rem(alignment) == Some(0) =>
            {
                next
            }
            (Encoding::Unknown(_), Some(next)) if next.checked_rem(alignment) == Some(0) => next,
            // the last tensor need not be padded
            _ => end
                .checked_next_multiple_of(alignment)
                .ok_or_else(|| truncated(len))?,
        };
        (info.encoding, info.part, info.offset, info.len) = (encoding, part, absolute, len);
    }
    Ok(raw.into_iter().map(|info| info.0).collect())
}
