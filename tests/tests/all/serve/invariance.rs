//! Answers do not depend on load: 64 requests of mixed kinds alone and all at once.

use super::{Running, Setup, demo};
use bitnet_kernels::Backend;
use bitnet_serve::EngineOptions;
use bitnet_tests::http_client::{connect, send};
use bitnet_tests::program;
use bitnet_tests::random::Random;
use serde_json::{Value, json};
use std::thread::{scope, sleep};
use std::time::Duration;

const REQUESTS: usize = 64;
const QUESTIONS: [&str; 5] = [
    "Mia has a pink map. Felix has a black cup. What colour is the map?",
    "What is 17 plus 25?",
    "Anna has a red ring. Clara has a blue drum. Who has the ring?",
    "Sort these numbers: 8 3 5",
    "How many letters are in the word banana?",
];

/// A request: path, body, and the flags of `bitnet-run` that compute the same text.
struct Case {
    path: &'static str,
    body: Value,
    alone: Option<Vec<String>>,
}

/// One of eight kinds of requests.
fn case(number: usize) -> Case {
    let question = QUESTIONS[number / 8 % QUESTIONS.len()];
    let seed = 1000 + number;
    let words = |list: &[&str]| Some(list.iter().map(|w| (*w).to_owned()).collect());
    let seed_text = seed.to_string();
    let (path, body, alone) = match number % 8 {
        0 => (
            "/v1/completions",
            json!({"prompt": question, "max_tokens": 12}),
            words(&["-p", question, "-n", "12"]),
        ),
        1 => (
            "/v1/completions",
            json!({"prompt": question, "max_tokens": 16, "seed": seed, "temperature": 1.5, "top_k": 0, "top_p": 0.9, "min_p": 0.01}),
            words(&[
                "-p", question, "-n", "16", "--seed", &seed_text, "--temp", "1.5", "--top-k", "0",
                "--top-p", "0.9", "--min-p", "0.01",
            ]),
        ),
        2 => (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": question}], "max_tokens": 24}),
            words(&["-p", question, "--chat", "-n", "24"]),
        ),
        3 => (
            "/v1/chat/completions",
            json!({"messages": [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}],
                "max_tokens": 20, "seed": seed, "temperature": 2, "logprobs": true, "top_logprobs": 3}),
            words(&[
                "-p", question, "--chat", "--system", "Answer.", "-n", "20", "--seed", &seed_text,
                "--temp", "2",
            ]),
        ),
        4 => (
            "/v1/completions",
            json!({"prompt": [question, "A"], "echo": true, "logprobs": 2, "max_tokens": number / 8 % 3, "temperature": 0}),
            None,
        ),
        5 => (
            "/v1/completions",
            json!({"prompt": [[10, 20, 30 + number], [5]], "max_tokens": 9, "seed": seed, "n": 2}),
            None,
        ),
        6 => (
            "/v1/completions",
            json!({"prompt": question, "max_tokens": 30, "seed": seed, "temperature": 1.2, "stop": ["e", "is "],
                "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}),
            words(&[
                "-p",
                question,
                "-n",
                "30",
                "--seed",
                &seed_text,
                "--temp",
                "1.2",
                "--stop",
                "e",
                "--stop",
                "is ",
                "--repetition-penalty",
                "1.3",
                "--presence-penalty",
                "0.5",
                "--frequency-penalty",
                "0.25",
            ]),
        ),
        _ => match number / 8 % 4 {
            1 => ("/v1/embeddings", json!({"input": [question, "b"]}), None),
            2 => (
                "/v1/responses",
                json!({"input": question, "instructions": "Answer.", "max_output_tokens": 12, "seed": seed}),
                None,
            ),
            _ => (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": question}], "seed": seed, "max_tokens": 40,
                    "logit_bias": {"10": 2.5}, "response_format": {"type": "json_schema", "json_schema": {
                        "name": "a", "schema": {"type": "object", "properties": {"n": {"type": "integer"}},
                        "required": ["n"], "additionalProperties": false}}}}),
                None,
            ),
        },
    };
    Case { path, body, alone }
}

/// An answer without what differs between any two: its names and the time.
fn settled(answer: Value) -> Value {
    match answer {
        Value::Object(map) => map
            .into_iter()
            .filter(|(key, _)| !matches!(key.as_str(), "id" | "created" | "created_at"))
            .map(|(key, value)| (key, settled(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Value::Array(list) => list.into_iter().map(settled).collect(),
        value => value,
    }
}

fn setup(parallel: usize, prefix_cache: bool) -> Setup {
    Setup {
        engine: EngineOptions {
            parallel,
            prefix_cache,
            ..EngineOptions::default()
        },
        ..Setup::default()
    }
}

/// The text that `bitnet-run` prints.
fn of_program(flags: &[String]) -> String {
    let mut words = vec![demo().into_os_string()];
    words.extend(flags.iter().map(Into::into));
    words.extend(["--json".into(), "--threads".into(), "1".into()]);
    let ran = program::run(bitnet_run::run, words);
    ran.json()["text"].as_str().unwrap().to_owned()
}

fn text(answer: &Value) -> &str {
    let choice = &answer["choices"][0];
    let text = choice["text"].as_str();
    text.or(choice["message"]["content"].as_str()).unwrap()
}

#[test]
fn answers_are_those_of_each_request_alone() {
    let cases: Vec<Case> = (0..REQUESTS).map(case).collect();
    let server = Running::start(&demo(), setup(1, false));
    let alone: Vec<Value> = cases
        .iter()
        .map(|case| settled(server.ask(case.path, &case.body)))
        .collect();
    drop(server);
    for (case, answer) in cases.iter().zip(&alone) {
        if let Some(flags) = &case.alone {
            assert_eq!(text(answer), of_program(flags), "{}", case.body);
        }
    }
    // the test would prove little if all texts were short or alike
    let texts: std::collections::HashSet<String> = alone.iter().map(Value::to_string).collect();
    assert!(texts.len() > REQUESTS * 3 / 4, "{}", texts.len());

    let scalar = Backend::by_name("scalar").unwrap();
    let mut random = Random(7);
    for (parallel, cache, backend, threads) in [
        (1, false, Backend::best(), 1),
        (1, true, Backend::best(), 1),
        (4, false, Backend::best(), 2),
        (4, true, scalar, 1),
        (16, true, Backend::best(), 1),
        (16, false, Backend::best(), 1),
    ] {
        let server = Running::start(
            &demo(),
            Setup {
                backend,
                threads,
                ..setup(parallel, cache)
            },
        );
        let mut order: Vec<(usize, u64, bool)> = (0..REQUESTS)
            .map(|number| (number, random.below(40) as u64, false))
            .collect();
        // some clients go away in the middle
        order.extend((0..16).map(|number| (number, random.below(40) as u64, true)));
        for at in (1..order.len()).rev() {
            order.swap(at, random.below(at + 1));
        }
        scope(|scope| {
            for (number, delay, leaves) in order {
                let (server, case, want) = (&server, &cases[number], &alone[number]);
                scope.spawn(move || {
                    sleep(Duration::from_millis(delay));
                    if leaves {
                        let mut stream = connect(server.address);
                        let body = case.body.to_string();
                        send(&mut stream, "POST", case.path, &[], body.as_bytes()).unwrap();
                        sleep(Duration::from_millis(delay / 4));
                        return;
                    }
                    let answer = settled(server.ask(case.path, &case.body));
                    assert_eq!(
                        &answer, want,
                        "parallel {parallel}, cache {cache}: {}",
                        case.body
                    );
                });
            }
        });
        if cache {
            assert!(server.metric("prefix_cache_hits_total") > 0);
        } else {
            assert_eq!(server.metric("prefix_cache_hits_total"), 0);
        }
        assert!(server.stop());
    }
}

#[test]
fn streams_say_what_bodies_say() {
    let server = Running::demo();
    for number in (0..REQUESTS).step_by(3) {
        let case = case(number);
        if !case.path.ends_with("completions") {
            continue;
        }
        let whole = server.ask(case.path, &case.body);
        let mut body = case.body.clone();
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let reply = server.post(case.path, &body);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        let chunks = reply.chunks();
        let last = chunks.last().unwrap();
        assert_eq!(last["usage"], whole["usage"]);
        assert_eq!(last["choices"], json!([]));
        for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let own = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap());
            let own: Vec<&Value> = own.filter(|c| c["index"] == json!(index)).collect();
            let piece = |c: &&Value| {
                let text = c["text"].as_str().or(c["delta"]["content"].as_str());
                text.unwrap_or_default().to_owned()
            };
            let text: String = own.iter().map(piece).collect();
            let want = choice["text"]
                .as_str()
                .or(choice["message"]["content"].as_str());
            assert_eq!(Some(text.as_str()), want, "{body}");
            assert_eq!(
                own.last().unwrap()["finish_reason"],
                choice["finish_reason"]
            );
            assert!(
                own[..own.len() - 1]
                    .iter()
                    .all(|c| c["finish_reason"].is_null())
            );
            // log-probabilities of the pieces, one behind the other
            for list in [
                "tokens",
                "token_logprobs",
                "top_logprobs",
                "text_offset",
                "content",
            ] {
                if let Some(whole) = choice["logprobs"][list].as_array() {
                    let pieces = own.iter().filter_map(|c| c["logprobs"][list].as_array());
                    let pieces: Vec<Value> = pieces.flatten().cloned().collect();
                    assert_eq!(&pieces, whole, "{list} of {body}");
                }
            }
        }
    }
}
