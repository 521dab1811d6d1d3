//! What TQ1_0, TQ2_0, Q1_0, Q2_0, PQ2_0, PTQ1_0 and STQ1_0 share: rows of equal blocks, each with codes
//! and its own f16 scale.
//!
//! Invariant: the scale of a block with a non-zero trit is the scale of its trits, rounded to f16
//! only when that was allowed; a block without one stores scale 0, whatever the matrix says, as
//! the peers' encoders do. A type of this kind says how codes lie ([`F16Block`]); everything else
//! is here once.

use super::{PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, checked_scale, elements};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{
    GROUP_SIZES, Scales, TernaryMatrix, f16_to_f32, f32_is_f16_exact, f32_to_f16,
};
use std::fmt::Debug;

/// The layout of one block type. Slices handed in have exactly the lengths the constants say; codes are the bytes of a
/// block without its scale, which stands first or last.
pub(super) trait F16Block: Sync + Debug {
    const NAME: &'static str;
    const GGUF_TYPE: u32;
    /// Other type ids under which its programs wrote the same bytes.
    const GGUF_ALIASES: &'static [u32] = &[];
    const GGUF_FILE_TYPE: u32;
    /// Trits per block; one of `bitnet_ternary::GROUP_SIZES`.
    const TRITS: usize;
    /// Bytes per block, scale included.
    const BYTES: usize;
    /// Where in the block the f16 scale stands: 0, or `BYTES - 2`.
    const SCALE_AT: usize;
    /// What to do instead of writing, for layouts that are only read.
    const READ_ONLY: Option<&'static str> = None;
    /// The packing with the same bytes under another type id.
    const SAME_BYTES_AS: Option<&'static str> = None;

    /// Whether a negative scale is legal: its block has the opposite trits.
    const SIGNED_SCALES: bool = false;

    /// For codes that do not express every block: blocks of zeros are then known by their scale 0, whatever their
    /// codes are. What to do with a matrix that has a block which the codes do not express.
    const ZERO_BY_SCALE: Option<&'static str> = None;

    /// Why the codes cannot express a block that begins at column `from` and has a non-zero trit: the place in its
    /// row, what is expected and what is found.
    fn misfit(_trits: &[i8], _from: usize) -> Option<String> {
        None
    }

    /// Writes the codes of one block, `(TRITS,)` into `(BYTES - 2,)`.
    fn encode(trits: &[i8], codes: &mut [u8]);
    /// Reads the codes of one block, code 3 as the trit 2; whether there was none.
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool;
    /// Whether the codes say that all trits of the block are 0.
    fn is_silent(_codes: &[u8]) -> bool {
        false
    }
}

/// The codes of a block.
#[inline(always)]
fn codes<B: F16Block>(block: &[u8]) -> &[u8] {
    let codes = match B::SCALE_AT {
        0 => block.get(2..),
        at => block.get(..at),
    };
    codes.unwrap_or_default()
}

/// The codes of a block and its scale, to write.
#[inline(always)]
fn parts_mut<B: F16Block>(block: &mut [u8]) -> Option<(&mut [u8], &mut [u8; 2])> {
    match B::SCALE_AT {
        0 => block
            .split_first_chunk_mut()
            .map(|(scale, codes)| (codes, scale)),
        _ => block.split_last_chunk_mut(),
    }
}

/// The bits of the scale of a block.
#[inline(always)]
fn scale_bits<B: F16Block>(block: &[u8]) -> u16 {
    let scale = block.get(B::SCALE_AT..).and_then(|at| at.first_chunk());
    u16::from_le_bytes(scale.copied().unwrap_or_default())
}

fn read_scale<B: F16Block>(block: &[u8]) -> f32 {
    f16_to_f32(scale_bits::<B>(block))
}

/// Whether the stored scale is 0.
fn has_zero_scale<B: F16Block>(block: &[u8]) -> bool {
    scale_bits::<B>(block) & 0x7fff == 0
}

/// Whether all trits of a block are 0.
fn is_silent<B: F16Block>(block: &[u8]) -> bool {
    match B::ZERO_BY_SCALE {
        Some(_) => has_zero_scale::<B>(block),
        None => B::is_silent(codes::<B>(block)),
    }
}

/// Blocks in a row of `cols` columns.
fn blocks_in<B: F16Block>(cols: usize) -> usize {
    cols.checked_div(B::TRITS).unwrap_or(0)
}

/// Bytes of a row of `cols` columns.
fn row_len<B: F16Block>(cols: usize) -> usize {
    blocks_in::<B>(cols).saturating_mul(B::BYTES)
}

/// The first column of block `at` of a row.
fn column<B: F16Block>(at: usize) -> usize {
    at.saturating_mul(B::TRITS)
}

impl<B: F16Block> Packing for B {
    fn name(&self) -> &'static str {
        B::NAME
    }

    fn gguf_type(&self) -> Option<u32> {
        Some(B::GGUF_TYPE)
    }

    fn gguf_aliases(&self) -> &'static [u32] {
        B::GGUF_ALIASES
    }

    fn gguf_file_type(&self) -> Option<u32> {
        Some(B::GGUF_FILE_TYPE)
    }

    fn holds_scales(&self) -> bool {
        true
    }

    fn is_writable(&self) -> bool {
        B::READ_ONLY.is_none()
    }

    fn same_bytes_as(&self) -> Option<&'static str> {
        B::SAME_BYTES_AS
    }

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        match B::READ_ONLY {
            None => self.stored_len(rows, cols),
            Some(hint) => Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("{} is read, never written", B::NAME),
            )
            .hint(hint)),
        }
    }

    fn stored_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        if !cols.is_multiple_of(B::TRITS) {
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!(
                    "{} needs a multiple of {} columns, found {cols}",
                    B::NAME,
                    B::TRITS
                ),
            )
            .hint("choose a target without blocks of that size, such as hf-packed"));
        }
        elements(rows, cols)?;
        elements(rows, row_len::<B>(cols))
    }

    fn holds_any_trits(&self) -> bool {
        B::ZERO_BY_SCALE.is_none()
    }

    fn check_trits(&self, matrix: &TernaryMatrix) -> Result<(), FormatError> {
        let Some(hint) = B::ZERO_BY_SCALE else {
            return Ok(());
        };
        let cols = matrix.cols();
        for row in 0..matrix.rows() {
            for (at, trits) in matrix.row(row).chunks_exact(B::TRITS).enumerate() {
                let Some(voter) = trits.iter().position(|&t| t != 0) else {
                    continue;
                };
                let from = column::<B>(at);
                let column = from.saturating_add(voter);
                let has_scale = matrix.scales().at(row, column, cols) != 0.0;
                let silent = || {
                    let name = B::NAME;
                    format!(
                        "columns from {from}: {name} reads a block of scale 0 as zeros, found other trits with that scale"
                    )
                };
                let misfit = B::misfit(trits, from);
                if let Some(misfit) = misfit.or_else(|| (!has_scale).then(silent)) {
                    let message = format!("row {row}, {misfit}");
                    return Err(FormatError::new(ErrorCode::TargetCannotHold, message).hint(hint));
                }
            }
        }
        Ok(())
    }

    fn check_scales(
        &self,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let mut worst = Rounded {
            scale: 0.0,
            error: 0.0,
        };
        let mut meet = |scale: f32, votes: &dyn Fn() -> bool| -> Result<(), FormatError> {
            // whether anyone votes is asked last: it reads the trits
            if !f32_is_f16_exact(scale) && votes() {
                let error = f16_error(scale)?;
                if error > worst.error {
                    worst = Rounded { scale, error };
                }
            }
            Ok(())
        };
        match matrix.scales() {
            Scales::PerTensor(s) => meet(*s, &|| matrix.trits().iter().any(|&t| t != 0))?,
            Scales::PerRow(scales) => {
                for (row, &s) in scales.iter().enumerate() {
                    meet(s, &|| !is_zero(matrix.row(row)))?;
                }
            }
            Scales::PerGroup { group, scales } => {
                let groups = matrix.trits().chunks_exact(*group);
                for (trits, &s) in groups.zip(scales) {
                    meet(s, &|| !is_zero(trits))?;
                }
                if let Some(two) = two_scales_in_a_block(matrix, *group, scales, B::TRITS) {
                    let TwoScales { row, col, a, b } = two;
                    let (name, trits) = (B::NAME, B::TRITS);
                    return Err(FormatError::new(
                        ErrorCode::TargetCannotHold,
                        format!("row {row}, columns from {col}: {name} holds one scale per {trits}, found {a} and {b}"),
                    )
                    .hint(format!("choose a target with blocks of at most {group} columns")));
                }
            }
        }
        if worst.error > 0.0 && rounding == ScaleRounding::Refuse {
            return Err(not_f16(worst.scale, worst.error));
        }
        Ok(worst.error)
    }

    /// One row of blocks.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        row_len::<B>(cols).max(1)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(1)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let cols = matrix.cols();
        if blocks_in::<B>(cols) == 0 {
            return;
        }
        let rows = out.chunks_exact_mut(row_len::<B>(cols));
        for (row, bytes) in (first..matrix.rows()).zip(rows) {
            let blocks = bytes.chunks_exact_mut(B::BYTES);
            let trits = matrix.row(row).chunks_exact(B::TRITS);
            for (at, (block, trits)) in blocks.zip(trits).enumerate() {
                if let Some((codes, scale)) = parts_mut::<B>(block) {
                    B::encode(trits, codes);
                    let d = block_scale::<B>(matrix, row, at, trits);
                    *scale = f32_to_f16(d).to_le_bytes();
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
        let before = first.saturating_mul(blocks_in::<B>(cols));
        let blocks = bytes.chunks_exact(B::BYTES).skip(before);
        let mut clean = true;
        for (trits, block) in out.chunks_exact_mut(B::TRITS).zip(blocks) {
            clean &= B::decode(codes::<B>(block), trits);
            if B::ZERO_BY_SCALE.is_some() && has_zero_scale::<B>(block) {
                trits.fill(0);
            } else if B::SIGNED_SCALES && clean && read_scale::<B>(block) < 0.0 {
                trits
                    .iter_mut()
                    .for_each(|trit| *trit = trit.wrapping_neg());
            }
        }
        if clean {
            Ok(())
        } else {
            Err(bad_code(first, cols, out))
        }
    }

    /// The block scales in normal form: per tensor, else per row, else per group, if the blocks
    /// with a non-zero trit agree; 0 without such a block. Groups are the coarsest that say the same,
    /// so that groups of 128 stored twice in blocks of 64 come back as groups of 128.
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_len(self.stored_len(rows, cols)?)?;
        if blocks_in::<B>(cols) == 0 {
            // no blocks; and the number of rows is then a bare claim, not to be allocated for
            return Ok(Scales::PerTensor(0.0));
        }
        // one voter's scale for the tensor, one per row, all of them: kept while they suffice
        let mut tensor_scale = Vote::Silent;
        let mut by_row = Vec::with_capacity(rows);
        let mut rows_agree = true;
        let mut order = ScaleOrder::default();
        let by_row_of_bytes = bytes.chunks_exact(row_len::<B>(cols)).take(rows);
        for (row, bytes) in by_row_of_bytes.enumerate() {
            let mut row_scale = Vote::Silent;
            for (at, block) in bytes.chunks_exact(B::BYTES).enumerate() {
                let stored = read_scale::<B>(block);
                let magnitude = if B::SIGNED_SCALES {
                    stored.abs()
                } else {
                    stored
                };
                let d = checked_scale(magnitude, || {
                    format!("row {row}, columns from {}: block scale", column::<B>(at))
                })?;
                if !is_silent::<B>(block) {
                    order.meet(stored, || (row, column::<B>(at)));
                    row_scale.meet(d);
                    tensor_scale.meet(d);
                }
            }
            rows_agree &= !matches!(row_scale, Vote::Split);
            by_row.push(row_scale.value());
        }
        order.check()?;
        Ok(match tensor_scale {
            Vote::Split if rows_agree => Scales::PerRow(by_row),
            Vote::Split => {
                let votes = bytes.chunks_exact(B::BYTES).map(|b| {
                    let mut vote = Vote::Silent;
                    if !is_silent::<B>(b) {
                        vote.meet(read_scale::<B>(b).abs());
                    }
                    vote
                });
                coarsest_groups(votes.collect(), B::TRITS, cols)
            }
            one => Scales::PerTensor(one.value()),
        })
    }
}

/// A scale and the relative error of its nearest f16.
struct Rounded {
    scale: f32,
    error: f64,
}

/// Whether the scales of a tensor look like scales. A negative one is legal, and turns the trits of its
/// block round. But where codes are read as scales, in blocks of another order, the sign and the top bit
/// of the exponent are those of a code: a third of the scales are negative, and a third at least 2.
#[derive(Default)]
struct ScaleOrder {
    blocks: usize,
    large: usize,
    negative: Option<(usize, usize, f32)>, // row, column, scale: the first
}

impl ScaleOrder {
    fn meet(&mut self, scale: f32, place: impl Fn() -> (usize, usize)) {
        self.blocks = self.blocks.saturating_add(1);
        let is_large = usize::from(scale.abs() >= 2.0);
        self.large = self.large.saturating_add(is_large);
        if scale < 0.0 && self.negative.is_none() {
            let (row, col) = place();
            self.negative = Some((row, col, scale));
        }
    }

    fn check(&self) -> Result<(), FormatError> {
        match self.negative {
            Some((row, col, scale)) if self.large > self.blocks / 8 => {
                let place = || format!("row {row}, columns from {col}: block scale");
                checked_scale(scale, place).map(|_| ()).map_err(|e| {
                    e.hint("negative scales are read, but not among so many of 2 and more: the order in a block is another")
                })
            }
            _ => Ok(()),
        }
    }
}

/// What the voters met so far say, compared by bits.
#[derive(Clone, Copy)]
pub(super) enum Vote {
    Silent,
    One(f32),
    Split,
}

impl Vote {
    pub(super) fn meet(&mut self, scale: f32) {
        match *self {
            Self::Silent => *self = Self::One(scale),
            Self::One(s) if s.to_bits() != scale.to_bits() => *self = Self::Split,
            _ => {}
        }
    }

    pub(super) fn value(&self) -> f32 {
        if let Self::One(s) = *self { s } else { 0.0 }
    }
}

/// Group scales, groups joined while all pairs agree and the columns allow it.
fn coarsest_groups(mut votes: Vec<Vote>, mut group: usize, cols: usize) -> Scales {
    loop {
        let twice = group.saturating_mul(2);
        if !GROUP_SIZES.contains(&twice) || !cols.is_multiple_of(twice) {
            break;
        }
        let join = |pair: &[Vote; 2]| match *pair {
            [Vote::Silent, other] | [other, Vote::Silent] => Some(other),
            [one @ Vote::One(a), Vote::One(b)] if a.to_bits() == b.to_bits() => Some(one),
            _ => None,
        };
        // rows are whole pairs, so no pair reaches into the next
        let Some(joined) = votes.as_chunks().0.iter().map(join).collect() else {
            break;
        };
        (votes, group) = (joined, twice);
    }
    let scales = votes.iter().map(Vote::value).collect();
    Scales::PerGroup { group, scales }
}

pub(super) fn is_zero(trits: &[i8]) -> bool {
    // no early exit: almost every block has a non-zero trit, and the loop vectorizes without
    trits.iter().fold(0, |any, &t| any | t) == 0
}

/// The refusal of a scale that f16 holds with this relative error.
pub(super) fn not_f16(scale: f32, error: f64) -> FormatError {
    let stored = f32_to_f16(scale);
    FormatError::new(
        ErrorCode::ScaleRounding,
        format!(
            "scale {scale} ({:#010x}) becomes {} ({stored:#06x}) in f16, relative error {error:.1e}",
            scale.to_bits(),
            f16_to_f32(stored)
        ),
    )
    .hint("--allow-scale-rounding")
}

/// Relative error of storing `scale` as f16.
pub(super) fn f16_error(scale: f32) -> Result<f64, FormatError> {
    let stored = f16_to_f32(f32_to_f16(scale));
    let becomes = match stored {
        s if s == 0.0 && scale != 0.0 => "0",
        f32::INFINITY => "infinite",
        _ => return Ok((f64::from(stored) - f64::from(scale)).abs() / f64::from(scale)),
    };
    Err(FormatError::new(
        ErrorCode::TargetCannotHold,
        format!(
            "scale {scale} ({:#010x}) would become {becomes} in f16",
            scale.to_bits()
        ),
    )
    .hint("choose a target with f32 scales, such as gguf-i2_s"))
}

/// Two different scales that trits of one block need.
struct TwoScales {
    row: usize,
    col: usize,
    a: f32,
    b: f32,
}

/// The first block of `trits` columns in which groups that vote differ.
fn two_scales_in_a_block(
    matrix: &TernaryMatrix,
    group: usize,
    scales: &[f32],
    trits: usize,
) -> Option<TwoScales> {
    let per_block = trits.checked_div(group)?;
    let per_row = matrix.cols().checked_div(group)?;
    if per_block < 2 || per_row == 0 {
        return None;
    }
    for (row, scales) in scales.chunks_exact(per_row).enumerate() {
        let blocks = scales.chunks(per_block).zip(matrix.row(row).chunks(trits));
        for (at, (scales, block)) in blocks.enumerate() {
            // groups of equal scale need no look at their trits
            let first = scales.first().map(|s| s.to_bits());
            if scales.iter().all(|s| Some(s.to_bits()) == first) {
                continue;
            }
            let col = at.saturating_mul(trits);
            let mut vote = Vote::Silent;
            for (&b, trits) in scales.iter().zip(block.chunks_exact(group)) {
                if is_zero(trits) {
                    continue;
                }
                let a = vote.value();
                vote.meet(b);
                if matches!(vote, Vote::Split) {
                    return Some(TwoScales { row, col, a, b });
                }
            }
        }
    }
    None
}

/// The scale of one block: 0 where all its trits are, else that of its first trits that vote.
fn block_scale<B: F16Block>(matrix: &TernaryMatrix, row: usize, at: usize, trits: &[i8]) -> f32 {
    if is_zero(trits) {
        return 0.0;
    }
    match matrix.scales() {
        Scales::PerTensor(s) => *s,
        scales => {
            let voter = trits.iter().position(|&t| t != 0).unwrap_or(0);
            let voter = column::<B>(at).saturating_add(voter);
            scales.at(row, voter, matrix.cols())
        }
    }
}
