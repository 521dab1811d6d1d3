//! Blocks of dense numbers as GGUF stores them, widened to f32.
//!
//! Invariant: every number is rounded at most once, from exact factors. Readers of files and kernels share these bodies, which
//! are inlined and so compiled for the instruction set of the caller.

mod of_32;
mod q2_k;
mod q4_k;
mod q6_k;

pub use of_32::{Q8_0_BLOCK, Q8_0_BYTES, decode_q8_0};
pub use q6_k::{Q6_K_BLOCK, Q6_K_BYTES, decode_q6_k};

use of_32::{decode_q4_0, decode_q4_1, decode_q5_0, decode_q5_1};
use q2_k::{decode_q2_k, decode_q3_k};
use q4_k::{decode_q4_k, decode_q5_k};

/// Dense block quantizations, for embeddings, output heads and routers only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "as ggml writes them")]
pub enum BlockType {
    /// 32 codes of four bits with one f16 factor, 18 bytes.
    Q4_0,
    /// 32 codes of four bits with a factor and a summand, 20 bytes.
    Q4_1,
    /// 32 codes of five bits with one f16 factor, 22 bytes.
    Q5_0,
    /// 32 codes of five bits with a factor and a summand, 24 bytes.
    Q5_1,
    /// 32 int8 with one f16 factor, 34 bytes.
    Q8_0,
    /// 256 codes of two bits with scales and minima of groups of 16, 84 bytes.
    Q2_K,
    /// 256 codes of three bits with scales of groups of 16, 110 bytes.
    Q3_K,
    /// 256 codes of four bits with scales and minima of groups of 32, 144 bytes.
    Q4_K,
    /// 256 codes of five bits with scales and minima of groups of 32, 176 bytes.
    Q5_K,
    /// 256 codes of six bits with scales of groups of 16, 210 bytes.
    Q6_K,
}

impl BlockType {
    /// Every type.
    pub const ALL: [Self; 10] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// ggml's name, in lower case: `q4_k`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q5_0 => "q5_0",
            Self::Q5_1 => "q5_1",
            Self::Q8_0 => "q8_0",
            Self::Q2_K => "q2_k",
            Self::Q3_K => "q3_k",
            Self::Q4_K => "q4_k",
            Self::Q5_K => "q5_k",
            Self::Q6_K => "q6_k",
        }
    }

    /// Numbers of a block, of which rows are whole multiples.
    #[inline(always)]
    pub fn block(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2_K | Self::Q3_K | Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    #[inline(always)]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2_K => 84,
            Self::Q3_K => 110,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Whether numbers are stored in this type on request; the others are read, and copied as they are.
    pub fn is_writable(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q6_K)
    }

    /// Where in a block the bytes with the exponents of its f16 numbers are, which are all that can be infinite or NaN.
    pub fn exponents(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[1],
            Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K => &[1, 3],
            Self::Q2_K => &[81, 83],
            Self::Q3_K => &[109],
            Self::Q6_K => &[209],
        }
    }

    /// Widens whole blocks; what is left of either side is not touched.
    #[inline(always)]
    pub fn widen(self, blocks: &[u8], out: &mut [f32]) {
        macro_rules! each {
            ($decode:ident) => {
                for (block, out) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                    $decode(block, out);
                }
            };
        }
        match self {
            Self::Q4_0 => each!(decode_q4_0),
            Self::Q4_1 => each!(decode_q4_1),
            Self::Q5_0 => each!(decode_q5_0),
            Self::Q5_1 => each!(decode_q5_1),
            Self::Q8_0 => each!(decode_q8_0),
            Self::Q2_K => each!(decode_q2_k),
            Self::Q3_K => each!(decode_q3_k),
            Self::Q4_K => each!(decode_q4_k),
            Self::Q5_K => each!(decode_q5_k),
            Self::Q6_K => each!(decode_q6_k),
        }
    }
}
