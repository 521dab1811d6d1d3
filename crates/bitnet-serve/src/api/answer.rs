//! What an answer collects while its events come.
//!
//! Invariant: what is collected follows from the events; a stream says the same as one body.

use crate::engine::{Event, TokenLogprob};
use bitnet_model::Stopped;
use serde_json::{Value, json};

/// One text of an answer.
#[derive(Debug, Default)]
pub(crate) struct Text {
    pub text: String,
    /// Characters of the text.
    pub length: usize,
    pub tokens: Vec<u32>,
    pub prompt: Vec<TokenLogprob>,
    pub logprobs: Vec<TokenLogprob>,
    /// Characters of the text in front of each token that has a log-probability.
    pub offsets: Vec<usize>,
    pub stopped: Option<Stopped>,
    /// The token behind the text that ended it.
    pub ending: Option<TokenLogprob>,
}

impl Text {
    /// Adds an event of this text.
    pub(crate) fn add(&mut self, event: &Event) {
        match event {
            Event::Prompt { tokens, .. } => self.prompt.clone_from(tokens),
            Event::Token {
                token,
                text,
                offset,
                logprob,
                ..
            } => {
                self.tokens.push(*token);
                self.text.push_str(text);
                self.length += text.chars().count();
                self.logprobs.extend(logprob.clone());
                self.offsets.extend(logprob.as_ref().map(|_| *offset));
            }
            Event::Done {
                text,
                stopped,
                ending,
                ..
            } => {
                self.text.push_str(text);
                self.length += text.chars().count();
                self.stopped = Some(*stopped);
                self.ending.clone_from(ending);
            }
            Event::Vector { .. } | Event::Failed(_) => {}
        }
    }

    /// `stop` or `length`.
    pub(crate) fn finish_reason(&self) -> &'static str {
        match self.stopped {
            Some(Stopped::Length) | None => "length",
            Some(_) => "stop",
        }
    }
}

/// Which text an event is of.
pub(crate) fn choice_of(event: &Event) -> Option<usize> {
    match event {
        Event::Prompt { choice, .. } | Event::Token { choice, .. } | Event::Done { choice, .. } => {
            Some(*choice)
        }
        Event::Vector { .. } | Event::Failed(_) => None,
    }
}

/// The tokens that a request cost.
pub(crate) fn usage(prompt: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    })
}

/// An event of a stream.
pub(crate) fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// The end of a stream.
pub(crate) const DONE: &str = "data: [DONE]\n\n";
