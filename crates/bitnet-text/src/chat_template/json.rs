//! JSON in and out, as Python's `json` module writes it.
//!
//! Invariant: a number written is the number read, and keys keep their order.

use super::args::{Args, is_true, text};
use super::meter::{Buf, R, VALUE_DEPTH, fail, over, spend};
use super::printing::float_repr;
use super::value::{Dict, Grow, Text, Value};
use std::rc::Rc;

/// A value of the context.
pub(super) fn from_json(json: &serde_json::Value, depth: usize) -> R<Value> {
    if depth > VALUE_DEPTH {
        return over(format!(
            "the nesting limit: a value of the conversation is nested deeper than {VALUE_DEPTH} levels"
        ));
    }
    Ok(match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(b) => Value::Bool(*b),
        serde_json::Value::Number(number) => match (number.as_i128(), number.as_f64()) {
            (Some(whole), _) => Value::Int(whole),
            (None, Some(float)) => Value::Float(float),
            (None, None) => return fail(format!("the number {number} is not supported")),
        },
        serde_json::Value::String(text) => Value::text(text)?,
        serde_json::Value::Array(items) => {
            let mut out = Grow::default();
            for item in items {
                out.push(from_json(item, depth.saturating_add(1))?)?;
            }
            out.into_list()?
        }
        serde_json::Value::Object(entries) => {
            let mut dict = Dict::default();
            for (key, value) in entries {
                dict.insert(
                    Value::text(key)?,
                    from_json(value, depth.saturating_add(1))?,
                )?;
            }
            Value::Dict(Rc::new(dict))
        }
    })
}

struct Style {
    ascii: bool,
    /// The text of one level.
    indent: Option<Text>,
    comma: Text,
    colon: Text,
    sort: bool,
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(super) fn filter(of: &Value, args: Args) -> R<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sort] = args.bind("tojson", names, 0)?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text),
        Some(width) => {
            let mut out = Buf::default();
            out.push_times(" ", super::args::size(&width)?)?;
            Some(Text::from_buf(out)?)
        }
    };
    let (comma, colon) = match separators {
        None | Some(Value::None) => {
            let comma = if indent.is_some() { "," } else { ", " };
            (Text::new(comma)?, Text::new(": ")?)
        }
        Some(pair) => match pair.items()?.as_slice() {
            [comma, colon] => (text(comma)?.clone(), text(colon)?.clone()),
            _ => return fail("separators must be two texts"),
        },
    };
    let style = Style {
        ascii: is_true(&ascii),
        indent,
        comma,
        colon,
        sort: is_true(&sort),
    };
    let mut out = Buf::default();
    style.write(of, 0, &mut out)?;
    Text::from_buf(out).map(Value::Str)
}

impl Style {
    fn line(&self, depth: usize, out: &mut Buf) -> R<()> {
        if let Some(indent) = &self.indent {
            out.push('\n')?;
            out.push_times(indent.as_str(), depth)?;
        }
        Ok(())
    }

    fn write(&self, value: &Value, depth: usize, out: &mut Buf) -> R<()> {
        spend(1)?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(true) => out.push_str("true"),
            Value::Bool(false) => out.push_str("false"),
            Value::Int(i) => out.push_str(&i.to_string()),
            Value::Float(f) => out.push_str(&float(*f)),
            Value::Str(text) => self.text(text.as_str(), out),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                if items.items.is_empty() {
                    return out.push_str("[]");
                }
                out.push('[')?;
                for (i, item) in items.items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(self.comma.as_str())?;
                    }
                    self.line(depth.saturating_add(1), out)?;
                    self.write(item, depth.saturating_add(1), out)?;
                }
                self.line(depth, out)?;
                out.push(']')
            }
            Value::Dict(dict) => self.dict(dict, depth, out),
            other => fail(format!(
                "Object of type {} is not JSON serializable",
                other.type_name()
            )),
        }
    }

    fn dict(&self, dict: &Dict, depth: usize, out: &mut Buf) -> R<()> {
        if dict.entries().is_empty() {
            return out.push_str("{}");
        }
        let order = match self.sort {
            true => sorted_places(dict)?,
            false => (0..dict.entries().len()).collect(),
        };
        out.push('{')?;
        for (i, at) in order.into_iter().enumerate() {
            let Some((key, value)) = dict.entries().get(at) else {
                continue;
            };
            if i > 0 {
                out.push_str(self.comma.as_str())?;
            }
            self.line(depth.saturating_add(1), out)?;
            match key {
                Value::Str(key) => self.text(key.as_str(), out)?,
                Value::None => out.push_str("\"null\"")?,
                Value::Bool(true) => out.push_str("\"true\"")?,
                Value::Bool(false) => out.push_str("\"false\"")?,
                Value::Int(i) => out.push_str(&format!("\"{i}\""))?,
                Value::Float(f) => out.push_str(&format!("\"{}\"", float(*f)))?,
                other => {
                    return fail(format!(
                        "keys must be str, int, float, bool or None, not {}",
                        other.type_name()
                    ));
                }
            }
            out.push_str(self.colon.as_str())?;
            self.write(value, depth.saturating_add(1), out)?;
        }
        self.line(depth, out)?;
        out.push('}')
    }

    fn text(&self, text: &str, out: &mut Buf) -> R<()> {
        out.push('"')?;
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\"")?,
                '\\' => out.push_str("\\\\")?,
                '\n' => out.push_str("\\n")?,
                '\r' => out.push_str("\\r")?,
                '\t' => out.push_str("\\t")?,
                '\x0c' => out.push_str("\\f")?,
                '\x08' => out.push_str("\\b")?,
                c if c < ' ' || (self.ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => out.push(c)?,
            }
        }
        out.push('"')
    }
}

fn float(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() && value > 0.0 => "Infinity".to_owned(),
        value if value.is_infinite() => "-Infinity".to_owned(),
        value => float_repr(value),
    }
}

fn sorted_places(dict: &Dict) -> R<Vec<usize>> {
    let mut pairs = Vec::new();
    for (at, (key, _)) in dict.entries().iter().enumerate() {
        pairs.push((key.clone(), Value::Int(at as i128)));
    }
    let sorted = super::sorting::sorted(pairs, false)?;
    let place = |at: Value| at.as_int().and_then(|at| usize::try_from(at).ok());
    Ok(sorted.into_iter().filter_map(place).collect())
}
