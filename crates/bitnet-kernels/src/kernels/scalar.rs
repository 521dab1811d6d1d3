//! The definition: plain loops, no cleverness, every CPU.
//!
//! Layout: one row is one tile, one trit is one `i8`, padded with zero trits to a whole line.

use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, FixedTiles, Sink, TernaryOps, Tile};
use crate::fixed_point::{self, FixedToken};
use crate::float_table;
use crate::kernel::Kernel;
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
        two_bits: None,
        by_tables: None,
        fixed,
        many_fixed: None,
    },
    grouped: None,
    tabled: None,
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

/// One token of fixed-point activations.
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    let row = &as_bytes(tile.lines)[..tile.cols];
    let [low, middle, high] = x.planes;
    let mut sum = 0.0;
    for (segment, of) in tile.segments().zip(&x.segments) {
        let mut dot = 0;
        for k in segment.start..segment.end {
            let q = fixed_point::join([low[k], middle[k], high[k]].map(i32::from));
            dot += i32::from(row[k] as i8) * q;
        }
        sum = match tile.group {
            None => fixed_point::add(dot, of.step, sum),
            Some(_) => fixed_point::add_scaled(dot, of.step, tile.scales[of.scale], sum),
        };
    }
    sums.fill(sum);
}
