//! `llama3` scaling of GGUF files, which say it by one divisor per rotary frequency.
//!
//! Invariant: divisors that are not those of a scaling this program computes are refused, never ignored.

use crate::config::{Config, RopeScaling};
use bitnet_formats::{ErrorCode, FormatError, TensorInfo};

/// Divisors of the rotary frequencies, `(head_dim / 2,)` f32: how llama.cpp stores llama3 scaling.
pub(crate) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// The divisors of llama3 scaling, as llama.cpp's converter computes them; `None` without it.
pub(crate) fn rope_frequency_factors(config: &Config) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_max_position_embeddings,
    } = config.rope.scaling
    else {
        return None;
    };
    let original = original_max_position_embeddings as f64;
    let divisor = |i: usize| {
        let exponent = 2.0 * i as f64 / config.rotary_dim as f64;
        let wavelength = 2.0 * std::f64::consts::PI * config.rope.theta.powf(exponent);
        if wavelength < original / high_freq_factor {
            1.0
        } else if wavelength > original / low_freq_factor {
            factor
        } else {
            let smooth =
                (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some(
        (0..config.rotary_dim / 2)
            .map(|i| divisor(i) as f32)
            .collect(),
    )
}

/// Whether a divisor of a file is the one of the configuration: other writers compute them in f32.
fn is_divisor(found: f32, ours: f32) -> bool {
    (found - ours).abs() <= 1e-4 * ours.abs()
}

/// Of the divisors of a file, as f32, the bits without which they would pass as well: one mask per byte.
pub(crate) fn unread_rope_frequencies(config: &Config, values: &[f32]) -> Vec<u8> {
    let ours = rope_frequency_factors(config).unwrap_or_else(|| vec![1.0; config.rotary_dim / 2]);
    let mask = |(found, ours): (&f32, &f32)| {
        let passes = |bit: &u32| is_divisor(f32::from_bits(found.to_bits() ^ bit), *ours);
        let bits = (0..32).map(|n| 1u32.rotate_left(n)).filter(passes);
        bits.fold(0, |a, b| a | b).to_le_bytes()
    };
    values.iter().zip(&ours).flat_map(mask).collect()
}

/// Original context lengths of published llama3 scaling: Llama 3.1 to 3.3 and their fine-tunes first.
const ORIGINAL_CONTEXTS: [usize; 6] = [8_192, 4_096, 2_048, 16_384, 32_768, 65_536];

/// Sets `llama3` scaling where a file says it by its divisors alone, as llama.cpp's converter writes it.
///
/// The factor is the largest divisor. `low_freq_factor` 1 and `high_freq_factor` 4 and the original context are those
/// of the published rule; they count only if every divisor of the file is the one that they give.
pub(crate) fn infer_rope_scaling(config: &mut Config, divisors: &[f32]) {
    let ones = divisors.iter().all(|d| is_divisor(*d, 1.0));
    if config.rope.scaling != RopeScaling::None || ones {
        return;
    }
    // writers compute in f32: a factor that is a whole number within their error is that number
    let largest = f64::from(divisors.iter().copied().fold(1.0, f32::max));
    let whole = largest.round();
    let factor = match is_divisor(largest as f32, whole as f32) {
        true => whole,
        false => largest,
    };
    for original_max_position_embeddings in ORIGINAL_CONTEXTS {
        let mut candidate = config.clone();
        candidate.rope.scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings,
        };
        let ours = rope_frequency_factors(&candidate).unwrap_or_default();
        if ours.len() == divisors.len()
            && divisors.iter().zip(&ours).all(|(a, b)| is_divisor(*a, *b))
        {
            *config = candidate;
            return;
        }
    }
}

/// Whether the divisors in a file are those of the configuration.
pub(crate) fn check_rope_frequencies(
    config: &Config,
    info: &TensorInfo,
    values: &[f32],
) -> Result<(), FormatError> {
    let ours = rope_frequency_factors(config).unwrap_or_else(|| vec![1.0; config.rotary_dim / 2]);
    let place = |e: FormatError| e.in_tensor(&info.name);
    let differ = |(_, (found, expected)): &(usize, (&f32, &f32))| !is_divisor(**found, **expected);
    let Some((i, (found, expected))) = values.iter().zip(&ours).enumerate().find(differ) else {
        return Ok(());
    };
    let message = match config.rope.scaling {
        RopeScaling::None => format!(
            "divisor {i} of the rotary frequencies is {found}; the divisors are neither all 1 nor those of llama3 scaling \
             (factor = largest divisor, low_freq_factor 1, high_freq_factor 4), and this program computes no others"
        ),
        _ => format!(
            "divisor {i}: expected {expected} by the rope scaling of the metadata, found {found}"
        ),
    };
    let hint = "convert the original checkpoint: its config.json says which rope scaling the divisors were made from";
    Err(place(
        FormatError::new(ErrorCode::UnsupportedConfig, message).hint(hint),
    ))
}
