//! Q2_K and Q3_K: 256 codes of two or three bits, a small scale per 16 of them, and f16 factors of the scales.
//!
//! Invariant: every number is rounded once, or not at all.

use crate::f16_to_f32;

// Each half block of 128 elements is four runs of 32. Element `l` of run `r` of half `h` has its low two bits in byte
// `32 h + l` of the codes, pair `r`. Group `8 h + 2 r + l / 16` has its scale.

/// A block of Q2_K (ggml, `block_q2_K`): 16 bytes of scales `k` (low nibble) and minima `n` (high nibble), 64 bytes of
/// codes, f16 `d` and `dmin`; `x = d * k * q - dmin * n`.
#[inline(always)]
pub(super) fn decode_q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let d = f16_to_f32(u16::from_le_bytes([block[80], block[81]]));
    let dmin = f16_to_f32(u16::from_le_bytes([block[82], block[83]]));
    let codes = block[16..80].as_chunks::<32>().0.iter();
    let scales = block[..16].as_chunks::<8>().0.iter();
    let halves = out.as_chunks_mut::<128>().0.iter_mut();
    for ((out, codes), scales) in halves.zip(codes).zip(scales) {
        let runs = out.as_chunks_mut::<32>().0.iter_mut();
        let scales = scales.as_chunks::<2>().0;
        for ((out, scales), shift) in runs.zip(scales).zip([0u32, 2, 4, 6]) {
            let groups = out.as_chunks_mut::<16>().0.iter_mut();
            let groups = groups.zip(codes.as_chunks::<16>().0);
            for ((out, codes), scale) in groups.zip(scales) {
                // both products are exact in f32 (11 + 4 + 2 bits), so there is one rounding
                let step = d * f32::from(scale & 15);
                let least = dmin * f32::from(scale >> 4);
                for (x, q) in out.iter_mut().zip(codes) {
                    *x = step * f32::from(q.wrapping_shr(shift) & 3) - least;
                }
            }
        }
    }
}

/// A block of Q3_K (ggml, `block_q3_K`): 32 bytes of third bits, 64 bytes of low pairs, 12 bytes of scales `k` of six
/// bits, f16 `d`; `x = d * (k - 32) * (q - 4)`.
#[inline(always)]
pub(super) fn decode_q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_to_f32(u16::from_le_bytes([block[108], block[109]]));
    let third = &block[..32];
    let scales = six_bits(&block[96..108]);
    let codes = block[32..96].as_chunks::<32>().0.iter();
    let scales = scales.as_chunks::<8>().0.iter();
    let halves = out.as_chunks_mut::<128>().0.iter_mut();
    // element `l` of run `r` of half `h` has its third bit in bit `4 h + r` of byte `l`
    let places = [[0u32, 1, 2, 3], [4, 5, 6, 7]];
    for (((out, codes), scales), places) in halves.zip(codes).zip(scales).zip(places) {
        let runs = out.as_chunks_mut::<32>().0.iter_mut();
        let runs = runs.zip(scales.as_chunks::<2>().0);
        for (((out, scales), shift), place) in runs.zip([0u32, 2, 4, 6]).zip(places) {
            let groups = out.as_chunks_mut::<16>().0.iter_mut();
            let bits = codes.as_chunks::<16>().0.iter();
            let bits = bits.zip(third.as_chunks::<16>().0);
            for ((out, (low, high)), scale) in groups.zip(bits).zip(scales) {
                let step = d * f32::from(*scale);
                for ((x, low), high) in out.iter_mut().zip(low).zip(high) {
                    let q = low.wrapping_shr(shift) & 3 | (high.wrapping_shr(place) & 1) << 2;
                    *x = step * f32::from((q as i8).wrapping_sub(4));
                }
            }
        }
    }
}

/// Scales of Q3_K, without their bias: scale `i` has its low four bits in byte `i % 8`, nibble `i / 8`, its high two
/// bits in byte `8 + i % 4`, pair `i / 4`.
#[inline(always)]
fn six_bits(bytes: &[u8]) -> [i8; 16] {
    let mut scales = [0; 16];
    let (low, high) = bytes.split_at_checked(8).unwrap_or_default();
    for (scales, nibble) in scales.as_chunks_mut::<8>().0.iter_mut().zip([0u32, 4]) {
        for (scale, low) in scales.iter_mut().zip(low) {
            *scale = (low.wrapping_shr(nibble) & 15) as i8;
        }
    }
    for (scales, pair) in scales
        .as_chunks_mut::<4>()
        .0
        .iter_mut()
        .zip([0u32, 2, 4, 6])
    {
        for (scale, high) in scales.iter_mut().zip(high) {
            let whole = *scale | ((high.wrapping_shr(pair) & 3) << 4) as i8;
            *scale = whole.wrapping_sub(32);
        }
    }
    scales
}
