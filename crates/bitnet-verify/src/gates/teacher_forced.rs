//! Gates 2 and 3: one linear, and one layer, from its recorded input.

use super::{Answer, Thresholds, Violation};
use crate::divergence::relative_error;
use crate::golden::{Golden, Recorded};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::{LayerSlot, Slot};

/// Gate 2, measured: the relative error of each linear of layer 0 whose input was recorded.
///
/// # Errors
/// Those of the implementation; an input whose output was not recorded.
pub fn linears(
    golden: &Golden,
    mut linear: impl FnMut(Slot, &[f32], usize) -> Answer,
) -> Result<Vec<(Slot, f64)>, FormatError> {
    let mut errors = Vec::new();
    for role in LayerSlot::LINEARS {
        let name = |end| format!("layer0.{}.{end}", role.canonical());
        // a linear with a norm of its own: what counts is the norm's output
        let input = [name("rms_norm.out"), name("in")];
        let Some(x) = input.iter().find_map(|name| golden.trace.get(name)) else {
            continue;
        };
        let y = recorded(golden, &name("out"))?;
        let slot = Slot::Layer(0, role);
        let found = linear(slot, &x.values, x.rows)?;
        errors.push((slot, relative_error(&y.values, &found)));
    }
    Ok(errors)
}

/// Gate 2, judged.
pub fn linear_violations(errors: &[(Slot, f64)], bounds: &Thresholds) -> Vec<Violation> {
    let most = bounds.linear_error;
    let violation = |(slot, error): &(Slot, f64)| {
        let what = format!("relative error {error:.2e}, expected at most {most:.0e}");
        Violation::new(2, slot.to_string(), what)
    };
    let outside = errors.iter().filter(|(_, error)| *error > most);
    outside.map(violation).collect()
}

/// Gate 3, measured: the relative error of each layer, from the recorded hidden state in front of it
/// to the one behind it.
///
/// # Errors
/// Those of the implementation; a layer whose output was not recorded.
pub fn layers(
    golden: &Golden,
    mut layer: impl FnMut(usize, &[f32], usize) -> Answer,
) -> Result<Vec<f64>, FormatError> {
    let hidden = |i: usize| format!("hidden_states.{i}");
    let states = (0..)
        .take_while(|&i| golden.trace.contains_key(&hidden(i)))
        .count();
    let count = states.saturating_sub(1);
    let mut errors = Vec::with_capacity(count);
    for i in 0..count {
        let x = recorded(golden, &hidden(i))?;
        // the record's last hidden state is after the final norm; what the layer itself left is the
        // norm's input
        let y = match i + 1 == count {
            true => recorded(golden, "final_norm.in")?,
            false => recorded(golden, &hidden(i + 1))?,
        };
        errors.push(relative_error(&y.values, &layer(i, &x.values, x.rows)?));
    }
    Ok(errors)
}

/// Gate 3, judged: no error above the largest bound, more than half within the typical one.
pub fn layer_violations(errors: &[f64], bounds: &Thresholds) -> Vec<Violation> {
    let mut all = largest_layer_violations(errors, bounds);
    all.extend(typical_layer_violation(errors, bounds));
    all
}

/// The part of gate 3 that every layer has to hold: the largest bound.
pub fn largest_layer_violations(errors: &[f64], bounds: &Thresholds) -> Vec<Violation> {
    let most = bounds.layer_error;
    let above = errors
        .iter()
        .enumerate()
        .filter(|(_, error)| **error > most);
    above
        .map(|(layer, error)| {
            let what = format!("relative error {error:.2e}, expected at most {most:.0e}");
            Violation::new(3, format!("model.layers.{layer}"), what)
        })
        .collect()
}

/// The part of gate 3 that most layers have to hold: the typical bound. One activation that rounds
/// the other way takes a layer out of it, so two or three layers say little: whoever has several
/// models hands in the layers of all of them.
pub fn typical_layer_violation(errors: &[f64], bounds: &Thresholds) -> Option<Violation> {
    let typical = bounds.typical_layer_error;
    let (of, within) = (
        errors.len(),
        errors.iter().filter(|&&e| e <= typical).count(),
    );
    (2 * within <= of && of > 0).then(|| {
        let worst = errors.iter().copied().fold(0.0, f64::max);
        let what = format!(
            "relative error above {typical:.0e} in {} of {of} layers (largest {worst:.2e}), expected in few",
            of - within
        );
        Violation::new(3, "model.layers", what)
    })
}

fn recorded<'a>(golden: &'a Golden, name: &str) -> Result<&'a Recorded, FormatError> {
    golden.trace.get(name).ok_or_else(|| {
        FormatError::new(ErrorCode::MissingTensor, "not in the golden trace").in_tensor(name)
    })
}
