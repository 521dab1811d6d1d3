//! `q1_0`: llama.cpp's binary blocks of 128 (`formats/packing/q1_0.md`).
//!
//! Invariant: 128 trits of one row in 18 bytes: the f16 scale, then one bit per trit, the first in
//! the lowest bit, 1 for +1 and 0 for -1. There is no zero, so a matrix with one is refused; every
//! byte decodes, so there is no bad code.

use super::f16_blocks::F16Block;
use crate::error::{ErrorCode, FormatError};
use bitnet_ternary::TernaryMatrix;

/// GGUF type 41; see the module.
#[derive(Debug)]
#[allow(non_camel_case_types)]
pub(super) struct Q1_0;

impl F16Block for Q1_0 {
    const NAME: &'static str = "q1_0";
    const GGUF_TYPE: u32 = 41;
    const GGUF_FILE_TYPE: u32 = 40;
    const TRITS: usize = 128;
    const BYTES: usize = 18;
    const SCALE_AT: usize = 0;

    fn check_trits(matrix: &TernaryMatrix) -> Result<(), FormatError> {
        let Some(at) = matrix.trits().iter().position(|&t| t == 0) else {
            return Ok(());
        };
        let (row, col) = (at / matrix.cols(), at % matrix.cols());
        Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("row {row}, column {col}: q1_0 holds -1 and +1 only, found 0"),
        )
        .hint("choose a target with a code for 0, such as gguf-pq2_0 or gguf-ptq1_0"))
    }

    #[inline(always)]
    fn encode(trits: &[i8], block: &mut [u8]) {
        for (byte, eight) in block[2..].iter_mut().zip(trits.as_chunks::<8>().0) {
            // as the reference: what is not negative is +1; the product brings the signs together
            let t = u64::from_le_bytes(eight.map(|t| t as u8));
            let positive = (!t & 0x8080_8080_8080_8080) >> 7;
            *byte = (positive.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
        }
    }

    #[inline(always)]
    fn decode(block: &[u8], trits: &mut [i8]) -> bool {
        for (byte, eight) in block[2..].iter().zip(trits.as_chunks_mut::<8>().0) {
            for (bit, t) in eight.iter_mut().enumerate() {
                *t = (byte >> bit & 1) as i8 * 2 - 1;
            }
        }
        true
    }

    fn is_silent(_: &[u8]) -> bool {
        false
    }
}
