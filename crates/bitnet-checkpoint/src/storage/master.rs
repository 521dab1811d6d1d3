//! Master weights, which the absmean rule makes ternary (`formats/absmean.md`).
//!
//! Invariant: only a configuration that says so makes master weights of a tensor here; what the values of
//! unmarked floats show is judged in [`super::unmarked`].

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored};
use super::hf_u8::wrong_shape;
use super::tensors::{Tensors, error};
use super::written::{Made, Output, Part, WriteStorage};
use super::{floats, values};
use crate::family::Quantization;
use bitnet_formats::{Encoding, ErrorCode, FormatError};
use bitnet_ternary::Scales;

/// The row.
#[derive(Debug)]
pub struct Master;

impl Storage for Master {
    fn name(&self) -> &'static str {
        "master"
    }

    fn page(&self) -> &'static str {
        "absmean.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        let said = marks.said.as_ref();
        Ok(said.is_some_and(|said| said.quantization == Quantization::Online))
    }

    /// The configuration says master weights, and readers quantize whatever numbers stand here.
    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let info = asked.info;
        let Encoding::Plain(plain) = info.encoding else {
            return Ok(None);
        };
        if !asked.slot.is_ternary() {
            return Ok(None);
        }
        let scale = asked.scale(tensors)?;
        if !plain.is_float_weight() {
            let found = info.encoding.name();
            let message = format!(
                "expected f32, f16 or bf16 master weights (online quantization), found {found}"
            );
            return Err(error(ErrorCode::WrongType, info, message));
        }
        let full = [asked.rows, asked.cols];
        if info.shape != full {
            return Err(wrong_shape(asked, format!("{full:?}")));
        }
        if let Some(scale) = scale {
            let message =
                "expected no scale beside master weights (online quantization), found one";
            return Err(error(ErrorCode::ExtraTensor, &scale, message.to_owned()));
        }
        Ok(Some(asked.linear(&Self).into()))
    }

    fn describe(&self, linear: &LinearSource) -> String {
        format!("{} master", linear.info.encoding.name())
    }

    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        values::absmean(stored.plain(), &stored.bytes()?, stored.linear.cols)
    }

    fn is_master(&self) -> bool {
        true
    }

    fn change(&self, stored: &Stored<'_>) -> Result<Option<(f64, f64)>, FormatError> {
        let Encoding::Plain(plain) = stored.linear.info.encoding else {
            return Ok(None);
        };
        values::absmean_change(plain, &stored.bytes()?, stored.linear.cols).map(Some)
    }
}

impl WriteStorage for Master {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// Master weights as they are; anything else as numbers.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        if !output.source.is_master() {
            return floats::numbers(output);
        }
        let LinearSource {
            info, rows, cols, ..
        } = output.source;
        let shape = vec![*rows, *cols];
        Ok(vec![output.weights(
            info.encoding,
            shape,
            info.len,
            Made::AsStored,
        )])
    }
}
