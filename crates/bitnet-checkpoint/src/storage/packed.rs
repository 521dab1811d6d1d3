//! Tensors of a ternary type of GGUF: the type is the packing (`formats/container/gguf.md`).
//!
//! Invariant: the bytes are as many as the packing needs for the shape; codes and scales are checked when they
//! are read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes;
use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored, UnreadPart};
use super::tensors::{Tensors, error};
use crate::family::ScaleDirection;
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorInfo};
use bitnet_ternary::Scales;

/// The row.
#[derive(Debug)]
pub struct Packed;

impl Storage for Packed {
    fn name(&self) -> &'static str {
        "packed"
    }

    fn page(&self) -> &'static str {
        "container/gguf.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        Ok(marks.said.is_none())
    }

    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let info = asked.info;
        let Encoding::Ternary(packing) = info.encoding else {
            return Ok(None);
        };
        let scale = asked.scale(tensors)?;
        tensors.check_shape(info, &[asked.rows, asked.cols])?;
        let of_type = |l: &&dyn bitnet_formats::Packing| l.gguf_type() == packing.gguf_type();
        let packing = asked.marks.layout.filter(of_type).unwrap_or(packing);
        let expected = packing
            .stored_len(asked.rows, asked.cols)
            .map_err(|e| e.in_tensor(&info.name))?;
        if info.len != expected {
            let message = format!(
                "expected {expected} bytes of {}, found {}",
                packing.name(),
                info.len
            );
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let linear = LinearSource {
            packing: Some(packing),
            direction: scale.as_ref().map(|_| ScaleDirection::Multiply),
            beside: scale.into_iter().collect(),
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    fn describe(&self, linear: &LinearSource) -> String {
        codes::describe(linear)
    }

    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        codes::read(stored)
    }

    fn scales(&self, stored: &Stored<'_>) -> Result<Option<Scales>, FormatError> {
        codes::scales(stored)
    }

    fn one_scale(&self, stored: &Stored<'_>) -> Option<f32> {
        codes::one_scale(stored)
    }

    fn weight_scale<'a>(
        &self,
        linear: &'a LinearSource,
    ) -> Option<(&'a TensorInfo, ScaleDirection)> {
        linear.outside()
    }

    fn unread(&self, linear: &LinearSource) -> Option<UnreadPart> {
        codes::unread(linear)
    }
}
