//! Source to tokens, as Jinja's lexer cuts them with `trim_blocks` and `lstrip_blocks` on.
//!
//! Invariant: a source that this lexer accepts gives the tokens of Jinja 3.1; what it does not know
//! (names beyond ASCII, `\N{...}`, surrogates) is an error.

use super::meter::{Ended, Error, R};
use super::unicode::is_space;
use std::collections::HashSet;
use std::rc::Rc;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(Rc<str>),
    Text(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// Two-character operators come first, as the longest wins.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";",
];

/// Cuts a template; each token with its line.
pub(super) fn tokens(source: &str) -> R<Vec<(u32, Token)>> {
    let mut text = source.replace("\r\n", "\n").replace('\r', "\n");
    if text.ends_with('\n') {
        text.pop();
    }
    let mut lexer = Lexer {
        source: &text,
        at: 0,
        line: 1,
        line_starts: true,
        out: Vec::new(),
        names: HashSet::new(),
    };
    lexer.root()?;
    let line = lexer.line;
    lexer.out.push((line, Token::End));
    Ok(lexer.out)
}

#[derive(Clone, Copy, PartialEq)]
enum Tag {
    Variable,
    Comment,
    Block,
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: u32,
    /// Whether the last rule ended with a line break.
    line_starts: bool,
    out: Vec<(u32, Token)>,
    names: HashSet<Rc<str>>,
}

fn spaces(text: &str) -> usize {
    text.len()
        .saturating_sub(text.trim_start_matches(is_space).len())
}

/// `%}` with what belongs to it: its length.
fn close(text: &str, end: &str, plus: bool, trims: bool) -> Option<usize> {
    if let Some(rest) = text.strip_prefix('-').and_then(|t| t.strip_prefix(end)) {
        return Some(end.len().saturating_add(1).saturating_add(spaces(rest)));
    }
    if plus && text.strip_prefix('+').is_some_and(|t| t.starts_with(end)) {
        return Some(end.len().saturating_add(1));
    }
    let rest = text.strip_prefix(end)?;
    Some(
        end.len()
            .saturating_add(usize::from(trims && rest.starts_with('\n'))),
    )
}

/// `{% raw %}` at the beginning of a text: its length and its sign.
fn raw_begin(text: &str) -> Option<(usize, Option<char>)> {
    let rest = text.strip_prefix("{%")?;
    let sign = rest.chars().next().filter(|c| "-+".contains(*c));
    let rest = &rest[sign.map_or(0, char::len_utf8)..];
    let rest = rest[spaces(rest)..].strip_prefix("raw")?;
    let rest = &rest[spaces(rest)..];
    let len = close(rest, "%}", false, false)?;
    Some((
        text.len().saturating_sub(rest.len()).saturating_add(len),
        sign,
    ))
}

fn raw_end(text: &str) -> Option<(usize, Option<char>)> {
    let rest = text.strip_prefix("{%")?;
    let sign = rest.chars().next().filter(|c| "-+".contains(*c));
    let rest = &rest[sign.map_or(0, char::len_utf8)..];
    let rest = rest[spaces(rest)..].strip_prefix("endraw")?;
    let rest = &rest[spaces(rest)..];
    let len = close(rest, "%}", true, true)?;
    Some((
        text.len().saturating_sub(rest.len()).saturating_add(len),
        sign,
    ))
}

fn lines(text: &str) -> u32 {
    u32::try_from(text.matches('\n').count()).unwrap_or(u32::MAX)
}

impl Lexer<'_> {
    fn ended<T>(&self, kind: Ended, message: impl Into<String>) -> R<T> {
        Err(Box::new(Error {
            message: message.into(),
            line: Some(self.line),
            kind,
        }))
    }

    fn fail<T>(&self, message: impl Into<String>) -> R<T> {
        self.ended(Ended::Failed, message)
    }

    fn unsupported<T>(&self, message: impl Into<String>) -> R<T> {
        self.ended(Ended::Unsupported, message)
    }

    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    /// Goes on by so many bytes.
    fn take(&mut self, bytes: usize) {
        let taken = &self.source[self.at..self.at.saturating_add(bytes)];
        self.line_starts = taken.ends_with('\n');
        self.line = self.line.saturating_add(lines(taken));
        self.at = self.at.saturating_add(bytes);
    }

    fn emit(&mut self, token: Token) {
        self.out.push((self.line, token));
    }

    /// Data before a tag with the white space that the tag takes away.
    fn data(&mut self, text: &str, sign: Option<char>, variable: bool) {
        let mut kept = text;
        if sign == Some('-') {
            kept = text.trim_end_matches(is_space);
        } else if sign.is_none() && !variable {
            let from = text.rfind('\n').map_or(0, |at| at.saturating_add(1));
            if (from > 0 || self.line_starts) && text[from..].chars().all(is_space) {
                kept = &text[..from];
            }
        }
        if !kept.is_empty() {
            self.emit(Token::Data(kept.to_owned()));
        }
    }

    fn root(&mut self) -> R<()> {
        while self.at < self.source.len() {
            let source = self.source;
            let rest = &source[self.at..];
            let mut from = 0;
            let found = loop {
                let Some(at) = rest[from..].find('{').map(|at| at.saturating_add(from)) else {
                    break None;
                };
                let tag = match rest.as_bytes().get(at.saturating_add(1)) {
                    Some(b'{') => Tag::Variable,
                    Some(b'#') => Tag::Comment,
                    Some(b'%') => Tag::Block,
                    _ => {
                        from = at.saturating_add(1);
                        continue;
                    }
                };
                break Some((at, tag));
            };
            let Some((at, tag)) = found else {
                let data = rest.to_owned();
                self.emit(Token::Data(data));
                self.take(rest.len());
                return Ok(());
            };
            let text = &rest[..at];
            if let (Tag::Block, Some((len, sign))) = (tag, raw_begin(&rest[at..])) {
                self.data(text, sign, false);
                self.take(at.saturating_add(len));
                self.raw()?;
                continue;
            }
            let sign = rest[at.saturating_add(2)..].chars().next();
            let sign = sign.filter(|c| "-+".contains(*c));
            self.data(text, sign, tag == Tag::Variable);
            self.take(at);
            let token = match tag {
                Tag::Variable => Some(Token::VariableBegin),
                Tag::Block => Some(Token::BlockBegin),
                Tag::Comment => None,
            };
            let is_comment = token.is_none();
            self.out.extend(token.map(|token| (self.line, token)));
            self.take(sign.map_or(0, char::len_utf8).saturating_add(2));
            if is_comment {
                self.comment()?;
            } else {
                self.code(tag == Tag::Block)?;
            }
        }
        Ok(())
    }

    fn comment(&mut self) -> R<()> {
        let rest = self.rest();
        let Some(end) = rest.find("#}") else {
            return self.fail("Missing end of comment tag");
        };
        let signed = rest[..end].ends_with(['-', '+']);
        let from = end.saturating_sub(usize::from(signed));
        let len = close(&rest[from..], "#}", true, true).unwrap_or(2);
        self.take(from.saturating_add(len));
        Ok(())
    }

    fn raw(&mut self) -> R<()> {
        let source = self.source;
        let rest = &source[self.at..];
        let mut from = 0;
        while let Some(at) = rest[from..].find("{%").map(|at| at.saturating_add(from)) {
            if let Some((len, sign)) = raw_end(&rest[at..]) {
                self.data(&rest[..at], sign, false);
                self.take(at.saturating_add(len));
                return Ok(());
            }
            from = at.saturating_add(2);
        }
        self.fail("Missing end of raw directive")
    }

    /// What lies within `{% %}` or `{{ }}`.
    fn code(&mut self, block: bool) -> R<()> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            let source = self.source;
            let rest = &source[self.at..];
            let Some(first) = rest.chars().next() else {
                return Ok(());
            };
            if open.is_empty() {
                let end = match block {
                    true => close(rest, "%}", true, true),
                    false => close(rest, "}}", false, false),
                };
                if let Some(len) = end {
                    self.emit(match block {
                        true => Token::BlockEnd,
                        false => Token::VariableEnd,
                    });
                    self.take(len);
                    return Ok(());
                }
            }
            if is_space(first) {
                self.take(spaces(rest));
            } else if first.is_ascii_digit() {
                self.number()?;
            } else if first.is_ascii_alphabetic() || first == '_' {
                let word = |c: char| c.is_alphanumeric() || c == '_';
                let len = rest.find(|c| !word(c)).unwrap_or(rest.len());
                let name = &rest[..len];
                if !name.is_ascii() {
                    return self.unsupported(format!(
                        "the name {name}: letters beyond ASCII are not supported"
                    ));
                }
                let name = match self.names.get(name) {
                    Some(known) => known.clone(),
                    None => {
                        let name: Rc<str> = name.into();
                        self.names.insert(name.clone());
                        name
                    }
                };
                self.emit(Token::Name(name));
                self.take(len);
            } else if first == '\'' || first == '"' {
                self.text(first)?;
            } else {
                let Some(op) = OPERATORS.into_iter().find(|op| rest.starts_with(op)) else {
                    let message = format!("unexpected char {first:?}");
                    return match first.is_alphabetic() {
                        true => self.unsupported(format!(
                            "{message}: names with letters beyond ASCII are not supported"
                        )),
                        false => self.fail(message),
                    };
                };
                match op {
                    "{" => open.push("}"),
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "}" | ")" | "]" => match open.pop() {
                        None => return self.fail(format!("unexpected '{op}'")),
                        Some(expected) if expected != op => {
                            return self.fail(format!("unexpected '{op}', expected '{expected}'"));
                        }
                        Some(_) => {}
                    },
                    _ => {}
                }
                self.emit(Token::Op(op));
                self.take(op.len());
            }
        }
    }

    fn number(&mut self) -> R<()> {
        let bytes = self.source.as_bytes();
        let start = self.at;
        // digits with single underscores between them
        let run = |from: usize, is: fn(&u8) -> bool| {
            let mut at = from;
            loop {
                if bytes.get(at).is_some_and(is) {
                    at = at.saturating_add(1);
                } else if at > from
                    && bytes.get(at) == Some(&b'_')
                    && bytes.get(at.saturating_add(1)).is_some_and(is)
                {
                    at = at.saturating_add(2);
                } else {
                    return at;
                }
            }
        };
        let digit: fn(&u8) -> bool = u8::is_ascii_digit;
        let whole = run(start, digit);
        let mut end = whole;
        let mut is_float = false;
        let before = start.checked_sub(1).and_then(|at| bytes.get(at));
        if before != Some(&b'.') {
            if bytes.get(end) == Some(&b'.') && bytes.get(end.saturating_add(1)).is_some_and(digit)
            {
                end = run(end.saturating_add(1), digit);
                is_float = true;
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(
                    bytes.get(end.saturating_add(1)),
                    Some(b'+' | b'-')
                ));
                let from = end.saturating_add(1).saturating_add(sign);
                if bytes.get(from).is_some_and(digit) {
                    end = run(from, digit);
                    is_float = true;
                }
            }
        }
        if is_float {
            let text = self.source[start..end].replace('_', "");
            let Ok(value) = text.parse::<f64>() else {
                return self.fail(format!("{text} is not a number"));
            };
            self.emit(Token::Float(value));
            self.take(end.saturating_sub(start));
            return Ok(());
        }
        let prefix = bytes
            .get(start.saturating_add(1))
            .map(u8::to_ascii_lowercase);
        let after = start.saturating_add(2);
        let after = after.saturating_add(usize::from(bytes.get(after) == Some(&b'_')));
        let first = bytes.get(start).copied().unwrap_or_default();
        let based = |radix: u32, is: fn(&u8) -> bool| {
            let end = run(after, is);
            (end > after).then_some((radix, after, end))
        };
        let found = match (first, prefix) {
            (b'0', Some(b'b')) => based(2, |b| matches!(b, b'0' | b'1')),
            (b'0', Some(b'o')) => based(8, |b| matches!(b, b'0'..=b'7')),
            (b'0', Some(b'x')) => based(16, u8::is_ascii_hexdigit),
            _ => None,
        };
        let (radix, from, end) = found.unwrap_or_else(|| match first {
            // a zero is no prefix of a decimal number
            b'0' => (10, start, run(start, |b| *b == b'0')),
            _ => (10, start, whole),
        });
        let digits = self.source[from..end].replace('_', "");
        let Ok(value) = i128::from_str_radix(&digits, radix) else {
            return self.unsupported("an integer beyond 128 bits is not supported");
        };
        self.emit(Token::Int(value));
        self.take(end.saturating_sub(start));
        Ok(())
    }

    /// A string literal with Python's escapes.
    fn text(&mut self, quote: char) -> R<()> {
        let source = self.source;
        let body = &source[self.at.saturating_add(1)..];
        let mut escaped = false;
        let end = body.find(|c| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some(end) = end else {
            return self.fail(format!("unexpected char {quote:?}"));
        };
        match unescape(&body[..end]) {
            Ok(text) => self.emit(Token::Text(text)),
            Err((kind, what)) => return self.ended(kind, what),
        }
        self.take(end.saturating_add(2));
        Ok(())
    }
}

/// What Python's `unicode-escape` makes of a literal.
fn unescape(body: &str) -> Result<String, (Ended, String)> {
    let mut out = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at.saturating_add(1)..];
        let Some(c) = rest.chars().next() else {
            return Err((Ended::Failed, "\\ at end of string".to_owned()));
        };
        rest = &rest[c.len_utf8()..];
        let hex = |digits: usize| -> Result<char, (Ended, String)> {
            let code = rest.get(..digits);
            let code = code.filter(|code| code.bytes().all(|b| b.is_ascii_hexdigit()));
            let code = code.and_then(|code| u32::from_str_radix(code, 16).ok());
            match code {
                None => Err((Ended::Failed, format!("truncated \\{c} escape"))),
                Some(code) => char::from_u32(code).ok_or_else(|| {
                    let what = format!("the escape \\{c} of {code:#x} is not supported");
                    (Ended::Unsupported, what)
                }),
            }
        };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' | 'u' | 'U' => {
                let digits = match c {
                    'x' => 2,
                    'u' => 4,
                    _ => 8,
                };
                out.push(hex(digits)?);
                rest = &rest[digits..];
            }
            '0'..='7' => {
                let more = rest
                    .bytes()
                    .take(2)
                    .take_while(|b| matches!(b, b'0'..=b'7'));
                let more = more.count();
                let digits = format!("{c}{}", &rest[..more]);
                let code = u32::from_str_radix(&digits, 8).unwrap_or_default();
                out.extend(char::from_u32(code));
                rest = &rest[more..];
            }
            'N' => {
                let what = "\\N escapes are not supported".to_owned();
                return Err((Ended::Unsupported, what));
            }
            // Jinja spells characters beyond ASCII as escapes first, so the backslash escapes theirs
            c if !c.is_ascii() => {
                let code = c as u32;
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
            c => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    out.push_str(rest);
    Ok(out)
}
