//! `bitnet-run logits`: the logits of every position of every prompt.
//!
//! Invariant: `logits_sha256` is the sha256 of all logits as little-endian f32, prompts in file
//! order, positions in order; the same number for every kernel, thread count and batch.

use crate::args::Logits as LogitsArgs;
use crate::{open, prompts};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, FormatError, GlobalArgs};
use bitnet_formats::{
    Artifact, Container, Encoding, Metadata, PlainType, PlannedTensor, Safetensors, WritePlan, hex,
};
use bitnet_model::{Logits, Model};
use bitnet_text::TextSettings;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::num::NonZeroUsize;

pub fn run(
    args: &LogitsArgs,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    if args.output.is_none() && !console.is_json() {
        return Err(
            Failure::usage("nothing to do without -o FILE or --json").hint("-o logits.safetensors")
        );
    }
    if let Some(path) = &args.output {
        Artifact::check(path, args.force)?;
    }
    let threads = global.thread_count();
    let loaded = open::predictor(&args.model.model, &args.model.compute, threads)?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;
    let prompts = prompts::read(&args.prompts, &checkpoint, TextSettings::default())?;
    if let Some(path) = &args.output {
        let mut inputs = checkpoint.inputs();
        inputs.add(&args.prompts);
        inputs.refuse(path)?;
    }
    let vocab = model.config().vocab_size;

    // lay the file out before the first forward pass, so that a refusal costs nothing
    let mut plan = WritePlan {
        metadata: Metadata::default(),
        tensors: Vec::new(),
    };
    for (name, ids) in &prompts {
        plan.tensors.push(PlannedTensor {
            name: format!("{name}.logits"),
            encoding: Encoding::Plain(PlainType::F32),
            shape: vec![ids.len(), vocab],
            len: (ids.len() * vocab * 4) as u64,
        });
    }
    let mut artifact = match &args.output {
        None => None,
        Some(path) => {
            let header = Safetensors.header(&plan)?;
            let mut artifact = Artifact::create(path, args.force)?;
            artifact.write(&header.bytes)?;
            Some(artifact)
        }
    };

    let mut hash = Sha256::new();
    let mut positions = 0;
    for (name, ids) in &prompts {
        let batch = args.batch.map(NonZeroUsize::get);
        let logits = prompt_logits(&model, ids, batch, &|| Ok(()));
        let logits = logits.map_err(|mut failure| {
            if failure.code == ErrorCode::NonFinite {
                failure.message = format!("prompt `{name}`, {}", failure.message);
            }
            failure
        })?;
        let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
        hash.update(&bytes);
        if let Some(artifact) = &mut artifact {
            artifact.write(&bytes)?;
        }
        positions += ids.len();
    }
    let logits_sha256 = hex(&hash.finalize());
    checkpoint.check_inputs()?;
    let output = artifact.map(Artifact::finish).transpose()?;
    if let Some(output) = &output {
        console.summary(format!(
            "{}: {} prompts, {positions} positions",
            output.path.display(),
            prompts.len()
        ))?;
    }
    console.summary(format!("logits_sha256 {logits_sha256}"))?;
    console.json(&json!({
        "status": "computed",
        "prompts": prompts.len(),
        "positions": positions,
        "vocab_size": vocab,
        "kernel": model.backend().name(),
        "threads": global.thread_count(),
        "logits_sha256": logits_sha256,
        "output": output.map(|o| json!({"path": o.path, "bytes": o.bytes, "sha256": o.sha256})),
    }))?;
    Ok(ExitStatus::Done)
}

/// `(tokens, vocab)` logits of one prompt, given to the model `batch` tokens at a time; `go_on` is asked in between.
///
/// # Errors
/// Those of the model and of `go_on`; `non-finite` for a logit that is NaN or infinite.
pub fn prompt_logits(
    model: &Model,
    ids: &[u32],
    batch: Option<usize>,
    go_on: &dyn Fn() -> Result<(), FormatError>,
) -> Result<Vec<f32>, Failure> {
    let mut session = model.session(ids.len())?;
    let len = ids.len().saturating_mul(model.config().vocab_size);
    let mut all = Vec::new();
    all.try_reserve_exact(len).map_err(|_| {
        let bytes = len.saturating_mul(4);
        let message = format!(
            "the logits of {} tokens need {bytes} bytes of memory",
            ids.len()
        );
        Failure::new(ErrorCode::LimitExceeded, message).hint("give fewer tokens at a time")
    })?;
    for part in ids.chunks(batch.unwrap_or(ids.len()).max(1)) {
        go_on()?;
        all.extend(model.forward(&mut session, part, Logits::All)?);
    }
    if let Some(bad) = all.iter().position(|v| !v.is_finite()) {
        let position = bad / model.config().vocab_size;
        let message = format!("position {position}: logit is not finite");
        return Err(Failure::new(ErrorCode::NonFinite, message));
    }
    Ok(all)
}
