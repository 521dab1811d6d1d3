//! Tensors as transformers names and computes with them, one at a time.
//!
//! Invariant: a linear is its trits times their scales in f32, whatever stores it, so every container of a model gives
//! the same numbers.

use crate::stored::Stored;
use bitnet_checkpoint::{Checkpoint, LayerSlot, ROTATION_KEYS, Slot, shape_for_hf};
use bitnet_formats::{ErrorCode, FormatError, ScaleRounding};
use rayon::prelude::*;

/// A tensor of a state dict.
#[derive(Debug, Clone, PartialEq)]
pub struct StateTensor {
    /// As transformers spells it.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub values: Vec<f32>,
}

/// The slots of a checkpoint with the names that transformers has for their tensors.
///
/// # Errors
/// `target-cannot-hold` for a network that transformers does not compute, and for rotated weights.
pub fn state_names(checkpoint: &Checkpoint) -> Result<Vec<(Slot, String)>, FormatError> {
    checkpoint.family.check_hf_network(&checkpoint.config)?;
    if checkpoint.config.rotation.is_some() {
        let message = "the weights are rotated, which transformers does not compute";
        return Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .in_tensor(ROTATION_KEYS)
            .in_file(&checkpoint.path)
            .hint("convert the model with --unfold, and open the result"));
    }
    let json = checkpoint.config_json.as_ref();
    let name = |slot| (slot, checkpoint.family.hf_name(json, slot));
    Ok(checkpoint.slots().into_iter().map(name).collect())
}

/// The tensor of a slot, as a network of transformers loads it.
///
/// # Errors
/// Whatever is wrong with its bytes; `target-cannot-hold` for a gain that no stored number gives. `A_log` of a GGUF file,
/// which stores rates, is the f32 whose rate is nearest.
pub fn state_tensor(
    checkpoint: &Checkpoint,
    slot: Slot,
    name: String,
) -> Result<StateTensor, FormatError> {
    let (shape, values) = match checkpoint.is_ternary(slot) {
        true => weights(checkpoint, slot)?,
        false => {
            let (mut shape, values) = dense_values(checkpoint, slot)?;
            if let (Slot::Layer(_, LayerSlot::Conv1d), [channels, taps]) = (slot, &shape[..]) {
                // a convolution of PyTorch has the channels of a group as second axis
                shape = vec![*channels, 1, *taps];
            }
            let values = match (checkpoint.family.stores_gain_minus_one)(slot) {
                true => Stored::MinusOne.numbers(&values, ScaleRounding::Refuse)?,
                false => shape_for_hf(slot, &values).0,
            };
            (shape, values)
        }
    };
    Ok(StateTensor {
        name,
        shape,
        values,
    })
}

/// Trits times scales, `[rows, cols]`.
///
/// # Errors
/// Whatever is wrong with its bytes.
pub fn weights(checkpoint: &Checkpoint, slot: Slot) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
    let matrix = checkpoint.ternary(slot)?;
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut values = vec![0.0f32; rows * cols];
    values
        .par_chunks_mut(cols.max(1))
        .enumerate()
        .for_each(|(row, values)| {
            let trits = matrix.row(row).iter().enumerate();
            for (value, (col, trit)) in values.iter_mut().zip(trits) {
                *value = f32::from(*trit) * matrix.scales().at(row, col, cols);
            }
        });
    Ok((vec![rows, cols], values))
}

/// What a dense tensor means, in the canonical order.
///
/// # Errors
/// Whatever is wrong with its bytes.
pub fn dense_values(
    checkpoint: &Checkpoint,
    slot: Slot,
) -> Result<(Vec<usize>, Vec<f32>), FormatError> {
    let tensor = checkpoint.dense(slot)?;
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.widen(&tensor.bytes, &mut values)?;
    // a file that changed meanwhile
    checkpoint.file.check()?;
    Ok((tensor.shape.to_vec(), values))
}
