//! `iq1_bn`: ik_llama.cpp's base-3 rows, an f16 scale before each (`formats/packing/iq1_bn.md`).
//!
//! Invariant: 64 trits in 13 bytes; byte `3i + k` holds the five trits from `16i + 5k` on, byte 12
//! the trits 15, 31, 47 and 63, and the first of a byte weighs **least** (the reverse of `tq1_0`).
//! A byte is `q / 243` as 256ths, rounded up. Every byte value decodes, so there is no bad code.

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

/// The byte of every number of five trits: `ceil(256 q / 243)`.
static BYTES: [u8; 256] = bytes();

// as above
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
const fn bytes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut q = 0;
    while q < 243 {
        table[q] = (256 * q).div_ceil(243) as u8;
        q += 1;
    }
    table
}

/// Multiplied with codes, a byte each, this adds up 1, 3, 9, 27 and 81 times the first five in byte 4: at most 242, and
/// what adds up in the bytes before it is less, so nothing carries.
const WEIGHTS: u64 = 81 | 27 << 8 | 9 << 16 | 3 << 24 | 1 << 32;

/// The byte of the first five of eight codes.
#[inline(always)]
fn byte_of(codes: u64) -> u8 {
    let [_, _, _, _, q, ..] = codes.wrapping_mul(WEIGHTS).to_le_bytes();
    BYTES.get(usize::from(q)).copied().unwrap_or_default()
}

/// The codes of eight trits, a byte each.
#[inline(always)]
fn codes_of_8(trits: &[i8; 8]) -> u64 {
    let all = u64::from_le_bytes(trits.map(|t| t as u8));
    // the highest bit of a byte takes no carry: 0xff becomes 0
    let (low, top) = (all & !HIGHEST, all & HIGHEST);
    low.wrapping_add(HIGHEST >> 7) ^ top
}

/// The highest bit of each byte.
const HIGHEST: u64 = 0x8080_8080_8080_8080;

impl ScaledRows for Iq1Bn {
    const NAME: &'static str = "iq1_bn";
    const GGUF_TYPE: u32 = 134;
    const GGUF_FILE_TYPE: u32 = 136;
    const ROWS: usize = 1;
    const SCALE: usize = 2;
    const BYTES: usize = 13;

    #[inline(always)]
    fn encode(_: usize, trits: &[i8; BLOCK], block: &mut [u8]) {
        let runs = trits.as_chunks::<16>().0;
        let (threes, last) = block.as_chunks_mut::<3>();
        let mut extra = 0; // the last of each run, a byte each
        for (run, bytes) in runs.iter().rev().zip(threes.iter_mut().rev()) {
            let [low, high] = run.as_chunks::<8>().0 else {
                return;
            };
            let (low, high) = (codes_of_8(low), codes_of_8(high));
            *bytes = [low, low >> 40 | high << 24, high >> 16].map(byte_of);
            extra = extra << 8 | high >> 56;
        }
        for byte in last {
            *byte = byte_of(extra);
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
