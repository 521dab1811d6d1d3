//! `scripts/bench-serve` beside a server that answers as llama-server does.
#![cfg(unix)]

use bitnet_tests::fixtures::repository;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Notes its flags in `calls`, and sends `n_predict` tokens in two events.
const SERVER: &str = r#"#!/usr/bin/env python3
import http.server, json, pathlib, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"status":"ok"}')
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/completion" and body["ignore_eos"] and body["stream"] and not body["cache_prompt"], body
        self.send_response(200); self.end_headers()
        for event in ({"content": "a", "stop": False}, {"content": "", "stop": True, "tokens_predicted": body["n_predict"] - SHORT}):
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n"); self.wfile.flush()
words = sys.argv[1:]
pathlib.Path(__file__).with_name("calls").write_text(" ".join(words))
http.server.ThreadingHTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"#;

fn fake(directory: &Path, short: u32) -> PathBuf {
    let path = directory.join("llama-server");
    fs::write(&path, SERVER.replace("SHORT", &short.to_string())).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn bench_serve(peer: &Path, words: &[&str]) -> Output {
    Command::new(repository().join("scripts/bench-serve"))
        .arg(repository().join("tests/fixtures/demo/packed"))
        .arg(format!("--peer=other={}=peer.gguf", peer.display()))
        .args(["--bitnet-run", env!("CARGO_BIN_EXE_run_under_test")])
        .args(words)
        .output()
        .expect("scripts/bench-serve is executable, and Python 3 is there")
}

#[test]
fn servers_take_turns_and_ratios_are_of_one_round() {
    let place = tempfile::tempdir().unwrap();
    let peer = fake(place.path(), 0);
    let file = place.path().join("out.json");
    let ran = bench_serve(
        &peer,
        &[
            "--concurrency",
            "1,3",
            "-n",
            "8",
            "-p",
            "4",
            "-r",
            "2",
            "--long-prompt",
            "20",
            "--load",
            "2",
            "-t",
            "1",
            "--peer-args=-fa on",
            "--json",
            "--output",
            file.to_str().unwrap(),
        ],
    );
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    assert_eq!(fs::read(&file).unwrap(), ran.stdout);
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(result["status"], "measured");
    let rows = result["rows"].as_array().unwrap();
    let at_once: Vec<_> = rows
        .iter()
        .map(|row| row["concurrency"].as_u64().unwrap())
        .collect();
    assert_eq!(at_once, [1, 3]);
    for row in rows {
        for round in 0..2 {
            let aggregate = |name: &str| {
                let of = &row["servers"][name];
                assert!(of["first_ms"]["rounds"][round].as_f64().unwrap() > 0.0);
                of["aggregate"]["rounds"][round].as_f64().unwrap()
            };
            let (ours, other) = (aggregate("bitnet-run serve"), aggregate("other"));
            let ratio = row["ratio_to_best_peer"]["rounds"][round].as_f64().unwrap();
            assert!((ratio * other / ours - 1.0).abs() < 1e-12, "{row}");
        }
    }
    let loaded = &result["first_token_under_load_ms"]["servers"];
    assert!(loaded["other"]["median"].as_f64().unwrap() > 0.0);
    assert!(
        result["bitnet_run_tokens_per_s"]["median"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert!(result["server_cost"]["median"].as_f64().unwrap() < 1.0);
    let calls = fs::read_to_string(place.path().join("calls")).unwrap();
    assert!(
        calls.starts_with("-m peer.gguf --host 127.0.0.1 --port "),
        "{calls}"
    );
    assert!(
        calls.contains(" -t 1 -np 3 -c ") && calls.ends_with(" -fa on"),
        "{calls}"
    );
}

#[test]
fn a_server_that_generates_less_than_was_asked_for_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let peer = fake(place.path(), 1);
    let words = [
        "--concurrency",
        "1",
        "-n",
        "4",
        "-p",
        "4",
        "-r",
        "1",
        "--long-prompt",
        "20",
        "-t",
        "1",
    ];
    let ran = bench_serve(&peer, &words);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("error: other: expected 2 tokens, found 1"),
        "{stderr}"
    );
    let absent = bench_serve(&place.path().join("absent"), &words);
    assert_eq!(absent.status.code(), Some(2));
}
