//! Float activations as integers of 24 bits: what a kernel multiplies when activations are not int8.
//!
//! Each group of [`GROUP`] columns of a token has one step, `max |x| / 8355711`, and every activation is a whole
//! number of steps (`formats/numerics.md`). An integer is three signed bytes, `q = b0 + 256 b1 + 65536 b2`: the planes,
//! which int8 instructions multiply. A kernel that looks sums up reads the integers themselves, 16 tokens side by side.
//!
//! Invariant: everything behind column `cols` is 0, so a kernel may read whole blocks of columns; and the integers
//! of [`GROUP`] columns times trits add up to less than 2^31.

use crate::lines::{self, LINE, Line};
use std::ops::Range;

/// Columns that share a step.
pub(crate) const GROUP: usize = 128;

/// The largest integer: 127 in all three planes.
pub(crate) const LIMIT: i32 = 127 * (1 + 256 + 65536);

const _: () = assert!(GROUP as i64 * (LIMIT as i64) < 1 << 31);

/// Bytes of an integer.
pub(crate) const PLANES: usize = 3;

/// Tokens of a panel.
pub(crate) const PANEL: usize = LINE / 4;

/// Columns by which rows of a plane are padded; a kernel may read this far behind `cols`.
const PADDING: usize = 64;

/// Columns per partial sum: the smallest group of scales.
pub(crate) const PART: usize = 32;

/// The columns that one scale and one step have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// First column, and the column behind the last.
    pub start: usize,
    pub end: usize,
    /// The group of scales; 0 without groups.
    pub scale: usize,
}

impl Segment {
    /// The group of activations.
    pub fn step(&self) -> usize {
        self.start / GROUP
    }

    /// Columns of every segment but the last, with scales per `group` columns, if in groups.
    #[inline(always)]
    pub fn width(group: Option<usize>) -> usize {
        group.unwrap_or(GROUP).min(GROUP)
    }

    /// The segments of a row of `cols` columns with scales per `group` columns, if in groups, in order.
    pub fn all(cols: usize, group: Option<usize>) -> impl Iterator<Item = Self> {
        let width = Self::width(group);
        (0..cols.div_ceil(width)).map(move |number| {
            let start = number * width;
            Self {
                start,
                end: cols.min(start + width),
                scale: group.map_or(0, |group| start / group),
            }
        })
    }
}

/// Fixed-point activations of some tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct FixedPoint {
    tokens: usize,
    cols: usize,
    stride: usize,
    groups: usize,
    planes: Vec<i8>,        // (tokens, 3, stride)
    steps: Vec<f32>,        // (tokens, groups)
    sums: Vec<i32>,         // (tokens, parts)
    panels: Vec<Line>, // (tokens / 16, whole parts of columns, 16): integers, if a kernel reads them
    panel_steps: Vec<Line>, // (tokens / 16, groups, 16)
    tables: Vec<Line>, // (tokens behind those in panels, segments, lines of a table), if a kernel reads them
    token_tables: usize, // lines of the tables of a token
    first_tables: usize, // the first token with tables
    row: Vec<i32>,     // (cols,): the integers of a token on their way
}

/// Writes the tables of a token from its integers.
pub(crate) type WriteTables = unsafe fn(&[i32], &mut [Line]);

/// What a kernel reads of each token beside the planes, if it does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Forms {
    /// How many of the first tokens it takes in panels.
    pub panels: usize,
    /// Of the other tokens tables: the lines of a segment, and what writes those of a token from its integers. Calling it
    /// is sound when the CPU has what the kernel requires.
    pub tables: Option<(usize, WriteTables)>,
}

/// One token and the segments of a matrix.
pub(crate) struct FixedToken<'a> {
    /// The planes and the zeros behind them, at least 64 columns.
    pub planes: [&'a [i8]; PLANES],
    /// In order.
    pub segments: Vec<OfSegment>,
}

/// What a segment has of a token.
#[derive(Clone, Copy)]
pub(crate) struct OfSegment {
    /// Sum of the integers.
    pub sum: i32,
    /// Their step.
    pub step: f32,
    /// The group of scales; 0 without groups.
    pub scale: usize,
}

/// Room for one token.
pub(crate) struct FixedRow<'a> {
    /// `(cols,)`
    pub integers: &'a mut [i32],
    /// `(cols,)` each
    pub planes: [&'a mut [i8]; PLANES],
    /// `(groups,)`
    pub steps: &'a mut [f32],
    /// `(parts,)`: sums of integers over [`PART`] columns
    pub sums: &'a mut [i32],
}

impl FixedPoint {
    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Columns per token.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The planes of one token and the zeros behind them, `(stride,)` each, `stride >= cols + 64`.
    fn planes(&self, token: usize) -> [&[i8]; PLANES] {
        let token = &self.planes[token * PLANES * self.stride..][..PLANES * self.stride];
        std::array::from_fn(|p| &token[p * self.stride..(p + 1) * self.stride])
    }

    /// The steps of one token, `(groups,)`.
    pub fn steps(&self, token: usize) -> &[f32] {
        &self.steps[token * self.groups..(token + 1) * self.groups]
    }

    /// One token as a kernel reads it that multiplies segments of a matrix.
    pub fn token(&self, token: usize, segments: impl Iterator<Item = Segment>) -> FixedToken<'_> {
        let parts = self.cols.div_ceil(PART);
        let parts = &self.sums[token * parts..(token + 1) * parts];
        let of_segment = |segment: Segment| {
            let parts = &parts[segment.start / PART..segment.end.div_ceil(PART)];
            OfSegment {
                sum: parts.iter().sum(),
                step: self.steps(token)[segment.step()],
                scale: segment.scale,
            }
        };
        FixedToken {
            planes: self.planes(token),
            segments: segments.map(of_segment).collect(),
        }
    }

    /// The tables of one token, `(segments of 128 columns, lines)`, if they were built.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn tables(&self, token: usize) -> Option<&[Line]> {
        let at = token.checked_sub(self.first_tables)? * self.token_tables;
        Some(&self.tables[at..at + self.token_tables])
    }

    /// The integers of one token and segment of 128 columns.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn integers(&self, token: usize, segment: usize) -> [i32; GROUP] {
        let mut integers = [0; GROUP];
        let [low, middle, high] = self.planes(token).map(|plane| &plane[segment * GROUP..]);
        let bytes = low.iter().zip(middle).zip(high);
        for (q, ((low, middle), high)) in integers.iter_mut().zip(bytes) {
            *q = join([*low, *middle, *high].map(i32::from));
        }
        integers
    }

    /// The integers of tokens `16 panel ..`, `(whole parts of columns, 16)`; places without a token are 0.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code)
    )]
    pub fn panel(&self, panel: usize) -> &[[i32; PANEL]] {
        let len = self.cols.next_multiple_of(PART);
        let words: &[i32] = lines::as_words(&self.panels);
        &words.as_chunks().0[panel * len..(panel + 1) * len]
    }

    /// The steps of the same tokens, `(groups, 16)`.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        allow(dead_code)
    )]
    pub fn panel_steps(&self, panel: usize) -> &[[f32; PANEL]] {
        let words: &[f32] = lines::as_words(&self.panel_steps);
        &words.as_chunks().0[panel * self.groups..(panel + 1) * self.groups]
    }

    /// Fills the batch: `fix` writes one token, and what a kernel reads in other `forms` is made of it.
    ///
    /// # Errors
    /// The first token that `fix` refuses, with its error.
    pub fn fill<E>(
        &mut self,
        forms: Forms,
        (tokens, cols): (usize, usize),
        mut fix: impl FnMut(usize, FixedRow<'_>) -> Result<(), E>,
    ) -> Result<(), (usize, E)> {
        let stride = cols.next_multiple_of(PADDING) + PADDING;
        if (self.stride, self.cols) != (stride, cols) {
            self.planes.clear(); // what is padding now may have held values
            self.panels.clear();
        }
        let (groups, parts) = (cols.div_ceil(GROUP), cols.div_ceil(PART));
        (self.tokens, self.cols, self.stride, self.groups) = (tokens, cols, stride, groups);
        self.planes.resize(tokens * PLANES * stride, 0);
        self.steps.resize(tokens * groups, 0.0);
        self.sums.resize(tokens * parts, 0);
        self.row.resize(cols, 0);
        let panels = forms.panels > 0;
        if panels {
            self.make_panels();
        }
        self.token_tables = forms.tables.map_or(0, |(lines, _)| groups * lines);
        self.tables
            .resize((tokens - forms.panels) * self.token_tables, Line([0; LINE]));
        self.first_tables = forms.panels;
        for token in 0..tokens {
            let planes = &mut self.planes[token * PLANES * stride..][..PLANES * stride];
            let (low, planes) = planes.split_at_mut(stride);
            let (middle, high) = planes.split_at_mut(stride);
            let row = FixedRow {
                integers: &mut self.row,
                planes: [low, middle, high].map(|plane| &mut plane[..cols]),
                steps: &mut self.steps[token * groups..(token + 1) * groups],
                sums: &mut self.sums[token * parts..(token + 1) * parts],
            };
            fix(token, row).map_err(|e| (token, e))?;
            if panels {
                self.interleave(token);
            }
            if let Some((_, build)) = forms.tables.filter(|_| token >= forms.panels) {
                let at = (token - forms.panels) * self.token_tables;
                let tables = &mut self.tables[at..at + self.token_tables];
                // SAFETY: the caller's: a backend with this kernel exists.
                unsafe { build(&self.row, tables) };
            }
        }
        Ok(())
    }

    /// Room for all panels; places without a token, in the last one, are zeros.
    fn make_panels(&mut self) {
        let count = self.tokens.div_ceil(PANEL);
        let len = self.cols.next_multiple_of(PART);
        self.panels.resize(count * len, Line([0; LINE]));
        self.panel_steps
            .resize(count * self.groups, Line([0; LINE]));
        if !self.tokens.is_multiple_of(PANEL) {
            self.panels[(count - 1) * len..].fill(Line([0; LINE]));
            self.panel_steps[(count - 1) * self.groups..].fill(Line([0; LINE]));
        }
    }

    /// The integers of one token, still in L1, into their panel.
    fn interleave(&mut self, token: usize) {
        let (panel, lane) = (token / PANEL, token % PANEL);
        let len = self.cols.next_multiple_of(PART);
        let words: &mut [i32] = lines::as_words_mut(&mut self.panels[panel * len..][..len]);
        for (to, q) in words.as_chunks_mut::<PANEL>().0.iter_mut().zip(&self.row) {
            to[lane] = *q;
        }
        let lines = &mut self.panel_steps[panel * self.groups..][..self.groups];
        let words: &mut [f32] = lines::as_words_mut(lines);
        let steps = &self.steps[token * self.groups..][..self.groups];
        for (to, step) in words.as_chunks_mut::<PANEL>().0.iter_mut().zip(steps) {
            to[lane] = *step;
        }
    }
}

/// One token in fixed point; whether all of it is finite.
#[inline(always)]
pub(crate) fn fix(x: &[f32], row: FixedRow<'_>) -> bool {
    let FixedRow {
        integers,
        planes: [low, middle, high],
        steps,
        sums,
    } = row;
    assert_eq!(x.len(), integers.len());
    assert_eq!(x.len(), low.len());
    assert_eq!(x.len(), middle.len());
    assert_eq!(x.len(), high.len());
    let mut most = 0;
    for ((x, q), step) in x
        .chunks(GROUP)
        .zip(integers.chunks_mut(GROUP))
        .zip(steps.iter_mut())
    {
        let absmax = x.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
        most = most.max(absmax);
        *step = step_of(f32::from_bits(absmax));
        let step = *step;
        const MOST: f32 = LIMIT as f32; // exact
        for (x, q) in x.iter().zip(q) {
            let steps = (x / step).round_ties_even().clamp(-MOST, MOST);
            // of x that is no number; the row is refused below
            let steps = if steps.is_nan() { 0.0 } else { steps };
            // SAFETY: a number between -MOST and MOST.
            *q = unsafe { steps.to_int_unchecked() };
        }
    }
    if most >= f32::INFINITY.to_bits() {
        return false;
    }
    const HALVES: i32 = 0x80_8080; // with 128 added to each byte, the bytes carry by themselves
    for (q, low) in integers.iter().zip(low) {
        *low = ((q + HALVES) ^ HALVES) as i8;
    }
    for (q, middle) in integers.iter().zip(middle) {
        *middle = (((q + HALVES) ^ HALVES) >> 8) as i8;
    }
    for (q, high) in integers.iter().zip(high) {
        *high = (((q + HALVES) ^ HALVES) >> 16) as i8;
    }
    for (q, sum) in integers.chunks(PART).zip(sums) {
        *sum = q.iter().sum();
    }
    true
}

/// The step of a group whose largest magnitude is `max`: never subnormal, never 0.
#[inline(always)]
pub(crate) fn step_of(max: f32) -> f32 {
    let step = max / LIMIT as f32;
    if step > f32::MIN_POSITIVE {
        step
    } else {
        f32::MIN_POSITIVE
    }
}

/// The rule for one segment and one row: adds `dot` steps, scaled.
#[inline(always)]
pub(crate) fn add_scaled(dot: i32, step: f32, scale: f32, sum: f32) -> f32 {
    (dot as f32 * step).mul_add(scale, sum)
}

/// The same where the scale is that of a whole row or tensor, and comes last.
#[inline(always)]
pub(crate) fn add(dot: i32, step: f32, sum: f32) -> f32 {
    (dot as f32).mul_add(step, sum)
}

/// `b0 + 256 b1 + 65536 b2` of the sums of three planes; what wraps on the way comes back.
#[inline(always)]
pub(crate) fn join([low, middle, high]: [i32; PLANES]) -> i32 {
    low.wrapping_add(middle << 8)
        .wrapping_add(high.wrapping_shl(16))
}

/// The columns of a segment, in blocks of `width`.
#[inline(always)]
pub(crate) fn blocks(segment: &Segment, width: usize) -> Range<usize> {
    segment.start / width..segment.end.div_ceil(width)
}
