//! What the layers of a round share: whose tokens its rows are, and the operations on single rows.
//!
//! Invariant: a round is some tokens of some sequences, as rows of one matrix. An operation here knows a row and
//! its position, not its neighbors.

use crate::bit_linear::LinearInput;
use crate::profile::{Clock, Part};
use crate::rope::Ropes;
use crate::sequence::Sequence;
use crate::threads;
use bitnet_checkpoint::{Activation, Config, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::{Backend, PackedMatrix};
use std::ops::Range;

/// Rows of a round, in order, that are tokens of one sequence, the first of them at the sequence's position.
#[derive(Debug)]
pub(crate) struct Span<'a> {
    pub sequence: &'a mut Sequence,
    pub rows: Range<usize>,
}

/// One pass of some rows through the layers.
pub(crate) struct Round<'a> {
    pub rows: RowOps<'a>,
    pub ropes: &'a Ropes,
    pub positions: &'a [usize], // (rows,)
    pub spans: Vec<Span<'a>>,
    pub clock: &'a mut Clock,
}

/// Operations on rows, `(hidden,)` unless it is said.
#[derive(Clone, Copy)]
pub(crate) struct RowOps<'a> {
    pub backend: Backend,
    pub config: &'a Config,
}

impl RowOps<'_> {
    /// `out = rms_norm(x) * gain` of one row, `(width,)`.
    pub(crate) fn norm(self, x: &[f32], gain: &[f32], out: &mut [f32]) {
        self.backend
            .rms_norm(x, gain, self.config.rms_norm_eps, out);
    }

    /// `out = norm(x)` if the network has this norm, else `x`; one row.
    pub(crate) fn norm_if(self, x: &[f32], gain: Option<&[f32]>, out: &mut [f32]) {
        match gain {
            Some(gain) => self.norm(x, gain, out),
            None => out.copy_from_slice(x),
        }
    }

    /// `out = norm(x)`, both `(rows, hidden)`.
    pub(crate) fn norm_rows(self, x: &[f32], gain: &[f32], out: &mut [f32]) {
        let width = self.config.hidden_size;
        threads::for_tokens(out, width, |first, out| {
            let x = x[first * width..].chunks_exact(width);
            for (x, out) in x.zip(out.chunks_exact_mut(width)) {
                self.norm(x, gain, out);
            }
        });
    }

    /// `x += y`, both `(rows, hidden)`.
    pub(crate) fn add(self, y: &[f32], x: &mut [f32]) {
        let width = self.config.hidden_size;
        threads::for_tokens(x, width, |row, x| {
            self.backend.add(&y[row * width..][..x.len()], x);
        });
    }

    /// Adds a bias, `(width,)`, to every row of `x`, `(rows, width)`.
    pub(crate) fn add_bias(self, bias: &[f32], x: &mut [f32]) {
        let width = bias.len();
        threads::for_tokens(x, width, |_, x| {
            for x in x.chunks_exact_mut(width) {
                self.backend.add(bias, x);
            }
        });
    }

    /// `x *= factor`
    pub(crate) fn scale(self, factor: f32, x: &mut [f32]) {
        if factor != 1.0 {
            self.backend.scale(factor, x);
        }
    }

    /// `gate = act(gate) * up` of one row, both `(inter,)`.
    pub(crate) fn activate(self, act: Activation, gate: &mut [f32], up: &[f32]) {
        match act {
            Activation::Relu2 => self.backend.relu2_mul(gate, up),
            Activation::Silu => self.backend.silu_mul(gate, up),
            Activation::GeluTanh => self.backend.gelu_tanh_mul(gate, up),
        }
    }

    /// `y = norm(y) * factor`, as far as the network has them: what attention or the MLP adds to the
    /// residual stream, `(rows, hidden)`. `spare` has its length.
    pub(crate) fn end_branch(self, y: &mut Vec<f32>, gain: Option<&[f32]>, spare: &mut Vec<f32>) {
        if let Some(gain) = gain {
            self.norm_rows(y, gain, spare);
            std::mem::swap(y, spare);
        }
        self.scale(self.config.factors.residual, y);
    }

    /// `out = linear(norm(n))`: a linear whose input no other one reads, because its norm is its own. `n`
    /// is `(rows, hidden)`.
    pub(crate) fn normed_linear(
        self,
        slot: Slot,
        input: &mut LinearInput,
        (n, gain): (&mut [f32], &[f32]),
        (matrix, out): (&PackedMatrix, &mut [f32]),
        clock: &mut Clock,
    ) -> Result<(), FormatError> {
        let hidden = self.config.hidden_size;
        input.prepare(slot, hidden, (n, hidden), |_, n, h| self.norm(n, gain, h))?;
        clock.lap(Part::Elementwise);
        input.multiply([(matrix, out)]);
        clock.lap(Part::Linears);
        Ok(())
    }
}
