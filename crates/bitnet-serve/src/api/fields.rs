//! The fields of a request.
//!
//! Invariant: every field is taken, known to change nothing, or refused by its name. `null` means absent for fields that are
//! known.

use super::error::ApiError;
use serde_json::{Map, Value};

/// Fields that cannot change an answer: who asks, what is stored where, and what clients keep for themselves.
pub(crate) const HARMLESS: [&str; 20] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "cache_prompt",
    "id_slot",
    "timings_per_token",
    "keep_alive",
    "chat_id",
    "session_id",
    "message_id",
    "id",
    "background_tasks",
    "features",
    "tool_ids",
    "request_id",
    "priority",
];

/// The fields of an object that were not taken yet.
#[derive(Debug)]
pub(crate) struct Fields {
    place: String, // in front of a field's name
    map: Map<String, Value>,
}

impl Fields {
    /// The fields of a request's body.
    pub(crate) fn new(body: Value) -> Result<Self, ApiError> {
        match body {
            Value::Object(map) => Ok(Self {
                place: String::new(),
                map,
            }),
            _ => Err(ApiError::bad_request("expected a JSON object as the body")),
        }
    }

    /// The fields of a value inside a request.
    pub(crate) fn inside(place: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self {
                place: format!("{place}."),
                map,
            }),
            _ => Err(ApiError::field(place, "expected an object")),
        }
    }

    /// The full name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.place)
    }

    /// Whether a value is there that is not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.map.get(field).is_some_and(|value| !value.is_null())
    }

    /// A value; `None` if it is absent or null.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map
            .shift_remove(field)
            .filter(|value| !value.is_null())
    }

    fn typed<T>(
        &mut self,
        field: &str,
        expected: &str,
        read: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let found = short(&value);
        read(value).map(Some).ok_or_else(|| {
            ApiError::field(
                self.name(field),
                format!("expected {expected}, found {found}"),
            )
        })
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        self.typed(field, "true or false", |value| value.as_bool())
    }

    /// A text.
    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        self.typed(field, "a string", |value| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
    }

    /// A list.
    pub(crate) fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.typed(field, "a list", |value| match value {
            Value::Array(list) => Some(list),
            _ => None,
        })
    }

    /// An object.
    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        self.typed(field, "an object", |value| match value {
            Value::Object(map) => Some(map),
            _ => None,
        })
    }

    /// A whole number of a range.
    pub(crate) fn whole(
        &mut self,
        field: &str,
        least: u64,
        most: u64,
    ) -> Result<Option<u64>, ApiError> {
        let expected = match most {
            u64::MAX => format!("a whole number from {least} on"),
            _ => format!("a whole number from {least} to {most}"),
        };
        self.typed(field, &expected, |value| {
            let whole = value
                .as_f64()
                .filter(|n| n.fract() == 0.0 && *n >= 0.0 && *n < 9e15);
            let number = value.as_u64().or(whole.map(|n| n as u64));
            number.filter(|n| (least..=most).contains(n))
        })
    }

    /// A number of a range.
    pub(crate) fn number(
        &mut self,
        field: &str,
        least: f64,
        most: f64,
    ) -> Result<Option<f32>, ApiError> {
        let expected = match most.is_finite() {
            true => format!("a number from {least} to {most}"),
            false => format!("a finite number from {least} on"),
        };
        self.typed(field, &expected, |value| {
            let number = value.as_f64()?;
            ((least..=most).contains(&number) && (number as f32).is_finite())
                .then_some(number as f32)
        })
    }

    /// Refuses a field that is not supported, unless its value is one that changes nothing.
    pub(crate) fn refuse(&mut self, field: &str, nothing: &[Value]) -> Result<(), ApiError> {
        match self.take(field) {
            None => Ok(()),
            Some(value) if nothing.contains(&value) => Ok(()),
            Some(_) => Err(ApiError {
                param: Some(self.name(field)),
                ..ApiError::new(400, format!("`{}` is not supported", self.name(field)))
                    .code("unsupported_parameter")
            }),
        }
    }

    /// Refuses what is left and not harmless; with `lenient`, says what is ignored.
    pub(crate) fn finish(self, lenient: bool) -> Result<Vec<String>, ApiError> {
        let mut ignored = Vec::new();
        for field in self.map.keys() {
            if self.place.is_empty() && HARMLESS.contains(&field.as_str()) {
                continue;
            }
            let name = format!("{}{field}", self.place);
            if !lenient {
                let shown: String = name.chars().take(100).collect();
                return Err(ApiError {
                    param: Some(shown.clone()),
                    ..ApiError::new(400, format!("`{shown}` is not a known field"))
                        .code("unknown_parameter")
                });
            }
            ignored.push(name);
        }
        Ok(ignored)
    }
}

/// The value of a field that has two names, unless both have one and they differ.
pub(crate) fn agreeing<T: PartialEq + std::fmt::Display>(
    (older, first): (&str, Option<T>),
    (newer, second): (&str, Option<T>),
) -> Result<Option<T>, ApiError> {
    match (first, second) {
        (Some(first), Some(second)) if first != second => {
            let message = format!(
                "expected the value of `{older}`, which means the same, found {second} and {first}"
            );
            Err(ApiError::field(newer, message))
        }
        (first, second) => Ok(second.or(first)),
    }
}

/// A value as errors show it.
pub(crate) fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.chars().count() > 60 {
        true => format!("{}…", text.chars().take(60).collect::<String>()),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_is_taken_harmless_or_refused() {
        let body = json!({"a": 1, "b": null, "user": "u", "c": 2.0, "d": "x"});
        let mut fields = Fields::new(body).unwrap();
        assert_eq!(fields.whole("a", 0, 5).unwrap(), Some(1));
        assert_eq!(fields.whole("b", 0, 5).unwrap(), None);
        assert_eq!(fields.whole("c", 0, 5).unwrap(), Some(2));
        assert_eq!(fields.text("d").unwrap(), Some("x".to_owned()));
        assert_eq!(fields.finish(false), Ok(Vec::new()));

        let mut fields = Fields::new(json!({"a": -1, "n": f64::INFINITY, "z": true})).unwrap();
        assert_eq!(
            fields.whole("a", 0, 5).unwrap_err().param.as_deref(),
            Some("a")
        );
        assert_eq!(fields.number("n", 0.0, 1.0).unwrap(), None);
        let lenient = Fields::new(json!({"z": true})).unwrap().finish(true);
        assert_eq!(lenient, Ok(vec!["z".to_owned()]));
        let error = fields.finish(false).unwrap_err();
        assert_eq!((error.status, error.param.as_deref()), (400, Some("z")));
        assert_eq!(error.code, Some("unknown_parameter"));

        let mut fields = Fields::new(json!({"x": "none", "y": 3})).unwrap();
        fields.refuse("x", &["none".into()]).unwrap();
        let error = fields.refuse("y", &[]).unwrap_err();
        assert_eq!(error.code, Some("unsupported_parameter"));
        assert!(Fields::new(json!([1])).is_err());
    }
}
