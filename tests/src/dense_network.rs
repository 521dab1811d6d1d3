//! An ordinary network of dense weights in `f64`: what rotated weights stand for.
//!
//! Invariant: it shares the checkpoint's trits, dense values and signs with what it is compared with, and no arithmetic:
//! rotated matrices are turned back by the definition of the transform, and inputs are never rotated. Networks
//! of attention and gated MLPs with at most norms of heads besides.

use bitnet_checkpoint::{Checkpoint, Config, LayerSlot, RopeScaling, Slot};
use std::collections::HashMap;

/// The network.
pub struct DenseNetwork {
    config: Config,
    matrices: HashMap<Slot, Vec<f64>>, // (rows, cols)
}

/// Rows of values.
type Rows = Vec<Vec<f64>>;

/// How a program turns the input of a rotated matrix, or a row of rotated embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turning {
    /// By the rule.
    Rule,
    /// Not at all.
    Nothing,
    /// Without signs.
    Unsigned,
    /// Signs on the other side of the transform.
    OtherSide,
    /// In blocks of so many features.
    Block(usize),
}

impl DenseNetwork {
    /// The network of a checkpoint, its weights turned back.
    ///
    /// # Panics
    /// If a tensor cannot be read.
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self::of_program(checkpoint, |_| Turning::Rule)
    }

    /// The network that a program computes which turns inputs and rows as `turning` says; of a table that is the head, too,
    /// [`Slot::OutputHead`] is the head.
    ///
    /// # Panics
    /// If a tensor cannot be read.
    pub fn of_program(checkpoint: &Checkpoint, turning: impl Fn(Slot) -> Turning) -> Self {
        let config = checkpoint.config.clone();
        let mut matrices = HashMap::new();
        let tied = checkpoint.config.tie_word_embeddings;
        let head = tied.then_some((Slot::OutputHead, Slot::TokenEmbeddings));
        let own = checkpoint.slots().into_iter().map(|slot| (slot, slot));
        for (place, slot) in own.chain(head) {
            let mut values: Vec<f64> = match checkpoint.is_ternary(slot) {
                true => {
                    let matrix = checkpoint.ternary(slot).expect("a linear");
                    let cols = matrix.cols();
                    let value = |at: usize| {
                        let scale = matrix.scales().at(at / cols, at % cols, cols);
                        f64::from(matrix.trits()[at]) * f64::from(scale)
                    };
                    (0..matrix.rows() * cols).map(value).collect()
                }
                false => {
                    let tensor = checkpoint.dense(slot).expect("a dense tensor");
                    let mut values = vec![0.0; tensor.shape.iter().product()];
                    tensor.widen(&tensor.bytes, &mut values).expect("values");
                    values.into_iter().map(f64::from).collect()
                }
            };
            let width = config.shape(slot)[config.shape(slot).len() - 1];
            if let Some(rotation) = config.rotation.as_deref().filter(|r| r.turns(slot)) {
                let turning = turning(place);
                let block = match turning {
                    Turning::Block(block) => block,
                    _ => rotation.block_size,
                };
                let sign = |row: &mut [f64]| {
                    for (x, sign) in row.iter_mut().zip(rotation.signs_of(width)) {
                        *x *= f64::from(*sign);
                    }
                };
                for row in values.chunks_exact_mut(width) {
                    if turning == Turning::Nothing {
                        continue;
                    }
                    if turning == Turning::OtherSide {
                        sign(row);
                    }
                    let blocks = row.chunks_exact(block);
                    let turned: Vec<f64> = blocks
                        .flat_map(|block| transformed(block.to_vec()))
                        .collect();
                    row.copy_from_slice(&turned);
                    if !matches!(turning, Turning::OtherSide | Turning::Unsigned) {
                        sign(row);
                    }
                }
            }
            matrices.insert(place, values);
        }
        Self { config, matrices }
    }

    /// The values of a tensor, row-major.
    pub fn values(&self, slot: Slot) -> &[f64] {
        &self.matrices[&slot]
    }

    fn multiply(&self, slot: Slot, x: &Rows) -> Rows {
        let one = |x: &Vec<f64>| {
            let rows = self.values(slot).chunks_exact(x.len());
            rows.map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect()
        };
        x.iter().map(one).collect()
    }

    fn norm(&self, slot: Slot, x: &[f64]) -> Vec<f64> {
        let squares: f64 = x.iter().map(|x| x * x).sum();
        let epsilon = f64::from(self.config.rms_norm_eps);
        let root = (squares / x.len() as f64 + epsilon).sqrt();
        x.iter()
            .zip(self.values(slot))
            .map(|(x, g)| x / root * g)
            .collect()
    }

    fn norms(&self, slot: Slot, x: &Rows) -> Rows {
        x.iter().map(|x| self.norm(slot, x)).collect()
    }

    /// Cosine and sine of a position and a pair of dimensions.
    fn turn(&self, position: usize, i: usize) -> (f64, f64) {
        let (width, theta) = (self.config.head_dim as f64, self.config.rope.theta);
        let frequency = 1.0 / theta.powf(2.0 * i as f64 / width);
        let (frequency, factor) = match self.config.rope.scaling {
            RopeScaling::Yarn(yarn) => {
                let context = yarn.original_max_position_embeddings as f64;
                let of_turns = |turns: f64| {
                    let waves = (context / (turns * 2.0 * std::f64::consts::PI)).ln();
                    width * waves / (2.0 * theta.ln())
                };
                let low = of_turns(yarn.beta_fast).floor().max(0.0);
                let high = of_turns(yarn.beta_slow).ceil().min(width - 1.0);
                let high = if low == high { high + 0.001 } else { high };
                let keep = 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let frequency = frequency / yarn.factor * (1.0 - keep) + frequency * keep;
                (frequency, yarn.attention_factor)
            }
            _ => (frequency, 1.0),
        };
        let (sin, cos) = (position as f64 * frequency).sin_cos();
        (cos * factor, sin * factor)
    }

    /// Heads of queries or keys: normed, if the network does, and turned by their positions.
    fn heads(&self, layer: usize, norm: LayerSlot, x: &Rows) -> Rows {
        let half = self.config.head_dim / 2;
        let one = |(position, x): (usize, &Vec<f64>)| {
            let heads = x.chunks_exact(2 * half).flat_map(|head| {
                let head = match self.config.norms.heads {
                    true => self.norm(Slot::Layer(layer, norm), head),
                    false => head.to_vec(),
                };
                let mut out = head.clone();
                for i in 0..half {
                    let ((a, b), (cos, sin)) = ((head[i], head[i + half]), self.turn(position, i));
                    (out[i], out[i + half]) = (a * cos - b * sin, b * cos + a * sin);
                }
                out
            });
            heads.collect()
        };
        x.iter().enumerate().map(one).collect()
    }

    fn attention(&self, q: &Rows, k: &Rows, v: &Rows) -> Rows {
        let (heads, width) = (self.config.num_attention_heads, self.config.head_dim);
        let share = heads / self.config.num_key_value_heads;
        let one = |position: usize| {
            let mut out = Vec::with_capacity(heads * width);
            for head in 0..heads {
                let own = |x: &Vec<f64>, head: usize| x[head * width..(head + 1) * width].to_vec();
                let query = own(&q[position], head);
                let score = |key: &Vec<f64>| {
                    let dot: f64 = query
                        .iter()
                        .zip(own(key, head / share))
                        .map(|(q, k)| q * k)
                        .sum();
                    dot / (width as f64).sqrt()
                };
                let scores: Vec<f64> = k[..=position].iter().map(score).collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..width {
                    let values = v.iter().map(|v| own(v, head / share)[i]);
                    out.push(weights.iter().zip(values).map(|(w, v)| w * v).sum::<f64>() / sum);
                }
            }
            out
        };
        (0..q.len()).map(one).collect()
    }

    /// Logits of every position.
    pub fn logits(&self, tokens: &[u32]) -> Rows {
        use LayerSlot::*;
        let hidden = self.config.hidden_size;
        let table = self.values(Slot::TokenEmbeddings);
        let row = |token: &u32| table[*token as usize * hidden..][..hidden].to_vec();
        let mut x: Rows = tokens.iter().map(row).collect();
        let add = |x: &mut Rows, y: Rows| {
            for (x, y) in x.iter_mut().zip(y) {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
            }
        };
        for layer in 0..self.config.num_hidden_layers {
            let at = |slot| Slot::Layer(layer, slot);
            let h = self.norms(at(InputNorm), &x);
            let q = self.heads(layer, QNorm, &self.multiply(at(QProj), &h));
            let k = self.heads(layer, KNorm, &self.multiply(at(KProj), &h));
            let v = self.multiply(at(VProj), &h);
            let a = self.attention(&q, &k, &v);
            add(&mut x, self.multiply(at(OProj), &a));
            let h = self.norms(at(PostAttentionNorm), &x);
            let (gate, up) = (
                self.multiply(at(GateProj), &h),
                self.multiply(at(UpProj), &h),
            );
            let silu = |(g, u): (&f64, &f64)| g / (1.0 + (-g).exp()) * u;
            let pairs = gate.iter().zip(&up);
            let f = pairs.map(|(gate, up)| gate.iter().zip(up).map(silu).collect());
            add(&mut x, self.multiply(at(DownProj), &f.collect()));
        }
        let h = self.norms(Slot::OutputNorm, &x);
        self.multiply(Slot::OutputHead, &h)
    }
}

/// `H x`, `H` by its definition as two halves: `H [a, b] = [H (a + b), H (a - b)] / sqrt(2)`.
fn transformed(x: Vec<f64>) -> Vec<f64> {
    let half = x.len() / 2;
    if half == 0 {
        return x;
    }
    let (a, b) = x.split_at(half);
    let root = std::f64::consts::SQRT_2;
    let part = |sign: f64| {
        let sums = a.iter().zip(b).map(|(a, b)| (a + sign * b) / root);
        transformed(sums.collect())
    };
    let mut all = part(1.0);
    all.extend(part(-1.0));
    all
}
