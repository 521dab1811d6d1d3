//! `pq2_0`: Prism's 2-bit blocks of 128 (`formats/packing/pq2_0.md`).
//!
//! Invariant: 128 trits in 34 bytes: the f16 scale, then one byte per four consecutive trits, the
//! first in the lowest bits, code = trit + 1. The bytes are those of `q2_0-g128`; only the type id
//! differs, so that one becomes the other by its header.

use super::f16_blocks::F16Block;
use super::{decode_quads, encode_quads};

/// GGUF type 142; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Pq2_0;

impl F16Block for Pq2_0 {
    const NAME: &'static str = "pq2_0";
    const GGUF_TYPE: u32 = 142;
    const GGUF_FILE_TYPE: u32 = 141;
    const TRITS: usize = 128;
    const BYTES: usize = 34;
    const SCALE_AT: usize = 0;
    const SIGNED_SCALES: bool = true;

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        encode_quads(trits, codes);
    }
    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        decode_quads(codes, trits)
    }
    fn is_silent(codes: &[u8]) -> bool {
        codes.iter().fold(0, |any, b| any | (b ^ 0x55)) == 0
    }
}
