//! Int8 activations as kernels read them.
//!
//! Invariant: everything behind column `cols` is 0, up to the stride and in every panel, so a kernel
//! may read whole blocks of columns and whole panels of tokens.

use crate::lines::{self, LINE, Line};

/// Columns by which rows of values are padded; a kernel may read this far behind `cols`.
const PADDING: usize = 64;

/// Columns per partial sum: the smallest group of scales.
const PART: usize = 32;

/// Quads of a run, if not one: a line of one token.
pub(crate) const RUN: usize = LINE / 4;

/// Some tokens side by side, as a kernel multiplies them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panel {
    /// Tokens of a panel; 0 for a kernel without panels.
    pub tokens: usize,
    /// Dwords of four columns that one token keeps together: 1 or [`RUN`].
    pub quads: usize,
}

impl Panel {
    /// Not interleaved.
    pub const NONE: Self = Self {
        tokens: 0,
        quads: 1,
    };

    /// A dword of each token in turn.
    pub const fn of(tokens: usize) -> Self {
        Self { tokens, quads: 1 }
    }
}

impl Default for Panel {
    fn default() -> Self {
        Self::NONE
    }
}

/// Int8 activations of some tokens, in the panels of one kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Activations {
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

impl Activations {
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

    /// `s` of every token: `x ~ values / s`.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Sum of the values of one token.
    pub fn sum(&self, token: usize) -> i32 {
        self.sums[token]
    }

    /// The values of one token and the zeros behind them, `(stride,)`, `stride >= cols + 64`.
    pub fn padded(&self, token: usize) -> &[i8] {
        &self.values[token * self.stride..(token + 1) * self.stride]
    }

    /// Sum of the values of one token over group `group` of `cols` columns: all of them, or a
    /// multiple of 32.
    pub fn group_sum(&self, token: usize, group: usize, cols: usize) -> i32 {
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
    pub fn panel(&self, panel: usize) -> &[i32] {
        let len = self.quads() * self.panel.tokens;
        &lines::as_words(&self.panels)[panel * len..(panel + 1) * len]
    }

    /// Dwords of four columns per token: whole blocks of four, whole blocks of five and whole runs.
    fn quads(&self) -> usize {
        let quads = self.cols.div_ceil(4);
        let blocks = quads.next_multiple_of(4).max(quads.next_multiple_of(5));
        blocks.next_multiple_of(self.panel.quads)
    }

    /// Fills the batch: `quantize` writes the values of one token and returns `(scale, sum)`. A kernel
    /// that reads panels says of which shape.
    ///
    /// # Errors
    /// The first token that `quantize` refuses, with its error.
    pub fn fill<E>(
        &mut self,
        panel: Panel,
        (tokens, cols): (usize, usize),
        mut quantize: impl FnMut(usize, &mut [i8]) -> Result<(f32, i32), E>,
    ) -> Result<(), (usize, E)> {
        let stride = cols.next_multiple_of(PADDING) + PADDING;
        if (self.stride, self.cols) != (stride, cols) {
            self.values.clear(); // what is padding now may have held values
        }
        (self.tokens, self.cols, self.stride) = (tokens, cols, stride);
        self.panel = panel;
        self.values.resize(tokens * stride, 0);
        self.scales.clear();
        self.sums.clear();
        self.part_sums.clear();
        let panels = panel.tokens > 0 && tokens > 1;
        if panels {
            self.make_panels();
        }
        for token in 0..tokens {
            let values = &mut self.values[token * stride..][..cols];
            let (scale, sum) = quantize(token, values).map_err(|e| (token, e))?;
            self.scales.push(scale);
            self.sums.push(sum);
            let parts = values.as_chunks::<PART>().0.iter();
            self.part_sums
                .extend(parts.map(|p| p.iter().map(|&v| i32::from(v)).sum::<i32>()));
            if panels {
                self.interleave(token);
            }
        }
        Ok(())
    }

    /// Room for all panels; places without a token, at the end of the last one, are zeros.
    fn make_panels(&mut self) {
        let Panel { tokens, quads: run } = self.panel;
        assert!([1, RUN].contains(&run), "runs of {run} quads");
        let len = self.quads() * tokens;
        let dwords = self.tokens.div_ceil(tokens) * len;
        self.panels
            .resize(dwords.div_ceil(LINE / 4), Line([0; LINE]));
        if !self.tokens.is_multiple_of(tokens) {
            lines::as_words_mut::<i32>(&mut self.panels)[dwords - len..dwords].fill(0);
        }
    }

    /// The values of one token, still in L1, into its panel.
    fn interleave(&mut self, token: usize) {
        let (quads, width) = (self.quads(), self.panel.tokens);
        let len = quads * width;
        let start = token * self.stride;
        let (values, _) = self.values[start..start + 4 * quads].as_chunks::<4>();
        let panels = lines::as_words_mut(&mut self.panels);
        let panel = &mut panels[token / width * len..][..len];
        match self.panel.quads {
            RUN => copy_runs::<RUN>(values, token % width, width, panel),
            _ => copy_runs::<1>(values, token % width, width, panel),
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
