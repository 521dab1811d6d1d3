//! `inspect --readers` and the readers of a plan, over files that ship here.
//!
//! Invariant: a file that was planned and then written is judged alike in both places.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, vectors_dir};
use bitnet_tests::program;
use serde_json::Value;

fn run(args: &[&str]) -> Value {
    let ran = program::run(bitnet_convert::run, ["--json"].iter().chain(args));
    assert_eq!(ran.status, ExitStatus::Done, "{args:?}: {}", ran.stdout);
    ran.json()
}

fn verdict<'a>(report: &'a Value, program: &str) -> &'a str {
    let programs = report["readers"].as_array().expect("readers");
    let found = programs.iter().find(|p| p["program"] == program);
    let found = found.unwrap_or_else(|| panic!("{program}"));
    let reasons = found["reasons"].as_array().unwrap();
    assert!(reasons.iter().all(|r| r["why"] != "" && r["from"] != ""));
    found["verdict"].as_str().unwrap()
}

#[test]
fn files_of_other_programs_are_judged() {
    let files = vectors_dir().join("gguf-files");
    for (name, program, expected) in [
        ("b158_packed-i2_s.gguf", "bitnet.cpp-2024", "loads"),
        ("b158_packed-i2_s.gguf", "bitnet.cpp-2026", "depends"),
        ("b158_packed-i2_s.gguf", "llama.cpp", "refuses"),
        ("onebit-tl2.gguf", "bitnet.cpp-2024", "depends"),
        ("onebit-tl2.gguf", "ik_llama.cpp", "refuses"),
        ("onebit-tq1_0.gguf", "llama.cpp", "differs"),
    ] {
        let path = files.join(name);
        if path.exists() {
            let report = run(&["inspect", "--readers", path.to_str().unwrap()]);
            assert_eq!(verdict(&report, program), expected, "{name} in {program}");
        }
    }
}

#[test]
fn a_plan_is_judged_as_the_file_it_becomes() {
    let dir = tempfile::tempdir().unwrap();
    for (family, to, output) in [
        ("bitnet-2b4t-packed", "gguf-i2_s", "i2_s.gguf"),
        ("bitnet-2b4t-bf16", "gguf-f32", "f32.gguf"),
        ("falcon3-1.58", "gguf-tq2_0", "tq2_0.gguf"),
        ("falcon3-1.58", "hf-packed", "hf"),
        ("llama3-8b-1.58", "packed", "tiles"),
        ("bitnet-b1.58-1bitllm", "hf-bf16", "master"),
    ] {
        let source = checkpoint(family);
        let output = dir.path().join(output);
        let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
        let rounding = "--allow-scale-rounding";
        let convert = [source, "-o", output, "--to", to, rounding];
        let planned = run(&[&convert[..], &["--dry-run"]].concat());
        run(&convert);
        let written = run(&["inspect", "--readers", output]);
        let programs = planned["readers"].as_array().unwrap();
        assert!(programs.len() > 5);
        for program in programs {
            let program = program["program"].as_str().unwrap();
            let (before, after) = (verdict(&planned, program), verdict(&written, program));
            assert_eq!(before, after, "{family} as {to} in {program}");
        }
    }
}
