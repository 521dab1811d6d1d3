//! A call of a tool while its text comes: where it is certain to be one, and which arguments are certain.
//!
//! Invariant: what is found follows from the whole text alone, however the pieces cut it.

use serde_json::Value;

/// What the beginning of a call in JSON says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// A function, and where in the text the object of its arguments begins.
    Of(String, usize),
    /// It depends on what follows.
    Undecided,
    /// Nothing that can be read before its end.
    Other,
}

/// A place in a text that is still coming.
struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

impl Cursor<'_> {
    /// What follows, without white space.
    fn rest(&mut self) -> &str {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        &self.text[self.at..]
    }

    /// Takes one of some words.
    fn take(&mut self, words: &[&str]) -> Result<(), Opening> {
        let rest = self.rest();
        if let Some(word) = words.iter().find(|word| rest.starts_with(**word)) {
            self.at += word.len();
            return Ok(());
        }
        Err(match words.iter().any(|word| word.starts_with(rest)) {
            true => Opening::Undecided,
            false => Opening::Other,
        })
    }

    /// Takes a JSON string.
    fn string(&mut self) -> Result<String, Opening> {
        let rest = self.rest();
        if rest.is_empty() {
            return Err(Opening::Undecided);
        }
        if !rest.starts_with('"') {
            return Err(Opening::Other);
        }
        let mut escaped = false;
        let is_end = |(_, c): &(usize, char)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        };
        let Some((end, _)) = rest.char_indices().skip(1).find(is_end) else {
            return Err(Opening::Undecided);
        };
        let text = serde_json::from_str(&rest[..=end]).map_err(|_| Opening::Other)?;
        self.at += end + 1;
        Ok(text)
    }
}

/// Reads `{"name": …, "arguments": {`.
pub(crate) fn opening(text: &str) -> Opening {
    let mut cursor = Cursor { text, at: 0 };
    let read = |cursor: &mut Cursor<'_>| {
        for word in ["{", "\"name\"", ":"] {
            cursor.take(&[word])?;
        }
        let name = cursor.string()?;
        cursor.take(&[","])?;
        cursor.take(&["\"arguments\"", "\"parameters\""])?;
        cursor.take(&[":"])?;
        cursor.take(&["{"])?;
        Ok(name)
    };
    match read(&mut cursor) {
        Ok(name) => Opening::Of(name, cursor.at - 1),
        Err(other) => other,
    }
}

/// How far the object of arguments has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

/// Where a scan stops.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Scanned {
    /// The text ends first.
    All,
    /// The object ends there.
    Complete(usize),
    /// The text from there on is no JSON.
    Broken(usize),
}

impl Scan {
    /// Goes on behind what it has seen.
    pub(crate) fn push(&mut self, text: &str) -> Scanned {
        for (at, c) in text.char_indices() {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' if self.in_string => self.escaped = true,
                '"' => self.in_string = !self.in_string,
                // neither stands in JSON: it ends at the next tag, whatever is open
                c if self.in_string && c < ' ' => return Scanned::Broken(at),
                '<' if !self.in_string => return Scanned::Broken(at),
                '{' | '[' if !self.in_string => self.depth += 1,
                '}' | ']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Scanned::Complete(at + c.len_utf8());
                    }
                }
                _ => {}
            }
        }
        Scanned::All
    }
}

/// What comes next between `<function=…>` and the end of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// A parameter with its value, and where the text goes on.
    Parameter(&'a str, &'a str, usize),
    /// The function ends; where the text goes on.
    End(usize),
    /// It depends on what follows.
    Undecided,
}

/// Reads the name in `<function=NAME>`.
pub(crate) fn function(text: &str) -> Opening {
    let mut cursor = Cursor { text, at: 0 };
    if let Err(other) = cursor.take(&["<function="]) {
        return other;
    }
    let rest = &text[cursor.at..];
    match rest.find('>') {
        Some(end) => Opening::Of(rest[..end].trim().to_owned(), cursor.at + end + 1),
        None => Opening::Undecided,
    }
}

/// Reads one parameter; `called` is the tag that ends a call.
pub(crate) fn step<'a>(text: &'a str, called: &str) -> Step<'a> {
    const PARAMETER: &str = "<parameter=";
    let first = [PARAMETER, "</function>", called];
    let first = first
        .into_iter()
        .filter_map(|tag| Some((text.find(tag)?, tag)));
    let Some((at, tag)) = first.min() else {
        return Step::Undecided;
    };
    if tag == called {
        return Step::End(at);
    }
    if tag != PARAMETER {
        return Step::End(at + tag.len());
    }
    let from = at + PARAMETER.len();
    let Some(named) = text[from..].find('>') else {
        return Step::Undecided;
    };
    let (name, value_at) = (text[from..from + named].trim(), from + named + 1);
    let behind = &text[value_at..];
    let (length, tag) = match (behind.find("</parameter>"), behind.find(called)) {
        (Some(end), called) if called.is_none_or(|called| end < called) => {
            (end, "</parameter>".len())
        }
        // a parameter that is not closed ends with its function
        (_, Some(end)) => (behind[..end].find("</function>").unwrap_or(end), 0),
        (_, None) => return Step::Undecided,
    };
    let value = &behind[..length];
    let value = value.strip_prefix('\n').unwrap_or(value);
    let value = value.strip_suffix('\n').unwrap_or(value);
    Step::Parameter(name, value, value_at + length + tag)
}

/// A member of an object.
pub(crate) fn member(name: &str, value: &Value) -> String {
    format!("{}:{value}", Value::from(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_certain_where_its_arguments_begin() {
        let of = |name: &str, at| Opening::Of(name.to_owned(), at);
        for (text, want) in [
            ("{\"name\": \"f\", \"arguments\": {", of("f", 27)),
            (
                "\n {\"name\":\"a\\\"b\",\"parameters\":{\"x",
                of("a\"b", 30),
            ),
            ("", Opening::Undecided),
            ("{\"na", Opening::Undecided),
            ("{\"name\": \"f\\\"", Opening::Undecided),
            ("{\"name\": \"f\", \"arguments\": ", Opening::Undecided),
            ("{\"name\": \"f\", \"arguments\": \"{", Opening::Other),
            ("{\"name\": 1", Opening::Other),
            ("{\"arguments\": {", Opening::Other),
            ("no json", Opening::Other),
        ] {
            assert_eq!(opening(text), want, "{text}");
        }
        assert_eq!(function("\n<function=f>\n"), of("f", 13));
        assert_eq!(function("<func"), Opening::Undecided);
        assert_eq!(function("{"), Opening::Other);
    }

    #[test]
    fn arguments_end_where_their_object_does() {
        for (text, want) in [
            ("{}}", Scanned::Complete(2)),
            (
                "{\"a\": [1, {\"}\\\"\": 2}], \"b\": \"<x>\"} ",
                Scanned::Complete(34),
            ),
            ("{\"a\": \"\\\\\"}", Scanned::Complete(11)),
            ("{\"a\": ", Scanned::All),
            ("{\"a\": \"b\n", Scanned::Broken(8)),
            ("{\"a\": </tool_call>", Scanned::Broken(6)),
        ] {
            assert_eq!(Scan::default().push(text), want, "{text}");
        }
    }

    #[test]
    fn parameters_come_one_by_one() {
        let step = |text| step(text, "</tool_call>");
        let text = "\n<parameter=a>\n1 < 2\n</parameter>\n";
        assert_eq!(step(text), Step::Parameter("a", "1 < 2", text.len() - 1));
        assert_eq!(step("<parameter=a>\n1"), Step::Undecided);
        assert_eq!(step("\n</function>"), Step::End(12));
        assert_eq!(step("\n</tool_call>"), Step::End(1));
        let open = "<parameter=a>\n1\n</function>\n</tool_call>";
        assert_eq!(step(open), Step::Parameter("a", "1", 16));
    }
}
