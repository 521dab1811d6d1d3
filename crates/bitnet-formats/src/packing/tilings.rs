//! What TL1 and TL2 share: tilings, chosen from the shape or given by name.
//!
//! Invariant: a file records no tiling, so a packing's name has to fix it: `tl1` chooses from the
//! shape alone and always the same; `tl1-128-64-32` (BM, BK, bm), `tl1-1536x4096=256-128-32,64-64-32`
//! (per shape, first match) and `tl1-3b` (a preset) say it. Names that are given are kept for the
//! life of the program, each once and at most [`MOST_NAMES`], so that a packing stays a `&'static`.

use super::tl1::Tl1;
use super::tl2::Tl2;
use super::{Packing, codes_of_4};
use crate::error::{ErrorCode, FormatError};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// f32 scale and 28 bytes of zeros.
pub(super) const TRAILER: usize = 32;
/// Distinct names with tilings that one run may use.
const MOST_NAMES: usize = 256;
/// Longest such name.
const LONGEST_NAME: usize = 1024;

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
                .find(|p| p[..2] == [rows, cols])
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

/// The packing that a name with a tiling means, whether or not that fits any shape.
pub(super) fn by_name(name: &str) -> Option<&'static dyn Packing> {
    static NAMES: LazyLock<Mutex<BTreeMap<&'static str, &'static dyn Packing>>> =
        LazyLock::new(Mutex::default);
    if name.len() > LONGEST_NAME {
        return None;
    }
    let (stem, given) = name.split_once('-')?;
    let presets = match stem {
        "tl1" => super::tl1::PRESETS,
        "tl2" => super::tl2::PRESETS,
        _ => return None,
    };
    let rules = parse(given, presets)?;
    // a poisoned map is whole: entries are inserted in one step
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(packing) = names.get(name) {
        return Some(*packing);
    }
    if names.len() >= MOST_NAMES {
        return None;
    }
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let tilings = Tilings::Given(name, rules);
    let packing: &'static dyn Packing = match stem {
        "tl1" => Box::leak(Box::new(Tl1 { tilings })),
        _ => Box::leak(Box::new(Tl2 { tilings })),
    };
    names.insert(name, packing);
    Some(packing)
}

/// The tilings that programs ship, as far as they fit all of `shapes` and put trits elsewhere than `packing`,
/// which chooses by shape: presets, and each of their tilings for every shape.
pub(super) fn shipped(
    packing: &dyn Packing,
    shapes: &[(usize, usize)],
) -> Vec<&'static dyn Packing> {
    let stem = packing.name();
    let presets = match stem {
        "tl1" => super::tl1::PRESETS,
        "tl2" => super::tl2::PRESETS,
        _ => return Vec::new(),
    };
    let given = |[_, _, rows, cols, block]: [usize; 5]| format!("{stem}-{rows}-{cols}-{block}");
    let lists = presets.iter().map(|(name, _)| format!("{stem}-{name}"));
    let tilings = presets
        .iter()
        .flat_map(|(_, list)| list.iter().copied().map(given));
    let parameters = |packing: &dyn Packing| -> Option<Vec<String>> {
        let shapes = shapes.iter();
        shapes
            .map(|&(rows, cols)| packing.parameters(rows, cols))
            .collect()
    };
    let mut met: Vec<_> = parameters(packing).into_iter().collect();
    let mut found = Vec::new();
    for name in lists.chain(tilings) {
        let Some(candidate) = by_name(&name) else {
            continue;
        };
        if let Some(own) = parameters(candidate).filter(|own| !met.contains(own)) {
            met.push(own);
            found.push(candidate);
        }
    }
    found
}

/// `[MxK=]BM-BK[-bm]` or a preset, separated by commas; `bm` is 32 if absent.
fn parse(given: &str, presets: &[Preset]) -> Option<Vec<Rule>> {
    let number = |s: &str| s.parse().ok().filter(|&n: &usize| n > 0 && n < 1 << 31);
    let mut rules = Vec::new();
    for item in given.split(',') {
        if let Some((_, list)) = presets.iter().find(|(name, _)| *name == item) {
            rules
                .extend(list.iter().map(|&[m, k, rows, cols, block]| {
                    (Some((m, k)), Tiling { rows, cols, block })
                }));
            continue;
        }
        let (shape, tiling) = match item.split_once('=') {
            Some((shape, tiling)) => {
                let (m, k) = shape.split_once('x')?;
                (Some((number(m)?, number(k)?)), tiling)
            }
            None => (None, item),
        };
        let mut numbers = tiling.split('-').map(number);
        let (rows, cols) = (numbers.next()??, numbers.next()??);
        let block = numbers.next().unwrap_or(Some(32))?;
        if numbers.next().is_some() {
            return None;
        }
        rules.push((shape, Tiling { rows, cols, block }));
    }
    Some(rules)
}

/// The largest multiple of `step` up to `most` that divides `n`.
pub(super) fn divisor(n: usize, step: usize, most: usize) -> Option<usize> {
    let multiples = (1..=most / step).rev().map(|i| i * step);
    multiples.into_iter().find(|d| n.is_multiple_of(*d))
}

/// The bytes of trits, four each: two pairs `3a + b + 4`, the first in the high nibble.
pub(super) fn encode_pairs(trits: &[i8], bytes: &mut [u8]) {
    for (byte, quad) in bytes.iter_mut().zip(trits.as_chunks::<4>().0) {
        // codes 0 to 2 in four lanes, then pairs in two; no sum leaves its lane
        let codes = codes_of_4(*quad);
        let first = codes & 0x00ff_00ff;
        let pairs = first + (first << 1) + (codes >> 8 & 0x00ff_00ff);
        *byte = (pairs << 4 | pairs >> 16) as u8;
    }
}

/// Decodes what [`encode_pairs`] encodes, a pair that no encoder writes as 2, 2; whether there was none.
pub(super) fn decode_pairs(bytes: &[u8], trits: &mut [i8]) -> bool {
    // of a nibble from 9 on the top bit is set, and one of the others
    let wrong = bytes
        .iter()
        .fold(0, |any, &byte| any | byte & ((byte & 0x77) + 0x77));
    for (byte, quad) in bytes.iter().zip(trits.as_chunks_mut::<4>().0) {
        *quad = PAIRS[usize::from(*byte)];
    }
    wrong & 0x88 == 0
}

/// The four trits of every byte; a pair that no encoder writes is 2, 2.
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
    let at = trits.iter().position(|&t| t == 2).unwrap_or(0);
    let (row, col) = (first + at / cols.max(1), at % cols.max(1));
    FormatError::new(
        ErrorCode::BadCode,
        format!(
            "row {row}, columns from {col}: expected the code of two or three trits, found another"
        ),
    )
    .hint("the file is damaged, or of another layout")
}
