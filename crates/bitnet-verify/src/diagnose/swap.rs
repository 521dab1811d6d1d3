//! Two blocks of trits that have changed places, found from what a linear made of its input.
//!
//! Invariant: the sums of a linear with int8 activations are integers, so a candidate fits exactly or not at all, at
//! every token; where the hash of the codes is known, it has the last word. Recorded values come from a file: one
//! that stands for no whole sum fits nothing.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::reference::golden::{Recorded, TernaryTruth, codes_sha256};
use bitnet_ternary::{Scales, TernaryMatrix, quantize_row};

/// Most rows that may differ.
const ROWS: usize = 2;
/// Sizes of the blocks that are tried.
const BLOCKS: [usize; 7] = [4, 8, 16, 32, 64, 128, 256];
/// Most candidates whose codes are hashed.
const HASHED: usize = 64;

/// Sums of one row at every token: recorded minus ours, `(tokens,)`.
struct Row {
    row: usize,
    missing: Vec<i64>,
}

/// The swap that makes `matrix` give the recorded output `y` for the recorded input `x`, as a sentence.
pub(super) fn find(
    matrix: &TernaryMatrix,
    x: &Recorded,
    y: &Recorded,
    truth: Option<&TernaryTruth>,
) -> Option<String> {
    let Scales::PerTensor(alpha) = matrix.normal_scales() else {
        return None;
    };
    let (rows, cols) = (matrix.rows(), matrix.cols());
    if x.cols != cols || y.cols != rows || x.rows != y.rows {
        return None;
    }
    let mut inputs = Vec::new(); // (tokens, cols)
    let mut factors = Vec::new(); // alpha / s of each token
    for token in x.values.chunks(cols) {
        let mut q = vec![0; cols];
        let (s, _) = quantize_row(token, &mut q).ok()?;
        inputs.push(q);
        factors.push(f64::from(alpha) / f64::from(s));
    }
    let sum =
        |trits: &[i8], q: &[i8]| -> i64 { trits.iter().zip(q).map(|(t, q)| product(*t, *q)).sum() };
    let mut differing = Vec::new();
    for row in 0..rows {
        let trits = matrix.row(row);
        let outputs = y.values.iter().skip(row).step_by(rows.max(1));
        let tokens = outputs.zip(inputs.iter().zip(&factors));
        let missing = tokens.map(|(recorded, (q, factor))| {
            whole(f64::from(*recorded) / factor)?.checked_sub(sum(trits, q))
        });
        let missing: Vec<i64> = missing.collect::<Option<_>>()?;
        if missing.iter().any(|d| *d != 0) {
            differing.push(Row { row, missing });
        }
        if differing.len() > ROWS {
            return None;
        }
    }
    let (one, other) = match &differing[..] {
        [one] => (one, one),
        [one, other] => (one, other),
        _ => return None,
    };
    let mut hashed = 0usize;
    for block in BLOCKS.into_iter().filter(|n| cols.is_multiple_of(*n)) {
        for a in (0..cols).step_by(block) {
            for b in (0..cols).step_by(block) {
                let within = one.row == other.row;
                if (within && b <= a) || !fits(matrix, &inputs, block, (one, a), (other, b)) {
                    continue;
                }
                let is_it = match truth {
                    Some(truth) => {
                        hashed = hashed.saturating_add(1);
                        let swapped = with_swap(matrix, block, (one.row, a), (other.row, b))?;
                        codes_sha256(&swapped) == truth.sha256
                    }
                    None => true,
                };
                if is_it {
                    return Some(format!(
                        "the {block} trits from row {}, column {a} have changed places with those from row {}, column {b}",
                        one.row, other.row
                    ));
                }
                if hashed >= HASHED {
                    return None;
                }
            }
        }
    }
    None
}

/// Whether the swap of two blocks accounts for what is missing, at every token.
fn fits(
    matrix: &TernaryMatrix,
    inputs: &[Vec<i8>],
    block: usize,
    (one, a): (&Row, usize),
    (other, b): (&Row, usize),
) -> bool {
    let part = |row: usize, at: usize| matrix.row(row).get(at..at.checked_add(block)?);
    let (Some(ours), Some(theirs)) = (part(one.row, a), part(other.row, b)) else {
        return false;
    };
    if ours == theirs {
        return false;
    }
    let missing = one.missing.iter().zip(&other.missing);
    inputs
        .iter()
        .zip(missing)
        .all(|(q, (one_lacks, other_lacks))| {
            // what a block gains that becomes the other one
            let gain = |at: usize, from: &[i8], to: &[i8]| -> i64 {
                let places = q.iter().skip(at).zip(from.iter().zip(to));
                places
                    .map(|(q, (from, to))| product(*q, *to).saturating_sub(product(*q, *from)))
                    .sum()
            };
            let (first, second) = (gain(a, ours, theirs), gain(b, theirs, ours));
            match one.row == other.row {
                true => first.checked_add(second) == Some(*one_lacks),
                false => first == *one_lacks && second == *other_lacks,
            }
        })
}

/// The trits with two blocks, each of a row and from a column on, in each other's place.
fn with_swap(
    matrix: &TernaryMatrix,
    block: usize,
    (row, a): (usize, usize),
    (other, b): (usize, usize),
) -> Option<Vec<i8>> {
    let mut trits = matrix.trits().to_vec();
    let cols = matrix.cols();
    let start = |row: usize, at: usize| row.checked_mul(cols)?.checked_add(at);
    let (first, second) = (start(row, a)?, start(other, b)?);
    for i in 0..block {
        let (one, two) = (first.checked_add(i)?, second.checked_add(i)?);
        if one.max(two) >= trits.len() {
            return None;
        }
        trits.swap(one, two);
    }
    Some(trits)
}

fn product(trit: i8, q: i8) -> i64 {
    i64::from(trit).saturating_mul(i64::from(q))
}

/// Largest magnitude up to which every whole number is an `f64` of its own.
const MOST_WHOLE: f64 = 9_007_199_254_740_992.0;

/// The whole number next to a recorded one; `None` for what is none, or too large to be told from the next.
fn whole(x: f64) -> Option<i64> {
    let x = x.round();
    // in this range the cast is exact
    (x.abs() <= MOST_WHOLE).then_some(x as i64)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    const COLS: usize = 64;

    /// A linear of two rows, an input, and what another linear, with blocks swapped, makes of it.
    fn recorded() -> (TernaryMatrix, Recorded, Recorded) {
        let trits: Vec<i8> = (0..2 * COLS)
            .map(|i| [1, 0, -1, -1, 1][i * i % 5])
            .collect();
        let right = TernaryMatrix::new(2, COLS, trits.clone(), Scales::PerTensor(0.5)).unwrap();
        let mut swapped = trits;
        for i in 0..4 {
            swapped.swap(8 + i, COLS + 20 + i);
        }
        let values: Vec<f32> = (0..3 * COLS)
            .map(|i| (i * 37 % 101) as f32 - 50.0)
            .collect();
        let mut output = Vec::new();
        for token in values.chunks(COLS) {
            let mut q = vec![0; COLS];
            let (s, _) = quantize_row(token, &mut q).unwrap();
            for row in swapped.chunks(COLS) {
                let sum: i32 = row
                    .iter()
                    .zip(&q)
                    .map(|(t, q)| i32::from(*t) * i32::from(*q))
                    .sum();
                output.push(sum as f32 * 0.5 / s);
            }
        }
        let recorded = |values: Vec<f32>, cols| Recorded {
            rows: 3,
            cols,
            values,
        };
        (right, recorded(values, COLS), recorded(output, 2))
    }

    #[test]
    fn a_swap_is_found_from_the_output() {
        let (matrix, x, y) = recorded();
        let found = find(&matrix, &x, &y, None).expect("a swap");
        assert!(
            found.contains("row 0, column 8") && found.contains("row 1, column 20"),
            "{found}"
        );
    }

    #[test]
    fn recorded_values_that_are_no_sums_fit_nothing() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e30] {
            let (matrix, x, mut y) = recorded();
            for at in 0..y.values.len() {
                let right = std::mem::replace(&mut y.values[at], bad);
                assert_eq!(find(&matrix, &x, &y, None), None, "{bad} at {at}");
                y.values[at] = right;
            }
        }
        assert_eq!(
            (whole(f64::NAN), whole(1e300), whole(-3.4)),
            (None, None, Some(-3))
        );
        // a record that is shorter than it says
        let (matrix, x, mut y) = recorded();
        y.values.pop();
        let _ = find(&matrix, &x, &y, None);
    }
}
