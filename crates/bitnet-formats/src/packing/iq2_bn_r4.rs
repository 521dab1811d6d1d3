//! `iq2_bn_r4`: four rows of `iq2_bn` interleaved, as ik_llama.cpp's kernels read them
//! (`formats/packing/iq2_bn_r4.md`).
//!
//! Invariant: four f32 scales, then per 64 columns 64 bytes; row `k`, column `16 l + 4 m + i` of a
//! block is in byte `16 l + 4 k + i`, bit pair `m`, code = trit + 1. As in `iq2_bn`, a row of zeros
//! has scale 0 and codes that say +1.

use super::row_scales::{BLOCK, ScaledRows, decode_16, encode_16};

/// GGUF type 335; see the module.
#[derive(Debug)]
pub(super) struct Iq2BnR4;

impl ScaledRows for Iq2BnR4 {
    const NAME: &'static str = "iq2_bn_r4";
    const GGUF_TYPE: u32 = 335;
    const GGUF_FILE_TYPE: u32 = 337;
    const ROWS: usize = 4;
    const SCALE: usize = 4;
    const BYTES: usize = 16;

    #[inline(always)]
    fn encode(k: usize, trits: &[i8; BLOCK], block: &mut [u8]) {
        let quarters = block.as_chunks_mut::<16>().0.iter_mut();
        for (bytes, run) in quarters.zip(trits.as_chunks::<16>().0) {
            if let Some(bytes) = bytes.as_chunks_mut::<4>().0.get_mut(k) {
                encode_16::<1>(run, bytes);
            }
        }
    }

    #[inline(always)]
    fn decode(k: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool {
        let mut bad = 0;
        let quarters = block.as_chunks::<16>().0.iter();
        for (bytes, run) in quarters.zip(trits.as_chunks_mut::<16>().0) {
            if let Some(bytes) = bytes.as_chunks::<4>().0.get(k) {
                decode_16::<1>(bytes, run);
                let word = u32::from_le_bytes(*bytes);
                bad |= word & word >> 1;
            }
        }
        bad & 0x5555_5555 == 0
    }
}
