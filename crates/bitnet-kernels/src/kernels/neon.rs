//! NEON as every AArch64 has it, without dot products, on the 2-bit [`tile`].
//!
//! Invariant: `smlal` adds one product of a code (0..=2) and an activation to 16 bits, between -256 and
//! 254; at most 128 of those are added before they are widened to 32 bits, and `128 * -256` is exactly
//! the smallest `i16`: nothing wraps, -128 included.
//!
//! One token reads the packed bytes once, shifting each field down. Many tokens unpack [`tile::CHUNK`]
//! columns of a tile into L1 and multiply them with panels of 3 tokens: 16 rows x 3 tokens are 24
//! accumulators, four weights and three broadcasts fit the 32 registers.

use super::fixed_lookup::{self, BASE_THREE, Dots, Sums, Vector};
use super::neon_float;
use super::neon_lines::{QUARTERS, RowSums, add_sums, load, store};
use super::tile::{self, BLOCK, CHUNK, COLS, ROWS};
use super::tile_pack::{self, TwoBits};
use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, Done, FixedTiles, ManyFixed, Sink, TernaryOps, Tile};
use crate::fixed_point::{self, FixedPoint, FixedToken, GROUP, PLANES};
use crate::kernel::{Kernel, lacking};
use crate::lines::{LINE, Line};
use crate::peak::Peak;
use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};
use std::hint::black_box;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "neon",
    requires: "NEON",
    is_available: || is_aarch64_feature_detected!("neon"),
    missing: || lacking!(aarch64: "neon" = "NEON"),
    ternary: TERNARY,
    grouped: None,
    tabled: None,
    float: neon_float::FLOAT,
    peak: Some(Peak {
        instruction: "smlal v.8h",
        step_macs: 16 * 8,
        steps: 2_000_000,
        run: run_peak,
    }),
};

/// The 2-bit tile.
pub(super) const TERNARY: TernaryOps = TernaryOps {
    layout: tile_pack::TWO_BITS,
    tile_rows: ROWS,
    panel: Panel::of(PANEL),
    block_bytes: BLOCK_BYTES,
    scratch_lines: CHUNK / 4 * BLOCK,
    tile_lines: tile::lines::<4>,
    pack,
    unpack: tile_pack::unpack::<4, TwoBits>,
    are_codes: tile_pack::are_codes::<4, TwoBits>,
    dots,
    many_tokens: None,
    two_bits: None,
    by_tables: None,
    fixed,
    many_fixed: Some(ManyFixed {
        fewest: 4,
        sums: many_fixed,
    }),
};

/// Tokens of a panel: 3 x 16 rows are 24 accumulators of 16-bit sums.
const PANEL: usize = 3;

/// Products of one 16-bit accumulator before it is widened; see the module's invariant.
const PRODUCTS: usize = 128;

// a quad of columns is one product for every accumulator
const _: () = assert!(CHUNK / 4 <= PRODUCTS);

/// Up to so many tokens the packed bytes are read (from L1) once for each.
pub(super) const FEW: usize = 3;

#[target_feature(enable = "neon")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    tile_pack::pack::<4, TwoBits>(trits, cols, tiles, |rows| transpose(rows))
}

/// A [`tile_pack::Transpose`] in registers: four rows are a quarter of each line.
#[inline]
#[target_feature(enable = "neon")]
fn transpose(rows: [&[i8; 16]; 16]) -> [Line; 4] {
    let mut quads = [Line([0; LINE]); 4];
    for quarter in 0..QUARTERS {
        // SAFETY: the reference covers 16 bytes; the load is unaligned.
        let row = |row: usize| unsafe { vld1q_u32(rows[4 * quarter + row].as_ptr().cast()) };
        let (ab, cd) = (vtrnq_u32(row(0), row(1)), vtrnq_u32(row(2), row(3)));
        for odd in 0..2 {
            let (ab, cd) = match odd {
                0 => (ab.0, cd.0),
                _ => (ab.1, cd.1),
            };
            let (ab, cd) = (vreinterpretq_u64_u32(ab), vreinterpretq_u64_u32(cd));
            let low = vreinterpretq_u8_u64(vtrn1q_u64(ab, cd));
            let high = vreinterpretq_u8_u64(vtrn2q_u64(ab, cd));
            store(&mut quads[odd], quarter, low);
            store(&mut quads[2 + odd], quarter, high);
        }
    }
    quads
}

/// The multiply instruction alone, on 16 accumulators.
#[target_feature(enable = "neon")]
fn run_peak(steps: usize) {
    let (u, mut a) = (black_box(vdup_n_s8(1)), vdup_n_s8(2));
    let mut acc = [vdupq_n_s16(0); 16];
    for _ in 0..steps {
        a = black_box(a); // or the product would be hoisted
        for acc in &mut acc {
            *acc = vmlal_s8(*acc, u, a);
        }
    }
    black_box(acc);
}

/// The codes of the four fields.
#[inline]
#[target_feature(enable = "neon")]
fn fields(v: uint8x16_t) -> [uint8x16_t; 4] {
    let code = vdupq_n_u8(3);
    [
        vandq_u8(v, code),
        vandq_u8(vshrq_n_u8::<2>(v), code),
        vandq_u8(vshrq_n_u8::<4>(v), code),
        vshrq_n_u8::<6>(v),
    ]
}

/// The sums of four rows, two rows a register: the columns of a quad lie side by side.
type QuadSums = [int16x8_t; 2];

/// `sums += u * a`, byte by byte.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(sums: &mut QuadSums, u: uint8x16_t, a: int8x16_t) {
    let u = vreinterpretq_s8_u8(u);
    sums[0] = vmlal_s8(sums[0], vget_low_s8(u), vget_low_s8(a));
    sums[1] = vmlal_high_s8(sums[1], u, a);
}

/// Adds the columns of each row: four of 16 bits to one of 32.
#[inline]
#[target_feature(enable = "neon")]
fn widen(sums: QuadSums) -> int32x4_t {
    vpaddq_s32(vpaddlq_s16(sums[0]), vpaddlq_s16(sums[1]))
}

/// Four activations, once for each of four rows.
///
/// By hand, because a compiler that knows both halves to be equal replaces `smlal2` with `ext` and `smlal`:
/// a fifth more instructions.
#[inline]
#[target_feature(enable = "neon")]
fn broadcast<T: Quad>(quad: &T) -> int8x16_t {
    const { assert!(size_of::<T>() == 4) };
    let a: int8x16_t;
    // SAFETY: reads the four bytes of the reference, at any alignment, and writes a register.
    unsafe {
        asm!(
            "ld1r {{{a:v}.4s}}, [{quad}]",
            a = lateout(vreg) a,
            quad = in(reg) quad,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    a
}

/// The activations of four columns.
trait Quad {}

impl Quad for [i8; 4] {}
impl Quad for i32 {}

#[target_feature(enable = "neon")]
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
            one_token(tile, x, token, dots);
        }
        sink.done(tokens, dots);
    } else {
        many_tokens(tile, x, tokens, scratch, dots, sink, |columns, dots| {
            for half in 0..2 {
                half_panel(columns, half, &mut dots[half * QUARTERS..]);
            }
        });
    }
}

/// `dots: (groups, 32)`
#[target_feature(enable = "neon")]
fn one_token(tile: &Tile<'_>, x: &Activations, token: usize, dots: &mut [i32]) {
    for (lines, quads, dots) in groups(tile, x.padded(token), dots) {
        // a block adds four products to every accumulator
        let parts = lines
            .chunks(PRODUCTS / 4 * BLOCK)
            .zip(quads.chunks(PRODUCTS));
        for (lines, quads) in parts {
            part_dots(lines, quads, dots);
        }
    }
}

/// The lines, quads of activations and dots of the groups of one token.
#[inline(always)]
pub(super) fn groups<'a>(
    tile: &Tile<'a>,
    values: &'a [i8],
    dots: &'a mut [i32],
) -> impl Iterator<Item = (&'a [Line], &'a [[i8; 4]], &'a mut [RowSums; ROWS / 4])> {
    let blocks = tile.group.div_ceil(COLS);
    let lines = tile.lines.chunks_exact(blocks * BLOCK);
    let quads = values.as_chunks::<4>().0.chunks_exact(blocks * 4);
    let dots = dots.as_chunks_mut::<4>().0.as_chunks_mut().0;
    lines.zip(quads).zip(dots).map(|((l, q), d)| (l, q, d))
}

/// `dots[row] += sum of u * a` over at most `PRODUCTS / 4` blocks.
#[inline]
#[target_feature(enable = "neon")]
fn part_dots(lines: &[Line], quads: &[[i8; 4]], dots: &mut [RowSums; ROWS / 4]) {
    let mut acc = [[vdupq_n_s16(0); 2]; ROWS / 4];
    for (block, quads) in lines
        .as_chunks::<BLOCK>()
        .0
        .iter()
        .zip(quads.as_chunks::<4>().0)
    {
        let mut a = [vdupq_n_s8(0); 4];
        for f in 0..4 {
            a[f] = broadcast(&quads[f]);
        }
        for i in 0..ROWS / 4 {
            let u = fields(load(&block[i / QUARTERS], i % QUARTERS));
            for f in 0..4 {
                multiply_add(&mut acc[i], u[f], a[f]);
            }
        }
    }
    for (acc, dots) in acc.into_iter().zip(dots) {
        add_sums(dots, widen(acc));
    }
}

/// Some columns of a tile and a panel of `P` tokens.
pub(super) struct Columns<'a, const P: usize> {
    /// Codes, one byte each: two lines (rows 0-15, rows 16-31) per quad of columns.
    pub weights: &'a [Line],
    /// The same quads of the tokens.
    pub quads: &'a [[i32; P]],
    /// How many of the tokens exist.
    pub live: usize,
    /// From token to token in the dots of the tile, in [`RowSums`].
    pub stride: usize,
}

/// `dots: (tokens, groups, 32)`; `tokens` starts at a panel. `multiply` adds the sums of `u * a` over at
/// most [`CHUNK`] columns with a panel to the dots that start at its second argument.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn many_tokens<const P: usize>(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
    multiply: impl Fn(&Columns<'_, P>, &mut [RowSums]),
) {
    let stride = tile.groups() * (ROWS / 4);
    for chunk in tile::chunks_of::<4>(CHUNK, tile.cols, tile.group) {
        let blocks = chunk.blocks.clone();
        let weights = &mut scratch[..blocks.len() * 4 * BLOCK];
        unpack(
            &tile.lines[blocks.start * BLOCK..blocks.end * BLOCK],
            weights,
        );
        for first in tokens.clone().step_by(P) {
            let live = first..tokens.end.min(first + P);
            sink.soon(chunk.part(live.clone()));
            let quads = x.panel(first / P).as_chunks::<P>().0;
            let columns = Columns {
                weights,
                quads: &quads[blocks.start * 4..blocks.end * 4],
                live: live.len(),
                stride,
            };
            let range = (live.start - tokens.start) * stride..(live.end - tokens.start) * stride;
            let dots = &mut dots.as_chunks_mut::<4>().0[range];
            if chunk.opens_group {
                for (token, dots) in live.clone().zip(dots.chunks_exact_mut(stride)) {
                    let sum = x.group_sum(token, chunk.group, tile.group);
                    dots[chunk.group * (ROWS / 4)..][..ROWS / 4].fill([-sum; 4]);
                }
            }
            multiply(&columns, &mut dots[chunk.group * (ROWS / 4)..]);
            if chunk.is_last() {
                sink.done(live, dots.as_flattened());
            }
        }
    }
}

/// The codes of some blocks, as [`Columns::weights`].
#[target_feature(enable = "neon")]
fn unpack(lines: &[Line], weights: &mut [Line]) {
    let blocks = lines.as_chunks::<BLOCK>().0.iter();
    for (block, to) in blocks.zip(weights.as_chunks_mut::<{ 4 * BLOCK }>().0) {
        for line in 0..BLOCK {
            for quarter in 0..QUARTERS {
                let u = fields(load(&block[line], quarter));
                for f in 0..4 {
                    store(&mut to[BLOCK * f + line], quarter, u[f]);
                }
            }
        }
    }
}

/// `dots[stride * token][row] += sum of u * a` over at most [`PRODUCTS`] quads, for rows `16 half ..`.
#[inline]
#[target_feature(enable = "neon")]
fn half_panel(columns: &Columns<'_, PANEL>, half: usize, dots: &mut [RowSums]) {
    let mut acc = [[[vdupq_n_s16(0); 2]; QUARTERS]; PANEL];
    for (u, quads) in columns.weights.as_chunks::<2>().0.iter().zip(columns.quads) {
        let mut a = [vdupq_n_s8(0); PANEL];
        for t in 0..PANEL {
            a[t] = broadcast(&quads[t]);
        }
        for i in 0..QUARTERS {
            let u = load(&u[half], i);
            for t in 0..PANEL {
                multiply_add(&mut acc[t][i], u, a[t]);
            }
        }
    }
    // a loop of constant length, so that the accumulators never leave their registers
    for t in 0..PANEL {
        if t < columns.live {
            for i in 0..QUARTERS {
                add_sums(&mut dots[t * columns.stride + i], widen(acc[t][i]));
            }
        }
    }
}

#[target_feature(enable = "neon")]
fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    fixed_by_planes(tile, x, sums, |lines, planes, dots| {
        for (quads, dots) in planes.into_iter().zip(dots) {
            part_dots(lines, quads, dots);
        }
    });
}

/// The quads of a segment in the three planes.
pub(super) type Planes<'a> = [&'a [[i8; 4]]; PLANES];

/// The dots of the rows with each plane.
pub(super) type PlaneDots = [[RowSums; ROWS / 4]; PLANES];

/// One token of fixed-point activations: `segment_dots` adds the sums of `u * a` over a segment, at most 128 columns, to
/// the dots of each plane.
#[inline(always)]
pub(super) fn fixed_by_planes(
    tile: &FixedTiles<'_>,
    x: &FixedToken<'_>,
    sums: &mut [f32],
    segment_dots: impl Fn(&[Line], Planes<'_>, &mut PlaneDots),
) {
    const { assert!(GROUP <= PRODUCTS) };
    let scales = tile.scales.as_chunks::<ROWS>().0;
    let mut all = [0.0; ROWS];
    for (segment, of) in tile.segments().zip(&x.segments) {
        let blocks = fixed_point::blocks(&segment, COLS);
        let lines = &tile.lines[blocks.start * BLOCK..blocks.end * BLOCK];
        let planes = x.planes;
        let planes =
            planes.map(|plane| &plane.as_chunks::<4>().0[blocks.start * 4..blocks.end * 4]);
        let mut dots = [[[0; 4]; ROWS / 4]; PLANES];
        segment_dots(lines, planes, &mut dots);
        let [low, middle, high] = dots.each_ref().map(|dots| dots.as_flattened());
        for r in 0..ROWS {
            let dot = fixed_point::join([low[r], middle[r], high[r]]).wrapping_sub(of.sum);
            all[r] = match tile.group {
                None => fixed_point::add(dot, of.step, all[r]),
                Some(_) => fixed_point::add_scaled(dot, of.step, scales[of.scale][r], all[r]),
            };
        }
    }
    sums.copy_from_slice(&all);
}

/// Many tokens of fixed-point activations.
#[target_feature(enable = "neon")]
fn many_fixed(tiles: &FixedTiles<'_>, x: &FixedPoint, tokens: Range<usize>, done: Done<'_>) {
    // SAFETY: NEON is enabled here.
    unsafe { fixed_lookup::sums::<Tokens>(tiles, x, tokens, done) }
}

/// The tokens of a panel in four registers.
#[derive(Clone, Copy)]
struct Tokens([int32x4_t; 4]);

impl Vector for Tokens {
    #[inline(always)]
    unsafe fn load(dots: &Dots) -> Self {
        let quarters = dots.0.as_chunks::<4>().0;
        // SAFETY: a reference to a quarter of them covers 16 bytes; the CPU has NEON (the caller's).
        let load = |i: usize| unsafe { vld1q_s32(quarters[i].as_ptr()) };
        Self([load(0), load(1), load(2), load(3)])
    }

    #[inline(always)]
    unsafe fn store(self, dots: &mut Dots) {
        for (quarter, v) in dots.0.as_chunks_mut::<4>().0.iter_mut().zip(self.0) {
            // SAFETY: as above.
            unsafe { vst1q_s32(quarter.as_mut_ptr(), v) }
        }
    }

    #[inline(always)]
    unsafe fn add(mut self, other: &Dots) -> Self {
        // SAFETY: as above.
        unsafe {
            for (sum, other) in self.0.iter_mut().zip(Self::load(other).0) {
                *sum = vaddq_s32(*sum, other);
            }
        }
        self
    }

    #[inline(always)]
    unsafe fn close(self, step: &[f32; 16], sums: &mut Sums) {
        let quarters = sums.0.as_chunks_mut::<4>().0.iter_mut();
        for ((sums, step), dots) in quarters.zip(step.as_chunks::<4>().0).zip(self.0) {
            // SAFETY: as above, of floats.
            unsafe {
                let (dots, step) = (vcvtq_f32_s32(dots), vld1q_f32(step.as_ptr()));
                let sum = vfmaq_f32(vld1q_f32(sums.as_ptr()), dots, step);
                vst1q_f32(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn close_scaled(self, step: &[f32; 16], scale: f32, sums: &mut Sums) {
        let quarters = sums.0.as_chunks_mut::<4>().0.iter_mut();
        for ((sums, step), dots) in quarters.zip(step.as_chunks::<4>().0).zip(self.0) {
            // SAFETY: as above, of floats.
            unsafe {
                let steps = vmulq_f32(vcvtq_f32_s32(dots), vld1q_f32(step.as_ptr()));
                let sum = vfmaq_n_f32(vld1q_f32(sums.as_ptr()), steps, scale);
                vst1q_f32(sums.as_mut_ptr(), sum);
            }
        }
    }

    #[inline(always)]
    unsafe fn numbers<const F: u32>(line: &Line) -> [u16; 16] {
        let mut numbers = [0; 16];
        for (number, dword) in numbers.iter_mut().zip(line.0.as_chunks::<4>().0) {
            let codes = u32::from_le_bytes(*dword) >> F & 0x0303_0303;
            *number = (codes.wrapping_mul(BASE_THREE as u32) >> 24) as u16;
        }
        numbers
    }

    #[inline(always)]
    unsafe fn transpose(sums: &[Sums; ROWS], to: &mut [f32; 16 * ROWS]) {
        for (t, to) in to.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
            for (to, sums) in to.iter_mut().zip(sums) {
                *to = sums.0[t];
            }
        }
    }
}
