//! Another program that runs a checkpoint and records what it computes, with faults on request.
//!
//! Invariant: it shares the checkpoint's trits and dense values with what it is compared with, and no arithmetic:
//! plain loops, sums in `f64`, values rounded to `f32` between operators. Written from
//! `formats/numerics.md` and the table of `LayerSlot`; networks with neither sliding windows nor extra norms.

use bitnet_checkpoint::{Activation, ActivationQuantization, Checkpoint, Config, LayerSlot, Slot};
use bitnet_ternary::{TernaryMatrix, f16_to_f32, f32_to_f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What the program does wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Wrong {
    /// Nothing.
    Nothing,
    /// SiLU, whatever the checkpoint says.
    Silu,
    /// The scale of a linear of a layer divides.
    InverseScale(usize, LayerSlot),
    /// Biases are left out.
    NoBiases,
    /// A sub-norm is left out of every layer.
    NoNorm(LayerSlot),
    /// Another base of the rotary frequencies.
    Theta(f64),
    /// Rows of q and k as GGUF's `llama` has them, halves rotated all the same.
    PairedRows,
    /// The first token is lost: every position computes the one that follows.
    TokenLate,
    /// Rows of logits are one position too early.
    LogitsLate,
    /// The head is read from its last row to its first.
    OtherHead,
    /// Two blocks of 32 trits of a linear of a layer have changed places.
    SwappedBlocks(usize, LayerSlot),
    /// Another epsilon.
    Epsilon(f32),
    /// Scales rounded to f16.
    F16Scales,
    /// Activations rounded by `floor(x + 0.5)`.
    HalfUp,
}

/// A matrix of values by token.
type Rows = Vec<Vec<f32>>;

/// The program.
pub struct OtherRuntime<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a Config,
    wrong: Wrong,
}

fn row_sum(weights: impl Iterator<Item = (f64, f64)>) -> f64 {
    weights.map(|(a, b)| a * b).sum()
}

impl<'a> OtherRuntime<'a> {
    /// The program on a checkpoint.
    pub fn new(checkpoint: &'a Checkpoint, wrong: Wrong) -> Self {
        let config = &checkpoint.config;
        Self {
            checkpoint,
            config,
            wrong,
        }
    }

    fn dense(&self, slot: Slot) -> Rows {
        let tensor = self.checkpoint.dense(slot).expect("a dense tensor");
        let width = *tensor.shape.last().expect("a shape");
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.widen(&tensor.bytes, &mut values).expect("values");
        values.chunks(width).map(<[f32]>::to_vec).collect()
    }

    fn norm(&self, slot: Slot, x: &Rows) -> Rows {
        if let (Slot::Layer(_, role), Wrong::NoNorm(left_out)) = (slot, self.wrong)
            && role == left_out
        {
            return x.clone();
        }
        let gain = self.dense(slot).remove(0);
        let epsilon = match self.wrong {
            Wrong::Epsilon(epsilon) => epsilon,
            _ => self.config.rms_norm_eps,
        };
        let norm = |x: &Vec<f32>| {
            let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            let r = 1.0 / (squares / x.len() as f64 + f64::from(epsilon)).sqrt();
            let r = r as f32;
            x.iter().zip(&gain).map(|(x, g)| x * r * g).collect()
        };
        x.iter().map(norm).collect()
    }

    /// Trits and scale of a linear as this program reads them.
    fn weights(&self, layer: usize, role: LayerSlot) -> (TernaryMatrix, f32) {
        let slot = Slot::Layer(layer, role);
        let mut matrix = self.checkpoint.ternary(slot).expect("a linear");
        let scale = matrix.scales().as_slice()[0];
        let scale = match self.wrong {
            Wrong::InverseScale(n, of) if (n, of) == (layer, role) => 1.0 / scale,
            Wrong::F16Scales => f16_to_f32(f32_to_f16(scale)),
            _ => scale,
        };
        let is_qk = matches!(role, LayerSlot::QProj | LayerSlot::KProj);
        if self.wrong == Wrong::PairedRows && is_qk {
            matrix = bitnet_checkpoint::gguf_from_hf_rows(&matrix, self.config.head_dim);
        }
        if self.wrong == Wrong::SwappedBlocks(layer, role) {
            let (rows, cols) = (matrix.rows(), matrix.cols());
            let scales = matrix.scales().clone();
            let mut trits = matrix.into_trits();
            for i in 0..32 {
                trits.swap(3 * cols + 64 + i, 7 * cols + 96 + i);
            }
            matrix = TernaryMatrix::new(rows, cols, trits, scales).expect("a matrix");
        }
        (matrix, scale)
    }

    fn linear(&self, layer: usize, role: LayerSlot, x: &Rows) -> Rows {
        let (matrix, scale) = self.weights(layer, role);
        let bias = role
            .bias()
            .filter(|_| self.config.biases && self.wrong != Wrong::NoBiases);
        let bias = bias.map(|bias| self.dense(Slot::Layer(layer, bias)).remove(0));
        let add = |row: usize, y: f64| match &bias {
            Some(bias) => (y + f64::from(bias[row])) as f32,
            None => y as f32,
        };
        let quantizes = self.config.activation_quantization == ActivationQuantization::Int8PerToken;
        let one = |x: &Vec<f32>| {
            if !quantizes {
                let row = |row| {
                    let trits = matrix.row(row).iter().map(|t| f64::from(*t));
                    let dot = row_sum(trits.zip(x.iter().map(|x| f64::from(*x))));
                    add(row, dot * f64::from(scale))
                };
                return (0..matrix.rows()).map(row).collect();
            }
            let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let s = 127.0 * (1.0 / largest.max(1e-5));
            let round = |x: f32| match self.wrong {
                Wrong::HalfUp => (f64::from(x) + 0.5).floor(),
                _ => f64::from(x).round_ties_even(),
            };
            let q: Vec<f64> = x
                .iter()
                .map(|x| round(x * s).clamp(-128.0, 127.0))
                .collect();
            let row = |row| {
                let trits = matrix.row(row).iter().map(|t| f64::from(*t));
                let dot = row_sum(trits.zip(q.iter().copied()));
                add(row, dot * f64::from(scale) / f64::from(s))
            };
            (0..matrix.rows()).map(row).collect()
        };
        x.iter().map(one).collect()
    }

    fn rotated(&self, x: &Rows, heads: usize) -> Rows {
        let (width, theta) = (
            self.config.head_dim,
            match self.wrong {
                Wrong::Theta(theta) => theta,
                _ => self.config.rope.theta,
            },
        );
        let half = width / 2;
        let mut turned = x.clone();
        for (position, (x, out)) in x.iter().zip(&mut turned).enumerate() {
            for (head, i) in (0..heads).flat_map(|head| (0..half).map(move |i| (head, i))) {
                let frequency = (1.0 / theta.powf((2 * i) as f64 / width as f64)) as f32;
                let (sin, cos) = f64::from(position as f32 * frequency).sin_cos();
                let (low, high) = (head * width + i, head * width + i + half);
                let (a, b) = (f64::from(x[low]), f64::from(x[high]));
                out[low] = (a * cos - b * sin) as f32;
                out[high] = (b * cos + a * sin) as f32;
            }
        }
        turned
    }

    fn attention(&self, q: &Rows, k: &Rows, v: &Rows) -> Rows {
        let config = self.config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let width = config.head_dim;
        let (q, k) = (self.rotated(q, heads), self.rotated(k, kv_heads));
        let part = |x: &[f32], head: usize| -> Vec<f64> {
            x[head * width..(head + 1) * width]
                .iter()
                .map(|x| f64::from(*x))
                .collect()
        };
        let one = |position: usize| {
            let mut out = Vec::with_capacity(heads * width);
            for head in 0..heads {
                let kv = head / (heads / kv_heads);
                let query = part(&q[position], head);
                let score = |key: &Vec<f32>| {
                    row_sum(query.iter().copied().zip(part(key, kv))) / (width as f64).sqrt()
                };
                let scores: Vec<f64> = k[..=position].iter().map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..width {
                    let values = v.iter().map(|v| f64::from(v[kv * width + i]));
                    out.push((row_sum(weights.iter().copied().zip(values)) / sum) as f32);
                }
            }
            out
        };
        (0..q.len()).map(one).collect()
    }

    fn activate(&self, gate: &Rows, up: &Rows) -> Rows {
        let activation = match self.wrong {
            Wrong::Silu => Activation::Silu,
            _ => self.config.hidden_act,
        };
        let f = |x: f32| {
            let x = f64::from(x);
            match activation {
                Activation::Relu2 => x.max(0.0).powi(2),
                Activation::Silu => x / (1.0 + (-x).exp()),
                Activation::GeluTanh => {
                    let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                    0.5 * x * (1.0 + z.tanh())
                }
            }
        };
        let pairs = gate.iter().zip(up);
        let row = |(gate, up): (&Vec<f32>, &Vec<f32>)| {
            gate.iter()
                .zip(up)
                .map(|(g, u)| (f(*g) * f64::from(*u)) as f32)
                .collect()
        };
        pairs.map(row).collect()
    }

    /// Logits of every position; `trace` gets what `golden.py` records of a forward pass.
    pub fn run(&self, tokens: &[u32], trace: &mut BTreeMap<String, Rows>) -> Rows {
        use LayerSlot::*;
        let table = self.dense(Slot::TokenEmbeddings);
        let embed = |position: usize| {
            let position = match self.wrong {
                Wrong::TokenLate => (position + 1).min(tokens.len() - 1),
                _ => position,
            };
            table[tokens[position] as usize].clone()
        };
        let mut x: Rows = (0..tokens.len()).map(embed).collect();
        trace.insert("hidden_states.0".to_owned(), x.clone());
        let add = |x: &Rows, y: &Rows| -> Rows {
            let sum =
                |(x, y): (&Vec<f32>, &Vec<f32>)| x.iter().zip(y).map(|(x, y)| x + y).collect();
            x.iter().zip(y).map(sum).collect()
        };
        let layers = self.config.num_hidden_layers;
        for layer in 0..layers {
            let mut module = |role: LayerSlot, x: &Rows| {
                let y = match role.is_ternary() {
                    true => self.linear(layer, role, x),
                    false => self.norm(Slot::Layer(layer, role), x),
                };
                // a norm that is left out leaves no record
                if layer == 0 && self.wrong != Wrong::NoNorm(role) {
                    let name = format!("layer0.{}", role.canonical());
                    trace.insert(format!("{name}.in"), x.clone());
                    trace.insert(format!("{name}.out"), y.clone());
                }
                y
            };
            let h = module(InputNorm, &x);
            let (q, k, v) = (module(QProj, &h), module(KProj, &h), module(VProj, &h));
            let mut h = self.attention(&q, &k, &v);
            if self.config.attn_sub_norm {
                h = module(AttnSubNorm, &h);
            }
            x = add(&x, &module(OProj, &h));
            let h = module(PostAttentionNorm, &x);
            let mut h = self.activate(&module(GateProj, &h), &module(UpProj, &h));
            if self.config.ffn_sub_norm {
                h = module(FfnSubNorm, &h);
            }
            x = add(&x, &module(DownProj, &h));
            if layer + 1 < layers {
                trace.insert(format!("hidden_states.{}", layer + 1), x.clone());
            }
        }
        trace.insert("final_norm.in".to_owned(), x.clone());
        let x = self.norm(Slot::OutputNorm, &x);
        trace.insert(format!("hidden_states.{layers}"), x.clone());
        let mut head = match self.config.tie_word_embeddings {
            true => table,
            false => self.dense(Slot::OutputHead),
        };
        if self.wrong == Wrong::OtherHead {
            head.reverse();
        }
        let logit = |x: &Vec<f32>, w: &Vec<f32>| {
            let pairs = x.iter().zip(w).map(|(x, w)| (f64::from(*x), f64::from(*w)));
            row_sum(pairs) as f32
        };
        let row = |x: &Vec<f32>| head.iter().map(|w| logit(x, w)).collect();
        let mut logits: Rows = x.iter().map(row).collect();
        if self.wrong == Wrong::LogitsLate {
            logits.rotate_left(1);
        }
        logits
    }

    /// Writes a directory of golden files for named token sequences, the first of which is traced as `short`.
    pub fn record(&self, prompts: &[(&str, &[u32])], dir: &Path) {
        std::fs::create_dir_all(dir).expect("a directory");
        let mut logits = BTreeMap::new();
        let mut ids = serde_json::Map::new();
        for (n, (name, tokens)) in prompts.iter().enumerate() {
            let mut trace = BTreeMap::new();
            logits.insert(format!("{name}.logits"), self.run(tokens, &mut trace));
            ids.insert((*name).to_owned(), json!({"text": null, "ids": tokens}));
            if n == 0 {
                write(&dir.join("trace_short_f32.safetensors"), &trace);
            }
        }
        write(&dir.join("logits_f32.safetensors"), &logits);
        let ids = serde_json::Value::from(ids).to_string();
        std::fs::write(dir.join("prompts.json"), ids).expect("prompts.json");
    }
}

fn write(path: &Path, tensors: &BTreeMap<String, Rows>) {
    let bytes = |rows: &Rows| -> Vec<u8> {
        rows.iter()
            .flatten()
            .flat_map(|x| x.to_le_bytes())
            .collect()
    };
    let stored: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, rows)| (name, (vec![rows.len(), rows[0].len()], bytes(rows))))
        .collect();
    let views = stored.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("a tensor");
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
}
