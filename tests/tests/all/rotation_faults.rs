//! What goes wrong with rotated weights, planted and named: keys of a file, and programs that read right keys wrongly.
//!
//! Invariant: files are judged by what another program recorded of the right one, and by comparing with it; wrong
//! programs are dense networks (f64) that never rotate an input. `--nocapture` prints the table.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, LayerSlot, OpenOptions, Slot};
use bitnet_cli::ExitStatus;
use bitnet_formats::{MetaArray, MetaValue, Metadata, Strings};
use bitnet_tests::dense_network::{DenseNetwork, Turning};
use bitnet_tests::fixtures::repository;
use bitnet_tests::gguf;
use bitnet_tests::program;
use bitnet_tests::random::Random;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const TOKENS: [u32; 9] = [5, 17, 300, 17, 2, 398, 44, 0, 121];

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn key(name: &str) -> String {
    format!("prism.hadamard.{name}")
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn verify(artifact: &Path, words: &[&str]) -> (ExitStatus, Value) {
    let words = ["--json", artifact.to_str().unwrap()]
        .into_iter()
        .chain(words.iter().copied());
    let ran = program::run(bitnet_verify::run, words);
    (ran.status, ran.json())
}

/// The names of the faults of a report, and what it says of each.
fn faults(report: &Value) -> Vec<(String, String)> {
    let all = report["faults"].as_array().into_iter().flatten();
    let text = |fault: &Value, key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    all.map(|f| (text(f, "name"), text(f, "what"))).collect()
}

fn names(report: &Value) -> Vec<String> {
    faults(report).into_iter().map(|(name, _)| name).collect()
}

/// What is done to the keys of a right file.
type Plant = fn(&mut Metadata);

fn remove(metadata: &mut Metadata, names: &[&str]) {
    let is_one = |k: &str| names.iter().any(|name| k == key(name));
    metadata.0.retain(|(k, _)| !is_one(k));
}

const PLANTED: [(&str, &str, Plant); 6] = [
    ("no key of the rotation", "rotation-missing", |metadata| {
        metadata
            .0
            .retain(|(k, _)| !k.starts_with("prism.hadamard."));
    }),
    ("no signs", "rotation-signs", |metadata| {
        remove(metadata, &["sign_widths", "sign_values"]);
        metadata.set(key("sign_mode"), MetaValue::text("identity"));
    }),
    ("blocks of 64", "rotation-block", |metadata| {
        metadata.set(key("block_size"), MetaValue::U32(64));
    }),
    (
        "embeddings not turned back",
        "rotation-embeddings",
        |metadata| remove(metadata, &["inverse_weight_names"]),
    ),
    ("output head left out", "rotation-head", |metadata| {
        let Some(MetaValue::Array(MetaArray::String(names))) = metadata.get(&key("weight_names"))
        else {
            panic!("no names");
        };
        let kept = names.iter().filter(|name| *name != b"output.weight");
        let kept: Vec<String> = kept
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect();
        let kept: Strings = kept.iter().map(String::as_str).collect();
        metadata.set(
            key("weight_names"),
            MetaValue::Array(MetaArray::String(kept)),
        );
    }),
    (
        "gdn_v_grouped ignored",
        "rotation-value-order",
        |metadata| {
            remove(metadata, &["gdn_v_grouped"]);
        },
    ),
];

#[test]
fn faults_of_the_keys_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let home = fixture("rotated/qwen35");
    let source = home.join("pq2_0.gguf");
    let golden = home.join("golden");
    let golden = ["--golden", golden.to_str().unwrap()];
    let (status, report) = verify(&source, &golden);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    let mut rows = Vec::new();
    for (what, name, plant) in PLANTED {
        let wrong = gguf::rewritten(&source, scratch.path().join("wrong.gguf"), plant);
        for (how, words) in [
            ("record", golden),
            ("--against", ["--against", source.to_str().unwrap()]),
        ] {
            let (status, report) = verify(&wrong, &words);
            // value heads that share scales have no other order: without the keys they cannot be read
            let expected = match (name, how) {
                ("rotation-missing", "record") => ExitStatus::CouldNot,
                _ => ExitStatus::Different,
            };
            assert_eq!(status, expected, "{what}, {how}: {report:#}");
            let found = faults(&report);
            let own: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(own, [name], "{what}, {how}: {:#}", report["faults"]);
            rows.push(format!("| {what} | {how} | {name} | {} |", found[0].1));
        }
        // the file alone: what published files all declare and this one does not
        let words = ["doctor", wrong.to_str().unwrap(), "--json"];
        let report = program::run(bitnet_verify::run, words).json();
        let mut findings = report["findings"].as_array().unwrap().iter();
        let is_told = findings.any(|finding| finding["code"] == name);
        let can_be_told = !["rotation-missing", "rotation-block"].contains(&name);
        assert_eq!(is_told, can_be_told, "{what}: {report:#}");
    }
    println!("| fault | found by | named | what |\n|---|---|---|---|");
    println!("{}", rows.join("\n"));
}

/// A GGUF file with a rotation of all of its matrices declared.
fn rotated(source: &Path, to: PathBuf) -> PathBuf {
    let checkpoint = open(source);
    let config = &checkpoint.config;
    let slots = || config.slots().into_iter();
    let is_folded = |slot: &Slot| slot.is_ternary() || *slot == Slot::OutputHead;
    let folded: Vec<String> = slots()
        .filter(is_folded)
        .map(|slot| (checkpoint.family.gguf_tensor_name)(slot))
        .collect();
    let widths = slots().filter(|slot| slot.is_ternary());
    let mut widths: Vec<i32> = widths.map(|slot| config.shape(slot)[1] as i32).collect();
    widths.sort_unstable();
    widths.dedup();
    let mut random = Random(11);
    let count = widths.iter().sum::<i32>();
    let signs: Vec<i32> = (0..count).map(|_| random.below(2) as i32 * 2 - 1).collect();
    let tied = config.tie_word_embeddings;
    gguf::rewritten(source, to, |metadata| {
        let mut set = |name: &str, value| metadata.set(key(name), value);
        set("version", MetaValue::U32(if tied { 2 } else { 1 }));
        set("block_size", MetaValue::U32(128));
        let transform = MetaValue::text("normalized-sylvester-walsh-hadamard");
        set("transform", transform);
        set("axis", MetaValue::text("input-last-dimension"));
        set("sign_mode", MetaValue::text("explicit"));
        set("sign_widths", MetaValue::Array(MetaArray::I32(widths)));
        set("sign_values", MetaValue::Array(MetaArray::I32(signs)));
        let names = |names: &[String]| {
            let names: Strings = names.iter().map(String::as_str).collect();
            MetaValue::Array(MetaArray::String(names))
        };
        set("weight_names", names(&folded));
        set(
            "inverse_weight_names",
            names(&["token_embd.weight".to_owned()]),
        );
        if tied {
            set("tied_output", MetaValue::Bool(true));
        }
    })
}

/// What a program recorded: the logits of one prompt.
fn record(network: &DenseNetwork, directory: &Path) {
    let logits = network.logits(&TOKENS);
    let shape = vec![logits.len(), logits[0].len()];
    let bytes: Vec<u8> = logits
        .concat()
        .into_iter()
        .flat_map(|logit| (logit as f32).to_le_bytes())
        .collect();
    let view = TensorView::new(Dtype::F32, shape, &bytes).unwrap();
    std::fs::create_dir_all(directory).unwrap();
    let file = directory.join("logits_f32.safetensors");
    safetensors::serialize_to_file([("one.logits", view)], None, &file).unwrap();
    let prompts = json!({"one": {"text": null, "ids": TOKENS}});
    std::fs::write(directory.join("prompts.json"), prompts.to_string()).unwrap();
}

#[test]
fn programs_that_rotate_wrongly_are_named_by_their_logits() {
    let scratch = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for (name, file) in [("bonsai-8b", "pq2_0.gguf"), ("bonsai-1.7b", "q2_0.gguf")] {
        let source = fixture(name).join(file);
        let path = rotated(&source, scratch.path().join(format!("{name}.gguf")));
        let checkpoint = open(&path);
        let tied = checkpoint.config.tie_word_embeddings;
        assert_eq!(tied, name == "bonsai-1.7b");
        let is_table = |slot: Slot| slot == Slot::TokenEmbeddings;
        type Program<'a> = &'a dyn Fn(Slot) -> Turning;
        let programs: [(&str, &str, Program<'_>); 7] = [
            ("nothing rotated", "rotation-missing", &|_| Turning::Nothing),
            ("no signs", "rotation-signs", &|_| Turning::Unsigned),
            ("signs behind the transform", "rotation-order", &|_| {
                Turning::OtherSide
            }),
            (
                "signs of inputs behind",
                "rotation-order",
                &|slot| match is_table(slot) {
                    true => Turning::Rule,
                    false => Turning::OtherSide,
                },
            ),
            ("blocks of 64", "rotation-block", &|_| Turning::Block(64)),
            (
                "rows as stored",
                "rotation-embeddings",
                &|slot| match is_table(slot) {
                    true => Turning::Nothing,
                    false => Turning::Rule,
                },
            ),
            ("head not rotated", "rotation-head", &|slot| match slot {
                Slot::OutputHead => Turning::Nothing,
                _ => Turning::Rule,
            }),
        ];
        for (what, expected, turning) in programs {
            let golden = scratch.path().join("golden");
            record(&DenseNetwork::of_program(&checkpoint, turning), &golden);
            let words = ["--logits", "--golden", golden.to_str().unwrap()];
            let (status, report) = verify(&path, &words);
            assert_eq!(status, ExitStatus::Different, "{name}, {what}: {report:#}");
            assert_eq!(names(&report), [expected], "{name}, {what}: {report:#}");
            let equally = report["faults"][0]["equally"].as_array();
            assert_eq!(equally.map_or(0, Vec::len), 0, "{report:#}");
            rows.push(format!("| {name} | {what} | {expected} |"));
        }
        // the right program has no fault
        let golden = scratch.path().join("golden");
        record(&DenseNetwork::of(&checkpoint), &golden);
        let words = ["--logits", "--golden", golden.to_str().unwrap()];
        let (_, report) = verify(&path, &words);
        assert_eq!(names(&report), Vec::<String>::new(), "{report:#}");
    }
    println!(
        "| model | program | named |\n|---|---|---|\n{}",
        rows.join("\n")
    );
}

/// Several keys that differ are each named, and a matrix that is left out is, too.
#[test]
fn what_two_files_declare_differently_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b/pq2_0.gguf");
    let right = rotated(&source, scratch.path().join("right.gguf"));
    let folded = Slot::Layer(0, LayerSlot::DownProj);
    let left_out = (open(&right).family.gguf_tensor_name)(folded);
    let wrong = gguf::rewritten(&right, scratch.path().join("wrong.gguf"), |metadata| {
        metadata.set(key("block_size"), MetaValue::U32(32));
        let Some(MetaValue::Array(MetaArray::I32(signs))) = metadata.get(&key("sign_values"))
        else {
            panic!("no signs");
        };
        let turned = signs.iter().map(|sign| -sign).collect();
        metadata.set(key("sign_values"), MetaValue::Array(MetaArray::I32(turned)));
        let Some(MetaValue::Array(MetaArray::String(names))) = metadata.get(&key("weight_names"))
        else {
            panic!("no names");
        };
        let kept = names.iter().filter(|name| *name != left_out.as_bytes());
        let kept: Vec<String> = kept
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect();
        let kept: Strings = kept.iter().map(String::as_str).collect();
        metadata.set(
            key("weight_names"),
            MetaValue::Array(MetaArray::String(kept)),
        );
    });
    let (status, report) = verify(&wrong, &["--against", right.to_str().unwrap()]);
    assert_eq!(status, ExitStatus::Different, "{report:#}");
    let mut found = names(&report);
    found.sort();
    assert_eq!(
        found,
        ["rotation-block", "rotation-missing", "rotation-signs"],
        "{report:#}"
    );
    let missing = faults(&report);
    let missing = missing.iter().find(|f| f.0 == "rotation-missing").unwrap();
    assert!(missing.1.contains("down_proj"), "{missing:?}");
}
