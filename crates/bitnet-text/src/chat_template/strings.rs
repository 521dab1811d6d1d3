//! Python's methods of `str`.
//!
//! Invariant: places and counts are those of characters, and every text is charged while it grows.

use super::args::{Args, size, text};
use super::meter::{Buf, R, fail, spend, spend_bytes};
use super::render::Renderer;
use super::str_format::{format, format_map};
use super::unicode::{
    fold, is_alnum, is_alpha, is_cased, is_decimal, is_digit, is_line_end, is_lower, is_numeric,
    is_printable, is_space, is_title, is_upper, push_title,
};
use super::value::{Grow, Text, Value};

/// Methods that are known and run.
pub(super) const METHODS: [&str; 45] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Appends changed text piece by piece, keeping the mark of a safe text.
fn mapped(of: &Text, step: impl FnOnce(&str) -> String) -> R<Value> {
    // case changes make at most three characters of one
    spend_bytes(of.as_str().len().saturating_mul(8))?;
    let _held = super::meter::Charge::new(of.as_str().len().saturating_mul(3))?;
    keep(of, &step(of.as_str()))
}

/// A text that is marked as safe if another one is.
pub(super) fn keep(of: &Text, text: &str) -> R<Value> {
    match of.is_markup() {
        true => Text::markup(text).map(Value::Str),
        false => Value::text(text),
    }
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::new();
    if let Some(first) = chars.next() {
        push_title(&mut out, first);
    }
    // the rest is part of the word that the first letter begins
    let lower = text.to_lowercase();
    let skipped = text
        .chars()
        .next()
        .map_or(0, |c| c.to_lowercase().map(char::len_utf8).sum());
    out.push_str(lower.get(skipped..).unwrap_or_default());
    out
}

fn title(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut out = String::new();
    let mut within = false;
    // letters of one text and its lower case come in step, except that a sigma may be final
    let mut lowered = lower.chars();
    for c in text.chars() {
        let mut small: String = c.to_lowercase().filter_map(|_| lowered.next()).collect();
        if !within {
            small.clear();
            push_title(&mut small, c);
        }
        out.push_str(&small);
        within = is_cased(c);
    }
    out
}

fn swapcase(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut lowered = lower.chars();
    let mut out = String::new();
    for c in text.chars() {
        let small: String = c.to_lowercase().filter_map(|_| lowered.next()).collect();
        if is_upper(c) || is_title(c) {
            out.push_str(&small);
        } else if is_lower(c) {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

pub(super) fn islower(text: &str) -> bool {
    text.chars().any(is_lower) && !text.chars().any(|c| is_upper(c) || is_title(c))
}

pub(super) fn isupper(text: &str) -> bool {
    text.chars().any(is_upper) && !text.chars().any(|c| is_lower(c) || is_title(c))
}

fn istitle(text: &str) -> bool {
    let (mut any, mut within) = (false, false);
    for c in text.chars() {
        if is_upper(c) || is_title(c) {
            if within {
                return false;
            }
            (within, any) = (true, true);
        } else if is_lower(c) {
            if !within {
                return false;
            }
            any = true;
        } else {
            within = false;
        }
    }
    any
}

/// `strip`, `lstrip` and `rstrip`: white space, or any of the characters.
pub(super) fn strip<'t>(of: &'t str, chars: Option<&Value>, left: bool, right: bool) -> R<&'t str> {
    let wanted = match chars {
        None | Some(Value::None) => None,
        Some(chars) => Some(text(chars)?.as_str()),
    };
    spend_bytes(of.len())?;
    if let Some(wanted) = wanted {
        spend_bytes(
            of.len()
                .saturating_mul((wanted.len() / 8).saturating_add(1)),
        )?;
    }
    let goes = |c: char| wanted.map_or_else(|| is_space(c), |wanted| wanted.contains(c));
    let of = if left {
        of.trim_start_matches(goes)
    } else {
        of
    };
    Ok(if right { of.trim_end_matches(goes) } else { of })
}

pub(super) fn replace(of: &str, old: &str, new: &str, count: Option<usize>) -> R<Text> {
    spend_bytes(of.len())?;
    let mut out = Buf::default();
    let mut left = count.unwrap_or(usize::MAX);
    if old.is_empty() {
        let mut chars = of.chars();
        while left > 0 {
            spend(1)?;
            out.push_str(new)?;
            left = left.saturating_sub(1);
            match chars.next() {
                Some(c) => out.push(c)?,
                None => break,
            }
        }
        out.push_str(chars.as_str())?;
        return Text::from_buf(out);
    }
    let mut rest = of;
    while left > 0
        && let Some(at) = rest.find(old)
    {
        spend(1)?;
        out.push_str(&rest[..at])?;
        out.push_str(new)?;
        rest = &rest[at.saturating_add(old.len())..];
        left = left.saturating_sub(1);
    }
    out.push_str(rest)?;
    Text::from_buf(out)
}

/// Lines as Python ends them.
pub(super) fn lines(of: &str, keep_ends: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = of;
    while let Some(at) = rest.find(is_line_end) {
        let end = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = if rest[at..].starts_with("\r\n") {
            2
        } else {
            end
        };
        out.push(
            &rest[..if keep_ends {
                at.saturating_add(end)
            } else {
                at
            }],
        );
        rest = &rest[at.saturating_add(end)..];
    }
    if !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// As [`lines`], charged.
pub(super) fn lines_of(of: &str, keep_ends: bool) -> R<(Vec<&str>, super::meter::Charge)> {
    spend_bytes(of.len().saturating_mul(4))?;
    let count = of
        .chars()
        .filter(|c| is_line_end(*c))
        .count()
        .saturating_add(1);
    spend(count)?;
    let charge = super::meter::Charge::new(count.saturating_mul(32))?;
    Ok((lines(of, keep_ends), charge))
}

fn split(of: &Text, separator: Option<&Value>, most: usize, from_right: bool) -> R<Value> {
    let text_of = of.as_str();
    spend_bytes(text_of.len())?;
    let mut out = Grow::default();
    let mut left = most;
    let mut rest = text_of;
    match separator {
        None | Some(Value::None) if from_right => {
            rest = rest.trim_end_matches(is_space);
            while !rest.is_empty() {
                let at = match left {
                    0 => 0,
                    _ => rest.rfind(is_space).map_or(0, |at| {
                        at.saturating_add(rest[at..].chars().next().map_or(1, char::len_utf8))
                    }),
                };
                out.push(keep(of, &rest[at..])?)?;
                left = left.saturating_sub(1);
                rest = rest[..at].trim_end_matches(is_space);
            }
        }
        None | Some(Value::None) => {
            rest = rest.trim_start_matches(is_space);
            while !rest.is_empty() {
                let at = match left {
                    0 => rest.len(),
                    _ => rest.find(is_space).unwrap_or(rest.len()),
                };
                out.push(keep(of, &rest[..at])?)?;
                left = left.saturating_sub(1);
                rest = rest[at..].trim_start_matches(is_space);
            }
        }
        Some(separator) => {
            let separator = text(separator)?.as_str();
            if separator.is_empty() {
                return fail("empty separator");
            }
            loop {
                let at = match (left, from_right) {
                    (0, _) => None,
                    (_, true) => rest.rfind(separator),
                    (_, false) => rest.find(separator),
                };
                let Some(at) = at else { break };
                let (piece, more) = match from_right {
                    true => (&rest[at.saturating_add(separator.len())..], &rest[..at]),
                    false => (&rest[..at], &rest[at.saturating_add(separator.len())..]),
                };
                out.push(keep(of, piece)?)?;
                rest = more;
                left = left.saturating_sub(1);
            }
            out.push(keep(of, rest)?)?;
        }
    }
    match from_right {
        true => {
            let (mut items, _charge) = out.into_parts()?;
            items.reverse();
            Value::list(items)
        }
        false => out.into_list(),
    }
}

fn count_of(value: Option<Value>) -> R<Option<usize>> {
    let Some(value) = value else { return Ok(None) };
    let value = value.index()?;
    Ok(match value < 0 {
        true => None,
        false => Some(usize::try_from(value).unwrap_or(usize::MAX)),
    })
}

/// The part of a text between two places, with where it begins; nothing if they are beyond it.
fn between(of: &Text, start: Option<Value>, end: Option<Value>) -> R<Option<(usize, &str)>> {
    let count = of.chars() as i128;
    let place = |value: Option<Value>, otherwise: i128| -> R<i128> {
        let value = match value {
            None | Some(Value::None) => return Ok(otherwise),
            Some(value) => value.index()?,
        };
        Ok(if value < 0 {
            value.saturating_add(count).max(0)
        } else {
            value
        })
    };
    let (start, end) = (place(start, 0)?, place(end, count)?.min(count));
    if start > end {
        return Ok(None);
    }
    let start = usize::try_from(start).unwrap_or(0);
    let end = usize::try_from(end).unwrap_or(0);
    let (from, to) = (of.offset(start)?, of.offset(end)?);
    Ok(Some((start, &of.as_str()[from..to])))
}

/// Whether a text begins or ends with another one or one of several.
fn touches(of: &Text, args: Args, name: &str, begins: bool) -> R<Value> {
    let [what, start, end] = args.bind(name, ["", "", ""], 1)?;
    let what = what.unwrap_or(Value::None);
    let wanted: &[Value] = match &what {
        Value::Tuple(items) => &items.items,
        one => std::slice::from_ref(one),
    };
    spend(wanted.len())?;
    let part = between(of, start, end)?;
    for wanted in wanted {
        let Value::Str(wanted) = wanted else {
            return fail(format!(
                "{name} first arg must be str or a tuple of str, not {}",
                wanted.type_name()
            ));
        };
        let wanted = wanted.as_str();
        spend_bytes(wanted.len())?;
        let Some((_, part)) = part else { continue };
        if (begins && part.starts_with(wanted)) || (!begins && part.ends_with(wanted)) {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn find(of: &Text, args: Args, name: &str) -> R<Value> {
    let [what, start, end] = args.bind(name, ["", "", ""], 1)?;
    let what = what.unwrap_or(Value::None);
    let wanted = text(&what)?.as_str();
    spend_bytes(of.as_str().len())?;
    let found = match between(of, start, end)? {
        None => None,
        Some((first, part)) => {
            let at = match name {
                "find" | "index" => part.find(wanted),
                _ => part.rfind(wanted),
            };
            at.map(|at| first.saturating_add(part[..at].chars().count()))
        }
    };
    match found {
        Some(at) => Ok(Value::Int(at as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => fail("substring not found"),
    }
}

/// Pads to a width; `left` is how many of the missing characters come first.
pub(super) fn justify(of: &Text, width: usize, fill: &str, align: char) -> R<Value> {
    let missing = width.saturating_sub(of.chars());
    let left = match align {
        '<' => 0,
        '>' => missing,
        // as CPython centers
        _ => (missing / 2).saturating_add(missing & width & 1),
    };
    let mut out = Buf::default();
    out.push_times(fill, left)?;
    out.push_str(of.as_str())?;
    out.push_times(fill, missing.saturating_sub(left))?;
    keep(of, out.as_str())
}

fn expand_tabs(of: &Text, width: usize) -> R<Value> {
    let mut out = Buf::default();
    let mut column: usize = 0;
    spend_bytes(of.as_str().len())?;
    for c in of.as_str().chars() {
        match c {
            '\t' if width > 0 => {
                let spaces = width.saturating_sub(column.checked_rem(width).unwrap_or(0));
                out.push_times(" ", spaces)?;
                column = column.saturating_add(spaces);
            }
            '\t' => {}
            c => {
                out.push(c)?;
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column.saturating_add(1)
                };
            }
        }
    }
    keep(of, out.as_str())
}

fn partition(of: &Text, separator: &Value, from_right: bool) -> R<Value> {
    let separator = text(separator)?;
    if separator.as_str().is_empty() {
        return fail("empty separator");
    }
    let text = of.as_str();
    spend_bytes(text.len())?;
    let at = match from_right {
        true => text.rfind(separator.as_str()),
        false => text.find(separator.as_str()),
    };
    let [before, middle, after] = match (at, from_right) {
        (Some(at), _) => [
            &text[..at],
            separator.as_str(),
            &text[at.saturating_add(separator.as_str().len())..],
        ],
        (None, true) => ["", "", text],
        (None, false) => [text, "", ""],
    };
    Value::tuple(vec![keep(of, before)?, keep(of, middle)?, keep(of, after)?])
}

/// `separator.join(items)`
pub(super) fn join(separator: &str, items: &[Value], strict: bool) -> R<Value> {
    let mut out = Buf::default();
    for (i, item) in items.iter().enumerate() {
        spend(1)?;
        if i > 0 {
            out.push_str(separator)?;
        }
        match item {
            Value::Str(text) => out.push_str(text.as_str())?,
            other if strict => {
                return fail(format!(
                    "sequence item {i}: expected str instance, {} found",
                    other.type_name()
                ));
            }
            other => other.print(&mut out)?,
        }
    }
    Text::from_buf(out).map(Value::Str)
}

fn encode(of: &Text, args: Args) -> R<Value> {
    let [encoding, errors] = args.bind("encode", ["encoding", "errors"], 0)?;
    let utf8 = match &encoding {
        None => true,
        Some(name) => matches!(text(name)?.as_str(), "utf-8" | "utf8" | "UTF-8"),
    };
    if !utf8 || errors.is_some() {
        return fail("this encoding is not supported");
    }
    let mut out = Buf::default();
    spend_bytes(of.as_str().len())?;
    for byte in of.as_str().bytes() {
        out.push(char::from(byte))?;
    }
    Text::from_buf(out).map(Value::Bytes)
}

pub(super) fn call(renderer: &Renderer, of: &Text, name: &str, args: Args) -> R<Value> {
    spend_bytes(of.as_str().len())?;
    let this = of.as_str();
    let takes_texts = matches!(
        name,
        "format"
            | "format_map"
            | "join"
            | "replace"
            | "split"
            | "rsplit"
            | "partition"
            | "rpartition"
    );
    if of.is_markup() && takes_texts {
        return fail(format!(
            "{name} of a text that is marked as safe is not supported"
        ));
    }
    let all = |is: fn(char) -> bool| Value::Bool(!this.is_empty() && this.chars().all(is));
    Ok(match name {
        "format" => return format(renderer, of, args),
        "format_map" => return format_map(renderer, of, args),
        "startswith" => return touches(of, args, name, true),
        "endswith" => return touches(of, args, name, false),
        "find" | "index" | "rfind" | "rindex" => return find(of, args, name),
        "encode" => return encode(of, args),
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
            let most = count_of(most)?.unwrap_or(usize::MAX);
            return split(of, separator.as_ref(), most, name == "rsplit");
        }
        "splitlines" => {
            let [ends] = args.bind(name, ["keepends"], 0)?;
            let ends = match ends {
                Some(ends) => ends.index()? != 0,
                None => false,
            };
            let mut out = Grow::default();
            let (found, _charge) = lines_of(this, ends)?;
            for line in found {
                out.push(keep(of, line)?)?;
            }
            return out.into_list();
        }
        "join" => {
            let [items] = args.bind(name, [""], 1)?;
            let items = items.unwrap_or(Value::None);
            return join(this, &items.items()?, true);
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["", "", ""], 2)?;
            let (old, new) = (old.unwrap_or(Value::None), new.unwrap_or(Value::None));
            let count = count_of(count)?;
            let replaced = replace(this, text(&old)?.as_str(), text(&new)?.as_str(), count)?;
            return Ok(Value::Str(replaced));
        }
        "partition" | "rpartition" => {
            let [separator] = args.bind(name, [""], 1)?;
            let separator = separator.unwrap_or(Value::None);
            return partition(of, &separator, name == "rpartition");
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.bind(name, [""], 0)?;
            let kept = strip(this, chars.as_ref(), name != "rstrip", name != "lstrip")?;
            return keep(of, kept);
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.bind(name, [""], 1)?;
            let part = part.unwrap_or(Value::None);
            let part = text(&part)?.as_str();
            let kept = match name {
                "removeprefix" => this.strip_prefix(part),
                _ => this.strip_suffix(part),
            };
            return keep(of, kept.unwrap_or(this));
        }
        "count" => {
            let [what, start, end] = args.bind(name, ["", "", ""], 1)?;
            let what = what.unwrap_or(Value::None);
            let wanted = text(&what)?.as_str();
            let count = match between(of, start, end)? {
                None => 0,
                Some((_, part)) if wanted.is_empty() => part.chars().count().saturating_add(1),
                Some((_, part)) => part.matches(wanted).count(),
            };
            Value::Int(count as i128)
        }
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.bind(name, ["", ""], 1)?;
            let width = size(&width.unwrap_or(Value::None))?;
            let fill = fill.unwrap_or(Value::text(" ")?);
            let fill = text(&fill)?;
            if fill.chars() != 1 {
                return fail("The fill character must be exactly one character long");
            }
            let align = match name {
                "center" => '^',
                "ljust" => '<',
                _ => '>',
            };
            return justify(of, width, fill.as_str(), align);
        }
        "zfill" => {
            let [width] = args.bind(name, [""], 1)?;
            let missing = size(&width.unwrap_or(Value::None))?.saturating_sub(of.chars());
            let sign = usize::from(this.starts_with(['+', '-']));
            let mut out = Buf::default();
            out.push_str(&this[..sign])?;
            out.push_times("0", missing)?;
            out.push_str(&this[sign..])?;
            return keep(of, out.as_str());
        }
        "expandtabs" => {
            let [width] = args.bind(name, ["tabsize"], 0)?;
            let width = width.as_ref().map_or(Ok(8), size)?;
            return expand_tabs(of, width);
        }
        "maketrans" | "translate" => {
            return fail(format!("the method str.{name} is not supported"));
        }
        _ => {
            args.none(name)?;
            match name {
                "lower" => return mapped(of, str::to_lowercase),
                "upper" => return mapped(of, str::to_uppercase),
                "casefold" => return mapped(of, fold),
                "capitalize" => return mapped(of, capitalize),
                "title" => return mapped(of, title),
                "swapcase" => return mapped(of, swapcase),
                "isalnum" => all(is_alnum),
                "isalpha" => all(is_alpha),
                "isascii" => Value::Bool(this.is_ascii()),
                "isdecimal" => all(is_decimal),
                "isdigit" => all(is_digit),
                "isnumeric" => all(is_numeric),
                "isspace" => all(is_space),
                "isprintable" => Value::Bool(this.chars().all(is_printable)),
                "islower" => Value::Bool(islower(this)),
                "isupper" => Value::Bool(isupper(this)),
                "istitle" => Value::Bool(istitle(this)),
                "isidentifier" if this.is_ascii() => {
                    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                    let first = this.chars().next();
                    let begins = first.is_some_and(|c| !c.is_ascii_digit());
                    Value::Bool(begins && this.chars().all(word))
                }
                _ => return fail(format!("the method str.{name} is not supported")),
            }
        }
    })
}
