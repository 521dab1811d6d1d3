//! The gates of `formats/numerics.md`: how close a forward pass must come to another one's record.
//!
//! Invariant: one set of gates, applied alike to the runtime and to the oracle. Both come as closures,
//! so nothing here knows how anything is computed; measuring ([`linears`], [`layers`], [`end_to_end`],
//! [`nll`]) is apart from judging (`violations`), and a figure that is not finite never passes.
//!
//! Activation rounding is a step function: two correct implementations flip an int8 now and then and
//! drift apart by about 1 % of the hidden state. Elementwise tolerances on logits therefore appear
//! nowhere; what can be held tightly is one linear or one layer from a recorded input.

mod codes;
mod embeddings;
mod end_to_end;
mod teacher_forced;

pub use codes::{check_codes, codes_sha256, name_codes};
pub use embeddings::{Distance, Embeddings, embeddings};
pub use end_to_end::{EndToEnd, GreedyMiss, Nll, WrongLength, end_to_end, nll};
pub use teacher_forced::{LayerErrors, layers, linear_violations, linears};

use crate::reference::golden::Golden;
use bitnet_checkpoint::Slot;
use bitnet_formats::FormatError;
use std::fmt;

/// Bounds of the gates; the defaults are those of `formats/numerics.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Gate 2: relative error of a linear from its recorded input.
    pub linear_error: f64,
    /// Gate 3: relative error that most tokens stay below, each behind each layer.
    pub typical_layer_error: f64,
    /// Gate 3: relative error that every layer stays below.
    pub layer_error: f64,
    /// Gate 4 of embedding models: largest 1 - cosine of a vector. Flipped activations, nothing else, take
    /// correct implementations apart: by up to 2e-4 on the fixtures. With it no element of a vector of
    /// length 1 is off by more than `sqrt(2 * bound)`.
    pub embedding_distance: f64,
    /// Gate 4: mean divergence, nats.
    pub kl_mean: f64,
    /// Gate 4: share of positions with the same most likely token.
    pub top1: f64,
    /// Gate 4: reference margin below which another most likely token is no error.
    pub flip_margin: f64,
    /// Gate 5: shift of the mean negative log likelihood.
    pub nll_shift: f64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            linear_error: 1e-6,
            typical_layer_error: 2e-6,
            layer_error: 2e-2,
            embedding_distance: 1e-3,
            kl_mean: 2e-3,
            top1: 0.96,
            flip_margin: 0.3,
            nll_shift: 0.02,
        }
    }
}

/// What an implementation answers.
pub type Answer = Result<Vec<f32>, FormatError>;

/// A gate that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its number in `formats/numerics.md`.
    pub gate: u8,
    /// Tensor, layer or prompt.
    pub place: String,
    /// What was expected and found there.
    pub what: String,
}

impl Violation {
    fn new(gate: u8, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            gate,
            place: place.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gate {}: `{}`: {}", self.gate, self.place, self.what)
    }
}

/// Gates 2 to 5 of one implementation on one model, measured.
#[derive(Debug, Clone)]
pub struct Report {
    /// Gate 2: relative error of each linear recorded.
    pub linears: Vec<(Slot, f64)>,
    /// Gate 3: relative error of each layer recorded.
    pub layers: LayerErrors,
    /// Gate 4.
    pub end_to_end: EndToEnd,
    /// Gate 5; `None` when no stream was recorded.
    pub nll: Option<Nll>,
}

/// Measures gates 2 to 5. `linear` gets a ternary linear and its input, `(tokens, cols)`, its input
/// norm excluded; `layer` a layer's number and the residual stream of positions `0..tokens`; `logits`
/// a sequence, of which it answers all positions.
///
/// # Errors
/// Those of the implementation, and of a record that lacks what belongs to it.
pub fn measure(
    golden: &Golden,
    bounds: &Thresholds,
    linear: impl FnMut(Slot, &[f32], usize) -> Answer,
    layer: impl FnMut(usize, &[f32], usize) -> Answer,
    mut logits: impl FnMut(&[u32]) -> Answer,
) -> Result<Report, FormatError> {
    Ok(Report {
        linears: linears(golden, linear)?,
        layers: layers(golden, layer)?,
        end_to_end: end_to_end(golden, bounds, &mut logits)?,
        nll: nll(golden, logits)?,
    })
}

impl Report {
    /// Every gate that does not hold; the record's absence is no violation.
    pub fn violations(&self, bounds: &Thresholds) -> Vec<Violation> {
        let mut all = linear_violations(&self.linears, bounds);
        all.extend(self.layers.violations(bounds));
        all.extend(self.end_to_end.violations(bounds));
        all.extend(self.nll.iter().filter_map(|nll| nll.violation(bounds)));
        all
    }

    /// Column titles of [`Display`](fmt::Display).
    pub const TITLES: &'static str = "| linears, worst | layers, each | mean KL | KL of native | top-1 | reached by flips | max logit | greedy | nll shift |";
}

impl fmt::Display for Report {
    /// One row of a Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.linears.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        let layers = self.layers.layers.iter();
        let layers: Vec<String> = layers.map(|e| format!("{e:.1e}")).collect();
        let EndToEnd {
            ours,
            native,
            greedy_equal,
            greedy_compared,
            ..
        } = &self.end_to_end;
        let figure = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{x:.1e}"));
        write!(
            f,
            "| {worst:.1e} | {} | {:.1e} | {} | {:.4} | {:.2} | {:.1e} | {greedy_equal}/{greedy_compared} | {} |",
            layers.join(" "),
            ours.kl_mean(),
            figure(native.as_ref().map(|n| n.kl_mean())),
            ours.top1_agreement(),
            ours.reached(),
            ours.max_abs(),
            figure(self.nll.as_ref().map(Nll::shift)),
        )
    }
}
