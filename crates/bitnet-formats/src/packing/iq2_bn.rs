//! `iq2_bn`: ik_llama.cpp's 2-bit rows, an f32 scale before each (`formats/packing/iq2_bn.md`).
//!
//! Invariant: 64 trits in 16 bytes; element `j` of a block is in byte `j % 16`, bit pair `j / 16`
//! from the bottom, code = trit + 1. A row of zeros has scale 0 and codes that say +1.

use super::row_scales::{BLOCK, ScaledRows};
use super::{decode_runs, encode_runs, runs, runs_mut};

/// GGUF type 135; see the module.
#[derive(Debug)]
pub(super) struct Iq2Bn;

impl ScaledRows for Iq2Bn {
    const NAME: &'static str = "iq2_bn";
    const GGUF_TYPE: u32 = 135;
    const GGUF_FILE_TYPE: u32 = 137;
    const ROWS: usize = 1;
    const SCALE: usize = 4;
    const BYTES: usize = 16;

    #[inline(always)]
    fn encode(_: usize, trits: &[i8; BLOCK], block: &mut [u8]) {
        if let Some(runs) = runs::<16>(trits) {
            encode_runs(runs, block);
        }
    }

    #[inline(always)]
    fn decode(_: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool {
        // a copy, because inlined code does not show that bytes and trits never overlap
        let parts = block.first_chunk().copied().zip(runs_mut::<16>(trits));
        parts.is_none_or(|(bytes, runs)| decode_runs(&bytes, runs) == 0)
    }
}
