//! Gates 4 and 5: the logits of whole sequences, and the likelihood of a longer text.

use super::answer::Answer;
use crate::reference::divergence::{Divergence, log_softmax, top1};
use crate::reference::golden::{Golden, Greedy};
use crate::reference::thresholds::Thresholds;
use crate::verdict::Difference;
use bitnet_cli::fixed;
use bitnet_formats::FormatError;

/// Gate 4, measured.
#[derive(Debug, Clone, Default)]
pub struct EndToEnd {
    /// From the f32 golden logits.
    pub ours: Divergence,
    /// Of the golden logits in the checkpoint's own 16-bit type from the f32 ones, on the same prompts.
    pub native: Option<Divergence>,
    /// Prompts with another number of logits, which were not compared.
    pub wrong_lengths: Vec<WrongLength>,
    /// The first wrong greedy token of each continuation that has one.
    pub greedy: Vec<GreedyMiss>,
    /// Greedy tokens that are the recorded ones.
    pub greedy_equal: usize,
    /// Greedy tokens compared: up to the first small margin, or the first wrong one.
    pub greedy_compared: usize,
}

/// A prompt whose logits are not as many as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongLength {
    /// The prompt.
    pub prompt: String,
    /// Logits recorded.
    pub expected: usize,
    /// Logits answered.
    pub found: usize,
}

/// A greedy token that differs although all margins so far were large.
#[derive(Debug, Clone, PartialEq)]
pub struct GreedyMiss {
    /// The prompt.
    pub prompt: String,
    /// Step of its continuation.
    pub step: usize,
    /// The recorded token.
    pub expected: u32,
    /// Ours.
    pub found: usize,
    /// The recorded margin.
    pub margin: f64,
}

/// Gate 4, measured: all positions of all prompts, and the greedy continuations.
///
/// # Errors
/// Those of the implementation.
pub fn end_to_end(
    golden: &Golden,
    bounds: &Thresholds,
    mut logits: impl FnMut(&[u32]) -> Answer,
) -> Result<EndToEnd, FormatError> {
    let mut measured = EndToEnd::default();
    let mut native = Divergence::default();
    for prompt in &golden.prompts {
        let (name, ids) = (&prompt.name, Some(prompt.ids.as_slice()));
        let Some(reference) = golden.logits.get(name) else {
            continue;
        };
        let found = logits(&prompt.ids).map_err(|e| e.in_tensor(name))?;
        let (cols, reference) = (reference.cols, reference.values.as_slice());
        if reference.len() != found.len() {
            measured.wrong_lengths.push(WrongLength {
                prompt: name.clone(),
                expected: reference.len(),
                found: found.len(),
            });
            continue;
        }
        measured.ours.add(name, ids, cols, reference, &found);
        if let Some(other) = golden.native.as_ref().and_then(|n| n.get(name)) {
            native.add(name, ids, cols, reference, &other.values);
        }
    }
    measured.native = (native.positions() > 0).then_some(native);
    for entry in &golden.greedy {
        if let Some(ids) = golden.ids(&entry.prompt).filter(|ids| !ids.is_empty()) {
            measured.greedy(entry, ids, bounds.flip_margin, &mut logits)?;
        }
    }
    Ok(measured)
}

impl EndToEnd {
    /// Compares one continuation up to its first small margin. It is forced, which makes the first
    /// mismatch the same as in free running.
    fn greedy(
        &mut self,
        entry: &Greedy,
        ids: &[u32],
        flip_margin: f64,
        logits: &mut impl FnMut(&[u32]) -> Answer,
    ) -> Result<(), FormatError> {
        let small = entry.margins.iter().position(|&m| m < flip_margin);
        let Some(last) = small.unwrap_or(entry.ids.len()).checked_sub(1) else {
            return Ok(());
        };
        let forced: Vec<u32> = ids.iter().chain(&entry.ids[..last]).copied().collect();
        let found = logits(&forced).map_err(|e| e.in_tensor(&entry.prompt))?;
        let vocab = found.len() / forced.len();
        let rows = found.chunks_exact(vocab.max(1)).skip(ids.len() - 1);
        for (step, (row, &expected)) in rows.zip(&entry.ids).enumerate() {
            self.greedy_compared += 1;
            let (found, _) = top1(row);
            if found != expected as usize {
                self.greedy.push(GreedyMiss {
                    prompt: entry.prompt.clone(),
                    step,
                    expected,
                    found,
                    margin: entry.margins[step],
                });
                break;
            }
            self.greedy_equal += 1;
        }
        Ok(())
    }

    /// Gate 4, judged.
    pub fn violations(&self, bounds: &Thresholds) -> Vec<Difference> {
        let mut all = Vec::new();
        let mut say = |place: &str, what: String| all.push(Difference::new(place, what));
        let ours = &self.ours;
        for wrong in &self.wrong_lengths {
            let (expected, found) = (wrong.expected, wrong.found);
            say(
                &wrong.prompt,
                format!("expected {expected} logits, found {found}"),
            );
        }
        if ours.positions() == 0 && self.wrong_lengths.is_empty() {
            say("logits", "none were recorded".to_owned());
        }
        if ours.kl_mean() > bounds.kl_mean {
            let (kl_max, prompt, position) = ours.kl_max();
            say(
                "logits",
                format!(
                    "mean divergence {:.2e}, expected at most {:.0e} (largest {kl_max:.2e} in prompt `{prompt}`, position {position})",
                    ours.kl_mean(),
                    bounds.kl_mean
                ),
            );
        }
        if ours.top1_agreement() < bounds.top1 {
            let (found, expected) = (ours.top1_agreement(), bounds.top1);
            say(
                "logits",
                format!(
                    "same most likely token at {found:.3} of the positions, expected {expected}"
                ),
            );
        }
        if ours.flipped_margin() >= bounds.flip_margin {
            say(
                "logits",
                format!(
                    "another most likely token where the reference's margin is {:.3}, expected only below {}",
                    ours.flipped_margin(),
                    bounds.flip_margin
                ),
            );
        }
        if let Some(native) = &self.native
            && ours.kl_mean() >= native.kl_mean()
            && ours.rms() >= native.rms()
        {
            say(
                "logits",
                format!(
                    "mean divergence {:.2e}, expected less than that of the 16-bit reference, {:.2e}",
                    ours.kl_mean(),
                    native.kl_mean()
                ),
            );
        }
        for miss in &self.greedy {
            say(
                &miss.prompt,
                format!(
                    "greedy step {}: expected token {} (margin {:.3}), found {}",
                    miss.step, miss.expected, miss.margin, miss.found
                ),
            );
        }
        all
    }
}

/// Gate 5, measured: mean negative log likelihoods of the stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Nll {
    /// Recorded.
    pub expected: f64,
    /// Ours.
    pub found: f64,
}

/// Gate 5, measured; `None` when nothing was recorded.
///
/// # Errors
/// Those of the implementation.
pub fn nll(
    golden: &Golden,
    mut logits: impl FnMut(&[u32]) -> Answer,
) -> Result<Option<Nll>, FormatError> {
    let Some(stream) = golden.stream.as_ref().filter(|s| s.ids.len() > 1) else {
        return Ok(None);
    };
    let ids = &stream.ids;
    let logits = logits(ids)?;
    let rows = logits.chunks_exact((logits.len() / ids.len()).max(1));
    let nll = rows.zip(&ids[1..]).map(|(row, &next)| {
        log_softmax(row)
            .get(next as usize)
            .map_or(f64::INFINITY, |p| -p)
    });
    Ok(Some(Nll {
        expected: stream.nll_mean,
        found: nll.sum::<f64>() / (ids.len() - 1) as f64,
    }))
}

impl Nll {
    /// Ours minus the recorded one.
    pub fn shift(&self) -> f64 {
        self.found - self.expected
    }

    /// Gate 5, judged.
    pub fn violation(&self, bounds: &Thresholds) -> Option<Difference> {
        let (found, expected, most) = (self.found, self.expected, bounds.nll_shift);
        let (shown, wanted) = (fixed(found, 4), fixed(expected, 4));
        let what = || format!("mean nll {shown}, expected {wanted} within {most}");
        let shift = self.shift().abs();
        (shift.is_nan() || shift > most).then(|| Difference::new("stream", what()))
    }
}
