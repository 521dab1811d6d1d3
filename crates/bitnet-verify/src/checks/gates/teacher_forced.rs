//! Gates 2 and 3: one linear, and one layer, from its recorded input.

use super::answer::Answer;
use crate::reference::divergence::relative_error;
use crate::reference::golden::{Golden, Recorded};
use crate::reference::thresholds::Thresholds;
use crate::verdict::Difference;
use bitnet_checkpoint::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use std::collections::BTreeSet;

/// Gate 2, measured: the relative error of each linear whose input was recorded.
///
/// # Errors
/// Those of the implementation; an input whose output was not recorded.
pub fn linears(
    golden: &Golden,
    mut linear: impl FnMut(Slot, &[f32], usize) -> Answer,
) -> Result<Vec<(Slot, f64)>, FormatError> {
    let mut errors = Vec::new();
    let number = |name: &String| {
        let layer = name.strip_prefix("layer")?.split('.').next()?;
        layer.parse::<usize>().ok()
    };
    let layers: BTreeSet<usize> = golden.trace.keys().filter_map(number).collect();
    let roles = layers
        .iter()
        .flat_map(|layer| LayerSlot::LINEARS.map(|role| (*layer, role)));
    for (layer, role) in roles {
        let name = |end| format!("layer{layer}.{}.{end}", role.canonical());
        // a linear with a norm of its own: what counts is the norm's output
        let input = [name("rms_norm.out"), name("in")];
        let Some(x) = input.iter().find_map(|name| golden.trace.get(name)) else {
            continue;
        };
        let y = recorded(golden, &name("out"))?;
        let slot = Slot::Layer(layer, role);
        let found = linear(slot, &x.values, x.rows)?;
        errors.push((slot, relative_error(&y.values, &found)));
    }
    Ok(errors)
}

/// Gate 2, judged.
pub fn linear_violations(errors: &[(Slot, f64)], bounds: &Thresholds) -> Vec<Difference> {
    let most = bounds.linear_error;
    let violation = |(slot, error): &(Slot, f64)| {
        let what = format!("relative error {error:.2e}, expected at most {most:.0e}");
        Difference::new(slot.to_string(), what)
    };
    let outside = errors.iter().filter(|(_, error)| *error > most);
    outside.map(violation).collect()
}

/// Gate 3, measured: how far each layer departs, from the hidden state in front of it to the one
/// behind it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerErrors {
    /// Relative error of each layer, in order.
    pub layers: Vec<f64>,
    /// Relative error of each token behind each layer. One activation that rounds the other way takes
    /// its own token out of the typical bound; what is wired wrongly takes most of them.
    pub tokens: Vec<f64>,
}

/// Gate 3, measured on the recorded hidden states.
///
/// # Errors
/// Those of the implementation; a layer whose output was not recorded.
pub fn layers(
    golden: &Golden,
    mut layer: impl FnMut(usize, &[f32], usize) -> Answer,
) -> Result<LayerErrors, FormatError> {
    let hidden = |i: usize| format!("hidden_states.{i}");
    let states = (0..)
        .take_while(|&i| golden.trace.contains_key(&hidden(i)))
        .count();
    let count = states.saturating_sub(1);
    let mut errors = LayerErrors::default();
    for i in 0..count {
        let x = recorded(golden, &hidden(i))?;
        // the record's last hidden state is after the final norm; what the layer itself left is the
        // norm's input
        let y = match i + 1 == count {
            true => recorded(golden, "final_norm.in")?,
            false => recorded(golden, &hidden(i + 1))?,
        };
        let found = layer(i, &x.values, x.rows)?;
        errors.push(
            y.values.len() / y.rows.max(1),
            [(&y.values[..], &found[..])],
        );
    }
    Ok(errors)
}

impl LayerErrors {
    /// Adds a layer: what it should leave and what it left in each prompt, `(tokens, hidden_size)`. The
    /// layer's error is the largest of a prompt.
    pub fn push<'a>(
        &mut self,
        hidden_size: usize,
        prompts: impl IntoIterator<Item = (&'a [f32], &'a [f32])>,
    ) {
        let mut worst = 0.0f64;
        for (reference, found) in prompts {
            worst = worst.max(relative_error(reference, found));
            let tokens = reference.chunks(hidden_size.max(1));
            let tokens = tokens.zip(found.chunks(hidden_size.max(1)));
            self.tokens
                .extend(tokens.map(|(r, f)| relative_error(r, f)));
        }
        self.layers.push(worst);
    }

    /// Of the layer that departs most; 0 without any.
    pub fn worst(&self) -> f64 {
        self.layers.iter().copied().fold(0.0, f64::max)
    }

    /// Gate 3, judged: no layer above the largest bound, more than half of the tokens within
    /// the typical one.
    pub fn violations(&self, bounds: &Thresholds) -> Vec<Difference> {
        let most = bounds.layer_error;
        let above = self.layers.iter().enumerate().filter(|(_, e)| **e > most);
        let mut all: Vec<Difference> = above
            .map(|(layer, error)| {
                let what = format!("relative error {error:.2e}, expected at most {most:.0e}");
                Difference::new(format!("model.layers.{layer}"), what)
            })
            .collect();
        let typical = bounds.typical_layer_error;
        let (of, within) = (
            self.tokens.len(),
            self.tokens.iter().filter(|&&e| e <= typical).count(),
        );
        if 2 * within <= of && of > 0 {
            let what = format!(
                "relative error above {typical:.0e} of {} of {of} tokens behind layers (layers at most {:.2e}), expected of few",
                of - within,
                self.worst()
            );
            all.push(Difference::new("model.layers", what));
        }
        all
    }
}

fn recorded<'a>(golden: &'a Golden, name: &str) -> Result<&'a Recorded, FormatError> {
    golden.trace.get(name).ok_or_else(|| {
        FormatError::new(ErrorCode::MissingTensor, "not in the golden trace").in_tensor(name)
    })
}
