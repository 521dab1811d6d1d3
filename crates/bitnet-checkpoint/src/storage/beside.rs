//! The one scale in a tensor beside the weights, which multiplies or divides.
//!
//! Invariant: a scale becomes a multiplier in one rounding of f32, the same for every row that has one; a product
//! with the scales of the weights themselves has to be exact.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::Stored;
use super::values;
use crate::family::ScaleDirection;
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, PackedTensor, Packing, PlainType, TensorInfo,
};
use bitnet_ternary::Scales;

/// The scales of a packed tensor: its own, the one beside it, or both.
pub(super) fn packed_scales(
    stored: &Stored<'_>,
    packing: &'static dyn Packing,
    tensor: &PackedTensor<'_>,
) -> Result<Scales, FormatError> {
    if packing.holds_scales() {
        return with_outside(stored, packing.scales(tensor)?);
    }
    let scale = match stored.linear.outside() {
        Some((info, direction)) => multiplier(stored, info, direction)?,
        None => 1.0,
    };
    Ok(Scales::PerTensor(scale))
}

/// Scales times the one stored beside the tensor; the product has to be exact.
pub(super) fn with_outside(stored: &Stored<'_>, scales: Scales) -> Result<Scales, FormatError> {
    let Some((info, direction)) = stored.linear.outside() else {
        return Ok(scales);
    };
    let factor = multiplier(stored, info, direction)?;
    let product = |s: f32| {
        // two 24-bit significands fit f64
        let exact = f64::from(s) * f64::from(factor);
        let rounded = exact as f32;
        if f64::from(rounded) == exact {
            return Ok(rounded);
        }
        Err(FormatError::new(
            ErrorCode::ScaleRounding,
            format!(
                "expected a product that f32 holds, found {s} * {factor} ({})",
                info.name
            ),
        ))
    };
    // the quotient of a magnitude other than 1 would round differently in every reader
    let other = scales.as_slice().iter().find(|s| **s != 1.0 && **s != 0.0);
    if direction == ScaleDirection::Divide
        && let Some(other) = other
    {
        return Err(FormatError::new(
            ErrorCode::Malformed,
            format!(
                "expected bare trits beside a dividing `{}`, found magnitude {other}",
                info.name
            ),
        ));
    }
    let products = |scales: Vec<f32>| scales.into_iter().map(product).collect::<Result<_, _>>();
    Ok(match scales {
        Scales::PerTensor(s) => Scales::PerTensor(product(s)?),
        Scales::PerRow(s) => Scales::PerRow(products(s)?),
        Scales::PerGroup { group, scales } => Scales::PerGroup {
            group,
            scales: products(scales)?,
        },
    })
}

/// A stored scale as multiplier: `fl32(1 / weight_scale)` where it divides.
fn multiplier(
    stored: &Stored<'_>,
    info: &TensorInfo,
    direction: ScaleDirection,
) -> Result<f32, FormatError> {
    let found = value(stored, info)?;
    let bad = |code, expected: &str| {
        let message = format!("expected {expected}, found {found}");
        Err(stored.place(FormatError::new(code, message), info))
    };
    if !found.is_finite() {
        return bad(ErrorCode::NonFinite, "a finite scale");
    }
    match direction {
        ScaleDirection::Multiply if found < 0.0 => {
            bad(ErrorCode::Malformed, "a scale that is not negative")
        }
        ScaleDirection::Multiply => Ok(found.abs()),
        ScaleDirection::Divide if found <= 0.0 => bad(ErrorCode::Malformed, "a positive divisor"),
        ScaleDirection::Divide => {
            let multiplier = 1.0 / found;
            if multiplier.is_finite() {
                Ok(multiplier)
            } else {
                bad(ErrorCode::NonFinite, "a divisor whose inverse is finite")
            }
        }
    }
}

/// The number in a scale tensor.
pub(crate) fn value(stored: &Stored<'_>, info: &TensorInfo) -> Result<f32, FormatError> {
    let values = match info.encoding {
        Encoding::Plain(plain) => values::small_values(plain, &stored.bytes_of(info)?),
        _ => Ok(Vec::new()),
    };
    let value = values.map_err(|e| stored.place(e, info))?.first().copied();
    value.ok_or_else(|| {
        stored.place(
            FormatError::new(ErrorCode::WrongShape, "expected 1 element, found none"),
            info,
        )
    })
}

/// The multiplier that the scale beside the weights seems to be, whatever else may be wrong with it.
pub(super) fn one_scale(stored: &Stored<'_>) -> Option<f32> {
    let (info, direction) = stored.linear.outside()?;
    let value = value(stored, info).ok()?;
    Some(match direction {
        ScaleDirection::Multiply => value,
        ScaleDirection::Divide => 1.0 / value,
    })
}

/// A scale for `weight_scale`: BF16 where that is exact, F32 otherwise.
pub fn weight_scale_bytes(scale: f32) -> (PlainType, Vec<u8>) {
    if bitnet_ternary::f32_is_bf16_exact(scale) {
        (
            PlainType::Bf16,
            bitnet_ternary::f32_to_bf16(scale).to_le_bytes().to_vec(),
        )
    } else {
        (PlainType::F32, scale.to_le_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_takes_two_bytes_only_where_they_hold_it() {
        assert_eq!(
            weight_scale_bytes(37.5),
            (PlainType::Bf16, vec![0x16, 0x42])
        );
        assert_eq!(weight_scale_bytes(0.1).0, PlainType::F32);
    }
}
