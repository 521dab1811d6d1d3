//! What a model is compared with: records of other programs, and an independent implementation.
//!
//! Invariant: nothing here judges. A record is read and held against itself; the [`oracle`] computes; a
//! [`divergence`] measures. Verdicts belong to `checks`.

pub(crate) mod certificate;
pub(crate) mod divergence;
pub mod golden;
pub(crate) mod oracle;
pub(crate) mod other_runtime;
pub(crate) mod prompts;
pub(crate) mod thresholds;
