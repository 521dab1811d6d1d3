//! Clients that do wrong things, and a server that goes on.

use super::{Running, Setup, demo};
use bitnet_serve::{EngineOptions, ServerOptions};
use bitnet_tests::http_client::{connect, receive, request, send};
use bitnet_tests::random::Random;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const PATH: &str = "/v1/completions";

fn is_well(server: &Running) {
    let answer = server.ask(PATH, &json!({"prompt": "One", "max_tokens": 2}));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[test]
fn bodies_that_are_none_are_refused() {
    let server = Running::start(
        &demo(),
        Setup {
            server: ServerOptions {
                port: 0,
                most_body: 16 << 20,
                ..ServerOptions::default()
            },
            ..Setup::default()
        },
    );
    let status = |body: &[u8]| {
        let reply = request(server.address, "POST", PATH, &[], body);
        let error = reply.json();
        assert!(error["error"]["message"].is_string(), "{error}");
        reply.status
    };
    let deep = "[".repeat(100_000);
    let deep_prompt = format!("{{\"prompt\": {deep}");
    for body in [
        &b""[..],
        b"{",
        b"null",
        b"[]",
        b"{\"prompt\": \"\xff\xfe\"}",
        b"{\"prompt\": \"\\ud800\"}",
        b"\x00\x01\x02",
        b"{\"prompt\": 1e999}",
        deep.as_bytes(),
        deep_prompt.as_bytes(),
    ] {
        assert_eq!(
            status(body),
            400,
            "{}",
            String::from_utf8_lossy(&body[..body.len().min(40)])
        );
    }
    // a prompt of 10 MB is refused before it becomes tokens
    let started = Instant::now();
    let long = json!({"prompt": "word ".repeat(2 << 20)}).to_string();
    assert_eq!(status(long.as_bytes()), 400);
    let long =
        json!({"messages": [{"role": "user", "content": "word ".repeat(2 << 20)}]}).to_string();
    assert_eq!(
        request(
            server.address,
            "POST",
            "/v1/chat/completions",
            &[],
            long.as_bytes()
        )
        .status,
        400
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    // more than the limit
    let reply = request(server.address, "POST", PATH, &[], &vec![b' '; 17 << 20]);
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (413, Some("body_too_large"))
    );
    is_well(&server);
}

#[test]
fn connections_that_say_nothing_hold_nobody_up() {
    let server = Running::demo();
    let mut silent = Vec::new();
    for number in 0..50 {
        let mut stream = connect(server.address);
        let part: &[u8] = match number % 4 {
            0 => b"",
            1 => b"POST /v1/comp",
            2 => b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n",
            _ => b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n{\"prompt\": ",
        };
        stream.write_all(part).unwrap();
        if number % 3 == 0 {
            // closed on one side
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        silent.push(stream);
    }
    is_well(&server);
    // no HTTP at all
    let mut stream = connect(server.address);
    stream.write_all(b"\x16\x03\x01 hello\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 400") || answer.is_empty());
    drop(silent);
    is_well(&server);
}

#[test]
fn a_slow_reader_gets_all_and_holds_nobody_up() {
    let server = Running::demo();
    let body = json!({"prompt": "One", "max_tokens": 500, "ignore_eos": true, "stream": true, "logprobs": 20, "n": 8}).to_string();
    let mut slow = connect(server.address);
    send(&mut slow, "POST", PATH, &[], body.as_bytes()).unwrap();
    for _ in 0..5 {
        is_well(&server);
    }
    // the engine does not wait for the reader
    let started = Instant::now();
    while server.metric("sequences_running") > 0 {
        assert!(started.elapsed() < Duration::from_secs(100));
        std::thread::sleep(Duration::from_millis(20));
    }
    let chunks = receive(&mut slow).unwrap().chunks();
    let ends = chunks
        .iter()
        .filter(|c| c["choices"][0]["finish_reason"] == "length");
    assert_eq!(ends.count(), 8);
}

#[test]
fn a_client_that_goes_away_ends_its_request() {
    let server = Running::demo();
    for stream in [true, false] {
        let before = server.metric("requests_cancelled_total");
        let body = json!({"prompt": "One", "max_tokens": 500, "ignore_eos": true, "n": 100, "stream": stream}).to_string();
        let mut client = connect(server.address);
        send(&mut client, "POST", PATH, &[], body.as_bytes()).unwrap();
        let started = Instant::now();
        while server.metric("sequences_running") == 0 {
            assert!(started.elapsed() < Duration::from_secs(20));
        }
        drop(client);
        while server.metric("sequences_running") + server.metric("sequences_waiting") > 0 {
            assert!(started.elapsed() < Duration::from_secs(20), "it goes on");
        }
        assert_eq!(server.metric("requests_cancelled_total"), before + 1);
    }
    is_well(&server);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let server = Running::start(
        &demo(),
        Setup {
            engine: EngineOptions {
                parallel: 1,
                ..EngineOptions::default()
            },
            server: ServerOptions {
                port: 0,
                queue: 1,
                ..ServerOptions::default()
            },
            ..Setup::default()
        },
    );
    let body = json!({"prompt": "One", "max_tokens": 500, "ignore_eos": true, "n": 50}).to_string();
    let mut clients: Vec<_> = (0..2).map(|_| connect(server.address)).collect();
    for client in &mut clients {
        send(client, "POST", PATH, &[], body.as_bytes()).unwrap();
    }
    let started = Instant::now();
    while server.metric("sequences_waiting") < 50 {
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    let reply = server.post(PATH, &json!({"prompt": "One"}));
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (429, Some("1"))
    );
    assert_eq!(reply.json()["error"]["code"], "queue_full");
    assert_eq!(server.metric("requests_refused_total"), 1);
    drop(clients);
    while server.metric("sequences_running") + server.metric("sequences_waiting") > 0 {
        assert!(started.elapsed() < Duration::from_secs(40));
    }
    is_well(&server);
}

#[test]
fn memory_for_keys_and_values_has_a_limit() {
    // two blocks of 256 positions: 4 layers, 2 heads of 64 numbers, keys and values, f32
    let block = 256 * 4 * 2 * 64 * 2 * 4;
    let server = Running::start(
        &demo(),
        Setup {
            engine: EngineOptions {
                parallel: 8,
                kv_bytes: Some(block),
                ..EngineOptions::default()
            },
            ..Setup::default()
        },
    );
    assert_eq!(server.metric("kv_budget_bytes"), block as u64);
    let reply = server.post(PATH, &json!({"prompt": "One", "max_tokens": 400}));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (400, Some("limit_exceeded"))
    );
    // texts that fit one by one run one by one
    let answer = server.ask(
        PATH,
        &json!({"prompt": ["One", "Two", "Three"], "max_tokens": 5, "n": 4}),
    );
    assert_eq!(answer["choices"].as_array().unwrap().len(), 12);
    assert!(server.metric("prefix_cache_bytes") <= block as u64);
    // without max_tokens, a text gets what there is
    let chat = server.ask(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": "x"}], "ignore_eos": true}),
    );
    assert_eq!(chat["usage"]["total_tokens"], 257);
}

#[test]
fn bombs_are_refused_in_time() {
    let server = Running::demo();
    let started = Instant::now();
    let messages = json!([{"role": "user", "content": "x"}]);
    let schema = |schema: Value| {
        json!({"messages": messages, "max_tokens": 4,
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}})
    };
    let nested = |depth: usize| (0..depth).fold(json!({}), |inner, _| json!({"a": inner}));
    let mut doubling = json!({"$ref": "#/$defs/d0", "$defs": {"d40": {"type": "string"}}});
    for number in 0..40 {
        let next = json!({"$ref": format!("#/$defs/d{}", number + 1)});
        doubling["$defs"][format!("d{number}")] = json!({"allOf": [next, next]});
    }
    let biases: serde_json::Map<String, Value> =
        (0..100_000).map(|n| (n.to_string(), json!(1))).collect();
    for (path, body) in [
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 1, "chat_template_kwargs": nested(100)}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "chat_template": "{% for i in range(999999999) %}x{% endfor %}"}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": vec![messages[0].clone(); 9000]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": vec![json!({"type": "text", "text": "x"}); 100_000]}]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": vec!["x".repeat(100_000); 100]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "stop": vec!["a"; 100_000]}),
        ),
        (
            "/v1/completions",
            json!({"prompt": "x", "logit_bias": biases}),
        ),
        ("/v1/chat/completions", schema(doubling)),
        (
            "/v1/chat/completions",
            schema(json!({"type": "string", "minLength": 1_000_000_000})),
        ),
        (
            "/v1/chat/completions",
            schema(json!({"type": "string", "pattern": "(((a{1,1000}){1,1000}){1,1000})"})),
        ),
        ("/v1/chat/completions", schema(json!({"$ref": "#"}))),
        ("/v1/chat/completions", schema(nested(200))),
    ] {
        let reply = server.post(path, &body);
        let shown: String = body.to_string().chars().take(100).collect();
        assert!(
            matches!(reply.status, 200 | 400),
            "{shown}: {}",
            reply.text()
        );
        assert!(started.elapsed() < Duration::from_secs(60), "{shown}");
    }
    is_well(&server);
}

#[test]
fn a_template_that_does_not_end_fails_its_request_alone() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
    let (_directory, path) = super::tools::with_template(loops);
    let server = Running::start(&path, Setup::default());
    let started = Instant::now();
    let body = json!({"messages": [{"role": "user", "content": "x"}]});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (400, Some("limit_exceeded"))
    );
    assert!(started.elapsed() < Duration::from_secs(30));
    is_well(&server);
}

/// A value somewhere in a body becomes another one, or a field gets another name.
fn changed(value: &mut Value, random: &mut Random) {
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e300),
        json!(u64::MAX),
        json!("\u{0}"),
        json!("<|end|>"),
        json!("x".repeat(5000)),
        json!([]),
        json!({}),
        json!([[[]], {"type": "text"}]),
        json!({"type": "object", "$ref": "#"}),
        json!({"allOf": [{"pattern": "(a*)*b"}], "minLength": 1e9}),
    ];
    match value {
        Value::Object(map) if !map.is_empty() && random.below(4) > 0 => {
            let at = random.below(map.len());
            let key = map.keys().nth(at).unwrap().clone();
            match random.below(8) {
                0 => {
                    let value = map.shift_remove(&key).unwrap();
                    map.insert(format!("{key}x"), value);
                }
                _ => changed(&mut map[&key], random),
            }
        }
        Value::Array(list) if !list.is_empty() && random.below(4) > 0 => {
            let at = random.below(list.len());
            changed(&mut list[at], random);
        }
        value => *value = others[random.below(others.len())].clone(),
    }
}

#[test]
fn changed_requests_are_answered_or_refused() {
    let server = Running::demo();
    let tool =
        json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    let bodies = [
        (
            "/v1/completions",
            json!({"prompt": ["One", "Two"], "max_tokens": 2, "logprobs": 2, "echo": true, "stop": ["a"],
            "logit_bias": {"3": 1}, "n": 2, "seed": 1, "stream_options": {"include_usage": true}, "stream": true}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": "y", "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}],
            "max_tokens": 2, "tools": [tool], "tool_choice": "none", "response_format": {"type": "json_schema", "json_schema":
            {"name": "a", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}}),
        ),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": "x"}], "instructions": "y", "max_output_tokens": 2,
            "text": {"format": {"type": "json_object"}}}),
        ),
        (
            "/v1/embeddings",
            json!({"input": ["x", "y"], "encoding_format": "base64"}),
        ),
        ("/tokenize", json!({"content": "x", "with_pieces": true})),
        ("/detokenize", json!({"tokens": [1, 2]})),
        (
            "/apply-template",
            json!({"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": 1}}),
        ),
    ];
    let mut random = Random(11);
    let mut answered = [0, 0];
    for round in 0..300 {
        let (path, body) = &bodies[round % bodies.len()];
        let mut body = body.clone();
        for _ in 0..=random.below(2) {
            changed(&mut body, &mut random);
        }
        if body.get("max_tokens").is_some_and(|most| most != 2) {
            body["max_tokens"] = 2.into();
        }
        let reply = server.post(path, &body);
        let refused = (400..500).contains(&reply.status);
        assert!(reply.status == 200 || refused, "{body}: {}", reply.text());
        answered[usize::from(refused)] += 1;
    }
    assert!(answered[0] > 20 && answered[1] > 20, "{answered:?}");
    is_well(&server);
}
