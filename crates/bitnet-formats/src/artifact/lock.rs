//! One writer at a time for one output.
//!
//! Invariant: while an [`OutputLock`] lives, no other process (and no other thread) has one for the same
//! output. A killed process holds none.

use super::restore::restore;
use super::signed::{certificate_name, signature_name, statement_name};
use super::{Partial, Target, partial_prefix, sweep, try_lock};
use crate::error::{ErrorCode, FormatError};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

/// The right to write an output and the files that belong to it: an advisory lock on `.NAME.partial-lock`
/// beside the output. The file is removed with the lock.
#[derive(Debug)]
pub struct OutputLock {
    _partial: Partial,
}

impl OutputLock {
    /// Takes the lock, and removes what killed writers of this output left. Where one was killed while its files
    /// became visible, the older files and their certificate come back first.
    ///
    /// # Errors
    /// `busy` when another writer has it; `usage` for a path that names no output; whatever the operating
    /// system refuses.
    pub fn take(path: &Path) -> Result<Self, FormatError> {
        let target = Target::new(path)?;
        let mut name = target.partial_prefix();
        name.push("lock");
        let place = target.parent.join(name);
        refuse_other(&place)?;
        let made = Partial::create(|| lock(&place).map(|file| (place.clone(), file)));
        let (mut partial, file) = made.map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => {
                FormatError::new(ErrorCode::Busy, "another process is writing this output")
                    .in_file(path)
                    .hint("wait until it ends, or name another output")
            }
            _ => FormatError::io(&place, &e),
        })?;
        partial.lock = Some(file);
        restore(&target);
        sweep(&target.parent, |name| is_temporary_of(&target.name, name));
        Ok(Self { _partial: partial })
    }
}

/// Refuses a lock file that is a link, which would make a file where it leads, or no regular file.
fn refuse_other(place: &Path) -> Result<(), FormatError> {
    let found = match std::fs::symlink_metadata(place) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        // what else is wrong with the place is said when the file is made
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.is_symlink() => "a link",
        Ok(metadata) if metadata.is_dir() => "a directory",
        Ok(_) => "a pipe, socket or device",
    };
    let message = format!("expected a lock file or none, found {found}");
    Err(FormatError::new(ErrorCode::Io, message)
        .in_file(place)
        .hint("remove it, or name another output"))
}

/// Opens and locks the file; `WouldBlock` when another has the lock.
fn lock(place: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        // what took the place in between neither leads elsewhere nor makes this wait
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        options.custom_flags(flags.bits().cast_signed());
    }
    loop {
        let file = options.open(place)?;
        match try_lock(&file) {
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            // a file system without locks: its users have to take care themselves
            Err(TryLockError::Error(_)) => return Ok(file),
            // the owner before may have removed the file that was opened
            Ok(()) if is_at(&file, place) => return Ok(file),
            Ok(()) => {}
        }
    }
}

#[cfg(unix)]
fn is_at(file: &File, place: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::symlink_metadata(place)) {
        (Ok(open), Ok(found)) => (open.dev(), open.ino()) == (found.dev(), found.ino()),
        _ => false,
    }
}

#[cfg(not(unix))]
fn is_at(_file: &File, place: &Path) -> bool {
    place.exists()
}

/// Whether `name` is a temporary file of the output `output`, of its certificate, or of a part of it.
fn is_temporary_of(output: &OsStr, name: &OsStr) -> bool {
    let beside = [
        output.to_owned(),
        certificate_name(output),
        statement_name(output),
        signature_name(output),
    ];
    let begins = |prefix: &OsStr| {
        name.as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes())
    };
    if beside.iter().any(|name| begins(&partial_prefix(name))) {
        return true;
    }
    let stem = Path::new(output);
    let stem = match stem.extension() {
        Some(e) if e == "gguf" => stem.file_stem().unwrap_or_default(),
        _ => output,
    };
    // .STEM-00001-of-00003.gguf.partial-…
    let rest = name
        .to_str()
        .and_then(|name| name.strip_prefix('.'))
        .and_then(|name| name.strip_prefix(stem.to_str()?))
        .and_then(|name| name.strip_prefix('-'))
        .and_then(|name| name.split_once(".gguf.partial-"));
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    rest.and_then(|(numbers, _)| numbers.split_once("-of-"))
        .is_some_and(|(number, count)| digits(number) && digits(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn one_at_a_time_and_nothing_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        for _ in 0..2 {
            let lock = OutputLock::take(&path).unwrap();
            let refused = OutputLock::take(&path).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Busy);
            // another output is another lock
            OutputLock::take(&dir.path().join("n.gguf")).unwrap();
            drop(lock);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // a dead process holds none
        std::fs::write(dir.path().join(".m.gguf.partial-lock"), b"").unwrap();
        OutputLock::take(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_lock_file_that_is_something_else_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, place) = (
            dir.path().join("m.gguf"),
            dir.path().join(".m.gguf.partial-lock"),
        );
        let refused = |found: &str| {
            let error = OutputLock::take(&path).unwrap_err();
            assert_eq!(error.code, ErrorCode::Io, "{error}");
            assert_eq!(error.file.as_deref(), Some(place.as_path()));
            assert!(error.message.ends_with(found), "{error}");
            assert!(std::fs::symlink_metadata(&place).is_ok());
        };
        let elsewhere = dir.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, &place).unwrap();
        refused("found a link");
        assert!(!elsewhere.exists());
        // a link to a file, whose owner waits for nobody
        std::fs::write(&elsewhere, "kept").unwrap();
        refused("found a link");
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"kept");
        std::fs::remove_file(&place).unwrap();
        std::fs::create_dir(&place).unwrap();
        refused("found a directory");
        std::fs::remove_dir(&place).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&place).status();
        assert!(made.unwrap().success());
        refused("found a pipe, socket or device");
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn temporary_files_of_every_part_are_swept_and_those_of_others_are_not() {
        let is = |name: &str| is_temporary_of(OsStr::new("m.gguf"), OsStr::new(name));
        for name in [
            ".m.gguf.partial-1-0",
            ".m.gguf.certificate.json.partial-1-0",
            ".m.gguf.certificate.intoto.json.partial-1-0",
            ".m.gguf.certificate.intoto.json.sig.partial-1-0",
            ".m-00001-of-00005.gguf.partial-1-0",
        ] {
            assert!(is(name), "{name}");
        }
        for name in [
            "m.gguf",
            "m.gguf.partial-1-0",
            ".mm.gguf.partial-1-0",
            ".m-0001-of-00005.gguf.partial-1-0",
            ".m-00001-of-00005.gguf",
            ".n-00001-of-00005.gguf.partial-1-0",
        ] {
            assert!(!is(name), "{name}");
        }
    }
}
