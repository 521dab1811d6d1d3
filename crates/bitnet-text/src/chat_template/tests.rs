//! Jinja's tests, what follows `is`.
//!
//! Invariant: a test that Python cannot answer is an error.

use super::args::Args;
use super::arithmetic::binary;
use super::ast::{Binary, Comparison};
use super::comparing::compare;
use super::filters::is_filter;
use super::meter::{R, fail};
use super::strings::{islower, isupper};
use super::value::Value;

const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

pub(super) fn is_test(name: &str) -> bool {
    NAMES.contains(&name)
}

fn comparison(name: &str) -> Option<Comparison> {
    Some(match name {
        "==" | "eq" | "equalto" => Comparison::Eq,
        "!=" | "ne" => Comparison::Ne,
        ">" | "gt" | "greaterthan" => Comparison::Gt,
        ">=" | "ge" => Comparison::Ge,
        "<" | "lt" | "lessthan" => Comparison::Lt,
        "<=" | "le" => Comparison::Le,
        "in" => Comparison::In,
        _ => return None,
    })
}

pub(super) fn apply_test(name: &str, of: &Value, args: Args) -> R<bool> {
    if let Some(how) = comparison(name) {
        let [other] = args.bind(name, ["seq"], 1)?;
        return compare(how, of, &other.unwrap_or(Value::None));
    }
    let remainder = |by: &Value| match of {
        Value::Str(_) => fail("not all arguments converted during string formatting"),
        _ => binary(Binary::Mod, of, by),
    };
    if matches!(name, "filter" | "test") && matches!(of, Value::List(_) | Value::Dict(_)) {
        return fail(format!("unhashable type: '{}'", of.type_name()));
    }
    match name {
        "divisibleby" => {
            let [by] = args.bind(name, ["num"], 1)?;
            return remainder(&by.unwrap_or(Value::None))?.equals(&Value::Int(0));
        }
        "sameas" => {
            let [other] = args.bind(name, ["other"], 1)?;
            return match of.is(&other.unwrap_or(Value::None)) {
                Some(same) => Ok(same),
                None => fail("whether these values are the same object is not known"),
            };
        }
        _ => args.none(name)?,
    }
    Ok(match name {
        "odd" => remainder(&Value::Int(2))?.equals(&Value::Int(1))?,
        "even" => remainder(&Value::Int(2))?.equals(&Value::Int(0))?,
        "defined" => !matches!(of, Value::Undefined(_)),
        "undefined" => matches!(of, Value::Undefined(_)),
        "filter" => matches!(of, Value::Str(name) if is_filter(name.as_str())),
        "test" => matches!(of, Value::Str(name) if is_test(name.as_str())),
        "none" => matches!(of, Value::None),
        "boolean" => matches!(of, Value::Bool(_)),
        "true" => matches!(of, Value::Bool(true)),
        "false" => matches!(of, Value::Bool(false)),
        "integer" => matches!(of, Value::Int(_)),
        "float" => matches!(of, Value::Float(_)),
        "number" => matches!(of, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(of, Value::Str(_)),
        "mapping" => matches!(of, Value::Dict(_)),
        "lower" => islower(of.to_text()?.as_str()),
        "upper" => isupper(of.to_text()?.as_str()),
        "escaped" => matches!(of, Value::Str(text) if text.is_markup()),
        "iterable" => of.is_iterable(),
        "callable" => of.is_callable(),
        "sequence" => matches!(
            of,
            Value::Undefined(_)
                | Value::Str(_)
                | Value::Bytes(_)
                | Value::List(_)
                | Value::Tuple(_)
                | Value::Group(_)
                | Value::Dict(_)
                | Value::Range(_)
        ),
        _ => return fail(format!("the test '{name}' is not supported")),
    })
}
