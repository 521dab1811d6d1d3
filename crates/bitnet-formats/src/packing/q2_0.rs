//! `q2_0`: llama.cpp's 2-bit blocks of 64, and two older kinds of blocks of 128 under the same type id
//! (`formats/packing/q2_0.md`).
//!
//! Invariant: the f16 scale, then one byte per four consecutive trits, the first in the lowest
//! bits, code = trit + 1. `q2_0` (18 bytes per 64) is written; `q2_0-g128` (34 per 128, the bytes of
//! `pq2_0`) and `q2_0-g128-last` (OxiBonsai's, the scale behind the codes) are only read. The container tells
//! 64 from 128 by extents of tensors; which end of a block the scale is at, only the data tell.

use super::f16_blocks::F16Block;
use super::{decode_quads, encode_quads};

/// GGUF type 42 as llama.cpp has it; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Q2_0;
/// GGUF type 42 as Prism's first releases have it.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Q2_0G128;

/// GGUF type 42 as OxiBonsai's converters have it.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Q2_0G128Last;

impl F16Block for Q2_0 {
    const NAME: &'static str = "q2_0";
    const GGUF_TYPE: u32 = 42;
    const GGUF_FILE_TYPE: u32 = 41;
    const TRITS: usize = 64;
    const BYTES: usize = 18;
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

impl F16Block for Q2_0G128 {
    const NAME: &'static str = "q2_0-g128";
    const GGUF_TYPE: u32 = 42;
    const GGUF_FILE_TYPE: u32 = 41;
    const TRITS: usize = 128;
    const BYTES: usize = 34;
    const SCALE_AT: usize = 0;
    const SIGNED_SCALES: bool = true;
    const SAME_BYTES_AS: Option<&'static str> = Some("pq2_0");
    const READ_ONLY: Option<&'static str> =
        Some("write pq2_0: the same bytes under an id of their own");

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        Q2_0::encode(trits, codes);
    }
    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        Q2_0::decode(codes, trits)
    }
    fn is_silent(codes: &[u8]) -> bool {
        Q2_0::is_silent(codes)
    }
}

impl F16Block for Q2_0G128Last {
    const NAME: &'static str = "q2_0-g128-last";
    const GGUF_TYPE: u32 = 42;
    const GGUF_FILE_TYPE: u32 = 41;
    const TRITS: usize = 128;
    const BYTES: usize = 34;
    const SCALE_AT: usize = 32;
    const SIGNED_SCALES: bool = true;
    const READ_ONLY: Option<&'static str> = Some("write pq2_0 or q2_0");

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
