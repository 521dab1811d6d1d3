//! What answers and refusals say to the letter: places in texts, statuses, and when they come.

use super::tools::with_template;
use super::{Running, Setup, demo};
use bitnet_cli::ExitStatus;
use bitnet_serve::ServerOptions;
use bitnet_tests::http_client::{connect, get, receive, request};
use bitnet_tests::program;
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATH: &str = "/v1/completions";

fn offsets(answer: &Value) -> Vec<usize> {
    serde_json::from_value(answer["choices"][0]["logprobs"]["text_offset"].clone()).unwrap()
}

fn text(answer: &Value) -> String {
    answer["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
fn offsets_are_places_of_the_text() {
    let server = Running::demo();
    // each token is one byte of a character
    let body = json!({"prompt": "日本", "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.ask(PATH, &body);
    assert_eq!(
        (text(&answer).as_str(), offsets(&answer)),
        ("日本", vec![0, 0, 0, 1, 1, 1])
    );
    // special tokens are not in the text
    let body = json!({"prompt": "hi", "ignore_eos": true, "max_tokens": 5, "logprobs": 0});
    let answer = server.ask(PATH, &body);
    assert_eq!(
        (text(&answer).as_str(), offsets(&answer)),
        (",", vec![0, 1, 1, 1, 1])
    );
    // but in a prompt that spells them
    let prompt = "<|user|>日a<|end|>";
    let body = json!({"prompt": prompt, "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.ask(PATH, &body);
    assert_eq!(text(&answer), prompt);
    assert_eq!(offsets(&answer), [0, 8, 8, 8, 9, 10]);
    let ids = server.ask("/tokenize", &json!({"content": prompt}))["tokens"].clone();
    let body = json!({"prompt": ids, "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.ask(PATH, &body);
    assert_eq!(
        (text(&answer).as_str(), offsets(&answer)),
        ("日a", vec![0, 0, 0, 0, 1, 2])
    );
    // bytes that begin a character and do not end it
    let half = [
        &ids.as_array().unwrap()[1..2],
        &ids.as_array().unwrap()[4..5],
    ]
    .concat();
    let body = json!({"prompt": half, "echo": true, "logprobs": 0, "max_tokens": 0});
    let answer = server.ask(PATH, &body);
    assert_eq!(
        (text(&answer).as_str(), offsets(&answer)),
        ("\u{fffd}a", vec![0, 1])
    );
}

#[test]
fn offsets_end_where_a_stop_string_cuts_the_text() {
    let server = Running::demo();
    let mut body = json!({"prompt": "Mia has a", "ignore_eos": true, "max_tokens": 30, "logprobs": 0, "echo": true, "seed": 4});
    let whole = text(&server.ask(PATH, &body));
    let own: Vec<char> = whole["Mia has a".len()..].chars().collect();
    assert!(own.len() > 12, "{whole}");
    for from in 1..8 {
        body["stream"] = Value::Null;
        body["stop"] = own[from..from + 4].iter().collect::<String>().into();
        let answer = server.ask(PATH, &body);
        let (text, found) = (text(&answer), offsets(&answer));
        assert!(found.is_sorted() && *found.last().unwrap() <= text.chars().count());
        body["stream"] = true.into();
        let chunks = server.post(PATH, &body).chunks();
        let streamed = chunks.iter().flat_map(|c| {
            c["choices"][0]["logprobs"]["text_offset"]
                .as_array()
                .unwrap()
        });
        let streamed: Vec<usize> = streamed.map(|n| n.as_u64().unwrap() as usize).collect();
        assert_eq!(streamed, found);
    }
}

/// Sends a head and no body.
fn head(server: &Running, lines: &str) -> TcpStream {
    let mut stream = connect(server.address);
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let head = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_comes() {
    let server = Running::demo();
    for length in [(32u64 << 20) + 1, 33_000_000_000, u64::MAX / 4] {
        let mut stream = head(&server, &format!("content-length: {length}\r\n"));
        let reply = receive(&mut stream).unwrap();
        assert_eq!(reply.status, 413, "{length}");
        assert_eq!(reply.json()["error"]["code"], "body_too_large");
    }
    // without a length as soon as it is too large
    let server = Running::start(
        &demo(),
        Setup {
            server: ServerOptions {
                port: 0,
                most_body: 1000,
                ..ServerOptions::default()
            },
            ..Setup::default()
        },
    );
    let mut stream = head(&server, "transfer-encoding: chunked\r\n");
    let chunk = format!("3e9\r\n{}\r\n", " ".repeat(1001));
    stream.write_all(chunk.as_bytes()).unwrap();
    assert_eq!(receive(&mut stream).unwrap().status, 413);
    // what fits is read
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let padded = format!("{body:<1000}");
    assert_eq!(
        request(server.address, "POST", PATH, &[], padded.as_bytes()).status,
        200
    );
}

#[test]
fn a_model_whose_file_was_cut_is_not_healthy() {
    let (_directory, path) = with_template("x");
    let server = Running::start(&path, Setup::default());
    assert_eq!(get(server.address, "/health").status, 200);
    let file = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut file = file.filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(file.next().unwrap())
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let reply = get(server.address, "/health");
    let health = reply.json();
    assert_eq!(
        (reply.status, health["status"].as_str()),
        (503, Some("failed")),
        "{health}"
    );
    let message = health["error"]["message"].as_str().unwrap();
    assert!(message.contains("input changed"), "{message}");
    let reply = server.post(PATH, &json!({"prompt": "x", "max_tokens": 1}));
    assert_eq!(
        (reply.status, reply.json()["error"]["code"].as_str()),
        (500, Some("internal"))
    );
}

#[test]
fn refusals_of_paths_and_headers_have_the_shape_of_openai() {
    let server = Running::demo();
    let long = "a".repeat(100_000);
    for (method, path, headers, status, code) in [
        ("GET", PATH, vec![], 405, "method_not_allowed"),
        ("GET", "/v1/models/%ff", vec![], 400, "invalid_value"),
        (
            "GET",
            "/health",
            vec![("x-a", &long[..66_000])],
            431,
            "headers_too_large",
        ),
    ] {
        let reply = request(server.address, method, path, &headers, b"");
        assert_eq!(reply.status, status, "{path}");
        let error = &reply.json()["error"];
        assert_eq!(
            (error["type"].as_str(), error["code"].as_str()),
            (Some("invalid_request_error"), Some(code))
        );
    }
    let reply = request(
        server.address,
        "GET",
        "/health",
        &[("x-a", &long[..64_000])],
        b"",
    );
    assert_eq!(reply.status, 200);
}

#[test]
fn a_schema_that_leads_back_to_itself_is_refused_in_words() {
    let server = Running::demo();
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 4,
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}});
    let reply = server.post("/v1/chat/completions", &body);
    assert_eq!(reply.status, 400);
    let message = reply.json()["error"]["message"].to_string();
    assert!(
        message.contains("no text can follow the schema"),
        "{message}"
    );
}

#[test]
fn a_file_of_keys_has_keys_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.txt");
    let started = Instant::now();
    for (keys, line) in [
        ("secret-one\n# comment\n", "line 2"),
        ("#secret-one\n", "line 1"),
        ("\nsecret-one k2\n", "line 2"),
        ("secret-one\tk2\n", "line 1"),
        ("schl\u{fc}ssel\n", "line 1"),
    ] {
        std::fs::write(&file, keys).unwrap();
        let words = [
            "serve".into(),
            demo().into_os_string(),
            "--port".into(),
            "0".into(),
            "--api-key-file".into(),
            file.clone().into_os_string(),
        ];
        let run = program::run(bitnet_run::run, words);
        assert_eq!(run.status, ExitStatus::CouldNot, "{keys}");
        assert!(
            run.stderr.contains(line) && !run.stderr.contains("secret-one"),
            "{}",
            run.stderr
        );
    }
    for origin in ["", "https://a.example/", "null"] {
        let words = [
            "serve".into(),
            demo().into_os_string(),
            "--port".into(),
            "0".into(),
            "--allow-origin".into(),
            origin.into(),
        ];
        let run = program::run(bitnet_run::run, words);
        assert_eq!(run.status, ExitStatus::CouldNot, "{origin}");
        assert!(
            run.stderr.contains("https://chat.example"),
            "{}",
            run.stderr
        );
    }
    assert!(started.elapsed() < Duration::from_secs(60));
}
