//! JSON values: how they are shown, and how a float becomes one.
//!
//! Invariant: nothing here knows a key.

use serde_json::{Value, json};

/// A JSON value on one short line, for messages.
pub(super) fn show(value: &Value) -> String {
    let text = match value {
        Value::Null => "nothing".to_owned(),
        other => other.to_string(),
    };
    if text.chars().count() > 60 {
        text.chars().take(57).chain("...".chars()).collect()
    } else {
        text
    }
}

/// The shortest decimal that reads back as this f32, as a JSON number.
pub(super) fn decimal(x: f32) -> Value {
    x.to_string()
        .parse::<f64>()
        .map_or(Value::Null, |v| json!(v))
}
