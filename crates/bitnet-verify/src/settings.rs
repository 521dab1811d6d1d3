//! `bitnet-verify.toml`: bounds that a project commits, so that every run of its CI applies the same ones.
//!
//! Invariant: a key that is not known is an error, never ignored, and a flag of the command line is stronger than
//! the file.

use crate::reference::thresholds::Thresholds;
use bitnet_formats::{ErrorCode, FormatError, read_file};
use clap::Args;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The file that is read without being named, from the directory where the program runs.
pub const FILE_NAME: &str = "bitnet-verify.toml";

/// Longest settings file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Bounds as a file or a command line gives them: those that are absent stay as they were.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[command(next_help_heading = "Thresholds of --golden, --logits and --baseline")]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// Relative error of a linear from its recorded input [default: 1e-6]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub max_linear_error: Option<f64>,

    /// Relative error that more than half of the tokens behind layers stay below [default: 2e-6]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub typical_layer_error: Option<f64>,

    /// Relative error that every layer stays below [default: 2e-2]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub max_layer_error: Option<f64>,

    /// 1 - cosine of the angle between a text's vector and the golden one [default: 1e-3]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub max_embedding_distance: Option<f64>,

    /// Mean KL divergence from the golden logits [default: 2e-3]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub max_kl: Option<f64>,

    /// Share of positions with the golden most likely token [default: 0.96]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub min_top1: Option<f64>,

    /// Golden logit margin below which another most likely token is no error [default: 0.3]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub flip_margin: Option<f64>,

    /// Shift of the mean negative log likelihood of the golden stream [default: 0.02]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub max_nll_shift: Option<f64>,

    /// How much worse, relatively, a figure may be than in --baseline [default: 0.05]
    #[arg(long, value_name = "X", value_parser = bound, allow_hyphen_values = true, hide_short_help = true)]
    pub baseline_slack: Option<f64>,
}

fn bound(text: &str) -> Result<f64, String> {
    let bound = text
        .parse::<f64>()
        .ok()
        .filter(|x| x.is_finite() && *x >= 0.0);
    bound.ok_or_else(|| "expected a number that is not negative, for example 2e-3".to_owned())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    #[serde(default)]
    thresholds: Bounds,
}

impl Bounds {
    /// Of the file named, or of `bitnet-verify.toml` in the current directory if there is one; and which file it was.
    ///
    /// # Errors
    /// `io` for a named file that cannot be read, `malformed` with line and column for what is no settings file,
    /// `unsupported-config` for a bound that is no number from 0.
    pub fn read(named: Option<&Path>) -> Result<(Self, Option<PathBuf>), FormatError> {
        let path = match named {
            Some(path) => path,
            None if Path::new(FILE_NAME).is_file() => Path::new(FILE_NAME),
            None => return Ok((Self::default(), None)),
        };
        let bounds = Self::of(path).map_err(|e| e.in_file(path))?;
        Ok((bounds, Some(path.to_owned())))
    }

    fn of(path: &Path) -> Result<Self, FormatError> {
        let text = String::from_utf8(read_file(path, MOST_BYTES)?)
            .map_err(|_| FormatError::new(ErrorCode::Malformed, "expected UTF-8 text"))?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, FormatError> {
        let settings: Settings = toml::from_str(text).map_err(|e| {
            let place = e.span().map_or(String::new(), |span| {
                let before = text.get(..span.start).unwrap_or(text);
                format!("line {}: ", before.matches('\n').count() + 1)
            });
            FormatError::new(ErrorCode::Malformed, format!("{place}{}", e.message()))
                .hint("a table [thresholds] with the long flags as keys: max_kl = 2e-3")
                .because(e)
        })?;
        let bounds = settings.thresholds;
        for (key, value) in bounds.entries() {
            if value.is_some_and(|v| !v.is_finite() || v < 0.0) {
                let text = "expected a number that is not negative".to_owned();
                return Err(FormatError::new(ErrorCode::UnsupportedConfig, text).in_tensor(key));
            }
        }
        Ok(bounds)
    }

    fn entries(&self) -> [(&'static str, Option<f64>); 9] {
        [
            ("max_linear_error", self.max_linear_error),
            ("typical_layer_error", self.typical_layer_error),
            ("max_layer_error", self.max_layer_error),
            ("max_embedding_distance", self.max_embedding_distance),
            ("max_kl", self.max_kl),
            ("min_top1", self.min_top1),
            ("flip_margin", self.flip_margin),
            ("max_nll_shift", self.max_nll_shift),
            ("baseline_slack", self.baseline_slack),
        ]
    }

    /// These bounds, and where one is absent that of `weaker`.
    pub fn or(self, weaker: Self) -> Self {
        Self {
            max_linear_error: self.max_linear_error.or(weaker.max_linear_error),
            typical_layer_error: self.typical_layer_error.or(weaker.typical_layer_error),
            max_layer_error: self.max_layer_error.or(weaker.max_layer_error),
            max_embedding_distance: self
                .max_embedding_distance
                .or(weaker.max_embedding_distance),
            max_kl: self.max_kl.or(weaker.max_kl),
            min_top1: self.min_top1.or(weaker.min_top1),
            flip_margin: self.flip_margin.or(weaker.flip_margin),
            max_nll_shift: self.max_nll_shift.or(weaker.max_nll_shift),
            baseline_slack: self.baseline_slack.or(weaker.baseline_slack),
        }
    }

    /// The bounds of the gates, with the defaults of `formats/numerics.md`.
    pub fn thresholds(&self) -> Thresholds {
        let usual = Thresholds::default();
        Thresholds {
            linear_error: self.max_linear_error.unwrap_or(usual.linear_error),
            typical_layer_error: self
                .typical_layer_error
                .unwrap_or(usual.typical_layer_error),
            layer_error: self.max_layer_error.unwrap_or(usual.layer_error),
            embedding_distance: self
                .max_embedding_distance
                .unwrap_or(usual.embedding_distance),
            kl_mean: self.max_kl.unwrap_or(usual.kl_mean),
            top1: self.min_top1.unwrap_or(usual.top1),
            flip_margin: self.flip_margin.unwrap_or(usual.flip_margin),
            nll_shift: self.max_nll_shift.unwrap_or(usual.nll_shift),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_stronger_than_the_file() {
        let file = Bounds::parse("[thresholds]\nmax_kl = 0.5\nmin_top1 = 0.9\n").unwrap();
        let flags = Bounds {
            max_kl: Some(0.25),
            ..Bounds::default()
        };
        let thresholds = flags.or(file).thresholds();
        assert_eq!((thresholds.kl_mean, thresholds.top1), (0.25, 0.9));
        assert_eq!(thresholds.layer_error, Thresholds::default().layer_error);
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_line() {
        for (text, expected) in [
            ("[thresholds]\nmax_kl = 1\nmax_lk = 1\n", "line 3"),
            ("[threshold]\n", "line 1"),
            ("[thresholds]\nmax_kl = \"x\"\n", "line 2"),
            ("[thresholds]\nmax_kl = -1.0\n", "max_kl"),
            ("[thresholds]\nmax_kl = nan\n", "max_kl"),
        ] {
            let error = Bounds::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert_eq!(Bounds::parse("").unwrap(), Bounds::default());
    }
}
