//! Healthy files of networks that these programs do not compute: named for what they are, never called damaged. Damaged
//! ones of the same types stay damaged.
//!
//! Invariant: sizes of types are written out here once more, from ggml's own tables, and not asked of the reader.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{Ran, run};
use serde_json::Value;
use std::path::Path;

/// Id, name, elements and bytes of a block.
const TYPES: [(u32, &str, u64, u64); 24] = [
    (2, "q4_0", 32, 18),
    (3, "q4_1", 32, 20),
    (6, "q5_0", 32, 22),
    (7, "q5_1", 32, 24),
    (8, "q8_0", 32, 34),
    (10, "q2_k", 256, 84),
    (11, "q3_k", 256, 110),
    (12, "q4_k", 256, 144),
    (13, "q5_k", 256, 176),
    (14, "q6_k", 256, 210),
    (16, "iq2_xxs", 256, 66),
    (17, "iq2_xs", 256, 74),
    (18, "iq3_xxs", 256, 98),
    (19, "iq1_s", 256, 50),
    (20, "iq4_nl", 32, 18),
    (21, "iq3_s", 256, 110),
    (22, "iq2_s", 256, 82),
    (23, "iq4_xs", 256, 136),
    (29, "iq1_m", 256, 56),
    (39, "mxfp4", 32, 17),
    (40, "nvfp4", 64, 36),
    (133, "q6_0", 32, 26),
    (139, "iq4_k", 256, 144),
    (141, "iq6_k", 256, 212),
];

/// A value of GGUF's metadata.
enum Meta {
    Text(&'static str),
    Number(u32),
    Real(f32),
    Texts(Vec<String>),
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

struct Tensor {
    name: String,
    /// Innermost first.
    shape: Vec<u64>,
    id: u32,
    len: u64,
}

fn gguf(metadata: &[(&str, Meta)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        match value {
            Meta::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
            Meta::Number(value) => {
                out.extend(4u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Meta::Real(value) => {
                out.extend(6u32.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
            Meta::Texts(values) => {
                out.extend(9u32.to_le_bytes());
                out.extend(8u32.to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| text(&mut out, value));
            }
        }
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor
            .shape
            .iter()
            .for_each(|size| out.extend(size.to_le_bytes()));
        out.extend(tensor.id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.len.next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for tensor in tensors {
        let end = out.len() + tensor.len.next_multiple_of(32) as usize;
        let mut byte = 7u8;
        out.resize_with(end, || {
            byte = byte.wrapping_mul(31).wrapping_add(11);
            byte
        });
    }
    out
}

const WIDTH: u64 = 256;
const TOKENS: u64 = 64;

/// The metadata of a Llama of one layer.
fn llama(architecture: &'static str) -> Vec<(&'static str, Meta)> {
    let key = |name: &str| -> &'static str { format!("{architecture}.{name}").leak() };
    vec![
        ("general.architecture", Meta::Text(architecture)),
        (key("block_count"), Meta::Number(1)),
        (key("context_length"), Meta::Number(128)),
        (key("embedding_length"), Meta::Number(WIDTH as u32)),
        (key("feed_forward_length"), Meta::Number(2 * WIDTH as u32)),
        (key("attention.head_count"), Meta::Number(4)),
        (key("attention.head_count_kv"), Meta::Number(4)),
        (key("attention.layer_norm_rms_epsilon"), Meta::Real(1e-5)),
        (key("rope.freq_base"), Meta::Real(10000.0)),
        (key("vocab_size"), Meta::Number(TOKENS as u32)),
        ("tokenizer.ggml.model", Meta::Text("llama")),
        (
            "tokenizer.ggml.tokens",
            Meta::Texts((0..TOKENS).map(|i| format!("t{i}")).collect()),
        ),
    ]
}

/// Its tensors: linears of this type, norms of f32, and embeddings of another.
fn tensors(
    (id, _, block, bytes): (u32, &str, u64, u64),
    embedding: (u32, u64, u64),
) -> Vec<Tensor> {
    let of = |name: &str, cols: u64, rows: u64, (id, block, bytes): (u32, u64, u64)| Tensor {
        name: name.to_owned(),
        shape: vec![cols, rows],
        id,
        len: cols * rows / block * bytes,
    };
    let norm = |name: &str| Tensor {
        name: name.to_owned(),
        shape: vec![WIDTH],
        id: 0,
        len: 4 * WIDTH,
    };
    let linear = (id, block, bytes);
    let mut all = vec![
        of("token_embd.weight", WIDTH, TOKENS, embedding),
        norm("output_norm.weight"),
        norm("blk.0.attn_norm.weight"),
        norm("blk.0.ffn_norm.weight"),
    ];
    for name in ["attn_q", "attn_k", "attn_v", "attn_output"] {
        all.push(of(&format!("blk.0.{name}.weight"), WIDTH, WIDTH, linear));
    }
    for name in ["ffn_gate", "ffn_up"] {
        all.push(of(
            &format!("blk.0.{name}.weight"),
            WIDTH,
            2 * WIDTH,
            linear,
        ));
    }
    all.push(of("blk.0.ffn_down.weight", 2 * WIDTH, WIDTH, linear));
    all
}

const Q6_K: (u32, u64, u64) = (14, 256, 210);

fn doctor(path: &Path) -> Ran {
    let words = ["doctor", path.to_str().unwrap(), "--json"];
    run(bitnet_verify::run, words)
}

fn codes(report: &Value) -> Vec<&str> {
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|f| f["code"].as_str().unwrap())
        .collect()
}

/// Neither the word nor the advice.
fn is_not_called_damaged(report: &Value) {
    let all = report.to_string();
    assert!(!all.contains("get the file again"), "{all}");
    assert_eq!(report["errors"], 0, "{all}");
    assert_eq!(report["status"], "sound", "{all}");
}

#[test]
fn block_quantizations_are_named_and_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for of in TYPES {
        // Q4_K_M keeps some tensors in another type
        for embedding in [Q6_K, (of.0, of.2, of.3), (1, 1, 2)] {
            std::fs::write(&path, gguf(&llama("llama"), &tensors(of, embedding))).unwrap();
            let ran = doctor(&path);
            let report = ran.json();
            assert_eq!(ran.status, ExitStatus::Done, "{}: {report}", of.1);
            is_not_called_damaged(&report);
            assert_eq!(codes(&report), ["not-ternary"], "{}: {report}", of.1);
            let what = report["findings"][0]["what"].as_str().unwrap();
            assert!(
                what.contains(&format!("{} x 7", of.1)) || what.contains(&format!("{} x 8", of.1)),
                "{what}"
            );

            let json = run(
                bitnet_run::run,
                [path.to_str().unwrap(), "--tokens", "1", "--json"],
            );
            assert_eq!(json.status, ExitStatus::CouldNot);
            let error = &json.json()["error"];
            assert_eq!(error["code"], "not-ternary", "{error}");
            assert!(error["message"].as_str().unwrap().contains(of.1), "{error}");

            let seen = run(
                bitnet_convert::run,
                ["inspect", path.to_str().unwrap(), "--json"],
            );
            assert_eq!(seen.status, ExitStatus::Done, "{}", seen.stderr);
            let seen = seen.json();
            assert_eq!(seen["architecture"], "llama");
            let types = seen["encodings"].as_array().unwrap();
            assert!(types.iter().any(|t| t["name"] == of.1), "{seen}");
        }
    }
}

#[test]
fn damage_of_these_types_stays_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for of in TYPES {
        let whole = gguf(&llama("llama"), &tensors(of, Q6_K));
        // cut off in the last tensor
        std::fs::write(&path, &whole[..whole.len() - 64]).unwrap();
        let ran = doctor(&path);
        let report = ran.json();
        assert_eq!(ran.status, ExitStatus::Different, "{}: {report}", of.1);
        assert_eq!(codes(&report), ["truncated"], "{}: {report}", of.1);
        assert!(
            report.to_string().contains("get the file again"),
            "{report}"
        );
        // a tensor that is shorter than its shape says, so that the next one lies too early
        if of.0 == 39 || of.0 == 40 {
            continue; // ids that other programs gave to other types: the size is what tells them apart
        }
        let mut all = tensors(of, Q6_K);
        all[4].len -= 64;
        std::fs::write(&path, gguf(&llama("llama"), &all)).unwrap();
        let report = doctor(&path).json();
        assert_eq!(report["status"], "unsound", "{}: {report}", of.1);
        assert_eq!(codes(&report), ["malformed"], "{}: {report}", of.1);
    }
}

#[test]
fn an_unknown_type_is_named_with_its_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    std::fs::write(
        &path,
        gguf(&llama("llama"), &tensors((77, "", 256, 96), Q6_K)),
    )
    .unwrap();
    let report = doctor(&path).json();
    is_not_called_damaged(&report);
    assert!(codes(&report).contains(&"unknown-type"), "{report}");
    let what = report["findings"][0]["what"].as_str().unwrap();
    assert!(what.contains("77"), "{what}");
}

#[test]
fn other_architectures_are_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    for architecture in ["nomic-bert", "bert", "phi3", "olmo2"] {
        for of in [(12, "q4_k", 256, 144), (1, "f16", 1, 2), (0, "f32", 1, 4)] {
            std::fs::write(&path, gguf(&llama(architecture), &tensors(of, (1, 1, 2)))).unwrap();
            let ran = doctor(&path);
            let report = ran.json();
            assert_eq!(ran.status, ExitStatus::Done, "{report}");
            is_not_called_damaged(&report);
            assert!(report.to_string().contains(architecture), "{report}");
        }
    }
}

#[test]
fn a_vocabulary_alone_is_inspected_and_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.gguf");
    for architecture in ["llama", "bert", "bitnet-b1.58"] {
        std::fs::write(&path, gguf(&llama(architecture), &[])).unwrap();
        let ran = doctor(&path);
        let report = ran.json();
        assert_eq!(ran.status, ExitStatus::Done, "{report}");
        is_not_called_damaged(&report);
        assert!(codes(&report).contains(&"no-weights"), "{report}");
        let seen = run(bitnet_convert::run, ["inspect", path.to_str().unwrap()]);
        assert_eq!(seen.status, ExitStatus::Done, "{}", seen.stderr);
        assert!(seen.stdout.contains(architecture), "{}", seen.stdout);
        assert!(seen.stdout.contains("64 tokens"), "{}", seen.stdout);
        let seen = run(
            bitnet_convert::run,
            ["inspect", path.to_str().unwrap(), "--json"],
        )
        .json();
        assert_eq!(seen["architecture"], architecture);
        assert_eq!(seen["tokenizer"]["tokens"], 64);
    }
}

#[test]
fn a_certificate_beside_the_model_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("bitnet-2b4t-packed");
    let converted = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let mut words = vec![source.to_str().unwrap(), "-o", out.to_str().unwrap()];
        words.extend(more);
        let ran = run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
        out
    };
    let whole = converted("m.gguf", &[]);
    let directory = converted("packed", &["--to", "hf-packed"]);
    converted("parts.gguf", &["--split-max-size", "300kB"]);
    let mut parts: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("-of-"))
        .collect();
    parts.sort();
    assert!(parts.len() > 1, "{parts:?}");
    for model in [&whole, &directory, &parts[1]] {
        let report = doctor(model).json();
        assert_eq!(report["certificate"]["status"], "same", "{report}");
        let verdict = report["verdict"].as_str().unwrap();
        assert!(
            verdict.starts_with("no problems found; settings, trits"),
            "{verdict}"
        );
    }
    // without it nothing is claimed
    let alone = dir.path().join("alone.gguf");
    std::fs::copy(&whole, &alone).unwrap();
    let report = doctor(&alone).json();
    assert_eq!(report["certificate"], Value::Null);
    assert_eq!(
        report["verdict"],
        "no problems found; changed weights need --against or --certificate"
    );
    // one trit
    let mut bytes = std::fs::read(&whole).unwrap();
    let file = bitnet_formats::open(&whole, &Default::default()).unwrap();
    let info = file.tensor("blk.0.ffn_up.weight").unwrap();
    let at = info.offset as usize + 5;
    bytes[at] = if bytes[at] == 0b0101_0101 {
        0b0110_0101
    } else {
        0b0101_0101
    };
    std::fs::write(&whole, bytes).unwrap();
    let ran = doctor(&whole);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Different, "{report}");
    assert!(codes(&report).contains(&"certificate-mismatch"), "{report}");
    assert!(
        report
            .to_string()
            .contains("model.layers.0.mlp.up_proj.weight"),
        "{report}"
    );
    // and one that is named
    let certificate = dir.path().join("m.gguf.certificate.json");
    let words = [
        "doctor",
        alone.to_str().unwrap(),
        "--certificate",
        certificate.to_str().unwrap(),
        "--json",
    ];
    let report = run(bitnet_verify::run, words).json();
    assert_eq!(report["certificate"]["status"], "same", "{report}");
}
