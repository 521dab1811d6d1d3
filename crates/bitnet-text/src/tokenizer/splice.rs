//! The text of a `tokenizer.json` with another list of added tokens.
//!
//! Invariant: every byte outside of the list stays as it was, and nothing of the text is parsed but its
//! outermost keys: a vocabulary of 262,144 tokens as JSON values takes 200 MB.

use super::refuse;
use bitnet_formats::FormatError;
use serde_json::Value;
use std::ops::Range;

/// Puts a list into a text that was read as a `tokenizer.json` before.
///
/// # Errors
/// A text that is no object.
pub(super) fn with_added_tokens(text: &[u8], list: &Value) -> Result<Vec<u8>, FormatError> {
    let list = super::compact(list)?;
    let Some(place) = place(text) else {
        return Err(refuse("expected an object"));
    };
    let (range, is_new) = match place {
        Place::Value(range) => (range, false),
        Place::Start(at) => (at..at, true),
    };
    let (before, after) = (text.get(..range.start), text.get(range.end..));
    let (before, after) = (before.unwrap_or_default(), after.unwrap_or_default());
    let key: &[u8] = if is_new { b"\"added_tokens\":" } else { b"" };
    let end: &[u8] = if is_new { b"," } else { b"" };
    Ok([before, key, &list, end, after].concat())
}

/// Where the list belongs.
enum Place {
    /// The value that is there; of several the last, which counts.
    Value(Range<usize>),
    /// Behind the first bracket of an object without the key.
    Start(usize),
}

/// Finds the place in valid JSON.
fn place(text: &[u8]) -> Option<Place> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut start = None;
    let mut found = None;
    // of the outermost object: where a text began, whether the next text is a key, the last key, its value
    let (mut quote, mut is_key, mut key, mut value) = (0, false, 0..0, 0);
    for (at, byte) in text.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_string = false;
                    if depth == 1 && is_key {
                        key = quote..at.saturating_add(1);
                        is_key = false;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => (in_string, quote) = (true, at),
            b'{' | b'[' => {
                depth = depth.saturating_add(1);
                if depth == 1 {
                    start = Some(at.saturating_add(1));
                    is_key = true;
                }
            }
            b':' if depth == 1 => value = at.saturating_add(1),
            b',' | b'}' | b']' => {
                if depth == 1 {
                    if is_added_tokens(text.get(key.clone()).unwrap_or_default()) {
                        found = Some(value..at);
                    }
                    (key, is_key) = (0..0, true);
                }
                if *byte != b',' {
                    depth = depth.saturating_sub(1);
                }
            }
            _ => {}
        }
    }
    found.map(Place::Value).or(start.map(Place::Start))
}

fn is_added_tokens(key: &[u8]) -> bool {
    serde_json::from_slice::<String>(key).is_ok_and(|key| key == "added_tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_list_of_the_outermost_object_changes() {
        let list = json!([{"id": 7, "content": "}\""}]);
        for (text, expected) in [
            (
                r#"{"a": {"added_tokens": [1]}, "added_tokens": [{"x": "],}"}] , "b":"added_tokens"}"#,
                r#"{"a": {"added_tokens": [1]}, "added_tokens":LIST, "b":"added_tokens"}"#,
            ),
            (r#"{"added_tokens":null}"#, r#"{"added_tokens":LIST}"#),
            (
                r#"{"added\u005ftokens":[],"\"":{"\\":"\\\""}}"#,
                r#"{"added\u005ftokens":LIST,"\"":{"\\":"\\\""}}"#,
            ),
            (
                r#"{"added_tokens":[1],"added_tokens":[2]}"#,
                r#"{"added_tokens":[1],"added_tokens":LIST}"#,
            ),
            (
                r#" { "model": {"vocab": {"added_tokens": 0}}}"#,
                r#" {"added_tokens":LIST, "model": {"vocab": {"added_tokens": 0}}}"#,
            ),
        ] {
            let found = String::from_utf8(with_added_tokens(text.as_bytes(), &list).unwrap());
            let expected = expected.replace("LIST", &list.to_string());
            assert_eq!(found.unwrap(), expected);
            let mut whole: Value = serde_json::from_str(text).unwrap();
            whole["added_tokens"] = list.clone();
            let found: Value = serde_json::from_str(&expected).unwrap();
            assert_eq!(found, whole);
        }
        assert!(with_added_tokens(b"7", &list).is_err());
    }
}
