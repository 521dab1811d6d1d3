//! `bitnet-verify doctor`: right models are sound, and every seeded illness is named.
//!
//! Invariant: an illness is seeded in one place of a model that was sound before, so a code that is reported belongs
//! to it.

use bitnet_cli::ExitStatus;
use bitnet_formats::{
    Container, Gguf, Limits, MetaArray, MetaValue, Metadata, PlannedTensor, Strings, TensorFile,
    WritePlan,
};
use bitnet_tests::fixtures::{checkpoint, fixtures, read_json};
use bitnet_tests::program::{Ran, run};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const PACKED: &str = "bitnet-2b4t-packed";
const DIVIDES: &str = "falcon3-1.58";

fn doctor(model: &Path, words: &[&str]) -> Ran {
    let fixed = ["doctor", model.to_str().unwrap(), "--json"];
    run(bitnet_verify::run, fixed.iter().chain(words))
}

fn codes(ran: &Ran) -> Vec<(String, String)> {
    let report = ran.json();
    let findings = report["findings"]
        .as_array()
        .unwrap_or_else(|| panic!("{report}"))
        .clone();
    let text = |f: &Value, key: &str| f[key].as_str().unwrap().to_owned();
    for f in &findings {
        assert!(
            !text(f, "what").is_empty() && !text(f, "remedy").is_empty(),
            "{f}"
        );
    }
    findings
        .iter()
        .map(|f| (text(f, "code"), text(f, "severity")))
        .collect()
}

fn has(ran: &Ran, code: &str) -> bool {
    codes(ran).iter().any(|(c, _)| c == code)
}

fn convert(source: &Path, to: &str, output: &Path) {
    let words = [
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--to",
        to,
        "--force",
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
}

/// A GGUF file made anew, with other metadata, tensors and bytes.
fn rewritten(
    model: &Path,
    to: &Path,
    metadata: impl FnOnce(&mut Metadata),
    payload: impl Fn(&str, &mut Vec<u8>),
    extra: Option<(&str, &str)>,
) -> PathBuf {
    let file: TensorFile = bitnet_formats::open(model, &Limits::default()).unwrap();
    let mut all = file.metadata.clone();
    metadata(&mut all);
    let mut tensors: Vec<(String, _)> =
        file.tensors().iter().map(|t| (t.name.clone(), t)).collect();
    if let Some((name, of)) = extra {
        tensors.push((name.to_owned(), file.tensor(of).unwrap()));
    }
    let plan = WritePlan {
        metadata: all,
        tensors: tensors
            .iter()
            .map(|(name, t)| PlannedTensor {
                name: name.clone(),
                encoding: t.encoding,
                shape: t.shape.clone(),
                len: t.len,
            })
            .collect(),
    };
    let header = Gguf.header(&plan).unwrap();
    let mut bytes = header.bytes.clone();
    for ((name, t), offset) in tensors.iter().zip(&header.offsets) {
        bytes.resize(*offset as usize, 0);
        let mut own = file.read(t).unwrap().to_vec();
        payload(name, &mut own);
        bytes.extend_from_slice(&own);
    }
    bytes.resize(header.total as usize, 0);
    std::fs::write(to, bytes).unwrap();
    to.to_owned()
}

/// What is done to the bytes of a tensor of this name.
type Damage<'a> = dyn Fn(&str, &mut Vec<u8>) + 'a;

fn keep(_: &mut Metadata) {}
fn same(_: &str, _: &mut Vec<u8>) {}

#[test]
fn every_fixture_is_sound() {
    for fixture in fixtures() {
        let mut words = vec![];
        if fixture.ternary_trained() {
            words.push("--ternary-trained");
        }
        let ran = doctor(&fixture.checkpoint, &words);
        assert_eq!(
            ran.status,
            ExitStatus::Done,
            "{}: {}",
            fixture.name,
            ran.stdout
        );
        let bad: Vec<_> = codes(&ran)
            .into_iter()
            .filter(|(_, s)| s == "error")
            .collect();
        assert!(bad.is_empty(), "{}: {bad:?}", fixture.name);
    }
}

#[test]
fn illnesses_of_weights_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    convert(&checkpoint(PACKED), "gguf-i2_s", &model);
    let sound = doctor(&model, &[]);
    assert_eq!(sound.status, ExitStatus::Done, "{}", sound.stdout);
    let ill = dir.path().join("ill.gguf");
    let q = "blk.0.attn_q.weight";
    let codes_of = |bytes: &mut Vec<u8>, code: u8| {
        let codes = bytes.len() - 32;
        bytes[..codes].fill(code);
    };
    let cases: [(&str, &Damage<'_>); 7] = [
        ("zero-tensor", &|n, b| {
            if n == q {
                codes_of(b, 0b0101_0101)
            }
        }),
        ("constant-tensor", &|n, b| {
            if n == q {
                codes_of(b, 0b1010_1010)
            }
        }),
        ("bad-code", &|n, b| {
            if n == q {
                codes_of(b, 0xff)
            }
        }),
        ("zero-scale", &|n, b| {
            if n == q {
                let at = b.len() - 32;
                b[at..at + 4].fill(0)
            }
        }),
        ("implausible-scale", &|n, b| {
            if n == q {
                let at = b.len() - 32;
                b[at..at + 4].copy_from_slice(&1e9f32.to_le_bytes())
            }
        }),
        ("zero-tensor", &|n, b| {
            if n == "output_norm.weight" {
                b.fill(0)
            }
        }),
        ("non-finite", &|n, b| {
            if n == "output_norm.weight" {
                b[..4].copy_from_slice(&f32::NAN.to_le_bytes())
            }
        }),
    ];
    for (code, damage) in cases {
        rewritten(&model, &ill, keep, damage, None);
        let ran = doctor(&ill, &["--no-run"]);
        assert!(has(&ran, code), "{code}: {}", ran.stdout);
        let only_odd = code.starts_with("implausible");
        assert_eq!(
            ran.status == ExitStatus::Done,
            only_odd,
            "{code}: {}",
            ran.stdout
        );
        let strict = doctor(&ill, &["--no-run", "--strict"]);
        assert_eq!(strict.status, ExitStatus::Different, "{code}");
    }
    // data that ends too early
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(&ill, &bytes[..bytes.len() - 5000]).unwrap();
    let ran = doctor(&ill, &[]);
    assert!(has(&ran, "truncated"), "{}", ran.stdout);
    assert_eq!(ran.status, ExitStatus::Different);
    // no file is no finding
    assert_eq!(
        doctor(&dir.path().join("absent.gguf"), &[]).status,
        ExitStatus::CouldNot
    );
}

#[test]
fn scales_the_other_way_round_are_named() {
    let dir = tempfile::tempdir().unwrap();
    // of networks with sub-norms the magnitude alone does not tell: what they add is normed again
    for (name, class) in [(DIVIDES, "autobitlinear")] {
        let ill = dir.path().join(name);
        std::fs::create_dir(&ill).unwrap();
        for entry in std::fs::read_dir(checkpoint(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, ill.join(path.file_name().unwrap())).unwrap();
        }
        let config = ill.join("config.json");
        let mut value = read_json(&config);
        value["quantization_config"]["linear_class"] = json!(class);
        value["quantization_config"]["quantization_mode"] = json!("offline");
        std::fs::write(&config, value.to_string()).unwrap();
        let ran = doctor(&ill, &[]);
        assert!(has(&ran, "inverted-scale"), "{name}: {}", ran.stdout);
        assert_eq!(ran.status, ExitStatus::Different);
    }
}

#[test]
fn exploding_activations_are_named_with_their_layer() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    convert(&checkpoint(PACKED), "gguf-i2_s", &model);
    let ill = dir.path().join("ill.gguf");
    // one projection in layer 1; the others stay plausible
    let damage = |name: &str, bytes: &mut Vec<u8>| {
        if name == "blk.1.ffn_down.weight" {
            let at = bytes.len() - 32;
            bytes[at..at + 4].copy_from_slice(&9.9e3f32.to_le_bytes());
        } else if name == "blk.1.ffn_sub_norm.weight" {
            let values: Vec<u8> = bytes
                .chunks_exact(4)
                .flat_map(|_| 1e4f32.to_le_bytes())
                .collect();
            *bytes = values;
        }
    };
    rewritten(&model, &ill, keep, damage, None);
    let ran = doctor(&ill, &[]);
    let report = ran.json();
    let found = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["code"] == "exploding-activations");
    let found = found.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(found["place"], "model.layers.1");
}

#[test]
fn what_is_repairable_is_repaired_in_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    convert(&checkpoint(PACKED), "gguf-i2_s", &model);
    let ill = dir.path().join("ill.gguf");
    let metadata = |m: &mut Metadata| {
        m.set("general.file_type", MetaValue::U32(1));
        m.set("nobody.knows", MetaValue::U32(1));
    };
    rewritten(
        &model,
        &ill,
        metadata,
        same,
        Some(("output.weight", "token_embd.weight")),
    );
    let before = std::fs::read(&ill).unwrap();
    let ran = doctor(&ill, &[]);
    for code in ["file-type", "unused-head", "unknown-key"] {
        assert!(has(&ran, code), "{code}: {}", ran.stdout);
    }
    let fixed = dir.path().join("fixed.gguf");
    let ran = doctor(&ill, &["--fix", "-o", fixed.to_str().unwrap()]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    assert_eq!(ran.json()["fixed"]["repairs"].as_array().unwrap().len(), 2);
    for code in ["file-type", "unused-head"] {
        assert!(!has(&ran, code), "{code}: {}", ran.stdout);
    }
    assert!(has(&ran, "unknown-key"), "notes stay");
    assert_eq!(
        std::fs::read(&ill).unwrap(),
        before,
        "the original is as it was"
    );
    let words = [
        fixed.to_str().unwrap(),
        "--against",
        model.to_str().unwrap(),
    ];
    let same = run(bitnet_verify::run, words);
    assert_eq!(same.status, ExitStatus::Done, "{}", same.stdout);
    // a sound file has nothing to repair, and an output is not overwritten
    let again = doctor(&model, &["--fix", "-o", fixed.to_str().unwrap()]);
    assert_eq!(again.status, ExitStatus::CouldNot);
    let again = doctor(&ill, &["--fix", "-o", fixed.to_str().unwrap()]);
    assert_eq!(again.json()["error"]["code"], "exists");
}

#[test]
fn pre_tokenizers_of_published_vocabularies_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    convert(&checkpoint(PACKED), "gguf-i2_s", &model);
    let ill = dir.path().join("ill.gguf");
    // the two tokens that identify the vocabulary of Llama 3
    let tokens = |m: &mut Metadata, pre: Option<&str>| {
        let names = (0..128_010).map(|i| match i {
            128_000 => "<|begin_of_text|>".to_owned(),
            128_009 => "<|eot_id|>".to_owned(),
            i => format!("t{i}"),
        });
        m.set(
            "tokenizer.ggml.tokens",
            MetaValue::Array(MetaArray::String(names.collect::<Strings>())),
        );
        m.0.retain(|(key, _)| key != "tokenizer.ggml.pre");
        if let Some(pre) = pre {
            m.set("tokenizer.ggml.pre", MetaValue::text(pre));
        }
    };
    for (pre, code) in [
        (None, Some("missing-pre-tokenizer")),
        (Some("default"), Some("missing-pre-tokenizer")),
        (Some("qwen2"), Some("wrong-pre-tokenizer")),
        (Some("llama3"), None),
    ] {
        rewritten(&model, &ill, |m| tokens(m, pre), same, None);
        let ran = doctor(&ill, &["--no-run"]);
        for known in ["missing-pre-tokenizer", "wrong-pre-tokenizer"] {
            assert_eq!(
                has(&ran, known),
                code == Some(known),
                "{pre:?}: {}",
                ran.stdout
            );
        }
        if code.is_some() {
            let report = ran.json();
            let all = report["findings"].as_array().unwrap();
            let found = all
                .iter()
                .find(|f| f["place"] == "tokenizer.ggml.pre")
                .unwrap();
            assert_eq!(found["repairable"], true);
        }
    }
}

#[test]
fn a_chat_that_cannot_stop_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    convert(&checkpoint(PACKED), "gguf-i2_s", &model);
    let ill = dir.path().join("ill.gguf");
    let template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %}?{% endif %}{% endfor %}";
    let metadata = |m: &mut Metadata| {
        m.set("tokenizer.chat_template", MetaValue::text(template));
        m.0.retain(|(key, _)| key != "tokenizer.huggingface.json");
    };
    rewritten(&model, &ill, metadata, same, None);
    let ran = doctor(&ill, &["--no-run"]);
    assert!(has(&ran, "chat-cannot-stop"), "{}", ran.stdout);
    let metadata = |m: &mut Metadata| {
        m.0.retain(|(key, _)| {
            !key.contains("eos_token_id")
                && !key.contains("eot_token_id")
                && !key.contains("eom_token_id")
        });
    };
    rewritten(&model, &ill, metadata, same, None);
    let ran = doctor(&ill, &["--no-run"]);
    assert!(has(&ran, "no-eos"), "{}", ran.stdout);
    assert_eq!(ran.status, ExitStatus::Different);
}
