//! [`attention::attend`] with AVX-512: four queries, a canonical reduction in one register.
//!
//! Invariant: the bits of [`attention::attend`]. The 16 dots of four keys and four queries are added up by
//! one tree: a step adds, for two registers, the lanes that [`add_lanes`](crate::float_ops::add_lanes)
//! adds at its distance, 8, then 4, 2 and 1, and packs both results into one register: 15 additions and
//! 30 shuffles for what would take 64 of each.

use crate::attention::{self, PART_EXTRA};
use crate::dense::{F16, F32};
use crate::float_ops::LANES;
use std::arch::x86_64::*;

/// Queries that go together.
const QUERIES: usize = 4;
/// Keys that go together.
const KEYS: usize = 4;
/// Registers of a value that go together.
const CHUNKS: usize = 4;

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn attend_f32(
    keys: &[u8],
    values: &[u8],
    dim: usize,
    factor: f32,
    q: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    if fits(dim, q) {
        attend::<4>(keys, values, dim, factor, q, scores, parts);
    } else {
        attention::attend::<F32>(keys, values, dim, factor, q, scores, parts);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn attend_f16(
    keys: &[u8],
    values: &[u8],
    dim: usize,
    factor: f32,
    q: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    if fits(dim, q) {
        attend::<2>(keys, values, dim, factor, q, scores, parts);
    } else {
        attention::attend::<F16>(keys, values, dim, factor, q, scores, parts);
    }
}

fn fits(dim: usize, q: &[f32]) -> bool {
    dim > 0 && dim.is_multiple_of(CHUNKS * LANES) && q.len().is_multiple_of(QUERIES * dim)
}

/// 16 numbers of `SIZE` bytes, f32 or f16, as f32: exact.
#[inline]
#[target_feature(enable = "avx512f")]
fn load<const SIZE: usize>(bytes: &[u8]) -> __m512 {
    let bytes = &bytes[..LANES * SIZE];
    if SIZE == 4 {
        // SAFETY: the slice covers 64 bytes; the load is unaligned.
        unsafe { _mm512_loadu_ps(bytes.as_ptr().cast()) }
    } else {
        assert!(SIZE == 2);
        // SAFETY: the slice covers 32 bytes; the load is unaligned.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f32(x: &[f32]) -> __m512 {
    let x = &x[..LANES];
    // SAFETY: the slice covers 64 bytes; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_f32(x: &mut [f32], v: __m512) {
    let x = &mut x[..LANES];
    // SAFETY: the slice covers 64 bytes; the store is unaligned.
    unsafe { _mm512_storeu_ps(x.as_mut_ptr(), v) }
}

/// `dim` is a multiple of 64, queries of 4.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn attend<const SIZE: usize>(
    keys: &[u8],
    values: &[u8],
    dim: usize,
    factor: f32,
    q: &[f32],
    scores: &mut [f32],
    parts: &mut [f32],
) {
    let row = dim * SIZE;
    let count = keys.len() / row;
    assert_eq!((keys.len(), values.len()), (count * row, count * row));
    assert_eq!(scores.len(), q.len() / dim * count);
    assert_eq!(parts.len(), q.len() / dim * (dim + PART_EXTRA));
    for ((q, scores), parts) in q
        .chunks_exact(QUERIES * dim)
        .zip(scores.chunks_exact_mut(QUERIES * count))
        .zip(parts.chunks_exact_mut(QUERIES * (dim + PART_EXTRA)))
    {
        let mut fours = keys.chunks_exact(KEYS * row);
        let mut key = 0;
        for keys in &mut fours {
            let sums = add_up(dots::<SIZE>(keys, row, q, dim));
            for (r, sums) in sums.iter().enumerate() {
                scores[r * count + key..r * count + key + KEYS].copy_from_slice(sums);
            }
            key += KEYS;
        }
        let rest = fours.remainder();
        if !rest.is_empty() {
            // the last row again, where there are fewer than four
            let mut padded = [0; KEYS];
            for (k, at) in padded.iter_mut().enumerate() {
                *at = (k * row).min(rest.len() - row);
            }
            let sums = add_up(dots_at::<SIZE>(
                padded.map(|at| &rest[at..at + row]),
                q,
                dim,
            ));
            let left = rest.len() / row;
            for (r, sums) in sums.iter().enumerate() {
                scores[r * count + key..][..left].copy_from_slice(&sums[..left]);
            }
        }
        let part = dim + PART_EXTRA;
        for (scores, part) in scores
            .chunks_exact_mut(count.max(1))
            .zip(parts.chunks_exact_mut(part))
        {
            (part[dim], part[dim + 1]) = attention::weights(factor, scores);
        }
        for d in (0..dim).step_by(CHUNKS * LANES) {
            let acc = weighted::<SIZE>(values, row, d, scores, count);
            for (r, acc) in acc.into_iter().enumerate() {
                for (c, acc) in acc.into_iter().enumerate() {
                    store_f32(&mut parts[r * part + d + c * LANES..], acc);
                }
            }
        }
    }
}

/// The lanes of four queries, `(4, dim)`, times four keys, `(4, dim)`; queries outermost.
#[inline]
#[target_feature(enable = "avx512f")]
fn dots<const SIZE: usize>(
    keys: &[u8],
    row: usize,
    q: &[f32],
    dim: usize,
) -> [[__m512; KEYS]; QUERIES] {
    dots_at::<SIZE>([0, 1, 2, 3].map(|k| &keys[k * row..(k + 1) * row]), q, dim)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn dots_at<const SIZE: usize>(
    keys: [&[u8]; KEYS],
    q: &[f32],
    dim: usize,
) -> [[__m512; KEYS]; QUERIES] {
    let mut acc = [[_mm512_setzero_ps(); KEYS]; QUERIES];
    for at in (0..dim).step_by(LANES) {
        let q = [
            load_f32(&q[at..]),
            load_f32(&q[dim + at..]),
            load_f32(&q[2 * dim + at..]),
            load_f32(&q[3 * dim + at..]),
        ];
        for k in 0..KEYS {
            let w = load::<SIZE>(&keys[k][at * SIZE..]);
            for r in 0..QUERIES {
                acc[r][k] = _mm512_fmadd_ps(w, q[r], acc[r][k]);
            }
        }
    }
    acc
}

/// [`add_lanes`](crate::float_ops::add_lanes) of all 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_up(acc: [[__m512; KEYS]; QUERIES]) -> [[f32; KEYS]; QUERIES] {
    // i and i + 4: the low eight lanes are i's, the high ones (i + 4)'s
    let by_8 = |a: __m512, b: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0xee>(a, b),
        )
    };
    // i and i + 8: four lanes each of i, i + 4, i + 8, i + 12
    let by_4 = |a: __m512, b: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0xdd>(a, b),
        )
    };
    // i and i + 1: of every four lanes two each
    let by_2 = |a: __m512, b: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_ps::<0x44>(a, b),
            _mm512_shuffle_ps::<0xee>(a, b),
        )
    };
    // one lane each
    let by_1 = |a: __m512, b: __m512| {
        _mm512_add_ps(
            _mm512_shuffle_ps::<0x88>(a, b),
            _mm512_shuffle_ps::<0xdd>(a, b),
        )
    };
    let [q0, q1, q2, q3] = acc;
    let mut u = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        u[i] = by_4(by_8(q0[i], q1[i]), by_8(q2[i], q3[i]));
    }
    let sums = by_1(by_2(u[0], u[1]), by_2(u[2], u[3]));
    let mut out = [[0.0; KEYS]; QUERIES];
    store_f32(out.as_flattened_mut(), sums);
    out
}

/// `sum w[j] v[j]` for the 64 dimensions from `d` on of four queries; `weights` is `(4, count)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn weighted<const SIZE: usize>(
    values: &[u8],
    row: usize,
    d: usize,
    weights: &[f32],
    count: usize,
) -> [[__m512; CHUNKS]; QUERIES] {
    let mut acc = [[_mm512_setzero_ps(); CHUNKS]; QUERIES];
    let weights: [&[f32]; QUERIES] = [0, 1, 2, 3].map(|r| &weights[r * count..(r + 1) * count]);
    for (j, value) in values.chunks_exact(row).enumerate() {
        let value = &value[d * SIZE..(d + CHUNKS * LANES) * SIZE];
        let w = [0, 1, 2, 3].map(|r| _mm512_set1_ps(weights[r][j]));
        for c in 0..CHUNKS {
            let v = load::<SIZE>(&value[c * LANES * SIZE..]);
            for r in 0..QUERIES {
                acc[r][c] = _mm512_fmadd_ps(w[r], v, acc[r][c]);
            }
        }
    }
    acc
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(state: &mut u32) -> f32 {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*state >> 8) as f32 / (1 << 22) as f32 - 2.0
    }

    #[test]
    fn equals_the_definition() {
        if !is_x86_feature_detected!("avx512bw") {
            return;
        }
        let mut state = 3;
        for (dim, queries) in [(64, 4), (128, 4), (128, 8), (80, 4), (128, 3)] {
            for count in [1, 2, 3, 4, 5, 16, 31, 256] {
                let q: Vec<f32> = (0..queries * dim).map(|_| noise(&mut state)).collect();
                for size in [2, 4] {
                    let mut rows = || -> Vec<u8> {
                        let value = |_| match (size, noise(&mut state)) {
                            (4, v) => v.to_le_bytes().to_vec(),
                            (_, v) => bitnet_ternary::f32_to_f16(v).to_le_bytes().to_vec(),
                        };
                        (0..count * dim).flat_map(value).collect()
                    };
                    let (keys, values) = (rows(), rows());
                    let mut scores = vec![0.0; queries * count];
                    let mut want = vec![0.0; queries * (dim + PART_EXTRA)];
                    let mut got = want.clone();
                    let (fast, slow): (unsafe fn(_, _, _, _, _, _, _), fn(_, _, _, _, _, _, _)) =
                        match size {
                            4 => (attend_f32, attention::attend::<F32>),
                            _ => (attend_f16, attention::attend::<F16>),
                        };
                    slow(&keys, &values, dim, 0.3, &q, &mut scores, &mut want);
                    // SAFETY: the CPU was asked above.
                    unsafe { fast(&keys, &values, dim, 0.3, &q, &mut scores, &mut got) };
                    assert_eq!(
                        got, want,
                        "dim {dim}, {queries} queries, {count} keys of {size}"
                    );
                }
            }
        }
    }
}
