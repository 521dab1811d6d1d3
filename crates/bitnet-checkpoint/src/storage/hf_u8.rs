//! transformers' packed checkpoints: u8 tensors of four trits a byte, and a `weight_scale`
//! (`formats/packing/hf_u8.md`).
//!
//! Invariant: trits without a scale beside them are not weights.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes;
use super::contract::{Asked, Found, LinearSource, Marks, Storage};
use super::scale_types::{SharedScales, is_exact_scale};
use super::tensors::{Tensors, error, missing};
use super::written::{Form, Made, Output, Part, ScaleForm, WriteStorage, part, scale_name};
use crate::family::{HfStorage, Quantization, ScaleDirection};
use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType, ScaleRounding};
use bitnet_ternary::TernaryMatrix;

/// The packing of transformers' U8 tensors.
pub const HF_PACKING: &str = "hf_u8";

/// The shape of packed rows.
pub(super) fn packed_shape(asked: &Asked<'_>) -> [usize; 2] {
    [asked.rows.div_ceil(4), asked.cols]
}

/// What a scale of this checkpoint means.
pub(super) fn direction(asked: &Asked<'_>) -> ScaleDirection {
    match asked.quantization() {
        Some(Quantization::Offline(direction)) => direction,
        // a module that MLX left alone is as good as unmarked
        _ => asked.marks.family.unmarked_scale,
    }
}

/// The error for trits without a scale.
pub(super) fn missing_scale(asked: &Asked<'_>) -> FormatError {
    let name = &asked.info.name;
    let stem = name.strip_suffix("weight").unwrap_or(name);
    missing(&[&format!("{stem}weight_scale")])
        .hint("trits without a scale are not weights; is the download complete?")
}

/// The error for a tensor that is neither whole nor packed.
pub(crate) fn neither_shape(asked: &Asked<'_>) -> FormatError {
    let (full, packed) = ([asked.rows, asked.cols], packed_shape(asked));
    wrong_shape(asked, format!("{full:?} (or {packed:?} packed)"))
}

pub(super) fn wrong_shape(asked: &Asked<'_>, expected: String) -> FormatError {
    let message = format!("expected shape {expected}, found {:?}", asked.info.shape);
    error(ErrorCode::WrongShape, asked.info, message)
}

/// The row.
#[derive(Debug)]
pub struct HfU8;

impl Storage for HfU8 {
    fn name(&self) -> &'static str {
        HF_PACKING
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
        if !asked.slot.is_ternary() || asked.info.encoding != Encoding::Plain(PlainType::U8) {
            return Ok(None);
        }
        let scale = asked.scale(tensors)?;
        let shape = packed_shape(asked);
        if asked.info.shape != shape {
            let rows = asked.rows;
            let expected = format!("{shape:?} ({rows} rows packed by four)");
            return Err(wrong_shape(asked, expected));
        }
        let Some(scale) = scale else {
            return Err(missing_scale(asked));
        };
        let packing = codes::registered(HF_PACKING).map_err(|e| e.in_tensor(&asked.info.name))?;
        let linear = LinearSource {
            packing: Some(packing),
            beside: vec![scale],
            direction: Some(direction(asked)),
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    codes::answers!();

    fn needs_quantization_config(&self) -> bool {
        true
    }
}

impl HfU8 {
    /// The type of a `weight_scale` that is written anew: that of the embeddings where it holds the multiplier exactly,
    /// because mlx-lm refuses scales of another type than the activations. f32 otherwise.
    fn scale_type(output: &Output<'_>) -> PlainType {
        let Some(plain) = output.computed_in else {
            return PlainType::F32;
        };
        let is_exact = match output.source.storage.value_type(output.source) {
            // the multiplier is the magnitude of weights of this type
            Some(encoding) => encoding == Encoding::Plain(plain),
            None => output
                .one_scale
                .is_some_and(|scale| is_exact_scale(scale, plain)),
        };
        if is_exact { plain } else { PlainType::F32 }
    }
}

impl WriteStorage for HfU8 {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// Codes, and `weight_scale`: the source's own if it has one, else the f32 multiplier.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let packing = output.form.required_packing()?;
        let (rows, cols) = (output.source.rows, output.source.cols);
        let len = packing.packed_len(rows, cols)?;
        let encoding = Encoding::Plain(PlainType::U8);
        let shape = vec![rows.div_ceil(4), cols];
        let codes = output.weights(encoding, shape, len, Made::Codes(packing));
        let name = scale_name(output.name);
        let scale = match output.source.weight_scale() {
            Some((info, _)) if output.keeps_scale => {
                let (shape, made) = (info.shape.clone(), Made::Kept(info.clone()));
                part(name, info.encoding, shape, info.len, made)
            }
            _ => {
                let plain = Self::scale_type(output);
                let made = Made::Scales(ScaleForm::multipliers(output.slot, plain));
                let (encoding, len) = (Encoding::Plain(plain), plain.size() as u64);
                part(name, encoding, vec![1], len, made)
            }
        };
        Ok(vec![codes, scale])
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

    fn scales_biases(&self, kept: Option<ScaleDirection>) -> bool {
        kept.unwrap_or(ScaleDirection::Multiply) == ScaleDirection::Multiply
    }

    fn hf_storage(
        &self,
        _shared: Option<SharedScales>,
        kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        Some(HfStorage::Packed(kept.unwrap_or(ScaleDirection::Multiply)))
    }
}
