//! The figures of a divergence as users of llama.cpp's `--kl-divergence` know them.

use crate::reference::divergence::Divergence;
use bitnet_cli::{fixed, percent, scientific};

/// Name and figure of every statistic, in the order and wording of `llama-perplexity --kl-divergence`;
/// `Q`
/// is what was found, `base` the reference.
pub(super) fn statistics(divergence: &Divergence) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push((name.to_owned(), value));
    let both = |value: f64, error: f64, digits: usize| {
        format!("{} \u{b1} {}", fixed(value, digits), fixed(error, digits))
    };
    if let Some((base, q)) = divergence.perplexities() {
        let of = |mean: f64, found| {
            let error = mean * divergence.nll_spread(found).standard_error();
            both(mean, error, 6)
        };
        line("Mean PPL(Q)", of(q, true));
        line("Mean PPL(base)", of(base, false));
        line(
            "Cor(ln(PPL(Q)), ln(PPL(base)))",
            percent(divergence.nll_correlation(), 2),
        );
        let (ratio, error) = divergence.ln_perplexity_ratio();
        line("Mean ln(PPL(Q)/PPL(base))", both(ratio, error, 6));
        let (ratio, error) = (ratio.exp(), ratio.exp() * error);
        line("Mean PPL(Q)/PPL(base)", both(ratio, error, 6));
    }
    let kl = divergence.kl_spread();
    let (mean, error) = (kl.mean(), kl.standard_error());
    line(
        "Mean KLD",
        format!("{} \u{b1} {}", scientific(mean, 3), scientific(error, 1)),
    );
    let (most, prompt, position) = divergence.kl_max();
    let most = scientific(most, 3);
    line(
        "Maximum KLD",
        format!("{most} (prompt {prompt}, position {position})"),
    );
    for share in [0.999, 0.99, 0.95, 0.9, 0.5] {
        line(&named(share, "KLD"), scientific(kl.quantile(share), 3));
    }
    line("Minimum KLD", scientific(kl.min(), 3));
    // as a percentage, with its error
    let shares = |of: f64, error: f64| format!("{} %", both(100.0 * of, 100.0 * error, 3));
    if divergence.perplexities().is_some() {
        let p = divergence.delta_p();
        line("Mean \u{394}p", shares(p.mean(), p.standard_error()));
        line("Maximum \u{394}p", percent(p.max(), 3));
        for share in [0.999, 0.95, 0.5, 0.05, 0.001] {
            line(&named(share, "\u{394}p"), percent(p.quantile(share), 3));
        }
        line("Minimum \u{394}p", percent(p.min(), 3));
        line("RMS \u{394}p", percent(p.rms(), 3));
    }
    let same = |of: f64| {
        let n = (divergence.positions() as f64).max(1.0);
        let error = (of * (1.0 - of) / (n - 1.0).max(1.0)).sqrt();
        shares(of, error)
    };
    line("Same top p", same(divergence.top1_agreement()));
    line("Same five top p", same(divergence.top5_agreement()));
    lines
}

fn named(share: f64, what: &str) -> String {
    match share {
        0.5 => format!("Median {what}"),
        share => format!("{} {what}", percent(share, 1)),
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

    #[test]
    fn a_change_that_is_rounded_to_nothing_has_no_sign() {
        let mut d = Divergence::default();
        // the token that follows becomes a little less likely, by less than the last digit
        let (before, after) = ([0.0, 1.0f32], [1e-6, 1.0f32]);
        d.add(
            "p",
            Some(&[1, 1]),
            2,
            &[before, before].concat(),
            &[after, after].concat(),
        );
        assert!(d.delta_p().mean() < 0.0 && d.ln_perplexity_ratio().0 > 0.0);
        let of = |name: &str, lines: &[(String, String)]| {
            let found = lines.iter().find(|(n, _)| n == name);
            found.map(|(_, figure)| figure.clone()).unwrap_or_default()
        };
        let lines = statistics(&d);
        assert_eq!(of("Mean \u{394}p", &lines), "0.000 \u{b1} 0.000 %");
        assert_eq!(of("Minimum \u{394}p", &lines), "0.000 %");
        let mut other = Divergence::default();
        other.add(
            "p",
            Some(&[1, 1]),
            2,
            &[after, after].concat(),
            &[before, before].concat(),
        );
        assert!(other.ln_perplexity_ratio().0 < 0.0);
        let lines = [lines, statistics(&other)].concat();
        for (name, figure) in lines {
            let words = figure.split_whitespace();
            let mut numbers = words.filter_map(|word| Some((word, word.parse::<f64>().ok()?)));
            assert!(
                numbers.all(|(word, number)| number != 0.0 || !word.starts_with('-')),
                "{name}: {figure}"
            );
        }
    }
}
