//! From a path and flags to a model that computes.
//!
//! Invariant: a kernel that was named is the kernel that runs, or an error.

use crate::args::{ComputeArgs, Generate, KvTypeArg};
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::{Console, ErrorCode, Failure};
use bitnet_formats::FormatError;
use bitnet_kernels::{Backend, KernelError};
use bitnet_model::{Generation, KvType, LoadOptions, Model, TilesIn};
use bitnet_text::Tokenizer;
use std::path::Path;

/// The kernel of a name.
pub fn kernel(name: &str) -> Result<Backend, Failure> {
    Backend::by_name(name).map_err(|e| {
        let failure = Failure::new(ErrorCode::Kernel, e.to_string());
        let meant = match &e {
            KernelError::Unknown { name, known } => {
                bitnet_cli::did_you_mean(name, known.iter().copied())
            }
            KernelError::Unavailable { .. } => None,
        };
        let failure = meant.into_iter().fold(failure, Failure::hint);
        failure
            .hint("run `bitnet-run kernels` to see which kernels run here")
            .because(e)
    })
}

/// The kernel the flags ask for, else the fastest; for tiles that are to stay in the file, of those that
/// read them there.
pub fn backend(compute: &ComputeArgs, checkpoint: &Checkpoint) -> Result<Backend, Failure> {
    match &compute.kernel {
        Some(name) => kernel(name),
        None if compute.repack => Ok(Backend::best()),
        None => Ok(bitnet_model::best_backend(checkpoint)),
    }
}

/// Opens the checkpoint that the flags describe.
pub fn checkpoint(path: &Path, compute: &ComputeArgs) -> Result<Checkpoint, FormatError> {
    let options = OpenOptions {
        layout: compute.layout.clone(),
        ternary_trained: compute.ternary_trained,
        ..OpenOptions::default()
    };
    Checkpoint::open(path, &options)
}

/// An open checkpoint and the model that was loaded from it.
#[derive(Debug)]
pub struct Loaded {
    /// What was read.
    pub checkpoint: Checkpoint,
    /// What computes.
    pub model: Model,
}

/// Opens and loads a model that computes on `threads` threads.
pub fn model(path: &Path, compute: &ComputeArgs, threads: usize) -> Result<Loaded, Failure> {
    load(checkpoint(path, compute)?, compute, threads)
}

fn load(checkpoint: Checkpoint, compute: &ComputeArgs, threads: usize) -> Result<Loaded, Failure> {
    let backend = backend(compute, &checkpoint)?;
    let kv_type = match compute.kv_type {
        KvTypeArg::F32 => KvType::F32,
        KvTypeArg::F16 => KvType::F16,
        KvTypeArg::Q8 => KvType::Q8,
    };
    let options = LoadOptions {
        backend,
        kv_type,
        tiles: match compute.repack {
            true => TilesIn::Memory,
            false => TilesIn::File,
        },
        threads,
        ..LoadOptions::default()
    };
    let model = Model::load(&checkpoint, &options)?;
    Ok(Loaded { checkpoint, model })
}

/// Refuses to predict tokens with a network that was trained for vectors: its output head never was.
pub fn predicts(checkpoint: &Checkpoint) -> Result<(), Failure> {
    match checkpoint.config.pooling {
        None => Ok(()),
        Some(_) => Err(Failure::usage(format!(
            "{}: an embedding model, which predicts no tokens",
            checkpoint.path.display()
        ))
        .hint("bitnet-run embed MODEL TEXT")),
    }
}

/// Opens and loads a model that predicts tokens, on `threads` threads.
pub fn predictor(path: &Path, compute: &ComputeArgs, threads: usize) -> Result<Loaded, Failure> {
    let checkpoint = checkpoint(path, compute)?;
    predicts(&checkpoint)?;
    load(checkpoint, compute, threads)
}

/// The tokenizer of a checkpoint: its side files, else its GGUF metadata.
///
/// # Errors
/// A tokenizer that is absent or cannot be built.
pub fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Failure> {
    checkpoint.tokenizer()?.ok_or_else(|| {
        Failure::new(
            ErrorCode::Tokenizer,
            format!(
                "{}: no tokenizer beside or inside the model",
                checkpoint.path.display()
            ),
        )
        .hint("give token ids instead: --tokens 1,2,3")
    })
}

/// Says once, for people, what is about to compute.
pub fn announce(console: &mut Console<'_>, loaded: &Loaded) -> Result<(), Failure> {
    let Loaded { checkpoint, model } = loaded;
    console.note(format!(
        "{}: {}, {} layers, kernel {}, {} threads",
        checkpoint.path.display(),
        checkpoint.family.name,
        model.config().num_hidden_layers,
        model.backend().name(),
        model.threads()
    ))
}

/// Tokens that end a text; none for raw token ids.
pub fn stop_tokens(args: &Generate, model: &Model, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
    match tokenizer {
        Some(tokenizer) if !args.ignore_eos => Generation::stop_tokens(model, tokenizer),
        _ => Vec::new(),
    }
}
