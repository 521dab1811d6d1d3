//! `iq2_bn`: ik_llama.cpp's 2-bit rows, an f32 scale before each (`formats/packing/iq2_bn.md`).
//!
//! Invariant: 64 trits in 16 bytes; element `j` of a block is in byte `j % 16`, bit pair `j / 16`
//! from the bottom, code = trit + 1. A row of zeros has scale 0 and codes that say +1.

use super::code;
use super::row_scales::{BLOCK, ScaledRows};

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
        let (a, rest) = trits.split_at(16);
        let (b, rest) = rest.split_at(16);
        let (c, d) = rest.split_at(16);
        for (j, byte) in block.iter_mut().enumerate().take(16) {
            *byte = code(a[j]) | code(b[j]) << 2 | code(c[j]) << 4 | code(d[j]) << 6;
        }
    }

    #[inline(always)]
    fn decode(_: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool {
        let (a, rest) = trits.split_at_mut(16);
        let (b, rest) = rest.split_at_mut(16);
        let (c, d) = rest.split_at_mut(16);
        let mut bad = 0;
        for (j, &byte) in block.iter().enumerate().take(16) {
            bad |= byte & byte >> 1;
            a[j] = (byte & 3) as i8 - 1;
            b[j] = (byte >> 2 & 3) as i8 - 1;
            c[j] = (byte >> 4 & 3) as i8 - 1;
            d[j] = (byte >> 6) as i8 - 1;
        }
        bad & 0x55 == 0
    }
}
