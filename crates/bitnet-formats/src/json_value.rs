//! JSON of strangers as a value in memory.
//!
//! Invariant: a value is parsed only if it takes less memory than about three times its text and 10 MB. Text of
//! small values (`[{},{},…`) would take fifty times its own size.

use crate::error::{ErrorCode, FormatError};
use serde_json::Value;

/// Values that any text may have: each takes about 150 bytes with its share of the object it is in.
const FREE_VALUES: usize = 1 << 16;
/// Bytes of text for each further value.
const BYTES_PER_VALUE: usize = 64;
/// Most values of a table. The largest published tokenizer (262,145 tokens, 514,906 merges) has 1,858,256.
const TABLE_VALUES: usize = 1 << 22;

/// Parses JSON into a value; of repeated keys the last wins, and a byte order mark in front is ignored.
///
/// # Errors
/// `malformed`, with what was found if it is not JSON at all; `limit-exceeded` for text of more values than its length warrants.
pub fn parse_json_value(text: &[u8]) -> Result<Value, FormatError> {
    parse_at_most(text, text.len() / BYTES_PER_VALUE)
}

/// As [`parse_json_value`], for tables of short values (vocabularies, merges), whose values have few bytes each:
/// one value for every 4 bytes, and at most 4 million.
///
/// # Errors
/// As [`parse_json_value`].
pub fn parse_json_table(text: &[u8]) -> Result<Value, FormatError> {
    parse_at_most(text, (text.len() / 4).min(TABLE_VALUES))
}

fn parse_at_most(text: &[u8], further: usize) -> Result<Value, FormatError> {
    let most = FREE_VALUES.saturating_add(further);
    let found = count_values(text);
    if found > most {
        let len = text.len();
        let message =
            format!("expected at most {most} values in {len} bytes of JSON, found {found}");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message));
    }
    crate::strange::parse_json_text(text)
}

/// At least the number of values in a text, if it is JSON: each but the first follows a bracket or a comma.
fn count_values(text: &[u8]) -> usize {
    let (mut count, mut in_string, mut escaped) = (1usize, false, false);
    for byte in text {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'[' | b'{' | b',') => count = count.saturating_add(1),
            _ => {}
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_outside_of_strings() {
        assert_eq!(count_values(b"7"), 1);
        assert_eq!(count_values(br#"{"a": [1, 2], "b": "x,[{\"y,,,"}"#), 5);
        assert_eq!(count_values(br#""a\\","#), 2);
    }

    #[test]
    #[cfg_attr(miri, ignore = "megabytes of JSON")]
    fn many_small_values_are_refused_and_large_text_is_not() {
        let small = format!("[{}0]", "0,".repeat(500_000));
        let error = parse_json_value(small.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        assert!(error.message.contains("at most 81161 values"), "{error}");
        let table = format!("[{}\"\"]", "\"ab\",".repeat(500_000));
        assert!(parse_json_value(table.as_bytes()).is_err());
        let table = parse_json_table(table.as_bytes()).unwrap();
        assert_eq!(table.as_array().map(Vec::len), Some(500_001));
        let long = format!("[\"{}\"]", ",".repeat(1_000_000));
        assert!(parse_json_value(long.as_bytes()).is_ok());
        let tiny = format!("[{}0]", "0,".repeat(5_000_000));
        let error = parse_json_table(tiny.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        let few = format!("[{}0]", "0,".repeat(60_000));
        assert!(parse_json_value(few.as_bytes()).is_ok());
        let error = parse_json_value(b"[1,").unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed);
        assert!(error.message.starts_with("expected JSON: "), "{error}");
    }
}
