//! `tq1_0`: llama.cpp's base-3 ternary blocks, five trits to a byte (`formats/packing/tq1_0.md`).
//!
//! Invariant: 256 trits of one row in 54 bytes: 160 trits in 32 bytes (stride 32), 80 in 16
//! (stride 16), 16 in 4 (stride 4, four trits each), then the f16 scale. A byte is the fraction
//! `q / 243` of its base-3 digits as 256ths, rounded up, so that the digits come back by
//! multiplying with 3 and taking what overflows. Every byte value decodes, so there is no bad code;
//! of the 256 values an encoder makes 243 (81 in the last four bytes).

use super::code;
use super::f16_blocks::F16Block;

/// GGUF type 34; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Tq1_0;

impl F16Block for Tq1_0 {
    const NAME: &'static str = "tq1_0";
    const GGUF_TYPE: u32 = 34;
    const GGUF_FILE_TYPE: u32 = 36;
    const TRITS: usize = 256;
    const BYTES: usize = 54;
    const SCALE_AT: usize = 52;

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        if let (Some(trits), Some(codes)) = (trits.first_chunk(), codes.first_chunk_mut()) {
            let (trits, codes): (&[i8; 256], &mut [u8; 52]) = (trits, codes);
            encode_run::<32, 5>(&trits[..160], &mut codes[..32]);
            encode_run::<16, 5>(&trits[160..240], &mut codes[32..48]);
            encode_run::<4, 4>(&trits[240..], &mut codes[48..]);
        }
    }

    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        if let (Some(codes), Some(trits)) = (codes.first_chunk(), trits.first_chunk_mut()) {
            let (codes, trits): (&[u8; 52], &mut [i8; 256]) = (codes, trits);
            decode_run::<32>(&codes[..32], &mut trits[..160]);
            decode_run::<16>(&codes[32..48], &mut trits[160..240]);
            decode_run::<4>(&codes[48..], &mut trits[240..]);
        }
        true
    }

    fn is_silent(codes: &[u8]) -> bool {
        codes.split_last_chunk::<4>().is_some_and(are_zeros)
    }
}

/// Whether these bytes of five trits and of four hold zeros alone: 0x80 is five of them, 0x7f to 0x81 are four.
pub(super) fn are_zeros<const N: usize>((fives, fours): (&[u8], &[u8; N])) -> bool {
    fives.iter().fold(0, |any, b| any | (b ^ 0x80)) == 0
        && fours.iter().all(|b| (0x7f..=0x81).contains(b))
}

/// Byte `m` from the trits `m`, `m + STRIDE`, ...; the first digit weighs most.
#[inline(always)]
pub(super) fn encode_run<const STRIDE: usize, const DIGITS: u32>(trits: &[i8], bytes: &mut [u8]) {
    let mut q = [0u8; STRIDE];
    for run in trits.as_chunks::<STRIDE>().0 {
        for (q, t) in q.iter_mut().zip(run) {
            *q = q.wrapping_mul(3).wrapping_add(code(*t));
        }
    }
    for (byte, q) in bytes.iter_mut().zip(q) {
        let q = if DIGITS == 4 { q.wrapping_mul(3) } else { q };
        // ceil(256 q / 243), with 256 q = 243 q + 13 q to stay in 16 bits
        *byte = q.wrapping_add(u16::from(q).wrapping_mul(13).div_ceil(243) as u8);
    }
}

/// The trits `m`, `m + STRIDE`, ... from byte `m`.
#[inline(always)]
pub(super) fn decode_run<const STRIDE: usize>(bytes: &[u8], trits: &mut [i8]) {
    let Some(mut rest) = bytes.first_chunk::<STRIDE>().copied() else {
        return;
    };
    for run in trits.as_chunks_mut::<STRIDE>().0 {
        for (u, t) in rest.iter_mut().zip(run) {
            // the digit floor(3 u / 256) as two comparisons, which stay in 8 bits
            let digit = i8::from(*u >= 86).wrapping_add(i8::from(*u >= 171));
            *t = digit.wrapping_sub(1);
            *u = u.wrapping_mul(3);
        }
    }
}
