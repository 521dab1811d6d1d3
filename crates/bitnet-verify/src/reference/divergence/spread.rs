//! Values of many positions, and what they say together.
//!
//! Invariant: quantiles are nearest ranks, so every one is a value that occurred; standard errors are those of a
//! mean of independent values, as there.

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
        // the sum of no numbers that `sum` gives is -0
        self.0.iter().fold(0.0, |sum, x| sum + x) / (self.0.len() as f64).max(1.0)
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
        assert!(none.mean().is_sign_positive());
    }
}
