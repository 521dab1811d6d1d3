//! The test of the test: seeded faults are found, and named where they begin.
//!
//! Invariant: the faults of other programs are made by [`OtherRuntime`], which shares no arithmetic with what finds
//! them; those of files are made by editing bytes, and found by what transformers recorded of the whole file, and
//! by comparing with the source. `--nocapture` prints the table.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, LayerSlot, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{Fixture, fixture, read_json, repository, skips_foreign_fixtures};
use bitnet_tests::other_runtime::{OtherRuntime, Wrong};
use bitnet_tests::program::run;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const PACKED: &str = "bitnet-2b4t-packed";
const MASTER: &str = "bitnet-2b4t-bf16";

fn source(name: &str) -> Fixture {
    fixture(name).unwrap_or_else(|| panic!("no fixture {name}"))
}

/// Runs the verifier on an artifact.
fn verify(artifact: &Path, words: &[&dyn AsRef<std::ffi::OsStr>]) -> (ExitStatus, Value) {
    let mut all: Vec<OsString> = vec!["--json".into(), "-j2".into(), artifact.into()];
    all.extend(words.iter().map(|word| word.as_ref().to_owned()));
    let ran = run(bitnet_verify::run, all);
    (ran.status, ran.json())
}

/// What was found: name, layer, tensor and check of each fault.
type Named = (String, Option<u64>, String, String);

fn named(report: &Value) -> Vec<Named> {
    let all = report["faults"].as_array().into_iter().flatten();
    let text = |fault: &Value, key: &str| fault[key].as_str().unwrap_or_default().to_owned();
    let of = |f: &Value| {
        (
            text(f, "name"),
            f["layer"].as_u64(),
            text(f, "tensor"),
            text(f, "check"),
        )
    };
    all.map(of).collect()
}

/// One row of the table.
struct Case {
    fault: &'static str,
    name: &'static str,
    layer: Option<u64>,
    tensor: &'static str,
}

impl Case {
    const fn new(
        fault: &'static str,
        name: &'static str,
        layer: Option<u64>,
        tensor: &'static str,
    ) -> Self {
        Self {
            fault,
            name,
            layer,
            tensor,
        }
    }

    /// Asserts that the one fault found is this one; the row that is printed.
    fn check(&self, how: &str, (status, report): (ExitStatus, Value)) -> String {
        let fault = self.fault;
        assert_eq!(
            status,
            ExitStatus::Different,
            "{fault} by {how}: {report:#}"
        );
        let found = named(&report);
        let [(name, layer, tensor, check)] = &found[..] else {
            panic!("{fault} by {how}: {found:?} {report:#}");
        };
        assert_eq!(
            (name.as_str(), *layer, tensor.as_str()),
            (self.name, self.layer, self.tensor),
            "{fault} by {how}: {report:#}"
        );
        let layer = layer.map_or("-".to_owned(), |layer| layer.to_string());
        let what = report["faults"][0]["what"].as_str().unwrap_or_default();
        format!("| {fault} | {how}, `{check}` | `{name}` | layer {layer}, `{tensor}` | {what} |")
    }
}

fn print(rows: &[String]) {
    println!("| fault | found by | named | where | what |\n|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const GATE: &str = "model.layers.0.mlp.gate_proj.weight";
const INPUT: &str = "model.layers.0.input_layernorm.weight";
const TABLE: &str = "model.embed_tokens.weight";

/// Prompts of a fixture's golden files, the traced one first.
fn prompts(fixture: &Fixture) -> Vec<(String, Vec<u32>)> {
    let golden = fixture.golden();
    let mut all = Vec::new();
    for name in ["short", "code", "zero_row"] {
        all.push((
            name.to_owned(),
            golden.ids(name).expect("a prompt").to_vec(),
        ));
    }
    all
}

fn record(checkpoint: &Path, wrong: Wrong, prompts: &[(String, Vec<u32>)], dir: &Path) -> PathBuf {
    let checkpoint = Checkpoint::open(checkpoint, &OpenOptions::default()).expect("a checkpoint");
    let golden = dir.join(format!("{wrong:?}"));
    let prompts: Vec<(&str, &[u32])> = prompts
        .iter()
        .map(|(n, ids)| (n.as_str(), &ids[..]))
        .collect();
    OtherRuntime::new(&checkpoint, wrong).record(&prompts, &golden);
    golden
}

#[test]
fn faults_of_another_runtime_are_named_from_its_record() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = source(PACKED);
    let prompts = prompts(&source);
    let none = record(&source.checkpoint, Wrong::Nothing, &prompts, dir.path());
    let (status, report) = verify(&source.checkpoint, &[&"--golden", &none]);
    assert_eq!(
        (status, named(&report)),
        (ExitStatus::Done, vec![]),
        "{report:#}"
    );

    use LayerSlot::{AttnSubNorm, DownProj, FfnSubNorm, OProj};
    let at = |wrong, fault, name, tensor| (wrong, Case::new(fault, name, Some(0), tensor));
    let mut rows = Vec::new();
    for (wrong, case) in [
        at(
            Wrong::Silu,
            "SiLU in place of ReLU²",
            "activation-function",
            GATE,
        ),
        at(
            Wrong::InverseScale(0, OProj),
            "a scale used as its inverse",
            "inverse-scale",
            "model.layers.0.self_attn.o_proj.weight",
        ),
        at(
            Wrong::NoNorm(AttnSubNorm),
            "missing attn_sub_norm",
            "missing-sub-norm",
            "model.layers.0.self_attn.attn_sub_norm.weight",
        ),
        at(
            Wrong::NoNorm(FfnSubNorm),
            "missing ffn_sub_norm",
            "missing-sub-norm",
            "model.layers.0.mlp.ffn_sub_norm.weight",
        ),
        at(Wrong::Theta(10_000.0), "wrong rope theta", "rope-theta", Q),
        at(Wrong::PairedRows, "permuted q/k rows", "permuted-rows", Q),
        (
            Wrong::TokenLate,
            Case::new("off-by-one token", "token-offset", None, TABLE),
        ),
        (
            Wrong::LogitsLate,
            Case::new(
                "logits one position late",
                "token-offset",
                None,
                "lm_head.weight",
            ),
        ),
        (
            Wrong::OtherHead,
            Case::new("tied head replaced", "output-head", None, "lm_head.weight"),
        ),
        at(
            Wrong::SwappedBlocks(0, DownProj),
            "one swapped block of trits",
            "swapped-trits",
            "model.layers.0.mlp.down_proj.weight",
        ),
        at(Wrong::Epsilon(1e-6), "eps 1e-6 for 1e-5", "norm-eps", INPUT),
    ] {
        let golden = record(&source.checkpoint, wrong, &prompts, dir.path());
        let found = verify(&source.checkpoint, &[&"--golden", &golden]);
        rows.push(case.check("--golden of a runtime", found));
    }

    // scales that f16 does not hold
    let master = self::source(MASTER);
    let golden = record(&master.checkpoint, Wrong::F16Scales, &prompts, dir.path());
    let found = verify(&master.checkpoint, &[&"--golden", &golden]);
    let case = Case::new("f16 scale rounding", "f16-scale", Some(0), Q);
    rows.push(case.check("--golden of a runtime", found));

    // embeddings with which activations fall on halves
    let halves = edited(&master, &dir.path().join("halves"), |tensors| {
        let (_, shape, embeddings) = tensors.get_mut(TABLE).expect("embeddings");
        for (n, value) in embeddings.chunks_exact_mut(2).enumerate() {
            let (row, col) = (n / shape[1], n % shape[1]);
            let half = match col {
                0 => 127.0,
                _ => ((row * 31 + col * 17) % 120) as f32 - 60.5,
            };
            value.copy_from_slice(&bf16(half));
        }
        let (_, _, gain) = tensors.get_mut(INPUT).expect("a norm");
        gain.chunks_exact_mut(2)
            .for_each(|g| g.copy_from_slice(&bf16(1.0)));
    });
    let none = record(&halves, Wrong::Nothing, &prompts, &dir.path().join("even"));
    let (status, report) = verify(&halves, &[&"--golden", &none]);
    assert_eq!(
        (status, named(&report)),
        (ExitStatus::Done, vec![]),
        "{report:#}"
    );
    let golden = record(&halves, Wrong::HalfUp, &prompts, dir.path());
    let found = verify(&halves, &[&"--golden", &golden]);
    let case = Case::new(
        "int8 activations rounded half-up",
        "activation-rounding",
        Some(0),
        Q,
    );
    rows.push(case.check("--golden of a runtime", found));
    print(&rows);
}

/// Networks without sub-norms, wired otherwise; faults in a layer of which only input and output are recorded.
#[test]
fn faults_are_named_in_other_families_and_behind_layer_0() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    let at = |wrong, fault, name, tensor| (wrong, Case::new(fault, name, Some(0), tensor));
    let head = || Case::new("head replaced", "output-head", None, "lm_head.weight");
    let second = "model.layers.1.mlp.down_proj.weight";
    for family in ["llama3-8b-1.58", "falcon3-1.58"] {
        let source = source(family);
        let prompts = prompts(&source);
        let epsilon = match family {
            "llama3-8b-1.58" => 1e-6,
            _ => 1e-5,
        };
        for (wrong, case) in [
            at(Wrong::Theta(10_000.0), "wrong rope theta", "rope-theta", Q),
            at(Wrong::PairedRows, "permuted q/k rows", "permuted-rows", Q),
            at(Wrong::Epsilon(epsilon), "another eps", "norm-eps", INPUT),
            at(Wrong::F16Scales, "f16 scale rounding", "f16-scale", Q),
            (Wrong::OtherHead, head()),
            (
                Wrong::InverseScale(1, LayerSlot::DownProj),
                Case::new(
                    "a scale as its inverse in layer 1",
                    "inverse-scale",
                    Some(1),
                    second,
                ),
            ),
        ] {
            let golden = record(
                &source.checkpoint,
                wrong,
                &prompts,
                &dir.path().join(family),
            );
            let found = verify(&source.checkpoint, &[&"--golden", &golden]);
            rows.push(case.check(family, found));
        }
    }
    print(&rows);
}

#[test]
fn faults_of_another_runtime_are_named_from_logits_alone() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = source(PACKED);
    let prompts = prompts(&source);
    let mut rows = Vec::new();
    for (wrong, name) in [
        (Wrong::Silu, "activation-function"),
        (Wrong::NoNorm(LayerSlot::FfnSubNorm), "missing-sub-norm"),
        (Wrong::Theta(10_000.0), "rope-theta"),
        (Wrong::LogitsLate, "token-offset"),
        (Wrong::OtherHead, "unexplained"),
    ] {
        let golden = record(&source.checkpoint, wrong, &prompts, dir.path());
        fs::remove_file(golden.join("trace_short_f32.safetensors")).unwrap();
        let (status, report) = verify(&source.checkpoint, &[&"--golden", &golden]);
        assert_eq!(status, ExitStatus::Different, "{wrong:?}: {report:#}");
        let found = named(&report);
        assert_eq!(found.len(), 1, "{wrong:?}: {report:#}");
        assert_eq!(found[0].0, name, "{wrong:?}: {report:#}");
        let what = report["faults"][0]["what"].as_str().unwrap_or_default();
        let logits = golden.join("logits_f32.safetensors");
        let (status, from) = verify(&source.checkpoint, &[&"--logits-from", &logits]);
        assert_eq!(status, ExitStatus::Different, "{wrong:?}: {from:#}");
        assert_eq!(named(&from)[0].0, name, "{wrong:?}: {from:#}");
        rows.push(format!(
            "| {wrong:?} | logits alone | `{name}` | `{}` | {what} |",
            found[0].2
        ));
    }
    print(&rows);
}

fn bf16(x: f32) -> [u8; 2] {
    bitnet_ternary::f32_to_bf16(x).to_le_bytes()
}

/// Type, shape and bytes by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a directory.
fn copied(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
    to.to_owned()
}

/// A copy of a fixture's checkpoint with other tensors.
fn edited(source: &Fixture, to: &Path, edit: impl FnOnce(&mut Tensors)) -> PathBuf {
    let dir = copied(&source.checkpoint, to);
    let file = dir.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let of = |(name, t): (String, TensorView<'_>)| {
        (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))
    };
    let mut tensors: Tensors = read.tensors().into_iter().map(of).collect();
    edit(&mut tensors);
    let view = |(name, (dtype, shape, bytes)): (&'_ String, &'_ (Dtype, Vec<usize>, Vec<u8>))| {
        let bytes: &'static [u8] = Box::leak(bytes.clone().into_boxed_slice());
        (
            name.clone(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    };
    safetensors::serialize_to_file(tensors.iter().map(view), None, &file).unwrap();
    dir
}

/// A copy of a fixture's checkpoint with one text replaced.
fn respelt(source: &Fixture, to: &Path, file: &str, from: &str, into: &str) -> PathBuf {
    let dir = copied(&source.checkpoint, to);
    let text = fs::read_to_string(dir.join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(dir.join(file), text.replacen(from, into, 1)).unwrap();
    dir
}

/// A conversion of a fixture.
fn converted(source: &Fixture, target: &str, out: &Path) -> PathBuf {
    let words: [&std::ffi::OsStr; 6] = [
        source.checkpoint.as_ref(),
        "-o".as_ref(),
        out.as_ref(),
        "--to".as_ref(),
        target.as_ref(),
        "--allow-scale-rounding".as_ref(),
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    out.to_owned()
}

#[test]
fn faults_of_a_file_are_named() {
    if skips_foreign_fixtures() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let (packed, master) = (source(PACKED), source(MASTER));
    let mut rows = Vec::new();
    let mut certificate = None;
    for whole in [&packed, &master] {
        let (status, report) = verify(&whole.checkpoint, &[&"--golden", &whole.golden]);
        assert_eq!(
            (status, named(&report)),
            (ExitStatus::Done, vec![]),
            "{report:#}"
        );
        let good = converted(whole, "gguf-i2_s", &dir(&format!("{}.gguf", whole.name)));
        let (status, report) = verify(
            &good,
            &[&"--golden", &whole.golden, &"--against", &whole.checkpoint],
        );
        assert_eq!(
            (status, named(&report)),
            (ExitStatus::Done, vec![]),
            "{report:#}"
        );
        certificate = Some(PathBuf::from(format!(
            "{}.certificate.json",
            good.display()
        )));
    }
    let certificate = certificate.unwrap(); // of the master weights

    // (how it is called, the damaged file, what it was made from, what is expected)
    let config =
        |name: &str, from: &str, to: &str| respelt(&packed, &dir(name), "config.json", from, to);
    let silu = config("silu", "\"relu2\"", "\"silu\"");
    let inverse = config("inverse", "\"autobitlinear\"", "\"bitlinear\"");
    let theta = config("theta", "500000.0", "10000.0");
    let epsilon = config("eps", "1e-05", "1e-06");
    let falcon = source("falcon-e");
    let pre = copied(&falcon.checkpoint, &dir("pre"));
    let file = pre.join("tokenizer.json");
    let mut tokenizer = read_json(&file);
    let byte_level = &tokenizer["pre_tokenizer"]["pretokenizers"][1];
    let mut byte_level = byte_level.clone();
    byte_level["use_regex"] = true.into();
    let digits = json!({"type": "Digits", "individual_digits": true});
    tokenizer["pre_tokenizer"]["pretokenizers"] = json!([digits, byte_level]);
    fs::write(&file, tokenizer.to_string()).unwrap();
    let cut = Fixture {
        checkpoint: pre.clone(),
        ..falcon.clone()
    };
    let gguf = converted(&cut, "gguf-i2_s", &dir("pre.gguf"));
    let rows_of = |bytes: &[u8], rows: usize, source: &dyn Fn(usize) -> usize| -> Vec<u8> {
        let row = bytes.len() / rows;
        (0..rows)
            .flat_map(|r| bytes[source(r) * row..(source(r) + 1) * row].to_vec())
            .collect()
    };
    let head_dim = 64;
    let paired = edited(&master, &dir("paired"), |tensors| {
        for (name, (_, shape, bytes)) in tensors.iter_mut() {
            if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
                *bytes = rows_of(bytes, shape[0], &|row| {
                    bitnet_checkpoint::hf_row(row, head_dim)
                });
            }
        }
    });
    let offset = edited(&packed, &dir("offset"), |tensors| {
        let (_, shape, bytes) = tensors.get_mut(TABLE).unwrap();
        let rows = shape[0];
        *bytes = rows_of(bytes, rows, &|row| (row + 1).min(rows - 1));
    });
    let head = config(
        "head",
        "\"tie_word_embeddings\": true",
        "\"tie_word_embeddings\": false",
    );
    let head = edited(
        &Fixture {
            checkpoint: head,
            ..packed.clone()
        },
        &dir("head-added"),
        |tensors| {
            let (dtype, shape, mut bytes) = tensors[TABLE].clone();
            bytes.reverse();
            bytes.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
            tensors.insert("lm_head.weight".to_owned(), (dtype, shape, bytes));
        },
    );
    let rounded = converted(&master, "gguf-tq2_0", &dir("rounded.gguf"));
    let swapped = converted(&master, "gguf-i2_s", &dir("swapped.gguf"));
    swap_blocks(&swapped, "blk.1.ffn_gate.weight", 3, 40);
    let near = converted(&master, "gguf-i2_s", &dir("near.gguf"));
    swap_blocks(&near, "blk.0.ffn_gate.weight", 8, 9);

    let at = |fault, name, layer, tensor| Case::new(fault, name, layer, tensor);
    for (artifact, source, case) in [
        (
            &silu,
            &packed,
            at(
                "SiLU in place of ReLU²",
                "activation-function",
                Some(0),
                GATE,
            ),
        ),
        (
            &inverse,
            &packed,
            at("a scale used as its inverse", "inverse-scale", Some(0), Q),
        ),
        (
            &theta,
            &packed,
            at("wrong rope theta", "rope-theta", Some(0), Q),
        ),
        (
            &epsilon,
            &packed,
            at("eps 1e-6 for 1e-5", "norm-eps", Some(0), INPUT),
        ),
        (
            &paired,
            &master,
            at("permuted q/k rows", "permuted-rows", Some(0), Q),
        ),
        (
            &head,
            &packed,
            at("tied head replaced", "output-head", None, "lm_head.weight"),
        ),
        (
            &rounded,
            &master,
            at("f16 scale rounding", "f16-scale", Some(0), ""),
        ),
        (
            &swapped,
            &master,
            at(
                "one swapped block of trits, layer 1",
                "",
                Some(1),
                "model.layers.1.mlp.gate_proj.weight",
            ),
        ),
        (
            &near,
            &master,
            at("one swapped block of trits", "swapped-trits", Some(0), GATE),
        ),
        (
            &offset,
            &packed,
            at("off-by-one embeddings", "", None, TABLE),
        ),
        (
            &pre,
            &falcon,
            at("wrong pre-tokenizer", "pre-tokenizer", None, ""),
        ),
        (
            &gguf,
            &falcon,
            at(
                "wrong pre-tokenizer, GGUF",
                "pre-tokenizer",
                None,
                "tokenizer.ggml.pre",
            ),
        ),
    ] {
        for how in ["--golden", "--against", "--certificate"] {
            let by: &Path = match how {
                "--golden" => &source.golden,
                "--against" => &source.checkpoint,
                _ if source.name == MASTER => &certificate,
                _ => continue,
            };
            let found = verify(artifact, &[&how, &by]);
            let mut case = Case { ..case };
            // what each way can tell
            let name = match (case.fault, how) {
                ("one swapped block of trits, layer 1", "--golden") => Some("moved-trits"),
                (
                    "one swapped block of trits, layer 1" | "one swapped block of trits",
                    "--certificate",
                ) => Some("changed-trits"),
                ("one swapped block of trits, layer 1", _) => Some("swapped-trits"),
                ("off-by-one embeddings", "--golden") => Some("token-offset"),
                ("off-by-one embeddings", _) => Some("changed-values"),
                _ => None,
            };
            case.name = name.unwrap_or(case.name);
            if case.tensor.is_empty() {
                let faults = named(&found.1);
                case.tensor = faults.first().map_or("", |f| f.2.clone().leak());
            }
            rows.push(case.check(how, found));
        }
    }
    print(&rows);
}

/// A BitNet of 1bitLLM that a converter took for a Llama: its sub-norms are gone.
#[test]
fn a_network_without_its_sub_norms_is_named() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = source("bitnet-b1.58-1bitllm");
    let artifact = edited(&source, &dir.path().join("llama"), |tensors| {
        tensors
            .retain(|name, _| !name.contains("inner_attn_ln") && !name.contains("ffn_layernorm"));
    });
    let file = artifact.join("config.json");
    let mut config = read_json(&file);
    let keys = config.as_object_mut().expect("an object");
    keys.retain(|key, _| key != "weight_bits" && key != "input_bits");
    config["architectures"] = json!(["LlamaForCausalLM"]);
    fs::write(&file, config.to_string()).unwrap();
    let norm = "model.layers.0.self_attn.attn_sub_norm.weight";
    let case = Case::new("missing sub-norms", "missing-sub-norm", Some(0), norm);
    let with = |how: &str, by: &Path| {
        let trained = "--ternary-trained";
        case.check(how, verify(&artifact, &[&how, &by, &trained]))
    };
    let rows = [with("--golden", &source.golden)];
    print(&rows);
}

/// Exchanges two blocks of 32 bytes, 128 trits each, of an I2_S tensor.
fn swap_blocks(path: &Path, tensor: &str, one: usize, other: usize) {
    let file = bitnet_formats::open(path, &bitnet_formats::Limits::default()).unwrap();
    let info = file
        .tensors()
        .iter()
        .find(|t| t.name == tensor)
        .expect("the tensor");
    let start = info.offset as usize;
    drop(file);
    let mut bytes = fs::read(path).unwrap();
    for i in 0..32 {
        bytes.swap(start + one * 32 + i, start + other * 32 + i);
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_name_is_on_the_page() {
    let page = fs::read_to_string(repository().join("formats/report.md")).unwrap();
    for row in &bitnet_verify::FAULTS {
        let line = format!("| `{}` | {} |", row.name, row.sentence);
        assert!(page.contains(&line), "formats/report.md lacks {line}");
    }
}
