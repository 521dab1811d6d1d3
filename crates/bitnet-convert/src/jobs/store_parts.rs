//! What the jobs of a plan leave in an object store: the objects below `OUT.parts/`, with the names that they have on a disk.
//!
//! Invariant: a part counts only if its partial certificate is of this plan and the object has the hash that stands there.
//! Objects that jobs did not write are neither replaced nor removed: a mark tells that the prefix is of jobs, and notes of the
//! objects tell their plan.

use super::parts::{self, MARK, MARK_TEXT, Part};
use crate::plan::OutputFile;
use bitnet_checkpoint::PartialCertificate;
use bitnet_cli::{Progress, Shown};
use bitnet_formats::{ErrorCode, FileDigest, FormatError, Limits};
use bitnet_remote::{Carried, StoreOutput, Stored};
use std::fs;
use std::path::{Path, PathBuf};

/// The note that names the plan of an object. Letters only: stores differ in what else names may have.
const PLAN: &str = "bitnetplan";
/// The note with the hash of an object.
const SHA256: &str = "bitnetsha256";

/// Where the jobs of a plan write in a store.
#[derive(Debug)]
pub struct StoreParts {
    output: StoreOutput,
    /// Stands for the prefix `OUT.parts/`.
    directory: PathBuf,
    plan_sha256: String,
}

impl StoreParts {
    pub fn new(output: StoreOutput, plan_sha256: &str) -> Self {
        Self {
            directory: parts::directory(output.path()),
            output,
            plan_sha256: plan_sha256.to_owned(),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file of a job, on this disk until it is uploaded.
    pub fn file(&self, index: usize) -> PathBuf {
        self.directory.join(parts::file_of(index))
    }

    fn certificate(&self, index: usize) -> PathBuf {
        self.directory.join(parts::certificate_of(index))
    }

    /// Makes sure that the prefix is of jobs, and that the objects of a job may be written: others' objects are left alone.
    ///
    /// # Errors
    /// `exists` for objects that no job wrote; what the store refuses.
    pub fn prepare(&self, index: usize) -> Result<(), FormatError> {
        fs::create_dir_all(&self.directory).map_err(|e| FormatError::io(&self.directory, &e))?;
        self.mark()?;
        self.refuse_foreign(index)
    }

    /// Whether the prefix is of jobs.
    fn is_marked(&self) -> Result<bool, FormatError> {
        let mark = self.directory.join(MARK);
        let limit = Limits::default().certificate_bytes;
        let found = self.output.read(&mark, limit)?;
        Ok(found.is_some_and(|text| text == MARK_TEXT.as_bytes()))
    }

    fn mark(&self) -> Result<(), FormatError> {
        if self.is_marked()? {
            return Ok(());
        }
        let mark = self.directory.join(MARK);
        let found = self.output.names_in(&self.directory)?;
        // a job that runs at the same time writes the mark first
        if !found.is_empty() && !self.is_marked()? {
            let message = format!(
                "expected no objects, or those that jobs of a plan wrote, found {} that no job wrote",
                found.len()
            );
            return Err(FormatError::new(ErrorCode::Exists, message)
                .in_file(&self.directory)
                .hint("move them, or plan with another output"));
        }
        let notes = [(PLAN, self.plan_sha256.as_str())];
        self.output.write(&mark, MARK_TEXT.as_bytes(), &notes)
    }

    /// Uploads the file of a job, then its partial certificate.
    ///
    /// # Errors
    /// `exists` for an object of its name that no job wrote; what the store refuses.
    pub fn put(
        &self,
        certificate: &PartialCertificate,
        written: &FileDigest,
        progress: &Progress,
    ) -> Result<(), FormatError> {
        let index = certificate.job;
        let (file, beside) = (self.file(index), self.certificate(index));
        self.refuse_foreign(index)?;
        let notes = [
            (PLAN, self.plan_sha256.as_str()),
            (SHA256, written.sha256.as_str()),
        ];
        self.output.put(&file, &notes, &Shown::of(progress))?;
        let text = bitnet_checkpoint::pretty_json(&certificate.to_json());
        self.output.write(&beside, &text, &notes[..1])?;
        // the next job of this process needs the room
        fs::remove_file(&file).map_err(|e| FormatError::io(&file, &e))
    }

    /// Refuses to replace an object that no job wrote: it has no note of a plan although the store keeps notes, and no
    /// partial certificate lies beside it.
    fn refuse_foreign(&self, index: usize) -> Result<(), FormatError> {
        for path in [self.file(index), self.certificate(index)] {
            let is_noted = |found: &Stored| found.note(PLAN).is_some();
            if self
                .output
                .look(&path)?
                .is_none_or(|found| is_noted(&found))
            {
                continue;
            }
            let mark = self.output.look(&self.directory.join(MARK))?;
            let text = self.read_certificate(index)?;
            let has_certificate = text.is_some_and(|text| parts::parse(&text).is_some());
            if mark.is_some_and(|mark| is_noted(&mark)) && !has_certificate {
                let message = "an object of the part's name exists, and no job wrote it";
                return Err(FormatError::new(ErrorCode::Exists, message)
                    .in_file(&path)
                    .hint("move the object, or plan with another output"));
            }
        }
        Ok(())
    }

    fn read_certificate(&self, index: usize) -> Result<Option<Vec<u8>>, FormatError> {
        let limit = Limits::default().certificate_bytes;
        self.output.read(&self.certificate(index), limit)
    }

    /// The part of a job, by its partial certificate and by what the store says of the object: length, and hash if the
    /// store keeps notes. The content is not read.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn listed(&self, index: usize, planned: &OutputFile) -> Result<Option<Part>, FormatError> {
        let Some(text) = self.read_certificate(index)? else {
            return Ok(None);
        };
        let Some(certificate) = parts::of_plan(&text, &self.plan_sha256, index, planned) else {
            return Ok(None);
        };
        let path = self.file(index);
        let Some(found) = self.output.look(&path)? else {
            return Ok(None);
        };
        let expected = &certificate.output;
        let has_hash = found
            .note(SHA256)
            .is_none_or(|sha256| sha256 == expected.sha256);
        if found.bytes != expected.bytes || !has_hash {
            return Ok(None);
        }
        let file = FileDigest {
            path,
            bytes: expected.bytes,
            sha256: expected.sha256.clone(),
        };
        Ok(Some(Part { certificate, file }))
    }

    /// The part of a job, if it is there and whole. Its content is read.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn part(
        &self,
        index: usize,
        planned: &OutputFile,
        progress: &Progress,
    ) -> Result<Option<Part>, FormatError> {
        let Some(part) = self.listed(index, planned)? else {
            return Ok(None);
        };
        let found = self.output.digest(&part.file.path, &Shown::of(progress))?;
        let is_whole =
            found.is_some_and(|found| found == (part.file.bytes, part.file.sha256.clone()));
        Ok(is_whole.then_some(part))
    }

    /// Whether there is a partial certificate of a job, of whatever plan.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn has_certificate(&self, index: usize) -> Result<bool, FormatError> {
        Ok(self.output.look(&self.certificate(index))?.is_some())
    }

    /// Reads every part and sends it to its final name; then everything becomes visible, the files after the parts, in
    /// their order. The jobs whose parts have other content than their certificates say; nothing is visible then.
    ///
    /// # Errors
    /// `exists`, unless an output may be replaced; what the store refuses.
    pub fn publish(
        &self,
        parts: &[Part],
        planned: &[OutputFile],
        files: &[PathBuf],
        replace: bool,
        progress: &Progress,
    ) -> Result<Vec<usize>, FormatError> {
        let carried = parts.iter().zip(planned).map(|(part, planned)| Carried {
            from: part.file.path.clone(),
            to: planned.path.clone(),
            bytes: part.file.bytes,
            sha256: part.file.sha256.clone(),
        });
        let carried: Vec<Carried> = carried.collect();
        self.output
            .publish_all(&carried, files, replace, &Shown::of(progress))
    }

    /// The content of a small object of the output, if it is there.
    ///
    /// # Errors
    /// `limit-exceeded`; what the store refuses.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FormatError> {
        self.output.read(path, limit)
    }

    /// Whether an object of the output is there and begins with these bytes.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn begins_with(&self, path: &Path, bytes: &[u8]) -> Result<bool, FormatError> {
        self.output.begins_with(path, bytes)
    }

    /// Whether an object of the output has this length and hash. Its content is read.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn is_whole(&self, file: &FileDigest, progress: &Progress) -> Result<bool, FormatError> {
        let found = self.output.look(&file.path)?;
        if found.is_none_or(|found| found.bytes != file.bytes) {
            return Ok(false);
        }
        let found = self.output.digest(&file.path, &Shown::of(progress))?;
        Ok(found.is_some_and(|found| found == (file.bytes, file.sha256.clone())))
    }

    /// Removes the objects of the jobs, and the mark if nothing else is below the prefix. An object that another plan
    /// wrote meanwhile stays.
    ///
    /// # Errors
    /// What the store refuses.
    pub fn remove(&self, jobs: usize) -> Result<(), FormatError> {
        // removed before, or not of jobs
        if !self.is_marked()? {
            return Ok(());
        }
        for path in (0..jobs).flat_map(|index| [self.certificate(index), self.file(index)]) {
            let found = self.output.look(&path)?;
            let is_ours =
                |found: Stored| found.note(PLAN).is_none_or(|plan| plan == self.plan_sha256);
            if found.is_some_and(is_ours) {
                self.output.remove(&path)?;
            }
        }
        let left = self.output.names_in(&self.directory)?;
        if left.iter().all(|name| name == MARK) {
            self.output.remove(&self.directory.join(MARK))?;
        }
        Ok(())
    }
}
