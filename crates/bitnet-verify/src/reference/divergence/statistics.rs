//! The figures of a divergence as users of llama.cpp's `--kl-divergence` know them.
//!
//! Invariant: quantiles are nearest ranks, so every one is a value that occurred; standard errors are those of a
//! mean of independent values, as there.

use super::Divergence;
use crate::report::number;
use serde_json::{Value, json};

/// Quantiles of a report: name and share of the values that are not above.
const QUANTILES: [(&str, f64); 9] = [
    ("p999", 0.999),
    ("p99", 0.99),
    ("p95", 0.95),
    ("p90", 0.90),
    ("median", 0.5),
    ("p10", 0.10),
    ("p5", 0.05),
    ("p1", 0.01),
    ("p01", 0.001),
];

/// Values of many positions, sorted.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// Of these values, in any order.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// Their mean; 0 of none.
    pub fn mean(&self) -> f64 {
        self.0.iter().sum::<f64>() / (self.0.len() as f64).max(1.0)
    }

    /// Standard error of the mean; 0 of less than two.
    pub fn standard_error(&self) -> f64 {
        let n = self.0.len() as f64;
        if n < 2.0 {
            return 0.0;
        }
        let mean = self.mean();
        let squares = self.0.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
        (squares / (n - 1.0) / n).sqrt()
    }

    /// Root mean square.
    pub fn rms(&self) -> f64 {
        let squares = self.0.iter().map(|x| x * x).sum::<f64>();
        (squares / (self.0.len() as f64).max(1.0)).sqrt()
    }

    /// The smallest value that a share of the values does not exceed (nearest rank); 0 of none.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    /// The smallest value.
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(0.0)
    }

    /// The largest value.
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }

    fn to_json(&self) -> Value {
        let mut object = json!({
            "mean": number(self.mean()),
            "standard_error": number(self.standard_error()),
            "rms": number(self.rms()),
            "max": number(self.max()),
            "min": number(self.min()),
        });
        for (name, share) in QUANTILES {
            object[name] = number(self.quantile(share));
        }
        object
    }
}

impl Divergence {
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

    /// Adds the spreads and perplexities to the `logits` object of the report.
    pub(super) fn add_statistics(&self, object: &mut Value) {
        object["kl"] = self.kl_spread().to_json();
        let Some((reference, found)) = self.perplexities() else {
            return;
        };
        object["perplexity_reference"] = number(reference);
        object["perplexity"] = number(found);
        // of exp(x), to first order
        let error = |mean: f64, of_found| number(mean * self.nll_spread(of_found).standard_error());
        object["perplexity_reference_standard_error"] = error(reference, false);
        object["perplexity_standard_error"] = error(found, true);
        let (ratio, ratio_error) = self.ln_perplexity_ratio();
        object["ln_perplexity_ratio"] = number(ratio);
        object["ln_perplexity_ratio_standard_error"] = number(ratio_error);
        object["nll_correlation"] = number(self.nll_correlation());
        object["delta_p"] = self.delta_p().to_json();
    }

    /// Name and figure of every statistic, in the order and wording of `llama-perplexity --kl-divergence`;
    /// `Q` is what was found, `base` the reference.
    pub fn statistics(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
        if let Some((base, q)) = self.perplexities() {
            let of = |mean: f64, found| {
                format!(
                    "{mean:.6} \u{b1} {:.6}",
                    mean * self.nll_spread(found).standard_error()
                )
            };
            line("Mean PPL(Q)", of(q, true));
            line("Mean PPL(base)", of(base, false));
            let correlation = 100.0 * self.nll_correlation();
            line(
                "Cor(ln(PPL(Q)), ln(PPL(base)))",
                format!("{correlation:.2} %"),
            );
            let (ratio, error) = self.ln_perplexity_ratio();
            line(
                "Mean ln(PPL(Q)/PPL(base))",
                format!("{ratio:.6} \u{b1} {error:.6}"),
            );
            let (ratio, error) = (ratio.exp(), ratio.exp() * error);
            line(
                "Mean PPL(Q)/PPL(base)",
                format!("{ratio:.6} \u{b1} {error:.6}"),
            );
        }
        let kl = self.kl_spread();
        let mean = format!("{:.3e} \u{b1} {:.1e}", kl.mean(), kl.standard_error());
        line("Mean KLD", mean);
        let (most, prompt, position) = self.kl_max();
        line(
            "Maximum KLD",
            format!("{most:.3e} (prompt {prompt}, position {position})"),
        );
        for share in [0.999, 0.99, 0.95, 0.9, 0.5] {
            line(&named(share, "KLD"), format!("{:.3e}", kl.quantile(share)));
        }
        line("Minimum KLD", format!("{:.3e}", kl.min()));
        if !self.nll.is_empty() {
            let p = self.delta_p();
            let percent = |x: f64| format!("{:.3} %", 100.0 * x);
            let mean = format!(
                "{:.3} \u{b1} {:.3} %",
                100.0 * p.mean(),
                100.0 * p.standard_error()
            );
            line("Mean \u{394}p", mean);
            line("Maximum \u{394}p", percent(p.max()));
            for share in [0.999, 0.95, 0.5, 0.05, 0.001] {
                line(&named(share, "\u{394}p"), percent(p.quantile(share)));
            }
            line("Minimum \u{394}p", percent(p.min()));
            line("RMS \u{394}p", percent(p.rms()));
        }
        let share = |of: f64| {
            let n = (self.positions() as f64).max(1.0);
            let error = (of * (1.0 - of) / (n - 1.0).max(1.0)).sqrt();
            format!("{:.3} \u{b1} {:.3} %", 100.0 * of, 100.0 * error)
        };
        line("Same top p", share(self.top1_agreement()));
        line("Same five top p", share(self.top5_agreement()));
        lines
    }
}

fn named(share: f64, what: &str) -> String {
    match share {
        0.5 => format!("Median {what}"),
        share => format!("{:.1} % {what}", 100.0 * share),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_of_known_values() {
        let spread = Spread::new(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.mean(), spread.min(), spread.max()), (2.5, 1.0, 4.0));
        // variance 5/3 of four values
        assert!((spread.standard_error() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-15);
        assert!((spread.rms() - 7.5f64.sqrt()).abs() < 1e-15);
        assert_eq!((spread.quantile(0.5), spread.quantile(0.51)), (2.0, 3.0));
        assert_eq!((spread.quantile(0.0), spread.quantile(1.0)), (1.0, 4.0));
        let none = Spread::new(Vec::new());
        assert_eq!(
            (none.mean(), none.quantile(0.5), none.standard_error()),
            (0.0, 0.0, 0.0)
        );
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
        let names: Vec<String> = d.statistics().into_iter().map(|(name, _)| name).collect();
        assert!(
            names.contains(&"99.9 % KLD".to_owned()) && names.contains(&"RMS \u{394}p".to_owned())
        );
        let json = d.to_json("golden");
        assert!(json["delta_p"]["p999"].is_number() && json["kl"]["median"].is_number());
    }
}
