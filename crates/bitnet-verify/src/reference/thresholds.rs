//! How close to a record an implementation has to come.
//!
//! Invariant: these are bounds on figures of other people's arithmetic. Trits, scales and dense values have none.

/// Bounds of the gates; the defaults are those of `formats/numerics.md`.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    /// Gate 2: relative error of a linear from its recorded input.
    pub linear_error: f64,
    /// Gate 3: relative error that most tokens stay below, each behind each layer.
    pub typical_layer_error: f64,
    /// Gate 3: relative error that every layer stays below.
    pub layer_error: f64,
    /// Gate 4 of embedding models: largest 1 - cosine of a vector. Flipped activations, nothing else, take
    /// correct implementations apart: by up to 2e-4 on the fixtures. With it no element of a vector of
    /// length 1 is off by more than `sqrt(2 * bound)`.
    pub embedding_distance: f64,
    /// Gate 4: mean divergence, nats.
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
            embedding_distance: 1e-3,
            kl_mean: 2e-3,
            top1: 0.96,
            flip_margin: 0.3,
            nll_shift: 0.02,
        }
    }
}
