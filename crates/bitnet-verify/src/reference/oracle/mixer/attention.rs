//! Grouped-query attention of the oracle.
//!
//! Invariant: scores, mask and softmax are whole matrices, as the definition has them.

use crate::reference::oracle::deviation::{Deviation, Reading};
use crate::reference::oracle::pass::{Branch, LayerTensors, Operator, Pass};
use crate::reference::oracle::rope::{rotary_tables, rotate, rotate_neighbours};
use crate::reference::oracle::tensors::candle;
use bitnet_checkpoint::{self as config, LayerSlot, Rope};
use bitnet_formats::FormatError;
use candle_core::{D, DType, Device, Tensor};

/// Attention of one layer, dense.
pub(in crate::reference::oracle) struct Attention {
    shape: config::Attention,
    input_norm: Tensor,
    q: Branch,
    k: Branch,
    v: Branch,
    head_norms: Option<(Tensor, Tensor)>, // of queries, of keys
    o: Branch,
    branch_norm: Option<Tensor>,
}

impl Attention {
    pub(super) fn load(
        shape: config::Attention,
        tensors: LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let own = shape.input_norms;
        Ok(Self {
            shape,
            input_norm: tensors.norm(LayerSlot::InputNorm)?,
            q: tensors.linear(LayerSlot::QProj, own, LayerSlot::QProjNorm)?,
            k: tensors.linear(LayerSlot::KProj, own, LayerSlot::KProjNorm)?,
            v: tensors.linear(LayerSlot::VProj, own, LayerSlot::VProjNorm)?,
            head_norms: match shape.head_norms {
                true => Some((
                    tensors.norm(LayerSlot::QNorm)?,
                    tensors.norm(LayerSlot::KNorm)?,
                )),
                false => None,
            },
            o: tensors.linear(LayerSlot::OProj, shape.sub_norm, LayerSlot::AttnSubNorm)?,
            branch_norm: tensors.norm_if(shape.branch_norm, LayerSlot::AttnBranchNorm)?,
        })
    }

    /// What attention adds to `x`, `(tokens, hidden_size)`.
    pub(super) fn run(&self, pass: &mut Pass<'_, '_>, x: &Tensor) -> Result<Tensor, FormatError> {
        let h = pass.norm(LayerSlot::InputNorm, x, &self.input_norm)?;
        let q = pass.linear(&self.q, &h)?;
        let (q, gate) = match self.shape.output_gate {
            true => self.gated(&q, &pass.reading).map_err(candle)?,
            false => (q, None),
        };
        let k = pass.linear(&self.k, &h)?;
        let v = pass.linear(&self.v, &h)?;
        let after = pass.reading.norms_after_rope(self.shape.norms_after_rope);
        let reading = pass.reading;
        let turn = |x: &Tensor| self.rotated(x, &reading).map_err(candle);
        let (q, k) = match after {
            true => (turn(&q)?, turn(&k)?),
            false => (q, k),
        };
        let (q, k) = match &self.head_norms {
            Some((q_gain, k_gain)) => (
                self.head_norm(pass, LayerSlot::QNorm, &q, q_gain)?,
                self.head_norm(pass, LayerSlot::KNorm, &k, k_gain)?,
            ),
            None => (q, k),
        };
        let (q, k) = match after {
            true => (q, k),
            false => (turn(&q)?, turn(&k)?),
        };
        let h = self.attention(&q, &k, &v, &pass.reading).map_err(candle)?;
        let h = match gate {
            Some(gate) => h.mul(&sigmoid(&gate).map_err(candle)?).map_err(candle)?,
            None => h,
        };
        let h = pass.tap(Operator::Attention, h)?;
        let y = pass.linear(&self.o, &h)?;
        pass.branch(LayerSlot::AttnBranchNorm, y, &self.branch_norm)
    }

    /// Queries and gates, `(tokens, heads * head_dim)` each, of rows in which a gate stands behind the query of every
    /// head.
    fn gated(
        &self,
        rows: &Tensor,
        reading: &Reading<'_>,
    ) -> candle_core::Result<(Tensor, Option<Tensor>)> {
        let (tokens, heads, dim) = (rows.dim(0)?, self.shape.heads, self.shape.head_dim);
        let shape = match reading.how {
            Some(Deviation::GateRows) => (tokens, 1, 2, heads * dim),
            _ => (tokens, heads, 2, dim),
        };
        let rows = rows.reshape(shape)?;
        let part = |n| {
            let part = rows.narrow(2, n, 1)?.contiguous()?;
            part.reshape((tokens, heads * dim))
        };
        let gate = match reading.how {
            Some(Deviation::NoOutputGate) => None,
            _ => Some(part(1)?),
        };
        Ok((part(0)?, gate))
    }

    /// `x` is `(tokens, heads * head_dim)`, normed head by head.
    fn head_norm(
        &self,
        pass: &mut Pass<'_, '_>,
        slot: LayerSlot,
        x: &Tensor,
        gain: &Tensor,
    ) -> Result<Tensor, FormatError> {
        let (tokens, width) = x.dims2().map_err(candle)?;
        let head_dim = self.shape.head_dim;
        let heads = x.reshape((tokens * width / head_dim, head_dim));
        let y = pass.norm(slot, &heads.map_err(candle)?, gain)?;
        y.reshape((tokens, width)).map_err(candle)
    }

    /// The heads of `x`, `(tokens, some heads * head_dim)`, rotated to positions from 0 on.
    fn rotated(&self, x: &Tensor, reading: &Reading<'_>) -> candle_core::Result<Tensor> {
        let config = reading.config;
        let rotary = reading.rotary_dim(self.shape.rotary_dim, self.shape.head_dim);
        if rotary == 0 {
            return Ok(x.clone());
        }
        let (tokens, width) = (x.dim(0)?, self.shape.head_dim);
        let heads = x.dim(1)? / width;
        let rope: Rope = match (self.shape.window, config.sliding_rope()) {
            (Some(_), Some(sliding)) => sliding,
            _ => config.rope,
        };
        let (cos, sin) = rotary_tables(&reading.rope(rope), reading.long_rope(), rotary, tokens)?;
        // (tokens, heads * width) -> (heads, tokens, width)
        let x = x.reshape((tokens, heads, width))?.transpose(0, 1)?;
        let turned = x.narrow(2, 0, rotary)?.contiguous()?;
        let turned = match reading.rotates_neighbours() {
            true => rotate_neighbours(&turned, &cos, &sin)?,
            false => rotate(&turned, &cos, &sin)?,
        };
        let kept = x.narrow(2, rotary, width - rotary)?.contiguous()?;
        let x = match rotary == width {
            true => turned,
            false => Tensor::cat(&[turned, kept], 2)?,
        };
        x.transpose(0, 1)?
            .contiguous()?
            .reshape((tokens, heads * width))
    }

    /// Causal attention; `q` is `(tokens, heads * head_dim)`, `k` and `v` are `(tokens, kv_heads * head_dim)`.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        reading: &Reading<'_>,
    ) -> candle_core::Result<Tensor> {
        let config = reading.config;
        let (tokens, width) = (q.dim(0)?, self.shape.head_dim);
        let (heads, kv_heads) = (self.shape.heads, self.shape.kv_heads);
        // (tokens, n * width) -> (n, tokens, width)
        let split = |x: &Tensor, n| x.reshape((tokens, n, width))?.transpose(0, 1)?.contiguous();
        // query head i reads kv head i / (heads / kv_heads)
        let repeat = |x: Tensor| {
            let shape = (kv_heads, heads / kv_heads, tokens, width);
            x.unsqueeze(1)?
                .expand(shape)?
                .reshape((heads, tokens, width))
        };
        let q = split(q, heads)?;
        let k = repeat(split(k, kv_heads)?)?;
        let v = repeat(split(v, kv_heads)?)?;

        let scalar = match config.factors.query_pre_attn_scalar {
            Some(scalar) => f64::from(scalar),
            None => width as f64,
        };
        let scores = q.matmul(&k.transpose(1, 2)?)?;
        let scores = scores.affine(scalar.powf(-0.5), 0.0)?;
        let behind = self.shape.window.unwrap_or(usize::MAX);
        let mask = (0..tokens * tokens).map(|i| (i / tokens, i % tokens));
        let mask: Vec<f32> = mask
            .map(|(query, key)| match key <= query && query - key < behind {
                true => 0.0,
                false => f32::NEG_INFINITY,
            })
            .collect();
        let mask = Tensor::from_vec(mask, (1, tokens, tokens), &Device::Cpu)?;
        let weights = softmax(&scores.broadcast_add(&mask)?)?;
        weights
            .matmul(&v)?
            .transpose(0, 1)?
            .contiguous()?
            .reshape((tokens, heads * width))
    }
}

fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.to_dtype(DType::F64)?;
    (x.neg()?.exp()? + 1.0)?.recip()?.to_dtype(DType::F32)
}

/// Over the last axis, in `f64`.
fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.to_dtype(DType::F64)?;
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?
        .to_dtype(DType::F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::oracle::values;

    #[test]
    fn softmax_ignores_the_future() {
        let x = [1.0f32, 1.0, f32::NEG_INFINITY];
        let t = Tensor::from_slice(&x, (1, 3), &Device::Cpu).unwrap();
        assert_eq!(values(&softmax(&t).unwrap()).unwrap(), [0.5, 0.5, 0.0]);
    }
}
