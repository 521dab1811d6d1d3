//! A screen before a dense head: bounds for all logits from a quarter to half of the bytes.
//!
//! # The bound
//!
//! A row `w` is kept as `w = c q + e`: `q` int8, `c` an f32, and upper bounds of `|w|` and `|e|` (Euclidean
//! norms). A hidden state `x` is split once as `x = d p + f`: `p` int16, `d` an f64, and upper bounds of
//! `|x|` and `|f|`. `I = sum q p` is an exact integer: `p` is as wide as keeps it in 32 bits. With the exact
//! sum `S = sum w x`,
//!
//! ```text
//! S - c d I = sum e x + sum (c q) f,     so by Cauchy and Schwarz
//! |S - c d I| <= |e| |x| + (|w| + |e|) |f|                                          (1)
//! ```
//!
//! The logit `L` is not `S` but its canonical sum in f32: in each of 16 lanes at most `ceil(K / 16)` fused
//! operations, then 4 additions. Every product thus goes through at most `n = ceil(K / 16) + 4` roundings
//! of relative size `u = 2^-24`, and (Higham, *Accuracy and Stability*, lemma 3.1) `|L - S| <= gamma_n
//! sum |w x|`, `gamma_n = n u / (1 - n u)`. Where the result of a fused operation is subnormal its
//! rounding is absolute instead, at most `2^-150` (additions of f32 are then exact), and grows by less than
//! twice on its way. With Cauchy and Schwarz again
//!
//! ```text
//! |L - S| <= gamma_n |w| |x| + K 2^-149                                             (2)
//! ```
//!
//! as long as nothing overflows: every partial sum is below `(1 + gamma_n) |w| |x|`, so rows where
//! `|w| |x|` reaches `2^126` get infinite bounds and are always recomputed. `B = (1) + (2)` is evaluated in
//! f64 and enlarged by `2^-40` of itself and of `|c d I|`, far more than the few roundings of f64 take.
//!
//! Norms are upper bounds: those of rows are f32 sums of squares in 16 lanes, of at most `ceil(K / 16) + 6`
//! roundings each (subtraction, square, lanes, tree), so `1 / (1 - gamma)` of the computed sum, here
//! `1 + 4 (K / 16 + 16) u`, bounds the true one; squares that underflow lose at most `2^-149` each, which
//! is added. They are rounded up to f32. Any `q` is right: `e` is computed from the `q` that was chosen.
//!
//! # The invariant
//!
//! The logit of a row lies between its bounds; so the rows whose upper bound reaches the k-th largest
//! lower bound contain the k largest logits, all rows that tie with the last of them included.

use crate::float_ops::LANES;
use crate::kernels::Backend;
use crate::lines::{LINE, Line, Lines};

/// Columns up to which `p` keeps at least 8 bits.
const MOST_COLS: usize = 1 << 16;

/// `2^-24`: half the distance from 1 to the next f32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// `2^-149`, the smallest f32.
const TINY: f64 = f32::from_bits(1) as f64;

/// Some rows of a dense matrix as int8, with what bounds their logits.
#[derive(Clone)]
pub struct ScreenRows {
    backend: Backend,
    cols: usize,
    lines: Lines,          // (rows, cols / 64 rounded up): q, zeros behind it
    bounds: Vec<RowBound>, // (rows,)
}

impl std::fmt::Debug for ScreenRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScreenRows({} x {})", self.bounds.len(), self.cols)
    }
}

/// `c`, and upper bounds of `|w|` and `|e|`.
#[derive(Clone, Copy, Debug, Default)]
struct RowBound {
    scale: f32,
    norm: f32,
    error: f32,
}

/// A hidden state, split for a screen.
#[derive(Clone, Debug)]
pub struct ScreenQuery {
    values: Vec<i16>, // (cols rounded up to 64,): p, zeros behind it
    scale: f64,       // d
    norm: f64,        // at least |x|
    error: f64,       // at least |f|
}

impl ScreenRows {
    /// Room for `rows` rows; `None` for more columns than a screen is made for.
    pub fn new(backend: Backend, rows: usize, cols: usize) -> Option<Self> {
        (cols > 0 && cols <= MOST_COLS).then(|| Self {
            backend,
            cols,
            lines: Lines::resident(rows * cols.div_ceil(LINE)),
            bounds: vec![RowBound::default(); rows],
        })
    }

    /// Bytes that a query reads.
    pub fn byte_len(&self) -> usize {
        self.lines.len() * LINE + size_of_val(self.bounds.as_slice())
    }

    /// Sets row `row` to `w: (cols,)`, all finite.
    ///
    /// # Panics
    /// If the row does not exist or `w` has another length.
    pub fn set(&mut self, row: usize, w: &[f32]) {
        assert_eq!(w.len(), self.cols, "columns of a screened row");
        let lines = self.cols.div_ceil(LINE);
        let to = &mut self.lines[row * lines..(row + 1) * lines];
        // SAFETY: the backend exists, so the CPU has what its entries were instantiated with.
        let [scale, norm, error] = unsafe { (self.backend.kernel().float.screen_row)(w, to) };
        self.bounds[row] = RowBound { scale, norm, error };
    }

    /// `(lower, upper)` bound of the canonical dot of every row with the query's hidden state.
    ///
    /// # Panics
    /// If the query has other columns or the slices another length than there are rows.
    pub fn bounds(&self, query: &ScreenQuery, lower: &mut [f64], upper: &mut [f64]) {
        let lines = self.cols.div_ceil(LINE);
        assert_eq!(
            query.values.len(),
            lines * LINE,
            "columns of a screen's query"
        );
        assert_eq!(
            (lower.len(), upper.len()),
            (self.bounds.len(), self.bounds.len())
        );
        let gamma = gamma(self.cols.div_ceil(LANES) + 4);
        let tiny = self.cols as f64 * TINY;
        let mut sums = [0; 32];
        for (first, rows) in (0..)
            .step_by(sums.len())
            .zip(self.lines.chunks(sums.len() * lines))
        {
            let sums = &mut sums[..rows.len() / lines];
            // SAFETY: as in `set`: the backend exists.
            unsafe { (self.backend.kernel().float.screen_dots)(rows, &query.values, sums) };
            for (row, sum) in (first..).zip(sums) {
                let RowBound { scale, norm, error } = self.bounds[row];
                let (norm, error) = (f64::from(norm), f64::from(error));
                let middle = f64::from(scale) * query.scale * f64::from(*sum);
                let bound = error * query.norm
                    + (norm + error) * query.error
                    + gamma * norm * query.norm
                    + tiny;
                let bound = bound + (bound + middle.abs()) * 2f64.powi(-40);
                // written so that NaN (infinite norms times zero) is beyond f32 too
                let fits = norm * query.norm < 2f64.powi(126) && bound.is_finite();
                let bound = if fits { bound } else { f64::INFINITY };
                (lower[row], upper[row]) = (middle - bound, middle + bound);
            }
        }
    }
}

impl ScreenQuery {
    /// Splits `x`, all finite.
    pub fn new(x: &[f32]) -> Self {
        // 127 p K stays below 2^31
        let most = (i32::MAX / (127 * x.len().clamp(1, MOST_COLS) as i32)).min(i32::from(i16::MAX));
        let max = x.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let scale = f64::from(max) / f64::from(most);
        let inverse = if max > 0.0 { 1.0 / scale } else { 0.0 };
        let mut values = Vec::with_capacity(x.len().next_multiple_of(LINE));
        let (mut norm, mut error) = (0.0, 0.0);
        for x in x {
            let x = f64::from(*x);
            let p = (x * inverse)
                .round()
                .clamp(-f64::from(most), f64::from(most));
            values.push(p as i16);
            let f = x - scale * p;
            norm += x * x;
            error += f * f;
        }
        values.resize(x.len().next_multiple_of(LINE), 0);
        // sums of at most 2^16 squares in f64, and `f` whose product is rounded relative to x
        let more = 1.0 + 2f64.powi(-30);
        let norm = norm.sqrt() * more;
        let error = error.sqrt() * more + norm * 2f64.powi(-50);
        Self {
            values,
            scale,
            norm,
            error,
        }
    }
}

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// The larger of 0 and the norm whose square was summed up as `sum` over `cols` columns, rounded up.
#[inline(always)]
fn norm_bound(sum: f32, cols: usize) -> f32 {
    let more = 1.0 + 4.0 * (cols / LANES + 16) as f64 * U;
    let sum = f64::from(sum) * more + cols as f64 * TINY;
    (sum.sqrt() as f32).next_up()
}

/// Splits a row: `[c, at least |w|, at least |e|]`, and `q` into `to`, a line per 64 columns.
#[inline(always)]
pub(crate) fn screen_row(w: &[f32], to: &mut [Line]) -> [f32; 3] {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23, as in float_ops::exp1
    let max = w.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(max) / 127.0;
    let inverse = 1.0 / scale;
    // a row of zeros, or of numbers so small that the inverse is none: all of it is error
    let (scale, inverse) = match inverse.is_finite() {
        true => (scale, inverse),
        false => (0.0, 0.0),
    };
    let mut norms = [0.0f32; LANES];
    let mut errors = [0.0f32; LANES];
    let mut split = |w: &[f32; LANES], to: &mut [u8; LANES]| {
        for j in 0..LANES {
            // |w inverse| is at most 127 and a rounding; the clamp is for that rounding
            let q = (w[j] * inverse).clamp(-127.0, 127.0) + ROUND;
            to[j] = q.to_bits() as u8;
            let e = (ROUND - q).mul_add(scale, w[j]);
            norms[j] = w[j].mul_add(w[j], norms[j]);
            errors[j] = e.mul_add(e, errors[j]);
        }
    };
    let (chunks, tail) = w.as_chunks::<LANES>();
    let mut to = to
        .iter_mut()
        .flat_map(|line| line.0.as_chunks_mut::<LANES>().0);
    for (w, to) in chunks.iter().zip(&mut to) {
        split(w, to);
    }
    if let (false, Some(to)) = (tail.is_empty(), to.next()) {
        split(&crate::float_ops::fill_lanes(tail), to);
    }
    let bound = |lanes| norm_bound(crate::float_ops::add_lanes(lanes), w.len());
    [scale, bound(norms), bound(errors)]
}

/// `sums[r] = sum q[r] p`, exact; rows of whole lines.
#[inline(always)]
pub(crate) fn screen_dots(rows: &[Line], p: &[i16], sums: &mut [i32]) {
    let lines = p.len() / LINE;
    for (row, sum) in rows.chunks_exact(lines).zip(sums) {
        let mut lanes = [0i32; LANES];
        for (q, p) in row.iter().zip(p.as_chunks::<LINE>().0) {
            for j in 0..LINE {
                lanes[j % LANES] += i32::from(q.0[j] as i8) * i32::from(p[j]);
            }
        }
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        for cols in [1, 15, 16, 17, 63, 64, 65, 640, 2560] {
            let rows: Vec<Vec<f32>> = (0..96).map(|r| row(r, cols, &mut state)).collect();
            for size in [1.0, 1e-38, 1e12, 1e25, 0.0] {
                let mut x: Vec<f32> = (0..cols).map(|_| noise(&mut state) * size).collect();
                for spike in [1.0, 1e4] {
                    x[cols / 3] *= spike;
                    check(&rows, &x);
                }
                // the worst case for a bound: the state is a row
                let x: Vec<f32> = rows[11].iter().map(|w| w * size).collect();
                check(&rows, &x);
            }
        }
    }

    fn check(rows: &[Vec<f32>], x: &[f32]) {
        let query = ScreenQuery::new(x);
        for backend in Backend::available() {
            let mut screen = ScreenRows::new(backend, rows.len(), x.len()).unwrap();
            for (r, w) in rows.iter().enumerate() {
                screen.set(r, w);
            }
            let (mut lower, mut upper) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
            screen.bounds(&query, &mut lower, &mut upper);
            for (r, w) in rows.iter().enumerate() {
                let logit = f64::from(backend.dot(w, x));
                let (lower, upper) = (lower[r], upper[r]);
                if logit.is_finite() {
                    assert!(
                        lower <= logit && logit <= upper,
                        "row {r}: {lower} {logit} {upper}"
                    );
                } else {
                    assert_eq!(upper, f64::INFINITY, "row {r} has to be recomputed");
                }
            }
        }
    }

    #[test]
    fn ordinary_rows_have_useful_bounds() {
        let mut state = 5;
        let x: Vec<f32> = (0..2560).map(|_| noise(&mut state)).collect();
        let mut screen = ScreenRows::new(Backend::best(), 1, x.len()).unwrap();
        screen.set(0, &row(11, x.len(), &mut state));
        let (mut lower, mut upper) = ([0.0], [0.0]);
        screen.bounds(&ScreenQuery::new(&x), &mut lower, &mut upper);
        // |w| |x| is about 2560 / 3; its five-hundredth is the rounding of int8
        assert!(upper[0] - lower[0] < 8.0, "{lower:?} {upper:?}");
    }
}
