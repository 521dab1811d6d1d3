//! Outputs that appear whole or not at all, hashed while they are written.
//!
//! Invariant: the target path changes in one step, after everything was written and fsynced. Before
//! that step the bytes live in a file without a name (Linux), or in `.NAME.partial-…` beside the
//! target, which is removed when the writer is dropped, by [`remove_partial_outputs`] on SIGINT,
//! and, after a `kill -9`, by the next writer of the same target.

mod directory;
mod inputs;
mod lock;
mod os;
mod owned;
mod publish;
mod restore;
mod scratch;
mod sha256_stream;
mod signed;

pub use directory::ArtifactDirectory;
pub use inputs::Inputs;
pub use lock::OutputLock;
pub use owned::{OlderFile, is_certificate_of_ours};
pub use publish::{Staged, publish, publish_over};
pub use scratch::ScratchDirectory;
pub use sha256_stream::Sha256Stream;

use crate::error::{ErrorCode, FormatError};
use crate::input::read_directory;
use crate::path_names::is_device_name;
use crate::shell::shell_word;
use sha256_stream::HASH_BUFFER;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
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
        check_output_name(path)?;
        let is_link = is_link(path);
        if leads_to_a_stream(path) {
            let message = "the output is an open stream of a process";
            return Err(FormatError::new(ErrorCode::Exists, message)
                .in_file(path)
                .hint("outputs are renamed into place, so they need a regular path"));
        }
        let real = if is_link {
            fs::canonicalize(path).map_err(|e| broken_link(path, &e))?
        } else {
            path.to_owned()
        };
        let Some(name) = real.file_name().map(OsStr::to_owned) else {
            return Err(no_name(path));
        };
        let parent = match real.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
            _ => PathBuf::from("."),
        };
        check_parent(path, &parent)?;
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
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                FormatError::io(&self.path, error).hint(NO_ROOM)
            }
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
        partial_prefix(&self.name)
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

    /// A new temporary file beside the target, locked.
    fn new_locked_file(&self) -> io::Result<(Partial, File)> {
        loop {
            let (partial, file) = self.new_partial(create_new)?;
            let _ = lock(&file);
            // another process may have swept it away before it was locked
            if partial.path.exists() {
                return Ok((partial, file));
            }
        }
    }

    /// Copies an unnamed file, made durable, to a temporary file beside the target.
    fn copy_beside(&self, file: &mut File) -> io::Result<(Partial, File)> {
        let (partial, mut copy) = self.new_locked_file()?;
        file.seek(SeekFrom::Start(0))?;
        io::copy(file, &mut copy)?;
        copy.sync_all()?;
        Ok((partial, copy))
    }

    /// Removes what killed processes left beside the target. A living one holds a lock on its own.
    fn sweep(&self) {
        let prefix = self.partial_prefix();
        sweep(&self.parent, |name| {
            name.as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
        });
    }
}

const NO_ROOM: &str =
    "free space on the file system, or raise the limits of this process (ulimit -f)";

/// Longest part of a name that a temporary name repeats; file systems allow 255 bytes in all.
const LONGEST_PREFIX: usize = 180;

/// `.NAME.partial-`; of a long name only the beginning, and its hash.
fn partial_prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    if name.len() <= LONGEST_PREFIX {
        prefix.push(name);
    } else {
        let mut hash = Sha256Stream::new();
        hash.update(name.as_encoded_bytes());
        let hash = hash.finish().unwrap_or_default();
        let text = name.to_string_lossy();
        let end = text.floor_char_boundary(LONGEST_PREFIX);
        prefix.push(text.get(..end).unwrap_or_default());
        prefix.push(hash.get(..16).unwrap_or(&hash));
    }
    prefix.push(".partial-");
    prefix
}

/// Removes the temporary files of dead processes that `is_ours` names.
fn sweep(parent: &Path, is_ours: impl Fn(&OsStr) -> bool) {
    let Ok(entries) = read_directory(parent) else {
        return;
    };
    for entry in entries.flatten() {
        if is_ours(&entry.file_name())
            && entry.file_type().is_ok_and(|t| t.is_file() || t.is_dir())
            && let Ok(file) = File::open(entry.path())
            && try_lock(&file).is_ok()
        {
            remove_any(&entry.path());
        }
    }
}

/// The temporary files of an output whose writers are dead.
fn dead_files(parent: &Path, name: &OsStr) -> Vec<PathBuf> {
    let prefix = partial_prefix(name);
    let entries = read_directory(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
        })
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .filter(|path| File::open(path).is_ok_and(|file| try_lock(&file).is_ok()))
        .collect()
}

/// Removes the temporary files that killed processes left in a directory beside the targets that `is_target` names. Those of
/// living processes stay.
pub fn sweep_beside(directory: &Path, is_target: impl Fn(&str) -> bool) {
    sweep(directory, |found| {
        let name = found.to_str().and_then(|name| name.strip_prefix('.'));
        let parts = name.and_then(|name| name.split_once(".partial-"));
        parts.is_some_and(|(target, _)| is_target(target))
    });
}

/// Refuses a path that names no output: an empty one, `-`, `.`, `..`, `/`.
///
/// # Errors
/// `usage`.
pub fn check_output_name(path: &Path) -> Result<(), FormatError> {
    if path.as_os_str() == "-" {
        let message = "the output is a file or a directory, `-` (standard output) is neither";
        return Err(FormatError::new(ErrorCode::Usage, message)
            .hint("name a file, for example -o out.gguf; ./- is a file called `-`"));
    }
    match path.file_name() {
        Some(name) => check_system_name(path, name, cfg!(windows)),
        None => Err(no_name(path)),
    }
}

/// Whether a path names a directory by how it ends: in `/`, or in `/.`.
pub fn names_directory(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    let is_separator = |byte: &u8| *byte == b'/' || cfg!(windows) && *byte == b'\\';
    let text = match text {
        [before @ .., b'.'] if before.last().is_some_and(is_separator) => before,
        text => text,
    };
    text.last().is_some_and(is_separator)
}

/// Refuses the name of a directory for an output that is a file. A directory that exists has an error of its own.
///
/// # Errors
/// `usage`.
pub fn check_file_name(path: &Path) -> Result<(), FormatError> {
    if !names_directory(path) || path.is_dir() {
        return Ok(());
    }
    let message = "expected a file to write, found the name of a directory (it ends in a slash)";
    let example = shell_word(path.join("FILE"));
    Err(FormatError::new(ErrorCode::Usage, message)
        .in_file(path)
        .hint(format!(
            "name a file in the directory, for example {example}, and make the directory if it does not exist"
        )))
}

/// Refuses what Windows would take for a device or a stream of a file, or store under another name.
fn check_system_name(path: &Path, name: &OsStr, windows: bool) -> Result<(), FormatError> {
    let name = name.to_string_lossy();
    let found = match &*name {
        _ if !windows => return Ok(()),
        name if is_device_name(name) => "the name of a device",
        name if name.contains(':') => "the name of a stream inside a file",
        name if name.ends_with(['.', ' ']) => "a name that Windows shortens",
        _ => return Ok(()),
    };
    let message = format!("expected the name of an output, found {found}");
    Err(FormatError::new(ErrorCode::Usage, message)
        .in_file(path)
        .hint("name another output"))
}

fn no_name(path: &Path) -> FormatError {
    let message = format!("expected the name of an output, found `{}`", path.display());
    FormatError::new(ErrorCode::Usage, message).hint("name a file or a new directory")
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink())
}

/// Whether links of `path` pass through the descriptors of a process, as `/dev/stdout` does: what they lead to
/// may be a file, but it is not there to be replaced.
fn leads_to_a_stream(path: &Path) -> bool {
    let mut path = path.to_owned();
    // as many links as systems follow
    for _ in 0..40 {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")));
        let Ok(parent) = parent else {
            return false;
        };
        if parent.starts_with("/proc") || parent.starts_with("/dev/fd") {
            return true;
        }
        match fs::read_link(&path) {
            Ok(to) => path = parent.join(to),
            Err(_) => return false,
        }
    }
    false
}

/// The link is there, its target is not, or cannot be reached.
fn broken_link(path: &Path, error: &io::Error) -> FormatError {
    match (error.kind(), fs::read_link(path)) {
        (ErrorKind::NotFound, Ok(to)) => {
            let message = format!(
                "the output is a symbolic link to `{}`, which does not exist",
                to.display()
            );
            FormatError::new(ErrorCode::Exists, message)
                .in_file(path)
                .hint("remove the link, or name another output")
        }
        _ => FormatError::io(path, error),
    }
}

fn check_parent(path: &Path, parent: &Path) -> Result<(), FormatError> {
    let error = |message: String| FormatError::new(ErrorCode::Io, message).in_file(path);
    match fs::metadata(parent) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(error(format!("`{}` is not a directory", parent.display()))
            .hint("name an output in a directory")),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let message = format!("the directory `{}` does not exist", parent.display());
            Err(error(message).hint("create the directory, or name another output"))
        }
        Err(e) => Err(FormatError::io(path, &e)),
    }
}

/// Makes names in a directory durable. Windows does so when a file is renamed, and opens no directory as a file.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
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
    /// Refuses an output that [`create`](Self::create) would refuse, and starts nothing: for programs that
    /// write at their end.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn check(path: &Path, force: bool) -> Result<(), FormatError> {
        Self::target(path, force).map(|_| ())
    }

    fn target(path: &Path, force: bool) -> Result<Target, FormatError> {
        check_file_name(path)?;
        let target = Target::new(path)?;
        let refuse = |message: &str, hint: &str| {
            let error = FormatError::new(ErrorCode::Exists, message).in_file(path);
            Err(error.hint(hint))
        };
        match fs::metadata(&target.real) {
            Ok(found) if found.is_dir() => refuse(
                "expected a file to write, found a directory",
                "name a file inside it",
            ),
            Ok(found) if !found.is_file() => refuse(
                "expected a file to write, found a pipe, socket or device",
                "outputs are renamed into place, so they need a regular path",
            ),
            Ok(_) if !force => Err(target.exists()),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(target.failed(&e)),
            _ => Ok(target),
        }
    }

    /// Starts a file. A symbolic link is followed; the directory must exist.
    ///
    /// # Errors
    /// `usage` for a path that names no file; `exists` when there is something at `path` and `force` is false,
    /// when it is not a regular file, or a symbolic link to nothing; whatever the operating system refuses.
    pub fn create(path: &Path, force: bool) -> Result<Self, FormatError> {
        let target = Self::target(path, force)?;
        target.sweep();
        let (file, place) = match os::unnamed_file(&target.parent) {
            Some(file) => (file, Place::Unnamed),
            None => {
                let (partial, file) = target.new_locked_file().map_err(|e| target.failed(&e))?;
                (file, Place::Beside(partial))
            }
        };
        // for the moment before it is published in which an unnamed file has a temporary name
        let _ = try_lock(&file);
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
                Err(FormatError::new(ErrorCode::Io, message)
                    .in_file(&self.target.path)
                    .hint(NO_ROOM)
                    .because(e))
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
            self.write(ZEROS.get(..step as usize).unwrap_or(&ZEROS))?;
            left = left.saturating_sub(step);
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes the bytes durable; gives them a temporary name where they have none.
    ///
    /// # Errors
    /// Whatever the operating system refuses. Nothing is left behind then.
    pub fn stage(self) -> Result<Staged, FormatError> {
        let Self {
            target,
            force,
            mut file,
            place,
            hash,
            position,
            reserved,
        } = self;
        let failed = |e: io::Error| target.failed(&e);
        if reserved {
            // gives back what was reserved beyond the end
            file.set_len(position).map_err(failed)?;
        }
        let sha256 = hash.finish().map_err(failed)?;
        file.sync_all().map_err(failed)?;
        let (file, partial, inside) = match place {
            Place::Unnamed => match target.new_partial(|path| os::link(&file, path)) {
                Ok((partial, ())) => (file, partial, false),
                // the file system has unnamed files and cannot name them
                Err(_) => {
                    let (partial, copy) = target.copy_beside(&mut file).map_err(failed)?;
                    (copy, partial, false)
                }
            },
            Place::Beside(partial) => (file, partial, false),
            Place::Inside(partial) => (file, partial, true),
        };
        let digest = FileDigest {
            path: target.path.clone(),
            bytes: position,
            sha256,
        };
        Ok(Staged {
            target,
            force,
            partial,
            inside,
            digest,
            _lock: file,
        })
    }

    /// Makes the file durable, then visible under its name.
    ///
    /// # Errors
    /// `exists` when something appeared at the path meanwhile and `force` is false; whatever the
    /// operating system refuses. Nothing is left behind then.
    pub fn finish(self) -> Result<FileDigest, FormatError> {
        let staged = self.stage()?;
        let digest = staged.digest().clone();
        publish(vec![staged]).map(|()| digest)
    }
}

/// SHA-256 of a file, lower-case hexadecimal, and its length.
///
/// # Errors
/// Whatever the operating system refuses.
pub fn file_digest(path: &Path) -> Result<FileDigest, FormatError> {
    let read = || -> io::Result<(u64, String)> {
        let mut file = File::open(path)?;
        let (mut hash, mut bytes) = (Sha256Stream::new(), 0u64);
        let mut buffer = vec![0; HASH_BUFFER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok((bytes, hash.finish()?)),
                Ok(n) => {
                    hash.update(buffer.get(..n).unwrap_or(&buffer));
                    bytes = bytes.saturating_add(n as u64);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    };
    let (bytes, sha256) = read().map_err(|e| FormatError::io(path, &e))?;
    Ok(FileDigest {
        path: path.to_owned(),
        bytes,
        sha256,
    })
}

/// Gives a finished file a second name: a hard link, or a copy where the file system has no links.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<File> {
    match fs::hard_link(from, to) {
        Err(e) if matches!(e.kind(), ErrorKind::AlreadyExists | ErrorKind::NotFound) => Err(e),
        Err(_) => {
            let mut copy = create_new(to)?;
            io::copy(&mut File::open(from)?, &mut copy)?;
            copy.sync_all()?;
            Ok(copy)
        }
        Ok(()) => File::open(to),
    }
}

/// Waits for the lock of a file. A signal that arrives meanwhile is no reason to go on without it.
fn lock(file: &File) -> io::Result<()> {
    loop {
        match file.lock() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Takes the lock of a file, if nobody has it.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    loop {
        match file.try_lock() {
            Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

/// Whether a name stays in its directory: no separators of any system, no `.` or `..`, no NUL.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\\', '\0', ':'])
}

#[cfg(test)]
mod tests;
