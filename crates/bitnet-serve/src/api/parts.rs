//! The parts of an assistant's text: reasoning, content, calls of tools.
//!
//! Invariant: the parts follow from the whole text alone, however the pieces cut it. What does not begin as a call is content;
//! what begins as one stays one, with the arguments that the text has.

use super::calls::{Opening, Scan, Scanned, Step, function, member, opening, step};
use super::tools::{ToolFormat, Tools};
use bitnet_text::{Passage, ReasoningSplitter, text_before};
use std::sync::Arc;

const CALL: &str = "<tool_call>";
const CALLED: &str = "</tool_call>";

/// Something that a piece of text completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Reasoning(String),
    Content(String),
    /// A call of a function begins.
    Call(String),
    /// More of its arguments.
    Arguments(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Content,
    /// It is not certain yet which function is called.
    Call,
    /// The object of arguments.
    Arguments(Scan),
    /// Arguments that are no JSON, up to the end of the call.
    Broken,
    /// Parameters between tags: the function, and the parameters that came.
    Parameters(String, Vec<String>),
    /// Behind the arguments.
    Called,
}

/// A text that is cut into parts while it comes.
#[derive(Debug)]
pub(crate) struct Parts {
    reasoning: ReasoningSplitter,
    state: State,
    held: String,
    tools: Option<Arc<Tools>>,
    calls: usize,
    cut: bool, // whether the text ended in the arguments of a call
}

impl Parts {
    /// `reasoning`: whether the model writes `<think>`, and whether the prompt has done so already; `tools`: the tools
    /// that it may call.
    pub(crate) fn new(reasoning: Option<bool>, tools: Option<Arc<Tools>>) -> Self {
        Self {
            reasoning: ReasoningSplitter::new(reasoning),
            state: State::Content,
            held: String::new(),
            tools,
            calls: 0,
            cut: false,
        }
    }

    /// Whether the text ended in the arguments of a call.
    pub(crate) fn is_cut(&self) -> bool {
        self.cut
    }

    /// What the text completes with `piece` behind it.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        for passage in self.reasoning.push(piece) {
            self.take(passage, &mut parts);
        }
        parts
    }

    /// What is left.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        if let Some(passage) = self.reasoning.finish() {
            self.take(passage, &mut parts);
        }
        self.cut = matches!(self.state, State::Arguments(_) | State::Parameters(..));
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Call => parts.extend(self.whole(&held, format!("{CALL}{held}"))),
            // a call that was cut off keeps what came
            State::Arguments(_) | State::Parameters(..) => {}
            State::Called => {
                // the bracket of the call, which nothing closes with its tag
                let text = held.trim_start();
                let text = text.strip_prefix('}').unwrap_or(text);
                if !text.trim().is_empty() {
                    parts.push(Part::Content(text.to_owned()));
                }
            }
            _ if held.is_empty() => {}
            State::Broken => parts.push(Part::Arguments(held)),
            State::Content if self.calls > 0 && held.trim().is_empty() => {}
            State::Content => parts.push(Part::Content(held)),
        }
        parts
    }

    fn take(&mut self, passage: Passage, parts: &mut Vec<Part>) {
        match passage {
            Passage::Reasoning(text) => parts.push(Part::Reasoning(text)),
            Passage::Answer(text) if self.tools.is_none() => parts.push(Part::Content(text)),
            Passage::Answer(text) => {
                self.held.push_str(&text);
                while self.advance(parts) {}
            }
        }
    }

    /// A call, from its whole text, else content.
    fn whole(&mut self, text: &str, content: String) -> Vec<Part> {
        let call = self.tools.as_ref().and_then(|tools| tools.parse(text));
        match call {
            Some(call) => {
                self.calls += 1;
                vec![Part::Call(call.name), Part::Arguments(call.arguments)]
            }
            None => vec![Part::Content(content)],
        }
    }

    /// Begins a call of which the function is certain.
    fn open(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(tools) = &self.tools else {
            return false;
        };
        let is_json = tools.format() == ToolFormat::Json;
        let found = match is_json {
            true => opening(&self.held),
            false => function(&self.held),
        };
        let Opening::Of(name, at) = found else {
            return false;
        };
        if !tools.has(&name) {
            return false;
        }
        self.calls += 1;
        self.held.drain(..at);
        parts.push(Part::Call(name.clone()));
        self.state = match is_json {
            true => State::Arguments(Scan::default()),
            false => {
                parts.push(Part::Arguments("{".to_owned()));
                State::Parameters(name, Vec::new())
            }
        };
        true
    }

    /// The next parameter between tags.
    fn parameter(&mut self, name: String, mut have: Vec<String>, parts: &mut Vec<Part>) -> bool {
        match step(&self.held, CALLED) {
            Step::Undecided => return false,
            Step::End(at) => {
                self.held.drain(..at);
                self.state = State::Called;
                parts.push(Part::Arguments("}".to_owned()));
            }
            Step::Parameter(parameter, text, at) => {
                // of two values the first counts: it was sent
                if !have.iter().any(|other| other == parameter) {
                    let value = self.tools.as_ref().map(|t| t.value(&name, parameter, text));
                    let comma = if have.is_empty() { "" } else { "," };
                    let member = member(parameter, &value.unwrap_or_default());
                    parts.push(Part::Arguments(format!("{comma}{member}")));
                    have.push(parameter.to_owned());
                }
                self.held.drain(..at);
                self.state = State::Parameters(name, have);
            }
        }
        true
    }

    /// One transition; whether there may be another one.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state.clone() {
            State::Content => {
                let found = self.until(CALL, State::Call);
                self.emit(found, Part::Content, parts)
            }
            State::Call => {
                if self.open(parts) {
                    return true;
                }
                let Some(at) = self.held.find(CALLED) else {
                    return false;
                };
                let text = self.held[..at].to_owned();
                self.held.drain(..at + CALLED.len());
                self.state = State::Content;
                parts.extend(self.whole(&text, format!("{CALL}{text}{CALLED}")));
                true
            }
            State::Arguments(mut scan) => {
                let (at, next) = match scan.push(&self.held) {
                    Scanned::All => (self.held.len(), State::Arguments(scan)),
                    Scanned::Complete(at) => (at, State::Called),
                    Scanned::Broken(at) => (at, State::Broken),
                };
                let goes_on = !matches!(next, State::Arguments(_));
                self.state = next;
                let text: String = self.held.drain(..at).collect();
                self.emit((text, goes_on), Part::Arguments, parts)
            }
            State::Broken => {
                let found = self.until(CALLED, State::Content);
                self.emit(found, Part::Arguments, parts)
            }
            State::Parameters(name, have) => self.parameter(name, have, parts),
            State::Called => {
                let (end, begin) = (self.held.find(CALLED), self.held.find(CALL));
                let (at, next) = match (end, begin) {
                    // the next call begins without the end of this one
                    (end, Some(begin)) if end.is_none_or(|end| begin < end) => {
                        (begin + CALL.len(), State::Call)
                    }
                    (Some(end), _) => (end + CALLED.len(), State::Content),
                    _ => return false,
                };
                self.held.drain(..at);
                self.state = next;
                true
            }
        }
    }

    /// The text in front of a tag, without white space at its end, and the state behind it; without the tag, the text that
    /// cannot belong to one.
    fn until(&mut self, tag: &str, next: State) -> (String, bool) {
        let (text, found) = text_before(&mut self.held, tag);
        if found {
            self.state = next;
        }
        (text, found)
    }

    fn emit(
        &self,
        (text, goes_on): (String, bool),
        part: impl Fn(String) -> Part,
        parts: &mut Vec<Part>,
    ) -> bool {
        if !text.is_empty() {
            parts.push(part(text));
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::super::tools::ToolFormat;
    use super::*;
    use serde_json::json;

    /// Neighbors of one kind joined.
    fn joined(parts: Vec<Part>) -> Vec<Part> {
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Content(a)), Part::Content(b))
                | (Some(Part::Reasoning(a)), Part::Reasoning(b))
                | (Some(Part::Arguments(a)), Part::Arguments(b)) => a.push_str(&b),
                (_, part) => joined.push(part),
            }
        }
        joined
    }

    fn cut(text: &str, step: usize, mut parts: Parts) -> Vec<Part> {
        let characters: Vec<char> = text.chars().collect();
        let mut found = Vec::new();
        for piece in characters.chunks(step) {
            found.extend(parts.push(&piece.iter().collect::<String>()));
        }
        found.extend(parts.finish());
        joined(found)
    }

    #[test]
    fn parts_are_the_same_however_the_text_is_cut() {
        let content = |text: &str| Part::Content(text.to_owned());
        let reasoning = |text: &str| Part::Reasoning(text.to_owned());
        let call = |name: &str| Part::Call(name.to_owned());
        let arguments = |text: &str| Part::Arguments(text.to_owned());
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let tools = |format| {
            let list = tools.as_array().unwrap().clone();
            Some(Arc::new(Tools::new(list, format).unwrap()))
        };
        let (json, xml) = (Some(ToolFormat::Json), Some(ToolFormat::Xml));
        for (text, state, with_tools, want) in [
            (
                "plain <text>",
                Some(false),
                None,
                vec![content("plain <text>")],
            ),
            (
                "<think>\na < b\n</think>\n\nyes",
                Some(false),
                None,
                vec![reasoning("a < b"), content("yes")],
            ),
            (
                "so</think>no",
                Some(true),
                None,
                vec![reasoning("so"), content("no")],
            ),
            (
                "never ends",
                Some(true),
                None,
                vec![reasoning("never ends")],
            ),
            (
                "<think>x</think>",
                None,
                None,
                vec![content("<think>x</think>")],
            ),
            ("<thi", Some(false), None, vec![content("<thi")]),
            (
                "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"é\": [1, 2.5]}}\n</tool_call>\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n",
                Some(false),
                json,
                vec![
                    content("Let me see."),
                    call("f"),
                    arguments("{\"é\": [1, 2.5]}"),
                    call("f"),
                    arguments("{}"),
                ],
            ),
            (
                "<tool_call>no json</tool_call> x",
                Some(false),
                json,
                vec![content("<tool_call>no json</tool_call> x")],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
                Some(false),
                json,
                vec![call("f"), arguments("{}")],
            ),
            // the function is certain at the end alone
            (
                "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>",
                Some(false),
                json,
                vec![call("f"), arguments("{\"a\":1}")],
            ),
            // a tag in a text, arguments that are cut off, arguments that are no JSON
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}, \"id\": 1}\n</tool_call>\nso",
                None,
                json,
                vec![
                    call("f"),
                    arguments("{\"a\": \"</tool_call>\"}"),
                    content("\nso"),
                ],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b",
                None,
                json,
                vec![call("f"), arguments("{\"a\": \"b")],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"b\n</tool_call> x",
                None,
                json,
                vec![call("f"), arguments("{\"a\": \"b"), content(" x")],
            ),
            (
                "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
                None,
                json,
                vec![content(
                    "<tool_call>{\"name\": \"g\", \"arguments\": {}}</tool_call>",
                )],
            ),
            (
                "<tool_call>\n<function=f>\n<parameter=a>\n1 < 2\n</parameter>\n<parameter=b>\n[3]\n</parameter>\n<parameter=a>\n4\n</parameter>\n</function>\n</tool_call>",
                None,
                xml,
                vec![call("f"), arguments("{\"a\":\"1 < 2\",\"b\":[3]}")],
            ),
            (
                "<tool_call><function=f></function></tool_call> and <tool_call><function=g></function></tool_call>",
                None,
                xml,
                vec![
                    call("f"),
                    arguments("{}"),
                    content(" and<tool_call><function=g></function></tool_call>"),
                ],
            ),
            (
                "<tool_call><function=f><parameter=a>1</parameter><parameter=b>2</tool_call>",
                None,
                xml,
                vec![call("f"), arguments("{\"a\":1,\"b\":2}")],
            ),
            // calls that no tag ends
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{}}\n<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>",
                None,
                json,
                vec![
                    call("f"),
                    arguments("{}"),
                    call("f"),
                    arguments("{\"a\":1}"),
                ],
            ),
            (
                "<tool_call>{\"name\":\"f\",\"arguments\":{}}\nDone.",
                None,
                json,
                vec![call("f"), arguments("{}"), content("\nDone.")],
            ),
            (
                "<tool_call>{\"na",
                Some(false),
                json,
                vec![content("<tool_call>{\"na")],
            ),
        ] {
            for step in [1, 2, 3, 5, 1000] {
                let tools = with_tools.and_then(tools);
                let found = cut(text, step, Parts::new(state, tools));
                assert_eq!(found, want, "{text:?} by {step}");
            }
        }
    }
}
