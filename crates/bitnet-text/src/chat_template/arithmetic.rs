//! Python's operators on numbers, texts and lists.
//!
//! Invariant: a result that needs more than 128 bits is an error, never a wrapped number.

use super::ast::Binary;
use super::format::percent;
use super::meter::{Buf, R, fail, over, spend};
use super::numbers::{as_float, beyond};
use super::text::escape_into;
use super::value::{Grow, Text, Value};

fn int(value: Option<i128>) -> R<Value> {
    match value {
        Some(value) => Ok(Value::Int(value)),
        None => beyond(),
    }
}

/// `+value` and `-value`.
pub(super) fn negative(value: &Value, minus: bool) -> R<Value> {
    match value {
        Value::Undefined(what) => fail(what.as_str()),
        Value::Float(f) => Ok(Value::Float(if minus { -f } else { *f })),
        other => match other.as_int() {
            Some(i) if minus => int(i.checked_neg()),
            Some(i) => Ok(Value::Int(i)),
            None => fail(format!(
                "bad operand type for unary {}: '{}'",
                if minus { '-' } else { '+' },
                other.type_name()
            )),
        },
    }
}

pub(super) fn binary(op: Binary, left: &Value, right: &Value) -> R<Value> {
    // a text before % prints what comes after it, undefined or not
    if let (Binary::Mod, Value::Str(format)) = (op, left) {
        return percent(format, right);
    }
    if let (Value::Undefined(what), _) | (_, Value::Undefined(what)) = (left, right) {
        return fail(what.as_str());
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return ints(op, a, b);
    }
    if let (Some(a), Some(b)) = (as_float(left), as_float(right)) {
        return floats(op, a, b);
    }
    match (op, left, right) {
        (Binary::Add, Value::Str(a), Value::Str(b)) => {
            let safe = a.is_markup() || b.is_markup();
            let mut out = Buf::default();
            for part in [a, b] {
                match safe && !part.is_markup() {
                    true => escape_into(part.as_str(), &mut out)?,
                    false => out.push_str(part.as_str())?,
                }
            }
            match safe {
                true => Text::markup(out.as_str()).map(Value::Str),
                false => Text::from_buf(out).map(Value::Str),
            }
        }
        (Binary::Add, Value::List(a), Value::List(b)) => joined(&a.items, &b.items)?.into_list(),
        (Binary::Add, Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            joined(&a.items, &b.items)?.into_tuple()
        }
        (Binary::Mul, sequence, times) if times.as_int().is_some() => {
            repeated(sequence, times, left, right)
        }
        (Binary::Mul, times, sequence) if times.as_int().is_some() => {
            repeated(sequence, times, left, right)
        }
        (Binary::Sub, Value::View(..), _) | (_, Value::Bytes(_), _) => fail(format!(
            "'{}' of these values is not supported",
            op.symbol()
        )),
        _ => unsupported(op, left, right),
    }
}

fn unsupported(op: Binary, left: &Value, right: &Value) -> R<Value> {
    fail(format!(
        "unsupported operand type(s) for {}: '{}' and '{}'",
        op.symbol(),
        left.type_name(),
        right.type_name()
    ))
}

fn joined(a: &[Value], b: &[Value]) -> R<Grow> {
    let mut out = Grow::default();
    for item in a.iter().chain(b) {
        out.push(item.clone())?;
    }
    Ok(out)
}

fn repeated(sequence: &Value, times: &Value, left: &Value, right: &Value) -> R<Value> {
    let count = times.as_int().unwrap_or(0).max(0);
    let Ok(count) = usize::try_from(count) else {
        return over("the memory limit: a sequence is repeated too often");
    };
    match sequence {
        Value::Str(text) => {
            let mut out = Buf::default();
            out.push_times(text.as_str(), count)?;
            match text.is_markup() {
                true => Text::markup(out.as_str()).map(Value::Str),
                false => Text::from_buf(out).map(Value::Str),
            }
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            let mut out = Grow::default();
            // an empty list stays one however often it is repeated
            let count = if items.items.is_empty() { 0 } else { count };
            for _ in 0..count {
                for item in &items.items {
                    out.push(item.clone())?;
                }
            }
            match sequence {
                Value::List(_) => out.into_list(),
                _ => out.into_tuple(),
            }
        }
        _ => unsupported(Binary::Mul, left, right),
    }
}

/// A whole number as an exact float.
fn exact(value: i128) -> R<f64> {
    let float = value as f64;
    match float.abs() < 1e38 && float as i128 == value {
        true => Ok(float),
        false => fail("dividing an integer beyond 53 bits is not supported"),
    }
}

fn by_zero<T>() -> R<T> {
    fail("division by zero")
}

fn ints(op: Binary, a: i128, b: i128) -> R<Value> {
    match op {
        Binary::Add => int(a.checked_add(b)),
        Binary::Sub => int(a.checked_sub(b)),
        Binary::Mul => int(a.checked_mul(b)),
        Binary::Div | Binary::FloorDiv | Binary::Mod if b == 0 => by_zero(),
        Binary::Div => Ok(Value::Float(exact(a)? / exact(b)?)),
        Binary::FloorDiv => match (a.checked_div(b), a.checked_rem(b)) {
            (Some(whole), Some(rest)) if rest != 0 && (rest < 0) != (b < 0) => {
                int(whole.checked_sub(1))
            }
            (whole, _) => int(whole),
        },
        Binary::Mod => match a.checked_rem(b) {
            Some(rest) if rest != 0 && (rest < 0) != (b < 0) => int(rest.checked_add(b)),
            rest => int(rest),
        },
        Binary::Pow if b < 0 => floats(op, exact(a)?, exact(b)?),
        Binary::Pow => match (a, u32::try_from(b)) {
            (0 | 1, Err(_)) => Ok(Value::Int(a)),
            (-1, Err(_)) => Ok(Value::Int(if b % 2 == 0 { 1 } else { -1 })),
            (_, Err(_)) => beyond(),
            (a, Ok(b)) => {
                spend(1)?;
                int(a.checked_pow(b))
            }
        },
    }
}

fn floats(op: Binary, a: f64, b: f64) -> R<Value> {
    let value = match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div | Binary::FloorDiv | Binary::Mod if b == 0.0 => return by_zero(),
        Binary::Div => a / b,
        Binary::FloorDiv => divided(a, b).0,
        Binary::Mod => divided(a, b).1,
        Binary::Pow if a == 0.0 && b < 0.0 => {
            return fail("0.0 cannot be raised to a negative power");
        }
        Binary::Pow if a < 0.0 && a.is_finite() && b.is_finite() && b.fract() != 0.0 => {
            return fail("complex numbers are not supported");
        }
        Binary::Pow => {
            let value = a.powf(b);
            if value.is_infinite() && a.is_finite() && b.is_finite() {
                return fail("(34, 'Numerical result out of range')");
            }
            value
        }
    };
    Ok(Value::Float(value))
}

/// Python's `divmod` of floats.
fn divided(a: f64, b: f64) -> (f64, f64) {
    let mut rest = a % b;
    let mut whole = (a - rest) / b;
    if rest != 0.0 {
        if (b < 0.0) != (rest < 0.0) {
            rest += b;
            whole -= 1.0;
        }
    } else {
        rest = 0.0_f64.copysign(b);
    }
    if whole != 0.0 {
        let floor = whole.floor();
        whole = if whole - floor > 0.5 {
            floor + 1.0
        } else {
            floor
        };
    } else {
        whole = 0.0_f64.copysign(a / b);
    }
    (whole, rest)
}
