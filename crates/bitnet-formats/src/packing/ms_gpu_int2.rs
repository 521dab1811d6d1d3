//! `ms_gpu_int2`: the layout of bitnet.cpp's GPU kernels (`formats/packing/ms_gpu_int2.md`).
//!
//! Invariant: tiles of 16 rows by 32 columns, 128 bytes each, row-major; sixteen columns of a row
//! are four bytes, byte `i` holding the columns `i`, `i + 4`, `i + 8`, `i + 12`, lowest pair first.
//! Code = trit + **2**; code 0 is refused. The scales (one per matrix fused into the tensor) are a
//! tensor beside the codes and never in them.

use super::row_scales::{decode_16, encode_16};
use super::{PackedTensor, Packing, ScaleRounding, UnitRows, elements, one_scale, outside_scales};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};

/// torch int8 `[N, K / 4]`; see the module.
#[derive(Debug)]
pub(super) struct MsGpuInt2;

/// Rows of a tile.
const ROWS: usize = 16;
/// Columns of a tile.
const COLS: usize = 32;
/// Bytes of a tile.
const TILE: usize = 128;

/// Which of the words of a tile holds the half `half` (16 columns) of row `n` (of 16).
#[inline(always)]
fn word(n: usize, half: usize) -> usize {
    // a row of 16 and a half of 2: bit 3 of the row counts twice, the half is between
    (n & 8) << 1 | (half & 1) << 3 | n & 7
}

/// Bytes of a row of tiles.
fn band_len(cols: usize) -> usize {
    (cols / COLS).saturating_mul(TILE)
}

impl Packing for MsGpuInt2 {
    fn name(&self) -> &'static str {
        "ms_gpu_int2"
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

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        let n = elements(rows, cols)?;
        if n > 0 && !(rows.is_multiple_of(ROWS) && cols.is_multiple_of(COLS)) {
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("ms_gpu_int2 needs a multiple of {ROWS} rows and of {COLS} columns, found {rows} x {cols}"),
            )
            .hint("choose a target without tiles, such as hf-packed"));
        }
        Ok(n / 4)
    }

    /// One scale per matrix; its type, and so its rounding, is its writer's choice.
    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }

    /// One row of tiles.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        band_len(cols).max(1)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(ROWS)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let cols = matrix.cols();
        if cols < COLS {
            return;
        }
        let bands = matrix.trits().chunks_exact(cols.saturating_mul(ROWS));
        let out = out.chunks_exact_mut(band_len(cols));
        for (bytes, rows) in out.zip(bands.skip(first)) {
            for (n, row) in rows.chunks_exact(cols).enumerate() {
                let tiles = bytes.as_chunks_mut::<TILE>().0.iter_mut();
                for (tile, trits) in tiles.zip(row.as_chunks::<COLS>().0) {
                    let words = tile.as_chunks_mut::<4>().0;
                    for (half, run) in trits.as_chunks::<16>().0.iter().enumerate() {
                        if let Some(word) = words.get_mut(word(n, half)) {
                            encode_16::<2>(run, word);
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
        for (row, trits) in (first..).zip(out.chunks_exact_mut(cols)) {
            let n = row % ROWS;
            // the row is one of the matrix, and its bytes as many as it needs
            let band = bytes.chunks_exact(band_len(cols)).nth(row / ROWS);
            let tiles = band.unwrap_or_default().as_chunks::<TILE>().0;
            let mut all = 0x5555_5555;
            for (tile, trits) in tiles.iter().zip(trits.as_chunks_mut::<COLS>().0) {
                let words = tile.as_chunks::<4>().0;
                for (half, run) in trits.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                    let Some(bytes) = words.get(word(n, half)) else {
                        continue;
                    };
                    decode_16::<2>(bytes, run);
                    let codes = u32::from_le_bytes(*bytes);
                    all &= codes | codes >> 1; // a pair of zeros clears its bit
                }
            }
            if all != 0x5555_5555 {
                let col = trits.iter().position(|&t| t == -2).unwrap_or(0);
                return Err(FormatError::new(
                    ErrorCode::BadCode,
                    format!("row {row}, column {col}: expected a code 1, 2 or 3, found 0"),
                )
                .hint("the file is damaged, or packed in another layout"));
            }
        }
        Ok(())
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        outside_scales(tensor, self.name())
    }
}
