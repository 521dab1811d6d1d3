//! Where the jobs of a plan write: beside an output on a disk, or beside one in an object store.
//!
//! Invariant: both places follow the same rules; what differs is in `parts` and `store_parts`.

use super::parts::{Part, Parts};
use super::store_parts::StoreParts;
use crate::plan::{OutputFile, Plan};
use bitnet_checkpoint::PartialCertificate;
use bitnet_cli::{Failure, Location, Progress, shell_word};
use bitnet_formats::{
    ErrorCode, FileDigest, FormatError, file_digest, named, open_source, read_file,
};
use bitnet_remote::StoreOutput;
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// An output as the command line or a plan names it, made ready to be written.
#[derive(Debug)]
pub struct Destination {
    path: PathBuf,
    store: Option<StoreOutput>,
}

impl Destination {
    /// Makes a path of an output. A store is asked whether it can be written to.
    ///
    /// # Errors
    /// As [`StoreOutput::prepare`].
    pub fn new(output: &Path) -> Result<Self, Failure> {
        let store = match Location::parse(output)? {
            Some(location) => Some(StoreOutput::prepare(&location)?),
            None => None,
        };
        let path = store.as_ref().map_or(output, StoreOutput::path).to_owned();
        Ok(Self { path, store })
    }

    /// The path, or one that stands for the output in its store.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the jobs of a plan write.
    pub fn of_plan(self, plan_sha256: &str) -> Place {
        match self.store {
            Some(store) => Place::Store(StoreParts::new(store, plan_sha256)),
            None => Place::Disk(Parts::new(&self.path, plan_sha256)),
        }
    }
}

/// Where the jobs of a plan write.
#[derive(Debug)]
pub enum Place {
    Disk(Parts),
    Store(StoreParts),
}

fn pool(threads: usize) -> Result<rayon::ThreadPool, FormatError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().map_err(|e| {
        FormatError::new(ErrorCode::Io, format!("cannot start threads: {e}")).because(e)
    })
}

impl Place {
    /// Stands for the directory of the parts.
    pub fn directory(&self) -> &Path {
        match self {
            Self::Disk(parts) => &parts.directory,
            Self::Store(parts) => parts.directory(),
        }
    }

    /// Where a job writes its file first.
    pub fn file(&self, index: usize) -> PathBuf {
        match self {
            Self::Disk(parts) => parts.file(index),
            Self::Store(parts) => parts.file(index),
        }
    }

    /// Makes the directory of the parts, or makes sure that jobs made the one that is there. A store is asked for the
    /// objects of the job as well.
    ///
    /// # Errors
    /// `exists` for what no job made; what the disk or the store refuses.
    pub fn prepare(&self, index: usize) -> Result<(), FormatError> {
        match self {
            Self::Disk(parts) => parts.make_directory(),
            Self::Store(parts) => parts.prepare(index),
        }
    }

    /// Leaves a finished file and its partial certificate for `finish`.
    ///
    /// # Errors
    /// What the disk or the store refuses.
    pub fn put(
        &self,
        certificate: &PartialCertificate,
        written: &FileDigest,
        progress: &Progress,
    ) -> Result<(), FormatError> {
        match self {
            Self::Disk(parts) => parts.write_certificate(certificate),
            Self::Store(parts) => parts.put(certificate, written, progress),
        }
    }

    /// The part of a job, if it is there and has the hash of its partial certificate.
    ///
    /// # Errors
    /// Those of reading what is there.
    pub fn part(
        &self,
        index: usize,
        planned: &OutputFile,
        progress: &Progress,
    ) -> Result<Option<Part>, FormatError> {
        match self {
            Self::Disk(parts) => parts.part(index, planned),
            Self::Store(parts) => parts.part(index, planned, progress),
        }
    }

    /// The parts of all jobs, in order, or the jobs that have none. Objects of a store are read later, when they get their
    /// final names.
    ///
    /// # Errors
    /// As [`part`](Self::part).
    pub fn all(
        &self,
        plan: &Plan,
        threads: usize,
        progress: &Progress,
    ) -> Result<Result<Vec<Part>, Vec<usize>>, FormatError> {
        let pool = pool(threads)?;
        let bar = progress.steps("check parts", plan.files.len() as u64);
        let found: Vec<Option<Part>> = pool.install(|| {
            let parts = plan.files.par_iter().enumerate();
            parts
                .map(|(index, planned)| {
                    progress.check()?;
                    let part = match self {
                        Self::Disk(parts) => parts.part(index, planned),
                        Self::Store(parts) => parts.listed(index, planned),
                    };
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

    /// Whether the output is on this disk.
    pub fn is_on_disk(&self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// The content of a small file of the output; `None` if there is none, or a longer one.
    ///
    /// # Errors
    /// Those of reading what is there.
    pub fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FormatError> {
        let found = match self {
            Self::Disk(_) if !path.is_file() => return Ok(None),
            Self::Disk(_) => read_file(path, limit).map(Some),
            Self::Store(parts) => parts.read(path, limit),
        };
        match found {
            Err(e) if e.code == ErrorCode::LimitExceeded => Ok(None),
            found => found,
        }
    }

    /// When a file of the output was written, by the clock of the source's files.
    pub fn modified(&self, path: &Path) -> Option<SystemTime> {
        match self {
            Self::Disk(_) => fs::metadata(path).and_then(|m| m.modified()).ok(),
            Self::Store(_) => None,
        }
    }

    /// Whether a file of the output is there and begins with these bytes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn begins_with(&self, path: &Path, bytes: &[u8]) -> Result<bool, FormatError> {
        match self {
            Self::Disk(_) if !path.is_file() => Ok(false),
            Self::Disk(_) => {
                let file = open_source(path)?;
                let len = bytes.len() as u64;
                Ok(file.len() >= len && *file.read(0..len)? == *bytes)
            }
            Self::Store(parts) => parts.begins_with(path, bytes),
        }
    }

    /// Whether all files of the output have these lengths and hashes. They are read.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn are_whole(
        &self,
        files: &[FileDigest],
        threads: usize,
        progress: &Progress,
    ) -> Result<bool, FormatError> {
        let bar = progress.steps("check output", files.len() as u64);
        let is_whole = |file: &FileDigest| -> Result<bool, FormatError> {
            progress.check()?;
            let is_whole = match self {
                // a length alone tells most damage
                Self::Disk(_) => {
                    fs::metadata(&file.path).is_ok_and(|m| m.is_file() && m.len() == file.bytes)
                        && file_digest(&file.path)? == *file
                }
                Self::Store(parts) => parts.is_whole(file, progress)?,
            };
            bar.advance(1);
            Ok(is_whole)
        };
        let found: Vec<bool> = match self {
            Self::Disk(_) => {
                let pool = pool(threads)?;
                pool.install(|| files.par_iter().map(is_whole).collect::<Result<_, _>>())?
            }
            // one object is read by several connections
            Self::Store(_) => files.iter().map(is_whole).collect::<Result<_, _>>()?,
        };
        bar.finish();
        Ok(found.into_iter().all(|is_whole| is_whole))
    }

    /// Which jobs to run again.
    pub fn missing(&self, missing: &[usize], plan: &Path) -> Failure {
        const NAMED: usize = 20;
        let mut foreign = 0usize;
        for index in missing {
            let is_there = match self {
                Self::Disk(parts) => parts.has_certificate(*index),
                Self::Store(parts) => parts.has_certificate(*index).unwrap_or(false),
            };
            foreign += usize::from(is_there);
        }
        let numbers: Vec<String> = missing.iter().take(NAMED).map(usize::to_string).collect();
        let more = match missing.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let mut message = format!(
            "{}: expected the parts of all jobs, {} are missing: {}{more}",
            named(self.directory()).display(),
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
            shell_word(plan),
            again.join(" ")
        ))
    }

    /// Removes what the jobs left.
    ///
    /// # Errors
    /// What the disk or the store refuses; the message says that the output is complete.
    pub fn remove(&self, jobs: usize) -> Result<(), FormatError> {
        match self {
            Self::Disk(parts) => parts.remove(jobs),
            Self::Store(parts) => parts.remove(jobs).map_err(|e| {
                let message = format!("the output is complete, but its parts stay: {}", e.message);
                e.saying(message)
                    .hint("remove the objects of the parts")
                    .in_file(parts.directory())
            }),
        }
    }
}
