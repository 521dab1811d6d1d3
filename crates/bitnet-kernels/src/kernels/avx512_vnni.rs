//! AVX-512 with VNNI on the 2-bit [`tile`].
//!
//! Invariant: `vpdpbusd` takes codes (0..=2, or shifted by whole fields up to 128) as its unsigned and
//! activations as its signed operand and adds in 32 bits: nothing saturates, -128 included.
//!
//! One token reads the packed bytes once: `v & (3 << 2f)` goes into the accumulator of field `f` as it
//! is, and the fields are shifted down once at the end. Many tokens are multiplied in panels of 12 with
//! unpacked columns of a tile: 24 accumulators, two weights and one broadcast fit the 32 registers, and the
//! two vector ports do nothing but `vpdpbusd`. The first panel unpacks, a few blocks ahead of its products;
//! the others read what it left in L1 and L2.

use super::avx2;
use super::avx512_lines::{load, load_floats, load_sums, prefetch, store, store_sums};
use super::avx512_triples;
use super::fixed_lookup::{self, BASE_THREE, Dots, Sums, Vector};
use super::streams::{PREFETCH, two_streams};
use super::tile::{self, BLOCK, CHUNK, COLS, ROWS, quads_of};
use super::tile_pack::{self, TwoBits};
use crate::activations::{Activations, Panel};
use crate::contract::{BLOCK_BYTES, Done, FixedTiles, ManyFixed, Sink, TernaryOps, Tile};
use crate::fixed_point::{FixedPoint, FixedToken, PLANES};
use crate::float_table::{self, FloatOps};
use crate::kernel::{Kernel, lacking};
use crate::lines::{LINE, Line};
use crate::output::Places;
use crate::peak;
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "avx512_vnni",
    requires: "AVX-512 F, BW, VNNI",
    is_available: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vnni")
    },
    missing: || lacking!(x86: "avx512f" = "AVX-512 F", "avx512bw" = "AVX-512 BW", "avx512vnni" = "AVX-512 VNNI"),
    ternary: TERNARY,
    grouped: None,
    tabled: Some(TABLED),
    float: FLOAT,
    peak: Some(peak::VPDPBUSD_ZMM),
};

/// Every AVX-512 kernel's.
pub(super) const FLOAT: FloatOps = FloatOps {
    attention: super::avx512_attention::ATTENTION,
    screen_dots: super::avx512_screen::screen_dots,
    screen_lower: super::avx512_screen::screen_lower,
    ..float_table::instantiate!(#[target_feature(enable = "avx512f,avx512bw")])
};

/// The 2-bit tile; also what `avx512_vbmi` does with groups.
pub(super) const TERNARY: TernaryOps = TernaryOps {
    layout: tile_pack::TWO_BITS,
    tile_rows: ROWS,
    panel: Panel::of(PANEL),
    block_bytes: BLOCK_BYTES,
    scratch_lines: SCRATCH_LINES,
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
        fewest: FEWEST_FIXED,
        sums: many_fixed,
    }),
};

/// The tile of triples; also that of the other AVX-512 kernels.
pub(super) const TABLED: TernaryOps = TernaryOps {
    dots: |tile, x, tokens, scratch, dots, sink| {
        // SAFETY: the caller's: the CPU has what this kernel requires.
        unsafe { triples(tile, x, tokens, scratch, dots, sink) }
    },
    ..avx512_triples::on(TERNARY)
};

/// Int8 activations with a layout that is not for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn triples(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    sums: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    let lines = &avx512_triples::two_bits_of(tile);
    let (cols, group) = (tile.cols, tile.group);
    dots(&Tile { lines, cols, group }, x, tokens, scratch, sums, sink);
}

/// Tokens of a panel: 12 x 32 rows are 24 accumulators.
pub(super) const PANEL: usize = 12;

/// Most columns that are unpacked at a time for more than two panels, 80 KiB of a tile: L2 delivers them as fast
/// as the products take them, and a panel pays for every end of a chunk. Fewer panels stay in L1.
const LONG_CHUNK: usize = 2560;

/// Lines of scratch for one chunk: two per quad.
pub(super) const SCRATCH_LINES: usize = LONG_CHUNK / 4 * BLOCK;

/// Blocks that are unpacked before their products with the first panel, whose accumulators may have to leave
/// their registers meanwhile.
const BATCH: usize = 8;

/// Up to so many tokens it is faster to read the packed bytes (from L1) once for each.
const FEW: usize = 3;

#[target_feature(enable = "avx512f,avx512bw")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    tile_pack::pack::<4, TwoBits>(trits, cols, tiles, |rows| transpose(rows))
}

/// A [`tile_pack::Transpose`] in registers: 16 rows are four in each of four lanes.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: [&[i8; 16]; 16]) -> [Line; 4] {
    // SAFETY: the reference covers 16 bytes; the load is unaligned.
    let row = |row: usize| unsafe { _mm_loadu_si128(rows[row].as_ptr().cast()) };
    let lanes = |first: usize| {
        let v = _mm512_zextsi128_si512(row(first));
        let v = _mm512_inserti32x4::<1>(v, row(first + 4));
        let v = _mm512_inserti32x4::<2>(v, row(first + 8));
        _mm512_inserti32x4::<3>(v, row(first + 12))
    };
    let (a, b, c, d) = (lanes(0), lanes(1), lanes(2), lanes(3));
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_low, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    let mut quads = [Line([0; LINE]); 4];
    store(&mut quads[0], _mm512_unpacklo_epi64(ab_low, cd_low));
    store(&mut quads[1], _mm512_unpackhi_epi64(ab_low, cd_low));
    store(&mut quads[2], _mm512_unpacklo_epi64(ab_high, cd_high));
    store(&mut quads[3], _mm512_unpackhi_epi64(ab_high, cd_high));
    quads
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn dots(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    if tokens.len() <= FEW {
        few_tokens(tile, x, tokens, dots, sink);
    } else {
        many_tokens::<4>(tile, x, tokens, scratch, dots, sink, |packed, weights| {
            unpack(packed, weights)
        });
    }
}

/// `dots: (tokens, groups, 32)`, the packed bytes read once for each token.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn few_tokens(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    let tile_dots = dots.chunks_exact_mut(tile.groups() * ROWS);
    for (token, dots) in tokens.clone().zip(tile_dots) {
        one_token(tile, x, token, dots);
    }
    sink.done(tokens, dots);
}

/// `dots: (groups, 32)`
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn one_token(tile: &Tile<'_>, x: &Activations, token: usize, dots: &mut [i32]) {
    let (quads, _) = x.padded(token).as_chunks::<4>();
    let blocks = tile.group.div_ceil(COLS);
    let groups = tile
        .lines
        .chunks_exact(blocks * BLOCK)
        .zip(quads.chunks_exact(blocks * 4));
    let dots = dots.as_chunks_mut::<16>().0.as_chunks_mut::<2>().0;
    for (g, ((lines, quads), [low, high])) in groups.zip(dots).enumerate() {
        let sum = _mm512_set1_epi32(x.group_sum(token, g, tile.group));
        let dots = group_dots(lines, quads);
        store_sums(low, _mm512_sub_epi32(dots[0], sum));
        store_sums(high, _mm512_sub_epi32(dots[1], sum));
    }
}

/// `sum of u * a` over some blocks, for rows 0-15 and 16-31.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn group_dots(lines: &[Line], quads: &[[i8; 4]]) -> [__m512i; 2] {
    let fields: [__m512i; 4] = [
        _mm512_set1_epi8(0x03),
        _mm512_set1_epi8(0x0c),
        _mm512_set1_epi8(0x30),
        _mm512_set1_epi8(0xc0u8 as i8),
    ];
    let mut acc = [[_mm512_setzero_si512(); 4]; 2];
    let blocks = lines.as_chunks::<BLOCK>().0;
    two_streams::<2, _>(blocks, quads.as_chunks::<4>().0, |block, quads, ahead| {
        prefetch(&block[0], ahead);
        prefetch(&block[1], ahead);
        let v = [load(&block[0]), load(&block[1])];
        for f in 0..4 {
            let a = _mm512_set1_epi32(tile::dword(&quads[f]));
            for half in 0..2 {
                let u = _mm512_and_si512(v[half], fields[f]);
                acc[half][f] = _mm512_dpbusd_epi32(acc[half][f], u, a);
            }
        }
    });
    // field f was 4^f too large, exactly
    let mut dots = [_mm512_setzero_si512(); 2];
    for half in 0..2 {
        let [a, b, c, d] = acc[half];
        let b = _mm512_srai_epi32::<2>(b);
        let c = _mm512_srai_epi32::<4>(c);
        let d = _mm512_srai_epi32::<6>(d);
        dots[half] = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
    }
    dots
}

/// `dots: (tokens, groups, 32)`; `tokens` starts at a panel. `unpack` writes the codes of some blocks of `F`
/// quads, one byte each: two lines (rows 0-15, rows 16-31) per quad.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn many_tokens<const F: usize>(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
    unpack: impl Fn(&[[Line; BLOCK]], &mut [[[Line; BLOCK]; F]]) + Copy,
) {
    let stride = tile.groups() * BLOCK; // from token to token, in sums of 16 rows
    let packed = tile.lines.as_chunks::<BLOCK>().0;
    let scratch = scratch.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<F>().0;
    let most = match tokens.len() <= 2 * PANEL {
        true => CHUNK,
        false => LONG_CHUNK,
    };
    for chunk in tile::chunks_of::<F>(most, tile.cols, tile.group) {
        let blocks = chunk.blocks.clone();
        let packed = &packed[blocks.clone()];
        let weights = &mut scratch[..blocks.len()];
        for first in tokens.clone().step_by(PANEL) {
            let live = first..tokens.end.min(first + PANEL);
            let quads = x.panel(first / PANEL).as_chunks::<PANEL>().0;
            let quads = &quads.as_chunks::<F>().0[blocks.clone()];
            let range = (live.start - tokens.start) * stride..(live.end - tokens.start) * stride;
            let dots = &mut dots.as_chunks_mut::<16>().0[range];
            if chunk.opens_group {
                for (token, dots) in live.clone().zip(dots.chunks_exact_mut(stride)) {
                    let sum = x.group_sum(token, chunk.group, tile.group);
                    dots[chunk.group * BLOCK..(chunk.group + 1) * BLOCK].fill([-sum; 16]);
                }
            }
            let soon = chunk.part(live.clone());
            let to = Products {
                soon: (sink.places(soon.start), soon.len()),
                live: live.len(),
                stride,
                dots: &mut dots[chunk.group * BLOCK..],
            };
            match (first == tokens.start, live.len()) {
                (true, ..=4) => to.add::<F, 4, true>(packed, weights, quads, unpack),
                (true, 5..=8) => to.add::<F, 8, true>(packed, weights, quads, unpack),
                (true, _) => to.add::<F, PANEL, true>(packed, weights, quads, unpack),
                (false, ..=4) => to.add::<F, 4, false>(packed, weights, quads, unpack),
                (false, 5..=8) => to.add::<F, 8, false>(packed, weights, quads, unpack),
                (false, _) => to.add::<F, PANEL, false>(packed, weights, quads, unpack),
            }
            if chunk.is_last() {
                sink.done(live, dots.as_flattened());
            }
        }
    }
}

/// The codes of some blocks of the 2-bit tile, for [`many_tokens`].
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(packed: &[[Line; BLOCK]], weights: &mut [[[Line; BLOCK]; 4]]) {
    let code = _mm512_set1_epi8(3);
    for (block, to) in packed.iter().zip(weights) {
        for half in 0..2 {
            let v = load(&block[half]);
            prefetch(&block[half], PREFETCH);
            let shifted = [
                v,
                _mm512_srli_epi16::<2>(v),
                _mm512_srli_epi16::<4>(v),
                _mm512_srli_epi16::<6>(v),
            ];
            for f in 0..4 {
                store(&mut to[f][half], _mm512_and_si512(shifted[f], code));
            }
        }
    }
}

/// Where the products of a panel and some blocks belong.
struct Products<'a> {
    /// What will be written soon: from where on, and how many tokens.
    soon: (Places, usize),
    /// How many tokens of the panel exist.
    live: usize,
    /// From token to token, in sums of 16 rows.
    stride: usize,
    dots: &'a mut [[i32; 16]],
}

impl Products<'_> {
    /// `dots[stride * token][row] += sum of u * a` for the first `T` tokens of a panel. With `FRESH` the codes
    /// are unpacked on the way.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn add<const F: usize, const T: usize, const FRESH: bool>(
        self,
        packed: &[[Line; BLOCK]],
        weights: &mut [[[Line; BLOCK]; F]],
        quads: &[[[i32; PANEL]; F]],
        unpack: impl Fn(&[[Line; BLOCK]], &mut [[[Line; BLOCK]; F]]),
    ) {
        let (places, count) = self.soon;
        let pace = (packed.len() / count.max(1)).max(1).ilog2();
        let mut step = 0;
        let mut acc = [[_mm512_setzero_si512(); 2]; T];
        let batch = if FRESH { BATCH } else { packed.len() };
        let batches = packed.chunks(batch).zip(weights.chunks_mut(batch));
        for ((packed, weights), quads) in batches.zip(quads.chunks(batch)) {
            if FRESH {
                unpack(packed, weights);
            }
            for (weights, quads) in weights.iter().zip(quads) {
                let token = (step >> pace).min(count.saturating_sub(1));
                for half in 0..2 {
                    _mm_prefetch::<_MM_HINT_T0>(places.at(token, 16 * half + 15).cast());
                }
                step += 1;
                for q in 0..F {
                    let u = [load(&weights[q][0]), load(&weights[q][1])];
                    for t in 0..T {
                        let a = _mm512_set1_epi32(quads[q][t]);
                        for half in 0..2 {
                            acc[t][half] = _mm512_dpbusd_epi32(acc[t][half], u[half], a);
                        }
                    }
                }
            }
        }
        // a loop of constant length, so that the accumulators never leave their registers
        for t in 0..T {
            if t < self.live {
                for half in 0..2 {
                    let dots = &mut self.dots[t * self.stride + half];
                    store_sums(dots, _mm512_add_epi32(load_sums(dots), acc[t][half]));
                }
            }
        }
    }
}

/// Fewer tokens of fixed-point activations are taken one by one.
const FEWEST_FIXED: usize = 14;

/// The codes of two fields of a line, and 4 times those of two others.
#[inline]
#[target_feature(enable = "avx512f")]
fn fields(line: &Line) -> [__m512i; 4] {
    let masks = [_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c)];
    let v = load(line);
    let high = _mm512_srli_epi32::<4>(v);
    [
        _mm512_and_si512(v, masks[0]),
        _mm512_and_si512(v, masks[1]),
        _mm512_and_si512(high, masks[0]),
        _mm512_and_si512(high, masks[1]),
    ]
}

/// One token of fixed-point activations: `sums: (32,)`.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn fixed(tile: &FixedTiles<'_>, x: &FixedToken<'_>, sums: &mut [f32]) {
    let [low, middle, high] = x.planes;
    let quads = |plane| quads_of(plane, tile.width() / COLS);
    let planes = quads(low).zip(quads(middle)).zip(quads(high));
    let blocks = tile.lines.as_chunks::<BLOCK>().0;
    let segments = blocks
        .chunks(tile.width() / COLS)
        .zip(planes)
        .zip(&x.segments);
    let scales = tile.scales.as_chunks::<16>().0.as_chunks::<2>().0;
    let mut all = [_mm512_setzero_ps(); 2];
    for ((blocks, ((low, middle), high)), of) in segments {
        let dots = segment_dots(blocks, [low, middle, high], of.sum);
        let step = _mm512_set1_ps(of.step);
        for half in 0..2 {
            let dot = _mm512_cvtepi32_ps(dots[half]);
            all[half] = match tile.group {
                None => _mm512_fmadd_ps(dot, step, all[half]),
                Some(_) => {
                    let scale = load_floats(&scales[of.scale][half]);
                    _mm512_fmadd_ps(_mm512_mul_ps(dot, step), scale, all[half])
                }
            };
        }
    }
    for (sums, all) in sums.as_chunks_mut::<16>().0.iter_mut().zip(all) {
        // SAFETY: the reference covers 64 bytes; the store is unaligned.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), all) };
    }
}

/// The dots of a segment, for rows 0-15 and 16-31; `sum` is that of its activations.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn segment_dots(
    blocks: &[[Line; BLOCK]],
    planes: [&[[[i8; 4]; 4]]; PLANES],
    sum: i32,
) -> [__m512i; 2] {
    // of each half and plane: fields 0 and 2, and fields 1 and 3, which are 4 times too large
    let mut acc = [[[_mm512_setzero_si512(); 2]; PLANES]; 2];
    let [low, middle, high] = planes;
    let quads = low.iter().zip(middle).zip(high);
    for (block, ((low, middle), high)) in blocks.iter().zip(quads) {
        let mut u = [[_mm512_setzero_si512(); 4]; 2];
        for half in 0..2 {
            u[half] = fields(&block[half]);
            prefetch(&block[half], PREFETCH);
        }
        for f in 0..4 {
            for (p, quads) in [low, middle, high].into_iter().enumerate() {
                let a = _mm512_set1_epi32(tile::dword(&quads[f]));
                for half in 0..2 {
                    let acc = &mut acc[half][p][f % 2];
                    *acc = _mm512_dpbusd_epi32(*acc, u[half][f], a);
                }
            }
        }
    }
    let mut dots = [_mm512_setzero_si512(); 2];
    for half in 0..2 {
        let [low, middle, high] = acc[half];
        // 4 times the two lower planes stay below 2^26, and 4 times the highest is shifted two bits less
        let odd = _mm512_add_epi32(low[1], _mm512_slli_epi32::<8>(middle[1]));
        let odd = _mm512_add_epi32(
            _mm512_srai_epi32::<2>(odd),
            _mm512_slli_epi32::<14>(high[1]),
        );
        let even = _mm512_add_epi32(low[0], _mm512_slli_epi32::<8>(middle[0]));
        let even = _mm512_add_epi32(even, _mm512_slli_epi32::<16>(high[0]));
        let even = _mm512_sub_epi32(even, _mm512_set1_epi32(sum));
        dots[half] = _mm512_add_epi32(even, odd);
    }
    dots
}

/// The tokens of a panel in one register.
#[derive(Clone, Copy)]
struct Tokens(__m512i);

impl Vector for Tokens {
    #[inline(always)]
    unsafe fn load(dots: &Dots) -> Self {
        // SAFETY: the reference covers 64 bytes at a 64-byte boundary; the CPU has AVX-512 (the caller's).
        Self(unsafe { _mm512_load_si512(dots.0.as_ptr().cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, dots: &mut Dots) {
        // SAFETY: as above.
        unsafe { _mm512_store_si512(dots.0.as_mut_ptr().cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: &Dots) -> Self {
        // SAFETY: as above.
        unsafe { Self(_mm512_add_epi32(self.0, Self::load(other).0)) }
    }

    #[inline(always)]
    unsafe fn close(self, step: &[f32; 16], sums: &mut Sums) {
        // SAFETY: as above.
        unsafe {
            let dots = _mm512_cvtepi32_ps(self.0);
            let sum = _mm512_fmadd_ps(dots, load_floats(step), load_floats(&sums.0));
            _mm512_store_ps(sums.0.as_mut_ptr(), sum);
        }
    }

    #[inline(always)]
    unsafe fn close_scaled(self, step: &[f32; 16], scale: f32, sums: &mut Sums) {
        // SAFETY: as above.
        unsafe {
            let steps = _mm512_mul_ps(_mm512_cvtepi32_ps(self.0), load_floats(step));
            let sum = _mm512_fmadd_ps(steps, _mm512_set1_ps(scale), load_floats(&sums.0));
            _mm512_store_ps(sums.0.as_mut_ptr(), sum);
        }
    }

    #[inline(always)]
    unsafe fn numbers<const F: u32>(line: &Line) -> [u16; 16] {
        let mut numbers = [0; 16];
        // SAFETY: as above, and the store writes the 32 bytes of the array.
        unsafe {
            let codes = _mm512_and_si512(_mm512_srli_epi32::<F>(load(line)), _mm512_set1_epi8(3));
            let products = _mm512_mullo_epi32(codes, _mm512_set1_epi32(BASE_THREE));
            let narrow = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<24>(products));
            _mm256_storeu_si256(numbers.as_mut_ptr().cast(), narrow);
        }
        numbers
    }

    #[inline(always)]
    unsafe fn transpose(sums: &[Sums; ROWS], to: &mut [f32; 16 * ROWS]) {
        // SAFETY: as above: every CPU with AVX-512 has AVX2.
        unsafe { avx2::transpose_sums(sums, to) }
    }
}

/// Many tokens of fixed-point activations.
#[target_feature(enable = "avx512f,avx512bw")]
fn many_fixed(tiles: &FixedTiles<'_>, x: &FixedPoint, tokens: Range<usize>, done: Done<'_>) {
    // SAFETY: AVX-512 is enabled here.
    unsafe { fixed_lookup::sums::<Tokens>(tiles, x, tokens, done) }
}
