//! The network on a kernel backend: how a checkpoint computes the next token.
//!
//! Invariant of this crate: one model has one answer. Logits are bit-identical for every kernel,
//! thread count, batch split of the prompt, container and packing (`formats/numerics.md`).

#![forbid(unsafe_code)]

mod attention;
mod bit_linear;
mod dense_head;
mod forward;
mod kv_cache;
mod profile;
mod rope;
mod sampler;
mod threads;
mod vocabulary;
mod weights;

pub use forward::{HeadPasses, Logits, Model, Session};
pub use kv_cache::{KvCache, KvType};
pub use profile::{Part, Profile};
pub use sampler::{Sampler, SamplerOptions};
pub use weights::{LoadOptions, TilesIn, best_backend};
