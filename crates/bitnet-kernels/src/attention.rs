//! One block of attention: some queries against some keys and values, all in one pass.
//!
//! Invariant: the operations and their order are those of `formats/numerics.md`, "Attention": scores are
//! canonical dots, sums run by 16 lanes, a weighted value is one chain of `mul_add` per dimension in the
//! order of the positions. That the queries of a group share every load of a key or value changes no
//! operand of any operation. `kernels/avx512_attention.rs` is the same with registers named.

use crate::dense::{Element, widen_lanes, widen_tail};
use crate::float_ops::{
    LANES, Lanes, add_lanes, exp, exp1, fill_lanes, max, mul_add_lanes, mul_add_tail, scale, sum,
};

/// Behind the `dim` weighted values of a part: their maximum score and the sum of their weights.
pub(crate) const PART_EXTRA: usize = 2;

/// Softmax attention of some queries over one block, not yet divided by the sum of weights.
///
/// `q` is `(queries, dim)`, `keys` and `values` are `(count, dim)` little-endian, `scores` is scratch of
/// `(queries, count)`; `parts` is `(queries, dim + 2)`: weighted values, maximum, sum.
#[inline(always)]
pub(crate) fn attend<E: Element>(
    keys: &[u8],
    values: &[u8],
    dim: usize,
    factor: f32,
    q: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let (queries, count) = (q.len() / dim, keys.len() / (dim * E::SIZE));
    assert_eq!(
        (keys.len(), values.len()),
        (count * dim * E::SIZE, keys.len())
    );
    assert_eq!(q.len(), queries * dim);
    assert_eq!(scores.len(), queries * count);
    assert_eq!(parts.len(), queries * (dim + PART_EXTRA));
    let mut at = 0;
    while at + 4 <= queries {
        some::<E, 4>(keys, values, dim, factor, q, scores, parts, at);
        at += 4;
    }
    while at < queries {
        some::<E, 1>(keys, values, dim, factor, q, scores, parts, at);
        at += 1;
    }
}

/// `R` queries from `at` on.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn some<E: Element, const R: usize>(
    keys: &[u8],
    values: &[u8],
    dim: usize,
    factor: f32,
    q: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
    at: usize,
) {
    let row = dim * E::SIZE;
    let count = keys.len() / row;
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[(at + r) * dim..(at + r + 1) * dim]);
    let scores = &mut scores[at * count..(at + R) * count];
    for (key, row) in keys.chunks_exact(row).enumerate() {
        let acc = dots::<E, R>(row, dim, &q);
        for r in 0..R {
            scores[r * count + key] = add_lanes(acc[r]);
        }
    }
    let part = dim + PART_EXTRA;
    let parts = &mut parts[at * part..(at + R) * part];
    for (scores, part) in scores
        .chunks_exact_mut(count.max(1))
        .zip(parts.chunks_exact_mut(part))
    {
        (part[dim], part[dim + 1]) = weights(factor, scores);
    }
    let weights: [&[f32]; R] = std::array::from_fn(|r| &scores[r * count..(r + 1) * count]);
    let mut d = 0;
    while d + LANES <= dim {
        weighted::<E, R>(values, dim, d, &weights, parts);
        d += LANES;
    }
    if d < dim {
        weighted_tail::<E, R>(values, dim, d, &weights, parts);
    }
}

/// Dots to weights, in place; returns the maximum score and the sum of weights.
#[inline(always)]
pub(crate) fn weights(factor: f32, scores: &mut [f32]) -> (f32, f32) {
    scale(factor, scores);
    let max = max(scores);
    for score in scores.iter_mut() {
        *score -= max;
    }
    exp(scores);
    (max, sum(scores))
}

/// The lanes of `R` queries times a key.
#[inline(always)]
fn dots<E: Element, const R: usize>(key: &[u8], dim: usize, q: &[&[f32]; R]) -> [Lanes; R] {
    let mut acc = [[0.0; LANES]; R];
    let chunks = dim / LANES;
    for c in 0..chunks {
        let w = widen_lanes::<E>(&key[c * LANES * E::SIZE..]);
        for r in 0..R {
            let q = q[r][c * LANES..].first_chunk().unwrap_or(&[0.0; LANES]);
            mul_add_lanes(&w, q, &mut acc[r]);
        }
    }
    let count = dim - chunks * LANES;
    if count > 0 {
        let w = widen_tail::<E>(&key[chunks * LANES * E::SIZE..]);
        for r in 0..R {
            let q = fill_lanes(&q[r][chunks * LANES..]);
            mul_add_tail(&w, &q, count, &mut acc[r]);
        }
    }
    acc
}

/// `sum w[j] v[j]` for dimensions `d .. d + 16` of `R` queries.
#[inline(always)]
fn weighted<E: Element, const R: usize>(
    values: &[u8],
    dim: usize,
    d: usize,
    weights: &[&[f32]; R],
    parts: &mut [f32],
) {
    let mut acc = [[0.0; LANES]; R];
    for (j, value) in values.chunks_exact(dim * E::SIZE).enumerate() {
        let v = widen_lanes::<E>(&value[d * E::SIZE..]);
        for r in 0..R {
            mul_add_lanes(&[weights[r][j]; LANES], &v, &mut acc[r]);
        }
    }
    for r in 0..R {
        let at = r * (dim + PART_EXTRA) + d;
        parts[at..at + LANES].copy_from_slice(&acc[r]);
    }
}

/// The same for the last `dim - d < 16` dimensions.
#[inline(always)]
fn weighted_tail<E: Element, const R: usize>(
    values: &[u8],
    dim: usize,
    d: usize,
    weights: &[&[f32]; R],
    parts: &mut [f32],
) {
    let mut acc = [[0.0; LANES]; R];
    for (j, value) in values.chunks_exact(dim * E::SIZE).enumerate() {
        let v = widen_tail::<E>(&value[d * E::SIZE..]);
        for r in 0..R {
            mul_add_lanes(&[weights[r][j]; LANES], &v, &mut acc[r]);
        }
    }
    for r in 0..R {
        let at = r * (dim + PART_EXTRA);
        parts[at + d..at + dim].copy_from_slice(&acc[r][..dim - d]);
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
