//! What a target cannot hold is refused before the output is begun.
//!
//! Invariant: a refused conversion wrote no byte, however many tensors were fine before the one that is not.

#![cfg(target_os = "linux")]

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::run;
use std::ffi::OsString;
use std::path::Path;

/// Bytes that this process wrote so far.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    line.unwrap().parse().unwrap()
}

fn convert(
    source: &Path,
    target: &str,
    more: &[&str],
    output: &Path,
) -> (ExitStatus, serde_json::Value) {
    let mut words: Vec<OsString> = vec![source.into(), "-o".into(), output.into()];
    words.extend(["--to".into(), target.into(), "--json".into()]);
    words.extend(more.iter().map(Into::into));
    let ran = run(bitnet_convert::run, words);
    (ran.status, ran.json())
}

// one test, because it counts what the process writes
#[test]
fn nothing_is_written_before_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    // master weights: their scales are means of values, which 16 bits do not hold
    for target in [
        "gguf-tq2_0",
        "gguf-tq1_0",
        "gguf-f16",
        "gguf-bf16",
        "gguf-q2_0",
        "mlx-2bit",
    ] {
        let before = written();
        let (status, json) = convert(&checkpoint("bitnet-2b4t-bf16"), target, &[], &output);
        let bytes = written() - before;
        assert_eq!(status, ExitStatus::CouldNot, "{target}");
        let error = &json["error"];
        assert_eq!(error["code"], "scale-rounding", "{target}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("more tensors were not looked at"),
            "{target}: {message}"
        );
        assert!(bytes < 4096, "{target}: {bytes} bytes were written");
        assert!(!output.exists());
    }
    // the user's word is enough
    let allowed = dir.path().join("allowed.gguf");
    let more = ["--allow-scale-rounding"];
    let (status, json) = convert(
        &checkpoint("bitnet-2b4t-bf16"),
        "gguf-tq2_0",
        &more,
        &allowed,
    );
    assert_eq!(status, ExitStatus::Done, "{json}");

    // scales in the blocks of a packed file are judged by the plan, also of a dry run
    let rows = dir.path().join("rows.gguf");
    let (status, json) = convert(&checkpoint("bonsai-1.7b"), "gguf-q2_0", &[], &rows);
    assert_eq!(status, ExitStatus::Done, "{json}");
    for more in [&[][..], &["--dry-run"]] {
        let before = written();
        let (status, json) = convert(&rows, "gguf-i2_s", more, &output);
        let bytes = written() - before;
        assert_eq!(status, ExitStatus::CouldNot, "{more:?}: {json}");
        assert_eq!(json["error"]["code"], "target-cannot-hold", "{json}");
        assert!(bytes < 4096, "{bytes} bytes were written");
    }
}
