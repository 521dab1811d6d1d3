//! Checkpoints of MLX: codes, scales and biases of a linear in three tensors (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a module is read as `config.json` says it is stored, its own settings before those of all; what
//! the tensors are then has to fit. The values are checked when they are read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes::rows_per_piece;
use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored};
use super::scale_types::{ScaleTypes, SharedScales, check_float, shared_scales_of};
use super::tensors::{Tensors, error, missing};
use super::values;
use super::written::{Form, Made, Output, PackedEntry, Part, ScaleForm, WriteStorage, part};
use crate::family::{self, HfStorage, Quantization, ScaleDirection};
use bitnet_formats::{
    Affine as Codes, Encoding, ErrorCode, FormatError, PlainType, ScaleRounding, TensorFile,
    TensorInfo, affine_rows, affine_scales, dense_len,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;

/// The packing of such checkpoints.
pub const MLX_PACKING: &str = "mlx_2bit";
/// Codes in one u32.
const PER_WORD: usize = 16;

/// The module of a weight.
pub(crate) fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Whether a tensor has scales beside it.
fn is_quantized(file: &TensorFile, weight: &TensorInfo) -> bool {
    file.tensor(&format!("{}.scales", module(&weight.name)))
        .is_some()
}

/// Refuses a norm that is quantized.
pub(crate) fn refuse_quantized(file: &TensorFile, weight: &TensorInfo) -> Result<(), FormatError> {
    if !is_quantized(file, weight) {
        return Ok(());
    }
    let message = "expected no scales beside a norm, found some";
    Err(error(ErrorCode::WrongType, weight, message.to_owned()))
}

/// The row.
#[derive(Debug)]
pub struct Affine;

impl Storage for Affine {
    fn name(&self) -> &'static str {
        MLX_PACKING
    }

    fn page(&self) -> &'static str {
        "packing/mlx_2bit.md"
    }

    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        let said = marks.said.as_ref();
        Ok(said.is_some_and(|said| matches!(said.quantization, Quantization::Affine { .. })))
    }

    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        let (info, rows, cols) = (asked.info, asked.rows, asked.cols);
        let Some(said) = &asked.marks.said else {
            return Ok(None);
        };
        if !asked.slot.is_ternary() && !is_quantized(asked.marks.file, info) {
            return Ok(None);
        }
        let group = family::affine_group(said.config, module(&info.name))
            .map_err(|e| e.in_file(said.path))?;
        let Some(group) = group else {
            return Ok(None);
        };
        if info.encoding != Encoding::Plain(PlainType::U32) {
            let message = format!("expected u32 codes, found {}", info.encoding.name());
            return Err(error(ErrorCode::WrongType, info, message)
                .hint("a module that is not quantised says so: quantization.MODULE: false"));
        }
        let words = [rows, cols / PER_WORD];
        if !cols.is_multiple_of(group) || info.shape != words {
            let message = format!(
                "expected shape {words:?} ({rows} x {cols} in groups of {group}), found {:?}",
                info.shape
            );
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let shape = [rows, cols.checked_div(group).unwrap_or(0)];
        let mut beside = |role: &str| {
            let name = format!("{}.{role}", module(&info.name));
            let found = tensors.find(&[&name]).ok_or_else(|| missing(&[&name]))?;
            match found.encoding {
                Encoding::Plain(plain) if plain.is_float_weight() => {}
                other => {
                    let message = format!("expected f16, bf16 or f32, found {}", other.name());
                    return Err(error(ErrorCode::WrongType, found, message));
                }
            }
            if found.shape != shape {
                let message = format!("expected shape {shape:?}, found {:?}", found.shape);
                return Err(error(ErrorCode::WrongShape, found, message));
            }
            Ok(found.clone())
        };
        let linear = LinearSource {
            beside: vec![beside("scales")?, beside("biases")?],
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    fn describe(&self, _linear: &LinearSource) -> String {
        MLX_PACKING.to_owned()
    }

    /// The codes, by the values that they stand for.
    fn read(&self, stored: &Stored<'_>) -> Result<(Vec<i8>, Scales), FormatError> {
        let LinearSource {
            rows, cols, beside, ..
        } = stored.linear;
        let (rows, cols) = (*rows, *cols);
        let [scales, biases] = beside.as_slice() else {
            return Err(missing(&[&format!(
                "{}.scales",
                module(&stored.linear.info.name)
            )]));
        };
        let groups = scales.shape.last().copied().unwrap_or(0);
        let group = cols.checked_div(groups).unwrap_or(0);
        let numbers = |info: &TensorInfo| match info.encoding {
            Encoding::Plain(plain) => values::small_values(plain, &stored.bytes_of(info)?)
                .map_err(|e| stored.place(e, info)),
            _ => Ok(Vec::new()),
        };
        let (scales, biases) = (numbers(scales)?, numbers(biases)?);
        let codes = stored.bytes()?;
        let affine = Codes {
            codes: &codes,
            rows,
            cols,
            group,
            scales: &scales,
            biases: &biases,
        };
        let mut trits = vec![0; rows.saturating_mul(cols)];
        let mut magnitudes = vec![0.0; scales.len()];
        let step = rows_per_piece(cols);
        let per_row = scales.len().checked_div(rows).unwrap_or(0).max(1);
        trits
            .par_chunks_mut(step.saturating_mul(cols.max(1)))
            .zip(magnitudes.par_chunks_mut(step.saturating_mul(per_row)))
            .enumerate()
            .try_for_each(|(i, (trits, magnitudes))| {
                affine_rows(&affine, i.saturating_mul(step), trits, magnitudes)
            })?;
        let scales = Scales::PerGroup {
            group,
            scales: magnitudes,
        };
        Ok((trits, scales))
    }

    /// A scale and a bias have to agree even where they multiply nothing.
    fn checks_silent_scales(&self) -> bool {
        true
    }
}

impl WriteStorage for Affine {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// MLX's three tensors of a linear.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let packing = output.form.required_packing()?;
        let (rows, cols) = (output.source.rows, output.source.cols);
        let SharedScales { group, plain } = required_shared(output.shared)?;
        let len = packing.packed_len(rows, cols)?;
        let codes = output.weights(
            Encoding::Plain(PlainType::U32),
            vec![rows, cols / PER_WORD],
            len,
            Made::Codes(packing),
        );
        let mut parts = vec![codes];
        let groups = cols.checked_div(group).unwrap_or(0);
        for (role, is_negative) in [("scales", false), ("biases", true)] {
            let encoding = Encoding::Plain(plain);
            let len = dense_len(encoding, rows.saturating_mul(groups), groups)?;
            let form = ScaleForm {
                group: Some(group),
                is_negative,
                is_last: is_negative,
                ..ScaleForm::multipliers(output.slot, plain)
            };
            let name = format!("{}.{role}", module(output.name));
            parts.push(part(
                name,
                encoding,
                vec![rows, groups],
                len,
                Made::Scales(form),
            ));
        }
        Ok(parts)
    }

    fn check(
        &self,
        _form: &Form,
        shared: Option<SharedScales>,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        check_float(matrix, required_shared(shared)?.plain, rounding)
    }

    fn fits(
        &self,
        _form: &Form,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let SharedScales { group, plain } = shared_scales_of(matrix)?;
        affine_scales(matrix, group)?;
        check_float(matrix, plain, rounding)
    }

    /// The type the model is kept in first: MLX computes in the type of its scales.
    fn shared_scales(&self, computed_in: Option<PlainType>) -> Option<ScaleTypes> {
        Some(ScaleTypes::new(match computed_in {
            Some(PlainType::Bf16) => PlainType::Bf16,
            _ => PlainType::F16,
        }))
    }

    fn file_metadata(&self, _packed: &[PackedEntry]) -> Vec<(String, String)> {
        vec![("format".to_owned(), "mlx".to_owned())]
    }

    fn hf_storage(
        &self,
        shared: Option<SharedScales>,
        _kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        shared.map(|SharedScales { group, .. }| HfStorage::Affine { group })
    }
}

/// Group and type of scales that were chosen for all linears.
fn required_shared(shared: Option<SharedScales>) -> Result<SharedScales, FormatError> {
    shared.ok_or_else(|| FormatError::new(ErrorCode::Usage, "no group and type of scales chosen"))
}
