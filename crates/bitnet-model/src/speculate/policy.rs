//! How many tokens are worth guessing.
//!
//! Invariant: the length of a draft follows from how many guesses of its kind were right, and in `auto` from the measured
//! time of steps as well. A draft that is expected to save less than a twentieth of the time is not verified.

use std::time::Duration;

/// Most tokens of a draft.
pub(crate) const MOST_DRAFT: usize = 16;

/// Kinds of drafts, by the length of the match.
const KINDS: usize = 4;

/// How fast old hits are forgotten.
const KEPT: f64 = 0.95;

/// What is expected to be saved at least.
const LEAST_GAIN: f64 = 1.05;

/// Times of steps that are kept of each length.
const TIMES: usize = 5;

/// Steps without guesses whose time is known before a guess is tried, unless its match is long.
const FIRST_PLAIN: usize = 2;

/// Guesses behind a long match before the time of any step is known.
const FIRST_GUESSES: usize = 4;

/// How likely a guess of each kind is right before anything is known.
const FIRST_RATES: [f64; KINDS] = [0.3, 0.5, 0.7, 0.8];

/// Steps in a row after which a step of the other sort is measured again.
const REFRESH: usize = 64;

/// The kind of a draft whose place has so many tokens in common with the end of the text.
pub(crate) fn kind(matched: usize) -> usize {
    match matched {
        0..=2 => 0,
        3..=4 => 1,
        5..=8 => 2,
        _ => 3,
    }
}

/// Hits and guesses, old ones half forgotten.
#[derive(Debug, Clone, Copy, Default)]
struct Rate {
    hits: f64,
    guesses: f64,
}

impl Rate {
    fn see(&mut self, is_hit: bool) {
        self.hits = KEPT * self.hits + f64::from(u8::from(is_hit));
        self.guesses = KEPT * self.guesses + 1.0;
    }

    /// The probability of a hit.
    fn get(self, kind: usize) -> f64 {
        (self.hits + 2.0 * FIRST_RATES[kind]) / (self.guesses + 2.0)
    }

    /// Tokens that a step with so many guesses of a kind is expected to make.
    fn expected(self, kind: usize, count: usize) -> f64 {
        let rate = self.get(kind);
        let mut tokens = 1.0;
        for _ in 0..count {
            tokens = 1.0 + rate * tokens;
        }
        tokens
    }
}

/// The last few numbers of some measurement.
#[derive(Debug, Clone, Default)]
struct Recent(Vec<f64>);

impl Recent {
    fn push(&mut self, value: f64) {
        if self.0.len() == TIMES {
            self.0.remove(0);
        }
        self.0.push(value);
    }

    fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        // of two the lower one: the first step of a model has more to do than the others
        sorted.get(sorted.len().checked_sub(1)? / 2).copied()
    }
}

/// What was learned of guesses and steps.
#[derive(Debug)]
pub(crate) struct Policy {
    is_auto: bool,
    rates: [Rate; KINDS],
    length: usize,       // of the next draft, where time does not matter
    plain: Recent,       // seconds of steps without guesses
    ratios: Vec<Recent>, // (MOST_DRAFT,): of steps with 1, 2, ... guesses to those without
    since_plain: usize,  // steps with guesses in a row
    declined: usize,     // drafts in a row that were not worth their time
}

impl Policy {
    pub(crate) fn new(is_auto: bool) -> Self {
        Self {
            is_auto,
            rates: [Rate::default(); KINDS],
            length: 4,
            plain: Recent::default(),
            ratios: vec![Recent::default(); MOST_DRAFT],
            since_plain: 0,
            declined: 0,
        }
    }

    /// How many tokens a draft of a kind should have, at most `most`.
    pub(crate) fn length(&mut self, kind: usize, most: usize) -> usize {
        if !self.is_auto {
            return self.length.min(most);
        }
        let is_unknown = self.plain.0.len() < FIRST_PLAIN;
        match self.since_plain {
            0 if is_unknown && kind + 1 == KINDS => return FIRST_GUESSES.min(most),
            _ if is_unknown => return 0,
            REFRESH.. => return 0,
            _ => {}
        }
        if self.ratios.iter().all(|ratios| ratios.0.is_empty()) {
            // the cheapest way to learn what a guess costs
            return usize::from(self.rates[kind].expected(kind, 1) >= LEAST_GAIN);
        }
        let gain = |count: &usize| self.rates[kind].expected(kind, *count) / self.ratio(*count);
        let best = (1..=most).max_by(|a, b| gain(a).total_cmp(&gain(b)));
        match best.filter(|best| gain(best) >= LEAST_GAIN) {
            Some(best) => {
                self.declined = 0;
                best
            }
            None => {
                self.declined += 1;
                match self.declined < REFRESH {
                    true => 0,
                    false => {
                        // what made guesses slow or wrong may be over
                        self.declined = 0;
                        1
                    }
                }
            }
        }
    }

    /// The time of a step with so many guesses, in times of a step without.
    fn ratio(&self, count: usize) -> f64 {
        let least = 1.0 + 0.01 * count as f64;
        let measured = (1..=MOST_DRAFT)
            .filter_map(|n| Some((n, self.ratios[n - 1].median()?)))
            .min_by_key(|(n, _)| n.abs_diff(count));
        let slope = measured.map_or(0.0, |(n, ratio)| (ratio - 1.0) / n as f64);
        (1.0 + slope * count as f64).max(least)
    }

    /// A guess of a kind was right or not.
    fn see(&mut self, kind: usize, is_hit: bool) {
        self.rates[kind].see(is_hit);
    }

    /// A step with `drafted` guesses of a kind, of which the first `accepted` were right, took this time.
    pub(crate) fn learn(
        &mut self,
        kind: usize,
        (drafted, accepted): (usize, usize),
        time: Duration,
    ) {
        let seconds = time.as_secs_f64();
        if drafted == 0 {
            self.plain.push(seconds);
            self.since_plain = 0;
            return;
        }
        self.since_plain += 1;
        for guess in 0..drafted.min(accepted + 1) {
            self.see(kind, guess < accepted);
        }
        self.length = match accepted {
            all if all == drafted => (2 * self.length).min(MOST_DRAFT),
            some => (some + 1).min(self.length),
        };
        if let (Some(plain), Some(ratios)) = (self.plain.median(), self.ratios.get_mut(drafted - 1))
            && plain > 0.0
        {
            ratios.push(seconds / plain);
        }
    }
}

/// A draft that was not verified, beside the text that comes.
#[derive(Debug)]
pub(crate) struct Shadow {
    tokens: Vec<u32>, // those that are still to come, the next one last
    kind: usize,
}

impl Shadow {
    pub(crate) fn new(mut tokens: Vec<u32>, kind: usize) -> Self {
        tokens.reverse();
        Self { tokens, kind }
    }

    /// Compares the next token; whether there is more to compare.
    pub(crate) fn compare(&mut self, token: u32, policy: &mut Policy) -> bool {
        let Some(guess) = self.tokens.pop() else {
            return false;
        };
        policy.see(self.kind, guess == token);
        guess == token && !self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Duration = Duration::from_millis(20);

    fn warm() -> Policy {
        let mut policy = Policy::new(true);
        assert_eq!(policy.length(0, MOST_DRAFT), 0); // nothing is known of steps
        for _ in 0..FIRST_PLAIN {
            policy.learn(0, (0, 0), PLAIN);
        }
        policy
    }

    /// Texts whose guesses are right with some probability, on a machine where a guess costs a share of a step: how
    /// many times as fast they are as without guesses, and how many steps had guesses.
    fn speed(policy: &mut Policy, hit: impl Fn(&mut u64) -> bool, slope: f64) -> (f64, usize) {
        let mut state = 7;
        let (mut tokens, mut time, mut steps) = (0, Duration::ZERO, 0);
        while tokens < 2000 {
            let count = policy.length(1, MOST_DRAFT);
            let mut accepted = 0;
            while accepted < count && hit(&mut state) {
                accepted += 1;
            }
            if count == 0 {
                Shadow::new(vec![0], 1).compare(u32::from(!hit(&mut state)), policy);
            }
            let step = PLAIN.mul_f64(1.0 + slope * count as f64);
            policy.learn(1, (count, accepted), step);
            (tokens, time, steps) = (
                tokens + accepted + 1,
                time + step,
                steps + usize::from(count > 0),
            );
        }
        let plain = PLAIN.as_secs_f64() * tokens as f64;
        (plain / time.as_secs_f64(), steps)
    }

    fn chance(percent: u64) -> impl Fn(&mut u64) -> bool {
        move |state| {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (*state >> 33) % 100 < percent
        }
    }

    #[test]
    fn auto_is_fast_where_guesses_hit_and_never_slow() {
        for slope in [0.02, 0.1, 0.3, 0.7] {
            for percent in [0, 10, 30, 50, 80, 95, 100] {
                let (speed, _) = speed(&mut warm(), chance(percent), slope);
                assert!(speed > 0.97, "{percent} % at {slope}: {speed}");
                let most = 1.0 / (1.0 - percent as f64 / 100.0);
                assert!(
                    speed < 1.1 * most.min(17.0),
                    "{percent} % at {slope}: {speed}"
                );
            }
        }
        assert!(speed(&mut warm(), chance(95), 0.02).0 > 5.0);
        assert!(speed(&mut warm(), chance(80), 0.1).0 > 1.7);
        assert!(speed(&mut warm(), chance(90), 0.3).0 > 1.7);
        // a step of n tokens takes as long as n steps: nothing to gain
        let (speed, steps) = speed(&mut warm(), chance(90), 1.0);
        assert!(speed > 0.97 && steps < 60, "{speed}, {steps} steps");
    }

    #[test]
    fn auto_turns_on_and_off_and_on() {
        let mut policy = warm();
        assert!(speed(&mut policy, chance(100), 0.1).0 > 3.0);
        assert!(speed(&mut policy, chance(0), 0.1).0 > 0.97);
        // without a time being measured: the guesses that were not verified show that they hit again
        assert!(speed(&mut policy, chance(100), 0.1).0 > 3.0);
    }

    #[test]
    fn lengths_follow_hits_where_time_does_not_matter() {
        let mut policy = Policy::new(false);
        assert_eq!(policy.length(0, 16), 4);
        assert_eq!(policy.length(0, 2), 2);
        policy.learn(0, (4, 4), PLAIN);
        assert_eq!(policy.length(0, 16), 8);
        policy.learn(0, (8, 1), PLAIN);
        assert_eq!(policy.length(0, 16), 2);
        policy.learn(0, (2, 0), PLAIN);
        assert_eq!(policy.length(0, 16), 1);
        for _ in 0..9 {
            let count = policy.length(0, 16);
            policy.learn(0, (count, count), PLAIN);
        }
        assert_eq!(policy.length(0, 99), MOST_DRAFT);
    }
}
