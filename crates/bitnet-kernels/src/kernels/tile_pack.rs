//! Rows of trits to [`tile`]s and back.
//!
//! Packing is a transposition: a line holds one dword of each of 16 rows. Sixteen bytes of each row, four
//! quads, become four lines, a line per quad ([`Transpose`]), and `F` of those become a line of a block, all
//! 16 rows at once. `F` loads of 16 columns are four blocks, whatever `F` is.
//!
//! Invariant: every line of a tile is written, with code 1 (trit 0) wherever the matrix has no element.

use super::tile::{BLOCK, ROWS, lines};
use crate::lines::{LINE, Line, as_bytes};
use std::array;

/// How `F` quads of a row become a dword.
pub(super) trait Code<const F: usize> {
    /// 0 for the byte that `encode` makes of some trits; another number for an invalid byte.
    fn wrong(byte: u8) -> u8;

    /// The dword of these quads of codes `u = trit + 1`, a byte each.
    fn encode(quads: [u32; F]) -> u32;

    /// The inverse.
    fn decode(dword: u32) -> [[i8; 4]; F];
}

/// The layout of [`TwoBits`]: 32 rows in blocks of 16 columns (`formats/packing/tile32.md`).
pub(super) const TWO_BITS: &str = "tile32-2bit";

/// Four trits a byte: field `f` holds the codes of quad `f`.
pub(super) struct TwoBits;

impl Code<4> for TwoBits {
    #[inline(always)]
    fn wrong(byte: u8) -> u8 {
        byte & byte >> 1 & 0x55 // both bits of a code
    }

    #[inline(always)]
    fn encode([a, b, c, d]: [u32; 4]) -> u32 {
        a | b << 2 | c << 4 | d << 6
    }

    #[inline(always)]
    fn decode(dword: u32) -> [[i8; 4]; 4] {
        array::from_fn(|f| array::from_fn(|j| (dword >> (8 * j + 2 * f) & 3) as i8 - 1))
    }
}

/// Rows of a line.
const LINE_ROWS: usize = ROWS / BLOCK;

/// Columns that are transposed at a time: four quads.
const COLS: usize = 16;

/// Some columns of one row.
type Span<const F: usize> = [[i8; COLS]; F];

/// Sixteen columns of 16 rows to a line per quad: dword `row` of line `q` is quad `q` of that row.
pub(super) trait Transpose: Fn([&[i8; COLS]; LINE_ROWS]) -> [Line; 4] {}

impl<T: Fn([&[i8; COLS]; LINE_ROWS]) -> [Line; 4]> Transpose for T {}

/// The [`Transpose`] of every CPU.
#[cfg(test)]
#[inline(always)]
pub(super) fn transpose(rows: [&[i8; COLS]; LINE_ROWS]) -> [Line; 4] {
    let mut quads = [Line([0; LINE]); 4];
    for (row, trits) in rows.into_iter().enumerate() {
        for (quad, trits) in quads.iter_mut().zip(trits.as_chunks::<4>().0) {
            quad.0.as_chunks_mut::<4>().0[row] = trits.map(|t| t as u8);
        }
    }
    quads
}

/// Packs row-major trits `(rows, cols)`; whether all of them are trits (what others become means nothing).
#[inline(always)]
pub(super) fn pack<const F: usize, C: Code<F>>(
    trits: &[i8],
    cols: usize,
    tiles: &mut [Line],
    transpose: impl Transpose,
) -> bool {
    let mut worst = [0; LINE];
    for (rows, tile) in trits
        .chunks(ROWS * cols)
        .zip(tiles.chunks_exact_mut(lines::<F>(cols)))
    {
        for half in 0..BLOCK {
            let mut rows = rows.chunks_exact(cols).skip(half * LINE_ROWS);
            let rows: [&[i8]; LINE_ROWS] = array::from_fn(|_| rows.next().unwrap_or(&[]));
            let spans = rows.map(|row| row.as_chunks::<COLS>().0.as_chunks::<F>().0);
            // of a row that is not there, none
            let whole = spans.iter().map(|spans| spans.len()).min().unwrap_or(0);
            let blocks = tile.as_chunks_mut::<BLOCK>().0.chunks_mut(4);
            for (i, blocks) in blocks.enumerate() {
                if i < whole {
                    let spans = array::from_fn(|row| &spans[row][i]);
                    pack_spans::<F, C>(spans, blocks, half, &mut worst, &transpose);
                } else {
                    let mut spans = [[[0; COLS]; F]; LINE_ROWS];
                    for (span, row) in spans.iter_mut().zip(rows) {
                        let rest = row.get(i * COLS * F..).unwrap_or(&[]);
                        let span = span.as_flattened_mut();
                        let live = rest.len().min(span.len());
                        span[..live].copy_from_slice(&rest[..live]);
                    }
                    pack_spans::<F, C>(spans.each_ref(), blocks, half, &mut worst, &transpose);
                }
            }
        }
    }
    worst.iter().all(|code| *code <= 2)
}

/// Packs `16 F` columns of 16 rows into one half of up to four blocks; `worst` becomes the largest code in
/// every place so far.
#[inline(always)]
fn pack_spans<const F: usize, C: Code<F>>(
    spans: [&Span<F>; LINE_ROWS],
    blocks: &mut [[Line; BLOCK]],
    half: usize,
    worst: &mut [u8; LINE],
    transpose: &impl Transpose,
) {
    let mut quads = [[Line([0; LINE]); 4]; F];
    for (g, quads) in quads.iter_mut().enumerate() {
        *quads = transpose(array::from_fn(|row| &spans[row][g]));
    }
    let quads = quads.as_flattened_mut().as_chunks_mut::<F>().0;
    for (quads, block) in quads.iter_mut().zip(blocks) {
        for quad in &mut *quads {
            for (byte, worst) in quad.0.iter_mut().zip(&mut *worst) {
                *byte = byte.wrapping_add(1);
                *worst = (*worst).max(*byte);
            }
        }
        for (row, dword) in block[half].0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let quads = array::from_fn(|f| u32::from_le_bytes(quads[f].0.as_chunks::<4>().0[row]));
            *dword = C::encode(quads).to_le_bytes();
        }
    }
}

/// The inverse of [`pack`].
pub(super) fn unpack<const F: usize, C: Code<F>>(tiles: &[Line], cols: usize, trits: &mut [i8]) {
    for (rows, tile) in trits
        .chunks_mut(ROWS * cols)
        .zip(tiles.chunks_exact(lines::<F>(cols)))
    {
        for (row, trits) in rows.chunks_exact_mut(cols).enumerate() {
            for (trits, dword) in trits.chunks_mut(4 * F).zip(row_dwords(tile, row)) {
                trits.copy_from_slice(&C::decode(dword).as_flattened()[..trits.len()]);
            }
        }
    }
}

/// Whether no byte is wrong. A whole line at a time, as vectors: a file is read as fast as it comes.
pub(super) fn are_codes<const F: usize, C: Code<F>>(tiles: &[Line]) -> bool {
    let mut wrong = [0; LINE];
    for line in tiles {
        for (wrong, byte) in wrong.iter_mut().zip(&line.0) {
            *wrong |= C::wrong(*byte);
        }
    }
    wrong == [0; LINE]
}

/// The dwords of one row of a tile, one a block.
fn row_dwords(tile: &[Line], row: usize) -> impl Iterator<Item = u32> {
    let at = row / LINE_ROWS * LINE + row % LINE_ROWS * 4;
    as_bytes(tile)
        .chunks_exact(BLOCK * LINE)
        .filter_map(move |block| block[at..].first_chunk().map(|b| u32::from_le_bytes(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernel;
    use crate::kernels::KERNELS;

    fn noise(count: usize) -> Vec<i8> {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            ((state >> 40) % 3) as i8 - 1
        };
        (0..count).map(|_| next()).collect()
    }

    /// The definition: every element by its place in the layout.
    fn expected<const F: usize, C: Code<F>>(trits: &[i8], cols: usize) -> Vec<[u8; LINE]> {
        let at = |row: usize, col: usize| match col < cols {
            true => trits.get(row * cols + col).copied().unwrap_or(0),
            false => 0,
        };
        let code = |row, col| u32::from((at(row, col) + 1) as u8);
        let tiles = trits.len().div_ceil(ROWS * cols);
        let blocks = cols.div_ceil(4 * F);
        let mut out = Vec::new();
        for (tile, block) in (0..tiles).flat_map(|t| (0..blocks).map(move |b| (t, b))) {
            for half in 0..BLOCK {
                let mut line = [0; LINE];
                for (row, dword) in line.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let row = tile * ROWS + half * LINE_ROWS + row;
                    let quads = array::from_fn(|f| {
                        (0..4).fold(0, |quad, j| {
                            quad | code(row, 4 * (F * block + f) + j) << (8 * j)
                        })
                    });
                    *dword = C::encode(quads).to_le_bytes();
                }
                out.push(line);
            }
        }
        out
    }

    fn lines_of(kernel: &Kernel, trits: &[i8], cols: usize) -> (bool, Vec<[u8; LINE]>) {
        let ops = &kernel.ternary;
        let tiles = trits.len().div_ceil(ops.tile_rows * cols);
        let mut lines = vec![Line([0xaa; LINE]); tiles * (ops.tile_lines)(cols)];
        // SAFETY: the caller asked whether it is available.
        let fine = unsafe { (ops.pack)(trits, cols, &mut lines) };
        (fine, lines.iter().map(|line| line.0).collect())
    }

    #[test]
    fn every_transposition_packs_what_the_layout_says() {
        for rows in [1, 15, 16, 17, 32, 33, 70] {
            for cols in [1, 15, 16, 17, 20, 63, 64, 65, 79, 80, 81, 160, 640] {
                if !crate::is_quick(rows * cols * 4) {
                    continue;
                }
                let trits = noise(rows * cols);
                let two = expected::<4, TwoBits>(&trits, cols);
                let mut lines = vec![Line([0xaa; LINE]); two.len()];
                assert!(pack::<4, TwoBits>(&trits, cols, &mut lines, transpose));
                assert!(lines.iter().map(|line| line.0).eq(two.iter().copied()));
                for kernel in KERNELS.iter().filter(|k| (k.is_available)()) {
                    if kernel.ternary.layout == TWO_BITS {
                        let found = lines_of(kernel, &trits, cols);
                        assert_eq!(
                            found,
                            (true, two.clone()),
                            "{} {rows} x {cols}",
                            kernel.name
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_trit_is_noticed_wherever_it_stands() {
        for kernel in KERNELS.iter().filter(|k| (k.is_available)()) {
            for (rows, cols) in [(1, 1), (17, 15), (33, 100), (64, 320)] {
                let trits = noise(rows * cols);
                for at in [0, rows * cols / 2, rows * cols - 1] {
                    for bad in [2, -2, 127, -128] {
                        let mut trits = trits.clone();
                        trits[at] = bad;
                        assert!(
                            !lines_of(kernel, &trits, cols).0,
                            "{} {at} {bad}",
                            kernel.name
                        );
                    }
                }
            }
        }
    }
}
