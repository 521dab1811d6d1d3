//! Steps of [`attention`] with AVX-512: four queries, registers named.
//!
//! Invariant: the bits of the bodies in [`attention`]. The 16 dots of four keys and four queries as they
//! lie in memory are added up by one tree: a step adds, for two registers, the lanes that
//! [`add_lanes`](crate::float_ops::add_lanes) adds at its distance, 8, then 4, 2 and 1, and packs both
//! results into one register: 15 additions and 30 shuffles for what would take 64 of each. With the keys
//! by dimension a lane of 16 dots is a register, and the tree takes no shuffle.

use crate::attention::{self, AHEAD, AttentionOps, PANEL_KEYS, PART_EXTRA, RowSteps, TOGETHER};
use crate::dense::{F16, F32};
use crate::float_ops::LANES;
use std::arch::x86_64::*;

/// Keys that go together, as they lie in memory.
const KEYS: usize = 4;
/// Registers of a value that go together.
const CHUNKS: usize = 4;
/// Half of the lanes of a dot.
const HALF: usize = LANES / 2;
/// Vectors of 16 keys in a panel.
const SIXTEENS: usize = PANEL_KEYS / LANES;

const GENERIC: AttentionOps =
    attention::instantiate!(#[target_feature(enable = "avx512f,avx512bw")]);

/// Every AVX-512 kernel's.
pub(super) const ATTENTION: AttentionOps = AttentionOps {
    f32: RowSteps {
        few: few_f32,
        panels: panels_f32,
        weigh: weigh_f32,
        ..GENERIC.f32
    },
    f16: RowSteps {
        few: few_f16,
        panels: panels_f16,
        weigh: weigh_f16,
        ..GENERIC.f16
    },
    many,
    ..GENERIC
};

/// 16 numbers of `SIZE` bytes, f32 or f16, as f32: exact.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<const SIZE: usize>(bytes: *const u8) -> __m512 {
    const { assert!(SIZE == 4 || SIZE == 2) };
    // SAFETY: the caller's promise; the loads are unaligned.
    unsafe {
        match SIZE {
            4 => _mm512_loadu_ps(bytes.cast()),
            _ => _mm512_cvtph_ps(_mm256_loadu_si256(bytes.cast())),
        }
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

#[target_feature(enable = "avx512f,avx512bw")]
fn few_f32(keys: &[u8], dim: usize, q: &[f32], ahead: &[u8], stride: usize, scores: &mut [f32]) {
    if dim.is_multiple_of(LANES) && q.len() == TOGETHER * dim {
        few::<4>(keys, dim, q, ahead, stride, scores);
    } else {
        attention::few::<F32>(keys, dim, q, ahead, stride, scores);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn few_f16(keys: &[u8], dim: usize, q: &[f32], ahead: &[u8], stride: usize, scores: &mut [f32]) {
    if dim.is_multiple_of(LANES) && q.len() == TOGETHER * dim {
        few::<2>(keys, dim, q, ahead, stride, scores);
    } else {
        attention::few::<F16>(keys, dim, q, ahead, stride, scores);
    }
}

/// Four queries; `dim` is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn few<const SIZE: usize>(
    keys: &[u8],
    dim: usize,
    q: &[f32],
    ahead: &[u8],
    stride: usize,
    scores: &mut [f32],
) {
    let row = dim * SIZE;
    let count = keys.len() / row;
    for key in (0..count).step_by(KEYS) {
        attention::fetch_ahead(keys, key * row, KEYS * row, ahead);
        let mut four = [&keys[..0]; KEYS];
        for (k, four) in four.iter_mut().enumerate() {
            // the last key again, where there are fewer than four
            *four = &keys[(key + k).min(count - 1) * row..][..row];
        }
        let sums = add_up(dots::<SIZE>(four, q, dim));
        let live = KEYS.min(count - key);
        for (r, sums) in sums.iter().enumerate() {
            let to = &mut scores[r * stride + key..];
            match to.first_chunk_mut() {
                Some(to) if live == KEYS => *to = *sums,
                _ => to[..live].copy_from_slice(&sums[..live]),
            }
        }
    }
}

/// The lanes of four queries, `(4, dim)`, times four keys; queries outermost. Here and below bounds are
/// checked before the loop: inside, that would take as long as the products.
#[inline]
#[target_feature(enable = "avx512f")]
fn dots<const SIZE: usize>(
    keys: [&[u8]; KEYS],
    q: &[f32],
    dim: usize,
) -> [[__m512; KEYS]; TOGETHER] {
    let mut acc = [[_mm512_setzero_ps(); KEYS]; TOGETHER];
    assert!(q.len() >= TOGETHER * dim && dim.is_multiple_of(LANES));
    assert!(keys.iter().all(|key| key.len() >= dim * SIZE));
    for at in (0..dim).step_by(LANES) {
        // SAFETY: at + 16 <= dim, so the loads stay inside the four rows of q and inside each key, by
        // the assertions above.
        unsafe {
            let mut queries = [_mm512_setzero_ps(); TOGETHER];
            for r in 0..TOGETHER {
                queries[r] = _mm512_loadu_ps(q.as_ptr().add(r * dim + at));
            }
            for k in 0..KEYS {
                let key = load::<SIZE>(keys[k].as_ptr().add(at * SIZE));
                for r in 0..TOGETHER {
                    acc[r][k] = _mm512_fmadd_ps(key, queries[r], acc[r][k]);
                }
            }
        }
    }
    acc
}

/// [`add_lanes`](crate::float_ops::add_lanes) of all 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_up(acc: [[__m512; KEYS]; TOGETHER]) -> [[f32; KEYS]; TOGETHER] {
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
    let mut out = [[0.0; KEYS]; TOGETHER];
    store_f32(out.as_flattened_mut(), sums);
    out
}

#[target_feature(enable = "avx512f,avx512bw")]
fn panels_f32(keys: &[u8], dim: usize, panels: &mut [f32]) {
    if dim.is_multiple_of(LANES) {
        self::panels::<4>(keys, dim, panels);
    } else {
        attention::panels::<F32>(keys, dim, panels);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn panels_f16(keys: &[u8], dim: usize, panels: &mut [f32]) {
    if dim.is_multiple_of(LANES) {
        self::panels::<2>(keys, dim, panels);
    } else {
        attention::panels::<F16>(keys, dim, panels);
    }
}

/// `dim` is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f")]
fn panels<const SIZE: usize>(keys: &[u8], dim: usize, panels: &mut [f32]) {
    let row = dim * SIZE;
    let count = keys.len() / row;
    for (first, to) in (0..)
        .step_by(LANES)
        .zip(panels.chunks_exact_mut(LANES * dim))
    {
        for (at, to) in (0..dim)
            .step_by(LANES)
            .zip(to.chunks_exact_mut(LANES * LANES))
        {
            let mut rows = [_mm512_setzero_ps(); LANES];
            for (k, to) in rows.iter_mut().enumerate() {
                if first + k < count {
                    let sixteen = &keys[(first + k) * row + at * SIZE..][..LANES * SIZE];
                    // SAFETY: the slice covers what is read.
                    *to = unsafe { load::<SIZE>(sixteen.as_ptr()) };
                }
            }
            for (to, column) in to.chunks_exact_mut(LANES).zip(transpose(rows)) {
                store_f32(to, column);
            }
        }
    }
}

/// Rows to columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512; LANES]) -> [__m512; LANES] {
    let pd = |v: __m512| _mm512_castps_pd(v);
    // of four rows the 4 x 4 squares, in place: after this register 4 g + c holds, in 128-bit lane l,
    // column 4 l + c of rows 4 g ..= 4 g + 3
    let mut squares = rows;
    for g in 0..4 {
        let (a, b, c, d) = (
            rows[4 * g],
            rows[4 * g + 1],
            rows[4 * g + 2],
            rows[4 * g + 3],
        );
        let (ab_low, ab_high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        squares[4 * g] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab_low), pd(cd_low)));
        squares[4 * g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab_low), pd(cd_low)));
        squares[4 * g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pd(ab_high), pd(cd_high)));
        squares[4 * g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pd(ab_high), pd(cd_high)));
    }
    // the same with whole 128-bit lanes: registers c, 4 + c, 8 + c, 12 + c
    let mut columns = rows;
    for c in 0..4 {
        let (a, b, e, f) = (squares[c], squares[4 + c], squares[8 + c], squares[12 + c]);
        let (ab_low, ab_high) = (
            _mm512_shuffle_f32x4::<0x44>(a, b),
            _mm512_shuffle_f32x4::<0xee>(a, b),
        );
        let (ef_low, ef_high) = (
            _mm512_shuffle_f32x4::<0x44>(e, f),
            _mm512_shuffle_f32x4::<0xee>(e, f),
        );
        columns[c] = _mm512_shuffle_f32x4::<0x88>(ab_low, ef_low);
        columns[4 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_low, ef_low);
        columns[8 + c] = _mm512_shuffle_f32x4::<0x88>(ab_high, ef_high);
        columns[12 + c] = _mm512_shuffle_f32x4::<0xdd>(ab_high, ef_high);
    }
    columns
}

/// Four queries at a time; `dim` is a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw")]
fn many(panel: &[f32], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    if !dim.is_multiple_of(LANES) {
        return attention::many(panel, dim, q, stride, scores);
    }
    let mut fours = q.chunks_exact(TOGETHER * dim);
    let mut lanes = [[[_mm512_setzero_ps(); SIXTEENS]; TOGETHER]; HALF];
    let mut at = 0;
    for q in &mut fours {
        let scores = &mut scores[at * stride..];
        four_and_panel(panel, dim, q, &mut lanes, stride, scores);
        at += TOGETHER;
    }
    if !fours.remainder().is_empty() {
        let scores = &mut scores[at * stride..];
        attention::many(panel, dim, fours.remainder(), stride, scores);
    }
}

/// Lanes `j` of 128 dots, those of lane `j + 8` added.
type HalfLanes = [[[__m512; SIXTEENS]; TOGETHER]; HALF];

/// Four queries, `(4, dim)`, and 32 keys. The lanes `j` and `j + 8` of the 128 dots at a time: 16
/// accumulators, two vectors of keys and one broadcast number. `lanes` is scratch.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_and_panel(
    panel: &[f32],
    dim: usize,
    q: &[f32],
    lanes: &mut HalfLanes,
    stride: usize,
    scores: &mut [f32],
) {
    assert!(panel.len() >= PANEL_KEYS * dim && q.len() >= TOGETHER * dim);
    assert!(dim.is_multiple_of(LANES));
    for j in 0..HALF {
        let mut acc = [[[_mm512_setzero_ps(); SIXTEENS]; TOGETHER]; 2];
        for at in (j..dim).step_by(LANES) {
            for half in 0..2 {
                let d = at + half * HALF;
                // SAFETY: d < dim, because at and j are below 8 modulo 16 and dim is a multiple of 16; so
                // the loads stay inside the four rows of q and the two halves of the panel, by the
                // assertions above.
                unsafe {
                    let mut keys = [_mm512_setzero_ps(); SIXTEENS];
                    for k in 0..SIXTEENS {
                        keys[k] = _mm512_loadu_ps(panel.as_ptr().add((k * dim + d) * LANES));
                    }
                    for r in 0..TOGETHER {
                        let q = _mm512_set1_ps(*q.as_ptr().add(r * dim + d));
                        for k in 0..SIXTEENS {
                            acc[half][r][k] = _mm512_fmadd_ps(keys[k], q, acc[half][r][k]);
                        }
                    }
                }
            }
        }
        for r in 0..TOGETHER {
            for k in 0..SIXTEENS {
                lanes[j][r][k] = _mm512_add_ps(acc[0][r][k], acc[1][r][k]);
            }
        }
    }
    for r in 0..TOGETHER {
        let to = &mut scores[r * stride..][..PANEL_KEYS];
        for k in 0..SIXTEENS {
            let mut sums = [_mm512_setzero_ps(); HALF];
            for j in 0..HALF {
                sums[j] = lanes[j][r][k];
            }
            for distance in [4, 2, 1] {
                for j in 0..distance {
                    sums[j] = _mm512_add_ps(sums[j], sums[j + distance]);
                }
            }
            store_f32(&mut to[k * LANES..], sums[0]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn weigh_f32(
    values: &[u8],
    dim: usize,
    weights: &[f32],
    stride: usize,
    fetch: bool,
    parts: &mut [f32],
) {
    if dim.is_multiple_of(CHUNKS * LANES) && parts.len() == TOGETHER * (dim + PART_EXTRA) {
        weigh::<4>(values, dim, weights, stride, fetch, parts);
    } else {
        attention::weigh::<F32>(values, dim, weights, stride, fetch, parts);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn weigh_f16(
    values: &[u8],
    dim: usize,
    weights: &[f32],
    stride: usize,
    fetch: bool,
    parts: &mut [f32],
) {
    if dim.is_multiple_of(CHUNKS * LANES) && parts.len() == TOGETHER * (dim + PART_EXTRA) {
        weigh::<2>(values, dim, weights, stride, fetch, parts);
    } else {
        attention::weigh::<F16>(values, dim, weights, stride, fetch, parts);
    }
}

/// Four queries, 64 dimensions at a time.
#[inline]
#[target_feature(enable = "avx512f")]
fn weigh<const SIZE: usize>(
    values: &[u8],
    dim: usize,
    weights: &[f32],
    stride: usize,
    fetch: bool,
    parts: &mut [f32],
) {
    let (row, part) = (dim * SIZE, dim + PART_EXTRA);
    let count = values.len() / row;
    assert!(weights.len() >= (TOGETHER - 1) * stride + count && dim.is_multiple_of(CHUNKS * LANES));
    for d in (0..dim).step_by(CHUNKS * LANES) {
        let mut acc = [[_mm512_setzero_ps(); CHUNKS]; TOGETHER];
        for r in 0..TOGETHER {
            for c in 0..CHUNKS {
                acc[r][c] = load_f32(&parts[r * part + d + c * LANES..]);
            }
        }
        for j in 0..count {
            if fetch && d == 0 {
                attention::prefetch(values, j * row + AHEAD, row);
            }
            // SAFETY: j < count and d + 64 <= dim, so the loads stay inside row j of values and inside
            // the four rows of weights, by the assertion above.
            unsafe {
                let mut w = [_mm512_setzero_ps(); TOGETHER];
                for r in 0..TOGETHER {
                    w[r] = _mm512_set1_ps(*weights.as_ptr().add(r * stride + j));
                }
                let value = values.as_ptr().add(j * row + d * SIZE);
                for c in 0..CHUNKS {
                    let v = load::<SIZE>(value.add(c * LANES * SIZE));
                    for r in 0..TOGETHER {
                        acc[r][c] = _mm512_fmadd_ps(w[r], v, acc[r][c]);
                    }
                }
            }
        }
        for r in 0..TOGETHER {
            for c in 0..CHUNKS {
                store_f32(&mut parts[r * part + d + c * LANES..], acc[r][c]);
            }
        }
    }
}
