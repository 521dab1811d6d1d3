//! One decoder layer of the oracle, and what its operators make of recorded inputs.
//!
//! Invariant: there is one forward pass. The plain one is the replay without a deviation and without a record, so
//! what is judged operator by operator is what is computed end to end.

use super::deviation::{Deviation, Reading};
use super::linear::Linear;
use super::rope::{rotary_tables, rotate, rotate_neighbours};
use super::{candle, gain, matrix, values};
use crate::reference::divergence::relative_error;
use crate::reference::golden::Recorded;
use bitnet_checkpoint::{Activation, Checkpoint, Config, LayerSlot, Rope, RopeScaling, Slot};
use bitnet_formats::FormatError;
use candle_core::{D, DType, Device, Tensor};

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

/// What the forward pass hands its intermediate values to, and takes them back from.
type Tap<'t> = dyn FnMut(Operator, Tensor) -> Result<Tensor, FormatError> + 't;

/// One decoder layer, dense.
pub struct Layer<'a> {
    config: &'a Config,
    index: usize,
    input_norm: Tensor,
    q: Branch,
    k: Branch,
    v: Branch,
    head_norms: Option<(Tensor, Tensor)>, // of queries, of keys
    o: Branch,
    attn_branch_norm: Option<Tensor>,
    post_attention_norm: Tensor,
    gate: Branch,
    up: Branch,
    down: Branch,
    ffn_branch_norm: Option<Tensor>,
}

/// A linear and the norm in front of it, if it has one of its own.
struct Branch {
    norm: Option<(LayerSlot, Tensor)>, // its gain, (cols,)
    linear: Linear,
}

impl<'a> Layer<'a> {
    pub(super) fn load(checkpoint: &'a Checkpoint, index: usize) -> Result<Self, FormatError> {
        let config = &checkpoint.config;
        let norm = |slot| gain(checkpoint, Slot::Layer(index, slot));
        let optional = |there: bool, slot| there.then(|| norm(slot)).transpose();
        let linear = |slot, normed: bool, norm_slot| {
            let norm = optional(normed, norm_slot)?.map(|gain| (norm_slot, gain));
            let linear = Linear::load(checkpoint, Slot::Layer(index, slot))?;
            Ok::<_, FormatError>(Branch { norm, linear })
        };
        let norms = config.norms;
        let own = norms.projections;
        let head_norms = match norms.heads {
            true => Some((norm(LayerSlot::QNorm)?, norm(LayerSlot::KNorm)?)),
            false => None,
        };
        Ok(Self {
            config,
            index,
            input_norm: norm(LayerSlot::InputNorm)?,
            q: linear(LayerSlot::QProj, own, LayerSlot::QProjNorm)?,
            k: linear(LayerSlot::KProj, own, LayerSlot::KProjNorm)?,
            v: linear(LayerSlot::VProj, own, LayerSlot::VProjNorm)?,
            head_norms,
            o: linear(
                LayerSlot::OProj,
                config.attn_sub_norm,
                LayerSlot::AttnSubNorm,
            )?,
            attn_branch_norm: optional(norms.branches, LayerSlot::AttnBranchNorm)?,
            post_attention_norm: norm(LayerSlot::PostAttentionNorm)?,
            gate: linear(LayerSlot::GateProj, own, LayerSlot::GateProjNorm)?,
            up: linear(LayerSlot::UpProj, own, LayerSlot::UpProjNorm)?,
            down: linear(
                LayerSlot::DownProj,
                config.ffn_sub_norm,
                LayerSlot::FfnSubNorm,
            )?,
            ffn_branch_norm: optional(norms.branches, LayerSlot::FfnBranchNorm)?,
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
        self.pass(how, &mut |_, y| Ok(y)).run(x)
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
        self.pass(how, &mut tap).run(&x)?;
        Ok(all)
    }

    fn pass<'l, 't>(&'l self, how: Option<Deviation>, tap: &'l mut Tap<'t>) -> Pass<'l, 'a, 't> {
        let reading = Reading {
            config: self.config,
            how,
        };
        Pass {
            layer: self,
            reading,
            tap,
        }
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

/// One way through one layer.
struct Pass<'l, 'a, 't> {
    layer: &'l Layer<'a>,
    reading: Reading<'l>,
    tap: &'l mut Tap<'t>,
}

impl Pass<'_, '_, '_> {
    fn run(&mut self, x: &Tensor) -> Result<Tensor, FormatError> {
        let layer = self.layer;
        let h = self.norm(LayerSlot::InputNorm, x, &layer.input_norm)?;
        let q = self.linear(&layer.q, &h)?;
        let k = self.linear(&layer.k, &h)?;
        let v = self.linear(&layer.v, &h)?;
        let (q, k) = match &layer.head_norms {
            Some((q_gain, k_gain)) => (
                self.head_norm(LayerSlot::QNorm, &q, q_gain)?,
                self.head_norm(LayerSlot::KNorm, &k, k_gain)?,
            ),
            None => (q, k),
        };
        let h = layer.attention(&q, &k, &v, &self.reading).map_err(candle)?;
        let h = (self.tap)(Operator::Attention, h)?;
        let y = self.linear(&layer.o, &h)?;
        let y = self.branch(LayerSlot::AttnBranchNorm, y, &layer.attn_branch_norm)?;
        let x = (self.tap)(Operator::AddAttention, (x + y).map_err(candle)?)?;

        let norm = &layer.post_attention_norm;
        let h = self.norm(LayerSlot::PostAttentionNorm, &x, norm)?;
        let gate = self.linear(&layer.gate, &h)?;
        let up = self.linear(&layer.up, &h)?;
        let h = activate(self.reading.activation(), &gate).and_then(|g| g * up);
        let h = (self.tap)(Operator::Activation, h.map_err(candle)?)?;
        let y = self.linear(&layer.down, &h)?;
        let y = self.branch(LayerSlot::FfnBranchNorm, y, &layer.ffn_branch_norm)?;
        (self.tap)(Operator::AddMlp, (x + y).map_err(candle)?)
    }

    fn norm(&mut self, slot: LayerSlot, x: &Tensor, gain: &Tensor) -> Result<Tensor, FormatError> {
        let y = match self.reading.leaves_out(slot) {
            true => x.clone(),
            false => rms_norm(x, gain, self.reading.epsilon()).map_err(candle)?,
        };
        (self.tap)(Operator::Norm(slot), y)
    }

    /// `x` is `(tokens, heads * head_dim)`, normed head by head.
    fn head_norm(
        &mut self,
        slot: LayerSlot,
        x: &Tensor,
        gain: &Tensor,
    ) -> Result<Tensor, FormatError> {
        let (tokens, width) = x.dims2().map_err(candle)?;
        let head_dim = self.reading.config.head_dim;
        let heads = x.reshape((tokens * width / head_dim, head_dim));
        let y = self.norm(slot, &heads.map_err(candle)?, gain)?;
        y.reshape((tokens, width)).map_err(candle)
    }

    /// The norm in front of it included, if it has one.
    fn linear(&mut self, branch: &Branch, x: &Tensor) -> Result<Tensor, FormatError> {
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
    fn branch(
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

impl Layer<'_> {
    /// Causal attention with rotary positions from 0; `q` is `(tokens, heads * head_dim)`, `k` and `v`
    /// are `(tokens, kv_heads * head_dim)`.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        reading: &Reading<'_>,
    ) -> candle_core::Result<Tensor> {
        let config = self.config;
        let (tokens, width) = (q.dim(0)?, config.head_dim);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let window = match &config.sliding {
            Some(sliding) if sliding.layers[self.index] => Some(sliding),
            _ => None,
        };
        let rope = match window {
            Some(sliding) => Rope {
                theta: sliding.rope_theta,
                scaling: RopeScaling::None,
            },
            None => config.rope,
        };
        let (cos, sin) = rotary_tables(&reading.rope(rope), width, tokens)?;
        // (tokens, n * width) -> (n, tokens, width)
        let split = |x: &Tensor, n| x.reshape((tokens, n, width))?.transpose(0, 1)?.contiguous();
        let turn = |x: &Tensor, n| match reading.rotates_neighbours() {
            true => rotate_neighbours(&split(x, n)?, &cos, &sin),
            false => rotate(&split(x, n)?, &cos, &sin),
        };
        // query head i reads kv head i / (heads / kv_heads)
        let repeat = |x: Tensor| {
            let shape = (kv_heads, heads / kv_heads, tokens, width);
            x.unsqueeze(1)?
                .expand(shape)?
                .reshape((heads, tokens, width))
        };
        let q = turn(q, heads)?;
        let k = repeat(turn(k, kv_heads)?)?;
        let v = repeat(split(v, kv_heads)?)?;

        let scalar = match config.factors.query_pre_attn_scalar {
            Some(scalar) => f64::from(scalar),
            None => width as f64,
        };
        let scores = q.matmul(&k.transpose(1, 2)?)?;
        let scores = scores.affine(scalar.powf(-0.5), 0.0)?;
        let behind = window.map_or(usize::MAX, |sliding| sliding.tokens);
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

/// `gain * (x / sqrt(mean(x^2) + eps))`, the mean in `f64`.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> candle_core::Result<Tensor> {
    let mean = x.to_dtype(DType::F64)?.sqr()?.mean_keepdim(D::Minus1)?;
    let r = (mean + f64::from(eps))?
        .sqrt()?
        .recip()?
        .to_dtype(DType::F32)?;
    x.broadcast_mul(&r)?.broadcast_mul(gain)
}

fn activate(activation: Activation, x: &Tensor) -> candle_core::Result<Tensor> {
    match activation {
        Activation::Relu2 => x.relu()?.sqr(),
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
    }
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

    #[test]
    fn softmax_ignores_the_future() {
        let x = [1.0f32, 1.0, f32::NEG_INFINITY];
        let t = Tensor::from_slice(&x, (1, 3), &Device::Cpu).unwrap();
        assert_eq!(values(&softmax(&t).unwrap()).unwrap(), [0.5, 0.5, 0.0]);
    }
}
