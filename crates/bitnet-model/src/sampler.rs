//! From logits to a token. Written by hand, because samplers of libraries change their numbers between versions and draw
//! from generators that are not fixed: a seed has to give the same text for good.
//!
//! Invariant: the token follows from the logits, the options and the seed alone. Probabilities are
//! f64 with `libm`'s exponential, candidates are in order of falling logit (lower id first on
//! ties), and the generator is SplitMix64, written out below, so a seed means the same everywhere.

use std::cmp::Ordering;

/// Largest k for which a sampler asks for the largest logits alone.
const MOST_TOP: usize = 64;

/// How a token is drawn. The order is: top-k, top-p, min-p, temperature (the common one: the three
/// filters look at the model's own distribution, the temperature reshapes what they leave).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// Divides the logits before the draw; 0 takes the likeliest token.
    pub temperature: f32,
    /// Keeps the k likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens whose probabilities first reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Start of the generator.
    pub seed: u64,
}

impl Default for SamplerOptions {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            seed: 0,
        }
    }
}

/// Draws tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    state: u64,
}

impl Sampler {
    /// Always the likeliest token; of equal ones the lowest id.
    pub fn greedy() -> Self {
        Self::new(SamplerOptions {
            temperature: 0.0,
            ..SamplerOptions::default()
        })
    }

    /// Draws as the options say.
    pub fn new(options: SamplerOptions) -> Self {
        Self {
            options,
            state: options.seed,
        }
    }

    /// The next token for logits of shape `(vocab,)`. NaN is never drawn; 0 if there is nothing else.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let SamplerOptions {
            temperature,
            top_k,
            top_p,
            ..
        } = self.options;
        // NaN and nonsense options fall to the greedy side
        if temperature <= 0.0 || temperature.is_nan() || top_k == 1 || logits.is_empty() {
            return argmax(logits) as u32;
        }
        if let Some(k) = self.top_k()
            && k < logits.len()
        {
            return self.sample_top(&top(logits, k));
        }
        let best = argmax(logits);
        let max = f64::from(logits[best]);
        if !max.is_finite() {
            return best as u32;
        }
        let weight = |logit: f32| libm::exp(f64::from(logit) - max);

        let k = if top_k == 0 {
            logits.len()
        } else {
            top_k.min(logits.len())
        };
        let kept = if top_p < 1.0 {
            nucleus(logits, k, f64::from(top_p), weight)
        } else if k < logits.len() {
            likeliest(logits, k)
        } else {
            (0..logits.len() as u32).collect() // any fixed order will do
        };
        let kept = kept.into_iter().map(|id| (id, logits[id as usize]));
        self.draw(kept.collect(), (best as u32, max))
    }

    /// How many of the largest logits [`sample_top`](Self::sample_top) needs, if it is at most 64: 1 for
    /// the likeliest token.
    pub fn top_k(&self) -> Option<usize> {
        let SamplerOptions {
            temperature, top_k, ..
        } = self.options;
        match top_k {
            _ if temperature <= 0.0 || temperature.is_nan() => Some(1),
            1..=MOST_TOP => Some(top_k),
            _ => None,
        }
    }

    /// The next token, given the [`top_k`](Self::top_k) largest logits only, finite, in falling order,
    /// of equal ones the lower id first: the token that [`sample`](Self::sample) draws from all of them.
    pub fn sample_top(&mut self, top: &[(u32, f32)]) -> u32 {
        let Some(&(best, max)) = top.first() else {
            return 0;
        };
        let max = f64::from(max);
        if self.top_k() == Some(1) || !max.is_finite() {
            return best;
        }
        let weight = |logit: f32| match logit.is_nan() {
            true => 0.0,
            false => libm::exp(f64::from(logit) - max),
        };
        let mut kept = top.to_vec();
        let top_p = f64::from(self.options.top_p);
        if self.options.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, logit)| weight(*logit)).sum();
            let mut sum = 0.0;
            let reached = kept.iter().position(|(_, logit)| {
                sum += weight(*logit);
                sum >= top_p * total
            });
            kept.truncate(reached.map_or(kept.len(), |last| last + 1));
        }
        self.draw(kept, (best, max))
    }

    /// Draws one of the tokens left by top-k and top-p.
    fn draw(&mut self, mut kept: Vec<(u32, f32)>, (best, max): (u32, f64)) -> u32 {
        let SamplerOptions {
            temperature, min_p, ..
        } = self.options;
        let weight = |logit: f32| libm::exp(f64::from(logit) - max);
        kept.retain(|(_, logit)| !logit.is_nan());
        if min_p > 0.0 {
            kept.retain(|&(id, logit)| id == best || weight(logit) >= f64::from(min_p));
        }
        let heat = f64::from(temperature);
        let weights: Vec<f64> = kept
            .iter()
            .map(|(_, logit)| libm::exp((f64::from(*logit) - max) / heat))
            .collect();
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        for ((id, _), weight) in kept.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return *id;
            }
        }
        best // rounding ate the last crumb
    }

    /// A number in `[0, 1)` with 53 random bits, from SplitMix64 (Steele, Lea, Flood 2014).
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The `k` largest logits with their ids, in the order of [`Sampler::sample_top`].
pub(crate) fn top(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let ids = match k {
        1 => vec![argmax(logits) as u32],
        _ => likeliest(logits, k),
    };
    ids.into_iter()
        .filter_map(|id| Some((id, *logits.get(id as usize)?)))
        .collect()
}

/// Puts finite logits in the order of [`Sampler::sample_top`].
pub(crate) fn sort(logits: &mut [(u32, f32)]) {
    // partial_cmp, because 0 and -0 are a tie
    logits.sort_unstable_by(|a, b| {
        b.1.partial_cmp(&a.1)
            .unwrap_or(Ordering::Equal)
            .then(a.0.cmp(&b.0))
    });
}

/// Index of the largest logit; the lowest of equal ones; 0 if all are NaN.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &logit) in logits.iter().enumerate() {
        if logit > logits[best] || logits[best].is_nan() {
            best = i;
        }
    }
    if logits.get(best).is_none_or(|l| l.is_nan()) {
        0
    } else {
        best
    }
}

/// Falling logit, then rising id; NaN last.
fn order(logits: &[f32]) -> impl Fn(&u32, &u32) -> Ordering {
    let key = |id: u32| logits.get(id as usize).copied().filter(|l| !l.is_nan());
    move |&a, &b| {
        let (x, y) = (key(a), key(b));
        y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
    }
}

/// The `k` likeliest ids, in order.
fn likeliest(logits: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if k < ids.len() && k > 0 {
        ids.select_nth_unstable_by(k - 1, order(logits));
        ids.truncate(k);
    }
    ids.sort_unstable_by(order(logits));
    ids
}

/// Of the `k` likeliest ids the first whose probabilities reach `top_p`, at least one, in order.
///
/// Sorts a few first: real distributions end long before the vocabulary does.
fn nucleus(logits: &[f32], k: usize, top_p: f64, weight: impl Fn(f32) -> f64) -> Vec<u32> {
    let weight = |id: &u32| {
        let logit = logits[*id as usize];
        if logit.is_nan() { 0.0 } else { weight(logit) }
    };
    let total: f64 = if k < logits.len() {
        likeliest(logits, k).iter().map(weight).sum()
    } else {
        (0..logits.len() as u32).map(|id| weight(&id)).sum()
    };
    let mut sorted = k.min(1024);
    loop {
        let mut ids = likeliest(logits, sorted);
        let mut sum = 0.0;
        let reached = ids.iter().position(|id| {
            sum += weight(id);
            sum >= top_p * total
        });
        if let Some(last) = reached {
            ids.truncate(last + 1);
            return ids;
        }
        if sorted == k {
            return ids;
        }
        sorted = k.min(sorted * 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: SamplerOptions = SamplerOptions {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 1,
    };

    fn seen(options: SamplerOptions, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(options);
        let mut seen: Vec<u32> = (0..4000).map(|_| sampler.sample(logits)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_survives_nan() {
        let mut greedy = Sampler::greedy();
        assert_eq!(greedy.sample(&[0.0, 2.0, 2.0, 1.0]), 1);
        assert_eq!(greedy.sample(&[f32::NAN, -3.0, f32::NEG_INFINITY]), 1);
        assert_eq!(greedy.sample(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(greedy.sample(&[]), 0);
        assert_eq!(greedy.sample(&[f32::NEG_INFINITY; 3]), 0);
    }

    #[test]
    fn splitmix_is_the_published_one() {
        // first outputs of SplitMix64 from 1234567
        let mut sampler = Sampler::new(SamplerOptions {
            seed: 1_234_567,
            ..ALL
        });
        let want = [6_457_827_717_110_365_317u64, 3_203_168_211_198_807_973];
        for want in want {
            assert_eq!(sampler.uniform(), (want >> 11) as f64 / (1u64 << 53) as f64);
        }
    }

    #[test]
    fn filters_keep_what_they_say() {
        // probabilities 0.5, 0.25, 0.125, 0.125
        let logits = [-1.0, -2.0, -3.0, -3.0].map(|x: f32| x * std::f32::consts::LN_2);
        assert_eq!(seen(ALL, &logits), [0, 1, 2, 3]);
        assert_eq!(seen(SamplerOptions { top_k: 3, ..ALL }, &logits), [0, 1, 2]);
        assert_eq!(seen(SamplerOptions { top_p: 0.7, ..ALL }, &logits), [0, 1]);
        assert_eq!(seen(SamplerOptions { top_p: 0.0, ..ALL }, &logits), [0]);
        assert_eq!(
            seen(SamplerOptions { top_p: 0.8, ..ALL }, &logits),
            [0, 1, 2]
        );
        // within the top two, 0.5 / 0.75 already reaches 0.6
        assert_eq!(
            seen(
                SamplerOptions {
                    top_p: 0.6,
                    top_k: 2,
                    ..ALL
                },
                &logits
            ),
            [0]
        );
        assert_eq!(seen(SamplerOptions { min_p: 0.4, ..ALL }, &logits), [0, 1]);
        assert_eq!(
            seen(
                SamplerOptions {
                    temperature: 0.01,
                    ..ALL
                },
                &logits
            ),
            [0]
        );
        assert_eq!(seen(SamplerOptions { min_p: 2.0, ..ALL }, &logits), [0]);
    }

    #[test]
    fn frequencies_follow_probabilities_and_seeds_repeat() {
        let logits = [0.0, f32::NAN, 3f32.ln()];
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerOptions { seed, ..ALL });
            (0..20_000)
                .map(|_| sampler.sample(&logits))
                .collect::<Vec<_>>()
        };
        let a = draw(5);
        assert_eq!(a, draw(5));
        assert_ne!(a, draw(6));
        let share = a.iter().filter(|&&id| id == 2).count() as f64 / a.len() as f64;
        assert!((share - 0.75).abs() < 0.02, "{share}");
        assert!(!a.contains(&1));
    }

    #[test]
    fn a_flat_nucleus_wider_than_the_first_sort() {
        let logits = vec![0.0; 5000];
        let ids = nucleus(&logits, 5000, 0.5, |l| libm::exp(f64::from(l)));
        assert_eq!(ids, (0..2500).collect::<Vec<u32>>());
    }
}
