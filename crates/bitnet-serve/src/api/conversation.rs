//! From a conversation to a prompt, and to what the reply has to look like.
//!
//! Invariant: the prompt is rendered by the model's own template and encoded without a second begin-of-text token. Tools that
//! the template does not show are refused, never dropped.

use super::error::ApiError;
use super::fields::Fields;
use super::sampling::Sampling;
use super::service::Service;
use super::tools::{ToolChoice, Tools};
use crate::constraint::{Constraint, behind_thought};
use crate::engine::{Client, Continuation, Generate};
use bitnet_text::ChatContext;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// What a template renders, and what the reply has to be.
#[derive(Debug)]
pub(crate) struct Conversation {
    pub messages: Vec<Value>,
    pub tools: Vec<Value>,
    pub tool_choice: Option<Value>,
    pub response_format: Option<Value>,
    pub variables: Map<String, Value>,
    pub add_generation_prompt: bool,
    pub names: Names,
}

/// The fields that an endpoint has the parts of a conversation in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    pub messages: &'static str,
    pub format: &'static str,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            messages: "messages",
            format: "response_format",
        }
    }
}

/// How the text of the reply is read.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Whether the model reasons between tags, and whether the prompt opens them.
    pub reasoning: Option<bool>,
    pub tools: Option<Arc<Tools>>,
}

/// The prompt of a conversation.
pub(crate) fn render(service: &Service, conversation: &Conversation) -> Result<String, ApiError> {
    let Some(template) = &service.template else {
        let message = "this model has no chat template; use /v1/completions";
        return Err(ApiError::new(400, message).code("chat_template"));
    };
    for name in ["messages", "tools", "documents", "add_generation_prompt"] {
        if conversation.variables.contains_key(name) {
            let place = format!("chat_template_kwargs.{name}");
            return Err(ApiError::field(place, "the request has a field for it"));
        }
    }
    let context = ChatContext {
        messages: conversation.messages.clone(),
        tools: (!conversation.tools.is_empty()).then(|| conversation.tools.clone()),
        documents: None,
        add_generation_prompt: conversation.add_generation_prompt,
        variables: conversation.variables.clone(),
    };
    let text = template.render_context(&context)?;
    if context.tools.is_some() {
        let without = ChatContext {
            tools: None,
            ..context
        };
        if template
            .render_context(&without)
            .is_ok_and(|other| other == text)
        {
            let message = "the chat template of this model shows no tools";
            return Err(ApiError::field("tools", message).code("unsupported_parameter"));
        }
    }
    Ok(text)
}

/// Checks a conversation and renders it.
pub(crate) fn read_conversation(
    service: &Service,
    mut conversation: Conversation,
    sampling: Sampling,
    most: Option<usize>,
    logprobs: Option<usize>,
    client: Client,
) -> Result<(Generate, Reply), ApiError> {
    let choice = ToolChoice::read(
        conversation.tool_choice.take(),
        !conversation.tools.is_empty(),
    )?;
    let mut tools = None;
    if !conversation.tools.is_empty() {
        // what is not shown is checked all the same
        let format = service.tool_format;
        let offered = std::mem::take(&mut conversation.tools);
        let checked = Tools::new(offered, format.unwrap_or(super::tools::ToolFormat::Json))?;
        if choice != ToolChoice::None {
            if format.is_none() {
                let message = "the chat template of this model shows no calls of tools between <tool_call> tags";
                return Err(ApiError::field("tools", message).code("unsupported_parameter"));
            }
            conversation.tools.clone_from(&checked.list);
            tools = Some(Arc::new(checked));
        }
    }
    let text = render(service, &conversation)?;
    let names = conversation.names;
    let tokens = service.encode(&text, false, names.messages)?;
    service.check_prompt(&tokens, names.messages)?;
    let opened = text.trim_end().ends_with("<think>");
    let constraint = constraint(
        service,
        (names.format, conversation.response_format.take()),
        tools.as_deref(),
        &choice,
        opened,
    )?;
    let mut stop_tokens = sampling.stop_tokens;
    if !sampling.ignore_eos {
        stop_tokens.extend_from_slice(&service.stop_tokens);
    }
    let room = service.engine.room(tokens.len());
    let request = Generate {
        client,
        prompts: vec![tokens.into()],
        choices: sampling.choices,
        how: Continuation {
            sampler: sampling.sampler,
            logits: sampling.logits,
            most: most.unwrap_or(room),
            stops: sampling.stops,
            stop_tokens,
            kept: service.tags.clone(),
            logprobs,
            echo: false,
            constraint,
        },
    };
    let reply = Reply {
        reasoning: service.reasons.then_some(opened),
        tools,
    };
    Ok((request, reply))
}

/// What the reply has to look like.
fn constraint(
    service: &Service,
    (place, format): (&str, Option<Value>),
    tools: Option<&Tools>,
    choice: &ToolChoice,
    opened: bool,
) -> Result<Option<Constraint>, ApiError> {
    // the rest of the reasoning that the prompt opened
    let before = match opened {
        true => "THOUGHT ",
        false => "",
    };
    let named = match choice {
        ToolChoice::Named(name) => Some(name.as_str()),
        _ => None,
    };
    let schema = format.map(|format| schema(place, format));
    let schema = schema.transpose()?.flatten();
    if let (Some(tools), ToolChoice::Required | ToolChoice::Named(_)) = (tools, choice) {
        if schema.is_some() {
            let message = "expected no schema beside a `tool_choice` that requires a call";
            return Err(ApiError::field(place, message));
        }
        let mut grammar = tools.grammar(named, before)?;
        if opened {
            grammar = behind_thought(grammar);
        }
        let constraint = service.grammars()?.lark(grammar);
        return constraint
            .map(Some)
            .map_err(|e| ApiError::from(e).of("tools"));
    }
    let Some(schema) = schema else {
        return Ok(None);
    };
    let constraint = service.grammars()?.json(&schema, opened);
    constraint
        .map(Some)
        .map_err(|e| ApiError::from(e).of(place))
}

/// The schema of `response_format`, which an endpoint has at `place`; `None` for text.
pub(crate) fn schema(place: &str, format: Value) -> Result<Option<Value>, ApiError> {
    let mut fields = Fields::inside(place, format)?;
    let kind = fields.text("type")?.unwrap_or_default();
    let schema = match kind.as_str() {
        "text" => None,
        "json_object" => Some(json!({"type": "object"})),
        "json_schema" => {
            // the Responses API has these fields beside the type
            let inner = fields.take("json_schema");
            let mut inner = match inner {
                Some(inner) => Fields::inside(&format!("{place}.json_schema"), inner)?,
                None => std::mem::replace(&mut fields, Fields::inside(place, json!({}))?),
            };
            inner.text("name")?;
            inner.text("description")?;
            inner.boolean("strict")?;
            let schema = inner.take("schema");
            let place = inner.name("schema");
            inner.finish(false)?;
            match schema {
                Some(schema @ (Value::Object(_) | Value::Bool(_))) => Some(schema),
                _ => return Err(ApiError::field(place, "expected a JSON Schema")),
            }
        }
        _ => {
            return Err(ApiError::field(
                format!("{place}.type"),
                "expected text, json_object or json_schema",
            ));
        }
    };
    fields.finish(false)?;
    Ok(schema)
}
