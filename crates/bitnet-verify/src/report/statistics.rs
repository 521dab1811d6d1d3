//! The figures of a divergence as users of llama.cpp's `--kl-divergence` know them.

use crate::reference::divergence::Divergence;

/// Name and figure of every statistic, in the order and wording of `llama-perplexity --kl-divergence`;
/// `Q`
/// is what was found, `base` the reference.
pub(super) fn statistics(divergence: &Divergence) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
    if let Some((base, q)) = divergence.perplexities() {
        let of = |mean: f64, found| {
            format!(
                "{mean:.6} \u{b1} {:.6}",
                mean * divergence.nll_spread(found).standard_error()
            )
        };
        line("Mean PPL(Q)", of(q, true));
        line("Mean PPL(base)", of(base, false));
        let correlation = 100.0 * divergence.nll_correlation();
        line(
            "Cor(ln(PPL(Q)), ln(PPL(base)))",
            format!("{correlation:.2} %"),
        );
        let (ratio, error) = divergence.ln_perplexity_ratio();
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
    let kl = divergence.kl_spread();
    let mean = format!("{:.3e} \u{b1} {:.1e}", kl.mean(), kl.standard_error());
    line("Mean KLD", mean);
    let (most, prompt, position) = divergence.kl_max();
    line(
        "Maximum KLD",
        format!("{most:.3e} (prompt {prompt}, position {position})"),
    );
    for share in [0.999, 0.99, 0.95, 0.9, 0.5] {
        line(&named(share, "KLD"), format!("{:.3e}", kl.quantile(share)));
    }
    line("Minimum KLD", format!("{:.3e}", kl.min()));
    if divergence.perplexities().is_some() {
        let p = divergence.delta_p();
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
        let n = (divergence.positions() as f64).max(1.0);
        let error = (of * (1.0 - of) / (n - 1.0).max(1.0)).sqrt();
        format!("{:.3} \u{b1} {:.3} %", 100.0 * of, 100.0 * error)
    };
    line("Same top p", share(divergence.top1_agreement()));
    line("Same five top p", share(divergence.top5_agreement()));
    lines
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
    fn names_are_those_that_people_know() {
        let mut d = Divergence::default();
        let found = [0.0, 3.0f32.ln()];
        let found = [found, found].concat();
        d.add("p", Some(&[0, 1]), 2, &[0.0, 0.0, 0.0, 0.0], &found);
        let names: Vec<String> = statistics(&d).into_iter().map(|(name, _)| name).collect();
        for name in ["99.9 % KLD", "RMS \u{394}p", "Mean PPL(Q)", "Same top p"] {
            assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
        }
        let json = crate::report::json::of_divergence(&d, "golden");
        assert!(json["delta_p"]["p999"].is_number() && json["kl"]["median"].is_number());
    }
}
