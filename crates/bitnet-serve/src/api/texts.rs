//! `/tokenize`, `/detokenize`, `/apply-template`.
//!
//! Invariant: nothing here computes with the model.

use super::conversation::{Conversation, Names, render};
use super::error::ApiError;
use super::fields::{Fields, agreeing};
use super::messages;
use super::sampling::tokens;
use super::service::Service;
use serde_json::{Value, json};

/// The tokens of a text: `content` or `text` without special tokens, `prompt` with them, `messages` through the template.
pub(crate) fn tokenize(service: &Service, body: Value) -> Result<(Value, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    let special = agreeing(
        ("add_special_tokens", fields.boolean("add_special_tokens")?),
        ("add_special", fields.boolean("add_special")?),
    )?;
    let pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    fields.refuse("parse_special", &[json!(true)])?;
    let mut given = Vec::new();
    for name in ["content", "text", "prompt"] {
        given.extend(fields.text(name)?.map(|text| (name, text)));
    }
    let has_messages = fields.has("messages");
    let ids = match (&given[..], has_messages) {
        ([(name, text)], false) => {
            let special = special.unwrap_or(*name == "prompt");
            service.encode(text, special, name)?
        }
        ([], true) => {
            let conversation = conversation(&mut fields)?;
            let text = render(service, &conversation)?;
            service.encode(&text, special.unwrap_or(false), "messages")?
        }
        ([], false) => {
            let message = "expected `content`, `text`, `prompt` or `messages`, found none of them";
            return Err(ApiError::bad_request(message).of("content"));
        }
        ([(first, _), ..], _) => {
            let second = given.get(1).map_or("messages", |(name, _)| *name);
            let message = format!("expected one text, found `{first}` beside it");
            return Err(ApiError::field(second, message));
        }
    };
    let ignored = fields.finish(service.lenient)?;
    let tokens = match pieces {
        true => ids
            .iter()
            .map(|id| json!({"id": id, "piece": service.token_text(*id)}))
            .collect(),
        false => json!(ids),
    };
    let body = json!({
        "tokens": tokens,
        "count": ids.len(),
        "max_model_len": service.engine.context(),
    });
    Ok((body, ignored))
}

/// The text of tokens.
pub(crate) fn detokenize(service: &Service, body: Value) -> Result<(Value, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    let list = fields.take("tokens").unwrap_or(Value::Null);
    let keep = fields.boolean("skip_special_tokens")?.unwrap_or(false);
    let ids = tokens(&list, service.vocab()).ok_or_else(|| {
        let message = format!("expected token ids below {}", service.vocab());
        ApiError::field("tokens", message)
    })?;
    let ignored = fields.finish(service.lenient)?;
    let text = service.tokenizer().decode(&ids, keep)?;
    Ok((json!({"content": text, "prompt": text}), ignored))
}

/// The prompt of a conversation.
pub(crate) fn apply_template(
    service: &Service,
    body: Value,
) -> Result<(Value, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    let conversation = conversation(&mut fields)?;
    let ignored = fields.finish(service.lenient)?;
    Ok((json!({"prompt": render(service, &conversation)?}), ignored))
}

fn conversation(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let list = fields.list("messages")?.unwrap_or_default();
    Ok(Conversation {
        messages: messages::read(list)?,
        tools: fields.list("tools")?.unwrap_or_default(),
        tool_choice: None,
        response_format: None,
        variables: fields.object("chat_template_kwargs")?.unwrap_or_default(),
        names: Names::default(),
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
    })
}
