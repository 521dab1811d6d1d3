//! JSON of strangers: the parser with a limit accepts what serde_json accepts, and lists the same values.

use crate::record::Record;
use bitnet_formats::{json_entries, parse_json_table, parse_json_value, without_byte_order_mark};

/// A text of JSON.
pub(crate) fn json(data: &[u8], record: &mut Record) {
    let text = without_byte_order_mark(data);
    let expected = serde_json::from_slice::<serde_json::Value>(text);
    for found in [parse_json_value(data), parse_json_table(data)] {
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => assert_eq!(expected, found),
            (Err(_), Err(_)) => {}
            (Ok(_), Err(e)) => assert!(
                e.code == bitnet_formats::ErrorCode::LimitExceeded,
                "JSON is refused: {e}"
            ),
            (Err(e), Ok(_)) => panic!("accepted what is no JSON: {e}"),
        }
        record.result(&found);
    }
    if expected.is_ok() {
        let entries = json_entries(data);
        for entry in &entries {
            assert!(entry.value.end <= data.len(), "{entry:?}");
        }
        record.note(&entries);
    }
}
