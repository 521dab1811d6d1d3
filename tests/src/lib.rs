//! What the whole-program tests share.
//!
//! Invariant: nothing here knows an expectation. What Hugging Face transformers recorded is read by
//! `bitnet_verify::golden`; how close to it an implementation has to come is `bitnet_verify::gates`.

pub mod conversions;
pub mod counting;
pub mod dense_network;
pub mod digest;
pub mod experts_model;
pub mod file_faults;
pub mod fixtures;
pub mod flips;
pub mod gates;
pub mod gguf;
pub mod http_client;
pub mod other_runtime;
pub mod packed_model;
pub mod program;
pub mod random;
pub mod random_network;
pub mod servers;
pub mod torch_archive;
