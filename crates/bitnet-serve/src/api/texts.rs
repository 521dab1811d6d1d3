//! `/tokenize`, `/detokenize`, `/apply-template`.
//!
//! Invariant: nothing here computes with the model.

use super::conversation::{Conversation, render};
use super::error::ApiError;
use super::fields::Fields;
use super::messages;
use super::sampling::tokens;
use super::service::Service;
use serde_json::{Value, json};

/// The tokens of a text: `content` or `text` without special tokens, `prompt` with them, `messages` through the template.
pub(crate) fn tokenize(service: &Service, body: Value) -> Result<(Value, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    let special = fields.boolean("add_special_tokens")?;
    let special = fields.boolean("add_special")?.or(special);
    let pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    fields.refuse("parse_special", &[json!(true)])?;
    let plain = match fields.text("content")? {
        Some(text) => Some(text),
        None => fields.text("text")?,
    };
    let ids = match (plain, fields.text("prompt")?) {
        (Some(text), None) => service.encode(&text, special.unwrap_or(false), "content")?,
        (None, Some(text)) => service.encode(&text, special.unwrap_or(true), "prompt")?,
        (None, None) => {
            let conversation = conversation(&mut fields)?;
            let text = render(service, &conversation)?;
            service.encode(&text, special.unwrap_or(false), "messages")?
        }
        (Some(_), Some(_)) => {
            return Err(ApiError::field(
                "prompt",
                "expected `content` or `prompt`, found both",
            ));
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
        add_generation_prompt: fields.boolean("add_generation_prompt")?.unwrap_or(true),
    })
}
