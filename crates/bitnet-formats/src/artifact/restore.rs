//! What a writer left that was killed while its files became visible.
//!
//! Invariant: files move only if a certificate and every file that it lists are then in place, by their
//! sha256; nothing is lost that was not a temporary file.

use super::owned::{Certified, certified_files};
use super::signed::{certificate_name, remove_statement, restore_statement, sha256_of};
use super::{Target, dead_files, file_digest, is_plain_file_name, sync_directory};
use crate::container::Gguf;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Puts a certificate and its files back: files that were replaced before the kill are still there under
/// their temporary names. If the certificate is that of the files beside it, removes what the writer had still to remove.
pub(super) fn restore(target: &Target) {
    let name = certificate_name(&target.name);
    let certificate = target.path.with_file_name(&name);
    let older = dead_files(&target.parent, &name);
    if older.is_empty() {
        return;
    }
    if moves(target, &certificate).is_some_and(|moves| moves.is_empty()) {
        for older in &older {
            finish(target, &certificate, older);
        }
        let _ = sync_directory(&target.parent);
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
        let (kept, gone) = (sha256_of(older), sha256_of(&certificate));
        // files of the killed writer that replaced none: before the certificate that lists them goes
        remove_unlisted(target, older, certified_files(&certificate));
        let _ = sync_directory(&target.parent);
        let _ = fs::rename(older, &certificate);
        restore_statement(target, kept.as_deref(), gone.as_deref());
        // what is swept next may hold what a power cut would need again
        let _ = sync_directory(&target.parent);
    }
}

/// Removes the files of an older certificate that the one in its place does not list.
fn finish(target: &Target, certificate: &Path, older: &Path) {
    let modified = |path: &Path| fs::metadata(path).and_then(|m| m.modified()).ok();
    // a certificate that never became visible
    if modified(older) > modified(certificate) {
        return;
    }
    remove_unlisted(target, certificate, certified_files(older));
    remove_statement(target, sha256_of(older).as_deref());
}

/// Removes those of the files of another certificate of this output that `certificate` does not list.
fn remove_unlisted(target: &Target, certificate: &Path, files: Vec<Certified>) {
    let listed = certified_files(certificate);
    let of_output = Gguf::files_of_output(&target.real).unwrap_or_default();
    let is_of_output = |name: &str| {
        of_output
            .iter()
            .any(|path| path.file_name() == Some(OsStr::new(name)))
    };
    for file in files {
        let place = target.parent.join(&file.name);
        let is_listed = listed.iter().any(|other| other.name == file.name);
        if !is_listed && is_of_output(&file.name) && is(&place, &file) {
            let _ = fs::remove_file(place);
        }
    }
}

/// Which temporary files have to be renamed for the files of a certificate to be in place; `None` when that
/// cannot be.
fn moves(target: &Target, certificate: &Path) -> Option<Vec<(PathBuf, PathBuf)>> {
    let files = certified_files(certificate);
    let mut moves = Vec::new();
    for file in &files {
        // a name, not a path
        let plain = is_plain_file_name(&file.name);
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
    #[cfg_attr(miri, ignore = "files")]
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
    #[cfg_attr(miri, ignore = "files")]
    fn files_of_one_certificate_alone_stay() {
        const PART: &str = "m-00002-of-00002.gguf";
        let old = &*certificate(&[("m.gguf", "old")]);
        let new = &*certificate(&[("m-00001-of-00002.gguf", "new 1"), (PART, "new 2")]);
        // killed after the second of two new parts became visible
        expect(
            &[
                (LEFT, old),
                ("m.gguf", "old"),
                (CERTIFICATE, new),
                (PART, "new 2"),
                (".m-00001-of-00002.gguf.partial-1-0", "new 1"),
            ],
            &[("m.gguf", "old"), (CERTIFICATE, old)],
        );
        // killed before the older file was removed
        let parts = [("m-00001-of-00002.gguf", "new 1"), (PART, "new 2")];
        let mut all = vec![(LEFT, old), ("m.gguf", "old"), (CERTIFICATE, new)];
        all.extend(parts);
        expect(&all, &[parts[0], parts[1], (CERTIFICATE, new)]);
        // a file that is not what the certificate says stays
        let mut all = vec![(LEFT, old), ("m.gguf", "third"), (CERTIFICATE, new)];
        all.extend(parts);
        expect(
            &all,
            &[("m.gguf", "third"), parts[0], parts[1], (CERTIFICATE, new)],
        );
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
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
