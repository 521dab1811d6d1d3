//! Python's `%` on texts and its format specifications.
//!
//! Invariant: widths and precisions are checked against the limits before anything is padded.

use super::args::size;
use super::meter::{Buf, Charge, R, error, fail, over, spend, spend_bytes};
use super::numbers::{as_float, truncated};
use super::printing::float_repr;
use super::value::{Text, Value};

/// Most digits after the point that are printed.
const DIGITS: usize = 20_000;

/// What stands between `%` or `:` and the letter that ends it.
#[derive(Debug, Default, Clone)]
pub(super) struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    group: Option<char>,
    precision: Option<usize>,
    letter: Option<char>,
}

fn digits(precision: usize) -> R<usize> {
    if precision > DIGITS {
        return over(format!(
            "the memory limit: a number with {precision} digits"
        ));
    }
    // exact digits of an extreme float are slow
    spend((precision / 2).saturating_add(40))?;
    Ok(precision)
}

fn decimal(letters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> R<Option<usize>> {
    let mut value = None;
    while let Some(digit) = letters.peek().and_then(|c| c.to_digit(10)) {
        let so_far: usize = value.unwrap_or(0);
        let next = so_far
            .checked_mul(10)
            .and_then(|v| v.checked_add(digit as usize));
        let Some(next) = next else {
            return over("the memory limit: a width beyond all sizes");
        };
        value = Some(next);
        letters.next();
    }
    Ok(value)
}

/// Pads a text; `sign` is how much of it stays before zeros.
fn pad(text: &str, sign: usize, spec: &Spec, align: char, out: &mut Buf) -> R<()> {
    let missing = spec.width.saturating_sub(text.chars().count());
    let fill = spec.fill.unwrap_or(' ');
    let mut buffer = [0; 4];
    let fill: &str = fill.encode_utf8(&mut buffer);
    let (before, after) = match align {
        '<' => (0, missing),
        '^' => (missing / 2, missing.saturating_sub(missing / 2)),
        _ => (missing, 0),
    };
    if align == '=' {
        out.push_str(&text[..sign])?;
        out.push_times(fill, missing)?;
        return out.push_str(&text[sign..]);
    }
    out.push_times(fill, before)?;
    out.push_str(text)?;
    out.push_times(fill, after)
}

/// `1.5e+20` from a float, as C prints it.
fn exponent(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// C's `%g`: so many digits that count, zeros at the end go unless `keep`.
fn general(value: f64, precision: usize, keep: bool) -> String {
    let precision = precision.max(1);
    let text = exponent(value, precision.saturating_sub(1));
    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "0"));
    let power: i64 = power.parse().unwrap_or(0);
    let trim = |text: &str| match text.contains('.') && !keep {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if power < -4 || power >= precision as i64 {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), power.unsigned_abs());
    }
    let decimals =
        usize::try_from(((precision as i64).saturating_sub(1)).saturating_sub(power)).unwrap_or(0);
    trim(&format!("{value:.decimals$}"))
}

/// The digits of a float without its sign.
fn float_digits(value: f64, spec: &Spec, letter: char) -> R<String> {
    let value = value.abs();
    let is_upper = letter.is_ascii_uppercase();
    if !value.is_finite() {
        let text = if value.is_nan() { "nan" } else { "inf" };
        let text = format!("{text}{}", if letter == '%' { "%" } else { "" });
        return Ok(if is_upper { text.to_uppercase() } else { text });
    }
    let precision = digits(spec.precision.unwrap_or(6))?;
    let mut text = match letter.to_ascii_lowercase() {
        'e' => exponent(value, precision),
        'g' | 'n' => general(value, precision, spec.alternate),
        '%' => format!("{:.precision$}%", value * 100.0),
        'f' => format!("{value:.precision$}"),
        // no letter: as repr, or as 'g' with at least one digit after the point
        _ => match spec.precision {
            None => float_repr(value),
            Some(precision) => {
                let text = general(value, precision, spec.alternate);
                let power = exponent(value, precision.max(1).saturating_sub(1));
                let power = power
                    .split_once('e')
                    .and_then(|(_, p)| p.parse::<i64>().ok());
                let power = power.unwrap_or(0);
                if text.contains(['.', 'e']) {
                    text
                } else if power.saturating_add(1) >= precision as i64 {
                    // there is no room for the digit
                    let text = exponent(value, precision.max(1).saturating_sub(1));
                    let (mantissa, power) = text.split_once('e').unwrap_or((&text, "+00"));
                    let mantissa = match mantissa.contains('.') {
                        true => mantissa.trim_end_matches('0').trim_end_matches('.'),
                        false => mantissa,
                    };
                    format!("{mantissa}e{power}")
                } else {
                    format!("{text}.0")
                }
            }
        },
    };
    if spec.alternate && !text.contains('.') {
        let at = text.find(['e', '%']).unwrap_or(text.len());
        text.insert(at, '.');
    }
    Ok(if is_upper { text.to_uppercase() } else { text })
}

/// The digits of a whole number without its sign, and the prefix of its base.
fn int_digits(value: u128, letter: char) -> (String, &'static str) {
    match letter {
        'b' => (format!("{value:b}"), "0b"),
        'o' => (format!("{value:o}"), "0o"),
        'x' => (format!("{value:x}"), "0x"),
        'X' => (format!("{value:X}"), "0X"),
        _ => (value.to_string(), ""),
    }
}

/// Puts separators between groups; with zeros before, up to a width.
fn grouped(text: &str, separator: char, every: usize, width: usize) -> String {
    let end = text.find(['.', 'e', 'E', '%']).unwrap_or(text.len());
    let (whole, rest) = text.split_at(end);
    let mut reversed = String::new();
    let mut count: usize = 0;
    let mut digits = whole.chars().rev();
    loop {
        let next = digits.next();
        if next.is_none() && reversed.len().saturating_add(rest.len()) >= width {
            break;
        }
        if count > 0 && count.checked_rem(every).unwrap_or(0) == 0 {
            reversed.push(separator);
        }
        reversed.push(next.unwrap_or('0'));
        count = count.saturating_add(1);
    }
    reversed.chars().rev().chain(rest.chars()).collect()
}

/// A number with sign, prefix, groups and padding.
fn number(negative: bool, prefix: &str, text: &str, spec: &Spec, out: &mut Buf) -> R<()> {
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        (false, _) => "",
    };
    let head = format!("{sign}{prefix}");
    let mut spec = spec.clone();
    let align = spec.align.unwrap_or(if spec.zero { '=' } else { '>' });
    if spec.zero {
        spec.fill = spec.fill.or(Some('0'));
    }
    let _charge = Charge::new(if spec.group.is_some() { spec.width } else { 0 })?;
    let body = match spec.group {
        Some(separator) if text.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            let every = match spec.letter {
                Some('b' | 'o' | 'x' | 'X') => 4,
                _ => 3,
            };
            spend_bytes(spec.width)?;
            let zeros = align == '=' && spec.fill == Some('0');
            let width = if zeros {
                spec.width.saturating_sub(head.len())
            } else {
                0
            };
            grouped(text, separator, every, width)
        }
        _ => text.to_owned(),
    };
    pad(&format!("{head}{body}"), head.len(), &spec, align, out)
}

fn is_negative(value: f64) -> bool {
    value.is_sign_negative() && !value.is_nan()
}

/// `format(value, spec)`
pub(super) fn format_value(value: &Value, spec: &str, out: &mut Buf) -> R<()> {
    if let Value::Str(text) = value
        && text.is_markup()
    {
        return fail("formatting a text that is marked as safe is not supported");
    }
    if spec.is_empty() {
        return value.print(out);
    }
    let parsed = parse_spec(spec, value)?;
    let unknown = |letter: char| {
        fail(format!(
            "Unknown format code '{letter}' for object of type '{}'",
            value.type_name()
        ))
    };
    match value {
        Value::Str(text) => {
            match parsed.letter {
                None | Some('s') => {}
                Some(letter) => return unknown(letter),
            }
            if parsed.sign.is_some() || parsed.alternate || parsed.group.is_some() {
                return fail("this format specification is not allowed for a string");
            }
            let align = parsed.align.unwrap_or('<');
            if align == '=' {
                return fail("'=' alignment not allowed in string format specifier");
            }
            let mut spec = parsed.clone();
            if spec.zero {
                spec.fill = spec.fill.or(Some('0'));
            }
            let kept = parsed.precision.unwrap_or(usize::MAX).min(text.chars());
            let kept = &text.as_str()[..text.offset(kept)?];
            pad(kept, 0, &spec, align, out)
        }
        Value::Int(_) | Value::Bool(_) => {
            let i = value.as_int().unwrap_or(0);
            let letter = parsed.letter.unwrap_or('d');
            match letter {
                'd' | 'b' | 'o' | 'x' | 'X' | 'n' => {
                    if parsed.precision.is_some() {
                        return fail("Precision not allowed in integer format specifier");
                    }
                    let (text, prefix) = int_digits(i.unsigned_abs(), letter);
                    let prefix = if parsed.alternate { prefix } else { "" };
                    number(i < 0, prefix, &text, &parsed, out)
                }
                'c' => {
                    let c = u32::try_from(i).ok().and_then(char::from_u32);
                    let c = c.ok_or_else(|| error("%c arg not in range(0x110000)"))?;
                    pad(&c.to_string(), 0, &parsed, parsed.align.unwrap_or('<'), out)
                }
                'e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' => {
                    let text = float_digits(i as f64, &parsed, letter)?;
                    number(i < 0, "", &text, &parsed, out)
                }
                letter => unknown(letter),
            }
        }
        Value::Float(f) => match parsed.letter {
            None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%') => {
                let letter = parsed.letter.unwrap_or('r');
                let text = float_digits(*f, &parsed, letter)?;
                number(is_negative(*f), "", &text, &parsed, out)
            }
            Some(letter) => unknown(letter),
        },
        Value::Undefined(_) | Value::None => fail(format!(
            "unsupported format string passed to {}.__format__",
            value.type_name()
        )),
        other => fail(format!(
            "unsupported format string passed to {}.__format__",
            other.type_name()
        )),
    }
}

fn parse_spec(text: &str, value: &Value) -> R<Spec> {
    let mut spec = Spec::default();
    let mut letters = text.chars().peekable();
    let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
    let mut start = text.chars();
    match (start.next(), start.next()) {
        (Some(fill), Some(align)) if is_align(align) => {
            (spec.fill, spec.align) = (Some(fill), Some(align));
            letters.next();
            letters.next();
        }
        (Some(align), _) if is_align(align) => {
            spec.align = Some(align);
            letters.next();
        }
        _ => {}
    }
    spec.sign = letters.next_if(|c| matches!(c, '+' | '-' | ' '));
    if letters.next_if_eq(&'z').is_some() {
        return fail("'z' in a format specification is not supported");
    }
    spec.alternate = letters.next_if_eq(&'#').is_some();
    spec.zero = letters.next_if_eq(&'0').is_some();
    spec.width = decimal(&mut letters)?.unwrap_or(0);
    spec.group = letters.next_if(|c| matches!(c, ',' | '_'));
    if letters.next_if_eq(&'.').is_some() {
        spec.precision = decimal(&mut letters)?;
        if spec.precision.is_none() {
            return fail("Format specifier missing precision");
        }
    }
    spec.letter = letters.next();
    if letters.next().is_some() {
        return fail(format!(
            "Invalid format specifier '{text}' for object of type '{}'",
            value.type_name()
        ));
    }
    if spec.group == Some(',') && matches!(spec.letter, Some('b' | 'o' | 'x' | 'X' | 'c' | 'n')) {
        return fail("Cannot specify ',' with this format code");
    }
    if spec.group == Some('_') && matches!(spec.letter, Some('c' | 'n')) {
        return fail("Cannot specify '_' with this format code");
    }
    Ok(spec)
}

/// `format % values`
pub(super) fn percent(format: &Text, values: &Value) -> R<Value> {
    if format.is_markup() {
        return fail("formatting a text that is marked as safe is not supported");
    }
    let one = [values.clone()];
    let args: &[Value] = match values {
        Value::Tuple(items) | Value::Group(items) => &items.items,
        _ => &one,
    };
    // Python takes what has items for a mapping of names
    let is_mapping = matches!(
        values,
        Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_) | Value::Bytes(_)
    );
    let mut args = args.iter();
    let mut out = Buf::default();
    let mut letters = format.as_str().chars().peekable();
    spend_bytes(format.as_str().len())?;
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c)?;
            continue;
        }
        directive(&mut letters, values, &mut args, &mut out)?;
    }
    if args.next().is_some() && !is_mapping {
        return fail("not all arguments converted during string formatting");
    }
    Text::from_buf(out).map(Value::Str)
}

fn directive(
    letters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &Value,
    args: &mut std::slice::Iter<'_, Value>,
    out: &mut Buf,
) -> R<()> {
    let few = || error("not enough arguments for format string");
    let mut named = None;
    if letters.next_if_eq(&'(').is_some() {
        let mut depth: usize = 1;
        let mut name = String::new();
        loop {
            let Some(c) = letters.next() else {
                return fail("incomplete format key");
            };
            match c {
                '(' => depth = depth.saturating_add(1),
                ')' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                break;
            }
            name.push(c);
        }
        let Value::Dict(dict) = values else {
            return fail("format requires a mapping");
        };
        let Some(value) = dict.get_str(&name) else {
            return fail(format!("KeyError: '{name}'"));
        };
        named = Some(value);
        // the mapping itself counts as used
        args.next();
    }
    let mut spec = Spec::default();
    let mut left = false;
    while let Some(flag) = letters.next_if(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
        match flag {
            '-' => left = true,
            '+' => spec.sign = Some('+'),
            ' ' => spec.sign = spec.sign.or(Some(' ')),
            '#' => spec.alternate = true,
            _ => spec.zero = true,
        }
    }
    if letters.next_if_eq(&'*').is_some() {
        let width = args.next().ok_or_else(few)?;
        let Some(wanted) = width.as_int() else {
            return fail("* wants int");
        };
        left |= wanted < 0;
        spec.width = size(&Value::Int(wanted.saturating_abs()))?;
    } else {
        spec.width = decimal(letters)?.unwrap_or(0);
    }
    if letters.next_if_eq(&'.').is_some() {
        spec.precision = Some(if letters.next_if_eq(&'*').is_some() {
            let precision = args.next().ok_or_else(few)?;
            match precision.as_int() {
                Some(_) => size(precision)?,
                None => return fail("* wants int"),
            }
        } else {
            decimal(letters)?.unwrap_or(0)
        });
    }
    let _ = letters.next_if(|c| matches!(c, 'h' | 'l' | 'L'));
    let Some(letter) = letters.next() else {
        return fail("incomplete format");
    };
    if letter == '%' {
        return out.push('%');
    }
    let value = match named {
        Some(value) => value,
        None => args.next().ok_or_else(few)?.clone(),
    };
    spec.letter = Some(letter);
    spec.align = left.then_some('<');
    spec.zero &= !left;
    conversion(letter, &value, spec, out)
}

fn conversion(letter: char, value: &Value, mut spec: Spec, out: &mut Buf) -> R<()> {
    match letter {
        's' | 'r' | 'a' => {
            let mut text = Buf::default();
            match letter {
                's' => value.print(&mut text)?,
                _ => value.repr(&mut text, 0)?,
            }
            let text = Text::from_buf(text)?;
            if letter == 'a' && text.chars() != text.as_str().len() {
                return fail("%a of characters beyond ASCII is not supported");
            }
            let kept = spec.precision.unwrap_or(usize::MAX).min(text.chars());
            let kept = &text.as_str()[..text.offset(kept)?];
            spec.zero = false;
            pad(kept, 0, &spec, spec.align.unwrap_or('>'), out)
        }
        'c' => {
            let c = match value {
                Value::Str(text) if text.chars() == 1 => text.as_str().to_owned(),
                other => match other.as_int().map(u32::try_from) {
                    Some(Ok(code)) => match char::from_u32(code) {
                        Some(c) => c.to_string(),
                        None => return fail("%c arg not in range(0x110000)"),
                    },
                    _ => return fail("%c requires int or char"),
                },
            };
            pad(&c, 0, &spec, spec.align.unwrap_or('>'), out)
        }
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let whole = match (value, letter) {
                (Value::Float(f), 'd' | 'i' | 'u') => truncated(*f)?.as_int(),
                (other, _) => other.as_int(),
            };
            let Some(i) = whole else {
                let wanted = if letter.eq_ignore_ascii_case(&'x') || letter == 'o' {
                    "an integer"
                } else {
                    "a real number"
                };
                let found = value.type_name();
                return fail(format!(
                    "%{letter} format: {wanted} is required, not {found}"
                ));
            };
            let (mut text, prefix) = int_digits(i.unsigned_abs(), letter);
            if let Some(precision) = spec.precision {
                let zeros = digits(precision)?.saturating_sub(text.len());
                text.insert_str(0, &"0".repeat(zeros));
            }
            let prefix = if spec.alternate { prefix } else { "" };
            number(i < 0, prefix, &text, &spec, out)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(f) = as_float(value) else {
                return fail(format!("must be real number, not {}", value.type_name()));
            };
            let text = float_digits(f, &spec, letter)?;
            number(is_negative(f), "", &text, &spec, out)
        }
        other => fail(format!("unsupported format character '{other}'")),
    }
}
