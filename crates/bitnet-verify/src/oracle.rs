//! The witness: a dense forward pass of other people's arithmetic, against which the runtime is held.
//!
//! Invariant: it shares the [`Checkpoint`] (trits, dense bytes) and the [`Config`] with the runtime
//! and nothing else. Products are candle's dense `f32` matmul over `trit * scale`; activations are
//! rounded to their int8 levels in float and dequantised before the product, as the model was
//! trained; norms and softmax sum in `f64`; rotary tables are made here. Where both are right they
//! agree to the gates of `formats/numerics.md`; where both are wrong in the same way, the mistake
//! is in the checkpoint reader, which the trit and scale checks cover.
//!
//! Memory: the dense weights of one layer exist at a time, the head is multiplied in blocks of
//! rows, and of the embedding only the rows asked for are widened. Several sequences go through a
//! layer together, so that its weights are made once.

use bitnet_formats::{ErrorCode, FormatError, dense_to_f32};
use bitnet_model::{
    Activation, ActivationQuantization, Checkpoint, Config, DenseTensor, LayerSlot, Rope,
    RopeScaling, Slot,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use candle_core::{D, DType, Device, Tensor};
use std::f64::consts::PI;
use std::ops::Range;

/// Elements of the head that are widened at a time: 32 MB as `f32`.
const HEAD_BLOCK: usize = 8 << 20;

/// The dense witness of one checkpoint.
#[derive(Debug, Clone, Copy)]
pub struct Oracle<'a> {
    checkpoint: &'a Checkpoint,
}

/// The residual stream of one sequence, layer by layer.
#[derive(Debug, Clone)]
pub struct Trace {
    /// `hidden[0]` is the embeddings, `hidden[i + 1]` the output of layer `i`, each
    /// `(tokens, hidden_size)`; the last one is before the final norm.
    pub hidden: Vec<Vec<f32>>,
    /// After the final norm, `(tokens, hidden_size)`.
    pub normed: Vec<f32>,
}

impl<'a> Oracle<'a> {
    /// A witness for `checkpoint`; nothing is read yet.
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// Logits of every position, `(tokens, vocab_size)`.
    ///
    /// # Errors
    /// Whatever is wrong with the checkpoint's tensors; no tokens, or one outside the vocabulary (`usage`);
    /// activations that are not finite (`non-finite`, naming layer and tensor).
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>, FormatError> {
        Ok(self.logits_of(&[tokens])?.pop().unwrap_or_default())
    }

    /// [`logits`](Self::logits) of several sequences; each layer's weights are made once.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn logits_of(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let mut hidden = Vec::with_capacity(sequences.len());
        for tokens in sequences {
            hidden.push(self.embed(tokens)?);
        }
        for layer in 0..self.config().num_hidden_layers {
            let layer = Layer::load(self.checkpoint, layer)?;
            for x in &mut hidden {
                *x = layer.forward(x)?;
            }
        }
        let gain = self.norm_gain(Slot::OutputNorm)?;
        for x in &mut hidden {
            *x = self.rms_norm(x, &gain)?;
        }
        self.head(hidden)
    }

    /// The embedding rows of `tokens`, `(tokens, hidden_size)`.
    ///
    /// # Errors
    /// A token outside the vocabulary; an unreadable tensor.
    pub fn embeddings(&self, tokens: &[u32]) -> Result<Vec<f32>, FormatError> {
        values(&self.embed(tokens)?)
    }

    /// One ternary linear on given inputs: `x` is `(tokens, cols)`, the result `(tokens, rows)`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); a length of `x` that does not fit.
    pub fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        let linear = Linear::load(self.checkpoint, slot)?;
        let x = matrix(x, tokens, linear.cols)?;
        values(&linear.multiply(&x)?)
    }

    /// One layer on a given residual stream of positions `0..tokens`, `(tokens, hidden_size)`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits); a layer or a length that does not exist.
    pub fn layer(
        &self,
        layer: usize,
        hidden: &[f32],
        tokens: usize,
    ) -> Result<Vec<f32>, FormatError> {
        let config = self.config();
        if layer >= config.num_hidden_layers {
            return Err(FormatError::new(
                ErrorCode::Usage,
                format!(
                    "layer {layer}: the model has layers 0 to {}",
                    config.num_hidden_layers - 1
                ),
            ));
        }
        let x = matrix(hidden, tokens, config.hidden_size)?;
        values(&Layer::load(self.checkpoint, layer)?.forward(&x)?)
    }

    /// [`layer`](Self::layer) on several residual streams; its weights are made once.
    ///
    /// # Errors
    /// As [`layer`](Self::layer).
    pub fn layer_of(&self, layer: usize, hidden: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let layer = Layer::load(self.checkpoint, layer)?;
        hidden
            .iter()
            .map(|x| values(&layer.forward(&self.stream(x)?)?))
            .collect()
    }

    /// The final norm of several residual streams.
    ///
    /// # Errors
    /// An unreadable tensor; a length that does not fit.
    pub fn output_norm_of(&self, hidden: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let gain = self.norm_gain(Slot::OutputNorm)?;
        hidden
            .iter()
            .map(|x| values(&self.rms_norm(&self.stream(x)?, &gain)?))
            .collect()
    }

    /// The output head on several streams that are normed already.
    ///
    /// # Errors
    /// An unreadable tensor; a length that does not fit.
    pub fn head_of(&self, normed: &[&[f32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        let normed: Result<Vec<_>, _> = normed.iter().map(|x| self.stream(x)).collect();
        self.head(normed?)
    }

    fn stream(&self, x: &[f32]) -> Result<Tensor, FormatError> {
        let width = self.config().hidden_size;
        matrix(x, x.len() / width, width)
    }

    /// The residual stream of one sequence after every layer.
    ///
    /// # Errors
    /// As [`logits`](Self::logits).
    pub fn trace(&self, tokens: &[u32]) -> Result<Trace, FormatError> {
        let mut x = self.embed(tokens)?;
        let mut hidden = vec![values(&x)?];
        for layer in 0..self.config().num_hidden_layers {
            x = Layer::load(self.checkpoint, layer)?.forward(&x)?;
            hidden.push(values(&x)?);
        }
        let normed = values(&self.rms_norm(&x, &self.norm_gain(Slot::OutputNorm)?)?)?;
        Ok(Trace { hidden, normed })
    }

    fn config(&self) -> &'a Config {
        &self.checkpoint.config
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor, FormatError> {
        let (vocab, width) = (self.config().vocab_size, self.config().hidden_size);
        if tokens.is_empty() {
            return Err(FormatError::new(
                ErrorCode::Usage,
                "expected at least one token, found none",
            ));
        }
        let table = Table::open(self.checkpoint, Slot::TokenEmbeddings)?;
        let mut x = Vec::with_capacity(tokens.len() * width);
        for &token in tokens {
            let row = token as usize;
            if row >= vocab {
                return Err(FormatError::new(
                    ErrorCode::Usage,
                    format!(
                        "token {token}: the vocabulary has tokens 0 to {}",
                        vocab - 1
                    ),
                ));
            }
            x.extend(table.rows(row..row + 1)?);
        }
        let factor = f64::from(self.config().factors.embedding);
        let x = matrix(&x, tokens.len(), width)?;
        x.affine(factor, 0.0).map_err(candle)
    }

    fn norm_gain(&self, slot: Slot) -> Result<Tensor, FormatError> {
        gain(self.checkpoint, slot)
    }

    fn rms_norm(&self, x: &Tensor, gain: &Tensor) -> Result<Tensor, FormatError> {
        rms_norm(x, gain, self.config().rms_norm_eps).map_err(candle)
    }

    /// `x @ head^T` for every sequence, the head widened in blocks of rows.
    fn head(&self, normed: Vec<Tensor>) -> Result<Vec<Vec<f32>>, FormatError> {
        let (vocab, width) = (self.config().vocab_size, self.config().hidden_size);
        let slot = if self.config().tie_word_embeddings {
            Slot::TokenEmbeddings
        } else {
            Slot::OutputHead
        };
        let head = Table::open(self.checkpoint, slot)?;
        let divisor = f64::from(self.config().factors.head_divisor);
        let hidden: Result<Vec<Tensor>, _> = normed.iter().map(|x| x / divisor).collect();
        let hidden = hidden.map_err(candle)?;
        let mut logits: Vec<Vec<f32>> = Vec::with_capacity(hidden.len());
        for x in &hidden {
            logits.push(vec![0.0; x.dim(0).map_err(candle)? * vocab]);
        }
        let block = (HEAD_BLOCK / width).max(1);
        for start in (0..vocab).step_by(block) {
            let rows = start..vocab.min(start + block);
            let weights = matrix(&head.rows(rows.clone())?, rows.len(), width)?;
            let weights = weights.t().map_err(candle)?;
            for (x, out) in hidden.iter().zip(&mut logits) {
                let part = values(&x.matmul(&weights).map_err(candle)?)?;
                for (out, part) in out
                    .chunks_exact_mut(vocab)
                    .zip(part.chunks_exact(rows.len()))
                {
                    out[rows.clone()].copy_from_slice(part);
                }
            }
        }
        Ok(logits)
    }
}

/// Rows by token: embeddings or output head.
enum Table<'a> {
    Dense(Slot, DenseTensor<'a>),
    Ternary(TernaryMatrix),
}

impl<'a> Table<'a> {
    fn open(checkpoint: &'a Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        checkpoint.refuse_rotation()?;
        if checkpoint.is_ternary(slot) {
            checkpoint.ternary(slot).map(Self::Ternary)
        } else {
            Ok(Self::Dense(slot, checkpoint.dense(slot)?))
        }
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>, FormatError> {
        match self {
            Self::Dense(slot, tensor) => dense_rows(tensor, *slot, rows),
            Self::Ternary(matrix) => Ok(dense_weights(matrix, rows)),
        }
    }
}

/// One decoder layer, dense.
struct Layer<'a> {
    config: &'a Config,
    index: usize,
    input_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    head_norms: Option<(Tensor, Tensor)>, // of queries, of keys
    o: Linear,
    attn_branch_norm: Option<Tensor>,
    post_attention_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
    ffn_branch_norm: Option<Tensor>,
}

impl<'a> Layer<'a> {
    fn load(checkpoint: &'a Checkpoint, index: usize) -> Result<Self, FormatError> {
        let config = &checkpoint.config;
        let norm = |slot| gain(checkpoint, Slot::Layer(index, slot));
        let optional = |there: bool, slot| there.then(|| norm(slot)).transpose();
        // a linear and the norm in front of it, if it has one of its own
        let linear = |slot, normed: bool, norm_slot| {
            let mut linear = Linear::load(checkpoint, Slot::Layer(index, slot))?;
            linear.norm = optional(normed, norm_slot)?;
            Ok::<_, FormatError>(linear)
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

    /// `x` is `(tokens, hidden_size)`, positions from 0.
    fn forward(&self, x: &Tensor) -> Result<Tensor, FormatError> {
        let eps = self.config.rms_norm_eps;
        let norm = |x: &Tensor, gain: &Tensor| rms_norm(x, gain, eps).map_err(candle);
        // what joins the residual stream
        let branch = |y: Tensor, gain: &Option<Tensor>| {
            let y = match gain {
                Some(gain) => norm(&y, gain)?,
                None => y,
            };
            let factor = f64::from(self.config.factors.residual);
            y.affine(factor, 0.0).map_err(candle)
        };
        let linear = |linear: &Linear, x: &Tensor| linear.forward(x, eps);

        let h = norm(x, &self.input_norm)?;
        let q = linear(&self.q, &h)?;
        let k = linear(&self.k, &h)?;
        let v = linear(&self.v, &h)?;
        let h = self.attention(&q, &k, &v).map_err(candle)?;
        let x = (x + branch(linear(&self.o, &h)?, &self.attn_branch_norm)?).map_err(candle)?;

        let h = norm(&x, &self.post_attention_norm)?;
        let (gate, up) = (linear(&self.gate, &h)?, linear(&self.up, &h)?);
        let h = activate(self.config.hidden_act, &gate)
            .and_then(|g| g * up)
            .map_err(candle)?;
        (x + branch(linear(&self.down, &h)?, &self.ffn_branch_norm)?).map_err(candle)
    }

    /// Causal attention with rotary positions from 0; `q` is `(tokens, heads * head_dim)`, `k` and `v`
    /// are `(tokens, kv_heads * head_dim)`.
    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> candle_core::Result<Tensor> {
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
        let (cos, sin) = rotary_tables(&rope, width, tokens)?;
        // (tokens, n * width) -> (n, tokens, width)
        let split = |x: &Tensor, n| x.reshape((tokens, n, width))?.transpose(0, 1)?.contiguous();
        let turn = |x: &Tensor, n, gain: Option<&Tensor>| {
            let mut x = split(x, n)?;
            if let Some(gain) = gain {
                x = rms_norm(&x, gain, config.rms_norm_eps)?;
            }
            rotate(&x, &cos, &sin)
        };
        // query head i reads kv head i / (heads / kv_heads)
        let repeat = |x: Tensor| {
            let shape = (kv_heads, heads / kv_heads, tokens, width);
            x.unsqueeze(1)?
                .expand(shape)?
                .reshape((heads, tokens, width))
        };
        let gains = self.head_norms.as_ref();
        let q = turn(q, heads, gains.map(|(q, _)| q))?;
        let k = repeat(turn(k, kv_heads, gains.map(|(_, k)| k))?)?;
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

/// One ternary linear as a dense matrix.
struct Linear {
    slot: Slot,
    norm: Option<Tensor>, // (cols,): the gain of an input norm of its own
    weight: Tensor,       // (rows, cols): trit * scale
    cols: usize,
    quantised: bool,
}

impl Linear {
    fn load(checkpoint: &Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        checkpoint.refuse_rotation()?;
        let ternary = checkpoint.ternary(slot)?;
        let weights = dense_weights(&ternary, 0..ternary.rows());
        let weight = matrix(&weights, ternary.rows(), ternary.cols())?;
        let quantised = match checkpoint.config.activation_quantization {
            ActivationQuantization::Int8PerToken => true,
            ActivationQuantization::None => false,
        };
        Ok(Self {
            slot,
            norm: None,
            weight,
            cols: ternary.cols(),
            quantised,
        })
    }

    /// The norm in front of it included, if it has one.
    fn forward(&self, x: &Tensor, eps: f32) -> Result<Tensor, FormatError> {
        match &self.norm {
            Some(gain) => self.multiply(&rms_norm(x, gain, eps).map_err(candle)?),
            None => self.multiply(x),
        }
    }

    fn multiply(&self, x: &Tensor) -> Result<Tensor, FormatError> {
        let input = values(x)?;
        if let Some(at) = input.iter().position(|x| !x.is_finite()) {
            let (token, column) = (at / self.cols.max(1), at % self.cols.max(1));
            return Err(FormatError::new(
                ErrorCode::NonFinite,
                format!("oracle: input of token {token}, column {column}: expected a finite number, found {}", input[at]),
            )
            .in_tensor(&self.slot.to_string()));
        }
        let run = || {
            let x = if self.quantised {
                fake_quantise(x)?
            } else {
                x.clone()
            };
            x.matmul(&self.weight.t()?)
        };
        run().map_err(candle)
    }
}

/// `trit * scale` of some rows, row-major.
fn dense_weights(matrix: &TernaryMatrix, rows: Range<usize>) -> Vec<f32> {
    let (cols, scales) = (matrix.cols(), matrix.scales());
    let run = match scales {
        Scales::PerGroup { group, .. } => *group,
        Scales::PerTensor(_) | Scales::PerRow(_) => cols.max(1),
    };
    let mut weights = Vec::with_capacity(rows.len() * cols);
    for row in rows {
        for (i, trits) in matrix.row(row).chunks(run).enumerate() {
            let scale = scales.at(row, i * run, cols);
            weights.extend(trits.iter().map(|&t| f32::from(t) * scale));
        }
    }
    weights
}

/// Activations to their int8 levels and back, per token: `q / s` with `s = 127 (1 / max(max|x|, 1e-5))`,
/// rounded twice as PyTorch does.
fn fake_quantise(x: &Tensor) -> candle_core::Result<Tensor> {
    let absmax = x.abs()?.max_keepdim(D::Minus1)?.maximum(1e-5f32)?;
    let s = absmax.recip()?.affine(127.0, 0.0)?;
    let levels = round_half_even(&x.broadcast_mul(&s)?)?.clamp(-128f32, 127f32)?;
    levels.broadcast_div(&s)
}

/// The nearest integer, halves to even (candle's own `round` takes halves away from zero).
fn round_half_even(x: &Tensor) -> candle_core::Result<Tensor> {
    let floor = x.floor()?;
    let rest = (x - &floor)?; // exact, in [0, 1)
    let above = rest.gt(0.5f32)?.to_dtype(DType::F32)?;
    let tie = rest.eq(0.5f32)?.to_dtype(DType::F32)?;
    let odd = (&floor - (floor.affine(0.5, 0.0)?.floor()? * 2.0)?)?; // 0 or 1
    (floor + above)? + (tie * odd)?
}

/// `gain * (x / sqrt(mean(x^2) + eps))`, the mean in `f64`.
fn rms_norm(x: &Tensor, gain: &Tensor, eps: f32) -> candle_core::Result<Tensor> {
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

/// Half-split rotation; `x` is `(n, tokens, width)`, the tables `(1, tokens, width / 2)`.
fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (
        x.narrow(D::Minus1, 0, half)?,
        x.narrow(D::Minus1, half, half)?,
    );
    let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

/// `cos` and `sin` of positions `0..tokens`, `(1, tokens, head_dim / 2)` each.
fn rotary_tables(
    rope: &Rope,
    head_dim: usize,
    tokens: usize,
) -> candle_core::Result<(Tensor, Tensor)> {
    let frequencies = inverse_frequencies(rope, head_dim);
    let mut angles = Vec::with_capacity(tokens * frequencies.len());
    for position in 0..tokens {
        // the angle is rounded to f32, as transformers does; its sine is not
        angles.extend(frequencies.iter().map(|f| f64::from(position as f32 * f)));
    }
    let shape = (1, tokens, frequencies.len());
    let scale = match rope.scaling {
        RopeScaling::Yarn(yarn) => yarn.attention_factor,
        _ => 1.0,
    };
    let table = |f: fn(f64) -> f64| {
        Tensor::from_vec(
            angles
                .iter()
                .map(|&a| (f(a) * scale) as f32)
                .collect::<Vec<_>>(),
            shape,
            &Device::Cpu,
        )
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// `theta ^ (-2 i / head_dim)`, scaled as transformers' `modeling_rope_utils.py` does.
fn inverse_frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / rope.theta.powf(f64::from(exponent)) as f32
    });
    match rope.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let context = original_max_position_embeddings as f64;
            let scaled = plain.map(f64::from).map(|f| {
                let wavelength = 2.0 * PI / f;
                if wavelength > context / low_freq_factor {
                    f / factor
                } else if wavelength < context / high_freq_factor {
                    f
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            scaled.map(|f| f as f32).collect()
        }
        RopeScaling::Yarn(yarn) => {
            let context = yarn.original_max_position_embeddings as f64;
            let half = head_dim as f64 / 2.0;
            // i where theta^(i / half) 2 pi rotations = context
            let turning =
                |rotations: f64| half * (context / (2.0 * PI * rotations)).ln() / rope.theta.ln();
            let first = turning(yarn.beta_fast).floor().max(0.0);
            let last = turning(yarn.beta_slow).ceil();
            let last = last.min(head_dim as f64 - 1.0);
            let width = if last == first { 0.001 } else { last - first };
            let scaled = plain.map(f64::from).enumerate().map(|(i, f)| {
                let divided = ((i as f64 - first) / width).clamp(0.0, 1.0);
                f / yarn.factor * divided + f * (1.0 - divided)
            });
            scaled.map(|f| f as f32).collect()
        }
    }
}

/// The gain of a norm, `(n,)`.
fn gain(checkpoint: &Checkpoint, slot: Slot) -> Result<Tensor, FormatError> {
    let dense = checkpoint.dense(slot)?;
    let gain = dense_rows(&dense, slot, 0..1)?;
    let n = gain.len();
    Tensor::from_vec(gain, n, &Device::Cpu).map_err(candle)
}

/// Some rows of a dense tensor, widened; a vector is one row.
fn dense_rows(
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
    if tensor.plus_one {
        out.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(out)
}

/// A `(rows, cols)` tensor of a slice that must fit.
fn matrix(x: &[f32], rows: usize, cols: usize) -> Result<Tensor, FormatError> {
    if rows.checked_mul(cols) != Some(x.len()) {
        return Err(FormatError::new(
            ErrorCode::Usage,
            format!("expected {rows} x {cols} values, found {}", x.len()),
        ));
    }
    Tensor::from_slice(x, (rows, cols), &Device::Cpu).map_err(candle)
}

/// All values of a tensor, row-major.
fn values(x: &Tensor) -> Result<Vec<f32>, FormatError> {
    x.flatten_all().and_then(|x| x.to_vec1()).map_err(candle)
}

/// A tensor operation that candle refuses: shapes that contradict the configuration.
fn candle(error: candle_core::Error) -> FormatError {
    let text = error.to_string(); // with a backtrace behind the first line
    FormatError::new(
        ErrorCode::WrongShape,
        format!("oracle: {}", text.lines().next().unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_halves_to_even() {
        let x = [
            0.5f32,
            1.5,
            2.5,
            -0.5,
            -1.5,
            -2.5,
            0.499_999_97,
            126.5,
            -127.5,
            3.0,
            -3.7,
            0.0,
        ];
        let t = Tensor::from_slice(&x, (1, x.len()), &Device::Cpu).unwrap();
        let want: Vec<f32> = x.iter().map(|x| x.round_ties_even()).collect();
        assert_eq!(values(&round_half_even(&t).unwrap()).unwrap(), want);
    }

    #[test]
    fn fake_quantisation_stays_on_the_levels() {
        let x = [1.0f32, -0.5, 0.25, 0.0, 2.0, 1e-7];
        let t = Tensor::from_slice(&x, (1, x.len()), &Device::Cpu).unwrap();
        let got = values(&fake_quantise(&t).unwrap()).unwrap();
        let s = (1.0 / 2.0) * 127.0;
        let want: Vec<f32> = x.iter().map(|x| (x * s).round_ties_even() / s).collect();
        assert_eq!(got, want);
        let zero = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(values(&fake_quantise(&zero).unwrap()).unwrap(), [0.0; 6]);
    }

    #[test]
    fn softmax_ignores_the_future() {
        let x = [1.0f32, 1.0, f32::NEG_INFINITY];
        let t = Tensor::from_slice(&x, (1, 3), &Device::Cpu).unwrap();
        assert_eq!(values(&softmax(&t).unwrap()).unwrap(), [0.5, 0.5, 0.0]);
    }
}
