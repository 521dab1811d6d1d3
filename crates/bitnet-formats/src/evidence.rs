//! What the order of trits betrays about a layout that nothing in the file names.
//!
//! Several layouts share one type id and one length (`formats/packing/i2_s.md`). The right one puts every
//! trit where its row and column are, and weights are not the same everywhere: rows and columns differ in
//! their share of zeros, and columns follow the norm that feeds them. A wrong layout tears some of that
//! apart. So each candidate is read, and the reading that can be *described* in the fewest bits is the right
//! one (minimum description length: Rissanen, *Modeling by shortest data description*, 1978). Neighbours are
//! not looked at: channels have no order that means anything, and what looks like one is as easily made by
//! a wrong layout as destroyed.
//!
//! Invariant: a code length is an honest one: the cost of every parameter is in it (half the logarithm
//! of the number of trits it is estimated from), so that structure which is not there never shortens it
//! by more than a few bits, and [`DECISIVE_BITS`] are an accident of one in `2^64`.

/// By how many bits the best reading has to beat the next.
pub const DECISIVE_BITS: f64 = 64.0;

/// Bins of a column vector: columns whose norm gain is alike share a context.
const BINS: usize = 16;

/// The shortest description of a matrix that one of the models finds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CodeLength {
    /// Bits in all.
    pub bits: f64,
    /// What the model looks at: `trits` (nothing), `rows`, `columns`, `norm gains`.
    pub model: &'static str,
}

/// The shortest description of `trits`, row-major `(rows, cols)`, as entropy given a context plus the cost
/// of the contexts. `gains`: one number per column that the weights of the column may follow.
pub fn code_length(trits: &[i8], cols: usize, gains: Option<&[f32]>) -> CodeLength {
    let cols = cols.max(1);
    let rows = trits.len() / cols;
    let mut candidates = vec![
        ("trits", bits(trits, 1, |_| 0)),
        ("rows", bits(trits, rows, |i| i / cols)),
        ("columns", bits(trits, cols, |i| i % cols)),
    ];
    if let Some(gains) = gains.filter(|g| g.len() == cols && cols >= 4 * BINS) {
        let bin = bins(gains);
        candidates.push(("norm gains", bits(trits, BINS, |i| bin[i % cols])));
    }
    let shortest = candidates.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
    let (model, bits) = shortest.unwrap_or(("trits", 0.0));
    CodeLength { bits, model }
}

/// Each column's bin: as many columns in each, ordered by the absolute gain.
fn bins(gains: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..gains.len()).collect();
    order.sort_by(|&a, &b| gains[a].abs().total_cmp(&gains[b].abs()).then(a.cmp(&b)));
    let mut bins = vec![0; gains.len()];
    for (rank, &col) in order.iter().enumerate() {
        bins[col] = rank * BINS / gains.len();
    }
    bins
}

/// Entropy of the trits given their context, and the cost of two free shares per context in use.
fn bits(trits: &[i8], contexts: usize, context: impl Fn(usize) -> usize) -> f64 {
    let mut counts = vec![[0u32; 3]; contexts.max(1)];
    for (i, &t) in trits.iter().enumerate() {
        counts[context(i)][usize::from((t + 1) as u8).min(2)] += 1;
    }
    let log = |n: f64| if n > 0.0 { n * n.log2() } else { 0.0 };
    counts
        .iter()
        .map(|counts| {
            let n = f64::from(counts.iter().sum::<u32>());
            let entropy = log(n) - counts.iter().map(|&c| log(f64::from(c))).sum::<f64>();
            entropy + (n + 1.0).log2() // two parameters, half a logarithm each
        })
        .sum()
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
    fn noise_decides_nothing() {
        for written in LAYOUTS {
            for shape in [(4, 128), (64, 1024), (640, 2560)] {
                let found = lengths(written, shape, None, |_, _| 1.0 / 3.0);
                assert_eq!(best(&found), None, "{found:?}");
            }
        }
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
