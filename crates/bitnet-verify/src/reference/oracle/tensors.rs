//! Values of the checkpoint and of a sequence as tensors, and back.
//!
//! Invariant: a slice that does not have the shape it is said to have is an error.

use bitnet_checkpoint::{Checkpoint, DenseMeaning, DenseTensor, Slot};
use bitnet_formats::{ErrorCode, FormatError, dense_to_f32};
use candle_core::{Device, Tensor};
use std::ops::Range;

/// The gain of a norm, `(n,)`.
pub(in crate::reference::oracle) fn gain(
    checkpoint: &Checkpoint,
    slot: Slot,
) -> Result<Tensor, FormatError> {
    let dense = checkpoint.dense(slot)?;
    let gain = dense_rows(&dense, slot, 0..1)?;
    let n = gain.len();
    Tensor::from_vec(gain, n, &Device::Cpu).map_err(candle)
}

/// All values of a dense tensor.
pub(in crate::reference::oracle) fn dense_values(
    checkpoint: &Checkpoint,
    slot: Slot,
) -> Result<Vec<f32>, FormatError> {
    let dense = checkpoint.dense(slot)?;
    let rows = match *dense.shape {
        [rows, _] => rows,
        _ => 1,
    };
    dense_rows(&dense, slot, 0..rows)
}

/// Some rows of a dense tensor, widened; a vector is one row.
pub(in crate::reference::oracle) fn dense_rows(
    tensor: &DenseTensor<'_>,
    slot: Slot,
    rows: Range<usize>,
) -> Result<Vec<f32>, FormatError> {
    let (count, width) = match *tensor.shape {
        [width] => (1, width),
        [count, width] => (count, width),
        _ => {
            let found = format!(
                "expected a vector or a matrix, found {} dimensions",
                tensor.shape.len()
            );
            return Err(FormatError::new(ErrorCode::WrongShape, found).in_tensor(&slot.to_string()));
        }
    };
    let row_bytes = tensor.bytes.len() / count.max(1);
    let bytes = tensor
        .bytes
        .get(rows.start * row_bytes..rows.end * row_bytes)
        .unwrap_or(&[]);
    let mut out = vec![0.0; rows.len() * width];
    dense_to_f32(tensor.encoding, bytes, &mut out).map_err(|e| e.in_tensor(&slot.to_string()))?;
    match tensor.meaning {
        DenseMeaning::AsStored => {}
        DenseMeaning::PlusOne => out.iter_mut().for_each(|value| *value += 1.0),
        DenseMeaning::Times(scale) => out.iter_mut().for_each(|value| *value *= scale),
    }
    Ok(out)
}

/// A `(rows, cols)` tensor of a slice that must fit.
pub(in crate::reference::oracle) fn matrix(
    x: &[f32],
    rows: usize,
    cols: usize,
) -> Result<Tensor, FormatError> {
    if rows.checked_mul(cols) != Some(x.len()) {
        return Err(FormatError::new(
            ErrorCode::Usage,
            format!("expected {rows} x {cols} values, found {}", x.len()),
        ));
    }
    Tensor::from_slice(x, (rows, cols), &Device::Cpu).map_err(candle)
}

/// All values of a tensor, row-major.
pub(in crate::reference::oracle) fn values(x: &Tensor) -> Result<Vec<f32>, FormatError> {
    x.flatten_all().and_then(|x| x.to_vec1()).map_err(candle)
}

/// A tensor operation that candle refuses: shapes that contradict the configuration.
pub(in crate::reference::oracle) fn candle(error: candle_core::Error) -> FormatError {
    let text = error.to_string(); // with a backtrace behind the first line
    FormatError::new(
        ErrorCode::WrongShape,
        format!("oracle: {}", text.lines().next().unwrap_or_default()),
    )
    .because(error)
}

/// All numbers of a dense tensor, widened.
pub(in crate::reference::oracle) fn whole(
    checkpoint: &Checkpoint,
    slot: Slot,
) -> Result<Vec<f32>, FormatError> {
    let dense = checkpoint.dense(slot)?;
    let rows = match *dense.shape {
        [rows, _] => rows,
        _ => 1,
    };
    dense_rows(&dense, slot, 0..rows)
}
