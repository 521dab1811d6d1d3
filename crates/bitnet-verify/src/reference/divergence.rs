//! How far two sets of logits are apart, in the figures that people of this field know.
//!
//! Invariant: the first operand is the reference. Everything is accumulated in `f64`, position by
//! position, and a logit that is not finite makes the figures infinite, never small.

mod spread;

pub use spread::Spread;

/// Most likely tokens whose set is compared.
const TOP: usize = 5;

/// Logits of one position or sequence against a reference; build with [`Divergence::add`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Divergence {
    kl: Vec<(f64, Place)>,
    same_top1: usize,
    same_top5: usize,
    /// Positions with a logit that is off by more than [`REACHED`].
    reached: usize,
    max_abs: f64,
    /// Logits that are not the same bits.
    other_bits: usize,
    squared_error: f64,
    /// Largest margin between the reference's two best tokens where ours chose another.
    flipped_margin: f64,
    logit_sum: f64,
    logit_squares: f64,
    logits: usize,
    /// Negative log likelihood of the token that follows, reference and found, where one follows.
    nll: Vec<(f64, f64)>,
    names: Vec<String>,
}

/// A difference of logits that rounding alone does not explain: a flipped activation has reached the
/// position.
const REACHED: f64 = 1e-4;

/// A position of a prompt: index into the names, and token.
type Place = (usize, usize);

impl Divergence {
    /// Adds one sequence: `reference` and `found` are `(tokens, vocab)`; with `ids`, `(tokens,)`, the
    /// likelihood of each next token is compared as well.
    pub fn add(
        &mut self,
        name: &str,
        ids: Option<&[u32]>,
        vocab: usize,
        reference: &[f32],
        found: &[f32],
    ) {
        let sequence = self.names.len();
        self.names.push(name.to_owned());
        let rows = reference
            .chunks_exact(vocab.max(1))
            .zip(found.chunks_exact(vocab.max(1)));
        for (position, (reference, found)) in rows.enumerate() {
            let (p, q) = (log_softmax(reference), log_softmax(found));
            let (mut kl, mut worst) = (0.0, 0.0f64);
            for ((r, f), (p, q)) in reference.iter().zip(found).zip(p.iter().zip(&q)) {
                self.other_bits += usize::from(r.to_bits() != f.to_bits());
                let (r, f) = (f64::from(*r), f64::from(*f));
                let error = (r - f).abs();
                worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
                self.squared_error += error * error;
                self.logit_sum += r;
                self.logit_squares += r * r;
                kl += p.exp() * (p - q);
            }
            self.max_abs = self.max_abs.max(worst);
            self.reached += usize::from(worst > REACHED);
            self.logits += reference.len();
            self.kl.push((
                if kl.is_finite() { kl } else { f64::INFINITY },
                (sequence, position),
            ));
            let (best, margin) = top1(reference);
            if best == top1(found).0 {
                self.same_top1 += 1;
            } else {
                self.flipped_margin = self.flipped_margin.max(margin);
            }
            self.same_top5 += usize::from(most_likely(reference) == most_likely(found));
            if let Some(&next) = ids.and_then(|ids| ids.get(position + 1)) {
                let of = |log: &[f64]| -log.get(next as usize).unwrap_or(&f64::NEG_INFINITY);
                self.nll.push((of(&p), of(&q)));
            }
        }
    }

    /// Positions compared.
    pub fn positions(&self) -> usize {
        self.kl.len()
    }

    /// Whether logits were compared and all of them are the same bits.
    pub fn is_bit_identical(&self) -> bool {
        self.other_bits == 0 && self.logits > 0
    }

    /// Largest absolute difference of two logits.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }

    /// Root mean square of the differences; infinite where one is not finite.
    pub fn rms(&self) -> f64 {
        let rms = (self.squared_error / (self.logits as f64).max(1.0)).sqrt();
        if rms.is_nan() { f64::INFINITY } else { rms }
    }

    /// [`max_abs`](Self::max_abs) in standard deviations of the reference's logits.
    pub fn max_in_deviations(&self) -> f64 {
        let n = (self.logits as f64).max(1.0);
        let variance = self.logit_squares / n - (self.logit_sum / n).powi(2);
        self.max_abs / variance.max(f64::MIN_POSITIVE).sqrt()
    }

    /// Mean of the Kullback-Leibler divergence over positions.
    pub fn kl_mean(&self) -> f64 {
        self.kl_spread().mean()
    }

    /// The divergence of every position.
    pub fn kl_spread(&self) -> Spread {
        Spread::new(self.kl.iter().map(|(kl, _)| *kl).collect())
    }

    /// The divergence that 99.9 % of the positions stay below (nearest rank).
    pub fn kl_p999(&self) -> f64 {
        self.kl_spread().quantile(0.999)
    }

    /// The largest divergence, and the prompt and position where it is.
    pub fn kl_max(&self) -> (f64, &str, usize) {
        let worst = self.kl.iter().max_by(|a, b| a.0.total_cmp(&b.0));
        worst.map_or((0.0, "", 0), |&(kl, (name, position))| {
            (kl, self.names[name].as_str(), position)
        })
    }

    /// Share of positions with the same most likely token.
    pub fn top1_agreement(&self) -> f64 {
        if self.kl.is_empty() {
            1.0
        } else {
            self.same_top1 as f64 / self.kl.len() as f64
        }
    }

    /// Share of positions with the same five most likely tokens, in any order.
    pub fn top5_agreement(&self) -> f64 {
        if self.kl.is_empty() {
            1.0
        } else {
            self.same_top5 as f64 / self.kl.len() as f64
        }
    }

    /// Share of positions that a flipped activation has reached.
    pub fn reached(&self) -> f64 {
        self.reached as f64 / (self.kl.len() as f64).max(1.0)
    }

    /// Largest margin of the reference at a position where the most likely token is another; 0 when
    /// there is none.
    pub fn flipped_margin(&self) -> f64 {
        self.flipped_margin
    }

    /// Perplexity of the reference and of the logits compared, over the tokens that follow.
    pub fn perplexities(&self) -> Option<(f64, f64)> {
        let (reference, found) = (self.nll_spread(false), self.nll_spread(true));
        (!self.nll.is_empty()).then(|| (reference.mean().exp(), found.mean().exp()))
    }

    /// Negative log likelihoods of the tokens that follow, of the reference or of what was found.
    pub fn nll_spread(&self, found: bool) -> Spread {
        Spread::new(
            self.nll
                .iter()
                .map(|n| if found { n.1 } else { n.0 })
                .collect(),
        )
    }

    /// Change of the probability of the token that follows.
    pub fn delta_p(&self) -> Spread {
        Spread::new(
            self.nll
                .iter()
                .map(|(r, f)| (-f).exp() - (-r).exp())
                .collect(),
        )
    }

    /// Mean of `ln(PPL(found) / PPL(reference))` and its standard error.
    pub fn ln_perplexity_ratio(&self) -> (f64, f64) {
        let spread = Spread::new(self.nll.iter().map(|(r, f)| f - r).collect());
        (spread.mean(), spread.standard_error())
    }

    /// Correlation of the two negative log likelihoods; 1 where one of them does not vary.
    pub fn nll_correlation(&self) -> f64 {
        let (mean_r, mean_f) = (self.nll_spread(false).mean(), self.nll_spread(true).mean());
        let (mut rr, mut ff, mut rf) = (0.0, 0.0, 0.0);
        for (r, f) in &self.nll {
            rr += (r - mean_r).powi(2);
            ff += (f - mean_f).powi(2);
            rf += (r - mean_r) * (f - mean_f);
        }
        if rr * ff > 0.0 {
            rf / (rr * ff).sqrt()
        } else {
            1.0
        }
    }

    /// One line for people.
    pub fn summary(&self) -> String {
        format!(
            "{} positions, max {:.3e}, kl mean {:.2e} max {:.2e}, top-1 {:.3}",
            self.positions(),
            self.max_abs(),
            self.kl_mean(),
            self.kl_max().0,
            self.top1_agreement()
        )
    }
}

/// `x - log(sum(exp(x)))`.
pub(crate) fn log_softmax(x: &[f32]) -> Vec<f64> {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x
        .iter()
        .map(|&v| (f64::from(v) - f64::from(max)).exp())
        .sum();
    let shift = f64::from(max) + sum.ln();
    x.iter().map(|&v| f64::from(v) - shift).collect()
}

/// The most likely tokens (the lowest of equals), in the order of the vocabulary.
fn most_likely(x: &[f32]) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(TOP + 1);
    for (i, v) in x.iter().enumerate() {
        let at = best.partition_point(|&b| x[b] >= *v);
        if at < TOP {
            best.insert(at, i);
            best.truncate(TOP);
        }
    }
    best.sort_unstable();
    best
}

/// The most likely token (the lowest of equals) and its margin over the second.
pub(crate) fn top1(x: &[f32]) -> (usize, f64) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &v) in x.iter().enumerate() {
        if v > first {
            (best, second, first) = (i, first, v);
        } else if v > second {
            second = v;
        }
    }
    (best, f64::from(first) - f64::from(second))
}

/// `|found - reference| / |reference|` in the Euclidean norm; infinite where something is not finite.
pub fn relative_error(reference: &[f32], found: &[f32]) -> f64 {
    if reference.len() != found.len() {
        return f64::INFINITY;
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (&r, &f) in reference.iter().zip(found) {
        error += (f64::from(f) - f64::from(r)).powi(2);
        norm += f64::from(r).powi(2);
    }
    let relative = if error == 0.0 {
        0.0
    } else {
        (error / norm).sqrt()
    };
    if relative.is_nan() {
        f64::INFINITY
    } else {
        relative
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_do_not_diverge() {
        let x = [0.5f32, 2.0, -1.0, 3.0, 3.0, 1.0];
        let mut d = Divergence::default();
        d.add("p", Some(&[0, 1]), 3, &x, &x);
        assert_eq!(
            (d.max_abs(), d.kl_mean(), d.kl_max().0, d.top1_agreement()),
            (0.0, 0.0, 0.0, 1.0)
        );
        let (a, b) = d.perplexities().unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn five_tokens_are_compared_as_a_set() {
        let reference = [5.0f32, 4.0, 3.0, 2.0, 1.0, 0.5, -1.0];
        assert_eq!(most_likely(&reference), [0, 1, 2, 3, 4]);
        assert_eq!(
            most_likely(&[1.0; 7]),
            [0, 1, 2, 3, 4],
            "the lowest of equals"
        );
        assert_eq!(most_likely(&[1.0, 2.0]), [0, 1]);
        let mut d = Divergence::default();
        let other_order = [1.0f32, 2.0, 3.0, 4.0, 5.0, 0.5, -1.0];
        let other_set = [5.0f32, 4.0, 3.0, 2.0, 0.1, 0.5, -1.0];
        d.add("p", None, 7, &reference, &other_order);
        d.add("q", None, 7, &reference, &other_set);
        assert_eq!((d.top5_agreement(), d.top1_agreement()), (0.5, 0.5));
    }

    #[test]
    fn a_flip_names_its_place_and_margin() {
        let reference = [1.0f32, 0.0, 0.75, 1.0];
        let found = [1.0f32, 0.0, 1.0, 0.75];
        let mut d = Divergence::default();
        d.add("p", None, 2, &reference, &found);
        assert_eq!(d.top1_agreement(), 0.5);
        assert_eq!(d.flipped_margin(), 0.25);
        let (kl, name, position) = d.kl_max();
        assert!(kl > 0.0);
        assert_eq!((name, position), ("p", 1));
    }

    #[test]
    fn what_is_not_finite_is_never_small() {
        let mut d = Divergence::default();
        d.add("p", None, 2, &[1.0, 0.0], &[f32::NAN, 0.0]);
        assert_eq!((d.max_abs(), d.kl_mean()), (f64::INFINITY, f64::INFINITY));
        assert_eq!(relative_error(&[1.0], &[f32::NAN]), f64::INFINITY);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
        assert_eq!(relative_error(&[0.0], &[1.0]), f64::INFINITY);
    }

    #[test]
    fn probabilities_move_as_far_as_the_logits_say() {
        let mut d = Divergence::default();
        // token 1 follows: 1/2 in the reference, 3/4 in what was found
        let found = [0.0, 3.0f32.ln()];
        d.add(
            "p",
            Some(&[0, 1]),
            2,
            &[0.0, 0.0, 0.0, 0.0],
            &[found, found].concat(),
        );
        let p = d.delta_p();
        assert!((p.mean() - 0.25).abs() < 1e-7 && (p.rms() - 0.25).abs() < 1e-7);
        let (ratio, _) = d.ln_perplexity_ratio();
        assert!((ratio - (2.0f64 / 3.0).ln()).abs() < 1e-6);
    }
}
