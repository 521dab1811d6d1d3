//! Files that are read: how they are opened, how much of them is read, and whether they stayed as they were.
//!
//! Invariant: only regular files are read, and opening never waits (a pipe without a writer, a device). A read
//! is never longer than its limit. A file that was written to, replaced or removed since it was opened is
//! found by [`Input::check`], unless the writer leaves size, time stamps and inode as they were (writes
//! through a memory mapping may do so).

use crate::error::{ErrorCode, FormatError};
use crate::path_names::without_verbatim_prefix;
use std::fs::{File, Metadata, OpenOptions, ReadDir};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells whether a file is the one that was opened, with the content that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileState {
    len: u64,
    modified: Option<SystemTime>,
    /// Device and inode.
    identity: (u64, u64),
    /// Seconds and nanoseconds of the last change of content or attributes: not even a program that sets the
    /// time of modification back sets this one.
    changed: (i64, i64),
}

impl FileState {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            identity: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    #[cfg(not(unix))]
    fn of(metadata: &Metadata) -> Self {
        Self {
            len: metadata.len(),
            modified: metadata.modified().ok(),
            identity: (0, 0),
            changed: (0, 0),
        }
    }
}

/// A file as it was when it was opened.
#[derive(Debug, Clone)]
pub struct Input {
    path: PathBuf,
    state: FileState,
}

impl Input {
    /// A file as it is now.
    ///
    /// # Errors
    /// `io`.
    pub fn of(path: &Path) -> Result<Self, FormatError> {
        let metadata = std::fs::metadata(path).map_err(|e| FormatError::io(path, &e))?;
        Ok(Self::opened(path, &metadata))
    }

    /// A file that was opened by this path, by the metadata of its descriptor.
    pub(crate) fn opened(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            state: FileState::of(metadata),
        }
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing wrote to the file since it was opened, if the path still leads to it: a file that was
    /// renamed, removed or replaced keeps its bytes for those who have it open. One system call.
    ///
    /// # Errors
    /// `input-changed`, with what changed.
    pub fn check_content(&self) -> Result<(), FormatError> {
        match std::fs::metadata(&self.path).map(|m| FileState::of(&m)) {
            Ok(now) if now.identity != self.state.identity => Ok(()),
            Ok(now) if (now.len, now.modified) == (self.state.len, self.state.modified) => Ok(()),
            Ok(_) => self.check(),
            Err(_) => Ok(()),
        }
    }

    /// Whether the path still leads to the file that was opened, and nothing wrote to it. One system call.
    ///
    /// # Errors
    /// `input-changed`, with what changed.
    pub fn check(&self) -> Result<(), FormatError> {
        let now = std::fs::metadata(&self.path).map(|m| FileState::of(&m));
        let what = match &now {
            Ok(now) if *now == self.state => return Ok(()),
            Ok(now) if now.identity != self.state.identity => {
                "expected the file that was opened, found another file in its place".to_owned()
            }
            Ok(now) if now.len != self.state.len => {
                let (expected, found) = (self.state.len, now.len);
                format!("expected {expected} bytes as when it was opened, found {found}")
            }
            Ok(_) => "expected the content that it had when it was opened, found that it was written to or its attributes were changed".to_owned(),
            Err(e) => format!("expected the file that was opened, found none: {e}"),
        };
        let message = format!("the input changed while it was read: {what}");
        if let Err(e) = &now
            && !is_absent(e)
        {
            return Err(FormatError::io(&self.path, e));
        }
        let error = FormatError::new(ErrorCode::InputChanged, message)
            .in_file(&self.path)
            .hint("wait until no other program writes the file, then run the command again");
        Err(match now {
            Ok(_) => error,
            Err(cause) => error.because(cause),
        })
    }
}

/// Refuses what is no regular file.
fn refuse_special(path: &Path, metadata: &Metadata) -> Result<(), FormatError> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() {
        "a directory"
    } else {
        "a pipe, socket or device"
    };
    let message = format!("expected a regular file, found {found}");
    Err(FormatError::new(ErrorCode::Io, message).in_file(path))
}

/// Opens a regular file for reading. Never waits.
///
/// # Errors
/// `io`: the file cannot be opened, or is a directory, pipe, socket or device.
pub fn open_regular(path: &Path) -> Result<(File, Metadata), FormatError> {
    let failed = |e: std::io::Error| FormatError::io(path, &e);
    // asked before opening, because opening alone makes some devices act
    refuse_special(path, &std::fs::metadata(path).map_err(failed)?)?;
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt;
        // a pipe that took the place of the file in between must not make this wait
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        options.custom_flags(flags.bits().cast_signed());
    }
    let file = options.open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    refuse_special(path, &metadata)?;
    Ok((file, metadata))
}

/// The entries of a directory. A signal that arrives while the directory is opened is no error.
///
/// # Errors
/// Whatever the operating system refuses.
pub fn read_directory(path: &Path) -> std::io::Result<ReadDir> {
    loop {
        match std::fs::read_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The whole of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open_regular`]; `limit-exceeded`, naming the limit.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, FormatError> {
    let (file, metadata) = open_regular(path)?;
    let len = metadata.len();
    if len > limit {
        return Err(too_long(limit, &len.to_string()).in_file(path));
    }
    read_stream(file, len, limit)
        .map_err(|e| FormatError::io(path, &e))?
        .ok_or_else(|| too_long(limit, "more").in_file(path))
}

/// The whole of a stream of at most `limit` bytes, standard input for example.
///
/// # Errors
/// `io`; `limit-exceeded`, naming the limit.
pub fn read_to_limit(stream: impl Read, limit: u64) -> Result<Vec<u8>, FormatError> {
    read_stream(stream, 0, limit)
        .map_err(|e| FormatError::new(ErrorCode::Io, e.to_string()).because(e))?
        .ok_or_else(|| too_long(limit, "more"))
}

/// `None` when there are more bytes than the limit.
fn read_stream(stream: impl Read, expected: u64, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
    // one byte more, so that the end is seen without growing
    let capacity = expected.saturating_add(1).min(limit.saturating_add(1));
    let mut bytes = Vec::with_capacity(usize::try_from(capacity).unwrap_or(0));
    let mut stream = stream.take(limit.saturating_add(1));
    stream.read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

fn too_long(limit: u64, found: &str) -> FormatError {
    let message = format!("expected at most {limit} bytes, found {found}");
    FormatError::new(ErrorCode::LimitExceeded, message)
}

/// The whole of a file that belongs to a model directory (`tokenizer.json`, `1_Pooling/config.json`), of at most
/// `limit` bytes; `None` when there is none. Links are followed as [`check_side_file`] allows.
///
/// # Errors
/// As [`read_file`] and [`check_side_file`].
pub fn read_side_file(
    directory: &Path,
    name: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, FormatError> {
    if !check_side_file(directory, name)? {
        return Ok(None);
    }
    read_file(&directory.join(name), limit).map(Some)
}

/// Whether an error says that nothing is at a path.
fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Whether a model directory has a file of this name that may be read. Files are often strangers' and end up in
/// outputs, so a symbolic link may lead to files of the same directory, and from a snapshot of the
/// Hugging Face Hub cache (`models--OWNER--NAME/snapshots/COMMIT`) to files of the same repository.
///
/// # Errors
/// `outside-link` for a link that leads elsewhere; `io` for a link that leads nowhere and for what is no regular
/// file.
pub fn check_side_file(directory: &Path, name: &str) -> Result<bool, FormatError> {
    let path = directory.join(name);
    let failed = |e: std::io::Error| FormatError::io(&path, &e);
    let is_link = match std::fs::symlink_metadata(&path) {
        Ok(metadata) => metadata.is_symlink(),
        Err(e) if is_absent(&e) => return Ok(false),
        Err(e) => return Err(failed(e)),
    };
    let real = match std::fs::canonicalize(&path) {
        Ok(real) => real,
        // removed meanwhile
        Err(e) if !is_link => return Err(failed(e)),
        Err(e) => {
            let message = format!("expected a file, found a link that leads nowhere: {e}");
            let hint = "download the file that the link stands for, or remove the link";
            return Err(FormatError::new(ErrorCode::Io, message)
                .in_file(&path)
                .hint(hint)
                .because(e));
        }
    };
    refuse_special(&path, &std::fs::metadata(&real).map_err(failed)?)?;
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let home = std::fs::canonicalize(directory).map_err(failed)?;
    let mut roots = vec![home.clone()];
    if let Some(repository) = hub_repository(&home) {
        // blobs may be kept on another disk
        roots.extend(std::fs::canonicalize(repository.join("blobs")).ok());
        roots.push(repository);
    }
    if roots.iter().any(|root| real.starts_with(root)) {
        return Ok(true);
    }
    let message = format!(
        "expected a file of the same repository, found a link to {}",
        without_verbatim_prefix(real).display()
    );
    Err(FormatError::new(ErrorCode::OutsideLink, message)
        .in_file(&path)
        .hint("replace the link with a copy of the file if it belongs to the model"))
}

/// The folder of a repository in the Hugging Face Hub cache that a snapshot belongs to.
fn hub_repository(snapshot: &Path) -> Option<PathBuf> {
    let kinds = ["models--", "datasets--", "spaces--"];
    let is_repository = |path: &&Path| {
        let name = path.file_name().and_then(|n| n.to_str());
        name.is_some_and(|name| kinds.iter().any(|kind| name.starts_with(kind)))
    };
    let repository = snapshot.ancestors().skip(1).find(is_repository)?;
    let below = snapshot.strip_prefix(repository).ok()?;
    below
        .starts_with("snapshots")
        .then(|| repository.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn reads_end_at_their_limit_and_name_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_file(&path, 5).unwrap(), b"12345");
        let error = read_file(&path, 4).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        assert!(
            error.message.contains("at most 4 bytes, found 5"),
            "{error}"
        );
        assert_eq!(read_to_limit(&b"12345"[..], 5).unwrap(), b"12345");
        let error = read_to_limit(std::io::repeat(0), 1000).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        assert_eq!(read_side_file(dir.path(), "absent", 9).unwrap(), None);
        assert_eq!(read_side_file(dir.path(), "file/below", 9).unwrap(), None);
    }

    #[cfg(unix)]
    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn devices_and_directories_are_refused() {
        for path in ["/dev/zero", "/dev/null", "/"] {
            let error = read_file(Path::new(path), 1 << 20).unwrap_err();
            assert_eq!(error.code, ErrorCode::Io, "{error}");
            assert!(error.message.starts_with("expected a regular file"));
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn every_change_of_a_file_is_noticed() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("append", |path| {
                let mut file = OpenOptions::new().append(true).open(path).unwrap();
                std::io::Write::write_all(&mut file, b"x").unwrap();
            }),
            ("rewrite", |path| std::fs::write(path, b"54321").unwrap()),
            ("truncate and restore", |path| {
                let bytes = std::fs::read(path).unwrap();
                OpenOptions::new()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(0)
                    .unwrap();
                std::fs::write(path, bytes).unwrap();
            }),
            ("rename over", |path| {
                let other = path.with_file_name("other");
                std::fs::copy(path, &other).unwrap();
                std::fs::rename(other, path).unwrap();
            }),
            ("remove", |path| std::fs::remove_file(path).unwrap()),
            ("time set back", |path| {
                let before = std::fs::metadata(path).unwrap().modified().unwrap();
                std::fs::write(path, b"54321").unwrap();
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.set_modified(before).unwrap();
            }),
        ];
        for (what, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("file");
            std::fs::write(&path, b"12345").unwrap();
            let input = Input::of(&path).unwrap();
            input.check().unwrap();
            // longer than a tick of the file system's clock
            std::thread::sleep(std::time::Duration::from_millis(20));
            input.check().unwrap();
            change(&path);
            let error = input.check().expect_err(what);
            assert_eq!(error.code, ErrorCode::InputChanged, "{what}: {error}");
            assert!(error.hint.is_some());
        }
    }

    #[cfg(unix)]
    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn links_stay_inside_the_repository() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("hub/models--a--b");
        let snapshot = repository.join("snapshots/0123");
        for path in [repository.join("blobs"), snapshot.join("1_Pooling")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::fs::write(repository.join("blobs/f00d"), b"blob").unwrap();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        let read = |directory: &Path, name: &str| read_side_file(directory, name, 100);
        symlink("../../blobs/f00d", snapshot.join("a.json")).unwrap();
        symlink("a.json", snapshot.join("b.json")).unwrap();
        symlink(
            "../../../blobs/f00d",
            snapshot.join("1_Pooling/config.json"),
        )
        .unwrap();
        for name in ["a.json", "b.json", "1_Pooling/config.json"] {
            assert_eq!(read(&snapshot, name).unwrap().unwrap(), b"blob", "{name}");
        }
        // the same through a link to the snapshot
        let link = dir.path().join("model");
        symlink(&snapshot, &link).unwrap();
        assert_eq!(read(&link, "a.json").unwrap().unwrap(), b"blob");

        let outside = [
            ("c.json", "../../../../secret"),
            ("d.json", "/etc/passwd"),
            ("e.json", "c.json"),
        ];
        for (name, target) in outside {
            symlink(target, snapshot.join(name)).unwrap();
            let error = read(&snapshot, name).unwrap_err();
            assert_eq!(error.code, ErrorCode::OutsideLink, "{name}: {error}");
        }
        // a directory that is a link leads outside, too
        symlink(dir.path(), snapshot.join("2_Pooling")).unwrap();
        let error = read(&snapshot, "2_Pooling/secret").unwrap_err();
        assert_eq!(error.code, ErrorCode::OutsideLink);
        symlink("nowhere", snapshot.join("f.json")).unwrap();
        assert_eq!(read(&snapshot, "f.json").unwrap_err().code, ErrorCode::Io);
        symlink("/dev/zero", snapshot.join("g.json")).unwrap();
        assert_eq!(read(&snapshot, "g.json").unwrap_err().code, ErrorCode::Io);

        // outside of the cache a parent is not the repository
        let plain = dir.path().join("plain/snapshots/0123");
        std::fs::create_dir_all(&plain).unwrap();
        symlink("../../../secret", plain.join("a.json")).unwrap();
        let error = read(&plain, "a.json").unwrap_err();
        assert_eq!(error.code, ErrorCode::OutsideLink);
    }
}
