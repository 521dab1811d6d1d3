//! Inputs that change while a conversion reads them.
//!
//! Invariant: every change is noticed: the program ends with status 2 and `input-changed`, nothing is published, and an
//! older output stays as it was.

#![cfg(target_os = "linux")]

use bitnet_tests::packed_model;
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// So many tokens that a conversion takes long enough to change something meanwhile.
const VOCABULARY: usize = 100_000;

/// A change of a file.
type Change = fn(&Path);

fn append(path: &Path) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b" ").unwrap();
}

/// The same bytes in the same place.
fn rewrite_in_place(path: &Path) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = file.metadata().unwrap().len() - 1;
    let mut last = [0];
    file.read_exact_at(&mut last, at).unwrap();
    file.write_all_at(&last, at).unwrap();
}

/// A copy of the file takes its place.
fn rename_over(path: &Path) {
    let copy = path.with_extension("copy");
    std::fs::copy(path, &copy).unwrap();
    std::fs::rename(copy, path).unwrap();
}

fn rewrite(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The last byte goes and comes back: too little to take a mapped page away.
fn truncate_and_restore(path: &Path) {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let len = file.metadata().unwrap().len();
    file.seek(SeekFrom::Start(len - 1)).unwrap();
    let mut last = [0];
    file.read_exact(&mut last).unwrap();
    file.set_len(len - 1).unwrap();
    file.write_all_at(&last, len - 1).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// Other bytes, and the time of modification as it was.
fn rewrite_and_set_the_time_back(path: &Path) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    rewrite_in_place(path);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(before)
        .unwrap();
}

fn truncate_to(path: &Path, len: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// Every page that is not read yet is gone.
fn empty(path: &Path) {
    truncate_to(path, 0);
}

fn halve(path: &Path) {
    truncate_to(path, std::fs::metadata(path).unwrap().len() / 2);
}

/// A program that writes the file anew: for a moment there is nothing.
fn empty_and_rewrite(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    empty(path);
    std::thread::sleep(Duration::from_millis(30));
    std::fs::write(path, bytes).unwrap();
}

const CHANGES: [(&str, &str, Change); 14] = [
    ("empty", "model.safetensors", empty),
    ("halve", "model.safetensors", halve),
    ("empty and rewrite", "model.safetensors", empty_and_rewrite),
    ("append", "model.safetensors", append),
    ("rewrite in place", "model.safetensors", rewrite_in_place),
    ("rename over", "model.safetensors", rename_over),
    (
        "truncate and restore",
        "model.safetensors",
        truncate_and_restore,
    ),
    ("remove", "model.safetensors", remove),
    (
        "rewrite and set the time back",
        "model.safetensors",
        rewrite_and_set_the_time_back,
    ),
    ("rewrite", "config.json", rewrite),
    ("rename over", "config.json", rename_over),
    ("append", "generation_config.json", append),
    ("rename over", "chat_template.jinja", rename_over),
    ("remove", "special_tokens_map.json", remove),
];

fn write_source(source: &Path) {
    packed_model::write(source, VOCABULARY);
    std::fs::write(source.join("generation_config.json"), "{}").unwrap();
    std::fs::write(source.join("special_tokens_map.json"), "{}").unwrap();
    std::fs::write(source.join("chat_template.jinja"), "{{ messages }}").unwrap();
}

/// Whether a process has a file open that lies in a directory.
fn has_open_file_in(process: u32, directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/fd")) else {
        return false;
    };
    let targets = entries
        .flatten()
        .filter_map(|e| std::fs::read_link(e.path()).ok());
    targets
        .into_iter()
        .any(|target| target.starts_with(directory) && target != directory)
}

/// Starts a conversion, changes a file while it runs, and returns the error that it ended with.
fn convert_and_change(
    source: &Path,
    output: &Path,
    words: &[&str],
    file: &str,
    change: Change,
) -> Value {
    let parent = output.parent().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_convert_under_test"))
        .arg(source)
        .arg("-o")
        .arg(output)
        .args(words)
        .args(["--force", "--json", "--threads", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !has_open_file_in(child.id(), parent) {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "never began to write"
        );
        assert!(child.try_wait().unwrap().is_none(), "ended before it wrote");
        std::thread::sleep(Duration::from_millis(1));
    }
    change(&source.join(file));
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{file}: {ended:?}");
    serde_json::from_slice(&ended.stdout).unwrap()
}

/// Names of everything in a directory, and the bytes of a file.
fn state(parent: &Path, file: &Path) -> (Vec<String>, Vec<u8>) {
    let entries = std::fs::read_dir(parent).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    (names, std::fs::read(file).unwrap())
}

#[test]
fn every_change_is_noticed_and_nothing_is_published() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for (target, name, inside, how) in [
        ("gguf-i2_s", "old.gguf", "", None),
        ("hf-packed", "old", "model.safetensors", None),
        ("gguf-i2_s", "streamed.gguf", "", Some("--stream")),
    ] {
        let parent = dir.path().join(format!("{name}-output"));
        std::fs::create_dir(&parent).unwrap();
        let output = parent.join(name);
        // an older output of another model
        let old = dir.path().join(format!("{name}-old"));
        std::fs::create_dir(&old).unwrap();
        packed_model::write(&old, 100);
        let made = bitnet_tests::program::run(
            bitnet_convert::run,
            [
                old.as_os_str(),
                "-o".as_ref(),
                output.as_os_str(),
                "--to".as_ref(),
                target.as_ref(),
            ],
        );
        assert_eq!(made.status, bitnet_cli::ExitStatus::Done, "{}", made.stderr);
        let file = match inside {
            "" => output.clone(),
            inside => output.join(inside),
        };
        let before = state(&parent, &file);
        for (what, changed, change) in CHANGES {
            let _ = std::fs::remove_dir_all(&source);
            std::fs::create_dir(&source).unwrap();
            write_source(&source);
            let words: Vec<&str> = ["--to", target].into_iter().chain(how).collect();
            let report = convert_and_change(&source, &output, &words, changed, change);
            let error = &report["error"];
            assert_eq!(
                error["code"], "input-changed",
                "{target}, {what} {changed}: {error}"
            );
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(changed), "{message}");
            assert!(error["hint"].is_string());
            assert!(
                state(&parent, &file) == before,
                "{target}, {what} {changed}"
            );
        }
    }
}

/// The files that a process has mapped or open.
fn has_mapped(process: u32, path: &Path) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap_or_default();
    let path = path.canonicalize().unwrap();
    maps.lines()
        .any(|line| line.ends_with(path.to_str().unwrap()))
}

/// Changes a file as soon as a program has it mapped, and returns the JSON that the program ended with.
fn change_while_it_is_read(mut command: Command, file: &Path, change: Change) -> Value {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while !has_mapped(child.id(), file) {
        assert!(started.elapsed() < Duration::from_secs(60), "never mapped");
        assert!(child.try_wait().unwrap().is_none(), "ended before it read");
        std::thread::yield_now();
    }
    change(file);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(2), "{command:?}: {ended:?}");
    serde_json::from_slice(&ended.stdout).unwrap()
}

fn convert(source: &Path, output: &Path, target: &str) {
    let words = [
        source.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--to".as_ref(),
        target.as_ref(),
    ];
    let made = bitnet_tests::program::run(bitnet_convert::run, words);
    assert_eq!(made.status, bitnet_cli::ExitStatus::Done, "{}", made.stderr);
}

#[test]
fn a_file_that_shrinks_ends_every_program_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    packed_model::write(&source, VOCABULARY);
    let artifact = dir.path().join("artifact.gguf");
    convert(&source, &artifact, "gguf-i2_s");
    let whole = std::fs::read(&artifact).unwrap();
    for (change, what) in [(empty as Change, "empty"), (halve, "halve")] {
        let mut verify = Command::new(env!("CARGO_BIN_EXE_verify_under_test"));
        verify
            .arg(&artifact)
            .arg("--against")
            .arg(&source)
            .args(["--json", "--threads", "1"]);
        let mut inspect = Command::new(env!("CARGO_BIN_EXE_convert_under_test"));
        inspect.arg("inspect").arg(&artifact).arg("--json");
        for command in [verify, inspect] {
            let name = format!("{what}: {command:?}");
            let report = change_while_it_is_read(command, &artifact, change);
            let error = &report["error"];
            assert_eq!(error["code"], "input-changed", "{name}: {report}");
            std::fs::write(&artifact, &whole).unwrap();
        }
    }
}

#[test]
fn a_model_that_shrinks_while_it_runs_ends_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    packed_model::write(&source, 60_000);
    for target in ["packed", "gguf-i2_s"] {
        let (model, file) = match target {
            "packed" => {
                let model = dir.path().join("packed");
                (model.clone(), model.join("model.safetensors"))
            }
            _ => {
                let model = dir.path().join("model.gguf");
                (model.clone(), model)
            }
        };
        convert(&source, &model, target);
        let whole = std::fs::read(&file).unwrap();
        for (change, what) in [
            (empty as Change, "empty"),
            (halve, "halve"),
            (rewrite_in_place, "rewrite in place"),
        ] {
            let child = Command::new(env!("CARGO_BIN_EXE_run_under_test"))
                .arg(&model)
                .args(["--tokens", "1,2,3", "-n", "500", "--ignore-eos"])
                .args(["--stream", "--threads", "1"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // output that goes into a pipe is written at the end
            let started = Instant::now();
            while !has_mapped(child.id(), &file) {
                assert!(started.elapsed() < Duration::from_secs(60), "never mapped");
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(300));
            change(&file);
            let ended = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            let name = format!("{target}, {what}: {said}");
            assert_eq!(ended.status.code(), Some(2), "{name}");
            assert!(
                said.contains("the input changed while it was read"),
                "{name}"
            );
            assert!(said.contains(file.to_str().unwrap()), "{name}");
            let tokens = String::from_utf8_lossy(&ended.stdout).lines().count();
            assert!(tokens < 499, "{name}: {tokens} tokens");
            std::fs::write(&file, &whole).unwrap();
        }
        // the same bytes again are a model again
        let mut child = Command::new(env!("CARGO_BIN_EXE_run_under_test"));
        child.arg(&model).args(["--tokens", "1,2,3", "-n", "5"]);
        assert_eq!(child.output().unwrap().status.code(), Some(0));
    }
}

#[test]
fn an_input_that_stays_is_not_called_changed() {
    let dir = tempfile::tempdir().unwrap();
    packed_model::write(dir.path(), 200);
    // messages of the program itself go into the directory of the model
    let messages = File::create(dir.path().join("messages.txt")).unwrap();
    let output = dir.path().join("out.gguf");
    let status = Command::new(env!("CARGO_BIN_EXE_convert_under_test"))
        .arg(dir.path())
        .arg("-o")
        .arg(&output)
        .stdout(messages.try_clone().unwrap())
        .stderr(messages)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(
        !std::fs::read(dir.path().join("messages.txt"))
            .unwrap()
            .is_empty()
    );
    assert!(output.exists());
}
