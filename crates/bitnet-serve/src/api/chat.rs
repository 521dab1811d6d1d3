//! `/v1/chat/completions`.
//!
//! Invariant: the prompt is what the model's own template renders; content, reasoning and calls together are the text that
//! `bitnet-run --chat` prints.

use super::answer::{DONE, Text, choice_of, data, usage};
use super::completions::MOST_LOGPROBS;
use super::conversation::{Conversation, Names, Reply, read_conversation};
use super::error::ApiError;
use super::fields::{Fields, agreeing};
use super::messages;
use super::parts::{Part, Parts};
use super::sampling::{Sampling, Streaming};
use super::service::Service;
use super::tools::Call;
use crate::engine::{Client, Event, Generate, TokenLogprob};
use serde_json::{Value, json};
use std::sync::Arc;

/// One message of an answer.
#[derive(Debug)]
struct Message {
    text: Text,
    parts: Parts,
    content: String,
    reasoning: String,
    calls: Vec<Call>,
    drops: bool, // whether further calls are dropped
    begun: bool,
    sent: usize, // log-probabilities that were streamed
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Chat {
    service: Arc<Service>,
    id: String,
    created: u64,
    streaming: Streaming,
    prompt: Arc<[u32]>,
    logprobs: bool,
    ids: bool,
    seed: Option<u64>,
    one_call: bool,
    messages: Vec<Message>,
}

/// Reads a request.
pub(crate) fn prepare(
    service: &Arc<Service>,
    body: Value,
    client: Client,
) -> Result<(Generate, Chat, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    service.predicts()?;
    let streaming = Streaming::take(&mut fields)?;
    let sampling = Sampling::take(&mut fields, service)?;
    let older = fields.whole("max_tokens", 0, u64::from(u32::MAX))?;
    let most = fields.whole("max_completion_tokens", 0, u64::from(u32::MAX))?;
    let most = agreeing(("max_tokens", older), ("max_completion_tokens", most))?;
    let wants_logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.whole("top_logprobs", 0, MOST_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !wants_logprobs {
        return Err(ApiError::field(
            "top_logprobs",
            "expected `logprobs`: true beside it",
        ));
    }
    let list = fields.list("messages")?.unwrap_or_default();
    let conversation = Conversation {
        messages: messages::read(list)?,
        tools: fields.list("tools")?.unwrap_or_default(),
        tool_choice: fields.take("tool_choice"),
        response_format: fields.take("response_format"),
        variables: fields.object("chat_template_kwargs")?.unwrap_or_default(),
        names: Names::default(),
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
    };
    let one_call = !fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("skip_special_tokens", &[json!(true)])?;
    for name in [
        "audio",
        "prediction",
        "web_search_options",
        "functions",
        "function_call",
        "reasoning_effort",
        "verbosity",
        "chat_template",
        "documents",
        "continue_final_message",
    ] {
        fields.refuse(name, &[json!(false)])?;
    }
    let ignored = fields.finish(service.lenient)?;
    let logprobs = wants_logprobs.then_some(top.unwrap_or(0) as usize);
    let seed = sampling.sampler.map(|options| options.seed);
    let choices = sampling.choices;
    let (request, reply) = read_conversation(
        service,
        conversation,
        sampling,
        most.map(|most| most as usize),
        logprobs,
        client,
    )?;
    let Reply { reasoning, tools } = reply;
    let message = |_| Message {
        text: Text::default(),
        parts: Parts::new(reasoning, tools.clone()),
        content: String::new(),
        reasoning: String::new(),
        calls: Vec::new(),
        drops: false,
        begun: false,
        sent: 0,
    };
    let chat = Chat {
        service: Arc::clone(service),
        id: service.id("chatcmpl"),
        created: service.created(),
        streaming,
        prompt: Arc::clone(&request.prompts[0]),
        logprobs: wants_logprobs,
        ids,
        seed,
        one_call,
        messages: (0..choices).map(message).collect(),
    };
    Ok((request, chat, ignored))
}

impl Chat {
    /// Takes an event; what a stream says of it.
    pub(crate) fn push(&mut self, event: &Event) -> String {
        let Some(choice) = choice_of(event) else {
            return String::new();
        };
        let message = &mut self.messages[choice];
        message.text.add(event);
        let (piece, end) = match event {
            Event::Token { text, .. } => (text, false),
            Event::Done { text, .. } => (text, true),
            _ => return String::new(),
        };
        let mut parts = message.parts.push(piece);
        if end {
            parts.extend(message.parts.finish());
        }
        let mut deltas = Vec::new();
        if !message.begun {
            message.begun = true;
            deltas.push(json!({"role": "assistant", "content": ""}));
        }
        for part in parts {
            deltas.extend(self.add(choice, part));
        }
        if end {
            deltas.push(json!({}));
        }
        if !self.streaming.stream {
            return String::new();
        }
        let mut text = String::new();
        let last = deltas.len().saturating_sub(1);
        for (number, delta) in deltas.into_iter().enumerate() {
            let is_end = end && number == last;
            text.push_str(&self.chunk(choice, delta, is_end));
        }
        text
    }

    /// Adds a part to a message; what a stream says of it.
    fn add(&mut self, choice: usize, part: Part) -> Vec<Value> {
        let message = &mut self.messages[choice];
        match part {
            Part::Content(text) => {
                message.content.push_str(&text);
                vec![json!({"content": text})]
            }
            Part::Reasoning(text) => {
                message.reasoning.push_str(&text);
                vec![json!({"reasoning_content": text})]
            }
            Part::Call(_) if self.one_call && !message.calls.is_empty() => {
                message.drops = true;
                Vec::new()
            }
            Part::Call(name) => {
                let index = message.calls.len();
                message.calls.push(Call {
                    name: name.clone(),
                    arguments: String::new(),
                });
                let id = self.call_id(choice, index);
                vec![json!({"tool_calls": [{
                    "index": index, "id": id, "type": "function",
                    "function": {"name": name, "arguments": ""},
                }]})]
            }
            Part::Arguments(_) if message.drops => Vec::new(),
            Part::Arguments(text) => {
                let index = message.calls.len().saturating_sub(1);
                if let Some(call) = message.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
                vec![json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})]
            }
        }
    }

    fn call_id(&self, choice: usize, index: usize) -> String {
        let number = self.id.rsplit('-').next().unwrap_or_default();
        format!("call_{number}_{choice}_{index}")
    }

    fn chunk(&mut self, choice: usize, delta: Value, end: bool) -> String {
        let message = &mut self.messages[choice];
        let says = end || delta.get("role").is_none();
        let new = match says && self.logprobs {
            true => {
                let from = std::mem::replace(&mut message.sent, message.text.logprobs.len());
                message.text.logprobs[from..].to_vec()
            }
            false => Vec::new(),
        };
        let message = &self.messages[choice];
        let logprobs = (!new.is_empty()).then(|| self.logprobs(&new));
        let mut value = json!({
            "index": choice,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": end.then(|| finish_reason(message)),
        });
        if end && self.ids {
            value["token_ids"] = json!(message.text.tokens);
        }
        let mut chunk = self.envelope("chat.completion.chunk", vec![value]);
        if self.streaming.usage {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    }

    /// The end of a stream.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        if self.streaming.usage {
            let mut chunk = self.envelope("chat.completion.chunk", Vec::new());
            chunk["usage"] = self.usage();
            text.push_str(&data(&chunk));
        }
        text.push_str(DONE);
        text
    }

    /// The answer in one body.
    pub(crate) fn body(&mut self) -> Value {
        let choices = self.messages.iter().enumerate();
        let choices = choices.map(|(choice, message)| {
            let content = match message.calls.is_empty() || !message.content.is_empty() {
                true => json!(message.content),
                false => Value::Null,
            };
            let mut said = json!({"role": "assistant", "content": content, "refusal": null});
            if !message.reasoning.is_empty() {
                said["reasoning_content"] = json!(message.reasoning);
            }
            if !message.calls.is_empty() {
                let calls = message.calls.iter().enumerate();
                let calls = calls.map(|(index, call)| {
                    json!({
                        "id": self.call_id(choice, index),
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    })
                });
                said["tool_calls"] = calls.collect();
            }
            let logprobs = self.logprobs.then(|| self.logprobs(&message.text.logprobs));
            let mut value = json!({
                "index": choice,
                "message": said,
                "logprobs": logprobs,
                "finish_reason": finish_reason(message),
            });
            if self.ids {
                value["token_ids"] = json!(message.text.tokens);
            }
            value
        });
        let mut body = self.envelope("chat.completion", choices.collect());
        if self.ids {
            body["prompt_token_ids"] = json!(&*self.prompt);
        }
        body["usage"] = self.usage();
        body
    }

    fn logprobs(&self, entries: &[TokenLogprob]) -> Value {
        let token = |id: u32, ln: f64| {
            let bytes = self.service.tokenizer().token_bytes(id).unwrap_or_default();
            json!({"token": self.service.token_text(id), "logprob": ln, "bytes": bytes})
        };
        let entries = entries.iter().map(|entry| {
            let mut value = token(entry.token, entry.logprob.unwrap_or(0.0));
            let top = entry.top.iter().map(|(id, ln)| token(*id, *ln));
            value["top_logprobs"] = top.collect();
            value
        });
        json!({"content": entries.collect::<Vec<_>>(), "refusal": null})
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let mut value = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.service.name,
            "system_fingerprint": self.service.fingerprint(),
            "choices": choices,
        });
        if let Some(seed) = self.seed {
            value["seed"] = seed.into();
        }
        value
    }

    fn usage(&self) -> Value {
        let tokens = self
            .messages
            .iter()
            .map(|message| message.text.tokens.len());
        usage(self.prompt.len(), tokens.sum())
    }
}

fn finish_reason(message: &Message) -> &'static str {
    match message.text.finish_reason() {
        "stop" if message.parts.is_cut() && !message.drops => "length",
        "stop" if !message.calls.is_empty() => "tool_calls",
        reason => reason,
    }
}
