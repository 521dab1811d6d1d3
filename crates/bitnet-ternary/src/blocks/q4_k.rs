//! Q4_K and Q5_K: 256 codes of four or five bits, a scale and a minimum of six bits per 32 of them, and two f16 factors.
//!
//! Invariant: every number is rounded once.

use crate::f16_to_f32;

/// A scale and a minimum.
type Level = (u8, u8);

/// A block of Q4_K (ggml, `block_q4_K`): f16 `d` and `dmin`, 12 bytes of scales `k` and minima `n`, 128 bytes of nibbles;
/// `x = d * k * q - dmin * n`.
///
/// Element `l` of groups `2 p` and `2 p + 1` is in byte `32 p + l` of the nibbles, low and high.
#[inline(always)]
pub(super) fn decode_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = factors([block[0], block[1], block[2], block[3]]);
    let levels = levels(&block[4..16]);
    let codes = block[16..].as_chunks::<32>().0.iter();
    let pairs = out.as_chunks_mut::<64>().0.iter_mut().zip(codes);
    for ((out, codes), [first, second]) in pairs.zip(levels.as_chunks::<2>().0) {
        let (low, high) = out.split_at_mut(32);
        let (step, least) = scaled(d, dmin, *first);
        for (x, q) in low.iter_mut().zip(codes) {
            *x = step * f32::from(q & 15) - least;
        }
        let (step, least) = scaled(d, dmin, *second);
        for (x, q) in high.iter_mut().zip(codes) {
            *x = step * f32::from(q >> 4) - least;
        }
    }
}

/// A block of Q5_K (ggml, `block_q5_K`): as Q4_K with 32 bytes before the nibbles, whose byte `l` has the fifth bit of
/// element `l` of group `g` in bit `g`.
#[inline(always)]
pub(super) fn decode_q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = factors([block[0], block[1], block[2], block[3]]);
    let levels = levels(&block[4..16]);
    let fifth = &block[16..48];
    let codes = block[48..].as_chunks::<32>().0.iter();
    let pairs = out.as_chunks_mut::<64>().0.iter_mut().zip(codes);
    let pairs = pairs.zip(levels.as_chunks::<2>().0);
    for (((out, codes), [first, second]), place) in pairs.zip([0u32, 2, 4, 6]) {
        let (low, high) = out.split_at_mut(32);
        let (step, least) = scaled(d, dmin, *first);
        for ((x, q), fifth) in low.iter_mut().zip(codes).zip(fifth) {
            let bit = fifth.wrapping_shr(place) & 1;
            *x = step * f32::from(q & 15 | bit << 4) - least;
        }
        let (step, least) = scaled(d, dmin, *second);
        for ((x, q), fifth) in high.iter_mut().zip(codes).zip(fifth) {
            let bit = fifth.wrapping_shr(place | 1) & 1;
            *x = step * f32::from(q >> 4 | bit << 4) - least;
        }
    }
}

#[inline(always)]
fn factors(bytes: [u8; 4]) -> (f32, f32) {
    let [a, b, c, d] = bytes;
    let of = |bytes| f16_to_f32(u16::from_le_bytes(bytes));
    (of([a, b]), of([c, d]))
}

/// The step and the least value of a group. Both products are exact in f32 (11 + 6 bits), with a code as well (11 + 6 + 5),
/// so an element is rounded once.
#[inline(always)]
fn scaled(d: f32, dmin: f32, (scale, least): Level) -> (f32, f32) {
    (d * f32::from(scale), dmin * f32::from(least))
}

/// Scales and minima of the eight groups. Groups 0 to 3 have theirs in the low six bits of bytes `g` and `4 + g`. Groups 4 to
/// 7 have the low four bits in the nibbles of byte `4 + g`, and the high two in the high two of bytes `g - 4` and `g`.
#[inline(always)]
fn levels(bytes: &[u8]) -> [Level; 8] {
    let mut levels = [(0, 0); 8];
    let (first, second) = levels.split_at_mut(4);
    if let [scales, minima, both] = bytes.as_chunks::<4>().0 {
        let bytes = scales.iter().zip(minima).zip(both);
        for (((k, n), both), (first, second)) in bytes.zip(first.iter_mut().zip(second)) {
            *first = (k & 63, n & 63);
            *second = (both & 15 | k >> 6 << 4, both >> 4 | n >> 6 << 4);
        }
    }
    levels
}
