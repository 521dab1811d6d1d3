//! Files that stand for the files of a remote model.
//!
//! Invariant: while a mount lives, [`open_source`](super::open_source) reads its files from the sources of the mount, and
//! errors name them as the remote does. What is not mounted is a file of this disk.

use super::Source;
use crate::origin::{Noted, Origin};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

static FILES: RwLock<Vec<(PathBuf, Arc<dyn Source>)>> = RwLock::new(Vec::new());

/// A directory of this disk that stands for a remote one, until it is dropped.
#[derive(Debug)]
pub struct Mount {
    files: Vec<PathBuf>,
    _noted: Noted,
}

impl Mount {
    /// Makes `root` stand for a remote directory; `files` are those that are read from elsewhere.
    pub fn new(root: PathBuf, origin: Origin, files: HashMap<PathBuf, Arc<dyn Source>>) -> Self {
        let paths = files.keys().cloned().collect();
        let mut mounted = FILES.write().unwrap_or_else(PoisonError::into_inner);
        mounted.extend(files);
        Self {
            files: paths,
            _noted: Noted::new(root, origin),
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut mounted = FILES.write().unwrap_or_else(PoisonError::into_inner);
        mounted.retain(|(path, _)| !self.files.contains(path));
    }
}

/// The source that a path stands for, if it stands for one.
pub(super) fn mounted(path: &Path) -> Option<Arc<dyn Source>> {
    let mounted = FILES.read().unwrap_or_else(PoisonError::into_inner);
    let found = mounted.iter().rev().find(|(file, _)| file == path);
    found.map(|(_, source)| Arc::clone(source))
}

#[cfg(test)]
mod tests {
    use super::super::{Memory, open_source};
    use super::*;
    use crate::error::{ErrorCode, FormatError};
    use crate::origin::{origin_of, shown};

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_mounted_file_is_read_from_its_source_and_called_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (root, file) = (dir.path().to_owned(), dir.path().join("a.gguf"));
        std::fs::write(&file, b"of this disk").unwrap();
        let source: Arc<dyn Source> = Arc::new(Memory::new("hf://o/n/a.gguf", b"far".to_vec()));
        let origin = Origin {
            name: "hf://o/n".to_owned(),
            is_temporary: true,
            ..Origin::default()
        };
        let mount = Mount::new(
            root.clone(),
            origin.clone(),
            [(file.clone(), source)].into(),
        );
        assert_eq!(open_source(&file).unwrap().read(0..3).unwrap(), *b"far");
        assert_eq!(origin_of(&file), Some(origin));
        let error = FormatError::new(ErrorCode::Malformed, "x").in_file(&file);
        assert_eq!(error.to_string(), "hf://o/n/a.gguf: x");
        assert_eq!(*shown(&root), *Path::new("hf://o/n"));
        drop(mount);
        assert_eq!(open_source(&file).unwrap().len(), 12);
        assert_eq!(origin_of(&file), None);
        assert_eq!(*shown(&file), *file);
    }
}
