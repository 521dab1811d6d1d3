//! What I2_S, TL1 and TL2 share: one f32 scale behind the codes of a matrix.
//!
//! Invariant: the last 32 bytes of a packed matrix are the scale and 28 bytes that are written as zeros and never read.

use super::{PackedTensor, checked_scale, one_scale};
use crate::error::FormatError;
use bitnet_ternary::{Scales, TernaryMatrix};

/// Bytes behind the codes.
pub(super) const TRAILER: usize = 32;
/// How many of them are never read.
pub(super) const UNREAD: usize = TRAILER - size_of::<f32>();

/// Length of `n` weights of 2 bits with the trailer.
pub(super) fn len_of_quads(n: u64) -> u64 {
    (n / 4).saturating_add(TRAILER as u64)
}

/// The bytes behind the codes of a matrix that passed the packing's `check_scales`.
pub(super) fn trailer(matrix: &TernaryMatrix, name: &str) -> Vec<u8> {
    let scale = one_scale(matrix, name).unwrap_or(f32::NAN);
    let mut out = scale.to_le_bytes().to_vec();
    out.resize(TRAILER, 0);
    out
}

/// The scale behind the codes.
pub(super) fn stored_scale(tensor: &PackedTensor<'_>, len: u64) -> Result<Scales, FormatError> {
    tensor.check_len(len)?;
    let (codes, trailer) = tensor.bytes.split_last_chunk::<TRAILER>().unzip();
    let scale = trailer.and_then(|trailer| trailer.first_chunk());
    let scale = f32::from_le_bytes(scale.copied().unwrap_or_default());
    let at = codes.unwrap_or_default().len();
    let place = || format!("scale at byte {at} of the tensor");
    checked_scale(scale, place).map(Scales::PerTensor)
}
