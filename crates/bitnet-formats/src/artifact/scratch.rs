//! Directories for what is needed while a program runs.
//!
//! Invariant: the directory is removed when it is dropped, and by
//! [`remove_partial_outputs`](super::remove_partial_outputs) when the program is interrupted.

use super::Partial;
use crate::error::FormatError;
use std::io::ErrorKind;
use std::path::Path;

/// A new directory below the system's directory for temporary files.
#[derive(Debug)]
pub struct ScratchDirectory(Partial);

impl ScratchDirectory {
    /// Makes a directory that only this user may enter.
    ///
    /// # Errors
    /// `io`.
    pub fn create() -> Result<Self, FormatError> {
        let parent = std::env::temp_dir();
        let failed = |e: std::io::Error| FormatError::io(&parent, &e);
        let make = || {
            let mut number = 0u32;
            loop {
                let name = format!("bitnet-{}-{number}", std::process::id());
                let path = parent.join(name);
                match make_directory(&path) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                        number = number.saturating_add(1);
                    }
                    made => return made.map(|()| (path, ())),
                }
            }
        };
        Partial::create(make)
            .map(|(partial, ())| Self(partial))
            .map_err(failed)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

#[cfg(unix)]
fn make_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

#[cfg(not(unix))]
fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn directories_differ_and_go_away() {
        let (a, b) = (
            ScratchDirectory::create().unwrap(),
            ScratchDirectory::create().unwrap(),
        );
        assert_ne!(a.path(), b.path());
        let path = a.path().to_owned();
        std::fs::write(path.join("file"), b"x").unwrap();
        drop(a);
        assert!(!path.exists() && b.path().is_dir());
    }
}
