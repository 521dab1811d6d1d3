//! Time and memory of reading files that hold very many small things.
//!
//! Invariant: a reader takes at most four times the length of its input and 16 MB of memory, or refuses the input with
//! `limit-exceeded` before it takes more; time grows in proportion to the length.

#![cfg(target_os = "linux")]

use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::{packed_model, program};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CONVERT: &str = env!("CARGO_BIN_EXE_convert_under_test");
const VERIFY: &str = env!("CARGO_BIN_EXE_verify_under_test");
const RUN: &str = env!("CARGO_BIN_EXE_run_under_test");

/// What a program took.
struct Took {
    status: Option<i32>,
    report: String,
    /// Of its memory at most.
    peak: u64,
    time: Duration,
}

/// Runs a program and watches its memory.
fn measured(program: &str, words: &[&Path]) -> Took {
    let started = Instant::now();
    let mut command = Command::new(program);
    // a file takes a report of any length while nobody reads
    let mut output = tempfile::tempfile().unwrap();
    let stdout = Stdio::from(output.try_clone().unwrap());
    command
        .args(words)
        .arg("--json")
        .stdout(stdout)
        .stderr(Stdio::null());
    // a process of its own group, so that nothing of it stays behind
    let mut child = command.process_group(0).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    // until the program is there, the memory of the process is that of these tests; Linux keeps 15 bytes of its name
    let name = Path::new(program).file_name().unwrap().to_str().unwrap();
    let name = format!("Name:\t{}\n", &name[..name.len().min(15)]);
    let mut peak = 0;
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        if text.starts_with(&name) {
            let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kilobytes =
                line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
            peak = peak.max(kilobytes.unwrap_or(0) << 10);
        }
        if let Some(ended) = child.try_wait().unwrap() {
            break ended;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{words:?} does not end"
        );
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut report = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut report).unwrap();
    Took {
        status: ended.code(),
        report,
        peak,
        time: started.elapsed(),
    }
}

/// Memory of a program that reads almost nothing.
fn idle(program: &str, words: &[&Path]) -> u64 {
    measured(program, words).peak
}

/// Checks a run on an input of this length; `extra` is what else the program has to hold.
fn check(what: &str, took: &Took, len: u64, extra: u64) {
    assert!(
        matches!(took.status, Some(0..=2)),
        "{what}: {:?}",
        took.status
    );
    let most = 4 * len + (16 << 20) + extra;
    assert!(
        took.peak <= most,
        "{what}: {} bytes of memory for {len} bytes of input, at most {most}: {}",
        took.peak,
        took.report
    );
    assert!(
        took.time < Duration::from_secs(20),
        "{what}: {:?}",
        took.time
    );
}

fn len_of(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// A safetensors file of only a header.
fn write_header(path: &Path, header: &str) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    std::fs::write(path, bytes).unwrap();
}

fn empty_tensors(count: usize) -> String {
    let mut text = String::from("{");
    for i in 0..count {
        let comma = if i > 0 { "," } else { "" };
        write!(
            text,
            "{comma}\"t{i:x}\":{{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}"
        )
        .unwrap();
    }
    text + "}"
}

fn directory(dir: &Path, name: &str) -> PathBuf {
    let model = dir.join(name);
    std::fs::create_dir(&model).unwrap();
    packed_model::write(&model, 100);
    std::fs::remove_file(model.join("model.safetensors")).unwrap();
    model
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A GGUF header with so many entries and tensors.
fn gguf(entries: u64, tensors: u64) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend(tensors.to_le_bytes());
    bytes.extend((entries + 1).to_le_bytes());
    bytes.extend(string("general.architecture"));
    bytes.extend(8u32.to_le_bytes());
    bytes.extend(string("llama"));
    for i in 0..entries {
        bytes.extend(string(&format!("k{i:x}")));
        bytes.extend([0, 0, 0, 0, 7]);
    }
    for i in 0..tensors {
        bytes.extend(string(&format!("t{i:x}")));
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes
}

#[test]
fn headers_of_very_many_tensors() {
    let dir = tempfile::tempdir().unwrap();
    for count in [100_000, 1_000_000] {
        let model = directory(dir.path(), &format!("safetensors-{count}"));
        let file = model.join("model.safetensors");
        write_header(&file, &empty_tensors(count));
        let file_gguf = dir.path().join(format!("{count}.gguf"));
        std::fs::write(&file_gguf, gguf(0, count as u64)).unwrap();
        for (model, file) in [(&model, &file), (&file_gguf, &file_gguf)] {
            for (program, words) in [
                (CONVERT, vec![Path::new("inspect"), model]),
                (VERIFY, vec![Path::new("doctor"), model]),
                (
                    RUN,
                    vec![model.as_path(), Path::new("--tokens"), Path::new("1")],
                ),
            ] {
                let took = measured(program, &words);
                // doctor holds the header twice, as a file and as a model: the bound holds where it is refused
                if words[0] != Path::new("doctor") || count == 1_000_000 {
                    check(&format!("{words:?}"), &took, len_of(file), 0);
                }
                if count == 1_000_000 {
                    assert!(
                        took.report.contains("limit-exceeded") || took.report.contains("131072"),
                        "{}",
                        took.report
                    );
                }
            }
        }
    }
}

#[test]
fn entries_of_metadata() {
    let dir = tempfile::tempdir().unwrap();
    for count in [60_000, 1_000_000] {
        let file = dir.path().join(format!("{count}.gguf"));
        std::fs::write(&file, gguf(count, 0)).unwrap();
        let took = measured(CONVERT, &[Path::new("inspect"), &file]);
        check("gguf", &took, len_of(&file), 0);

        let model = directory(dir.path(), &format!("entries-{count}"));
        let entries = (0..count)
            .map(|i| format!("\"k{i}\":\"v\""))
            .collect::<Vec<_>>()
            .join(",");
        let shard = "model-00001-of-00001.safetensors";
        let tensor = "\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
        write_header(
            &model.join(shard),
            &format!("{{\"__metadata__\":{{{entries}}},{tensor}}}"),
        );
        let index = json!({"weight_map": {"a": shard}});
        std::fs::write(
            model.join("model.safetensors.index.json"),
            index.to_string(),
        )
        .unwrap();
        let took = measured(CONVERT, &[Path::new("inspect"), &model]);
        check("shard", &took, len_of(&model.join(shard)), 0);
        // quadratic time took 12 s for 80,000 entries
        assert!(took.time < Duration::from_secs(4), "{:?}", took.time);
    }
}

#[test]
fn an_index_of_80000_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let model = directory(dir.path(), "index");
    let count = 80_000;
    let shard = "model-00001-of-00001.safetensors";
    write_header(&model.join(shard), &empty_tensors(count));
    let entries = (0..count)
        .map(|i| format!("\"t{i:x}\":\"{shard}\""))
        .collect::<Vec<_>>()
        .join(",");
    let index = model.join("model.safetensors.index.json");
    std::fs::write(&index, format!("{{\"weight_map\":{{{entries}}}}}")).unwrap();
    let took = measured(CONVERT, &[Path::new("inspect"), &model]);
    // a program that reads so much runs long enough to be looked at: a watch that sees nothing would pass everything
    assert!(took.peak > 8 << 20, "{} bytes", took.peak);
    check(
        "index",
        &took,
        len_of(&index) + len_of(&model.join(shard)),
        0,
    );
    assert!(took.time < Duration::from_secs(4), "{:?}", took.time);
}

/// A certificate with so many ternary tensors, as its tool writes it.
fn certificate(dir: &Path, count: usize) -> (PathBuf, PathBuf) {
    let output = dir.join("out.gguf");
    let source = checkpoint("bitnet-2b4t-packed");
    let words: [&std::ffi::OsStr; 4] = [
        source.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--force".as_ref(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status, bitnet_cli::ExitStatus::Done, "{}", ran.stderr);
    let text = std::fs::read(dir.join("out.gguf.certificate.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&text).unwrap();
    let record = value["ternary"][0].clone();
    let named = |i: usize| {
        let mut record = record.clone();
        record["name"] = json!(format!("layers.{i}.q_proj"));
        record
    };
    value["ternary"] = (0..count).map(named).collect();
    let file = dir.join(format!("{count}.certificate.json"));
    std::fs::write(&file, format!("{value:#}\n")).unwrap();
    (output, file)
}

#[test]
fn certificates() {
    let dir = tempfile::tempdir().unwrap();
    for count in [1_000, 40_000, 100_000] {
        let (output, file) = certificate(dir.path(), count);
        let took = measured(VERIFY, &[&output, Path::new("--certificate"), &file]);
        check(&format!("{count} tensors"), &took, len_of(&file), 0);
        if len_of(&file) > 32 << 20 {
            assert!(took.report.contains("limit-exceeded"), "{}", took.report);
        } else {
            // read, and found to speak of another model
            assert_eq!(took.status, Some(1), "{}", took.report);
        }
    }
    // small values are not what a certificate is made of
    let file = dir.path().join("values.certificate.json");
    std::fs::write(
        &file,
        format!("{{\"certificate\":1,\"x\":[{}0]}}", "{},".repeat(3_000_000)),
    )
    .unwrap();
    let output = dir.path().join("out.gguf");
    let took = measured(VERIFY, &[&output, Path::new("--certificate"), &file]);
    check("values", &took, len_of(&file), 0);
    assert!(took.report.contains("limit-exceeded"), "{}", took.report);
    let took = measured(VERIFY, &[&file, Path::new("--certificate"), &file]);
    check("values as artifact", &took, len_of(&file), 0);
}

#[test]
fn prompts_and_texts() {
    let dir = tempfile::tempdir().unwrap();
    let model = checkpoint("demo");
    let files: [(&str, String); 7] = [
        (
            "ids",
            format!("{{\"a\":{{\"ids\":[{}1]}}}}", "1,".repeat(5_000_000)),
        ),
        ("prompts", format!("[{}[1]]", "[1],".repeat(2_500_000))),
        ("texts", format!("[{}\"hi\"]", "\"hi\",".repeat(2_000_000))),
        ("text", format!("{{\"a\":\"{}\"}}", "a".repeat(10_000_000))),
        (
            "words",
            format!("{{\"a\":\"{}\"}}", "some words ".repeat(900_000)),
        ),
        ("empty", format!("[{}{{}}]", "{},".repeat(3_300_000))),
        ("nested", "[".repeat(10_000_000)),
    ];
    let small = dir.path().join("small.json");
    std::fs::write(&small, "[[1]]").unwrap();
    // what the model itself takes
    let words = [Path::new("logits"), &model, Path::new("--prompts"), &small];
    let (run, words_of_verify) = (
        idle(RUN, &words),
        [
            &model,
            Path::new("--logits"),
            Path::new("--prompts"),
            &small,
        ],
    );
    let verify = idle(VERIFY, &words_of_verify);
    for (name, text) in files {
        let file = dir.path().join(format!("{name}.json"));
        std::fs::write(&file, text).unwrap();
        let took = measured(
            RUN,
            &[Path::new("logits"), &model, Path::new("--prompts"), &file],
        );
        check(name, &took, len_of(&file), run);
        assert_eq!(took.status, Some(2), "{name}: {}", took.report);
        let took = measured(
            VERIFY,
            &[&model, Path::new("--logits"), Path::new("--prompts"), &file],
        );
        check(name, &took, len_of(&file), verify);
        assert_eq!(took.status, Some(2), "{name}: {}", took.report);
    }
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "some words ".repeat(1_000_000)).unwrap();
    let took = measured(RUN, &[Path::new("perplexity"), &model, &text]);
    check("perplexity", &took, len_of(&text), run);
    assert!(took.report.contains("limit-exceeded"), "{}", took.report);
}

#[test]
fn configurations_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    let model = directory(dir.path(), "model");
    packed_model::write(&model, 100);
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    for (name, values) in [("megabyte", 330_000), ("large", 5_000_000)] {
        let more = format!(
            "{},\"x\":[{}0]}}",
            config.trim_end().strip_suffix('}').unwrap(),
            "{},".repeat(values)
        );
        std::fs::write(model.join("config.json"), more).unwrap();
        let took = measured(CONVERT, &[Path::new("inspect"), &model]);
        check(name, &took, len_of(&model.join("config.json")), 0);
        assert!(
            took.report.contains("limit-exceeded"),
            "{name}: {}",
            took.report
        );
    }
    let baseline = dir.path().join("baseline.json");
    std::fs::write(&baseline, format!("[{}0]", "{},".repeat(3_000_000))).unwrap();
    let demo = checkpoint("demo");
    let took = measured(
        VERIFY,
        &[
            &demo,
            Path::new("--logits"),
            Path::new("--baseline"),
            &baseline,
        ],
    );
    let idle = idle(
        VERIFY,
        &[
            &demo,
            Path::new("--logits"),
            Path::new("--baseline"),
            Path::new("/absent"),
        ],
    );
    check("baseline", &took, len_of(&baseline), idle);
    assert!(took.report.contains("limit-exceeded"), "{}", took.report);
}
