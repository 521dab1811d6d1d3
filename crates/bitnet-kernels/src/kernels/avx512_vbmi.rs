//! AVX-512 with VBMI and VNNI: five trits a byte, 1.6 bits a weight, for matrices with one scale per
//! tensor or row. Groups of scales are no multiples of 20 columns; those matrices take the 2-bit tile.
//!
//! The tile is that of [`tile`] with blocks of five quads: byte `4 * row + j` holds, of the columns
//! `4 f + j` of a block of 20, `c = u0 + 3 u1 + 9 u2 + 27 u3 + 81 u4`. Taking 81 away while that does not
//! wrap leaves `e`, the four lower trits, which a table of 128 bytes turns into the four fields of the
//! 2-bit tile; `c - e` is the fifth code, 81 times too large. One copy of the weights serves one token,
//! which reads it as it is, and many, for which chunks of it are unpacked as with 2 bits.
//!
//! Invariant: nothing saturates and nothing wraps in the sums: the largest are those of `c - e`, at most
//! `81 * 2 * 128 * K / 5 < 2^31` for every `K < MAX_COLS` (132,104), and they are exact multiples of 81, so
//! that multiplying by the inverse of 81 modulo 2^32 divides them exactly.

use super::avx512_lines::{load, prefetch, store, store_sums};
use super::avx512_vnni::{self, many_tokens, transpose};
use super::streams::{PREFETCH, two_streams};
use super::tile::{self, BLOCK, ROWS};
use super::tile_pack::{self, Code};
use crate::activations::Activations;
use crate::contract::{BLOCK_BYTES, Sink, TernaryOps, Tile};
use crate::kernel::{Kernel, lacking};
use crate::lines::{LINE, Line};
use crate::peak;
use bitnet_ternary::MAX_COLS;
use std::arch::x86_64::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "avx512_vbmi",
    requires: "AVX-512 F, BW, VBMI, VNNI",
    is_available: || {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vnni")
    },
    missing: || {
        lacking!(x86: "avx512f" = "AVX-512 F", "avx512bw" = "AVX-512 BW", "avx512vbmi" = "AVX-512 VBMI",
            "avx512vnni" = "AVX-512 VNNI")
    },
    ternary: TERNARY,
    grouped: Some(avx512_vnni::TERNARY),
    tabled: Some(avx512_vnni::TABLED),
    float: avx512_vnni::FLOAT,
    peak: Some(peak::VPDPBUSD_ZMM),
};

/// The 1.6-bit tile.
pub(super) const TERNARY: TernaryOps = TernaryOps {
    layout: LAYOUT,
    tile_rows: ROWS,
    panel: avx512_vnni::TERNARY.panel,
    block_bytes: BLOCK_BYTES,
    scratch_lines: avx512_vnni::SCRATCH_LINES,
    tile_lines: tile::lines::<QUADS>,
    pack,
    unpack: tile_pack::unpack::<QUADS, BaseThree>,
    are_codes: tile_pack::are_codes::<QUADS, BaseThree>,
    dots,
    many_tokens: None,
    two_bits: Some(two_bits),
    ..avx512_vnni::TERNARY
};

/// 32 rows in blocks of 20 columns (`formats/packing/tile32.md`).
const LAYOUT: &str = "tile32-1.6bit";

/// Quads of a block.
pub(super) const QUADS: usize = 5;

/// What the fifth code counts in a byte.
const FIFTH: u8 = 81;

/// `81 * FIFTH_INVERSE = 1` modulo 2^32.
const FIFTH_INVERSE: i32 = 0x7819_48b1;

const _: () = assert!((FIFTH as i32).wrapping_mul(FIFTH_INVERSE) == 1);
const _: () = assert!(81 * 2 * 128 * (MAX_COLS as i64) < 5 << 31);

/// Up to so many tokens it is faster to read the packed bytes (from L1) once for each.
const FEW: usize = 2;

/// Five trits a byte, as numbers in base three.
struct BaseThree;

impl Code<QUADS> for BaseThree {
    #[inline(always)]
    fn wrong(byte: u8) -> u8 {
        byte.saturating_sub(242)
    }

    #[inline(always)]
    fn encode(quads: [u32; QUADS]) -> u32 {
        // Horner in four bytes at once: at most 242 each, so none carries into the next
        let [lower @ .., highest] = quads;
        let step = |dword, quad| dword + dword + dword + quad; // vectors of dwords multiply slowly
        lower.into_iter().rfold(highest, step)
    }

    #[inline(always)]
    fn decode(dword: u32) -> [[i8; 4]; QUADS] {
        let mut bytes = dword.to_le_bytes();
        std::array::from_fn(|_| {
            bytes.each_mut().map(|byte| {
                let trit = (*byte % 3) as i8 - 1;
                *byte /= 3;
                trit
            })
        })
    }
}

/// The byte of four 2-bit codes, by their number in base three.
const FIELDS: [Line; 2] = {
    let mut table = [Line([0; LINE]); 2];
    let mut e = 0;
    while e < FIFTH as usize {
        let fields = (e % 3) | ((e / 3 % 3) << 2) | ((e / 9 % 3) << 4) | ((e / 27) << 6);
        table[e / LINE].0[e % LINE] = fields as u8;
        e += 1;
    }
    table
};

/// Constants of the decoding, in registers.
pub(super) struct Decoder {
    fifth: __m512i,
    fields: [__m512i; 2],
}

impl Decoder {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn new() -> Self {
        Self {
            fifth: _mm512_set1_epi8(FIFTH as i8),
            fields: [load(&FIELDS[0]), load(&FIELDS[1])],
        }
    }

    /// The 2-bit codes of the four lower trits, and 81 times the fifth code.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub fn decode(&self, c: __m512i) -> (__m512i, __m512i) {
        // what wraps below 0 is above what it was taken from
        let m = _mm512_min_epu8(c, _mm512_sub_epi8(c, self.fifth));
        let e = _mm512_min_epu8(m, _mm512_sub_epi8(m, self.fifth));
        let fields = _mm512_permutex2var_epi8(self.fields[0], e, self.fields[1]);
        (fields, _mm512_sub_epi8(c, e))
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn pack(trits: &[i8], cols: usize, tiles: &mut [Line]) -> bool {
    tile_pack::pack::<QUADS, BaseThree>(trits, cols, tiles, |rows| transpose(rows))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
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
        many_tokens::<QUADS>(tile, x, tokens, scratch, dots, sink, |packed, weights| {
            unpack(packed, weights)
        });
    }
}

/// `dots: (tokens, 32)`, the packed bytes read once for each token.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
pub(super) fn few_tokens(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    for (token, dots) in tokens.clone().zip(dots.chunks_exact_mut(ROWS)) {
        one_token(tile, x, token, dots);
    }
    sink.done(tokens, dots);
}

/// `dots: (32,)`. Not inlined: inside the loop over tokens the same instructions took 1.6 times as long
/// from DRAM, and as long from L2. Each half prefetches its own line: 6 % over both before the first.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn one_token(tile: &Tile<'_>, x: &Activations, token: usize, dots: &mut [i32]) {
    let decoder = Decoder::new();
    let masks: [__m512i; 4] = [
        _mm512_set1_epi8(0x03),
        _mm512_set1_epi8(0x0c),
        _mm512_set1_epi8(0x30),
        _mm512_set1_epi8(0xc0u8 as i8),
    ];
    let mut acc = [[_mm512_setzero_si512(); QUADS]; 2];
    let quads = x.padded(token).as_chunks::<4>().0.as_chunks::<QUADS>().0;
    let blocks = tile.lines.as_chunks::<BLOCK>().0;
    two_streams::<2, _>(blocks, quads, |block, quads, ahead| {
        let mut a = [_mm512_setzero_si512(); QUADS];
        for f in 0..QUADS {
            a[f] = _mm512_set1_epi32(tile::dword(&quads[f]));
        }
        for half in 0..2 {
            let (fields, fifth) = decoder.decode(load(&block[half]));
            prefetch(&block[half], ahead);
            let acc = &mut acc[half];
            for f in 0..4 {
                acc[f] = _mm512_dpbusd_epi32(acc[f], _mm512_and_si512(fields, masks[f]), a[f]);
            }
            acc[4] = _mm512_dpbusd_epi32(acc[4], fifth, a[4]);
        }
    });
    let sum = _mm512_set1_epi32(x.sum(token));
    for (half, dots) in dots.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // field f was 4^f too large and the fifth code 81 times, exactly
        let [a, b, c, d, e] = acc[half];
        let b = _mm512_srai_epi32::<2>(b);
        let c = _mm512_srai_epi32::<4>(c);
        let d = _mm512_srai_epi32::<6>(d);
        let e = _mm512_mullo_epi32(e, _mm512_set1_epi32(FIFTH_INVERSE));
        let low = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
        store_sums(dots, _mm512_sub_epi32(_mm512_add_epi32(low, e), sum));
    }
}

/// The codes of some blocks, for [`many_tokens`].
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn unpack(packed: &[[Line; BLOCK]], weights: &mut [[[Line; BLOCK]; QUADS]]) {
    let decoder = Decoder::new();
    let code = _mm512_set1_epi8(3);
    for (block, to) in packed.iter().zip(weights) {
        for half in 0..2 {
            let (fields, fifth) = decoder.decode(load(&block[half]));
            prefetch(&block[half], PREFETCH);
            let shifted = [
                fields,
                _mm512_srli_epi16::<2>(fields),
                _mm512_srli_epi16::<4>(fields),
                _mm512_srli_epi16::<6>(fields),
                _mm512_srli_epi16::<6>(fifth), // 0, 81 >> 6 = 1, 162 >> 6 = 2
            ];
            for f in 0..QUADS {
                store(&mut to[f][half], _mm512_and_si512(shifted[f], code));
            }
        }
    }
}

/// The same trits in the 2-bit tile, for fixed-point activations: their segments are no multiples of 20 columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn two_bits(tile: &[Line], _cols: usize, to: &mut [Line]) {
    let mut codes = vec![Line([0; LINE]); tile.len() * QUADS];
    let spread = codes.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<QUADS>().0;
    unpack(tile.as_chunks::<BLOCK>().0, spread);
    let quads = codes.as_chunks::<BLOCK>().0.chunks(4);
    for (block, quads) in to.as_chunks_mut::<BLOCK>().0.iter_mut().zip(quads) {
        for half in 0..2 {
            let mut bytes = _mm512_setzero_si512();
            for quad in quads.iter().rev() {
                bytes = _mm512_or_si512(_mm512_slli_epi16::<2>(bytes), load(&quad[half]));
            }
            store(&mut block[half], bytes);
        }
    }
}
