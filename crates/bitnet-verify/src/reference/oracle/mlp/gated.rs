//! The gated MLP of the oracle.
//!
//! Invariant: every linear is one dense product.

use crate::reference::oracle::pass::{Branch, LayerTensors, Operator, Pass};
use crate::reference::oracle::tensors::candle;
use bitnet_checkpoint::{self as config, Activation, LayerSlot};
use bitnet_formats::FormatError;
use candle_core::Tensor;

/// The MLP of one layer, dense.
pub(in crate::reference::oracle) struct Gated {
    input_norm: Tensor,
    gate: Branch,
    up: Branch,
    down: Branch,
    branch_norm: Option<Tensor>,
}

impl Gated {
    pub(super) fn load(
        shape: config::Gated,
        tensors: LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let own = shape.input_norms;
        Ok(Self {
            input_norm: tensors.norm(LayerSlot::PostAttentionNorm)?,
            gate: tensors.linear(LayerSlot::GateProj, own, LayerSlot::GateProjNorm)?,
            up: tensors.linear(LayerSlot::UpProj, own, LayerSlot::UpProjNorm)?,
            down: tensors.linear(LayerSlot::DownProj, shape.sub_norm, LayerSlot::FfnSubNorm)?,
            branch_norm: tensors.norm_if(shape.branch_norm, LayerSlot::FfnBranchNorm)?,
        })
    }

    /// What the MLP adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        let h = pass.norm(LayerSlot::PostAttentionNorm, x, &self.input_norm)?;
        let gate = pass.linear(&self.gate, &h)?;
        let up = pass.linear(&self.up, &h)?;
        let h = activate(pass.reading.activation(), &gate).and_then(|g| g * up);
        let h = pass.tap(Operator::Activation, h.map_err(candle)?)?;
        let y = pass.linear(&self.down, &h)?;
        pass.branch(LayerSlot::FfnBranchNorm, y, &self.branch_norm)
    }
}

pub(super) fn activate(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Relu2 => x.relu()?.sqr(),
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
    }
}
