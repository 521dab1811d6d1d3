//! Grouped-query attention: its weights, its buffers and its place in a block.
//!
//! Invariant: queries, keys and values of all rows come from one product each; what a row attends to is its own
//! sequence alone ([`softmax`]).

mod softmax;

use crate::kv_cache::LayerCache;
use crate::load::LayerTensors;
use crate::profile::Part;
use crate::rope::RopeTable;
use crate::round::{Round, RowOps};
use crate::stream::{Stream, fit};
use crate::threads;
use bitnet_checkpoint::{self as config, LayerSlot, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;
use softmax::{Queries, Scores};

/// Weights and sizes of one layer's attention.
#[derive(Debug)]
pub(crate) struct Attention {
    layer: usize,
    shape: config::Attention,
    input_norm: Vec<f32>, // (hidden,)
    input_norms: Option<InputNorms>,
    q_proj: PackedMatrix, // (heads * head_dim, hidden)
    k_proj: PackedMatrix, // (kv_heads * head_dim, hidden)
    v_proj: PackedMatrix, // (kv_heads * head_dim, hidden)
    biases: Option<Biases>,
    q_norm: Option<Vec<f32>>,      // (head_dim,)
    k_norm: Option<Vec<f32>>,      // (head_dim,)
    sub_norm: Option<Vec<f32>>,    // (heads * head_dim,)
    o_proj: PackedMatrix,          // (hidden, heads * head_dim)
    branch_norm: Option<Vec<f32>>, // (hidden,)
}

/// Input norms of linears that share their input, `(hidden,)` each.
#[derive(Debug)]
struct InputNorms {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

/// What is added to the outputs of linears.
#[derive(Debug)]
struct Biases {
    q: Vec<f32>, // (heads * head_dim,)
    k: Vec<f32>, // (kv_heads * head_dim,)
    v: Vec<f32>, // (kv_heads * head_dim,)
}

/// Scratch of attention.
#[derive(Debug, Default)]
pub(crate) struct AttentionBuffers {
    q: Vec<f32>,     // (rows, heads * head_dim)
    k: Vec<f32>,     // (rows, kv_heads * head_dim)
    v: Vec<f32>,     // (rows, kv_heads * head_dim)
    a: Vec<f32>,     // (rows, heads * head_dim): weighted values
    gated: Vec<f32>, // (rows, heads, 2 * head_dim) with an output gate: queries and gates, else empty
}

impl Attention {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Attention,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let input_norms = match shape.input_norms {
            true => Some(InputNorms {
                q: tensors.gain(layer, LayerSlot::QProjNorm)?,
                k: tensors.gain(layer, LayerSlot::KProjNorm)?,
                v: tensors.gain(layer, LayerSlot::VProjNorm)?,
            }),
            false => None,
        };
        let biases = match shape.biases {
            true => Some(Biases {
                q: tensors.gain(layer, LayerSlot::QBias)?,
                k: tensors.gain(layer, LayerSlot::KBias)?,
                v: tensors.gain(layer, LayerSlot::VBias)?,
            }),
            false => None,
        };
        Ok(Self {
            layer,
            shape,
            biases,
            input_norm: tensors.gain(layer, LayerSlot::InputNorm)?,
            input_norms,
            q_proj: tensors.linear(layer, LayerSlot::QProj)?,
            k_proj: tensors.linear(layer, LayerSlot::KProj)?,
            v_proj: tensors.linear(layer, LayerSlot::VProj)?,
            q_norm: tensors.gain_if(shape.head_norms, layer, LayerSlot::QNorm)?,
            k_norm: tensors.gain_if(shape.head_norms, layer, LayerSlot::KNorm)?,
            sub_norm: tensors.gain_if(shape.sub_norm, layer, LayerSlot::AttnSubNorm)?,
            o_proj: tensors.linear(layer, LayerSlot::OProj)?,
            branch_norm: tensors.gain_if(shape.branch_norm, layer, LayerSlot::AttnBranchNorm)?,
        })
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match slot {
            LayerSlot::QProj => Some(&self.q_proj),
            LayerSlot::KProj => Some(&self.k_proj),
            LayerSlot::VProj => Some(&self.v_proj),
            LayerSlot::OProj => Some(&self.o_proj),
            _ => None,
        }
    }

    /// The bias of a linear, if it has one.
    pub(crate) fn bias(&self, slot: LayerSlot) -> Option<&[f32]> {
        let biases = self.biases.as_ref()?;
        match slot {
            LayerSlot::QProj => Some(&biases.q),
            LayerSlot::KProj => Some(&biases.k),
            LayerSlot::VProj => Some(&biases.v),
            _ => None,
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> [&PackedMatrix; 4] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj]
    }

    /// `y = o(norm(softmax(rope(norm(q)) rope(norm(K))^T * factor) V))`, `q, k, v = linear(norm(x)) + bias`; with an
    /// output gate, what every head found times the sigmoid of its gate.
    pub(crate) fn forward(
        &self,
        state: usize,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut AttentionBuffers,
    ) -> Result<(), FormatError> {
        let ops = round.rows;
        let hidden = ops.config.hidden_size;
        let (width, kv_width) = (self.shape.width(), self.shape.kv_width());
        let at = |linear| Slot::Layer(self.layer, linear);
        let Stream { input, x, y, n } = stream;
        buffers.resize(x.len() / hidden, width, kv_width, self.shape.output_gate);
        let AttentionBuffers { q, k, v, a, gated } = buffers;

        // q, k, v = linear(norm(x)); norm_q(norm(x)), ... where each has a norm of its own
        match &self.input_norms {
            None => {
                input.prepare(at(LayerSlot::QProj), hidden, (x, hidden), |_, x, h| {
                    ops.norm(x, &self.input_norm, h);
                })?;
                round.clock.lap(Part::Elementwise);
                input.multiply([
                    (
                        &self.q_proj,
                        if self.shape.output_gate {
                            &mut *gated
                        } else {
                            &mut *q
                        },
                    ),
                    (&self.k_proj, &mut *k),
                    (&self.v_proj, &mut *v),
                ]);
            }
            Some(norms) => {
                ops.norm_rows(x, &self.input_norm, n);
                for (slot, gain, matrix, out) in [
                    (LayerSlot::QProj, &norms.q, &self.q_proj, &mut *q),
                    (LayerSlot::KProj, &norms.k, &self.k_proj, &mut *k),
                    (LayerSlot::VProj, &norms.v, &self.v_proj, &mut *v),
                ] {
                    let clock = &mut *round.clock;
                    ops.normed_linear(at(slot), input, (n, gain), (matrix, out), clock)?;
                }
            }
        }
        round.clock.lap(Part::Linears);
        if let Some(biases) = &self.biases {
            for (bias, x) in [
                (&biases.q, &mut *q),
                (&biases.k, &mut *k),
                (&biases.v, &mut *v),
            ] {
                ops.add_bias(bias, x);
            }
        }

        if self.shape.output_gate {
            self.take_queries(gated, q);
        }
        // a = softmax(rope(norm(q)) rope(norm(K))^T * factor) V, sequence by sequence
        let rope = match self.shape.window {
            Some(_) => round.ropes.sliding(),
            None => round.ropes.full(),
        };
        self.rotate(ops, rope, round.positions, q, self.q_norm.as_deref());
        self.rotate(ops, rope, round.positions, k, self.k_norm.as_deref());
        let mut sequences = Vec::with_capacity(round.spans.len());
        let mut rest = &mut a[..];
        for span in &mut round.spans {
            let kept = span.sequence.kept().min(span.rows.len());
            let rows = (span.rows.start + kept) * kv_width..span.rows.end * kv_width;
            let first = span.sequence.position() + kept;
            let (cache, layer) = span.sequence.keys_and_values_mut(state);
            cache.store(ops.backend, layer, first, &k[rows.clone()], &v[rows]);
        }
        for span in &round.spans {
            let cache: LayerCache<'_> = span.sequence.keys_and_values(state);
            let (out, others) = rest.split_at_mut(span.rows.len() * width);
            rest = others;
            sequences.push(Queries {
                cache,
                first: span.sequence.position(),
                q: &q[span.rows.start * width..span.rows.end * width],
                out,
            });
        }
        let scores = Scores {
            factor: self.shape.factor,
            window: self.shape.window,
        };
        softmax::attention(ops.backend, self.shape.heads, scores, sequences);
        round.clock.lap(Part::Attention);

        // y = linear(norm(a))
        input.prepare(at(LayerSlot::OProj), width, (a, width), |row, a, normed| {
            if self.shape.output_gate {
                let dim = self.shape.head_dim;
                let gates = gated[2 * row * width..2 * (row + 1) * width].chunks_exact(2 * dim);
                for (a, gate) in a.chunks_exact_mut(dim).zip(gates) {
                    ops.backend.sigmoid_mul(a, &gate[dim..]);
                }
            }
            ops.norm_if(a, self.sub_norm.as_deref(), normed);
        })?;
        round.clock.lap(Part::Elementwise);
        input.multiply([(&self.o_proj, &mut *y)]);
        round.clock.lap(Part::Linears);
        ops.end_branch(y, self.branch_norm.as_deref(), n);
        Ok(())
    }

    /// The queries of `(rows, heads, 2 * head_dim)`, where a gate stands behind each.
    fn take_queries(&self, gated: &[f32], q: &mut [f32]) {
        let (dim, width) = (self.shape.head_dim, self.shape.width());
        threads::for_tokens(q, width, |row, q| {
            let heads = gated[2 * row * width..].chunks_exact(2 * dim);
            for (q, head) in q.chunks_exact_mut(dim).zip(heads) {
                q.copy_from_slice(&head[..dim]);
            }
        });
    }

    /// Norms the heads of `x`, `(rows, some heads * head_dim)`, and rotates them: the steps that the network has, in
    /// its order.
    fn rotate(
        &self,
        ops: RowOps<'_>,
        rope: &RopeTable,
        positions: &[usize], // (rows,)
        x: &mut [f32],
        gain: Option<&[f32]>,
    ) {
        let (dim, rotary) = (self.shape.head_dim, self.shape.rotary_dim);
        let after = self.shape.norms_after_rope;
        if rotary == 0 && gain.is_none() {
            return;
        }
        let turn = |head: &mut [f32], cos: &[f32], sin: &[f32]| {
            if rotary > 0 {
                ops.backend.rotate_halves(&mut head[..rotary], cos, sin);
            }
        };
        let width = x.len() / positions.len().max(1);
        threads::for_tokens(x, width, |row, x| {
            let mut normed = vec![0.0; gain.map_or(0, <[f32]>::len)]; // (head_dim,)
            for (position, x) in positions[row..].iter().zip(x.chunks_exact_mut(width)) {
                let (cos, sin) = rope.at(*position); // (rotary_dim / 2,)
                for head in x.chunks_exact_mut(dim) {
                    if after {
                        turn(head, cos, sin);
                    }
                    if let Some(gain) = gain {
                        ops.norm(head, gain, &mut normed);
                        head.copy_from_slice(&normed);
                    }
                    if !after {
                        turn(head, cos, sin);
                    }
                }
            }
        });
    }
}

impl AttentionBuffers {
    fn resize(&mut self, rows: usize, width: usize, kv_width: usize, is_gated: bool) {
        let gated = if is_gated { 2 * width } else { 0 };
        fit(&mut self.gated, rows * gated);
        fit(&mut self.q, rows * width);
        fit(&mut self.k, rows * kv_width);
        fit(&mut self.v, rows * kv_width);
        fit(&mut self.a, rows * width);
    }
}
