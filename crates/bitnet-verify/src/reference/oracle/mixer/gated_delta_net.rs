//! Gated DeltaNet of the oracle.
//!
//! Invariant: one token after the other, as the recurrence is written, in `f64`; only the linears are dense products.

use crate::reference::oracle::deviation::{Deviation, Reading};
use crate::reference::oracle::pass::{Branch, LayerTensors, Operator, Pass};
use crate::reference::oracle::tensors::{candle, dense_values, matrix, values};
use bitnet_checkpoint::{self as config, LayerSlot, TiledHeads};
use bitnet_formats::FormatError;
use candle_core::Tensor;

/// Added to the sum of squares of queries and keys.
const UNIT_EPS: f64 = 1e-6;

/// Gated DeltaNet of one layer, dense.
pub(in crate::reference::oracle) struct GatedDeltaNet {
    shape: config::GatedDeltaNet,
    input_norm: Tensor,
    qkv: Branch,
    z: Branch,
    b: Tensor,        // (hidden, value heads)
    a: Tensor,        // (hidden, value heads)
    kernel: Vec<f32>, // (channels, taps)
    rates: Vec<f32>,
    dt_bias: Vec<f32>,
    norm: Vec<f32>,
    out: Branch,
}

impl GatedDeltaNet {
    pub(super) fn load(
        shape: config::GatedDeltaNet,
        tensors: LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let linear = |slot| tensors.linear(slot, false, LayerSlot::InputNorm);
        let turned = |slot| {
            let weights = dense_values(tensors.checkpoint, tensors.slot(slot))?;
            let weights = matrix(&weights, shape.value_heads, shape.hidden_size)?;
            weights.t().and_then(|w| w.contiguous()).map_err(candle)
        };
        let vector = |slot| dense_values(tensors.checkpoint, tensors.slot(slot));
        Ok(Self {
            shape,
            input_norm: tensors.norm(LayerSlot::InputNorm)?,
            qkv: linear(LayerSlot::InProjQkv)?,
            z: linear(LayerSlot::InProjZ)?,
            b: turned(LayerSlot::InProjB)?,
            a: turned(LayerSlot::InProjA)?,
            kernel: vector(LayerSlot::Conv1d)?,
            rates: vector(LayerSlot::ALog)?,
            dt_bias: vector(LayerSlot::DtBias)?,
            norm: vector(LayerSlot::GatedNorm)?,
            out: linear(LayerSlot::OutProj)?,
        })
    }

    /// What it adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        let h = pass.norm(LayerSlot::InputNorm, x, &self.input_norm)?;
        let qkv = pass.linear(&self.qkv, &h)?;
        let z = pass.linear(&self.z, &h)?;
        let b = pass.tap(
            Operator::Linear(LayerSlot::InProjB),
            h.matmul(&self.b).map_err(candle)?,
        )?;
        let a = pass.tap(
            Operator::Linear(LayerSlot::InProjA),
            h.matmul(&self.a).map_err(candle)?,
        )?;
        let reading = pass.reading;
        let mixed = self.convolve(&values(&qkv)?, &reading);
        let core = self.states(&mixed, &values(&a)?, &values(&b)?, &reading);
        let gated = self.gated_norm(&core, &values(&z)?, &reading);
        let (tokens, heads) = (x.dim(0).map_err(candle)?, self.shape.value_heads);
        let gated = matrix(&gated, tokens * heads, self.shape.value_dim)?;
        let gated = pass.tap(Operator::Norm(LayerSlot::GatedNorm), gated)?;
        let gated = values(&gated)?;
        let width = self.shape.value_width();
        let gated = match (
            reading.how,
            TiledHeads::of(&self.shape, 0, self.shape.value_dim),
        ) {
            (Some(Deviation::TiledColumns), Some(heads)) => {
                // columns that stand elsewhere, for inputs that do not
                let at = |n: usize| n / width * width + heads.tiled(n % width);
                (0..gated.len()).map(|n| gated[at(n)]).collect()
            }
            _ => gated,
        };
        let y = pass.linear(&self.out, &matrix(&gated, tokens, width)?)?;
        pass.branch(LayerSlot::AttnBranchNorm, y, &None)
    }

    /// Queries, keys and values behind the convolution, `(tokens, channels)`; queries and keys at length 1.
    fn convolve(&self, qkv: &[f32], reading: &Reading<'_>) -> Vec<f64> {
        let (channels, taps) = (self.shape.channels(), self.shape.conv_kernel);
        let tokens = qkv.len() / channels;
        let mut mixed = Vec::with_capacity(qkv.len());
        for token in 0..tokens {
            for channel in 0..channels {
                let kernel = &self.kernel[channel * taps..(channel + 1) * taps];
                let tap = |behind: usize| match reading.how {
                    Some(Deviation::ReversedTaps) => kernel[behind],
                    _ => kernel[taps - 1 - behind],
                };
                let seen = (0..taps.min(token + 1)).map(|behind| {
                    f64::from(tap(behind)) * f64::from(qkv[(token - behind) * channels + channel])
                });
                let sum: f64 = seen.sum();
                mixed.push(silu(sum));
            }
        }
        let (keys, dim) = (self.shape.key_width(), self.shape.key_dim);
        for row in mixed.chunks_mut(channels) {
            for (head, x) in row[..2 * keys].chunks_mut(dim).enumerate() {
                let squares: f64 = x.iter().map(|x| x * x).sum();
                let is_query = head < self.shape.key_heads;
                let scale = match (is_query, reading.how) {
                    (true, how) if how != Some(Deviation::UnscaledQuery) => {
                        1.0 / (dim as f64).sqrt()
                    }
                    _ => 1.0,
                };
                let factor = scale / (squares + UNIT_EPS).sqrt();
                x.iter_mut().for_each(|x| *x *= factor);
            }
        }
        mixed
    }

    /// What the states answer, `(tokens, value heads, value_dim)`.
    fn states(&self, mixed: &[f64], a: &[f32], b: &[f32], reading: &Reading<'_>) -> Vec<f64> {
        let shape = &self.shape;
        let (heads, keys, dim, width) = (
            shape.value_heads,
            shape.key_width(),
            shape.key_dim,
            shape.value_dim,
        );
        let mut states = vec![vec![0.0f64; dim * width]; heads];
        let mut out = Vec::new();
        for (token, row) in mixed.chunks(shape.channels()).enumerate() {
            for (head, state) in states.iter_mut().enumerate() {
                let key_head = match reading.how {
                    Some(Deviation::HeadPairing) => head % shape.key_heads,
                    _ => head / shape.repeats(),
                };
                let q = &row[key_head * dim..(key_head + 1) * dim];
                let k = &row[keys + key_head * dim..keys + (key_head + 1) * dim];
                let v = &row[2 * keys + head * width..2 * keys + (head + 1) * width];
                let at = token * heads + head;
                let step = softplus(f64::from(a[at]) + f64::from(self.dt_bias[head]));
                let decay = (f64::from(self.rates[head]) * step).exp();
                let beta = sigmoid(f64::from(b[at]));
                let read = |state: &[f64], by: &[f64], column: usize| -> f64 {
                    let rows = by.iter().enumerate();
                    rows.map(|(i, by)| state[i * width + column] * by).sum()
                };
                let early = matches!(reading.how, Some(Deviation::EarlyPrediction));
                let before: Vec<f64> = match early {
                    true => (0..width).map(|j| read(state, k, j)).collect(),
                    false => Vec::new(),
                };
                state.iter_mut().for_each(|s| *s *= decay);
                let seen = |j: usize| match early {
                    true => before[j],
                    false => read(state, k, j),
                };
                let d: Vec<f64> = (0..width).map(|j| (v[j] - seen(j)) * beta).collect();
                if reading.how == Some(Deviation::EarlyOutput) {
                    out.extend((0..width).map(|j| read(state, q, j)));
                }
                for (i, k) in k.iter().enumerate() {
                    for (j, d) in d.iter().enumerate() {
                        state[i * width + j] += k * d;
                    }
                }
                if reading.how != Some(Deviation::EarlyOutput) {
                    out.extend((0..width).map(|j| read(state, q, j)));
                }
            }
        }
        out
    }

    /// Each head normed, then times `silu(z)`.
    fn gated_norm(&self, core: &[f64], z: &[f32], reading: &Reading<'_>) -> Vec<f32> {
        let width = self.shape.value_dim;
        let gain = |j: usize| match reading.how {
            Some(Deviation::GatedNormOffset) => f64::from(self.norm[j]) + 1.0,
            _ => f64::from(self.norm[j]),
        };
        let mut out = Vec::with_capacity(core.len());
        for (core, z) in core.chunks(width).zip(z.chunks(width)) {
            let mean = core.iter().map(|x| x * x).sum::<f64>() / width as f64;
            let factor = match reading.leaves_out(LayerSlot::GatedNorm) {
                true => 1.0,
                false => 1.0 / (mean + f64::from(reading.epsilon())).sqrt(),
            };
            let heads = core.iter().zip(z).enumerate();
            out.extend(
                heads.map(|(j, (x, z))| (gain(j) * x * factor * silu(f64::from(*z))) as f32),
            );
        }
        out
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn silu(x: f64) -> f64 {
    x * sigmoid(x)
}

fn softplus(x: f64) -> f64 {
    match x > 20.0 {
        true => x,
        false => x.exp().ln_1p(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_what_their_names_say() {
        assert!((softplus(0.0) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(softplus(30.0), 30.0);
        assert!(softplus(-40.0) > 0.0 && softplus(-40.0) < 1e-17);
        assert_eq!((sigmoid(0.0), silu(0.0)), (0.5, 0.0));
    }
}
