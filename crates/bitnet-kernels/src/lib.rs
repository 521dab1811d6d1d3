//! Ternary x int8 products: a scalar definition and one file per instruction set.
//!
//! # The contract
//!
//! A kernel computes, for a [`TernaryMatrix`] `T` of shape
//! `(rows, cols)` and a token of int8 activations `a` of shape `(cols,)`, the exact integers
//!
//! ```text
//! dot[g][r] = sum over the columns k of group g:  T[r][k] * a[k]
//! ```
//!
//! where the groups are those of the scales (one group of all columns when the scales are per
//! tensor or per row). It may assume that every trit is -1, 0 or +1 and that
//! `cols < MAX_COLS`, so that every dot is below 2^24 in magnitude and exact as `f32`; it may assume
//! nothing of the activations: -128 is legal. Integer addition has no order, therefore every
//! kernel returns the same bits as [`scalar`](KERNELS), and the tests compare with `==`.
//!
//! Scales are applied outside the kernels, by one piece of code (`formats/numerics.md`, rule 2). The
//! float operations beside the products ([`Backend::dot`] and its neighbours) are one body of safe
//! Rust in the canonical order of rule 3, compiled once per instruction set; they return the same
//! bits on every backend too. Batches do not matter: many tokens equal one token many times.
//!
//! Kernels are single-threaded and work on a range of rows; threads are the caller's business:
//! [`Output::split_at`] gives each its own rows without a copy.
//!
//! # The invariant of this crate
//!
//! A [`Backend`] exists only if its kernel said it is available, and a [`PackedMatrix`] or an
//! [`ActivationBatch`] carries the backend that made it: an instruction cannot reach a CPU that
//! lacks it, and a layout cannot reach a kernel that does not read it.

#![allow(unsafe_code)]
// lanes and register tiles are arrays of constant length, indexed together
#![allow(clippy::needless_range_loop)]

// the floors, from the ground up: no file uses one above its own (`scripts/rooms` checks)
mod lanes;
mod lines;
mod output;
mod peak;
mod pool;
mod primitives;

mod activations;
mod fixed_point;
mod stored_rows;

mod contract;

mod attention;
mod candidates;
mod delta;
mod dense;
mod float_ops;
mod hadamard;
mod scaling;
mod token_attention;

mod float_table;
mod kernel;
mod kernels;

mod backend;
mod batch;
mod cpu;
mod packed;
mod probe;
mod screen;

/// The step through the cases of a test: Miri takes some hundred times as long, and tries every `nth`.
#[cfg(test)]
const fn every(nth: usize) -> usize {
    if cfg!(miri) { nth } else { 1 }
}

/// Whether a test multiplies so many trits: Miri takes some ten microseconds for each.
#[cfg(test)]
const fn is_quick(products: usize) -> bool {
    !cfg!(miri) || products <= 8000
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod pool_tests;

pub use attention::AttentionScratch;
pub use backend::{Backend, KernelError};
pub use batch::ActivationBatch;
pub use bitnet_ternary::{ActivationError, Scales, TernaryMatrix};
pub use candidates::ScreenQuery;
pub use cpu::{cpu_features, cpu_model};
pub use delta::DeltaHead;
pub use dense::MatrixType;
pub use kernel::{Inputs, Kernel};
pub use kernels::KERNELS;
pub use lanes::DenseType;
pub use lines::{AlignedBytes, SharedBytes};
pub use output::Output;
pub use packed::{MapError, PackedMatrix, Strip};
pub use pool::Pool;
pub use probe::MemoryProbe;
pub use screen::{ScreenBounds, ScreenRows};
pub use stored_rows::RowType;
pub use token_attention::HeadBlock;
