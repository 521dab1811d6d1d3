//! Matrices that share a tensor: experts stacked one below the other, gate above up.
//!
//! Invariant: from here on some of the rows of a tensor are a tensor like any other: its bytes are those of these rows
//! and of no others.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::tensors::error;
use crate::family::Shared;
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorInfo, UnitRows};

/// Rows of a tensor that holds several matrices, as a tensor of their own.
///
/// # Errors
/// Another shape; a packing whose rows do not stand by themselves.
pub(crate) fn matrix(
    info: &TensorInfo,
    shared: &Shared,
    rows: usize,
) -> Result<TensorInfo, FormatError> {
    let wrong = |message: String| Err(error(ErrorCode::WrongShape, info, message));
    let Some((cols, leading)) = info.shape.split_last() else {
        return wrong("expected several matrices, found one number".to_owned());
    };
    if leading != shared.leading {
        let expected = [&shared.leading[..], &[*cols]].concat();
        return wrong(format!(
            "expected shape {expected:?}, found {:?}",
            info.shape
        ));
    }
    let all: usize = leading.iter().product();
    if let Encoding::Ternary(packing) = info.encoding {
        let unit = match packing.unit_rows(all, *cols) {
            UnitRows::Consecutive(unit) => unit,
            UnitRows::Quarters | UnitRows::Mixed => 0,
        };
        let stands = |rows: usize| unit > 0 && rows.is_multiple_of(unit);
        if !packing.holds_scales()
            || packing.unread_tail() > 0
            || !stands(rows)
            || !stands(shared.first)
        {
            let message = format!(
                "expected a packing whose rows stand by themselves in a tensor of several matrices, found {}",
                packing.name()
            );
            return Err(error(ErrorCode::WrongType, info, message));
        }
    }
    let row = info.len.checked_div(all as u64).unwrap_or(0);
    if row.saturating_mul(all as u64) != info.len {
        return wrong(format!("{} bytes are no {all} rows", info.len));
    }
    let before = (shared.first as u64).saturating_mul(row);
    Ok(TensorInfo {
        shape: vec![rows, *cols],
        offset: info.offset.saturating_add(before),
        len: (rows as u64).saturating_mul(row),
        ..info.clone()
    })
}
