//! The gated MLP: `down(act(gate(x)) * up(x))`.
//!
//! Invariant: gate and up read one input, quantized once, unless each has a norm of its own.

use crate::load::LayerTensors;
use crate::profile::Part;
use crate::round::Round;
use crate::stream::{Stream, fit};
use bitnet_checkpoint::{self as config, LayerSlot, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;

/// Weights and sizes of one layer's MLP.
#[derive(Debug)]
pub(crate) struct Gated {
    layer: usize,
    shape: config::Gated,
    input_norm: Vec<f32>, // (hidden,)
    input_norms: Option<InputNorms>,
    gate_proj: PackedMatrix,       // (inter, hidden)
    up_proj: PackedMatrix,         // (inter, hidden)
    sub_norm: Option<Vec<f32>>,    // (inter,)
    down_proj: PackedMatrix,       // (hidden, inter)
    branch_norm: Option<Vec<f32>>, // (hidden,)
}

/// Input norms of linears that share their input, `(hidden,)` each.
#[derive(Debug)]
struct InputNorms {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// Scratch of the gated MLP.
#[derive(Debug, Default)]
pub(crate) struct GatedBuffers {
    gate: Vec<f32>, // (rows, inter)
    up: Vec<f32>,   // (rows, inter)
}

impl Gated {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Gated,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let input_norms = match shape.input_norms {
            true => Some(InputNorms {
                gate: tensors.gain(layer, LayerSlot::GateProjNorm)?,
                up: tensors.gain(layer, LayerSlot::UpProjNorm)?,
            }),
            false => None,
        };
        Ok(Self {
            layer,
            shape,
            input_norm: tensors.gain(layer, LayerSlot::PostAttentionNorm)?,
            input_norms,
            gate_proj: tensors.linear(layer, LayerSlot::GateProj)?,
            up_proj: tensors.linear(layer, LayerSlot::UpProj)?,
            sub_norm: tensors.gain_if(shape.sub_norm, layer, LayerSlot::FfnSubNorm)?,
            down_proj: tensors.linear(layer, LayerSlot::DownProj)?,
            branch_norm: tensors.gain_if(shape.branch_norm, layer, LayerSlot::FfnBranchNorm)?,
        })
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match slot {
            LayerSlot::GateProj => Some(&self.gate_proj),
            LayerSlot::UpProj => Some(&self.up_proj),
            LayerSlot::DownProj => Some(&self.down_proj),
            _ => None,
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> [&PackedMatrix; 3] {
        [&self.gate_proj, &self.up_proj, &self.down_proj]
    }

    /// `x += y; y = down(norm(act(gate) * up))`, `gate, up = linear(norm(x))`.
    pub(crate) fn forward(
        &self,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut GatedBuffers,
    ) -> Result<(), FormatError> {
        let ops = round.rows;
        let clock = &mut *round.clock;
        let (hidden, width) = (self.shape.hidden_size, self.shape.intermediate_size);
        let at = |linear| Slot::Layer(self.layer, linear);
        let Stream { input, x, y, n } = stream;
        buffers.resize(x.len() / hidden, width);
        let GatedBuffers { gate, up } = buffers;

        // x += y;  gate, up = linear(norm(x)); norm_gate(norm(x)), ... where each has a norm of its own
        match &self.input_norms {
            None => {
                input.prepare(at(LayerSlot::GateProj), hidden, (x, hidden), |t, x, h| {
                    ops.backend.add(&y[t * hidden..(t + 1) * hidden], x);
                    ops.norm(x, &self.input_norm, h);
                })?;
                clock.lap(Part::Elementwise);
                input.multiply([(&self.gate_proj, &mut *gate), (&self.up_proj, &mut *up)]);
            }
            Some(norms) => {
                ops.add(y, x);
                ops.norm_rows(x, &self.input_norm, n);
                for (slot, gain, matrix, out) in [
                    (
                        LayerSlot::GateProj,
                        &norms.gate,
                        &self.gate_proj,
                        &mut *gate,
                    ),
                    (LayerSlot::UpProj, &norms.up, &self.up_proj, &mut *up),
                ] {
                    ops.normed_linear(at(slot), input, (n, gain), (matrix, out), clock)?;
                }
            }
        }
        clock.lap(Part::Linears);

        // y = linear(norm(act(gate) * up))
        let slot = at(LayerSlot::DownProj);
        input.prepare(slot, width, (gate, width), |t, gate, f| {
            ops.activate(self.shape.act, gate, &up[t * width..(t + 1) * width]);
            ops.norm_if(gate, self.sub_norm.as_deref(), f);
        })?;
        clock.lap(Part::Elementwise);
        input.multiply([(&self.down_proj, &mut *y)]);
        clock.lap(Part::Linears);
        ops.end_branch(y, self.branch_norm.as_deref(), n);
        Ok(())
    }
}

impl GatedBuffers {
    fn resize(&mut self, rows: usize, width: usize) {
        fit(&mut self.gate, rows * width);
        fit(&mut self.up, rows * width);
    }
}
