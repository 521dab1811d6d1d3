//! Rotary position embedding of the oracle, its tables made here.
//!
//! Invariant: frequencies and angles are those of transformers' `modeling_rope_utils.py`, sines and cosines in
//! `f64`.

use bitnet_checkpoint::{Rope, RopeScaling};
use candle_core::{D, Device, Result, Tensor};
use std::f64::consts::PI;

/// Half-split rotation; `x` is `(n, tokens, width)`, the tables `(1, tokens, width / 2)`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (low, high) = (
        x.narrow(D::Minus1, 0, half)?,
        x.narrow(D::Minus1, half, half)?,
    );
    let turned_low = (low.broadcast_mul(cos)? - high.broadcast_mul(sin)?)?;
    let turned_high = (high.broadcast_mul(cos)? + low.broadcast_mul(sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

/// `cos` and `sin` of positions `0..tokens`, `(1, tokens, head_dim / 2)` each. `long_rope`: divisors of the
/// frequencies, and what the tables are multiplied by.
pub(super) fn rotary_tables(
    rope: &Rope,
    long_rope: Option<(&[f32], f32)>,
    head_dim: usize,
    tokens: usize,
) -> Result<(Tensor, Tensor)> {
    let mut frequencies = inverse_frequencies(rope, head_dim);
    if let Some((divisors, _)) = long_rope {
        let divided = frequencies.iter().zip(divisors).map(|(f, d)| f / d);
        frequencies = divided.collect();
    }
    let mut angles = Vec::with_capacity(tokens * frequencies.len());
    for position in 0..tokens {
        // the angle is rounded to f32, as transformers does; its sine is not
        angles.extend(frequencies.iter().map(|f| f64::from(position as f32 * f)));
    }
    let shape = (1, tokens, frequencies.len());
    let scale = match rope.scaling {
        RopeScaling::Yarn(yarn) => yarn.attention_factor,
        _ => long_rope.map_or(1.0, |(_, factor)| f64::from(factor)),
    };
    let table = |f: fn(f64) -> f64| {
        Tensor::from_vec(
            angles
                .iter()
                .map(|&a| (f(a) * scale) as f32)
                .collect::<Vec<_>>(),
            shape,
            &Device::Cpu,
        )
    };
    Ok((table(f64::cos)?, table(f64::sin)?))
}

/// `theta ^ (-2 i / head_dim)`, scaled as transformers' `modeling_rope_utils.py` does.
fn inverse_frequencies(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let plain = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        1.0 / rope.theta.powf(f64::from(exponent)) as f32
    });
    match rope.scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor as f32).collect(),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let context = original_max_position_embeddings as f64;
            let scaled = plain.map(f64::from).map(|f| {
                let wavelength = 2.0 * PI / f;
                if wavelength > context / low_freq_factor {
                    f / factor
                } else if wavelength < context / high_freq_factor {
                    f
                } else {
                    let smooth = (context / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            scaled.map(|f| f as f32).collect()
        }
        RopeScaling::Yarn(yarn) => {
            let context = yarn.original_max_position_embeddings as f64;
            let half = head_dim as f64 / 2.0;
            // i where theta^(i / half) 2 pi rotations = context
            let turning =
                |rotations: f64| half * (context / (2.0 * PI * rotations)).ln() / rope.theta.ln();
            let first = turning(yarn.beta_fast).floor().max(0.0);
            let last = turning(yarn.beta_slow).ceil();
            let last = last.min(head_dim as f64 - 1.0);
            let width = if last == first { 0.001 } else { last - first };
            let scaled = plain.map(f64::from).enumerate().map(|(i, f)| {
                let divided = ((i as f64 - first) / width).clamp(0.0, 1.0);
                f / yarn.factor * divided + f * (1.0 - divided)
            });
            scaled.map(|f| f as f32).collect()
        }
    }
}

/// Rotation of neighbours, as GGUF's `llama` does it on rows in its own order.
pub(super) fn rotate_neighbours(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (n, tokens, width) = x.dims3()?;
    let pairs = x.reshape((n, tokens, width / 2, 2))?;
    let even = pairs.narrow(3, 0, 1)?.squeeze(3)?;
    let odd = pairs.narrow(3, 1, 1)?.squeeze(3)?;
    let turned_even = (even.broadcast_mul(cos)? - odd.broadcast_mul(sin)?)?;
    let turned_odd = (odd.broadcast_mul(cos)? + even.broadcast_mul(sin)?)?;
    Tensor::stack(&[turned_even, turned_odd], D::Minus1)?.reshape((n, tokens, width))
}
