//! `tl1`: bitnet.cpp's lookup layout for ARM, two trits in four bits (`formats/packing/tl1.md`).
//!
//! Invariant: `M K / 4` bytes of codes, one f32 scale, 28 zeros. Sixteen rows by four columns are 16
//! bytes, byte = row, and these lie in the order of the tiling (see [`Place::walk`]). The file does not
//! say the tiling: `tl1` takes the one of the shape, `tl1-BM-BK-bm` another.

use super::tilings::{
    Preset, Tiling, Tilings, bad_tile_code, decode_pairs, divisor, does_not_fit, encode_pairs,
};
use super::trailer::{UNREAD, len_of_quads, stored_scale, trailer};
use super::{PackedTensor, Packing, ScaleRounding, UnitRows, div_rem, elements, one_scale};
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
    /// 16) on and four columns, and with the number of those four, for all columns.
    #[inline(always)]
    fn walk(&self, x: usize, mut f: impl FnMut(usize, usize)) {
        let Tiling { rows, cols, block } = self.tiling;
        let (by, _) = div_rem(256, block);
        let (per_block, _) = div_rem(cols, by);
        let (rb, within) = div_rem(x, block);
        // bytes: of a tile, of its `block` rows, of 16 of them and `by` columns; none is 0 in a tiling that fits
        let tile = bytes_of(rows, cols).max(1);
        let first = rb
            .saturating_mul(bytes_of(block, cols))
            .saturating_add((within / 16).saturating_mul(bytes_of(16, by)));
        let mut quad: usize = 0;
        for at in (first..self.unit()).step_by(tile) {
            for at in (at..).step_by(64).take(per_block) {
                for at in (at..).step_by(16).take(by / 4) {
                    f(at, quad);
                    quad = quad.wrapping_add(1);
                }
            }
        }
    }

    /// Bytes of a tile row.
    fn unit(&self) -> usize {
        bytes_of(self.tiling.rows, self.cols)
    }

    /// Packs whole tile rows.
    fn pack(&self, trits: &[i8], out: &mut [u8]) {
        let cols = self.cols;
        if cols == 0 {
            return;
        }
        let quads = cols / 4;
        // (16, K / 4): rows become bytes where they lie, then bytes go to their places
        let mut codes = vec![0; quads.saturating_mul(16)];
        let tiles = trits.chunks_exact(self.tiling.rows.saturating_mul(cols).max(1));
        for (bytes, trits) in out.chunks_exact_mut(self.unit().max(1)).zip(tiles) {
            let sixteens = trits.chunks_exact(cols.saturating_mul(16));
            for (x, trits) in (0..).step_by(16).zip(sixteens) {
                encode_pairs(trits, &mut codes);
                self.walk(x, |at, quad| {
                    let Some(bytes) = bytes.get_mut(at..).and_then(|b| b.first_chunk_mut::<16>())
                    else {
                        return;
                    };
                    for (byte, row) in bytes.iter_mut().zip(codes.chunks_exact(quads.max(1))) {
                        *byte = row.get(quad).copied().unwrap_or_default();
                    }
                });
            }
        }
    }
}

/// Bytes of the codes of some weights.
fn bytes_of(rows: usize, cols: usize) -> usize {
    rows.saturating_mul(cols) / 4
}

impl Tl1 {
    fn place(&self, rows: usize, cols: usize) -> Result<Place, FormatError> {
        let by_rule = || {
            let block = if cols.is_multiple_of(8) { 32 } else { 64 };
            Some(Tiling {
                rows: divisor(rows, block, 128)?,
                cols: divisor(cols, 256usize.checked_div(block)?, 64)?,
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
            && 256usize
                .checked_div(block)
                .is_some_and(|by| tile_cols.is_multiple_of(by));
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
        Ok(len_of_quads(n))
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
        let skip = first.saturating_mul(place.tiling.rows.saturating_mul(cols));
        if let Some(trits) = matrix.trits().get(skip..) {
            place.pack(trits, out);
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
        let place = self.place(rows, cols)?;
        let (tile, unit, quads) = (place.tiling.rows, place.unit(), cols / 4);
        let mut bad = false;
        let mut row = first;
        let mut rest = &mut out[..];
        let mut gathered = vec![0; quads.saturating_mul(16)]; // (16, K / 4)
        while !rest.is_empty() {
            // the rows that are asked for of the sixteen that `row` is in
            let low = row % 16;
            let n = 16usize.saturating_sub(low).min(div_rem(rest.len(), cols).0);
            let (rows, others) = rest.split_at_mut(n.saturating_mul(cols));
            // the row is one of the matrix, and its bytes as many as it needs
            let (t, x) = div_rem(row, tile);
            let codes = bytes.chunks_exact(unit).nth(t).unwrap_or_default();
            place.walk(x.saturating_sub(low), |at, quad| {
                let at = at.saturating_add(low);
                let codes = codes.get(at..at.saturating_add(n)).unwrap_or_default();
                for (byte, row) in codes.iter().zip(gathered.chunks_exact_mut(quads)) {
                    if let Some(code) = row.get_mut(quad) {
                        *code = *byte;
                    }
                }
            });
            bad |= !decode_pairs(&gathered, rows);
            (rest, row) = (others, row.saturating_add(n));
        }
        if bad {
            return Err(bad_tile_code(first, cols, out));
        }
        Ok(())
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        stored_scale(tensor, self.stored_len(tensor.rows, tensor.cols)?)
    }
}
