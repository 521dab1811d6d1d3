//! What IQ1_BN, IQ2_BN and IQ2_BN_R4 share: every row has a scale before its codes.
//!
//! Invariant: a row with a non-zero trit is stored with their scale; a row without one with scale 0
//! **and codes that say +1**, because the peers' encoders take half of a maximum of 0 as threshold.
//! So a row with scale 0 reads as zeros whatever its codes are, and trits whose scale is 0 are
//! refused on writing. A type of this kind says how codes lie ([`ScaledRows`]).

use super::f16_blocks::{Vote, f16_error, is_zero, not_f16};
use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, checked_scale, div_rem, elements,
    runs,
};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix, f16_to_f32, f32_is_f16_exact, f32_to_f16};
use std::fmt::Debug;
use std::slice::ChunksExact;

/// Columns per block; all types of this kind have the same.
pub(super) const BLOCK: usize = 64;

/// The layout of one type. Slices handed in have exactly the lengths the constants say.
pub(super) trait ScaledRows: Sync + Debug {
    const NAME: &'static str;
    const GGUF_TYPE: u32;
    const GGUF_FILE_TYPE: u32;
    /// Rows that are interleaved; their scales stand before the codes of all of them.
    const ROWS: usize;
    /// Bytes per scale: 2 (f16) or 4 (f32).
    const SCALE: usize;
    /// Bytes of 64 columns of one row.
    const BYTES: usize;

    /// Writes the codes of row `k` of the interleaved ones into the `ROWS * BYTES` of a block.
    fn encode(k: usize, trits: &[i8; BLOCK], block: &mut [u8]);
    /// Reads them, code 3 as the trit 2; whether there was none.
    fn decode(k: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool;
}

/// Bytes of `ROWS` rows.
fn unit<B: ScaledRows>(cols: usize) -> usize {
    let codes = (cols / BLOCK).saturating_mul(B::BYTES);
    codes.saturating_add(B::SCALE).saturating_mul(B::ROWS)
}

/// Bytes of the scales of `ROWS` rows.
fn scales_len<B: ScaledRows>() -> usize {
    B::ROWS.saturating_mul(B::SCALE)
}

/// The blocks of `ROWS` rows, behind their scales.
fn blocks<B: ScaledRows>(unit: &[u8]) -> ChunksExact<'_, u8> {
    let codes = unit.get(scales_len::<B>()..).unwrap_or_default();
    codes.chunks_exact(B::ROWS.saturating_mul(B::BYTES))
}

fn read_scale<B: ScaledRows>(unit: &[u8], k: usize) -> f32 {
    match unit.chunks_exact(B::SCALE).nth(k) {
        Some(&[a, b]) => f16_to_f32(u16::from_le_bytes([a, b])),
        Some(&[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

impl<B: ScaledRows> Rows<B> {
    fn write_scale(unit: &mut [u8], k: usize, scale: f32) {
        match unit.chunks_exact_mut(B::SCALE).nth(k) {
            Some([a, b]) => [*a, *b] = f32_to_f16(scale).to_le_bytes(),
            Some([a, b, c, d]) => [*a, *b, *c, *d] = scale.to_le_bytes(),
            _ => {}
        }
    }
}

/// The packing of a [`ScaledRows`] layout.
#[derive(Debug)]
pub(super) struct Rows<B>(pub(super) B);

impl<B: ScaledRows> Packing for Rows<B> {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn gguf_type(&self) -> Option<u32> {
        Some(B::GGUF_TYPE)
    }

    fn gguf_file_type(&self) -> Option<u32> {
        Some(B::GGUF_FILE_TYPE)
    }

    fn holds_scales(&self) -> bool {
        true
    }

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        let fits = cols.is_multiple_of(BLOCK) && rows.is_multiple_of(B::ROWS);
        if !fits {
            let (name, n) = (B::NAME, B::ROWS);
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("{name} needs a multiple of {n} rows and of {BLOCK} columns, found {rows} x {cols}"),
            )
            .hint("choose a target without blocks of that size, such as hf-packed"));
        }
        elements(rows, cols)?;
        if cols == 0 {
            // no row, no scale: the number of rows is then a bare claim
            return Ok(0);
        }
        elements(div_rem(rows, B::ROWS).0, unit::<B>(cols))
    }

    fn check_scales(
        &self,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let name = B::NAME;
        let (mut worst, mut at) = (0.0, 0.0);
        let mut meet = |row: usize, scale: f32| -> Result<(), FormatError> {
            if scale == 0.0 {
                return Err(FormatError::new(
                    ErrorCode::TargetCannotHold,
                    format!("row {row}: {name} reads a row of scale 0 as zeros, found other trits with that scale"),
                )
                .hint("choose a target that keeps such trits, such as gguf-i2_s"));
            }
            if B::SCALE == 2 && !f32_is_f16_exact(scale) {
                let error = f16_error(scale)?;
                if error > worst {
                    (worst, at) = (error, scale);
                }
            }
            Ok(())
        };
        if let Scales::PerTensor(s) = matrix.scales() {
            let cols = matrix.cols();
            if let Some(voter) = matrix.trits().iter().position(|&t| t != 0) {
                meet(div_rem(voter, cols).0, *s)?;
            }
        } else {
            for row in 0..matrix.rows() {
                match row_vote(matrix, row) {
                    Vote::Silent => {}
                    Vote::One(s) => meet(row, s)?,
                    Vote::Split => {
                        return Err(FormatError::new(
                            ErrorCode::TargetCannotHold,
                            format!("row {row}: {name} holds one scale per row, found several"),
                        )
                        .hint("choose a target with block scales, such as gguf-q2_0"));
                    }
                }
            }
        }
        if worst > 0.0 && rounding == ScaleRounding::Refuse {
            return Err(not_f16(at, worst));
        }
        Ok(worst)
    }

    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        unit::<B>(cols)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(B::ROWS)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        if cols == 0 {
            return;
        }
        for (n, unit) in out.chunks_exact_mut(unit::<B>(cols)).enumerate() {
            let top = first.saturating_add(n).saturating_mul(B::ROWS);
            for (k, row) in (top..rows).take(B::ROWS).enumerate() {
                let scale = row_vote(matrix, row).value();
                Self::write_scale(unit, k, scale);
                let codes = unit.get_mut(scales_len::<B>()..).unwrap_or_default();
                let codes = codes.chunks_exact_mut(B::ROWS.saturating_mul(B::BYTES));
                let blocks = matrix.row(row).as_chunks::<BLOCK>().0;
                for (block, trits) in codes.zip(blocks) {
                    let trits = if scale == 0.0 { &[1; BLOCK] } else { trits };
                    B::encode(k, trits, block);
                }
            }
        }
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
        let unit_len = unit::<B>(cols);
        for (row, trits) in (first..).zip(out.chunks_exact_mut(cols)) {
            let (n, k) = div_rem(row, B::ROWS);
            // the rows are those of the matrix, and its bytes as many as they need
            let unit = bytes.chunks_exact(unit_len).nth(n).unwrap_or_default();
            let codes = blocks::<B>(unit);
            let mut clean = true;
            for (trits, block) in trits.as_chunks_mut::<BLOCK>().0.iter_mut().zip(codes) {
                clean &= B::decode(k, block, trits);
            }
            if !clean {
                return Err(bad_code(row, cols, trits));
            }
            if read_scale::<B>(unit, k) == 0.0 {
                trits.fill(0);
            }
        }
        Ok(())
    }

    /// One scale where the rows that have a non-zero trit agree, else one per row.
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_len(self.stored_len(rows, cols)?)?;
        if cols == 0 {
            return Ok(Scales::PerTensor(0.0));
        }
        let mut vote = Vote::Silent;
        let mut by_row = Vec::with_capacity(rows);
        for (n, unit) in bytes.chunks_exact(unit::<B>(cols)).enumerate() {
            for k in 0..B::ROWS {
                let row = n.saturating_mul(B::ROWS).saturating_add(k);
                let scale =
                    checked_scale(read_scale::<B>(unit, k), || format!("row {row}: scale"))?;
                let votes = scale != 0.0 && !is_silent::<B>(k, unit);
                if votes {
                    vote.meet(scale);
                }
                by_row.push(if votes { scale } else { 0.0 });
            }
        }
        Ok(match vote {
            Vote::Split => Scales::PerRow(by_row),
            one => Scales::PerTensor(one.value()),
        })
    }
}

/// Whether all trits of a row are 0; almost every row says no in its first block.
fn is_silent<B: ScaledRows>(k: usize, unit: &[u8]) -> bool {
    let mut trits = [0; BLOCK];
    blocks::<B>(unit).all(|block| {
        B::decode(k, block, &mut trits);
        trits.iter().all(|&t| t == 0)
    })
}

/// What the non-zero trits of a row say about its scale.
fn row_vote(matrix: &TernaryMatrix, row: usize) -> Vote {
    let trits = matrix.row(row);
    match matrix.scales() {
        _ if is_zero(trits) => Vote::Silent,
        Scales::PerTensor(s) => Vote::One(*s),
        Scales::PerRow(_) => Vote::One(matrix.scales().at(row, 0, matrix.cols())),
        Scales::PerGroup { group, scales } => {
            let (per_row, _) = div_rem(matrix.cols(), *group);
            let scales = scales.iter().skip(row.saturating_mul(per_row));
            let mut vote = Vote::Silent;
            for (trits, &s) in trits.chunks_exact(*group).zip(scales) {
                if !is_zero(trits) {
                    vote.meet(s);
                }
            }
            vote
        }
    }
}

/// Sixteen trits in four bytes: byte `i` holds the trits `i`, `i + 4`, `i + 8`, `i + 12` as codes
/// `trit + BASE`, lowest pair first.
#[inline(always)]
pub(super) fn encode_16<const BASE: u8>(trits: &[i8; 16], bytes: &mut [u8; 4]) {
    let code = |t: &i8| (*t as u8).wrapping_add(BASE);
    let Some([a, b, c, d]) = runs::<4>(trits) else {
        return;
    };
    let quads = a.iter().zip(b).zip(c.iter().zip(d));
    for (byte, ((a, b), (c, d))) in bytes.iter_mut().zip(quads) {
        *byte = code(a) | code(b) << 2 | code(c) << 4 | code(d) << 6;
    }
}

/// Reads what [`encode_16`] writes.
#[inline(always)]
pub(super) fn decode_16<const BASE: u8>(bytes: &[u8; 4], trits: &mut [i8; 16]) {
    let word = u32::from_le_bytes(*bytes);
    for (run, shift) in trits.as_chunks_mut::<4>().0.iter_mut().zip([0, 2, 4, 6]) {
        let codes = word.wrapping_shr(shift) & 0x0303_0303;
        // less BASE in each byte, without a borrow from the next
        let base = u32::from_le_bytes([BASE; 4]);
        let trits = (codes | 0x8080_8080).wrapping_sub(base) ^ 0x8080_8080;
        *run = trits.to_le_bytes().map(|trit| trit as i8);
    }
}
