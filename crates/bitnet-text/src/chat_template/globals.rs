//! Functions that every template may call: those of Jinja and those that transformers adds.
//!
//! Invariant: nothing of the machine is seen but the date.

use super::args::{Args, text};
use super::clock::strftime_now;
use super::meter::{Charge, Ended, Error, R, fail, spend};
use super::render::{Renderer, check_attribute};
use super::value::{Cycler, Dict, Function, Range, Seq, Text, Value, check_defined};
use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

/// Longest range that Jinja's sandbox makes.
const RANGE: usize = 100_000;

/// The functions by their names.
pub(super) fn globals() -> HashMap<Rc<str>, Value> {
    [
        ("range", Function::Range),
        ("dict", Function::Dict),
        ("namespace", Function::Namespace),
        ("cycler", Function::Cycler),
        ("joiner", Function::Joiner),
        ("lipsum", Function::Lipsum),
        ("raise_exception", Function::RaiseException),
        ("strftime_now", Function::StrftimeNow),
    ]
    .into_iter()
    .map(|(name, function)| (name.into(), Value::Function(function)))
    .collect()
}

fn range(args: Args) -> R<Value> {
    let [first, second, third] = args.bind("range", ["", "", ""], 1)?;
    let number = |value: Option<Value>, otherwise: i64| -> R<i64> {
        let Some(value) = value else {
            return Ok(otherwise);
        };
        check_defined(&value)?;
        match i64::try_from(value.index()?) {
            Ok(value) => Ok(value),
            Err(_) => fail("a range of numbers beyond 64 bits is not supported"),
        }
    };
    let (start, stop) = match second {
        Some(stop) => (number(first, 0)?, number(Some(stop), 0)?),
        None => (0, number(first, 0)?),
    };
    let step = number(third, 1)?;
    if step == 0 {
        return fail("range() arg 3 must not be zero");
    }
    let range = Range { start, stop, step };
    match range.len() > RANGE {
        true => fail(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({RANGE})."
        )),
        false => Ok(Value::Range(range)),
    }
}

/// Python's `dict(...)`.
fn dict(mut args: Args, of: &str) -> R<Dict> {
    let named = std::mem::take(&mut args.named);
    let [source] = args.bind(of, [""], 0)?;
    let mut out = Dict::default();
    match source {
        None => {}
        Some(Value::Dict(source)) => {
            for (key, value) in source.entries() {
                spend(1)?;
                out.insert(key.clone(), value.clone())?;
            }
        }
        Some(source) => {
            check_defined(&source).or_else(|_| source.items().map(|_| ()))?;
            for (at, pair) in source.items()?.into_iter().enumerate() {
                spend(1)?;
                let pair = pair.items()?;
                let [key, value] = pair.as_slice() else {
                    return fail(format!(
                        "dictionary update sequence element #{at} has length {}; 2 is required",
                        pair.len()
                    ));
                };
                out.insert(key.clone(), value.clone())?;
            }
        }
    }
    for (name, value) in named {
        out.insert(Value::text(&name)?, value)?;
    }
    Ok(out)
}

impl Renderer {
    pub(super) fn call_global(&self, function: Function, args: Args) -> R<Value> {
        match function {
            Function::Range => range(args),
            Function::Dict => Ok(Value::Dict(Rc::new(dict(args, "dict")?))),
            Function::Namespace => {
                let values = dict(args, "namespace")?;
                for (name, _) in values.entries() {
                    if let Value::Str(name) = name {
                        check_attribute(name.as_str())?;
                    }
                }
                self.namespace(values)
            }
            Function::Cycler => {
                if args.positional.is_empty() || !args.named.is_empty() {
                    return fail("at least one item has to be provided");
                }
                Ok(Value::Cycler(Rc::new(Cycler {
                    items: Seq::new(args.positional)?,
                    at: Cell::new(0),
                })))
            }
            Function::Joiner => {
                let [separator] = args.bind("joiner", ["sep"], 0)?;
                let separator = match separator {
                    None => Text::new(", ")?,
                    Some(Value::Str(separator)) => separator,
                    Some(_) => return fail("a joiner of other values than texts is not supported"),
                };
                // held until the value goes
                std::mem::forget(Charge::new(64)?);
                Ok(Value::Joiner(Rc::new((separator, Cell::new(false)))))
            }
            Function::Lipsum => fail("lipsum() is not supported: its text is random"),
            Function::RaiseException => {
                let [message] = args.bind("raise_exception", ["message"], 1)?;
                let message = message.unwrap_or(Value::None).to_text()?;
                Err(Box::new(Error {
                    message: message.as_str().to_owned(),
                    line: None,
                    kind: Ended::Raised,
                }))
            }
            Function::StrftimeNow => {
                let [format] = args.bind("strftime_now", ["format"], 1)?;
                let format = format.unwrap_or(Value::None);
                Value::text(&strftime_now(text(&format)?.as_str())?)
            }
        }
    }
}
