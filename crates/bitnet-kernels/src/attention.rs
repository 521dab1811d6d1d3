//! One block of attention: some queries against some keys and values.
//!
//! Invariant: the operations and their order are those of `formats/numerics.md`, "Attention": scores are
//! canonical dots, sums run by 16 lanes, a weighted value is one chain of `mul_add` per dimension in the
//! order of the positions. What goes together, queries or keys or dimensions, changes no operand of any
//! operation.
//!
//! The queries of one token read keys and values as they lie in memory, each once for all of them. Many
//! queries, those of a prompt, first lay the keys out by dimension, 16 keys a row: lane `j` of 16 dots is
//! then a vector, and adding the lanes up takes 15 additions and no shuffle for 16 dots. This module is
//! the frame and safe bodies of its steps; `kernels/avx512_attention.rs` has some with registers named.

use crate::lanes::{
    DenseType, LANES, Lanes, add_lanes, exp1, fill_lanes, greater, mul_add_lanes, mul_add_tail,
};
use crate::lines::{self, LINE, Line, Lines};
use crate::stored_rows::{RowType, StoredRow};
/// Behind the `dim` weighted values of a part: their maximum score and the sum of their weights.
pub(crate) const PART_EXTRA: usize = 2;

/// Keys of a panel that queries pass over together: 16 KB of 128 dimensions, in L1.
pub(crate) const PANEL_KEYS: usize = 2 * LANES;

/// From so many queries on, laying out the keys by dimension costs less than it saves.
const MANY: usize = 16;

/// Queries that pass over a panel, and over a slice of values, before the next one.
const STRIP: usize = 32;

/// Values that the queries of a strip pass over together: of many, and of the few of one token.
const SLICES: [usize; 2] = [64, 32];

/// Queries that go together in a step.
pub(crate) const TOGETHER: usize = 4;

/// Scores of some queries and all keys, as the keys lie in memory: `(keys, dim, q, stride, scores)`.
pub(crate) type Few = unsafe fn(&[u8], usize, &[f32], usize, &mut [f32]);

/// Scores of some queries and the keys of one panel: `(panel, dim, q, stride, scores)`.
pub(crate) type Many = unsafe fn(&[f32], usize, &[f32], usize, &mut [f32]);

/// Adds weighted values to parts: `(values, dim, weights, stride, parts)`.
pub(crate) type Weigh = unsafe fn(&[u8], usize, &[f32], usize, &mut [f32]);

/// What depends on how keys and values are stored.
pub(crate) struct RowSteps {
    /// Bytes of a row of so many numbers.
    pub row_bytes: fn(usize) -> usize,
    pub few: Few,
    /// Keys `(count, dim)` into panels.
    pub panels: unsafe fn(&[u8], usize, &mut [f32]),
    pub widen: unsafe fn(&[u8], usize, &mut [f32]),
    pub weigh: Weigh,
}

/// One instruction set's steps. Calling an entry is sound when the CPU has the features it was
/// instantiated with.
pub(crate) struct AttentionOps {
    pub f32: RowSteps,
    pub f16: RowSteps,
    pub bf16: RowSteps,
    pub q8: RowSteps,
    pub many: Many,
    pub softmax: unsafe fn(f32, &mut [f32]) -> (f32, f32),
    pub merge: unsafe fn(&mut [f32], &[f32]),
}

impl AttentionOps {
    pub fn rows(&self, stored: RowType) -> &RowSteps {
        match stored {
            RowType::Dense(DenseType::F32) => &self.f32,
            RowType::Dense(DenseType::F16) => &self.f16,
            RowType::Dense(DenseType::Bf16) => &self.bf16,
            RowType::Q8 => &self.q8,
        }
    }
}

/// Compiles every body under the given attributes and tabulates the instances.
macro_rules! instantiate {
    ($(#[$isa:meta])*) => {{
        use $crate::{attention::{self, AttentionOps, RowSteps}, lanes, stored_rows};
        macro_rules! rows {
            ($element:ty) => {{
                $(#[$isa])* fn few(
                    keys: &[u8], dim: usize, q: &[f32], stride: usize, scores: &mut [f32],
                ) {
                    attention::few::<$element>(keys, dim, q, stride, scores)
                }
                $(#[$isa])* fn panels(keys: &[u8], dim: usize, panels: &mut [f32]) {
                    attention::panels::<$element>(keys, dim, panels)
                }
                $(#[$isa])* fn widen(rows: &[u8], dim: usize, to: &mut [f32]) {
                    <$element as stored_rows::StoredRow>::widen_rows(rows, dim, to)
                }
                $(#[$isa])* fn weigh(
                    values: &[u8], dim: usize, weights: &[f32], stride: usize, parts: &mut [f32],
                ) {
                    attention::weigh::<$element>(values, dim, weights, stride, parts)
                }
                RowSteps {
                    row_bytes: <$element as stored_rows::StoredRow>::row_bytes,
                    few, panels, widen, weigh,
                }
            }};
        }
        $(#[$isa])* fn many(
            panel: &[f32], dim: usize, q: &[f32], stride: usize, scores: &mut [f32],
        ) {
            attention::many(panel, dim, q, stride, scores)
        }
        $(#[$isa])* fn softmax(factor: f32, scores: &mut [f32]) -> (f32, f32) {
            attention::softmax(factor, scores)
        }
        $(#[$isa])* fn merge(so_far: &mut [f32], next: &[f32]) { attention::merge(so_far, next) }
        AttentionOps {
            f32: rows!(lanes::F32), f16: rows!(lanes::F16), bf16: rows!(lanes::Bf16),
            q8: rows!(stored_rows::Q8), many, softmax, merge,
        }
    }};
}
pub(crate) use instantiate;

/// Memory that [`Backend::attend`](crate::Backend::attend) works in. Keep one per thread.
#[derive(Default)]
pub struct AttentionScratch {
    pub(crate) scores: Option<Lines>, // (strip, count), or (2, queries, count)
    keys: Option<Lines>,              // (count / 32, 2, dim, 16)
    values: Option<Lines>,            // (count, dim)
}

impl std::fmt::Debug for AttentionScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AttentionScratch")
    }
}

/// At least `words` numbers in `lines`, whatever they are.
pub(crate) fn room(lines: &mut Option<Lines>, words: usize) -> &mut [Line] {
    let count = words.div_ceil(LINE / 4);
    if lines.as_ref().is_none_or(|lines| lines.len() < count) {
        *lines = Some(Lines::zeroed(count));
    }
    lines.as_mut().map_or(&mut [], |lines| &mut lines[..count])
}

/// Softmax attention of some queries over one block, not yet divided by the sum of weights.
///
/// `keys` and `values` are `(count, dim)` little-endian; query `i` of `q: (queries, dim)` sees the first
/// `seen[i]` of them, at least one, and no fewer than the query before; `parts` is `(queries, dim + 2)`:
/// weighted values, maximum, sum.
///
/// # Safety
/// The CPU has what `ops` were instantiated with.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn attend(
    ops: &AttentionOps,
    rows: &RowSteps,
    (keys, values): (&[u8], &[u8]),
    dim: usize,
    factor: f32,
    q: &[f32],
    seen: &[usize],
    scratch: &mut AttentionScratch,
    parts: &mut [f32],
) {
    let (queries, part) = (seen.len(), dim + PART_EXTRA);
    let count = seen.last().copied().unwrap_or(0);
    assert!(keys.len() == values.len() && (dim > 0 || queries == 0));
    assert_eq!((q.len(), parts.len()), (queries * dim, queries * part));
    assert!(seen.is_sorted() && seen.first().is_none_or(|seen| *seen > 0));
    let Some(row) = keys.len().checked_div(count) else {
        return;
    };
    assert!(
        keys.len() == count * row && row == (rows.row_bytes)(dim),
        "{count} keys"
    );
    let stride = count.next_multiple_of(PANEL_KEYS);
    let (strip, slice) = match queries >= MANY {
        true => (STRIP, SLICES[0]),
        false => (TOGETHER, SLICES[1]),
    };
    let scores = lines::as_words_mut(room(&mut scratch.scores, strip * stride));
    let many = queries >= MANY;
    let (mut values, mut weigh, mut value_row) = (values, rows.weigh, row);
    let mut panels: &[f32] = &[];
    if many {
        let lines = room(&mut scratch.keys, stride * dim);
        let words = &mut lines::as_words_mut(lines)[..stride * dim];
        // SAFETY: the caller's promise.
        unsafe { (rows.panels)(keys, dim, words) };
        panels = words;
        if row != 4 * dim {
            let lines = room(&mut scratch.values, count * dim);
            // SAFETY: the caller's promise.
            unsafe { (rows.widen)(values, dim, &mut lines::as_words_mut(lines)[..count * dim]) };
            (values, weigh, value_row) = (lines::as_bytes(lines), ops.f32.weigh, 4 * dim);
        }
    }
    for ((q, seen), parts) in q
        .chunks(strip * dim)
        .zip(seen.chunks(strip))
        .zip(parts.chunks_mut(strip * part))
    {
        let most = seen.last().copied().unwrap_or(0);
        if many {
            let panels = panels
                .chunks_exact(PANEL_KEYS * dim)
                .zip((0..most).step_by(PANEL_KEYS));
            for (panel, key) in panels {
                // the first group of queries that sees any of these keys
                let first = seen.partition_point(|seen| *seen <= key) / TOGETHER * TOGETHER;
                let (q, scores) = (&q[first * dim..], &mut scores[first * stride + key..]);
                // SAFETY: the caller's promise.
                unsafe { (ops.many)(panel, dim, q, stride, scores) };
            }
        } else {
            // SAFETY: the caller's promise.
            unsafe { (rows.few)(&keys[..most * row], dim, q, stride, scores) };
        }
        for ((seen, part), scores) in seen
            .iter()
            .zip(parts.chunks_exact_mut(part))
            .zip(scores.chunks_exact_mut(stride))
        {
            part[..dim].fill(0.0);
            // SAFETY: the caller's promise.
            (part[dim], part[dim + 1]) = unsafe { (ops.softmax)(factor, &mut scores[..*seen]) };
        }
        for first in (0..most).step_by(slice) {
            let fours = parts.chunks_mut(TOGETHER * part).zip(seen.chunks(TOGETHER));
            for ((parts, seen), weights) in fours.zip(scores.chunks(TOGETHER * stride)) {
                let mut weigh = |from: usize, to: usize, query: usize, queries: usize| {
                    if from < to {
                        let values = &values[from * value_row..to * value_row];
                        let weights = &weights[query * stride + from..];
                        let parts = &mut parts[query * part..(query + queries) * part];
                        // SAFETY: the caller's promise.
                        unsafe { weigh(values, dim, weights, stride, parts) };
                    }
                };
                // what all of them see, and the rest of each
                let (end, common) = (first + slice, seen[0]);
                weigh(first, end.min(common), 0, seen.len());
                for (query, seen) in seen.iter().enumerate() {
                    weigh(first.max(common), end.min(*seen), query, 1);
                }
            }
        }
    }
}

/// [`Few`]: `q` is `(queries, dim)`, `scores` is `(queries, stride)`, the rest of the last row left away.
#[inline(always)]
pub(crate) fn few<S: StoredRow>(
    keys: &[u8],
    dim: usize,
    q: &[f32],
    stride: usize,
    scores: &mut [f32],
) {
    let mut at = 0;
    while at + TOGETHER <= q.len() / dim {
        few_of::<S, TOGETHER>(
            keys,
            dim,
            &q[at * dim..],
            stride,
            &mut scores[at * stride..],
        );
        at += TOGETHER;
    }
    while at < q.len() / dim {
        few_of::<S, 1>(
            keys,
            dim,
            &q[at * dim..],
            stride,
            &mut scores[at * stride..],
        );
        at += 1;
    }
}

/// The first `R` queries.
#[inline(always)]
fn few_of<S: StoredRow, const R: usize>(
    keys: &[u8],
    dim: usize,
    q: &[f32],
    stride: usize,
    scores: &mut [f32],
) {
    let row = S::row_bytes(dim);
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * dim..(r + 1) * dim]);
    for (key, bytes) in keys.chunks_exact(row).enumerate() {
        fetch_ahead(bytes);
        let acc = dots::<S, R>(bytes, dim, &q);
        for r in 0..R {
            scores[r * stride + key] = add_lanes(acc[r]);
        }
    }
}

/// How far ahead keys and values are fetched.
pub(crate) const AHEAD: usize = 3 << 10;

/// Fetches what lies [`AHEAD`] behind some keys or values.
#[inline(always)]
pub(crate) fn fetch_ahead(rows: &[u8]) {
    for line in rows.chunks(LINE) {
        lines::prefetch(line.as_ptr().wrapping_add(AHEAD));
    }
}

/// The lanes of `R` queries times a key.
#[inline(always)]
fn dots<S: StoredRow, const R: usize>(key: &[u8], dim: usize, q: &[&[f32]; R]) -> [Lanes; R] {
    let mut acc = [[0.0; LANES]; R];
    let chunks = dim / LANES;
    for c in 0..chunks {
        let w = S::lanes(key, dim, c * LANES);
        for r in 0..R {
            let q = q[r][c * LANES..].first_chunk().unwrap_or(&[0.0; LANES]);
            mul_add_lanes(&w, q, &mut acc[r]);
        }
    }
    let count = dim - chunks * LANES;
    if count > 0 {
        let w = S::tail(key, dim, chunks * LANES);
        for r in 0..R {
            let q = fill_lanes(&q[r][chunks * LANES..]);
            mul_add_tail(&w, &q, count, &mut acc[r]);
        }
    }
    acc
}

/// Keys `(count, dim)` into `panels: (count / 16, dim, 16)`; behind the last key stands 0.
#[inline(always)]
pub(crate) fn panels<S: StoredRow>(keys: &[u8], dim: usize, panels: &mut [f32]) {
    let row = S::row_bytes(dim);
    let sixteen = keys.chunks(LANES * row);
    let mut to = panels.chunks_exact_mut(LANES * dim);
    for (keys, to) in sixteen.zip(&mut to) {
        if keys.len() < LANES * row {
            to.fill(0.0);
        }
        let to = to.as_chunks_mut::<LANES>().0;
        for (key, row) in keys.chunks_exact(row).enumerate() {
            for (chunk, to) in to.chunks_mut(LANES).enumerate() {
                let wide = match to.len() {
                    LANES => S::lanes(row, dim, chunk * LANES),
                    _ => S::tail(row, dim, chunk * LANES),
                };
                for (to, wide) in to.iter_mut().zip(wide) {
                    to[key] = wide;
                }
            }
        }
    }
    to.for_each(|to| to.fill(0.0));
}

/// [`Many`]: `panel` is `(2, dim, 16)`, `q` is `(queries, dim)`, `scores` is `(queries, stride)`, the rest
/// of the last row left away.
#[inline(always)]
pub(crate) fn many(panel: &[f32], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    for (sixteen, panel) in panel.chunks_exact(LANES * dim).enumerate() {
        let scores = &mut scores[sixteen * LANES..];
        let panel = panel.as_chunks::<LANES>().0;
        let mut at = 0;
        while at + TOGETHER <= q.len() / dim {
            many_of::<TOGETHER>(panel, &q[at * dim..], stride, &mut scores[at * stride..]);
            at += TOGETHER;
        }
        while at < q.len() / dim {
            many_of::<1>(panel, &q[at * dim..], stride, &mut scores[at * stride..]);
            at += 1;
        }
    }
}

/// 16 keys, `(dim, 16)`, and the first `R` queries.
#[inline(always)]
fn many_of<const R: usize>(panel: &[Lanes], q: &[f32], stride: usize, scores: &mut [f32]) {
    let dim = panel.len();
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * dim..(r + 1) * dim]);
    // lane j of the 16 dots, for every j
    let mut lanes = [[[0.0; LANES]; R]; LANES];
    for (j, lanes) in lanes.iter_mut().enumerate() {
        let mut acc = [[0.0; LANES]; R];
        for d in (j..dim).step_by(LANES) {
            for r in 0..R {
                mul_add_lanes(&panel[d], &[q[r][d]; LANES], &mut acc[r]);
            }
        }
        *lanes = acc;
    }
    for distance in [8, 4, 2, 1] {
        let (low, high) = lanes.split_at_mut(distance);
        for (low, high) in low.iter_mut().zip(high) {
            for r in 0..R {
                for key in 0..LANES {
                    low[r][key] += high[r][key];
                }
            }
        }
    }
    for r in 0..R {
        scores[r * stride..][..LANES].copy_from_slice(&lanes[0][r]);
    }
}

/// Dots to weights, in place; returns the maximum score and the sum of weights.
#[inline(always)]
pub(crate) fn softmax(factor: f32, scores: &mut [f32]) -> (f32, f32) {
    let (chunks, tail) = scores.as_chunks_mut::<LANES>();
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter_mut() {
        for j in 0..LANES {
            chunk[j] *= factor;
            largest[j] = greater(largest[j], chunk[j]);
        }
    }
    let mut max = largest.into_iter().fold(f32::NEG_INFINITY, greater);
    for score in tail.iter_mut() {
        *score *= factor;
        max = greater(max, *score);
    }
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for j in 0..LANES {
            chunk[j] = exp1(chunk[j] - max);
            sums[j] += chunk[j];
        }
    }
    for (score, sum) in tail.iter_mut().zip(&mut sums) {
        *score = exp1(*score - max);
        *sum += *score;
    }
    (max, add_lanes(sums))
}

/// [`Weigh`]: `parts` is `(queries, dim + 2)`, `weights` is `(queries, stride)`, the rest of the last row
/// left away.
#[inline(always)]
pub(crate) fn weigh<S: StoredRow>(
    values: &[u8],
    dim: usize,
    weights: &[f32],
    stride: usize,
    parts: &mut [f32],
) {
    let part = dim + PART_EXTRA;
    let mut at = 0;
    while at + TOGETHER <= parts.len() / part {
        let weights = &weights[at * stride..];
        weigh_of::<S, TOGETHER>(values, dim, weights, stride, &mut parts[at * part..]);
        at += TOGETHER;
    }
    while at < parts.len() / part {
        let weights = &weights[at * stride..];
        weigh_of::<S, 1>(values, dim, weights, stride, &mut parts[at * part..]);
        at += 1;
    }
}

/// The first `R` queries.
#[inline(always)]
fn weigh_of<S: StoredRow, const R: usize>(
    values: &[u8],
    dim: usize,
    weights: &[f32],
    stride: usize,
    parts: &mut [f32],
) {
    let (row, part) = (S::row_bytes(dim), dim + PART_EXTRA);
    let weights: [&[f32]; R] =
        std::array::from_fn(|r| &weights[r * stride..][..values.len() / row]);
    for d in (0..dim).step_by(LANES) {
        let live = LANES.min(dim - d);
        let mut acc = [[0.0; LANES]; R];
        for r in 0..R {
            acc[r][..live].copy_from_slice(&parts[r * part + d..][..live]);
        }
        for (j, value) in values.chunks_exact(row).enumerate() {
            lines::prefetch(value[S::place(d)..].as_ptr().wrapping_add(AHEAD));
            let v = match live {
                LANES => S::lanes(value, dim, d),
                _ => S::tail(value, dim, d),
            };
            for r in 0..R {
                mul_add_lanes(&[weights[r][j]; LANES], &v, &mut acc[r]);
            }
        }
        for r in 0..R {
            parts[r * part + d..][..live].copy_from_slice(&acc[r][..live]);
        }
    }
}

/// Merges the part of the next block into that of the blocks before it; both are `(dim + 2,)`. A part
/// without weights is replaced.
#[inline(always)]
pub(crate) fn merge(so_far: &mut [f32], next: &[f32]) {
    assert_eq!(so_far.len(), next.len());
    let (Some((so_far, [old_max, old_sum])), Some((next, &[max, sum]))) =
        (so_far.split_last_chunk_mut(), next.split_last_chunk())
    else {
        return;
    };
    if *old_sum == 0.0 {
        so_far.copy_from_slice(next);
        (*old_max, *old_sum) = (max, sum);
        return;
    }
    let both = if max > *old_max { max } else { *old_max };
    let (old, new) = (exp1(*old_max - both), exp1(max - both));
    *old_max = both;
    *old_sum = sum.mul_add(new, *old_sum * old);
    for (o, next) in so_far.iter_mut().zip(next) {
        *o = new.mul_add(*next, *o * old);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{Backend, is_quick, stored_rows};
    use bitnet_ternary::{f16_to_f32, f32_to_f16};

    pub(crate) fn noise(state: &mut u32) -> f32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / (1 << 22) as f32 - 2.0
    }

    /// The rules as written: one query, keys and values `(seen, dim)`.
    fn by_the_rules(q: &[f32], keys: &[f32], values: &[f32], factor: f32) -> Vec<f32> {
        let dim = q.len();
        let lanes = |terms: &mut dyn Iterator<Item = f32>, add: fn(f32, f32) -> f32| {
            let mut lanes = [0.0; LANES];
            for (i, term) in terms.enumerate() {
                lanes[i % LANES] = add(lanes[i % LANES], term);
            }
            add_lanes(lanes)
        };
        let dot = |key: &[f32]| {
            let mut lanes = [0.0; LANES];
            for (i, (q, k)) in q.iter().zip(key).enumerate() {
                lanes[i % LANES] = k.mul_add(*q, lanes[i % LANES]);
            }
            add_lanes(lanes)
        };
        let scores: Vec<f32> = keys
            .chunks_exact(dim)
            .map(|key| dot(key) * factor)
            .collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| exp1(score - max)).collect();
        let mut part = vec![0.0f32; dim];
        for (weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
            for (o, v) in part.iter_mut().zip(value) {
                *o = weight.mul_add(*v, *o);
            }
        }
        part.extend([max, lanes(&mut weights.iter().copied(), |a, b| a + b)]);
        part
    }

    fn check(backend: Backend, dim: usize, seen: &[usize], stored: RowType) {
        let mut state = (dim * seen.len()) as u32;
        let count = seen.last().copied().unwrap_or(0);
        let (mut bytes, mut floats) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for (bytes, floats) in bytes.iter_mut().zip(&mut floats) {
            for _ in 0..count {
                let row: Vec<f32> = (0..dim).map(|_| noise(&mut state)).collect();
                match stored {
                    RowType::Q8 => {
                        let mut codes = vec![0; stored.row_bytes(dim).unwrap()];
                        backend.narrow_q8(&row, &mut codes);
                        floats.extend(stored_rows::widened(&codes, dim));
                        bytes.extend(codes);
                    }
                    RowType::Dense(DenseType::F32) => {
                        bytes.extend(row.iter().flat_map(|value| value.to_le_bytes()));
                        floats.extend(row);
                    }
                    RowType::Dense(_) => {
                        let halves = row.iter().map(|value| f32_to_f16(*value));
                        bytes.extend(halves.clone().flat_map(u16::to_le_bytes));
                        floats.extend(halves.map(f16_to_f32));
                    }
                }
            }
        }
        let q: Vec<f32> = (0..seen.len() * dim).map(|_| noise(&mut state)).collect();
        let mut parts = vec![f32::NAN; seen.len() * (dim + PART_EXTRA)];
        let rows = (&bytes[0][..], &bytes[1][..]);
        let scratch = &mut AttentionScratch::default();
        for _ in 0..2 {
            backend.attend(stored, rows, dim, 0.3, &q, seen, scratch, &mut parts);
        }
        let all = seen
            .iter()
            .zip(q.chunks_exact(dim))
            .zip(parts.chunks_exact(dim + PART_EXTRA));
        for (query, ((seen, q), part)) in all.enumerate() {
            let want = by_the_rules(q, &floats[0][..seen * dim], &floats[1][..seen * dim], 0.3);
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(part),
                bits(&want),
                "{backend:?}, {stored:?}, dim {dim}, query {query} of {count} keys"
            );
        }
    }

    #[test]
    fn every_kernel_follows_the_rules() {
        for backend in Backend::available() {
            for stored in [DenseType::F32.into(), DenseType::F16.into(), RowType::Q8] {
                for dim in [16, 20, 64, 80, 128, 256]
                    .into_iter()
                    .take_while(|d| is_quick(d * 256))
                {
                    for count in [1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 65, 256] {
                        for queries in [1, 3, 4, 9] {
                            if !is_quick(8 * dim * count * queries) {
                                continue;
                            }
                            check(backend, dim, &vec![count; queries], stored);
                        }
                    }
                    // many: groups of three and four heads, tokens one behind the other
                    for (group, tokens) in [(1, 20), (3, 6), (4, 4), (4, 32), (5, 13)] {
                        for first in [1, 30, 200] {
                            let seen: Vec<usize> =
                                (0..group * tokens).map(|i| first + i / group).collect();
                            if !is_quick(8 * dim * seen.iter().sum::<usize>()) {
                                continue;
                            }
                            check(backend, dim, &seen, stored);
                        }
                    }
                }
            }
        }
    }
}
