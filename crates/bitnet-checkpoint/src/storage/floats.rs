//! Numbers that already are `trit * scale`, or trits with a scale beside them (`formats/absmean.md`).
//!
//! Invariant: the scale is read off the values, never computed by the absmean rule, which would destroy scales
//! per row.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored, UnreadPart};
use super::hf_u8::{direction, missing_scale};
use super::tensors::Tensors;
use super::written::{Form, Made, Output, Part, WriteStorage};
use super::{beside, values};
use crate::family::{Quantization, ScaleDirection};
use bitnet_formats::{Encoding, FormatError, PlainType, TensorInfo, dense_len};
use bitnet_ternary::Scales;

/// The row.
#[derive(Debug)]
pub struct Floats;

impl Floats {
    fn linear(
        &self,
        asked: &Asked<'_>,
        scale: Option<(TensorInfo, ScaleDirection)>,
    ) -> LinearSource {
        let (beside, direction) = scale.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
        LinearSource {
            beside,
            direction: direction.first().copied(),
            ..asked.linear(&Self)
        }
    }

    /// In a file that is read by its own metadata.
    fn by_type(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        if !matches!(asked.info.encoding, Encoding::Plain(plain) if plain.is_float_weight()) {
            return Ok(None);
        }
        let scale = asked.scale(tensors)?;
        tensors.check_shape(asked.info, &[asked.rows, asked.cols])?;
        let scale = scale.map(|scale| (scale, ScaleDirection::Multiply));
        Ok(Some(Found {
            linear: self.linear(asked, scale),
            is_unmarked: asked.slot.is_ternary(),
        }))
    }

    /// In a checkpoint with a `config.json`.
    fn by_shape(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let plain = match asked.info.encoding {
            Encoding::Plain(plain) if plain != PlainType::U8 => plain,
            _ => return Ok(None),
        };
        if asked.info.shape != [asked.rows, asked.cols] {
            return Ok(None);
        }
        if let Some(scale) = asked.scale(tensors)? {
            let linear = self.linear(asked, Some((scale, direction(asked))));
            return Ok(Some(linear.into()));
        }
        let is_marked = matches!(asked.quantization(), Some(Quantization::Offline(_)));
        if is_marked || !plain.is_float_weight() {
            return Err(missing_scale(asked));
        }
        Ok(Some(Found {
            linear: self.linear(asked, None),
            is_unmarked: true,
        }))
    }
}

impl Storage for Floats {
    fn name(&self) -> &'static str {
        "floats"
    }

    fn page(&self) -> &'static str {
        "absmean.md"
    }

    fn applies(&self, _marks: &Marks<'_>) -> Result<bool, FormatError> {
        Ok(true)
    }

    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let is_table = !asked.slot.is_ternary();
        if is_table && !tensors.is_ternary_table(asked.info, &[asked.rows, asked.cols])? {
            return Ok(None);
        }
        match (asked.quantization(), is_table) {
            (None, _) => self.by_type(asked, tensors),
            (Some(_), true) => Ok(Some(self.linear(asked, None).into())),
            (Some(_), false) => self.by_shape(asked, tensors),
        }
    }

    fn describe(&self, linear: &LinearSource) -> String {
        format!("{} ternary", linear.info.encoding.name())
    }

    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        let (plain, bytes, cols) = (stored.plain(), stored.bytes()?, stored.linear.cols);
        let (trits, scales) = match plain.is_float_weight() {
            true => values::dequantized(plain, &bytes, cols)?,
            false => {
                let trits = values::trits_by_value(plain, &bytes, cols)?;
                (trits, Scales::PerTensor(1.0))
            }
        };
        Ok((trits, beside::with_outside(stored, scales)?))
    }

    fn value_type(&self, linear: &LinearSource) -> Option<Encoding> {
        Some(linear.info.encoding)
    }

    fn is_bare(&self, linear: &LinearSource) -> bool {
        linear.beside.is_empty()
    }

    fn unread(&self, linear: &LinearSource) -> Option<UnreadPart> {
        values::signs_of_zeros(&linear.info)
    }
}

/// The numbers of a linear.
pub(super) fn numbers(output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
    let (rows, cols) = (output.source.rows, output.source.cols);
    let plain = output.form.plain;
    let encoding = Encoding::Plain(plain);
    let len = dense_len(encoding, rows.saturating_mul(cols), cols)?;
    let made = Made::Numbers(plain);
    Ok(vec![output.weights(encoding, vec![rows, cols], len, made)])
}

impl WriteStorage for Floats {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        numbers(output)
    }

    fn gguf_file_type(&self, form: &Form) -> Option<u32> {
        match form.plain {
            PlainType::F32 => Some(0),
            PlainType::F16 => Some(1),
            PlainType::Bf16 => Some(32),
            _ => None,
        }
    }
}
