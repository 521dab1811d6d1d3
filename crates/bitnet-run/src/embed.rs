//! `bitnet-run embed`: texts as vectors, as the model's sentence-transformers pipeline makes them.
//!
//! Invariant: `embeddings_sha256` is the sha256 of all vectors as little-endian f32, texts in order; the same
//! number for every kernel and thread count.

use crate::args::{Embed, PoolingArg};
use crate::{open, prompts};
use bitnet_checkpoint::{EmbeddingSettings, Pooling};
use bitnet_cli::{Console, ExitStatus, Failure, GlobalArgs};
use bitnet_formats::{
    Artifact, Container, Encoding, Metadata, PlainType, PlannedTensor, Safetensors, WritePlan,
};
use bitnet_model::Model;
use bitnet_text::TextSettings;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

pub fn run(
    args: &Embed,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    if args.texts.is_empty() && args.file.is_none() && args.prompts.is_none() {
        return Err(
            Failure::usage("nothing to embed").hint("\"some text\", --file FILE or --prompts FILE")
        );
    }
    if let Some(path) = &args.output {
        Artifact::check(path, args.force)?;
    }
    let threads = global.thread_count();
    let loaded = open::model(&args.model.model, &args.model.compute, threads)?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = &loaded;
    let (prompt_name, prompt) = prompt(args, &model.config().embedding)?;
    let settings = TextSettings {
        prompt,
        max_seq_length: model.config().embedding.max_seq_length,
    };
    if !prompt.is_empty() {
        console.note(format!("prompt before every text: {prompt:?}"))?;
    }
    let texts = match (&args.file, &args.prompts) {
        (Some(file), _) => prompts::lines(file, checkpoint, settings)?,
        (None, Some(file)) => prompts::read(file, checkpoint, settings)?,
        (None, None) => prompts::encode(&args.texts, checkpoint, settings)?,
    };
    if let Some(path) = &args.output {
        let mut inputs = checkpoint.inputs();
        for file in [&args.file, &args.prompts].into_iter().flatten() {
            inputs.add(file);
        }
        inputs.refuse(path)?;
    }
    let pooling = pooling(args, model);
    // a refusal costs nothing before the first forward pass
    let artifact = match &args.output {
        None => None,
        Some(path) => Some(start(path, args.force, &texts, model)?),
    };

    let mut hash = Sha256::new();
    let mut rows: Vec<Value> = Vec::new();
    let mut tokens = 0;
    let mut artifact = artifact;
    for (name, ids) in &texts {
        let vector = model.embed(ids, pooling).map_err(|e| e.in_tensor(name))?;
        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
        hash.update(&bytes);
        tokens += ids.len();
        match &mut artifact {
            Some(artifact) => artifact.write(&bytes)?,
            None if console.is_json() => rows.push(json!({
                "name": name, "tokens": ids.len(), "embedding": numbers(&vector),
            })),
            None => console.line(Value::Array(numbers(&vector)))?,
        }
    }
    let embeddings_sha256 = bitnet_formats::hex(&hash.finalize());
    checkpoint.check_inputs()?;
    let output = artifact.map(Artifact::finish).transpose()?;
    if let Some(output) = &output {
        console.summary(format!("{}: {} texts", output.path.display(), texts.len()))?;
        console.summary(format!("embeddings_sha256 {embeddings_sha256}"))?;
    }
    console.json(&json!({
        "status": "embedded",
        "texts": texts.len(),
        "tokens": tokens,
        "width": model.config().hidden_size,
        "pooling": pooling.as_str(),
        "normalized": model.config().embedding.normalize,
        "prompt_name": prompt_name,
        "prompt": prompt,
        "max_seq_length": settings.max_seq_length,
        "kernel": model.backend().name(),
        "threads": global.thread_count(),
        "embeddings_sha256": embeddings_sha256,
        "embeddings": output.is_none().then_some(rows),
        "output": output.map(|o| json!({"path": o.path, "bytes": o.bytes, "sha256": o.sha256})),
    }))?;
    Ok(ExitStatus::Done)
}

/// `--prompt-text`, else the prompt of `--prompt-name`, else the model's default prompt: its name and its text.
fn prompt<'a>(
    args: &'a Embed,
    settings: &'a EmbeddingSettings,
) -> Result<(Option<&'a str>, &'a str), Failure> {
    if let Some(text) = &args.prompt_text {
        return Ok((None, text));
    }
    let Some(name) = &args.prompt_name else {
        let name = settings.default_prompt_name.as_deref();
        return Ok((name, settings.default_prompt().unwrap_or_default()));
    };
    match settings.prompt(name) {
        Some(text) => Ok((Some(name), text)),
        None => {
            let names: Vec<_> = settings
                .prompts
                .iter()
                .map(|(name, _)| name.as_str())
                .collect();
            let hint = match names[..] {
                [] => "this model has no prompts; pass --prompt-text TEXT".to_owned(),
                _ => format!("pass one of: {}", names.join(", ")),
            };
            Err(Failure::usage(format!("the model has no prompt named {name:?}")).hint(hint))
        }
    }
}

/// `--pooling`, else the model's own, else that of the last token, which alone has seen the whole text.
fn pooling(args: &Embed, model: &Model) -> Pooling {
    match args.pooling {
        Some(PoolingArg::Mean) => Pooling::Mean,
        Some(PoolingArg::Cls) => Pooling::First,
        Some(PoolingArg::Last) => Pooling::Last,
        None => model.config().pooling.unwrap_or(Pooling::Last),
    }
}

/// The output with its header.
fn start(
    path: &Path,
    force: bool,
    texts: &[(String, Vec<u32>)],
    model: &Model,
) -> Result<Artifact, Failure> {
    let width = model.config().hidden_size;
    let tensor = |(name, _): &(String, Vec<u32>)| PlannedTensor {
        name: format!("{name}.embedding"),
        encoding: Encoding::Plain(PlainType::F32),
        shape: vec![width],
        len: (width * 4) as u64,
    };
    let header = Safetensors.header(&WritePlan {
        metadata: Metadata::default(),
        tensors: texts.iter().map(tensor).collect(),
    })?;
    let mut artifact = Artifact::create(path, force)?;
    artifact.write(&header.bytes)?;
    Ok(artifact)
}

/// The shortest decimals that read back as these f32.
fn numbers(vector: &[f32]) -> Vec<Value> {
    let number = |v: &f32| {
        v.to_string()
            .parse::<f64>()
            .map_or(Value::Null, Value::from)
    };
    vector.iter().map(number).collect()
}
