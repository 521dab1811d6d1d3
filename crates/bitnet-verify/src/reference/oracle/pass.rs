//! One way through the operators of a layer: what mixers and MLPs of the oracle are made of.
//!
//! Invariant: every operator hands its output to the tap and goes on with what comes back, so a plain pass and a
//! replay of recorded values are one computation.

use super::deviation::Reading;
use super::linear::Linear;
use super::tensors::{candle, gain};
use bitnet_checkpoint::{Checkpoint, LayerSlot, Slot};
use bitnet_formats::FormatError;
use candle_core::{D, DType, Tensor};

/// One step of a layer's forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// A norm, of the slot of its gain; those of queries and keys on rows of one head.
    Norm(LayerSlot),
    /// A ternary linear, its own norm excluded.
    Linear(LayerSlot),
    /// Rotation, scores, softmax and values.
    Attention,
    /// What attention adds to the residual stream.
    AddAttention,
    /// The activation function and the product with `up_proj`.
    Activation,
    /// What the MLP adds to the residual stream: the output of the layer.
    AddMlp,
}

/// What the forward pass hands its intermediate values to, and takes them back from.
pub(super) type Tap<'t> = dyn FnMut(Operator, Tensor) -> Result<Tensor, FormatError> + 't;

/// A linear and the norm in front of it, if it has one of its own.
pub(super) struct Branch {
    norm: Option<(LayerSlot, Tensor)>, // its gain, (cols,)
    linear: Linear,
}

/// The tensors of one layer of a checkpoint.
#[derive(Clone, Copy)]
pub(super) struct LayerTensors<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) index: usize,
}

impl LayerTensors<'_> {
    /// A tensor of this layer.
    pub(super) fn slot(self, slot: LayerSlot) -> Slot {
        Slot::Layer(self.index, slot)
    }

    /// The gain of a norm.
    pub(super) fn norm(self, slot: LayerSlot) -> Result<Tensor, FormatError> {
        gain(self.checkpoint, Slot::Layer(self.index, slot))
    }

    /// The gain of a norm that the network may have.
    pub(super) fn norm_if(
        self,
        there: bool,
        slot: LayerSlot,
    ) -> Result<Option<Tensor>, FormatError> {
        there.then(|| self.norm(slot)).transpose()
    }

    /// A linear, with the norm in front of it if it has one of its own.
    pub(super) fn linear(
        self,
        slot: LayerSlot,
        normed: bool,
        norm: LayerSlot,
    ) -> Result<Branch, FormatError> {
        let gain = self.norm_if(normed, norm)?.map(|gain| (norm, gain));
        let linear = Linear::load(self.checkpoint, Slot::Layer(self.index, slot))?;
        Ok(Branch { norm: gain, linear })
    }
}

/// One way through one layer.
pub(super) struct Pass<'l, 't> {
    pub(super) reading: Reading<'l>,
    pub(super) tap: &'l mut Tap<'t>,
}

impl Pass<'_, '_> {
    /// What comes back for the output of an operator.
    pub(super) fn tap(&mut self, operator: Operator, y: Tensor) -> Result<Tensor, FormatError> {
        (self.tap)(operator, y)
    }

    pub(super) fn norm(
        &mut self,
        slot: LayerSlot,
        x: &Tensor,
        gain: &Tensor,
    ) -> Result<Tensor, FormatError> {
        let y = match self.reading.leaves_out(slot) {
            true => x.clone(),
            false => {
                let gain = self.reading.gain(Some(slot), gain).map_err(candle)?;
                rms_norm(x, &gain, self.reading.epsilon()).map_err(candle)?
            }
        };
        (self.tap)(Operator::Norm(slot), y)
    }

    /// The norm in front of it included, if it has one.
    pub(super) fn linear(&mut self, branch: &Branch, x: &Tensor) -> Result<Tensor, FormatError> {
        let linear = &branch.linear;
        let y = match &branch.norm {
            Some((slot, gain)) => {
                let x = self.norm(*slot, x, gain)?;
                linear.multiply(&x, &self.reading)?
            }
            None => linear.multiply(x, &self.reading)?,
        };
        (self.tap)(Operator::Linear(linear.role), y)
    }

    /// What joins the residual stream.
    pub(super) fn branch(
        &mut self,
        slot: LayerSlot,
        y: Tensor,
        gain: &Option<Tensor>,
    ) -> Result<Tensor, FormatError> {
        let y = match gain {
            Some(gain) => self.norm(slot, &y, gain)?,
            None => y,
        };
        let factor = f64::from(self.reading.config.factors.residual);
        y.affine(factor, 0.0).map_err(candle)
    }
}

/// `gain * (x / sqrt(mean(x^2) + eps))`, the mean in `f64`.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> candle_core::Result<Tensor> {
    let mean = x.to_dtype(DType::F64)?.sqr()?.mean_keepdim(D::Minus1)?;
    let r = (mean + f64::from(eps))?
        .sqrt()?
        .recip()?
        .to_dtype(DType::F32)?;
    x.broadcast_mul(&r)?.broadcast_mul(gain)
}
