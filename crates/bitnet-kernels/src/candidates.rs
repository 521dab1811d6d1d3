//! A screen before a dense head: bounds for all logits from three eighths of the bytes of bf16.
//!
//! # The codes
//!
//! A row `w` is kept as `u`, eight bits a column, and a scale `c`: `w = c (u - 128) + e`. The upper six bits
//! `v = u >> 2` lie apart from the lower two, `l = u & 3`. A pass reads the upper bits of all rows,
//! `w = c (4 v - 126.5) + e'`; the few rows that it cannot rule out, it looks at again with all eight. Both are
//! of the form `w = c q + e` below, `q` a multiple of a half, with an upper bound of `|e|` (Euclidean norm) each.
//! Any `u` is right: `e` is computed from the one that was chosen.
//!
//! Six and two: on 128256 x 2560 normal numbers the upper bits rule out all but 0.6 % of the rows for the
//! largest logit and 6.5 % for the 40 largest, and all eight all but 5 and 200 rows, each of which is worth a
//! row of bf16. By the same bound five bits would leave a sixth and more than half of the rows, and seven cost
//! a sixth more bytes.
//!
//! # The bound
//!
//! A hidden state `x` is split once as `x = d p + f`: `p` int16, `d` an f64, and upper bounds of `|x|` and
//! `|f|`. `I = sum q p` is exact: `sum v p` is an integer, and `p` is as wide as keeps it in 32 bits. With the
//! exact sum `S = sum w x`,
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
//! f64 and enlarged by `2^-40` of itself and of `|c d I|`, far more than the few roundings of f64 take. The
//! upper bound `c d I + B` becomes an f32 after adding `2^-22` of itself and `2^-148`, more than that rounding
//! takes away.
//!
//! Norms are upper bounds: those of rows are f32 sums of squares in 16 lanes, of at most `ceil(K / 16) + 6`
//! roundings each (subtraction, square, lanes, tree), so `1 / (1 - gamma)` of the computed sum, here
//! `1 + 4 (K / 16 + 16) u`, bounds the true one; squares that underflow lose at most `2^-149` each, which
//! is added. They are rounded up to f32.
//!
//! # The invariant
//!
//! The logit of a row is at most its upper bound. So of the logits of any k rows let `t` be the least: at
//! least k logits reach `t`, and the rows whose upper bound reaches `t` contain the k largest, all rows that
//! tie with the last of them included. The nearer `t` is to the k-th largest logit the fewer they are:
//! [`ScreenRows::bounds`](crate::ScreenRows::bounds) estimates which rows to take.

use crate::lanes::{LANES, Lanes, add_lanes, fill_lanes};
use crate::lines::{LINE, Line};

/// Columns of a block of codes: four to a byte of the lower bits.
pub(crate) const BLOCK: usize = 4 * LINE;

/// Lines of a block's upper bits. Of the codes `v_g` of columns `64 g + i`, byte `i` of the first holds the
/// lower nibbles of `v_0` and `v_1`, of the second those of `v_2` and `v_3`, of the third the upper two bits
/// of `v_g` at bit `2 g`. Fields rather than packed sextets: two operations take 64 of them out, on every
/// instruction set.
pub(crate) const UPPER_LINES: usize = 3;

/// The upper bits of a block of one row.
pub(crate) type UpperBlock = [Line; UPPER_LINES];

/// Lines ahead that a pass fetches: of 4, 8, 16 and 32 KB all the same, and 2 KB into the first level took a
/// quarter longer.
#[cfg(target_arch = "x86_64")]
pub(crate) const AHEAD: usize = 64;

/// Columns up to which `p` keeps at least 8 bits.
pub(crate) const MOST_COLS: usize = 1 << 16;

/// `2^-24`: half the distance from 1 to the next f32.
const U: f64 = 1.0 / (1 << 24) as f64;

/// `2^-149`, the smallest f32.
const TINY: f64 = f32::from_bits(1) as f64;

/// What [`screen_row`] found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RowBound {
    /// `c`
    pub scale: f32,
    /// At least `|w|`.
    pub norm: f32,
    /// At least `|e|` of six bits.
    pub coarse: f32,
    /// At least `|e|` of eight bits.
    pub fine: f32,
}

/// A hidden state, split for a screen.
#[derive(Clone)]
pub struct ScreenQuery {
    values: Vec<i16>,                 // (blocks * 256,): p, zeros behind it
    pub(crate) bytes: Vec<[Line; 2]>, // (blocks * 4,): [h, l] of p = 256 h + l, both int8
    pub(crate) sum: i64,              // of p
    pub(crate) factors: Factors,
}

impl std::fmt::Debug for ScreenQuery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScreenQuery({} blocks)", self.blocks())
    }
}

impl ScreenQuery {
    /// Splits `x`, all finite.
    pub fn new(x: &[f32]) -> Self {
        // 63 p K stays below 2^31, and h below 128
        let most = (i32::MAX / (64 * x.len().clamp(1, MOST_COLS) as i32)).min(32_639);
        let max = x.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        let scale = f64::from(max) / f64::from(most);
        let inverse = if max > 0.0 { 1.0 / scale } else { 0.0 };
        let mut values = Vec::with_capacity(x.len().next_multiple_of(BLOCK));
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
        values.resize(x.len().next_multiple_of(BLOCK), 0);
        let bytes = values.as_chunks::<LINE>().0.iter().map(|p| {
            let high = p.map(|p| ((p + 128) >> 8) as u8);
            [Line(high), Line(p.map(|p| p as u8))]
        });
        // sums of at most 2^16 squares in f64, and `f` whose product is rounded relative to x
        let more = 1.0 + 2f64.powi(-30);
        let norm = norm.sqrt() * more;
        let error = error.sqrt() * more + norm * 2f64.powi(-50);
        let sum: i64 = values.iter().map(|p| i64::from(*p)).sum();
        Self {
            bytes: bytes.collect(),
            sum,
            values,
            factors: Factors {
                scale,
                offset: 126.5 * sum as f64,
                norm,
                error: norm + error,
                weight: error + gamma(x.len().div_ceil(LANES) + 4) * norm,
                tiny: x.len() as f64 * TINY,
            },
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        self.values.len() / BLOCK
    }
}

/// What of a query goes into every row's bound.
#[derive(Clone)]
pub(crate) struct Factors {
    scale: f64,  // d
    offset: f64, // 126.5 sum p
    norm: f64,   // |x|
    error: f64,  // |x| + |f|: times |e|
    weight: f64, // |f| + gamma |x|: times |w|
    tiny: f64,   // K 2^-149
}

impl Factors {
    /// `c d I`, and an f32 that is at least the logit, for a row of this `c`, `|w|`, `|e|` and `I`.
    #[inline(always)]
    pub fn bound(&self, scale: f32, norm: f32, error: f32, sum: f64) -> (f64, f32) {
        let (norm, error) = (f64::from(norm), f64::from(error));
        let middle = f64::from(scale) * self.scale * sum;
        let bound = error * self.error + norm * self.weight + self.tiny;
        let bound = bound + (bound + middle.abs()) * (1.0 / (1u64 << 40) as f64);
        let upper = middle + bound;
        let upper = upper + upper.abs() * (1.0 / (1 << 22) as f64) + 2.0 * TINY;
        // written so that NaN (infinite norms times zero) is beyond f32 too
        let fits = norm * self.norm < BEYOND && upper < f64::from(f32::MAX);
        (middle, if fits { upper as f32 } else { f32::INFINITY })
    }
}

/// `2^126`: from `|w| |x|` on a partial sum may overflow.
const BEYOND: f64 = f32::from_bits((126 + 127) << 23) as f64;

/// The coarse bounds of some rows: `[c, |w|, |e|]` and `sum v p` of each.
#[inline(always)]
pub(crate) fn screen_bounds(
    [scale, norm, coarse]: &[&[f32]; 3],
    factors: &Factors,
    sums: &[i32],
    estimates: &mut [f32],
    upper: &mut [f32],
) {
    let rows = scale.iter().zip(*norm).zip(*coarse).zip(sums);
    for ((((scale, norm), error), sum), (estimate, upper)) in
        rows.zip(estimates.iter_mut().zip(upper))
    {
        let sum = 4.0 * f64::from(*sum) - factors.offset;
        let (middle, bound) = factors.bound(*scale, *norm, *error, sum);
        (*estimate, *upper) = (middle as f32, bound);
    }
}

fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// The larger of 0 and the norm whose square was summed up in lanes over `cols` columns, rounded up.
#[inline(always)]
fn norm_bound(lanes: Lanes, cols: usize) -> f32 {
    let more = 1.0 + 4.0 * (cols / LANES + 16) as f64 * U;
    let sum = f64::from(add_lanes(lanes)) * more + cols as f64 * TINY;
    (sum.sqrt() as f32).next_up()
}

/// The codes of a row, a block per 256 columns.
#[inline(always)]
pub(crate) fn screen_row(w: &[f32], upper: &mut [UpperBlock], lower: &mut [Line]) -> RowBound {
    // 1.5 * 2^23 as in lanes::exp1, and 128: adding it leaves q + 128 in the low byte
    const ROUND: f32 = 12_582_912.0 + 128.0;
    let max = w.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    let scale = f32::from_bits(max) / 127.0;
    let inverse = 1.0 / scale;
    // a row of zeros, or of numbers so small that the inverse is none: all of it is error
    let (scale, inverse) = match inverse.is_finite() {
        true => (scale, inverse),
        false => (0.0, 0.0),
    };
    let [mut norms, mut coarse, mut fine] = [[0.0f32; LANES]; 3];
    let mut split = |w: &Lanes, to: &mut [u8; LANES]| {
        for j in 0..LANES {
            // |w inverse| is at most 127 and three roundings, which is rounded to 127
            let q = w[j] * inverse + ROUND;
            to[j] = q.to_bits() as u8;
            // differences of such numbers are exact, so that each error is rounded once
            let e = (ROUND - q).mul_add(scale, w[j]);
            fine[j] = e.mul_add(e, fine[j]);
            let q = f32::from_bits(q.to_bits() & !3);
            let e = (ROUND - 1.5 - q).mul_add(scale, w[j]);
            coarse[j] = e.mul_add(e, coarse[j]);
            norms[j] = w[j].mul_add(w[j], norms[j]);
        }
    };
    for ((w, upper), lower) in w.chunks(BLOCK).zip(upper).zip(lower) {
        let mut codes = [0; BLOCK]; // zeros behind the last column: p is zero there
        let (chunks, tail) = w.as_chunks::<LANES>();
        let (to, _) = codes.as_chunks_mut::<LANES>();
        for (w, to) in chunks.iter().zip(&mut *to) {
            split(w, to);
        }
        if !tail.is_empty() {
            split(&fill_lanes(tail), &mut to[chunks.len()]);
        }
        store_codes(&codes, upper, lower);
    }
    RowBound {
        scale,
        norm: norm_bound(norms, w.len()),
        coarse: norm_bound(coarse, w.len()),
        fine: norm_bound(fine, w.len()),
    }
}

#[inline(always)]
fn store_codes(u: &[u8; BLOCK], upper: &mut UpperBlock, lower: &mut Line) {
    for i in 0..LINE {
        let [a, b, c, d] = [u[i], u[i + LINE], u[i + 2 * LINE], u[i + 3 * LINE]];
        upper[0].0[i] = (a >> 2 & 0x0f) | (b << 2 & 0xf0);
        upper[1].0[i] = (c >> 2 & 0x0f) | (d << 2 & 0xf0);
        upper[2].0[i] = a >> 6 | (b >> 4 & 0x0c) | (c >> 2 & 0x30) | (d & 0xc0);
        lower.0[i] = (a & 3) | (b & 3) << 2 | (c & 3) << 4 | d << 6;
    }
}

/// Gives every query the sums of its own, of `sums: (queries, rows)`.
#[inline(always)]
pub(crate) fn each_query(
    queries: &[ScreenQuery],
    sums: &mut [i32],
    mut dots: impl FnMut(&ScreenQuery, &mut [i32]),
) {
    let rows = sums.len().checked_div(queries.len()).unwrap_or(0);
    for (query, sums) in queries.iter().zip(sums.chunks_exact_mut(rows.max(1))) {
        dots(query, sums);
    }
}

/// `sums[q][r] = sum v[r] p[q]`, exact; `sums: (queries, rows)`.
#[inline(always)]
pub(crate) fn screen_dots(rows: &[UpperBlock], queries: &[ScreenQuery], sums: &mut [i32]) {
    each_query(queries, sums, |query, sums| dots(rows, query, sums));
}

#[inline(always)]
fn dots(rows: &[UpperBlock], query: &ScreenQuery, sums: &mut [i32]) {
    for (row, sum) in rows.chunks_exact(query.blocks()).zip(sums) {
        let mut lanes = [0; LANES];
        for ([ab, cd, top], p) in row.iter().zip(query.values.as_chunks::<BLOCK>().0) {
            add_codes(ab, top, p, &mut lanes, |ab, top| {
                (ab & 15) | (top << 4 & 0x30)
            });
            let p = &p[LINE..];
            add_codes(ab, top, p, &mut lanes, |ab, top| {
                ab >> 4 | (top << 2 & 0x30)
            });
            let p = &p[LINE..];
            add_codes(cd, top, p, &mut lanes, |cd, top| (cd & 15) | (top & 0x30));
            let p = &p[LINE..];
            add_codes(cd, top, p, &mut lanes, |cd, top| {
                cd >> 4 | (top >> 2 & 0x30)
            });
        }
        *sum = lanes.iter().sum();
    }
}

/// `lanes += codes p` for 64 codes out of two lines.
#[inline(always)]
fn add_codes(a: &Line, b: &Line, p: &[i16], lanes: &mut [i32; LANES], code: impl Fn(u8, u8) -> u8) {
    let lines =
        a.0.as_chunks::<LANES>()
            .0
            .iter()
            .zip(b.0.as_chunks::<LANES>().0);
    for ((a, b), p) in lines.zip(p.as_chunks::<LANES>().0) {
        for j in 0..LANES {
            lanes[j] += i32::from(code(a[j], b[j])) * i32::from(p[j]);
        }
    }
}

/// `sum l p` of one row, exact.
#[inline(always)]
pub(crate) fn screen_lower(row: &[Line], query: &ScreenQuery) -> i32 {
    let mut lanes = [0; LANES];
    for (line, p) in row.iter().zip(query.values.as_chunks::<BLOCK>().0) {
        for (g, p) in p.as_chunks::<LINE>().0.iter().enumerate() {
            add_codes(line, line, p, &mut lanes, |l, _| l >> (2 * g) & 3);
        }
    }
    lanes.iter().sum()
}
