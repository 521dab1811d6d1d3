//! `tl2`: bitnet.cpp's lookup layout for x86, three trits in five bits (`formats/packing/tl2.md`).
//!
//! Invariant: four-bit magnitudes of triples, their sign bits, two-trit codes of the last columns,
//! zeros up to a length that depends on the shape alone, one f32 scale, 28 zeros (see [`Regions`]).
//! The file does not say the tiling: `tl2` takes the one of the shape, `tl2-BM-BK` another.

use super::tilings::{
    Preset, Tiling, Tilings, bad_tile_code, decode_pairs, divisor, does_not_fit, encode_pairs,
};
use super::trailer::{TRAILER, UNREAD, stored_scale, trailer};
use super::{
    PackedTensor, Packing, ScaleRounding, decode_quads, div_rem, elements, encode_quads, from,
    one_scale,
};
use crate::error::FormatError;
use bitnet_ternary::{Scales, TernaryMatrix};

/// The tilings that bitnet.cpp ships.
pub(super) static PRESETS: &[Preset] = &[
    (
        "large",
        &[
            [1536, 4096, 256, 96, 32],
            [1536, 1536, 128, 192, 32],
            [4096, 1536, 256, 96, 32],
        ],
    ),
    (
        "3b",
        &[
            [3200, 8640, 160, 96, 32],
            [3200, 3200, 320, 96, 32],
            [8640, 3200, 320, 96, 32],
        ],
    ),
    (
        "8b",
        &[
            [14336, 4096, 256, 96, 32],
            [4096, 14336, 128, 96, 32],
            [1024, 4096, 256, 96, 32],
            [4096, 4096, 128, 96, 32],
        ],
    ),
];

/// GGUF type 39, later 42; see the module.
#[derive(Debug)]
pub(super) struct Tl2 {
    pub(super) tilings: Tilings,
}

/// The row of the table: tilings by shape.
pub(super) static TL2: Tl2 = Tl2 {
    tilings: Tilings::ByShape,
};

/// Where the parts of one matrix lie; all numbers are of the page.
struct Regions {
    /// `BM / 32`, blocks of rows per tile.
    blocks: usize,
    /// `BK`.
    tile_cols: usize,
    /// Columns in triples and in pairs.
    k3: usize,
    k2: usize,
    /// Where the signs and the pairs begin.
    signs: usize,
    pairs: usize,
    /// Length of all of it with its zeros, a multiple of 32.
    len: usize,
}

/// Where row `ri` of 32 stands in 32 bytes: the second and the third eight change places.
#[inline(always)]
fn position(ri: usize) -> usize {
    ri & 7 | (ri & 8) << 1 | (ri & 16) >> 1
}

/// The three trits of a sign bit (16) and a magnitude; 2 where no encoder writes it.
// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing)]
const TRIPLES: [[i8; 3]; 32] = {
    let mut table = [[2; 3]; 32];
    let mut code = 0;
    while code < 32 {
        let index = code as i8 & 15;
        if index < 14 && code != 16 {
            let v = if code & 16 != 0 {
                13 - index
            } else {
                13 + index
            };
            table[code] = [v / 9 - 1, v / 3 % 3 - 1, v % 3 - 1];
        }
        code += 1;
    }
    table
};

/// Where the signs of two triples stand in a word of signs, of the first triples of the first row.
const SIGNS: u16 = 0xa000;

/// Six trits of every byte of two magnitudes and two sign bits (0x100, 0x200), then 1 where no encoder
/// writes them.
// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing)]
static SIXES: [[i8; 8]; 1024] = {
    let mut table = [[0; 8]; 1024];
    let mut code = 0;
    while code < 1024 {
        let a = TRIPLES[(code >> 8 & 1) << 4 | code >> 4 & 15];
        let b = TRIPLES[(code >> 9 & 1) << 4 | code & 15];
        let bad = (a[0] == 2 || b[0] == 2) as i8;
        table[code] = [a[0], a[1], a[2], b[0], b[1], b[2], bad, 0];
        code += 1;
    }
    table
};

/// The inverse, of six 2-bit codes: the byte, and the signs as in [`SIGNS`].
// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing)]
static CODES: [u16; 4096] = {
    let mut table = [0; 4096];
    let mut codes = 0;
    while codes < 4096 {
        let mut halves = [0; 2];
        let mut i = 0;
        while i < 6 {
            let trit = (codes >> (2 * i) & 3) as i16 - 1;
            halves[i / 3] = 3 * halves[i / 3] + trit;
            i += 1;
        }
        let [x, y] = halves;
        let signs = ((x < 0) as u16) << 15 | ((y < 0) as u16) << 13;
        table[codes] = signs | (x.unsigned_abs() & 15) << 4 | y.unsigned_abs() & 15;
        codes += 1;
    }
    table
};

/// One of the three regions as equal runs, each of 32 rows and as many columns.
struct Part {
    /// Its first byte.
    at: usize,
    /// Bytes of a run.
    len: usize,
    /// Its first column.
    col: usize,
    /// Columns of a run.
    cols: usize,
    /// Runs side by side.
    tiles: usize,
    /// Packs row `ri` of a run from its 2-bit codes.
    pack_row: fn(ri: usize, codes: &[u8], run: &mut [u8]),
}

#[inline(always)]
fn put(line: &mut [u8; 32], at: usize, byte: u8) {
    if let Some(to) = line.get_mut(at) {
        *to = byte;
    }
}

fn pack_triples(ri: usize, codes: &[u8], run: &mut [u8]) {
    let at = position(ri);
    for (six, bytes) in codes.as_chunks().0.iter().zip(run.as_chunks_mut::<128>().0) {
        for (line, code) in bytes.as_chunks_mut::<32>().0.iter_mut().zip(sixes(six)) {
            put(line, at, code as u8);
        }
    }
}

fn pack_signs(ri: usize, codes: &[u8], run: &mut [u8]) {
    // rows ri and ri + 16 share a word
    for (six, words) in codes.as_chunks().0.iter().zip(run.as_chunks_mut::<32>().0) {
        let signs = sixes(six).zip([0, 4, 8, 12]);
        let signs = signs.fold(0, |all, (code, shift)| {
            all | (code & SIGNS).wrapping_shr(shift)
        });
        let signs = if ri < 16 { signs } else { signs >> 1 };
        if let Some(word) = words.as_chunks_mut::<2>().0.get_mut(ri % 16) {
            *word = (u16::from_le_bytes(*word) | signs).to_le_bytes();
        }
    }
}

fn pack_pairs(ri: usize, codes: &[u8], run: &mut [u8]) {
    let mut trits = [0; 32];
    let mut bytes = [0; 8];
    decode_quads(codes, &mut trits);
    encode_pairs(&trits, &mut bytes);
    for (line, byte) in run.as_chunks_mut::<32>().0.iter_mut().zip(bytes) {
        put(line, position(ri), byte);
    }
}

/// `N` trits of a row, from a column on.
#[inline(always)]
fn at_mut<const N: usize>(row: &mut [i8], column: usize) -> Option<&mut [i8; N]> {
    row.get_mut(column..)?.first_chunk_mut()
}

/// Unpacks 24 columns of row `ri` of 32; returns a byte that is not zero if no encoder writes one of the codes.
#[inline(always)]
fn unpack_triples(ri: usize, lines: &[u8; 128], words: &[u8; 32], trits: &mut [i8; 24]) -> i8 {
    let word = words.as_chunks().0.get(ri % 16);
    let word = usize::from(u16::from_le_bytes(word.copied().unwrap_or_default()));
    // the signs of this row's triples are every other bit, from the top
    let mut signs = if ri < 16 { word } else { word << 1 };
    let at = position(ri);
    let mut bad = 0;
    let sixes = trits.as_chunks_mut::<6>().0.iter_mut();
    for (six, line) in sixes.zip(lines.as_chunks::<32>().0) {
        let signs_of_six = signs >> 7 & 0x100 | signs >> 4 & 0x200;
        let index = line.get(at).copied().unwrap_or_default();
        let entry = SIXES.get(signs_of_six | usize::from(index));
        let [a, b, c, d, e, f, wrong, _] = entry.copied().unwrap_or_default();
        *six = [a, b, c, d, e, f];
        bad |= wrong;
        signs <<= 4;
    }
    bad
}

/// As [`unpack_triples`], of 32 columns in pairs.
#[inline(always)]
fn unpack_pairs(ri: usize, lines: &[u8; 256], trits: &mut [i8; 32]) -> i8 {
    let mut codes = [0; 8];
    for (code, line) in codes.iter_mut().zip(lines.as_chunks::<32>().0) {
        *code = line.get(position(ri)).copied().unwrap_or_default();
    }
    i8::from(!decode_pairs(&codes, trits))
}

/// What [`CODES`] says of 24 columns, six at a time.
#[inline(always)]
fn sixes(codes: &[u8; 6]) -> impl Iterator<Item = u16> {
    let [a, b, c, d, e, f] = codes.map(u64::from);
    let all = a | b << 8 | c << 16 | d << 24 | e << 32 | f << 40;
    [0, 12, 24, 36].into_iter().map(move |shift| {
        let code = CODES.get((all.wrapping_shr(shift) & 0xfff) as usize);
        code.copied().unwrap_or_default()
    })
}

impl Regions {
    /// Bytes of the triples of 32 rows of a tile.
    fn len_of_triples(&self) -> usize {
        (self.tile_cols / 6).saturating_mul(32)
    }

    /// Bytes of the signs of 32 rows of a tile.
    fn len_of_words(&self) -> usize {
        (self.tile_cols / 24).saturating_mul(32)
    }

    /// Tiles of triples side by side.
    fn tiles(&self) -> usize {
        div_rem(self.k3, self.tile_cols).0
    }

    /// Where in the first region the 32 bytes of block `block` of rows (counted over the matrix),
    /// column tile `kb`, are; in units of 32 bytes times the triples pairs of a tile.
    #[inline(always)]
    fn tile(&self, block: usize, kb: usize, tiles: usize) -> usize {
        let (mb, rb) = div_rem(block, self.blocks);
        let before = mb.saturating_mul(tiles).saturating_add(kb);
        before.saturating_mul(self.blocks).saturating_add(rb)
    }

    /// The inverse: `(block, kb)` of run `i` of a region.
    fn place(&self, i: usize, tiles: usize) -> (usize, usize) {
        let (before, rb) = div_rem(i, self.blocks);
        let (mb, kb) = div_rem(before, tiles);
        (mb.saturating_mul(self.blocks).saturating_add(rb), kb)
    }

    /// First byte of the triples of `(block, kb)`; 32 bytes per six columns.
    #[inline(always)]
    fn triples(&self, block: usize, kb: usize) -> usize {
        let tile = self.tile(block, kb, self.tiles());
        tile.saturating_mul(self.len_of_triples())
    }

    /// First byte of the signs of `(block, kb)`; 16 words per 24 columns.
    #[inline(always)]
    fn words(&self, block: usize, kb: usize) -> usize {
        let tile = self.tile(block, kb, self.tiles());
        let words = tile.saturating_mul(self.len_of_words());
        self.signs.saturating_add(words)
    }

    fn parts(&self) -> [Part; 3] {
        let (tile_cols, tiles) = (self.tile_cols, self.tiles());
        let triples = Part {
            at: 0,
            len: self.len_of_triples(),
            col: 0,
            cols: tile_cols,
            tiles,
            pack_row: pack_triples,
        };
        let signs = Part {
            at: self.signs,
            len: self.len_of_words(),
            pack_row: pack_signs,
            ..triples
        };
        let pairs = Part {
            at: self.pairs,
            len: 8 * 32,
            col: self.k3,
            cols: 32,
            tiles: self.k2 / 32,
            pack_row: pack_pairs,
        };
        [triples, signs, pairs]
    }

    /// First byte of the pairs of `(block, kb)`; 32 bytes per four columns.
    #[inline(always)]
    fn codes(&self, block: usize, kb: usize) -> usize {
        let tile = self.tile(block, kb, self.k2 / 32);
        self.pairs.saturating_add(tile.saturating_mul(8 * 32))
    }
}

impl Tl2 {
    fn tiling(&self, rows: usize, cols: usize) -> Result<Tiling, FormatError> {
        let by_rule = || {
            Some(Tiling {
                rows: divisor(rows, 32, 128)?,
                cols: 96,
                block: 32,
            })
        };
        self.tilings.of(PRESETS, by_rule, (rows, cols))
    }

    fn regions(&self, rows: usize, cols: usize) -> Result<Regions, FormatError> {
        let n = elements(rows, cols)?;
        if n == 0 {
            return Ok(Regions {
                blocks: 1,
                tile_cols: 24,
                k3: 0,
                k2: 0,
                signs: 0,
                pairs: 0,
                len: 0,
            });
        }
        let tiling = self.tiling(rows, cols)?;
        let Tiling {
            rows: tile_rows,
            cols: tile_cols,
            block,
        } = tiling;
        let refuse = |rule| Err(does_not_fit(self.name(), tiling, (rows, cols), rule));
        let fits = block == 32
            && tile_rows > 0
            && tile_cols > 0
            && rows.is_multiple_of(tile_rows)
            && tile_rows.is_multiple_of(32)
            && tile_cols.is_multiple_of(24)
            && div_rem(cols, tile_cols).1.is_multiple_of(32);
        if !fits {
            return refuse("M % BM, BM % 32, BK % 24 and (K % BK) % 32 are 0, bm is 32");
        }
        if cols < 256 {
            return refuse("K is at least 256");
        }
        let (_, k2) = div_rem(cols, tile_cols);
        let k3 = cols.saturating_sub(k2);
        // rows are a multiple of 32 and the product fits, so all of these do
        let (m, k) = (rows as u64, cols as u64);
        let reserved = (k.saturating_sub(256).saturating_mul(m) / 3).saturating_mul(5) / 8;
        let reserved = reserved.saturating_add((m.saturating_mul(256) / 2).saturating_mul(4) / 8);
        let signs = m.saturating_mul(k3 as u64 / 6);
        let pairs = signs.saturating_add((m / 8).saturating_mul(k3 as u64 / 3));
        if pairs.saturating_add(m.saturating_mul(k2 as u64 / 4)) > reserved {
            return refuse("the layout has room for at most 256 columns in pairs");
        }
        Ok(Regions {
            blocks: tile_rows / 32,
            tile_cols,
            k3,
            k2,
            signs: signs as usize,
            pairs: pairs as usize,
            len: reserved.next_multiple_of(32) as usize,
        })
    }
}

impl Packing for Tl2 {
    fn name(&self) -> &'static str {
        self.tilings.name("tl2")
    }

    fn gguf_type(&self) -> Option<u32> {
        Some(39)
    }

    /// bitnet.cpp's fork of 2026.
    fn gguf_aliases(&self) -> &'static [u32] {
        &[42]
    }

    fn gguf_file_type(&self) -> Option<u32> {
        Some(39)
    }

    fn holds_scales(&self) -> bool {
        true
    }

    fn parameters(&self, rows: usize, cols: usize) -> Option<String> {
        self.packed_len(rows, cols).ok()?;
        let Tiling {
            rows: bm_rows,
            cols: bk,
            block,
        } = self.tiling(rows, cols).ok()?;
        Some(format!("{rows}x{cols}={bm_rows}-{bk}-{block}"))
    }

    fn packed_len(&self, rows: usize, cols: usize) -> Result<u64, FormatError> {
        Ok(self.regions(rows, cols)?.len.saturating_add(TRAILER) as u64)
    }

    fn check_scales(&self, m: &TernaryMatrix, _: ScaleRounding) -> Result<f64, FormatError> {
        one_scale(m, self.name()).map(|_| 0.0)
    }

    /// A line of 32 bytes: a row of tiles is in three places.
    fn unit_len(&self, _rows: usize, _cols: usize) -> usize {
        32
    }

    fn pack_units(&self, matrix: &TernaryMatrix, first: usize, out: &mut [u8]) {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let Ok(regions) = self.regions(rows, cols) else {
            return;
        };
        out.fill(0);
        if regions.len == 0 {
            return;
        }
        let start = first.saturating_mul(32);
        let end = start.saturating_add(out.len());
        // the rows of one row of tiles as 2-bit codes, (BM, K / 4), and which
        let (tile_rows, quads) = (regions.blocks.saturating_mul(32), cols / 4);
        let mut codes = vec![0; tile_rows.saturating_mul(quads)];
        let mut coded = None;
        for part in regions.parts() {
            let mut run = vec![0; part.len];
            let (before, _) = div_rem(start.saturating_sub(part.at), part.len);
            for i in before..part.tiles.saturating_mul(rows / 32) {
                let at = part.at.saturating_add(i.saturating_mul(part.len));
                if at >= end {
                    break;
                }
                let (block, kb) = regions.place(i, part.tiles);
                let (tile, rb) = div_rem(block, regions.blocks);
                if coded != Some(tile) {
                    let first = tile.saturating_mul(tile_rows).saturating_mul(cols);
                    let trits = matrix.trits().get(first..).unwrap_or_default();
                    encode_quads(trits, &mut codes);
                    coded = Some(tile);
                }
                run.fill(0);
                let column = part.col.saturating_add(kb.saturating_mul(part.cols));
                let rows = codes.chunks_exact(quads.max(1));
                for (ri, row) in rows.skip(rb.saturating_mul(32)).take(32).enumerate() {
                    let row = from(row, column / 4).get(..part.cols / 4);
                    (part.pack_row)(ri, row.unwrap_or_default(), &mut run);
                }
                // the window may begin or end inside
                let window = out.get_mut(at.saturating_sub(start)..).unwrap_or_default();
                for (to, byte) in window.iter_mut().zip(from(&run, start.saturating_sub(at))) {
                    *to = *byte;
                }
            }
        }
    }

    fn trailer(&self, matrix: &TernaryMatrix) -> Vec<u8> {
        trailer(matrix, self.name())
    }
    fn unread_tail(&self) -> usize {
        UNREAD
    }

    fn unpack_rows(
        &self,
        tensor: &PackedTensor<'_>,
        first: usize,
        out: &mut [i8],
    ) -> Result<(), FormatError> {
        let PackedTensor {
            bytes, rows, cols, ..
        } = *tensor;
        tensor.check_rows(self.stored_len(rows, cols)?, first, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let regions = self.regions(rows, cols)?;
        let mut bad = 0;
        let mut row = first;
        let mut rest = &mut out[..];
        while !rest.is_empty() {
            // the rows that are asked for of the 32 that `row` is in
            let (block, low) = (row / 32, row % 32);
            let n = 32usize.saturating_sub(low).min(div_rem(rest.len(), cols).0);
            let (rows, others) = rest.split_at_mut(n.saturating_mul(cols));
            let columns = (0..)
                .step_by(regions.tile_cols.max(1))
                .take(regions.tiles());
            for (kb, columns) in columns.enumerate() {
                let triples = from(bytes, regions.triples(block, kb));
                let words = from(bytes, regions.words(block, kb));
                let tile = triples.as_chunks().0.iter().zip(words.as_chunks().0);
                let columns = (columns..).step_by(24).take(regions.tile_cols / 24);
                for (column, (triples, words)) in columns.zip(tile) {
                    for (ri, row) in (low..).zip(rows.chunks_exact_mut(cols)) {
                        if let Some(trits) = at_mut(row, column) {
                            bad |= unpack_triples(ri, triples, words, trits);
                        }
                    }
                }
            }
            for (kb, column) in (regions.k3..).step_by(32).take(regions.k2 / 32).enumerate() {
                let codes = from(bytes, regions.codes(block, kb)).first_chunk();
                for (ri, row) in (low..).zip(rows.chunks_exact_mut(cols)) {
                    if let (Some(codes), Some(trits)) = (codes, at_mut(row, column)) {
                        bad |= unpack_pairs(ri, codes, trits);
                    }
                }
            }
            (rest, row) = (others, row.saturating_add(n));
        }
        if bad != 0 {
            return Err(bad_tile_code(first, cols, out));
        }
        Ok(())
    }

    fn scales(&self, tensor: &PackedTensor<'_>) -> Result<Scales, FormatError> {
        stored_scale(tensor, self.stored_len(tensor.rows, tensor.cols)?)
    }
}
