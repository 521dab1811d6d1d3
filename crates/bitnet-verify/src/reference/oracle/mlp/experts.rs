//! The mixture of experts of the oracle.
//!
//! Invariant: the router's softmax is over all experts, in `f64`; every expert computes the rows that go to it, and an
//! expert is made dense when the first row does.

use crate::reference::oracle::deviation::{ClampAt, Reading};
use crate::reference::oracle::linear::Linear;
use crate::reference::oracle::pass::{LayerTensors, Pass};
use crate::reference::oracle::tensors::{candle, matrix, values, whole};
use bitnet_checkpoint::{self as config, ExpertLinear, LayerSlot, Slot};
use bitnet_formats::FormatError;
use candle_core::{Device, Tensor};
use std::cmp::Ordering;
use std::sync::OnceLock;

use super::gated::activate;

/// The experts of one layer.
pub(in crate::reference::oracle) struct Experts<'a> {
    shape: config::Experts,
    tensors: LayerTensors<'a>,
    input_norm: Tensor,
    router: Tensor,                      // (experts, hidden_size)
    experts: Vec<OnceLock<[Linear; 3]>>, // (experts,): gate, up, down
}

impl<'a> Experts<'a> {
    pub(super) fn load(
        shape: config::Experts,
        tensors: LayerTensors<'a>,
    ) -> Result<Self, FormatError> {
        let slot = Slot::Layer(tensors.index, LayerSlot::Router);
        let router = whole(tensors.checkpoint, slot)?;
        Ok(Self {
            shape,
            tensors,
            input_norm: tensors.norm(LayerSlot::PostAttentionNorm)?,
            router: matrix(&router, shape.count, shape.hidden_size)?,
            experts: (0..shape.count).map(|_| OnceLock::new()).collect(),
        })
    }

    fn expert(&self, number: usize) -> Result<&[Linear; 3], FormatError> {
        let Some(cell) = self.experts.get(number) else {
            return Err(FormatError::new(
                bitnet_formats::ErrorCode::Usage,
                format!("expert {number}: the layer has {}", self.shape.count),
            ));
        };
        if let Some(expert) = cell.get() {
            return Ok(expert);
        }
        let load = |linear| {
            let slot = LayerSlot::expert(number, linear);
            Linear::load(
                self.tensors.checkpoint,
                Slot::Layer(self.tensors.index, slot),
            )
        };
        let made = [
            load(ExpertLinear::Gate)?,
            load(ExpertLinear::Up)?,
            load(ExpertLinear::Down)?,
        ];
        Ok(cell.get_or_init(|| made))
    }

    /// What the experts add to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        let h = pass.norm(LayerSlot::PostAttentionNorm, x, &self.input_norm)?;
        let reading = pass.reading;
        let logits = self.router.t().and_then(|r| h.matmul(&r)).map_err(candle)?;
        let logits = values(&logits)?;
        let normalize = reading.normalizes_experts(self.shape.normalize);
        let rows = logits.chunks_exact(self.shape.count).enumerate();
        // (experts,): rows and their weights
        let mut chosen: Vec<Vec<(u32, f32)>> = vec![Vec::new(); self.shape.count];
        for (row, logits) in rows {
            for (expert, weight) in choose(logits, self.shape.used, normalize) {
                chosen[expert].push((row as u32, weight));
            }
        }
        let mut y = h.zeros_like().map_err(candle)?;
        for (number, chosen) in chosen.into_iter().enumerate() {
            if chosen.is_empty() {
                continue;
            }
            let (rows, weights): (Vec<u32>, Vec<f32>) = chosen.into_iter().unzip();
            let count = rows.len();
            let number = reading.expert(number, self.shape.count);
            let [gate, up, down] = self.expert(number)?;
            let rows = Tensor::from_vec(rows, count, &Device::Cpu).map_err(candle)?;
            let weights = Tensor::from_vec(weights, (count, 1), &Device::Cpu).map_err(candle)?;
            let own = h.index_select(&rows, 0).map_err(candle)?;
            let (gate, up) = (gate.multiply(&own, &reading)?, up.multiply(&own, &reading)?);
            let a = self.activate(&reading, &gate, &up).map_err(candle)?;
            let a = down.multiply(&a, &reading)?;
            y = a
                .broadcast_mul(&weights)
                .and_then(|a| y.index_add(&rows, &a, 0))
                .map_err(candle)?;
        }
        let factor = f64::from(reading.config.factors.residual);
        y.affine(factor, 0.0).map_err(candle)
    }

    /// `act(gate) * up`, bounded where the network is.
    fn activate(
        &self,
        reading: &Reading<'_>,
        gate: &Tensor,
        up: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let act = reading.activation();
        let Some(most) = self.shape.clamp else {
            return activate(act, gate)? * up;
        };
        match reading.clamp() {
            ClampAt::Input => {
                let gate = gate.minimum(most)?;
                activate(act, &gate)? * up.clamp(-most, most)?
            }
            ClampAt::Output => {
                let gate = activate(act, gate)?.minimum(most)?;
                gate * up.clamp(-most, most)?
            }
            ClampAt::Nowhere => activate(act, gate)? * up,
        }
    }
}

/// The experts with the largest probabilities, and their weights.
fn choose(logits: &[f32], used: usize, normalize: bool) -> Vec<(usize, f32)> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f64> = logits
        .iter()
        .map(|l| (f64::from(*l) - f64::from(most)).exp())
        .collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // stable: of equal ones the lower number
    order.sort_by(|a, b| {
        logits[*b]
            .partial_cmp(&logits[*a])
            .unwrap_or(Ordering::Equal)
    });
    order.truncate(used);
    let sum: f64 = match normalize {
        true => order.iter().map(|expert| e[*expert]).sum(),
        false => e.iter().sum(),
    };
    order
        .into_iter()
        .map(|expert| (expert, (e[expert] / sum) as f32))
        .collect()
}
