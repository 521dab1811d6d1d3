//! Q6_K: blocks of 256 six-bit values, 16 int8 scales and one f16 scale.

use bitnet_ternary::{Q6_K_BLOCK, Q6_K_BYTES, f16_to_f32, f32_to_f16};

/// Bytes of the parts of a block, which `decode_q6_k` describes.
const LOW: usize = 128;
const HIGH: usize = 64;
const SCALES: usize = 16;

/// Elements that share one int8 scale.
const Q6_K_GROUP: usize = 16;

/// Levels tried for the largest element of a group, besides the full range of 32.
const Q6_K_TRIES: [f32; 9] = [-32.0, -31.5, -31.0, -30.5, -30.0, -29.0, 31.0, 30.5, 30.0];

/// Our own search (the format fixes only decoding): for each group of 16 the step that minimizes
/// the squared error after a least-squares fit, over a few places for its largest element; then
/// the block scale that puts the largest step on -128 or 127, whichever fits all groups better;
/// then every element to its nearest level under the stored steps.
pub(super) fn encode_q6_k(x: &[f32; Q6_K_BLOCK]) -> [u8; Q6_K_BYTES] {
    let mut steps = [0f32; Q6_K_BLOCK / Q6_K_GROUP];
    for (step, group) in steps.iter_mut().zip(x.as_chunks::<Q6_K_GROUP>().0) {
        *step = best_step(group);
    }
    let largest = steps
        .iter()
        .fold(0f32, |m, s| if s.abs() > m.abs() { *s } else { m });
    let mut best = Q6K::under(x, &steps, f32_to_f16(largest / -128.0));
    for level in [127.0, -127.0] {
        let other = Q6K::under(x, &steps, f32_to_f16(largest / level));
        if other.error < best.error {
            best = other;
        }
    }
    best.to_bytes()
}

/// A quantized block before it is laid out.
struct Q6K {
    error: f32, // squared
    d: u16,
    scales: [i8; 16],
    codes: [u8; Q6_K_BLOCK], // q, 0 ..= 63
}

impl Q6K {
    /// Every element at its nearest level under this `d` and the int8 scales nearest to `steps`.
    fn under(x: &[f32; Q6_K_BLOCK], steps: &[f32; 16], d: u16) -> Self {
        let mut out = Self {
            error: 0.0,
            d,
            scales: [0; 16],
            codes: [32; Q6_K_BLOCK],
        };
        let d = f16_to_f32(d);
        let inverse = reciprocal(d);
        let groups = x.as_chunks::<Q6_K_GROUP>().0.iter();
        let codes = out.codes.as_chunks_mut::<Q6_K_GROUP>().0.iter_mut();
        for (((group, codes), step), stored) in groups.zip(codes).zip(steps).zip(&mut out.scales) {
            let scale = nearest((step * inverse).clamp(-128.0, 127.0));
            *stored = scale as i8;
            let step = d * scale;
            let inverse = reciprocal(step);
            let mut errors = [0f32; 4];
            for (x, codes) in group
                .as_chunks::<4>()
                .0
                .iter()
                .zip(codes.as_chunks_mut::<4>().0)
            {
                for ((x, code), error) in x.iter().zip(codes).zip(&mut errors) {
                    let q = level(x * inverse);
                    let off = x - step * q;
                    *error += off * off;
                    *code = (q as i32).wrapping_add(32) as u8;
                }
            }
            out.error += (errors[0] + errors[2]) + (errors[1] + errors[3]);
        }
        out
    }

    fn to_bytes(&self) -> [u8; Q6_K_BYTES] {
        let mut block = [0; Q6_K_BYTES];
        let (low, rest) = block.split_at_mut(LOW);
        let (high, rest) = rest.split_at_mut(HIGH);
        let (scales, d) = rest.split_at_mut(SCALES);
        let halves = low.as_chunks_mut::<64>().0.iter_mut();
        let halves = halves.zip(high.as_chunks_mut::<32>().0);
        for ((low, high), codes) in halves.zip(self.codes.as_chunks::<128>().0) {
            let ([first, second], [a, b, c, d]) =
                (low.as_chunks_mut::<32>().0, codes.as_chunks::<32>().0)
            else {
                continue;
            };
            let codes = a.iter().zip(b).zip(c.iter().zip(d));
            let bytes = first.iter_mut().zip(second).zip(high);
            for (((first, second), high), ((a, b), (c, d))) in bytes.zip(codes) {
                *first = a & 15 | c << 4;
                *second = b & 15 | d << 4;
                *high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
            }
        }
        for (byte, scale) in scales.iter_mut().zip(self.scales) {
            *byte = scale as u8;
        }
        for (byte, d) in d.iter_mut().zip(self.d.to_le_bytes()) {
            *byte = d;
        }
        block
    }
}

/// The step whose levels -32 ..= 31 come nearest to the group; 0 for a group of zeros.
fn best_step(group: &[f32; Q6_K_GROUP]) -> f32 {
    let peak = group
        .iter()
        .fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
    let (mut best, mut most) = (0.0, -1.0);
    for at in Q6_K_TRIES {
        let inverse = reciprocal(peak / at);
        let (mut xq, mut qq) = ([0f32; 4], [0f32; 4]);
        for x in group.as_chunks::<4>().0 {
            for ((x, xq), qq) in x.iter().zip(&mut xq).zip(&mut qq) {
                let q = level(x * inverse);
                *xq += x * q;
                *qq += q * q;
            }
        }
        let xq = (xq[0] + xq[2]) + (xq[1] + xq[3]);
        let qq = (qq[0] + qq[2]) + (qq[1] + qq[3]);
        // with the fitted step xq / qq the squared error is sum x^2 - xq^2 / qq
        if qq > 0.0 && xq / qq * xq > most {
            (best, most) = (xq / qq, xq / qq * xq);
        }
    }
    best
}

/// `1 / x`, or 0 where that is not finite.
fn reciprocal(x: f32) -> f32 {
    let r = 1.0 / x;
    if r.is_finite() { r } else { 0.0 }
}

/// Nearest of the levels -32 ..= 31.
#[inline(always)]
fn level(x: f32) -> f32 {
    nearest(x.clamp(-32.0, 31.0))
}

/// Nearest integer, for small numbers. Adding 1.5 * 2^23 rounds without a call into the C library,
/// which baseline x86-64 would need.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    x + ROUND - ROUND
}
