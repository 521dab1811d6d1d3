//! `i2_s`: bitnet.cpp's 2-bit codes with one f32 scale behind them (`formats/packing/i2_s.md`).
//!
//! Invariant: `n / 4` bytes of codes (trit + 1, first run of a block in the **top** bits), then the
//! f32 scale, then 28 bytes that are written as zeros and never read. Three layouts share the type
//! id and nothing in a file tells them apart: `i2_s` (blocks of 128) is written and assumed;
//! `i2_s-arm64` (blocks of 64) and `i2_s-rows4` (four rows to a byte) are read when asked for.

use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, checked_scale, code, elements,
    one_scale, unpack_pair,
};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};

/// Scale and 28 bytes of nothing.
const TRAILER: usize = 32;

/// The 128/32 layout: every x86 writer, every Python writer, the published files.
#[derive(Debug)]
pub(super) struct I2S;
/// The 64/16 layout of quantisers compiled for ARM since 2025-11-19.
#[derive(Debug)]
pub(super) struct I2SArm64;
/// The four-row layout of x86 quantisers built without the activation-parallel switch.
#[derive(Debug)]
pub(super) struct I2SRows4;

impl Packing for I2S {
    fn name(&self) -> &'static str {
        "i2_s"
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

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        if !cols.is_multiple_of(128) {
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("i2_s needs a multiple of 128 columns, found {cols}"),
            )
            .hint("readers of i2_s disagree about such rows; choose a target without blocks, such as hf-packed"));
        }
        self.stored_len(rows, cols)
    }
    fn stored_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        flat_len(self.name(), 128, rows, cols)
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }
    /// One row, or one block of a matrix whose rows are no whole blocks (those are only read).
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        flat_unit_len(128, cols)
    }
    fn unit_rows(&self, _rows: usize, cols: usize) -> UnitRows {
        flat_unit_rows(128, cols)
    }
    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        pack_flat::<128, 32>(matrix, first, out);
    }
    fn trailer(&self, matrix: &TernaryMatrix) -> Vec<u8> {
        trailer(matrix)
    }
    fn unread_tail(&self) -> usize {
        TRAILER - size_of::<f32>()
    }
    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        tensor.check_rows(self.stored_len(tensor.rows, tensor.cols)?, first, out.len())?;
        unpack_flat::<128, 32>(tensor, first, out)
    }
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        stored_scale(tensor, self.stored_len(tensor.rows, tensor.cols)?)
    }
}

impl Packing for I2SArm64 {
    fn name(&self) -> &'static str {
        "i2_s-arm64"
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
        flat_len(self.name(), 64, rows, cols)
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }
    /// One row, or one block of a matrix whose rows are no whole blocks.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        flat_unit_len(64, cols)
    }
    fn unit_rows(&self, _rows: usize, cols: usize) -> UnitRows {
        flat_unit_rows(64, cols)
    }
    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        pack_flat::<64, 16>(matrix, first, out);
    }
    fn trailer(&self, matrix: &TernaryMatrix) -> Vec<u8> {
        trailer(matrix)
    }
    fn unread_tail(&self) -> usize {
        TRAILER - size_of::<f32>()
    }
    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        tensor.check_rows(self.stored_len(tensor.rows, tensor.cols)?, first, out.len())?;
        unpack_flat::<64, 16>(tensor, first, out)
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
        Ok(elements(rows, cols)? / 4 + TRAILER as u64)
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
        let quads = matrix.trits().chunks_exact(4 * cols).skip(first);
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
        trailer(matrix)
    }
    fn unread_tail(&self) -> usize {
        TRAILER - size_of::<f32>()
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
        for (n, trits) in out.chunks_exact_mut(cols).enumerate() {
            let row = first + n;
            let codes = &bytes[row / 4 * cols..][..cols];
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
    .hint("write i2_s: every reader of the type knows that layout")
}

/// Length of a flat layout. The C++ quantiser leaves the codes of a last partial block zero, which
/// read back as -1: such a file has lost those trits, so it is refused.
fn flat_len(name: &str, block: u64, rows: usize, cols: usize) -> Result<u64, FormatError> {
    let n = elements(rows, cols)?;
    if !n.is_multiple_of(block) {
        return Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("{name} needs a multiple of {block} elements, found {rows} x {cols} = {n}"),
        )
        .hint(
            "the last partial block of such a tensor was never written; convert from its source",
        ));
    }
    Ok(n / 4 + TRAILER as u64)
}

/// Bytes of one row, or of one block where rows are not whole blocks.
fn flat_unit_len(block: usize, cols: usize) -> usize {
    if cols != 0 && cols.is_multiple_of(block) {
        cols / 4
    } else {
        block / 4
    }
}

fn flat_unit_rows(block: usize, cols: usize) -> UnitRows {
    match cols.is_multiple_of(block) {
        true => UnitRows::Consecutive(1),
        false => UnitRows::Mixed,
    }
}

fn trailer(matrix: &TernaryMatrix) -> Vec<u8> {
    // `check_scales` has passed, so there is one scale
    let scale = one_scale(matrix, "i2_s").unwrap_or(f32::NAN);
    let mut out = vec![0; TRAILER];
    out[..4].copy_from_slice(&scale.to_le_bytes());
    out
}

fn stored_scale(tensor: &PackedTensor<'_>, len: u64) -> Result<Scales, FormatError> {
    tensor.check_len(len)?;
    let at = tensor.bytes.len() - TRAILER;
    let mut le = [0; 4];
    le.copy_from_slice(&tensor.bytes[at..at + 4]);
    let place = || format!("scale at byte {at} of the tensor");
    checked_scale(f32::from_le_bytes(le), place).map(Scales::PerTensor)
}

/// Packs units of the flattened matrix: blocks of `BLOCK` trits in `BYTES = BLOCK / 4` bytes.
fn pack_flat<const BLOCK: usize, const BYTES: usize>(
    matrix: &TernaryMatrix,
    first: usize,
    out: &mut [u8],
) {
    let skip = first.saturating_mul(flat_unit_len(BLOCK, matrix.cols()) / BYTES);
    let (blocks, _) = matrix.trits().as_chunks::<BLOCK>();
    let (bytes, _) = out.as_chunks_mut::<BYTES>();
    for (byte, trits) in bytes.iter_mut().zip(blocks.iter().skip(skip)) {
        let (a, rest) = trits.split_at(BYTES);
        let (b, rest) = rest.split_at(BYTES);
        let (c, d) = rest.split_at(BYTES);
        for j in 0..BYTES {
            byte[j] = code(a[j]) << 6 | code(b[j]) << 4 | code(c[j]) << 2 | code(d[j]);
        }
    }
}

/// Unpacks one block; returns a byte that is non-zero when a code was 3.
#[inline(always)]
fn unpack_block<const BLOCK: usize, const BYTES: usize>(
    bytes: &[u8; BYTES],
    trits: &mut [i8; BLOCK],
) -> u8 {
    let (a, rest) = trits.split_at_mut(BYTES);
    let (b, rest) = rest.split_at_mut(BYTES);
    let (c, d) = rest.split_at_mut(BYTES);
    let mut bad = 0;
    for j in 0..BYTES {
        let byte = bytes[j];
        bad |= byte & byte >> 1;
        a[j] = (byte >> 6) as i8 - 1;
        b[j] = (byte >> 4 & 3) as i8 - 1;
        c[j] = (byte >> 2 & 3) as i8 - 1;
        d[j] = (byte & 3) as i8 - 1;
    }
    bad & 0x55
}

/// Unpacks rows of a flat layout; `tensor` and the row range have been checked.
fn unpack_flat<const BLOCK: usize, const BYTES: usize>(
    tensor: &PackedTensor<'_>,
    first: usize,
    out: &mut [i8],
) -> Result<(), FormatError> {
    let start = first * tensor.cols; // flat element
    let (codes, _) = tensor.bytes[..tensor.bytes.len() - TRAILER].as_chunks::<BYTES>();
    // rows that do not begin on a block: the head comes out of the block they begin in
    let head_len = (BLOCK - start % BLOCK) % BLOCK;
    let (head, rest) = out.split_at_mut(head_len.min(out.len()));
    let mut bad = 0;
    let mut scratch = [0; BLOCK];
    if !head.is_empty() {
        unpack_block(&codes[start / BLOCK], &mut scratch);
        head.copy_from_slice(&scratch[start % BLOCK..][..head.len()]);
        bad |= u8::from(head.contains(&2));
    }
    let (blocks, tail) = rest.as_chunks_mut::<BLOCK>();
    let mut codes = codes.iter().skip(start.div_ceil(BLOCK));
    for (trits, bytes) in blocks.iter_mut().zip(&mut codes) {
        bad |= unpack_block(bytes, trits);
    }
    if let (false, Some(bytes)) = (tail.is_empty(), codes.next()) {
        unpack_block(bytes, &mut scratch);
        tail.copy_from_slice(&scratch[..tail.len()]);
        bad |= u8::from(tail.contains(&2));
    }
    if bad != 0 {
        Err(bad_code(first, tensor.cols, out))
    } else {
        Ok(())
    }
}
