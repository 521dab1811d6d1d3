//! `tl1`: bitnet.cpp's lookup layout for ARM, two trits in four bits (`formats/packing/tl1.md`).
//!
//! Invariant: `M K / 4` bytes of codes, one f32 scale, 28 zeros. Sixteen rows by four columns are 16
//! bytes, byte = row, and these lie in the order of the tiling (see [`Place::walk`]). The file does not
//! say the tiling: `tl1` takes the one of the shape, `tl1-BM-BK-bm` another.

use super::tilings::{
    Preset, TRAILER, Tiling, Tilings, bad_tile_code, decode_pairs, divisor, does_not_fit,
    encode_pairs,
};
use super::{PackedTensor, Packing, ScaleRounding, UnitRows, checked_scale, elements, one_scale};
use crate::error::FormatError;
use bitnet_ternary::{Scales, TernaryMatrix};

/// The tilings that bitnet.cpp ships; where its script and its preset files disagree (the last two),
/// the script's come first, as that is what an ordinary build has.
pub(super) static PRESETS: &[Preset] = &[
    (
        "large",
        &[
            [1536, 4096, 256, 128, 32],
            [1536, 1536, 128, 64, 64],
            [4096, 1536, 256, 128, 32],
        ],
    ),
    (
        "3b",
        &[
            [3200, 8640, 160, 64, 32],
            [3200, 3200, 320, 128, 64],
            [8640, 3200, 320, 64, 32],
        ],
    ),
    (
        "8b",
        &[
            [14336, 4096, 256, 128, 32],
            [4096, 14336, 128, 64, 64],
            [1024, 4096, 256, 128, 32],
            [4096, 4096, 128, 64, 64],
        ],
    ),
    (
        "8b_preset",
        &[
            [14336, 4096, 256, 128, 64],
            [4096, 14336, 256, 128, 32],
            [1024, 4096, 128, 64, 64],
            [4096, 4096, 128, 64, 32],
        ],
    ),
];

/// GGUF type 38; see the module.
#[derive(Debug)]
pub(super) struct Tl1 {
    pub(super) tilings: Tilings,
}

/// The row of the table: tilings by shape.
pub(super) static TL1: Tl1 = Tl1 {
    tilings: Tilings::ByShape,
};

/// A tiling that fits a shape.
struct Place {
    tiling: Tiling,
    cols: usize,
}

impl Place {
    /// Calls `f` with the place in a tile row of the 16 bytes of the rows from `x` (a multiple of
    /// 16) on and four columns, and with the first of those, for all columns.
    #[inline(always)]
    fn walk(&self, x: usize, mut f: impl FnMut(usize, usize)) {
        let Tiling { rows, cols, block } = self.tiling;
        let by = 256 / block;
        let (rb, rq) = (x / block, x % block / 16);
        for kb in 0..self.cols / cols {
            for kc in 0..cols / by {
                let n = (kb * (rows / block) + rb) * (cols / by) + kc;
                for kj in 0..by / 4 {
                    let at = ((n * (block / 16) + rq) * (by / 4) + kj) * 16;
                    f(at, kb * cols + kc * by + kj * 4);
                }
            }
        }
    }

    /// Bytes of a tile row.
    fn unit(&self) -> usize {
        self.tiling.rows * self.cols / 4
    }

    /// Packs whole tile rows.
    fn pack(&self, trits: &[i8], out: &mut [u8]) {
        let cols = self.cols;
        if cols == 0 {
            return;
        }
        let quads = cols / 4;
        // (16, K / 4): rows become bytes where they lie, then bytes go to their places
        let mut codes = vec![0; 16 * quads];
        let tiles = trits.chunks_exact(self.tiling.rows * cols);
        for (bytes, trits) in out.chunks_exact_mut(self.unit()).zip(tiles) {
            for (x, trits) in trits.chunks_exact(16 * cols).enumerate() {
                encode_pairs(trits, &mut codes);
                self.walk(16 * x, |at, col| {
                    let bytes = &mut bytes[at..at + 16];
                    for (byte, row) in bytes.iter_mut().zip(codes.chunks_exact(quads)) {
                        *byte = row[col / 4];
                    }
                });
            }
        }
    }
}

impl Tl1 {
    fn place(&self, rows: usize, cols: usize) -> Result<Place, FormatError> {
        let by_rule = || {
            let block = if cols.is_multiple_of(8) { 32 } else { 64 };
            Some(Tiling {
                rows: divisor(rows, block, 128)?,
                cols: divisor(cols, 256 / block, 64)?,
                block,
            })
        };
        let tiling = self.tilings.of(PRESETS, by_rule, (rows, cols))?;
        let Tiling {
            rows: tile_rows,
            cols: tile_cols,
            block,
        } = tiling;
        let fits = [32, 64].contains(&block)
            && tile_rows > 0
            && tile_cols > 0
            && rows.is_multiple_of(tile_rows)
            && cols.is_multiple_of(tile_cols)
            && tile_rows.is_multiple_of(block)
            && tile_cols.is_multiple_of(256 / block);
        if fits {
            return Ok(Place { tiling, cols });
        }
        let rule = "M % BM, K % BK, BM % bm and BK % (256 / bm) are 0, bm is 32 or 64";
        Err(does_not_fit(self.name(), tiling, (rows, cols), rule))
    }
}

impl Packing for Tl1 {
    fn name(&self) -> &'static str {
        self.tilings.name("tl1")
    }

    fn gguf_type(&self) -> Option<u32> {
        Some(38)
    }

    fn gguf_file_type(&self) -> Option<u32> {
        Some(38)
    }

    fn holds_scales(&self) -> bool {
        true
    }

    fn parameters(&self, rows: usize, cols: usize) -> Option<String> {
        let Tiling {
            rows: bm_rows,
            cols: bk,
            block,
        } = self.place(rows, cols).ok()?.tiling;
        Some(format!("{rows}x{cols}={bm_rows}-{bk}-{block}"))
    }

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        let n = elements(rows, cols)?;
        if n > 0 {
            self.place(rows, cols)?;
        }
        Ok(n / 4 + TRAILER as u64)
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }

    /// One row of tiles.
    fn unit_len(&self, rows: usize, cols: usize) -> usize {
        self.place(rows, cols).map_or(1, |p| p.unit()).max(1)
    }

    fn unit_rows(&self, rows: usize, cols: usize) -> UnitRows {
        match self.place(rows, cols) {
            Ok(place) => UnitRows::Consecutive(place.tiling.rows),
            Err(_) => UnitRows::Mixed,
        }
    }

    fn pack_band(&self, rows: usize, band: &TernaryMatrix, out: &mut [u8]) {
        // the tiling is that of the whole matrix
        if let Ok(place) = self.place(rows, band.cols()) {
            place.pack(band.trits(), out);
        }
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let Ok(place) = self.place(rows, cols) else {
            return;
        };
        let skip = first.saturating_mul(place.tiling.rows * cols);
        if let Some(trits) = matrix.trits().get(skip..) {
            place.pack(trits, out);
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
        let place = self.place(rows, cols)?;
        let (tile, unit, quads) = (place.tiling.rows, place.unit(), cols / 4);
        let mut bad = false;
        let mut row = first;
        let mut rest = &mut out[..];
        let mut gathered = vec![0; 16 * quads]; // (16, K / 4)
        while !rest.is_empty() {
            // the rows that are asked for of the sixteen that `row` is in
            let low = row % 16;
            let n = (16 - low).min(rest.len() / cols);
            let (rows, others) = rest.split_at_mut(n * cols);
            let codes = &bytes[row / tile * unit..][..unit];
            place.walk((row - low) % tile, |at, col| {
                let codes = &codes[at + low..at + low + n];
                for (byte, row) in codes.iter().zip(gathered.chunks_exact_mut(quads)) {
                    row[col / 4] = *byte;
                }
            });
            bad |= !decode_pairs(&gathered[..n * quads], rows);
            (rest, row) = (others, row + n);
        }
        if bad {
            return Err(bad_tile_code(first, cols, out));
        }
        Ok(())
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        tensor.check_len(self.stored_len(tensor.rows, tensor.cols)?)?;
        stored_scale(tensor)
    }
}

/// The scale behind the codes of TL1 and TL2; the caller has checked the length.
pub(super) fn stored_scale(tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
    let at = tensor.bytes.len().saturating_sub(TRAILER);
    let mut le = [0; 4];
    le.copy_from_slice(&tensor.bytes[at..at + 4]);
    let place = || format!("scale at byte {at} of the tensor");
    checked_scale(f32::from_le_bytes(le), place).map(Scales::PerTensor)
}

/// The f32 scale and 28 zeros.
pub(super) fn trailer(matrix: &TernaryMatrix) -> Vec<u8> {
    // `check_scales` has passed, so there is one scale
    let scale = one_scale(matrix, "tl1").unwrap_or(f32::NAN);
    let mut out = vec![0; TRAILER];
    out[..4].copy_from_slice(&scale.to_le_bytes());
    out
}
