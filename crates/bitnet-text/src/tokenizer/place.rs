//! Where the files of a tokenizer are.
//!
//! Invariant: a file larger than [`Limits::side_file_bytes`] is not read.

use bitnet_formats::{
    FormatError, Limits, parse_json_table, parse_json_value, read_directory, read_side_file,
};
use serde_json::Value;
use std::borrow::Cow;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where the files of a tokenizer are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// A checkpoint directory.
    Directory(&'a Path),
    /// Files that are about to be written: name and bytes.
    Written(&'a [(String, Vec<u8>)]),
}

impl<'a> Place<'a> {
    /// The path of a file, for messages.
    pub(super) fn path(self, name: &str) -> PathBuf {
        match self {
            Self::Directory(dir) => dir.join(name),
            Self::Written(_) => name.into(),
        }
    }

    /// Reads a file of at most the limit; `None` if it is absent.
    pub(super) fn read(self, name: &str) -> Result<Option<Cow<'a, [u8]>>, FormatError> {
        let dir = match self {
            Self::Directory(dir) => dir,
            Self::Written(files) => {
                let file = files.iter().find(|(written, _)| written == name);
                return Ok(file.map(|(_, bytes)| Cow::Borrowed(bytes.as_slice())));
            }
        };
        let bytes = read_side_file(dir, name, Limits::default().side_file_bytes)?;
        Ok(bytes.map(Cow::Owned))
    }

    /// The JSON of a file; null if it is absent.
    pub(super) fn json(self, name: &str) -> Result<Value, FormatError> {
        let Some(bytes) = self.read(name)? else {
            return Ok(Value::Null);
        };
        self.parse(name, &bytes)
    }

    /// The JSON of a file that was read.
    pub(super) fn parse(self, name: &str, bytes: &[u8]) -> Result<Value, FormatError> {
        parse_json_value(bytes).map_err(|e| e.in_file(&self.path(name)))
    }

    /// The JSON of a file that was read and holds a vocabulary.
    pub(super) fn parse_table(self, name: &str, bytes: &[u8]) -> Result<Value, FormatError> {
        parse_json_table(bytes).map_err(|e| e.in_file(&self.path(name)))
    }

    /// Names of files in a directory below that end so.
    pub(super) fn names_in(self, folder: &str, end: &str) -> Result<Vec<String>, FormatError> {
        let dir = match self {
            Self::Directory(dir) => dir.join(folder),
            Self::Written(files) => {
                let below = files.iter().filter_map(|(name, _)| {
                    let name = name.strip_prefix(folder)?.strip_prefix('/')?;
                    (name.ends_with(end) && !name.contains('/')).then(|| name.to_owned())
                });
                return Ok(below.collect());
            }
        };
        let failed = |e: std::io::Error| FormatError::io(&dir, &e);
        // as transformers, which asks for a directory first
        match std::fs::metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Ok(Vec::new()),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(Vec::new());
            }
            Err(e) => return Err(failed(e)),
        }
        let mut names = Vec::new();
        for entry in read_directory(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(end) && !entry.path().is_dir() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Whether there is a file of this name.
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Self::Directory(dir) => dir.join(name).is_file(),
            Self::Written(files) => files.iter().any(|(written, _)| written == name),
        }
    }
}
