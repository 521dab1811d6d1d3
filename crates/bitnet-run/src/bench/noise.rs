//! Whether a machine was quiet while it was measured.
//!
//! Invariant: the verdict names what was seen, and a machine that shows nothing gets none.

use bitnet_cli::{CpuTimes, cpu_times};
use serde_json::{Value, json};

/// Most of the time that other programs may take.
const OTHERS: f64 = 0.03;
/// Most of the time that the host may take away.
const STEAL: f64 = 0.01;
/// Largest distance between the repetitions of one row, in relation to their median.
const SPREAD: f64 = 0.1;

/// Measures from its creation on.
pub struct Noise(Option<CpuTimes>);

impl Noise {
    pub fn start() -> Self {
        Self(cpu_times())
    }

    /// What happened since; `spread` is the largest of all rows.
    pub fn end(&self, spread: f64) -> Seen {
        let shares = self.0.zip(cpu_times()).and_then(|(before, after)| {
            let all = after.all.checked_sub(before.all).filter(|all| *all > 0)?;
            let of_all = |after: u64, before: u64| after.saturating_sub(before) as f64 / all as f64;
            let own = of_all(after.own, before.own);
            let busy = of_all(after.busy, before.busy);
            Some(((busy - own).max(0.0), of_all(after.steal, before.steal)))
        });
        Seen { shares, spread }
    }
}

/// What was seen.
pub struct Seen {
    shares: Option<(f64, f64)>, // of the time of all CPUs: other programs, the host
    spread: f64,
}

impl Seen {
    fn reasons(&self) -> Vec<String> {
        let percent = |share: f64| bitnet_cli::percent(share, 1);
        let mut reasons = Vec::new();
        if let Some((others, steal)) = self.shares {
            if others > OTHERS {
                reasons.push(format!(
                    "other programs took {} of the CPUs",
                    percent(others)
                ));
            }
            if steal > STEAL {
                reasons.push(format!("the host took {} of the CPUs away", percent(steal)));
            }
        }
        if self.spread > SPREAD {
            let spread = percent(self.spread);
            reasons.push(format!("repetitions of one row differ by {spread}"));
        }
        reasons
    }

    /// `quiet`, or what disturbed.
    pub fn describe(&self) -> String {
        match self.reasons() {
            reasons if reasons.is_empty() => "quiet".to_owned(),
            reasons => format!("noisy: {}", reasons.join("; ")),
        }
    }

    pub fn json(&self) -> Value {
        let reasons = self.reasons();
        json!({
            "verdict": if reasons.is_empty() { "quiet" } else { "noisy" },
            "reasons": reasons,
            "other_programs_share": self.shares.map(|(others, _)| others),
            "steal_share": self.shares.map(|(_, steal)| steal),
            "largest_spread": self.spread,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_names_its_reasons() {
        let quiet = Seen {
            shares: Some((0.01, 0.0)),
            spread: 0.02,
        };
        assert_eq!(quiet.describe(), "quiet");
        let noisy = Seen {
            shares: Some((0.25, 0.02)),
            spread: 0.5,
        };
        let expected = "noisy: other programs took 25.0 % of the CPUs; the host took 2.0 % of the CPUs away; \
                        repetitions of one row differ by 50.0 %";
        assert_eq!(noisy.describe(), expected);
        assert_eq!(noisy.json()["verdict"], "noisy");
        assert_eq!(noisy.json()["reasons"].as_array().unwrap().len(), 3);
    }
}
