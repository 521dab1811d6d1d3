//! Where scales meet the sums of a kernel.
//!
//! Invariant: one body applies them for every kernel (`formats/numerics.md`, rule 2).

use crate::lanes::{LANES, add_lanes};
use crate::lines::Word;
use crate::output::Output;
use std::ops::Range;

/// What a kernel sums: `i32` or `f32`.
pub(crate) trait Sum: Word {
    /// As float; exact for dots, which are below 2^24.
    fn to_f32(self) -> f32;
}

impl Sum for i32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
}

impl Sum for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// Where the sums of a tile belong: `(tokens, groups, tile_rows)` from row `row` on.
pub(crate) struct Place {
    pub groups: usize,
    pub tile_rows: usize,
    pub row: usize,
}

impl Place {
    /// The rows of this tile among those that `out` owns, counted from the first of them.
    pub fn rows(&self, out: &Output<'_>) -> Range<usize> {
        let start = self.row - out.rows().start;
        start..out.rows().len().min(start + self.tile_rows)
    }
}

/// The scales of a tile.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TileScales<'a> {
    /// One of the whole tensor.
    Tensor(f32),
    /// One of each row that exists, from the tile's first on.
    Rows(&'a [f32]),
    /// Those of groups of columns, `(groups, tile_rows)`.
    Groups(&'a [f32]),
}

/// [`finish`], instantiated.
pub(crate) type Finish<T> = unsafe fn(&[T], &Place, TileScales<'_>, usize, &[f32], &mut Output<'_>);

/// Rule 2: scales the sums of the tokens from `token` on, whose activations were multiplied by `s`.
#[inline(always)]
pub(crate) fn finish<T: Sum>(
    sums: &[T],
    place: &Place,
    scales: TileScales<'_>,
    token: usize,
    s: &[f32],
    out: &mut Output<'_>,
) {
    let rows = place.rows(out);
    let tile_sums = place.groups * place.tile_rows;
    for (t, (s, sums)) in s.iter().zip(sums.chunks_exact(tile_sums)).enumerate() {
        let out = &mut out.token_mut(token + t)[rows.clone()];
        match scales {
            TileScales::Tensor(alpha) => {
                let f = alpha / s;
                let (sums, sums_tail) = sums[..out.len()].as_chunks::<LANES>();
                let (o, o_tail) = out.as_chunks_mut::<LANES>();
                for (o, sums) in o.iter_mut().zip(sums) {
                    // by way of a copy: `o` and `sums` might overlap for all the compiler knows
                    let mut scaled = [0.0; LANES];
                    for j in 0..LANES {
                        scaled[j] = sums[j].to_f32() * f;
                    }
                    *o = scaled;
                }
                for (o, sum) in o_tail.iter_mut().zip(sums_tail) {
                    *o = sum.to_f32() * f;
                }
            }
            TileScales::Rows(alpha) => {
                for ((o, sum), alpha) in out.iter_mut().zip(sums).zip(alpha) {
                    *o = sum.to_f32() * (alpha / s);
                }
            }
            TileScales::Groups(alpha) => {
                for (r, o) in out.iter_mut().enumerate() {
                    let mut lanes = [0.0; LANES];
                    let groups = sums[r..].iter().zip(&alpha[r..]);
                    for (g, (sum, alpha)) in groups.step_by(place.tile_rows).enumerate() {
                        let lane = &mut lanes[g % LANES];
                        *lane = sum.to_f32().mul_add(*alpha, *lane);
                    }
                    *o = add_lanes(lanes) * (1.0 / s);
                }
            }
        }
    }
}
