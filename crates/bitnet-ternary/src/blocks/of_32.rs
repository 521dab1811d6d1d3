//! The blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.
//!
//! Invariant: every number is rounded once, or not at all.

use crate::f16_to_f32;

/// Numbers of a block of Q8_0.
pub const Q8_0_BLOCK: usize = 32;
/// Bytes of a block of Q8_0.
pub const Q8_0_BYTES: usize = 34;

/// A block of Q8_0 (ggml, `block_q8_0`): `d` (f16), then 32 int8; `x = d * q`.
#[inline(always)]
pub fn decode_q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; Q8_0_BLOCK]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (x, q) in out.iter_mut().zip(block.iter().skip(2)) {
        *x = d * f32::from(*q as i8);
    }
}

// the others: byte `l` of 16 holds element `l` in its low nibble and element `l + 16` in its high one;
// bit `e` of the u32 before them is the fifth bit of element `e`

/// A block of Q4_0 (ggml, `block_q4_0`): `d` (f16), 16 bytes of nibbles; `x = d * (q - 8)`.
#[inline(always)]
pub(super) fn decode_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = d * f32::from(((q & 15) as i8).wrapping_sub(8));
        *high = d * f32::from(((q >> 4) as i8).wrapping_sub(8));
    }
}

/// A block of Q4_1 (ggml, `block_q4_1`): `d` and `m` (f16), 16 bytes of nibbles; `x = d * q + m`.
#[inline(always)]
pub(super) fn decode_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    let m = f16_to_f32(u16::from_le_bytes([block[2], block[3]]));
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = d * f32::from(q & 15) + m;
        *high = d * f32::from(q >> 4) + m;
    }
}

/// A block of Q5_0 (ggml, `block_q5_0`): `d` (f16), a u32 of fifth bits, 16 bytes of nibbles; `x = d * (q - 16)`.
#[inline(always)]
pub(super) fn decode_q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let (low, high) = out.split_at_mut(16);
    for (((l, q), low), high) in (0..).zip(&block[6..]).zip(low).zip(high) {
        let codes = five_bits(*q, fifth, l);
        *low = d * f32::from((codes.0 as i8).wrapping_sub(16));
        *high = d * f32::from((codes.1 as i8).wrapping_sub(16));
    }
}

/// A block of Q5_1 (ggml, `block_q5_1`): `d` and `m` (f16), a u32 of fifth bits, 16 bytes of nibbles; `x = d * q + m`.
#[inline(always)]
pub(super) fn decode_q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    let m = f16_to_f32(u16::from_le_bytes([block[2], block[3]]));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    let (low, high) = out.split_at_mut(16);
    for (((l, q), low), high) in (0..).zip(&block[8..]).zip(low).zip(high) {
        let codes = five_bits(*q, fifth, l);
        *low = d * f32::from(codes.0) + m;
        *high = d * f32::from(codes.1) + m;
    }
}

/// The codes of elements `l` and `l + 16`.
#[inline(always)]
fn five_bits(nibbles: u8, fifth: u32, l: u32) -> (u8, u8) {
    let bits = fifth.wrapping_shr(l);
    let low = (bits & 1) as u8;
    let high = (bits >> 16 & 1) as u8;
    (nibbles & 15 | low << 4, nibbles >> 4 | high << 4)
}
