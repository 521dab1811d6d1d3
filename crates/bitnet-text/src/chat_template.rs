//! Chat templates: the Jinja source of `tokenizer_config.json`, rendered as transformers renders it.
//!
//! Invariant: a template gives the text of Jinja 3.1.6 in the sandbox of transformers, or an error
//! that names the template and its line. It sees nothing of the machine but the date, and steps,
//! memory, output and nesting are limited.

mod args;
mod arithmetic;
mod ast;
mod clock;
mod comparing;
mod evaluate;
mod expressions;
mod filters;
mod format;
mod globals;
mod json;
mod lexer;
mod loops;
mod meter;
mod methods;
mod numbers;
mod parser;
mod printing;
mod render;
mod scopes;
mod slices;
mod sorting;
mod str_format;
mod strings;
mod tests;
mod text;
mod text_filters;
mod unicode;
mod unicode_tables;
#[cfg(test)]
mod unit;
mod value;

use bitnet_formats::{ErrorCode, FormatError};
use meter::{Ended, Error, Limits, R};
use serde_json::{Map, json};
use std::rc::Rc;

/// Longest template source in bytes.
pub(crate) const LONGEST_SOURCE: usize = meter::SOURCE;
/// Stack of the thread that renders: the deepest recursion that `meter` allows needs a quarter.
const STACK: usize = 16 << 20;

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; what else is allowed the template decides.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
        }
    }

    /// The instruction before the first turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system".into(),
            content: content.into(),
        }
    }

    fn json(&self) -> serde_json::Value {
        json!({"role": self.role, "content": self.content})
    }
}

/// Variables by which published templates turn thinking on and off, each a boolean; the usual one first.
const THINKING: [&str; 4] = ["enable_thinking", "thinking", "reasoning", "think"];

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct ChatContext {
    /// The conversation: objects with a `role`, a `content` and whatever else the template reads.
    pub messages: Vec<serde_json::Value>,
    /// Schemas of the tools that the model may call.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Documents that the model may cite.
    pub documents: Option<Vec<serde_json::Value>>,
    /// Whether the text ends where the assistant speaks.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`; they win over special tokens.
    pub variables: Map<String, serde_json::Value>,
}

impl ChatContext {
    /// A conversation of plain messages.
    pub fn of_messages(messages: &[ChatMessage], add_generation_prompt: bool) -> Self {
        Self {
            messages: messages.iter().map(ChatMessage::json).collect(),
            add_generation_prompt,
            ..Self::default()
        }
    }
}

/// A chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    origin: Option<String>,
    special_tokens: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// Reads a template; `bos` and `eos` are what it prints as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, FormatError> {
        let mut special_tokens = Map::new();
        special_tokens.insert("bos_token".into(), bos.into());
        special_tokens.insert("eos_token".into(), eos.into());
        Self::with_special_tokens(source, special_tokens, None)
    }

    /// Reads a template that may print any special token of the tokenizer by its name; errors name
    /// `origin`, the file or metadata key of the template.
    pub fn with_special_tokens(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
        origin: Option<&str>,
    ) -> Result<Self, FormatError> {
        let template = Self {
            // a longer one is refused before anything is read
            source: source.to_owned(),
            origin: origin.map(str::to_owned),
            special_tokens,
        };
        let limits = Limits::of_context(0);
        template.apart(limits, || parsed(&template.source).map(|_| ()))?;
        Ok(template)
    }

    /// Where the template comes from: a file or a metadata key.
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// The prompt of a conversation; with `add_generation_prompt` it ends where the assistant speaks.
    /// Encode it without adding special tokens: the template has written them.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, FormatError> {
        self.render_context(&ChatContext::of_messages(messages, add_generation_prompt))
    }

    /// The prompt of a conversation with tools, documents or further variables.
    pub fn render_context(&self, context: &ChatContext) -> Result<String, FormatError> {
        let rendered = self.outcome(context)?;
        rendered.map_err(|error| self.failed(&error))
    }

    /// The variable by which this template turns thinking on (true) and off (false): of the names that published
    /// templates have, the first that changes the prompt of a short conversation.
    ///
    /// # Errors
    /// A template that passes a limit.
    pub fn thinking_variable(&self) -> Result<Option<&'static str>, FormatError> {
        let (system, user) = (ChatMessage::system("Be brief."), ChatMessage::user("Hello"));
        for name in THINKING
            .into_iter()
            .filter(|name| self.source.contains(name))
        {
            for messages in [&[user.clone()][..], &[system.clone(), user.clone()]] {
                let with = |on: bool| {
                    let mut context = ChatContext::of_messages(messages, true);
                    context.variables.insert(name.to_owned(), on.into());
                    self.outcome(&context)
                };
                match (with(true)?, with(false)?) {
                    (Ok(on), Ok(off)) if on != off => return Ok(Some(name)),
                    (Err(error), _) | (_, Err(error)) if error.kind == Ended::Limit => {
                        return Err(self.failed(&error));
                    }
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    fn outcome(&self, context: &ChatContext) -> Result<Result<String, Error>, FormatError> {
        let mut variables = self.special_tokens.clone();
        variables.extend(context.variables.clone());
        let messages = context.messages.iter().map(transformers_message);
        variables.insert("messages".into(), messages.collect());
        let list = |items: &Option<Vec<serde_json::Value>>| match items {
            Some(items) => items.iter().cloned().collect(),
            None => serde_json::Value::Null,
        };
        variables.insert("tools".into(), list(&context.tools));
        variables.insert("documents".into(), list(&context.documents));
        let prompt = context.add_generation_prompt;
        variables.insert("add_generation_prompt".into(), prompt.into());
        let limits = Limits::of_context(variables.values().map(weight).sum());
        self.on_thread(limits, || {
            let template = parsed(&self.source)?;
            let mut known = globals::globals();
            for (name, value) in &variables {
                known.insert(Rc::from(name.as_str()), json::from_json(value, 0)?);
            }
            let renderer = render::Renderer::new(&template, known);
            let text = renderer.render(&template)?;
            Ok(text.as_str().to_owned())
        })
    }

    /// Compiles a template and renders a short conversation with it. An error says that the template
    /// does not compile or passes a limit. The text says why it gives no prompt, other than by its own
    /// `raise_exception`.
    pub(crate) fn check(
        source: &str,
        special_tokens: Map<String, serde_json::Value>,
        origin: &str,
    ) -> Result<Option<String>, FormatError> {
        let template = Self {
            source: source.to_owned(),
            origin: Some(origin.to_owned()),
            special_tokens,
        };
        let compiled = template.on_thread(Limits::of_context(0), || parsed(source).map(|_| ()))?;
        match compiled {
            Err(error) if error.kind == Ended::Unsupported => {
                return Ok(Some(template.failed(&error).message));
            }
            Err(error) => return Err(template.failed(&error)),
            Ok(()) => {}
        }
        let user = ChatMessage::user("Hello");
        let assistant = ChatMessage {
            role: "assistant".into(),
            content: "Hello!".into(),
        };
        let messages = [user.clone(), assistant, user];
        let answered = messages.first_chunk::<2>().map(<[_; 2]>::as_slice);
        for (turns, prompt) in [(answered.unwrap_or_default(), false), (&messages, true)] {
            let context = ChatContext::of_messages(turns, prompt);
            match template.outcome(&context)? {
                Ok(_) => {}
                Err(error) if error.kind == Ended::Limit => return Err(template.failed(&error)),
                Err(error) if error.kind == Ended::Raised => {}
                Err(error) => return Ok(Some(template.failed(&error).message)),
            }
        }
        Ok(None)
    }

    fn apart<T: Send>(
        &self,
        limits: Limits,
        work: impl FnOnce() -> R<T> + Send,
    ) -> Result<T, FormatError> {
        self.on_thread(limits, work)?
            .map_err(|error| self.failed(&error))
    }

    /// Runs work on a thread whose stack is known to be large enough.
    fn on_thread<T: Send>(
        &self,
        limits: Limits,
        work: impl FnOnce() -> R<T> + Send,
    ) -> Result<Result<T, Error>, FormatError> {
        let no_thread = |what: &str| {
            FormatError::new(
                ErrorCode::Io,
                format!("chat template: no thread to render: {what}"),
            )
        };
        std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(STACK);
            let thread = builder.spawn_scoped(scope, || {
                limits.start();
                work().map_err(|error| *error)
            });
            let thread = thread.map_err(|error| no_thread(&error.to_string()))?;
            thread.join().map_err(|_| no_thread("it ended"))
        })
    }

    fn failed(&self, error: &Error) -> FormatError {
        let place = error.line.map(|line| format!(" (line {line})"));
        let place = place.unwrap_or_default();
        let origin = self.origin.as_deref();
        let origin = origin
            .map(|origin| format!(" in {origin}"))
            .unwrap_or_default();
        let (code, what) = match error.kind {
            Ended::Limit => (ErrorCode::LimitExceeded, "passes "),
            Ended::Failed | Ended::Raised | Ended::Unsupported => (ErrorCode::ChatTemplate, ""),
        };
        let colon = if what.is_empty() { ": " } else { " " };
        let message = &error.message;
        let message = format!("chat template{origin}{colon}{what}{message}{place}");
        let error = FormatError::new(code, message);
        match error_hint(error.code) {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn error_hint(code: ErrorCode) -> Option<&'static str> {
    let hint = "correct the chat template; published templates stay far below this limit";
    (code == ErrorCode::LimitExceeded).then_some(hint)
}

fn parsed(source: &str) -> R<ast::Template> {
    let template = parser::parse(source)?;
    scopes::resolve(&template)?;
    Ok(template)
}

/// A message as transformers hands it to a template: keys without a value are dropped, and the names
/// of a reasoning text stand for each other.
fn transformers_message(message: &serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Object(entries) = message else {
        return message.clone();
    };
    let kept = entries.iter().filter(|(_, value)| !value.is_null());
    let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
    let mut entries: Map<_, _> = kept.collect();
    let mut names = ["reasoning_content", "thinking", "reasoning"].iter();
    let Some(reasoning) = names.find_map(|name| entries.get(*name).cloned()) else {
        return entries.into();
    };
    let mut aliased = Map::new();
    aliased.insert("thinking".into(), reasoning.clone());
    aliased.append(&mut entries);
    aliased.insert("reasoning_content".into(), reasoning);
    aliased.into()
}

/// Bytes that a value of the context needs, roughly.
fn weight(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::String(text) => text.len().saturating_add(64),
        serde_json::Value::Array(items) => {
            (items.iter().map(weight).sum::<usize>()).saturating_add(64)
        }
        serde_json::Value::Object(entries) => {
            let entry = |(name, value): (&String, &serde_json::Value)| {
                name.len().saturating_add(128).saturating_add(weight(value))
            };
            (entries.iter().map(entry).sum::<usize>()).saturating_add(64)
        }
        _ => 32,
    }
}
