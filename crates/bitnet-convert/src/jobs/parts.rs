//! What the jobs of a plan leave: `OUT.parts/`, with a file and a partial certificate of each.
//!
//! Invariant: a part counts only if its partial certificate is of this plan and the file has the hash that stands there. Files
//! and certificates appear whole, the file first, so what a killed job left is never taken for a part.

use crate::plan::OutputFile;
use bitnet_checkpoint::PartialCertificate;
use bitnet_formats::{
    Artifact, ArtifactDirectory, ErrorCode, FileDigest, FormatError, Limits, file_digest, publish,
    read_directory, read_file, sweep_beside,
};
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The file that tells a directory of parts from other directories.
pub const MARK: &str = "bitnet-convert-parts";

/// Its content.
pub const MARK_TEXT: &str = "The jobs of `bitnet-convert plan` write here.\n";

/// Where the jobs of a plan write on a disk.
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

/// The partial certificate in a text, if it is of this job of this plan.
pub fn of_plan(
    text: &[u8],
    plan_sha256: &str,
    index: usize,
    planned: &OutputFile,
) -> Option<PartialCertificate> {
    let certificate = parse(text)?;
    let name = planned.path.file_name().unwrap_or_default();
    let is_of_plan = certificate.plan_sha256 == plan_sha256
        && certificate.job == index
        && certificate.output.name == name.to_string_lossy()
        && certificate.output.bytes == planned.header.total;
    is_of_plan.then_some(certificate)
}

/// The partial certificate in a text, of whatever plan.
pub fn parse(text: &[u8]) -> Option<PartialCertificate> {
    let value: Value = serde_json::from_slice(text).ok()?;
    PartialCertificate::from_json(&value).ok()
}

/// The directory of the parts of an output.
pub fn directory(output: &Path) -> PathBuf {
    let mut name = output.file_name().unwrap_or_default().to_owned();
    name.push(".parts");
    output.with_file_name(name)
}

/// The name of a job's file. Its ending is none that readers of models open.
pub fn file_of(index: usize) -> String {
    format!("job-{index:05}.part")
}

/// The name of a job's partial certificate.
pub fn certificate_of(index: usize) -> String {
    format!("job-{index:05}.json")
}

impl Parts {
    pub fn new(output: &Path, plan_sha256: &str) -> Self {
        Self {
            directory: directory(output),
            plan_sha256: plan_sha256.to_owned(),
        }
    }

    /// The file of a job.
    pub fn file(&self, index: usize) -> PathBuf {
        self.directory.join(file_of(index))
    }

    fn certificate(&self, index: usize) -> PathBuf {
        self.directory.join(certificate_of(index))
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
        mark.write(MARK_TEXT.as_bytes())?;
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
        let Some(certificate) = of_plan(&bytes, &self.plan_sha256, index, planned) else {
            return Ok(None);
        };
        let file = self.file(index);
        if !fs::symlink_metadata(&file).is_ok_and(|m| m.is_file()) {
            return Ok(None);
        }
        let file = file_digest(&file)?;
        let is_whole =
            file.bytes == certificate.output.bytes && file.sha256 == certificate.output.sha256;
        Ok(is_whole.then_some(Part { certificate, file }))
    }

    /// Whether there is a partial certificate of a job, of whatever plan.
    pub fn has_certificate(&self, index: usize) -> bool {
        self.certificate(index).exists()
    }

    /// Whether a job of another plan left its part in this place.
    fn is_of_another_plan(&self, index: usize) -> bool {
        let text = read_file(
            &self.certificate(index),
            Limits::default().certificate_bytes,
        );
        let found = text.ok().and_then(|text| parse(&text));
        found.is_some_and(|found| found.plan_sha256 != self.plan_sha256)
    }

    /// Removes the files of the jobs of this plan, and the directory if nothing else is in it.
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
        if !self.directory.join(MARK).is_file() {
            // removed before, or not of jobs; a run that was stopped leaves an empty directory
            let _ = fs::remove_dir(&self.directory);
            return Ok(());
        }
        let ours = (0..jobs).filter(|index| !self.is_of_another_plan(*index));
        for path in ours.flat_map(|index| [self.certificate(index), self.file(index)]) {
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
