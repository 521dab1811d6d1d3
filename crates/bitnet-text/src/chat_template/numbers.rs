//! Numbers as Python converts them.
//!
//! Invariant: an integer beyond 128 bits is an error.

use super::meter::{R, fail};
use super::value::Value;

/// The error of an integer that does not fit.
pub(super) fn beyond<T>() -> R<T> {
    fail("an integer beyond 128 bits is not supported")
}

/// A number as a float, if it is one.
pub(super) fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Float(f) => Some(*f),
        other => other.as_int().map(|i| i as f64),
    }
}

/// Python's `int` of a float.
pub(super) fn truncated(value: f64) -> R<Value> {
    if value.is_nan() {
        return fail("cannot convert float NaN to integer");
    }
    if value.is_infinite() {
        return fail("cannot convert float infinity to integer");
    }
    match value.abs() < 1.7e38 {
        true => Ok(Value::Int(value as i128)),
        false => beyond(),
    }
}
