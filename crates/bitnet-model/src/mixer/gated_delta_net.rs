//! Gated DeltaNet: its weights, its buffers and its place in a block.
//!
//! Invariant: a head's state reads the tokens of its sequence one by one and in order; only heads, columns of a state
//! and rows that need no state are shared out. So what a token leaves does not depend on how the tokens came
//! (`formats/numerics.md`).

use crate::dense_rows::DenseRows;
use crate::load::LayerTensors;
use crate::profile::Part;
use crate::recurrent::LayerMemory;
use crate::round::{Round, RowOps};
use crate::stream::{Stream, fit};
use crate::threads;
use bitnet_checkpoint::{self as config, LayerSlot, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::{DeltaHead, PackedMatrix};
use std::ops::Range;

/// Added to the sum of squares of queries and keys.
const UNIT_EPS: f32 = 1e-6;

/// Weights and sizes of one layer's Gated DeltaNet.
#[derive(Debug)]
pub(crate) struct GatedDeltaNet {
    layer: usize,
    shape: config::GatedDeltaNet,
    input_norm: Vec<f32>, // (hidden,)
    qkv: PackedMatrix,    // (channels, hidden)
    z: PackedMatrix,      // (value heads * value_dim, hidden)
    b: DenseRows,         // (value heads, hidden)
    a: DenseRows,         // (value heads, hidden)
    kernel: Vec<f32>,     // (taps, channels)
    rates: Vec<f32>,      // (value heads,)
    dt_bias: Vec<f32>,    // (value heads,)
    norm: Vec<f32>,       // (value_dim,)
    out: PackedMatrix,    // (hidden, value heads * value_dim)
}

/// Scratch of Gated DeltaNets.
#[derive(Debug, Default)]
pub(crate) struct DeltaBuffers {
    qkv: Vec<f32>,    // (rows, channels): before the convolution
    window: Vec<f32>, // (spans, taps - 1 + rows of the span, channels): with the rows before
    mixed: Vec<f32>,  // (rows, channels): behind it; heads of queries and keys at length 1
    z: Vec<f32>,      // (rows, value heads * value_dim)
    b: Vec<f32>,      // (rows, value heads)
    a: Vec<f32>,      // (rows, value heads)
    gates: Vec<f32>,  // (rows, 2, value heads): decay, correction
    core: Vec<f32>,   // (value heads, rows, value_dim)
}

/// The tokens of one sequence on their way into one value head.
struct HeadRows<'a> {
    head: usize,
    rows: Range<usize>,
    state: &'a mut [f32], // (key_dim, value_dim)
    out: &'a mut [f32],   // (rows, value_dim)
}

impl GatedDeltaNet {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::GatedDeltaNet,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let by_channel = tensors.gain(layer, LayerSlot::Conv1d)?; // (channels, taps)
        let (channels, taps) = (shape.channels(), shape.conv_kernel);
        let mut kernel = vec![0.0; by_channel.len()];
        for (channel, weights) in by_channel.chunks_exact(taps).enumerate() {
            for (tap, weight) in weights.iter().enumerate() {
                kernel[tap * channels + channel] = *weight;
            }
        }
        Ok(Self {
            layer,
            shape,
            input_norm: tensors.gain(layer, LayerSlot::InputNorm)?,
            qkv: tensors.linear(layer, LayerSlot::InProjQkv)?,
            z: tensors.linear(layer, LayerSlot::InProjZ)?,
            b: tensors.rows(layer, LayerSlot::InProjB)?,
            a: tensors.rows(layer, LayerSlot::InProjA)?,
            kernel,
            rates: tensors.gain(layer, LayerSlot::ALog)?,
            dt_bias: tensors.gain(layer, LayerSlot::DtBias)?,
            norm: tensors.gain(layer, LayerSlot::GatedNorm)?,
            out: tensors.linear(layer, LayerSlot::OutProj)?,
        })
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match slot {
            LayerSlot::InProjQkv => Some(&self.qkv),
            LayerSlot::InProjZ => Some(&self.z),
            LayerSlot::OutProj => Some(&self.out),
            _ => None,
        }
    }

    /// All linears, in the order of the forward pass.
    pub(crate) fn linears(&self) -> [&PackedMatrix; 3] {
        [&self.qkv, &self.z, &self.out]
    }

    /// `y = out(norm(core) * silu(z))`, `core` what the states answer to the queries.
    pub(crate) fn forward(
        &self,
        state: usize,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut DeltaBuffers,
    ) -> Result<(), FormatError> {
        let ops = round.rows;
        let (hidden, values) = (self.shape.hidden_size, self.shape.value_width());
        let at = |linear| Slot::Layer(self.layer, linear);
        let Stream { input, x, y, n } = stream;
        let rows = x.len() / hidden;
        buffers.resize(&self.shape, rows, round.spans.len());

        // qkv, z = linear(norm(x)); b, a = the same of small dense matrices
        ops.norm_rows(x, &self.input_norm, n);
        input.prepare(at(LayerSlot::InProjQkv), hidden, (n, hidden), |_, n, h| {
            h.copy_from_slice(n);
        })?;
        round.clock.lap(Part::Elementwise);
        input.multiply([(&self.qkv, &mut buffers.qkv), (&self.z, &mut buffers.z)]);
        round.clock.lap(Part::Linears);
        self.b.multiply(ops.backend, n, &mut buffers.b);
        self.a.multiply(ops.backend, n, &mut buffers.a);
        self.gates(ops, buffers);
        let mut memories: Vec<(Range<usize>, &mut LayerMemory)> = Vec::new();
        for span in &mut round.spans {
            memories.push((span.rows.clone(), span.sequence.memory_mut(state)));
        }
        self.convolve(ops, &mut memories, buffers);
        self.delta_rule(ops, memories, buffers);
        round.clock.lap(Part::Attention);

        // y = linear(norm(core) * silu(z)), head by head
        let DeltaBuffers { z, core, .. } = buffers;
        let width = self.shape.value_dim;
        input.prepare(
            at(LayerSlot::OutProj),
            values,
            (z, values),
            |row, z, out| {
                let heads = z.chunks_exact_mut(width).zip(out.chunks_exact_mut(width));
                for (head, (z, out)) in heads.enumerate() {
                    let core = &core[(head * rows + row) * width..][..width];
                    ops.norm(core, &self.norm, out);
                    ops.backend.silu_mul(z, out);
                    out.copy_from_slice(z);
                }
            },
        )?;
        round.clock.lap(Part::Elementwise);
        input.multiply([(&self.out, &mut *y)]);
        round.clock.lap(Part::Linears);
        ops.end_branch(y, None, n);
        Ok(())
    }

    /// Decays and corrections: `exp(rate * softplus(a + dt_bias))` and `sigmoid(b)`.
    fn gates(&self, ops: RowOps<'_>, buffers: &mut DeltaBuffers) {
        let heads = self.shape.value_heads;
        let DeltaBuffers { a, b, gates, .. } = buffers;
        threads::for_tokens(gates, 2 * heads, |first, gates| {
            let a = a[first * heads..].chunks_exact(heads);
            let b = b[first * heads..].chunks_exact(heads);
            for ((gates, a), b) in gates.chunks_exact_mut(2 * heads).zip(a).zip(b) {
                let (decay, beta) = gates.split_at_mut(heads);
                let rates = self.rates.iter().zip(&self.dt_bias);
                for ((decay, a), (rate, bias)) in decay.iter_mut().zip(a).zip(rates) {
                    *decay = rate * softplus(a + bias);
                }
                ops.backend.exp(decay);
                beta.fill(1.0);
                ops.backend.sigmoid_mul(beta, b);
            }
        });
    }

    /// The convolution of all rows with those before them; then queries and keys at length 1, queries divided by the
    /// root of their width.
    fn convolve(
        &self,
        ops: RowOps<'_>,
        memories: &mut [(Range<usize>, &mut LayerMemory)],
        buffers: &mut DeltaBuffers,
    ) {
        let shape = &self.shape;
        let (channels, before) = (shape.channels(), shape.conv_kernel - 1);
        let (keys, dim) = (shape.key_width(), shape.key_dim);
        let factor = (1.0 / (dim as f64).sqrt()) as f32;
        let DeltaBuffers {
            qkv, window, mixed, ..
        } = buffers;
        let mut window = &mut window[..];
        for (rows, memory) in memories {
            let own = (before + rows.len()) * channels;
            let (now, later) = std::mem::take(&mut window).split_at_mut(own);
            window = later;
            now[..before * channels].copy_from_slice(&memory.tail);
            now[before * channels..]
                .copy_from_slice(&qkv[rows.start * channels..rows.end * channels]);
            let mixed = &mut mixed[rows.start * channels..rows.end * channels];
            threads::for_tokens(mixed, channels, |first, mixed| {
                for (row, mixed) in mixed.chunks_exact_mut(channels).enumerate() {
                    let at = (first + row) * channels;
                    let seen = &now[at..at + (before + 1) * channels];
                    ops.backend.conv_silu(seen, &self.kernel, mixed);
                    let (queries, keys) = mixed[..2 * keys].split_at_mut(keys);
                    for query in queries.chunks_exact_mut(dim) {
                        unit(ops, query);
                        ops.backend.scale(factor, query);
                    }
                    keys.chunks_exact_mut(dim).for_each(|key| unit(ops, key));
                }
            });
            let left = now.len() - before * channels;
            memory.tail.copy_from_slice(&now[left..]);
        }
    }

    /// The states of all heads read the tokens of their sequences.
    fn delta_rule(
        &self,
        ops: RowOps<'_>,
        memories: Vec<(Range<usize>, &mut LayerMemory)>,
        buffers: &mut DeltaBuffers,
    ) {
        let shape = self.shape;
        let (channels, heads) = (shape.channels(), shape.value_heads);
        let DeltaBuffers {
            mixed, gates, core, ..
        } = buffers;
        let rows = mixed.len() / channels;
        let mut outs: Vec<&mut [f32]> = core.chunks_mut(rows * shape.value_dim).collect();
        let mut items = Vec::with_capacity(heads * memories.len());
        for (rows, memory) in memories {
            let states = memory.state.chunks_mut(shape.key_dim * shape.value_dim);
            for ((head, state), outs) in states.enumerate().zip(&mut outs) {
                // rows of sequences follow each other
                let own = rows.len() * shape.value_dim;
                let (out, rest) = std::mem::take(outs).split_at_mut(own);
                *outs = rest;
                items.push(HeadRows {
                    head,
                    rows: rows.clone(),
                    state,
                    out,
                });
            }
        }
        let pieces = threads::pieces(4 * rows * heads * shape.key_dim * shape.value_dim);
        threads::for_each(pieces, items, |item| {
            let HeadRows {
                head,
                rows,
                state,
                out,
            } = item;
            let key_head = head / shape.repeats();
            let (keys, dim) = (shape.key_width(), shape.key_dim);
            let head = DeltaHead {
                rows: &mixed[rows.start * channels..rows.end * channels],
                width: channels,
                places: [
                    key_head * dim,
                    keys + key_head * dim,
                    2 * keys + head * shape.value_dim,
                ],
                gates: &gates[rows.start * 2 * heads..rows.end * 2 * heads],
                gate_width: 2 * heads,
                gate_places: [head, heads + head],
                key_dim: dim,
                value_dim: shape.value_dim,
            };
            ops.backend.delta_rule(&head, state, out);
        });
    }
}

/// `x *= 1 / sqrt(sum(x^2) + eps)`
fn unit(ops: RowOps<'_>, x: &mut [f32]) {
    let factor = 1.0 / (ops.backend.sum_squares(x) + UNIT_EPS).sqrt();
    ops.backend.scale(factor, x);
}

/// `ln(1 + exp(x))`, in f64 and rounded once; `x` itself above 20, as PyTorch has it.
fn softplus(x: f32) -> f32 {
    match x > 20.0 {
        true => x,
        false => libm::log1p(libm::exp(f64::from(x))) as f32,
    }
}

impl DeltaBuffers {
    fn resize(&mut self, shape: &config::GatedDeltaNet, rows: usize, spans: usize) {
        let (channels, heads) = (shape.channels(), shape.value_heads);
        let before = spans * (shape.conv_kernel - 1);
        fit(&mut self.qkv, rows * channels);
        fit(&mut self.window, (rows + before) * channels);
        fit(&mut self.mixed, rows * channels);
        fit(&mut self.z, rows * shape.value_width());
        fit(&mut self.b, rows * heads);
        fit(&mut self.a, rows * heads);
        fit(&mut self.gates, rows * 2 * heads);
        fit(&mut self.core, rows * shape.value_width());
    }
}
