//! Changes of logits before a draw: penalties for tokens that came already, and biases.
//!
//! Invariant: the changed logits follow from the logits, the options, the prompt and the tokens so far alone. Without options
//! nothing changes, and no one needs all logits.

use std::collections::HashMap;

/// How logits are changed before a draw, in this order: repetition, presence and frequency, bias.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitOptions {
    /// Divides positive logits of tokens in prompt and text, and multiplies negative ones; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the text (without the prompt); 0 changes nothing.
    pub presence_penalty: f32,
    /// Subtracted once for each time that a token is in the text (without the prompt); 0 changes nothing.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub bias: Vec<(u32, f32)>,
}

impl Default for LogitOptions {
    fn default() -> Self {
        Self {
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
        }
    }
}

/// [`LogitOptions`] in the middle of a text.
#[derive(Debug, Clone, Default)]
pub struct LogitRules {
    options: LogitOptions,
    seen: HashMap<u32, u32>, // tokens of prompt and text, and how often the text has each
}

impl LogitRules {
    /// For an empty text.
    pub fn new(options: LogitOptions) -> Self {
        Self {
            options,
            seen: HashMap::new(),
        }
    }

    /// Whether no logit ever changes.
    pub fn is_empty(&self) -> bool {
        !self.counts() && self.options.bias.is_empty()
    }

    fn counts(&self) -> bool {
        let LogitOptions {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ..
        } = self.options;
        repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    /// Forgets all tokens.
    pub fn restart(&mut self) {
        self.seen.clear();
    }

    /// Tokens of the prompt.
    pub fn see_prompt(&mut self, tokens: &[u32]) {
        if self.counts() {
            for token in tokens {
                self.seen.entry(*token).or_insert(0);
            }
        }
    }

    /// A token of the text.
    pub fn see(&mut self, token: u32) {
        if self.counts() {
            let times = self.seen.entry(token).or_insert(0);
            *times = times.saturating_add(1);
        }
    }

    /// Changes logits, `(vocab,)`.
    pub fn apply(&self, logits: &mut [f32]) {
        let LogitOptions {
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            ref bias,
        } = self.options;
        // each token has a logit of its own: the order of the map does not matter
        for (token, times) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else {
                continue;
            };
            match *logit > 0.0 {
                true => *logit /= repetition_penalty,
                false => *logit *= repetition_penalty,
            }
            if *times > 0 {
                *logit -= presence_penalty + frequency_penalty * *times as f32;
            }
        }
        for (token, bias) in bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn penalties_and_biases_are_what_they_say() {
        let mut rules = LogitRules::new(LogitOptions {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            bias: vec![(4, -100.0), (9, 1.0)],
        });
        assert!(!rules.is_empty());
        rules.see_prompt(&[0, 1]);
        rules.see(1);
        rules.see(1);
        rules.see(2);
        let mut logits = [1.0, 1.0, -1.0, 3.0, 0.0];
        rules.apply(&mut logits);
        assert_eq!(logits, [0.5, 0.5 - 1.0, -2.0 - 0.75, 3.0, -100.0]);

        let mut none = LogitRules::new(LogitOptions::default());
        assert!(none.is_empty());
        none.see_prompt(&[0]);
        none.see(1);
        let mut logits = [1.0, 2.0];
        none.apply(&mut logits);
        assert_eq!(logits, [1.0, 2.0]);
        assert!(none.seen.is_empty());
    }
}
