//! How rows of keys and values are stored: numbers one behind the other, or codes of eight bits with scales.
//!
//! Invariant: a stored row means f32 numbers, and every kernel computes with exactly these numbers
//! (`formats/numerics.md`, "Attention").

use crate::lanes::{DenseType, Element, LANES, Lanes, widen_lanes, widen_tail};

/// Numbers of a row that share a scale.
const GROUP: usize = 32;

/// How rows of keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowType {
    /// Numbers, little-endian.
    Dense(DenseType),
    /// Codes of eight bits, and behind them a scale for every 32.
    Q8,
}

impl RowType {
    /// Bytes of a row of `dim` numbers; `None` for more than a number holds.
    pub fn row_bytes(self, dim: usize) -> Option<usize> {
        match self {
            Self::Dense(dtype) => dim.checked_mul(dtype.size()),
            Self::Q8 => dim.div_ceil(GROUP).checked_mul(4)?.checked_add(dim),
        }
    }
}

impl From<DenseType> for RowType {
    fn from(dtype: DenseType) -> Self {
        Self::Dense(dtype)
    }
}

/// A way to store rows, for the bodies of attention.
pub(crate) trait StoredRow {
    /// Bytes of a row of `dim` numbers.
    fn row_bytes(dim: usize) -> usize;

    /// The 16 numbers of a row from `at` on, a multiple of 16.
    fn lanes(row: &[u8], dim: usize, at: usize) -> Lanes;

    /// The numbers of a row from `at` on, a multiple of 16 and the last one below `dim`; zeros behind them.
    fn tail(row: &[u8], dim: usize, at: usize) -> Lanes;

    /// Rows `(count, dim)` as f32.
    fn widen_rows(rows: &[u8], dim: usize, to: &mut [f32]);

    /// Where the bytes of the numbers from `at` on begin.
    fn place(at: usize) -> usize;
}

impl<E: Element> StoredRow for E {
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim * E::SIZE
    }

    #[inline(always)]
    fn lanes(row: &[u8], _: usize, at: usize) -> Lanes {
        widen_lanes::<E>(&row[at * E::SIZE..])
    }

    #[inline(always)]
    fn tail(row: &[u8], _: usize, at: usize) -> Lanes {
        widen_tail::<E>(&row[at * E::SIZE..])
    }

    #[inline(always)]
    fn widen_rows(rows: &[u8], _: usize, to: &mut [f32]) {
        for (bytes, to) in rows.chunks_exact(E::SIZE).zip(to) {
            *to = E::widen(bytes);
        }
    }

    #[inline(always)]
    fn place(at: usize) -> usize {
        at * E::SIZE
    }
}

/// [`RowType::Q8`].
pub(crate) struct Q8;

impl Q8 {
    /// The scale of the group that a number belongs to.
    #[inline(always)]
    fn scale(row: &[u8], dim: usize, at: usize) -> f32 {
        let scale = row[dim + at / GROUP * 4..].first_chunk();
        f32::from_le_bytes(*scale.unwrap_or(&[0; 4]))
    }
}

impl StoredRow for Q8 {
    #[inline(always)]
    fn row_bytes(dim: usize) -> usize {
        dim + dim.div_ceil(GROUP) * 4
    }

    #[inline(always)]
    fn lanes(row: &[u8], dim: usize, at: usize) -> Lanes {
        let scale = Self::scale(row, dim, at);
        let codes: &[u8; LANES] = row[at..].first_chunk().unwrap_or(&[0; LANES]);
        let mut lanes = [0.0; LANES];
        for j in 0..LANES {
            lanes[j] = f32::from(codes[j] as i8) * scale;
        }
        lanes
    }

    #[inline(always)]
    fn tail(row: &[u8], dim: usize, at: usize) -> Lanes {
        let scale = Self::scale(row, dim, at);
        let mut lanes = [0.0; LANES];
        for (lane, code) in lanes.iter_mut().zip(&row[at..dim]) {
            *lane = f32::from(*code as i8) * scale;
        }
        lanes
    }

    #[inline(always)]
    fn widen_rows(rows: &[u8], dim: usize, to: &mut [f32]) {
        let rows = rows.chunks_exact(Self::row_bytes(dim));
        for (row, to) in rows.zip(to.chunks_exact_mut(dim)) {
            let mut at = 0;
            while at + LANES <= dim {
                to[at..at + LANES].copy_from_slice(&Self::lanes(row, dim, at));
                at += LANES;
            }
            if at < dim {
                let tail = Self::tail(row, dim, at);
                to[at..].copy_from_slice(&tail[..dim - at]);
            }
        }
    }

    #[inline(always)]
    fn place(at: usize) -> usize {
        at
    }
}

/// Numbers as a row of [`RowType::Q8`].
///
/// A group whose largest magnitude is `m` has the scale `d = m / 127`, and a number `x` the code that is nearest to
/// `x / d`, of two the even one. A group with a number that is not finite means NaN.
#[inline(always)]
pub(crate) fn narrow_q8(x: &[f32], out: &mut [u8]) {
    const ROUND: f32 = 12_582_912.0; // as in exp1
    assert_eq!(out.len(), Q8::row_bytes(x.len()));
    let (codes, scales) = out.split_at_mut(x.len());
    let groups = x.chunks(GROUP).zip(codes.chunks_mut(GROUP));
    for ((x, codes), to) in groups.zip(scales.as_chunks_mut::<4>().0) {
        let max = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        let scale = match max < f32::INFINITY.to_bits() {
            true => f32::from_bits(max) / 127.0,
            false => f32::NAN,
        };
        *to = scale.to_le_bytes();
        for (x, code) in x.iter().zip(codes) {
            let r = (x / scale).clamp(-127.0, 127.0);
            let r = (r + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32;
            *code = if scale > 0.0 { r as u8 } else { 0 };
        }
    }
}

/// The numbers that a row of [`RowType::Q8`] means.
#[cfg(test)]
pub(crate) fn widened(row: &[u8], dim: usize) -> Vec<f32> {
    let mut wide = vec![f32::NAN; dim];
    Q8::widen_rows(row, dim, &mut wide);
    wide
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;

    #[test]
    fn codes_are_those_of_the_rule_on_every_backend() {
        let mut state = 5u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        for dim in [1, 15, 16, 31, 32, 33, 64, 80, 128, 200] {
            for size in [1.0, 1e30, 1e-38, 1e-44, 0.0] {
                let x: Vec<f32> = (0..dim).map(|_| size * noise()).collect();
                let mut want = Vec::new(); // codes, then scales
                let mut scales = Vec::new();
                let mut wide = Vec::new();
                for x in x.chunks(GROUP) {
                    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    let scale = max / 127.0;
                    for x in x {
                        let code = match scale > 0.0 {
                            true => (x / scale).round_ties_even().clamp(-127.0, 127.0),
                            false => 0.0,
                        };
                        want.push(code as i8 as u8);
                        wide.push(code * scale);
                    }
                    scales.extend(scale.to_le_bytes());
                }
                want.extend(scales);
                for backend in Backend::available() {
                    let mut row = vec![7; RowType::Q8.row_bytes(dim).unwrap()];
                    backend.narrow_q8(&x, &mut row);
                    assert_eq!(row, want, "{backend:?} {dim} {size}");
                }
                let got = widened(&want, dim);
                let bits = |x: &[f32]| -> Vec<u32> { x.iter().map(|v| v.to_bits()).collect() };
                // a code has no sign of zero
                let wide: Vec<f32> = wide.iter().map(|w| w + 0.0).collect();
                assert_eq!(bits(&got), bits(&wide), "{dim} {size}");
                for (got, x) in got.iter().zip(&x) {
                    // half a step, a scale that is subnormal may be off by another half
                    let step = 2.0 * size / 127.0 + 1e-42;
                    assert!((got - x).abs() <= step, "{got} {x}");
                }
            }
        }
    }

    #[test]
    fn a_group_with_a_number_that_is_not_finite_means_nan() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 64];
            x[40] = bad;
            for backend in Backend::available() {
                let mut row = vec![7; RowType::Q8.row_bytes(64).unwrap()];
                backend.narrow_q8(&x, &mut row);
                let wide = widened(&row, 64);
                assert!(wide[..32].iter().all(|w| *w == 1.0));
                assert!(wide[32..].iter().all(|w| w.is_nan()));
            }
        }
    }

    #[test]
    fn sizes_of_rows() {
        let dense = RowType::from(DenseType::F16);
        assert_eq!(dense.row_bytes(128), Some(256));
        assert_eq!(RowType::Q8.row_bytes(128), Some(144));
        assert_eq!(RowType::Q8.row_bytes(33), Some(41));
        assert_eq!(RowType::Q8.row_bytes(usize::MAX), None);
    }
}
