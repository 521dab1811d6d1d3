//! `/openapi.json` says what the server does: the same paths, the same fields, the same answers.

use super::Running;
use bitnet_tests::fixtures::repository;
use bitnet_tests::http_client::{get, request};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A body that is answered, of each path.
fn bodies() -> [(&'static str, Value); 7] {
    let messages = json!([{"role": "user", "content": "x"}]);
    [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 2}),
        ),
        ("/v1/completions", json!({"prompt": "x", "max_tokens": 2})),
        (
            "/v1/responses",
            json!({"input": "x", "max_output_tokens": 2}),
        ),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/tokenize", json!({"messages": messages})),
        ("/detokenize", json!({"tokens": [1]})),
        ("/apply-template", json!({"messages": messages})),
    ]
}

#[test]
fn the_document_lists_every_path_and_field() {
    let server = Running::demo();
    let document = get(server.address, "/openapi.json").json();
    let paths = document["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 12);
    let validator = |schema: &Value| {
        let mut whole = schema.clone();
        whole["components"] = document["components"].clone();
        jsonschema::validator_for(&whole).unwrap()
    };
    let is_error = validator(&json!({"$ref": "#/components/schemas/Error"}));
    for (path, methods) in paths {
        let real = path.replace("{name}", "demo");
        let other = if methods.get("get").is_some() {
            "DELETE"
        } else {
            "GET"
        };
        assert_eq!(
            request(server.address, other, &real, &[], b"").status,
            405,
            "{path}"
        );
        if methods.get("get").is_some() {
            assert_eq!(get(server.address, &real).status, 200, "{path}");
        }
    }
    for (path, body) in bodies() {
        let operation = &paths[path]["post"];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        let accepts = validator(schema);
        assert!(accepts.is_valid(&body), "{path}");
        let answer = server.ask(path, &body);
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        assert!(validator(schema).is_valid(&answer), "{path}: {answer}");
        let name = format!("{}Request", accepts_name(operation));
        let fields = document["components"]["schemas"][&name]["properties"].as_object();
        let fields = fields.unwrap();
        // a field that is listed is known, and a value that its schema excludes is refused by its name
        for field in fields.keys() {
            let mut wrong = body.clone();
            wrong[field] = json!({"\u{0}": []});
            let reply = server.post(path, &wrong);
            if reply.status == 200 {
                assert!(accepts.is_valid(&wrong), "{path} {field}");
                continue;
            }
            let error = reply.json();
            assert!(is_error.is_valid(&error), "{error}");
            let param = error["error"]["param"].as_str().unwrap_or_default();
            let unknown = param == field && error["error"]["code"] == "unknown_parameter";
            assert!(
                param.starts_with(field.as_str()) && !unknown,
                "{path} {field}: {error}"
            );
        }
        // what is not listed is refused
        let mut unknown = body.clone();
        unknown["unheard_of"] = json!(1);
        assert!(!accepts.is_valid(&unknown));
        assert_eq!(server.post(path, &unknown).status, 400);
    }
}

fn accepts_name(operation: &Value) -> String {
    let place = "/requestBody/content/application~1json/schema/$ref";
    let reference = operation.pointer(place).unwrap().as_str().unwrap();
    let name = reference.rsplit('/').next().unwrap();
    name.strip_suffix("Request").unwrap().to_owned()
}

/// The fields that the sources take, by a method that reads a value and does not refuse it.
#[test]
fn no_field_of_the_sources_is_missing() {
    let server = Running::demo();
    let document = get(server.address, "/openapi.json").json();
    let mut listed = BTreeSet::new();
    fn collect(value: &Value, listed: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::Object(properties)) = map.get("properties") {
                    listed.extend(properties.keys().cloned());
                }
                map.values().for_each(|value| collect(value, listed));
            }
            Value::Array(list) => list.iter().for_each(|value| collect(value, listed)),
            _ => {}
        }
    }
    collect(&document["components"]["schemas"], &mut listed);
    let folder = repository().join("crates/bitnet-serve/src/api");
    let mut taken = BTreeSet::new();
    for name in [
        "chat",
        "completions",
        "responses",
        "embeddings",
        "texts",
        "sampling",
        "service",
    ] {
        let source = std::fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
        let source: String = source.split_whitespace().collect();
        for method in [
            "text", "boolean", "whole", "number", "list", "object", "take",
        ] {
            for (at, found) in source.match_indices(&format!("fields.{method}(\"")) {
                let name = source[at + found.len()..].split('"').next().unwrap();
                taken.insert(name.to_owned());
            }
        }
    }
    assert!(taken.len() > 30, "{taken:?}");
    let missing: Vec<&String> = taken.difference(&listed).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
