//! Methods of lists, dictionaries, numbers and the rest; those of texts are in `strings.rs`.
//!
//! Invariant: no method changes a value; what Python has and this program does not is an error.

use super::args::{Args, text};
use super::meter::{Buf, R, fail, spend};
use super::render::Renderer;
use super::strings;
use super::value::{Dict, Function, Grow, Text, Value, ViewKind};
use std::rc::Rc;

/// Whether the sandbox hides an attribute because calling it would change the value.
pub(super) fn is_mutating(of: &Value, name: &str) -> bool {
    match of {
        Value::List(_) => matches!(
            name,
            "append" | "clear" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort"
        ),
        Value::Dict(_) => matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update"),
        _ => false,
    }
}

/// Whether a value has a method.
pub(super) fn has_method(of: &Value, name: &str) -> bool {
    match of {
        Value::Str(_) => {
            strings::METHODS.contains(&name) || matches!(name, "maketrans" | "translate")
        }
        Value::List(_) => matches!(name, "copy" | "count" | "index"),
        Value::Tuple(_) | Value::Group(_) | Value::Range(_) => matches!(name, "count" | "index"),
        Value::Dict(_) => matches!(
            name,
            "copy" | "fromkeys" | "get" | "items" | "keys" | "values"
        ),
        Value::Int(_) | Value::Bool(_) => matches!(
            name,
            "as_integer_ratio"
                | "bit_count"
                | "bit_length"
                | "conjugate"
                | "from_bytes"
                | "to_bytes"
        ),
        Value::Float(_) => matches!(
            name,
            "as_integer_ratio" | "conjugate" | "fromhex" | "hex" | "is_integer"
        ),
        Value::Bytes(_) => !name.starts_with('_'),
        Value::View(..) => matches!(name, "isdisjoint" | "mapping"),
        Value::Iter(_) => matches!(name, "close" | "send" | "throw"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        Value::Loop(_) => matches!(name, "changed" | "cycle"),
        Value::Function(Function::Dict) => name == "fromkeys",
        _ => false,
    }
}

fn dict_from_keys(args: Args) -> R<Value> {
    let [keys, value] = args.bind("fromkeys", ["", ""], 1)?;
    let value = value.unwrap_or(Value::None);
    let mut dict = Dict::default();
    for key in keys.unwrap_or(Value::None).items()? {
        spend(1)?;
        dict.insert(key, value.clone())?;
    }
    Ok(Value::Dict(Rc::new(dict)))
}

/// `index` and `count` of a sequence.
fn search(items: &[Value], name: &str, args: Args) -> R<Value> {
    let [what, start, stop] = args.bind(name, ["", "", ""], 1)?;
    let what = what.unwrap_or(Value::None);
    if name == "count" {
        if start.is_some() {
            return fail("count() takes exactly one argument");
        }
        let mut count: i128 = 0;
        for item in items {
            count = count.saturating_add(i128::from(item.is_or_equals(&what)?));
        }
        return Ok(Value::Int(count));
    }
    let length = items.len() as i128;
    let place = |value: Option<Value>, otherwise: i128| -> R<i128> {
        let Some(value) = value else {
            return Ok(otherwise);
        };
        let value = value.index()?;
        Ok(if value < 0 {
            value.saturating_add(length).max(0)
        } else {
            value
        })
    };
    let (start, stop) = (place(start, 0)?, place(stop, length)?);
    for (at, item) in items.iter().enumerate() {
        let at = at as i128;
        if at >= start && at < stop && item.is_or_equals(&what)? {
            return Ok(Value::Int(at));
        }
    }
    let mut out = Buf::default();
    what.repr(&mut out, 0)?;
    fail(format!("{} is not in list", out.as_str()))
}

fn dict_method(of: &Value, dict: &Rc<Dict>, name: &str, args: Args) -> R<Value> {
    match name {
        "get" => {
            let [key, otherwise] = args.bind(name, ["", ""], 1)?;
            let key = key.unwrap_or(Value::None);
            let found = match key {
                // nothing is equal to an undefined key
                Value::Undefined(_) => None,
                key => dict.get(&key)?,
            };
            Ok(found.or(otherwise).unwrap_or(Value::None))
        }
        "fromkeys" => dict_from_keys(args),
        _ => {
            args.none(name)?;
            Ok(match name {
                "keys" => Value::View(ViewKind::Keys, dict.clone()),
                "values" => Value::View(ViewKind::Values, dict.clone()),
                "items" => Value::View(ViewKind::Items, dict.clone()),
                // nothing changes it, so only `sameas` could tell
                _ => {
                    let mut copy = Dict::default();
                    spend(dict.entries().len())?;
                    for (key, value) in dict.entries() {
                        copy.insert(key.clone(), value.clone())?;
                    }
                    let _ = of;
                    Value::Dict(Rc::new(copy))
                }
            })
        }
    }
}

pub(super) fn call_method(renderer: &Renderer, of: &Value, name: &str, args: Args) -> R<Value> {
    match (of, name) {
        (Value::Str(text), _) => strings::call(renderer, text, name, args),
        (Value::List(items), "copy") => {
            args.none(name)?;
            let mut out = Grow::default();
            for item in &items.items {
                out.push(item.clone())?;
            }
            out.into_list()
        }
        (Value::List(items) | Value::Tuple(items) | Value::Group(items), "count" | "index") => {
            search(&items.items, name, args)
        }
        (Value::Range(_), "count" | "index") => search(&of.lasting_items()?, name, args),
        (Value::Dict(dict), _) => dict_method(of, dict, name, args),
        (Value::Function(Function::Dict), "fromkeys") => dict_from_keys(args),
        (Value::Int(_) | Value::Bool(_), "bit_length" | "bit_count" | "conjugate") => {
            args.none(name)?;
            let value = of.as_int().unwrap_or(0);
            Ok(Value::Int(match name {
                "bit_length" => {
                    i128::from(128_u32.saturating_sub(value.unsigned_abs().leading_zeros()))
                }
                "bit_count" => i128::from(value.unsigned_abs().count_ones()),
                _ => value,
            }))
        }
        (Value::Float(f), "is_integer" | "conjugate") => {
            args.none(name)?;
            Ok(match name {
                "is_integer" => Value::Bool(f.is_finite() && f.fract() == 0.0),
                _ => Value::Float(*f),
            })
        }
        (Value::Bytes(bytes), "decode") => {
            let [encoding, errors] = args.bind(name, ["encoding", "errors"], 0)?;
            let utf8 = match &encoding {
                None => true,
                Some(name) => matches!(text(name)?.as_str(), "utf-8" | "utf8" | "UTF-8"),
            };
            let bytes: Vec<u8> = bytes.as_str().chars().map(|c| c as u8).collect();
            match (String::from_utf8(bytes), utf8 && errors.is_none()) {
                (Ok(text), true) => Value::text(&text),
                _ => fail("this way to decode bytes is not supported"),
            }
        }
        (Value::Cycler(cycler), "next" | "reset") => {
            args.none(name)?;
            renderer
                .mutable_reads
                .set(renderer.mutable_reads.get().saturating_add(1));
            if name == "reset" {
                cycler.at.set(0);
                return Ok(Value::None);
            }
            let at = cycler.at.get();
            cycler.at.set(
                at.saturating_add(1)
                    .checked_rem(cycler.items.items.len().max(1))
                    .unwrap_or(0),
            );
            Ok(cycler.items.items.get(at).cloned().unwrap_or(Value::None))
        }
        (Value::Loop(state), "cycle") => {
            if args.positional.is_empty() || !args.named.is_empty() {
                return fail("no items for cycling given");
            }
            let at = state
                .index0()
                .checked_rem(args.positional.len())
                .unwrap_or(0);
            Ok(args.positional.get(at).cloned().unwrap_or(Value::None))
        }
        (Value::Loop(state), "changed") => match args.named.is_empty() {
            true => state.changed(args.positional),
            false => fail("changed() takes no keyword arguments"),
        },
        _ => fail(format!(
            "the method {}.{name} is not supported",
            of.type_name()
        )),
    }
}

/// A text of a value that is one already, or its print.
pub(super) fn soft(value: &Value) -> R<Text> {
    match value {
        Value::Str(text) => Ok(text.clone()),
        other => other.to_text(),
    }
}
