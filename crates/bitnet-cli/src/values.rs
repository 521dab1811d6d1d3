//! Values of flags that are numbers, each checked against its range where the command line is parsed.
//!
//! Invariant: NaN and infinity are no values; an error says the range and what was found.

use crate::suggest::did_you_mean;
use bitnet_formats::{PACKINGS, packing_by_name};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A whole number of a range, for clap's `value_parser`.
///
/// # Errors
/// One line saying what was expected.
pub fn whole<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let number = text.trim().parse::<T>().ok();
    number.filter(|n| range.contains(n)).ok_or_else(|| {
        format!(
            "expected a whole number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

/// A whole number from `least` on, for clap's `value_parser`.
///
/// # Errors
/// One line saying what was expected.
pub fn whole_from(text: &str, least: usize) -> Result<usize, String> {
    let number = text.trim().parse::<usize>().ok();
    number
        .filter(|n| *n >= least)
        .ok_or_else(|| format!("expected a whole number from {least} on"))
}

/// The name of a layout of GGUF tensors, for clap's `value_parser`.
///
/// # Errors
/// One line saying what was expected, and what was probably meant as a tip.
pub fn layout(text: &str) -> Result<String, String> {
    if packing_by_name(text).is_some_and(|packing| packing.gguf_type().is_some()) {
        return Ok(text.to_owned());
    }
    let packings = PACKINGS
        .iter()
        .filter(|packing| packing.gguf_type().is_some());
    let names: Vec<&str> = packings.map(|packing| packing.name()).collect();
    let expected = format!("expected one of {}", names.join(", "));
    // a tip becomes a hint
    Err(match did_you_mean(text, names) {
        Some(meant) => format!("{expected}\n\n  tip: {meant}"),
        None => expected,
    })
}

/// A finite number of a range, for clap's `value_parser`.
///
/// # Errors
/// One line saying what was expected.
pub fn number(text: &str, range: RangeInclusive<f32>) -> Result<f32, String> {
    let number = text.trim().parse::<f32>().ok();
    number
        .filter(|n| n.is_finite() && range.contains(n))
        .ok_or_else(|| match range.end().is_finite() {
            true => format!(
                "expected a number from {} to {}",
                range.start(),
                range.end()
            ),
            false => format!("expected a finite number from {} on", range.start()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_of_the_range_are_values() {
        assert_eq!(number("0.5", 0.0..=1.0), Ok(0.5));
        assert_eq!(number("1e3", 0.0..=f32::INFINITY), Ok(1000.0));
        for bad in [
            "nan", "NaN", "inf", "-inf", "infinity", "-0.1", "1e39", "", "x",
        ] {
            assert!(number(bad, 0.0..=f32::INFINITY).is_err(), "{bad}");
        }
        let error = number("1.5", 0.0..=1.0).unwrap_err();
        assert_eq!(error, "expected a number from 0 to 1");
        assert_eq!(whole("7", 0..=u64::MAX), Ok(7));
        assert!(
            whole("-1", 0..=u64::MAX)
                .unwrap_err()
                .contains("from 0 to 18446744073709551615")
        );
        assert_eq!(whole_from("1", 1), Ok(1));
        assert!(whole_from("0", 1).is_err());
    }
}
