//! `/v1/responses`: text in, text out.
//!
//! Invariant: the text is that of the same conversation in `/v1/chat/completions`.

use super::answer::{Text, choice_of};
use super::conversation::{Conversation, Names, Reply, read_conversation};
use super::error::ApiError;
use super::fields::Fields;
use super::messages::{self, MOST_MESSAGES};
use super::parts::{Part, Parts};
use super::sampling::{Sampling, Streaming};
use super::service::Service;
use crate::engine::{Client, Event, Generate};
use bitnet_model::Stopped;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Responses {
    service: Arc<Service>,
    id: String,
    created: u64,
    stream: bool,
    asked: Map<String, Value>, // what the answer repeats of the request
    prompt: usize,
    text: Text,
    parts: Parts,
    content: String,
    reasoning: String,
    events: usize,
    begun: bool,
}

/// Reads a request.
pub(crate) fn prepare(
    service: &Arc<Service>,
    body: Value,
    client: Client,
) -> Result<(Generate, Responses, Vec<String>), ApiError> {
    let mut asked = Map::new();
    for name in ["instructions", "max_output_tokens", "metadata"] {
        asked.insert(
            name.to_owned(),
            body.get(name).cloned().unwrap_or(Value::Null),
        );
    }
    for name in ["temperature", "top_p"] {
        asked.insert(
            name.to_owned(),
            body.get(name).cloned().unwrap_or(Value::Null),
        );
    }
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    service.predicts()?;
    let streaming = Streaming::take(&mut fields)?;
    fields.refuse("n", &[json!(1)])?;
    let sampling = Sampling::take(&mut fields, service)?;
    let most = fields.whole("max_output_tokens", 1, u64::from(u32::MAX))?;
    let mut list: Vec<Value> = Vec::new();
    if let Some(text) = fields.text("instructions")? {
        list.push(json!({"role": "system", "content": text}));
    }
    match fields.take("input") {
        Some(Value::String(text)) => list.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) if (1..MOST_MESSAGES).contains(&items.len()) => {
            for (number, item) in items.into_iter().enumerate() {
                let place = format!("input[{number}]");
                let mut item = Fields::inside(&place, item)?;
                item.refuse("type", &["message".into()])?;
                let (role, content) = (item.take("role"), item.take("content"));
                for name in ["id", "status"] {
                    item.take(name);
                }
                item.finish(false)?;
                let message = json!({"role": role, "content": content});
                list.push(messages::message(&place, message)?);
            }
        }
        _ => {
            return Err(ApiError::field(
                "input",
                format!(
                    "expected a string or a list of 1 to {} messages",
                    MOST_MESSAGES - 1
                ),
            ));
        }
    }
    let mut format = Value::Null;
    if let Some(text) = fields.take("text") {
        let mut text = Fields::inside("text", text)?;
        format = text.take("format").unwrap_or(Value::Null);
        text.refuse("verbosity", &["medium".into()])?;
        text.finish(false)?;
    }
    let conversation = Conversation {
        messages: list,
        tools: Vec::new(),
        tool_choice: None,
        response_format: (!format.is_null()).then(|| format.clone()),
        variables: fields.object("chat_template_kwargs")?.unwrap_or_default(),
        add_generation_prompt: true,
        names: Names {
            messages: "input",
            format: "text.format",
        },
    };
    fields.refuse("tools", &[json!([])])?;
    fields.refuse("tool_choice", &["auto".into(), "none".into()])?;
    fields.refuse("truncation", &["disabled".into()])?;
    fields.refuse("include", &[json!([])])?;
    fields.refuse("background", &[json!(false)])?;
    for name in [
        "previous_response_id",
        "conversation",
        "reasoning",
        "prompt",
        "max_tool_calls",
        "top_logprobs",
    ] {
        fields.refuse(name, &[json!(0)])?;
    }
    fields.boolean("parallel_tool_calls")?;
    let ignored = fields.finish(service.lenient)?;
    let format = match format.is_null() {
        true => json!({"type": "text"}),
        false => format,
    };
    asked.insert("text".to_owned(), json!({"format": format}));
    let (request, reply) = read_conversation(
        service,
        conversation,
        sampling,
        most.map(|most| most as usize),
        None,
        client,
    )?;
    let Reply { reasoning, .. } = reply;
    let answer = Responses {
        service: Arc::clone(service),
        id: service.id("resp"),
        created: service.created(),
        stream: streaming.stream,
        asked,
        prompt: request.prompts[0].len(),
        text: Text::default(),
        parts: Parts::new(reasoning, None),
        content: String::new(),
        reasoning: String::new(),
        events: 0,
        begun: false,
    };
    Ok((request, answer, ignored))
}

impl Responses {
    /// Takes an event; what a stream says of it.
    pub(crate) fn push(&mut self, event: &Event) -> String {
        if choice_of(event).is_none() {
            return String::new();
        }
        self.text.add(event);
        let (piece, end) = match event {
            Event::Token { text, .. } => (text, false),
            Event::Done { text, .. } => (text, true),
            _ => return String::new(),
        };
        let mut parts = self.parts.push(piece);
        if end {
            parts.extend(self.parts.finish());
        }
        let mut text = self.begin();
        let item = self.message_id();
        for part in parts {
            match part {
                Part::Reasoning(piece) => self.reasoning.push_str(&piece),
                Part::Content(piece) => {
                    self.content.push_str(&piece);
                    text.push_str(&self.event(
                        "response.output_text.delta",
                        json!({"item_id": item, "output_index": 0, "content_index": 0, "delta": piece, "logprobs": []}),
                    ));
                }
                Part::Call(_) | Part::Arguments(_) => {}
            }
        }
        match self.stream {
            true => text,
            false => String::new(),
        }
    }

    /// The events in front of the first text.
    fn begin(&mut self) -> String {
        if self.begun {
            return String::new();
        }
        self.begun = true;
        let response = self.response("in_progress", Vec::new());
        let item = self.message("in_progress", Vec::new());
        let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
        let item_id = self.message_id();
        [
            ("response.created", json!({"response": response})),
            ("response.in_progress", json!({"response": response})),
            (
                "response.output_item.added",
                json!({"output_index": 0, "item": item}),
            ),
            (
                "response.content_part.added",
                json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part}),
            ),
        ]
        .into_iter()
        .map(|(name, value)| self.event(name, value))
        .collect()
    }

    /// The end of a stream.
    pub(crate) fn finish(&mut self) -> String {
        let item_id = self.message_id();
        let part = self.part();
        let item = self.message(self.status(), vec![part.clone()]);
        let body = self.body();
        let last = match self.status() {
            "completed" => "response.completed",
            _ => "response.incomplete",
        };
        [
            (
                "response.output_text.done",
                json!({"item_id": item_id, "output_index": 0, "content_index": 0, "text": self.content, "logprobs": []}),
            ),
            (
                "response.content_part.done",
                json!({"item_id": item_id, "output_index": 0, "content_index": 0, "part": part}),
            ),
            ("response.output_item.done", json!({"output_index": 0, "item": item})),
            (last, json!({"response": body})),
        ]
        .into_iter()
        .map(|(name, value)| self.event(name, value))
        .collect()
    }

    fn event(&mut self, name: &str, mut value: Value) -> String {
        value["type"] = name.into();
        value["sequence_number"] = self.events.into();
        self.events += 1;
        format!("event: {name}\ndata: {value}\n\n")
    }

    fn message_id(&self) -> String {
        self.id.replacen("resp", "msg", 1)
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.content, "annotations": [], "logprobs": []})
    }

    fn message(&self, status: &str, content: Vec<Value>) -> Value {
        json!({
            "type": "message", "id": self.message_id(), "status": status, "role": "assistant", "content": content,
        })
    }

    fn status(&self) -> &'static str {
        match self.text.stopped {
            Some(Stopped::Length) => "incomplete",
            _ => "completed",
        }
    }

    /// The answer in one body.
    pub(crate) fn body(&self) -> Value {
        let mut output = Vec::new();
        // a stream has the message alone in its events, at place 0
        if !self.reasoning.is_empty() && !self.stream {
            output.push(json!({
                "type": "reasoning",
                "id": self.id.replacen("resp", "rs", 1),
                "summary": [],
                "content": [{"type": "reasoning_text", "text": self.reasoning}],
            }));
        }
        output.push(self.message(self.status(), vec![self.part()]));
        let mut response = self.response(self.status(), output);
        if self.status() == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        let tokens = self.text.tokens.len();
        response["usage"] = json!({
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt + tokens,
        });
        response
    }

    fn response(&self, status: &str, output: Vec<Value>) -> Value {
        let mut response = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "model": self.service.name,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "store": false,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": null,
        });
        for (name, value) in &self.asked {
            response[name.as_str()] = value.clone();
        }
        response
    }
}
