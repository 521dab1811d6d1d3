//! Q6_K: 256 codes of six bits, an int8 scale per 16 of them, and one f16 factor.
//!
//! Invariant: every number is rounded once.

use crate::f16_to_f32;

/// Numbers of a block of Q6_K.
pub const Q6_K_BLOCK: usize = 256;
/// Bytes of a block of Q6_K.
pub const Q6_K_BYTES: usize = 210;
/// Elements that share one int8 scale.
const Q6_K_GROUP: usize = 16;

/// Bytes of the parts of a block.
const LOW: usize = 128;
const HIGH: usize = 64;
const SCALES: usize = 16;

// block: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 int8 scales, f16 d.
// Each half block of 128 elements is four runs of 32; element l of run r has its low four bits in
// ql[64 half + 32 (r % 2) + l], nibble r / 2, its high two bits in qh[32 half + l], pair r.
// x = d * scale[element / 16] * (q - 32)

/// A block of Q6_K (ggml, `block_q6_K`): `x = d * scale * (q - 32)`.
#[inline(always)]
pub fn decode_q6_k(block: &[u8; Q6_K_BYTES], out: &mut [f32; Q6_K_BLOCK]) {
    let d = f16_to_f32(u16::from_le_bytes([block[208], block[209]]));
    let low = block[..LOW].as_chunks::<64>().0.iter();
    let high = block[LOW..LOW + HIGH].as_chunks::<32>().0.iter();
    let scales = block[LOW + HIGH..LOW + HIGH + SCALES]
        .as_chunks::<8>()
        .0
        .iter();
    let halves = low.zip(high).zip(scales);
    for (((low, high), scales), out) in halves.zip(out.as_chunks_mut::<128>().0) {
        if let [a, b, c, e] = out.as_chunks_mut::<32>().0 {
            decode_run::<0, 0>(d, &low[..32], high, &scales[..2], a);
            decode_run::<0, 2>(d, &low[32..], high, &scales[2..4], b);
            decode_run::<4, 4>(d, &low[..32], high, &scales[4..6], c);
            decode_run::<4, 6>(d, &low[32..], high, &scales[6..], e);
        }
    }
}

/// One run of 32 elements, two scales.
#[inline(always)]
fn decode_run<const LOW: u32, const HIGH: u32>(
    d: f32,
    low: &[u8],
    high: &[u8],
    scales: &[u8],
    out: &mut [f32; 32],
) {
    let groups = low
        .as_chunks::<Q6_K_GROUP>()
        .0
        .iter()
        .zip(high.as_chunks::<Q6_K_GROUP>().0);
    let out = out.as_chunks_mut::<Q6_K_GROUP>().0.iter_mut();
    for ((out, scale), (low, high)) in out.zip(scales).zip(groups) {
        // d * scale is exact in f32 (11 + 8 bits), so there is one rounding
        let step = d * f32::from(*scale as i8);
        for ((x, l), h) in out.iter_mut().zip(low).zip(high) {
            let q = l.wrapping_shr(LOW) & 15 | (h.wrapping_shr(HIGH) & 3) << 4;
            *x = step * f32::from((q as i8).wrapping_sub(32));
        }
    }
}
