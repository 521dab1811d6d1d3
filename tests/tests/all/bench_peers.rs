//! `scripts/bench-peers` beside a llama-bench that only prints what real ones print.
#![cfg(unix)]

use bitnet_tests::fixtures::repository;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// One object of a real `llama-bench -o json`, without the keys that say nothing of speed.
const OBJECT: &str = r#"{"build_commit": "8337e4cd3", "cpu_info": "a processor",
    "model_type": "bitnet-b1.58 2B IQ2_BN - 2.00 bpw Bitnet", "model_size": 1064176640, "n_threads": THREADS,
    "n_prompt": PROMPT, "n_gen": GENERATE, "avg_ns": 1352381504, "stddev_ns": 0,
    "avg_ts": SPEED, "stddev_ts": 0.000000, "samples_ns": [ 1352381504 ], "samples_ts": [ SPEED ]}"#;

/// A program that notes its words in `calls` and answers with this shell text.
fn fake(directory: &Path, answer: &str) -> PathBuf {
    let path = directory.join("llama-bench");
    let calls = directory.join("calls");
    let text = format!("#!/bin/sh\necho \"$@\" >> {}\n{answer}\n", calls.display());
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn object(prompt: u32, generate: u32, speed: &str) -> String {
    OBJECT
        .replace("THREADS", "1")
        .replace("PROMPT", &prompt.to_string())
        .replace("GENERATE", &generate.to_string())
        .replace("SPEED", speed)
}

fn bench_peers(peer: &Path, words: &[&str]) -> Output {
    let model = repository().join("tests/fixtures/bitnet-2b4t-packed/checkpoint");
    Command::new(repository().join("scripts/bench-peers"))
        .arg(peer)
        .arg("peer.gguf")
        .arg(model)
        .args(["--bitnet-run", env!("CARGO_BIN_EXE_run_under_test")])
        .args(words)
        .output()
        .expect("scripts/bench-peers is executable, and Python 3 is there")
}

#[test]
fn a_peer_and_ours_take_turns_and_ratios_are_of_one_round() {
    let place = tempfile::tempdir().unwrap();
    // builds may talk before the array
    let objects = [object(8, 0, "50.5"), object(0, 4, "20.25")].join(",\n");
    let peer = fake(
        place.path(),
        &format!("cat <<'END'\nwarning: asserts enabled\n[\n{objects}\n]\nEND"),
    );

    let words = [
        "-t",
        "1,2",
        "-p",
        "8",
        "-n",
        "4",
        "-r",
        "2",
        "--json",
        "--peer-args=-rtr 1",
    ];
    let ran = bench_peers(&peer, &words);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{stderr}");
    let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(result["status"], "measured");
    assert_eq!(result["peer"]["build_commit"], "8337e4cd3");
    let rows = result["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|r| (r["test"].as_str().unwrap(), r["threads"].as_u64().unwrap()))
        .collect();
    assert_eq!(names, [("pp8", 1), ("pp8", 2), ("tg4", 1), ("tg4", 2)]);
    // all logits, as the peer computes them, stand beside candidates
    let heads: Vec<_> = rows.iter().map(|r| r["head"].as_str().unwrap()).collect();
    assert_eq!(heads, ["full", "full", "auto", "auto"]);
    for row in rows {
        let full = &row["head_full"];
        assert_eq!(full.is_object(), row["head"] == "auto", "{row}");
        if full.is_object() {
            let number = |of: &Value| of["rounds"][0].as_f64().unwrap();
            let ratio = number(&full["ratio"]) * 20.25 / number(&full["ours"]);
            assert!((ratio - 1.0).abs() < 1e-12, "{ratio}");
        }
    }
    assert!(result["ours"]["features"].is_array(), "{result}");
    assert!(
        result["ours"]["tokenizer"]["vocab_size"].is_u64(),
        "{result}"
    );
    for row in rows {
        let peer = if row["test"] == "pp8" { 50.5 } else { 20.25 };
        assert_eq!(row["peer"]["median"], peer);
        assert!(row["read_bandwidth_gb_s"]["median"].as_f64().unwrap() > 0.0);
        for round in 0..2 {
            let number = |key: &str| row[key]["rounds"][round].as_f64().unwrap();
            let ratio = number("ratio") * number("peer") / number("ours");
            assert!((ratio - 1.0).abs() < 1e-12, "{ratio}");
        }
    }
    let calls = fs::read_to_string(place.path().join("calls")).unwrap();
    let calls: Vec<&str> = calls.lines().collect();
    let call = |threads: u32| format!("-m peer.gguf -t {threads} -p 8 -n 4 -r 1 -o json -rtr 1");
    assert_eq!(calls, [call(1), call(2), call(1), call(2)]);
}

#[test]
fn the_table_has_a_line_for_each_test() {
    let place = tempfile::tempdir().unwrap();
    let peer = fake(
        place.path(),
        &format!("echo '[{}]'", object(8, 0, "50.5").replace('\n', " ")),
    );
    let ran = bench_peers(&peer, &["-t", "1", "-p", "8", "-n", "0", "-r", "1"]);
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(
        text.starts_with(
            "peer: bitnet-b1.58 2B IQ2_BN - 2.00 bpw Bitnet, 1064 MB, build 8337e4cd3\n"
        ),
        "{text}"
    );
    assert_eq!(
        text.lines().filter(|l| l.starts_with("pp8 ")).count(),
        1,
        "{text}"
    );
    assert!(text.contains("50.50 (50.50 to 50.50)"), "{text}");
}

#[test]
fn a_peer_that_fails_or_prints_other_things_is_reported() {
    let place = tempfile::tempdir().unwrap();
    for (answer, expected) in [
        ("echo cannot load model >&2; exit 1", "cannot load model"),
        ("echo '| model | t/s |'", "expected JSON"),
        (
            "echo '[{\"n_prompt\": 8}]'",
            "expected llama-bench's objects",
        ),
        ("echo '[]'", "expected a result for pp8"),
    ] {
        let peer = fake(place.path(), answer);
        let ran = bench_peers(
            &peer,
            &["-t", "1", "-p", "8", "-n", "0", "-r", "1", "--json"],
        );
        assert_eq!(ran.status.code(), Some(2));
        let result: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(result["status"], "error");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(expected), "{message}");
    }
}
