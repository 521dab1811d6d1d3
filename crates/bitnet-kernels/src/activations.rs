//! Activations as a backend wants to read them.
//!
//! Invariant: everything behind column `cols` is 0, up to the stride and in every panel, so a kernel
//! may read whole blocks of columns and whole panels of tokens.

use crate::kernels::{Backend, Panel};
use crate::lines::{self, LINE, Line};

/// Columns by which rows of values are padded; a kernel may read this far behind `cols`.
const PADDING: usize = 64;

/// Columns per partial sum: the smallest group of scales.
const PART: usize = 32;

/// Quads of a run, if not one: a line of one token.
pub(crate) const RUN: usize = LINE / 4;

/// Int8 activations of some tokens, prepared for one backend by
/// [`Backend::quantize`]. Reuse one batch to reuse its memory.
#[derive(Clone, Debug, Default)]
pub struct ActivationBatch {
    backend: Option<Backend>,
    tokens: usize,
    cols: usize,
    stride: usize,
    values: Vec<i8>,     // (tokens, stride)
    scales: Vec<f32>,    // (tokens,)
    sums: Vec<i32>,      // (tokens,)
    part_sums: Vec<i32>, // (tokens, cols / 32)
    panels: Vec<Line>, // (tokens / panel, quads / run, panel, run): four columns of one token in one dword
    panel: Panel,
}

impl ActivationBatch {
    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The int8 values of one token, `(cols,)`.
    pub fn values(&self, token: usize) -> &[i8] {
        &self.padded(token)[..self.cols]
    }

    /// `s` of one token: `x ~ values / s`.
    pub fn scale(&self, token: usize) -> f32 {
        self.scales[token]
    }

    /// The scales of all tokens.
    pub(crate) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Sum of the values of one token.
    pub fn sum(&self, token: usize) -> i32 {
        self.sums[token]
    }

    /// Whose layout this is; `None` before the first quantisation.
    pub(crate) fn backend(&self) -> Option<Backend> {
        self.backend
    }

    /// The values of one token and the zeros behind them, `(stride,)`, `stride >= cols + 64`.
    pub(crate) fn padded(&self, token: usize) -> &[i8] {
        &self.values[token * self.stride..(token + 1) * self.stride]
    }

    /// Sum of the values of one token over group `group` of `cols` columns: all of them, or a
    /// multiple of 32.
    pub(crate) fn group_sum(&self, token: usize, group: usize, cols: usize) -> i32 {
        if cols == self.cols {
            return self.sums[token];
        }
        let (parts, per_group) = (self.cols / PART, cols / PART);
        let start = token * parts + group * per_group;
        self.part_sums[start..start + per_group].iter().sum()
    }

    /// Tokens `panel * width ..` interleaved in runs of some quads, `(quads / run, width, run)`: the
    /// dwords of one token's columns `4 q ..= 4 q + 3` for `q` in the run. Exists when the batch has more
    /// than one token.
    pub(crate) fn panel(&self, panel: usize) -> &[i32] {
        let len = self.quads() * self.panel.tokens;
        &lines::as_words(&self.panels)[panel * len..(panel + 1) * len]
    }

    /// Dwords of four columns per token: whole blocks of four, whole blocks of five and whole runs.
    fn quads(&self) -> usize {
        let quads = self.cols.div_ceil(4);
        let blocks = quads.next_multiple_of(4).max(quads.next_multiple_of(5));
        blocks.next_multiple_of(self.panel.quads)
    }

    /// Fills the batch: `quantize` writes one token's values and returns `(scale, sum)`. A kernel
    /// that reads panels says of which shape.
    ///
    /// # Errors
    /// The first token that `quantize` refuses, with its error.
    pub(crate) fn fill<E>(
        &mut self,
        backend: Backend,
        panel: Panel,
        x: &[f32],
        cols: usize,
        quantize: impl Fn(&[f32], &mut [i8]) -> Result<(f32, i32), E>,
    ) -> Result<(), (usize, E)> {
        self.tokens = x.len().checked_div(cols).unwrap_or(0);
        assert_eq!(x.len(), self.tokens * cols, "activations of {cols} columns");
        let stride = cols.next_multiple_of(PADDING) + PADDING;
        if (self.stride, self.cols) != (stride, cols) {
            self.values.clear(); // what is padding now may have held values
        }
        (self.cols, self.stride, self.panel, self.backend) = (cols, stride, panel, Some(backend));
        self.values.resize(self.tokens * stride, 0);
        self.scales.clear();
        self.sums.clear();
        self.part_sums.clear();
        for (token, x) in x.chunks_exact(cols.max(1)).enumerate() {
            let start = token * stride;
            let (scale, sum) =
                quantize(x, &mut self.values[start..start + cols]).map_err(|e| (token, e))?;
            self.scales.push(scale);
            self.sums.push(sum);
            let parts = self.values[start..start + cols].as_chunks::<PART>().0;
            self.part_sums.extend(
                parts
                    .iter()
                    .map(|p| p.iter().map(|&v| i32::from(v)).sum::<i32>()),
            );
        }
        if panel.tokens > 0 && self.tokens > 1 {
            self.interleave();
        }
        Ok(())
    }

    fn interleave(&mut self) {
        let (quads, width, run) = (self.quads(), self.panel.tokens, self.panel.quads);
        assert!([1, RUN].contains(&run), "runs of {run} quads");
        let dwords = self.tokens.div_ceil(width) * quads * width;
        let zeros = Line([0; LINE]);
        self.panels.resize(dwords.div_ceil(LINE / 4), zeros);
        for (first, panel) in (0..self.tokens)
            .step_by(width)
            .zip(lines::as_words_mut(&mut self.panels).chunks_exact_mut(quads * width))
        {
            let live = width.min(self.tokens - first);
            if live < width {
                panel.fill(0);
            }
            for t in 0..live {
                let start = (first + t) * self.stride;
                let (values, _) = self.values[start..start + 4 * quads].as_chunks::<4>();
                match run {
                    RUN => copy_runs::<RUN>(values, t, width, panel),
                    _ => copy_runs::<1>(values, t, width, panel),
                }
            }
        }
    }
}

/// One token's columns into its place `t` of a panel, `(quads / RUN, width, RUN)`.
fn copy_runs<const RUN: usize>(values: &[[i8; 4]], t: usize, width: usize, panel: &mut [i32]) {
    let panel = panel.as_chunks_mut::<RUN>().0;
    for (values, to) in values
        .as_chunks::<RUN>()
        .0
        .iter()
        .zip(panel.chunks_exact_mut(width))
    {
        to[t] = values.map(|v| i32::from_le_bytes(v.map(|v| v as u8)));
    }
}
