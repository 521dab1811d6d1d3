//! NEON with dot products on the 2-bit [`tile`].
//!
//! Invariant: `sdot` takes codes as signed bytes (0..=2, or shifted by one or two whole fields, up to 32)
//! and activations, and adds in 32 bits: nothing overflows, -128 included.
//!
//! One token reads the packed bytes once: `v & (3 << 2f)` goes into the accumulator of field `f` as it is,
//! but the highest field, which would not fit a signed byte, is shifted down and shares the accumulator of
//! the lowest; the others are shifted once at the end. 24 accumulators, the masks and one register with
//! the 16 activations of a block fit the 32 registers. Many tokens unpack as [`neon`] does and multiply
//! panels of 12 tokens, 8 rows at a time: again 24 accumulators, two weights and three registers of
//! activations.

use super::neon::{self, Columns, FEW, PlaneDots, Planes};
use super::neon_lines::{QUARTERS, RowSums, add_sums, load};
use super::tile::{self, BLOCK, ROWS};
use super::{neon_float, neon_screen};
use crate::activations::{Activations, Panel};
use crate::contract::{FixedTiles, Sink, TernaryOps, Tile};
use crate::fixed_point::{FixedToken, PLANES};
use crate::float_table::FloatOps;
use crate::kernel::{Kernel, lacking};
use crate::lines::Line;
use crate::peak::Peak;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "neon_dotprod",
    requires: "NEON, DotProd",
    is_available: || {
        is_aarch64_feature_detected!("neon") && is_aarch64_feature_detected!("dotprod")
    },
    missing: || lacking!(aarch64: "neon" = "NEON", "dotprod" = "DotProd"),
    ternary: TernaryOps {
        panel: Panel::of(PANEL),
        dots,
        fixed,
        ..neon::TERNARY
    },
    grouped: None,
    tabled: None,
    float: FloatOps {
        screen_dots: neon_screen::screen_dots,
        ..neon_float::FLOAT
    },
    peak: Some(Peak {
        instruction: "sdot v.4s",
        step_macs: 16 * 16,
        steps: 2_000_000,
        run: run_peak,
    }),
};

/// Tokens of a panel: 12 x 8 rows are 24 accumulators.
const PANEL: usize = 12;

/// `acc[r] += sum over j of u[4 r + j] * a[4 Q + j]`: four rows times quad `Q` of four.
///
/// `vdotq_laneq_s32` is unstable in Rust 1.95 (rust-lang/rust#117224); it replaces this when it is not.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dot_quad<const Q: usize>(mut acc: int32x4_t, u: uint8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: DotProd is enabled here; the instruction reads and writes nothing but these registers.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {u:v}.16b, {a:v}.4b[{q}]",
            acc = inout(vreg) acc,
            u = in(vreg) u,
            a = in(vreg) a,
            q = const Q,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// The multiply instruction alone, on 16 accumulators.
#[target_feature(enable = "neon,dotprod")]
fn run_peak(steps: usize) {
    let (u, a) = (vdupq_n_u8(1), vdupq_n_s8(2));
    let mut acc = [vdupq_n_s32(0); 16];
    for _ in 0..steps {
        for acc in &mut acc {
            *acc = dot_quad::<0>(*acc, u, a);
        }
    }
    black_box(acc);
}

/// The activations of four quads.
#[inline]
#[target_feature(enable = "neon")]
fn load_quads(quads: &[[i8; 4]; 4]) -> int8x16_t {
    // SAFETY: the reference covers 16 bytes.
    unsafe { vld1q_s8(quads.as_flattened().as_ptr()) }
}

/// The same quad of four tokens.
#[inline]
#[target_feature(enable = "neon")]
fn load_tokens(quads: &[i32; 4]) -> int8x16_t {
    // SAFETY: the reference covers 16 bytes.
    vreinterpretq_s8_s32(unsafe { vld1q_s32(quads.as_ptr()) })
}

#[target_feature(enable = "neon,dotprod")]
fn dots(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    if tokens.len() <= FEW {
        tile::start_at_minus_sums(tile, x, tokens.clone(), dots);
        for (token, dots) in tokens
            .clone()
            .zip(dots.chunks_exact_mut(tile.groups() * ROWS))
        {
            for (lines, quads, dots) in neon::groups(tile, x.padded(token), dots) {
                group_dots(lines, quads, dots);
            }
        }
        sink.done(tokens, dots);
    } else {
        many_tokens(tile, x, tokens, scratch, dots, sink);
    }
}

#[target_feature(enable = "neon,dotprod")]
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    neon::fixed_by_planes(tile, x, sums, |lines, planes, dots| {
        for pair in 0..ROWS / 8 {
            plane_dots(lines, planes, pair, dots);
        }
    });
}

/// `dots[plane][row] += sum of u * a` over a segment for the rows `8 pair ..`: the planes share the codes. 18
/// accumulators, three activations, three masks and the codes of four rows fit the registers.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn plane_dots(lines: &[Line], planes: Planes<'_>, pair: usize, dots: &mut PlaneDots) {
    let masks = [vdupq_n_u8(3), vdupq_n_u8(3 << 2), vdupq_n_u8(3 << 4)];
    let (line, quarter) = (pair / 2, pair % 2 * 2);
    let mut acc = [[[vdupq_n_s32(0); 3]; PLANES]; 2];
    let [low, middle, high] = planes.map(|quads| quads.as_chunks::<4>().0);
    let quads = low.iter().zip(middle).zip(high);
    let blocks = lines.as_chunks::<BLOCK>().0;
    for (block, ((low, middle), high)) in blocks.iter().zip(quads) {
        let a = [load_quads(low), load_quads(middle), load_quads(high)];
        for i in 0..2 {
            let v = load(&block[line], quarter + i);
            let u = [
                vandq_u8(v, masks[0]),
                vandq_u8(v, masks[1]),
                vandq_u8(v, masks[2]),
            ];
            for p in 0..PLANES {
                let acc = &mut acc[i][p];
                acc[0] = dot_quad::<0>(acc[0], u[0], a[p]);
                acc[1] = dot_quad::<1>(acc[1], u[1], a[p]);
                acc[2] = dot_quad::<2>(acc[2], u[2], a[p]);
                acc[0] = dot_quad::<3>(acc[0], vshrq_n_u8::<6>(v), a[p]);
            }
        }
    }
    for p in 0..PLANES {
        for i in 0..2 {
            add_fields(&mut dots[p][2 * pair + i], acc[i][p]);
        }
    }
}

/// Adds the sums of fields; field f was 4^f too large, exactly, but for the last.
#[inline]
#[target_feature(enable = "neon")]
fn add_fields(dots: &mut RowSums, acc: [int32x4_t; 3]) {
    let sum = vsraq_n_s32::<2>(acc[0], acc[1]);
    add_sums(dots, vsraq_n_s32::<4>(sum, acc[2]));
}

/// `dots[row] += sum of u * a` over the columns of one group.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn group_dots(lines: &[Line], quads: &[[i8; 4]], dots: &mut [RowSums; ROWS / 4]) {
    let (low, second, third) = (vdupq_n_u8(3), vdupq_n_u8(3 << 2), vdupq_n_u8(3 << 4));
    let mut acc = [[vdupq_n_s32(0); 3]; ROWS / 4];
    for (block, quads) in lines
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(quads.as_chunks::<4>().0)
    {
        let a = load_quads(quads);
        for i in 0..ROWS / 4 {
            let v = load(&block[i / QUARTERS], i % QUARTERS);
            acc[i][0] = dot_quad::<0>(acc[i][0], vandq_u8(v, low), a);
            acc[i][1] = dot_quad::<1>(acc[i][1], vandq_u8(v, second), a);
            acc[i][2] = dot_quad::<2>(acc[i][2], vandq_u8(v, third), a);
            acc[i][0] = dot_quad::<3>(acc[i][0], vshrq_n_u8::<6>(v), a);
        }
    }
    for (acc, dots) in acc.into_iter().zip(dots) {
        add_fields(dots, acc);
    }
}

/// `dots: (tokens, groups, 32)`; `tokens` starts at a panel.
#[target_feature(enable = "neon,dotprod")]
fn many_tokens(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    neon::many_tokens(tile, x, tokens, scratch, dots, sink, |columns, dots| {
        for rows in 0..ROWS / 8 {
            let dots = &mut dots[2 * rows..];
            match columns.live {
                ..=4 => eight_rows::<1>(columns, rows, dots),
                5..=8 => eight_rows::<2>(columns, rows, dots),
                _ => eight_rows::<3>(columns, rows, dots),
            }
        }
    });
}

/// `dots[stride * token][row] += sum of u * a` for rows `8 rows ..` and the first `4 F` tokens.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn eight_rows<const F: usize>(columns: &Columns<'_, PANEL>, rows: usize, dots: &mut [RowSums]) {
    let mut acc = [[[vdupq_n_s32(0); 2]; 4]; F];
    let (line, quarter) = (rows / 2, rows % 2 * 2);
    for (u, quads) in columns.weights.as_chunks::<2>().0.iter().zip(columns.quads) {
        let u = [load(&u[line], quarter), load(&u[line], quarter + 1)];
        let quads = quads.as_chunks::<4>().0;
        for f in 0..F {
            let a = load_tokens(&quads[f]);
            for i in 0..2 {
                acc[f][0][i] = dot_quad::<0>(acc[f][0][i], u[i], a);
                acc[f][1][i] = dot_quad::<1>(acc[f][1][i], u[i], a);
                acc[f][2][i] = dot_quad::<2>(acc[f][2][i], u[i], a);
                acc[f][3][i] = dot_quad::<3>(acc[f][3][i], u[i], a);
            }
        }
    }
    // loops of constant length, so that the accumulators never leave their registers
    for f in 0..F {
        for t in 0..4 {
            if 4 * f + t < columns.live {
                for i in 0..2 {
                    add_sums(&mut dots[(4 * f + t) * columns.stride + i], acc[f][t][i]);
                }
            }
        }
    }
}
