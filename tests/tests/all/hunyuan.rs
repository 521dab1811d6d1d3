//! HunYuan dense: rotation before the norms of heads, a base scaled by `alpha`, and weights that STQ1_0 holds.
//!
//! Invariant: what transformers recorded decides; no container changes a bit of the logits.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{ActivationQuantization, Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::{FormatError, Limits, MetaValue, open as open_file};
use bitnet_model::{LoadOptions, Logits, Model, TilesIn};
use bitnet_tests::fixtures::{Fixture, fixture, read_json};
use bitnet_tests::gates::float_gates;
use bitnet_tests::{gguf, program};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    Checkpoint::open(path, &OpenOptions::default())
}

fn source() -> Option<Fixture> {
    fixture("hunyuan-dense")
}

fn logits(path: &Path) -> Vec<u32> {
    let options = LoadOptions {
        tiles: TilesIn::FileOrMemory,
        ..LoadOptions::default()
    };
    let model = Model::load(&open(path).unwrap(), &options).unwrap();
    let tokens: Vec<u32> = (0..70).map(|i| i * 37 % 270).collect();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

fn convert(source: &Path, to: &str, output: &Path) -> Value {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", to, "--json"];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stderr);
    ran.json()
}

#[test]
fn logits_are_those_of_transformers() {
    let Some(fixture) = source() else {
        return; // fixtures of somebody else
    };
    let checkpoint = fixture.open().unwrap();
    assert_eq!(checkpoint.family.name, "hunyuan");
    assert!(checkpoint.config.norms.heads_after_rope);
    assert_eq!(
        checkpoint.config.activation_quantization,
        ActivationQuantization::None
    );
    println!("{}", float_gates(&checkpoint, &fixture));
}

#[test]
fn every_container_gives_the_same_bits() {
    let Some(fixture) = source() else {
        return;
    };
    let config = open(&fixture.checkpoint).unwrap().config;
    // 10000 * 1000^(64 / 62)
    assert!(
        (config.rope.theta - 1.249_6e7).abs() < 1e4,
        "{}",
        config.rope.theta
    );
    let want = logits(&fixture.checkpoint);
    let dir = tempfile::tempdir().unwrap();
    let mut last = fixture.checkpoint.clone();
    let mut hash = None;
    for (n, to) in [
        "gguf-stq1_0",
        "gguf-tq2_0",
        "packed",
        "mlx-2bit",
        "hf-bf16",
        "gguf-q2_0",
        "gguf-tq1_0",
        "gguf-f32",
        "gguf-stq1_0",
    ]
    .into_iter()
    .enumerate()
    {
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = dir.path().join(format!("{n}-{to}{suffix}"));
        let report = convert(&last, to, &output);
        assert_eq!(report["lossless"], true, "{to}");
        let found = report["ternary_sha256"].clone();
        assert_eq!(*hash.get_or_insert(found.clone()), found, "{to}");
        assert_eq!(open(&output).unwrap().config, config, "{to}");
        assert_eq!(logits(&output), want, "{to}");
        last = output;
    }
}

#[test]
fn the_bytes_of_stq1_0_are_those_of_its_encoder() {
    let Some(fixture) = source() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("model.gguf");
    convert(&fixture.checkpoint, "gguf-stq1_0", &output);
    let file = open_file(&output, &Limits::default()).unwrap();
    let truth = read_json(&fixture.golden.join("ternary.json"));
    let checkpoint = open(&fixture.checkpoint).unwrap();
    let mut compared = 0;
    for slot in checkpoint.slots().into_iter().filter(|s| s.is_ternary()) {
        let name = (checkpoint.family.gguf_tensor_name)(slot);
        let bytes = file.read(file.tensor(&name).unwrap()).unwrap();
        let expected = &truth[slot.to_string()]["stq1_0_sha256"];
        let found = bitnet_formats::hex(&Sha256::digest(&bytes));
        assert_eq!(*expected, json!(found), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 7);
}

/// A copy of the fixture's checkpoint with another configuration.
fn with_config(fixture: &Fixture, dir: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let copy = dir.join("changed");
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(&fixture.checkpoint).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let path = copy.join("config.json");
    let mut config = read_json(&path);
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

#[test]
fn other_networks_of_the_name_are_refused_by_key_and_value() {
    let Some(fixture) = source() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 8] = [
        ("use_qk_norm", |c| c["use_qk_norm"] = json!(false)),
        ("use_cla", |c| c["use_cla"] = json!(true)),
        ("norm_type", |c| c["norm_type"] = json!("layer")),
        ("attention_head_dim", |c| {
            c["attention_head_dim"] = json!(32)
        }),
        ("rope_scaling.alpha", |c| {
            c["rope_scaling"]["alpha"] = json!(0.0)
        }),
        ("rope_scaling.factor", |c| {
            c["rope_scaling"]["factor"] = json!(2.0)
        }),
        ("rope_scaling.type", |c| {
            c["rope_scaling"]["type"] = json!("linear")
        }),
        ("rope_scaling.type", |c| {
            c["rope_scaling"].as_object_mut().unwrap().remove("alpha");
        }),
    ];
    for (key, change) in cases {
        let error = open(&with_config(&fixture, dir.path(), change)).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    // transformers 5 spells the same otherwise
    let new = with_config(&fixture, dir.path(), |c| {
        let mut rope = c["rope_scaling"].take();
        rope["rope_theta"] = c["rope_theta"].take();
        rope["rope_type"] = rope["type"].take();
        rope.as_object_mut().unwrap().remove("type");
        c["rope_parameters"] = rope;
        c.as_object_mut().unwrap().remove("rope_scaling");
        c.as_object_mut().unwrap().remove("rope_theta");
        c.as_object_mut().unwrap().remove("head_dim");
    });
    let same = open(&fixture.checkpoint).unwrap().config;
    assert_eq!(open(&new).unwrap().config, same);
}

#[test]
fn norms_before_rotation_are_named() {
    let Some(fixture) = source() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let right = dir.path().join("right.gguf");
    convert(&fixture.checkpoint, "gguf-stq1_0", &right);
    let verify = |artifact: &Path| {
        let words = [
            artifact.as_os_str(),
            "--golden".as_ref(),
            fixture.golden.as_os_str(),
            "--json".as_ref(),
        ];
        let ran = program::run(bitnet_verify::run, words);
        (ran.status, ran.json())
    };
    let (status, report) = verify(&right);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    // the same tensors under the other architecture's name
    let wrong = gguf::rewritten(&right, dir.path().join("wrong.gguf"), |metadata| {
        for (key, value) in &mut metadata.0 {
            if let Some(rest) = key.strip_prefix("hunyuan-dense.") {
                *key = format!("qwen3.{rest}");
            }
            if key == "general.architecture" {
                *value = MetaValue::text("qwen3");
            }
        }
    });
    let (status, report) = verify(&wrong);
    assert_eq!(status, ExitStatus::Different);
    let faults: Vec<_> = report["faults"].as_array().unwrap().iter().collect();
    assert!(
        faults
            .iter()
            .any(|f| f["name"] == "norm-rope-order" && f["layer"] == 0),
        "{faults:#?}"
    );
}
