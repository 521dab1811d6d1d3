//! A directory for readers that take paths.
//!
//! Invariant: each thread has its own, in memory where the system has such a place.

use std::path::{Path, PathBuf};
use tempfile::TempDir;

thread_local! {
    static SCRATCH: TempDir = {
        let memory = Path::new("/dev/shm");
        let made = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        made.expect("a directory can be created")
    };
}

/// The directory of this thread.
pub(crate) fn path() -> PathBuf {
    SCRATCH.with(|dir| dir.path().to_owned())
}

/// A directory below that of this thread.
pub(crate) fn below(name: &str) -> PathBuf {
    let dir = path().join(name);
    std::fs::create_dir_all(&dir).expect("a directory can be created");
    dir
}

/// Writes a file anew: the one before may still be mapped.
pub(crate) fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).expect("a file can be written");
}
