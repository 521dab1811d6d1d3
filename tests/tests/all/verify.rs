//! The verifier against conversions: right ones are `same`, wrong ones never are.
//!
//! Invariant: every fault is seeded here, by hand, so a fault that is missed is a defect of the verifier.
//! Single bits, wherever they are, are the business of `flips.rs`.

#![allow(clippy::print_stdout)]

use bitnet_cli::ExitStatus;
use bitnet_convert::{TARGETS, Target};
use bitnet_formats::Limits;
use bitnet_tests::conversions::{certificate_of, convert};
use bitnet_tests::fixtures::{Fixture, fixtures, skips_foreign_fixtures};
use bitnet_tests::flips::flip;
use bitnet_tests::program::{self, run};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

fn sources() -> Vec<Fixture> {
    if skips_foreign_fixtures() {
        return Vec::new();
    }
    let causal = |f: &Fixture| !f.is_embedding();
    fixtures().into_iter().filter(causal).collect()
}

fn source(name: &str) -> Fixture {
    sources()
        .into_iter()
        .find(|s| s.name == name)
        .unwrap_or_else(|| panic!("no fixture {name}"))
}

fn words(list: &[&dyn AsRef<std::ffi::OsStr>]) -> Vec<OsString> {
    list.iter().map(|s| s.as_ref().to_owned()).collect()
}

/// Runs the verifier: status, the JSON object, stderr.
fn verify(words: Vec<OsString>) -> (ExitStatus, Value, String) {
    let words = ["--json".into(), "-j2".into()].into_iter().chain(words);
    let ran = run(bitnet_verify::run, words);
    (ran.status, ran.json(), ran.stderr)
}

fn against(artifact: &Path, source: &Fixture) -> (ExitStatus, Value) {
    let mut words = words(&[&artifact, &"--against", &source.checkpoint]);
    if source.ternary_trained() {
        words.push("--ternary-trained".into());
    }
    let (status, json, _) = verify(words);
    (status, json)
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|t| t.name == name).unwrap()
}

/// What a check found: its status and its differences.
fn check<'a>(report: &'a Value, name: &str) -> (&'a str, String) {
    let checks = report["checks"].as_array().unwrap();
    let check = checks
        .iter()
        .find(|c| c["name"] == name)
        .unwrap_or_else(|| panic!("no check {name}: {report}"));
    (
        check["status"].as_str().unwrap(),
        check["differences"].to_string(),
    )
}

#[test]
fn every_lossless_target_is_the_same() {
    for source in sources() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Vec::new();
        for target in TARGETS {
            let Some(artifact) = convert(&source, target, dir.path()) else {
                continue;
            };
            let (status, report) = against(&artifact, &source);
            assert_eq!(
                status,
                ExitStatus::Done,
                "{}: {report:#}",
                artifact.display()
            );
            for name in [
                "structure",
                "metadata",
                "trits",
                "scales",
                "encoding",
                "dense",
                "digest",
            ] {
                assert_eq!(
                    check(&report, name).0,
                    "same",
                    "{}: {report:#}",
                    artifact.display()
                );
            }
            let (status, report, _) = verify(words(&[
                &artifact,
                &"--certificate",
                &certificate_of(&artifact),
            ]));
            assert_eq!(
                status,
                ExitStatus::Done,
                "{}: {report:#}",
                artifact.display()
            );
            held.push(target.name);
        }
        println!("{}: {}", source.name, held.join(" "));
        assert!(held.len() >= 2, "{}: only {held:?}", source.name);
    }
}

// Faults with a name

/// A copy of a checkpoint directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// A copy of the fixture with one text replaced in one of its files.
fn edited(source: &Fixture, dir: &Path, file: &str, from: &str, to: &str) -> PathBuf {
    let copied = dir.join("edited");
    let _ = fs::remove_dir_all(&copied);
    copy(&source.checkpoint, &copied);
    let text = fs::read_to_string(copied.join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(copied.join(file), text.replacen(from, to, 1)).unwrap();
    copied
}

/// Replaces bytes of a file that occur once behind a key.
fn patch(path: &Path, key: &[u8], from: &[u8], to: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    let key_at = find(&bytes, key).unwrap_or_else(|| panic!("no {}", String::from_utf8_lossy(key)));
    let at = key_at + key.len() + find(&bytes[key_at + key.len()..], from).expect("the value");
    bytes[at..at + to.len()].copy_from_slice(to);
    fs::write(path, bytes).unwrap();
}

#[test]
fn wrong_settings_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-2b4t-packed");
    for (file, from, to, check_name, place) in [
        (
            "config.json",
            "\"autobitlinear\"",
            "\"bitlinear\"",
            "scales",
            "self_attn.q_proj",
        ),
        (
            "config.json",
            "\"relu2\"",
            "\"silu\"",
            "metadata",
            "hidden_act",
        ),
        (
            "config.json",
            "500000.0",
            "10000.0",
            "metadata",
            "rope_theta",
        ),
        ("config.json", "1e-05", "1e-06", "metadata", "rms_norm_eps"),
        (
            "generation_config.json",
            "393",
            "394",
            "metadata",
            "eos_token_id",
        ),
        ("tokenizer.json", "\"merges\"", "\"merges\" ", "", ""),
        (
            "tokenizer_config.json",
            "chat_template",
            "chat_templates",
            "metadata",
            "tokenizer_config.json",
        ),
    ] {
        let artifact = edited(&source, dir.path(), file, from, to);
        let (status, report) = against(&artifact, &source);
        if check_name.is_empty() {
            assert_eq!(
                check(&report, "metadata").1,
                "null",
                "other white space is the same JSON: {report:#}"
            );
            continue;
        }
        assert_eq!(status, ExitStatus::Different, "{from} -> {to}: {report:#}");
        let (found, differences) = check(&report, check_name);
        assert_eq!(found, "different", "{from} -> {to}: {report:#}");
        assert!(differences.contains(place), "{from} -> {to}: {differences}");
    }
    let inverse = edited(
        &source,
        dir.path(),
        "config.json",
        "\"autobitlinear\"",
        "\"bitlinear\"",
    );
    let (_, report) = against(&inverse, &source);
    assert!(
        check(&report, "scales").1.contains("its inverse"),
        "{report:#}"
    );
    assert_eq!(check(&report, "trits").0, "same");
}

#[test]
fn wrong_gguf_metadata_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("llama3-8b-1.58");
    let artifact = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let whole = fs::read(&artifact).unwrap();
    let f32_bytes = |x: f32| x.to_le_bytes();
    for (key, from, to, place) in [
        (
            &b"rope.freq_base"[..],
            &f32_bytes(500_000.0)[..],
            &f32_bytes(10_000.0)[..],
            "rope_theta",
        ),
        (
            b"layer_norm_rms_epsilon",
            &f32_bytes(1e-5),
            &f32_bytes(1e-6),
            "rms_norm_eps",
        ),
        (
            b"tokenizer.ggml.bos_token_id",
            &384u32.to_le_bytes(),
            &385u32.to_le_bytes(),
            "bos_token_id",
        ),
        (
            b"tokenizer.ggml.eot_token_id",
            &393u32.to_le_bytes(),
            &384u32.to_le_bytes(),
            "eot_token_id",
        ),
        (
            b"tokenizer.ggml.pre",
            b"llama-bpe",
            b"llama-xyz",
            "tokenizer.ggml.pre",
        ),
        (
            b"tokenizer.chat_template",
            b"{",
            b"[",
            "tokenizer.chat_template",
        ),
        (
            b"tokenizer.ggml.merges",
            b" ",
            b"x",
            "tokenizer.ggml.merges",
        ),
        (
            b"tokenizer.ggml.tokens",
            b"A",
            b"B",
            "tokenizer.ggml.tokens",
        ),
    ] {
        fs::write(&artifact, &whole).unwrap();
        patch(&artifact, key, from, to);
        let (status, report) = against(&artifact, &source);
        let name = String::from_utf8_lossy(key);
        assert_ne!(status, ExitStatus::Done, "{name}");
        if status == ExitStatus::Different {
            let (found, differences) = check(&report, "metadata");
            assert_eq!(found, "different", "{name}: {report:#}");
            assert!(differences.contains(place), "{name}: {differences}");
        }
    }
}

#[test]
fn swapped_blocks_are_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-2b4t-packed");
    let artifact = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let file = bitnet_formats::open(&artifact, &Limits::default()).unwrap();
    let info = file
        .tensors()
        .iter()
        .find(|t| t.name == "blk.1.ffn_up.weight")
        .unwrap()
        .clone();
    drop(file);
    let mut bytes = fs::read(&artifact).unwrap();
    let at = info.offset as usize + 64 * 32;
    let (first, second) = bytes[at..].split_at_mut(32);
    first[..32].swap_with_slice(&mut second[..32]);
    fs::write(&artifact, bytes).unwrap();
    let (status, report) = against(&artifact, &source);
    assert_eq!(status, ExitStatus::Different);
    let (found, differences) = check(&report, "trits");
    assert_eq!(found, "different");
    // 64 blocks of 128 columns come before; 256 columns per row
    assert!(
        differences.contains("model.layers.1.mlp.up_proj"),
        "{differences}"
    );
    assert!(differences.contains("row 32, column "), "{differences}");
    assert_eq!(check(&report, "scales").0, "same");
    assert_eq!(check(&report, "dense").0, "same");
}

#[test]
fn another_model_is_different_or_an_error() {
    let (a, b) = (source("llama3-8b-1.58"), source("bitnet-2b4t-packed"));
    let (status, report) = against(&a.checkpoint, &b);
    assert_eq!(status, ExitStatus::Different, "{report:#}");
    assert_eq!(check(&report, "structure").0, "different");
}

// Certificates

#[test]
fn a_certificate_speaks_of_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-2b4t-packed");
    let i2_s = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let tq2_0 = convert(&source, target("gguf-tq2_0"), dir.path()).unwrap();
    let certificate = certificate_of(&i2_s);
    let check_it = |artifact: &Path| verify(words(&[&artifact, &"--certificate", &certificate]));
    assert_eq!(check_it(&i2_s).0, ExitStatus::Done);
    let (status, report, _) = check_it(&tq2_0);
    assert_eq!(
        status,
        ExitStatus::Done,
        "another lossless container: {report:#}"
    );
    let (status, report, _) = check_it(&source.checkpoint);
    assert_eq!(status, ExitStatus::Done, "the source itself: {report:#}");

    let other = self::source("llama3-8b-1.58");
    assert_eq!(check_it(&other.checkpoint).0, ExitStatus::Different);

    let file = bitnet_formats::open(&i2_s, &Limits::default()).unwrap();
    for name in [
        "blk.0.attn_q.weight",
        "blk.1.ffn_norm.weight",
        "token_embd.weight",
    ] {
        let info = file.tensors().iter().find(|t| t.name == name).unwrap();
        let _flipped = flip(&i2_s, info.offset + info.len / 2, 3);
        assert_ne!(check_it(&i2_s).0, ExitStatus::Done, "{name}");
    }
    let tail = file
        .tensors()
        .iter()
        .find(|t| t.name == "blk.0.attn_q.weight")
        .unwrap();
    let flipped = flip(&i2_s, tail.offset + tail.len - 1, 0);
    let (status, report, _) = check_it(&i2_s);
    assert_eq!(
        status,
        ExitStatus::Different,
        "padding of the certified file itself: {report:#}"
    );
    drop(flipped);

    let text = fs::read_to_string(&certificate).unwrap();
    for (broken, status) in [
        (
            text.replace("ternary_sha256", "ternary_sha"),
            ExitStatus::CouldNot,
        ),
        ("{".to_owned(), ExitStatus::CouldNot),
        ("[]".to_owned(), ExitStatus::CouldNot),
    ] {
        fs::write(&certificate, broken).unwrap();
        assert_eq!(check_it(&i2_s).0, status);
    }
}

// Logits

#[test]
fn logits_pass_the_golden_gates_and_the_oracle() {
    for source in sources() {
        let mut words = words(&[&source.checkpoint, &"--logits", &"--kernel", &"all"]);
        if source.ternary_trained() {
            words.push("--ternary-trained".into());
        }
        let (status, report, _) = verify(words.clone());
        assert_eq!(status, ExitStatus::Done, "{}: {report:#}", source.name);
        assert_eq!(report["logits"]["reference"], "oracle");
        assert!(
            report["layers"]["relative_errors"][0].is_number(),
            "{report:#}"
        );
        words.extend(["--golden".into(), source.golden.clone().into_os_string()]);
        let (status, report, _) = verify(words);
        assert_eq!(status, ExitStatus::Done, "{}: {report:#}", source.name);
        for key in ["max_abs", "kl_mean", "kl_p999", "kl_max", "top1_agreement"] {
            assert!(report["logits"][key].is_number(), "{key}: {report:#}");
        }
        for name in [
            "golden-codes",
            "golden-linears",
            "golden-layers",
            "golden-logits",
            "golden-nll",
            "kernels",
        ] {
            assert_eq!(
                check(&report, name).0,
                "same",
                "{}: {report:#}",
                source.name
            );
        }
    }
}

#[test]
fn logits_of_a_conversion_are_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-2b4t-packed");
    let artifact = convert(&source, target("gguf-tq2_0"), dir.path()).unwrap();
    let (status, report, _) = verify(words(&[
        &artifact,
        &"--logits",
        &"--against",
        &source.checkpoint,
        &"--golden",
        &source.golden,
    ]));
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    assert_eq!(check(&report, "logits-source").0, "same");

    // silu in place of relu^2: no trit, scale or norm is wrong, only what is computed
    let wrong = edited(&source, dir.path(), "config.json", "\"relu2\"", "\"silu\"");
    let (status, report, _) = verify(words(&[&wrong, &"--golden", &source.golden]));
    assert_eq!(status, ExitStatus::Different);
    assert_eq!(check(&report, "golden-codes").0, "same");
    assert_eq!(check(&report, "golden-linears").0, "same");
    assert_eq!(check(&report, "golden-layers").0, "different");
    let (status, report, _) = verify(words(&[
        &wrong,
        &"--logits",
        &"--against",
        &source.checkpoint,
    ]));
    assert_eq!(status, ExitStatus::Different);
    assert_eq!(check(&report, "logits-source").0, "different");
    assert_eq!(
        check(&report, "logits-oracle").0,
        "same",
        "the file computes what it says: {report:#}"
    );
}

#[test]
fn prompts_come_from_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("llama3-8b-1.58");
    let path = dir.path().join("prompts.json");
    for (text, want) in [
        (
            r#"{"a": {"text": null, "ids": [1, 2, 3]}}"#,
            ExitStatus::Done,
        ),
        ("[[1, 2], [3]]", ExitStatus::Done),
        ("[[]]", ExitStatus::CouldNot),
        ("[[400]]", ExitStatus::CouldNot),
        ("7", ExitStatus::CouldNot),
    ] {
        fs::write(&path, text).unwrap();
        let (status, report, _) = verify(words(&[&source.checkpoint, &"--prompts", &path]));
        assert_eq!(status, want, "{text}: {report:#}");
    }
}

// The command line

#[test]
fn what_cannot_be_done_is_exit_2_and_one_object() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("llama3-8b-1.58");
    let model = &source.checkpoint;
    for (list, code) in [
        (words(&[&model]), "usage"),
        (
            words(&[&dir.path().join("none.gguf"), &"--against", &model]),
            "io",
        ),
        (words(&[&model, &"--logits", &"--kernel", &"mmx"]), "kernel"),
        (words(&[&model, &"--golden", &dir.path()]), "io"),
        (
            words(&[&model, &"--against", &model, &"--max-kl", &"-1"]),
            "usage",
        ),
    ] {
        let (status, report, _) = verify(list.clone());
        assert_eq!(status, ExitStatus::CouldNot, "{list:?}: {report}");
        assert_eq!(report["error"]["code"], code, "{list:?}: {report}");
    }
}

#[test]
fn people_read_the_verdict_first_and_machines_read_junit() {
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-2b4t-packed");
    let junit = dir.path().join("report.xml");
    let wrong = edited(&source, dir.path(), "config.json", "500000.0", "10000.0");
    let run = |artifact: &Path, more: &[&str]| {
        let mut args = words(&[
            &artifact,
            &"--against",
            &source.checkpoint,
            &"--junit",
            &junit,
        ]);
        args.extend(more.iter().map(OsString::from));
        let ran = program::run(bitnet_verify::run, args);
        (ran.status, ran.stdout, ran.stderr)
    };
    let (status, out, err) = run(&source.checkpoint, &[]);
    assert_eq!(status, ExitStatus::Done, "{err}");
    assert!(out.starts_with("same: structure, metadata, trits"), "{out}");
    assert_eq!(out.lines().count(), 8, "{out}");
    let (status, _, err) = run(&source.checkpoint, &[]);
    assert_eq!(status, ExitStatus::CouldNot, "an existing report is kept");
    assert!(err.contains("--force"), "{err}");
    let (status, out, _) = run(&wrong, &["--force"]);
    assert_eq!(status, ExitStatus::Different);
    assert!(out.starts_with("different: in metadata\n"), "{out}");
    assert!(
        out.contains("`rope_theta`: expected 500000, found 10000"),
        "{out}"
    );
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(
        xml.contains("failures=\"1\"") && xml.contains("rope_theta"),
        "{xml}"
    );
}
