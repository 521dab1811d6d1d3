//! Python's comparisons: `==`, `is`, `<` and `in`.
//!
//! Invariant: a comparison that Python decides by identity, and this program cannot, is an error.

use super::ast::Comparison;
use super::meter::{R, fail, spend, spend_bytes};
use super::value::{Value, ViewKind};
use std::cmp::Ordering;
use std::rc::Rc;

impl Value {
    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self) -> R<bool> {
        spend(1)?;
        let pairs = |a: &[Self], b: &[Self]| -> R<bool> {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.iter().zip(b) {
                if !a.is_or_equals(b)? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => {
                spend_bytes(a.as_str().len().min(b.as_str().len()))?;
                a == b
            }
            (Self::Bytes(a), Self::Bytes(b)) => a == b,
            (Self::List(a), Self::List(b)) => pairs(&a.items, &b.items)?,
            (Self::Tuple(a) | Self::Group(a), Self::Tuple(b) | Self::Group(b)) => {
                pairs(&a.items, &b.items)?
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.entries().len() != b.entries().len() {
                    return Ok(false);
                }
                for (at, value) in a.entries() {
                    match b.get(at)? {
                        Some(found) if value.is_or_equals(&found)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Range(a), Self::Range(b)) => {
                let (count, other) = (a.len(), b.len());
                count == other
                    && (count == 0 || a.start == b.start && (count == 1 || a.step == b.step))
            }
            (Self::View(a, of), Self::View(b, other)) if a == b && Rc::ptr_eq(of, other) => {
                !matches!(a, ViewKind::Values)
            }
            (Self::View(..), Self::View(..)) => return fail("comparing views is not supported"),
            (Self::Method(_), Self::Method(_)) => {
                return fail("comparing methods is not supported");
            }
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => match numbers(self, other) {
                Some(ordering) => ordering == Some(Ordering::Equal),
                None => self.is(other).unwrap_or(false),
            },
        })
    }

    pub(super) fn is_or_equals(&self, other: &Self) -> R<bool> {
        if let (Self::Float(a), Self::Float(b)) = (self, other)
            && a.is_nan()
            && b.is_nan()
        {
            return fail("comparing NaN within a list is not supported");
        }
        self.equals(other)
    }

    /// Python's `is`; `None` where this program cannot tell.
    pub(super) fn is(&self, other: &Self) -> Option<bool> {
        Some(match (self, other) {
            (Self::None, Self::None) | (Self::Template, Self::Template) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) if a != b => false,
            (Self::Int(a), Self::Int(_)) => (-5..=256).contains(a).then_some(true)?,
            (Self::Str(a), Self::Str(b)) if a.is(b) => true,
            (Self::Str(a), Self::Str(b)) if a != b => false,
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Joiner(a), Self::Joiner(b)) => Rc::ptr_eq(a, b),
            (Self::Iter(a), Self::Iter(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            _ if std::mem::discriminant(self) != std::mem::discriminant(other) => false,
            _ => return None,
        })
    }

    /// Python's `<` and its like.
    pub(super) fn compare(&self, other: &Self, symbol: &str) -> R<Option<Ordering>> {
        spend(1)?;
        match (self, other) {
            (Self::Undefined(what), _) | (_, Self::Undefined(what)) => fail(what.as_str()),
            (Self::Str(a), Self::Str(b)) => {
                spend_bytes(a.as_str().len().min(b.as_str().len()))?;
                // the order of UTF-8 is that of code points
                Ok(Some(a.as_str().cmp(b.as_str())))
            }
            (Self::List(a), Self::List(b))
            | (Self::Tuple(a) | Self::Group(a), Self::Tuple(b) | Self::Group(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.is_or_equals(b)? {
                        return a.compare(b, symbol);
                    }
                }
                Ok(Some(a.items.len().cmp(&b.items.len())))
            }
            _ => match numbers(self, other) {
                Some(ordering) => Ok(ordering),
                None => fail(format!(
                    "'{symbol}' not supported between instances of '{}' and '{}'",
                    self.type_name(),
                    other.type_name()
                )),
            },
        }
    }

    /// Python's `self in container`.
    pub(super) fn is_in(&self, container: &Self) -> R<bool> {
        match container {
            Self::Str(text) => match self {
                Self::Str(part) => {
                    spend_bytes(text.as_str().len())?;
                    Ok(text.as_str().contains(part.as_str()))
                }
                other => fail(format!(
                    "'in <string>' requires string as left operand, not {}",
                    other.type_name()
                )),
            },
            Self::Dict(dict) | Self::View(ViewKind::Keys, dict) => Ok(dict.get(self)?.is_some()),
            Self::Range(range) => match self {
                Self::Int(_) | Self::Bool(_) => {
                    let offset = self.index()?.checked_sub(i128::from(range.start));
                    let Some(offset) = offset else {
                        return Ok(false);
                    };
                    let step = i128::from(range.step);
                    let at = offset.checked_div(step).unwrap_or(0);
                    Ok(offset.checked_rem(step).unwrap_or(0) == 0
                        && at >= 0
                        && at < range.len() as i128)
                }
                _ => {
                    for at in 0..range.len() {
                        if self.equals(&range.get(at))? {
                            return Ok(true);
                        }
                    }
                    Ok(false)
                }
            },
            Self::Iter(iter) => {
                while let Some(item) = iter.next()? {
                    if self.is_or_equals(&item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Loop(_) | Self::Template => fail("a test of membership in it is not supported"),
            _ if !container.is_iterable() => fail(format!(
                "argument of type '{}' is not iterable",
                container.type_name()
            )),
            _ => {
                for item in container.lasting_items()? {
                    if self.is_or_equals(&item)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

/// The order of two numbers; the outer `None` if one is none.
fn numbers(a: &Value, b: &Value) -> Option<Option<Ordering>> {
    Some(match (a, b) {
        (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
        (Value::Float(a), b) => int_to_float(b.as_int()?, *a).map(Ordering::reverse),
        (a, Value::Float(b)) => int_to_float(a.as_int()?, *b),
        (a, b) => Some(a.as_int()?.cmp(&b.as_int()?)),
    })
}

/// The exact order of a whole number and a float.
fn int_to_float(int: i128, float: f64) -> Option<Ordering> {
    const BEYOND: f64 = 1.7e38;
    if float.is_nan() {
        None
    } else if float > BEYOND {
        Some(Ordering::Less)
    } else if float < -BEYOND {
        Some(Ordering::Greater)
    } else {
        let whole = int.cmp(&(float.trunc() as i128));
        Some(whole.then_with(|| 0.0_f64.total_cmp(&(float.fract() + 0.0))))
    }
}

/// A comparison that a template writes.
pub(super) fn compare(how: Comparison, left: &Value, right: &Value) -> R<bool> {
    Ok(match how {
        Comparison::Eq => left.equals(right)?,
        Comparison::Ne => !left.equals(right)?,
        Comparison::In => left.is_in(right)?,
        Comparison::NotIn => !left.is_in(right)?,
        Comparison::Lt => left.compare(right, "<")? == Some(Ordering::Less),
        Comparison::Le => left.compare(right, "<=")?.is_some_and(Ordering::is_le),
        Comparison::Gt => left.compare(right, ">")? == Some(Ordering::Greater),
        Comparison::Ge => left.compare(right, ">=")?.is_some_and(Ordering::is_ge),
    })
}
