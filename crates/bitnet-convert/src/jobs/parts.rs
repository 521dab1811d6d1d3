//! What the jobs of a plan leave: `OUT.parts/`, with a file and a partial certificate of each.
//!
//! Invariant: a part counts only if its partial certificate is of this plan and the file has the hash that stands there. Files
//! and certificates appear whole, the file first, so what a killed job left is never taken for a part.

use crate::plan::{OutputFile, Plan};
use bitnet_checkpoint::PartialCertificate;
use bitnet_cli::{Failure, Progress};
use bitnet_formats::{
    Artifact, ArtifactDirectory, ErrorCode, FileDigest, FormatError, Limits, file_digest, publish,
    read_directory, read_file, sweep_beside,
};
use rayon::prelude::*;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file that tells a directory of parts from other directories.
const MARK: &str = "bitnet-convert-parts";

/// Where the jobs of a plan write.
#[derive(Debug)]
pub struct Parts {
    /// `OUT.parts`
    pub directory: PathBuf,
    plan_sha256: String,
}

/// A finished job.
#[derive(Debug)]
pub struct Part {
    pub certificate: PartialCertificate,
    /// Its file.
    pub file: FileDigest,
}

impl Parts {
    pub fn new(output: &Path, plan_sha256: &str) -> Self {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".parts");
        Self {
            directory: output.with_file_name(name),
            plan_sha256: plan_sha256.to_owned(),
        }
    }

    /// The file of a job. Its ending is none that readers of models open.
    pub fn file(&self, index: usize) -> PathBuf {
        self.directory.join(format!("job-{index:05}.part"))
    }

    fn certificate(&self, index: usize) -> PathBuf {
        self.directory.join(format!("job-{index:05}.json"))
    }

    /// Makes the directory, or makes sure that jobs made the one that is there: what others put there is not replaced.
    ///
    /// # Errors
    /// `exists` for something that no job made; whatever the operating system refuses.
    pub fn make_directory(&self) -> Result<(), FormatError> {
        let failed = |e: std::io::Error| FormatError::io(&self.directory, &e);
        self.sweep();
        for _ in 0..2 {
            match fs::symlink_metadata(&self.directory) {
                Ok(found) if found.is_dir() && self.directory.join(MARK).is_file() => return Ok(()),
                Ok(_) => {
                    let message =
                        "expected a directory that jobs of a plan made, found something else";
                    return Err(FormatError::new(ErrorCode::Exists, message)
                        .in_file(&self.directory)
                        .hint("move it, or plan with another output"));
                }
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
                Err(_) => {}
            }
            // with the mark in it from the first moment, so that jobs side by side know it
            match self.make() {
                // another job was first: the next look says so
                Err(e) if e.code == ErrorCode::Exists => {}
                made => return made,
            }
        }
        let message = "the directory of the parts cannot be made";
        Err(FormatError::new(ErrorCode::Io, message).in_file(&self.directory))
    }

    fn make(&self) -> Result<(), FormatError> {
        let directory = ArtifactDirectory::create(&self.directory, false, vec![MARK.to_owned()])?;
        let mut mark = directory.file(MARK)?;
        mark.write(b"The jobs of `bitnet-convert plan` write here.\n")?;
        publish(vec![mark.stage()?])?;
        directory.finish().map(|_| ())
    }

    /// Removes what jobs left that were killed while they made the directory.
    fn sweep(&self) {
        let parent = self
            .directory
            .parent()
            .filter(|p| !p.as_os_str().is_empty());
        let own = self.directory.file_name().and_then(|name| name.to_str());
        sweep_beside(parent.unwrap_or(Path::new(".")), |name| Some(name) == own);
    }

    pub fn write_certificate(&self, certificate: &PartialCertificate) -> Result<(), FormatError> {
        let mut artifact = Artifact::create(&self.certificate(certificate.job), true)?;
        artifact.write(&bitnet_checkpoint::pretty_json(&certificate.to_json()))?;
        artifact.finish().map(|_| ())
    }

    /// The part of a job, if it is there and whole.
    ///
    /// # Errors
    /// Those of reading a file that is there.
    pub fn part(&self, index: usize, planned: &OutputFile) -> Result<Option<Part>, FormatError> {
        let path = self.certificate(index);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = read_file(&path, Limits::default().certificate_bytes)?;
        let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
            return Ok(None);
        };
        let Ok(certificate) = PartialCertificate::from_json(&value) else {
            return Ok(None);
        };
        let name = planned
            .path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        let is_of_plan = certificate.plan_sha256 == self.plan_sha256
            && certificate.job == index
            && certificate.output.name == name
            && certificate.output.bytes == planned.header.total;
        let file = self.file(index);
        if !is_of_plan || !fs::symlink_metadata(&file).is_ok_and(|m| m.is_file()) {
            return Ok(None);
        }
        let file = file_digest(&file)?;
        let is_whole =
            file.bytes == certificate.output.bytes && file.sha256 == certificate.output.sha256;
        Ok(is_whole.then_some(Part { certificate, file }))
    }

    /// The parts of all jobs, in order, or the jobs that have none.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn all(
        &self,
        plan: &Plan,
        threads: usize,
        progress: &Progress,
    ) -> Result<Result<Vec<Part>, Vec<usize>>, FormatError> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|e| {
                FormatError::new(ErrorCode::Io, format!("cannot start threads: {e}")).because(e)
            })?;
        let bar = progress.steps("check parts", plan.files.len() as u64);
        let found: Vec<Option<Part>> = pool.install(|| {
            let parts = plan.files.par_iter().enumerate();
            parts
                .map(|(index, planned)| {
                    progress.check()?;
                    let part = self.part(index, planned);
                    bar.advance(1);
                    part
                })
                .collect::<Result<_, FormatError>>()
        })?;
        bar.finish();
        let missing = found.iter().enumerate().filter(|(_, part)| part.is_none());
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        Ok(match missing.is_empty() {
            true => Ok(found.into_iter().flatten().collect()),
            false => Err(missing),
        })
    }

    /// Which jobs to run again.
    pub fn missing(&self, missing: &[usize], plan: &Path) -> Failure {
        const NAMED: usize = 20;
        let mut foreign = 0usize;
        for index in missing {
            foreign += usize::from(self.certificate(*index).exists());
        }
        let numbers: Vec<String> = missing.iter().take(NAMED).map(usize::to_string).collect();
        let more = match missing.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let mut message = format!(
            "{}: expected the parts of all jobs, {} are missing: {}{more}",
            self.directory.display(),
            missing.len(),
            numbers.join(", ")
        );
        if foreign > 0 {
            message +=
                &format!("; of these, {foreign} have a part of another plan, or a damaged one");
        }
        let again: Vec<String> = numbers
            .iter()
            .map(|number| format!("--index {number}"))
            .collect();
        Failure::new(ErrorCode::MissingPart, message).hint(format!(
            "run bitnet-convert job {} {}",
            plan.display(),
            again.join(" ")
        ))
    }

    /// Removes the files of the jobs, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// Whatever the operating system refuses; the message says that the output is complete.
    pub fn remove(&self, jobs: usize) -> Result<(), FormatError> {
        let stays = |path: &Path, e: &std::io::Error| {
            let message = format!("the output is complete, but this stays: {e}");
            FormatError::new(ErrorCode::Io, message)
                .in_file(path)
                .hint("remove the directory of the parts")
        };
        self.sweep();
        for path in (0..jobs).flat_map(|index| [self.certificate(index), self.file(index)]) {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    return Err(stays(&path, &e));
                }
                _ => {}
            }
        }
        // a job that was killed while its file got its name
        sweep_beside(&self.directory, |name| {
            let number = name
                .strip_prefix("job-")
                .and_then(|rest| rest.split_once('.'));
            number.is_some_and(|(number, end)| {
                number.bytes().all(|digit| digit.is_ascii_digit())
                    && ["part", "json"].contains(&end)
            })
        });
        let failed = |e: std::io::Error| stays(&self.directory, &e);
        // with other files in it the directory stays, and later jobs may write there
        for entry in read_directory(&self.directory).map_err(failed)? {
            if entry.map_err(failed)?.file_name() != MARK {
                return Ok(());
            }
        }
        let mark = self.directory.join(MARK);
        match fs::remove_file(&mark) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(stays(&mark, &e)),
            _ => {}
        }
        match fs::remove_dir(&self.directory) {
            Err(e) if e.kind() != ErrorKind::DirectoryNotEmpty => Err(stays(&self.directory, &e)),
            _ => Ok(()),
        }
    }
}
