//! Why two things differ, and what is wrong with a model that has nothing to be compared with.
//!
//! Invariant: a cause is named only on evidence (see [`fault`]); what has none is said to be unexplained.

pub mod doctor;
pub mod fault;
pub(crate) mod hypotheses;
pub(crate) mod logits;
pub(crate) mod naming;
pub(crate) mod rotated;
mod swap;
pub(crate) mod trace;
