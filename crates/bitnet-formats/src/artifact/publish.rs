//! Finished files that become visible together.
//!
//! Invariant: before the first file becomes visible, all of them are durable. If a step fails, the steps
//! before it are undone: the files that were there are there again.

use super::{
    Artifact, FileDigest, OlderFile, Partial, Target, interrupted, link_or_copy, live, os,
    remove_any, sync_directory,
};
use crate::error::{ErrorCode, FormatError};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

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
                    os::replace(from, to)?;
                    // a rename between two names of one file leaves both; the step is done, whatever comes of this
                    let _ = fs::remove_file(from);
                    return Ok(Step::Replaced);
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
        return os::replace(from, to).map(|()| Step::Replaced);
    }
    if let Err(e) = os::replace(from, to) {
        let _ = fs::remove_file(&aside);
        return Err(e);
    }
    fs::rename(&aside, from).map(|()| Step::Swapped)
}

/// Makes files visible in this order, each in one step. A power cut that leaves the last step leaves all of them.
///
/// # Errors
/// `exists` when something appeared at a path meanwhile and its file was started without `force`; whatever
/// the operating system refuses. Nothing has changed then, except after an error that says that the output
/// is complete: a directory that could not be synced.
pub fn publish(staged: Vec<Staged>) -> Result<(), FormatError> {
    publish_over(staged, &[])
}

/// As [`publish`]; then removes files of an older output that would lie beside the new one. What was replaced stays under
/// temporary names until the older files are gone, so that the next writer can finish this step.
///
/// # Errors
/// As [`publish`], and those of [`OlderFile::remove`], which say that the output is complete.
pub fn publish_over(staged: Vec<Staged>, older: &[OlderFile]) -> Result<(), FormatError> {
    let mut live = live();
    // `remove_partial_outputs` ran
    if let Some(gone) = staged
        .iter()
        .find(|s| !live.paths.contains(&s.partial.path))
    {
        return Err(gone.target.failed(&interrupted()));
    }
    // files inside a directory become visible with it
    let moved: Vec<&Staged> = staged.iter().filter(|file| !file.inside).collect();
    let mut steps: Vec<(&Staged, Step)> = Vec::with_capacity(moved.len());
    let mut error = None;
    for &file in &moved {
        let is_last = steps.len().saturating_add(1) == moved.len();
        // the first step, a certificate, is durable before the files that it lists: the older one, under its temporary name
        // then, says how to take the others back. All steps are durable before the last one
        let before = match is_last || steps.len() == 1 {
            true => sync_parents(&steps).map_err(|(parent, e)| FormatError::io(parent, &e)),
            false => Ok(()),
        };
        match before.and_then(|()| file.put(is_last).map_err(|e| file.target.failed(&e))) {
            Ok(step) => steps.push((file, step)),
            Err(e) => {
                error = Some(e);
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
    // what was replaced goes after what replaces it can no longer be lost
    let synced = sync_parents(&steps);
    let removed = older.iter().try_for_each(OlderFile::remove);
    if removed.is_ok() && !older.is_empty() {
        // best effort: after a power cut the next writer removes an older file only while the older certificate is there
        let _ = sync_parents(&steps);
    }
    if removed.is_ok() {
        // the certificate became visible first and goes last: it lists what has to go
        for (file, step) in steps.iter().rev() {
            if let Step::Swapped = step {
                remove_any(&file.partial.path);
            }
        }
    }
    live.paths
        .retain(|path| !staged.iter().any(|s| s.partial.path == *path));
    drop(live);
    synced.map_err(|(parent, e)| {
        let message = format!("the output is complete, but its directory cannot be synced: {e}");
        FormatError::new(ErrorCode::Io, message)
            .in_file(parent)
            .hint("check the disk, then run bitnet-verify on the output")
            .because(e)
    })?;
    removed
}

/// Makes the steps durable; the directory that could not be synced.
fn sync_parents<'a>(steps: &[(&'a Staged, Step)]) -> Result<(), (&'a Path, io::Error)> {
    let mut parents: Vec<&Path> = steps
        .iter()
        .map(|(file, _)| file.target.parent.as_path())
        .collect();
    parents.dedup();
    parents
        .into_iter()
        .try_for_each(|parent| sync_directory(parent).map_err(|e| (parent, e)))
}
