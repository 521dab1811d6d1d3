//! Outputs that appear whole or not at all, hashed while they are written.
//!
//! Invariant: the target path changes in one step, after everything was written and fsynced. Before
//! that step the bytes live in a file without a name (Linux), or in `.NAME.partial-…` beside the
//! target, which is removed when the writer is dropped, by [`remove_partial_outputs`] on SIGINT,
//! and, after a `kill -9`, by the next writer of the same target.

mod directory;
mod os;
mod sha256_stream;

pub use directory::ArtifactDirectory;
pub use sha256_stream::Sha256Stream;

use crate::error::{ErrorCode, FormatError};
use sha256_stream::HASH_BUFFER;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A finished file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileDigest {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
}

/// The temporary paths of this process.
struct Live {
    paths: Vec<PathBuf>,
    /// The process is ending: nothing new may appear behind the back of what cleaned up.
    closed: bool,
}

static LIVE: Mutex<Live> = Mutex::new(Live {
    paths: Vec::new(),
    closed: false,
});

fn live() -> MutexGuard<'static, Live> {
    // a panic elsewhere must not keep us from cleaning up
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes every unfinished output of this process that has a name, and lets no other begin; for a
/// SIGINT handler, which then exits. Writers that are still running fail when they finish.
pub fn remove_partial_outputs() {
    let mut live = live();
    live.closed = true;
    for path in live.paths.drain(..) {
        remove_any(&path);
    }
}

fn interrupted() -> io::Error {
    io::Error::new(ErrorKind::Interrupted, "interrupted")
}

/// Removes a file or a tree, whichever it is. Another thread may still be creating files in the
/// tree, so a directory gets a few tries.
fn remove_any(path: &Path) {
    if fs::remove_file(path).is_ok() {
        return;
    }
    for _ in 0..4 {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {}
            _ => return,
        }
    }
}

/// A registered temporary path, removed on drop unless it was published.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    // held for its lock, which tells other processes that this partial output is alive
    lock: Option<File>,
}

impl Partial {
    /// Makes a path with `make` and registers it, in one step as `remove_partial_outputs` sees it.
    fn create<T>(make: impl FnOnce() -> io::Result<(PathBuf, T)>) -> io::Result<(Self, T)> {
        let mut live = live();
        if live.closed {
            return Err(interrupted());
        }
        let (path, value) = make()?;
        live.paths.push(path.clone());
        Ok((Self { path, lock: None }, value))
    }

    /// Runs the step that publishes the path, not to be interleaved with `remove_partial_outputs`.
    fn publish<T>(&self, step: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
        let live = live();
        if !live.paths.contains(&self.path) {
            return Err(interrupted());
        }
        step(&self.path)
    }

    /// Leaves the path alone from now on.
    fn forget(self) {
        live().paths.retain(|p| *p != self.path);
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let mut live = live();
        // not there: published, or removed by `remove_partial_outputs`
        if let Some(i) = live.paths.iter().position(|p| *p == self.path) {
            remove_any(&self.path);
            live.paths.swap_remove(i);
        }
    }
}

/// Where an output goes, resolved once.
#[derive(Debug)]
struct Target {
    /// As the caller spelled it.
    path: PathBuf,
    /// With a symbolic link followed, so that the link stays and what it points to is replaced.
    real: PathBuf,
    parent: PathBuf,
    name: OsString,
}

impl Target {
    fn new(path: &Path) -> Result<Self, FormatError> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
        // `out/` and `.` have their name only after resolution
        let real = if is_link || path.file_name().is_none() {
            fs::canonicalize(path).map_err(|e| FormatError::io(path, &e))?
        } else {
            path.to_owned()
        };
        let Some(name) = real.file_name().map(OsStr::to_owned) else {
            let message = "expected the path of an output, found one without a name";
            return Err(FormatError::new(ErrorCode::Usage, message).in_file(path));
        };
        let parent = match real.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self {
            path: path.to_owned(),
            real,
            parent,
            name,
        })
    }

    fn failed(&self, error: &io::Error) -> FormatError {
        match error.kind() {
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => self.exists(),
            _ => FormatError::io(&self.path, error),
        }
    }

    fn exists(&self) -> FormatError {
        FormatError::new(ErrorCode::Exists, "the output exists")
            .in_file(&self.path)
            .hint("--force replaces it")
    }

    /// `.NAME.partial-`
    fn partial_prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(&self.name);
        prefix.push(".partial-");
        prefix
    }

    /// Makes a new temporary path with `make`, which must fail if the path exists.
    fn new_partial<T>(
        &self,
        mut make: impl FnMut(&Path) -> io::Result<T>,
    ) -> io::Result<(Partial, T)> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let mut name = self.partial_prefix();
            name.push(format!(
                "{}-{}",
                std::process::id(),
                COUNTER.fetch_add(1, Ordering::Relaxed)
            ));
            let path = self.parent.join(name);
            match Partial::create(|| make(&path).map(|value| (path.clone(), value))) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                made => return made,
            }
        }
    }

    /// Removes what killed processes left beside the target. A living one holds a lock on its own.
    fn sweep(&self) {
        let prefix = self.partial_prefix();
        let Ok(entries) = fs::read_dir(&self.parent) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
                && let Ok(file) = File::open(entry.path())
                && file.try_lock().is_ok()
            {
                remove_any(&entry.path());
            }
        }
    }

    fn sync_parent(&self) -> Result<(), FormatError> {
        sync_directory(&self.parent).map_err(|e| self.failed(&e))
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        // some network file systems cannot sync a directory; there is nothing better to do there
        Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        done => done,
    }
}

/// Where the bytes of an [`Artifact`] are until it is finished.
#[derive(Debug)]
enum Place {
    /// Nowhere in the directory tree.
    Unnamed,
    /// Beside the target.
    Beside(Partial),
    /// At its final name in the temporary directory of an [`ArtifactDirectory`].
    Inside(Partial),
}

/// A file being written, hashed on the way, visible under its name only once it is finished.
/// Dropped unfinished, it leaves nothing behind.
#[derive(Debug)]
pub struct Artifact {
    target: Target,
    force: bool,
    file: File,
    place: Place,
    hash: Sha256Stream,
    position: u64,
    reserved: bool,
}

impl Artifact {
    /// Starts a file. A symbolic link is followed; the directory must exist.
    ///
    /// # Errors
    /// `exists` when there is something at `path` and `force` is false, or when it is not a regular
    /// file; whatever the operating system refuses.
    pub fn create(path: &Path, force: bool) -> Result<Self, FormatError> {
        let target = Target::new(path)?;
        match fs::metadata(&target.real) {
            Ok(found) if found.is_dir() => {
                let message = "expected a file to write, found a directory";
                return Err(FormatError::new(ErrorCode::Exists, message)
                    .in_file(path)
                    .hint("name a file inside it"));
            }
            Ok(found) if !found.is_file() => {
                let message = "expected a file to write, found a pipe, socket or device";
                return Err(FormatError::new(ErrorCode::Exists, message)
                    .in_file(path)
                    .hint("outputs are renamed into place, so they need a regular path"));
            }
            Ok(_) if !force => return Err(target.exists()),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(target.failed(&e)),
            _ => {}
        }
        target.sweep();
        let (file, place) = match os::unnamed_file(&target.parent) {
            Some(file) => (file, Place::Unnamed),
            None => loop {
                let (partial, file) = target
                    .new_partial(create_new)
                    .map_err(|e| target.failed(&e))?;
                let _ = file.lock();
                // another process may have swept it away before it was locked
                if partial.path.exists() {
                    break (file, Place::Beside(partial));
                }
            },
        };
        // for the moment in `finish` in which an unnamed file has a temporary name
        let _ = file.try_lock();
        Ok(Self::with(target, force, file, place))
    }

    fn with(target: Target, force: bool, file: File, place: Place) -> Self {
        Self {
            target,
            force,
            file,
            place,
            hash: Sha256Stream::new(),
            position: 0,
            reserved: false,
        }
    }

    /// Reserves disk space, so that a full disk is found before the work and not after it. Best
    /// effort where the file system cannot.
    ///
    /// # Errors
    /// The disk has no room for `bytes` (or a quota or file size limit says so).
    pub fn set_len(&mut self, bytes: u64) -> Result<(), FormatError> {
        match os::reserve(&self.file, bytes) {
            Ok(reserved) => {
                self.reserved |= reserved;
                Ok(())
            }
            Err(e) => {
                let message = format!("no room for {bytes} bytes: {e}");
                Err(FormatError::new(ErrorCode::Io, message).in_file(&self.target.path))
            }
        }
    }

    /// Appends bytes. Prefer large slices: each call is a write to the file.
    ///
    /// # Errors
    /// Whatever the operating system refuses.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        // pieces, so that the helper thread hashes one while the next is on its way to the disk
        for piece in bytes.chunks(HASH_BUFFER) {
            self.hash.update(piece);
            self.file
                .write_all(piece)
                .map_err(|e| self.target.failed(&e))?;
            self.position = self.position.saturating_add(piece.len() as u64);
        }
        Ok(())
    }

    /// Appends `count` zero bytes.
    ///
    /// # Errors
    /// Whatever the operating system refuses.
    pub fn write_zeros(&mut self, count: u64) -> Result<(), FormatError> {
        static ZEROS: [u8; 4096] = [0; 4096];
        let mut left = count;
        while left > 0 {
            let step = left.min(ZEROS.len() as u64);
            self.write(&ZEROS[..step as usize])?;
            left -= step;
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes the file durable, then visible under its name.
    ///
    /// # Errors
    /// `exists` when something appeared at the path meanwhile and `force` is false; whatever the
    /// operating system refuses. Nothing is left behind then.
    pub fn finish(self) -> Result<FileDigest, FormatError> {
        let Self {
            target,
            force,
            file,
            place,
            hash,
            position,
            reserved,
        } = self;
        let failed = |e: io::Error| target.failed(&e);
        let sha256 = hash.finish().map_err(failed)?;
        if reserved {
            // gives back what was reserved beyond the end
            file.set_len(position).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        match place {
            Place::Unnamed => {
                match os::link(&file, &target.real) {
                    Err(e) if e.kind() == ErrorKind::AlreadyExists && force => {
                        // a link cannot replace, a rename can: the file gets a temporary name first
                        let (partial, ()) = target
                            .new_partial(|path| os::link(&file, path))
                            .map_err(failed)?;
                        partial
                            .publish(|path| fs::rename(path, &target.real))
                            .map_err(failed)?;
                        partial.forget();
                    }
                    linked => linked.map_err(failed)?,
                }
                target.sync_parent()?;
            }
            Place::Beside(partial) => {
                partial
                    .publish(|path| match force {
                        true => fs::rename(path, &target.real),
                        false => os::rename_new(path, &target.real),
                    })
                    .map_err(failed)?;
                partial.forget();
                target.sync_parent()?;
            }
            // the directory is synced and published by `ArtifactDirectory::finish`
            Place::Inside(partial) => partial.forget(),
        }
        Ok(FileDigest {
            path: target.path,
            bytes: position,
            sha256,
        })
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}

/// Whether a name stays in its directory: no separators of any system, no `.` or `..`, no NUL.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0', ':'])
}

#[cfg(test)]
mod tests;
