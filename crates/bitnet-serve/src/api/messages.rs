//! Messages of a conversation, as requests have them and as templates read them.
//!
//! Invariant: a template gets every message with its text; a part that is no text is refused by its place.

use super::error::ApiError;
use super::fields::Fields;
use serde_json::{Map, Value, json};

/// Most messages of a conversation.
pub(crate) const MOST_MESSAGES: usize = 8192;

/// Checks messages and brings them into the form that templates read.
pub(crate) fn read(list: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    if list.is_empty() || list.len() > MOST_MESSAGES {
        let message = format!(
            "expected 1 to {MOST_MESSAGES} messages, found {}",
            list.len()
        );
        return Err(ApiError::field("messages", message));
    }
    let numbered = list.into_iter().enumerate();
    numbered
        .map(|(number, value)| message(&format!("messages[{number}]"), value))
        .collect()
}

/// Checks a message at a place of a request.
pub(crate) fn message(place: &str, value: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::inside(place, value)?;
    let role = fields.text("role")?.unwrap_or_default();
    let role = match role.as_str() {
        "developer" => "system",
        "system" | "user" | "assistant" | "tool" => &role,
        _ => {
            return Err(ApiError::field(
                format!("{place}.role"),
                "expected system, developer, user, assistant or tool",
            ));
        }
    };
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    let content = fields.take("content");
    let calls = fields.list("tool_calls")?;
    let content = match content {
        None if role == "assistant" && calls.is_some() => String::new(),
        None => {
            return Err(ApiError::field(
                format!("{place}.content"),
                "expected a text",
            ));
        }
        Some(value) => text(&format!("{place}.content"), value)?,
    };
    message.insert("content".into(), content.into());
    for name in ["name", "tool_call_id", "reasoning_content", "reasoning"] {
        if let Some(text) = fields.text(name)? {
            message.insert(name.into(), text.into());
        }
    }
    if let Some(calls) = calls {
        let calls = calls.into_iter().enumerate();
        let calls: Result<Vec<Value>, ApiError> = calls
            .map(|(number, call)| tool_call(&format!("{place}.tool_calls[{number}]"), call))
            .collect();
        let calls = calls?;
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
    }
    // what answers have and nobody sends back with a value
    for name in ["refusal", "audio", "function_call"] {
        fields.refuse(name, &[])?;
    }
    fields.refuse("annotations", &[json!([])])?;
    fields.finish(false)?;
    Ok(message.into())
}

/// A text, or the texts of parts, one line each.
pub(crate) fn text(place: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => {
            return Err(ApiError::field(
                place,
                "expected a string or a list of text parts",
            ));
        }
    };
    let texts: Result<Vec<String>, ApiError> = parts
        .into_iter()
        .enumerate()
        .map(|(number, part)| {
            let place = format!("{place}[{number}]");
            let mut fields = Fields::inside(&place, part)?;
            let kind = fields.text("type")?.unwrap_or_default();
            if !matches!(kind.as_str(), "text" | "input_text" | "output_text") {
                return Err(ApiError::field(
                    format!("{place}.type"),
                    "expected \"text\": this model reads text only",
                ));
            }
            let text = fields.text("text")?;
            for name in ["annotations", "logprobs", "cache_control"] {
                fields.take(name);
            }
            fields.finish(false)?;
            text.ok_or_else(|| ApiError::field(format!("{place}.text"), "expected a string"))
        })
        .collect();
    Ok(texts?.join("\n"))
}

/// A call that the assistant made: templates read arguments as an object.
fn tool_call(place: &str, value: Value) -> Result<Value, ApiError> {
    let mut fields = Fields::inside(place, value)?;
    let id = fields.text("id")?;
    fields.take("index");
    fields.refuse("type", &["function".into()])?;
    let function = fields.take("function").unwrap_or(Value::Null);
    fields.finish(false)?;
    let place = format!("{place}.function");
    let mut fields = Fields::inside(&place, function)?;
    let name = fields.text("name")?;
    let name = name.ok_or_else(|| ApiError::field(format!("{place}.name"), "expected a string"))?;
    let arguments = match fields.take("arguments") {
        None => json!({}),
        Some(Value::String(text)) => match serde_json::from_str(&text) {
            Ok(Value::Object(map)) => map.into(),
            _ => text.into(),
        },
        Some(value) => value,
    };
    fields.finish(false)?;
    let mut call = Map::new();
    if let Some(id) = id {
        call.insert("id".into(), id.into());
    }
    call.insert("type".into(), "function".into());
    call.insert(
        "function".into(),
        json!({"name": name, "arguments": arguments}),
    );
    Ok(call.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_get_the_form_of_templates() {
        let list = json!([
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ]);
        let read = read(list.as_array().unwrap().clone()).unwrap();
        assert_eq!(read[0], json!({"role": "system", "content": "s"}));
        assert_eq!(read[1]["content"], "a\nb");
        assert_eq!(
            read[2]["tool_calls"][0]["function"]["arguments"],
            json!({"x": 1})
        );
        assert_eq!(read[3]["tool_call_id"], "c1");
    }

    #[test]
    fn a_refusal_names_the_place() {
        for (message, param) in [
            (json!(1), "messages[0]"),
            (json!({"role": "x", "content": ""}), "messages[0].role"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": 1}), "messages[0].content"),
            (
                json!({"role": "user", "content": "", "x": 1}),
                "messages[0].x",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
                "messages[0].content[0].type",
            ),
            (
                json!({"role": "assistant", "content": "", "audio": {}}),
                "messages[0].audio",
            ),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {}}]}),
                "messages[0].tool_calls[0].function.name",
            ),
        ] {
            let error = read(vec![message]).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)));
        }
        assert!(read(Vec::new()).is_err());
    }
}
