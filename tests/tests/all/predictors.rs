//! The block of a hybrid that predicts a further token: carried from checkpoints into GGUF and back, named in reports,
//! never computed.
//!
//! Invariant: names, bytes and the 1 of the norms are those that llama.cpp's converter gives these tensors.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::{Encoding, Limits, PlainType, TensorFile};
use bitnet_tests::fixtures::{read_json, repository};
use bitnet_tests::program::run;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Names in a checkpoint and in GGUF (the network has four layers), and whether it is a norm.
const NAMES: [(&str, &str, bool); 15] = [
    ("mtp.fc.weight", "blk.4.nextn.eh_proj.weight", false),
    (
        "mtp.norm.weight",
        "blk.4.nextn.shared_head_norm.weight",
        true,
    ),
    (
        "mtp.pre_fc_norm_embedding.weight",
        "blk.4.nextn.enorm.weight",
        true,
    ),
    (
        "mtp.pre_fc_norm_hidden.weight",
        "blk.4.nextn.hnorm.weight",
        true,
    ),
    (
        "mtp.layers.0.input_layernorm.weight",
        "blk.4.attn_norm.weight",
        true,
    ),
    (
        "mtp.layers.0.self_attn.q_proj.weight",
        "blk.4.attn_q.weight",
        false,
    ),
    (
        "mtp.layers.0.self_attn.k_proj.weight",
        "blk.4.attn_k.weight",
        false,
    ),
    (
        "mtp.layers.0.self_attn.v_proj.weight",
        "blk.4.attn_v.weight",
        false,
    ),
    (
        "mtp.layers.0.self_attn.o_proj.weight",
        "blk.4.attn_output.weight",
        false,
    ),
    (
        "mtp.layers.0.self_attn.q_norm.weight",
        "blk.4.attn_q_norm.weight",
        true,
    ),
    (
        "mtp.layers.0.self_attn.k_norm.weight",
        "blk.4.attn_k_norm.weight",
        true,
    ),
    (
        "mtp.layers.0.post_attention_layernorm.weight",
        "blk.4.post_attention_norm.weight",
        true,
    ),
    (
        "mtp.layers.0.mlp.gate_proj.weight",
        "blk.4.ffn_gate.weight",
        false,
    ),
    (
        "mtp.layers.0.mlp.up_proj.weight",
        "blk.4.ffn_up.weight",
        false,
    ),
    (
        "mtp.layers.0.mlp.down_proj.weight",
        "blk.4.ffn_down.weight",
        false,
    ),
];
const VISION: &str = "model.visual.patch_embed.proj.weight";

fn source() -> PathBuf {
    repository().join("tests/fixtures/qwen35/checkpoint")
}

/// The fixture with these tensors added, and files beside it.
fn with(dir: &Path, more: &[(&str, Vec<usize>, Vec<u8>)]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ] {
        fs::copy(source().join(name), dir.join(name)).unwrap();
    }
    let bytes = fs::read(source().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let own = file.tensors().into_iter();
    let more = more.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
        ((*name).to_owned(), view)
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(own.chain(more), Some(metadata), &path).unwrap();
    dir.to_owned()
}

/// Numbers of a bf16 tensor: whole 256ths, which 1 can be added to and taken from.
fn numbers(seed: usize, shape: &[usize]) -> Vec<u8> {
    let count: usize = shape.iter().product();
    let number = |at: usize| (((at * 37 + seed * 101) % 255) as f32 - 127.0) / 256.0;
    let bits = (0..count).map(|at| bitnet_ternary::f32_to_bf16(number(at)));
    bits.flat_map(u16::to_le_bytes).collect()
}

fn shape(name: &str, is_norm: bool) -> Vec<usize> {
    match (is_norm, name.contains("fc.weight")) {
        (true, _) => vec![6],
        (false, true) => vec![3, 12],
        (false, false) => vec![5, 6],
    }
}

fn converted(source: &Path, target: &str, output: &Path) -> Value {
    let words = [source.to_str().unwrap(), "-o", output.to_str().unwrap()];
    let words = words
        .into_iter()
        .chain(["--to", target, "--json", "--force"]);
    let ran = run(bitnet_convert::run, words);
    assert_eq!(
        ran.status,
        ExitStatus::Done,
        "{target}: {}{}",
        ran.stdout,
        ran.stderr
    );
    let report = ran.json();
    assert_eq!(report["lossless"], true, "{report:#}");
    report
}

fn same(artifact: &Path, against: &Path) {
    let words = [
        artifact.to_str().unwrap(),
        "--against",
        against.to_str().unwrap(),
        "--json",
    ];
    let ran = run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

/// Whether dense tensors, those that are carried included, are the same.
fn dense_same(artifact: &Path, against: &Path) {
    let words = [
        artifact.to_str().unwrap(),
        "--against",
        against.to_str().unwrap(),
        "--json",
    ];
    let report = run(bitnet_verify::run, words).json();
    let mut checks = report["checks"].as_array().unwrap().iter();
    let dense = checks.find(|check| check["name"] == "dense").unwrap();
    assert_eq!(dense["status"], "same", "{dense:#}");
}

fn file(path: &Path) -> TensorFile {
    bitnet_formats::open(path, &Limits::default()).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let all = bytes.as_chunks::<4>().0.iter();
    all.map(|b| f32::from_le_bytes(*b)).collect()
}

fn widened(bytes: &[u8]) -> Vec<f32> {
    let all = bytes.as_chunks::<2>().0.iter();
    all.map(|b| bitnet_ternary::bf16_to_f32(u16::from_le_bytes(*b)))
        .collect()
}

fn listed(report: &Value, list: &str) -> Vec<String> {
    let list = report["not_computed"][list].as_array().unwrap().iter();
    let mut list: Vec<_> = list.map(|name| name.as_str().unwrap().to_owned()).collect();
    list.sort();
    list
}

fn sorted(names: impl Iterator<Item = &'static str>) -> Vec<String> {
    let mut names: Vec<_> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn the_block_goes_into_gguf_and_back() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let mut more: Vec<_> = NAMES
        .iter()
        .enumerate()
        .map(|(seed, (name, _, is_norm))| {
            let shape = shape(name, *is_norm);
            let bytes = numbers(seed, &shape);
            (*name, shape, bytes)
        })
        .collect();
    more.push((VISION, vec![2, 3], numbers(99, &[2, 3])));
    let dir = with(&at("checkpoint"), &more);
    let gguf = at("model.gguf");
    let report = converted(&dir, "gguf-q2_0", &gguf);
    assert_eq!(
        listed(&report, "carried"),
        sorted(NAMES.iter().map(|n| n.0))
    );
    assert_eq!(listed(&report, "left_out"), [VISION]);
    let found = file(&gguf);
    for ((name, shape, bytes), (_, other, is_norm)) in more.iter().zip(NAMES) {
        let info = found.tensor(other).unwrap_or_else(|| panic!("no {other}"));
        assert_eq!(&info.shape, shape, "{name}");
        let stored = found.read(info).unwrap();
        match is_norm {
            true => {
                assert_eq!(info.encoding, Encoding::Plain(PlainType::F32), "{name}");
                let gains: Vec<f32> = widened(bytes).iter().map(|w| w + 1.0).collect();
                assert_eq!(floats(&stored), gains, "{name}");
            }
            false => {
                assert_eq!(info.encoding, Encoding::Plain(PlainType::Bf16), "{name}");
                assert_eq!(stored[..], bytes[..], "{name}");
            }
        }
    }
    let number = |key: &str| found.metadata.get(key).and_then(|v| v.as_u64());
    assert_eq!(number("qwen35.nextn_predict_layers"), Some(1));
    assert_eq!(number("qwen35.block_count"), Some(5));
    let checkpoint = Checkpoint::open(&gguf, &OpenOptions::default()).unwrap();
    assert_eq!(
        (
            checkpoint.carried.len(),
            checkpoint.config.num_hidden_layers
        ),
        (15, 4)
    );
    same(&gguf, &dir);
    // and back
    let back = at("back");
    let report = converted(&gguf, "packed-2bit", &back);
    assert_eq!(
        listed(&report, "carried"),
        sorted(NAMES.iter().map(|n| n.1))
    );
    assert_eq!(listed(&report, "left_out"), Vec::<String>::new());
    let found = file(&back.join("model.safetensors"));
    for ((name, shape, bytes), (_, _, is_norm)) in more.iter().zip(NAMES) {
        let info = found.tensor(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(&info.shape, shape, "{name}");
        let stored = found.read(info).unwrap();
        match is_norm {
            true => assert_eq!(floats(&stored), widened(bytes), "{name}"),
            false => assert_eq!(stored[..], bytes[..], "{name}"),
        }
    }
    let config = read_json(&back.join("config.json"));
    assert_eq!(config["text_config"]["mtp_num_hidden_layers"], json!(1));
    same(&back, &gguf);
    dense_same(&back, &dir);
    // once more, the same file
    let again = at("again.gguf");
    converted(&back, "gguf-q2_0", &again);
    dense_same(&again, &gguf);
    // a gain that differs is found
    let info = found.tensor("mtp.norm.weight").unwrap();
    let mut damaged = fs::read(back.join("model.safetensors")).unwrap();
    damaged[info.offset as usize + 2] ^= 1;
    drop(found);
    fs::write(back.join("model.safetensors"), damaged).unwrap();
    let words = [
        back.to_str().unwrap(),
        "--against",
        gguf.to_str().unwrap(),
        "--json",
    ];
    let ran = run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Different, "{}", ran.stdout);
    assert!(ran.stdout.contains("mtp.norm.weight"), "{}", ran.stdout);
}

#[test]
fn what_the_other_container_has_no_place_for_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    // two blocks share what a checkpoint has once
    let names = [
        "mtp.fc.weight",
        "mtp.layers.0.mlp.up_proj.weight",
        "mtp.layers.1.mlp.up_proj.weight",
    ];
    let more: Vec<_> = names
        .iter()
        .map(|name| (*name, vec![2, 3], numbers(3, &[2, 3])))
        .collect();
    let dir = with(&at("two"), &more);
    let report = converted(&dir, "gguf-q2_0", &at("two.gguf"));
    assert_eq!(listed(&report, "left_out"), sorted(names.into_iter()));
    let metadata = file(&at("two.gguf")).metadata;
    assert!(metadata.get("qwen35.nextn_predict_layers").is_none());
    // a name that nobody gives
    let name = "mtp.layers.0.self_attn.sinks";
    let dir = with(&at("other"), &[(name, vec![2], numbers(4, &[2]))]);
    let report = converted(&dir, "gguf-q2_0", &at("other.gguf"));
    assert_eq!(listed(&report, "left_out"), [name]);
}
