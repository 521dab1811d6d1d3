//! The shape of answers, and numbers that are known from elsewhere.

use super::{Running, Setup, demo};
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_model::{Likelihoods, LoadOptions, Logits, Model};
use bitnet_serve::ServerOptions;
use bitnet_tests::http_client::{get, request};
use bitnet_tests::program;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const QUESTION: &str = "Mia has a pink map. Felix has a black cup. Felix is in the forest. Felix gives the cup to Mia. What colour is the map?";

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn answers_have_the_shape_of_openai() {
    let server = Running::demo();
    let chat = json!({"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20,
        "user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto", "temperature": null});
    let answer = server.ask("/v1/chat/completions", &chat);
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "demo");
    assert_eq!(answer["choices"][0]["message"]["role"], "assistant");
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "The map is pink."
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let usage = &answer["usage"];
    let sum =
        usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"].as_u64(), Some(sum));
    let short = server.ask(
        "/v1/chat/completions",
        &json!({"messages": chat["messages"], "max_completion_tokens": 2}),
    );
    assert_eq!(short["choices"][0]["finish_reason"], "length");

    let answer = server.ask(
        "/v1/completions",
        &json!({"prompt": "One two", "max_tokens": 3}),
    );
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(
        keys(&answer["choices"][0]),
        ["index", "text", "logprobs", "finish_reason"]
    );
    let none = server.ask(
        "/v1/completions",
        &json!({"prompt": "One two", "max_tokens": 0, "echo": true}),
    );
    assert_eq!(none["choices"][0]["text"], "One two");
    assert_eq!(none["usage"]["completion_tokens"], 0);

    let response = server.ask(
        "/v1/responses",
        &json!({"input": QUESTION, "max_output_tokens": 20, "store": true}),
    );
    assert_eq!(response["status"], "completed");
    assert_eq!(
        response["output"][0]["content"][0]["text"],
        "The map is pink."
    );
    let streamed = server.post("/v1/responses", &json!({"input": QUESTION, "stream": true}));
    let events: Vec<Value> = streamed
        .events()
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[0], "response.created");
    assert_eq!(kinds[kinds.len() - 1], "response.completed");
    let deltas = events.iter().filter_map(|e| e["delta"].as_str());
    assert_eq!(deltas.collect::<String>(), "The map is pink.");
    let numbers = events
        .iter()
        .map(|e| e["sequence_number"].as_u64().unwrap());
    assert!(numbers.eq(0..events.len() as u64));

    let models = get(server.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "demo");
    assert_eq!(get(server.address, "/v1/models/demo").json()["id"], "demo");
    assert_eq!(get(server.address, "/v1/models/x").status, 404);
    assert_eq!(
        get(server.address, "/health").json(),
        json!({"status": "ok"})
    );
    let page = get(server.address, "/");
    assert!(page.text().contains("<!doctype html>"));
    assert!(
        page.header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );
}

#[test]
fn texts_become_tokens_and_tokens_texts() {
    let server = Running::demo();
    let tokens = server.ask("/tokenize", &json!({"content": "Hello there"}))["tokens"].clone();
    let back = server.ask("/detokenize", &json!({"tokens": tokens}));
    assert_eq!(back["content"], "Hello there");
    let prompt = server.ask(
        "/apply-template",
        &json!({"messages": [{"role": "user", "content": " hi "}]}),
    );
    assert_eq!(prompt["prompt"], "<|user|>hi<|end|><|assistant|>");
    let of_messages = server.ask(
        "/tokenize",
        &json!({"messages": [{"role": "user", "content": " hi "}]}),
    );
    let of_prompt = server.ask("/tokenize", &json!({"prompt": prompt["prompt"]}));
    assert_eq!(of_messages["tokens"], of_prompt["tokens"]);
    assert_eq!(
        server.post("/detokenize", &json!({"tokens": [576]})).status,
        400
    );
}

/// Logits of a text, computed here.
fn log_probabilities(tokens: &[u32]) -> Vec<Vec<f64>> {
    let checkpoint = Checkpoint::open(&demo(), &OpenOptions::default()).unwrap();
    let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, tokens, Logits::All).unwrap();
    let vocab = model.config().vocab_size;
    let rows = logits.chunks_exact(vocab).map(|row| {
        let likelihoods = Likelihoods::new(row);
        (0..vocab as u32).map(|id| likelihoods.ln(id)).collect()
    });
    rows.collect()
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let server = Running::demo();
    let prompt = [12u32, 400, 33, 7, 250];
    let answer = server.ask(
        "/v1/completions",
        &json!({"prompt": prompt, "max_tokens": 4, "echo": true, "logprobs": 3, "return_token_ids": true, "ignore_eos": true}),
    );
    let choice = &answer["choices"][0];
    let mut tokens = prompt.to_vec();
    let new: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    assert_eq!(new.len(), 4);
    tokens.extend(&new);
    let rows = log_probabilities(&tokens);
    let listed = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(listed.len(), tokens.len());
    assert_eq!(listed[0], Value::Null);
    for at in 1..tokens.len() {
        let row = &rows[at - 1];
        assert_eq!(
            listed[at].as_f64(),
            Some(row[tokens[at] as usize]),
            "token {at}"
        );
        let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let top = choice["logprobs"]["top_logprobs"][at].as_object().unwrap();
        assert_eq!(top.values().next().unwrap().as_f64(), Some(best));
    }
    // greedy: each new token is the likeliest
    for at in prompt.len()..tokens.len() {
        let row = &rows[at - 1];
        assert!(row.iter().all(|other| *other <= row[tokens[at] as usize]));
    }

    let chat = server.ask(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": QUESTION}], "logprobs": true, "top_logprobs": 2}),
    );
    let content = chat["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    let bytes: Vec<u8> = content
        .iter()
        .flat_map(|entry| entry["bytes"].as_array().unwrap())
        .map(|byte| byte.as_u64().unwrap() as u8)
        .collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), "The map is pink.");
    assert!(
        content
            .iter()
            .all(|entry| entry["top_logprobs"].as_array().unwrap().len() == 2)
    );
}

#[test]
fn the_token_that_ends_a_text_is_listed() {
    let server = Running::demo();
    let prompt = server.ask(
        "/tokenize",
        &json!({"content": format!("<|user|>{QUESTION}<|end|><|assistant|>The map is pink.")}),
    );
    let prompt: Vec<u32> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
    let row = log_probabilities(&prompt).pop().unwrap();
    let end = server.ask("/tokenize", &json!({"content": "<|end|>"}))["tokens"][0].clone();
    let likeliest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    assert_eq!(row[end.as_u64().unwrap() as usize], likeliest);
    // clients that measure a prompt ask for one more token and drop the last entry
    let mut body = json!({"prompt": prompt, "max_tokens": 1, "echo": true, "logprobs": 1, "return_token_ids": true});
    let answer = server.ask("/v1/completions", &body);
    let choice = &answer["choices"][0];
    let lists = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(lists[list].as_array().unwrap().len(), prompt.len() + 1);
    }
    assert_eq!(lists["tokens"][prompt.len()], "<|end|>");
    assert_eq!(lists["token_logprobs"][prompt.len()], likeliest);
    assert_eq!(lists["top_logprobs"][prompt.len()]["<|end|>"], likeliest);
    // it is no part of the text
    assert_eq!(choice["finish_reason"], "stop");
    assert!(
        choice["text"]
            .as_str()
            .unwrap()
            .ends_with("The map is pink.")
    );
    assert_eq!(choice["token_ids"], json!([]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    body["stream"] = true.into();
    let chunks = server.post("/v1/completions", &body).chunks();
    let pieces = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["tokens"].as_array());
    let pieces: Vec<&Value> = pieces.flatten().collect();
    assert_eq!(
        pieces,
        lists["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .collect::<Vec<_>>()
    );
}

#[test]
fn further_texts_of_a_prompt_have_the_next_seeds() {
    let server = Running::demo();
    let body = |seed: u64, n: u64| json!({"prompt": "The", "seed": seed, "temperature": 2, "top_k": 0, "top_p": 1, "min_p": 0, "n": n, "max_tokens": 8, "ignore_eos": true});
    let three = server.ask("/v1/completions", &body(6, 3));
    for number in 0..3 {
        let one = server.ask("/v1/completions", &body(6 + number, 1));
        assert_eq!(
            three["choices"][number as usize]["text"],
            one["choices"][0]["text"]
        );
    }
    assert_ne!(three["choices"][0]["text"], three["choices"][1]["text"]);
    assert_eq!(three["seed"], 6);
    for _ in 0..2 {
        server.ask(
            "/v1/completions",
            &json!({"prompt": QUESTION, "max_tokens": 1}),
        );
    }
    assert!(server.metric("prefix_cache_hits_total") > 0);
    // without a seed one is drawn and reported, and gives the same text again
    let mut without = body(0, 1);
    without.as_object_mut().unwrap().shift_remove("seed");
    let drawn = server.ask("/v1/completions", &without);
    let again = server.ask("/v1/completions", &body(drawn["seed"].as_u64().unwrap(), 1));
    assert_eq!(drawn["choices"], again["choices"]);
}

#[test]
fn vectors_are_those_of_the_program() {
    let server = Running::demo();
    let texts = ["Hello world", "Good evening"];
    let answer = server.ask("/v1/embeddings", &json!({"input": texts}));
    let mut words = vec!["embed".into(), demo().into_os_string()];
    words.extend(texts.map(Into::into));
    words.push("--json".into());
    let program = program::run(bitnet_run::run, words).json();
    for number in 0..2 {
        assert_eq!(
            answer["data"][number]["embedding"],
            program["embeddings"][number]["embedding"]
        );
    }
    let coded = server.ask(
        "/v1/embeddings",
        &json!({"input": texts[0], "encoding_format": "base64"}),
    );
    assert!(coded["data"][0]["embedding"].as_str().unwrap().len() > 1000);
    assert_eq!(
        server
            .post("/v1/embeddings", &json!({"input": "x", "dimensions": 3}))
            .status,
        400
    );
}

#[test]
fn wrong_requests_are_refused_by_the_name_of_their_field() {
    let server = Running::demo();
    let chat = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        ("/v1/chat/completions", body)
    };
    let completion = |more: Value| {
        let mut body = json!({"prompt": "x"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        ("/v1/completions", body)
    };
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for ((path, body), status, param) in [
        (chat(json!({"temprature": 1})), 400, "temprature"),
        (chat(json!({"temperature": -1})), 400, "temperature"),
        (chat(json!({"top_p": 2})), 400, "top_p"),
        (chat(json!({"n": 0})), 400, "n"),
        (chat(json!({"seed": -1})), 400, "seed"),
        (chat(json!({"stop": [""]})), 400, "stop"),
        (chat(json!({"stop": 3})), 400, "stop"),
        (chat(json!({"logit_bias": {"x": 1}})), 400, "logit_bias"),
        (chat(json!({"logit_bias": {"576": 1}})), 400, "logit_bias"),
        (chat(json!({"top_logprobs": 2})), 400, "top_logprobs"),
        (
            chat(json!({"logprobs": true, "top_logprobs": 21})),
            400,
            "top_logprobs",
        ),
        (chat(json!({"model": "other"})), 404, "model"),
        (chat(json!({"messages": []})), 400, "messages"),
        (
            chat(json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})),
            400,
            "messages[0].content[0].type",
        ),
        (chat(json!({"tools": tool})), 400, "tools"),
        (chat(json!({"tool_choice": "required"})), 400, "tool_choice"),
        (chat(json!({"functions": []})), 400, "functions"),
        (chat(json!({"audio": {}})), 400, "audio"),
        (
            chat(json!({"reasoning_effort": "high"})),
            400,
            "reasoning_effort",
        ),
        (
            chat(json!({"response_format": {"type": "x"}})),
            400,
            "response_format.type",
        ),
        (
            chat(json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}})),
            400,
            "response_format.json_schema.schema",
        ),
        (
            chat(
                json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}),
            ),
            400,
            "response_format",
        ),
        (
            chat(json!({"chat_template_kwargs": {"messages": []}})),
            400,
            "chat_template_kwargs.messages",
        ),
        (
            chat(json!({"stream_options": {"x": 1}})),
            400,
            "stream_options.x",
        ),
        (completion(json!({"prompt": ""})), 400, "prompt"),
        (completion(json!({"prompt": []})), 400, "prompt"),
        (completion(json!({"prompt": [1, "a"]})), 400, "prompt"),
        (completion(json!({"prompt": [576]})), 400, "prompt"),
        (
            completion(json!({"prompt": "x".repeat(140_000)})),
            400,
            "prompt",
        ),
        (completion(json!({"prompt": vec![1; 513]})), 400, "prompt"),
        (completion(json!({"max_tokens": -1})), 400, "max_tokens"),
        (completion(json!({"max_tokens": 1.5})), 400, "max_tokens"),
        (completion(json!({"suffix": "s"})), 400, "suffix"),
        (completion(json!({"best_of": 3})), 400, "best_of"),
        (completion(json!({"logprobs": 21})), 400, "logprobs"),
        (completion(json!({"stream": 1})), 400, "stream"),
        (
            ("/v1/responses", json!({"input": "x", "tools": [1]})),
            400,
            "tools",
        ),
        (
            (
                "/v1/responses",
                json!({"input": "x", "previous_response_id": "r"}),
            ),
            400,
            "previous_response_id",
        ),
        (("/v1/responses", json!({"input": []})), 400, "input"),
        (("/v1/responses", json!({})), 400, "input"),
        (
            (
                "/v1/responses",
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
            ),
            400,
            "input[0].content[0].type",
        ),
        (
            (
                "/v1/responses",
                json!({"instructions": "s", "input": [{"role": "x", "content": "y"}]}),
            ),
            400,
            "input[0].role",
        ),
        (
            ("/v1/responses", json!({"input": "x ".repeat(2000)})),
            400,
            "input",
        ),
        (
            (
                "/v1/responses",
                json!({"input": "x", "text": {"format": {"type": "x"}}}),
            ),
            400,
            "text.format.type",
        ),
        (
            (
                "/v1/responses",
                json!({"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "nonsense"}}}}),
            ),
            400,
            "text.format",
        ),
        (("/tokenize", json!({})), 400, "content"),
        (
            ("/tokenize", json!({"content": "a", "text": "b"})),
            400,
            "text",
        ),
        (
            (
                "/tokenize",
                json!({"prompt": "a", "messages": [{"role": "user", "content": "x"}]}),
            ),
            400,
            "messages",
        ),
        (
            ("/tokenize", json!({"text": "x".repeat(140_000)})),
            400,
            "text",
        ),
        (
            (
                "/tokenize",
                json!({"text": "x", "add_special": true, "add_special_tokens": false}),
            ),
            400,
            "add_special",
        ),
        (
            chat(json!({"max_tokens": 1, "max_completion_tokens": 4})),
            400,
            "max_completion_tokens",
        ),
        (("/v1/embeddings", json!({"input": []})), 400, "input"),
        (
            ("/v1/embeddings", json!({"input": "x", "foo": 1})),
            400,
            "foo",
        ),
    ] {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        let error = &reply.json()["error"];
        assert_eq!(error["param"], param, "{error}");
        assert!(error["message"].as_str().unwrap().len() > 5 && error["type"].is_string());
    }
    assert_eq!(server.metric("sequences_running"), 0);
}

#[test]
fn a_lenient_server_names_what_it_ignores() {
    let setup = Setup {
        lenient: true,
        ..Setup::default()
    };
    let server = Running::start(&demo(), setup);
    let body = json!({"prompt": "x", "max_tokens": 1, "foo": 1, "bar": {}, "user": "u"});
    let reply = server.post("/v1/completions", &body);
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("x-ignored-fields"), Some("foo,bar"));
    // each name is said once
    let more = json!({"content": "x", "bar": 1, "baz": 2});
    let reply = server.post("/tokenize", &more);
    assert_eq!(reply.header("x-ignored-fields"), Some("bar,baz"));
    let started = Instant::now();
    while server.ignored.lock().unwrap().len() < 3 {
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(*server.ignored.lock().unwrap(), ["foo", "bar", "baz"]);
    // what is known and not supported is refused all the same
    assert_eq!(
        server
            .post("/v1/completions", &json!({"prompt": "x", "suffix": "s"}))
            .status,
        400
    );
}

#[test]
fn keys_and_origins_are_asked_for() {
    let server = Running::start(
        &demo(),
        Setup {
            server: ServerOptions {
                port: 0,
                keys: vec!["k1".to_owned(), "k2".to_owned()],
                origins: vec!["https://a.example".to_owned()],
                web: false,
                ..ServerOptions::default()
            },
            ..Setup::default()
        },
    );
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let status = |method: &str, path: &str, headers: &[(&str, &str)]| {
        request(server.address, method, path, headers, body.as_bytes()).status
    };
    let path = "/v1/completions";
    assert_eq!(status("POST", path, &[]), 401);
    assert_eq!(status("POST", path, &[("authorization", "Bearer k")]), 401);
    assert_eq!(status("POST", path, &[("authorization", "Bearer k2")]), 200);
    assert_eq!(status("GET", "/metrics", &[]), 401);
    assert_eq!(status("GET", "/health", &[]), 200);
    let key = ("authorization", "Bearer k1");
    assert_eq!(status("GET", "/", &[key]), 404);
    assert_eq!(status("GET", path, &[key]), 405);
    assert_eq!(status("POST", "/v1/other", &[key]), 404);
    assert_eq!(
        status("POST", path, &[key, ("origin", "https://b.example")]),
        403
    );
    assert_eq!(
        status("POST", path, &[key, ("origin", "https://a.example")]),
        200
    );
    let preflight = request(
        server.address,
        "OPTIONS",
        path,
        &[("origin", "https://a.example")],
        b"",
    );
    assert_eq!(preflight.status, 204);
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("https://a.example")
    );
}
