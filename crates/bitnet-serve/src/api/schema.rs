//! `/openapi.json`: what the endpoints take and answer, for programs that read OpenAPI 3.1.
//!
//! Invariant: every field that a request may have is listed here, and no other one; a test compares both.

use super::Endpoint;
use super::completions::{MOST_LOGPROBS, MOST_PROMPTS};
use super::fields::HARMLESS;
use super::messages::MOST_MESSAGES;
use super::sampling::{MOST_CHOICES, MOST_STOPS};
use super::tools::MOST_TOOLS;
use serde_json::{Map, Value, json};

fn text() -> Value {
    json!({"type": ["string", "null"]})
}

fn boolean() -> Value {
    json!({"type": ["boolean", "null"]})
}

fn object() -> Value {
    json!({"type": ["object", "null"]})
}

fn whole(least: i64, most: Option<u64>) -> Value {
    let mut schema = json!({"type": ["integer", "null"], "minimum": least});
    if let Some(most) = most {
        schema["maximum"] = most.into();
    }
    schema
}

fn number(least: f64, most: Option<f64>) -> Value {
    let mut schema = json!({"type": ["number", "null"], "minimum": least});
    if let Some(most) = most {
        schema["maximum"] = most.into();
    }
    schema
}

fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

fn tokens() -> Value {
    list(json!({"type": "integer", "minimum": 0}))
}

/// A text, token ids, or a list of either.
fn texts() -> Value {
    let of = |items: Value| json!({"type": "array", "minItems": 1, "maxItems": MOST_PROMPTS, "items": items});
    json!({"anyOf": [{"type": "string"}, of(json!({"type": "string"})), tokens(), of(tokens())]})
}

fn component(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn response_format() -> Value {
    json!({"type": ["object", "null"], "required": ["type"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}})
}

fn streaming() -> Value {
    json!({
        "stream": boolean(),
        "stream_options": {"type": ["object", "null"], "additionalProperties": false,
            "properties": {"include_usage": boolean(), "include_obfuscation": boolean()}},
    })
}

fn sampling() -> Value {
    let stop = json!({"type": "string", "minLength": 1});
    json!({
        "temperature": number(0.0, None),
        "top_k": whole(-1, None),
        "top_p": number(0.0, Some(1.0)),
        "min_p": number(0.0, Some(1.0)),
        "seed": whole(0, Some(u64::MAX)),
        "repetition_penalty": number(0.01, Some(100.0)),
        "presence_penalty": number(-2.0, Some(2.0)),
        "frequency_penalty": number(-2.0, Some(2.0)),
        "logit_bias": {"type": ["object", "null"], "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}},
        "n": whole(1, Some(MOST_CHOICES)),
        "stop": {"anyOf": [{"type": "null"}, stop, {"type": "array", "maxItems": MOST_STOPS, "items": stop}]},
        "stop_token_ids": {"anyOf": [{"type": "null"}, tokens()]},
        "ignore_eos": boolean(),
    })
}

fn conversation() -> Value {
    json!({
        "messages": {"type": "array", "minItems": 1, "maxItems": MOST_MESSAGES, "items": component("Message")},
        "tools": {"type": ["array", "null"], "maxItems": MOST_TOOLS, "items": component("Tool")},
        "chat_template_kwargs": object(),
        "add_generation_prompt": boolean(),
    })
}

/// The fields of an endpoint's body, and those that it has to have.
fn request(endpoint: Endpoint) -> Value {
    let most = whole(0, Some(u64::from(u32::MAX)));
    let (required, groups): (&[&str], Vec<Value>) = match endpoint {
        Endpoint::Chat => (
            &["messages"],
            vec![
                conversation(),
                sampling(),
                streaming(),
                json!({
                    "max_tokens": most,
                    "max_completion_tokens": most,
                    "logprobs": boolean(),
                    "top_logprobs": whole(0, Some(MOST_LOGPROBS)),
                    "tool_choice": {"anyOf": [{"type": "null"}, {"enum": ["none", "auto", "required"]}, {"type": "object"}]},
                    "parallel_tool_calls": boolean(),
                    "response_format": response_format(),
                    "return_token_ids": boolean(),
                }),
            ],
        ),
        Endpoint::Completions => (
            &["prompt"],
            vec![
                sampling(),
                streaming(),
                json!({
                    "prompt": texts(),
                    "max_tokens": most,
                    "echo": boolean(),
                    "logprobs": {"anyOf": [{"const": false}, whole(0, Some(MOST_LOGPROBS))]},
                    "add_special_tokens": boolean(),
                    "return_token_ids": boolean(),
                }),
            ],
        ),
        Endpoint::Responses => {
            let mut sampling = sampling();
            if let Some(map) = sampling.as_object_mut() {
                map.shift_remove("n");
            }
            let item = json!({"type": "object", "required": ["role", "content"]});
            (
                &["input"],
                vec![
                    sampling,
                    streaming(),
                    json!({
                        "input": {"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": item}]},
                        "instructions": text(),
                        "max_output_tokens": whole(1, Some(u64::from(u32::MAX))),
                        "text": object(),
                        "parallel_tool_calls": boolean(),
                        "chat_template_kwargs": object(),
                    }),
                ],
            )
        }
        Endpoint::Embeddings => (
            &["input"],
            vec![json!({
                "input": texts(),
                "encoding_format": {"enum": [null, "float", "base64"]},
                "prompt_name": text(),
            })],
        ),
        Endpoint::Tokenize => (
            &[],
            vec![
                conversation(),
                json!({
                    "content": text(),
                    "text": text(),
                    "prompt": text(),
                    "add_special": boolean(),
                    "add_special_tokens": boolean(),
                    "with_pieces": boolean(),
                }),
            ],
        ),
        Endpoint::Detokenize => (
            &["tokens"],
            vec![json!({"tokens": tokens(), "skip_special_tokens": boolean()})],
        ),
        Endpoint::ApplyTemplate => (&["messages"], vec![conversation()]),
    };
    let mut properties = Map::new();
    properties.insert("model".to_owned(), text());
    for group in groups {
        if let Value::Object(group) = group {
            properties.extend(group);
        }
    }
    for name in HARMLESS {
        let ignored = json!({"description": "Ignored: it cannot change an answer."});
        properties.insert(name.to_owned(), ignored);
    }
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// The keys of an endpoint's answer.
fn answer(endpoint: Endpoint) -> Value {
    let keys: &[&str] = match endpoint {
        Endpoint::Chat | Endpoint::Completions => {
            &["id", "object", "created", "model", "choices", "usage"]
        }
        Endpoint::Responses => &["id", "object", "status", "model", "output", "usage"],
        Endpoint::Embeddings => &["object", "data", "model", "usage"],
        Endpoint::Tokenize => &["tokens", "count", "max_model_len"],
        Endpoint::Detokenize => &["content", "prompt"],
        Endpoint::ApplyTemplate => &["prompt"],
    };
    json!({"type": "object", "required": keys})
}

fn summary(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "Continue a conversation",
        Endpoint::Completions => "Continue prompts",
        Endpoint::Embeddings => "Turn texts into vectors",
        Endpoint::Responses => "Continue a conversation, with the Responses API",
        Endpoint::Tokenize => "Turn a text into tokens",
        Endpoint::Detokenize => "Turn tokens into a text",
        Endpoint::ApplyTemplate => "Render a conversation with the chat template",
    }
}

fn errors(which: &[(&str, &str)]) -> Map<String, Value> {
    let one = |(status, when): &(&str, &str)| {
        let content = json!({"application/json": {"schema": component("Error")}});
        let value = json!({"description": when, "content": content});
        ((*status).to_owned(), value)
    };
    which.iter().map(one).collect()
}

fn read_only(summary: &str, kind: &str, needs_key: bool) -> Value {
    let mut responses = errors(&[("403", "the request comes from a web page of another origin")]);
    let content =
        json!({kind: {"schema": {"type": if kind == "text/plain" { "string" } else { "object" }}}});
    responses.insert(
        "200".to_owned(),
        json!({"description": "the answer", "content": content}),
    );
    let mut operation = json!({"summary": summary});
    match needs_key {
        true => responses.extend(errors(&[("401", "no key, or a wrong one")])),
        false => operation["security"] = json!([]),
    }
    operation["responses"] = responses.into();
    json!({"get": operation})
}

/// The whole document.
pub(crate) fn openapi() -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for endpoint in Endpoint::ALL {
        let name = format!("{endpoint:?}Request");
        let mut responses = errors(&[
            (
                "400",
                "a wrong field, body or prompt; `param` names the field",
            ),
            ("401", "no key, or a wrong one"),
            ("403", "a web page of another origin"),
            ("404", "the request names a model that is not served"),
            ("408", "the body did not arrive in time"),
            ("413", "the body is too large"),
            ("429", "too many requests wait"),
            ("431", "the headers are too large"),
            ("500", "the model failed"),
            ("503", "the server is stopping"),
        ]);
        let content = json!({"application/json": {"schema": answer(endpoint)}});
        responses.insert(
            "200".to_owned(),
            json!({"description": "the answer", "content": content}),
        );
        let body = json!({"required": true, "content": {"application/json": {"schema": component(&name)}}});
        let operation =
            json!({"summary": summary(endpoint), "requestBody": body, "responses": responses});
        paths.insert(endpoint.path().to_owned(), json!({"post": operation}));
        schemas.insert(name, request(endpoint));
    }
    for (path, summary, kind, needs_key) in [
        (
            "/health",
            "Say whether the server works",
            "application/json",
            false,
        ),
        ("/v1/models", "List the model", "application/json", true),
        (
            "/v1/models/{name}",
            "Describe the model",
            "application/json",
            true,
        ),
        (
            "/metrics",
            "Count requests, tokens and memory",
            "text/plain",
            true,
        ),
        (
            "/openapi.json",
            "Describe the API",
            "application/json",
            true,
        ),
    ] {
        paths.insert(path.to_owned(), read_only(summary, kind, needs_key));
    }
    let of_model = &mut paths["/v1/models/{name}"]["get"];
    of_model["parameters"] =
        json!([{"name": "name", "in": "path", "required": true, "schema": {"type": "string"}}]);
    if let Some(responses) = of_model["responses"].as_object_mut() {
        responses.extend(errors(&[("404", "another model")]));
    }
    paths["/health"]["get"]["responses"]["503"] =
        json!({"description": "the server is stopping, or its model failed"});
    let part = json!({"type": "object", "required": ["type", "text"]});
    let function = json!({"type": "object", "required": ["name"], "additionalProperties": false, "properties": {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"}, "description": text(), "strict": boolean(), "parameters": object()}});
    for (name, schema) in [
        (
            "Message",
            json!({"type": "object", "required": ["role"], "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [{"type": ["string", "null"]}, list(part)]},
            "name": text(), "tool_calls": {"type": ["array", "null"]}, "tool_call_id": text(),
            "reasoning_content": text(), "reasoning": text()}}),
        ),
        (
            "Tool",
            json!({"type": "object", "required": ["type", "function"], "additionalProperties": false,
            "properties": {"type": {"const": "function"}, "function": function}}),
        ),
        (
            "Error",
            json!({"type": "object", "required": ["error"], "properties": {"error": {
            "type": "object", "required": ["message", "type", "param", "code"], "additionalProperties": false,
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": text(), "code": text()}}}}),
        ),
    ] {
        schemas.insert(name.to_owned(), schema);
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": "bitnet-run serve", "version": env!("CARGO_PKG_VERSION"),
            "description": "A field with the value null counts as absent."},
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": schemas},
    })
}
