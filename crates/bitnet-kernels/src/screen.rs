//! Rows of a dense matrix as a candidate filter in front of the head: they bound every logit without computing it.
//!
//! Invariant: the logit of a row is at most its upper bound ([`candidates`](crate::candidates) has the proof); the codes
//! and the backend that reads them travel together.

use crate::backend::Backend;
use crate::candidates::{BLOCK, MOST_COLS, ScreenQuery, UPPER_LINES};
use crate::lines::{LINE, Lines, as_bytes, prefetch_l2};
use std::ops::Range;

/// Rows whose bounds are computed together.
const TOGETHER: usize = 32;

/// Queries whose sums are computed together.
const QUERIES: usize = 4;

/// Some rows of a dense matrix as eight-bit codes, with what bounds their logits.
#[derive(Clone)]
pub struct ScreenRows {
    backend: Backend,
    cols: usize,
    upper: Lines, // (rows, blocks, 3): upper six bits of the codes
    lower: Lines, // (rows, blocks): lower two bits, those of column `64 g + i` at bit `2 g` of byte `i`
    scales: RowScales,
    fine: Vec<f32>, // (rows,): at least |e| of eight bits
}

impl std::fmt::Debug for ScreenRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScreenRows({} x {})", self.rows(), self.cols)
    }
}

/// What a pass reads of every row beside its upper bits, `(rows,)` each.
#[derive(Clone)]
struct RowScales {
    scale: Vec<f32>,  // c
    norm: Vec<f32>,   // at least |w|
    coarse: Vec<f32>, // at least |e| of six bits
}

/// What [`ScreenRows::bounds`] writes, `(rows,)` each.
#[derive(Debug)]
pub struct ScreenBounds<'a> {
    /// For [`ScreenRows::refine`].
    pub sums: &'a mut [i32],
    /// About the logits.
    pub estimates: &'a mut [f32],
    /// At least the logits; infinite where nothing is known.
    pub upper: &'a mut [f32],
}

impl ScreenRows {
    /// Room for `rows` rows; `None` for more columns than a screen is made for.
    pub fn new(backend: Backend, rows: usize, cols: usize) -> Option<Self> {
        let blocks = cols.div_ceil(BLOCK);
        (cols > 0 && cols <= MOST_COLS).then(|| Self {
            backend,
            cols,
            upper: Lines::resident(rows * blocks * UPPER_LINES),
            lower: Lines::resident(rows * blocks),
            scales: RowScales {
                scale: vec![0.0; rows],
                norm: vec![0.0; rows],
                coarse: vec![0.0; rows],
            },
            fine: vec![0.0; rows],
        })
    }

    /// Rows there is room for.
    pub fn rows(&self) -> usize {
        self.fine.len()
    }

    /// Bytes that [`bounds`](Self::bounds) reads.
    pub fn byte_len(&self) -> usize {
        self.upper.len() * LINE + 3 * size_of_val(self.fine.as_slice())
    }

    /// The codes that [`bounds`](Self::bounds) reads, from a cache line on.
    pub fn packed_bytes(&self) -> &[u8] {
        as_bytes(&self.upper)
    }

    /// Sets row `row` to `w: (cols,)`, all finite.
    ///
    /// # Panics
    /// If the row does not exist or `w` has another length.
    pub fn set(&mut self, row: usize, w: &[f32]) {
        assert_eq!(w.len(), self.cols, "columns of a screened row");
        let blocks = self.cols.div_ceil(BLOCK);
        let (upper, _) = self.upper.as_chunks_mut::<UPPER_LINES>();
        let upper = &mut upper[row * blocks..(row + 1) * blocks];
        let lower = &mut self.lower[row * blocks..(row + 1) * blocks];
        // SAFETY: the backend exists, so the CPU has what its entries were instantiated with.
        let bound = unsafe { (self.backend.kernel().float.screen_row)(w, upper, lower) };
        self.scales.scale[row] = bound.scale;
        self.scales.norm[row] = bound.norm;
        self.scales.coarse[row] = bound.coarse;
        self.fine[row] = bound.fine;
    }

    /// Upper bounds of the canonical dots of all rows with the query's hidden state, from the upper bits.
    ///
    /// # Panics
    /// If the query has other columns or `to` another length than there are rows.
    pub fn bounds(&self, query: &ScreenQuery, to: ScreenBounds<'_>) {
        self.bounds_each(std::slice::from_ref(query), &mut [to]);
    }

    /// As [`bounds`](Self::bounds), of several queries: the codes pass through memory once for all of them.
    ///
    /// # Panics
    /// As [`bounds`](Self::bounds), and if there are not as many `to` as queries.
    pub fn bounds_each(&self, queries: &[ScreenQuery], to: &mut [ScreenBounds<'_>]) {
        let blocks = self.cols.div_ceil(BLOCK);
        assert_eq!(queries.len(), to.len(), "bounds of a screen's queries");
        for (query, to) in queries.iter().zip(&*to) {
            assert_eq!(query.blocks(), blocks, "columns of a screen's query");
            assert_eq!(
                (to.sums.len(), to.estimates.len(), to.upper.len()),
                (self.rows(), self.rows(), self.rows())
            );
        }
        let float = &self.backend.kernel().float;
        let (lines, _) = self.upper.as_chunks::<UPPER_LINES>();
        let starts = (0..self.rows()).step_by(TOGETHER);
        for (first, lines) in starts.zip(lines.chunks(TOGETHER * blocks)) {
            let rows = first..self.rows().min(first + TOGETHER);
            let scales = self.scales.part(rows.clone());
            let parts = queries.chunks(QUERIES).zip(to.chunks_mut(QUERIES));
            for (queries, to) in parts {
                let mut sums = [0; QUERIES * TOGETHER];
                let sums = &mut sums[..queries.len() * rows.len()];
                // SAFETY: as in `set`: the backend exists.
                unsafe { (float.screen_dots)(lines, queries, sums) };
                let of_queries = sums.chunks_exact(rows.len());
                for ((query, to), sums) in queries.iter().zip(to).zip(of_queries) {
                    to.sums[rows.clone()].copy_from_slice(sums);
                    // SAFETY: as above.
                    unsafe {
                        (float.screen_bounds)(
                            &scales,
                            &query.factors,
                            sums,
                            &mut to.estimates[rows.clone()],
                            &mut to.upper[rows.clone()],
                        );
                    }
                }
            }
        }
    }

    /// A closer upper bound of the dot of one row, whose `sum` is from [`bounds`](Self::bounds).
    ///
    /// # Panics
    /// If the query has other columns or the row does not exist.
    pub fn refine(&self, query: &ScreenQuery, row: usize, sum: i32) -> f32 {
        let blocks = self.cols.div_ceil(BLOCK);
        assert_eq!(query.blocks(), blocks, "columns of a screen's query");
        let lines = &self.lower[row * blocks..(row + 1) * blocks];
        // SAFETY: as in `set`: the backend exists.
        let lower = unsafe { (self.backend.kernel().float.screen_lower)(lines, query) };
        let sum = 4.0 * f64::from(sum) + f64::from(lower) - 128.0 * query.sum as f64;
        let (scale, norm) = (self.scales.scale[row], self.scales.norm[row]);
        let (_, upper) = query.factors.bound(scale, norm, self.fine[row], sum);
        upper
    }

    /// Fetches what [`refine`](Self::refine) of a row will read.
    pub fn prefetch(&self, row: usize) {
        let blocks = self.cols.div_ceil(BLOCK);
        for line in &self.lower[row * blocks..(row + 1) * blocks] {
            prefetch_l2(line);
        }
    }
}

impl RowScales {
    fn part(&self, rows: Range<usize>) -> [&[f32]; 3] {
        [&self.scale, &self.norm, &self.coarse].map(|all| &all[rows.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{every, is_quick};

    fn noise(state: &mut u64) -> f32 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Rows of every kind that could break a bound.
    fn row(kind: usize, cols: usize, state: &mut u64) -> Vec<f32> {
        let mut w: Vec<f32> = (0..cols).map(|_| noise(state)).collect();
        match kind % 12 {
            0 => w.fill(0.0),
            1 => w.fill(0.73),
            2 => w.iter_mut().for_each(|w| *w *= 1e30),
            3 => w.iter_mut().for_each(|w| *w *= 1e-30),
            4 => w.iter_mut().for_each(|w| *w *= 1e-42),
            5 => w[cols / 2] = 1e6,
            6 => w[cols - 1] = 3e38,
            7 => w.fill(f32::from_bits(1)),
            8 => w.iter_mut().for_each(|w| *w = w.signum() * 127.5),
            9 => w
                .iter_mut()
                .enumerate()
                .for_each(|(i, w)| *w *= 2f32.powi(-(i as i32 % 140))),
            _ => {}
        }
        w
    }

    #[test]
    fn every_logit_lies_between_its_bounds_on_every_backend() {
        let mut state = 9;
        for cols in [1, 15, 16, 17, 63, 64, 65, 640, 2560]
            .into_iter()
            .step_by(every(3))
        {
            if !is_quick(cols * 400) {
                continue;
            }
            let rows: Vec<Vec<f32>> = (0..96).map(|r| row(r, cols, &mut state)).collect();
            for size in [1.0, 1e-38, 1e12, 1e25, 0.0] {
                let mut x: Vec<f32> = (0..cols).map(|_| noise(&mut state) * size).collect();
                for spike in [1.0, 1e4] {
                    x[cols / 3] *= spike;
                    check(&rows, &x);
                }
                // the worst cases for a bound: the state is a row, or what a row was rounded by
                let x: Vec<f32> = rows[11].iter().map(|w| w * size).collect();
                check(&rows, &x);
                let max = rows[11].iter().fold(0.0, |m: f32, w| m.max(w.abs()));
                for step in [max / 127.0, max / 31.75] {
                    let error = |w: &f32| (w - (w / step).round() * step) / step * size;
                    check(&rows, &rows[11].iter().map(error).collect::<Vec<_>>());
                    check(
                        &rows,
                        &rows[11].iter().map(|w| -error(w)).collect::<Vec<_>>(),
                    );
                }
            }
        }
    }

    fn check(rows: &[Vec<f32>], x: &[f32]) {
        let query = ScreenQuery::new(x);
        let sums = |query: &ScreenQuery| -> Vec<(Vec<i32>, Vec<f32>, Vec<f32>)> {
            Backend::available()
                .map(|backend| {
                    let screen = screen(backend, rows);
                    let (sums, _, upper) = bounds(&screen, query);
                    let fine = (0..).zip(&sums);
                    let fine = fine.map(|(r, sum)| screen.refine(query, r, *sum)).collect();
                    (sums, upper, fine)
                })
                .collect()
        };
        let all = sums(&query);
        for (sums, upper, fine) in &all {
            assert_eq!(sums, &all[0].0);
            for (r, w) in rows.iter().enumerate() {
                let logit = Backend::best().dot(w, x);
                for upper in [upper[r], fine[r]] {
                    // a logit that is beyond f32 has to be recomputed
                    assert!(
                        if logit.is_finite() {
                            logit <= upper
                        } else {
                            upper == f32::INFINITY
                        },
                        "row {r}: {logit} {upper}"
                    );
                }
            }
        }
    }

    #[test]
    fn several_queries_get_the_sums_of_each_alone() {
        let mut state = 3;
        let rows: Vec<Vec<f32>> = (0..37).map(|r| row(r, 300, &mut state)).collect();
        let state = &mut state;
        let x = |_| -> Vec<f32> { (0..300).map(|_| noise(state)).collect() };
        let queries: Vec<ScreenQuery> = (0..11).map(x).map(|x| ScreenQuery::new(&x)).collect();
        for backend in Backend::available() {
            let screen = screen(backend, &rows);
            let alone: Vec<_> = queries.iter().map(|query| bounds(&screen, query)).collect();
            for count in 1..=queries.len() {
                let n = rows.len();
                let empty = || (vec![0; n], vec![0.0; n], vec![0.0; n]);
                let mut found: Vec<_> = (0..count).map(|_| empty()).collect();
                let mut to = Vec::new();
                for (sums, estimates, upper) in &mut found {
                    to.push(ScreenBounds {
                        sums,
                        estimates,
                        upper,
                    });
                }
                screen.bounds_each(&queries[..count], &mut to);
                assert_eq!(found, alone[..count], "{backend:?}, {count} queries");
            }
        }
    }

    fn screen(backend: Backend, rows: &[Vec<f32>]) -> ScreenRows {
        let mut screen = ScreenRows::new(backend, rows.len(), rows[0].len()).unwrap();
        for (r, w) in rows.iter().enumerate() {
            screen.set(r, w);
        }
        screen
    }

    /// Sums, estimates and upper bounds.
    fn bounds(screen: &ScreenRows, query: &ScreenQuery) -> (Vec<i32>, Vec<f32>, Vec<f32>) {
        let n = screen.rows();
        let (mut sums, mut estimates, mut upper) = (vec![0; n], vec![0.0; n], vec![0.0; n]);
        screen.bounds(
            query,
            ScreenBounds {
                sums: &mut sums,
                estimates: &mut estimates,
                upper: &mut upper,
            },
        );
        (sums, estimates, upper)
    }

    #[test]
    fn ordinary_rows_have_useful_bounds() {
        let mut state = 5;
        let x: Vec<f32> = (0..2560).map(|_| noise(&mut state)).collect();
        for backend in Backend::available() {
            let screen = screen(backend, &[row(11, x.len(), &mut state)]);
            let query = ScreenQuery::new(&x);
            let (sums, estimates, upper) = bounds(&screen, &query);
            // |w| |x| is about 2560 / 3; its 110th and its 440th are the roundings of 6 and 8 bits
            let fine = screen.refine(&query, 0, sums[0]);
            assert!(upper[0] - estimates[0] < 16.0, "{estimates:?} {upper:?}");
            assert!(fine - estimates[0] < 8.0, "{estimates:?} {fine:?}");
        }
    }
}
