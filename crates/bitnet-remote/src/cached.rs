//! Files of the cache of `huggingface_hub`, and how a damaged one is downloaded again.
//!
//! Invariant: only places of the cache's own layout are named: `models--OWNER--NAME/{blobs,snapshots}`.

use crate::answers::is_hex;
use bitnet_formats::{ErrorCode, FileDigest, FormatError, shell_word};
use std::fs;
use std::path::{Path, PathBuf};

/// A file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// `OWNER/NAME`
    pub repository: String,
    /// What has to go before it is downloaded again.
    pub stored: PathBuf,
    /// The hash of the content, if the cache calls the file by it.
    pub sha256: Option<String>,
}

/// The repository of a directory of the cache.
fn repository_of(directory: &Path) -> Option<String> {
    let name = directory.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(name.replacen("--", "/", 1))
}

/// The file of the cache that a path leads to, if it leads to one.
pub fn cached_file(path: &Path) -> Option<CachedFile> {
    let real = fs::canonicalize(path).ok().filter(|real| real.is_file())?;
    let parent = real.parent()?;
    if parent.file_name()? == "blobs" {
        let repository = repository_of(parent.parent()?)?;
        let name = real.file_name()?.to_str()?;
        let sha256 = is_hex(name, 64).then(|| name.to_owned());
        return Some(CachedFile {
            repository,
            stored: real,
            sha256,
        });
    }
    // file systems without links: a copy below `snapshots`, and the blob that it would be copied from again
    let snapshots = real
        .ancestors()
        .find(|a| a.file_name().is_some_and(|n| n == "snapshots"))?;
    let directory = snapshots.parent()?;
    Some(CachedFile {
        repository: repository_of(directory)?,
        stored: directory.to_owned(),
        sha256: None,
    })
}

impl CachedFile {
    /// How to download the file again.
    pub fn again(&self) -> String {
        format!(
            "remove {} and name the model hf://{}, which downloads it again",
            shell_word(&self.stored),
            self.repository
        )
    }
}

/// Refuses a file of the cache whose content is not what its name says.
///
/// # Errors
/// `checksum`.
pub fn check_cached(file: &FileDigest) -> Result<(), FormatError> {
    let Some(cached) = cached_file(&file.path) else {
        return Ok(());
    };
    match &cached.sha256 {
        Some(expected) if *expected != file.sha256 => {
            let message = format!(
                "the file in the cache is damaged: expected SHA-256 {expected}, found {}",
                file.sha256
            );
            Err(FormatError::new(ErrorCode::Checksum, message)
                .in_file(&file.path)
                .hint(cached.again()))
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_name_of_a_snapshot_leads_to_what_has_to_go() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap().join("models--o--n--m");
        let snapshot = home.join("snapshots/0123");
        fs::create_dir_all(home.join("blobs")).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        let name = "ab".repeat(32);
        for (name, blob) in [("w.safetensors", name.as_str()), ("config.json", "etag")] {
            fs::write(home.join("blobs").join(blob), "x").unwrap();
            symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
        }
        let weights = cached_file(&snapshot.join("w.safetensors")).unwrap();
        assert_eq!(weights.repository, "o/n--m");
        assert_eq!(weights.stored, home.join("blobs").join(&name));
        assert_eq!(weights.sha256.as_deref(), Some(name.as_str()));
        let config = cached_file(&snapshot.join("config.json")).unwrap();
        assert_eq!(config.sha256, None);
        assert!(config.again().contains("hf://o/n--m"));
        // a copy
        fs::write(snapshot.join("copied.json"), "x").unwrap();
        let copied = cached_file(&snapshot.join("copied.json")).unwrap();
        assert_eq!(copied.stored, home);
        for path in [snapshot.join("absent"), snapshot, dir.path().to_owned()] {
            assert_eq!(cached_file(&path), None);
        }
        let digest = |name: &str, sha256: &str| FileDigest {
            path: weights.stored.with_file_name(name),
            bytes: 1,
            sha256: sha256.to_owned(),
        };
        assert!(check_cached(&digest(&name, &name)).is_ok());
        assert!(check_cached(&digest("etag", "00")).is_ok());
        let error = check_cached(&digest(&name, "00")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Checksum);
        assert!(error.hint.unwrap().contains(&name));
    }
}
