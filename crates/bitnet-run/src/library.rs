//! Steps of the program for callers that keep a model in memory.
//!
//! Invariant: the program takes the same steps, so a caller gets the same tokens and the same bits.

use crate::args::{ComputeArgs, KvTypeArg};
use crate::open;
use bitnet_cli::Failure;
use std::path::Path;

pub use crate::generate::context;
pub use crate::logits::prompt_logits;
pub use crate::open::{Loaded, tokenizer};
pub use crate::sampling::Sampling;

/// How a model is read and computed; the flags of `bitnet-run` with the same names.
#[derive(Debug, Clone, Default)]
pub struct ModelSettings {
    /// The kernel, by its name; the fastest without one.
    pub kernel: Option<String>,
    /// `f32` (the default), `f16` or `q8`.
    pub kv_type: Option<String>,
    /// The byte layout of I2_S tensors.
    pub layout: Option<String>,
    /// Whether a `packed` model is copied to memory.
    pub repack: bool,
    /// Whether float weights are known to be master weights of a ternary-trained model.
    pub ternary_trained: bool,
    /// Threads that compute; 0: all that the system offers.
    pub threads: usize,
}

/// Opens and loads a model that predicts tokens.
///
/// # Errors
/// Those of `bitnet-run MODEL`.
pub fn load(path: &Path, settings: &ModelSettings) -> Result<Loaded, Failure> {
    let kv_type = match settings.kv_type.as_deref() {
        None => KvTypeArg::F32,
        Some(name) => <KvTypeArg as clap::ValueEnum>::from_str(name, false).map_err(|_| {
            let message = format!("expected the KV cache type f32, f16 or q8, found `{name}`");
            Failure::usage(message)
        })?,
    };
    let compute = ComputeArgs {
        kernel: settings.kernel.clone(),
        kv_type,
        layout: settings.layout.clone(),
        repack: settings.repack,
        ternary_trained: settings.ternary_trained,
    };
    open::predictor(path, &compute, settings.threads)
}
