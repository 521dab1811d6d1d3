//! What a ternary matrix is, and how float weights and activations become one.
//!
//! Invariant of this crate: a [`TernaryMatrix`] holds trits only (−1, 0, +1), row-major in the
//! orientation of the Hugging Face checkpoint (`(out, in)`), with finite, non-negative scales whose
//! count fits its shape. Everything that packs, unpacks, multiplies or compares ternary weights
//! meets in this one value, so formats and kernels never have to know each other.

#![forbid(unsafe_code)]
// numbers of files end up here: what may wrap says so
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod absmax;
mod absmean;
mod blocks;
mod codes;
mod float16;
mod matrix;
mod scales;

pub use absmax::{ActivationError, QuantizedActivations, activation_scale, quantize_row};
pub use absmean::{
    Absmean, BLOCK, Bf16, BlockMagnitude, F16, F32, FloatElement, MIN_ABSMEAN, absmean_scale,
    block_magnitude, mean_magnitude, ternarize,
};
pub use blocks::{
    BlockType, Q6_K_BLOCK, Q6_K_BYTES, Q8_0_BLOCK, Q8_0_BYTES, decode_q6_k, decode_q8_0,
};
pub use codes::{decode_quads, encode_quads};
pub use float16::{
    bf16_to_f32, f16_to_f32, f32_is_bf16_exact, f32_is_f16_exact, f32_to_bf16, f32_to_f16,
};
pub use matrix::{MAX_COLS, MatrixError, TernaryMatrix};
pub use scales::{GROUP_SIZES, Scales};

/// The step through the cases of a test: Miri takes some hundred times as long, and tries every `nth`.
#[cfg(test)]
const fn every(nth: usize) -> usize {
    if cfg!(miri) { nth } else { 1 }
}
