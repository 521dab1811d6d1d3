//! What servers answer, as plain values: nothing here waits for a network.
//!
//! Invariant: an answer is believed only in the form that is expected. Names of files are plain paths.

use crate::location::is_plain_path;
use bitnet_formats::{FormatError, parse_json_table};
use serde_json::Value;

/// A revision of a repository of a Hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// The names of all files.
    pub names: Vec<String>,
}

/// Whether a text is `len` lower-case hexadecimal digits.
pub fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// The JSON of an answer.
///
/// # Errors
/// `malformed`; `limit-exceeded` for text of more values than its length warrants.
pub fn json(text: &[u8]) -> Result<Value, FormatError> {
    parse_json_table(text)
}

/// What a Hub says of a revision.
///
/// # Errors
/// What is wrong with the answer.
pub fn revision(info: &Value) -> Result<Revision, &'static str> {
    let commit = info.get("sha").and_then(Value::as_str);
    let commit = commit.filter(|sha| is_hex(sha, 40));
    let siblings = info.get("siblings").and_then(Value::as_array);
    let (Some(commit), Some(siblings)) = (commit, siblings) else {
        return Err("no commit or no list of files");
    };
    let mut names = Vec::with_capacity(siblings.len());
    for sibling in siblings {
        match sibling.get("rfilename").and_then(Value::as_str) {
            Some(path) if is_plain_path(path) => names.push(path.to_owned()),
            _ => return Err("a file whose name is no plain path"),
        }
    }
    Ok(Revision {
        commit: commit.to_owned(),
        names,
    })
}

/// `"abc"` and `W/"abc"` are `abc`.
pub fn plain_etag(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}

/// Whether an ETag can be the name of a file on every disk.
pub fn is_blob_name(etag: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !etag.is_empty() && etag.len() <= 200 && etag.bytes().all(is_plain) && !etag.starts_with('.')
}

/// Start and total of `bytes 5-9/10`.
pub fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok()?),
    };
    Some((start.trim().parse().ok()?, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blobs_stay_in_their_directory() {
        for bad in ["", "../x", "a/b", ".", "a b", "a\"b"] {
            assert!(!is_blob_name(bad), "{bad}");
        }
        assert!(is_blob_name(&"a".repeat(64)));
    }
}
