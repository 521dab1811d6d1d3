//! Tensors of a ternary type of GGUF: the type is the packing (`formats/container/gguf.md`).
//!
//! Invariant: the bytes are as many as the packing needs for the shape; codes and scales are checked when they
//! are read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes;
use super::contract::{Asked, Found, LinearSource, Marks, Storage, UnreadPart};
use super::scale_types::SharedScales;
use super::tensors::{Tensors, error};
use super::written::{Form, Made, Output, Part, WriteStorage};
use crate::family::ScaleDirection;
use bitnet_formats::{Encoding, ErrorCode, FormatError, Packing, ScaleRounding, packing_by_name};
use bitnet_ternary::TernaryMatrix;

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
        let of_type = |l: &&dyn Packing| l.gguf_type() == packing.gguf_type();
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

    codes::answers!();

    fn unread(&self, linear: &LinearSource) -> Option<UnreadPart> {
        codes::unread(linear)
    }
}

/// Packings of GGUF whose rows stand by themselves and whose readers take embeddings in them. Those of
/// bitnet.cpp are read in products only, and llama.cpp's other programs have none.
const TABLE_PACKINGS: [&str; 6] = ["tq1_0", "tq2_0", "q2_0", "pq2_0", "ptq1_0", "q1_0"];

impl WriteStorage for Packed {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let packing = output.form.required_packing()?;
        let (rows, cols) = (output.source.rows, output.source.cols);
        let len = packing.packed_len(rows, cols)?;
        let encoding = Encoding::Ternary(packing);
        let made = Made::Codes(packing);
        Ok(vec![output.weights(encoding, vec![rows, cols], len, made)])
    }

    fn check(
        &self,
        form: &Form,
        _shared: Option<SharedScales>,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        form.required_packing()?.check_scales(matrix, rounding)
    }

    fn table_packing(&self, form: &Form) -> Option<&'static dyn Packing> {
        let is_table = |name: &&str| TABLE_PACKINGS.contains(name);
        form.packing.filter(is_table).and_then(packing_by_name)
    }

    fn gguf_file_type(&self, form: &Form) -> Option<u32> {
        form.packing()?.gguf_file_type()
    }
}
