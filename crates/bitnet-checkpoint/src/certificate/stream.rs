//! Reading a certificate from its text, one record after the other.
//!
//! Invariant: memory grows with the length of the text (about three times it), whatever the text holds: of the
//! two long lists only the records and their canonical form are kept, and everything else may have
//! [`MOST_VALUES`] values.

use super::consistency::{Piece, SEAL, canonical};
use super::json::{Field, dense_from_json, ternary_from_json};
use super::{DenseRecord, TernaryRecord};
use bitnet_formats::{ErrorCode, FormatError};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Most values besides the lists of tensors.
const MOST_VALUES: usize = 1 << 16;
/// Most values of one record.
const MOST_OF_RECORD: usize = 1 << 10;
/// Most records of a list.
const MOST_RECORDS: usize = 1 << 17;

/// A certificate in pieces.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    /// Everything but the two lists.
    pub(super) rest: Value,
    pub(super) ternary: Option<Vec<TernaryRecord>>,
    pub(super) dense: Option<Vec<DenseRecord>>,
    /// The canonical form of every entry but the seal.
    pub(super) canonical: Vec<Piece>,
}

/// Reads the pieces.
///
/// # Errors
/// `malformed`, naming the key of a record; `limit-exceeded`.
pub(super) fn read(text: &[u8]) -> Result<Pieces, FormatError> {
    let mut pieces = Pieces::default();
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_slice(text);
    let root = Root {
        pieces: &mut pieces,
        failed: &mut failed,
    };
    let read = root.deserialize(&mut json).and_then(|()| json.end());
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Err(e)) => Err(malformed(format!("expected JSON: {e}")).because(e)),
        (None, Ok(())) => Ok(pieces),
    }
}

fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Malformed, message)
}

fn too_many(what: &str, most: usize) -> FormatError {
    let message = format!("expected at most {most} {what}, found more");
    FormatError::new(ErrorCode::LimitExceeded, message)
}

struct Root<'a> {
    pieces: &'a mut Pieces,
    failed: &'a mut Option<FormatError>,
}

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a certificate")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { pieces, failed } = self;
        let (mut rest, mut budget) = (Map::new(), MOST_VALUES);
        while let Some(key) = map.next_key::<String>()? {
            let (seen, list): (bool, &str) = match key.as_str() {
                "ternary" => (pieces.ternary.is_some(), "ternary"),
                "dense" => (pieces.dense.is_some(), "dense"),
                other => (rest.contains_key(other), ""),
            };
            if seen {
                *failed = Some(malformed("expected each key once, found it twice").in_tensor(&key));
                return Err(A::Error::custom("a repeated key"));
            }
            let mut form = Vec::new();
            match list {
                "ternary" => {
                    pieces.ternary = Some(map.next_value_seed(Records {
                        key: list,
                        read: ternary_from_json,
                        form: &mut form,
                        failed: &mut *failed,
                    })?);
                }
                "dense" => {
                    pieces.dense = Some(map.next_value_seed(Records {
                        key: list,
                        read: dense_from_json,
                        form: &mut form,
                        failed: &mut *failed,
                    })?);
                }
                _ => {
                    let value = map.next_value_seed(Bounded {
                        budget: &mut budget,
                        failed: &mut *failed,
                    })?;
                    if let Err(error) = canonical(&value, &mut form) {
                        *failed = Some(error);
                        return Err(A::Error::custom("no canonical form"));
                    }
                    rest.insert(key.clone(), value);
                }
            }
            if key != SEAL {
                pieces.canonical.push(Piece { key, form });
            }
        }
        pieces.rest = Value::Object(rest);
        Ok(())
    }
}

/// A list of records.
struct Records<'a, T> {
    key: &'a str,
    read: fn(&Field<'_>) -> Result<T, FormatError>,
    /// The canonical form of the list.
    form: &'a mut Vec<u8>,
    failed: &'a mut Option<FormatError>,
}

impl<'de, T> DeserializeSeed<'de> for Records<'_, T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<T>, D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de, T> Visitor<'de> for Records<'_, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list as `{}`", self.key)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let Self {
            key,
            read,
            form,
            failed,
        } = self;
        let mut records = Vec::new();
        form.push(b'[');
        loop {
            let mut budget = MOST_OF_RECORD;
            let seed = Bounded {
                budget: &mut budget,
                failed: &mut *failed,
            };
            let Some(value) = list.next_element_seed(seed)? else {
                break;
            };
            let record = match records.len() {
                MOST_RECORDS.. => Err(too_many("records", MOST_RECORDS).in_tensor(key)),
                at => {
                    if at > 0 {
                        form.push(b',');
                    }
                    let path = format!("{key}[{at}]");
                    let field = Field {
                        value: &value,
                        path,
                    };
                    canonical(&value, form).and_then(|()| read(&field))
                }
            };
            match record {
                Ok(record) => records.push(record),
                Err(error) => {
                    *failed = Some(error);
                    return Err(A::Error::custom("not a record"));
                }
            }
        }
        form.push(b']');
        Ok(records)
    }
}

/// A value of at most so many values.
struct Bounded<'a> {
    budget: &'a mut usize,
    failed: &'a mut Option<FormatError>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        match self.budget.checked_sub(1) {
            Some(left) => *self.budget = left,
            None => {
                *self.failed = Some(too_many("values", MOST_VALUES));
                return Err(D::Error::custom("too many values"));
            }
        }
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Bounded {
            budget: &mut *self.budget,
            failed: &mut *self.failed,
        })? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Bounded {
                budget: &mut *self.budget,
                failed: &mut *self.failed,
            })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_records_are_counted() {
        let values = format!("{{\"x\": [{}0]}}", "0,".repeat(MOST_VALUES));
        let error = read(values.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded, "{error}");
        let record = format!("{{\"dense\": [[{}0]]}}", "0,".repeat(MOST_OF_RECORD));
        let error = read(record.as_bytes()).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded, "{error}");
        for (text, says) in [
            ("[]", "expected JSON: "),
            (
                "{\"tool\": 1, \"tool\": 2}",
                "`tool`: expected each key once",
            ),
            (
                "{\"dense\": [], \"dense\": []}",
                "`dense`: expected each key once",
            ),
            ("{\"dense\": [{}]}", "`dense[0].name`: expected a value"),
            ("{} x", "expected JSON: "),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Malformed);
            assert!(error.to_string().starts_with(says), "{text}: {error}");
        }
    }
}
