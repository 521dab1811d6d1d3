//! The parts of an assistant's text: reasoning, content, calls of tools.
//!
//! Invariant: the parts follow from the whole text alone, however the pieces cut it. A call that does not parse is content.

use super::tools::{Call, Tools};
use std::sync::Arc;

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";
const CALL: &str = "<tool_call>";
const CALLED: &str = "</tool_call>";

/// Something that a piece of text completes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Reasoning(String),
    Content(String),
    Call(Call),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing came but white space.
    Start,
    Reasoning,
    /// Line breaks behind the reasoning are dropped.
    Thought,
    Content,
    Call,
}

/// A text that is cut into parts while it comes.
#[derive(Debug)]
pub(crate) struct Parts {
    state: State,
    held: String,
    tools: Option<Arc<Tools>>,
    begun: bool, // whether reasoning has text
    calls: usize,
}

impl Parts {
    /// `reasoning`: whether the model writes `<think>`, and whether the prompt has done so already; `tools`: the tools
    /// that it may call.
    pub(crate) fn new(reasoning: Option<bool>, tools: Option<Arc<Tools>>) -> Self {
        Self {
            state: match reasoning {
                Some(true) => State::Reasoning,
                Some(false) => State::Start,
                None => State::Content,
            },
            held: String::new(),
            tools,
            begun: false,
            calls: 0,
        }
    }

    /// What the text completes with `piece` behind it.
    pub(crate) fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while self.advance(&mut parts) {}
        parts
    }

    /// What is left.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let part = match self.state {
            State::Reasoning => Part::Reasoning(held),
            State::Call => match self.call(&held) {
                Some(call) => Part::Call(call),
                None => Part::Content(format!("{CALL}{held}")),
            },
            State::Thought => return Vec::new(),
            State::Start | State::Content if self.calls > 0 && held.trim().is_empty() => {
                return Vec::new();
            }
            State::Start | State::Content => Part::Content(held),
        };
        match &part {
            Part::Reasoning(text) | Part::Content(text) if text.is_empty() => Vec::new(),
            _ => vec![part],
        }
    }

    fn call(&mut self, text: &str) -> Option<Call> {
        let call = self.tools.as_ref()?.parse(text)?;
        self.calls += 1;
        Some(call)
    }

    /// One transition; whether there may be another one.
    fn advance(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(THINK) {
                    self.held = rest.to_owned();
                    self.state = State::Reasoning;
                    return true;
                }
                if THINK.starts_with(text) {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Reasoning => {
                if !self.begun {
                    self.held = self.held.trim_start_matches('\n').to_owned();
                    self.begun = !self.held.is_empty();
                }
                let found = self.until(THOUGHT, State::Thought);
                self.emit(found, Part::Reasoning, parts)
            }
            State::Thought => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Content;
                true
            }
            State::Content if self.tools.is_some() => {
                let found = self.until(CALL, State::Call);
                self.emit(found, Part::Content, parts)
            }
            State::Content => {
                let all = std::mem::take(&mut self.held);
                self.emit((all, false), Part::Content, parts)
            }
            State::Call => {
                let Some(at) = self.held.find(CALLED) else {
                    return false;
                };
                let text = self.held[..at].to_owned();
                let rest = self.held[at + CALLED.len()..].to_owned();
                match self.call(&text) {
                    Some(call) => parts.push(Part::Call(call)),
                    None => parts.push(Part::Content(format!("{CALL}{text}{CALLED}"))),
                }
                self.held = rest;
                self.state = State::Content;
                true
            }
        }
    }

    /// The text in front of a tag, without white space at its end, and the state behind it; without the tag, the text that
    /// cannot belong to one.
    fn until(&mut self, tag: &str, next: State) -> (String, bool) {
        if let Some(at) = self.held.find(tag) {
            let text = self.held[..at].trim_end().to_owned();
            self.held = self.held[at + tag.len()..].to_owned();
            self.state = next;
            return (text, true);
        }
        let begins = |n: &usize| self.held.ends_with(&tag[..*n]);
        let tail = (1..tag.len()).rev().find(begins).unwrap_or(0);
        let certain = self.held[..self.held.len() - tail].trim_end().len();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
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
                | (Some(Part::Reasoning(a)), Part::Reasoning(b)) => a.push_str(&b),
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
        let call = |name: &str, arguments: &str| {
            Part::Call(Call {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
            })
        };
        let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
        let tools = |format| {
            let list = tools.as_array().unwrap().clone();
            Some(Arc::new(Tools::new(list, format).unwrap()))
        };
        let json = ToolFormat::Json;
        for (text, state, with_tools, want) in [
            (
                "plain <text>",
                Some(false),
                false,
                vec![content("plain <text>")],
            ),
            (
                "<think>\na < b\n</think>\n\nyes",
                Some(false),
                false,
                vec![reasoning("a < b"), content("yes")],
            ),
            (
                "so</think>no",
                Some(true),
                false,
                vec![reasoning("so"), content("no")],
            ),
            (
                "never ends",
                Some(true),
                false,
                vec![reasoning("never ends")],
            ),
            (
                "<think>x</think>",
                None,
                false,
                vec![content("<think>x</think>")],
            ),
            ("<thi", Some(false), false, vec![content("<thi")]),
            (
                "Let me see.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"é\": [1, 2.5]}}\n</tool_call>\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n",
                Some(false),
                true,
                vec![
                    content("Let me see."),
                    call("f", "{\"é\":[1,2.5]}"),
                    call("f", "{}"),
                ],
            ),
            (
                "<tool_call>no json</tool_call> x",
                Some(false),
                true,
                vec![content("<tool_call>no json</tool_call> x")],
            ),
            (
                "<tool_call>{\"name\": \"f\", \"arguments\": {}}",
                Some(false),
                true,
                vec![call("f", "{}")],
            ),
            (
                "<tool_call>{\"na",
                Some(false),
                true,
                vec![content("<tool_call>{\"na")],
            ),
        ] {
            for step in [1, 2, 3, 5, 1000] {
                let tools = with_tools.then(|| tools(json)).flatten();
                let found = cut(text, step, Parts::new(state, tools));
                assert_eq!(found, want, "{text:?} by {step}");
            }
        }
    }
}
