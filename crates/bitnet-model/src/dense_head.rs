//! Dense rows that stay in the mapped file: token embeddings and the output head.
//!
//! Invariant: the matrix shares the bytes of its file and nothing is copied or narrowed; a row is widened to f32 exactly when it is used, and a
//! logit is the canonical dot of a widened row and the final hidden state. Threads split rows. Opening
//! reads no row: a NaN or an infinity is found, and named, in the row that is used or in the logit that
//! it makes.

use crate::threads;
use bitnet_checkpoint::Slot;
use bitnet_checkpoint::{Checkpoint, CodedRows, DenseTensor};
use bitnet_formats::{
    Bytes, Encoding, ErrorCode, FormatError, PlainType, Source, TensorInfo, dense_to_f32,
};
use bitnet_kernels::{
    Backend, DenseType, MatrixType, Output, ScreenBounds, ScreenQuery, ScreenRows,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

/// Tokens whose hidden states pass over the rows together: they stay in L2.
const HEAD_TOKENS: usize = 32;

/// Rows are handed to threads in multiples of this.
const HEAD_ROWS: usize = 64;

/// Rows of one part of a screen: what a thread makes, and bounds, at a time.
const SCREEN_ROWS: usize = 1024;

/// Rows ahead that are fetched where few of them are read: their places are no stream.
const FETCHED: usize = 8;

/// Share of the rows that may be left to recompute one by one; beyond, the full product is faster.
const MOST_CANDIDATES: usize = 16;

/// Rows read one by one after which the pages around them are given back: the system maps 16 small ones
/// around each that is touched, or the whole of a huge one; these are 16 MB at most.
const MOST_TOUCHED: usize = 8;

/// Bytes of rows that one token's pass reads before it gives their pages back: the matrix passes through
/// memory without ever being resident.
const PASSING_BYTES: usize = 4 << 20;

/// Bounds for all logits of a matrix from its eight-bit codes (`bitnet_kernels::ScreenRows`).
#[derive(Debug)]
pub(crate) struct Screen {
    parts: Vec<ScreenRows>,  // SCREEN_ROWS rows each, the last one fewer
    refined: AtomicUsize,    // rows that the upper bits did not rule out
    recomputed: AtomicUsize, // rows of the file read
}

impl Screen {
    /// Bytes that a pass reads.
    pub(crate) fn byte_len(&self) -> usize {
        self.parts.iter().map(ScreenRows::byte_len).sum()
    }

    /// What it keeps in memory for a pass, a part of the rows each.
    pub(crate) fn packed_bytes(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(ScreenRows::packed_bytes)
    }

    /// Rows that all passes looked at twice, and rows that they read from the file.
    pub(crate) fn rows_left(&self) -> (usize, usize) {
        (
            self.refined.load(Ordering::Relaxed),
            self.recomputed.load(Ordering::Relaxed),
        )
    }

    /// One pass over all rows for all queries. Beside the bounds of each it finds the `k` rows with the largest estimates.
    fn bounds(
        &self,
        queries: &[ScreenQuery],
        ks: &[usize],
        cols: usize,
    ) -> Vec<(Vec<PartBounds>, Vec<u32>)> {
        let mut bounds: Vec<Vec<PartBounds>> = Vec::new(); // (parts, queries)
        bounds.resize_with(self.parts.len(), Vec::new);
        let least: Vec<AtomicI32> = ks.iter().map(|_| AtomicI32::new(i32::MIN)).collect();
        let items = self.parts.iter().zip(&mut bounds).enumerate().collect();
        let pieces = threads::pieces(self.parts.len() * SCREEN_ROWS * cols);
        threads::for_each(pieces, items, |(part, (screen, to))| {
            let rows = screen.rows();
            to.resize_with(queries.len(), || PartBounds::new(rows));
            let mut estimates = vec![0.0; queries.len() * rows]; // (queries, rows)
            let mut all: Vec<ScreenBounds<'_>> = to
                .iter_mut()
                .zip(estimates.chunks_exact_mut(rows.max(1)))
                .map(|(to, estimates)| ScreenBounds {
                    sums: &mut to.sums,
                    estimates,
                    upper: &mut to.upper,
                })
                .collect();
            screen.bounds_each(queries, &mut all);
            let of_queries = estimates
                .chunks_exact(rows.max(1))
                .zip(ks.iter().zip(&least));
            for (to, (estimates, (k, least))) in to.iter_mut().zip(of_queries) {
                to.leaders = leaders((part * SCREEN_ROWS) as u32, estimates, *k, least);
            }
        });
        let mut found: Vec<(Vec<PartBounds>, Vec<u32>)> = Vec::with_capacity(ks.len());
        found.resize_with(ks.len(), Default::default);
        for part in bounds {
            for ((parts, _), part) in found.iter_mut().zip(part) {
                parts.push(part);
            }
        }
        for ((parts, rows), &k) in found.iter_mut().zip(ks) {
            let mut leaders: Vec<_> = parts.iter_mut().flat_map(|b| b.leaders.drain(..)).collect();
            if k < leaders.len() {
                leaders.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                leaders.truncate(k);
            }
            *rows = leaders.into_iter().map(|(_, row)| row).collect();
        }
        found
    }

    /// The rows whose logits can reach `least`.
    fn candidates(&self, query: &ScreenQuery, bounds: Vec<PartBounds>, least: f32) -> Vec<u32> {
        let mut found: Vec<Vec<u32>> = vec![Vec::new(); bounds.len()];
        let items = self.parts.iter().zip(bounds).zip(&mut found).enumerate();
        // a row in twenty, from memory
        let pieces = threads::pieces(self.parts.len() * SCREEN_ROWS * 100);
        threads::for_each(
            pieces,
            items.collect(),
            |(part, ((screen, bounds), found))| {
                let PartBounds { sums, upper, .. } = bounds;
                let reach = |upper: f32| upper >= least;
                let left: Vec<usize> = (0..upper.len()).filter(|&r| reach(upper[r])).collect();
                self.refined.fetch_add(left.len(), Ordering::Relaxed);
                for (at, &row) in left.iter().enumerate() {
                    if let Some(&later) = left.get(at + FETCHED) {
                        screen.prefetch(later);
                    }
                    if reach(screen.refine(query, row, sums[row])) {
                        found.push((part * SCREEN_ROWS + row) as u32);
                    }
                }
            },
        );
        found.concat()
    }
}

/// The largest logits with their rows, in falling order, of equal ones the lower row first.
pub(crate) type TopLogits = Vec<(u32, f32)>;

/// What is known of the logits of a part's rows.
#[derive(Default)]
struct PartBounds {
    sums: Vec<i32>,           // (rows,)
    upper: Vec<f32>,          // (rows,)
    leaders: Vec<(i32, u32)>, // the likeliest, as `leaders` returns them
}

impl PartBounds {
    fn new(rows: usize) -> Self {
        Self {
            sums: vec![0; rows],
            upper: vec![0.0; rows],
            leaders: Vec::new(),
        }
    }
}

/// The `k` largest of a part's estimates as ordered integers, with their rows, counted from `first`; without
/// those below `least`, which rises to what `k` rows of one part reach.
fn leaders(first: u32, estimates: &[f32], k: usize, least: &AtomicI32) -> Vec<(i32, u32)> {
    let mut heap = BinaryHeap::new();
    let mut floor = least.load(Ordering::Relaxed);
    for (row, estimate) in (first..).zip(estimates) {
        // the order of f32::total_cmp
        let bits = estimate.to_bits() as i32;
        let key = bits ^ ((bits >> 31) as u32 >> 1) as i32;
        if key <= floor {
            continue;
        }
        heap.push(Reverse((key, row)));
        if heap.len() > k {
            heap.pop();
        }
        if let (true, Some(Reverse((key, _)))) = (heap.len() == k, heap.peek()) {
            floor = floor.max(*key);
        }
    }
    least.fetch_max(floor, Ordering::Relaxed);
    heap.into_iter().map(|Reverse(leader)| leader).collect()
}

/// The file that a tensor lies in.
fn file_of(checkpoint: &Checkpoint, info: &TensorInfo) -> Result<Arc<dyn Source>, FormatError> {
    let file = checkpoint.file.parts.get(info.part).cloned();
    file.ok_or_else(|| {
        FormatError::new(
            ErrorCode::MissingTensor,
            "expected a file that holds the tensor, found none",
        )
        .in_tensor(&info.name)
    })
}

/// A dense matrix over the bytes of its file, which it keeps open.
#[derive(Debug, Clone)]
pub(crate) struct DenseMatrix {
    slot: Slot,
    file: Arc<dyn Source>,
    info: TensorInfo, // name, type and place in `file`
    /// How kernels read the rows; `None` where `coded` makes them.
    dtype: Option<MatrixType>,
    bytes: Bytes, // (rows, row bytes): a view of the file where it is mapped
    coded: Option<Arc<CodedRows>>,
    rows: usize,
    cols: usize,
    touched: Arc<AtomicUsize>, // rows read one by one since their pages were given back
}

impl DenseMatrix {
    /// The dense matrix in a slot; its type is checked here, its values where they are used.
    pub(crate) fn open(checkpoint: &Checkpoint, slot: Slot) -> Result<Self, FormatError> {
        if let Some(rows) = checkpoint.coded_rows(slot)? {
            return Self::of_codes(checkpoint, slot, rows);
        }
        let DenseTensor {
            shape,
            info,
            encoding,
            bytes,
            // heads are no gains, and none of their rows is moved
            meaning: _,
            is_shaped: _,
        } = checkpoint.dense_unread(slot)?;
        let expected = checkpoint.config.shape(slot);
        let (&[rows, cols], true) = (shape, shape == expected) else {
            return Err(FormatError::new(
                ErrorCode::WrongShape,
                format!("expected shape {expected:?}, found {shape:?}"),
            )
            .in_tensor(&info.name));
        };
        // one row on trial: every row has the same type and length
        let row_bytes = bytes.len() / rows.max(1);
        dense_to_f32(encoding, &bytes[..row_bytes], &mut vec![0.0; cols])
            .map_err(|error| error.in_tensor(&info.name))?;
        let dtype = match encoding {
            Encoding::Plain(PlainType::F32) => DenseType::F32.into(),
            Encoding::Plain(PlainType::F16) => DenseType::F16.into(),
            Encoding::Plain(PlainType::Bf16) => DenseType::Bf16.into(),
            Encoding::Block(block) => block.into(),
            _ => {
                let what = format!("expected a dense type, found {}", encoding.name());
                return Err(FormatError::new(ErrorCode::WrongType, what).in_tensor(&info.name));
            }
        };
        Ok(Self {
            slot,
            file: file_of(checkpoint, info)?,
            info: info.clone(),
            bytes,
            dtype: Some(dtype),
            coded: None,
            rows,
            cols,
            touched: Arc::default(),
        })
    }

    /// The matrix in a slot whose numbers are stored in codes: a row is made of its codes when it is used.
    fn of_codes(
        checkpoint: &Checkpoint,
        slot: Slot,
        coded: CodedRows,
    ) -> Result<Self, FormatError> {
        let (&[rows, cols], Some(info)) = (
            &checkpoint.config.shape(slot)[..],
            checkpoint.tensor_range(slot),
        ) else {
            let error = FormatError::new(ErrorCode::WrongShape, "expected a matrix");
            return Err(error.in_tensor(&slot.to_string()));
        };
        Ok(Self {
            slot,
            file: file_of(checkpoint, info)?,
            info: info.clone(),
            bytes: coded.codes().clone(),
            dtype: None,
            coded: Some(Arc::new(coded)),
            rows,
            cols,
            touched: Arc::default(),
        })
    }

    /// Rows of the matrix.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Tells the system that some rows are not needed again soon.
    fn release(&self, rows: Range<usize>) {
        let row_bytes = self.info.len / self.rows.max(1) as u64;
        let at = |row: usize| self.info.offset.saturating_add(row as u64 * row_bytes);
        self.file.release(at(rows.start)..at(rows.end));
    }

    /// Counts a row that was read by itself, and gives pages back when there were many: a text would map
    /// half of the matrix after some thousand tokens.
    pub(crate) fn count_touched(&self) {
        if self.touched.fetch_add(1, Ordering::Relaxed) + 1 >= MOST_TOUCHED {
            self.touched.store(0, Ordering::Relaxed);
            self.release(0..self.rows);
        }
    }

    /// Bytes of the matrix.
    pub(crate) fn byte_len(&self) -> usize {
        self.info.len as usize
    }

    fn row_bytes(&self, row: usize) -> &[u8] {
        let row_bytes = self.bytes.len() / self.rows.max(1);
        let range = row * row_bytes..(row + 1) * row_bytes;
        self.bytes.get(range).unwrap_or(&[])
    }

    /// Widens one row into `out`, `(cols,)`.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let widened = match &self.coded {
            Some(coded) => coded.row(row, out),
            None => dense_to_f32(self.info.encoding, self.row_bytes(row), out),
        };
        widened.map_err(|error| error.in_tensor(&self.info.name))?;
        // a sum of exponent tests vectorises; the search runs only on failure
        if out.iter().fold(true, |all, v| all & v.is_finite()) {
            return Ok(());
        }
        match out.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(col) => Err(self.not_finite(format!(
                "row {row}, column {col}: expected a finite number, found NaN or infinity"
            ))),
        }
    }

    /// Reads all rows into a screen; `None` for a matrix that no screen is made for. The pages of the
    /// file are given back as they are read: from now on hardly any of them is needed.
    pub(crate) fn screen(&self, backend: Backend) -> Result<Option<Screen>, FormatError> {
        let mut parts: Vec<Option<ScreenRows>> = Vec::new();
        parts.resize_with(self.rows.div_ceil(SCREEN_ROWS), || None);
        let items = parts.iter_mut().enumerate().collect();
        let pieces = threads::pieces(threads::PER_ELEMENT * self.rows * self.cols);
        threads::try_for_each(pieces, items, |(part, to)| {
            let first = part * SCREEN_ROWS;
            let rows = SCREEN_ROWS.min(self.rows - first);
            *to = ScreenRows::new(backend, rows, self.cols);
            let Some(to) = to else { return Ok(()) };
            let mut wide = vec![0.0; self.cols]; // (cols,)
            for row in 0..rows {
                self.row(first + row, &mut wide)?;
                to.set(row, &wide);
            }
            self.release(first..first + rows);
            Ok(())
        })?;
        let parts: Option<Vec<ScreenRows>> = parts.into_iter().collect();
        Ok(parts.map(|parts| Screen {
            parts,
            refined: AtomicUsize::new(0),
            recomputed: AtomicUsize::new(0),
        }))
    }

    /// The `ks[t]` largest of the logits of each `x[t]`, `x: (tokens, cols)`, with their rows, in falling order and of
    /// equal ones the lower row first: the very numbers of [`multiply`](Self::multiply). `None` where the
    /// screen's bounds leave so many rows that the full product is faster.
    pub(crate) fn top_k(
        &self,
        backend: Backend,
        screen: &Screen,
        x: &[f32],
        ks: &[usize],
    ) -> Result<Vec<Option<TopLogits>>, FormatError> {
        crate::bit_linear::finite(self.slot, x, self.cols, 0)?;
        let ks: Vec<usize> = ks.iter().map(|k| (*k).min(self.rows)).collect();
        if ks.iter().all(|k| *k == 0) {
            return Ok(vec![Some(Vec::new()); ks.len()]);
        }
        let queries: Vec<ScreenQuery> = x.chunks_exact(self.cols).map(ScreenQuery::new).collect();
        let bounds = screen.bounds(&queries, &ks, self.cols);
        let tokens = x.chunks_exact(self.cols).zip(&queries);
        let found = tokens.zip(bounds).zip(ks);
        found
            .map(|(((x, query), bounds), k)| self.top_of(backend, screen, (x, query), bounds, k))
            .collect()
    }

    /// The `k` largest of one token's logits, given what the pass over the screen found.
    fn top_of(
        &self,
        backend: Backend,
        screen: &Screen,
        (x, query): (&[f32], &ScreenQuery), // (cols,)
        (mut bounds, leaders): (Vec<PartBounds>, Vec<u32>),
        k: usize,
    ) -> Result<Option<TopLogits>, FormatError> {
        if k == 0 {
            return Ok(Some(Vec::new()));
        }
        let mut top = self.logits(backend, x, &leaders)?;
        // k logits reach this one, so the k largest do
        let least = top
            .iter()
            .map(|(_, logit)| *logit)
            .fold(f32::INFINITY, f32::min);
        for row in leaders {
            let row = row as usize;
            bounds[row / SCREEN_ROWS].upper[row % SCREEN_ROWS] = f32::NEG_INFINITY; // known
        }
        let candidates = screen.candidates(query, bounds, least);
        let left = top.len() + candidates.len();
        if left > k.max(self.rows / MOST_CANDIDATES) {
            return Ok(None);
        }
        top.append(&mut self.logits(backend, x, &candidates)?);
        screen.recomputed.fetch_add(left, Ordering::Relaxed);
        crate::sampler::sort(&mut top);
        top.truncate(k);
        Ok(Some(top))
    }

    /// The logits of `x: (cols,)` of some rows, with the rows.
    fn logits(
        &self,
        backend: Backend,
        x: &[f32],
        rows: &[u32],
    ) -> Result<Vec<(u32, f32)>, FormatError> {
        let mut logits: Vec<(u32, f32)> = rows.iter().map(|row| (*row, 0.0)).collect();
        let pieces = threads::pieces(4 * rows.len() * self.cols); // from memory, row by row
        let share = rows.len().div_ceil(pieces).max(1);
        let items = logits.chunks_mut(share).collect();
        threads::try_for_each(pieces, items, |part: &mut [(u32, f32)]| {
            for (row, logit) in part {
                let row = *row as usize;
                match self.dtype {
                    Some(dtype) => {
                        let mut out = Output::new(std::slice::from_mut(logit), 1, 1);
                        backend.dense_rows(dtype, self.row_bytes(row), self.cols, x, &mut out);
                    }
                    None => {
                        let mut wide = vec![0.0; self.cols]; // (cols,)
                        self.row(row, &mut wide)?;
                        *logit = backend.dot(&wide, x);
                    }
                }
                self.count_touched();
                if !logit.is_finite() {
                    self.row(row, &mut vec![0.0; self.cols])?; // names the column
                    return Err(self.beyond(row));
                }
            }
            Ok(())
        })?;
        Ok(logits)
    }

    fn beyond(&self, row: usize) -> FormatError {
        let message = format!("the logit of row {row} is beyond f32 or no number");
        self.not_finite(message)
    }

    fn not_finite(&self, message: String) -> FormatError {
        let error = FormatError::new(ErrorCode::NonFinite, message).in_tensor(&self.info.name);
        error.in_file(self.file.path())
    }

    /// Refuses a logit that is NaN or infinite. The hidden state was finite, so either its row is not,
    /// or both are beyond what f32 can multiply.
    fn check_logits(&self, out: &mut Output<'_>) -> Result<(), FormatError> {
        let first = out.rows().start;
        for token in 0..out.tokens() {
            let logits = out.token_mut(token);
            // a sum of exponent tests vectorises; the search runs only on failure
            if logits.iter().fold(true, |all, v| all & v.is_finite()) {
                continue;
            }
            let row = first + logits.iter().position(|v| !v.is_finite()).unwrap_or(0);
            self.row(row, &mut vec![0.0; self.cols])?; // names the column
            return Err(self.beyond(row));
        }
        Ok(())
    }

    /// `out[t][r] = dot(row r, x[t])`; `x` is `(tokens, cols)`, `out` is `(tokens, rows)`. One token reads
    /// every row once, so its pages are given back on the way; more tokens come back to them.
    pub(crate) fn multiply(
        &self,
        backend: Backend,
        x: &[f32],
        out: &mut [f32],
    ) -> Result<(), FormatError> {
        crate::bit_linear::finite(self.slot, x, self.cols, 0)?;
        let tiles = x
            .chunks(HEAD_TOKENS * self.cols)
            .zip(out.chunks_mut(HEAD_TOKENS * self.rows));
        for (x, out) in tiles {
            let pieces = threads::pieces(x.len() * self.rows);
            let share = self.rows.div_ceil(pieces).next_multiple_of(HEAD_ROWS);
            let mut rest = Output::new(out, x.len() / self.cols, self.rows);
            let mut parts = Vec::with_capacity(pieces);
            while rest.rows().len() > share {
                let at = rest.rows().start + share;
                let (part, others) = rest.split_at(at);
                parts.push(part);
                rest = others;
            }
            parts.push(rest);
            let one = x.len() == self.cols;
            threads::try_for_each(pieces, parts, |part| match one {
                true => self.passing(backend, x, part),
                false => self.part(backend, x, part),
            })?;
        }
        Ok(())
    }

    /// As [`part`](Self::part), giving the pages of the rows back.
    fn passing(
        &self,
        backend: Backend,
        x: &[f32], // (1, cols)
        out: Output<'_>,
    ) -> Result<(), FormatError> {
        let step = PASSING_BYTES / (self.byte_len() / self.rows.max(1)).max(1);
        let step = step.next_multiple_of(HEAD_ROWS);
        let mut rest = Some(out);
        while let Some(out) = rest.take() {
            let rows = out.rows();
            let part = if rows.len() > step {
                let (part, others) = out.split_at(rows.start + step);
                rest = Some(others);
                part
            } else {
                out
            };
            let rows = part.rows();
            self.part(backend, x, part)?;
            self.release(rows);
        }
        Ok(())
    }

    /// The rows that `out` owns.
    fn part(
        &self,
        backend: Backend,
        x: &[f32], // (tokens, cols)
        mut out: Output<'_>,
    ) -> Result<(), FormatError> {
        let Some(dtype) = self.dtype else {
            return self.part_widened(backend, x, out);
        };
        backend.dense_rows(dtype, &self.bytes, self.cols, x, &mut out);
        self.check_logits(&mut out)
    }

    /// The same for codes, which the kernels do not read: made row by row.
    fn part_widened(
        &self,
        backend: Backend,
        x: &[f32],
        mut out: Output<'_>,
    ) -> Result<(), FormatError> {
        let mut wide = vec![0.0; self.cols]; // (cols,)
        let rows = out.rows();
        for row in rows.clone() {
            self.row(row, &mut wide)?;
            for (token, x) in x.chunks_exact(self.cols).enumerate() {
                out.token_mut(token)[row - rows.start] = backend.dot(&wide, x);
            }
        }
        self.check_logits(&mut out)
    }
}
