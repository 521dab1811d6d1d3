//! What the order of trits betrays about a layout that nothing in the file names.
//!
//! Several layouts share one type id and one length (`formats/packing/i2_s.md`). The right one puts every
//! trit where its row and column are, and weights are not the same everywhere: rows and columns differ in
//! their share of zeros, and columns follow the norm that feeds them. A wrong layout tears some of that
//! apart. So each candidate is read, and the reading that can be *described* in the fewest bits is the right
//! one (minimum description length: Rissanen, *Modeling by shortest data description*, 1978). Neighbors are
//! no reason to believe in a layout: channels have no order that means anything, and what looks like one is
//! as easily made by a wrong layout as destroyed. But they are a reason to doubt: a layout is only ruled
//! out where blocks and runs do not describe it as shortly either ([`doubtful_code_length`]).
//!
//! Invariant: a code length is an honest one: what the best choice of parameters costs is in it, exactly (the
//! normalized maximum likelihood: Rissanen, *Fisher information and stochastic complexity*, 1996), so that
//! structure which is not there never shortens it by more than a few bits, and [`DECISIVE_BITS`] are an
//! accident of one in `2^64`.

use crate::packing::div_rem;

/// By how many bits the best reading has to beat the next.
pub const DECISIVE_BITS: f64 = 64.0;

/// Bins of a column vector: columns whose norm gain is alike share a context.
const BINS: usize = 16;

/// Columns that are counted together, from which larger blocks are summed up.
const CELL: usize = 16;

/// The shortest description of a matrix that one of the models finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodeLength {
    /// Bits in all.
    pub bits: f64,
    /// What the model looks at: `trits` (nothing), `rows`, `columns`, `norm gains`.
    pub model: &'static str,
}

/// Trits -1, 0 and +1 of one context.
type Counts = [u32; 3];

/// The shortest description of `trits`, row-major `(rows, cols)`, as entropy given a context plus the cost
/// of the contexts. `gains`: one number per column that the weights of the column may follow.
pub fn code_length(trits: &[i8], cols: usize, gains: Option<&[f32]>) -> CodeLength {
    let cols = cols.max(1);
    let rows: Vec<Counts> = trits.chunks_exact(cols).map(counts_of).collect();
    let mut candidates = vec![
        ("trits", bits(&[sum(&rows)])),
        ("rows", bits(&rows)),
        ("columns", bits(&count_columns(trits, cols))),
    ];
    if let Some(bins) = gains.filter(|g| g.len() == cols).and_then(bins) {
        candidates.push(("norm gains", bits(&count_bins(trits, &bins))));
    }
    let shortest = candidates.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let (model, bits) = shortest.unwrap_or(("trits", 0.0));
    CodeLength { bits, model }
}

/// As [`code_length`], in bits, with what weights rarely have and wrong layouts easily make of other
/// structure: blocks of columns, bands of rows, rows that repeat, all of these at once, trits that follow
/// their neighbors.
/// No reason to believe in a layout, but one not to rule it out.
pub fn doubtful_code_length(trits: &[i8], cols: usize, gains: Option<&[f32]>) -> f64 {
    let cols = cols.max(1);
    let mut shortest = code_length(trits, cols, gains).bits;
    let mut meet = |counts: &[Counts]| shortest = shortest.min(bits(counts));
    let rows: Vec<Counts> = trits.chunks_exact(cols).map(counts_of).collect();
    // the columns as one block where they are not whole cells
    let per_row = if cols.is_multiple_of(CELL) {
        cols / CELL
    } else {
        1
    };
    let cells: Vec<Counts> = match per_row {
        1 => rows.clone(),
        _ => {
            let cells = trits.chunks_exact(CELL).map(counts_of);
            cells.take(at(rows.len(), per_row, 0)).collect()
        }
    };
    let mut size: usize = 1;
    while size < per_row.saturating_mul(2) {
        let blocks = per_row.div_ceil(size);
        // (rows, blocks)
        let block = |i: usize| {
            let (row, cell) = div_rem(i, per_row);
            at(row, blocks, div_rem(cell, size).0)
        };
        let runs = folded(&cells, block, at(rows.len(), blocks, 0));
        meet(&runs);
        for n in [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64] {
            let (bands, period) = (rows.len().div_ceil(n), n.min(rows.len().max(1)));
            let band = |i: usize| {
                let (row, block) = div_rem(i, blocks);
                at(div_rem(row, n).0, blocks, block)
            };
            meet(&folded(&runs, band, at(bands, blocks, 0)));
            let phase = |i: usize| {
                let (row, block) = div_rem(i, blocks);
                at(div_rem(row, n).1, blocks, block)
            };
            meet(&folded(&runs, phase, at(period, blocks, 0)));
        }
        size = size.saturating_mul(2);
    }
    for distance in [1, 2, 4, cols] {
        meet(&count_after(trits, distance));
    }
    shortest
}

/// Where a row's element `col` is in a table of `width` columns.
fn at(row: usize, width: usize, col: usize) -> usize {
    row.saturating_mul(width).saturating_add(col)
}

/// Each column's bin: as many columns in each, ordered by the absolute gain. `None` for gains that do not
/// say where a bin ends: such bins would be blocks of neighbors.
fn bins(gains: &[f32]) -> Option<Vec<usize>> {
    if gains.len() < 4 * BINS {
        return None;
    }
    let mut order: Vec<(f32, usize)> = gains.iter().map(|gain| gain.abs()).zip(0..).collect();
    order.sort_by(|(a, i), (b, j)| a.total_cmp(b).then(i.cmp(j)));
    let bin = |rank: usize| div_rem(rank.saturating_mul(BINS), gains.len()).0;
    let mut bins = vec![0; gains.len()];
    for (rank, (_, col)) in order.iter().enumerate() {
        if let Some(to) = bins.get_mut(*col) {
            *to = bin(rank);
        }
    }
    let neighbors = order.iter().zip(order.iter().skip(1)).zip((0..).zip(1..));
    let blurred = neighbors
        .filter(|(_, (rank, next))| bin(*rank) != bin(*next))
        .any(|(((a, _), (b, _)), _)| a == b);
    (!blurred).then_some(bins)
}

/// Which of [`Counts`] a trit adds to.
#[inline(always)]
fn kind(trit: i8) -> usize {
    match trit {
        i8::MIN..=-1 => 0,
        0 => 1,
        _ => 2,
    }
}

/// Counts one trit in a context.
#[inline(always)]
fn add(counts: &mut [Counts], context: usize, trit: i8) {
    let count = counts.get_mut(context).and_then(|c| c.get_mut(kind(trit)));
    if let Some(count) = count {
        *count = count.saturating_add(1);
    }
}

/// Adds a trit to the counts of its context.
#[inline(always)]
fn add_to([negative, zero, positive]: &mut Counts, trit: i8) {
    *negative = negative.saturating_add(u32::from(trit < 0));
    *zero = zero.saturating_add(u32::from(trit == 0));
    *positive = positive.saturating_add(u32::from(trit > 0));
}

/// How often each trit stands in one context.
fn counts_of(trits: &[i8]) -> Counts {
    let mut counts = [0; 3];
    trits.iter().for_each(|trit| add_to(&mut counts, *trit));
    counts
}

/// The counts of each column of whole rows.
fn count_columns(trits: &[i8], cols: usize) -> Vec<Counts> {
    let mut counts = vec![[0; 3]; cols];
    for row in trits.chunks_exact(cols) {
        for (counts, trit) in counts.iter_mut().zip(row) {
            add_to(counts, *trit);
        }
    }
    counts
}

/// The counts of each bin of columns.
fn count_bins(trits: &[i8], bins: &[usize]) -> Vec<Counts> {
    let mut counts = vec![[0; 3]; BINS];
    for row in trits.chunks(bins.len()) {
        for (bin, trit) in bins.iter().zip(row) {
            add(&mut counts, *bin, *trit);
        }
    }
    counts
}

/// The counts of trits behind each other trit by `distance`, and of the first ones.
fn count_after(trits: &[i8], distance: usize) -> [Counts; 4] {
    let mut counts = [[0; 3]; 4];
    let (first, others) = trits.split_at(distance.min(trits.len()));
    for (before, trit) in trits.iter().zip(others) {
        add(&mut counts, kind(*before), *trit);
    }
    counts[3] = counts_of(first);
    counts
}

fn sum(counts: &[Counts]) -> Counts {
    counts.iter().fold([0; 3], |[a, b, c], [x, y, z]| {
        [
            a.saturating_add(*x),
            b.saturating_add(*y),
            c.saturating_add(*z),
        ]
    })
}

/// Contexts joined: those of the same `place` become one of `n`.
fn folded(counts: &[Counts], place: impl Fn(usize) -> usize, n: usize) -> Vec<Counts> {
    let mut joined = vec![[0; 3]; n];
    for (i, counts) in counts.iter().enumerate() {
        if let Some(to) = joined.get_mut(place(i)) {
            *to = sum(&[*to, *counts]);
        }
    }
    joined
}

/// Entropy of the trits given their context, and what the best shares of each context cost.
fn bits(counts: &[Counts]) -> f64 {
    let log = |n: f64| if n > 0.0 { n * n.log2() } else { 0.0 };
    let context = |counts: &Counts| {
        let n = f64::from(sum(&[*counts]).iter().sum::<u32>());
        if n == 0.0 {
            return 0.0;
        }
        let entropy = log(n) - counts.iter().map(|&c| log(f64::from(c))).sum::<f64>();
        entropy + parametric_complexity(n).log2()
    };
    counts.iter().map(context).sum()
}

/// The sum, over all sequences of `n` trits, of their probability under the shares that fit each best: that
/// of two symbols by Szpankowski's expansion (*Average Case Analysis of Algorithms on Sequences*, 2001), and
/// from it that of three by the recurrence of Kontkanen and Myllymaki (2007).
fn parametric_complexity(n: f64) -> f64 {
    use std::f64::consts::PI;
    let root = n.sqrt();
    (PI * n / 2.0).sqrt() + 2.0 / 3.0 + (2.0 * PI).sqrt() / (24.0 * root) + n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::{PackedTensor, packing_by_name};
    use bitnet_ternary::{Scales, TernaryMatrix};

    const LAYOUTS: [&str; 3] = ["i2_s", "i2_s-arm64", "i2_s-rows4"];

    fn random(state: &mut u64) -> f64 {
        *state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (*state >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Bits under each layout of a matrix that was packed in layout `written`; shares of zeros by `zeros`.
    fn lengths(
        written: &str,
        (rows, cols): (usize, usize),
        gains: Option<&[f32]>,
        zeros: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        let mut state = 3;
        let trits = (0..rows * cols)
            .map(|i| match random(&mut state) < zeros(i / cols, i % cols) {
                true => 0,
                false => [-1, 1][usize::from(random(&mut state) < 0.5)],
            })
            .collect();
        let matrix = TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(1.0)).unwrap();
        let packing = packing_by_name(written).unwrap();
        let len = packing.stored_len(rows, cols).unwrap() as usize;
        let trailer = packing.trailer(&matrix);
        let mut bytes = vec![0; len - trailer.len()];
        packing.pack_units(&matrix, 0, &mut bytes);
        bytes.extend(trailer);
        LAYOUTS
            .iter()
            .map(|name| {
                let tensor = PackedTensor {
                    bytes: &bytes,
                    rows,
                    cols,
                    outside: None,
                };
                let read = packing_by_name(name).unwrap().unpack(&tensor).unwrap();
                code_length(read.trits(), cols, gains).bits
            })
            .collect()
    }

    fn best(lengths: &[f64]) -> Option<&'static str> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by(|&a, &b| lengths[a].total_cmp(&lengths[b]));
        (lengths[order[1]] - lengths[order[0]] > DECISIVE_BITS).then(|| LAYOUTS[order[0]])
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics of large matrices")]
    fn columns_that_follow_their_gains_tell_all_three() {
        let cols = 1024;
        let mut state = 8;
        let gains: Vec<f32> = (0..cols)
            .map(|_| (random(&mut state) * 2.0) as f32)
            .collect();
        for written in LAYOUTS {
            let zeros = |_, col: usize| 0.2 + 0.2 * f64::from(gains[col]);
            let found = lengths(written, (256, cols), Some(&gains), zeros);
            assert_eq!(best(&found), Some(written), "{found:?}");
        }
    }

    #[test]
    fn rows_tell_the_four_row_layout_and_no_more() {
        let zeros = |row: usize, _| 0.1 + 0.8 * (row * 7 % 16) as f64 / 16.0;
        let found = lengths("i2_s-rows4", (64, 1024), None, zeros);
        assert_eq!(best(&found), Some("i2_s-rows4"), "{found:?}");
        let found = lengths("i2_s", (64, 1024), None, zeros);
        assert_eq!(
            best(&found),
            None,
            "rows look alike under i2_s and i2_s-arm64"
        );
        assert!(
            found[2] > found[0] + DECISIVE_BITS,
            "but not under i2_s-rows4"
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "statistics of large matrices")]
    fn noise_decides_nothing() {
        for written in LAYOUTS {
            for shape in [(4, 128), (64, 1024), (640, 2560)] {
                let found = lengths(written, shape, None, |_, _| 1.0 / 3.0);
                assert_eq!(best(&found), None, "{found:?}");
            }
        }
    }

    #[test]
    fn the_cost_of_shares_is_what_all_sequences_cost() {
        // over the counts (a, b, c) of n trits, their multinomial times the best likelihood of each
        let factorial = |n: u32| (1..=n).map(f64::from).product::<f64>();
        for n in 1..=40u32 {
            let mut all = 0.0;
            for a in 0..=n {
                for b in 0..=n - a {
                    let parts = [a, b, n - a - b];
                    let share =
                        |k: u32| (f64::from(k) / f64::from(n)).powi(k as i32) / factorial(k);
                    all += factorial(n) * parts.map(share).iter().product::<f64>();
                }
            }
            let found = parametric_complexity(f64::from(n));
            assert!((found / all - 1.0).abs() < 0.01, "{n}: {found} and {all}");
        }
    }

    #[test]
    fn gains_that_are_all_alike_are_no_blocks_of_columns() {
        assert!(bins(&[1.0; 256]).is_none());
        let distinct: Vec<f32> = (0..=255u8).map(f32::from).collect();
        assert!(bins(&distinct).is_some());
    }

    #[test]
    fn structure_is_named() {
        let of = |zero: fn(usize, usize) -> bool| {
            let trits: Vec<i8> = (0..64 * 256)
                .map(|e| {
                    if zero(e / 256, e % 256) {
                        0
                    } else {
                        (e * e / 7 % 2) as i8 * 2 - 1
                    }
                })
                .collect();
            code_length(&trits, 256, None)
        };
        assert_eq!(of(|row, _| row % 3 == 0).model, "rows");
        assert_eq!(of(|_, col| col % 3 == 0).model, "columns");
        assert_eq!(code_length(&[], 0, None).bits, 0.0);
    }
}
