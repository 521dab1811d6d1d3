//! `ptq1_0`: Prism's base-3 blocks of 128, five trits to a byte (`formats/packing/ptq1_0.md`).
//!
//! Invariant: 128 trits of one row in 28 bytes: 80 trits in 16 bytes (stride 16), 40 in 8 (stride
//! 8), 8 in 2 (stride 2, four trits each), then the f16 scale. The bytes are those of `tq1_0`; the
//! runs are not. Every byte value decodes, so there is no bad code.

use super::f16_blocks::F16Block;
use super::tq1_0::{are_zeros, decode_run, encode_run};

/// GGUF type 143; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Ptq1_0;

impl F16Block for Ptq1_0 {
    const NAME: &'static str = "ptq1_0";
    const GGUF_TYPE: u32 = 143;
    const GGUF_FILE_TYPE: u32 = 143;
    const TRITS: usize = 128;
    const BYTES: usize = 28;
    const SCALE_AT: usize = 26;
    const SIGNED_SCALES: bool = true;

    #[inline(always)]
    fn encode(trits: &[i8], codes: &mut [u8]) {
        if let (Some(trits), Some(codes)) = (trits.first_chunk(), codes.first_chunk_mut()) {
            let (trits, codes): (&[i8; 128], &mut [u8; 26]) = (trits, codes);
            encode_run::<16, 5>(&trits[..80], &mut codes[..16]);
            encode_run::<8, 5>(&trits[80..120], &mut codes[16..24]);
            encode_run::<2, 4>(&trits[120..], &mut codes[24..]);
        }
    }

    #[inline(always)]
    fn decode(codes: &[u8], trits: &mut [i8]) -> bool {
        if let (Some(codes), Some(trits)) = (codes.first_chunk(), trits.first_chunk_mut()) {
            let (codes, trits): (&[u8; 26], &mut [i8; 128]) = (codes, trits);
            decode_run::<16>(&codes[..16], &mut trits[..80]);
            decode_run::<8>(&codes[16..24], &mut trits[80..120]);
            decode_run::<2>(&codes[24..], &mut trits[120..]);
        }
        true
    }

    fn is_silent(codes: &[u8]) -> bool {
        codes.split_last_chunk::<2>().is_some_and(are_zeros)
    }
}
