//! What a short forward pass shows: numbers that explode, and scales that are their own inverse.
//!
//! Invariant: the network is run as the file says, on the fastest kernel; what is suspected is said with the
//! figures it rests on.

use super::finding::{Examination, Finding, Severity};
use crate::reference::prompts::built_in_prompts;
use bitnet_checkpoint::{Checkpoint, LinearSource, Slot};
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Model, TilesIn};

pub(super) const EXAMINATION: Examination = Examination {
    name: "forward",
    what: "activations of a short forward pass, direction of the scales",
    examine: |patient, findings| {
        let Some(checkpoint) = patient.checkpoint.filter(|_| patient.run) else {
            return;
        };
        let gains = gains(checkpoint);
        // what cannot be read cannot be run
        let exploded = match findings.iter().any(|f| f.severity == Severity::Error) {
            true => None,
            false => activations(checkpoint)
                .unwrap_or_else(|error| Some(Finding::unreadable("forward pass", &error))),
        };
        let inverted = gains.and_then(|gains| inverted(gains, exploded.is_some()));
        findings.extend(inverted);
        findings.extend(exploded);
    },
};

// Bounds that were chosen, not measured: a scale of 4 on 6,912 columns has a gain of about 260, one of 1e-4 on 256 columns
// a gain of about 1e-3.

/// Largest gain that is possible without an explosion.
const LARGEST_GAIN: f64 = 300.0;
/// Smallest gain that is.
const SMALLEST_GAIN: f64 = 1e-3;
/// Growth of the residual stream from the embedding on that is called an explosion.
const LARGEST_GROWTH: f64 = 1e5;

/// By how much less the inverted scales have to amplify to be suspected where activations explode.
const CLEARLY_LESS: f64 = 10.0;

/// What a linear makes of numbers of size 1, `scale * sqrt(columns * share of trits that are not 0)`, and what it would
/// with its scale inverted: of the linears that were read the one in the middle.
fn gains(checkpoint: &Checkpoint) -> Option<(f64, f64)> {
    let mut gains = Vec::new();
    for slot in checkpoint.sampled_linears() {
        let is_master = checkpoint.linear(slot).is_ok_and(LinearSource::is_master);
        let Ok(matrix) = checkpoint.ternary(slot) else {
            continue;
        };
        let mut scales: Vec<f32> = matrix.scales().as_slice().iter().map(|s| s.abs()).collect();
        scales.sort_by(f32::total_cmp);
        let scale = f64::from(scales.get(scales.len() / 2).copied().unwrap_or(0.0));
        let nonzero = matrix.trits().iter().filter(|t| **t != 0).count() as f64;
        let width = (nonzero / matrix.rows().max(1) as f64).sqrt();
        // scales of master weights are computed here, not stored
        if scale > 0.0 && width > 0.0 && !is_master {
            gains.push((scale * width, width / scale));
        }
    }
    gains.sort_by(|a, b| a.0.total_cmp(&b.0));
    gains.get(gains.len() / 2).copied()
}

/// Whether scales are stored the other way round than the configuration says: gains that no trained network has
/// while the inverse ones are possible, or activations that explode while the inverse gains are far smaller.
fn inverted((gain, inverse): (f64, f64), exploded: bool) -> Option<Finding> {
    let possible = |gain: f64| (SMALLEST_GAIN..=LARGEST_GAIN).contains(&gain);
    let suspected = match exploded {
        true => inverse * CLEARLY_LESS < gain,
        false => !possible(gain) && possible(inverse),
    };
    suspected.then(|| {
        let what = format!(
            "the linear in the middle of those read multiplies what it is given by {gain:.2e}, and by {inverse:.2e} with its \
             scale inverted{}",
            if exploded { "; activations explode" } else { "" }
        );
        let remedy = "the scales were stored as 1/s: in config.json, quantization_config.linear_class says which way \
                      (autobitlinear multiplies, bitlinear divides); a GGUF file has to be made again from its source";
        Finding::error("inverted-scale", "weight_scale", what, remedy)
    })
}

/// Where a short forward pass explodes, if it does.
fn activations(checkpoint: &Checkpoint) -> Result<Option<Finding>, FormatError> {
    let options = LoadOptions {
        backend: Backend::best(),
        tiles: TilesIn::FileOrMemory,
        threads: rayon::current_num_threads(),
        ..LoadOptions::default()
    };
    let model = Model::load(checkpoint, &options)?;
    let prompts = built_in_prompts(model.config());
    let mut worst: Option<(usize, f64)> = None;
    for prompt in prompts.iter().filter(|p| p.ids.len() > 1) {
        let trace = model.trace(&prompt.ids)?;
        let sizes: Vec<f64> = trace.iter().map(|t| root_mean_square(t)).collect();
        let layers = model.config().num_hidden_layers;
        let begin = sizes.first().copied().unwrap_or(0.0);
        for (layer, &size) in sizes.iter().enumerate().take(layers + 1) {
            let growth = if size.is_finite() {
                size / begin.max(f64::MIN_POSITIVE)
            } else {
                f64::INFINITY
            };
            if growth > LARGEST_GROWTH && worst.is_none_or(|w| layer < w.0) {
                worst = Some((layer, growth));
            }
        }
    }
    Ok(worst.map(|(layer, growth)| {
        let place = match layer.checked_sub(1) {
            Some(layer) => format!("model.layers.{layer}"),
            None => Slot::TokenEmbeddings.to_string(),
        };
        let what = match growth.is_finite() {
            true => format!("behind it the hidden state is {growth:.1e} times as large as the embedding"),
            false => "behind it the hidden state is not finite".to_owned(),
        };
        let remedy = "look at scales and norms up to there: one of them is not what the model was trained with";
        Finding::error("exploding-activations", place, what, remedy)
    }))
}

fn root_mean_square(values: &[f32]) -> f64 {
    let squares: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let size = (squares / values.len().max(1) as f64).sqrt();
    if size.is_nan() { f64::INFINITY } else { size }
}
