//! Which experts each row goes to, and with what weight.
//!
//! Invariant: experts with the largest logits, of equal ones those with the lowest numbers; a choice depends on the row
//! alone (`formats/numerics.md`).

use crate::dense_rows::DenseRows;
use crate::stream::fit;
use crate::threads;
use bitnet_checkpoint::{Experts, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;

/// An expert that a row goes to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Choice {
    /// Its number.
    pub expert: u32,
    /// By what its output is multiplied.
    pub weight: f32,
}

/// The choices of some rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Routing {
    experts: usize,
    used: usize,
    logits: Vec<f32>,     // (rows, experts)
    choices: Vec<Choice>, // (rows, used): experts in increasing order
}

impl Routing {
    /// Choices that are known.
    #[cfg(test)]
    pub(super) fn of(used: usize, choices: Vec<Choice>) -> Self {
        Self {
            experts: 0,
            used,
            logits: Vec::new(),
            choices,
        }
    }

    /// Experts that each row goes to.
    pub fn used(&self) -> usize {
        self.used
    }

    /// All choices, row by row, `(rows, used)`.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }

    /// The choices of a row, experts in increasing order.
    pub fn row(&self, row: usize) -> &[Choice] {
        &self.choices[row * self.used..][..self.used]
    }

    /// The logits of the router, `(rows, experts)`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Appends the rows of another round of the same layer.
    pub(crate) fn append(&mut self, other: &Self) {
        (self.experts, self.used) = (other.experts, other.used);
        self.logits.extend_from_slice(&other.logits);
        self.choices.extend_from_slice(&other.choices);
    }

    /// Chooses for rows of normed inputs `h`, `(rows, hidden)`, all finite.
    pub(super) fn choose(
        &mut self,
        backend: Backend,
        (router, slot): (&DenseRows, Slot),
        shape: &Experts,
        h: &[f32],
    ) -> Result<(), FormatError> {
        let rows = h.len() / shape.hidden_size;
        (self.experts, self.used) = (shape.count, shape.used);
        fit(&mut self.logits, rows * shape.count);
        router.multiply(backend, h, &mut self.logits);
        crate::bit_linear::finite(slot, &self.logits, shape.count, 0)?;
        self.choices.clear();
        self.choices.resize(rows * shape.used, Choice::default());
        let pieces = threads::pieces(threads::PER_ELEMENT * self.logits.len());
        let logits = self.logits.chunks_exact(shape.count);
        let items = logits
            .zip(self.choices.chunks_exact_mut(shape.used))
            .collect();
        threads::for_each(
            pieces,
            items,
            |(logits, choices): (&[f32], &mut [Choice])| {
                choose(backend, shape.normalize, logits, choices);
            },
        );
        Ok(())
    }
}

/// The experts of one row, and their weights.
fn choose(backend: Backend, normalize: bool, logits: &[f32], choices: &mut [Choice]) {
    // the best so far, by falling logit; an equal one that comes later stands behind
    let used = choices.len();
    let mut best: Vec<usize> = Vec::with_capacity(used + 1);
    for (expert, logit) in logits.iter().enumerate() {
        if best.len() == used && best.last().is_none_or(|last| *logit <= logits[*last]) {
            continue;
        }
        let at = best.partition_point(|other| logits[*other] >= *logit);
        best.insert(at, expert);
        best.truncate(used);
    }
    let most = best.first().map_or(0.0, |first| logits[*first]);
    best.sort_unstable();
    let mut weights: Vec<f32> = best.iter().map(|expert| logits[*expert] - most).collect();
    backend.exp(&mut weights);
    let sum = if normalize {
        backend.sum(&weights)
    } else {
        let mut all: Vec<f32> = logits.iter().map(|logit| logit - most).collect();
        backend.exp(&mut all);
        backend.sum(&all)
    };
    for ((choice, expert), weight) in choices.iter_mut().zip(best).zip(weights) {
        *choice = Choice {
            expert: expert as u32,
            weight: weight / sum,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(normalize: bool, logits: &[f32], used: usize) -> Vec<(u32, f32)> {
        let mut choices = vec![Choice::default(); used];
        choose(Backend::best(), normalize, logits, &mut choices);
        choices.iter().map(|c| (c.expert, c.weight)).collect()
    }

    #[test]
    fn the_largest_logits_are_chosen_and_of_equal_ones_the_lowest_numbers() {
        let ids = |logits: &[f32], used| -> Vec<u32> {
            let found = chosen(true, logits, used).into_iter();
            found.map(|(expert, _)| expert).collect()
        };
        assert_eq!(ids(&[1.0, 3.0, 2.0, 4.0], 2), [1, 3]);
        assert_eq!(ids(&[0.0; 6], 3), [0, 1, 2]);
        assert_eq!(ids(&[0.0, 5.0, 5.0, 5.0, -0.0], 2), [1, 2]);
        // 0 and -0 are equal
        assert_eq!(ids(&[-0.0, 0.0, -1.0], 1), [0]);
        assert_eq!(ids(&[1.0, 2.0, 3.0], 3), [0, 1, 2]);
    }

    #[test]
    fn weights_are_those_of_the_softmax_over_all_or_over_the_chosen() {
        let logits = [0.5f32, -1.0, 2.0, 1.0];
        let e: Vec<f64> = logits.iter().map(|l| f64::from(*l).exp()).collect();
        let all: f64 = e.iter().sum();
        for (normalize, sum) in [(true, e[2] + e[3]), (false, all)] {
            let found = chosen(normalize, &logits, 2);
            for (expert, weight) in found {
                let want = e[expert as usize] / sum;
                assert!((f64::from(weight) / want - 1.0).abs() < 1e-6, "{expert}");
            }
        }
        // far apart: no weight is more than 1 or no number
        assert_eq!(chosen(true, &[-3e38, 3e38, 0.0], 2), [(1, 1.0), (2, 0.0)]);
    }
}
