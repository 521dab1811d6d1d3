//! Python's `str` and `repr`.
//!
//! Invariant: what Python prints with an address is an error.

use super::meter::{Buf, R, fail, spend};
use super::text::Text;
use super::unicode::is_printable;
use super::value::{Dict, Range, Value, ViewKind, deep_enough};

impl Value {
    /// Python's `str`.
    pub(super) fn print(&self, out: &mut Buf) -> R<()> {
        match self {
            Self::Undefined(_) => Ok(()),
            Self::Str(text) => out.push_str(text.as_str()),
            other => other.repr(out, 0),
        }
    }

    /// Python's `str` as a text.
    pub(super) fn to_text(&self) -> R<Text> {
        if let Self::Str(text) = self
            && !text.is_markup()
        {
            return Ok(text.clone());
        }
        let mut out = Buf::default();
        self.print(&mut out)?;
        Text::from_buf(out)
    }

    /// Python's `repr`.
    pub(super) fn repr(&self, out: &mut Buf, depth: usize) -> R<()> {
        spend(1)?;
        deep_enough(depth)?;
        let list = |items: &[Self], out: &mut Buf| -> R<()> {
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" })?;
                item.repr(out, depth.saturating_add(1))?;
            }
            Ok(())
        };
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(i) => out.push_str(&i.to_string()),
            Self::Float(f) => out.push_str(&float_repr(*f)),
            Self::Str(text) if text.is_markup() => {
                out.push_str("Markup(")?;
                repr_text(text.as_str(), out)?;
                out.push(')')
            }
            Self::Str(text) => repr_text(text.as_str(), out),
            Self::List(items) => {
                out.push('[')?;
                list(&items.items, out)?;
                out.push(']')
            }
            Self::Tuple(items) | Self::Group(items) => {
                out.push('(')?;
                list(&items.items, out)?;
                out.push_str(if items.items.len() == 1 { ",)" } else { ")" })
            }
            Self::Dict(dict) => dict.repr(out, depth),
            Self::View(kind, dict) => {
                out.push_str(self.type_name())?;
                out.push_str("([")?;
                for (i, (at, value)) in dict.entries().iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" })?;
                    match kind {
                        ViewKind::Keys => at.repr(out, depth.saturating_add(1))?,
                        ViewKind::Values => value.repr(out, depth.saturating_add(1))?,
                        ViewKind::Items => {
                            out.push('(')?;
                            at.repr(out, depth.saturating_add(1))?;
                            out.push_str(", ")?;
                            value.repr(out, depth.saturating_add(1))?;
                            out.push(')')?;
                        }
                    }
                }
                out.push_str("])")
            }
            Self::Namespace(dict) => {
                out.push_str("<Namespace ")?;
                dict.borrow().repr(out, depth.saturating_add(1))?;
                out.push('>')
            }
            Self::Macro(closure) => match &closure.of.name {
                Some(name) => out.push_str(&format!("<Macro '{name}'>")),
                None => out.push_str("<Macro anonymous>"),
            },
            Self::Template => out.push_str("<TemplateReference None>"),
            Self::Range(Range {
                start,
                stop,
                step: 1,
            }) => out.push_str(&format!("range({start}, {stop})")),
            Self::Range(Range { start, stop, step }) => {
                out.push_str(&format!("range({start}, {stop}, {step})"))
            }
            Self::Bytes(bytes) => repr_bytes(bytes, out),
            Self::Loop(_) => fail("printing a loop object is not supported"),
            other => fail(format!(
                "printing a {} object is not supported: Python prints an address",
                other.type_name()
            )),
        }
    }
}

impl Dict {
    fn repr(&self, out: &mut Buf, depth: usize) -> R<()> {
        out.push('{')?;
        for (i, (at, value)) in self.entries().iter().enumerate() {
            out.push_str(if i > 0 { ", " } else { "" })?;
            at.repr(out, depth.saturating_add(1))?;
            out.push_str(": ")?;
            value.repr(out, depth.saturating_add(1))?;
        }
        out.push('}')
    }
}

/// Python's `repr` of a text: quotes, escapes.
fn repr_text(text: &str, out: &mut Buf) -> R<()> {
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\")?,
            '\n' => out.push_str("\\n")?,
            '\r' => out.push_str("\\r")?,
            '\t' => out.push_str("\\t")?,
            c if c == quote => {
                out.push('\\')?;
                out.push(c)?;
            }
            c if is_printable(c) => out.push(c)?,
            c => {
                spend(1)?;
                let code = c as u32;
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                })?;
            }
        }
    }
    out.push(quote)
}

fn repr_bytes(bytes: &Text, out: &mut Buf) -> R<()> {
    let text = bytes.as_str();
    let quote = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push('b')?;
    out.push(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\")?,
            '\n' => out.push_str("\\n")?,
            '\r' => out.push_str("\\r")?,
            '\t' => out.push_str("\\t")?,
            c if c == quote => {
                out.push('\\')?;
                out.push(c)?;
            }
            ' '..='~' => out.push(c)?,
            c => {
                spend(1)?;
                out.push_str(&format!("\\x{:02x}", c as u32))?;
            }
        }
    }
    out.push(quote)
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent from 1e16 on.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let text = format!("{value:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{value}");
        return match text.contains('.') {
            true => text,
            false => format!("{text}.0"),
        };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}
