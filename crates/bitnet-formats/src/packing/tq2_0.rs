//! `tq2_0`: llama.cpp's 2-bit ternary blocks (`formats/packing/tq2_0.md`).
//!
//! Invariant: 256 trits of one row in 66 bytes; element `e` is in byte `32 (e / 128) + e % 32`, bit
//! pair `(e % 128) / 32` from the bottom, code = trit + 1; then the f16 scale. A half block is a
//! 128-block of `i2_s` with the four bit pairs of every byte reversed.

use super::f16_blocks::F16Block;
use super::{decode_runs, encode_runs, runs, runs_mut};

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
    fn encode(trits: &[i8], codes: &mut [u8]) {
        let halves = trits.as_chunks::<128>().0.iter();
        for (bytes, trits) in codes.as_chunks_mut::<32>().0.iter_mut().zip(halves) {
            if let Some(runs) = runs::<32>(trits) {
                encode_runs(runs, bytes);
            }
        }
    }

    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        let mut bad = 0;
        let halves = codes.as_chunks::<32>().0.iter();
        for (trits, bytes) in trits.as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            if let Some(runs) = runs_mut::<32>(trits) {
                bad |= decode_runs(bytes, runs);
            }
        }
        bad == 0
    }

    fn is_silent(codes: &[u8]) -> bool {
        codes.iter().fold(0, |any, b| any | (b ^ 0x55)) == 0
    }
}
