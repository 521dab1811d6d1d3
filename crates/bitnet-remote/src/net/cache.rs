//! The cache of `huggingface_hub`: `models--OWNER--NAME/{blobs,refs,snapshots/COMMIT}`.
//!
//! Invariant: a name in `snapshots` leads to a whole blob. Blobs are written as `ETAG.incomplete`, under the lock that
//! `huggingface_hub` takes, and renamed when their size and hash are right; what an `.incomplete` file holds is always
//! the beginning of the blob, so that either program goes on where the other stopped.

use crate::location::is_plain_path;
use bitnet_formats::{ErrorCode, FormatError, slashed};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The cache of one repository.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
    folder: String,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> FormatError + '_ {
    |e| FormatError::io(path, &e)
}

/// Writes a small file in one step.
fn write_whole(path: &Path, text: &str) -> Result<(), FormatError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(failed(parent))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.{}", std::process::id()));
    fs::write(&partial, text).map_err(failed(&partial))?;
    fs::rename(&partial, path).map_err(failed(path))
}

impl Cache {
    pub(crate) fn new(root: &Path, id: &str) -> Self {
        Self {
            root: root.to_owned(),
            folder: format!("models--{}", id.replace('/', "--")),
        }
    }

    fn home(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.home().join("snapshots").join(commit)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.home().join("blobs").join(etag)
    }

    /// The commit that a branch or tag had when it was last asked for.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let path = self.home().join("refs").join(revision);
        let text = fs::read_to_string(path).ok()?;
        let commit = text.trim();
        crate::answers::is_hex(commit, 40).then(|| commit.to_owned())
    }

    /// Notes the commit of a branch or tag.
    pub(crate) fn note_commit(&self, revision: &str, commit: &str) -> Result<(), FormatError> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write_whole(&self.home().join("refs").join(revision), commit)
    }

    /// The file of a snapshot, if it is there whole.
    pub(crate) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(name);
        path.is_file().then_some(path)
    }

    /// The paths of the files of a snapshot.
    pub(crate) fn names(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut names, mut open) = (Vec::new(), vec![root.clone()]);
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    open.push(path);
                } else if path.is_file()
                    && let Some(name) = path
                        .strip_prefix(&root)
                        .ok()
                        .filter(|n| n.to_str().is_some())
                    && let name = slashed(name)
                    && is_plain_path(&name)
                {
                    names.push(name);
                }
            }
        }
        names.sort();
        names
    }

    /// Takes the lock of a blob; it is held until the file is dropped.
    pub(crate) fn lock(&self, etag: &str) -> Result<File, FormatError> {
        let directory = self.root.join(".locks").join(&self.folder);
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        let path = directory.join(format!("{etag}.lock"));
        let open = || {
            File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
        };
        let file = open().map_err(failed(&path))?;
        match file.lock() {
            // file systems without locks: as huggingface_hub, go on
            Err(e) if e.kind() != ErrorKind::Unsupported => Err(failed(&path)(e)),
            _ => Ok(file),
        }
    }

    /// Makes a name of a snapshot lead to a blob.
    pub(crate) fn link(
        &self,
        commit: &str,
        name: &str,
        etag: &str,
    ) -> Result<PathBuf, FormatError> {
        let path = self.snapshot(commit).join(name);
        if path.is_file() {
            return Ok(path);
        }
        let parent = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(failed(parent))?;
        // a link that leads nowhere
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(failed(&path))?;
        }
        let up = name.split('/').count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up)
            .chain(["blobs", etag])
            .collect();
        match symlink(&target, &path) {
            Ok(()) => {}
            // another process was first
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            // file systems without links: a copy, as huggingface_hub makes it
            Err(_) => {
                fs::copy(self.blob(etag), &path).map_err(failed(&path))?;
            }
        }
        match path.is_file() {
            true => Ok(path),
            false => {
                let error =
                    FormatError::new(ErrorCode::Io, "the link to the cached file leads nowhere");
                Err(error
                    .in_file(&path)
                    .hint("remove the directory of this repository from the cache"))
            }
        }
    }
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}

/// Bytes that a user may still write to the disk of a directory, or of the first of its parents that exists.
pub(crate) fn free_bytes(directory: &Path) -> Option<u64> {
    let existing = directory.ancestors().find(|path| path.exists())?;
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(existing).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = existing;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_blobs_and_references_to_commits() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path(), "o/n");
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert_eq!(cache.commit_of("main"), None);
        cache.note_commit("refs/pr/1", commit).unwrap();
        assert_eq!(cache.commit_of("refs/pr/1").as_deref(), Some(commit));
        cache.note_commit(commit, commit).unwrap();
        assert_eq!(cache.commit_of(commit), None);
        let blob = cache.blob("etag");
        assert!(blob.ends_with("models--o--n/blobs/etag"));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, b"content").unwrap();
        let linked = cache.link(commit, "sub/dir/a.json", "etag").unwrap();
        assert_eq!(fs::read(&linked).unwrap(), b"content");
        assert_eq!(
            fs::read_link(&linked).unwrap(),
            Path::new("../../../../blobs/etag")
        );
        cache.link(commit, "sub/dir/a.json", "etag").unwrap();
        assert_eq!(cache.names(commit), ["sub/dir/a.json"]);
        fs::remove_file(&blob).unwrap();
        assert_eq!(cache.file(commit, "sub/dir/a.json"), None);
        assert!(cache.link(commit, "sub/dir/a.json", "etag").is_err());
        let _lock = cache.lock("etag").unwrap();
        assert!(dir.path().join(".locks/models--o--n/etag.lock").is_file());
        assert!(free_bytes(&dir.path().join("a/b")).unwrap() > 0);
    }
}
