//! Laying out a GGUF file.
//!
//! Invariant: what is laid out here, `read_part` accepts, and so does llama.cpp's reader.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::resolve::{Placed, meanings, recorded_layout};
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, LAYOUT_KEY, MAGIC, MAX_DIMS, MAX_KEY_BYTES, dense_len,
    matrix, stored_len, type_id,
};
use crate::container::{Header, PlannedTensor, WritePlan};
use crate::encoding::Encoding;
use crate::error::{ErrorCode, FormatError};
use crate::tensor_file::{MetaArray, MetaValue};
use std::collections::HashSet;

/// The version we write; 2 has the same layout and is read as well.
pub(super) const VERSION: u32 = 3;
/// Longer alignments than this have no use, and would let a plan ask for gigabytes of zeros.
const MAX_WRITTEN_ALIGNMENT: u64 = 1 << 16;
/// llama.cpp's longest tensor name (64 with the terminator).
const MAX_WRITTEN_NAME: usize = 63;

pub(super) fn write_header(plan: &WritePlan) -> Result<Header, FormatError> {
    let alignment = match plan.metadata.get(ALIGNMENT_KEY) {
        None => DEFAULT_ALIGNMENT,
        Some(&MetaValue::U32(a))
            if a.is_power_of_two() && u64::from(a) <= MAX_WRITTEN_ALIGNMENT =>
        {
            a.into()
        }
        Some(other) => {
            let message = format!(
                "expected a u32 power of two up to {MAX_WRITTEN_ALIGNMENT}, found {other:?}"
            );
            return Err(FormatError::new(ErrorCode::Usage, message).in_tensor(ALIGNMENT_KEY));
        }
    };
    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(plan.tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(plan.metadata.0.len() as u64).to_le_bytes());

    let mut keys = HashSet::new();
    for (key, value) in &plan.metadata.0 {
        if key.is_empty() || key.len() as u64 > MAX_KEY_BYTES || !keys.insert(key) {
            let message = format!("expected each key once, of 1 to {MAX_KEY_BYTES} bytes");
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message).in_tensor(key));
        }
        push_string(&mut out, key.as_bytes());
        push_value(&mut out, value);
    }

    let mut starts = Vec::with_capacity(plan.tensors.len());
    let mut ids = Vec::with_capacity(plan.tensors.len());
    let mut start = 0u64;
    let mut names = HashSet::new();
    for tensor in &plan.tensors {
        let place = |e: FormatError| e.in_tensor(&tensor.name);
        if !names.insert(tensor.name.as_str()) {
            let message = "the plan has this tensor twice";
            return Err(place(FormatError::new(
                ErrorCode::TargetCannotHold,
                message,
            )));
        }
        let id = push_tensor_info(&mut out, tensor, start).map_err(place)?;
        starts.push(start);
        ids.push(id);
        start = start
            .checked_add(tensor.len)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .filter(|&end| end <= i64::MAX as u64)
            .ok_or_else(|| {
                place(FormatError::new(
                    ErrorCode::TargetCannotHold,
                    "the file passes 2^63 bytes",
                ))
            })?;
    }
    check_meanings(plan, &starts, &ids, alignment, start)?;
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    let data_start = out.len() as u64;
    // `start` is below 2^63, so none of these can wrap
    let offsets = starts
        .into_iter()
        .map(|s| s.saturating_add(data_start))
        .collect();
    Ok(Header {
        bytes: out,
        offsets,
        total: data_start.saturating_add(start),
        frames: None,
    })
}

/// Refuses a file in which a type id that several layouts share would not be read as what is written.
fn check_meanings(
    plan: &WritePlan,
    starts: &[u64],
    ids: &[u32],
    alignment: u64,
    data_len: u64,
) -> Result<(), FormatError> {
    let tensors = plan.tensors.iter().zip(starts).zip(ids);
    let placed = tensors.clone().map(|((tensor, start), id)| Placed {
        name: &tensor.name,
        shape: &tensor.shape,
        id: *id,
        offset: *start,
    });
    let layout = recorded_layout(&plan.metadata)?;
    let hint = || format!("name the layout in the metadata, under {LAYOUT_KEY}");
    let read = meanings(placed, data_len, alignment, layout).map_err(|mut e| {
        e.code = ErrorCode::TargetCannotHold;
        e.hint = Some(hint());
        e
    })?;
    for ((tensor, _), id) in tensors {
        let as_read = read.get(id).copied().unwrap_or(tensor.encoding);
        if stored_len(as_read, &tensor.shape).ok().flatten() != Some(tensor.len) {
            let message = format!(
                "would be read as {}, expected {}",
                as_read.name(),
                tensor.encoding.name()
            );
            let error = FormatError::new(ErrorCode::TargetCannotHold, message);
            return Err(error.in_tensor(&tensor.name).hint(hint()));
        }
    }
    Ok(())
}

/// Writes a tensor's info and returns its type id.
fn push_tensor_info(
    out: &mut Vec<u8>,
    tensor: &PlannedTensor,
    start: u64,
) -> Result<u32, FormatError> {
    let cannot = |message: String| FormatError::new(ErrorCode::TargetCannotHold, message);
    let name_len = tensor.name.len();
    if name_len == 0 || name_len > MAX_WRITTEN_NAME {
        let message = format!("expected a name of 1 to {MAX_WRITTEN_NAME} bytes, found {name_len}");
        return Err(cannot(message));
    }
    if tensor.shape.is_empty() || tensor.shape.len() > MAX_DIMS as usize {
        let found = tensor.shape.len();
        return Err(cannot(format!(
            "expected 1 to {MAX_DIMS} dimensions, found {found}"
        )));
    }
    let (id, needed) = match tensor.encoding {
        Encoding::Ternary(packing) => {
            let id = packing.gguf_type().filter(|_| packing.is_writable());
            let id = id.ok_or_else(|| cannot(format!("gguf has no type {}", packing.name())))?;
            let (rows, cols) = matrix(&tensor.shape)?;
            (id, packing.packed_len(rows, cols)?)
        }
        encoding => {
            let id = type_id(encoding)
                .ok_or_else(|| cannot(format!("gguf has no type {}", encoding.name())))?;
            let len = dense_len(encoding, &tensor.shape);
            (id, len.map_err(|e| cannot(e.message))?)
        }
    };
    if needed != tensor.len {
        let message = format!(
            "{} {:?} takes {needed} bytes, the plan says {}",
            tensor.encoding.name(),
            tensor.shape,
            tensor.len
        );
        return Err(FormatError::new(ErrorCode::WrongShape, message));
    }
    push_string(out, tensor.name.as_bytes());
    out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
    for &size in tensor.shape.iter().rev() {
        out.extend_from_slice(&(size as u64).to_le_bytes());
    }
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&start.to_le_bytes());
    Ok(id)
}

fn push_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn push_value(out: &mut Vec<u8>, value: &MetaValue) {
    let mut put = |kind: u32, bytes: &[u8]| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        MetaValue::U8(v) => put(0, &v.to_le_bytes()),
        MetaValue::I8(v) => put(1, &v.to_le_bytes()),
        MetaValue::U16(v) => put(2, &v.to_le_bytes()),
        MetaValue::I16(v) => put(3, &v.to_le_bytes()),
        MetaValue::U32(v) => put(4, &v.to_le_bytes()),
        MetaValue::I32(v) => put(5, &v.to_le_bytes()),
        MetaValue::F32(v) => put(6, &v.to_le_bytes()),
        MetaValue::Bool(v) => put(7, &[u8::from(*v)]),
        MetaValue::String(v) => {
            put(8, &[]);
            push_string(out, v);
        }
        MetaValue::Array(v) => {
            put(9, &[]);
            push_array(out, v);
        }
        MetaValue::U64(v) => put(10, &v.to_le_bytes()),
        MetaValue::I64(v) => put(11, &v.to_le_bytes()),
        MetaValue::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn push_array(out: &mut Vec<u8>, array: &MetaArray) {
    fn all<T: Copy, const N: usize>(
        out: &mut Vec<u8>,
        kind: u32,
        items: &[T],
        to: fn(T) -> [u8; N],
    ) {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&(items.len() as u64).to_le_bytes());
        items
            .iter()
            .for_each(|&item| out.extend_from_slice(&to(item)));
    }
    match array {
        MetaArray::U8(v) => all(out, 0, v, u8::to_le_bytes),
        MetaArray::I8(v) => all(out, 1, v, i8::to_le_bytes),
        MetaArray::U16(v) => all(out, 2, v, u16::to_le_bytes),
        MetaArray::I16(v) => all(out, 3, v, i16::to_le_bytes),
        MetaArray::U32(v) => all(out, 4, v, u32::to_le_bytes),
        MetaArray::I32(v) => all(out, 5, v, i32::to_le_bytes),
        MetaArray::F32(v) => all(out, 6, v, f32::to_le_bytes),
        MetaArray::Bool(v) => all(out, 7, v, |b| [u8::from(b)]),
        MetaArray::U64(v) => all(out, 10, v, u64::to_le_bytes),
        MetaArray::I64(v) => all(out, 11, v, i64::to_le_bytes),
        MetaArray::F64(v) => all(out, 12, v, f64::to_le_bytes),
        MetaArray::String(v) => {
            out.extend_from_slice(&8u32.to_le_bytes());
            out.extend_from_slice(&(v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| push_string(out, s));
        }
    }
}
