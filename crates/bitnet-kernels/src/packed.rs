//! A matrix in a kernel's own layout.
//!
//! Invariant: the layout and the kernel that reads it travel together.

mod mapped;

pub use mapped::MapError;

use crate::activations::Activations;
use crate::backend::Backend;
use crate::batch::ActivationBatch;
use crate::contract::{Sink, TernaryOps, Tile, Tiles};
use crate::lines::{self, LINE, Line, Lines, ReadLines};
use crate::output::{Output, Places};
use crate::scaling::{Finish, Place, Sum};
use bitnet_ternary::{MAX_COLS, Scales, TernaryMatrix};
use std::ops::Range;

/// Bytes of the sums of one tile, beside the activations in L2.
const SUMS_BYTES: usize = 256 << 10;

/// A ternary matrix packed for one backend.
#[derive(Clone)]
pub struct PackedMatrix {
    backend: Backend,
    rows: usize,
    cols: usize,
    scales: Scales,
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
    pub(crate) fn new(backend: Backend, matrix: &TernaryMatrix) -> Self {
        let ops = backend.kernel().ternary_for(matrix.scales());
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let tiles = rows.div_ceil(ops.tile_rows);
        let mut lines = Lines::resident(tiles * (ops.tile_lines)(cols));
        if cols > 0 {
            // SAFETY: the backend exists, so the CPU has what its kernel requires.
            let trits_only = unsafe { (ops.pack)(matrix.trits(), cols, &mut lines) };
            assert!(trits_only, "a TernaryMatrix holds nothing but trits");
        }
        let scales = matrix.scales().clone();
        Self {
            backend,
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
        let ops = backend.kernel().ternary_for(&scales);
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
            rows,
            cols,
            scales,
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
    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// Whose layout this is.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Row ranges must start at a multiple of this.
    pub fn tile_rows(&self) -> usize {
        self.ops().tile_rows
    }

    /// Bytes that one matvec reads: packed trits and scales.
    pub fn byte_len(&self) -> usize {
        self.lines.len() * LINE + size_of_val(self.scales.as_slice())
    }

    /// The packed trits, whatever they mean to the backend, from a cache line on.
    pub fn packed_bytes(&self) -> &[u8] {
        lines::as_bytes(&self.lines)
    }

    /// `out[t][r] = dot[t][r] * (alpha / s[t])`, and with group scales
    /// `(sum_g dot_g[t][r] * alpha[r][g]) * (1 / s[t])` (`formats/numerics.md`, rule 2), for the rows
    /// that `out` owns.
    ///
    /// # Panics
    /// If `x` was prepared for another backend, if shapes differ, or if the rows of `out` do not start
    /// at a multiple of [`tile_rows`](Self::tile_rows).
    pub fn multiply(&self, x: &ActivationBatch, out: &mut Output<'_>) {
        let x = self.prepared(x);
        assert_eq!(x.tokens(), out.tokens(), "tokens");
        let done = self.multiply_many(x, out);
        let finish = self.backend.kernel().float.finish_dots;
        self.drive(
            out,
            done..x.tokens(),
            x.scales(),
            finish,
            |tile, tokens, scratch, dots, sink| {
                // SAFETY: self.backend exists, so the CPU has what its kernel requires.
                unsafe { (self.ops().dots)(tile, x, tokens, scratch, dots, sink) }
            },
        );
    }

    /// [`multiply`](Self::multiply) for as many of the first tokens as the kernel prefers to do together.
    /// Returns how many that were.
    fn multiply_many(&self, x: &Activations, out: &mut Output<'_>) -> usize {
        let (ops, tiles) = (self.ops(), self.tiles(out));
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
        // scales of groups are part of the sums, those of rows or the tensor are not
        let whole = Scales::PerTensor(1.0);
        let (in_sums, scales) = match &self.scales {
            Scales::PerGroup { scales, .. } => {
                let start = tiles.start * ops.tile_rows * self.groups();
                (Some(&scales[start..]), &whole)
            }
            scales => (None, scales),
        };
        let lines = (ops.tile_lines)(self.cols);
        let some = Tiles {
            lines: &self.lines[tiles.start * lines..tiles.end * lines],
            cols: self.cols,
            group: self.group(),
            scales: in_sums,
        };
        let finish = self.backend.kernel().float.finish_sums;
        let mut done = |tile: usize, tokens: Range<usize>, sums: &[f32]| {
            let place = Place {
                groups: 1,
                tile_rows: ops.tile_rows,
                row: (tiles.start + tile) * ops.tile_rows,
            };
            let s = &x.scales()[tokens.clone()];
            // SAFETY: self.backend exists, so the CPU has what its kernel requires.
            unsafe { finish(sums, &place, scales, tokens.start, s, out) }
        };
        // SAFETY: as above.
        unsafe { (many.sums)(&some, x, 0..tokens, &mut done) };
        tokens
    }

    /// `out[t][r] = sum_g alpha[r][g] * (sum over k in g of trit[r][k] * x[t][k])`: activations that
    /// are not quantised, `x: (tokens, cols)`; sums over columns and over groups by rule 3.
    ///
    /// # Panics
    /// As [`multiply`](Self::multiply).
    pub fn multiply_float(&self, x: &[f32], out: &mut Output<'_>) {
        assert_eq!(x.len(), out.tokens() * self.cols, "activations");
        let finish = self.backend.kernel().float.finish_sums;
        let ones = vec![1.0; out.tokens()];
        let tokens = 0..out.tokens();
        self.drive(out, tokens, &ones, finish, |tile, tokens, _, sums, sink| {
            let x = &x[tokens.start * self.cols..tokens.end * self.cols];
            let sums = &mut sums[..tokens.len() * self.groups() * self.tile_rows()];
            // SAFETY: self.backend exists, so the CPU has what its kernel requires.
            unsafe { (self.ops().sums)(tile, x, sums) };
            sink.done(tokens, sums);
        });
    }

    /// The matrix this was packed from.
    pub fn unpack(&self) -> TernaryMatrix {
        let mut trits = vec![0; self.rows * self.cols];
        if self.cols > 0 {
            (self.ops().unpack)(&self.lines, self.cols, &mut trits);
        }
        TernaryMatrix::new(self.rows, self.cols, trits, self.scales.clone())
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
        let tile_rows = self.ops().tile_rows;
        let mut trits = vec![0; tile_rows * self.cols]; // (tile_rows, cols)
        let tile = self.tile(row / tile_rows);
        (self.ops().unpack)(tile.lines, self.cols, &mut trits);
        let trits = &trits[row % tile_rows * self.cols..][..self.cols];
        let group = self.group();
        for (g, (out, trits)) in out.chunks_mut(group).zip(trits.chunks(group)).enumerate() {
            let scale = self.scales.at(row, g * group, self.cols);
            for (out, trit) in out.iter_mut().zip(trits) {
                *out = f32::from(*trit) * scale;
            }
        }
    }

    /// The exact integers behind [`multiply`](Self::multiply) for one token, `(groups, rows)`.
    ///
    /// # Panics
    /// If `x` was prepared for another backend or has other columns.
    pub fn dots(&self, x: &ActivationBatch, token: usize) -> Vec<i32> {
        let x = self.prepared(x);
        let (ops, groups) = (self.ops(), self.groups());
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

    fn ops(&self) -> &'static TernaryOps {
        self.backend.kernel().ternary_for(&self.scales)
    }

    /// Columns per group, all of them when there are no groups.
    fn group(&self) -> usize {
        match self.scales {
            Scales::PerGroup { group, .. } => group,
            Scales::PerTensor(_) | Scales::PerRow(_) => self.cols.max(1),
        }
    }

    fn groups(&self) -> usize {
        self.cols.max(1) / self.group()
    }

    fn tile(&self, tile: usize) -> Tile<'_> {
        let lines = (self.ops().tile_lines)(self.cols);
        Tile {
            lines: &self.lines[tile * lines..(tile + 1) * lines],
            cols: self.cols,
            group: self.group(),
        }
    }

    /// What the kernel reads of a batch that was prepared for it.
    fn prepared<'x>(&self, x: &'x ActivationBatch) -> &'x Activations {
        assert_eq!(
            x.backend(),
            Some(self.backend),
            "activations prepared for another backend"
        );
        assert_eq!(x.cols(), self.cols, "columns");
        x.activations()
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
    /// a time in L1. `run` computes the sums of one tile and hands them to the sink.
    fn drive<T: Sum>(
        &self,
        out: &mut Output<'_>,
        tokens: Range<usize>,
        token_scales: &[f32],
        finish: Finish<T>,
        run: impl Fn(&Tile<'_>, Range<usize>, &mut [Line], &mut [T], &mut dyn Sink<T>),
    ) {
        let (ops, groups, tiles) = (self.ops(), self.groups(), self.tiles(out));
        let tile_sums = groups * ops.tile_rows;
        let panel = ops.panel.tokens.max(1);
        let block = token_block(self.cols, tile_sums, panel, ops.block_bytes);
        let mut scratch = Lines::zeroed(ops.scratch_lines);
        let most = block.min(tokens.len().next_multiple_of(panel));
        let mut sums = Lines::zeroed((tile_sums * most).div_ceil(LINE / 4));
        let sums = lines::as_words_mut(&mut sums);
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
                let mut sink = Scaling {
                    scales: &self.scales,
                    token_scales,
                    place,
                    finish,
                    out: &mut *out,
                };
                run(
                    &self.tile(tile),
                    tokens.clone(),
                    &mut scratch,
                    sums,
                    &mut sink,
                );
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
struct Scaling<'a, 'b, T> {
    scales: &'a Scales,
    token_scales: &'a [f32], // (tokens,)
    place: Place,
    finish: Finish<T>,
    out: &'a mut Output<'b>,
}

impl<T> Sink<T> for Scaling<'_, '_, T> {
    fn soon(&mut self, tokens: Range<usize>) {
        let rows = self.place.rows(self.out);
        for token in tokens {
            self.out.prefetch(token, rows.clone());
        }
    }

    fn places(&self, token: usize) -> Places {
        self.out.places(token, self.place.rows(self.out).start)
    }

    fn done(&mut self, tokens: Range<usize>, sums: &[T]) {
        let s = &self.token_scales[tokens.clone()];
        // SAFETY: `finish` is an entry of the kernel of the backend that `drive` belongs to, so the
        // CPU has what it was instantiated with.
        unsafe { (self.finish)(sums, &self.place, self.scales, tokens.start, s, self.out) }
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
    /// Packs a matrix into this kernel's layout.
    pub fn pack(&self, matrix: &TernaryMatrix) -> PackedMatrix {
        PackedMatrix::new(*self, matrix)
    }
}
