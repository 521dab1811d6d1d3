//! Texts that have to look like something: schemas, calls of tools, reasoning.

use super::{Running, Setup, demo};
use serde_json::{Value, json};
use std::path::PathBuf;

/// The demo model with another chat template.
pub fn with_template(template: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    std::fs::create_dir(&path).unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), path.join(entry.file_name())).unwrap();
    }
    let file = path.join("tokenizer_config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["chat_template"] = template.into();
    std::fs::write(&file, config.to_string()).unwrap();
    (directory, path)
}

const JSON_TOOLS: &str = "{% if tools %}Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %} Call them as <tool_call>\n{\"name\": …}\n</tool_call>{% endif %}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments | tojson }}</tool_call>{% endfor %}<|end|>{% endfor %}<|assistant|>";
const XML_TOOLS: &str = "{% if tools %}Tools: {{ tools | tojson }} <tool_call><function=f></function></tool_call>{% endif %}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}<|end|>{% endfor %}<|assistant|>";

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
            "type": "object", "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": false}}},
    ])
}

fn ask(choice: Value) -> Value {
    json!({"messages": [{"role": "user", "content": "How warm is it?"}], "tools": tools(), "tool_choice": choice,
        "max_tokens": 100, "seed": 3, "temperature": 1})
}

#[test]
fn texts_follow_their_schema() {
    let server = Running::demo();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "kind": {"enum": ["a", "b"]},
            "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["name", "kind", "sizes"],
        "additionalProperties": false,
        "$defs": {"size": {"type": "integer", "minimum": 0, "maximum": 99}},
    });
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut texts = Vec::new();
    for seed in 0..6 {
        let answer = server.ask(
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": "Write JSON."}], "seed": seed, "temperature": 1.5, "max_tokens": 300,
                "response_format": {"type": "json_schema", "json_schema": {"name": "thing", "strict": true, "schema": schema}}}),
        );
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        let text = choice["message"]["content"].as_str().unwrap();
        let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert!(validator.is_valid(&value), "{text}");
        texts.push(text.to_owned());
    }
    texts.dedup();
    assert!(texts.len() > 1, "{texts:?}");
    let body = json!({"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object"}, "max_tokens": 30});
    let object = server.ask("/v1/chat/completions", &body);
    let text = object["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with('{'), "{text}");
}

#[test]
fn tools_are_called_in_the_format_of_the_template() {
    for template in [JSON_TOOLS, XML_TOOLS] {
        let (_directory, path) = with_template(template);
        let server = Running::start(&path, Setup::default());
        let named = json!({"type": "function", "function": {"name": "weather"}});
        for (choice, names) in [
            (json!("required"), &["weather", "now"][..]),
            (named, &["weather"]),
        ] {
            let body = ask(choice);
            let whole = server.ask("/v1/chat/completions", &body);
            let message = &whole["choices"][0]["message"];
            let call = &message["tool_calls"][0];
            assert_eq!(call["type"], "function", "{whole}");
            let name = call["function"]["name"].as_str().unwrap();
            assert!(names.contains(&name), "{name}");
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let arguments: Value = serde_json::from_str(arguments).unwrap();
            assert!(arguments.is_object());
            if template == JSON_TOOLS && name == "weather" {
                assert!((1..=9).contains(&arguments["days"].as_i64().unwrap()));
            }
            assert_eq!(message["content"], Value::Null);
            assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");

            let mut body = body;
            body["stream"] = true.into();
            let chunks = server.post("/v1/chat/completions", &body).chunks();
            let deltas = chunks
                .iter()
                .filter_map(|c| c["choices"][0]["delta"]["tool_calls"].as_array());
            let deltas: Vec<&Value> = deltas.flatten().collect();
            assert!(deltas.iter().all(|delta| delta["index"] == 0));
            assert_eq!(deltas[0]["function"]["name"], call["function"]["name"]);
            assert!(deltas[0]["id"].is_string());
            let pieces = deltas
                .iter()
                .filter_map(|d| d["function"]["arguments"].as_str());
            assert_eq!(
                pieces.collect::<String>(),
                call["function"]["arguments"].as_str().unwrap()
            );
            // the arguments come while the model writes them
            let pieces = deltas[1..].len();
            match (template == JSON_TOOLS, name) {
                (true, _) => assert!(pieces > 1, "{deltas:?}"),
                (false, "weather") => assert_eq!(pieces, 3, "{deltas:?}"),
                (false, _) => assert_eq!(pieces, 2, "{deltas:?}"),
            }
            assert_eq!(
                chunks.last().unwrap()["choices"][0]["finish_reason"],
                "tool_calls"
            );
        }
        // without tools in the prompt, none is called; the answer to a call is read
        let none = server.ask("/v1/chat/completions", &ask("none".into()));
        assert_eq!(none["choices"][0]["message"]["tool_calls"], Value::Null);
        let prompt = |tools: Value| {
            let body = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools});
            server.ask("/apply-template", &body)["prompt"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        assert!(prompt(tools()).starts_with("Tools: "));
        assert!(!prompt(Value::Null).contains("Tools"));
    }
}

#[test]
fn arguments_are_an_object_whatever_the_schema_leaves_open() {
    let (_directory, path) = with_template(JSON_TOOLS);
    let server = Running::start(&path, Setup::default());
    let with = |parameters: Value| {
        let mut body = ask("required".into());
        body["tools"] =
            json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
        server.post("/v1/chat/completions", &body)
    };
    for (parameters, param) in [
        (json!({"type": "string"}), "tools[0].function.parameters"),
        (
            json!({"type": ["null", "array"]}),
            "tools[0].function.parameters",
        ),
        (
            json!({"type": "object", "properties": []}),
            "tools[0].function.parameters.properties",
        ),
    ] {
        let reply = with(parameters);
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, error["param"].as_str()),
            (400, Some(param)),
            "{error}"
        );
    }
    let closed = json!({"properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": false});
    let mut or_null = closed.clone();
    or_null["type"] = json!(["object", "null"]);
    for parameters in [closed, or_null] {
        let answer = with(parameters).json();
        let call = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(
            [1, 2].map(Value::from).contains(&arguments["a"]),
            "{answer}"
        );
    }
}

#[test]
fn a_call_that_is_cut_off_has_the_arguments_so_far() {
    let (_directory, path) = with_template(JSON_TOOLS);
    let server = Running::start(&path, Setup::default());
    let whole = server.ask("/v1/chat/completions", &ask("required".into()));
    let tokens = whole["usage"]["completion_tokens"].as_u64().unwrap();
    let all = whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"].clone();
    let (mut calls, mut before) = (0, String::new());
    for most in 1..tokens {
        let mut body = ask("required".into());
        body["max_tokens"] = most.into();
        let choice = &server.ask("/v1/chat/completions", &body)["choices"][0];
        assert_eq!(choice["finish_reason"], "length");
        let message = &choice["message"];
        let Some(call) = message["tool_calls"].get(0) else {
            let text = message["content"].as_str().unwrap();
            assert!(text.starts_with("<tool_call>") || "<tool_call>".starts_with(text));
            assert_eq!(calls, 0, "a call becomes content");
            continue;
        };
        calls += 1;
        let arguments = call["function"]["arguments"].as_str().unwrap();
        assert!(arguments.starts_with(&before), "{before} to {arguments}");
        assert!(all.as_str().unwrap().starts_with(arguments), "{arguments}");
        before = arguments.to_owned();
    }
    assert!(calls > 2, "{calls}");
}

#[test]
fn reasoning_is_apart_from_the_answer() {
    // a prompt that opens the reasoning: all is reasoning until its end
    let template = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}<|end|>{% endfor %}<|assistant|>{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}";
    let (_directory, path) = with_template(template);
    let server = Running::start(&path, Setup::default());
    let body = json!({"messages": [{"role": "user", "content": "Mia has a pink map. Felix has a black cup. Felix is in the forest. Felix gives the cup to Mia. What colour is the map?"}], "max_tokens": 12});
    let message = &server.ask("/v1/chat/completions", &body)["choices"][0]["message"];
    assert!(
        !message["reasoning_content"].as_str().unwrap().is_empty(),
        "{message}"
    );
    assert_eq!(message["content"], "");
    let mut body = body;
    body["chat_template_kwargs"] = json!({"enable_thinking": false});
    let message = &server.ask("/v1/chat/completions", &body)["choices"][0]["message"];
    assert_eq!(message["content"], "The map is pink.");
    assert_eq!(message["reasoning_content"], Value::Null);
    // a schema holds for what comes behind the reasoning
    body["chat_template_kwargs"] = Value::Null;
    body["max_tokens"] = 400.into();
    body["response_format"] =
        json!({"type": "json_schema", "json_schema": {"schema": {"const": 7}}});
    body["logit_bias"] = json!({"0": 0});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.text());
}
