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
use bitnet_checkpoint::{
    Certificate, Checkpoint, FileRecord, SigningKey, signature_path, statement, statement_path,
};
use bitnet_cli::{Failure, Progress, shell_word};
use bitnet_formats::{
    Artifact, ArtifactDirectory, ErrorCode, FileDigest, FormatError, Gguf, Inputs, OlderFile,
    Staged, check_output_name, is_certificate_of_ours, named,
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
        shell_word(whole)
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

/// Refuses an output in a store that would replace objects of the source: their paths on this disk differ, their names do not.
pub(crate) fn refuse_objects_of_the_source(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Path,
) -> Result<(), FormatError> {
    let parts = checkpoint.file.parts.iter();
    let mut inputs: Vec<PathBuf> = parts
        .map(|part| part.path().to_owned())
        .chain(checkpoint.directory.clone())
        .map(|path| named(&path).into_owned())
        .collect();
    if let Some(directory) = &checkpoint.directory {
        let limits = bitnet_formats::Limits::default();
        for name in bitnet_checkpoint::side_file_names(directory, &limits)? {
            inputs.push(named(&directory.join(name)).into_owned());
        }
    }
    let outputs = plan.files.iter().map(|file| file.path.as_path());
    for path in outputs.chain([output]) {
        let name = named(path);
        if inputs.iter().any(|input| *input == *name) {
            let message = "the output is an input of this run";
            return Err(FormatError::new(ErrorCode::Usage, message)
                .in_file(path)
                .hint("name another output"));
        }
    }
    Ok(())
}

/// The key that `--sign` names; from then on it is an input, which no output replaces.
pub(crate) fn signing_key(
    path: Option<&Path>,
    inputs: &mut Inputs,
) -> Result<Option<SigningKey>, FormatError> {
    let Some(path) = path else {
        return Ok(None);
    };
    inputs.add(path);
    SigningKey::read(path).map(Some)
}

pub(crate) fn refuse_existing_certificate(
    output: &Path,
    kind: Kind,
    force: bool,
) -> Result<(), Failure> {
    let path = certificate_path(output, kind);
    if kind == Kind::HuggingFace {
        return Ok(());
    }
    refuse_foreign_certificate(&path)?;
    if !force && path.exists() {
        let message = format!(
            "{}: the certificate of an earlier output exists",
            path.display()
        );
        return Err(Failure::new(ErrorCode::Exists, message).hint("--force replaces it"));
    }
    Ok(())
}

/// Refuses to replace a file that has the certificate's name and is none of this program.
fn refuse_foreign_certificate(path: &Path) -> Result<(), FormatError> {
    // a link to nothing is refused where files are made
    if !path.exists() || is_certificate_of_ours(path) {
        return Ok(());
    }
    let message = "a file of the certificate's name exists, and this program did not write it";
    Err(FormatError::new(ErrorCode::Exists, message)
        .in_file(path)
        .hint("name another output, or move this file"))
}

/// What exists now.
pub(crate) struct Published {
    pub(crate) sources: Vec<FileDigest>,
    pub(crate) outputs: Vec<FileDigest>,
    pub(crate) certificate: PathBuf,
    /// The signed statement and its signature, if a key was given.
    pub(crate) signed: Option<[PathBuf; 2]>,
    pub(crate) ternary_sha256: String,
    pub(crate) source_ternary_sha256: String,
    pub(crate) losses: Vec<Loss>,
    pub(crate) masters: QuantizedMasters,
    /// Whether an earlier run of `finish` made all of it, and this one wrote nothing.
    pub(crate) is_older: bool,
}

/// An output that is about to be written: where, and what it replaces.
pub(crate) struct Output<'a> {
    plan: &'a Plan,
    path: &'a Path,
    force: bool,
    key: Option<&'a SigningKey>,
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
        key: Option<&'a SigningKey>,
    ) -> Result<Self, FormatError> {
        let certificate = certificate_path(path, plan.target.kind);
        let mut older = refuse_to_replace(plan, path, inputs, &certificate, force)?;
        if plan.target.kind == Kind::Gguf {
            let found = refuse_to_replace_statement(&certificate, inputs, force, key)?;
            older.extend(found);
        }
        let directory = match plan.target.kind {
            Kind::HuggingFace => {
                let mut planned = planned_names(plan, path);
                if key.is_some() {
                    if force {
                        refuse_to_replace_statement(&certificate, inputs, force, key)?;
                    }
                    let signed = [statement_path(&certificate), signature_path(&certificate)];
                    planned.extend(signed.map(|file| certificate::name_below(path, &file)));
                }
                Some(ArtifactDirectory::create(path, force, planned)?)
            }
            Kind::Gguf => None,
        };
        Ok(Self {
            plan,
            path,
            force,
            key,
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

    /// Writes the statement about the output and its certificate, and the signature of the statement.
    fn sign(
        &self,
        key: &SigningKey,
        object: &Certificate,
        certified: &Staged,
        staged: &mut Vec<Staged>,
    ) -> Result<[PathBuf; 2], FormatError> {
        let digest = certified.digest();
        let record = FileRecord {
            name: certificate::name_below(self.path, &self.certificate),
            bytes: digest.bytes,
            sha256: digest.sha256.clone(),
        };
        let statement = statement(object, &record)?;
        let signature = key.sign(&statement)?;
        let paths = [
            statement_path(&self.certificate),
            signature_path(&self.certificate),
        ];
        for (path, bytes) in paths.iter().zip([&statement, &signature]) {
            let mut artifact = self.create(path)?;
            artifact.write(bytes)?;
            staged.push(artifact.stage()?);
        }
        Ok(paths)
    }

    /// Writes what lies beside the weights, and makes everything visible with its certificate. `elsewhere`: weights that
    /// are not on this disk, under the names that they get.
    pub(crate) fn publish(
        self,
        checkpoint: &Checkpoint,
        elsewhere: Vec<FileDigest>,
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
        for file in &sources {
            bitnet_remote::check_cached(file)?;
        }
        let losses: Vec<Loss> = merge(&plan.losses, found);
        for (name, bytes) in &plan.side_files {
            let mut artifact = self.create(&self.path.join(name))?;
            artifact.write(bytes)?;
            staged.push(artifact.stage()?);
        }
        let mut outputs = elsewhere;
        outputs.extend(staged.iter().map(|s| s.digest().clone()));
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
        let certified = artifact.stage()?;
        let signed = match self.key {
            Some(key) => Some(self.sign(key, &object, &certified, &mut staged)?),
            None => None,
        };
        staged.push(certified);
        // the certificate first, the first part of a split file last: readers start there
        staged.reverse();
        checkpoint.check_inputs()?;
        // a file or parts of the same model's name would be a second model beside the new one
        bitnet_formats::publish_over(staged, &self.older)?;
        if let Some(directory) = self.directory {
            directory.finish()?;
        }
        let (ternary_sha256, source_ternary_sha256) =
            (object.ternary_sha256, object.source_ternary_sha256);
        Ok(Published {
            sources,
            outputs,
            certificate: self.certificate,
            signed,
            ternary_sha256,
            source_ternary_sha256,
            losses,
            masters,
            is_older: false,
        })
    }
}

/// How an output is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writing<'a> {
    /// Whether files of this program may be replaced.
    pub(crate) force: bool,
    /// What signs the output.
    pub(crate) key: Option<&'a SigningKey>,
    /// Threads of the conversion.
    pub(crate) threads: usize,
}

/// Converts, then makes the output and its certificate visible.
pub(crate) fn publish(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    inputs: &Inputs,
    how: Writing<'_>,
    progress: &Progress,
) -> Result<Published, FormatError> {
    let Writing {
        force,
        key,
        threads,
    } = how;
    let output = Output::start(plan, request.output, inputs, force, key)?;
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
    output.publish(checkpoint, Vec::new(), staged, records)
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
    refuse_foreign_certificate(certificate)?;
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

/// The signed statement of an older output that goes, because it is of another certificate; refuses to replace one that this
/// program did not write.
fn refuse_to_replace_statement(
    certificate: &Path,
    inputs: &Inputs,
    force: bool,
    key: Option<&SigningKey>,
) -> Result<Vec<OlderFile>, FormatError> {
    let paths = [statement_path(certificate), signature_path(certificate)];
    let found = OlderFile::of_statement(paths);
    if key.is_none() {
        // a statement of strangers stays
        let ours = found.into_iter().filter(|file| force && file.is_ours());
        return Ok(ours.collect());
    }
    for file in &found {
        inputs.refuse(file.path())?;
        let (message, hint) = match (file.is_ours(), force) {
            (true, true) => continue,
            (true, false) => (
                "the signed statement of an earlier output exists",
                "--force replaces it",
            ),
            (false, _) => (
                "a file of the statement's name exists, and this program did not write it",
                "name another output, or move this file",
            ),
        };
        let error = FormatError::new(ErrorCode::Exists, message).in_file(file.path());
        return Err(error.hint(hint));
    }
    Ok(Vec::new())
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
