//! `q1_0`: llama.cpp's binary blocks of 128 (`formats/packing/q1_0.md`).
//!
//! Invariant: 128 trits of one row in 18 bytes: the f16 scale, then one bit per trit, the first in
//! the lowest bit, 1 for +1 and 0 for -1. There is no code for 0: a matrix with one beside other trits of a
//! block is refused, and a block of zeros has scale 0. Every byte decodes, so there is no bad code.

use super::f16_blocks::F16Block;

/// GGUF type 41; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Q1_0;

impl F16Block for Q1_0 {
    const NAME: &'static str = "q1_0";
    const GGUF_TYPE: u32 = 41;
    const GGUF_FILE_TYPE: u32 = 40;
    const TRITS: usize = 128;
    const BYTES: usize = 18;
    const SCALE_AT: usize = 0;
    const SIGNED_SCALES: bool = true;
    const ZERO_BY_SCALE: Option<&'static str> =
        Some("choose a target with a code for 0, such as gguf-pq2_0 or gguf-ptq1_0");

    fn misfit(trits: &[i8], from: usize) -> Option<String> {
        let column = from.checked_add(trits.iter().position(|&t| t == 0)?)?;
        let last = from.checked_add(Self::TRITS - 1)?;
        Some(format!(
            "column {column}: q1_0 holds no 0 beside other trits in a block (columns {from} to {last}), found one"
        ))
    }

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        for (byte, eight) in codes.iter_mut().zip(trits.as_chunks::<8>().0) {
            // as the reference: what is not negative is +1; the product brings the signs together
            let t = u64::from_le_bytes(eight.map(|t| t as u8));
            let positive = (!t & 0x8080_8080_8080_8080) >> 7;
            *byte = (positive.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
    }

    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        for (byte, eight) in codes.iter().zip(trits.as_chunks_mut::<8>().0) {
            for (bit, t) in (0..).zip(eight) {
                *t = ((byte.wrapping_shr(bit) & 1) as i8)
                    .wrapping_mul(2)
                    .wrapping_sub(1);
            }
        }
        true
    }
}
