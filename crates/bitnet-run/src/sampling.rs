//! How tokens are drawn, from flags or from the settings of a caller.
//!
//! Invariant: without any setting the most likely token is taken; the ranges are those of the flags.

use crate::args;
use bitnet_cli::Failure;
use bitnet_model::{Sampler, SamplerOptions};

/// How tokens are drawn; greedy if nothing is set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: Option<f64>,
    /// Keeps the K most likely tokens; 0 keeps all.
    pub top_k: Option<usize>,
    /// Keeps the most likely tokens with this total probability.
    pub top_p: Option<f64>,
    /// Keeps tokens at least this times as likely as the best.
    pub min_p: Option<f64>,
    /// Seed of the generator.
    pub seed: Option<u64>,
}

impl Sampling {
    /// The sampler of these settings.
    ///
    /// # Errors
    /// `usage` for a value outside of the range that the flag has.
    pub fn sampler(&self) -> Result<Sampler, Failure> {
        let checked = |name: &str, value: Option<f64>, parse: fn(&str) -> Result<f32, String>| {
            let parsed = value.map(|value| parse(&value.to_string())).transpose();
            parsed.map_err(|expected| {
                let found = value.unwrap_or(f64::NAN);
                Failure::usage(format!("{name}: {expected}, found {found}"))
            })
        };
        let options = Drawing {
            temperature: checked("temperature", self.temperature, args::temperature)?,
            top_k: self.top_k,
            top_p: checked("top_p", self.top_p, args::share)?,
            min_p: checked("min_p", self.min_p, args::share)?,
            seed: self.seed,
        };
        Ok(options.sampler())
    }
}

/// Settings whose ranges were checked.
pub struct Drawing {
    pub temperature: Option<f32>,
    pub top_k: Option<usize>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub seed: Option<u64>,
}

impl Drawing {
    /// Greedy unless something is set.
    pub fn sampler(&self) -> Sampler {
        let sampled = self.temperature.is_some()
            || self.top_k.is_some()
            || self.top_p.is_some()
            || self.min_p.is_some()
            || self.seed.is_some();
        if !sampled {
            return Sampler::greedy();
        }
        let defaults = SamplerOptions::default();
        Sampler::new(SamplerOptions {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            seed: self.seed.unwrap_or(defaults.seed),
        })
    }
}
