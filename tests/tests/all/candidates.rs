//! Directories with more than one model in them, or with less: the one that transformers loads, or a refusal that
//! names what was found.
//!
//! Invariant: each directory differs in one way from a checkpoint that opens.

use bitnet_cli::ExitStatus;
use bitnet_formats::{Bytes, Limits, TensorFile, TensorInfo};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{Ran, run};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const WHOLE: &str = "llama3-8b-1.58";
const SHARDED: &str = "falcon3-1.58";
const INDEX: &str = "model.safetensors.index.json";

fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(dir.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    dir
}

fn convert(model: &Path) -> Ran {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("o.gguf");
    let words = [
        model.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
        "--json",
    ];
    run(bitnet_convert::run, words)
}

fn hash(model: &Path) -> Value {
    let json = convert(model).json();
    assert_eq!(json["status"], "converted", "{json}");
    json["ternary_sha256"].clone()
}

fn doctor(model: &Path) -> Ran {
    let words = ["doctor", model.to_str().unwrap(), "--json", "--no-run"];
    run(bitnet_verify::run, words)
}

/// Every program refuses with this code; message and hint together name these words.
#[track_caller]
fn refused(model: &Path, code: &str, names: &[&str]) {
    let json = convert(model).json();
    assert_eq!(json["error"]["code"], code, "{json}");
    let text = format!("{} {}", json["error"]["message"], json["error"]["hint"]);
    for name in names {
        assert!(text.contains(name), "{text} does not name {name}");
    }
    let words = [
        model.to_str().unwrap(),
        "--tokens",
        "1",
        "-n",
        "1",
        "--json",
    ];
    let ran = run(bitnet_run::run, words).json();
    assert_eq!(ran["error"]["code"], code, "{ran}");
    let ran = doctor(model);
    let says = |f: &Value| f["code"] == code && f["severity"] == "error";
    match ran.status {
        // a file that is missing is no finding
        ExitStatus::CouldNot => assert_eq!(ran.json()["error"]["code"], code),
        _ => assert!(
            ran.json()["findings"].as_array().unwrap().iter().any(says),
            "{}",
            ran.stdout
        ),
    }
}

fn index(map: &[(&str, &str)]) -> String {
    let map: serde_json::Map<String, Value> = map
        .iter()
        .map(|(tensor, shard)| ((*tensor).to_owned(), json!(shard)))
        .collect();
    json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string()
}

/// The tensors of a safetensors model under other names.
fn renamed(from: &Path, to: &Path, rename: impl Fn(&str) -> String) {
    let file = bitnet_formats::open(from, &Limits::default()).unwrap();
    write(to, &file, rename);
}

fn write(to: &Path, file: &TensorFile, rename: impl Fn(&str) -> String) {
    let dtype = |name: &str| match name {
        "u8" => Dtype::U8,
        "bf16" => Dtype::BF16,
        "f32" => Dtype::F32,
        other => panic!("{other}"),
    };
    let read = |info| (info, file.read(info).unwrap());
    let tensors: Vec<(&TensorInfo, Bytes)> = file.tensors().iter().map(read).collect();
    let views: Vec<_> = tensors
        .iter()
        .map(|(info, bytes)| {
            let dtype = dtype(&info.encoding.name());
            let view = TensorView::new(dtype, info.shape.clone(), bytes).unwrap();
            (rename(&info.name), view)
        })
        .collect();
    std::fs::write(to, serialize(views, None).unwrap()).unwrap();
}

#[test]
fn a_stale_index_beside_a_model_in_one_file_is_ignored_and_said() {
    let expected = hash(&checkpoint(WHOLE));
    let dir = copy(WHOLE);
    let stale = index(&[("lm_head.weight", "model-00001-of-00002.safetensors")]);
    std::fs::write(dir.path().join(INDEX), &stale).unwrap();
    assert_eq!(hash(dir.path()), expected);
    let out = dir.path().join("o.gguf");
    let words = [dir.path().to_str().unwrap(), "-o", out.to_str().unwrap()];
    let ran = run(bitnet_convert::run, words);
    assert!(
        ran.stderr.contains("none of its shards exist"),
        "{}",
        ran.stderr
    );
    std::fs::remove_file(&out).unwrap();
    let found = doctor(dir.path());
    assert_eq!(found.status, ExitStatus::Done, "{}", found.stdout);
    assert!(found.stdout.contains("stale-index"), "{}", found.stdout);
    // the index itself is not the model, and the hint says which file is
    refused(
        &dir.path().join(INDEX),
        "io",
        &["model.safetensors lies beside it"],
    );
    // one of its shards makes it another model
    let shard = dir.path().join("model-00001-of-00002.safetensors");
    std::fs::copy(dir.path().join("model.safetensors"), &shard).unwrap();
    refused(
        dir.path(),
        "unknown-container",
        &["model.safetensors", INDEX, "remove"],
    );
    assert_eq!(hash(&dir.path().join("model.safetensors")), expected);
    // an index that cannot be read
    std::fs::remove_file(&shard).unwrap();
    std::fs::write(dir.path().join(INDEX), "{").unwrap();
    refused(
        dir.path(),
        "unknown-container",
        &["model.safetensors", INDEX, "remove"],
    );
}

#[test]
fn two_whole_models_in_a_directory_are_named() {
    let dir = copy(SHARDED);
    let expected = hash(dir.path());
    let single = dir.path().join("model.safetensors");
    renamed(&checkpoint(SHARDED), &single, str::to_owned);
    refused(
        dir.path(),
        "unknown-container",
        &["model.safetensors and", INDEX, "3 shards 3 are there"],
    );
    // each by its name
    assert_eq!(hash(&single), expected);
    assert_eq!(hash(&dir.path().join(INDEX)), expected);
    // other files than these two names do not count beside them
    std::fs::rename(&single, dir.path().join("consolidated.safetensors")).unwrap();
    assert_eq!(hash(dir.path()), expected);
    std::fs::write(dir.path().join("pytorch_model.bin"), b"not read").unwrap();
    std::fs::write(dir.path().join("pytorch_model.bin.index.json"), b"not read").unwrap();
    assert_eq!(hash(dir.path()), expected);
    // without an index
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    refused(
        dir.path(),
        "unknown-container",
        &["consolidated.safetensors", "name the file"],
    );
    std::fs::remove_file(dir.path().join("consolidated.safetensors")).unwrap();
    refused(
        dir.path(),
        "unknown-container",
        &["model-00001-of-00003.safetensors", "index"],
    );
}

#[test]
fn a_file_of_an_index_opens_the_whole_model_or_is_refused() {
    let dir = copy(SHARDED);
    let expected = hash(dir.path());
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    assert_eq!(hash(&shard), expected);
    // shards need no numbers
    let file = dir.path().join("b.safetensors");
    std::fs::rename(&shard, &file).unwrap();
    let text = std::fs::read_to_string(dir.path().join(INDEX)).unwrap();
    let text = text.replace("model-00002-of-00003.safetensors", "b.safetensors");
    std::fs::write(dir.path().join(INDEX), text).unwrap();
    assert_eq!(hash(&file), expected);
    // a shard of another checkpoint
    let other = dir.path().join("model-00001-of-00009.safetensors");
    std::fs::copy(&file, &other).unwrap();
    refused(
        &other,
        "unknown-container",
        &["does not name this shard", INDEX],
    );
    std::fs::remove_file(dir.path().join(INDEX)).unwrap();
    let first = dir.path().join("model-00001-of-00003.safetensors");
    refused(&first, "unknown-container", &["shard of 3", INDEX]);
}

#[test]
fn adapters_are_refused_beside_a_model_and_instead_of_one() {
    let config = json!({"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 4}).to_string();
    let weights = {
        let data = vec![0u8; 64];
        let view = TensorView::new(Dtype::F32, vec![4, 4], &data).unwrap();
        let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
        serialize([(name, view)], None).unwrap()
    };
    let merge = "merge the adapter";
    for files in [
        &["adapter_config.json", "adapter_model.safetensors"][..],
        &["adapter_config.json"],
        &["adapter_model.safetensors"],
        &["adapter_config.json", "adapter_model.bin"],
        &["adapter_config.json", "adapters.safetensors"],
    ] {
        let beside = copy(WHOLE);
        let only = copy(WHOLE);
        for name in ["config.json", "model.safetensors"] {
            std::fs::remove_file(only.path().join(name)).unwrap();
        }
        for name in files {
            for dir in [&beside, &only] {
                let bytes = match name.ends_with("json") {
                    true => config.as_bytes(),
                    false => &weights,
                };
                std::fs::write(dir.path().join(name), bytes).unwrap();
            }
        }
        refused(
            beside.path(),
            "adapter",
            &[files[0], "model.safetensors", merge],
        );
        refused(only.path(), "adapter", &[files[0], merge]);
        refused(
            &beside.path().join("model.safetensors"),
            "adapter",
            &[files[0], merge],
        );
        let file = only.path().join(files[files.len() - 1]);
        if file.extension().is_some_and(|e| e == "safetensors") {
            refused(&file, "adapter", &["lora_A", merge]);
        }
    }
    // a model that was saved with its adapter inside
    let dir = copy(WHOLE);
    renamed(
        &checkpoint(WHOLE),
        &dir.path().join("model.safetensors"),
        |name| {
            format!(
                "base_model.model.{}",
                name.replace("q_proj.weight", "q_proj.base_layer.weight")
            )
        },
    );
    refused(dir.path(), "adapter", &["base_layer", merge]);
}

#[test]
fn names_of_wrappers_are_refused_by_name() {
    for prefix in [
        "_orig_mod.",
        "module.",
        "base_model.model.",
        "model.",
        "module._orig_mod.",
    ] {
        let dir = copy(WHOLE);
        let to = dir.path().join("model.safetensors");
        renamed(&checkpoint(WHOLE), &to, |name| format!("{prefix}{name}"));
        refused(
            dir.path(),
            "missing-tensor",
            &[
                "model.embed_tokens.weight",
                &format!("`{prefix}model.embed_tokens.weight` only"),
                "wrapper",
            ],
        );
    }
    // in the middle of names
    let dir = copy(WHOLE);
    let to = dir.path().join("model.safetensors");
    renamed(&checkpoint(WHOLE), &to, |name| {
        name.replace("layers.1.", "layers.1._orig_mod.")
    });
    refused(
        dir.path(),
        "missing-tensor",
        &["model.layers.1._orig_mod.input_layernorm.weight"],
    );
    // both
    let dir = copy(WHOLE);
    let file = bitnet_formats::open(&checkpoint(WHOLE), &Limits::default()).unwrap();
    let extra = PathBuf::from("extra.safetensors");
    write(&dir.path().join(&extra), &file, |name| {
        format!("module.{name}")
    });
    let mut map: Vec<(String, String)> = Vec::new();
    for info in file.tensors() {
        map.push((info.name.clone(), "model.safetensors".to_owned()));
        map.push((
            format!("module.{}", info.name),
            "extra.safetensors".to_owned(),
        ));
    }
    let map: Vec<_> = map.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    std::fs::write(dir.path().join(INDEX), index(&map)).unwrap();
    refused(dir.path(), "extra-tensor", &["module."]);
}

#[test]
fn an_index_stays_in_its_directory_and_names_each_tensor_once() {
    let dir = copy(SHARDED);
    let text = std::fs::read_to_string(dir.path().join(INDEX)).unwrap();
    for outside in [
        "../model-00002-of-00003.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "./c.safetensors",
    ] {
        let changed = text.replace("model-00002-of-00003.safetensors", outside);
        std::fs::write(dir.path().join(INDEX), changed).unwrap();
        refused(dir.path(), "malformed", &["same directory", outside]);
    }
    // the same bytes under a second name
    let twice = text.replacen("model-00002-of-00003.safetensors", "twice.safetensors", 1);
    std::fs::write(dir.path().join(INDEX), twice).unwrap();
    std::fs::copy(
        dir.path().join("model-00002-of-00003.safetensors"),
        dir.path().join("twice.safetensors"),
    )
    .unwrap();
    refused(dir.path(), "extra-tensor", &["index"]);
}
