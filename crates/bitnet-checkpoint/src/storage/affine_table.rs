//! Embeddings and output heads of MLX checkpoints in wider codes: numbers, not trits
//! (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a number is `scale * code + bias` of what is stored, the product and then the sum rounded to f32,
//! whatever the type of the scales. Nothing is rounded to that type.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::affine::{affine_tensor, check_signs, is_quantized, module};
use super::contract::Asked;
use super::tensors::{Tensors, error};
use super::values;
use crate::family::{self, AffineForm};
use bitnet_formats::{Bytes, Encoding, ErrorCode, FormatError, PlainType, TensorFile, TensorInfo};
use rayon::prelude::*;
use std::ops::Range;

/// Bits of a word of codes.
const WORD: usize = 32;

/// How the numbers of a table are coded.
#[derive(Debug, Clone)]
pub(crate) struct AffineTable {
    bits: usize,
    group: usize,
    rows: usize,
    cols: usize,
    pub(crate) scales: TensorInfo,
    pub(crate) biases: TensorInfo,
}

/// The coding of a table, if it has one of more bits than trits need.
pub(crate) fn affine_table(
    asked: &Asked<'_>,
    tensors: &mut Tensors<'_>,
) -> Result<Option<AffineTable>, FormatError> {
    let (info, rows, cols) = (asked.info, asked.rows, asked.cols);
    let Some(said) = &asked.marks.said else {
        return Ok(None);
    };
    if asked.slot.is_ternary() || !is_quantized(asked.marks.file, info) {
        return Ok(None);
    }
    let form = family::affine_form(said.config, module(&info.name), true)
        .map_err(|e| e.in_file(said.path))?;
    let Some(AffineForm { bits, group }) = form.filter(|form| !form.is_trits()) else {
        return Ok(None);
    };
    if info.encoding != Encoding::Plain(PlainType::U32) {
        let message = format!("expected u32 codes, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message).hint(
            "if the module is not quantized, set quantization.MODULE to false in config.json",
        ));
    }
    let words = [rows, cols.saturating_mul(bits) / WORD];
    if !cols.is_multiple_of(group) || info.shape != words {
        let message = format!(
            "expected shape {words:?} ({rows} x {cols} of {bits} bits in groups of {group}), found {:?}",
            info.shape
        );
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    check_signs(asked, tensors)?;
    let shape = [rows, cols.checked_div(group).unwrap_or(0)];
    Ok(Some(AffineTable {
        bits,
        group,
        rows,
        cols,
        scales: affine_tensor(asked, tensors, "scales", &shape)?,
        biases: affine_tensor(asked, tensors, "biases", &shape)?,
    }))
}

impl AffineTable {
    /// How it is stored, for people.
    pub(crate) fn describe(&self) -> String {
        format!("mlx_{}bit", self.bits)
    }

    /// The rows of a table whose codes are `info`.
    pub(crate) fn open(
        &self,
        file: &TensorFile,
        info: &TensorInfo,
    ) -> Result<CodedRows, FormatError> {
        let numbers = |info: &TensorInfo| match info.encoding {
            Encoding::Plain(plain) => {
                values::small_values(plain, &file.read(info)?).map_err(|e| e.in_tensor(&info.name))
            }
            _ => Ok(Vec::new()),
        };
        Ok(CodedRows {
            bits: self.bits,
            group: self.group.max(1),
            rows: self.rows,
            cols: self.cols,
            codes: file.read(info)?,
            scales: numbers(&self.scales)?,
            biases: numbers(&self.biases)?,
        })
    }
}

/// Rows of a table in codes, each made of them when it is asked for.
#[derive(Debug, Clone)]
pub struct CodedRows {
    bits: usize,
    group: usize,
    rows: usize,
    cols: usize,
    codes: Bytes,     // (rows, cols * bits / 8)
    scales: Vec<f32>, // (rows, cols / group)
    biases: Vec<f32>, // as the scales
}

impl CodedRows {
    /// The codes as they lie in the file.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// Writes the numbers of one row into `out`, as many as it has columns. They may be NaN or infinite.
    ///
    /// # Errors
    /// A row that the table does not have; an `out` of another length.
    pub fn row(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let groups = self.cols.checked_div(self.group).unwrap_or(0);
        let bytes = self.cols.saturating_mul(self.bits) / 8;
        let parts = (
            part(&self.codes, row, bytes),
            part(&self.scales, row, groups),
            part(&self.biases, row, groups),
        );
        let (Some(codes), Some(scales), Some(biases)) = parts else {
            let message = format!("expected a row below {}, found {row}", self.rows);
            return Err(FormatError::new(ErrorCode::WrongShape, message));
        };
        if out.len() != self.cols {
            let message = format!("expected {} columns, found {}", self.cols, out.len());
            return Err(FormatError::new(ErrorCode::WrongShape, message));
        }
        unpack(codes, self.bits, out);
        let scales = scales.iter().zip(biases);
        for (out, (scale, bias)) in out.chunks_mut(self.group).zip(scales) {
            for number in out {
                *number = scale * *number + bias;
            }
        }
        Ok(())
    }

    /// How many bytes all numbers have as f32.
    pub(crate) fn widened_len(&self) -> u64 {
        (self.rows as u64)
            .saturating_mul(self.cols as u64)
            .saturating_mul(size_of::<f32>() as u64)
    }

    /// A range of the bytes that all numbers have as f32.
    pub(crate) fn widened(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
        let row_bytes = self.cols.saturating_mul(size_of::<f32>()).max(1);
        let wide = row_bytes as u64;
        // whole rows around it
        let first = range.start.checked_div(wide).unwrap_or(0);
        let rows = range.end.div_ceil(wide).saturating_sub(first);
        let len = rows.checked_mul(wide);
        let Some(len) = len.and_then(|len| isize::try_from(len).ok()) else {
            let cols = self.cols;
            let message = format!("{rows} x {cols} numbers are more than this process can address");
            return Err(FormatError::new(ErrorCode::LimitExceeded, message));
        };
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.unsigned_abs()];
        bytes
            .par_chunks_mut(row_bytes)
            .enumerate()
            .try_for_each_init(
                || vec![0.0; self.cols],
                |wide, (row, bytes)| {
                    self.row(first.saturating_add(row), wide)?;
                    for (to, number) in bytes.chunks_exact_mut(size_of::<f32>()).zip(wide) {
                        to.copy_from_slice(&number.to_le_bytes());
                    }
                    Ok::<_, FormatError>(())
                },
            )?;
        let skipped = range.start.checked_rem(wide).unwrap_or(0) as usize;
        let asked = range.end.saturating_sub(range.start) as usize;
        let bytes = Bytes::from(bytes);
        let part = bytes.slice(skipped..skipped.saturating_add(asked));
        Ok(part.unwrap_or_default())
    }
}

/// Part `at` of so many elements each.
fn part<T>(all: &[T], at: usize, len: usize) -> Option<&[T]> {
    let start = at.checked_mul(len)?;
    all.get(start..start.checked_add(len)?)
}

/// The codes of a row: a stream of bits, the first in the lowest.
fn unpack(codes: &[u8], bits: usize, out: &mut [f32]) {
    if bits == 4 {
        for (pair, byte) in out.chunks_exact_mut(2).zip(codes) {
            if let [low, high] = pair {
                (*low, *high) = (f32::from(byte & 15), f32::from(byte.wrapping_shr(4)));
            }
        }
        return;
    }
    let mask = u16::MAX.wrapping_shr(16u32.saturating_sub(bits as u32));
    for (at, out) in out.iter_mut().enumerate() {
        let bit = at.saturating_mul(bits);
        let byte = |at: usize| codes.get(at).copied().unwrap_or(0);
        let word = u16::from_le_bytes([byte(bit / 8), byte((bit / 8).saturating_add(1))]);
        *out = f32::from(word.wrapping_shr((bit % 8) as u32) & mask);
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    /// Codes packed one bit at a time.
    fn packed(codes: &[u8], bits: usize) -> Vec<u8> {
        let mut bytes = vec![0; codes.len() * bits / 8];
        for (at, code) in codes.iter().enumerate() {
            for bit in 0..bits {
                let place = at * bits + bit;
                bytes[place / 8] |= (code >> bit & 1) << (place % 8);
            }
        }
        bytes
    }

    #[test]
    fn codes_of_every_width_are_numbers() {
        for bits in [3, 4, 5, 6, 8] {
            let codes: Vec<u8> = (0..128u32).map(|n| (n * 37 % (1 << bits)) as u8).collect();
            let table = CodedRows {
                bits,
                group: 32,
                rows: 2,
                cols: 64,
                codes: Bytes::from(packed(&codes, bits)),
                scales: vec![0.5, 0.1, -3.0, 0.25],
                biases: vec![-1.0, 0.3, 7.0, 0.0],
            };
            let mut out = vec![0.0; 64];
            for row in 0..2 {
                table.row(row, &mut out).unwrap();
                for (col, number) in out.iter().enumerate() {
                    let group = 2 * row + col / 32;
                    let code = f32::from(codes[64 * row + col]);
                    let expected = table.scales[group] * code + table.biases[group];
                    assert_eq!(*number, expected, "{bits} bits, row {row}, column {col}");
                }
                let bytes: Vec<u8> = out.iter().flat_map(|n| n.to_le_bytes()).collect();
                let part = |range: Range<u64>| table.widened(range).unwrap();
                let start = 256 * row as u64;
                assert_eq!(part(start..start + 256), bytes);
                assert_eq!(part(0..512)[256 * row..256 * (row + 1)], bytes);
                assert_eq!(part(start + 8..start + 20), bytes[8..20]);
            }
            assert!(table.row(2, &mut out).is_err() && table.row(0, &mut [0.0]).is_err());
        }
    }
}
