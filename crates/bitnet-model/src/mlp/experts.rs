//! A mixture of experts: a router chooses some gated MLPs for every row, and their outputs are added by weight.
//!
//! Invariant: which experts a row goes to, and the bits of their sum, follow from the row alone
//! (`formats/numerics.md`). The rows of a round are gathered by expert: the weights of an expert are read once for
//! all rows that go to it.

mod routing;

use crate::bit_linear::{self, LinearInput};
use crate::dense_rows::DenseRows;
use crate::load::LayerTensors;
use crate::profile::Part;
use crate::round::Round;
use crate::stream::{Stream, fit};
use crate::threads;
use bitnet_checkpoint::{self as config, ExpertLinear, LayerSlot, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::PackedMatrix;
pub use routing::{Choice, Routing};
use std::ops::Range;

/// Weights and sizes of one layer's experts.
#[derive(Debug)]
pub(crate) struct Experts {
    layer: usize,
    shape: config::Experts,
    input_norm: Vec<f32>, // (hidden,)
    router: DenseRows,    // (experts, hidden)
    experts: Vec<Expert>, // (experts,)
}

/// Weights of one expert.
#[derive(Debug)]
struct Expert {
    gate_proj: PackedMatrix, // (inter, hidden)
    up_proj: PackedMatrix,   // (inter, hidden)
    down_proj: PackedMatrix, // (hidden, inter)
}

/// Scratch of experts. An assignment is one row at one expert; assignments stand expert by expert.
#[derive(Debug, Default)]
pub(crate) struct ExpertsBuffers {
    h: Vec<f32>, // (rows, hidden): normed
    routing: Routing,
    inputs: Vec<LinearInput>, // (experts with rows,)
    gate: Vec<f32>,           // (assignments, inter)
    up: Vec<f32>,             // (assignments, inter)
    down: Vec<f32>,           // (assignments, hidden)
}

impl ExpertsBuffers {
    /// What the last layer that ran chose.
    pub(crate) fn routing(&self) -> &Routing {
        &self.routing
    }
}

/// An expert that has rows, and its assignments.
struct Group {
    expert: usize,
    assignments: Range<usize>,
}

impl Experts {
    /// Takes the weights of a layer.
    pub(crate) fn load(
        layer: usize,
        shape: config::Experts,
        tensors: &mut LayerTensors<'_>,
    ) -> Result<Self, FormatError> {
        let mut experts = Vec::with_capacity(shape.count);
        for expert in 0..shape.count {
            let mut linear = |linear| tensors.linear(layer, LayerSlot::expert(expert, linear));
            experts.push(Expert {
                gate_proj: linear(ExpertLinear::Gate)?,
                up_proj: linear(ExpertLinear::Up)?,
                down_proj: linear(ExpertLinear::Down)?,
            });
        }
        Ok(Self {
            layer,
            shape,
            input_norm: tensors.gain(layer, LayerSlot::PostAttentionNorm)?,
            router: tensors.rows(layer, LayerSlot::Router)?,
            experts,
        })
    }

    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        let LayerSlot::Expert(expert, linear) = slot else {
            return None;
        };
        let expert = self.experts.get(usize::from(expert))?;
        Some(match linear {
            ExpertLinear::Gate => &expert.gate_proj,
            ExpertLinear::Up => &expert.up_proj,
            ExpertLinear::Down => &expert.down_proj,
        })
    }

    /// All linears, expert by expert.
    pub(crate) fn linears(&self) -> Vec<&PackedMatrix> {
        let experts = self.experts.iter();
        experts
            .flat_map(|e| [&e.gate_proj, &e.up_proj, &e.down_proj])
            .collect()
    }

    /// Bytes that one token does not read: those of the experts that it does not go to.
    pub(crate) fn idle_bytes(&self) -> usize {
        let all: usize = self.linears().iter().map(|m| m.byte_len()).sum();
        all - all / self.shape.count * self.shape.used
    }

    /// `x += y; y = sum of weight * down(act(gate) * up)` over the experts that the router chooses for each row,
    /// `gate, up = linear(norm(x))`.
    pub(crate) fn forward(
        &self,
        round: &mut Round<'_>,
        stream: &mut Stream,
        buffers: &mut ExpertsBuffers,
    ) -> Result<(), FormatError> {
        let ops = round.rows;
        let clock = &mut *round.clock;
        let (hidden, width, used) = (
            self.shape.hidden_size,
            self.shape.intermediate_size,
            self.shape.used,
        );
        let Stream { input, x, y, .. } = stream;
        let rows = x.len() / hidden;
        let ExpertsBuffers {
            h,
            routing,
            inputs,
            gate,
            up,
            down,
        } = buffers;
        fit(h, rows * hidden);
        fit(gate, rows * used * width);
        fit(up, rows * used * width);
        fit(down, rows * used * hidden);

        // x += y;  h = norm(x);  the experts of every row
        ops.add(y, x);
        ops.norm_rows(x, &self.input_norm, h);
        let router = Slot::Layer(self.layer, LayerSlot::Router);
        bit_linear::finite(router, h, hidden, 0)?;
        routing.choose(ops.backend, (&self.router, router), &self.shape, h)?;
        clock.lap(Part::Elementwise);

        // gate, up = linear(h), expert by expert; one row is one input, whatever the experts
        let groups = groups(routing, self.shape.count);
        let is_one = rows == 1;
        let count = if is_one { 1 } else { groups.len() };
        while inputs.len() < count {
            inputs.push(LinearInput::like(input));
        }
        let order = assignments(routing, &groups, self.shape.count); // (assignments,): rows
        let slot = |group: &Group, linear| {
            Slot::Layer(self.layer, LayerSlot::expert(group.expert, linear))
        };
        let pieces = threads::pieces(threads::PER_ELEMENT * count * hidden);
        let items = inputs.iter_mut().zip(&groups).take(count).collect();
        threads::try_for_each(
            pieces,
            items,
            |(input, group): (&mut LinearInput, &Group)| {
                let rows = match is_one {
                    true => &order[..1],
                    false => &order[group.assignments.clone()],
                };
                // the row is found by its number: there is nothing to read from
                let mut none = vec![0.0; rows.len()];
                let at = slot(group, ExpertLinear::Gate);
                input.prepare(at, hidden, (&mut none, 1), |n, _, to| {
                    to.copy_from_slice(&h[rows[n] * hidden..][..hidden]);
                })
            },
        )?;
        clock.lap(Part::Elementwise);
        let mut products = Vec::with_capacity(2 * groups.len());
        let (mut gates, mut ups) = (&mut gate[..], &mut up[..]);
        for (n, group) in groups.iter().enumerate() {
            let expert = &self.experts[group.expert];
            let input = &inputs[if is_one { 0 } else { n }];
            let len = group.assignments.len() * width;
            let (gate, rest) = gates.split_at_mut(len);
            gates = rest;
            let (up, rest) = ups.split_at_mut(len);
            ups = rest;
            products.push((input, &expert.gate_proj, gate));
            products.push((input, &expert.up_proj, up));
        }
        LinearInput::multiply_each(products);
        clock.lap(Part::Linears);

        // down = linear(act(gate) * up), expert by expert
        while inputs.len() < groups.len() {
            inputs.push(LinearInput::like(input));
        }
        let mut rest = &mut gate[..];
        let mut items = Vec::with_capacity(groups.len());
        for (input, group) in inputs.iter_mut().zip(&groups) {
            let (gate, others) = rest.split_at_mut(group.assignments.len() * width);
            rest = others;
            items.push((input, group, gate));
        }
        let pieces = threads::pieces(threads::PER_ELEMENT * rows * used * width);
        let up = &*up;
        threads::try_for_each(
            pieces,
            items,
            |(input, group, gate): (&mut LinearInput, &Group, &mut [f32])| {
                let first = group.assignments.start;
                let at = slot(group, ExpertLinear::Down);
                input.prepare(at, width, (gate, width), |n, gate, to| {
                    let up = &up[(first + n) * width..][..width];
                    match self.shape.clamp {
                        None => ops.activate(self.shape.act, gate, up),
                        Some(most) => {
                            let mut up = up.to_vec();
                            clamp(most, gate, &mut up);
                            ops.activate(self.shape.act, gate, &up);
                        }
                    }
                    to.copy_from_slice(gate);
                })
            },
        )?;
        clock.lap(Part::Elementwise);
        let mut products = Vec::with_capacity(groups.len());
        let mut rest = &mut down[..];
        for (input, group) in inputs.iter().zip(&groups) {
            let (down, others) = rest.split_at_mut(group.assignments.len() * hidden);
            rest = others;
            products.push((input, &self.experts[group.expert].down_proj, down));
        }
        LinearInput::multiply_each(products);
        clock.lap(Part::Linears);

        // y = sum of weight * down, experts in increasing order
        let places = places(routing, &groups, self.shape.count);
        let (routing, down) = (&*routing, &*down);
        threads::for_tokens(y, hidden, |first, y| {
            for (n, y) in y.chunks_exact_mut(hidden).enumerate() {
                y.fill(0.0);
                let row = first + n;
                for (n, choice) in routing.row(row).iter().enumerate() {
                    let down = &down[places[row * used + n] * hidden..][..hidden];
                    ops.backend.axpy(choice.weight, down, y);
                }
            }
        });
        ops.scale(ops.config.factors.residual, y);
        clock.lap(Part::Elementwise);
        Ok(())
    }
}

/// Bounds `gate` from above and `up` on both sides.
fn clamp(most: f32, gate: &mut [f32], up: &mut [f32]) {
    gate.iter_mut().for_each(|gate| *gate = gate.min(most));
    up.iter_mut().for_each(|up| *up = up.clamp(-most, most));
}

/// The experts that have rows, in increasing order.
fn groups(routing: &Routing, experts: usize) -> Vec<Group> {
    let mut counts = vec![0; experts];
    for choice in routing.choices() {
        counts[choice.expert as usize] += 1;
    }
    let mut first = 0;
    let mut groups = Vec::new();
    for (expert, count) in counts.into_iter().enumerate() {
        if count > 0 {
            groups.push(Group {
                expert,
                assignments: first..first + count,
            });
            first += count;
        }
    }
    groups
}

/// The place of every choice of every row among the assignments, `(rows * used,)`.
fn places(routing: &Routing, groups: &[Group], experts: usize) -> Vec<usize> {
    let mut next = vec![0; experts];
    for group in groups {
        next[group.expert] = group.assignments.start;
    }
    let place = |choice: &Choice| {
        let next = &mut next[choice.expert as usize];
        *next += 1;
        *next - 1
    };
    routing.choices().iter().map(place).collect()
}

/// The row of every assignment.
fn assignments(routing: &Routing, groups: &[Group], experts: usize) -> Vec<usize> {
    let places = places(routing, groups, experts);
    let used = routing.used().max(1);
    let mut rows = vec![0; places.len()];
    for (n, place) in places.into_iter().enumerate() {
        rows[place] = n / used;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_by_expert_and_found_again() {
        let choice = |expert| Choice {
            expert,
            weight: 0.5,
        };
        let routing = Routing::of(2, [3, 5, 0, 3, 3, 4].map(choice).to_vec());
        let groups = groups(&routing, 6);
        let found: Vec<_> = groups
            .iter()
            .map(|g| (g.expert, g.assignments.clone()))
            .collect();
        assert_eq!(found, [(0, 0..1), (3, 1..4), (4, 4..5), (5, 5..6)]);
        assert_eq!(assignments(&routing, &groups, 6), [1, 0, 1, 2, 2, 0]);
        assert_eq!(places(&routing, &groups, 6), [1, 5, 0, 2, 3, 4]);
    }

    #[test]
    fn the_gate_has_no_lower_bound() {
        let (mut gate, mut up) = ([-9.0, 9.0, 1.0], [-9.0, 9.0, 1.0]);
        clamp(7.0, &mut gate, &mut up);
        assert_eq!((gate, up), ([-9.0, 7.0, 1.0], [-7.0, 7.0, 1.0]));
    }
}
