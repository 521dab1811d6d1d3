//! Directories of this disk that stand for remote models, and what those are called.
//!
//! Invariant: the names have no credentials. A path below no such directory is called by itself.

use crate::path_names::slashed;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Where a model came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// What the root is called: `hf://OWNER/NAME`, a URL without credentials.
    pub name: String,
    /// The repository `OWNER/NAME`, of models from a Hub.
    pub repository: Option<String>,
    /// The commit that its revision was resolved to.
    pub commit: Option<String>,
    /// Whether payloads are to be left alone, because they would be fetched for the purpose.
    pub headers_only: bool,
    /// Whether errors and reports call the files by the name of the remote: those of this disk are temporary.
    pub is_temporary: bool,
}

struct Entry {
    id: u64,
    root: PathBuf,
    origin: Origin,
}

static ENTRIES: RwLock<Vec<Entry>> = RwLock::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

fn entries() -> RwLockReadGuard<'static, Vec<Entry>> {
    ENTRIES.read().unwrap_or_else(PoisonError::into_inner)
}

/// The note that a directory stands for a remote one, until it is dropped.
#[derive(Debug)]
pub(crate) struct Noted {
    id: u64,
}

impl Noted {
    pub(crate) fn new(root: PathBuf, origin: Origin) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut entries = ENTRIES.write().unwrap_or_else(PoisonError::into_inner);
        entries.push(Entry { id, root, origin });
        Self { id }
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        let mut entries = ENTRIES.write().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|entry| entry.id != self.id);
    }
}

/// Where the model at a path came from; `None` for models of this disk.
pub fn origin_of(path: &Path) -> Option<Origin> {
    let entries = entries();
    let found = entries.iter().rev().find(|e| path.starts_with(&e.root));
    found.map(|entry| entry.origin.clone())
}

/// What to call a path in errors: below a temporary directory, the name of the remote file.
pub fn shown(path: &Path) -> Cow<'_, Path> {
    called(path, |origin| origin.is_temporary)
}

/// What to call a path in reports: the name of the remote file, wherever its bytes are.
pub fn named(path: &Path) -> Cow<'_, Path> {
    called(path, |_| true)
}

fn called(path: &Path, counts: impl Fn(&Origin) -> bool) -> Cow<'_, Path> {
    let entries = entries();
    let found = entries.iter().rev().find_map(|entry| {
        let below = path.strip_prefix(&entry.root).ok()?;
        counts(&entry.origin).then_some((entry, below))
    });
    match found {
        None => Cow::Borrowed(path),
        Some((entry, below)) if below.as_os_str().is_empty() => {
            Cow::Owned(PathBuf::from(&entry.origin.name))
        }
        Some((entry, below)) => {
            let name = entry.origin.name.trim_end_matches('/');
            Cow::Owned(PathBuf::from(format!("{name}/{}", slashed(below))))
        }
    }
}
