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

/// The layout of one block type. Slices handed in have exactly the lengths the constants say.
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
    /// Where in the block the f16 scale stands.
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

    /// Whether the stored scale is 0.
    fn has_zero_scale(block: &[u8]) -> bool {
        block[Self::SCALE_AT] == 0 && block[Self::SCALE_AT + 1] & 0x7f == 0
    }

    /// Writes the codes of one block, `(TRITS,)` into `(BYTES,)`; leaves the scale alone.
    fn encode(trits: &[i8], block: &mut [u8]);
    /// Reads the codes of one block, code 3 as the trit 2; whether there was none.
    fn decode(block: &[u8], trits: &mut [i8]) -> bool;
    /// Whether all trits of the block are 0.
    fn is_silent(block: &[u8]) -> bool;
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
        elements(rows, cols / B::TRITS * B::BYTES)
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
                let from = at * B::TRITS;
                let has_scale = matrix.scales().at(row, from + voter, cols) != 0.0;
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
        (cols / B::TRITS * B::BYTES).max(1)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(1)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let per_row = matrix.cols() / B::TRITS;
        if per_row == 0 {
            return;
        }
        let rows = out.chunks_exact_mut(per_row * B::BYTES);
        for (row, bytes) in (first..matrix.rows()).zip(rows) {
            let blocks = bytes.chunks_exact_mut(B::BYTES);
            let trits = matrix.row(row).chunks_exact(B::TRITS);
            for (at, (block, trits)) in blocks.zip(trits).enumerate() {
                B::encode(trits, block);
                let d = block_scale::<B>(matrix.scales(), row, at, per_row, trits);
                block[B::SCALE_AT..B::SCALE_AT + 2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
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
        let blocks = bytes.chunks_exact(B::BYTES).skip(first * (cols / B::TRITS));
        let mut clean = true;
        for (trits, block) in out.chunks_exact_mut(B::TRITS).zip(blocks) {
            clean &= B::decode(block, trits);
            if B::ZERO_BY_SCALE.is_some() && B::has_zero_scale(block) {
                trits.fill(0);
            } else if B::SIGNED_SCALES && clean && read_scale::<B>(block) < 0.0 {
                trits.iter_mut().for_each(|trit| *trit = -*trit);
            }
        }
        if clean {
            Ok(())
        } else {
            Err(bad_code(first, cols, out))
        }
    }

    /// The block scales in normal form: per tensor, else per row, else per group, as far as blocks
    /// with a non-zero trit agree; 0 where nobody votes. Groups are the coarsest that say the same,
    /// so that groups of 128 stored twice in blocks of 64 come back as groups of 128.
    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_len(self.stored_len(rows, cols)?)?;
        let per_row = cols / B::TRITS;
        if per_row == 0 {
            // no blocks; and the number of rows is then a bare claim, not to be allocated for
            return Ok(Scales::PerTensor(0.0));
        }
        // one voter's scale for the tensor, one per row, all of them: kept while they suffice
        let mut tensor_scale = Vote::Silent;
        let mut by_row = Vec::with_capacity(rows);
        let mut rows_agree = true;
        let mut order = ScaleOrder::default();
        for row in 0..rows {
            let mut row_scale = Vote::Silent;
            for at in 0..per_row {
                let start = (row * per_row + at) * B::BYTES;
                let block = &bytes[start..start + B::BYTES];
                let stored = read_scale::<B>(block);
                let magnitude = if B::SIGNED_SCALES {
                    stored.abs()
                } else {
                    stored
                };
                let d = checked_scale(magnitude, || {
                    format!("row {row}, columns from {}: block scale", at * B::TRITS)
                })?;
                if !B::is_silent(block) {
                    order.meet(stored, || (row, at * B::TRITS));
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
                    if !B::is_silent(b) {
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
        self.blocks += 1;
        self.large += usize::from(scale.abs() >= 2.0);
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
    while GROUP_SIZES.contains(&(group * 2)) && cols.is_multiple_of(group * 2) {
        let join = |pair: &[Vote; 2]| match *pair {
            [Vote::Silent, other] | [other, Vote::Silent] => Some(other),
            [Vote::One(a), Vote::One(b)] if a.to_bits() == b.to_bits() => Some(pair[0]),
            _ => None,
        };
        // rows are whole pairs, so no pair reaches into the next
        let Some(joined) = votes.as_chunks().0.iter().map(join).collect() else {
            break;
        };
        (votes, group) = (joined, group * 2);
    }
    let scales = votes.iter().map(Vote::value).collect();
    Scales::PerGroup { group, scales }
}

pub(super) fn is_zero(trits: &[i8]) -> bool {
    // no early exit: almost every block has a non-zero trit, and the loop vectorises without
    trits.iter().fold(0, |any, &t| any | t) == 0
}

fn read_scale<B: F16Block>(block: &[u8]) -> f32 {
    f16_to_f32(u16::from_le_bytes([
        block[B::SCALE_AT],
        block[B::SCALE_AT + 1],
    ]))
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
    let (cols, per_block) = (matrix.cols(), trits / group);
    if per_block < 2 || cols == 0 {
        return None;
    }
    for (row, scales) in scales.chunks_exact(cols / group).enumerate() {
        for (at, scales) in scales.chunks(per_block).enumerate() {
            // groups of equal scale need no look at their trits
            if scales.iter().all(|s| s.to_bits() == scales[0].to_bits()) {
                continue;
            }
            let col = at * trits;
            let mut vote = Vote::Silent;
            for (&b, trits) in scales
                .iter()
                .zip(matrix.row(row)[col..].chunks_exact(group))
            {
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
fn block_scale<B: F16Block>(
    scales: &Scales,
    row: usize,
    at: usize,
    per_row: usize,
    trits: &[i8],
) -> f32 {
    if is_zero(trits) {
        return 0.0;
    }
    match scales {
        Scales::PerTensor(s) => *s,
        Scales::PerRow(s) => s[row],
        Scales::PerGroup { group, scales } => {
            let row_scales = &scales[row * per_row * B::TRITS / group..];
            let voter = trits.iter().position(|&t| t != 0).unwrap_or(0);
            row_scales[(at * B::TRITS + voter) / group]
        }
    }
}
