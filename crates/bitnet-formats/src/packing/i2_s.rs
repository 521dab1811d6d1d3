//! `i2_s`: bitnet.cpp's 2-bit codes with one f32 scale behind them (`formats/packing/i2_s.md`).
//!
//! Invariant: `n / 4` bytes of codes (trit + 1, first run of a block in the **top** bits), then the
//! f32 scale, then 28 bytes that are written as zeros and never read. Three layouts share the type
//! id and nothing in a file tells them apart: `i2_s` (blocks of 128) is written and assumed;
//! `i2_s-arm64` (blocks of 64) and `i2_s-rows4` (four rows to a byte) are read when asked for.

use super::trailer::{TRAILER, UNREAD, len_of_quads, stored_scale, trailer};
use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, code, decode_runs, div_rem, elements,
    encode_runs, one_scale, runs, runs_mut, unpack_pair,
};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};

/// A layout of the flattened matrix: blocks of `BLOCK` trits in `BYTES = BLOCK / 4` bytes.
#[derive(Debug)]
pub(super) struct Flat<const BLOCK: usize, const BYTES: usize> {
    name: &'static str,
    is_writable: bool,
}

/// The 128/32 layout: every x86 writer, every Python writer, the published files.
pub(super) static I2S: Flat<128, 32> = Flat {
    name: "i2_s",
    is_writable: true,
};
/// The 64/16 layout of quantizers compiled for ARM since 2025-11-19.
pub(super) static I2S_ARM64: Flat<64, 16> = Flat {
    name: "i2_s-arm64",
    is_writable: false,
};
/// The four-row layout of x86 quantizers built without the activation-parallel switch.
#[derive(Debug)]
pub(super) struct I2SRows4;

impl<const BLOCK: usize, const BYTES: usize> Packing for Flat<BLOCK, BYTES> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn gguf_type(&self) -> Option<u32> {
        Some(36)
    }
    fn gguf_file_type(&self) -> Option<u32> {
        Some(40)
    }
    fn holds_scales(&self) -> bool {
        true
    }
    fn is_writable(&self) -> bool {
        self.is_writable
    }

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        if !self.is_writable {
            return Err(read_only(self.name));
        }
        if !cols.is_multiple_of(BLOCK) {
            let name = self.name;
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("{name} needs a multiple of {BLOCK} columns, found {cols}"),
            )
            .hint("choose a target without blocks, such as hf-packed: readers of i2_s disagree about such rows"));
        }
        self.stored_len(rows, cols)
    }
    /// The C++ quantizer leaves the codes of a last partial block zero, which read back as -1: such a file has lost
    /// those trits, so it is refused.
    fn stored_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        let n = elements(rows, cols)?;
        if !n.is_multiple_of(BLOCK as u64) {
            let name = self.name;
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("{name} needs a multiple of {BLOCK} elements, found {rows} x {cols} = {n}"),
            )
            .hint("convert from the source: the last partial block of such a tensor was never written"));
        }
        Ok(len_of_quads(n))
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name).map(|_| 0.0)
    }
    /// One row, or one block of a matrix whose rows are not whole blocks (those are only read).
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        match cols != 0 && cols.is_multiple_of(BLOCK) {
            true => cols / 4,
            false => BYTES,
        }
    }
    fn unit_rows(&self, _rows: usize, cols: usize) -> UnitRows {
        match cols.is_multiple_of(BLOCK) {
            true => UnitRows::Consecutive(1),
            false => UnitRows::Mixed,
        }
    }
    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let unit = self.unit_len(matrix.rows(), matrix.cols());
        let skip = first.saturating_mul(div_rem(unit, BYTES).0);
        let (blocks, _) = matrix.trits().as_chunks::<BLOCK>();
        let (bytes, _) = out.as_chunks_mut::<BYTES>();
        for (bytes, trits) in bytes.iter_mut().zip(blocks.iter().skip(skip)) {
            if let Some([a, b, c, d]) = runs::<BYTES>(trits) {
                encode_runs([d, c, b, a], bytes);
            }
        }
    }
    fn trailer(&self, matrix: &TernaryMatrix) -> Vec<u8> {
        trailer(matrix, self.name)
    }
    fn unread_tail(&self) -> usize {
        UNREAD
    }
    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        tensor.check_rows(self.stored_len(tensor.rows, tensor.cols)?, first, out.len())?;
        unpack_flat::<BLOCK, BYTES>(tensor, first, out)
    }
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        stored_scale(tensor, self.stored_len(tensor.rows, tensor.cols)?)
    }
}

impl Packing for I2SRows4 {
    fn name(&self) -> &'static str {
        "i2_s-rows4"
    }
    fn gguf_type(&self) -> Option<u32> {
        Some(36)
    }
    fn gguf_file_type(&self) -> Option<u32> {
        Some(40)
    }
    fn holds_scales(&self) -> bool {
        true
    }
    fn is_writable(&self) -> bool {
        false
    }

    fn packed_len(&self, _rows: usize, _cols: usize) -> Result<u64, FormatError> {
        Err(read_only(self.name()))
    }
    fn stored_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        if !rows.is_multiple_of(4) {
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("i2_s-rows4 needs a multiple of 4 rows, found {rows}"),
            ));
        }
        Ok(len_of_quads(elements(rows, cols)?))
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }
    /// Four rows of the matrix.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        cols.max(1)
    }
    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(4)
    }
    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let cols = matrix.cols();
        if cols == 0 {
            return;
        }
        let four = cols.saturating_mul(4);
        let quads = matrix.trits().chunks_exact(four).skip(first);
        for (bytes, rows) in out.chunks_exact_mut(cols).zip(quads) {
            bytes.fill(0);
            for row in rows.chunks_exact(cols) {
                for (byte, &t) in bytes.iter_mut().zip(row) {
                    *byte = *byte << 2 | code(t);
                }
            }
        }
    }
    fn trailer(&self, matrix: &TernaryMatrix) -> Vec<u8> {
        trailer(matrix, self.name())
    }
    fn unread_tail(&self) -> usize {
        UNREAD
    }
    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_rows(self.stored_len(rows, cols)?, first, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let mut worst = 0;
        for (row, trits) in (first..).zip(out.chunks_exact_mut(cols)) {
            // the row is one of the matrix, and its bytes as many as it needs
            let codes = bytes.chunks_exact(cols).nth(row / 4).unwrap_or_default();
            worst = worst.max(match row % 4 {
                0 => unpack_pair::<6>(codes, trits),
                1 => unpack_pair::<4>(codes, trits),
                2 => unpack_pair::<2>(codes, trits),
                _ => unpack_pair::<0>(codes, trits),
            });
        }
        if worst == 3 {
            Err(bad_code(first, cols, out))
        } else {
            Ok(())
        }
    }
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        stored_scale(tensor, self.stored_len(tensor.rows, tensor.cols)?)
    }
}

fn read_only(name: &str) -> FormatError {
    FormatError::new(
        ErrorCode::TargetCannotHold,
        format!("{name} is read, never written"),
    )
    .hint("write i2_s, the layout that every reader of the type knows")
}

/// Unpacks one block; returns a byte that is not zero if a code was 3.
#[inline(always)]
fn unpack_block<const BLOCK: usize, const BYTES: usize>(
    bytes: &[u8; BYTES],
    trits: &mut [i8; BLOCK],
) -> u8 {
    match runs_mut::<BYTES>(trits) {
        Some([a, b, c, d]) => decode_runs(bytes, [d, c, b, a]),
        None => 0,
    }
}

/// Unpacks the trits of a block from `skip` on, as many as there is room for; returns as [`unpack_block`] does.
fn unpack_part<const BLOCK: usize, const BYTES: usize>(
    bytes: &[u8; BYTES],
    skip: usize,
    out: &mut [i8],
) -> u8 {
    let mut scratch = [0; BLOCK];
    unpack_block(bytes, &mut scratch);
    for (to, trit) in out.iter_mut().zip(scratch.iter().skip(skip)) {
        *to = *trit;
    }
    u8::from(out.contains(&2))
}

/// Unpacks rows of a flat layout; `tensor` and the row range have been checked.
fn unpack_flat<const BLOCK: usize, const BYTES: usize>(
    tensor: &PackedTensor<'_>,
    first: usize,
    out: &mut [i8],
) -> Result<(), FormatError> {
    let start = first.saturating_mul(tensor.cols); // flat element
    let codes = tensor.bytes.split_last_chunk::<TRAILER>();
    let (codes, _) = codes
        .map_or(&[][..], |(codes, _)| codes)
        .as_chunks::<BYTES>();
    let before = start.checked_div(BLOCK).unwrap_or(0);
    let mut codes = codes.iter().skip(before);
    let mut bad = 0;
    // rows that do not begin on a block: the head comes out of the block they begin in
    let skip = start.checked_rem(BLOCK).unwrap_or(0);
    let head = match skip {
        0 => 0,
        _ => BLOCK.saturating_sub(skip).min(out.len()),
    };
    let (head, rest) = out.split_at_mut(head);
    if let Some(bytes) = head.first().and_then(|_| codes.next()) {
        bad |= unpack_part::<BLOCK, BYTES>(bytes, skip, head);
    }
    let (blocks, tail) = rest.as_chunks_mut::<BLOCK>();
    for (trits, bytes) in blocks.iter_mut().zip(&mut codes) {
        bad |= unpack_block(bytes, trits);
    }
    if let Some(bytes) = tail.first().and_then(|_| codes.next()) {
        bad |= unpack_part::<BLOCK, BYTES>(bytes, 0, tail);
    }
    if bad != 0 {
        Err(bad_code(first, tensor.cols, out))
    } else {
        Ok(())
    }
}
