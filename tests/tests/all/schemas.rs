//! The published JSON Schemas against what the programs print and write: real output passes, and output that
//! lacks what the pages promise does not.
//!
//! Invariant: the schemas are read from `formats/`, as others read them; no object here is written by hand but
//! as damage to a real one.

use bitnet_cli::ExitStatus;
use bitnet_convert::TARGETS;
use bitnet_tests::conversions::{certificate_of, convert};
use bitnet_tests::fixtures::{
    Fixture, checkpoint, fixtures, read_json, repository, skips_foreign_fixtures,
};
use bitnet_tests::program::{Program, run};
use jsonschema::Validator;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

fn schema(name: &str) -> (Value, Validator) {
    let schema = read_json(&repository().join("formats").join(name));
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert!(jsonschema::draft202012::meta::is_valid(&schema), "{name}");
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    (schema, validator)
}

fn check(validator: &Validator, object: &Value, what: &str) {
    let errors: Vec<String> = validator
        .iter_errors(object)
        .map(|e| format!("{}: {e}", e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}\n{object:#}");
}

fn own_fixtures() -> Vec<Fixture> {
    match skips_foreign_fixtures() {
        true => Vec::new(),
        false => fixtures(),
    }
}

/// Runs a program under `--json`.
fn json_of(program: Program, words: &[&dyn AsRef<OsStr>]) -> (ExitStatus, Value) {
    let words = words.iter().map(|w| w.as_ref().to_owned());
    let ran = run(program, words.chain([OsString::from("--json")]));
    (ran.status, ran.json())
}

/// Every way of leaving out one key, of an object and of all objects within; the pointers.
fn keys(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                into.push(format!("{at}/{key}"));
                keys(value, &format!("{at}/{key}"), into);
            }
        }
        // what holds of one holds of all
        Value::Array(list) => {
            if let Some(first) = list.first() {
                keys(first, &format!("{at}/0"), into);
            }
        }
        _ => {}
    }
}

fn without(value: &Value, pointer: &str) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let mut damaged = value.clone();
    let parent = damaged.pointer_mut(parent).unwrap();
    parent.as_object_mut().unwrap().remove(key);
    damaged
}

#[test]
fn certificates_of_every_fixture_fit_their_schema() {
    let (_, validator) = schema("certificate.schema.json");
    let golden = repository().join("tests/certificates");
    let mut seen = 0;
    for dir in [golden.clone(), golden.join("version-1")] {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                check(&validator, &read_json(&path), &path.display().to_string());
                seen += 1;
            }
        }
    }
    assert!(seen >= 15, "{seen}");
    // scales that were rounded, and dense values
    if let Some(source) = own_fixtures().into_iter().find(|f| f.name == "falcon-e") {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a.gguf");
        let words: [&dyn AsRef<OsStr>; 8] = [
            &source.checkpoint,
            &"-o",
            &out,
            &"--to",
            &"gguf-tq2_0",
            &"--embeddings",
            &"f16",
            &"--allow-scale-rounding",
        ];
        let (status, said) = json_of(bitnet_convert::run, &words);
        assert_eq!(status, ExitStatus::Done, "{said}");
        check(&validator, &read_json(&certificate_of(&out)), "rounded");
    }
}

#[test]
fn damaged_certificates_do_not_fit() {
    let (_, validator) = schema("certificate.schema.json");
    let golden = repository().join("tests/certificates/bitnet-2b4t-packed.certificate.json");
    let whole = read_json(&golden);
    check(&validator, &whole, "whole");
    let may_be_absent = ["/tokenizer", "/chat_template_sha256", "/certificate_sha256"];
    let mut pointers = Vec::new();
    keys(&whole, "", &mut pointers);
    assert!(pointers.len() > 60, "{}", pointers.len());
    for pointer in &pointers {
        let fits = validator.is_valid(&without(&whole, pointer));
        let may = may_be_absent.contains(&pointer.as_str());
        assert_eq!(fits, may, "without {pointer}");
        // our reader holds the same keys for necessary
        let read = bitnet_checkpoint::Certificate::from_json(&without(&whole, pointer));
        assert_eq!(read.is_ok(), may, "without {pointer}");
    }
    let long = "0".repeat(65);
    let wrong: &[(&str, Value)] = &[
        ("/certificate", json!(2)),
        ("/lossless", json!("yes")),
        ("/ternary_sha256", json!(long)),
        ("/ternary_sha256", json!("A".repeat(64))),
        ("/dense/0/values_sha256", Value::Null),
        ("/dense/0/shape", json!([])),
        ("/dense/0/shape/0", json!(-1)),
        ("/dense/0/verdict", json!("rounded")),
        ("/dense/0/verdict", json!("nearly")),
        ("/ternary/0/rows", json!(1.5)),
        ("/ternary/0/scales/bits", json!("3e5a00")),
        ("/ternary/0/scales/bits", Value::Null),
        ("/ternary/0/scales/structure", json!("columns")),
        ("/source/files/0/bytes", json!("7")),
        ("/wiring/hidden_act", json!("gelu")),
        ("/wiring/rope_scaling/type", json!("linear")),
        ("/wiring/rms_norm_eps", json!(0)),
        ("/wiring/eos_token_ids", json!(7)),
        ("/tokenizer/stop_token_ids/0", json!(-1)),
        ("/tokenizer", json!("none")),
        ("/chat_template_sha256", json!(true)),
    ];
    for (pointer, value) in wrong {
        let mut damaged = whole.clone();
        *damaged.pointer_mut(pointer).unwrap() = value.clone();
        assert!(!validator.is_valid(&damaged), "{pointer} {value}");
    }
    // keys that a later converter may write are ignored
    let mut more = whole.clone();
    more["signature"] = json!("…");
    more["ternary"][0]["note"] = json!(1);
    check(&validator, &more, "more keys");
    assert!(!validator.is_valid(&json!([])) && !validator.is_valid(&Value::Null));
}

/// A copy of a file with one byte changed.
fn damaged(path: &Path, at: usize, to: &Path) -> PathBuf {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x11;
    fs::write(to, bytes).unwrap();
    to.to_owned()
}

#[test]
fn whatever_the_programs_print_fits_the_schema_of_reports() {
    let (_, validator) = schema("report.schema.json");
    let fits = |program: Program, words: &[&dyn AsRef<OsStr>], expected: &str| {
        let (_, object) = json_of(program, words);
        let line: Vec<_> = words.iter().map(|w| w.as_ref().to_owned()).collect();
        assert_eq!(object["status"], expected, "{line:?}: {object:#}");
        check(&validator, &object, &format!("{line:?}"));
    };
    let (convert_program, verify): (Program, Program) = (bitnet_convert::run, bitnet_verify::run);
    fits(convert_program, &[&"list"], "listed");
    own_fixtures().par_iter().for_each(|source| {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let model = &source.checkpoint;
        let trained: &[&dyn AsRef<OsStr>] = match source.ternary_trained() {
            true => &[&"--ternary-trained"],
            false => &[],
        };
        let with = |words: &[&dyn AsRef<OsStr>]| -> Vec<OsString> {
            let words = words.iter().chain(trained);
            words.map(|w| w.as_ref().to_owned()).collect()
        };
        let fits_with = |program, words: &[&dyn AsRef<OsStr>], expected: &str| {
            let words = with(words);
            let words: Vec<&dyn AsRef<OsStr>> = words.iter().map(|w| w as _).collect();
            fits(program, &words, expected);
        };
        let out = path("a.gguf");
        let to: [&dyn AsRef<OsStr>; 5] = [model, &"-o", &out, &"--to", &"gguf-f32"];
        let dry: Vec<&dyn AsRef<OsStr>> = to.into_iter().chain([&"--dry-run" as _]).collect();
        fits_with(convert_program, &dry, "planned");
        fits_with(convert_program, &to, "converted");
        fits_with(convert_program, &to, "error"); // it exists
        fits_with(
            convert_program,
            &[&"inspect", model, &"--tensors", &"--readers"],
            "inspected",
        );
        fits_with(convert_program, &[&"inspect", &out], "inspected");
        // verify: the same, a difference, what cannot be read, a certificate, the model run
        fits_with(verify, &[&out, &"--against", model], "same");
        let certificate = certificate_of(&out);
        fits(verify, &[&out, &"--certificate", &certificate], "same");
        fits(
            verify,
            &[&certificate, &"--certificate", &certificate],
            "same",
        );
        let bytes = fs::metadata(&out).unwrap().len() as usize;
        let other = damaged(&out, bytes - 70, &path("b.gguf"));
        let (status, object) = json_of(verify, &[&other, &"--certificate", &certificate]);
        assert_ne!(status, ExitStatus::Done);
        check(&validator, &object, "a changed byte");
        let cut = path("c.gguf");
        fs::write(&cut, &fs::read(&out).unwrap()[..bytes / 2]).unwrap();
        fits(verify, &[&cut, &"--certificate", &certificate], "error");
        if !source.is_embedding() {
            fits_with(
                verify,
                &[&model, &"--logits", &"--kernel", &"scalar"],
                "same",
            );
        }
        // doctor
        for patient in [model, &out, &cut] {
            let (_, object) = json_of(verify, &[&"doctor", patient, &"--no-run"]);
            check(&validator, &object, &patient.display().to_string());
        }
        fits(verify, &[&"doctor", &path("absent")], "error");
    });
    fits(verify, &[&"absent.gguf", &"--logits"], "error");
    fits(verify, &[&"--no-such-flag"], "error");
    fits(convert_program, &[&"inspect", &"absent.gguf"], "error");
}

/// What `bitnet-run` prints.
#[test]
fn what_the_runtime_prints_fits_as_well() {
    let (_, validator) = schema("report.schema.json");
    let Some(source) = own_fixtures()
        .into_iter()
        .find(|f| f.name == "bitnet-2b4t-packed")
    else {
        return;
    };
    let model = &source.checkpoint;
    let prompts = source.golden.join("prompts.json");
    let lines: &[(&[&dyn AsRef<OsStr>], &str)] = &[
        (&[model, &"-p", &"one two", &"-n", &"3"], "generated"),
        (&[model, &"--tokens", &"1,2", &"-n", &"3"], "generated"),
        (&[&"logits", model, &"--prompts", &prompts], "computed"),
        (&[&"absent", &"-p", &"x"], "error"),
    ];
    for (words, expected) in lines {
        let (_, object) = json_of(bitnet_run::run, words);
        assert_eq!(object["status"], *expected, "{object:#}");
        check(&validator, &object, expected);
    }
}

#[test]
fn damaged_reports_do_not_fit() {
    let (schema, validator) = schema("report.schema.json");
    // every word of an error that the page lists, and no other
    let codes = schema["$defs"]["error"]["properties"]["code"]["enum"].clone();
    let page = fs::read_to_string(repository().join("formats/report.md")).unwrap();
    let table = page.split("| code | meaning |").nth(1).unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let known: Vec<&str> = rows.map(|row| row.split('`').nth(1).unwrap()).collect();
    assert_eq!(codes, json!(known));
    let Some(source) = own_fixtures()
        .into_iter()
        .find(|f| f.name == "bitnet-2b4t-packed")
    else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let target = TARGETS.iter().find(|t| t.name == "gguf-i2_s").unwrap();
    let out = convert(&source, target, dir.path()).unwrap();
    let (_, failed) = json_of(bitnet_verify::run, &[&"absent", &"--logits"]);
    let other = checkpoint("bitnet-2b4t-bf16");
    let page = dir.path().join("report.html");
    let words: [&dyn AsRef<OsStr>; 5] = [&out, &"--against", &other, &"--html", &page];
    let (_, different) = json_of(bitnet_verify::run, &words);
    assert!(different["provenance"].is_object(), "{different:#}");
    assert_eq!(different["status"], "different", "{different:#}");
    let bundle = dir.path().join("report.zip");
    let words: [&dyn AsRef<OsStr>; 5] = [&"doctor", &out, &"--no-run", &"--bundle", &bundle];
    let (_, examined) = json_of(bitnet_verify::run, &words);
    assert!(examined["bundle"].is_object(), "{examined:#}");
    for object in [&failed, &different, &examined] {
        check(&validator, object, "whole");
        let mut pointers = Vec::new();
        keys(object, "", &mut pointers);
        for pointer in pointers {
            let damaged = without(object, &pointer);
            // not every run has these, and of these keys not every fault
            let may = [
                "/differences",
                "/faults",
                "/padding",
                "/equally",
                "/tensors",
                "/provenance",
                "/bundle",
            ];
            let may = may.iter().any(|key| pointer.ends_with(key));
            assert!(
                may || !validator.is_valid(&damaged),
                "without {pointer}: {object:#}"
            );
        }
        let mut odd = object.clone();
        odd["status"] = json!("fine");
        assert!(!validator.is_valid(&odd));
    }
    let mut odd = different.clone();
    odd["checks"][0]["status"] = json!("passed");
    assert!(!validator.is_valid(&odd));
    let mut odd = failed.clone();
    odd["error"]["code"] = json!("oops");
    assert!(!validator.is_valid(&odd));
}
