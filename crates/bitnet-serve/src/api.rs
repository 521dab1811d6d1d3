//! The API of OpenAI, without a network: JSON in, JSON or the events of a stream out.
//!
//! Invariant: a request is read and checked as a whole before the engine sees it.

mod answer;
mod calls;
mod chat;
mod completions;
mod conversation;
mod echo;
mod embeddings;
mod error;
mod fields;
mod messages;
mod parts;
mod responses;
mod sampling;
mod schema;
mod service;
mod texts;
mod tools;

use crate::engine::{Client, Event, Events, Metrics};
pub use error::ApiError;
pub(crate) use schema::openapi;
use serde_json::{Value, json};
pub use service::{ApiOptions, Service};
use std::sync::Arc;

/// An endpoint that answers a JSON body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completions,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/responses`
    Responses,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/apply-template`
    ApplyTemplate,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Responses,
        Self::Tokenize,
        Self::Detokenize,
        Self::ApplyTemplate,
    ];

    /// Its path.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
            Self::Responses => "/v1/responses",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::ApplyTemplate => "/apply-template",
        }
    }

    /// The endpoint of a path.
    pub fn by_path(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.path() == path)
    }

    /// Whether the engine computes for it.
    pub fn computes(self) -> bool {
        !matches!(
            self,
            Self::Tokenize | Self::Detokenize | Self::ApplyTemplate
        )
    }
}

#[derive(Debug)]
enum Output {
    Chat(Box<chat::Chat>),
    Completions(Box<completions::Completions>),
    Embeddings(embeddings::Embeddings),
    Responses(Box<responses::Responses>),
}

/// A request that the engine works on.
#[derive(Debug)]
pub struct Running {
    /// What the engine says.
    pub(crate) events: Events,
    output: Output,
    left: usize, // texts that have not ended
    stream: bool,
    ignored: Vec<String>,
}

/// What a request leads to.
#[derive(Debug)]
pub enum Begun {
    /// A body at once, and the fields that were ignored.
    Body(Value, Vec<String>),
    /// An answer that the engine computes.
    Running(Running),
}

/// Reads the JSON of a body.
///
/// # Errors
/// 400 for what is no JSON.
pub fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|e| {
        ApiError::new(400, format!("the body is not valid JSON: {e}")).code("invalid_json")
    })
}

/// Begins to answer a request.
///
/// # Errors
/// What is wrong with the request.
pub fn begin(
    service: &Arc<Service>,
    endpoint: Endpoint,
    body: Value,
    client: Client,
) -> Result<Begun, ApiError> {
    let stream = endpoint != Endpoint::Embeddings
        && body.get("stream").and_then(Value::as_bool).unwrap_or(false);
    let engine = &service.engine;
    let of_body = |(body, ignored)| Begun::Body(body, ignored);
    let (events, left, output, ignored) = match endpoint {
        Endpoint::Chat => {
            let (request, output, ignored) = chat::prepare(service, body, client)?;
            let texts = request.prompts.len() * request.choices;
            let events = engine.generate(request)?;
            (events, texts, Output::Chat(Box::new(output)), ignored)
        }
        Endpoint::Completions => {
            let (request, output, ignored) = completions::prepare(service, body, client)?;
            let texts = request.prompts.len() * request.choices;
            let events = engine.generate(request)?;
            (
                events,
                texts,
                Output::Completions(Box::new(output)),
                ignored,
            )
        }
        Endpoint::Responses => {
            let (request, output, ignored) = responses::prepare(service, body, client)?;
            let texts = request.prompts.len() * request.choices;
            let events = engine.generate(request)?;
            (events, texts, Output::Responses(Box::new(output)), ignored)
        }
        Endpoint::Embeddings => {
            let (request, output, ignored) = embeddings::prepare(service, body, client)?;
            let texts = request.texts.len();
            let events = engine.embed(request)?;
            (events, texts, Output::Embeddings(output), ignored)
        }
        Endpoint::Tokenize => return texts::tokenize(service, body).map(of_body),
        Endpoint::Detokenize => return texts::detokenize(service, body).map(of_body),
        Endpoint::ApplyTemplate => return texts::apply_template(service, body).map(of_body),
    };
    Ok(Begun::Running(Running {
        events,
        output,
        left,
        stream,
        ignored,
    }))
}

impl Running {
    /// Whether the answer is a stream.
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// The fields that were ignored.
    pub fn ignored(&self) -> &[String] {
        &self.ignored
    }

    /// Takes an event; what a stream says of it.
    ///
    /// # Errors
    /// Why the request failed.
    pub(crate) fn push(&mut self, event: &Event) -> Result<String, ApiError> {
        match event {
            Event::Failed(error) => return Err(error.clone().into()),
            Event::Done { .. } | Event::Vector { .. } => self.left = self.left.saturating_sub(1),
            _ => {}
        }
        Ok(match &mut self.output {
            Output::Chat(output) => output.push(event),
            Output::Completions(output) => output.push(event),
            Output::Responses(output) => output.push(event),
            Output::Embeddings(output) => {
                output.push(event);
                String::new()
            }
        })
    }

    /// Refuses an answer whose events ended too early.
    ///
    /// # Errors
    /// 500.
    pub(crate) fn complete(&self) -> Result<(), ApiError> {
        match self.left {
            0 => Ok(()),
            _ => Err(ApiError::new(500, "the engine ended before the answer did")),
        }
    }

    /// The end of a stream.
    pub(crate) fn finish(&mut self) -> String {
        match &mut self.output {
            Output::Chat(output) => output.finish(),
            Output::Completions(output) => output.finish(),
            Output::Responses(output) => output.finish(),
            Output::Embeddings(_) => String::new(),
        }
    }

    /// The answer in one body.
    pub(crate) fn body(&mut self) -> Value {
        match &mut self.output {
            Output::Chat(output) => output.body(),
            Output::Completions(output) => output.body(),
            Output::Responses(output) => output.body(),
            Output::Embeddings(output) => output.body(),
        }
    }

    /// Waits for the whole answer. Not for asynchronous code.
    ///
    /// # Errors
    /// Why the request failed.
    pub fn wait(mut self) -> Result<Value, ApiError> {
        while let Some(event) = self.events.wait() {
            self.push(&event)?;
        }
        self.complete()?;
        Ok(self.body())
    }
}

impl Service {
    /// `/v1/models`.
    pub(crate) fn models(&self) -> Value {
        json!({"object": "list", "data": [self.model_entry()]})
    }

    fn model_entry(&self) -> Value {
        let config = self.engine.model().config();
        json!({
            "id": self.name,
            "object": "model",
            "created": self.started,
            "owned_by": "bitnet-run",
            "max_model_len": self.engine.context(),
            "meta": {
                "n_vocab": config.vocab_size,
                "n_embd": config.hidden_size,
                "n_ctx_train": config.max_position_embeddings,
            },
        })
    }

    /// `/v1/models/NAME`.
    ///
    /// # Errors
    /// 404.
    pub(crate) fn model(&self, name: &str) -> Result<Value, ApiError> {
        match name == self.name {
            true => Ok(self.model_entry()),
            false => Err(self.unknown_model(name)),
        }
    }

    /// What the engine counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        self.engine.metrics()
    }
}
