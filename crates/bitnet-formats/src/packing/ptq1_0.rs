//! `ptq1_0`: Prism's base-3 blocks of 128, five trits to a byte (`formats/packing/ptq1_0.md`).
//!
//! Invariant: 128 trits of one row in 28 bytes: 80 trits in 16 bytes (stride 16), 40 in 8 (stride
//! 8), 8 in 2 (stride 2, four trits each), then the f16 scale. The bytes are those of `tq1_0`; the
//! runs are not. Every byte value decodes, so there is no bad code.

use super::f16_blocks::F16Block;
use super::tq1_0::{decode_run, encode_run};

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
    fn encode(trits: &[i8], block: &mut [u8]) {
        encode_run::<16, 5>(&trits[..80], &mut block[..16]);
        encode_run::<8, 5>(&trits[80..120], &mut block[16..24]);
        encode_run::<2, 4>(&trits[120..128], &mut block[24..26]);
    }

    #[inline(always)]
    fn decode(block: &[u8], trits: &mut [i8]) -> bool {
        decode_run::<16>(&block[..16], &mut trits[..80]);
        decode_run::<8>(&block[16..24], &mut trits[80..120]);
        decode_run::<2>(&block[24..26], &mut trits[120..128]);
        true
    }

    fn is_silent(block: &[u8]) -> bool {
        // 0x80 alone decodes to five zeros, 0x7f to 0x81 to four
        let fives = block[..24].iter().fold(0, |any, b| any | (b ^ 0x80));
        fives == 0 && block[24..26].iter().all(|b| (0x7f..=0x81).contains(b))
    }
}
