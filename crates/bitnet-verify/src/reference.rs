//! What a model is compared with: records of other programs, and an independent implementation.
//!
//! Invariant: nothing here judges. A record is read and held against itself; the [`oracle`] computes; a
//! [`divergence`] measures. Bounds and verdicts belong to `checks`.

pub(crate) mod divergence;
pub mod golden;
pub(crate) mod oracle;
pub(crate) mod other_runtime;
pub(crate) mod prompts;
