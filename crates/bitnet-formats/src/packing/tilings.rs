//! What TL1 and TL2 share: tilings, and pairs of trits.
//!
//! Invariant: a file records no tiling, so a packing's name has to fix it: `tl1` chooses from the
//! shape alone and always the same; [`tiling_names`](super::tiling_names) reads the names that say it.

use super::{codes_of_4, place_of};
use crate::error::{ErrorCode, FormatError};

/// One tiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Rows per tile, `BM`.
    pub rows: usize,
    /// Columns per tile, `BK`.
    pub cols: usize,
    /// Rows per block of a tile, `bm`.
    pub block: usize,
}

/// A tiling and the shape it is for; `None`: any.
pub(super) type Rule = (Option<(usize, usize)>, Tiling);

/// `(M, K, BM, BK, bm)`.
pub(super) type Preset = (&'static str, &'static [[usize; 5]]);

/// Where the tilings of a packing come from.
#[derive(Debug)]
pub(super) enum Tilings {
    /// The presets, then the rule of the packing.
    ByShape,
    /// A name: the first rule that matches.
    Given(&'static str, Vec<Rule>),
}

impl Tilings {
    pub(super) fn name(&self, stem: &'static str) -> &'static str {
        match self {
            Self::ByShape => stem,
            Self::Given(name, _) => name,
        }
    }

    /// The tiling of a matrix; the packing checks whether it fits.
    pub(super) fn of(
        &self,
        presets: &[Preset],
        by_rule: impl FnOnce() -> Option<Tiling>,
        (rows, cols): (usize, usize),
    ) -> Result<Tiling, FormatError> {
        let found = match self {
            Self::ByShape => presets
                .iter()
                .flat_map(|(_, list)| list.iter())
                .find(|[m, k, ..]| (*m, *k) == (rows, cols))
                .map(|&[_, _, rows, cols, block]| Tiling { rows, cols, block })
                .or_else(by_rule),
            Self::Given(_, rules) => rules
                .iter()
                .find(|(shape, _)| shape.is_none_or(|s| s == (rows, cols)))
                .map(|(_, tiling)| *tiling),
        };
        found.ok_or_else(|| no_tiling(rows, cols))
    }
}

/// The refusal of a shape that no tiling fits.
pub(super) fn no_tiling(rows: usize, cols: usize) -> FormatError {
    FormatError::new(
        ErrorCode::TargetCannotHold,
        format!("no tiling is given for {rows} x {cols}, or none can be"),
    )
    .hint("choose a target without tiles, such as gguf-i2_s")
}

/// The refusal of a tiling for a shape.
pub(super) fn does_not_fit(
    name: &str,
    tiling: Tiling,
    (rows, cols): (usize, usize),
    rule: &str,
) -> FormatError {
    let Tiling {
        rows: bm_rows,
        cols: bk,
        block,
    } = tiling;
    FormatError::new(
        ErrorCode::TargetCannotHold,
        format!("{name}: the tiling {bm_rows}-{bk}-{block} does not fit {rows} x {cols} ({rule})"),
    )
    .hint("give another tiling, or choose a target without tiles, such as gguf-i2_s")
}

/// The largest multiple of `step` up to `most` that divides `n`.
pub(super) fn divisor(n: usize, step: usize, most: usize) -> Option<usize> {
    let multiples = (1..=most.checked_div(step)?).rev();
    let mut multiples = multiples.map(|i| i.saturating_mul(step));
    multiples.find(|d| n.is_multiple_of(*d))
}

/// The bytes of trits, four each: two pairs `3a + b + 4`, the first in the high nibble.
pub(super) fn encode_pairs(trits: &[i8], bytes: &mut [u8]) {
    for (byte, quad) in bytes.iter_mut().zip(trits.as_chunks::<4>().0) {
        // codes 0 to 2 in four lanes, then pairs in two; no sum leaves its lane
        let codes = codes_of_4(*quad);
        let first = codes & 0x00ff_00ff;
        let pairs = first.wrapping_mul(3).wrapping_add(codes >> 8 & 0x00ff_00ff);
        *byte = (pairs << 4 | pairs >> 16) as u8;
    }
}

/// Decodes what [`encode_pairs`] encodes, a pair that no encoder writes as 2, 2; whether there was none.
pub(super) fn decode_pairs(bytes: &[u8], trits: &mut [i8]) -> bool {
    // of a nibble from 9 on the top bit is set, and one of the others
    let wrong = bytes.iter().fold(0, |any, &byte| {
        any | byte & (byte & 0x77).wrapping_add(0x77)
    });
    for (byte, quad) in bytes.iter().zip(trits.as_chunks_mut::<4>().0) {
        *quad = PAIRS.get(usize::from(*byte)).copied().unwrap_or_default();
    }
    wrong & 0x88 == 0
}

/// The four trits of every byte; a pair that no encoder writes is 2, 2.
// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing)]
static PAIRS: [[i8; 4]; 256] = {
    let mut table = [[2; 4]; 256];
    let mut byte = 0;
    while byte < 256 {
        let codes = [byte >> 4, byte & 15];
        let mut n = 0;
        while n < 2 {
            if codes[n] < 9 {
                table[byte][2 * n] = (codes[n] / 3) as i8 - 1;
                table[byte][2 * n + 1] = (codes[n] % 3) as i8 - 1;
            }
            n += 1;
        }
        byte += 1;
    }
    table
};

/// The error for a code that no encoder writes; it stands as 2 in `trits`, rows `first ..`.
#[cold]
pub(super) fn bad_tile_code(first: usize, cols: usize, trits: &[i8]) -> FormatError {
    let (row, col) = place_of(2, first, cols, trits);
    FormatError::new(
        ErrorCode::BadCode,
        format!(
            "row {row}, columns from {col}: expected the code of two or three trits, found another"
        ),
    )
    .hint("the file is damaged, or of another layout")
}
