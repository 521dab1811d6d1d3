//! Mixtures of experts: what transformers recorded, every layout and container, what is refused, planted faults.
//!
//! Invariant: no layout, container, batch or thread changes a bit of the logits; the experts of a token are the recorded
//! ones.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, ExpertLinear, LayerSlot, OpenOptions, Slot, TernaryHasher};
use bitnet_cli::ExitStatus;
use bitnet_formats::{
    Container, ErrorCode, FormatError, Limits, MetaArray, MetaValue, Safetensors, TensorFile,
    WritePlan,
};
use bitnet_model::{LoadOptions, Logits, Model, Slice, TilesIn, Want};
use bitnet_tests::experts_model::{Layout, Shape};
use bitnet_tests::fixtures::{Fixture, fixture};
use bitnet_tests::gates::float_gates;
use bitnet_tests::{gguf, program};
use bitnet_verify::gates::experts;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    Checkpoint::open(path, &OpenOptions::default())
}

fn load(path: &Path) -> Model {
    let options = LoadOptions {
        tiles: TilesIn::FileOrMemory,
        ..LoadOptions::default()
    };
    Model::load(&open(path).unwrap_or_else(|e| panic!("{e}")), &options).unwrap()
}

fn tokens(model: &Model, count: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..count).map(|i| (i * 37 % vocab) as u32).collect()
}

fn logits(path: &Path) -> Vec<u32> {
    let model = load(path);
    let tokens = tokens(&model, 40);
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

fn hash(path: &Path) -> String {
    let checkpoint = open(path).unwrap_or_else(|e| panic!("{e}"));
    let mut hasher = TernaryHasher::default();
    let slots = checkpoint.slots().into_iter();
    for slot in slots.filter(|s| s.is_ternary()) {
        hasher.add(&slot.to_string(), &checkpoint.ternary(slot).unwrap());
    }
    hasher.finish()
}

fn try_convert(source: &Path, to: &str, output: &Path) -> program::Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", to, "--json"];
    program::run(bitnet_convert::run, words)
}

fn convert(source: &Path, to: &str, output: &Path) -> Value {
    let ran = try_convert(source, to, output);
    assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stderr);
    ran.json()
}

fn verify(artifact: &Path, words: &[&Path]) -> (ExitStatus, Value) {
    let words = [&[artifact], words, &[Path::new("--json")]].concat();
    let ran = program::run(bitnet_verify::run, words);
    (ran.status, ran.json())
}

fn names(report: &Value) -> Vec<String> {
    let faults = report["faults"].as_array().into_iter().flatten();
    faults
        .map(|f| f["name"].as_str().unwrap().to_owned())
        .collect()
}

fn sources() -> Vec<Fixture> {
    ["maple", "qwen3-moe"]
        .into_iter()
        .filter_map(fixture)
        .collect()
}

#[test]
fn logits_and_experts_are_those_of_transformers() {
    for fixture in sources() {
        let checkpoint = fixture.open().unwrap();
        println!("{}", float_gates(&checkpoint, &fixture));
        let model = load(&fixture.checkpoint);
        let golden = fixture.golden();
        let found = experts(&golden, |tokens| {
            let layers = model.routing(tokens)?.into_iter().flatten();
            let rows = |routing: bitnet_model::Routing| {
                let of = |row| routing.row(row).iter().map(|c| (c.expert, c.weight));
                (0..tokens.len()).map(|row| of(row).collect()).collect()
            };
            Ok(layers.map(rows).collect())
        });
        let found = found.unwrap();
        assert_eq!(found.differences, [], "{}", fixture.name);
        assert!(found.equal > 200, "{}: {}", fixture.name, found.equal);
        // tokens whose hidden state is zero
        assert!(found.ties <= 12, "{}: {}", fixture.name, found.ties);
        println!(
            "{}: {} choices equal, {} ties",
            fixture.name, found.equal, found.ties
        );
        let (status, report) = verify(
            &fixture.checkpoint,
            &[Path::new("--golden"), &fixture.golden],
        );
        assert_eq!(status, ExitStatus::Done, "{}: {report:#}", fixture.name);
        let checks = report["checks"].as_array().unwrap();
        let experts = checks
            .iter()
            .find(|c| c["name"] == "golden-experts")
            .unwrap();
        assert_eq!(experts["status"], "same", "{experts:#}");
    }
}

#[test]
fn every_container_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for fixture in sources() {
        let config = open(&fixture.checkpoint).unwrap().config;
        let want = logits(&fixture.checkpoint);
        let mut last = fixture.checkpoint.clone();
        let mut hash = None;
        for (n, to) in [
            "gguf-q2_0",
            "packed",
            "gguf-f16",
            "mlx-2bit",
            "gguf-bf16",
            "hf-bf16",
            "packed-2bit",
            "gguf-f32",
            "mlx-2bit",
            "gguf-q2_0",
            "hf-bf16",
        ]
        .into_iter()
        .enumerate()
        {
            let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
            let output = dir
                .path()
                .join(format!("{}-{n}-{to}{suffix}", fixture.name));
            let report = convert(&last, to, &output);
            assert_eq!(report["lossless"], true, "{to}");
            let found = report["ternary_sha256"].clone();
            assert_eq!(*hash.get_or_insert(found.clone()), found, "{to}");
            assert_eq!(open(&output).unwrap().config, config, "{to}");
            assert_eq!(logits(&output), want, "{to}");
            let (status, report) = verify(&output, &[Path::new("--against"), &last]);
            assert_eq!(status, ExitStatus::Done, "{to}: {report:#}");
            last = output;
        }
    }
}

/// A network whose rows every packing of blocks holds.
fn wide(maple: bool, experts: usize) -> Shape {
    Shape {
        hidden: 512,
        inter: 256,
        head_dim: 128,
        layers: 1,
        experts,
        used: 2.min(experts),
        ..Shape::small(maple, 11)
    }
}

#[test]
fn packings_whose_rows_stand_by_themselves_hold_experts_and_the_others_say_so() {
    let dir = tempfile::tempdir().unwrap();
    // llama-quantize treats exactly 8 experts specially
    for (maple, experts) in [(true, 8), (false, 3)] {
        let source = dir.path().join(format!("source-{experts}"));
        wide(maple, experts).write(&source, Layout::Each);
        let want = logits(&source);
        for (to, code) in [
            ("gguf-q2_0", None),
            ("gguf-tq2_0", None),
            ("gguf-tq1_0", None),
            ("gguf-pq2_0", None),
            ("gguf-stq1_0", Some("target-cannot-hold")), // zeros elsewhere
            ("gguf-i2_s", Some("target-cannot-hold")),
            ("gguf-f16", None),
            ("hf-packed", Some("target-cannot-hold")),
            ("mlx-2bit", None),
            ("packed", None),
        ] {
            let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
            let output = dir.path().join(format!("{experts}-{to}{suffix}"));
            let ran = try_convert(&source, to, &output);
            match code {
                None => {
                    assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stderr);
                    assert_eq!(logits(&output), want, "{to}");
                }
                Some(code) => {
                    assert_eq!(ran.status, ExitStatus::CouldNot, "{to}");
                    let found = ran.json()["error"]["code"].clone();
                    assert!(
                        found == code || found == "scale-rounding",
                        "{to}: {found} {}",
                        ran.stderr
                    );
                    assert!(!output.exists(), "{to}");
                }
            }
        }
    }
}

#[test]
fn experts_lie_in_any_layout() {
    let dir = tempfile::tempdir().unwrap();
    for maple in [true, false] {
        for (experts, used) in [(8, 3), (1, 1), (5, 5)] {
            let shape = Shape {
                experts,
                used,
                ..Shape::small(maple, 3)
            };
            let each = dir.path().join(format!("{maple}-{experts}"));
            shape.write(&each, Layout::Each);
            let (want, same) = (logits(&each), hash(&each));
            for layout in [Layout::Fused, Layout::RowScale, Layout::Grouped] {
                let path = dir.path().join(format!("{maple}-{experts}-{layout:?}"));
                shape.write(&path, layout);
                assert_eq!(hash(&path), same, "{layout:?}");
                assert_eq!(logits(&path), want, "{layout:?}");
                let output = dir
                    .path()
                    .join(format!("{maple}-{experts}-{layout:?}.gguf"));
                convert(&path, "gguf-f16", &output);
                assert_eq!(logits(&output), want, "{layout:?}");
                let (status, report) = verify(&output, &[Path::new("--against"), &each]);
                assert_eq!(status, ExitStatus::Done, "{layout:?}: {report:#}");
            }
        }
    }
}

#[test]
fn layers_without_experts_stand_among_others() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape {
        layers: 4,
        dense: vec![1],
        keys: vec![("decoder_sparse_step", json!(1))],
        ..Shape::small(false, 5)
    };
    let mixed = dir.path().join("mixed");
    shape.write(&mixed, Layout::Each);
    let checkpoint = open(&mixed).unwrap();
    let layers = checkpoint.config.experts.as_ref().unwrap().layers.clone();
    assert_eq!(layers, [true, false, true, true]);
    let packed = dir.path().join("packed");
    convert(&mixed, "packed", &packed);
    assert_eq!(logits(&packed), logits(&mixed));
    // from nothing and back
    let mlx = dir.path().join("mlx");
    convert(&packed, "mlx-2bit", &mlx);
    assert_eq!(logits(&mlx), logits(&mixed));
    // programs that read GGUF have experts in every layer
    let ran = try_convert(&mixed, "gguf-f16", &dir.path().join("no.gguf"));
    assert_eq!(ran.json()["error"]["code"], "target-cannot-hold");
    assert!(
        ran.stdout.contains("experts in every layer"),
        "{}",
        ran.stdout
    );
    // every second layer
    let step = Shape {
        layers: 4,
        dense: vec![0, 2],
        keys: vec![
            ("decoder_sparse_step", json!(2)),
            ("mlp_only_layers", json!([])),
        ],
        ..Shape::small(false, 5)
    };
    let stepped = dir.path().join("stepped");
    step.write(&stepped, Layout::Each);
    let layers = open(&stepped).unwrap().config.experts.unwrap().layers;
    assert_eq!(layers, [false, true, false, true]);
    assert!(!logits(&stepped).is_empty());
    // Maple's first layers
    let first = Shape {
        layers: 3,
        dense: vec![0],
        keys: vec![("first_k_dense_replace", json!(1))],
        ..Shape::small(true, 6)
    };
    let path = dir.path().join("first");
    first.write(&path, Layout::Each);
    let layers = open(&path).unwrap().config.experts.unwrap().layers;
    assert_eq!(layers, [false, true, true]);
    assert!(!logits(&path).is_empty());
}

#[test]
fn weights_that_are_not_divided_are_another_network() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape::small(false, 7);
    let divided = dir.path().join("divided");
    shape.write(&divided, Layout::Each);
    let plain = dir.path().join("plain");
    let keys = vec![("norm_topk_prob", json!(false))];
    Shape {
        keys,
        ..shape.clone()
    }
    .write(&plain, Layout::Each);
    assert_ne!(logits(&plain), logits(&divided));
    // the key's own default
    let absent = dir.path().join("absent");
    let keys = vec![("norm_topk_prob", Value::Null)];
    Shape { keys, ..shape }.write(&absent, Layout::Each);
    assert_eq!(logits(&absent), logits(&plain));
    let packed = dir.path().join("packed");
    convert(&plain, "packed", &packed);
    assert_eq!(logits(&packed), logits(&plain));
    let ran = try_convert(&plain, "gguf-f16", &dir.path().join("no.gguf"));
    assert_eq!(ran.json()["error"]["code"], "target-cannot-hold");
    assert!(
        ran.stdout.contains("divided by their sum"),
        "{}",
        ran.stdout
    );
    let (status, report) = verify(&packed, &[Path::new("--against"), &divided]);
    assert_eq!(status, ExitStatus::Different, "{report:#}");
}

#[test]
fn other_mixtures_are_refused_by_key_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        (true, "norm_topk_prob", json!(false)),
        (true, "num_shared_experts", json!(1)),
        (true, "moe_router_enable_expert_bias", json!(true)),
        (true, "router_dtype", json!("bf16")),
        (true, "nope_on_global_attention", json!(false)),
        (true, "partial_rotary_factor", json!(0.0)),
        (true, "use_qk_norm", json!(false)),
        (true, "use_bias", json!(true)),
        (
            true,
            "layer_types",
            json!(["sliding_attention", "linear_attention"]),
        ),
        (false, "num_experts_per_tok", json!(6)),
        (false, "num_experts_per_tok", json!(0)),
        (false, "num_experts", json!(70_000)),
        (false, "moe_intermediate_size", json!(0)),
        (false, "decoder_sparse_step", json!(0)),
        (false, "mlp_only_layers", json!("all")),
        (false, "scoring_func", json!("sigmoid")),
        (false, "routed_scaling_factor", json!(2.5)),
        (false, "n_group", json!(4)),
        (false, "use_sliding_window", json!(true)),
    ];
    for (maple, key, value) in cases {
        let shape = Shape {
            keys: vec![(key, value)],
            ..Shape::small(maple, 1)
        };
        let path = dir.path().join("refused");
        shape.write(&path, Layout::Each);
        let error = open(&path).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedConfig, "{key}: {error}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    // keys that no program reads are named, and change nothing
    let shape = Shape {
        keys: vec![("quantize", json!(true)), ("preaffine", json!(true))],
        ..Shape::small(true, 1)
    };
    let path = dir.path().join("unused");
    shape.write(&path, Layout::Each);
    let unknown: Vec<_> = open(&path).unwrap().unknown_keys;
    let keys: Vec<_> = unknown.iter().map(|k| k.key.as_str()).collect();
    assert_eq!(keys, ["quantize", "preaffine"]);
}

#[test]
fn tensors_of_other_shapes_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    for (layout, part) in [
        (Layout::Fused, "gate_up_proj"),
        (Layout::RowScale, "switch_mlp"),
        (Layout::Each, "experts.4."),
    ] {
        let path = dir.path().join(format!("{layout:?}"));
        Shape::small(false, 2).write(&path, layout);
        let config = path.join("config.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json["num_experts"] = json!(4);
        std::fs::write(&config, json.to_string()).unwrap();
        let error = open(&path).unwrap_err().to_string();
        let is_router = error.contains("mlp.gate.weight");
        assert!(is_router || error.contains(part), "{layout:?}: {error}");
        assert!(error.contains("shape") || error.contains(part), "{error}");
    }
}

#[test]
fn gguf_files_say_what_their_readers_require() {
    let Some(fixture) = fixture("maple") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let right = dir.path().join("maple.gguf");
    convert(&fixture.checkpoint, "gguf-q2_0", &right);
    let file = bitnet_formats::open(&right, &Limits::default()).unwrap();
    let key = |name: &str| file.metadata.get(&format!("maple.{name}"));
    let flags = MetaValue::Array(MetaArray::Bool(vec![true, true, true, false]));
    assert_eq!(key("attention.sliding_window_pattern"), Some(&flags));
    let clamp = MetaValue::Array(MetaArray::F32(vec![7.0; 4]));
    assert_eq!(key("swiglu_clamp_exp"), Some(&clamp));
    assert_eq!(key("rope.dimension_count"), Some(&MetaValue::U32(16)));
    assert_eq!(key("expert_count"), Some(&MetaValue::U32(6)));
    assert_eq!(key("expert_used_count"), Some(&MetaValue::U32(3)));
    assert_eq!(key("expert_feed_forward_length"), Some(&MetaValue::U32(64)));
    let gate = file.tensor("blk.0.ffn_gate_exps.weight").unwrap();
    assert_eq!(gate.shape, [6, 64, 64]);
    let router = file.tensor("blk.0.ffn_gate_inp.weight").unwrap();
    assert_eq!(router.encoding.name(), "f32");
    for name in [
        "attention.sliding_window_pattern",
        "swiglu_clamp_exp",
        "expert_feed_forward_length",
        "attention.sliding_window",
    ] {
        let without = gguf::rewritten(&right, dir.path().join("without.gguf"), |metadata| {
            metadata
                .0
                .retain(|(key, _)| *key != format!("maple.{name}"));
        });
        let error = open(&without).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// A copy of a checkpoint whose tensors `change` may put elsewhere.
fn rearranged(source: &Path, to: &Path, change: impl Fn(&str) -> String) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    let file: TensorFile = bitnet_formats::open(source, &Limits::default()).unwrap();
    let tensors = file
        .tensors()
        .iter()
        .map(|t| bitnet_formats::PlannedTensor {
            name: change(&t.name),
            encoding: t.encoding,
            shape: t.shape.clone(),
            len: t.len,
        });
    let plan = WritePlan {
        metadata: file.metadata.clone(),
        tensors: tensors.collect(),
    };
    let header = Safetensors.header(&plan).unwrap();
    let mut bytes = header.bytes.clone();
    for (info, at) in file.tensors().iter().zip(&header.offsets) {
        bytes.resize(*at as usize, 0);
        bytes.extend_from_slice(&file.read(info).unwrap());
    }
    std::fs::write(to.join("model.safetensors"), bytes).unwrap();
    to.to_owned()
}

#[test]
fn planted_faults_are_named() {
    let Some(maple) = fixture("maple") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let golden = |fixture: &Fixture, wrong: &Path| {
        let (status, report) = verify(wrong, &[Path::new("--golden"), &fixture.golden]);
        assert_eq!(status, ExitStatus::Different, "{report:#}");
        names(&report)
    };
    let mut rows = Vec::new();
    // two experts have changed places
    let swapped = rearranged(&maple.checkpoint, &dir.path().join("swapped"), |name| {
        let other = |from: &str, to: &str| name.replace(from, to);
        match () {
            () if name.contains("layers.1.mlp.experts.2.") => other("experts.2.", "experts.4."),
            () if name.contains("layers.1.mlp.experts.4.") => other("experts.4.", "experts.2."),
            () => name.to_owned(),
        }
    });
    let found = golden(&maple, &swapped);
    assert!(found.contains(&"permuted-experts".to_owned()), "{found:?}");
    let (status, report) = verify(&swapped, &[Path::new("--against"), &maple.checkpoint]);
    assert_eq!(status, ExitStatus::Different);
    // trits and scales have changed places together
    assert_eq!(names(&report)[0], "permuted-experts", "{report:#}");
    rows.push(("experts 2 and 4 of layer 1 swapped", found));
    // wiring of a GGUF file
    let right = dir.path().join("maple.gguf");
    convert(&maple.checkpoint, "gguf-q2_0", &right);
    let (status, report) = verify(&right, &[Path::new("--golden"), &maple.golden]);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    let rewritten = |key: &str, value: MetaValue| {
        let to = dir.path().join("wrong.gguf");
        gguf::rewritten(&right, to, |m| m.set(format!("maple.{key}"), value))
    };
    for (what, key, value, name) in [
        (
            "no clamp",
            "swiglu_clamp_exp",
            MetaValue::Array(MetaArray::F32(vec![0.0; 4])),
            None,
        ),
        (
            "rope on the full layer",
            "attention.sliding_window_pattern",
            MetaValue::Array(MetaArray::Bool(vec![true; 4])),
            Some("full-layer-rope"),
        ),
        (
            "rope on all dimensions",
            "rope.dimension_count",
            MetaValue::U32(32),
            Some("rotary-dim"),
        ),
    ] {
        let wrong = rewritten(key, value);
        let found = golden(&maple, &wrong);
        if let Some(name) = name {
            assert!(found.iter().any(|f| f == name), "{what}: {found:?}");
        }
        rows.push((what, found));
        let (status, _) = verify(&wrong, &[Path::new("--against"), &maple.checkpoint]);
        assert_eq!(status, ExitStatus::Different, "{what}");
    }
    // weights of experts
    if let Some(qwen) = fixture("qwen3-moe") {
        let wrong = rearranged(&qwen.checkpoint, &dir.path().join("plain"), str::to_owned);
        let config = wrong.join("config.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json["norm_topk_prob"] = json!(false);
        std::fs::write(&config, json.to_string()).unwrap();
        let found = golden(&qwen, &wrong);
        assert!(found.contains(&"expert-weights".to_owned()), "{found:?}");
        rows.push(("weights not divided", found));
    }
    for (what, found) in rows {
        println!("| {what} | {} |", found.join(", "));
    }
}

#[test]
fn sequences_of_a_batch_do_not_change_each_other() {
    let Some(fixture) = fixture("maple") else {
        return;
    };
    let model = load(&fixture.checkpoint);
    let texts: Vec<Vec<u32>> = [1, 3, 40, 7]
        .iter()
        .map(|n| {
            tokens(&model, *n)
                .into_iter()
                .map(|t| (t + *n as u32) % 288)
                .collect()
        })
        .collect();
    let alone: Vec<Vec<f32>> = texts
        .iter()
        .map(|tokens| {
            let mut session = model.session(64).unwrap();
            model.forward(&mut session, tokens, Logits::All).unwrap()
        })
        .collect();
    let mut sequences: Vec<_> = texts.iter().map(|_| model.sequence(64).unwrap()).collect();
    let mut workspace = model.workspace();
    let mut batch: Vec<Slice<'_>> = sequences
        .iter_mut()
        .zip(&texts)
        .map(|(sequence, tokens)| Slice {
            sequence,
            tokens,
            want: Want::All,
        })
        .collect();
    let together = model.step(&mut batch, &mut workspace).unwrap();
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(*alone, together.into_rows());
    }
}

/// A model of many tensors; time to convert it, and tensors.
fn timed(dir: &Path, experts: usize, to: &str) -> (f64, usize) {
    let shape = Shape {
        hidden: 32,
        inter: 32,
        layers: 16,
        experts,
        used: 2,
        ..Shape::small(true, 9)
    };
    let source = dir.join(format!("many-{experts}"));
    if !source.exists() {
        shape.write(&source, Layout::Each);
    }
    let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
    let output = dir.join(format!("{experts}-{to}{suffix}"));
    let start = Instant::now();
    let report = convert(&source, to, &output);
    assert_eq!(report["lossless"], true);
    (start.elapsed().as_secs_f64(), 16 * (experts * 3 + 9) + 3)
}

#[test]
fn ten_thousand_tensors_take_ten_times_the_time_of_a_thousand() {
    let dir = tempfile::tempdir().unwrap();
    for to in ["packed", "gguf-f16", "mlx-2bit"] {
        let (small, few) = timed(dir.path(), 20, to);
        let (large, many) = timed(dir.path(), 210, to);
        assert!(few < 1200 && many > 10_000, "{few} {many}");
        let per_tensor = |seconds: f64, tensors: usize| 1e6 * seconds / tensors as f64;
        let (few, many) = (per_tensor(small, few), per_tensor(large, many));
        println!("{to}: {few:.0} and {many:.0} microseconds a tensor");
        // the first conversion pays for what does not depend on the tensors; a step that looks at every tensor for every
        // tensor would make this ten
        assert!(many < 3.0 * few + 200.0, "{to}: {few} {many}");
    }
}

#[test]
fn slots_of_experts_are_those_of_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    Shape::small(true, 4).write(&path, Layout::Each);
    let checkpoint = open(&path).unwrap();
    let slots = checkpoint.slots();
    let expert = |expert, linear| Slot::Layer(1, LayerSlot::expert(expert, linear));
    let last = expert(4, ExpertLinear::Down);
    assert_eq!(
        last.to_string(),
        "model.layers.1.mlp.experts.4.down_proj.weight"
    );
    assert!(slots.contains(&last) && !slots.contains(&expert(5, ExpertLinear::Down)));
    assert_eq!(checkpoint.config.shape(last), [64, 32]);
    assert!(checkpoint.is_ternary(last));
    assert!(!checkpoint.is_ternary(Slot::Layer(1, LayerSlot::Router)));
}
