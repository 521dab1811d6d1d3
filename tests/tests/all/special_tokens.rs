//! Special tokens as facts of a model: begin and end of text, ends of turns, padding, whether or not a tokenizer adds
//! them by itself.
//!
//! Invariant: the tokens that a chat begins with and stops at are the same in every container, and a file that lost
//! one of them is different.

use bitnet_cli::ExitStatus;
use bitnet_formats::{MetaArray, MetaValue, Metadata};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::gguf::rewritten;
use bitnet_tests::program::run;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const FIXTURE: &str = "bitnet-2b4t-bf16";
/// `<|begin_of_text|>`, `<|end_of_text|>` and `<|eot_id|>` of the fixture.
const BEGIN: u64 = 384;
const END: u64 = 385;
const END_OF_TURN: u64 = 393;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn edit(dir: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = dir.join(name);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

/// A copy of the fixture's checkpoint whose tokenizer adds nothing around a text.
fn source(change: impl FnOnce(&Path)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(FIXTURE)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    edit(dir.path(), "tokenizer.json", |json| {
        json["post_processor"] = Value::Null
    });
    change(dir.path());
    dir
}

fn convert(source: &Path, output: &Path, to: &str) {
    let words = [text(source), "-o", text(output), "--to", to, "--json"];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

fn verify(artifact: &Path, against: &Path) -> (ExitStatus, String) {
    let words = [text(artifact), "--against", text(against), "--json"];
    let ran = run(bitnet_verify::run, words);
    (ran.status, ran.stdout)
}

fn is_same(artifact: &Path, against: &Path) {
    let (status, report) = verify(artifact, against);
    assert_eq!(status, ExitStatus::Done, "{report}");
}

fn without(metadata: &mut Metadata, name: &str) {
    let before = metadata.0.len();
    metadata.0.retain(|(key, _)| key != name);
    assert_ne!(metadata.0.len(), before, "{name} is not there");
}

/// The ids of a chat's prompt.
fn prompt(model: &Path) -> Vec<u64> {
    let words = [text(model), "--chat", "-p", "Hi", "-n", "0", "--json"];
    let ran = run(bitnet_run::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let ids = ran.json()["prompt_tokens"].clone();
    serde_json::from_value(ids).unwrap()
}

fn warns_of_stopping(model: &Path, words: &[&str]) -> (bool, String) {
    let fixed = ["doctor", text(model), "--json", "--no-run"];
    let ran = run(bitnet_verify::run, fixed.iter().chain(words));
    let report = ran.json();
    let findings = report["findings"].as_array().unwrap();
    let has = findings.iter().any(|f| f["code"] == "chat-cannot-stop");
    (has, ran.stdout)
}

#[test]
fn a_begin_of_text_that_only_the_template_prints_survives_in_every_direction() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    // the template of the fixture begins with bos_token
    let source = source(|_| {});
    let expected = prompt(source.path());
    assert_eq!(expected[0], BEGIN);
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    convert(&path("a.gguf"), &path("packed"), "hf-packed");
    convert(&path("packed"), &path("b.gguf"), "gguf-i2_s");
    for name in ["a.gguf", "packed", "b.gguf"] {
        assert_eq!(prompt(&path(name)), expected, "{name}");
    }
    is_same(&path("a.gguf"), source.path());
    is_same(&path("packed"), &path("a.gguf"));
    is_same(&path("b.gguf"), source.path());
    let settings = std::fs::read(path("packed").join("tokenizer_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    assert_eq!(settings["bos_token"], "<|begin_of_text|>");
    assert_eq!(settings["add_bos_token"], false);

    // a file that lost it
    let lost = rewritten(&path("a.gguf"), path("lost.gguf"), |metadata| {
        without(metadata, "tokenizer.ggml.bos_token_id");
    });
    assert_ne!(prompt(&lost), expected);
    let (status, report) = verify(&lost, source.path());
    assert_eq!(status, ExitStatus::Different, "{report}");
    let certificate = path("a.gguf.certificate.json");
    let words = [text(&lost), "--certificate", text(&certificate), "--json"];
    let ran = run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Different, "{}", ran.stdout);
    assert!(
        ran.stdout.contains("tokenizer.bos_token_id"),
        "{}",
        ran.stdout
    );
    edit(&path("packed"), "tokenizer_config.json", |json| {
        json.as_object_mut().unwrap().remove("bos_token").unwrap();
    });
    edit(&path("packed"), "special_tokens_map.json", |json| {
        json.as_object_mut().unwrap().remove("bos_token").unwrap();
    });
    let (status, report) = verify(&path("packed"), &path("a.gguf"));
    assert_eq!(status, ExitStatus::Different, "{report}");
}

#[test]
fn names_that_no_id_says_survive() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    // nothing prints the begin of text, and two names have no id in config.json
    let source = source(|dir| {
        edit(dir, "tokenizer_config.json", |json| {
            json["chat_template"] = json!("{{ messages[0]['content'] }}");
            json["pad_token"] = json!("<|reserved_special_token_0|>");
            json["mask_token"] = json!("<|reserved_special_token_1|>");
        });
    });
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    is_same(&path("a.gguf"), source.path());
    convert(&path("a.gguf"), &path("packed"), "hf-packed");
    is_same(&path("packed"), &path("a.gguf"));
    let settings = std::fs::read(path("packed").join("tokenizer_config.json")).unwrap();
    let settings: Value = serde_json::from_slice(&settings).unwrap();
    for (name, token) in [
        ("bos_token", "<|begin_of_text|>"),
        ("eos_token", "<|end_of_text|>"),
        ("pad_token", "<|reserved_special_token_0|>"),
        ("mask_token", "<|reserved_special_token_1|>"),
    ] {
        assert_eq!(settings[name], token, "{name}");
    }
    let lost = rewritten(&path("a.gguf"), path("lost.gguf"), |metadata| {
        without(metadata, "tokenizer.huggingface.special_tokens");
    });
    let (status, report) = verify(&lost, source.path());
    assert_eq!(status, ExitStatus::Different, "{report}");
}

#[test]
fn a_configuration_with_another_begin_of_text_than_the_tokenizer_keeps_both() {
    for other in [json!(386), Value::Null] {
        let out = tempfile::tempdir().unwrap();
        let path = |name: &str| out.path().join(name);
        let source = source(|dir| edit(dir, "config.json", |json| json["bos_token_id"] = other));
        convert(source.path(), &path("a.gguf"), "gguf-i2_s");
        is_same(&path("a.gguf"), source.path());
        convert(&path("a.gguf"), &path("packed"), "hf-packed");
        is_same(&path("packed"), &path("a.gguf"));
        assert_eq!(prompt(&path("packed"))[0], BEGIN);
    }
}

/// The fixture as llama.cpp would write it: an end of turn beside the end of text, no keys of this program.
fn with_end_of_turn(out: &Path, key: Option<&str>) -> PathBuf {
    let model = out.join("model.gguf");
    let source = source(|dir| {
        for name in ["config.json", "generation_config.json"] {
            edit(dir, name, |json| json["eos_token_id"] = json!(END));
        }
    });
    convert(source.path(), &model, "gguf-i2_s");
    rewritten(&model, out.join("turn.gguf"), |metadata| {
        metadata
            .0
            .retain(|(name, _)| !name.ends_with(".eot_token_id"));
        if let Some(key) = key {
            metadata.set(key, MetaValue::U32(END_OF_TURN as u32));
        }
    })
}

#[test]
fn an_end_of_turn_stops_a_chat() {
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        let out = tempfile::tempdir().unwrap();
        let model = with_end_of_turn(out.path(), Some(key));
        let (warns, report) = warns_of_stopping(&model, &[]);
        assert!(!warns, "{key}: {report}");
    }
    let out = tempfile::tempdir().unwrap();
    let model = with_end_of_turn(out.path(), None);
    let (warns, report) = warns_of_stopping(&model, &[]);
    assert!(warns, "{report}");
    // a repair that is reported removes the warning
    let fixed = out.path().join("fixed.gguf");
    let (warns, report) = warns_of_stopping(&model, &["--fix", "-o", text(&fixed)]);
    assert!(
        report.contains("tokenizer.ggml.eot_token_id = 393"),
        "{report}"
    );
    assert!(!warns, "{report}");
    let (warns, report) = warns_of_stopping(&fixed, &[]);
    assert!(!warns, "{report}");
}

#[test]
fn an_id_of_all_ones_is_no_token() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let source = source(|_| {});
    convert(source.path(), &path("a.gguf"), "gguf-i2_s");
    let none = rewritten(&path("a.gguf"), path("none.gguf"), |metadata| {
        for name in [
            "eos_token_id",
            "padding_token_id",
            "bos_token_id",
            "eot_token_id",
        ] {
            metadata.set(format!("tokenizer.ggml.{name}"), MetaValue::U32(u32::MAX));
        }
        without(metadata, "ternary.eos_token_ids");
        metadata.set(
            "tokenizer.chat_template",
            MetaValue::text("{{ messages[0]['content'] }}"),
        );
        metadata
            .0
            .retain(|(name, _)| name != "tokenizer.ggml.eos_token_ids");
    });
    let ran = run(bitnet_convert::run, ["inspect", text(&none), "--json"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let wiring = &ran.json()["wiring"];
    assert_eq!(wiring["bos_token_id"], Value::Null);
    assert_eq!(wiring["eos_token_ids"], json!([]));
    convert(&none, &path("packed"), "hf-packed");
    for entry in std::fs::read_dir(path("packed")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_some_and(|end| end == "json") {
            let text = std::fs::read_to_string(&file).unwrap();
            assert!(!text.contains("4294967295"), "{}", file.display());
        }
    }
    is_same(&path("packed"), &none);
    convert(&path("packed"), &path("b.gguf"), "gguf-i2_s");
    is_same(&path("b.gguf"), &path("packed"));
}

#[test]
fn single_ids_without_a_tokenizer_verify_after_conversion() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    convert(&checkpoint(FIXTURE), &path("a.gguf"), "gguf-i2_s");
    let bare = rewritten(&path("a.gguf"), path("bare.gguf"), |metadata| {
        metadata
            .0
            .retain(|(name, _)| !name.starts_with("tokenizer."));
        metadata.set("tokenizer.ggml.bos_token_id", MetaValue::U32(BEGIN as u32));
        metadata.set("tokenizer.ggml.eos_token_id", MetaValue::U32(END as u32));
        let ends = MetaArray::U32(vec![END as u32]);
        metadata.set("ternary.eos_token_ids", MetaValue::Array(ends));
    });
    for (to, name) in [("hf-packed", "packed"), ("gguf-i2_s", "b.gguf")] {
        convert(&bare, &path(name), to);
        is_same(&path(name), &bare);
    }
    convert(&path("packed"), &path("c.gguf"), "gguf-i2_s");
    is_same(&path("c.gguf"), &bare);
}
