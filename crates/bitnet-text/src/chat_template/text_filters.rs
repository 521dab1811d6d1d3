//! Jinja's filters on texts.
//!
//! Invariant: as in `strings.rs`.

use super::args::{Args, is_true, size, text};
use super::format::percent;
use super::meter::{Buf, R, fail, spend, spend_bytes};
use super::methods::soft;
use super::numbers::{as_float, truncated};
use super::strings::{capitalize, justify, keep, lines_of, replace, strip};
use super::text::escape_into;
use super::unicode::{is_space, is_word};
use super::value::{Dict, Text, Value, check_defined};
use std::rc::Rc;

pub(super) fn is_text_filter(name: &str) -> bool {
    matches!(
        name,
        "capitalize"
            | "center"
            | "e"
            | "escape"
            | "filesizeformat"
            | "float"
            | "forceescape"
            | "format"
            | "indent"
            | "int"
            | "lower"
            | "pprint"
            | "replace"
            | "safe"
            | "string"
            | "striptags"
            | "title"
            | "trim"
            | "truncate"
            | "upper"
            | "urlencode"
            | "wordcount"
            | "xmlattr"
    )
}

fn escape(of: &Value) -> R<Value> {
    if let Value::Str(text) = of
        && text.is_markup()
    {
        return Ok(of.clone());
    }
    let mut out = Buf::default();
    escape_into(of.to_text()?.as_str(), &mut out)?;
    Text::markup(out.as_str()).map(Value::Str)
}

/// Jinja's `title`: words begin after white space, hyphens and opening brackets.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    let is_gap = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    while !rest.is_empty() {
        let end = rest.find(is_gap).unwrap_or(rest.len());
        let (word, more) = rest.split_at(end);
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
        let gap = more.find(|c| !is_gap(c)).unwrap_or(more.len());
        out.push_str(&more[..gap]);
        rest = &more[gap..];
    }
    out
}

fn indent(of: &Value, args: Args) -> R<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let of = text(of)?;
    let mut indention = Buf::default();
    match width.unwrap_or(Value::Int(4)) {
        Value::Str(width) => indention.push_str(width.as_str())?,
        width => indention.push_times(" ", size(&width)?)?,
    }
    let mut source = Buf::default();
    source.push_str(of.as_str())?;
    source.push('\n')?;
    let (lines, _charge) = lines_of(source.as_str(), false)?;
    let mut out = Buf::default();
    if is_true(&first) {
        out.push_str(indention.as_str())?;
    }
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n')?;
            if is_true(&blank) || !line.is_empty() {
                out.push_str(indention.as_str())?;
            }
        }
        out.push_str(line)?;
    }
    keep(of, out.as_str())
}

fn truncate(of: &Value, args: Args) -> R<Value> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, killwords, end, leeway] = args.bind("truncate", names, 0)?;
    let of = text(of)?;
    let end = end.map_or(Value::text("..."), Ok)?;
    let end = text(&end)?;
    let length = length.unwrap_or(Value::Int(255)).index()?;
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => leeway.index()?,
    };
    if length < end.chars() as i128 || leeway < 0 {
        return fail(format!("expected length >= {}, got {length}", end.chars()));
    }
    if of.chars() as i128 <= length.saturating_add(leeway) {
        return Ok(Value::Str(of.clone()));
    }
    if of.is_markup() || end.is_markup() {
        return fail("cutting a text that is marked as safe is not supported");
    }
    let kept = usize::try_from(length)
        .unwrap_or(0)
        .saturating_sub(end.chars());
    let kept = &of.as_str()[..of.offset(kept)?];
    let kept = match is_true(&killwords) {
        true => kept,
        false => kept.rsplit_once(' ').map_or(kept, |(before, _)| before),
    };
    let mut out = Buf::default();
    out.push_str(kept)?;
    out.push_str(end.as_str())?;
    Text::from_buf(out).map(Value::Str)
}

fn urlquote(of: &Value, for_query: bool, out: &mut Buf) -> R<()> {
    for byte in of.to_text()?.as_str().bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                out.push(char::from(byte))?;
            }
            b'/' if !for_query => out.push('/')?,
            b' ' if for_query => out.push('+')?,
            byte => out.push_str(&format!("%{byte:02X}"))?,
        }
    }
    Ok(())
}

fn urlencode(of: &Value) -> R<Value> {
    let mut out = Buf::default();
    let pairs = match of {
        Value::Dict(dict) => dict.entries().to_vec(),
        other if other.is_iterable() && !matches!(other, Value::Str(_)) => {
            let mut pairs = Vec::new();
            for item in other.items()? {
                let pair = item.items()?;
                let [key, value] = pair.as_slice() else {
                    return fail("pairs of a name and a value are expected");
                };
                pairs.push((key.clone(), value.clone()));
            }
            pairs
        }
        other => {
            urlquote(other, false, &mut out)?;
            return Text::from_buf(out).map(Value::Str);
        }
    };
    for (i, (key, value)) in pairs.iter().enumerate() {
        spend(1)?;
        out.push_str(if i > 0 { "&" } else { "" })?;
        urlquote(key, true, &mut out)?;
        out.push('=')?;
        urlquote(value, true, &mut out)?;
    }
    Text::from_buf(out).map(Value::Str)
}

fn xmlattr(of: &Value, args: Args) -> R<Value> {
    let [autospace] = args.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = of else {
        check_defined(of)?;
        return fail(format!(
            "'{}' object has no attribute 'items'",
            of.type_name()
        ));
    };
    let mut out = Buf::default();
    for (key, value) in dict.entries() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let key = text(key)?.as_str();
        if key.contains(|c: char| c.is_ascii_whitespace() || matches!(c, '\x0b' | '/' | '>' | '='))
        {
            return fail(format!("Invalid character in attribute name: '{key}'"));
        }
        if !out.as_str().is_empty() || autospace.as_ref().is_none_or(Value::is_true) {
            out.push(' ')?;
        }
        escape_into(key, &mut out)?;
        out.push_str("=\"")?;
        if let Value::Str(text) = escape(value)? {
            out.push_str(text.as_str())?;
        }
        out.push('"')?;
    }
    Text::from_buf(out).map(Value::Str)
}

fn filesize(of: &Value, args: Args) -> R<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"], 0)?;
    let bytes = match to_float(of)? {
        Some(bytes) => bytes,
        None => return fail("filesizeformat needs a number"),
    };
    let (base, units) = match is_true(&binary) {
        true => (
            1024.0,
            ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"],
        ),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    if bytes == 1.0 {
        return Value::text("1 Byte");
    }
    if bytes < base {
        let mut out = Buf::default();
        truncated(bytes)?.print(&mut out)?;
        out.push_str(" Bytes")?;
        return Text::from_buf(out).map(Value::Str);
    }
    let mut unit: f64 = base;
    let mut name = "";
    for next in units {
        (unit, name) = (unit * base, next);
        if bytes < unit {
            break;
        }
    }
    Value::text(&format!("{:.1} {name}", base * bytes / unit))
}

/// The digits of a literal without its underscores; nothing if they are misplaced.
fn digits(text: &str) -> Option<String> {
    let misplaced = text.starts_with('_') || text.ends_with('_') || text.contains("__");
    (!misplaced).then(|| text.replace('_', ""))
}

/// Python's `float` of a text.
fn parse_float(text: &str) -> R<Option<f64>> {
    spend_bytes(text.len())?;
    let text = text.trim_matches(is_space);
    if !text.is_ascii() && text.chars().any(super::unicode::is_decimal) {
        return fail("numbers in other digits are not supported");
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let lower = unsigned.to_ascii_lowercase();
    if matches!(lower.as_str(), "inf" | "infinity" | "nan") {
        let value = if lower == "nan" {
            f64::NAN
        } else {
            f64::INFINITY
        };
        return Ok(Some(if text.starts_with('-') { -value } else { value }));
    }
    let number = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-' | '_');
    let between = |part: &str| part.is_empty() || digits(part).is_some();
    if !unsigned.chars().all(number) || !unsigned.split(['.', 'e', 'E', '+', '-']).all(between) {
        return Ok(None);
    }
    Ok(text.replace('_', "").parse().ok())
}

/// Python's `float`; nothing if it is a `TypeError` or a `ValueError`.
fn to_float(of: &Value) -> R<Option<f64>> {
    check_defined(of)?;
    match of {
        Value::Str(text) => parse_float(text.as_str()),
        other => Ok(as_float(other)),
    }
}

/// Python's `int` of a text; nothing if it is no number of this base.
fn parse_int(text: &str, base: i128) -> R<Option<i128>> {
    spend_bytes(text.len())?;
    let text = text.trim_matches(is_space);
    if !text.is_ascii() && text.chars().any(super::unicode::is_decimal) {
        return fail("numbers in other digits are not supported");
    }
    let negative = text.starts_with('-');
    let mut body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefix = match body.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => Some(16),
        Some("0o") => Some(8),
        Some("0b") => Some(2),
        _ => None,
    };
    let radix = match (base, prefix) {
        (0, Some(radix)) => radix,
        (0, None) => 10,
        (2..=36, _) => u32::try_from(base).unwrap_or(10),
        _ => return Ok(None),
    };
    if prefix == Some(radix) {
        body = body.get(2..).unwrap_or_default();
        body = body.strip_prefix('_').unwrap_or(body);
    } else if base == 0 && body.starts_with('0') && !body.trim_matches(['0', '_']).is_empty() {
        return Ok(None);
    }
    let Some(body) = digits(body) else {
        return Ok(None);
    };
    if body.is_empty() || !body.chars().all(|c| c.is_digit(radix)) {
        return Ok(None);
    }
    match i128::from_str_radix(&body, radix) {
        Ok(value) => Ok(Some(if negative {
            value.wrapping_neg()
        } else {
            value
        })),
        Err(_) => fail("an integer beyond 128 bits is not supported"),
    }
}

fn to_int(of: &Value, args: Args) -> R<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    let default = default.unwrap_or(Value::Int(0));
    check_defined(of)?;
    let whole = match of {
        Value::Str(text) => parse_int(text.as_str(), base.unwrap_or(Value::Int(10)).index()?)?,
        other => other.as_int(),
    };
    if let Some(whole) = whole {
        return Ok(Value::Int(whole));
    }
    match to_float(of)? {
        // infinity is the default only for texts, which are read again as floats
        Some(value) if value.is_infinite() && matches!(of, Value::Float(_)) => truncated(value),
        Some(value) if value.is_nan() || value.is_infinite() => Ok(default),
        Some(value) => truncated(value),
        None => Ok(default),
    }
}

/// `pprint` of what fits on a line.
fn pprint(of: &Value) -> R<Value> {
    let mut out = Buf::default();
    of.repr(&mut out, 0)?;
    let text = Text::from_buf(out)?;
    let is_plain = !matches!(of, Value::Dict(_)) && !text.as_str().contains('{');
    match is_plain && text.chars() < 80 {
        true => Ok(Value::Str(text)),
        false => fail("pprint of this object is not supported"),
    }
}

/// Markup without its tags and comments.
fn striptags(of: &Value) -> R<Value> {
    let source = of.to_text()?;
    let mut text = source.as_str();
    spend_bytes(text.len().saturating_mul(4))?;
    let mut out = Buf::default();
    let mut kept = String::new();
    // comments first, then tags, as markupsafe does
    while let Some(start) = text.find("<!--") {
        let Some(end) = text[start..].find("-->") else {
            break;
        };
        kept.push_str(&text[..start]);
        text = &text[start.saturating_add(end).saturating_add(3)..];
    }
    kept.push_str(text);
    let mut rest = kept.as_str();
    let mut plain = String::new();
    while let Some(start) = rest.find('<') {
        let Some(end) = rest[start..].find('>') else {
            break;
        };
        plain.push_str(&rest[..start]);
        rest = &rest[start.saturating_add(end).saturating_add(1)..];
    }
    plain.push_str(rest);
    for (i, word) in plain
        .split(is_space)
        .filter(|word| !word.is_empty())
        .enumerate()
    {
        out.push_str(if i > 0 { " " } else { "" })?;
        out.push_str(word)?;
    }
    let text = out.as_str();
    for (name, plain) in [
        ("&amp;", '&'),
        ("&lt;", '<'),
        ("&gt;", '>'),
        ("&#39;", '\''),
        ("&#34;", '"'),
        ("&quot;", '"'),
    ] {
        let _ = plain;
        if text.contains(name) {
            return fail("striptags of character references is not supported");
        }
    }
    match text.contains('&') {
        true => fail("striptags of character references is not supported"),
        false => Text::from_buf(out).map(Value::Str),
    }
}

pub(super) fn apply(name: &str, of: &Value, args: Args) -> R<Value> {
    match name {
        "indent" => return indent(of, args),
        "truncate" => return truncate(of, args),
        "xmlattr" => return xmlattr(of, args),
        "filesizeformat" => return filesize(of, args),
        "int" => return to_int(of, args),
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            return Ok(match to_float(of)? {
                Some(value) => Value::Float(value),
                None => default.unwrap_or(Value::Float(0.0)),
            });
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let of = soft(of)?;
            return keep(&of, strip(of.as_str(), chars.as_ref(), true, true)?);
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = size(&width.unwrap_or(Value::Int(80)))?;
            return justify(&soft(of)?, width, " ", '^');
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let count = match count {
                None | Some(Value::None) => None,
                Some(count) => usize::try_from(count.index()?).ok(),
            };
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let (of, old, new) = (of.to_text()?, old.to_text()?, new.to_text()?);
            let replaced = replace(of.as_str(), old.as_str(), new.as_str(), count)?;
            return Ok(Value::Str(replaced));
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return fail("can't handle positional and keyword arguments at the same time");
            }
            let mut named = Dict::default();
            for (name, value) in &args.named {
                named.insert(Value::text(name)?, value.clone())?;
            }
            let values = match args.named.is_empty() {
                true => Value::tuple(args.positional)?,
                false => Value::Dict(Rc::new(named)),
            };
            return percent(&soft(of)?, &values);
        }
        _ => args.none(name)?,
    }
    let cased = |change: fn(&str) -> String| {
        let of = soft(of)?;
        spend_bytes(of.as_str().len().saturating_mul(3))?;
        let _held = super::meter::Charge::new(of.as_str().len().saturating_mul(3))?;
        keep(&of, &change(of.as_str()))
    };
    match name {
        "lower" => cased(str::to_lowercase),
        "upper" => cased(str::to_uppercase),
        "capitalize" => cased(capitalize),
        "title" => cased(title),
        "e" | "escape" => escape(of),
        "forceescape" => {
            let mut out = Buf::default();
            escape_into(of.to_text()?.as_str(), &mut out)?;
            Text::markup(out.as_str()).map(Value::Str)
        }
        "safe" => Text::markup(of.to_text()?.as_str()).map(Value::Str),
        "string" => soft(of).map(Value::Str),
        "urlencode" => urlencode(of),
        "pprint" => pprint(of),
        "striptags" => striptags(of),
        "wordcount" => {
            let of = soft(of)?;
            spend_bytes(of.as_str().len().saturating_mul(4))?;
            let words = of.as_str().split(|c| !is_word(c));
            Ok(Value::Int(
                words.filter(|word| !word.is_empty()).count() as i128
            ))
        }
        _ => fail(format!("the filter '{name}' is not supported")),
    }
}
