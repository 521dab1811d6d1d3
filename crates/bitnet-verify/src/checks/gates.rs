//! The gates of `formats/numerics.md`: how close a forward pass must come to another one's record.
//!
//! Invariant: one set of gates, applied alike to the runtime and to the oracle. Both come as closures,
//! so nothing here knows how anything is computed; measuring ([`linears`], [`layers`], [`end_to_end`],
//! [`nll`]) is apart from judging (`violations`), and a figure that is not finite never passes.
//!
//! Activation rounding is a step function: two correct implementations flip an int8 now and then and
//! drift apart by about 1 % of the hidden state. Elementwise tolerances on logits therefore appear
//! nowhere; what can be held tightly is one linear or one layer from a recorded input.

mod answer;
mod codes;
mod embeddings;
mod end_to_end;
mod experts;
mod teacher_forced;

pub use answer::Answer;
pub use codes::{check_codes, name_codes};
pub use embeddings::{Distance, Embeddings, embeddings};
pub use end_to_end::{EndToEnd, GreedyMiss, Nll, WrongLength, end_to_end, nll};
pub use experts::{Chosen, Experts, experts};
pub use teacher_forced::{LayerErrors, layers, linear_violations, linears};

use crate::reference::golden::Golden;
pub use crate::reference::thresholds::Thresholds;
use crate::verdict::Difference;
use bitnet_checkpoint::Slot;
use bitnet_formats::FormatError;
use std::fmt;

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
    pub fn violations(&self, bounds: &Thresholds) -> Vec<Difference> {
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
