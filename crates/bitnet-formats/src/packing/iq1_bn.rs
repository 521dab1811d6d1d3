//! `iq1_bn`: ik_llama.cpp's base-3 rows, an f16 scale before each (`formats/packing/iq1_bn.md`).
//!
//! Invariant: 64 trits in 13 bytes; byte `3i + k` holds the five trits from `16i + 5k` on, byte 12
//! the trits 15, 31, 47 and 63, and the first of a byte weighs **least** (the reverse of `tq1_0`).
//! A byte is `q / 243` as 256ths, rounded up. Every byte value decodes, so there is no bad code.

use super::code;
use super::row_scales::{BLOCK, ScaledRows};

/// GGUF type 134; see the module.
#[derive(Debug)]
pub(super) struct Iq1Bn;

/// The five trits of every byte, first to last; the rest is there for the index to be a shift.
static TRITS: [[i8; 8]; 256] = trits();

const fn trits() -> [[i8; 8]; 256] {
    let mut table = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut u = byte;
        let mut j = 5;
        while j > 0 {
            j -= 1; // the last weighs most, so it comes out first
            table[byte][j] = ((3 * u) >> 8) as i8 - 1;
            u = (3 * u) & 255;
        }
        byte += 1;
    }
    table
}

/// `ceil(256 q / 243)`, with `256 q = 243 q + 13 q`.
fn byte_of(q: u8) -> u8 {
    q.wrapping_add((13 * u16::from(q)).div_ceil(243) as u8)
}

impl ScaledRows for Iq1Bn {
    const NAME: &'static str = "iq1_bn";
    const GGUF_TYPE: u32 = 134;
    const GGUF_FILE_TYPE: u32 = 136;
    const ROWS: usize = 1;
    const SCALE: usize = 2;
    const BYTES: usize = 13;

    #[inline(always)]
    fn encode(_: usize, trits: &[i8; BLOCK], block: &mut [u8]) {
        let mut extra = 0u8;
        let runs = trits.as_chunks::<16>().0;
        for (run, bytes) in runs.iter().zip(block.chunks_exact_mut(3)) {
            for (five, byte) in run.as_chunks::<5>().0.iter().zip(bytes) {
                let digits = five.iter().rev();
                *byte = byte_of(digits.fold(0, |q, &t| q * 3 + code(t)));
            }
        }
        for run in runs.iter().rev() {
            extra = extra * 3 + code(run[15]);
        }
        block[12] = byte_of(extra);
    }

    #[inline(always)]
    fn decode(_: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool {
        // the fifth digit of the last byte is always 0 and belongs to nobody
        let extra = &TRITS[usize::from(block[12])];
        let runs = trits.as_chunks_mut::<16>().0.iter_mut();
        for ((run, bytes), last) in runs.zip(block.chunks_exact(3)).zip(extra) {
            for (five, byte) in run.as_chunks_mut::<5>().0.iter_mut().zip(bytes) {
                five.copy_from_slice(&TRITS[usize::from(*byte)][..5]);
            }
            run[15] = *last;
        }
        true
    }
}
