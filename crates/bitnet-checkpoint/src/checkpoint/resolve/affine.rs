//! Checkpoints of MLX: codes, scales and biases of a linear in three tensors (`formats/packing/mlx_2bit.md`).
//!
//! Invariant: a module is read as `config.json` says it is stored, its own settings before those of all; what
//! the tensors are then has to fit. The values are checked by whoever reads them.

use super::{Tensors, error, missing};
use crate::checkpoint::LinearRule;
use bitnet_formats::{Encoding, ErrorCode, FormatError, PlainType, TensorFile, TensorInfo};

/// The packing of such checkpoints.
pub const MLX_PACKING: &str = "mlx_2bit";
/// Codes in one u32.
const PER_WORD: usize = 16;

/// The module of a weight.
pub(in crate::checkpoint) fn module(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// The rule of one linear with a scale and a bias for `group` columns.
pub(super) fn rule(
    tensors: &mut Tensors<'_>,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
    group: usize,
) -> Result<LinearRule, FormatError> {
    if info.encoding != Encoding::Plain(PlainType::U32) {
        let message = format!("expected u32 codes, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message)
            .hint("a module that is not quantised says so: quantization.MODULE: false"));
    }
    let fits = cols.is_multiple_of(group) && info.shape == [rows, cols / PER_WORD];
    if !fits {
        let message = format!(
            "expected shape {:?} ({rows} x {cols} in groups of {group}), found {:?}",
            [rows, cols / PER_WORD],
            info.shape
        );
        return Err(error(ErrorCode::WrongShape, info, message));
    }
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
        let shape = [rows, cols / group];
        if found.shape != shape {
            let message = format!("expected shape {shape:?}, found {:?}", found.shape);
            return Err(error(ErrorCode::WrongShape, found, message));
        }
        Ok(found.clone())
    };
    Ok(LinearRule::Affine {
        group,
        scales: beside("scales")?,
        biases: Box::new(beside("biases")?),
    })
}

/// Whether a tensor has scales beside it.
pub(super) fn is_quantised(file: &TensorFile, weight: &TensorInfo) -> bool {
    file.tensor(&format!("{}.scales", module(&weight.name)))
        .is_some()
}

/// Refuses a norm that is quantised.
pub(super) fn refuse_quantised(file: &TensorFile, weight: &TensorInfo) -> Result<(), FormatError> {
    if !is_quantised(file, weight) {
        return Ok(());
    }
    let message = "expected no scales beside a norm, found some";
    Err(error(ErrorCode::WrongType, weight, message.to_owned()))
}
