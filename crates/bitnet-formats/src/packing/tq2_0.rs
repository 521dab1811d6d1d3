//! `tq2_0`: llama.cpp's 2-bit ternary blocks (`formats/packing/tq2_0.md`).
//!
//! Invariant: 256 trits of one row in 66 bytes; element `e` is in byte `32 (e / 128) + e % 32`, bit
//! pair `(e % 128) / 32` from the bottom, code = trit + 1; then the f16 scale. A half block is a
//! 128-block of `i2_s` with the four bit pairs of every byte reversed.

use super::code;
use super::f16_blocks::F16Block;

/// GGUF type 35; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Tq2_0;

impl F16Block for Tq2_0 {
    const NAME: &'static str = "tq2_0";
    const GGUF_TYPE: u32 = 35;
    const GGUF_FILE_TYPE: u32 = 37;
    const TRITS: usize = 256;
    const BYTES: usize = 66;
    const SCALE_AT: usize = 64;

    #[inline(always)]
    fn encode(trits: &[i8], block: &mut [u8]) {
        let halves = trits.as_chunks::<128>().0.iter();
        for (bytes, trits) in block.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
            let (a, rest) = trits.split_at(32);
            let (b, rest) = rest.split_at(32);
            let (c, d) = rest.split_at(32);
            for j in 0..32 {
                bytes[j] = code(a[j]) | code(b[j]) << 2 | code(c[j]) << 4 | code(d[j]) << 6;
            }
        }
    }

    #[inline(always)]
    fn decode(block: &[u8], trits: &mut [i8]) -> bool {
        let mut bad = 0;
        let halves = block.as_chunks::<32>().0.iter();
        for (trits, bytes) in trits.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            let (a, rest) = trits.split_at_mut(32);
            let (b, rest) = rest.split_at_mut(32);
            let (c, d) = rest.split_at_mut(32);
            for j in 0..32 {
                let byte = bytes[j];
                bad |= byte & byte >> 1;
                a[j] = (byte & 3) as i8 - 1;
                b[j] = (byte >> 2 & 3) as i8 - 1;
                c[j] = (byte >> 4 & 3) as i8 - 1;
                d[j] = (byte >> 6) as i8 - 1;
            }
        }
        bad & 0x55 == 0
    }

    fn is_silent(block: &[u8]) -> bool {
        block[..64].iter().fold(0, |any, b| any | (b ^ 0x55)) == 0
    }
}
