//! One entry of the header, checked.
//!
//! Invariant: an entry that passes lies inside the file and is as long as its shape and type need.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::encoding::{Encoding, PlainType};
use crate::error::{ErrorCode, FormatError};
use crate::tensor_file::TensorInfo;
use serde::Deserialize;
use std::borrow::Cow;

/// The key of the header that is not a tensor.
pub(super) const METADATA: &str = "__metadata__";

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

pub(super) fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, message)
}

/// Where the tensors of a file lie.
pub(super) struct Data {
    /// The number of the file.
    pub(super) part: usize,
    /// Offset of the first byte behind the header.
    pub(super) start: u64,
    /// Bytes behind the header.
    pub(super) len: u64,
}

/// A tensor as the header spells it.
#[derive(Debug, Deserialize)]
pub(super) struct Entry<'h> {
    #[serde(borrow)]
    pub(super) dtype: Cow<'h, str>,
    pub(super) shape: Vec<u64>,
    pub(super) data_offsets: (u64, u64),
}

impl Entry<'_> {
    pub(super) fn check(self, name: String, data: &Data) -> Result<TensorInfo, FormatError> {
        let (part, data_start, data_len) = (data.part, data.start, data.len);
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
        let mut shape = Vec::with_capacity(self.shape.len());
        for size in self.shape {
            shape.push(usize::try_from(size).map_err(|_| {
                malformed("a size overflows this machine's address").in_tensor(&name)
            })?);
        }
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
