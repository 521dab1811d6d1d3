//! MLX's affine 1-bit codes, which are read and not written (`formats/packing/mlx_1bit.md`).
//!
//! Invariant: a group stands for -d and +d, or for zeros alone: its bias is exactly minus half of its scale. Every
//! other pair of scale and bias is refused with its place.

use super::{div_rem, elements, from, mlx_2bit::Affine};
use crate::error::{ErrorCode, FormatError};

/// Some rows of a pack of 1-bit codes, from `first` on: trits `(n, cols)` and the magnitudes of their groups
/// `(n, cols / group)`. A row is a stream of bits, the first in the lowest; the value of a bit is
/// `scale * bit + bias`.
///
/// # Errors
/// `not-ternary` for a bias that is not `-scale / 2`; `non-finite`; `malformed` and `truncated` for tensors that do
/// not fit each other; `usage` for rows that the matrix does not have.
pub fn binary_rows(
    affine: &Affine<'_>,
    first: usize,
    trits: &mut [i8],
    magnitudes: &mut [f32],
) -> Result<(), FormatError> {
    let Affine {
        codes,
        rows,
        cols,
        group,
        scales,
        biases,
    } = *affine;
    affine.check_numbers()?;
    affine
        .packed()
        .check_rows(elements(rows, cols)? / 8, first, trits.len())?;
    let (found, (expected, _)) = (magnitudes.len(), div_rem(trits.len(), group));
    if found != expected {
        let message = format!("expected room for {expected} scales, found {found}");
        return Err(FormatError::new(ErrorCode::Usage, message));
    }
    let (per_row, _) = div_rem(cols, group);
    let start = first.saturating_mul(per_row);
    let codes = from(codes, first.saturating_mul(cols / 8)).chunks_exact(group / 8);
    let numbers = scales.iter().zip(biases).skip(start);
    let out = trits.chunks_exact_mut(group).zip(magnitudes);
    for (at, (((trits, magnitude), codes), (&scale, &bias))) in
        (start..).zip(out.zip(codes).zip(numbers))
    {
        if !scale.is_finite() || !bias.is_finite() || f64::from(bias) * -2.0 != f64::from(scale) {
            let (row, number) = div_rem(at, per_row);
            let col = number.saturating_mul(group);
            let code = match scale.is_finite() && bias.is_finite() {
                true => ErrorCode::NotTernary,
                false => ErrorCode::NonFinite,
            };
            let message = format!(
                "row {row}, columns from {col}: expected a bias of exactly -scale / 2, found scale {scale}, bias {bias}"
            );
            return Err(FormatError::new(code, message).hint(
                "the group does not stand for -d and +d; convert from the model that it was made of",
            ));
        }
        *magnitude = bias.abs();
        // the value of bit 1 is minus the bias
        let (negative, positive) = match scale {
            0.0 => (0, 0),
            scale if scale > 0.0 => (-1, 1),
            _ => (1, -1),
        };
        for (byte, eight) in codes.iter().zip(trits.as_chunks_mut::<8>().0) {
            for (bit, t) in eight.iter_mut().enumerate() {
                *t = match byte >> bit & 1 {
                    0 => negative,
                    _ => positive,
                };
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        codes: &[u8],
        scales: &[f32],
        biases: &[f32],
    ) -> Result<(Vec<i8>, Vec<f32>), FormatError> {
        let affine = Affine {
            codes,
            rows: 2,
            cols: 64,
            group: 32,
            scales,
            biases,
        };
        let (mut trits, mut magnitudes) = (vec![9; 128], vec![9.0; 4]);
        binary_rows(&affine, 0, &mut trits, &mut magnitudes)?;
        Ok((trits, magnitudes))
    }

    #[test]
    fn bits_are_minus_and_plus_the_half_of_a_scale() {
        let codes: Vec<u8> = [0x01u8, 0x80, 0xff, 0x00].repeat(4);
        let (trits, magnitudes) =
            read(&codes, &[0.5, -3.0, 0.0, 1e-7], &[-0.25, 1.5, -0.0, -5e-8]).unwrap();
        assert_eq!(magnitudes, [0.25, 1.5, 0.0, 5e-8]);
        let mut plain = vec![-1i8; 32];
        for at in [0, 15, 16, 17, 18, 19, 20, 21, 22, 23] {
            plain[at] = 1;
        }
        let turned: Vec<i8> = plain.iter().map(|t| -t).collect();
        let expected = [&plain[..], &turned, &[0; 32], &plain].concat();
        assert_eq!(trits, expected);
    }

    #[test]
    fn other_biases_are_refused_with_their_place() {
        let codes = [0u8; 16];
        let scales = [1.0, 1.0, 1.0, 1.0];
        for (biases, code) in [
            (
                [-0.5, -0.5, -0.5f32, -0.5f32.next_up()],
                ErrorCode::NotTernary,
            ),
            ([-0.5, -0.5, -0.5, 0.5], ErrorCode::NotTernary),
            ([-0.5, -0.5, -0.5, -1.0], ErrorCode::NotTernary),
            ([-0.5, -0.5, -0.5, f32::NAN], ErrorCode::NonFinite),
        ] {
            let error = read(&codes, &scales, &biases).unwrap_err();
            assert_eq!(error.code, code);
            assert!(
                error.message.starts_with("row 1, columns from 32:"),
                "{error}"
            );
        }
        assert!(read(&codes[1..], &scales, &[-0.5; 4]).is_err());
        assert!(read(&codes, &scales[1..], &[-0.5; 4]).is_err());
    }
}
