//! Q8_0: blocks of 32 int8 and one f16 scale.

use bitnet_ternary::{Q8_0_BLOCK, Q8_0_BYTES, f32_to_f16};

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
