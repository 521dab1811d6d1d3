//! Layouts that share a type id: `inspect`, `--layout` and `--against` over files of every layout.
//!
//! Invariant: a file read in its own layout has the `ternary_sha256` of its source, and a report never
//! names a layout without saying why.

use bitnet_cli::ExitStatus;
use bitnet_formats::{Encoding, Limits, PackedTensor, packing_by_name};
use bitnet_tests::fixtures::{checkpoint, vectors_dir};
use bitnet_tests::program;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn run(args: &[&str]) -> (ExitStatus, Value) {
    let words = ["--json"].iter().chain(args);
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.stderr, "");
    (ran.status, ran.json())
}

fn done(args: &[&str]) -> Value {
    let (status, json) = run(args);
    assert_eq!(status, ExitStatus::Done, "{args:?}: {json}");
    json
}

/// The same model as an I2_S file of another program: linears in `layout`, nothing recorded.
fn foreign(i2_s: &Path, layout: &str, to: &Path) {
    let file = bitnet_formats::open(i2_s, &Limits::default()).unwrap();
    let mut bytes = std::fs::read(i2_s).unwrap();
    let (written, other) = (
        packing_by_name("i2_s").unwrap(),
        packing_by_name(layout).unwrap(),
    );
    for info in file.tensors() {
        if !matches!(info.encoding, Encoding::Ternary(_)) {
            continue;
        }
        let (rows, cols) = (info.shape[0], info.shape[1]);
        let stored = file.read(info).unwrap();
        let tensor = PackedTensor {
            bytes: &stored,
            rows,
            cols,
            outside: None,
        };
        let matrix = written.unpack(&tensor).unwrap();
        let codes = rows * cols / 4;
        let at = info.offset as usize;
        other.pack_units(&matrix, 0, &mut bytes[at..at + codes]);
    }
    // a key that nobody knows, of the same length
    let key = b"bitnet.layout";
    let at = bytes
        .windows(key.len())
        .position(|w| w == key)
        .expect("recorded");
    bytes[at..at + key.len()].copy_from_slice(b"nobody.layout");
    std::fs::write(to, bytes).unwrap();
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A fixture as `gguf-i2_s`, its path and `ternary_sha256`.
fn converted(dir: &Path, name: &str) -> (PathBuf, String) {
    let path = dir.join(format!("{name}.gguf"));
    let source = checkpoint(name);
    let json = done(&[text(&source), "-o", text(&path), "--to", "gguf-i2_s"]);
    (path, json["ternary_sha256"].as_str().unwrap().to_owned())
}

#[test]
fn a_file_of_ours_records_its_layout() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = converted(dir.path(), "bitnet-2b4t-packed");
    let seen = done(&["inspect", text(&path)]);
    assert_eq!(seen["layout"]["packing"], "i2_s");
    assert_eq!(seen["layout"]["reason"], "recorded");
    assert_eq!(seen["layout"]["readings"].as_array().unwrap().len(), 3);
    // a source without a question has no answer
    let seen = done(&["inspect", text(&checkpoint("bitnet-2b4t-packed"))]);
    assert!(seen["layout"].is_null());
}

#[test]
fn another_copy_tells_the_layout() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bitnet-2b4t-bf16", "falcon3-1.58"] {
        let (i2_s, sha256) = converted(dir.path(), name);
        for layout in ["i2_s", "i2_s-arm64", "i2_s-rows4"] {
            let file = dir.path().join(format!("{name}-{layout}-foreign.gguf"));
            foreign(&i2_s, layout, &file);
            let source = checkpoint(name);
            let seen = done(&["inspect", text(&file), "--against", text(&source)]);
            assert_eq!(seen["layout"]["packing"], layout, "{name}");
            assert_eq!(seen["layout"]["reason"], "source");
            let out = dir.path().join(format!("{name}-{layout}"));
            let args = [text(&file), "-o", text(&out), "--to", "hf-packed"];
            let against = done(&[&args[..], &["--against", text(&source)]].concat());
            assert_eq!(against["ternary_sha256"], sha256.as_str());
            let forced = done(&[&args[..], &["--force", "--layout", layout]].concat());
            assert_eq!(forced["ternary_sha256"], sha256.as_str());
            assert_eq!(forced["source"]["layout"]["reason"], "forced");
            // alone: decided rightly, or said to be undecided with the right one among the candidates
            let seen = done(&["inspect", text(&file)]);
            let candidates = seen["layout"]["candidates"].as_array().unwrap();
            assert!(candidates.contains(&Value::from(layout)), "{seen}");
            match seen["layout"]["decided"].as_bool().unwrap() {
                true => assert_eq!(seen["layout"]["packing"], layout),
                false => assert_eq!(seen["layout"]["reason"], "assumed"),
            }
        }
    }
    // a copy of another model
    let other = dir.path().join("bitnet-2b4t-bf16-i2_s-foreign.gguf");
    let source = checkpoint("falcon-e");
    let (status, json) = run(&["inspect", text(&other), "--against", text(&source)]);
    assert_eq!(status, ExitStatus::CouldNot, "{json}");
    assert_eq!(json["error"]["code"], "malformed");
}

#[test]
fn an_assumption_is_loud() {
    let file = vectors_dir()
        .join("gguf-files")
        .join("b158_packed-i2_s.gguf");
    let seen = done(&["inspect", text(&file)]);
    let candidates = seen["layout"]["candidates"].as_array().unwrap();
    assert!(candidates.contains(&Value::from("i2_s")), "{seen}");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("packed");
    let words = [text(&file), "-o", text(&out), "--to", "hf-packed"];
    let ran = program::run(bitnet_convert::run, words.iter());
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let decided = seen["layout"]["decided"].as_bool().unwrap();
    assert_eq!(ran.stderr.contains("assumed"), !decided, "{}", ran.stderr);
}
