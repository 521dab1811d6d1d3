//! What a file is that is no model: pointers, pages and archives that stand where weights or JSON are expected.
//!
//! Invariant: only the first bytes are looked at, and only to say what was found; nothing is read differently because
//! of it.

use crate::error::{ErrorCode, FormatError};
use serde_json::Value;
use std::path::Path;

/// Bytes that are looked at.
pub(crate) const HEAD: usize = 512;

/// The mark that some editors put in front of UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What something is, and what to do about it.
struct Kind {
    found: &'static str,
    hint: &'static str,
}

const LFS: Kind = Kind {
    found: "a Git LFS pointer, not the file that it stands for",
    hint: "fetch the file itself: run `git lfs pull` in its repository, or download it again",
};
const PAGE: Kind = Kind {
    found: "something else: an HTML or XML page, as a failed download leaves it",
    hint: "download the file again; the address of a file on the Hub has /resolve/, not /blob/",
};

/// First bytes of files that are no models.
const BEGINNINGS: [(&[u8], Kind); 19] = {
    const fn kind(found: &'static str, hint: &'static str) -> Kind {
        Kind { found, hint }
    }
    const UNPACK: &str = "unpack it first, then give the model in it";
    const OLD: &str =
        "convert the original checkpoint to GGUF again; no current program reads the format";
    [
        (b"version https://", LFS),
        (b"PK\x03\x04", kind("a zip archive", UNPACK)),
        (b"\x1f\x8b", kind("a gzip archive", UNPACK)),
        (b"\xfd7zXZ\0", kind("an xz archive", UNPACK)),
        (b"\x28\xb5\x2f\xfd", kind("a zstd archive", UNPACK)),
        (b"BZh", kind("a bzip2 archive", UNPACK)),
        (b"7z\xbc\xaf\x27\x1c", kind("a 7z archive", UNPACK)),
        (b"Rar!", kind("a rar archive", UNPACK)),
        (
            b"\x80\x02",
            kind(
                "a bare pickle, as PyTorch wrote before 1.6",
                "save it again: torch.save(torch.load(FILE, weights_only=True), NEW)",
            ),
        ),
        (b"lmgg", kind("a GGML file, the format before GGUF", OLD)),
        (b"fmgg", kind("a GGMF file, a format before GGUF", OLD)),
        (b"tjgg", kind("a GGJT file, a format before GGUF", OLD)),
        (
            b"FUGG",
            kind(
                "a GGUF file with its bytes reversed",
                "convert it with gguf-py's gguf_convert_endian",
            ),
        ),
        (b"\x93NUMPY", kind("a NumPy array", "give a model file")),
        (
            b"\x89HDF",
            kind("an HDF5 file", "save the model as safetensors"),
        ),
        (b"\x89PNG", kind("a PNG image", "give a model file")),
        (b"%PDF", kind("a PDF document", "give a model file")),
        (b"\x7fELF", kind("a program", "give a model file")),
        (b"#!", kind("a script", "give a model file")),
    ]
};

/// What a file with these first bytes is, if it is something known.
fn kind_of(head: &[u8]) -> Option<&'static Kind> {
    let known = BEGINNINGS.iter().find(|(begin, _)| head.starts_with(begin));
    if let Some((_, kind)) = known {
        return Some(kind);
    }
    let text = without_byte_order_mark(head).trim_ascii_start();
    let begins = |word: &str| {
        text.get(..word.len())
            .is_some_and(|found| found.eq_ignore_ascii_case(word.as_bytes()))
    };
    ["<!doctype", "<html", "<?xml", "<head", "<body", "<error"]
        .iter()
        .any(|word| begins(word))
        .then_some(&PAGE)
}

/// The error for a file that no container recognizes.
pub(crate) fn unknown_container(path: &Path, head: &[u8], expected: &str) -> FormatError {
    let error = |found: &str| {
        let message = format!("expected one of {expected}, found {found}");
        FormatError::new(ErrorCode::UnknownContainer, message).in_file(path)
    };
    if head.is_empty() {
        return error("an empty file").hint("download or write the file again: it has 0 bytes");
    }
    if let Some(kind) = kind_of(head) {
        return error(kind.found).hint(kind.hint);
    }
    let error = |found: &str| error(&format!("something else: {found}"));
    if head.iter().all(|byte| *byte == 0) {
        return error("zeros, as an interrupted download leaves them")
            .hint("download the file again");
    }
    let text = without_byte_order_mark(head).trim_ascii_start();
    if matches!(text.first(), Some(b'{' | b'[')) {
        return error("JSON text").hint(
            "give the directory, a weights file (.safetensors, .gguf) or an index (.safetensors.index.json)",
        );
    }
    // a character may be cut at the end of the head
    let is_text = match std::str::from_utf8(text) {
        Ok(_) => true,
        Err(e) => e.error_len().is_none(),
    };
    let found = match is_text && !text.contains(&0) {
        true => "plain text",
        false => "a file of another kind",
    };
    error(found).hint("give a model file, its index, or its directory")
}

/// Text without the byte order mark that some editors write in front of UTF-8.
pub fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

/// Parses a JSON side file; a byte order mark in front of it is ignored, in every program alike.
///
/// # Errors
/// `malformed`, with what was found where it is no JSON at all.
pub(crate) fn parse_json_text(bytes: &[u8]) -> Result<Value, FormatError> {
    serde_json::from_slice(without_byte_order_mark(bytes)).map_err(|e| {
        let error = |found: &str| {
            FormatError::new(
                ErrorCode::Malformed,
                format!("expected JSON, found {found}"),
            )
        };
        let head = bytes.get(..HEAD).unwrap_or(bytes);
        let named = if bytes.is_empty() {
            error("an empty file").hint("download or write the file again")
        } else if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
            error("UTF-16 text (its byte order mark says so)").hint("save the file as UTF-8")
        } else if let Some(kind) = kind_of(head) {
            error(kind.found).hint(kind.hint)
        } else {
            FormatError::new(ErrorCode::Malformed, format!("expected JSON: {e}"))
        };
        named.because(e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_place_of_a_model_is_named() {
        for (head, word) in [
            (&b""[..], "empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid",
                "Git LFS pointer",
            ),
            (b"\n <!DOCTYPE html><html>", "HTML"),
            (b"<?xml version=\"1.0\"?><Error>", "XML"),
            (b"\xef\xbb\xbf<HTML>", "HTML"),
            (b"PK\x03\x04....", "zip archive"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"tjgg\x03\0\0\0", "GGJT"),
            (b" {\"a\": 1}", "JSON"),
            (b"hello", "plain text"),
            (&[0; 64], "zeros"),
            (&[1, 0, 7, 0xff], "another kind"),
        ] {
            let error = unknown_container(Path::new("m"), head, "gguf");
            assert!(error.message.contains(word), "{error}");
            assert!(error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn json_may_begin_with_a_byte_order_mark_and_nothing_else() {
        let parsed = parse_json_text(b"\xef\xbb\xbf{\"a\": 1}").expect("JSON");
        assert_eq!(parsed["a"], 1);
        for (bytes, word) in [
            (&b""[..], "an empty file"),
            (b"\xff\xfe{\0}\0", "UTF-16"),
            (
                b"version https://git-lfs.github.com/spec/v1",
                "Git LFS pointer",
            ),
            (b"<!doctype html>", "HTML"),
            (b"{\"a\": }", "line 1 column"),
        ] {
            let error = parse_json_text(bytes).expect_err("no JSON");
            assert!(error.message.contains(word), "{error}");
        }
    }
}
