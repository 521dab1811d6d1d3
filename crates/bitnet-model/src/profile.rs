//! Where the time of a forward pass goes.
//!
//! Invariant: the parts of a pass follow one another on the calling thread without a gap, so they add up
//! to the pass. What threads of a parallel region spent without work is taken out of the part that the
//! region belongs to and is a part of its own. A clock that was not asked for is never read.

use crate::threads;
use std::time::{Duration, Instant};

/// What a pass is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Products with ternary matrices.
    Linears,
    /// RoPE, storing keys and values, scores, softmax and weighted values.
    Attention,
    /// Norms, quantization of activations, activation functions, residual additions, embedding.
    Elementwise,
    /// The final norm and the output head.
    Head,
    /// Threads of a parallel region without work: its start, its end, and uneven shares.
    Waiting,
}

impl Part {
    /// All parts, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Linears,
        Self::Attention,
        Self::Elementwise,
        Self::Head,
        Self::Waiting,
    ];

    /// One lower-case word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linears => "linears",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
            Self::Head => "head",
            Self::Waiting => "waiting",
        }
    }
}

/// Time by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Profile([Duration; Part::ALL.len()]);

impl Profile {
    /// Time of one part.
    pub fn time(&self, part: Part) -> Duration {
        self.0[part as usize]
    }

    /// Time of all parts.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

/// Reads the time between the parts of a pass, if anybody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    profile: Option<Profile>,
    last: Option<Instant>,
}

impl Clock {
    /// Measures from now on.
    pub(crate) fn begin(&mut self) {
        self.profile.get_or_insert_default();
    }

    /// What was measured since [`begin`](Self::begin); stops.
    pub(crate) fn end(&mut self) -> Profile {
        self.profile.take().unwrap_or_default()
    }

    /// A pass starts on this thread.
    pub(crate) fn start(&mut self) {
        threads::measure_idle(self.profile.is_some());
        self.last = self.profile.as_ref().map(|_| Instant::now());
    }

    /// What was done since the last lap was `part`.
    pub(crate) fn lap(&mut self, part: Part) {
        let (Some(profile), Some(last)) = (&mut self.profile, &mut self.last) else {
            return;
        };
        let now = Instant::now();
        let idle = threads::take_idle();
        profile.0[part as usize] += (now - *last).saturating_sub(idle);
        profile.0[Part::Waiting as usize] += idle;
        *last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_add_up_and_nothing_is_measured_unasked() {
        let mut clock = Clock::default();
        clock.start();
        clock.lap(Part::Head);
        assert_eq!(clock.end(), Profile::default());
        clock.begin();
        let started = Instant::now();
        clock.start();
        std::thread::sleep(Duration::from_millis(2));
        clock.lap(Part::Linears);
        clock.lap(Part::Head);
        let all = started.elapsed();
        let profile = clock.end();
        assert!(profile.time(Part::Linears) >= Duration::from_millis(2));
        assert!(profile.total() <= all && profile.total() >= profile.time(Part::Linears));
        assert_eq!(clock.end(), Profile::default());
    }
}
