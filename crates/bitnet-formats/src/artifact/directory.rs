//! A directory of outputs that appears whole or not at all.
//!
//! Invariant: its files are written inside a temporary directory beside the target, which takes the
//! target's name in one step. A directory that is replaced held nothing but files of this program.

use super::owned::foreign_entry;
use super::{
    Artifact, FileDigest, Partial, Place, Staged, Target, create_new, is_plain_file_name,
    link_or_copy, lock, os, sync_directory,
};
use crate::error::{ErrorCode, FormatError};
use crate::input::read_directory;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A directory being written, visible under its name only once it is finished. Dropped unfinished,
/// it leaves nothing behind.
#[derive(Debug)]
pub struct ArtifactDirectory {
    target: Target,
    force: bool,
    partial: Partial,
    planned: Vec<String>,
}

impl ArtifactDirectory {
    /// Starts a directory that will hold the files `planned`. An empty directory at `path` counts as absent. Its
    /// parent must exist.
    ///
    /// # Errors
    /// `exists` when there is something at `path` and `force` is false; also with `force` when it is no
    /// directory, or holds anything but files that are planned and files that its certificate lists;
    /// whatever the operating system refuses.
    pub fn create(path: &Path, force: bool, planned: Vec<String>) -> Result<Self, FormatError> {
        let target = Target::new(path)?;
        match fs::metadata(&target.real) {
            Ok(found) if !found.is_dir() => {
                let message = "expected a directory to write, found a file";
                return Err(FormatError::new(ErrorCode::Exists, message)
                    .in_file(path)
                    .hint("name a directory, or remove the file"));
            }
            Ok(_) => {
                refuse_foreign(&target, &target.real, &planned)?;
                let mut entries = read_directory(&target.real).map_err(|e| target.failed(&e))?;
                if !force && entries.next().is_some() {
                    return Err(target.exists());
                }
            }
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(target.failed(&e)),
            Err(_) => {}
        }
        target.sweep();
        loop {
            let (mut partial, ()) = target
                .new_partial(|p| fs::create_dir(p))
                .map_err(|e| target.failed(&e))?;
            partial.lock = File::open(&partial.path).ok().filter(|f| lock(f).is_ok());
            // another process may have swept it away before it was locked
            if partial.path.exists() {
                return Ok(Self {
                    force,
                    partial,
                    target,
                    planned,
                });
            }
        }
    }

    /// Starts a file in it, or in a directory in it (`1_Pooling/config.json`); files may be written side by
    /// side from several threads. The digest of its `finish` has the final path.
    ///
    /// # Errors
    /// `usage` when `name` is not a plain file name, or two of them; `exists` when it is there already; whatever the
    /// operating system refuses.
    pub fn file(&self, name: &str) -> Result<Artifact, FormatError> {
        let (target, partial, file) = self.place(name, create_new)?;
        Ok(Artifact::with(
            target,
            self.force,
            file,
            Place::Inside(partial),
        ))
    }

    /// Takes a finished file that lies elsewhere on the same disk into it. The file at `existing.path` stays.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn existing(&self, existing: &FileDigest, name: &str) -> Result<Staged, FormatError> {
        let (target, partial, file) = self.place(name, |to| link_or_copy(&existing.path, to))?;
        Ok(Staged {
            digest: FileDigest {
                path: target.path.clone(),
                ..existing.clone()
            },
            target,
            force: self.force,
            partial,
            inside: true,
            _lock: file,
        })
    }

    /// Makes the file `name` with `make`, which must fail if the path exists.
    fn place(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> io::Result<File>,
    ) -> Result<(Target, Partial, File), FormatError> {
        let path = self.target.path.join(name);
        let (below, plain) = match name.split_once('/') {
            Some((below, plain)) => (Some(below), plain),
            None => (None, name),
        };
        if !is_plain_file_name(plain) || below.is_some_and(|below| !is_plain_file_name(below)) {
            let message = "expected a plain file name";
            return Err(FormatError::new(ErrorCode::Usage, message).in_file(&path));
        }
        let mut parent = self.partial.path.clone();
        if let Some(below) = below {
            parent.push(below);
            match fs::create_dir(&parent) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    return Err(FormatError::io(&path, &e));
                }
                _ => {}
            }
        }
        let real = parent.join(plain);
        let made = Partial::create(|| make(&real).map(|file| (real.clone(), file)));
        let (partial, file) = made.map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => {
                FormatError::new(ErrorCode::Exists, "the output has this file twice").in_file(&path)
            }
            _ => FormatError::io(&path, &e),
        })?;
        let target = Target {
            path,
            name: plain.into(),
            parent,
            real,
        };
        Ok((target, partial, file))
    }

    /// Makes the directory durable, then visible under its name. Files must be finished before;
    /// unfinished ones are not in it.
    ///
    /// # Errors
    /// `exists` when something appeared at the path meanwhile and `force` is false; whatever the
    /// operating system refuses. Nothing is left behind then.
    pub fn finish(self) -> Result<PathBuf, FormatError> {
        let Self {
            target,
            force,
            partial,
            planned,
        } = self;
        let failed = |e: io::Error| target.failed(&e);
        for entry in read_directory(&partial.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                sync_directory(&entry.path()).map_err(failed)?;
            }
        }
        sync_directory(&partial.path).map_err(failed)?;
        // files may have come since the directory was started
        if target.real.is_dir() {
            refuse_foreign(&target, &target.real, &planned)?;
        }
        let replaced = partial
            .publish(|path| match fs::rename(path, &target.real) {
                Err(e)
                    if force
                        && matches!(
                            e.kind(),
                            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty
                        ) =>
                {
                    os::exchange(path, &target.real).map(|()| true)
                }
                // Windows says that it may not replace a directory, even an empty one
                Err(e) if cfg!(windows) && target.real.is_dir() => {
                    replace_directory(path, &target.real, force, e)
                }
                done => done.map(|()| false),
            })
            .map_err(failed)?;
        if !replaced {
            partial.forget();
            sync_parent(&target)?;
            return Ok(target.path);
        }
        // the temporary path now holds the old directory, to be removed, with what came between the last look
        // and the exchange in it
        if let Err(error) = refuse_foreign(&target, &partial.path, &planned) {
            partial
                .publish(|path| os::exchange(path, &target.real))
                .map_err(failed)?;
            return Err(error);
        }
        // the older directory goes after the new one can no longer be lost
        let synced = sync_parent(&target);
        drop(partial);
        synced.map(|()| target.path)
    }
}

/// Renames over a directory where a rename replaces none: an empty one goes first, and one with files is exchanged if
/// `force` allows it (`true`). Else the error of the rename stands.
fn replace_directory(from: &Path, to: &Path, force: bool, error: io::Error) -> io::Result<bool> {
    if fs::remove_dir(to).is_ok() {
        return fs::rename(from, to).map(|()| false);
    }
    match force {
        true => os::exchange(from, to).map(|()| true),
        false => Err(error),
    }
}

/// The directory is visible, whatever comes of this.
fn sync_parent(target: &Target) -> Result<(), FormatError> {
    sync_directory(&target.parent).map_err(|e| {
        let message = format!("the output is complete, but its directory cannot be synced: {e}");
        FormatError::new(ErrorCode::Io, message)
            .in_file(&target.path)
            .hint("check the disk, then run bitnet-verify on the output")
            .because(e)
    })
}

/// Refuses to replace what is at `at` if it is more than an output.
fn refuse_foreign(target: &Target, at: &Path, planned: &[String]) -> Result<(), FormatError> {
    let foreign = foreign_entry(at, planned).map_err(|e| target.failed(&e))?;
    let Some(foreign) = foreign else {
        return Ok(());
    };
    let name = foreign.strip_prefix(at).unwrap_or(&foreign);
    let message = format!(
        "the output directory holds `{}`, which this program did not write",
        name.display()
    );
    Err(FormatError::new(ErrorCode::Exists, message)
        .in_file(&target.path)
        .hint("name another directory, or move what is in this one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_directory_is_replaced_where_a_rename_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("new"), dir.path().join("old"));
        let fresh = || {
            let _ = fs::remove_dir_all(&from);
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&from).unwrap();
            fs::create_dir(&to).unwrap();
            fs::write(from.join("file"), "new").unwrap();
        };
        let refused = || io::Error::from(ErrorKind::PermissionDenied);
        let content = || fs::read_to_string(to.join("file")).unwrap();
        // an empty one goes, with or without force
        for force in [false, true] {
            fresh();
            assert!(!replace_directory(&from, &to, force, refused()).unwrap());
            assert_eq!((content().as_str(), from.exists()), ("new", false));
        }
        // one with files stays, or is exchanged
        fresh();
        fs::write(to.join("file"), "old").unwrap();
        let error = replace_directory(&from, &to, false, refused()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(content(), "old");
        assert!(replace_directory(&from, &to, true, refused()).unwrap());
        assert_eq!(content(), "new");
        assert_eq!(fs::read_to_string(from.join("file")).unwrap(), "old");
    }
}
