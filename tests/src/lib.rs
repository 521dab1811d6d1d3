//! What the whole-program tests share.
//!
//! Invariant: no expectation is computed by the code under test. [`golden`] reads what Hugging Face
//! transformers recorded, [`gates`] says how close to it an implementation has to come.

pub mod gates;
pub mod golden;
