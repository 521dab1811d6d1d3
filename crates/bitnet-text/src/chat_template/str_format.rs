//! `str.format` and `str.format_map`.
//!
//! Invariant: fields are looked up as the sandbox looks up attributes and items.

use super::args::Args;
use super::format::format_value;
use super::meter::{Buf, R, fail, spend};
use super::render::Renderer;
use super::value::{Text, Value};

/// The values that fields name.
struct Fields<'a> {
    renderer: &'a Renderer,
    args: &'a Args,
    mapping: Option<&'a Value>,
    /// The next automatic number; `None` once a number was written.
    automatic: Option<usize>,
    manual: bool,
}

pub(super) fn format(renderer: &Renderer, of: &Text, args: Args) -> R<Value> {
    run(renderer, of, &args, None)
}

pub(super) fn format_map(renderer: &Renderer, of: &Text, args: Args) -> R<Value> {
    let [mapping] = args.bind("format_map", [""], 1)?;
    let mapping = mapping.unwrap_or(Value::None);
    run(renderer, of, &Args::default(), Some(&mapping))
}

fn run(renderer: &Renderer, of: &Text, args: &Args, mapping: Option<&Value>) -> R<Value> {
    let mut fields = Fields {
        renderer,
        args,
        mapping,
        automatic: Some(0),
        manual: false,
    };
    let mut out = Buf::default();
    fields.text(of.as_str(), 2, &mut out)?;
    Text::from_buf(out).map(Value::Str)
}

impl Fields<'_> {
    fn text(&mut self, format: &str, levels: usize, out: &mut Buf) -> R<()> {
        if levels == 0 {
            return fail("Max string recursion exceeded");
        }
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            spend(1)?;
            out.push_str(&rest[..at])?;
            let brace = &rest[at..at.saturating_add(1)];
            rest = &rest[at.saturating_add(1)..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace)?;
                rest = after;
                continue;
            }
            if brace == "}" {
                return fail("Single '}' encountered in format string");
            }
            let Some(end) = closing(rest)? else {
                return fail(match rest.is_empty() {
                    true => "Single '{' encountered in format string",
                    false => "expected '}' before end of string",
                });
            };
            self.field(&rest[..end], levels, out)?;
            rest = &rest[end.saturating_add(1)..];
        }
        out.push_str(rest)
    }

    fn field(&mut self, field: &str, levels: usize, out: &mut Buf) -> R<()> {
        // a colon or an exclamation mark within [] belongs to the name
        let mut within = false;
        let end = field.find(|c| {
            match c {
                '[' => within = true,
                ']' => within = false,
                _ => {}
            }
            !within && matches!(c, ':' | '!')
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut letters = rest.chars();
                let Some(conversion) = letters.next() else {
                    return fail("unmatched '{' in format spec");
                };
                match letters.as_str() {
                    "" => (Some(conversion), ""),
                    more => match more.strip_prefix(':') {
                        Some(spec) => (Some(conversion), spec),
                        None => return fail("expected ':' after conversion specifier"),
                    },
                }
            }
            None => (None, rest.strip_prefix(':').unwrap_or_default()),
        };
        let value = self.value(name)?;
        let value = match conversion {
            None => value,
            Some('s') => Value::Str(value.to_text()?),
            Some('r') => {
                let mut text = Buf::default();
                value.repr(&mut text, 0)?;
                Text::from_buf(text).map(Value::Str)?
            }
            Some(other) => {
                return fail(format!("the conversion '!{other}' is not supported"));
            }
        };
        let mut expanded = Buf::default();
        self.text(spec, levels.saturating_sub(1), &mut expanded)
            .or_else(|e| match spec.is_empty() {
                true => Ok(()),
                false => Err(e),
            })?;
        format_value(&value, expanded.as_str(), out)
    }

    fn value(&mut self, name: &str) -> R<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut rest) = name.split_at(end);
        let is_number = !first.is_empty() && first.bytes().all(|b| b.is_ascii_digit());
        let place = if first.is_empty() {
            if self.manual {
                return fail(
                    "cannot switch from manual field specification to automatic field numbering",
                );
            }
            let place = self.automatic.unwrap_or(0);
            self.automatic = Some(place.saturating_add(1));
            Some(place)
        } else if is_number {
            if self.automatic.is_some_and(|next| next > 0) {
                return fail(
                    "cannot switch from automatic field numbering to manual field specification",
                );
            }
            self.manual = true;
            Some(first.parse().unwrap_or(usize::MAX))
        } else {
            None
        };
        let mut value = match (place, self.mapping) {
            (Some(place), None) => match self.args.positional.get(place) {
                Some(value) => value.clone(),
                None => {
                    return fail(format!(
                        "Replacement index {place} out of range for positional args tuple"
                    ));
                }
            },
            (Some(_), Some(_)) => {
                return fail("Format string contains positional fields");
            }
            (None, Some(Value::Dict(mapping))) => match mapping.get_str(first) {
                Some(value) => value,
                None => return fail(format!("KeyError: '{first}'")),
            },
            (None, Some(_)) => return fail("format_map() of this object is not supported"),
            (None, None) => {
                let mut named = self.args.named.iter();
                match named.find(|(known, _)| **known == *first) {
                    Some((_, value)) => value.clone(),
                    None => return fail(format!("KeyError: '{first}'")),
                }
            }
        };
        while !rest.is_empty() {
            spend(1)?;
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                if end == 0 {
                    return fail("Empty attribute in format string");
                }
                value = self.renderer.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let Some(end) = after.find(']') else {
                    return fail("Missing ']' in format string");
                };
                let key = &after[..end];
                if key.is_empty() {
                    return fail("Empty attribute in format string");
                }
                let key = match key.parse::<i64>() {
                    Ok(at) if key.bytes().all(|b| b.is_ascii_digit()) => Value::Int(at.into()),
                    _ => Value::text(key)?,
                };
                value = self.renderer.item(&value, &key)?;
                rest = &after[end.saturating_add(1)..];
            } else {
                return fail("Only '.' or '[' may follow ']' in format field specifier");
            }
        }
        Ok(value)
    }
}

/// The brace that ends a field.
fn closing(text: &str) -> R<Option<usize>> {
    super::meter::spend_bytes(text.len())?;
    let mut depth: usize = 1;
    let mut within = false;
    for (at, c) in text.char_indices() {
        match c {
            '[' => within = true,
            ']' => within = false,
            '{' if !within => depth = depth.saturating_add(1),
            '}' if !within => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
