//! The arguments of a call, given to parameters as Python does.
//!
//! Invariant: an argument that no parameter takes is an error.

use super::meter::{R, fail, over};
use super::value::{Text, Value};
use std::rc::Rc;

#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Rc<str>, Value)>,
}

impl Args {
    /// A named argument.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.named.iter().position(|(known, _)| **known == *name)?;
        Some(self.named.remove(at).1)
    }

    /// The arguments of a function with these parameters; the first `required` have no default.
    /// A parameter whose name is empty has none that a caller could use.
    pub(super) fn bind<const N: usize>(
        mut self,
        of: &str,
        names: [&str; N],
        required: usize,
    ) -> R<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            return fail(format!(
                "{of}() takes at most {N} arguments ({given} given)"
            ));
        }
        let mut out = [const { None }; N];
        let mut positional = self.positional.drain(..);
        for (at, (slot, name)) in out.iter_mut().zip(names).enumerate() {
            let named = match name.is_empty() {
                true => None,
                false => {
                    let at = self.named.iter().position(|(known, _)| **known == *name);
                    at.map(|at| self.named.remove(at).1)
                }
            };
            *slot = match (positional.next(), named) {
                (Some(_), Some(_)) => {
                    return fail(format!("{of}() got multiple values for argument '{name}'"));
                }
                (Some(value), None) | (None, Some(value)) => Some(value),
                (None, None) if at < required => {
                    return fail(format!("{of}() misses a required argument: '{name}'"));
                }
                (None, None) => None,
            };
        }
        match self.named.first() {
            Some((name, _)) => fail(format!(
                "{of}() got an unexpected keyword argument '{name}'"
            )),
            None => Ok(out),
        }
    }

    /// Refuses all arguments.
    pub(super) fn none(self, of: &str) -> R<()> {
        self.bind(of, [], 0).map(|_: [Option<Value>; 0]| ())
    }
}

/// A text, or an error.
pub(super) fn text(value: &Value) -> R<&Text> {
    match value {
        Value::Str(text) => Ok(text),
        Value::Undefined(what) => fail(what.as_str()),
        other => fail(format!(
            "expected str instance, {} found",
            other.type_name()
        )),
    }
}

/// A size: a whole number that fits, negative ones count as zero.
pub(super) fn size(value: &Value) -> R<usize> {
    if let Value::Undefined(what) = value {
        return fail(what.as_str());
    }
    let value = value.index()?;
    match usize::try_from(value.max(0)) {
        Ok(size) if size <= isize::MAX as usize => Ok(size),
        _ => over(format!("the memory limit: the size {value} is too large")),
    }
}

pub(super) fn is_true(value: &Option<Value>) -> bool {
    value.as_ref().is_some_and(Value::is_true)
}
