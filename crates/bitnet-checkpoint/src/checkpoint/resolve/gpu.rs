//! Checkpoints of bitnet.cpp's GPU program: matrices fused row by row, each with its scale
//! (`formats/packing/ms_gpu_int2.md`).
//!
//! Invariant: a matrix is some of the rows of its tensor, and because rows are packed sixteen at a time, some of
//! its bytes: from here on it is a tensor like any other.

use super::{Tensors, error, missing};
use crate::checkpoint::{LinearRule, LinearSource};
use crate::config::Config;
use crate::family::{GPU_SCALES, GpuPlace, ScaleDirection, gpu_place};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, PlainType, TensorFile, TensorInfo, packing_by_name,
};

/// The packing of such checkpoints.
pub const GPU_PACKING: &str = "ms_gpu_int2";
/// Rows that are packed together.
const BAND: usize = 16;

/// Whether a file has the names of such a checkpoint.
pub(super) fn is_fused(file: &TensorFile) -> bool {
    gpu_place(Slot::Layer(0, LayerSlot::QProj)).is_some_and(|p| file.tensor(&p.name).is_some())
}

/// The name of a slot's tensor.
pub(super) fn name(slot: Slot) -> Result<String, FormatError> {
    place(slot).map(|place| place.name)
}

fn place(slot: Slot) -> Result<GpuPlace, FormatError> {
    gpu_place(slot).ok_or_else(|| missing(&[&slot.to_string()]))
}

/// Where a linear comes from: some rows of a tensor, and one of the scales beside it.
pub(super) fn linear(
    tensors: &mut Tensors<'_>,
    slot: Slot,
    config: &Config,
) -> Result<LinearSource, FormatError> {
    let GpuPlace { name, parts, part } = place(slot)?;
    let info = tensors.find(&[&name]).ok_or_else(|| missing(&[&name]))?;
    let rows_of = |slot: &Slot| config.shape(*slot)[0];
    let (rows, cols) = (rows_of(&slot), config.shape(slot)[1]);
    let all: usize = parts.iter().map(rows_of).sum();
    let before: usize = parts.iter().take(part).map(rows_of).sum();
    if ![PlainType::I8, PlainType::U8]
        .map(Encoding::Plain)
        .contains(&info.encoding)
    {
        let message = format!("expected int8 codes, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message).hint(
            "weights of model_state_fp16.pt are no source; the checkpoint it was made of is",
        ));
    }
    if info.shape != [all, cols / 4] {
        let message = format!(
            "expected shape {:?} ({all} x {cols}), found {:?}",
            [all, cols / 4],
            info.shape
        );
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    let packing = packing_by_name(GPU_PACKING).ok_or_else(|| {
        error(
            ErrorCode::WrongType,
            info,
            format!("no packing `{GPU_PACKING}`"),
        )
    })?;
    let len = packing.packed_len(rows, cols);
    let (Ok(len), true) = (len, before.is_multiple_of(BAND)) else {
        let message = format!("{rows} rows from {before} on are no whole bands of {BAND} rows");
        return Err(error(ErrorCode::WrongShape, info, message));
    };
    let scale_name = format!("{name}_scale");
    let scales = tensors
        .find(&[&scale_name])
        .ok_or_else(|| missing(&[&scale_name]))?;
    let Encoding::Plain(plain) = scales.encoding else {
        let message = format!("expected numbers, found {}", scales.encoding.name());
        return Err(error(ErrorCode::WrongType, scales, message));
    };
    if !plain.is_float_weight() {
        let message = format!(
            "expected bf16, f16 or f32, found {}",
            scales.encoding.name()
        );
        return Err(error(ErrorCode::WrongType, scales, message));
    }
    if scales.shape != [GPU_SCALES] {
        let message = format!("expected shape [{GPU_SCALES}], found {:?}", scales.shape);
        return Err(error(ErrorCode::WrongShape, scales, message));
    }
    let scale = TensorInfo {
        shape: vec![1],
        offset: scales.offset + (part * plain.size()) as u64,
        len: plain.size() as u64,
        ..scales.clone()
    };
    let weights = TensorInfo {
        shape: vec![rows, cols / 4],
        offset: info.offset + (before * (cols / 4)) as u64,
        len,
        ..info.clone()
    };
    let is_qk = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    Ok(LinearSource {
        info: weights,
        rows,
        cols,
        rule: LinearRule::Packed {
            packing,
            outside: Some((scale, ScaleDirection::Multiply)),
        },
        permuted_head_dim: is_qk.then_some(config.head_dim),
    })
}
