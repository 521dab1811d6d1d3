//! Checkpoints of bitnet.cpp's GPU program: matrices fused row by row, each with its scale
//! (`formats/packing/ms_gpu_int2.md`).
//!
//! Invariant: a matrix is some of the rows of its tensor, and because rows are packed sixteen at a time, some of
//! its bytes: from here on it is a tensor like any other.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::codes;
use super::contract::{Asked, Found, LinearSource, Marks, Storage};
use super::scale_types::{SharedScales, check_float};
use super::tensors::{Tensors, error, missing};
use super::written::{Form, Made, Output, Part, ScaleForm, WriteStorage, part, scale_name};
use crate::config::Config;
use crate::family::{
    GPU_SCALES, GpuPlace, HfStorage, ScaleDirection, check_gpu_network, gpu_place,
};
use crate::row_order::StoredOrder;
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    Container, Encoding, ErrorCode, FormatError, PlainType, Pytorch, ScaleRounding, TensorInfo,
};
use bitnet_ternary::TernaryMatrix;

/// The packing of such checkpoints.
pub const GPU_PACKING: &str = "ms_gpu_int2";
/// Rows that are packed together.
const BAND: usize = 16;

fn place(slot: Slot) -> Result<GpuPlace, FormatError> {
    gpu_place(slot).ok_or_else(|| missing(&[&slot.to_string()]))
}

/// The tensor of the scales beside a matrix.
fn scales_of<'a>(
    tensors: &mut Tensors<'a>,
    name: &str,
) -> Result<(&'a TensorInfo, PlainType), FormatError> {
    let name = format!("{name}_scale");
    let scales = tensors.find(&[&name]).ok_or_else(|| missing(&[&name]))?;
    let Encoding::Plain(plain) = scales.encoding else {
        let message = format!("expected numbers, found {}", scales.encoding.name());
        return Err(error(ErrorCode::WrongType, scales, message));
    };
    if !plain.is_float_weight() {
        let found = scales.encoding.name();
        let message = format!("expected bf16, f16 or f32, found {found}");
        return Err(error(ErrorCode::WrongType, scales, message));
    }
    if scales.shape != [GPU_SCALES] {
        let message = format!("expected shape [{GPU_SCALES}], found {:?}", scales.shape);
        return Err(error(ErrorCode::WrongShape, scales, message));
    }
    Ok((scales, plain))
}

/// The row.
#[derive(Debug)]
pub struct GpuInt2;

impl Storage for GpuInt2 {
    fn name(&self) -> &'static str {
        GPU_PACKING
    }

    fn page(&self) -> &'static str {
        "packing/ms_gpu_int2.md"
    }

    /// Whether a file has the names of such a checkpoint.
    fn applies(&self, marks: &Marks<'_>) -> Result<bool, FormatError> {
        let first = gpu_place(Slot::Layer(0, LayerSlot::QProj));
        let is_there = first.is_some_and(|place| marks.file.tensor(&place.name).is_some());
        Ok(marks.said.is_some() && is_there)
    }

    fn name_of(&self, slot: Slot) -> Result<Option<String>, FormatError> {
        place(slot).map(|place| Some(place.name))
    }

    /// Some rows of a tensor, and one of the scales beside it.
    fn recognize(
        &self,
        asked: &Asked<'_>,
        tensors: &mut Tensors<'_>,
    ) -> Result<Option<Found>, FormatError> {
        if !asked.slot.is_ternary() {
            return Ok(None);
        }
        let GpuPlace { name, parts, part } = place(asked.slot)?;
        let (info, rows, cols) = (asked.info, asked.rows, asked.cols);
        let rows_of = |slot: &Slot| asked.config.shape(*slot).first().copied().unwrap_or(0);
        let all: usize = parts.iter().map(rows_of).sum();
        let before: usize = parts.iter().take(part).map(rows_of).sum();
        let is_byte = |plain| info.encoding == Encoding::Plain(plain);
        if !is_byte(PlainType::I8) && !is_byte(PlainType::U8) {
            let message = format!("expected int8 codes, found {}", info.encoding.name());
            return Err(error(ErrorCode::WrongType, info, message).hint(
                "weights of model_state_fp16.pt are no source; the checkpoint it was made of is",
            ));
        }
        let row = cols / 4;
        if info.shape != [all, row] {
            let message = format!(
                "expected shape {:?} ({all} x {cols}), found {:?}",
                [all, row],
                info.shape
            );
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let packing = codes::registered(GPU_PACKING).map_err(|e| e.in_tensor(&info.name))?;
        let len = packing.packed_len(rows, cols);
        let (Ok(len), true) = (len, before.is_multiple_of(BAND)) else {
            let message = format!("{rows} rows from {before} on are no whole bands of {BAND} rows");
            return Err(error(ErrorCode::WrongShape, info, message));
        };
        let (scales, plain) = scales_of(tensors, &name)?;
        let scale = TensorInfo {
            shape: vec![1],
            offset: scales
                .offset
                .saturating_add(part.saturating_mul(plain.size()) as u64),
            len: plain.size() as u64,
            ..scales.clone()
        };
        let weights = TensorInfo {
            shape: vec![rows, row],
            offset: info
                .offset
                .saturating_add(before.saturating_mul(row) as u64),
            len,
            ..info.clone()
        };
        let is_qk = matches!(
            asked.slot,
            Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj)
        );
        let linear = LinearSource {
            info: weights,
            packing: Some(packing),
            beside: vec![scale],
            direction: Some(ScaleDirection::Multiply),
            order: is_qk.then_some(StoredOrder::PairedRows {
                head_dim: asked.config.head_dim,
            }),
            ..asked.linear(&Self)
        };
        Ok(Some(linear.into()))
    }

    codes::answers!();

    fn marks_itself(&self) -> bool {
        true
    }
}

/// The file that the GPU program opens.
const GPU_FILE: &str = "model_state_int2.pt";

impl WriteStorage for GpuInt2 {
    fn row(&self) -> &'static dyn Storage {
        &Self
    }

    /// One matrix of a tensor of the GPU program, and behind the last of them the tensor of their scales.
    fn write(&self, output: &Output<'_>) -> Result<Vec<Part>, FormatError> {
        let packing = output.form.required_packing()?;
        let (rows, cols) = (output.source.rows, output.source.cols);
        let place = place(output.slot)?;
        let len = packing.packed_len(rows, cols)?;
        let (encoding, made) = (Encoding::Plain(PlainType::I8), Made::Codes(packing));
        let mut parts = vec![output.weights(encoding, vec![rows, cols / 4], len, made)];
        if place.parts.last() == Some(&output.slot) {
            let plain = PlainType::Bf16;
            let form = ScaleForm {
                slots: place.parts,
                count: Some(GPU_SCALES),
                ..ScaleForm::multipliers(output.slot, plain)
            };
            let len = GPU_SCALES.saturating_mul(plain.size()) as u64;
            let (name, encoding) = (scale_name(&place.name), Encoding::Plain(plain));
            parts.push(part(
                name,
                encoding,
                vec![GPU_SCALES],
                len,
                Made::Scales(form),
            ));
        }
        Ok(parts)
    }

    fn check(
        &self,
        form: &Form,
        _shared: Option<SharedScales>,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        form.required_packing()?.check_scales(matrix, rounding)?;
        check_float(matrix, PlainType::Bf16, rounding)
    }

    fn fits(
        &self,
        form: &Form,
        matrix: &TernaryMatrix,
        rounding: ScaleRounding,
    ) -> Result<f64, FormatError> {
        let packing = form.required_packing()?;
        packing.packed_len(matrix.rows(), matrix.cols())?;
        self.check(form, None, matrix, rounding)
    }

    fn directory_container(&self) -> &'static str {
        Pytorch.name()
    }

    fn file_name(&self) -> Option<&'static str> {
        Some(GPU_FILE)
    }

    fn hf_storage(
        &self,
        _shared: Option<SharedScales>,
        _kept: Option<ScaleDirection>,
    ) -> Option<HfStorage> {
        Some(HfStorage::Packed(ScaleDirection::Multiply))
    }

    fn is_fused(&self) -> bool {
        true
    }

    fn check_network(&self, config: &Config) -> Result<(), FormatError> {
        check_gpu_network(config)
    }
}
