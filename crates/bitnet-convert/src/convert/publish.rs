//! What a conversion may replace, and how its files become visible.
//!
//! Invariant: nothing is visible before everything is durable. The certificate becomes visible before the
//! file that it certifies, and the older one comes back if that file cannot; of a split file every prefix of
//! the parts is refused by readers. `--force` replaces files of this program, never an input.

use super::certificate_path;
use crate::args::ConvertArgs;
use crate::certificate;
use crate::pipeline::{self, Passed, QuantizedMasters};
use crate::plan::{Loss, Plan, Request};
use crate::targets::Kind;
use bitnet_checkpoint::Checkpoint;
use bitnet_cli::{Failure, Progress};
use bitnet_formats::{
    Artifact, ArtifactDirectory, ErrorCode, FileDigest, FormatError, Gguf, Inputs, OlderFile,
    check_output_name,
};
use std::path::{Path, PathBuf};

/// Refuses an output name that names no file (`-`, `.`, an empty name) or that readers would take for a part of a split file.
pub(super) fn check_name(output: &Path) -> Result<(), Failure> {
    check_output_name(output)?;
    let Some((whole, count)) = Gguf::split_of(output) else {
        return Ok(());
    };
    let message = format!(
        "{}: readers take a file of this name for one of {count} parts",
        output.display()
    );
    Err(Failure::usage(message).hint(format!(
        "name the whole: -o {}; --split-max-size makes parts and names them",
        whole.display()
    )))
}

/// Every file that a conversion reads.
pub(super) fn inputs(checkpoint: &Checkpoint, convert: &ConvertArgs) -> Result<Inputs, Failure> {
    let mut inputs = checkpoint.inputs();
    if let Some(directory) = &checkpoint.directory {
        for name in
            bitnet_checkpoint::side_file_names(directory, &bitnet_formats::Limits::default())?
        {
            inputs.add(&directory.join(name));
        }
    }
    if let Some(copy) = &convert.how.against {
        inputs.add_model(copy);
    }
    Ok(inputs)
}

pub(super) fn refuse_existing_certificate(
    output: &Path,
    kind: Kind,
    force: bool,
) -> Result<(), Failure> {
    let path = certificate_path(output, kind);
    if kind == Kind::Gguf && !force && path.exists() {
        let message = format!(
            "{}: the certificate of an earlier output exists",
            path.display()
        );
        return Err(Failure::new(ErrorCode::Exists, message).hint("--force replaces it"));
    }
    Ok(())
}

/// What exists now.
pub(super) struct Published {
    pub(super) sources: Vec<FileDigest>,
    pub(super) outputs: Vec<FileDigest>,
    pub(super) certificate: PathBuf,
    pub(super) ternary_sha256: String,
    pub(super) source_ternary_sha256: String,
    pub(super) losses: Vec<Loss>,
    pub(super) masters: QuantizedMasters,
}

/// Converts, then makes the output and its certificate visible.
pub(super) fn publish(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    inputs: &Inputs,
    force: bool,
    threads: usize,
    progress: &Progress,
) -> Result<Published, FormatError> {
    let certificate = certificate_path(request.output, plan.target.kind);
    let older = refuse_to_replace(plan, request, inputs, &certificate, force)?;
    let directory = match plan.target.kind {
        Kind::HuggingFace => {
            let planned = planned_names(plan, request);
            Some(ArtifactDirectory::create(request.output, force, planned)?)
        }
        Kind::Gguf => None,
    };
    let create = |path: &Path| match &directory {
        Some(directory) => directory.file(&certificate::name_below(request.output, path)),
        None => Artifact::create(path, force),
    };
    let artifacts = plan
        .files
        .iter()
        .map(|f| create(&f.path))
        .collect::<Result<Vec<_>, _>>()?;
    let passed = pipeline::run(checkpoint, plan, request, artifacts, threads, progress);
    let side_digests = certificate::side_digests(checkpoint);
    // if an input changed, every other error is a consequence
    checkpoint.check_inputs()?;
    let Passed {
        mut sources,
        mut artifacts,
        digests,
        losses: found,
        masters,
    } = passed?;
    sources.extend(side_digests?);
    let losses: Vec<Loss> = merge(&plan.losses, found);

    if plan.target.kind == Kind::Gguf && artifacts.len() > 1 {
        let headers: Vec<&[u8]> = plan.files.iter().map(|f| &f.header.bytes[..]).collect();
        Gguf::set_split_id(&mut artifacts, &headers)?;
    }
    let mut staged = Vec::with_capacity(artifacts.len() + plan.side_files.len() + 1);
    for artifact in artifacts {
        staged.push(artifact.stage()?);
    }
    for (name, bytes) in &plan.side_files {
        let mut artifact = create(&request.output.join(name))?;
        artifact.write(bytes)?;
        staged.push(artifact.stage()?);
    }
    let outputs: Vec<FileDigest> = staged.iter().map(|s| s.digest().clone()).collect();
    let object = certificate::build(
        checkpoint,
        plan,
        &sources,
        &outputs,
        &digests,
        certificate::text(plan)?,
        losses.is_empty(),
    );
    let mut artifact = create(&certificate)?;
    artifact.write(&bitnet_checkpoint::pretty_json(&object.to_json()?))?;
    staged.push(artifact.stage()?);
    // the certificate first, the first part of a split file last: readers start there
    staged.reverse();
    checkpoint.check_inputs()?;
    bitnet_formats::publish(staged)?;
    if let Some(directory) = directory {
        directory.finish()?;
    }
    // a file or parts of the same model's name would be a second model beside the new one
    for file in &older {
        file.remove()?;
    }
    let (ternary_sha256, source_ternary_sha256) =
        (object.ternary_sha256, object.source_ternary_sha256);
    Ok(Published {
        sources,
        outputs,
        certificate,
        ternary_sha256,
        source_ternary_sha256,
        losses,
        masters,
    })
}

/// Refuses to replace an input or a foreign file; returns the older files that go when the new ones are there.
fn refuse_to_replace(
    plan: &Plan,
    request: &Request<'_>,
    inputs: &Inputs,
    certificate: &Path,
    force: bool,
) -> Result<Vec<OlderFile>, FormatError> {
    for file in &plan.files {
        inputs.refuse(&file.path)?;
    }
    if plan.target.kind == Kind::HuggingFace {
        return Ok(Vec::new());
    }
    let planned: Vec<PathBuf> = plan.files.iter().map(|f| f.path.clone()).collect();
    let older = OlderFile::of_gguf(request.output, &planned, certificate)?;
    for file in &older {
        inputs.refuse(file.path())?;
        let refuse = |message: &str, hint: &str| {
            let error = FormatError::new(ErrorCode::Exists, message).in_file(file.path());
            Err(error.hint(hint))
        };
        if !file.is_ours() {
            return refuse(
                "a model of the output's name exists, and this program did not write it",
                "name another output, or move this file",
            );
        }
        if !force {
            return refuse(
                "an earlier output of the same name exists",
                "--force replaces it",
            );
        }
    }
    Ok(older)
}

/// The files of an output directory, as they are called in it.
fn planned_names(plan: &Plan, request: &Request<'_>) -> Vec<String> {
    let weights = plan
        .files
        .iter()
        .map(|f| certificate::name_below(request.output, &f.path));
    let side = plan.side_files.iter().map(|(name, _)| name.clone());
    weights.chain(side).collect()
}

/// Losses the plan knew, with what reading the weights added.
fn merge(planned: &[Loss], found: Vec<Loss>) -> Vec<Loss> {
    // those without a figure were possible, and are real only if the pass found them
    let known = planned.iter().filter(|l| l.max_relative.is_some()).cloned();
    known.chain(found).collect()
}
