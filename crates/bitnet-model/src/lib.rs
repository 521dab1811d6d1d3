//! The network on a kernel backend: how a checkpoint computes the next token.
//!
//! Invariant of this crate: one model has one answer. Logits are bit-identical for every kernel,
//! thread count, batch split of the prompt, container and packing (`formats/numerics.md`).

#![forbid(unsafe_code)]

mod bit_linear;
mod constrain;
mod dense_head;
mod dense_rows;
mod embed;
mod generate;
mod kv_cache;
mod likelihood;
mod load;
mod logit_rules;
mod mixer;
mod mlp;
mod model;
mod profile;
mod recurrent;
mod rope;
mod rotation;
mod round;
mod sampler;
mod sequence;
mod session;
mod speculate;
mod step;
mod stream;
mod threads;
mod vocabulary;
mod weights;
mod windows;
mod workspace;

pub use constrain::Constrain;
pub use generate::{Generated, Generation, Stopped, TextStream};
pub use kv_cache::{KvCache, KvType};
pub use likelihood::Likelihoods;
pub use load::{LoadOptions, TilesIn, best_backend};
pub use logit_rules::{LogitOptions, LogitRules};
pub use mlp::experts::{Choice, Routing};
pub use model::{HeadPasses, Model};
pub use profile::{Part, Profile};
pub use sampler::{Sampler, SamplerOptions};
pub use sequence::Sequence;
pub use session::{Logits, Session};
pub use speculate::{Speculated, Speculation};
pub use step::{Slice, StepLogits, Want};
pub use workspace::Workspace;
