//! Dense tensors, some rows at a time.
//!
//! Invariant: rows are whole blocks of every encoding, so a block of rows is a range of bytes; what a tensor lacks is
//! an empty range, which no number of values fits.

use bitnet_checkpoint::{DenseReader, DenseTensor};
use bitnet_formats::FormatError;
use std::ops::Range;

/// Elements widened at a time.
const BLOCK: usize = 1 << 20;

/// Rows of this width that are widened at a time; at least one.
pub(crate) fn block_rows(width: usize) -> usize {
    (BLOCK / width.max(1)).max(1)
}

/// The bytes of some rows; rows are whole blocks of every encoding.
pub(crate) fn row_bytes<'t>(
    tensor: &'t DenseTensor<'_>,
    rows: usize,
    start: usize,
    end: usize,
) -> &'t [u8] {
    let row = tensor.bytes.len() / rows.max(1);
    tensor.bytes.get(start * row..end * row).unwrap_or(&[])
}

/// Some rows of a tensor that is read in pieces. The values are finite.
///
/// # Errors
/// As [`DenseReader::read`].
pub(crate) fn read_rows<'a>(
    reader: &DenseReader<'a>,
    rows: usize,
    some: Range<usize>,
) -> Result<DenseTensor<'a>, FormatError> {
    let row = reader.len().checked_div(rows as u64).unwrap_or(0);
    let at = |rows: usize| row.saturating_mul(rows as u64);
    reader.read(at(some.start)..at(some.end))
}

/// The values of these bytes of a tensor.
///
/// # Errors
/// Bytes that are not as many values.
pub(crate) fn widen(
    tensor: &DenseTensor<'_>,
    bytes: &[u8],
    values: usize,
) -> Result<Vec<f32>, FormatError> {
    let mut out = vec![0.0; values];
    tensor.widen(bytes, &mut out)?;
    Ok(out)
}
