//! Codes of a packing, and the scales in them or beside them: what several rows share.
//!
//! Invariant: the result does not depend on how many threads read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::beside;
use super::contract::{LinearSource, Stored, UnreadPart};
use bitnet_formats::{ErrorCode, FormatError, PackedTensor, Packing, UnreadBits, packing_by_name};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;

/// What a row answers whose bytes are codes of its packing, with the scales in them or beside them: the
/// functions of this module.
macro_rules! answers {
    () => {
        fn describe(&self, linear: &$crate::storage::contract::LinearSource) -> String {
            $crate::storage::codes::describe(linear)
        }

        fn read(
            &self,
            stored: &$crate::storage::contract::Stored<'_>,
        ) -> Result<(Vec<i8>, bitnet_ternary::Scales), bitnet_formats::FormatError> {
            $crate::storage::codes::read(stored)
        }

        fn scales(
            &self,
            stored: &$crate::storage::contract::Stored<'_>,
        ) -> Result<Option<bitnet_ternary::Scales>, bitnet_formats::FormatError> {
            $crate::storage::codes::scales(stored)
        }

        fn one_scale(&self, stored: &$crate::storage::contract::Stored<'_>) -> Option<f32> {
            $crate::storage::codes::one_scale(stored)
        }

        fn weight_scale<'a>(
            &self,
            linear: &'a $crate::storage::contract::LinearSource,
        ) -> Option<(
            &'a bitnet_formats::TensorInfo,
            $crate::family::ScaleDirection,
        )> {
            linear.outside()
        }
    };
}
pub(super) use answers;

/// Columns of a row that stands for any: a multiple of every block.
const SAMPLE: usize = 256;

/// Bytes of a packed matrix, without scales beside them.
pub(crate) fn packed(bytes: &[u8], rows: usize, cols: usize) -> PackedTensor<'_> {
    PackedTensor {
        bytes,
        rows,
        cols,
        outside: None,
    }
}

/// Rows per piece of parallel work: large enough to be worth a hand-over, small enough for L2.
pub(crate) fn rows_per_piece(cols: usize) -> usize {
    const TRITS: usize = 1 << 18;
    TRITS.checked_div(cols).map_or(TRITS, |rows| rows.max(1))
}

/// Unpacks a whole matrix in parallel on the current rayon pool.
pub(super) fn unpack(
    packing: &'static dyn Packing,
    tensor: PackedTensor<'_>,
    scales: &Scales,
) -> Result<Vec<i8>, FormatError> {
    let tensor = PackedTensor {
        outside: Some(scales),
        ..tensor
    };
    let mut trits = vec![0; tensor.rows.saturating_mul(tensor.cols)];
    let step = rows_per_piece(tensor.cols);
    trits
        .par_chunks_mut(step.saturating_mul(tensor.cols.max(1)))
        .enumerate()
        .try_for_each(|(i, out)| packing.unpack_rows(&tensor, i.saturating_mul(step), out))?;
    Ok(trits)
}

/// The packing of this name, as the registry has it.
pub(super) fn registered(name: &str) -> Result<&'static dyn Packing, FormatError> {
    packing_by_name(name)
        .ok_or_else(|| FormatError::new(ErrorCode::WrongType, format!("no packing `{name}`")))
}

fn packing(linear: &LinearSource) -> Result<&'static dyn Packing, FormatError> {
    linear.packing.ok_or_else(|| {
        FormatError::new(ErrorCode::WrongType, "expected packed bytes, found numbers")
    })
}

/// The name of the packing.
pub(super) fn describe(linear: &LinearSource) -> String {
    linear
        .packing
        .map_or_else(String::new, |packing| packing.name().to_owned())
}

/// Trits and scales of codes as they lie.
pub(super) fn read(stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
    let linear = stored.linear;
    read_bytes(stored, packing(linear)?, &stored.bytes()?)
}

/// Trits and scales of codes that were taken out of the tensor.
pub(super) fn read_bytes(
    stored: &Stored<'_>,
    packing: &'static dyn Packing,
    bytes: &[u8],
) -> Result<(Vec<i8>, Scales), FormatError> {
    let tensor = packed(bytes, stored.linear.rows, stored.linear.cols);
    let scales = beside::packed_scales(stored, packing, &tensor)?;
    Ok((unpack(packing, tensor, &scales)?, scales))
}

/// The scales of codes as they lie.
pub(super) fn scales(stored: &Stored<'_>) -> Result<Option<Scales>, FormatError> {
    let linear = stored.linear;
    let bytes = stored.bytes()?;
    let tensor = packed(&bytes, linear.rows, linear.cols);
    beside::packed_scales(stored, packing(linear)?, &tensor).map(Some)
}

/// The scale beside the codes, or the one that their packing keeps behind them: block scales lie all over the
/// tensor.
pub(super) fn one_scale(stored: &Stored<'_>) -> Option<f32> {
    let linear = stored.linear;
    if linear.outside().is_some() {
        return beside::one_scale(stored);
    }
    let packing = linear.packing?;
    let any = TernaryMatrix::new(1, SAMPLE, vec![1; SAMPLE], Scales::PerTensor(1.0)).ok()?;
    if packing.trailer(&any).is_empty() {
        return None;
    }
    let bytes = stored.bytes().ok()?;
    let tensor = packed(&bytes, linear.rows, linear.cols);
    match packing.scales(&tensor).ok()? {
        Scales::PerTensor(scale) => Some(scale),
        _ => None,
    }
}

/// What lies behind the scale of a packing.
pub(super) fn unread(linear: &LinearSource) -> Option<UnreadPart> {
    let info = &linear.info;
    let end = info.offset.saturating_add(info.len);
    let tail = end.saturating_sub(linear.packing?.unread_tail() as u64)..end;
    let why = "behind the scale, written as zeros and never read";
    (!tail.is_empty()).then_some((tail, UnreadBits::All, why))
}
