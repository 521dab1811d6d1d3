//! Master weights to trits: the absmean rule of BitNet b1.58.
//!
//! The definition (paper arXiv 2402.17764, equations 1 to 3; `formats/absmean.md`), all in f32
//! after widening the stored value:
//!
//! ```text
//! m   = max(mean |w|, 1e-5)          mean over the whole tensor
//! inv = 1 / m
//! q   = clamp(round_half_even(w * inv), -1, 1)
//! weight = q / inv                   so the effective scale is fl(1 / inv)
//! ```
//!
//! Invariant: the result depends on the stored values alone, never on vector width or threads. The
//! mean is accumulated in f64 over fixed blocks of [`BLOCK`] elements in 8 fixed lanes, blocks added
//! in order, rounded once to f32. Peers sum in f32 in an order of their own; their mean is within
//! a few ulp of this one.
//!
//! `round_half_even(w * inv)` is zero exactly while `fl32(|w| * inv) <= 0.5`, and that is monotone
//! in `|w|`: so the smallest magnitude that becomes ±1 is found once by bisection over bit
//! patterns, and every element afterwards is one integer comparison.

/// Elements per block of the mean; part of the definition of our rounding.
pub const BLOCK: usize = 1 << 16;

/// The clamp of the mean, `1e-5` as f32.
pub const MIN_ABSMEAN: f32 = 1e-5;

/// A little-endian floating-point element as a checkpoint stores it.
pub trait FloatElement {
    /// Bytes per element.
    const SIZE: usize;
    /// Bit pattern of the magnitude of infinity; anything at or above it is not finite.
    const INFINITY: u32;
    /// Bit pattern of the magnitude of the element that starts at `bytes`, sign cleared.
    fn magnitude(bytes: &[u8]) -> u32;
    /// Whether the sign bit is set.
    fn is_negative(bytes: &[u8]) -> bool;
    /// The number with this magnitude pattern.
    fn widen(magnitude: u32) -> f32;
    /// The largest magnitude of the elements in `bytes`, 0 if there is none.
    fn max_magnitude(bytes: &[u8]) -> u32;
    /// See [`ternarize`]; each type spells the loop so that it vectorizes.
    fn ternarize(bytes: &[u8], threshold: u32, out: &mut [i8]);
}

/// The first bytes of an element; zeros if there are not so many.
#[inline(always)]
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

#[inline(always)]
fn max_magnitude_16(bytes: &[u8]) -> u32 {
    let magnitudes = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|b| i16::from_le_bytes(*b) & 0x7fff);
    magnitudes.fold(0, i16::max) as u32
}

/// Both 16-bit types keep sign and magnitude alike, and magnitudes compare as i16.
#[inline(always)]
fn ternarize_16(bytes: &[u8], threshold: u32, out: &mut [i8]) {
    let threshold = threshold.min(0x7fff) as i16;
    for (b, t) in bytes.as_chunks::<2>().0.iter().zip(out) {
        let v = i16::from_le_bytes(*b);
        let nonzero = i16::from(v & 0x7fff >= threshold).wrapping_neg();
        *t = (nonzero & (v >> 15 | 1)) as i8;
    }
}

/// bfloat16, safetensors `BF16`, GGUF type 30.
#[derive(Debug)]
pub struct Bf16;
/// IEEE half, safetensors `F16`, GGUF type 1.
#[derive(Debug)]
pub struct F16;
/// IEEE single, safetensors `F32`, GGUF type 0.
#[derive(Debug)]
pub struct F32;

impl FloatElement for Bf16 {
    const SIZE: usize = 2;
    const INFINITY: u32 = 0x7f80;
    #[inline(always)]
    fn magnitude(b: &[u8]) -> u32 {
        u32::from(u16::from_le_bytes(first(b)) & 0x7fff)
    }
    #[inline(always)]
    fn is_negative(b: &[u8]) -> bool {
        first::<2>(b)[1] & 0x80 != 0
    }
    #[inline(always)]
    fn widen(magnitude: u32) -> f32 {
        f32::from_bits(magnitude << 16)
    }
    fn max_magnitude(bytes: &[u8]) -> u32 {
        max_magnitude_16(bytes)
    }
    fn ternarize(bytes: &[u8], threshold: u32, out: &mut [i8]) {
        ternarize_16(bytes, threshold, out);
    }
}

impl FloatElement for F16 {
    const SIZE: usize = 2;
    const INFINITY: u32 = 0x7c00;
    #[inline(always)]
    fn magnitude(b: &[u8]) -> u32 {
        u32::from(u16::from_le_bytes(first(b)) & 0x7fff)
    }
    #[inline(always)]
    fn is_negative(b: &[u8]) -> bool {
        first::<2>(b)[1] & 0x80 != 0
    }
    #[inline(always)]
    fn widen(magnitude: u32) -> f32 {
        crate::float16::f16_to_f32(magnitude as u16)
    }
    fn max_magnitude(bytes: &[u8]) -> u32 {
        max_magnitude_16(bytes)
    }
    fn ternarize(bytes: &[u8], threshold: u32, out: &mut [i8]) {
        ternarize_16(bytes, threshold, out);
    }
}

impl FloatElement for F32 {
    const SIZE: usize = 4;
    const INFINITY: u32 = 0x7f80_0000;
    #[inline(always)]
    fn magnitude(b: &[u8]) -> u32 {
        u32::from_le_bytes(first(b)) & 0x7fff_ffff
    }
    #[inline(always)]
    fn is_negative(b: &[u8]) -> bool {
        first::<4>(b)[3] & 0x80 != 0
    }
    #[inline(always)]
    fn widen(magnitude: u32) -> f32 {
        f32::from_bits(magnitude)
    }
    fn max_magnitude(bytes: &[u8]) -> u32 {
        let magnitudes = bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| i32::from_le_bytes(*b) & 0x7fff_ffff);
        magnitudes.fold(0, i32::max) as u32
    }
    fn ternarize(bytes: &[u8], threshold: u32, out: &mut [i8]) {
        let threshold = threshold.min(0x7fff_ffff) as i32;
        for (b, t) in bytes.as_chunks::<4>().0.iter().zip(out) {
            let v = i32::from_le_bytes(*b);
            let nonzero = i32::from(v & 0x7fff_ffff >= threshold).wrapping_neg();
            *t = (nonzero & (v >> 31 | 1)) as i8;
        }
    }
}

/// What one block contributes to the mean: see [`block_magnitude`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockMagnitude {
    /// Sum of magnitudes, f64, 8 lanes.
    pub sum: f64,
    /// Largest magnitude pattern; at or above [`FloatElement::INFINITY`] the block is not finite.
    pub max: u32,
}

/// Sums the magnitudes of at most [`BLOCK`] elements. `bytes` holds whole elements.
pub fn block_magnitude<E: FloatElement>(bytes: &[u8]) -> BlockMagnitude {
    let mut lanes = [0f64; 8];
    let mut octets = bytes.chunks_exact(E::SIZE.saturating_mul(8));
    for octet in &mut octets {
        for (lane, b) in lanes.iter_mut().zip(octet.chunks_exact(E::SIZE)) {
            *lane += f64::from(E::widen(E::magnitude(b)));
        }
    }
    for (lane, b) in lanes
        .iter_mut()
        .zip(octets.remainder().chunks_exact(E::SIZE))
    {
        *lane += f64::from(E::widen(E::magnitude(b)));
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
    // a second pass over a block that is in cache: the two vectorize apart, not together
    BlockMagnitude {
        sum,
        max: E::max_magnitude(bytes),
    }
}

/// The f64 sum of all magnitudes, blocks in order, and the largest magnitude pattern.
pub fn mean_magnitude<E: FloatElement>(bytes: &[u8]) -> (f64, u32) {
    let blocks = bytes
        .chunks(BLOCK.saturating_mul(E::SIZE))
        .map(block_magnitude::<E>);
    blocks.fold((0.0, 0), |(sum, max), b| (sum + b.sum, max.max(b.max)))
}

/// The quantizer of one tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Absmean {
    /// `max(mean |w|, 1e-5)`
    pub mean: f32,
    /// `1 / mean`
    pub inv: f32,
    /// `1 / inv`: the scale of the trits.
    pub scale: f32,
}

/// The quantizer for a tensor of `count` elements whose magnitudes sum to `sum`.
pub fn absmean_scale(sum: f64, count: usize) -> Absmean {
    let mean = if count == 0 {
        0.0
    } else {
        (sum / count as f64) as f32
    };
    let mean = mean.max(MIN_ABSMEAN);
    let inv = 1.0 / mean;
    Absmean {
        mean,
        inv,
        scale: 1.0 / inv,
    }
}

impl Absmean {
    /// The smallest magnitude pattern of `E` that rounds to ±1 (to 0 below it).
    pub fn threshold<E: FloatElement>(&self) -> u32 {
        let (mut low, mut high) = (0, E::INFINITY);
        while low < high {
            let mid = u32::midpoint(low, high);
            if E::widen(mid) * self.inv > 0.5 {
                high = mid
            } else {
                low = mid.saturating_add(1)
            }
        }
        low
    }
}

/// Trits of the elements in `bytes` for a [`threshold`](Absmean::threshold):
/// 0 below it, the sign at or above it. `out` has one place per element.
pub fn ternarize<E: FloatElement>(bytes: &[u8], threshold: u32, out: &mut [i8]) {
    E::ternarize(bytes, threshold, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::every;

    fn quantise_as_written<E: FloatElement>(bytes: &[u8], a: &Absmean) -> Vec<i8> {
        bytes
            .chunks_exact(E::SIZE)
            .map(|b| {
                let w = E::widen(E::magnitude(b)) * if E::is_negative(b) { -1.0 } else { 1.0 };
                (w * a.inv).round_ties_even().clamp(-1.0, 1.0) as i8
            })
            .collect()
    }

    #[test]
    fn worked_example_of_the_page() {
        let w: Vec<u8> = [0.5f32, -0.25, 0.125, 0.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let (sum, _) = mean_magnitude::<F32>(&w);
        let a = absmean_scale(sum, 4);
        assert_eq!(
            (a.mean.to_bits(), a.inv.to_bits(), a.scale.to_bits()),
            (0x3E60_0000, 0x4092_4925, 0x3E5F_FFFF)
        );
        let mut t = [0i8; 4];
        ternarize::<F32>(&w, a.threshold::<F32>(), &mut t);
        assert_eq!(t, [1, -1, 1, 0]);
    }

    #[test]
    fn all_zero_clamps_to_the_documented_bits() {
        let a = absmean_scale(0.0, 64);
        assert_eq!(
            (a.inv.to_bits(), a.scale.to_bits()),
            (0x47C3_5000, 0x3727_C5AC)
        );
    }

    #[test]
    fn the_threshold_equals_the_written_rule_for_every_half_precision_value() {
        let all: Vec<u8> = (0..=u16::MAX)
            .filter(|b| b & 0x7fff < 0x7c00)
            .step_by(every(61))
            .flat_map(u16::to_le_bytes)
            .collect();
        for mean in [1e-5f32, 3.3e-4, 0.007_812_5, 0.0312, 1.0, 2.375, 40_000.0] {
            let a = Absmean {
                mean,
                inv: 1.0 / mean,
                scale: 1.0 / (1.0 / mean),
            };
            let mut t = vec![0; all.len() / 2];
            ternarize::<F16>(&all, a.threshold::<F16>(), &mut t);
            assert_eq!(t, quantise_as_written::<F16>(&all, &a));
            ternarize::<Bf16>(&all, a.threshold::<Bf16>(), &mut t);
            assert_eq!(t, quantise_as_written::<Bf16>(&all, &a));
        }
    }
}
