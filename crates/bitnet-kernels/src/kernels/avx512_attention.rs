//! Steps of [`attention`] with AVX-512: four queries, registers named.
//!
//! Invariant: the bits of the bodies in [`attention`]. The 16 dots of four keys and four queries as they
//! lie in memory are added up by one tree: a step adds, for two registers, the lanes that
//! [`add_lanes`](crate::lanes::add_lanes) adds at its distance, 8, then 4, 2 and 1, and packs both
//! results into one register: 15 additions and 30 shuffles for what would take 64 of each. With the keys
//! by dimension a lane of 16 dots is a register, and the tree takes no shuffle.

use crate::attention::{self, AHEAD, AttentionOps, PANEL_KEYS, PART_EXTRA, RowSteps, TOGETHER};
use crate::lanes::{F16, F32, LANES};
use std::arch::asm;
use std::arch::x86_64::*;

/// Keys that go together, as they lie in memory.
const KEYS: usize = 4;
/// Registers of a value that go together.
const CHUNKS: usize = 4;
/// Half of the lanes of a dot.
const HALF: usize = LANES / 2;
/// Vectors of 16 keys in a panel.
const SIXTEENS: usize = PANEL_KEYS / LANES;

/// A loop of assembly. A turn loads four vectors of factors, `f0` to `f3`, and four times 16 numbers, each
/// once, as f32, and adds: `sums[i][r] = numbers[i] * f[r] + sums[i][r]`, rounded once. The last two
/// instructions step on, and leave the flags below while there is more. Assembly, because the compiler
/// converts f16 from registers only, an instruction more, and keeps moving sums to the stack and back.
macro_rules! add_products {
    (
        $sums:ident, $f0:expr, $f1:expr, $f2:expr, $f3:expr, $n0:expr, $n1:expr, $n2:expr, $n3:expr,
        $($next:expr),+; $($operands:tt)*
    ) => {
        asm!(
            "2:",
            $f0, $f1, $f2, $f3,
            $n0,
            "vfmadd231ps {s00}, {x}, {f0}",
            "vfmadd231ps {s01}, {x}, {f1}",
            "vfmadd231ps {s02}, {x}, {f2}",
            "vfmadd231ps {s03}, {x}, {f3}",
            $n1,
            "vfmadd231ps {s10}, {x}, {f0}",
            "vfmadd231ps {s11}, {x}, {f1}",
            "vfmadd231ps {s12}, {x}, {f2}",
            "vfmadd231ps {s13}, {x}, {f3}",
            $n2,
            "vfmadd231ps {s20}, {x}, {f0}",
            "vfmadd231ps {s21}, {x}, {f1}",
            "vfmadd231ps {s22}, {x}, {f2}",
            "vfmadd231ps {s23}, {x}, {f3}",
            $n3,
            "vfmadd231ps {s30}, {x}, {f0}",
            "vfmadd231ps {s31}, {x}, {f1}",
            "vfmadd231ps {s32}, {x}, {f2}",
            "vfmadd231ps {s33}, {x}, {f3}",
            $($next,)+
            "jb 2b",
            x = out(zmm_reg) _,
            f0 = out(zmm_reg) _,
            f1 = out(zmm_reg) _,
            f2 = out(zmm_reg) _,
            f3 = out(zmm_reg) _,
            s00 = inout(zmm_reg) $sums[0][0],
            s01 = inout(zmm_reg) $sums[0][1],
            s02 = inout(zmm_reg) $sums[0][2],
            s03 = inout(zmm_reg) $sums[0][3],
            s10 = inout(zmm_reg) $sums[1][0],
            s11 = inout(zmm_reg) $sums[1][1],
            s12 = inout(zmm_reg) $sums[1][2],
            s13 = inout(zmm_reg) $sums[1][3],
            s20 = inout(zmm_reg) $sums[2][0],
            s21 = inout(zmm_reg) $sums[2][1],
            s22 = inout(zmm_reg) $sums[2][2],
            s23 = inout(zmm_reg) $sums[2][3],
            s30 = inout(zmm_reg) $sums[3][0],
            s31 = inout(zmm_reg) $sums[3][1],
            s32 = inout(zmm_reg) $sums[3][2],
            s33 = inout(zmm_reg) $sums[3][3],
            $($operands)*,
            options(readonly, nostack)
        )
    };
}

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
fn few_f32(keys: &[u8], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    if dim.is_multiple_of(LANES) && q.len() == TOGETHER * dim {
        few::<4>(keys, dim, q, stride, scores);
    } else {
        attention::few::<F32>(keys, dim, q, stride, scores);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn few_f16(keys: &[u8], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    if dim.is_multiple_of(LANES) && q.len() == TOGETHER * dim {
        few::<2>(keys, dim, q, stride, scores);
    } else {
        attention::few::<F16>(keys, dim, q, stride, scores);
    }
}

/// Four queries; `dim` is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn few<const SIZE: usize>(keys: &[u8], dim: usize, q: &[f32], stride: usize, scores: &mut [f32]) {
    let row = dim * SIZE;
    let count = keys.len() / row;
    for key in (0..count).step_by(KEYS) {
        attention::fetch_ahead(&keys[key * row..keys.len().min((key + KEYS) * row)]);
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

/// The lanes of four keys times four queries, `(4, dim)`; keys outermost. Here and below bounds are
/// checked before the loop: inside, that would take as long as the products.
#[inline]
#[target_feature(enable = "avx512f")]
fn dots<const SIZE: usize>(
    keys: [&[u8]; KEYS],
    q: &[f32],
    dim: usize,
) -> [[__m512; TOGETHER]; KEYS] {
    let mut acc = [[_mm512_setzero_ps(); TOGETHER]; KEYS];
    assert!(q.len() >= TOGETHER * dim && dim.is_multiple_of(LANES) && dim > 0);
    assert!(keys.iter().all(|key| key.len() >= dim * SIZE));
    macro_rules! of_size {
        ($load:literal, $size:literal) => {
            add_products!(
                acc,
                "vmovups {f0}, zmmword ptr [{q0} + 4 * {at}]",
                "vmovups {f1}, zmmword ptr [{q1} + 4 * {at}]",
                "vmovups {f2}, zmmword ptr [{q2} + 4 * {at}]",
                "vmovups {f3}, zmmword ptr [{q3} + 4 * {at}]",
                concat!($load, " [{k0} + ", $size, " * {at}]"),
                concat!($load, " [{k1} + ", $size, " * {at}]"),
                concat!($load, " [{k2} + ", $size, " * {at}]"),
                concat!($load, " [{k3} + ", $size, " * {at}]"),
                "add {at}, 16",
                "cmp {at}, {dim}";
                k0 = in(reg) keys[0].as_ptr(),
                k1 = in(reg) keys[1].as_ptr(),
                k2 = in(reg) keys[2].as_ptr(),
                k3 = in(reg) keys[3].as_ptr(),
                q0 = in(reg) q.as_ptr(),
                q1 = in(reg) q[dim..].as_ptr(),
                q2 = in(reg) q[2 * dim..].as_ptr(),
                q3 = in(reg) q[3 * dim..].as_ptr(),
                at = inout(reg) 0usize => _,
                dim = in(reg) dim
            )
        };
    }
    // SAFETY: at + 16 <= dim in every turn, so the loads stay inside the four rows of q and inside each
    // key, by the assertions above; loads are unaligned.
    unsafe {
        match SIZE {
            4 => of_size!("vmovups {x}, zmmword ptr", 4),
            _ => of_size!("vcvtph2ps {x}, ymmword ptr", 2),
        }
    }
    acc
}

/// [`add_lanes`](crate::lanes::add_lanes) of all 16; queries outermost.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_up(acc: [[__m512; TOGETHER]; KEYS]) -> [[f32; KEYS]; TOGETHER] {
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
    let mut u = [_mm512_setzero_ps(); KEYS];
    for (u, [q0, q1, q2, q3]) in u.iter_mut().zip(acc) {
        *u = by_4(by_8(q0, q1), by_8(q2, q3));
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
fn weigh_f32(values: &[u8], dim: usize, weights: &[f32], stride: usize, parts: &mut [f32]) {
    if dim.is_multiple_of(CHUNKS * LANES) && parts.len() == TOGETHER * (dim + PART_EXTRA) {
        weigh::<4>(values, dim, weights, stride, parts);
    } else {
        attention::weigh::<F32>(values, dim, weights, stride, parts);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn weigh_f16(values: &[u8], dim: usize, weights: &[f32], stride: usize, parts: &mut [f32]) {
    if dim.is_multiple_of(CHUNKS * LANES) && parts.len() == TOGETHER * (dim + PART_EXTRA) {
        weigh::<2>(values, dim, weights, stride, parts);
    } else {
        attention::weigh::<F16>(values, dim, weights, stride, parts);
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
    parts: &mut [f32],
) {
    let (row, part) = (dim * SIZE, dim + PART_EXTRA);
    let count = values.len() / row;
    assert!(weights.len() >= (TOGETHER - 1) * stride + count && dim.is_multiple_of(CHUNKS * LANES));
    if count == 0 {
        return;
    }
    for d in (0..dim).step_by(CHUNKS * LANES) {
        let mut acc = [[_mm512_setzero_ps(); TOGETHER]; CHUNKS];
        for r in 0..TOGETHER {
            for c in 0..CHUNKS {
                acc[c][r] = load_f32(&parts[r * part + d + c * LANES..]);
            }
        }
        macro_rules! of_size {
            ($load:literal, $size:literal $(, $line:literal)+) => {
                add_products!(
                    acc,
                    "vbroadcastss {f0}, dword ptr [{w0} + 4 * {j}]",
                    "vbroadcastss {f1}, dword ptr [{w1} + 4 * {j}]",
                    "vbroadcastss {f2}, dword ptr [{w2} + 4 * {j}]",
                    "vbroadcastss {f3}, dword ptr [{w3} + 4 * {j}]",
                    concat!($load, " [{value}]"),
                    concat!($load, " [{value} + 16 * ", $size, "]"),
                    concat!($load, " [{value} + 32 * ", $size, "]"),
                    concat!($load, " [{value} + 48 * ", $size, "]"),
                    $(concat!("prefetcht0 [{value} + {ahead} + ", $line, "]"),)+
                    "add {value}, {row}",
                    "inc {j}",
                    "cmp {j}, {count}";
                    w0 = in(reg) weights.as_ptr(),
                    w1 = in(reg) weights[stride..].as_ptr(),
                    w2 = in(reg) weights[2 * stride..].as_ptr(),
                    w3 = in(reg) weights[3 * stride..].as_ptr(),
                    value = inout(reg) values[d * SIZE..].as_ptr() => _,
                    row = in(reg) row,
                    ahead = const AHEAD,
                    j = inout(reg) 0usize => _,
                    count = in(reg) count
                )
            };
        }
        // SAFETY: j < count in every turn and d + 64 <= dim, so the loads stay inside row j of values and
        // inside the four rows of weights, by the assertions above; loads are unaligned, and
        // a prefetch reads nothing.
        unsafe {
            match SIZE {
                4 => of_size!("vmovups {x}, zmmword ptr", 4, 0, 64, 128, 192),
                _ => of_size!("vcvtph2ps {x}, ymmword ptr", 2, 0, 64),
            }
        }
        for r in 0..TOGETHER {
            for c in 0..CHUNKS {
                store_f32(&mut parts[r * part + d + c * LANES..], acc[c][r]);
            }
        }
    }
}
