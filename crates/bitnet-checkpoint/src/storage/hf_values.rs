//! Bytes of `hf_u8`, each stored as a number of another type (`formats/packing/hf_u8.md`).
//!
//! Invariant: every number is a whole one from 0 to 255; an i8 is the byte itself.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored, UnreadPart};
use super::hf_u8::{HF_PACKING, direction, missing_scale, neither_shape, packed_shape};
use super::tensors::Tensors;
use super::{beside, codes, values};
use crate::family::ScaleDirection;
use bitnet_formats::{Encoding, FormatError, PlainType, TensorInfo};
use bitnet_ternary::Scales;

/// The row.
#[derive(Debug)]
pub struct HfValues;

impl Storage for HfValues {
    fn name(&self) -> &'static str {
        "hf_u8-values"
    }

    fn page(&self) -> &'static str {
        "packing/hf_u8.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        Ok(marks.said.is_some())
    }

    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let info = asked.info;
        let plain = match info.encoding {
            Encoding::Plain(plain) if plain != PlainType::U8 => plain,
            _ => return Ok(None),
        };
        // a matrix of one row has the same shape either way: whole numbers are codes, floats are trits
        let is_full = info.shape == [asked.rows, asked.cols];
        let is_float = plain.is_float_weight();
        let is_packed = info.shape == packed_shape(asked) && !(is_full && is_float);
        if !asked.slot.is_ternary() || !is_packed {
            return Ok(None);
        }
        let Some(scale) = asked.scale(tensors)? else {
            return Err(match is_float {
                true => neither_shape(asked),
                false => missing_scale(asked),
            });
        };
        let linear = LinearSource {
            beside: vec![scale],
            direction: Some(direction(asked)),
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    fn describe(&self, linear: &LinearSource) -> String {
        format!("{HF_PACKING} as {}", linear.info.encoding.name())
    }

    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        let bytes = values::bytes_by_value(stored.plain(), &stored.bytes()?, stored.linear.cols)?;
        codes::read_bytes(stored, codes::registered(HF_PACKING)?, &bytes)
    }

    fn one_scale(&self, stored: &Stored<'_>) -> Option<f32> {
        beside::one_scale(stored)
    }

    fn weight_scale<'a>(
        &self,
        linear: &'a LinearSource,
    ) -> Option<(&'a TensorInfo, ScaleDirection)> {
        linear.outside()
    }

    fn unread(&self, linear: &LinearSource) -> Option<UnreadPart> {
        values::signs_of_zeros(&linear.info)
    }
}
