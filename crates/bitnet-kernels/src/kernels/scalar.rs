//! The definition: plain loops, no cleverness, every CPU.
//!
//! Layout: one row is one tile, one trit is one `i8`, padded with zero trits to a whole line.

use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, Sink, TernaryOps, Tile};
use crate::float_table;
use crate::kernel::Kernel;
use crate::lanes::{LANES, add_lanes};
use crate::lines::{LINE, Line, as_bytes};
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "scalar",
    requires: "nothing",
    is_available: || true,
    missing: Vec::new,
    ternary: TernaryOps {
        layout: "rows-8bit",
        tile_rows: 1,
        panel: Panel::NONE,
        block_bytes: BLOCK_BYTES,
        scratch_lines: 0,
        tile_lines,
        pack,
        unpack,
        are_codes,
        dots,
        many_tokens: None,
        sums,
    },
    grouped: None,
    float: float_table::instantiate!(),
    peak: None,
};

fn tile_lines(cols: usize) -> usize {
    cols.div_ceil(LINE)
}

fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    for (row, tile) in trits
        .chunks_exact(cols)
        .zip(tiles.chunks_exact_mut(tile_lines(cols)))
    {
        for (trits, line) in row.chunks(LINE).zip(tile) {
            for (trit, byte) in trits.iter().zip(&mut line.0) {
                *byte = *trit as u8;
            }
        }
    }
    trits.iter().all(|trit| (-1..=1).contains(trit))
}

fn unpack(tiles: &[Line], cols: usize, trits: &mut [i8]) {
    for (row, tile) in trits
        .chunks_exact_mut(cols)
        .zip(tiles.chunks_exact(tile_lines(cols)))
    {
        for (trit, byte) in row.iter_mut().zip(as_bytes(tile)) {
            *trit = *byte as i8;
        }
    }
}

fn are_codes(tiles: &[Line]) -> bool {
    // 255, 0 and 1 are -1, 0 and +1
    as_bytes(tiles)
        .iter()
        .fold(true, |all, b| all & (b.wrapping_add(1) <= 2))
}

/// `dot[g][r] = sum over k in group g of trit[r][k] * a[k]`.
fn dots(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    _: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    let row = &as_bytes(tile.lines)[..tile.cols];
    for (token, dots) in tokens.clone().zip(dots.chunks_exact_mut(tile.groups())) {
        let groups = row
            .chunks_exact(tile.group)
            .zip(x.values(token).chunks_exact(tile.group));
        for ((trits, values), dot) in groups.zip(dots) {
            *dot = trits
                .iter()
                .zip(values)
                .map(|(t, a)| i32::from(*t as i8) * i32::from(*a))
                .sum();
        }
    }
    sink.done(tokens, dots);
}

/// The same with float activations: within a group, lane `k % 16` takes column `k` (rule 3).
fn sums(tile: &Tile<'_>, x: &[f32], sums: &mut [f32]) {
    let row = &as_bytes(tile.lines)[..tile.cols];
    for (x, sums) in x
        .chunks_exact(tile.cols)
        .zip(sums.chunks_exact_mut(tile.groups()))
    {
        let groups = row.chunks_exact(tile.group).zip(x.chunks_exact(tile.group));
        for ((trits, x), sum) in groups.zip(sums) {
            let mut lanes = [0.0; LANES];
            for (k, (t, x)) in trits.iter().zip(x).enumerate() {
                let lane = &mut lanes[k % LANES];
                *lane = f32::from(*t as i8).mul_add(*x, *lane);
            }
            *sum = add_lanes(lanes);
        }
    }
}
