//! Finished files that become visible together.
//!
//! Invariant: before the first file becomes visible, all of them are durable. If a step fails, the steps
//! before it are undone: the files that were there are there again.

use super::{
    Artifact, FileDigest, Partial, Target, interrupted, link_or_copy, live, os, remove_any,
    sync_directory,
};
use crate::error::{ErrorCode, FormatError};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A finished file under a temporary name. Dropped before [`publish`], it leaves nothing behind.
#[derive(Debug)]
pub struct Staged {
    pub(super) target: Target,
    pub(super) force: bool,
    pub(super) partial: Partial,
    /// At its final name in the temporary directory of an [`ArtifactDirectory`](super::ArtifactDirectory).
    pub(super) inside: bool,
    pub(super) digest: FileDigest,
    /// Held for its lock, which tells other processes that the temporary file is alive.
    pub(super) _lock: File,
}

/// What a step changed.
enum Step {
    /// The target is new.
    New,
    /// The temporary name holds what was at the target.
    Swapped,
    /// What was at the target is gone.
    Replaced,
}

impl Staged {
    /// A finished file that lies elsewhere on the same disk, ready to become visible at `path` as well. The file
    /// at `existing.path` stays.
    ///
    /// # Errors
    /// As [`Artifact::create`]; whatever the operating system refuses.
    pub fn existing(existing: &FileDigest, path: &Path, force: bool) -> Result<Self, FormatError> {
        let target = Artifact::target(path, force)?;
        let (partial, file) = target
            .new_partial(|to| link_or_copy(&existing.path, to))
            .map_err(|e| target.failed(&e))?;
        Ok(Self {
            digest: FileDigest {
                path: path.to_owned(),
                ..existing.clone()
            },
            target,
            force,
            partial,
            inside: false,
            _lock: file,
        })
    }

    /// The file as it will be.
    pub fn digest(&self) -> &FileDigest {
        &self.digest
    }

    /// Moves the file to its target. `is_last`: no later step can fail, so nothing has to be kept.
    fn put(&self, is_last: bool) -> io::Result<Step> {
        let (from, to) = (self.partial.path.as_path(), self.target.real.as_path());
        // a target may come or go between two looks
        for _ in 0..4 {
            match fs::symlink_metadata(to) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                Ok(found) if self.force && found.is_dir() => {
                    return Err(ErrorKind::IsADirectory.into());
                }
                Ok(_) if self.force && is_last => {
                    fs::rename(from, to)?;
                    // a rename between two names of one file leaves both
                    return match fs::remove_file(from) {
                        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
                        _ => Ok(Step::Replaced),
                    };
                }
                Ok(_) if self.force => match os::swap(from, to) {
                    Ok(true) if fs::symlink_metadata(from).is_ok_and(|m| m.is_dir()) => {
                        os::swap(from, to)?;
                        return Err(ErrorKind::IsADirectory.into());
                    }
                    Ok(true) => return Ok(Step::Swapped),
                    Ok(false) => return replace_in_steps(from, to),
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    Err(e) => return Err(e),
                },
                _ => match os::rename_new(from, to) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists && self.force => {}
                    done => return done.map(|()| Step::New),
                },
            }
        }
        Err(ErrorKind::AlreadyExists.into())
    }

    /// Takes a step back.
    fn undo(&self, step: &Step) {
        let (from, to) = (self.partial.path.as_path(), self.target.real.as_path());
        // best effort: the error that led here is the one to report
        let _ = match step {
            Step::New => fs::rename(to, from),
            Step::Swapped => match os::swap(from, to) {
                Ok(false) => fs::rename(from, to),
                done => done.map(|_| ()),
            },
            Step::Replaced => Ok(()),
        };
    }
}

/// For file systems that cannot swap: what is replaced gets a second name first, if it can.
fn replace_in_steps(from: &Path, to: &Path) -> io::Result<Step> {
    let mut aside = from.as_os_str().to_owned();
    aside.push("-old");
    if fs::hard_link(to, &aside).is_err() {
        return fs::rename(from, to).map(|()| Step::Replaced);
    }
    if let Err(e) = fs::rename(from, to) {
        let _ = fs::remove_file(&aside);
        return Err(e);
    }
    fs::rename(&aside, from).map(|()| Step::Swapped)
}

/// Makes files visible in this order, each in one step.
///
/// # Errors
/// `exists` when something appeared at a path meanwhile and its file was started without `force`; whatever
/// the operating system refuses. Nothing has changed then, except after an error that says that the output
/// is complete: a directory that could not be synced.
pub fn publish(staged: Vec<Staged>) -> Result<(), FormatError> {
    let mut live = live();
    // `remove_partial_outputs` ran
    if let Some(gone) = staged
        .iter()
        .find(|s| !live.paths.contains(&s.partial.path))
    {
        return Err(gone.target.failed(&interrupted()));
    }
    let mut steps: Vec<(&Staged, Step)> = Vec::with_capacity(staged.len());
    let mut error = None;
    for (n, file) in staged.iter().enumerate() {
        // published by its directory
        if file.inside {
            continue;
        }
        match file.put(n.saturating_add(1) == staged.len()) {
            Ok(step) => steps.push((file, step)),
            Err(e) => {
                error = Some(file.target.failed(&e));
                break;
            }
        }
    }
    if let Some(error) = error {
        for (file, step) in steps.iter().rev() {
            file.undo(step);
        }
        drop(live);
        return Err(error);
    }
    for (file, step) in &steps {
        if let Step::Swapped = step {
            remove_any(&file.partial.path);
        }
    }
    live.paths
        .retain(|path| !staged.iter().any(|s| s.partial.path == *path));
    drop(live);
    let mut parents: Vec<&PathBuf> = steps.iter().map(|(s, _)| &s.target.parent).collect();
    parents.dedup();
    for parent in parents {
        sync_directory(parent).map_err(|e| {
            let message =
                format!("the output is complete, but its directory cannot be synced: {e}");
            FormatError::new(ErrorCode::Io, message)
                .in_file(parent)
                .hint("check the disk, then run bitnet-verify on the output")
                .because(e)
        })?;
    }
    Ok(())
}
