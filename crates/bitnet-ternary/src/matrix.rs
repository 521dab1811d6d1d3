//! The neutral value between formats and kernels: trits and their scales.
//!
//! Invariant: `trits.len() == rows * cols`, every trit is −1, 0 or +1, `cols < MAX_COLS`, the scale
//! count fits the shape and every scale is finite and not negative. The constructor is the only
//! gate, so nothing behind it checks again. Trits are `i8` rather than an enum because every loop
//! over them is to be vectorized by the compiler.

use crate::scales::{GROUP_SIZES, Scales};
use std::fmt;

/// Columns at which `sum |trit * int8|` could leave the range of exact `f32` integers (2^24).
/// `127 * 132_104 > 2^24`; see `formats/numerics.md`.
pub const MAX_COLS: usize = 132_104;

/// A matrix of trits with its scales: `weight[r][c] = trits[r * cols + c] * scale(r, c)`.
///
/// ```
/// use bitnet_ternary::{MatrixError, Scales, TernaryMatrix};
///
/// let trits = vec![1, 0, -1, 0, 1, 1];
/// let matrix = TernaryMatrix::new(2, 3, trits, Scales::PerRow(vec![0.5, 2.0]))?;
/// assert_eq!(matrix.row(1), [0, 1, 1]);
/// assert_eq!(matrix.scales().at(1, 0, matrix.cols()), 2.0);
/// assert_eq!(matrix.counts(), [1, 2, 3]); // -1, 0, +1
///
/// let not_a_trit = TernaryMatrix::new(1, 1, vec![2], Scales::PerTensor(1.0));
/// assert!(matches!(not_a_trit, Err(MatrixError::NotATrit { .. })));
/// # Ok::<(), MatrixError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TernaryMatrix {
    rows: usize,
    cols: usize,
    trits: Vec<i8>, // (rows, cols)
    scales: Scales,
}

/// Why a set of trits and scales is not a ternary matrix.
#[derive(Debug, Clone, PartialEq)]
pub enum MatrixError {
    /// Number of trits does not equal `rows * cols`.
    TritCount {
        /// `rows * cols`
        expected: usize,
        /// length of the slice given
        found: usize,
    },
    /// A value other than −1, 0, +1.
    NotATrit {
        /// Row of the first offender.
        row: usize,
        /// Column of the first offender.
        col: usize,
        /// Its value.
        found: i8,
    },
    /// Too many columns for exact accumulation.
    TooManyColumns {
        /// Columns given.
        cols: usize,
    },
    /// Number of scales does not fit the shape.
    ScaleCount {
        /// Scales the shape needs.
        expected: usize,
        /// Scales given.
        found: usize,
    },
    /// Unsupported group size, or columns not a multiple of it.
    Group {
        /// Columns per group.
        group: usize,
        /// Columns of the matrix.
        cols: usize,
    },
    /// A scale that is NaN, infinite or negative.
    BadScale {
        /// Index in storage order.
        index: usize,
        /// Its value.
        found: f32,
    },
}

impl fmt::Display for MatrixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TritCount { expected, found } => {
                write!(f, "expected {expected} trits, found {found}")
            }
            Self::NotATrit { row, col, found } => {
                write!(
                    f,
                    "row {row}, column {col}: expected a trit (-1, 0, +1), found {found}"
                )
            }
            Self::TooManyColumns { cols } => {
                write!(
                    f,
                    "{cols} columns, at most {} accumulate exactly",
                    MAX_COLS - 1
                )
            }
            Self::ScaleCount { expected, found } => {
                write!(f, "expected {expected} scales, found {found}")
            }
            Self::Group { group, cols } => write!(
                f,
                "groups of {group} columns do not fit {cols} columns (groups of {GROUP_SIZES:?} that divide the columns do)"
            ),
            Self::BadScale { index, found } => {
                write!(
                    f,
                    "scale {index}: expected a finite number that is not negative, found {found}"
                )
            }
        }
    }
}

impl std::error::Error for MatrixError {}

impl TernaryMatrix {
    /// Checks and builds a matrix. `trits` is row-major `(rows, cols)`.
    ///
    /// # Errors
    /// Every broken part of the invariant has its own [`MatrixError`].
    pub fn new(
        rows: usize,
        cols: usize,
        trits: Vec<i8>,
        scales: Scales,
    ) -> Result<Self, MatrixError> {
        let expected = rows.saturating_mul(cols);
        if trits.len() != expected {
            return Err(MatrixError::TritCount {
                expected,
                found: trits.len(),
            });
        }
        // one branch-free pass, so that it vectorizes; the slow search runs only on failure
        let bad = trits
            .iter()
            .fold(0u8, |acc, &t| acc | u8::from(t.wrapping_add(1) as u8 > 2));
        if bad != 0 {
            let at = trits
                .iter()
                .position(|&t| t.wrapping_add(1) as u8 > 2)
                .unwrap_or(0);
            return Err(MatrixError::NotATrit {
                row: at.checked_div(cols).unwrap_or(0),
                col: at.checked_rem(cols).unwrap_or(0),
                found: trits.get(at).copied().unwrap_or(0),
            });
        }
        Self::check(rows, cols, &scales)?;
        Ok(Self {
            rows,
            cols,
            trits,
            scales,
        })
    }

    /// Checks everything of the invariant but the trits.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn check(rows: usize, cols: usize, scales: &Scales) -> Result<(), MatrixError> {
        if cols >= MAX_COLS {
            return Err(MatrixError::TooManyColumns { cols });
        }
        if let Scales::PerGroup { group, .. } = scales
            && (!GROUP_SIZES.contains(group) || !cols.is_multiple_of(*group))
        {
            return Err(MatrixError::Group {
                group: *group,
                cols,
            });
        }
        let expected = scales.expected_len(rows, cols);
        let values = scales.as_slice();
        if values.len() != expected {
            return Err(MatrixError::ScaleCount {
                expected,
                found: values.len(),
            });
        }
        let mut numbered = values.iter().enumerate();
        let is_bad = |s: f32| !s.is_finite() || s.is_sign_negative() && s != 0.0;
        if let Some((index, found)) = numbered.find(|(_, s)| is_bad(**s)) {
            return Err(MatrixError::BadScale {
                index,
                found: *found,
            });
        }
        Ok(())
    }

    /// Output features, `M`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, `K`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All trits, row-major `(rows, cols)`.
    pub fn trits(&self) -> &[i8] {
        &self.trits
    }

    /// How many trits are -1, 0 and +1.
    pub fn counts(&self) -> [u64; 3] {
        [-1, 0, 1].map(|trit| self.trits.iter().filter(|t| **t == trit).count() as u64)
    }

    /// One row of trits, `(cols,)`.
    ///
    /// # Panics
    /// For a row that the matrix does not have.
    #[expect(
        clippy::indexing_slicing,
        reason = "a wrong row is a bug of the caller"
    )]
    pub fn row(&self, row: usize) -> &[i8] {
        let start = row.saturating_mul(self.cols);
        &self.trits[start..start.saturating_add(self.cols)]
    }

    /// The scales.
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// The trits, consuming the matrix (to reuse the buffer).
    pub fn into_trits(self) -> Vec<i8> {
        self.trits
    }

    /// The same matrix with its rows reordered: row `r` of the result is row `source(r)` of `self`.
    /// Per-row and per-group scales travel with their rows.
    ///
    /// # Panics
    /// If `source` names a row that the matrix does not have.
    #[expect(
        clippy::indexing_slicing,
        reason = "a wrong row is a bug of the caller"
    )]
    pub fn permute_rows(&self, source: impl Fn(usize) -> usize) -> Self {
        let mut trits = Vec::with_capacity(self.trits.len());
        for r in 0..self.rows {
            trits.extend_from_slice(self.row(source(r)));
        }
        let scales = match &self.scales {
            Scales::PerTensor(s) => Scales::PerTensor(*s),
            Scales::PerRow(s) => Scales::PerRow((0..self.rows).map(|r| s[source(r)]).collect()),
            Scales::PerGroup { group, scales } => {
                let n = self.cols.checked_div(*group).unwrap_or(0);
                let of = |r: usize| {
                    let start = source(r).saturating_mul(n);
                    scales[start..start.saturating_add(n)].iter().copied()
                };
                Scales::PerGroup {
                    group: *group,
                    scales: (0..self.rows).flat_map(of).collect(),
                }
            }
        };
        Self {
            rows: self.rows,
            cols: self.cols,
            trits,
            scales,
        }
    }

    /// The scales in normal form, the one that every container of a model agrees on:
    /// repeated scales collapse to the coarsest structure that says the same, and scales that
    /// multiply no non-zero trit do not vote (packings store 0 or anything there).
    ///
    /// An all-zero matrix has no voter: its normal form is `PerTensor(0.0)`. Rows (or groups)
    /// without a voter inside a finer structure get 0. See `formats/certificate.md`.
    pub fn normal_scales(&self) -> Scales {
        let (per_row, group) = match &self.scales {
            Scales::PerTensor(_) => {
                let any = self.trits.iter().any(|&t| t != 0);
                let scale = self.scales.as_slice().first().filter(|_| any);
                return Scales::PerTensor(scale.copied().unwrap_or(0.0));
            }
            Scales::PerRow(_) => (1, self.cols),
            Scales::PerGroup { group, .. } => (self.cols.checked_div(*group).unwrap_or(0), *group),
        };
        let values = self.scales.as_slice();
        let votes: Vec<Option<f32>> = if group == 0 {
            vec![None; values.len()]
        } else {
            self.trits
                .chunks_exact(group)
                .zip(values)
                .map(|(t, s)| t.iter().any(|&t| t != 0).then_some(*s))
                .collect()
        };
        if let Some(one) = unanimous(&votes) {
            return Scales::PerTensor(one);
        }
        let rows: Option<Vec<f32>> = votes.chunks_exact(per_row.max(1)).map(unanimous).collect();
        if let Some(rows) = rows {
            return Scales::PerRow(rows);
        }
        // the coarsest groups that say the same; those of the file at worst
        let coarser = GROUP_SIZES
            .into_iter()
            .rev()
            .filter(|&g| g > group && g.is_multiple_of(group) && self.cols.is_multiple_of(g));
        for wide in coarser {
            let groups = wide.checked_div(group).unwrap_or(1);
            let joined = votes.chunks_exact(groups).map(unanimous);
            if let Some(scales) = joined.collect() {
                return Scales::PerGroup {
                    group: wide,
                    scales,
                };
            }
        }
        Scales::PerGroup {
            group,
            scales: votes.into_iter().map(|v| v.unwrap_or(0.0)).collect(),
        }
    }
}

/// The one value (by bits) all voters agree on; 0 when nobody votes; `None` when they differ.
fn unanimous(votes: &[Option<f32>]) -> Option<f32> {
    let mut voters = votes.iter().flatten();
    let Some(first) = voters.next() else {
        return Some(0.0);
    };
    voters
        .all(|v| v.to_bits() == first.to_bits())
        .then_some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_is_not_a_ternary_matrix() {
        let one = Scales::PerTensor(1.0);
        assert!(matches!(
            TernaryMatrix::new(2, 2, vec![0; 3], one.clone()),
            Err(MatrixError::TritCount {
                expected: 4,
                found: 3
            })
        ));
        for bad in [2i8, -2, 127, -128] {
            assert_eq!(
                TernaryMatrix::new(2, 2, vec![0, 1, bad, -1], one.clone()),
                Err(MatrixError::NotATrit {
                    row: 1,
                    col: 0,
                    found: bad
                })
            );
        }
        assert!(TernaryMatrix::new(1, 1, vec![0], Scales::PerTensor(f32::NAN)).is_err());
        assert!(TernaryMatrix::new(1, 1, vec![0], Scales::PerTensor(-1.0)).is_err());
        assert!(TernaryMatrix::new(2, 1, vec![0; 2], Scales::PerRow(vec![1.0])).is_err());
        assert!(
            TernaryMatrix::new(
                1,
                48,
                vec![0; 48],
                Scales::PerGroup {
                    group: 32,
                    scales: vec![1.0]
                }
            )
            .is_err()
        );
    }

    #[test]
    fn normal_form_collapses_repeats_and_ignores_silent_groups() {
        let mut trits = vec![0i8; 2 * 64];
        trits[0] = 1;
        trits[40] = -1;
        trits[64] = 1;
        let grouped = |s: [f32; 4]| {
            TernaryMatrix::new(
                2,
                64,
                trits.clone(),
                Scales::PerGroup {
                    group: 32,
                    scales: s.to_vec(),
                },
            )
            .unwrap()
            .normal_scales()
        };
        // the last group has no trit: whatever stands there does not vote
        assert_eq!(grouped([0.5, 0.5, 0.5, 0.0]), Scales::PerTensor(0.5));
        assert_eq!(
            grouped([0.5, 0.5, 0.25, 9.0]),
            Scales::PerRow(vec![0.5, 0.25])
        );
        assert_eq!(
            grouped([0.5, 0.25, 0.5, 9.0]),
            Scales::PerGroup {
                group: 32,
                scales: vec![0.5, 0.25, 0.5, 0.0]
            }
        );
        // groups of 32 that repeat in pairs are groups of 64
        let pairs = Scales::PerGroup {
            group: 32,
            scales: vec![0.5, 0.5, 0.25, 0.25],
        };
        let m = TernaryMatrix::new(1, 128, vec![1; 128], pairs).unwrap();
        let joined = Scales::PerGroup {
            group: 64,
            scales: vec![0.5, 0.25],
        };
        assert_eq!(m.normal_scales(), joined);
        let zero = TernaryMatrix::new(2, 64, vec![0; 128], Scales::PerTensor(1e-5)).unwrap();
        assert_eq!(zero.normal_scales(), Scales::PerTensor(0.0));
    }

    #[test]
    fn permuting_rows_carries_their_scales() {
        let m =
            TernaryMatrix::new(2, 2, vec![1, 0, -1, -1], Scales::PerRow(vec![1.0, 2.0])).unwrap();
        let p = m.permute_rows(|r| 1 - r);
        assert_eq!(p.trits(), [-1, -1, 1, 0]);
        assert_eq!(p.scales(), &Scales::PerRow(vec![2.0, 1.0]));
    }
}
