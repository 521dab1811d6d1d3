//! Jinja's filters on lists, mappings and numbers; those on texts are in `text_filters.rs`.
//!
//! Invariant: a filter that gives a generator in Python gives one here: its items come once, and its
//! error comes when the item before it has been read.

use super::args::{Args, is_true, size, text};
use super::arithmetic::{binary, negative};
use super::ast::Binary;
use super::json;
use super::meter::{Ended, R, fail, spend};
use super::numbers::{as_float, truncated};
use super::render::Renderer;
use super::sorting::{Getter, dictsort, extreme, groupby, sort, unique};
use super::text_filters;
use super::value::{Grow, Iter, Value, ViewKind, check_defined};
use std::cmp::Ordering;
use std::hash::{BuildHasher, Hasher};

const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

pub(super) fn is_filter(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Maps or selects each item as Python's generators do.
fn generate(renderer: &Renderer, of: &Value, step: impl Fn(Value, &mut Grow) -> R<()>) -> R<Value> {
    let mut out = Grow::default();
    if !of.is_true() {
        return out.into_iter(None);
    }
    let (items, mut ends) = match of {
        Value::Iter(iter) => iter.take()?,
        _ => match of.items() {
            Ok(items) => (items, None),
            Err(e) if e.kind == Ended::Limit => return Err(e),
            Err(e) => (Vec::new(), Some(e)),
        },
    };
    let reads = renderer.mutable_reads.get();
    for item in items {
        match step(item, &mut out) {
            Ok(()) => {}
            Err(e) if e.kind == Ended::Limit => return Err(e),
            Err(e) => {
                ends = Some(e);
                break;
            }
        }
    }
    if renderer.mutable_reads.get() != reads {
        return fail("a filter over namespaces, loops or cyclers is not supported");
    }
    out.into_iter(ends)
}

fn map(renderer: &Renderer, of: &Value, mut args: Args) -> R<Value> {
    if args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute") {
        let attribute = args.take("attribute");
        let default = args.take("default");
        args.none("map")?;
        let getter = Getter::new(attribute, default, false)?;
        return generate(renderer, of, |item, out| {
            out.push(getter.get(renderer, &item)?)
        });
    }
    if args.positional.is_empty() {
        return generate(renderer, of, |_, _| fail("map requires a filter argument"));
    }
    let name = args.positional.remove(0);
    generate(renderer, of, |item, out| {
        out.push(renderer.filter(text(&name)?.as_str(), &item, copy(&args)?)?)
    })
}

fn copy(args: &Args) -> R<Args> {
    spend(args.positional.len().saturating_add(args.named.len()))?;
    Ok(Args {
        positional: args.positional.clone(),
        named: args.named.clone(),
    })
}

/// `select`, `reject`, `selectattr` and `rejectattr`.
fn select(
    renderer: &Renderer,
    of: &Value,
    mut args: Args,
    keep: bool,
    by_attribute: bool,
) -> R<Value> {
    let mut getter = None;
    if by_attribute {
        if args.positional.is_empty() {
            return generate(renderer, of, |_, _| {
                fail("Missing parameter for attribute name")
            });
        }
        getter = Some(Getter::new(Some(args.positional.remove(0)), None, false)?);
    }
    let test = match args.positional.is_empty() {
        true => None,
        false => Some(args.positional.remove(0)),
    };
    generate(renderer, of, |item, out| {
        let value = match &getter {
            Some(getter) => getter.get(renderer, &item)?,
            None => item.clone(),
        };
        let holds = match &test {
            Some(test) => renderer.test(text(test)?.as_str(), &value, copy(&args)?)?,
            None => value.is_true(),
        };
        match holds == keep {
            true => out.push(item),
            false => Ok(()),
        }
    })
}

fn sum(renderer: &Renderer, of: &Value, args: Args) -> R<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
    let getter = Getter::new(attribute, None, false)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if matches!(total, Value::Str(_)) {
        return fail("sum() can't sum strings [use ''.join(seq) instead]");
    }
    for item in of.items()? {
        total = binary(Binary::Add, &total, &getter.get(renderer, &item)?)?;
    }
    Ok(total)
}

fn batch(of: &Value, args: Args) -> R<Value> {
    let [count, fill] = args.bind("batch", ["linecount", "fill_with"], 1)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let count = count.unwrap_or(Value::None);
    let count = match as_float(&count) {
        Some(_) => size(&count)?,
        None => return fail("batch needs a number"),
    };
    let mut out = Grow::default();
    let mut row = Grow::default();
    let mut held = 0;
    for item in of.items()? {
        if held == count {
            out.push(std::mem::take(&mut row).into_list()?)?;
            held = 0;
        }
        row.push(item)?;
        held = held.saturating_add(1);
    }
    if held > 0 {
        if let Some(fill) = fill {
            for _ in held..count {
                row.push(fill.clone())?;
            }
        }
        out.push(row.into_list()?)?;
    }
    out.into_iter(None)
}

fn slices(of: &Value, args: Args) -> R<Value> {
    let [count, fill] = args.bind("slice", ["slices", "fill_with"], 1)?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let count = size(&count.unwrap_or(Value::None))?;
    let items = of.items()?;
    let mut out = Grow::default();
    if count == 0 {
        return fail("integer division or modulo by zero");
    }
    let (each, extra) = (
        items.len().checked_div(count).unwrap_or(0),
        items.len().checked_rem(count).unwrap_or(0),
    );
    let mut items = items.into_iter();
    for slice in 0..count {
        let mut row = Grow::default();
        for item in items
            .by_ref()
            .take(each.saturating_add(usize::from(slice < extra)))
        {
            row.push(item)?;
        }
        if let Some(fill) = &fill
            && slice >= extra
        {
            row.push(fill.clone())?;
        }
        out.push(row.into_list()?)?;
    }
    out.into_iter(None)
}

fn reverse(of: &Value) -> R<Value> {
    match of {
        Value::Str(text) => {
            let mut out = super::meter::Buf::default();
            for c in text.as_str().chars().rev() {
                out.push(c)?;
            }
            super::strings::keep(text, out.as_str())
        }
        Value::Iter(_) => {
            let mut items = of.items()?;
            items.reverse();
            Value::list(items)
        }
        Value::None | Value::Int(_) | Value::Bool(_) | Value::Float(_) => {
            fail("argument must be iterable")
        }
        _ => {
            let mut items = of.items()?;
            items.reverse();
            Iter::value(items, None)
        }
    }
}

/// A whole number without its last digits, half to even.
fn rounded(value: i128, digits: u32) -> R<Value> {
    let Some(unit) = 10_i128.checked_pow(digits) else {
        return Ok(Value::Int(0));
    };
    let (below, rest) = (value.div_euclid(unit), value.rem_euclid(unit));
    let up = match rest.cmp(&unit.saturating_sub(rest)) {
        Ordering::Less => 0,
        Ordering::Equal => below.rem_euclid(2),
        Ordering::Greater => 1,
    };
    match below.saturating_add(up).checked_mul(unit) {
        Some(value) => Ok(Value::Int(value)),
        None => fail("an integer beyond 128 bits is not supported"),
    }
}

fn round(of: &Value, args: Args) -> R<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let method = method.unwrap_or(Value::text("common")?);
    let method = text(&method)?.as_str();
    let precision = precision.unwrap_or(Value::Int(0)).index()?;
    let Ok(precision) = i32::try_from(precision.clamp(-400, 400)) else {
        return fail("a precision out of range");
    };
    let Some(value) = as_float(of) else {
        check_defined(of)?;
        return fail(format!(
            "type {} doesn't define __round__ method",
            of.type_name()
        ));
    };
    match method {
        "common" => match (of.as_int(), precision) {
            (Some(whole), 0..) => Ok(Value::Int(whole)),
            (Some(whole), _) => rounded(whole, precision.unsigned_abs()),
            (None, ..0) => match value.fract() == 0.0 {
                true => {
                    let whole = rounded(
                        truncated(value)?.as_int().unwrap_or(0),
                        precision.unsigned_abs(),
                    )?;
                    Ok(Value::Float(as_float(&whole).unwrap_or(value)))
                }
                false => fail("a negative precision is not supported"),
            },
            (None, precision) => {
                if !value.is_finite() {
                    return Ok(Value::Float(value));
                }
                // the exact decimal digits, half to even, as Python rounds
                spend((precision.unsigned_abs() as usize).saturating_add(40))?;
                let digits = precision.unsigned_abs() as usize;
                let text = format!("{value:.digits$}");
                Ok(Value::Float(text.parse().unwrap_or(value)))
            }
        },
        "ceil" | "floor" => {
            let Some(scale) = 10_i128.checked_pow(precision.unsigned_abs()) else {
                return fail("a precision of this size is not supported");
            };
            let scale = match precision < 0 {
                true => Value::Float(1.0 / scale as f64),
                false => Value::Int(scale),
            };
            let scaled = binary(Binary::Mul, of, &scale)?;
            let whole = match scaled {
                Value::Float(f) if method == "ceil" => truncated(f.ceil())?,
                Value::Float(f) => truncated(f.floor())?,
                whole => whole,
            };
            binary(Binary::Div, &whole, &scale)
        }
        _ => fail("method must be common, ceil or floor"),
    }
}

fn first(of: &Value) -> R<Value> {
    let found = match of {
        Value::Iter(iter) => iter.next()?,
        Value::Str(text) => match text.as_str().chars().next() {
            Some(c) => Some(Value::text(c.encode_utf8(&mut [0; 4]))?),
            None => None,
        },
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            items.items.first().cloned()
        }
        _ => of.items()?.into_iter().next(),
    };
    found.map_or_else(|| Value::lacking("No first item, sequence was empty."), Ok)
}

fn last(of: &Value) -> R<Value> {
    let found = match of {
        Value::Iter(_) => {
            return fail(format!("'{}' object is not reversible", of.type_name()));
        }
        Value::Str(text) => match text.as_str().chars().next_back() {
            Some(c) => Some(Value::text(c.encode_utf8(&mut [0; 4]))?),
            None => None,
        },
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            items.items.last().cloned()
        }
        _ => of.items()?.pop(),
    };
    found.map_or_else(|| Value::lacking("No last item, sequence was empty."), Ok)
}

/// Any item: Python's `random.choice` promises no more.
fn random(of: &Value) -> R<Value> {
    let items = match of {
        Value::Iter(_) | Value::Dict(_) | Value::View(..) => {
            return fail("random of this object is not supported");
        }
        _ => of.items()?,
    };
    let chance = std::hash::RandomState::new().build_hasher().finish();
    let count = items.len().max(1) as u64;
    let at = usize::try_from(chance.checked_rem(count).unwrap_or(0)).unwrap_or(0);
    let found = items.into_iter().nth(at);
    found.map_or_else(|| Value::lacking("No random item, sequence was empty."), Ok)
}

pub(super) fn apply_filter(renderer: &Renderer, name: &str, of: &Value, args: Args) -> R<Value> {
    match name {
        "map" => return map(renderer, of, args),
        "select" => return select(renderer, of, args, true, false),
        "reject" => return select(renderer, of, args, false, false),
        "selectattr" => return select(renderer, of, args, true, true),
        "rejectattr" => return select(renderer, of, args, false, true),
        "sort" => return sort(renderer, of, args),
        "dictsort" => return dictsort(of, args),
        "groupby" => return groupby(renderer, of, args),
        "unique" => return unique(renderer, of, args),
        "min" => return extreme(renderer, of, args, false),
        "max" => return extreme(renderer, of, args, true),
        "sum" => return sum(renderer, of, args),
        "batch" => return batch(of, args),
        "slice" => return slices(of, args),
        "round" => return round(of, args),
        "tojson" => return json::filter(of, args),
        "default" | "d" => {
            let [otherwise, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let replaced =
                matches!(of, Value::Undefined(_)) || (is_true(&boolean) && !of.is_true());
            return match (replaced, otherwise) {
                (false, _) => Ok(of.clone()),
                (true, Some(otherwise)) => Ok(otherwise),
                (true, None) => Value::text(""),
            };
        }
        "attr" => {
            let [attribute] = args.bind(name, ["name"], 1)?;
            let attribute = attribute.unwrap_or(Value::None);
            let attribute = text(&attribute)?;
            let found = renderer.real_attribute(of, attribute.as_str())?;
            return found.map_or_else(|| Value::undefined(attribute.as_str()), Ok);
        }
        "join" => {
            let [separator, attribute] = args.bind(name, ["d", "attribute"], 0)?;
            let separator = separator.map_or(Value::text(""), Ok)?.to_text()?;
            let attribute = attribute.filter(|a| !matches!(a, Value::None));
            let mut items = of.items()?;
            if attribute.is_some() {
                let getter = Getter::new(attribute, None, false)?;
                for item in &mut items {
                    *item = getter.get(renderer, item)?;
                }
            }
            return super::strings::join(separator.as_str(), &items, false);
        }
        _ => {}
    }
    if text_filters::is_text_filter(name) {
        return text_filters::apply(name, of, args);
    }
    if matches!(name, "urlize" | "wordwrap") {
        return fail(format!("the filter '{name}' is not supported"));
    }
    args.none(name)?;
    match name {
        "abs" => match (of, of.as_int()) {
            (Value::Float(f), _) => Ok(Value::Float(f.abs())),
            (_, Some(i)) if i < 0 => negative(of, true),
            (_, Some(i)) => Ok(Value::Int(i)),
            _ => {
                check_defined(of)?;
                fail(format!("bad operand type for abs(): '{}'", of.type_name()))
            }
        },
        "length" | "count" => Ok(Value::Int(of.len()? as i128)),
        "list" => Value::list(of.items()?),
        "first" => first(of),
        "last" => last(of),
        "random" => random(of),
        "reverse" => reverse(of),
        "items" => match of {
            Value::Undefined(_) => Iter::value(Vec::new(), None),
            Value::Dict(dict) => {
                let items = Value::View(ViewKind::Items, dict.clone()).items()?;
                Iter::value(items, None)
            }
            _ => {
                let error = super::meter::error("Can only get item pairs from a mapping.");
                Iter::value(Vec::new(), Some(error))
            }
        },
        _ => fail(format!("the filter '{name}' is not supported")),
    }
}
