//! `inspect --readers` and the readers of a plan, over files that ship here.
//!
//! Invariant: a file that was planned and then written is judged alike in both places.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, skips_foreign_fixtures, vectors_dir};
use bitnet_tests::program;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

/// A page of `formats/`.
fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats");
    std::fs::read_to_string(path.join(name)).unwrap()
}

fn json_page(name: &str) -> Value {
    serde_json::from_str(&page(name)).unwrap()
}

/// Every verdict that a run of another program left in `readers-checked.json` is the one predicted here.
#[test]
fn predictions_are_what_was_run() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let checked = json_page("readers-checked.json");
    let mut by_file: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    for run in checked["runs"].as_array().unwrap() {
        let text = |key: &str| run[key].as_str().unwrap().to_owned();
        by_file
            .entry((text("fixture"), text("target")))
            .or_default()
            .push(run);
    }
    let (mut compared, mut programs) = (0, BTreeMap::new());
    for ((fixture, target), runs) in by_file {
        let folder = checkpoint(&fixture).parent().unwrap().to_owned();
        let report = match target.split_once(' ') {
            // written by the script itself; a unit test has the rule
            Some((_, "rotated")) => continue,
            // files of the fixture itself
            _ if target.ends_with('/') || target.ends_with(".gguf") => {
                let path = folder.join(&target);
                run(&[
                    "inspect",
                    "--readers",
                    "--ternary-trained",
                    path.to_str().unwrap(),
                ])
            }
            variant => planned(&fixture, &target, variant, dir.path()),
        };
        for run in runs {
            let program = run["program"].as_str().unwrap();
            let predicted = verdict(&report, program);
            // no rule speaks of this file: nothing was predicted
            if predicted == "unknown" {
                continue;
            }
            let observed = run["observed"].as_array().unwrap();
            let agrees = predicted == "depends" || observed.iter().any(|o| o == predicted);
            assert!(
                agrees,
                "{fixture} as {target} in {program}: {predicted}, not {observed:?}"
            );
            compared += 1;
            *programs.entry(program.to_owned()).or_insert(0) += 1;
        }
    }
    assert!(compared > 500, "{compared}");
    assert!(
        programs.len() > 4 && programs.values().all(|n| *n > 50),
        "{programs:?}"
    );
}

/// The plan of a target, with a type of embeddings behind its name or without.
fn planned(fixture: &str, target: &str, variant: Option<(&str, &str)>, dir: &Path) -> Value {
    let source = checkpoint(fixture);
    let output = dir.join(if target.starts_with("gguf") {
        "out.gguf"
    } else {
        "out"
    });
    let mut args = vec![
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--allow-scale-rounding",
        "--ternary-trained",
        "--dry-run",
        "--to",
    ];
    match variant {
        Some((target, embeddings)) => args.extend([target, "--embeddings", embeddings]),
        None => args.push(target),
    }
    run(&args)
}

#[test]
fn the_page_lists_the_facts_and_verdicts_of_the_table() {
    let page = page("readers.md");
    let table = json_page("readers.json");
    let said = |word: &str| page.contains(&format!("`{word}`"));
    for program in table["programs"].as_array().unwrap() {
        for rule in program["rules"].as_array().unwrap() {
            assert!(said(rule["verdict"].as_str().unwrap()), "{rule}");
            for side in ["when", "unless"] {
                let facts = rule[side].as_object().into_iter().flatten();
                for (fact, _) in facts {
                    assert!(said(fact), "{fact} of {}", program["name"]);
                }
            }
        }
    }
}

/// A file of the source checkpoint with another `config.json`.
fn with_config(fixture: &str, dir: &Path, change: impl Fn(&mut Value)) -> PathBuf {
    let source = checkpoint(fixture);
    let copy = dir.join("source");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
    }
    let config = copy.join("config.json");
    let mut value: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(&config, value.to_string()).unwrap();
    copy
}

/// What `config.json` of a packed copy says of the modules that stay dense.
fn dense_modules(source: &Path, output: &Path) -> Value {
    let words = [source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    run(&[
        &words[..],
        &[
            "--to",
            "hf-packed",
            "--allow-scale-rounding",
            "--ternary-trained",
        ],
    ]
    .concat());
    let text = std::fs::read(output.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    config["quantization_config"]["modules_to_not_convert"].clone()
}

#[test]
fn packed_copies_name_their_output_head() {
    let head = serde_json::json!(["lm_head"]);
    for (value, expected) in [
        (Some(Value::Null), head.clone()),
        (None, head.clone()),
        (
            Some(serde_json::json!(["lm_head", "model.norm"])),
            serde_json::json!(["lm_head", "model.norm"]),
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = with_config("falcon-e", dir.path(), |config| {
            let section = config["quantization_config"].as_object_mut().unwrap();
            section.remove("modules_to_not_convert");
            if let Some(value) = &value {
                section.insert("modules_to_not_convert".to_owned(), value.clone());
            }
        });
        let output = dir.path().join("out");
        assert_eq!(dense_modules(&source, &output), expected, "{value:?}");
        let verify = [
            "--json",
            output.to_str().unwrap(),
            "--against",
            source.to_str().unwrap(),
        ];
        let ran = program::run(bitnet_verify::run, verify);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    }
    // a tied head is no module: a null list, which mlx-lm takes for an error, goes
    let dir = tempfile::tempdir().unwrap();
    let source = with_config("bitnet-2b4t-packed", dir.path(), |config| {
        config["quantization_config"]["modules_to_not_convert"] = Value::Null;
    });
    assert_eq!(dense_modules(&source, &dir.path().join("out")), Value::Null);
    let text = std::fs::read_to_string(dir.path().join("out/config.json")).unwrap();
    assert!(!text.contains("modules_to_not_convert"), "{text}");
}

#[test]
fn scales_beside_packed_weights_have_the_type_of_the_embeddings_where_it_holds_them() {
    for (fixture, expected) in [
        ("falcon-e-prequantized", "f32"),
        ("falcon-e-bfloat16", "bf16"),
        ("bitnet-2b4t-bf16", "f32"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("out");
        let source = checkpoint(fixture);
        dense_modules(&source, &output);
        let weights = std::fs::read(output.join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&weights[8..8 + length]).unwrap();
        let mut types: Vec<&str> = header
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| name.ends_with(".weight_scale"))
            .map(|(_, tensor)| tensor["dtype"].as_str().unwrap())
            .collect();
        types.dedup();
        assert_eq!(types, [expected.to_uppercase()], "{fixture}");
        let report = run(&["inspect", "--readers", output.to_str().unwrap()]);
        let refused = verdict(&report, "mlx-lm") == "refuses";
        assert_eq!(refused, expected == "f32", "{fixture}");
    }
}
