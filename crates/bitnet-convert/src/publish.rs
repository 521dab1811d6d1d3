//! What a conversion may replace, and how its files become visible.
//!
//! Invariant: nothing is visible before everything is durable. The certificate becomes visible before the
//! file that it certifies, and the older one comes back if that file cannot; of a split file every prefix of
//! the parts is refused by readers. `--force` replaces files of this program, never an input.

use crate::args::SourceArgs;
use crate::certificate::{self, Digests};
use crate::pipeline::{self, Passed, QuantizedMasters};
use crate::plan::{Loss, Plan, Request};
use crate::targets::Kind;
use bitnet_checkpoint::Checkpoint;
use bitnet_cli::{Failure, Progress};
use bitnet_formats::{
    Artifact, ArtifactDirectory, ErrorCode, FileDigest, FormatError, Gguf, Inputs, OlderFile,
    Staged, check_output_name,
};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// `OUT.certificate.json`; for directories inside it.
pub(crate) fn certificate_path(output: &Path, kind: Kind) -> PathBuf {
    match kind {
        Kind::HuggingFace => output.join("certificate.json"),
        Kind::Gguf => {
            let mut name: OsString = output.file_name().unwrap_or_default().to_owned();
            name.push(".certificate.json");
            output.with_file_name(name)
        }
    }
}

/// Refuses an output name that names no file (`-`, `.`, an empty name) or that readers would take for a part of a split file.
pub(crate) fn check_name(output: &Path) -> Result<(), Failure> {
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
pub(crate) fn inputs(checkpoint: &Checkpoint, how: &SourceArgs) -> Result<Inputs, Failure> {
    let mut inputs = checkpoint.inputs();
    if let Some(directory) = &checkpoint.directory {
        for name in
            bitnet_checkpoint::side_file_names(directory, &bitnet_formats::Limits::default())?
        {
            inputs.add(&directory.join(name));
        }
    }
    if let Some(copy) = &how.against {
        inputs.add_model(copy);
    }
    Ok(inputs)
}

pub(crate) fn refuse_existing_certificate(
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
pub(crate) struct Published {
    pub(crate) sources: Vec<FileDigest>,
    pub(crate) outputs: Vec<FileDigest>,
    pub(crate) certificate: PathBuf,
    pub(crate) ternary_sha256: String,
    pub(crate) source_ternary_sha256: String,
    pub(crate) losses: Vec<Loss>,
    pub(crate) masters: QuantizedMasters,
}

/// An output that is about to be written: where, and what it replaces.
pub(crate) struct Output<'a> {
    plan: &'a Plan,
    path: &'a Path,
    force: bool,
    certificate: PathBuf,
    older: Vec<OlderFile>,
    directory: Option<ArtifactDirectory>,
}

/// What was read and written, for the certificate.
pub(crate) struct Records {
    pub(crate) sources: Vec<FileDigest>,
    pub(crate) digests: Digests,
    pub(crate) losses: Vec<Loss>,
    pub(crate) masters: QuantizedMasters,
}

impl<'a> Output<'a> {
    /// Starts an output; refuses to replace what this program did not write.
    pub(crate) fn start(
        plan: &'a Plan,
        path: &'a Path,
        inputs: &Inputs,
        force: bool,
    ) -> Result<Self, FormatError> {
        let certificate = certificate_path(path, plan.target.kind);
        let older = refuse_to_replace(plan, path, inputs, &certificate, force)?;
        let directory = match plan.target.kind {
            Kind::HuggingFace => {
                let planned = planned_names(plan, path);
                Some(ArtifactDirectory::create(path, force, planned)?)
            }
            Kind::Gguf => None,
        };
        Ok(Self {
            plan,
            path,
            force,
            certificate,
            older,
            directory,
        })
    }

    /// Starts a file of it.
    fn create(&self, path: &Path) -> Result<Artifact, FormatError> {
        match &self.directory {
            Some(directory) => directory.file(&certificate::name_below(self.path, path)),
            None => Artifact::create(path, self.force),
        }
    }

    /// Takes a file that is finished already.
    pub(crate) fn existing(&self, file: &FileDigest, path: &Path) -> Result<Staged, FormatError> {
        match &self.directory {
            Some(directory) => directory.existing(file, &certificate::name_below(self.path, path)),
            None => Staged::existing(file, path, self.force),
        }
    }

    /// Writes what lies beside the weights, and makes everything visible with its certificate.
    pub(crate) fn publish(
        self,
        checkpoint: &Checkpoint,
        mut staged: Vec<Staged>,
        records: Records,
    ) -> Result<Published, FormatError> {
        let Records {
            mut sources,
            digests,
            losses: found,
            masters,
        } = records;
        let plan = self.plan;
        sources.extend(certificate::side_digests(checkpoint)?);
        let losses: Vec<Loss> = merge(&plan.losses, found);
        for (name, bytes) in &plan.side_files {
            let mut artifact = self.create(&self.path.join(name))?;
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
        let mut artifact = self.create(&self.certificate)?;
        artifact.write(&bitnet_checkpoint::pretty_json(&object.to_json()?))?;
        staged.push(artifact.stage()?);
        // the certificate first, the first part of a split file last: readers start there
        staged.reverse();
        checkpoint.check_inputs()?;
        bitnet_formats::publish(staged)?;
        if let Some(directory) = self.directory {
            directory.finish()?;
        }
        // a file or parts of the same model's name would be a second model beside the new one
        for file in &self.older {
            file.remove()?;
        }
        let (ternary_sha256, source_ternary_sha256) =
            (object.ternary_sha256, object.source_ternary_sha256);
        Ok(Published {
            sources,
            outputs,
            certificate: self.certificate,
            ternary_sha256,
            source_ternary_sha256,
            losses,
            masters,
        })
    }
}

/// Converts, then makes the output and its certificate visible.
pub(crate) fn publish(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    inputs: &Inputs,
    force: bool,
    threads: usize,
    progress: &Progress,
) -> Result<Published, FormatError> {
    let output = Output::start(plan, request.output, inputs, force)?;
    let artifacts = plan
        .files
        .iter()
        .map(|f| output.create(&f.path))
        .collect::<Result<Vec<_>, _>>()?;
    let walked = vec![true; checkpoint.file.parts.len()];
    let passed = pipeline::run(
        checkpoint, plan, request, artifacts, walked, threads, progress,
    );
    // if an input changed, every other error is a consequence
    checkpoint.check_inputs()?;
    let Passed {
        sources,
        artifacts,
        digests,
        losses,
        masters,
    } = passed?;
    let mut staged = Vec::with_capacity(artifacts.len() + plan.side_files.len() + 1);
    for artifact in artifacts {
        staged.push(artifact.stage()?);
    }
    let records = Records {
        sources: sources.into_iter().flatten().collect(),
        digests,
        losses,
        masters,
    };
    output.publish(checkpoint, staged, records)
}

/// Refuses to replace an input or a foreign file; returns the older files that go when the new ones are there.
fn refuse_to_replace(
    plan: &Plan,
    output: &Path,
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
    let older = OlderFile::of_gguf(output, &planned, certificate)?;
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
fn planned_names(plan: &Plan, output: &Path) -> Vec<String> {
    let weights = plan
        .files
        .iter()
        .map(|f| certificate::name_below(output, &f.path));
    let side = plan.side_files.iter().map(|(name, _)| name.clone());
    weights.chain(side).collect()
}

/// Losses the plan knew, with what reading the weights added.
fn merge(planned: &[Loss], found: Vec<Loss>) -> Vec<Loss> {
    // those without a figure were possible, and are real only if the pass found them
    let known = planned.iter().filter(|l| l.max_relative.is_some()).cloned();
    known.chain(found).collect()
}
