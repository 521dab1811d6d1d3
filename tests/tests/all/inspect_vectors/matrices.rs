//! Ternary matrices with every kind of structure that weights, damaged ones and vectors have.
//!
//! Invariant: the same seed gives the same matrix.

use bitnet_ternary::{Scales, TernaryMatrix, f16_to_f32, f32_to_f16};
use bitnet_tests::random::Random;

/// Where zeros and signs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Noise,
    Sparse,
    Dense,
    Rows,
    Columns,
    RowsAndColumns,
    Gains,
    SignsOfRows,
    SignsOfColumns,
    ZeroRows,
    FourthRows,
    DeadColumns,
    DeadBlockOfColumns,
    ZeroBlocks,
    Heads,
    Bands,
    Ramp,
    Runs,
    RepeatedRow,
    Checkered,
    AllZero,
    AllPlus,
    AllMinus,
}

/// Every kind.
pub const KINDS: [Kind; 23] = [
    Kind::Noise,
    Kind::Sparse,
    Kind::Dense,
    Kind::Rows,
    Kind::Columns,
    Kind::RowsAndColumns,
    Kind::Gains,
    Kind::SignsOfRows,
    Kind::SignsOfColumns,
    Kind::ZeroRows,
    Kind::FourthRows,
    Kind::DeadColumns,
    Kind::DeadBlockOfColumns,
    Kind::ZeroBlocks,
    Kind::Heads,
    Kind::Bands,
    Kind::Ramp,
    Kind::Runs,
    Kind::RepeatedRow,
    Kind::Checkered,
    Kind::AllZero,
    Kind::AllPlus,
    Kind::AllMinus,
];

fn share(random: &mut Random) -> f64 {
    random.below(1 << 20) as f64 / f64::from(1 << 20)
}

/// Gains of a norm: in turn none, all 1, and different ones.
pub fn gains_of(n: usize, cols: usize, random: &mut Random) -> Option<Vec<f32>> {
    match n % 3 {
        0 => None,
        1 => Some(vec![1.0; cols]),
        _ => Some((0..cols).map(|_| share(random) as f32 + 0.01).collect()),
    }
}

/// Trits of this kind, with one scale.
pub fn matrix(
    kind: Kind,
    (rows, cols): (usize, usize),
    gains: Option<&[f32]>,
    random: &mut Random,
) -> TernaryMatrix {
    let trits = trits(kind, (rows, cols), gains, random);
    TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(0.03125)).unwrap()
}

/// Trits of this kind, with one scale per 128 columns: all alike, of one order of magnitude, of several, in turn.
pub fn grouped(
    kind: Kind,
    (rows, cols): (usize, usize),
    n: usize,
    random: &mut Random,
) -> TernaryMatrix {
    let trits = trits(kind, (rows, cols), None, random);
    let scale = |random: &mut Random| match n % 3 {
        0 => 0.0123,
        1 => 0.01 + 0.02 * share(random) as f32,
        _ => 2f32.powi(4 - random.below(12) as i32) * (1.0 + share(random) as f32),
    };
    let groups = rows * cols / 128;
    let scales = (0..groups)
        .map(|_| f16_to_f32(f32_to_f16(scale(random))))
        .collect();
    TernaryMatrix::new(rows, cols, trits, Scales::PerGroup { group: 128, scales }).unwrap()
}

fn trits(
    kind: Kind,
    (rows, cols): (usize, usize),
    gains: Option<&[f32]>,
    random: &mut Random,
) -> Vec<i8> {
    let shares =
        |n: usize, random: &mut Random| -> Vec<f64> { (0..n).map(|_| share(random)).collect() };
    let (of_row, of_col) = (shares(rows, random), shares(cols, random));
    let base = 0.2 + 0.4 * share(random);
    let block = 16 << random.below(5);
    let blocks = shares(rows * cols.div_ceil(block), random);
    let first = random.below(cols);
    let period = 2 + random.below(6);
    let head = 16 << random.below(4);
    let row_of_all: Vec<i8> = (0..cols).map(|_| random.below(3) as i8 - 1).collect();
    let mut last = 0;
    let mut trit = |row: usize, col: usize| -> i8 {
        let zero = match kind {
            Kind::Ramp => return ((row * cols + col) % 3) as i8 - 1,
            Kind::RepeatedRow => return row_of_all[col],
            Kind::AllZero => return 0,
            Kind::AllPlus => return 1,
            Kind::AllMinus => return -1,
            Kind::Noise | Kind::SignsOfRows | Kind::SignsOfColumns | Kind::Runs => base,
            Kind::Sparse => 0.95,
            Kind::Dense => 0.02,
            Kind::Rows => of_row[row],
            Kind::Columns => of_col[col],
            Kind::RowsAndColumns => 0.5 * (of_row[row] + of_col[col]),
            Kind::Gains => {
                0.8 - 0.7 * f64::from(gains.map_or(of_col[col] as f32, |g| g[col])).min(1.0)
            }
            Kind::ZeroRows if of_row[row] < 0.3 => 1.0,
            Kind::FourthRows if row % 4 == period % 4 => 0.9,
            Kind::DeadColumns if of_col[col] < 0.1 => 1.0,
            Kind::DeadBlockOfColumns if (first..first + block).contains(&col) => 1.0,
            Kind::ZeroBlocks if blocks[row * cols.div_ceil(block) + col / block] < 0.25 => 1.0,
            Kind::Heads => of_row[row / head],
            Kind::Bands => of_col[col / block],
            Kind::Checkered if (row / period + col / block).is_multiple_of(2) => 0.9,
            _ => base,
        };
        let plus = match kind {
            Kind::SignsOfRows => of_row[row],
            Kind::SignsOfColumns => of_col[col],
            _ => 0.5,
        };
        let drawn = match share(random) < zero {
            true => 0,
            false if share(random) < plus => 1,
            false => -1,
        };
        if kind == Kind::Runs && share(random) < 0.5 {
            return last;
        }
        last = drawn;
        drawn
    };
    (0..rows * cols).map(|e| trit(e / cols, e % cols)).collect()
}
