//! Figures of reports: percentages, ratios and other rounded numbers.
//!
//! Invariant: a number that is printed as zero has no sign.

/// A number with so many digits behind the point: `fixed(-0.0004, 3)` is `0.000`.
pub fn fixed(value: f64, digits: usize) -> String {
    without_sign_of_zero(format!("{value:.digits$}"))
}

/// A number with an exponent and so many digits behind the point: `scientific(-0.0, 1)` is `0.0e0`.
pub fn scientific(value: f64, digits: usize) -> String {
    without_sign_of_zero(format!("{value:.digits$e}"))
}

/// A share as a percentage: `percent(0.125, 1)` is `12.5 %`.
pub fn percent(share: f64, digits: usize) -> String {
    format!("{} %", fixed(100.0 * share, digits))
}

fn without_sign_of_zero(text: String) -> String {
    let number = text.split('e').next().unwrap_or(&text);
    match number.bytes().all(|b| b"-0.".contains(&b)) {
        true => text.trim_start_matches('-').to_owned(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_has_no_sign() {
        for (value, digits, expected) in [
            (-0.0004, 3, "0.000"),
            (-0.0005001, 3, "-0.001"),
            (-0.4, 0, "0"),
            (-0.6, 0, "-1"),
            (-0.0, 2, "0.00"),
            (0.0, 2, "0.00"),
            (-10.0, 0, "-10"),
            (f64::NEG_INFINITY, 1, "-inf"),
            (f64::NAN, 1, "NaN"),
        ] {
            assert_eq!(fixed(value, digits), expected, "{value}");
        }
        assert_eq!(scientific(-0.0, 1), "0.0e0");
        assert_eq!(scientific(-1e-20, 1), "-1.0e-20");
        assert_eq!(scientific(-2.04, 1), "-2.0e0");
        assert_eq!(percent(-0.000_004, 3), "0.000 %");
        assert_eq!(percent(0.125, 1), "12.5 %");
        assert_eq!(percent(-0.5, 0), "-50 %");
    }
}
