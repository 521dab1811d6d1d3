//! `mlx_2bit`: MLX's affine 2-bit codes (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a row is a stream of 2-bit codes, the first in the lowest bits, code = trit + 1: as
//! little-endian u32 what MLX stores. Scales and biases are tensors beside the codes; what is
//! written has bias = -scale. What is read may be any affine code whose used values are -m, 0 and +m
//! ([`ternary_of_affine`]); everything else is refused, because MLX's own quantizer packs ternary weights as
//! other values.

use super::{
    PackedTensor, Packing, ScaleRounding, UnitRows, bad_code, decode_quads, div_rem, elements,
    encode_quads, from, matrix_error, outside_scales,
};
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix};

/// safetensors U32 `[rows, cols / 16]`; see the module.
#[derive(Debug)]
pub(super) struct Mlx2bit;

/// Group sizes that MLX has kernels for.
const GROUPS: [usize; 3] = [128, 64, 32];

impl Packing for Mlx2bit {
    fn name(&self) -> &'static str {
        "mlx_2bit"
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
        if !cols.is_multiple_of(32) {
            return Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!("mlx_2bit needs a multiple of 32 columns, found {cols}"),
            )
            .hint("choose a target without groups, such as hf-packed"));
        }
        Ok(elements(rows, cols)? / 4)
    }

    /// One scale per group, and every structure is one of groups; the type of the scales, and so
    /// their rounding, is their writer's choice.
    fn check_scales(&self, _: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        Ok(0.0)
    }

    /// One row.
    fn unit_len(&self, _rows: usize, cols: usize) -> usize {
        (cols / 4).max(1)
    }

    fn unit_rows(&self, _rows: usize, _cols: usize) -> UnitRows {
        UnitRows::Consecutive(1)
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let start = first.saturating_mul(matrix.cols());
        if let Some(trits) = matrix.trits().get(start..) {
            encode_quads(trits, out);
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
        if decode_quads(from(bytes, first.saturating_mul(cols / 4)), out) {
            Ok(())
        } else {
            Err(bad_code(first, cols, out))
        }
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        outside_scales(tensor, self.name())
    }
}

/// The tensors of one MLX matrix, widened to f32.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// The bytes of `weight`.
    pub codes: &'a [u8],
    /// Rows.
    pub rows: usize,
    /// Columns (16 per word of `weight`).
    pub cols: usize,
    /// Columns per scale: 32, 64 or 128.
    pub group: usize,
    /// `(rows, cols / group)`.
    pub scales: &'a [f32],
    /// `(rows, cols / group)`.
    pub biases: &'a [f32],
}

/// The ternary matrix of an affine pack: weight = scale * code + bias.
///
/// # Errors
/// As [`affine_rows`].
pub fn ternary_of_affine(affine: &Affine<'_>) -> Result<TernaryMatrix, FormatError> {
    let Affine {
        rows, cols, group, ..
    } = *affine;
    affine.check()?;
    let mut trits = vec![0i8; elements(rows, cols)? as usize];
    let mut scales = vec![0.0; affine.scales.len()];
    affine_rows(affine, 0, &mut trits, &mut scales)?;
    TernaryMatrix::new(rows, cols, trits, Scales::PerGroup { group, scales })
        .map_err(|e| matrix_error(&e))
}

impl Affine<'_> {
    /// The codes, as a packed tensor whose scales lie beside it.
    pub(super) fn packed(&self) -> PackedTensor<'_> {
        PackedTensor {
            bytes: self.codes,
            rows: self.rows,
            cols: self.cols,
            outside: None,
        }
    }

    /// Whether the tensors fit each other.
    fn check(&self) -> Result<(), FormatError> {
        let len = Mlx2bit.packed_len(self.rows, self.cols)?;
        self.packed().check_len(len)?;
        self.check_numbers()
    }

    /// Whether scales and biases fit the shape.
    pub(super) fn check_numbers(&self) -> Result<(), FormatError> {
        let Affine {
            codes: _,
            rows,
            cols,
            group,
            scales,
            biases,
        } = *self;
        let per_row = cols.checked_div(group).unwrap_or(0);
        let fits = GROUPS.contains(&group)
            && cols.is_multiple_of(group)
            && scales.len() as u64 == elements(rows, per_row)?
            && biases.len() == scales.len();
        if fits {
            return Ok(());
        }
        let (n, m) = (scales.len(), biases.len());
        Err(FormatError::new(
            ErrorCode::Malformed,
            format!("{n} scales and {m} biases in groups of {group} do not fit {rows} x {cols}"),
        ))
    }
}

/// Some rows of an affine pack, from `first` on: trits `(n, cols)` and the magnitudes of their groups
/// `(n, cols / group)`.
///
/// # Errors
/// `not-ternary` where the values that a group uses are not -m, 0 and +m for one m; `non-finite`;
/// `malformed` and `truncated` for tensors that do not fit each other; `usage` for rows that the matrix
/// does not have.
pub fn affine_rows(
    affine: &Affine<'_>,
    first: usize,
    trits: &mut [i8],
    magnitudes: &mut [f32],
) -> Result<(), FormatError> {
    affine.check()?;
    let Affine {
        codes,
        rows,
        cols,
        group,
        scales,
        biases,
    } = *affine;
    affine
        .packed()
        .check_rows(Mlx2bit.packed_len(rows, cols)?, first, trits.len())?;
    let (found, (expected, _)) = (magnitudes.len(), div_rem(trits.len(), group));
    if found != expected {
        let message = format!("expected room for {expected} scales, found {found}");
        return Err(FormatError::new(ErrorCode::Usage, message));
    }
    let (per_row, _) = div_rem(cols, group);
    let start = first.saturating_mul(per_row);
    let codes = from(codes, first.saturating_mul(cols / 4)).chunks_exact(group / 4);
    let numbers = scales.iter().zip(biases).skip(start);
    let out = trits.chunks_exact_mut(group).zip(magnitudes);
    for (at, (((trits, magnitude), codes), (&scale, &bias))) in
        (start..).zip(out.zip(codes).zip(numbers))
    {
        let usual = scale >= 0.0 && scale.is_finite() && bias == -scale;
        if usual && decode_quads(codes, trits) {
            *magnitude = scale;
            continue;
        }
        *magnitude = unusual_group(codes, trits, scale, bias).map_err(|(code, found)| {
            let (row, number) = div_rem(at, per_row);
            let col = number.saturating_mul(group);
            FormatError::new(
                code,
                format!("row {row}, columns from {col}: expected an affine code of -m, 0 and +m, found {found} (scale {scale}, bias {bias})"),
            )
            .hint("convert the model it was made from: MLX's own quantizer does not keep ternary weights")
        })?;
    }
    Ok(())
}

/// A group whose bias is not -scale, or which has code 3: ternary if the values it uses are.
fn unusual_group(
    codes: &[u8],
    trits: &mut [i8],
    scale: f32,
    bias: f32,
) -> Result<f32, (ErrorCode, String)> {
    if !scale.is_finite() || !bias.is_finite() {
        return Err((
            ErrorCode::NonFinite,
            "a number that is not finite".to_owned(),
        ));
    }
    let mut used = [false; 4];
    for (byte, quad) in codes.iter().zip(trits.as_chunks_mut::<4>().0) {
        *quad = [0, 2, 4, 6].map(|shift| (byte.wrapping_shr(shift) & 3) as i8);
        for (code, used) in (0..).zip(&mut used) {
            *used |= quad.contains(&code);
        }
    }
    // f64 holds the product and the sum of two 16-bit floats exactly, of two f32 mostly
    let value = |code: u8| f64::from(scale) * f64::from(code) + f64::from(bias);
    let values = [0u8, 1, 2, 3].map(value);
    let of_used = || values.into_iter().zip(used).filter(|(_, used)| *used);
    let magnitude = of_used().map(|(value, _)| value.abs()).fold(0.0, f64::max);
    let meaning = |value: f64| match value {
        0.0 => Some(0),
        v if v == magnitude => Some(1),
        v if v == -magnitude => Some(-1),
        _ => None,
    };
    if let Some((v, _)) = of_used().find(|(value, _)| meaning(*value).is_none()) {
        return Err((ErrorCode::NotTernary, format!("{v} beside {magnitude}")));
    }
    let meanings = values.map(|value| meaning(value).unwrap_or(0));
    for t in trits {
        *t = meanings.get(*t as usize & 3).copied().unwrap_or_default();
    }
    let narrow = magnitude as f32;
    if f64::from(narrow) == magnitude {
        Ok(narrow)
    } else {
        Err((
            ErrorCode::NotTernary,
            format!("{magnitude}, which is no f32"),
        ))
    }
}

/// The scales to store beside the codes of `matrix` in groups of `group` columns,
/// `(rows, cols / group)`; the biases are these with the sign turned.
///
/// # Errors
/// `target-cannot-hold` for a group size that MLX has not or that does not divide the columns, and
/// for two scales of non-zero trits in one group.
pub fn affine_scales(matrix: &TernaryMatrix, group: usize) -> Result<Vec<f32>, FormatError> {
    let cols = matrix.cols();
    let cannot = |message: String| {
        FormatError::new(ErrorCode::TargetCannotHold, message)
            .hint("MLX has groups of 32, 64 and 128 columns")
    };
    if !GROUPS.contains(&group) || !cols.is_multiple_of(group) {
        return Err(cannot(format!(
            "groups of {group} do not fit {cols} columns"
        )));
    }
    let fine = match matrix.scales() {
        Scales::PerGroup { group: fine, .. } if *fine < group => *fine,
        _ => group,
    };
    let mut out = Vec::with_capacity(div_rem(matrix.trits().len(), group).0);
    for row in 0..matrix.rows() {
        for (at, trits) in matrix.row(row).chunks_exact(group).enumerate() {
            let col = at.saturating_mul(group);
            let scale = |part: usize| {
                let col = col.saturating_add(part.saturating_mul(fine));
                matrix.scales().at(row, col, cols)
            };
            let mut parts = trits.chunks_exact(fine).enumerate();
            let mut votes = parts
                .by_ref()
                .filter(|(_, trits)| trits.iter().any(|&t| t != 0))
                .map(|(part, _)| scale(part));
            let first = votes.next().unwrap_or_else(|| scale(0));
            if let Some(other) = votes.find(|s| s.to_bits() != first.to_bits()) {
                return Err(cannot(format!(
                    "row {row}, columns from {col}: mlx_2bit holds one scale per {group}, found {first} and {other}"
                )));
            }
            out.push(first);
        }
    }
    Ok(out)
}
