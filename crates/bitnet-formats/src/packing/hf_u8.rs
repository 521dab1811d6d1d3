//! `hf_u8`: the packed bytes of transformers' `quant_method: bitnet` (`formats/packing/hf_u8.md`).
//!
//! Invariant: with `R = ceil(M / 4)`, byte `(i, c)` holds column `c` of the rows `i`, `i + R`,
//! `i + 2R` and `i + 3R`, lowest bit pair first, code = trit + 1; rows from `M` on are code 0. The
//! scale is a tensor beside the codes and never in them.

use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, code, div_rem, elements, encode_runs,
    one_scale, outside_scales, unpack_pair,
};
use crate::error::FormatError;
use bitnet_ternary::{Scales, TernaryMatrix};

/// transformers' U8 packing; see the module.
#[derive(Debug)]
pub(super) struct HfU8;

impl Packing for HfU8 {
    fn name(&self) -> &'static str {
        "hf_u8"
    }

    fn gguf_type(&self) -> Option<u32> {
        None
    }

    fn gguf_file_type(&self) -> Option<u32> {
        None
    }

    fn holds_scales(&self) -> bool {
        false
    }

    /// `ceil(rows / 4) * cols`; every shape is legal.
    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        elements(rows, cols)?;
        elements(rows.div_ceil(4), cols)
    }

    /// The scale tensor has one element; its type, and so its rounding, is its writer's choice.
    fn check_scales(
        &self,
        matrix: &TernaryMatrix,
        _rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        one_scale(matrix, self.name()).map(|_| 0.0)
    }

    /// One row of bytes, four rows of the matrix.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        cols.max(1)
    }

    fn unit_rows(&self, rows: usize, _cols: usize) -> UnitRows {
        match rows.is_multiple_of(4) {
            true => UnitRows::Quarters,
            false => UnitRows::Mixed,
        }
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let quarter = rows.div_ceil(4); // R
        if cols == 0 {
            return;
        }
        for (unit, bytes) in out.chunks_exact_mut(cols).enumerate() {
            let i = first.saturating_add(unit);
            if i >= quarter {
                return;
            }
            // the last rows of the last quarter may be missing: they stay code 0
            let row_of = |pair: usize| i.saturating_add(pair.saturating_mul(quarter));
            match [0, 1, 2, 3].map(row_of) {
                [a, b, c, d] if d < rows => {
                    encode_runs([a, b, c, d].map(|row| matrix.row(row)), bytes);
                }
                partial => {
                    bytes.fill(0);
                    let shifts = [0, 2, 4, 6].into_iter().zip(partial);
                    for (shift, row) in shifts.filter(|&(_, row)| row < rows) {
                        for (byte, t) in bytes.iter_mut().zip(matrix.row(row)) {
                            *byte |= code(*t).wrapping_shl(shift);
                        }
                    }
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
        let quarter = rows.div_ceil(4);
        let mut worst = 0;
        for (row, trits) in (first..).zip(out.chunks_exact_mut(cols)) {
            // the row is one of the matrix, and its bytes as many as it needs
            let (pair, at) = div_rem(row, quarter);
            let codes = bytes.chunks_exact(cols).nth(at).unwrap_or_default();
            // the shift is a constant in each copy of the loop: SSE2 has no shift by lane
            worst = worst.max(match pair {
                0 => unpack_pair::<0>(codes, trits),
                1 => unpack_pair::<2>(codes, trits),
                2 => unpack_pair::<4>(codes, trits),
                _ => unpack_pair::<6>(codes, trits),
            });
        }
        if worst == 3 {
            Err(bad_code(first, cols, out))
        } else {
            Ok(())
        }
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        outside_scales(tensor, self.name())
    }
}
