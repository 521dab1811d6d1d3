//! The gates of `formats/numerics.md`: how close a forward pass must come to another one's record.
//!
//! Invariant: elementwise tolerances on logits appear nowhere. Activation rounding is a step
//! function, so two correct implementations flip an int8 now and then and drift apart by about 1 %
//! of the hidden state; what can be held tightly is one linear or one layer from a recorded input.

use crate::divergence::{Divergence, log_softmax, relative_error, top1};
use crate::golden::{Golden, Greedy};
use crate::oracle::Oracle;
use crate::report::Findings;
use bitnet_formats::FormatError;
use bitnet_model::{LayerSlot, Slot};

/// Bounds of the gates; the defaults are those of `formats/numerics.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Gate 2: relative error of a linear from its recorded input.
    pub linear_error: f64,
    /// Gate 3: relative error that most layers stay below.
    pub typical_layer_error: f64,
    /// Gate 3: relative error that every layer stays below.
    pub layer_error: f64,
    /// Gate 4: mean divergence.
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
            kl_mean: 2e-3,
            top1: 0.96,
            flip_margin: 0.3,
            nll_shift: 0.02,
        }
    }
}

/// A forward pass that can be entered anywhere.
pub trait Forward {
    /// One ternary linear (its input norm excluded): `x` is `(tokens, cols)`.
    ///
    /// # Errors
    /// Whatever stops it.
    fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError>;
    /// One layer on the residual stream of positions `0..tokens`.
    ///
    /// # Errors
    /// Whatever stops it.
    fn layer(&self, layer: usize, hidden: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError>;
    /// Logits of every position of every sequence.
    ///
    /// # Errors
    /// Whatever stops it.
    fn logits_of(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, FormatError>;
}

impl Forward for Oracle<'_> {
    fn linear(&self, slot: Slot, x: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        Oracle::linear(self, slot, x, tokens)
    }
    fn layer(&self, layer: usize, hidden: &[f32], tokens: usize) -> Result<Vec<f32>, FormatError> {
        Oracle::layer(self, layer, hidden, tokens)
    }
    fn logits_of(&self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, FormatError> {
        Oracle::logits_of(self, sequences)
    }
}

/// Gate 2. Returns the relative error of each linear of layer 0 whose input was recorded.
///
/// # Errors
/// Those of the forward pass.
pub fn linears(
    golden: &Golden,
    forward: &dyn Forward,
    bounds: &Thresholds,
    findings: &mut Findings,
) -> Result<Vec<(Slot, f64)>, FormatError> {
    let mut errors = Vec::new();
    for linear in LayerSlot::LINEARS {
        let recorded = |end| {
            golden
                .trace
                .get(&format!("layer0.{}.{end}", linear.canonical()))
        };
        let (Some(x), Some(y)) = (recorded("in"), recorded("out")) else {
            continue;
        };
        let slot = Slot::Layer(0, linear);
        let error = relative_error(&y.values, &forward.linear(slot, &x.values, x.rows)?);
        if error > bounds.linear_error {
            let text = format!(
                "relative error {error:.2e}, expected at most {:.0e}",
                bounds.linear_error
            );
            findings.different(slot.to_string(), text);
        }
        errors.push((slot, error));
    }
    Ok(errors)
}

/// Gate 3. Returns the relative error of each layer from its recorded input.
///
/// # Errors
/// Those of the forward pass.
pub fn layers(
    golden: &Golden,
    forward: &dyn Forward,
    count: usize,
    bounds: &Thresholds,
    findings: &mut Findings,
) -> Result<Vec<f64>, FormatError> {
    let mut errors = Vec::new();
    for layer in 0..count {
        // the record's last hidden state is after the final norm; what the layer itself left is
        // the norm's input
        let after = if layer + 1 == count {
            "final_norm.in".to_owned()
        } else {
            format!("hidden_states.{}", layer + 1)
        };
        let recorded = |name: &str| golden.trace.get(name);
        let (Some(x), Some(y)) = (
            recorded(&format!("hidden_states.{layer}")),
            recorded(&after),
        ) else {
            continue;
        };
        errors.push(relative_error(
            &y.values,
            &forward.layer(layer, &x.values, x.rows)?,
        ));
    }
    judge_layers(&errors, bounds, findings);
    Ok(errors)
}

/// The bound of gate 3 on a list of errors: none above the largest, more than half below the typical.
pub fn judge_layers(errors: &[f64], bounds: &Thresholds, findings: &mut Findings) {
    for (layer, &error) in errors.iter().enumerate() {
        if error > bounds.layer_error {
            let text = format!(
                "relative error {error:.2e}, expected at most {:.0e}",
                bounds.layer_error
            );
            findings.different(format!("model.layers.{layer}"), text);
        }
    }
    let typical = errors
        .iter()
        .filter(|&&e| e <= bounds.typical_layer_error)
        .count();
    if 2 * typical <= errors.len() && !errors.is_empty() {
        let (n, of, bound) = (
            errors.len() - typical,
            errors.len(),
            bounds.typical_layer_error,
        );
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let text = format!(
            "relative error above {bound:.0e} in {n} of {of} layers (largest {worst:.2e}), expected in few"
        );
        findings.different("model.layers", text);
    }
}

/// Gate 4, except greedy. Returns the divergence of all prompts, and that of the native reference.
///
/// # Errors
/// Those of the forward pass.
pub fn logits(
    golden: &Golden,
    forward: &dyn Forward,
    bounds: &Thresholds,
    findings: &mut Findings,
) -> Result<(Divergence, Option<Divergence>), FormatError> {
    let prompts: Vec<_> = golden
        .prompts
        .iter()
        .filter(|p| golden.logits.contains_key(&p.name))
        .collect();
    let sequences: Vec<&[u32]> = prompts.iter().map(|p| p.ids.as_slice()).collect();
    let found = forward.logits_of(&sequences)?;
    let (mut ours, mut native) = (Divergence::default(), Divergence::default());
    for (prompt, found) in prompts.iter().zip(&found) {
        let Some(reference) = golden.logits.get(&prompt.name) else {
            continue;
        };
        if reference.values.len() != found.len() {
            findings.different(
                &prompt.name,
                format!(
                    "expected {} logits, found {}",
                    reference.values.len(),
                    found.len()
                ),
            );
            continue;
        }
        ours.add(
            &prompt.name,
            Some(&prompt.ids),
            reference.cols,
            &reference.values,
            found,
        );
        if let Some(other) = golden.native.as_ref().and_then(|n| n.get(&prompt.name)) {
            native.add(
                &prompt.name,
                Some(&prompt.ids),
                reference.cols,
                &reference.values,
                &other.values,
            );
        }
    }
    judge_logits(&ours, bounds, findings);
    let native = (native.positions() > 0).then_some(native);
    if let Some(native) = &native
        && ours.kl_mean() >= native.kl_mean()
        && ours.rms() >= native.rms()
    {
        let text = format!(
            "mean divergence {:.2e}, expected less than that of the 16-bit reference, {:.2e}",
            ours.kl_mean(),
            native.kl_mean()
        );
        findings.different("logits", text);
    }
    Ok((ours, native))
}

/// The bounds of gate 4 that need no golden files.
pub fn judge_logits(divergence: &Divergence, bounds: &Thresholds, findings: &mut Findings) {
    let (kl_max, prompt, position) = divergence.kl_max();
    if divergence.kl_mean() > bounds.kl_mean {
        let text = format!(
            "mean divergence {:.2e}, expected at most {:.0e} (largest {kl_max:.2e} in prompt `{prompt}`, position {position})",
            divergence.kl_mean(),
            bounds.kl_mean
        );
        findings.different("logits", text);
    }
    if divergence.top1_agreement() < bounds.top1 {
        let text = format!(
            "same most likely token at {:.3} of the positions, expected {}",
            divergence.top1_agreement(),
            bounds.top1
        );
        findings.different("logits", text);
    }
    if divergence.flipped_margin() >= bounds.flip_margin {
        let text = format!(
            "another most likely token where the reference's margin is {:.3}, expected only below {}",
            divergence.flipped_margin(),
            bounds.flip_margin
        );
        findings.different("logits", text);
    }
}

/// Gate 4, greedy: ids equal up to the first position whose margin is small. The continuation is
/// forced, which makes the first mismatch the same as in free running. Returns `(equal, compared)`.
///
/// # Errors
/// Those of the forward pass.
pub fn greedy(
    golden: &Golden,
    forward: &dyn Forward,
    bounds: &Thresholds,
    findings: &mut Findings,
) -> Result<(usize, usize), FormatError> {
    let (mut equal, mut compared) = (0, 0);
    let mut entries: Vec<(&Greedy, usize, Vec<u32>)> = Vec::new();
    for entry in &golden.greedy {
        let Some(ids) = golden.ids(&entry.prompt).filter(|ids| !ids.is_empty()) else {
            continue;
        };
        let sure = entry
            .margins
            .iter()
            .position(|&m| m < bounds.flip_margin)
            .unwrap_or(entry.ids.len());
        if let Some(last) = sure.checked_sub(1) {
            let forced = ids.iter().chain(&entry.ids[..last]).copied().collect();
            entries.push((entry, ids.len(), forced));
        }
    }
    let sequences: Vec<&[u32]> = entries
        .iter()
        .map(|(_, _, forced)| forced.as_slice())
        .collect();
    for ((entry, prompt, forced), found) in entries.iter().zip(forward.logits_of(&sequences)?) {
        let vocab = found.len() / forced.len();
        let rows = found.chunks_exact(vocab.max(1)).skip(prompt - 1);
        for (step, (row, &want)) in rows.zip(&entry.ids).enumerate() {
            compared += 1;
            let (best, _) = top1(row);
            if best != want as usize {
                let margin = entry.margins[step];
                let text = format!(
                    "greedy step {step}: expected token {want} (margin {margin:.3}), found {best}"
                );
                findings.different(&entry.prompt, text);
                break;
            }
            equal += 1;
        }
    }
    Ok((equal, compared))
}

/// Gate 5. Returns the mean negative log likelihood of the golden stream: reference, found.
///
/// # Errors
/// Those of the forward pass.
pub fn stream(
    golden: &Golden,
    forward: &dyn Forward,
    bounds: &Thresholds,
    findings: &mut Findings,
) -> Result<Option<(f64, f64)>, FormatError> {
    let Some((ids, expected)) = &golden.stream else {
        return Ok(None);
    };
    if ids.len() < 2 {
        return Ok(None);
    }
    let logits = forward.logits_of(&[ids])?.pop().unwrap_or_default();
    let vocab = logits.len() / ids.len();
    let rows = logits.chunks_exact(vocab.max(1));
    let nll = rows.zip(&ids[1..]).map(|(row, &next)| {
        log_softmax(row)
            .get(next as usize)
            .map_or(f64::INFINITY, |p| -p)
    });
    let found = nll.sum::<f64>() / (ids.len() - 1) as f64;
    let shift = (found - expected).abs();
    // written so that NaN fails
    if !matches!(
        shift.partial_cmp(&bounds.nll_shift),
        Some(std::cmp::Ordering::Less | std::cmp::Ordering::Equal)
    ) {
        let text = format!(
            "mean nll {found:.4}, expected {expected:.4} within {}",
            bounds.nll_shift
        );
        findings.different("stream", text);
    }
    Ok(Some((*expected, found)))
}
