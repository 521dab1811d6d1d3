//! Filters that order or group items, and the attributes that they go by.
//!
//! Invariant: order is that of Python's `<`, and items that it does not tell apart keep theirs.

use super::args::{Args, is_true};
use super::meter::{Charge, Ended, R, fail, spend, spend_bytes};
use super::render::Renderer;
use super::value::{Grow, Seen, Seq, Value, ViewKind, check_defined};
use std::cmp::Ordering;

/// What an attribute filter looks up in an item.
pub(super) struct Getter {
    parts: Vec<Value>,
    default: Option<Value>,
    fold: bool,
}

fn parts_of(attribute: &str) -> R<Vec<Value>> {
    spend(attribute.len())?;
    let part = |part: &str| {
        let is_digits = !part.is_empty() && part.chars().all(super::unicode::is_digit);
        match (is_digits, part.parse::<i128>()) {
            (true, Ok(at)) => Ok(Value::Int(at)),
            (true, Err(_)) => fail("this number as an attribute is not supported"),
            (false, _) => Value::text(part),
        }
    };
    attribute.split('.').map(part).collect()
}

impl Getter {
    pub(super) fn new(attribute: Option<Value>, default: Option<Value>, fold: bool) -> R<Self> {
        let parts = match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(Value::Str(name)) => parts_of(name.as_str())?,
            Some(other) => vec![other],
        };
        Ok(Self {
            parts,
            // None is no default
            default: default.filter(|value| !matches!(value, Value::None)),
            fold,
        })
    }

    pub(super) fn get(&self, renderer: &Renderer, item: &Value) -> R<Value> {
        let mut value = item.clone();
        for part in &self.parts {
            value = renderer.item(&value, part)?;
            if let (Value::Undefined(_), Some(default)) = (&value, &self.default) {
                value = default.clone();
            }
        }
        match self.fold {
            true => ignore_case(value),
            false => Ok(value),
        }
    }
}

fn ignore_case(value: Value) -> R<Value> {
    match &value {
        Value::Str(text) => {
            spend_bytes(text.as_str().len().saturating_mul(3))?;
            Value::text(&text.as_str().to_lowercase())
        }
        _ => Ok(value),
    }
}

/// Sorts stably by Python's `<`, keys beside their items.
pub(super) fn sorted(items: Vec<(Value, Value)>, reverse: bool) -> R<Vec<Value>> {
    let mut items = items;
    if reverse {
        items.reverse();
    }
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        let mut runs = items.into_iter().peekable();
        while runs.peek().is_some() {
            let left: Vec<_> = runs.by_ref().take(width).collect();
            let right: Vec<_> = runs.by_ref().take(width).collect();
            merge(left, right, &mut merged)?;
        }
        items = merged;
        width = width.saturating_mul(2);
    }
    if reverse {
        items.reverse();
    }
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

type Keyed = (Value, Value);

fn merge(left: Vec<Keyed>, right: Vec<Keyed>, out: &mut Vec<Keyed>) -> R<()> {
    let mut left = left.into_iter().peekable();
    let mut right = right.into_iter().peekable();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        spend(1)?;
        let takes_right = match b.0.compare(&a.0, "<")? {
            None => return fail("sorting NaN is not supported"),
            Some(order) => order == Ordering::Less,
        };
        out.extend(if takes_right {
            right.next()
        } else {
            left.next()
        });
    }
    out.extend(left);
    out.extend(right);
    Ok(())
}

/// Items with their keys, charged as long as they are held.
fn keyed(items: Vec<Value>, key: impl Fn(&Value) -> R<Value>) -> R<(Vec<Keyed>, Charge)> {
    let charge = Charge::new(
        items
            .len()
            .saturating_mul(6)
            .saturating_mul(size_of::<Value>()),
    )?;
    let pair = |item: Value| -> R<Keyed> { Ok((key(&item)?, item)) };
    Ok((items.into_iter().map(pair).collect::<R<_>>()?, charge))
}

pub(super) fn sort(renderer: &Renderer, of: &Value, args: Args) -> R<Value> {
    let [reverse, case_sensitive, attribute] =
        args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
    let fold = !is_true(&case_sensitive);
    let mut getters = Vec::new();
    match attribute {
        Some(Value::Str(names)) => {
            for name in names.as_str().split(',') {
                getters.push(Getter::new(Some(Value::text(name)?), None, fold)?);
            }
        }
        other => getters.push(Getter::new(other, None, fold)?),
    }
    let key = |item: &Value| {
        let mut keys = Grow::default();
        for getter in &getters {
            keys.push(getter.get(renderer, item)?)?;
        }
        keys.into_list()
    };
    let (items, _charge) = keyed(of.items()?, key)?;
    Value::list(sorted(items, is_true(&reverse))?)
}

pub(super) fn dictsort(of: &Value, args: Args) -> R<Value> {
    let names = ["case_sensitive", "by", "reverse"];
    let [case_sensitive, by, reverse] = args.bind("dictsort", names, 0)?;
    let place = match &by {
        None => 0,
        Some(Value::Str(by)) if by.as_str() == "key" => 0,
        Some(Value::Str(by)) if by.as_str() == "value" => 1,
        _ => return fail("You can only sort by either \"key\" or \"value\""),
    };
    let Value::Dict(dict) = of else {
        check_defined(of)?;
        return fail(format!(
            "'{}' object has no attribute 'items'",
            of.type_name()
        ));
    };
    let pairs = Value::View(ViewKind::Items, dict.clone()).items()?;
    let key = |pair: &Value| {
        let Value::Tuple(pair) = pair else {
            return Ok(Value::None);
        };
        let value = pair.items.get(place).cloned().unwrap_or(Value::None);
        match is_true(&case_sensitive) {
            true => Ok(value),
            false => ignore_case(value),
        }
    };
    let (items, _charge) = keyed(pairs, key)?;
    Value::list(sorted(items, is_true(&reverse))?)
}

pub(super) fn groupby(renderer: &Renderer, of: &Value, args: Args) -> R<Value> {
    let names = ["attribute", "default", "case_sensitive"];
    let [attribute, default, case_sensitive] = args.bind("groupby", names, 1)?;
    let folded = Getter::new(
        attribute.clone(),
        default.clone(),
        !is_true(&case_sensitive),
    )?;
    let plain = Getter::new(attribute, default, false)?;
    let (items, _charge) = keyed(of.items()?, |item| folded.get(renderer, item))?;
    let mut groups: Vec<(Value, Grow)> = Vec::new();
    for item in sorted(items, false)? {
        let key = folded.get(renderer, &item)?;
        match groups.last_mut() {
            Some((last, group)) if last.equals(&key)? => group.push(item)?,
            _ => {
                let mut group = Grow::default();
                group.push(item)?;
                groups.push((key, group));
            }
        }
    }
    let mut out = Grow::default();
    for (key, group) in groups {
        let (items, _charge) = group.into_parts()?;
        // the name shown is that of the first item
        let shown = match items.first() {
            Some(first) if folded.fold => plain.get(renderer, first)?,
            _ => key,
        };
        let pair = Seq::new(vec![shown, Value::list(items)?])?;
        out.push(Value::Group(pair))?;
    }
    out.into_list()
}

pub(super) fn unique(renderer: &Renderer, of: &Value, args: Args) -> R<Value> {
    let names = ["case_sensitive", "attribute"];
    let [case_sensitive, attribute] = args.bind("unique", names, 0)?;
    let getter = Getter::new(attribute, None, !is_true(&case_sensitive))?;
    let mut seen = Seen::default();
    let mut out = Grow::default();
    let mut ends = None;
    for item in of.items()? {
        let fresh = getter
            .get(renderer, &item)
            .and_then(|key| seen.insert(&key));
        match fresh {
            Ok(true) => out.push(item)?,
            Ok(false) => {}
            Err(e) if e.kind == Ended::Limit => return Err(e),
            Err(e) => {
                ends = Some(e);
                break;
            }
        }
    }
    out.into_iter(ends)
}

/// `min` and `max`.
pub(super) fn extreme(renderer: &Renderer, of: &Value, args: Args, most: bool) -> R<Value> {
    let names = ["case_sensitive", "attribute"];
    let [case_sensitive, attribute] = args.bind("min", names, 0)?;
    let getter = Getter::new(attribute, None, !is_true(&case_sensitive))?;
    let mut best: Option<(Value, Value)> = None;
    for item in of.items()? {
        let key = getter.get(renderer, &item)?;
        let better = match &best {
            None => true,
            Some((last, _)) if most => key.compare(last, ">")? == Some(Ordering::Greater),
            Some((last, _)) => key.compare(last, "<")? == Some(Ordering::Less),
        };
        if better {
            best = Some((key, item));
        }
    }
    match best {
        Some((_, item)) => Ok(item),
        None => Value::lacking("No aggregated item, sequence was empty."),
    }
}
