//! Two blocks of trits that have changed places, found from what a linear made of its input.
//!
//! Invariant: the sums of a linear with int8 activations are integers, so a candidate fits exactly or not at all, at
//! every token; where the hash of the codes is known, it has the last word.

use crate::reference::golden::{Recorded, TernaryTruth, codes_sha256};
use bitnet_ternary::{Scales, TernaryMatrix, quantize_row};

/// Most rows that may differ.
const ROWS: usize = 2;
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
    let sum = |trits: &[i8], q: &[i8]| -> i64 {
        trits
            .iter()
            .zip(q)
            .map(|(t, q)| i64::from(*t) * i64::from(*q))
            .sum()
    };
    let mut differing = Vec::new();
    for row in 0..rows {
        let trits = matrix.row(row);
        let missing = inputs
            .iter()
            .zip(&factors)
            .enumerate()
            .map(|(token, (q, factor))| {
                let recorded = f64::from(y.values[token * rows + row]) / factor;
                recorded.round() as i64 - sum(trits, q)
            });
        let missing: Vec<i64> = missing.collect();
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
    let mut hashed = 0;
    for block in (2..=8)
        .map(|n| 1 << n)
        .filter(|n: &usize| cols.is_multiple_of(*n))
    {
        for a in (0..cols).step_by(block) {
            for b in (0..cols).step_by(block) {
                let within = one.row == other.row;
                if (within && b <= a) || !fits(matrix, &inputs, block, (one, a), (other, b)) {
                    continue;
                }
                let is_it = match truth {
                    Some(truth) => {
                        hashed += 1;
                        let swapped = with_swap(matrix, block, (one.row, a), (other.row, b));
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
    let ours = &matrix.row(one.row)[a..a + block];
    let theirs = &matrix.row(other.row)[b..b + block];
    if ours == theirs {
        return false;
    }
    inputs.iter().enumerate().all(|(token, q)| {
        // what a block gains that becomes the other one
        let gain = |at: usize, from: &[i8], to: &[i8]| -> i64 {
            let places = q[at..at + block].iter().zip(from.iter().zip(to));
            places
                .map(|(q, (from, to))| i64::from(*q) * i64::from(to - from))
                .sum()
        };
        let (first, second) = (gain(a, ours, theirs), gain(b, theirs, ours));
        match one.row == other.row {
            true => first + second == one.missing[token],
            false => first == one.missing[token] && second == other.missing[token],
        }
    })
}

/// The trits with two blocks, each of a row and from a column on, in each other's place.
fn with_swap(
    matrix: &TernaryMatrix,
    block: usize,
    (row, a): (usize, usize),
    (other, b): (usize, usize),
) -> Vec<i8> {
    let mut trits = matrix.trits().to_vec();
    let cols = matrix.cols();
    for i in 0..block {
        trits.swap(row * cols + a + i, other * cols + b + i);
    }
    trits
}
