//! Log-probabilities of tokens.
//!
//! Invariant: `ln softmax(logits)` in f64 with `libm`'s functions, summed in the order of the tokens: the same bits
//! everywhere for the same logits.

use crate::sampler;

/// The distribution that logits of shape `(vocab,)` mean.
#[derive(Debug, Clone, Copy)]
pub struct Likelihoods<'a> {
    logits: &'a [f32],
    max: f64,
    ln_total: f64,
}

impl<'a> Likelihoods<'a> {
    /// The distribution of a row of logits.
    pub fn new(logits: &'a [f32]) -> Self {
        let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v)));
        let total: f64 = logits.iter().map(|&v| libm::exp(f64::from(v) - max)).sum();
        Self {
            logits,
            max,
            ln_total: libm::log(total),
        }
    }

    /// The natural logarithm of a token's probability.
    pub fn ln(&self, token: u32) -> f64 {
        match self.logits.get(token as usize) {
            Some(&logit) => f64::from(logit) - self.max - self.ln_total,
            None => f64::NEG_INFINITY,
        }
    }

    /// The `k` likeliest tokens with their log-probabilities, the likeliest first, of equal ones the lower token first.
    pub fn top(&self, k: usize) -> Vec<(u32, f64)> {
        if k == 0 {
            return Vec::new();
        }
        let top = sampler::top(self.logits, k.min(self.logits.len()));
        top.into_iter().map(|(id, _)| (id, self.ln(id))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_add_up_and_are_in_order() {
        let logits = [1.0, 3.0, 3.0, -2.0];
        let likelihoods = Likelihoods::new(&logits);
        let total: f64 = (0..4).map(|id| likelihoods.ln(id).exp()).sum();
        assert!((total - 1.0).abs() < 1e-12);
        let top = likelihoods.top(3);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(top[0].1, likelihoods.ln(1));
        assert_eq!(likelihoods.ln(4), f64::NEG_INFINITY);
        assert!(likelihoods.top(0).is_empty());
        let even = Likelihoods::new(&[0.0, 0.0]);
        assert_eq!(even.ln(0), -std::f64::consts::LN_2);
    }
}
