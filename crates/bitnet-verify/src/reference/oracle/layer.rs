//! One decoder layer of the oracle, and what its operators make of recorded inputs.
//!
//! Invariant: there is one forward pass. The plain one is the replay without a deviation and without a record, so
//! what is judged operator by operator is what is computed end to end.

use super::deviation::{Deviation, Reading};
use super::mixer::Mixer;
use super::mlp::Mlp;
use super::pass::{LayerTensors, Operator, Pass, Tap};
use super::tensors::{candle, matrix, values};
use crate::reference::divergence::relative_error;
use crate::reference::golden::Recorded;
use bitnet_checkpoint::{Checkpoint, Config};
use bitnet_formats::FormatError;
use candle_core::{Device, Tensor};

/// An operator's output beside the recorded one.
#[derive(Debug, Clone)]
pub struct Replayed {
    /// The operator.
    pub operator: Operator,
    /// What it made of its input, which is the recorded one wherever there is one; row-major.
    pub output: Vec<f32>,
    /// Relative error over all tokens.
    pub error: f64,
    /// Relative error of the token in the middle, which a flipped activation in one token does not move.
    pub median_error: f64,
}

/// One decoder layer, dense.
pub struct Layer<'a> {
    config: &'a Config,
    index: usize,
    mixer: Mixer,
    mlp: Mlp<'a>,
}

impl<'a> Layer<'a> {
    pub(super) fn load(checkpoint: &'a Checkpoint, index: usize) -> Result<Self, FormatError> {
        let config = &checkpoint.config;
        let (block, tensors) = (config.block(index), LayerTensors { checkpoint, index });
        Ok(Self {
            config,
            index,
            mixer: Mixer::load(block.mixer, tensors)?,
            mlp: Mlp::load(block.mlp, tensors)?,
        })
    }

    /// Its number.
    pub fn index(&self) -> usize {
        self.index
    }

    /// `x` is `(tokens, hidden_size)`, positions from 0.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, FormatError> {
        self.forward_as(x, None)
    }

    /// The same, with one thing done otherwise.
    pub(super) fn forward_as(
        &self,
        x: &Tensor,
        how: Option<Deviation>,
    ) -> Result<Tensor, FormatError> {
        self.run(how, x, &mut |_, y| Ok(y))
    }

    /// Every operator whose output was recorded, in the order of the forward pass, from its recorded input where
    /// there is one: `x` is `(tokens, hidden_size)`, `recorded` answers an operator's output.
    ///
    /// # Errors
    /// A length of `x` that does not fit; activations that are not finite.
    pub fn replay<'r>(
        &self,
        x: &[f32],
        how: Option<Deviation>,
        recorded: impl Fn(Operator) -> Option<&'r Recorded>,
    ) -> Result<Vec<Replayed>, FormatError> {
        let width = self.config.hidden_size;
        let tokens = x.len() / width;
        let x = matrix(x, tokens, width)?;
        let mut all = Vec::new();
        let mut tap = |operator, y: Tensor| {
            let Some(expected) = recorded(operator) else {
                return Ok(y);
            };
            let output = values(&y)?;
            let error = relative_error(&expected.values, &output);
            let row = output.len() / tokens.max(1);
            let fits = error.is_finite() && row > 0;
            let median_error = match fits {
                true => median(expected.values.chunks(row), output.chunks(row)),
                false => error,
            };
            all.push(Replayed {
                operator,
                output,
                error,
                median_error,
            });
            match fits {
                true => {
                    Tensor::from_slice(&expected.values, y.shape(), &Device::Cpu).map_err(candle)
                }
                false => Ok(y),
            }
        };
        self.run(how, &x, &mut tap)?;
        Ok(all)
    }

    fn run(
        &self,
        how: Option<Deviation>,
        x: &Tensor,
        tap: &mut Tap<'_>,
    ) -> Result<Tensor, FormatError> {
        let reading = Reading {
            config: self.config,
            how,
        };
        let mut pass = Pass { reading, tap };
        let y = self.mixer.run(&mut pass, x)?;
        let x = pass.tap(Operator::AddAttention, (x + y).map_err(candle)?)?;
        let y = self.mlp.run(&mut pass, &x)?;
        pass.tap(Operator::AddMlp, (x + y).map_err(candle)?)
    }
}

/// The middle one of the errors of rows; of an even number the larger of the two.
fn median<'r>(
    expected: impl Iterator<Item = &'r [f32]>,
    found: impl Iterator<Item = &'r [f32]>,
) -> f64 {
    let mut errors: Vec<f64> = expected
        .zip(found)
        .map(|(e, f)| relative_error(e, f))
        .collect();
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() / 2).copied().unwrap_or(0.0)
}
