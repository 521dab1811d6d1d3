//! Q8_0: blocks of 32 int8 and one f16 scale.

use bitnet_ternary::{f16_to_f32, f32_to_f16};

pub(super) const Q8_0_BLOCK: usize = 32;
pub(super) const Q8_0_BYTES: usize = 34;

/// `d` (f16), then 32 int8: `x = d * q`.
pub(super) fn decode_q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; Q8_0_BLOCK]) {
    let d = f16_to_f32(u16::from_le_bytes([block[0], block[1]]));
    for (x, q) in out.iter_mut().zip(&block[2..]) {
        *x = d * f32::from(*q as i8);
    }
}

/// llama.cpp's reference rounding: `d = amax / 127` and `q = round(x * (1 / d))`, half away from
/// zero, with `d` still in f32; then `d` is stored as f16.
pub(super) fn encode_q8_0(x: &[f32; Q8_0_BLOCK]) -> [u8; Q8_0_BYTES] {
    let amax = x.iter().fold(0f32, |m, v| m.max(v.abs()));
    let d = amax / 127.0;
    // 1 / d is infinite for d below 2^-128, which f16 stores as 0 anyway
    let inverse = if d > f32::MIN_POSITIVE { 1.0 / d } else { 0.0 };
    let mut block = [0; Q8_0_BYTES];
    block[..2].copy_from_slice(&f32_to_f16(d).to_le_bytes());
    for (q, v) in block[2..].iter_mut().zip(x) {
        *q = (v * inverse).round() as i8 as u8;
    }
    block
}
