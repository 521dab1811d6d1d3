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

// evaluated by the compiler, which refuses an index that is out of bounds
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
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

#[inline(always)]
fn trits_of(byte: &u8) -> [i8; 8] {
    TRITS.get(usize::from(*byte)).copied().unwrap_or_default()
}

/// `ceil(256 q / 243)`, with `256 q = 243 q + 13 q`.
fn byte_of(q: u8) -> u8 {
    q.wrapping_add(u16::from(q).wrapping_mul(13).div_ceil(243) as u8)
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
        let digit = |q: u8, t: &i8| q.wrapping_mul(3).wrapping_add(code(*t));
        let runs = trits.as_chunks::<16>().0;
        let (threes, last) = block.as_chunks_mut::<3>();
        for (run, bytes) in runs.iter().zip(threes) {
            for (five, byte) in run.as_chunks::<5>().0.iter().zip(bytes) {
                *byte = byte_of(five.iter().rev().fold(0, digit));
            }
        }
        for byte in last {
            let extra = runs.iter().rev().map(|run| &run[15]);
            *byte = byte_of(extra.fold(0, digit));
        }
    }

    #[inline(always)]
    fn decode(_: usize, block: &[u8], trits: &mut [i8; BLOCK]) -> bool {
        let runs = trits.as_chunks_mut::<16>().0.iter_mut();
        let (threes, last) = block.as_chunks::<3>();
        // the fifth digit of the last byte is always 0 and belongs to no trit
        let extra = last.first().map_or([0; 8], trits_of);
        for ((run, bytes), last) in runs.zip(threes).zip(extra) {
            for (five, byte) in run.as_chunks_mut::<5>().0.iter_mut().zip(bytes) {
                let [a, b, c, d, e, ..] = trits_of(byte);
                *five = [a, b, c, d, e];
            }
            run[15] = last;
        }
        true
    }
}
