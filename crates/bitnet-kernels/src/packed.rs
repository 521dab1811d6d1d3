//! A matrix in a kernel's own layout.
//!
//! Invariant: the layout and the kernel that reads it travel together.

mod mapped;
mod scales;

pub use mapped::MapError;

use crate::activations::Activations;
use crate::backend::Backend;
use crate::batch::{ActivationBatch, Prepared};
use crate::contract::{FixedTiles, Sink, TableTiles, TernaryOps, Tile, Tiles};
use crate::fixed_point::{FixedPoint, FixedToken, PANEL, Segment};
use crate::kernel::Inputs;
use crate::lanes::DenseType;
use crate::lines::{self, LINE, Line, Lines, ReadLines};
use crate::output::{Output, Places};
use crate::scaling::{Place, TileScales};
use bitnet_ternary::{MAX_COLS, Scales, TernaryMatrix};
use scales::PackedScales;
use std::borrow::Cow;
use std::ops::Range;

/// Bytes of the sums of one tile, beside the activations in L2.
const SUMS_BYTES: usize = 256 << 10;

/// A ternary matrix packed for one backend.
#[derive(Clone)]
pub struct PackedMatrix {
    backend: Backend,
    ops: &'static TernaryOps, // of the backend
    rows: usize,
    cols: usize,
    scales: PackedScales,
    lines: ReadLines, // (tiles, tile_lines)
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, structure) = (self.backend.name(), self.scales.structure());
        write!(
            f,
            "PackedMatrix({name}, {} x {}, {structure})",
            self.rows, self.cols
        )
    }
}

/// Some rows of a matrix that is being packed ([`PackedMatrix::by_strips`]).
pub struct Strip<'a> {
    ops: &'static TernaryOps,
    rows: Range<usize>,
    cols: usize,
    lines: &'a mut [Line], // (tiles of the rows, tile_lines)
}

impl Strip<'_> {
    /// The rows of the matrix that this strip holds.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Packs the strip's trits, row-major `(rows, cols)`.
    ///
    /// # Panics
    /// If there are fewer or more, or one of them is no trit.
    pub fn pack(self, trits: &[i8]) {
        assert_eq!(trits.len(), self.rows.len() * self.cols, "trits of a strip");
        // SAFETY: the backend that `ops` belong to exists (by_strips), so the CPU has what they require.
        let trits_only = unsafe { (self.ops.pack)(trits, self.cols, self.lines) };
        assert!(trits_only, "trits are -1, 0 and +1");
    }
}

impl PackedMatrix {
    pub(crate) fn new(backend: Backend, matrix: &TernaryMatrix, inputs: Inputs) -> Self {
        let ops = backend.kernel().ternary_for(matrix.scales(), inputs);
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let tiles = rows.div_ceil(ops.tile_rows);
        let mut lines = Lines::resident(tiles * (ops.tile_lines)(cols));
        if cols > 0 {
            // SAFETY: the backend exists, so the CPU has what its kernel requires.
            let trits_only = unsafe { (ops.pack)(matrix.trits(), cols, &mut lines) };
            assert!(trits_only, "a TernaryMatrix holds nothing but trits");
        }
        let scales = PackedScales::new(matrix.scales().clone(), (rows, cols), ops.tile_rows);
        Self {
            backend,
            ops,
            rows,
            cols,
            scales,
            lines: ReadLines::Own(lines),
        }
    }

    /// A matrix of this shape for `backend`, and a strip for each `rows_per_strip` of its rows (rounded up
    /// to whole tiles): whoever reads trits from a file packs them as they come, on any thread, without ever
    /// holding the whole matrix unpacked. `fill` is given the strips; rows it does not pack mean nothing.
    ///
    /// # Errors
    /// Those of `fill`.
    ///
    /// # Panics
    /// If `scales` do not fit the shape.
    pub fn by_strips<E>(
        backend: Backend,
        shape: (usize, usize),
        scales: Scales,
        rows_per_strip: usize,
        fill: impl FnOnce(Vec<Strip<'_>>) -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::by_strips_for(Inputs::Int8, backend, shape, scales, rows_per_strip, fill)
    }

    /// [`by_strips`](Self::by_strips) for these inputs.
    ///
    /// # Errors
    /// Those of `fill`.
    ///
    /// # Panics
    /// If `scales` do not fit the shape.
    pub fn by_strips_for<E>(
        inputs: Inputs,
        backend: Backend,
        (rows, cols): (usize, usize),
        scales: Scales,
        rows_per_strip: usize,
        fill: impl FnOnce(Vec<Strip<'_>>) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(cols < MAX_COLS, "{cols} columns do not accumulate exactly");
        let expected = scales.expected_len(rows, cols);
        assert_eq!(
            scales.as_slice().len(),
            expected,
            "scales of {rows} x {cols}"
        );
        let ops = backend.kernel().ternary_for(&scales, inputs);
        let tiles = rows.div_ceil(ops.tile_rows);
        let tile_lines = (ops.tile_lines)(cols);
        let mut lines = Lines::resident(tiles * tile_lines);
        let step = rows_per_strip.max(1).next_multiple_of(ops.tile_rows);
        if cols > 0 {
            let strips = lines
                .chunks_mut(step / ops.tile_rows * tile_lines)
                .enumerate()
                .map(|(i, lines)| Strip {
                    ops,
                    rows: i * step..rows.min((i + 1) * step),
                    cols,
                    lines,
                })
                .collect();
            fill(strips)?;
        }
        Ok(Self {
            backend,
            ops,
            rows,
            cols,
            scales: PackedScales::new(scales, (rows, cols), ops.tile_rows),
            lines: ReadLines::Own(lines),
        })
    }

    /// Output features, `M`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, `K`.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The scales, as the matrix had them.
    pub fn scales(&self) -> Scales {
        self.scales.to_scales(self.rows)
    }

    /// Whose layout this is.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Row ranges must start at a multiple of this.
    pub fn tile_rows(&self) -> usize {
        self.ops.tile_rows
    }

    /// Bytes that one matvec reads: packed trits and scales.
    pub fn byte_len(&self) -> usize {
        self.lines.len() * LINE + self.scales.byte_len()
    }

    /// The packed trits, whatever they mean to the backend, from a cache line on.
    pub fn packed_bytes(&self) -> &[u8] {
        lines::as_bytes(&self.lines)
    }

    /// `out[t][r] = sum_k x[t][k] * weight[r][k]` for the rows that `out` owns, in the arithmetic of the batch
    /// (`formats/numerics.md`). Int8 activations: `dot[t][r] * (alpha / s[t])`, and with group scales
    /// `(sum_g dot_g[t][r] * alpha[r][g]) * (1 / s[t])`.
    ///
    /// # Panics
    /// If `x` was prepared for another backend, if shapes differ, or if the rows of `out` do not start
    /// at a multiple of [`tile_rows`](Self::tile_rows).
    pub fn multiply(&self, x: &ActivationBatch, out: &mut Output<'_>) {
        let x = self.prepared(x);
        match x {
            Prepared::Int8(x) => {
                assert_eq!(x.tokens(), out.tokens(), "tokens");
                let done = self.multiply_many(x, out);
                self.multiply_few(x, done..x.tokens(), out);
            }
            Prepared::Fixed(x) => {
                assert_eq!(x.tokens(), out.tokens(), "tokens");
                self.multiply_fixed(x, out);
            }
        }
    }

    /// [`multiply`](Self::multiply) for as many of the first tokens as the kernel prefers to do together.
    /// Returns how many that were.
    fn multiply_many(&self, x: &Activations, out: &mut Output<'_>) -> usize {
        let (ops, tiles) = (self.ops, self.tiles(out));
        let Some(many) = &ops.many_tokens else {
            return 0;
        };
        let rest = x.tokens() % ops.panel.tokens;
        let tokens = match rest < many.fewest {
            true => x.tokens() - rest,
            false => x.tokens(),
        };
        if tokens == 0 || tiles.is_empty() || self.cols == 0 {
            return 0;
        }
        let mut scales = Vec::new();
        self.widen(tiles.clone(), &mut scales);
        let some = Tiles {
            lines: self.lines_of(tiles.clone()),
            cols: self.cols,
            group: self.group(),
            scales: self.scales.group().map(|_| &scales[..]),
        };
        let mut done = |tile: usize, tokens: Range<usize>, sums: &[f32]| {
            let s = &x.scales()[tokens.clone()];
            self.finish_sums(tiles.start + tile, sums, tokens.start, s, out);
        };
        // SAFETY: self.backend exists, so the CPU has what its kernel requires.
        unsafe { (many.sums)(&some, x, 0..tokens, &mut done) };
        tokens
    }

    /// Hands out sums that have the scales of groups in them, `(tokens, tile_rows)`, but those of rows or the
    /// tensor not.
    fn finish_sums(
        &self,
        tile: usize,
        sums: &[f32],
        token: usize,
        s: &[f32],
        out: &mut Output<'_>,
    ) {
        let place = Place {
            groups: 1,
            tile_rows: self.ops.tile_rows,
            row: tile * self.ops.tile_rows,
        };
        let scales = match self.scales {
            PackedScales::Whole(_) => self.scales.of_tile(place.row, &[]),
            PackedScales::Groups { .. } => TileScales::Tensor(1.0),
        };
        let finish = self.backend.kernel().float.finish_sums;
        // SAFETY: self.backend exists, so the CPU has what its kernel requires.
        unsafe { finish(sums, &place, scales, token, s, out) }
    }

    /// [`multiply`](Self::multiply) of fixed-point activations.
    fn multiply_fixed(&self, x: &FixedPoint, out: &mut Output<'_>) {
        let (ops, tiles) = (self.ops, self.tiles(out));
        if self.cols == 0 {
            for token in 0..out.tokens() {
                out.token_mut(token).fill(0.0);
            }
            return;
        }
        if let Some(by_tables) = &ops.by_tables {
            let some = TableTiles {
                lines: self.lines_of(tiles.clone()),
                cols: self.cols,
                group: self.scales.group(),
                scales: self.scales.of_groups(tiles.clone()),
            };
            let ones = [1.0; PANEL];
            let mut done = |tile: usize, tokens: Range<usize>, sums: &[f32]| {
                let s = &ones[..tokens.len()];
                self.finish_sums(tiles.start + tile, sums, tokens.start, s, out);
            };
            // SAFETY: self.backend exists, so the CPU has what its kernel requires.
            unsafe { (by_tables.sums)(&some, x, 0..x.tokens(), &mut done) };
            return;
        }
        let done = match &ops.many_fixed {
            Some(many) if many.of(x.tokens()) > 0 && !tiles.is_empty() => {
                let tokens = many.of(x.tokens());
                let mut scales = Vec::new();
                self.widen(tiles.clone(), &mut scales);
                let some = FixedTiles {
                    lines: &self.two_bits(tiles.clone()),
                    cols: self.cols,
                    group: self.scales.group(),
                    scales: &scales,
                };
                let ones = [1.0; PANEL];
                let mut done = |tile: usize, tokens: Range<usize>, sums: &[f32]| {
                    let s = &ones[..tokens.len()];
                    self.finish_sums(tiles.start + tile, sums, tokens.start, s, out);
                };
                // SAFETY: self.backend exists, so the CPU has what its kernel requires.
                unsafe { (many.sums)(&some, x, 0..tokens, &mut done) };
                tokens
            }
            _ => 0,
        };
        if done == x.tokens() {
            return;
        }
        let group = self.scales.group();
        let rest: Vec<FixedToken<'_>> = (done..x.tokens())
            .map(|token| x.token(token, Segment::all(self.cols, group)))
            .collect();
        let (mut scales, mut sums) = (Vec::new(), vec![0.0; ops.tile_rows]);
        for tile in tiles {
            self.widen(tile..tile + 1, &mut scales);
            let one = FixedTiles {
                lines: &self.two_bits(tile..tile + 1),
                cols: self.cols,
                group,
                scales: &scales,
            };
            for (token, x) in rest.iter().enumerate() {
                // SAFETY: self.backend exists, so the CPU has what its kernel requires.
                unsafe { (ops.fixed)(&one, x, &mut sums) };
                self.finish_sums(tile, &sums, done + token, &[1.0], out);
            }
        }
    }

    /// Writes the group scales of some tiles, `(tiles, groups, tile_rows)`; nothing without groups.
    fn widen(&self, tiles: Range<usize>, to: &mut Vec<f32>) {
        let float = &self.backend.kernel().float;
        // SAFETY: self.backend exists, so the CPU has what the entries were instantiated with.
        self.scales.widen(tiles, to, |dtype, bits, to| unsafe {
            match dtype {
                DenseType::F16 => (float.widen_f16)(bits, to),
                _ => (float.widen_bf16)(bits, to),
            }
        });
    }

    /// Some tiles as fixed-point products read them.
    fn two_bits(&self, tiles: Range<usize>) -> Cow<'_, [Line]> {
        let lines = self.lines_of(tiles.clone());
        let Some(two_bits) = self.ops.two_bits else {
            return Cow::Borrowed(lines);
        };
        let len = (self.backend.kernel().two_bits().tile_lines)(self.cols);
        let mut to = vec![Line([0; LINE]); tiles.len() * len];
        let each = (self.ops.tile_lines)(self.cols);
        for (to, tile) in to.chunks_exact_mut(len).zip(lines.chunks_exact(each)) {
            // SAFETY: self.backend exists, so the CPU has what its kernel requires.
            unsafe { two_bits(tile, self.cols, to) };
        }
        Cow::Owned(to)
    }

    /// The matrix this was packed from.
    pub fn unpack(&self) -> TernaryMatrix {
        let mut trits = vec![0; self.rows * self.cols];
        if self.cols > 0 {
            (self.ops.unpack)(&self.lines, self.cols, &mut trits);
        }
        TernaryMatrix::new(self.rows, self.cols, trits, self.scales())
            .expect("packed from a ternary matrix")
    }

    /// One row as numbers, `trit * scale`, `(cols,)`.
    ///
    /// # Panics
    /// If there is no such row, or `out` is longer or shorter.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "columns");
        if self.cols == 0 {
            return;
        }
        let tile_rows = self.ops.tile_rows;
        let mut trits = vec![0; tile_rows * self.cols]; // (tile_rows, cols)
        let tile = self.tile(row / tile_rows);
        (self.ops.unpack)(tile.lines, self.cols, &mut trits);
        let trits = &trits[row % tile_rows * self.cols..][..self.cols];
        let group = self.group();
        for (g, (out, trits)) in out.chunks_mut(group).zip(trits.chunks(group)).enumerate() {
            let scale = self.scales.at(row, g);
            for (out, trit) in out.iter_mut().zip(trits) {
                *out = f32::from(*trit) * scale;
            }
        }
    }

    /// The exact integers behind [`multiply`](Self::multiply) of int8 activations for one token, `(groups, rows)`.
    ///
    /// # Panics
    /// If `x` was prepared for another backend, has other columns or is not int8.
    pub fn dots(&self, x: &ActivationBatch, token: usize) -> Vec<i32> {
        let Prepared::Int8(x) = self.prepared(x) else {
            panic!("dots are of int8 activations");
        };
        let (ops, groups) = (self.ops, self.groups());
        let mut scratch = Lines::zeroed(ops.scratch_lines);
        let mut tile_dots = vec![0; groups * ops.tile_rows];
        let mut dots = vec![0; groups * self.rows];
        for row in (0..self.rows).step_by(ops.tile_rows) {
            let (tile, tokens) = (self.tile(row / ops.tile_rows), token..token + 1);
            // SAFETY: self.backend exists, so the CPU has what its kernel requires.
            unsafe { (ops.dots)(&tile, x, tokens, &mut scratch, &mut tile_dots, &mut Nowhere) };
            let live = ops.tile_rows.min(self.rows - row);
            for (g, tile_dots) in tile_dots.chunks_exact(ops.tile_rows).enumerate() {
                let at = g * self.rows + row;
                dots[at..at + live].copy_from_slice(&tile_dots[..live]);
            }
        }
        dots
    }

    /// Columns per group, all of them when there are no groups.
    fn group(&self) -> usize {
        self.scales.group().unwrap_or(self.cols.max(1))
    }

    fn groups(&self) -> usize {
        self.cols.max(1) / self.group()
    }

    /// Lines of some tiles.
    fn lines_of(&self, tiles: Range<usize>) -> &[Line] {
        let lines = (self.ops.tile_lines)(self.cols);
        &self.lines[tiles.start * lines..tiles.end * lines]
    }

    fn tile(&self, tile: usize) -> Tile<'_> {
        Tile {
            lines: self.lines_of(tile..tile + 1),
            cols: self.cols,
            group: self.group(),
        }
    }

    /// What the kernel reads of a batch that was prepared for it.
    fn prepared<'x>(&self, x: &'x ActivationBatch) -> Prepared<'x> {
        assert_eq!(
            x.backend(),
            Some(self.backend),
            "activations prepared for another backend"
        );
        assert_eq!(x.cols(), self.cols, "columns");
        x.prepared()
    }

    /// The tiles of the rows that `out` owns.
    fn tiles(&self, out: &Output<'_>) -> Range<usize> {
        let (rows, tile_rows) = (out.rows(), self.tile_rows());
        assert!(
            rows.end <= self.rows && rows.start.is_multiple_of(tile_rows),
            "rows {rows:?} of {}, tiles of {tile_rows}",
            self.rows,
        );
        rows.start / tile_rows..rows.end.div_ceil(tile_rows)
    }

    /// Walks blocks of tokens and, inside, all tiles: the block's activations stay in L2, one tile at
    /// a time in L1.
    fn multiply_few(&self, x: &Activations, tokens: Range<usize>, out: &mut Output<'_>) {
        let (ops, groups, tiles) = (self.ops, self.groups(), self.tiles(out));
        let tile_sums = groups * ops.tile_rows;
        let panel = ops.panel.tokens.max(1);
        let block = token_block(self.cols, tile_sums, panel, ops.block_bytes);
        let mut scratch = Lines::zeroed(ops.scratch_lines);
        let most = block.min(tokens.len().next_multiple_of(panel));
        let mut sums = Lines::zeroed((tile_sums * most).div_ceil(LINE / 4));
        let sums = lines::as_words_mut(&mut sums);
        let mut scales = Vec::new();
        for start in tokens.clone().step_by(block) {
            let tokens = start..tokens.end.min(start + block);
            let sums = &mut sums[..tile_sums * tokens.len().next_multiple_of(panel)];
            for tile in tiles.clone() {
                let row = tile * ops.tile_rows;
                let place = Place {
                    groups,
                    tile_rows: ops.tile_rows,
                    row,
                };
                self.widen(tile..tile + 1, &mut scales);
                let mut sink = Scaling {
                    backend: self.backend,
                    scales: self.scales.of_tile(row, &scales),
                    token_scales: x.scales(),
                    place,
                    out: &mut *out,
                };
                let (tile, tokens) = (self.tile(tile), tokens.clone());
                // SAFETY: self.backend exists, so the CPU has what its kernel requires.
                unsafe { (ops.dots)(&tile, x, tokens, &mut scratch, sums, &mut sink) };
            }
        }
    }
}

/// Tokens per pass over the tiles: whole panels that fit L2, and fewer when groups multiply the sums.
fn token_block(cols: usize, tile_sums: usize, panel: usize, bytes: usize) -> usize {
    let by_activations = bytes / cols.max(1);
    let by_sums = SUMS_BYTES / (4 * tile_sums);
    (by_activations.min(by_sums) / panel).clamp(1, 64) * panel
}

/// The sink of [`PackedMatrix::multiply`].
struct Scaling<'a, 'b> {
    backend: Backend,
    scales: TileScales<'a>,
    token_scales: &'a [f32], // (tokens,)
    place: Place,
    out: &'a mut Output<'b>,
}

impl Sink<i32> for Scaling<'_, '_> {
    fn soon(&mut self, tokens: Range<usize>) {
        let rows = self.place.rows(self.out);
        for token in tokens {
            self.out.prefetch(token, rows.clone());
        }
    }

    fn places(&self, token: usize) -> Places {
        self.out.places(token, self.place.rows(self.out).start)
    }

    fn done(&mut self, tokens: Range<usize>, sums: &[i32]) {
        let s = &self.token_scales[tokens.clone()];
        let finish = self.backend.kernel().float.finish_dots;
        // SAFETY: the backend exists, so the CPU has what the entry was instantiated with.
        unsafe { finish(sums, &self.place, self.scales, tokens.start, s, self.out) }
    }
}

/// The sink of [`PackedMatrix::dots`], which reads the sums where they are.
struct Nowhere;

impl<T> Sink<T> for Nowhere {
    fn soon(&mut self, _: Range<usize>) {}
    fn places(&self, _: usize) -> Places {
        Places::NONE
    }
    fn done(&mut self, _: Range<usize>, _: &[T]) {}
}

impl Backend {
    /// Packs a matrix into this kernel's layout for int8 activations.
    pub fn pack(&self, matrix: &TernaryMatrix) -> PackedMatrix {
        self.pack_for(Inputs::Int8, matrix)
    }

    /// Packs a matrix into this kernel's layout for these inputs.
    pub fn pack_for(&self, inputs: Inputs, matrix: &TernaryMatrix) -> PackedMatrix {
        PackedMatrix::new(*self, matrix, inputs)
    }
}
