//! Which files this program wrote.
//!
//! Invariant: a file counts as written by this program only if a certificate of this program beside it lists
//! its name and its length, or it says so itself (a GGUF part with the id of a set). Nothing else is removed.

use crate::container::Gguf;
use crate::error::{ErrorCode, FormatError};
use crate::input::{read_directory, read_file};
use crate::limits::Limits;
use serde::Deserialize;
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The name of the certificate in an output directory.
const CERTIFICATE: &str = "certificate.json";

/// The names of a signed statement in an output directory.
const SIGNED: [&str; 2] = ["certificate.intoto.json", "certificate.intoto.json.sig"];

/// Whether a file is a statement of this program, or the signature of one.
pub(super) fn is_signed_by_us(path: &Path) -> bool {
    /// What is read of a statement.
    #[derive(Deserialize)]
    struct Statement {
        predicate: Predicate,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Predicate {
        build_definition: Definition,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Definition {
        build_type: String,
    }
    let Ok(bytes) = read_file(path, Limits::default().certificate_bytes) else {
        return false;
    };
    // a signature is ours if the statement that it signs is ours: NAME.intoto.json.sig lies beside NAME.intoto.json
    if path.extension().is_some_and(|extension| extension == "sig") {
        return bytes.starts_with(b"-----BEGIN SSH SIGNATURE-----")
            && is_signed_by_us(&path.with_extension(""));
    }
    serde_json::from_slice::<Statement>(&bytes)
        .is_ok_and(|statement| statement.predicate.build_definition.build_type == "bitnet-convert")
}

/// A file that a certificate lists as its output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Certified {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// The files that the certificate at `path` lists as its output. Empty when there is no certificate, or none of
/// this program.
pub(super) fn certified_files(path: &Path) -> Vec<Certified> {
    read_certified(path).unwrap_or_default()
}

/// Whether the file at `path` is a certificate that this program wrote.
pub fn is_certificate_of_ours(path: &Path) -> bool {
    read_certified(path).is_some()
}

fn read_certified(path: &Path) -> Option<Vec<Certified>> {
    /// What is read of a certificate: nothing is kept of the tensors.
    #[derive(Deserialize)]
    struct Certificate {
        #[serde(rename = "certificate")]
        _version: u64,
        tool: String,
        output: Output,
    }
    #[derive(Deserialize)]
    struct Output {
        files: Vec<Certified>,
    }
    let bytes = read_file(path, Limits::default().certificate_bytes).ok()?;
    let certificate: Certificate = serde_json::from_slice(&bytes).ok()?;
    let is_ours = certificate.tool.starts_with("bitnet-");
    is_ours.then_some(certificate.output.files)
}

/// The first entry of a directory, by name, that a conversion neither wrote nor is about to write (`planned`).
pub(super) fn foreign_entry(directory: &Path, planned: &[String]) -> io::Result<Option<PathBuf>> {
    let certified: HashSet<(String, u64)> = certified_files(&directory.join(CERTIFICATE))
        .into_iter()
        .map(|file| (file.name, file.bytes))
        .collect();
    let is_ours = |name: &str, path: &Path| {
        name == CERTIFICATE && is_certificate_of_ours(path)
            || SIGNED.contains(&name) && is_signed_by_us(path)
            || planned.iter().any(|p| p == name)
            || fs::symlink_metadata(path)
                .is_ok_and(|m| m.is_file() && certified.contains(&(name.to_owned(), m.len())))
    };
    for (name, path) in sorted_entries(directory)? {
        if !fs::symlink_metadata(&path)?.is_dir() {
            if !name.as_deref().is_some_and(|name| is_ours(name, &path)) {
                return Ok(Some(path));
            }
            continue;
        }
        // the settings of a stage of a pipeline: a directory with nothing else in it
        let below = sorted_entries(&path)?;
        if below.is_empty() {
            return Ok(Some(path));
        }
        for (inner, inner_path) in below {
            let full = name
                .as_deref()
                .zip(inner.as_deref())
                .map(|(name, inner)| format!("{name}/{inner}"));
            let is_directory = fs::symlink_metadata(&inner_path)?.is_dir();
            if is_directory || !full.is_some_and(|full| is_ours(&full, &inner_path)) {
                return Ok(Some(inner_path));
            }
        }
    }
    Ok(None)
}

/// Names, `None` for one that is not UTF-8, and paths.
fn sorted_entries(directory: &Path) -> io::Result<Vec<(Option<String>, PathBuf)>> {
    let mut entries = Vec::new();
    for entry in read_directory(directory)? {
        let entry = entry?;
        entries.push((entry.file_name().into_string().ok(), entry.path()));
    }
    entries.sort();
    Ok(entries)
}

/// A file of an older output that would lie beside the new one under the same model's name.
#[derive(Debug, Clone)]
pub struct OlderFile {
    path: PathBuf,
    is_ours: bool,
    seen: Option<(u64, std::time::SystemTime)>,
}

impl OlderFile {
    /// The files of older GGUF outputs called `output` that a run which writes `planned` leaves: the file, or
    /// parts of any number. `certificate` is the one of this output.
    ///
    /// # Errors
    /// Whatever the operating system refuses.
    pub fn of_gguf(
        output: &Path,
        planned: &[PathBuf],
        certificate: &Path,
    ) -> Result<Vec<Self>, FormatError> {
        let certified = certified_files(certificate);
        let mut older = Vec::new();
        for path in Gguf::files_of_output(output).map_err(|e| FormatError::io(output, &e))? {
            if planned.contains(&path) {
                continue;
            }
            let seen = fs::symlink_metadata(&path).ok().and_then(|m| seen(&m));
            let name = path.file_name().and_then(|name| name.to_str());
            let listed = |file: &Certified| {
                Some(file.name.as_str()) == name && seen.is_some_and(|(len, _)| len == file.bytes)
            };
            let is_ours = certified.iter().any(listed) || Gguf::has_split_id(&path);
            older.push(Self {
                path,
                is_ours,
                seen,
            });
        }
        Ok(older)
    }

    /// A signed statement beside the certificate of an older output: its two files, if they exist.
    pub fn of_statement(paths: [PathBuf; 2]) -> Vec<Self> {
        let exists = paths
            .into_iter()
            .filter(|path| fs::symlink_metadata(path).is_ok());
        let older = |path: PathBuf| Self {
            is_ours: is_signed_by_us(&path),
            seen: fs::symlink_metadata(&path).ok().and_then(|m| seen(&m)),
            path,
        };
        exists.map(older).collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this program wrote it.
    pub fn is_ours(&self) -> bool {
        self.is_ours
    }

    /// Removes it after a new output became visible, unless it has changed since it was found.
    ///
    /// # Errors
    /// `exists` when it has changed; whatever the operating system refuses. Both say that the output is complete.
    pub fn remove(&self) -> Result<(), FormatError> {
        match fs::symlink_metadata(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(self.stays(&e)),
            Ok(found) if self.is_ours && seen(&found) == self.seen => {}
            Ok(_) => {
                let message =
                    "the output is complete, but this file of the same name is not this program's";
                return Err(FormatError::new(ErrorCode::Exists, message)
                    .in_file(&self.path)
                    .hint("move the file: a directory holds one model"));
            }
        }
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.stays(&e)),
            _ => Ok(()),
        }
    }

    fn stays(&self, error: &io::Error) -> FormatError {
        let message = format!("the output is complete, but this older file stays: {error}");
        FormatError::new(ErrorCode::Io, message)
            .in_file(&self.path)
            .hint("remove the file: a directory holds one model")
    }
}

fn seen(found: &fs::Metadata) -> Option<(u64, std::time::SystemTime)> {
    Some((found.len(), found.modified().ok()?))
}
