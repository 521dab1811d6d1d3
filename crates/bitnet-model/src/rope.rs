//! Rotary position embedding: the table of cosines and sines.
//!
//! Invariant: an entry depends on its position and the configuration alone. `inv_freq` and the angle
//! are f32 as in transformers; sine and cosine are those of that f32 angle, taken in f64 by the
//! `libm` crate and rounded once, so no platform's libm is in the answer (`formats/numerics.md`).

use bitnet_checkpoint::{Config, Rope, RopeScaling, Yarn};
use std::f64::consts::PI;

/// Cosines and sines of the positions used so far, by whichever sequence.
#[derive(Debug, Clone)]
pub(crate) struct RopeTable {
    inv_freq: Vec<f32>, // (head_dim / 2,)
    factor: f32,        // of every entry; 1 but for YaRN
    cos: Vec<f32>,      // (positions, rotary_dim / 2)
    sin: Vec<f32>,      // (positions, rotary_dim / 2)
}

impl RopeTable {
    /// A table without positions.
    fn new(rope: &Rope, head_dim: usize) -> Self {
        Self {
            inv_freq: inv_freq(rope, head_dim),
            factor: match rope.scaling {
                RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
                _ => 1.0,
            },
            cos: Vec::new(),
            sin: Vec::new(),
        }
    }

    /// Divides the frequencies of a table without positions, which are not scaled: `1 / (divisor power)`.
    fn divide(&mut self, divisors: &[f32], factor: f32) {
        for (frequency, divisor) in self.inv_freq.iter_mut().zip(divisors) {
            *frequency /= divisor;
        }
        self.factor = factor;
    }

    /// How many positions are there.
    fn positions(&self) -> usize {
        self.cos.len() / self.inv_freq.len()
    }

    /// Makes sure that positions below `positions` are there.
    fn extend_to(&mut self, positions: usize) {
        for position in self.positions()..positions {
            for inv_freq in &self.inv_freq {
                let angle = f64::from(position as f32 * inv_freq);
                self.cos.push(libm::cos(angle) as f32 * self.factor);
                self.sin.push(libm::sin(angle) as f32 * self.factor);
            }
        }
    }

    /// `(cos, sin)` of one position, `(rotary_dim / 2,)` each.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.inv_freq.len();
        let range = position * half..(position + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// The tables of a network: of its layers with a window, and of the others.
#[derive(Debug)]
pub(crate) struct Ropes {
    full: RopeTable,
    sliding: Option<RopeTable>,
}

impl Ropes {
    /// Tables without positions.
    pub(crate) fn new(config: &Config) -> Self {
        let table = |rope: &Rope| RopeTable::new(rope, config.rotary_dim());
        let mut full = table(&config.rope);
        if let (Some(divisors), Some(long_rope)) = (config.rope_divisors(), &config.long_rope) {
            full.divide(divisors, long_rope.attention_factor);
        }
        Self {
            full,
            sliding: config.sliding_rope().as_ref().map(table),
        }
    }

    /// Whether positions below `positions` are there.
    pub(crate) fn reach(&self, positions: usize) -> bool {
        self.full.positions() >= positions
    }

    /// Makes sure that positions below `positions` are there.
    pub(crate) fn extend_to(&mut self, positions: usize) {
        self.full.extend_to(positions);
        if let Some(sliding) = &mut self.sliding {
            sliding.extend_to(positions);
        }
    }

    /// That of layers without a window.
    pub(crate) fn full(&self) -> &RopeTable {
        &self.full
    }

    /// That of layers with a window.
    pub(crate) fn sliding(&self) -> &RopeTable {
        self.sliding.as_ref().unwrap_or(&self.full)
    }
}

/// `1 / theta^(2i / head_dim)`, scaled as transformers' `modeling_rope_utils.py` does, in f32.
pub(crate) fn inv_freq(rope: &Rope, head_dim: usize) -> Vec<f32> {
    let theta = f64::from(rope.theta as f32);
    let powers = (0..head_dim / 2).map(|i| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        libm::pow(theta, f64::from(exponent)) as f32
    });
    match rope.scaling {
        RopeScaling::Yarn(yarn) => {
            let (low, high) = yarn_range(&yarn, theta, head_dim);
            let between =
                |(i, power)| yarn_frequency(&yarn, power, (i as f32 - low) / (high - low));
            powers.enumerate().map(between).collect()
        }
        scaling => powers.map(|p| scaled(1.0 / p, &scaling)).collect(),
    }
}

/// The dimensions between which YaRN's frequencies go over from kept to divided.
fn yarn_range(yarn: &Yarn, theta: f64, head_dim: usize) -> (f32, f32) {
    let context = yarn.original_max_position_embeddings as f64;
    // the dimension whose wave turns so many times in the original context
    let dimension = |rotations: f64| {
        head_dim as f64 * libm::log(context / (rotations * 2.0 * PI)) / (2.0 * libm::log(theta))
    };
    let low = dimension(yarn.beta_fast).floor().max(0.0) as f32;
    let high = dimension(yarn.beta_slow).ceil().min((head_dim - 1) as f64) as f32;
    // transformers' way round the division by zero
    (low, if high == low { high + 0.001 } else { high })
}

/// One frequency, `ramp` of the way from kept to divided.
fn yarn_frequency(yarn: &Yarn, power: f32, ramp: f32) -> f32 {
    let kept = 1.0 - ramp.clamp(0.0, 1.0);
    let (extrapolated, interpolated) = (1.0 / power, 1.0 / (yarn.factor as f32 * power));
    interpolated * (1.0 - kept) + extrapolated * kept
}

fn scaled(inv_freq: f32, scaling: &RopeScaling) -> f32 {
    match *scaling {
        RopeScaling::None | RopeScaling::Yarn(_) => inv_freq,
        RopeScaling::Linear { factor } => inv_freq / factor as f32,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let old = original_max_position_embeddings as f64;
            let wavelength = (2.0 * PI) as f32 / inv_freq;
            if wavelength > (old / low_freq_factor) as f32 {
                inv_freq / factor as f32
            } else if wavelength < (old / high_freq_factor) as f32 {
                inv_freq
            } else {
                let smooth = (old as f32 / wavelength - low_freq_factor as f32)
                    / (high_freq_factor - low_freq_factor) as f32;
                (1.0 - smooth) * inv_freq / factor as f32 + smooth * inv_freq
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_those_of_the_rule() {
        let rope = Rope {
            theta: 500_000.0,
            scaling: RopeScaling::None,
        };
        let plain = inv_freq(&rope, 128);
        assert_eq!(plain[0], 1.0);
        assert!((f64::from(plain[32]) * 500_000f64.sqrt() - 1.0).abs() < 1e-7);
        let linear = Rope {
            scaling: RopeScaling::Linear { factor: 4.0 },
            ..rope
        };
        assert!(
            inv_freq(&linear, 128)
                .iter()
                .zip(&plain)
                .all(|(a, b)| *a == b / 4.0)
        );
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let plain = inv_freq(
            &Rope {
                theta: 500_000.0,
                scaling: RopeScaling::None,
            },
            128,
        );
        let got = inv_freq(
            &Rope {
                theta: 500_000.0,
                scaling,
            },
            128,
        );
        assert_eq!(got[0], plain[0]);
        assert_eq!(got[63], plain[63] / 8.0);
        assert!(
            got.iter()
                .zip(&plain)
                .all(|(g, p)| *g <= *p && *g >= *p / 8.0)
        );
        // the band between is monotonic: no wave is longer than its longer neighbour
        assert!(got.windows(2).all(|w| w[0] > w[1]));
    }

    #[test]
    fn yarn_keeps_short_waves_divides_long_ones_and_scales_the_table() {
        let yarn = Yarn {
            factor: 4.0,
            original_max_position_embeddings: 16384,
            beta_fast: Yarn::BETA_FAST,
            beta_slow: Yarn::BETA_SLOW,
            attention_factor: f64::from(Yarn::attention_factor_of(4.0, 1.0) as f32),
        };
        let theta = 1_000_000.0;
        let plain = inv_freq(
            &Rope {
                theta,
                scaling: RopeScaling::None,
            },
            128,
        );
        let rope = Rope {
            theta,
            scaling: RopeScaling::Yarn(yarn),
        };
        let got = inv_freq(&rope, 128);
        // 128 ln(16384 / (64 pi)) / (2 ln 1e6) = 20.4, 128 ln(16384 / (2 pi)) / (2 ln 1e6) = 36.4
        assert_eq!(yarn_range(&yarn, theta, 128), (20.0, 37.0));
        assert_eq!(got[..21], plain[..21]);
        assert!(got[37..].iter().zip(&plain[37..]).all(|(g, p)| {
            let divided = p / 4.0;
            (g - divided).abs() <= 1e-7 * divided
        }));
        assert!(got.windows(2).all(|w| w[0] > w[1]));
        let mut table = RopeTable::new(&rope, 128);
        table.extend_to(1);
        assert_eq!(table.at(0).0, [1.138_629_4; 64]);
        assert_eq!(table.at(0).1, [0.0; 64]);
    }

    #[test]
    fn the_table_does_not_depend_on_how_it_grew() {
        let rope = Rope {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        };
        let (mut once, mut twice) = (RopeTable::new(&rope, 8), RopeTable::new(&rope, 8));
        once.extend_to(9);
        twice.extend_to(4);
        twice.extend_to(2);
        twice.extend_to(9);
        assert_eq!(once.at(8), twice.at(8));
        assert_eq!(once.at(0), (&[1.0; 4][..], &[0.0; 4][..]));
    }
}
