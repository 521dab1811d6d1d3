//! What a writer left that was killed while its files became visible.
//!
//! Invariant: files move only if a certificate and every file that it lists are then in place, by their
//! sha256; nothing is lost that was not a temporary file.

use super::owned::{Certified, certified_files};
use super::{Target, file_digest, partial_prefix};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub(super) fn certificate_name(output: &OsStr) -> OsString {
    let mut name = output.to_owned();
    name.push(".certificate.json");
    name
}

/// Puts a certificate and its files back: files that were replaced before the kill are still there under
/// their temporary names. Does nothing when the certificate is that of the files beside it.
pub(super) fn restore(target: &Target) {
    let name = certificate_name(&target.name);
    let certificate = target.path.with_file_name(&name);
    let older = dead_files(&target.parent, &name);
    if older.is_empty() || moves(target, &certificate).is_some_and(|moves| moves.is_empty()) {
        return;
    }
    let found = older
        .iter()
        .find_map(|path| Some((path, moves(target, path)?)));
    if let Some((older, moves)) = found {
        // best effort: a reader refuses the parts of two sets, and verification what does not match
        for (from, to) in moves {
            let _ = fs::rename(from, to);
        }
        let _ = fs::rename(older, &certificate);
    }
}

/// Which temporary files have to be renamed for the files of a certificate to be in place; `None` when that
/// cannot be.
fn moves(target: &Target, certificate: &Path) -> Option<Vec<(PathBuf, PathBuf)>> {
    let files = certified_files(certificate);
    let mut moves = Vec::new();
    for file in &files {
        // a name, not a path
        let plain = Path::new(&file.name).file_name() == Some(OsStr::new(&file.name));
        let place = target.parent.join(&file.name);
        if !plain {
            return None;
        }
        if is(&place, file) {
            continue;
        }
        let left = dead_files(&target.parent, OsStr::new(&file.name));
        let from = left.into_iter().find(|path| is(path, file))?;
        moves.push((from, place));
    }
    (!files.is_empty()).then_some(moves)
}

fn is(path: &Path, expected: &Certified) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_file() && m.len() == expected.bytes)
        && file_digest(path).is_ok_and(|found| found.sha256 == expected.sha256)
}

/// The temporary files of an output whose writers are dead.
fn dead_files(parent: &Path, name: &OsStr) -> Vec<PathBuf> {
    let prefix = partial_prefix(name);
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
        })
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .filter(|path| File::open(path).is_ok_and(|file| file.try_lock().is_ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::OutputLock;
    use super::*;
    use std::collections::BTreeMap;

    fn certificate(files: &[(&str, &str)]) -> String {
        let list: Vec<String> = files
            .iter()
            .map(|(name, text)| {
                let mut hash = super::super::Sha256Stream::new();
                hash.update(text.as_bytes());
                let (len, sha256) = (text.len(), hash.finish().unwrap());
                format!(r#"{{"name": "{name}", "bytes": {len}, "sha256": "{sha256}"}}"#)
            })
            .collect();
        format!(
            r#"{{"certificate": 1, "tool": "bitnet-convert 0.1.0", "output": {{"files": [{}]}}}}"#,
            list.join(", ")
        )
    }

    /// What is there after the next writer took the lock.
    fn after(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        OutputLock::take(&dir.path().join("m.gguf")).unwrap();
        let entries = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
        entries
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(&path).unwrap())
            })
            .collect()
    }

    fn expect(files: &[(&str, &str)], expected: &[(&str, &str)]) {
        let expected = expected
            .iter()
            .map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
        assert_eq!(after(files), expected.collect());
    }

    const CERTIFICATE: &str = "m.gguf.certificate.json";
    const LEFT: &str = ".m.gguf.certificate.json.partial-1-9";

    #[test]
    fn the_certificate_of_a_file_that_was_not_replaced_comes_back() {
        let old = &*certificate(&[("m.gguf", "old")]);
        let new = &*certificate(&[("m.gguf", "new")]);
        let staged = (".m.gguf.partial-1-0", "new");
        // killed between the certificate and the file
        expect(
            &[("m.gguf", "old"), (CERTIFICATE, new), (LEFT, old), staged],
            &[("m.gguf", "old"), (CERTIFICATE, old)],
        );
        // before
        expect(
            &[("m.gguf", "old"), (CERTIFICATE, old), (LEFT, new), staged],
            &[("m.gguf", "old"), (CERTIFICATE, old)],
        );
        // after
        expect(
            &[("m.gguf", "new"), (CERTIFICATE, new), (LEFT, old)],
            &[("m.gguf", "new"), (CERTIFICATE, new)],
        );
        // a file that no certificate knows stays
        expect(
            &[("m.gguf", "third"), (CERTIFICATE, new), (LEFT, old)],
            &[("m.gguf", "third"), (CERTIFICATE, new)],
        );
        // a certificate names files, not places
        let hostile = &*certificate(&[("../m.gguf", "old")]);
        expect(
            &[("m.gguf", "old"), (CERTIFICATE, new), (LEFT, hostile)],
            &[("m.gguf", "old"), (CERTIFICATE, new)],
        );
    }

    #[test]
    fn the_parts_of_the_older_set_come_back() {
        const PARTS: [&str; 3] = [
            "m-00001-of-00003.gguf",
            "m-00002-of-00003.gguf",
            "m-00003-of-00003.gguf",
        ];
        let old = &*certificate(&[
            (PARTS[0], "old 1"),
            (PARTS[1], "old 2"),
            (PARTS[2], "old 3"),
        ]);
        let new = &*certificate(&[
            (PARTS[0], "new 1"),
            (PARTS[1], "new 2"),
            (PARTS[2], "new 3"),
        ]);
        let whole = [
            (PARTS[0], "old 1"),
            (PARTS[1], "old 2"),
            (PARTS[2], "old 3"),
            (CERTIFICATE, old),
        ];
        // the last two parts were exchanged, then the writer was killed
        expect(
            &[
                (PARTS[0], "old 1"),
                (PARTS[1], "new 2"),
                (PARTS[2], "new 3"),
                (CERTIFICATE, new),
                (".m-00001-of-00003.gguf.partial-1-0", "new 1"),
                (".m-00002-of-00003.gguf.partial-1-1", "old 2"),
                (".m-00003-of-00003.gguf.partial-1-2", "old 3"),
                (LEFT, old),
            ],
            &whole,
        );
    }
}
