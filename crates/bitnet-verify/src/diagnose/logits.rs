//! What logits alone, without a trace, say of how they were computed.
//!
//! Invariant: the whole network is computed anew for every hypothesis, on few tokens; what a position says is its
//! error relative to its logits, and the position in the middle speaks, because flipped activations reach some
//! positions of a right program too.

#![deny(clippy::indexing_slicing)]

use super::hypotheses::{Hypothesis, begins_in, closest, hypotheses};
use crate::diagnose::fault::{Fault, FaultName};
use crate::reference::divergence::relative_error;
use crate::reference::golden::Recorded;
use crate::reference::oracle::Oracle;
use bitnet_checkpoint::{Checkpoint, Slot};
use bitnet_formats::FormatError;

/// Most tokens that are computed for each hypothesis, but for one prompt that may be longer.
const TOKENS: usize = 48;

/// An explanation has to take the error down by this factor at least,
const BETTER: f64 = 10.0;
/// and below this.
const CLOSE: f64 = 0.05;

/// Why the logits of `sequences`, each the tokens and what was recorded for them, are not those of the model.
///
/// # Errors
/// Those of the oracle.
pub fn of_logits(
    checkpoint: &Checkpoint,
    check: &'static str,
    sequences: &[(&[u32], &Recorded)],
) -> Result<Fault, FormatError> {
    let mut chosen: Vec<_> = sequences.iter().filter(|(ids, _)| ids.len() > 1).collect();
    chosen.sort_by_key(|(ids, _)| ids.len());
    let mut tokens = 0;
    chosen.retain(|(ids, _)| {
        tokens += ids.len();
        tokens <= TOKENS || tokens == ids.len()
    });
    let ids: Vec<&[u32]> = chosen.iter().map(|(ids, _)| *ids).collect();
    let all = hypotheses(&checkpoint.config);
    let programs = all.iter().map(|h| Some(h.deviation));
    let programs: Vec<_> = [None].into_iter().chain(programs).collect();
    let mut answers = Oracle::new(checkpoint)
        .logits_as(&ids, &programs)?
        .into_iter();
    let ours = answers.next().flatten().unwrap_or_default();
    let of = |found: &[Vec<f32>], shift: isize| {
        let rows = chosen
            .iter()
            .zip(found)
            .flat_map(|((_, e), f)| errors(e, f, shift));
        median(rows.collect())
    };
    let without = of(&ours, 0);
    let mut tried: Vec<(f64, Hypothesis)> = Vec::new();
    for (hypothesis, found) in all.into_iter().zip(answers) {
        if let Some(found) = found {
            tried.push((of(&found, 0), hypothesis));
        }
    }
    let best = tried
        .iter()
        .map(|(error, _)| *error)
        .fold(f64::INFINITY, f64::min);
    for (shift, text) in [(1, "the next one"), (-1, "the one before")] {
        let error = of(&ours, shift);
        if explains(error, without) && error < best {
            let what = format!("what is expected at a position is found at {text}");
            return Ok(Fault::at(
                FaultName::TokenOffset,
                check,
                Slot::OutputHead,
                what,
            ));
        }
    }
    tried.retain(|(error, _)| *error <= CLOSE);
    let named = closest(without, BETTER, tried);
    let slot = named.first().map(|h| begins_in(h.deviation));
    let fault = slot.and_then(|slot| Hypothesis::fault(&named, check, slot));
    Ok(fault.unwrap_or_else(|| {
        let what = format!(
            "relative error {without:.2e} at the median position; a trace would say in which layer it begins"
        );
        Fault::of_key(FaultName::Unexplained, check, "logits", what)
    }))
}

fn explains(error: f64, without: f64) -> bool {
    error <= CLOSE && error * BETTER <= without
}

/// Relative error of each position of `expected`, `found` being read `shift` positions further on.
fn errors(expected: &Recorded, found: &[f32], shift: isize) -> Vec<f64> {
    let cols = expected.cols.max(1);
    let found: Vec<&[f32]> = found.chunks(cols).collect();
    let rows = expected.values.chunks(cols).enumerate();
    let errors = rows.filter_map(|(position, expected)| {
        let found = found.get(position.checked_add_signed(shift)?)?;
        Some(relative_error(expected, found))
    });
    errors.collect()
}

fn median(mut errors: Vec<f64>) -> f64 {
    errors.sort_by(f64::total_cmp);
    errors
        .get(errors.len() / 2)
        .copied()
        .unwrap_or(f64::INFINITY)
}
