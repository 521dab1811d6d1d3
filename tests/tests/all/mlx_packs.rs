//! Packs of rotated hybrids for MLX: written from every container, read back as the same model, and what they cannot
//! hold is refused.
//!
//! Invariant: a pack has the tensors, types, shapes and keys of the pack that another program wrote for the same weights
//! (`tests/fixtures/rotated/qwen35/mlx`).

use bitnet_checkpoint::{Checkpoint, OpenOptions, Slot};
use bitnet_formats::{Limits, MetaArray, MetaValue};
use bitnet_tests::fixtures::{read_json, repository};
use bitnet_tests::gguf;
use bitnet_tests::program::{self, Ran};
use bitnet_verify::Golden;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn home() -> PathBuf {
    repository().join("tests/fixtures/rotated/qwen35")
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn convert(source: &Path, target: &str, output: &Path, more: &[&str]) -> Ran {
    let words = [source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let words = words.into_iter().chain(["--to", target, "--json"]);
    let words = words.chain(more.iter().copied());
    program::run(bitnet_convert::run, words)
}

fn converted(source: &Path, target: &str, output: &Path) -> Value {
    let ran = convert(source, target, output, &[]);
    assert_eq!(
        ran.status.code(),
        0,
        "{target}: {}{}",
        ran.stdout,
        ran.stderr
    );
    let report = ran.json();
    assert_eq!(report["lossless"], true, "{report:#}");
    report
}

/// Names, types, shapes and bytes of a directory's one file.
fn tensors(directory: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let file = bitnet_formats::open(&directory.join("model.safetensors"), &Limits::default());
    let file = file.unwrap();
    let all = file.tensors().iter();
    let all = all.map(|info| {
        let bytes = file.read(info).unwrap().to_vec();
        (
            info.name.clone(),
            (info.encoding.name(), info.shape.clone(), bytes),
        )
    });
    all.collect()
}

/// A checkpoint of numbers with `hadamard_packing.json`, which a conversion made.
fn unpacked(scratch: &Path) -> PathBuf {
    let output = scratch.join("unpacked");
    converted(&home().join("pq2_0.gguf"), "hf-f16", &output);
    output
}

#[test]
fn a_pack_is_the_one_that_another_program_wrote() {
    let scratch = tempfile::tempdir().unwrap();
    let theirs = home().join("mlx");
    let expected = tensors(&theirs);
    let sources = [
        home().join("pq2_0.gguf"),
        theirs.clone(),
        unpacked(scratch.path()),
    ];
    let mut hashes = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let pack = scratch.path().join(format!("pack-{number}"));
        hashes.push(converted(source, "mlx-2bit", &pack)["ternary_sha256"].clone());
        let found = tensors(&pack);
        let names = |all: &BTreeMap<String, _>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected));
        for (name, (kind, shape, bytes)) in &expected {
            let (own_kind, own_shape, own_bytes) = &found[name];
            assert_eq!((own_kind, own_shape), (kind, shape), "{name}");
            // GGUF and this program store rates; their logarithms are near
            let is_near = name.ends_with("A_log");
            assert!(
                is_near || own_bytes == bytes,
                "{name} from {}",
                source.display()
            );
        }
        let rotation = |directory: &Path| read_json(&directory.join("hadamard.json"));
        let (own, other) = (rotation(&pack), rotation(&theirs));
        for key in [
            "version",
            "block_size",
            "transform",
            "axis",
            "sign_mode",
            "sign_widths",
            "sign_values",
            "gdn_v_grouped",
        ] {
            let key = format!("prism.hadamard.{key}");
            assert_eq!(own[&key], other[&key], "{key}");
        }
        for key in ["weight_names", "inverse_weight_names"] {
            let sorted = |json: &Value| {
                let list = json[format!("prism.hadamard.{key}")].as_array().unwrap();
                let mut list: Vec<_> = list
                    .iter()
                    .map(|n| n.as_str().unwrap().to_owned())
                    .collect();
                list.sort();
                list
            };
            assert_eq!(sorted(&own), sorted(&other), "{key}");
        }
        let config = |directory: &Path| read_json(&directory.join("config.json"));
        let (own, other) = (config(&pack), config(&theirs));
        for key in [
            "schema_version",
            "model_type",
            "base_model_type",
            "hadamard_config",
            "tensor_namespace",
            "gdn_activation_layout",
            "quantization",
            "tie_word_embeddings",
        ] {
            assert_eq!(own[key], other[key], "{key}");
        }
        let modules = |json: &Value| {
            let list = json["modules"].as_array().unwrap().clone();
            let by_path = list
                .into_iter()
                .map(|m| (m["path"].as_str().unwrap().to_owned(), m));
            by_path.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(modules(&own), modules(&other));
        for key in [
            "hidden_size",
            "layer_types",
            "linear_num_value_heads",
            "rms_norm_eps",
            "vocab_size",
            "head_dim",
        ] {
            assert_eq!(own["text_config"][key], other["text_config"][key], "{key}");
        }
        assert_eq!(open(&pack).config.rotation, open(&theirs).config.rotation);
    }
    assert_eq!(hashes[0], hashes[1]);
    assert_eq!(hashes[0], hashes[2]);
}

#[test]
fn a_pack_goes_back_to_every_container() {
    let scratch = tempfile::tempdir().unwrap();
    let source = home().join("pq2_0.gguf");
    let pack = scratch.path().join("pack");
    let report = converted(&source, "mlx-2bit", &pack);
    let golden = home().join("golden");
    for target in [
        "gguf-pq2_0",
        "gguf-q2_0",
        "packed-2bit",
        "hf-f16",
        "mlx-2bit",
    ] {
        let output = scratch.path().join(match target.starts_with("gguf") {
            true => format!("{target}.gguf"),
            false => format!("{target}-of-pack"),
        });
        let back = converted(&pack, target, &output);
        assert_eq!(back["ternary_sha256"], report["ternary_sha256"], "{target}");
        assert_eq!(open(&output).config.rotation, open(&source).config.rotation);
        assert_eq!(output.join("hadamard.json").exists(), target == "mlx-2bit");
        assert_eq!(
            output.join("hadamard_packing.json").exists(),
            ["packed-2bit", "hf-f16"].contains(&target)
        );
        // same weights, values, rotation and settings
        let words = [
            output.to_str().unwrap(),
            "--against",
            source.to_str().unwrap(),
            "--json",
        ];
        let ran = program::run(bitnet_verify::run, words);
        let checks = ran.json()["checks"].clone();
        for check in checks.as_array().unwrap() {
            let same = check["name"] == "metadata"
                || check["status"] == "same"
                || check["status"] == "skipped";
            assert!(same, "{target}: {check:#}");
        }
    }
    // logits of the pack are those that were recorded
    let words = [
        pack.to_str().unwrap(),
        "--golden",
        golden.to_str().unwrap(),
        "--json",
    ];
    let ran = program::run(bitnet_verify::run, words);
    assert_eq!(ran.status.code(), 0, "{}", ran.stdout);
    let logits = ran.json()["logits"].clone();
    assert!(
        logits["max_abs"].as_f64().is_some_and(|far| far < 1e-3),
        "{logits}"
    );
    let recorded = Golden::read(&golden).unwrap();
    assert!(!recorded.logits.is_empty());
    // the certificate beside it holds
    let certificate = pack.join("certificate.json");
    let words = [
        pack.to_str().unwrap(),
        "--certificate",
        certificate.to_str().unwrap(),
        "--json",
    ];
    let ran = program::run(bitnet_verify::run, words);
    assert_eq!(ran.status.code(), 0, "{}", ran.stdout);
}

#[test]
fn what_a_pack_cannot_hold_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let source = home().join("pq2_0.gguf");
    let refused = |source: &Path, more: &[&str], word: &str| {
        let ran = convert(source, "mlx-2bit", &at("refused"), more);
        assert_eq!(ran.status.code(), 2, "{word}: {}", ran.stdout);
        let error = ran.json()["error"].clone();
        assert_eq!(error["code"], "target-cannot-hold", "{error}");
        let text = error["message"].as_str().unwrap();
        assert!(text.contains(word), "{word}: {text}");
        assert!(!at("refused").exists());
    };
    // a table of numbers cannot be rotated
    refused(&source, &["--embeddings", "f16"], "codes");
    // the order of value heads that GGUF keeps
    let tiled = gguf::rewritten(&source, at("tiled.gguf"), |metadata| {
        metadata
            .0
            .retain(|(key, _)| key != "prism.hadamard.gdn_v_grouped");
    });
    refused(&tiled, &[], "GGUF's order");
    // there is no pack for other networks
    let qwen3 = repository().join("tests/fixtures/bonsai-8b/pq2_0.gguf");
    let rotated = gguf::rewritten(&qwen3, at("qwen3.gguf"), |metadata| {
        let mut set = |key: &str, value| metadata.set(format!("prism.hadamard.{key}"), value);
        set("version", MetaValue::U32(1));
        set("block_size", MetaValue::U32(128));
        set(
            "transform",
            MetaValue::text("normalized-sylvester-walsh-hadamard"),
        );
        set("axis", MetaValue::text("input-last-dimension"));
        set("sign_mode", MetaValue::text("identity"));
        let names = ["blk.0.ffn_down.weight"].into_iter().collect();
        set("weight_names", MetaValue::Array(MetaArray::String(names)));
    });
    refused(&rotated, &[], "no program for MLX rotates");
}

/// A matrix that is not rotated is a module with blocks of 0, and has no signs.
#[test]
fn a_pack_says_which_matrices_are_not_rotated() {
    let scratch = tempfile::tempdir().unwrap();
    let source = home().join("pq2_0.gguf");
    let some = gguf::rewritten(&source, scratch.path().join("some.gguf"), |metadata| {
        let key = "prism.hadamard.weight_names";
        let Some(MetaValue::Array(MetaArray::String(names))) = metadata.get(key).cloned() else {
            panic!("names");
        };
        let names: Vec<String> = names
            .iter()
            .map(|n| String::from_utf8(n.to_vec()).unwrap())
            .collect();
        let kept = names.iter().filter(|name| *name != "output.weight");
        let kept = kept.map(String::as_str).collect();
        metadata.set(key, MetaValue::Array(MetaArray::String(kept)));
    });
    let pack = scratch.path().join("pack");
    converted(&some, "mlx-2bit", &pack);
    let config = read_json(&pack.join("config.json"));
    let head = config["modules"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["path"] == "lm_head");
    assert_eq!(head.unwrap()["block"], json!(0));
    assert!(!tensors(&pack).contains_key("language_model.lm_head.signs"));
    let rotation = open(&pack).config.rotation.clone().unwrap();
    assert!(!rotation.turns(Slot::OutputHead) && rotation.embeddings);
    assert_eq!(Some(rotation), open(&some).config.rotation);
}

#[test]
fn programs_that_do_not_know_packs_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let pack = scratch.path().join("pack");
    converted(&home().join("pq2_0.gguf"), "mlx-2bit", &pack);
    let words = ["inspect", pack.to_str().unwrap(), "--readers", "--json"];
    let readers = program::run(bitnet_convert::run, words).json();
    assert_eq!(readers["rotation"]["block_size"], 128, "{readers:#}");
    let mut all = readers["readers"].as_array().unwrap().iter();
    let mlx = all.find(|r| r["program"] == "mlx-lm").unwrap();
    // it has blocks of 512 and more
    assert_eq!(mlx["verdict"], "refuses", "{mlx:#}");
    let words = ["doctor", pack.to_str().unwrap(), "--json"];
    let found = program::run(bitnet_verify::run, words).json();
    let mut findings = found["findings"].as_array().unwrap().iter();
    let finding = findings.find(|f| f["code"] == "rotated-weights").unwrap();
    assert!(
        finding["what"].as_str().unwrap().contains("packs"),
        "{finding}"
    );
}
