//! Checkpoints of MLX: codes, scales and biases of a linear in three tensors (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a module is read as `config.json` says it is stored, its own settings before those of all; what
//! the tensors are then has to fit. The values are checked when they are read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes::rows_per_piece;
use super::contract::{Asked, Found, LinearSource, Marks, Storage, Stored};
use super::tensors::{Tensors, error, missing};
use super::values;
use crate::family::{self, Quantization};
use bitnet_formats::{
    Affine as Codes, Encoding, ErrorCode, FormatError, PlainType, TensorFile, TensorInfo,
    affine_rows,
};
use bitnet_ternary::Scales;
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
            Encoding::Plain(plain) => values::small_values(plain, stored.bytes_of(info))
                .map_err(|e| stored.place(e, info)),
            _ => Ok(Vec::new()),
        };
        let (scales, biases) = (numbers(scales)?, numbers(biases)?);
        let affine = Codes {
            codes: stored.bytes(),
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
