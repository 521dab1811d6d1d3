//! MiniCPM's three scales in every container, and what of its configurations is refused.
//!
//! Invariant: the golden test holds the arithmetic; here is that no container changes a number of it. No published
//! file was seen, so nothing says that one would be read.

use bitnet_checkpoint::{Checkpoint, Factors, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::FormatError;
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_tests::fixtures::{fixture, read_json};
use bitnet_tests::program;
use serde_json::{Value, json};
use std::path::Path;

const TOKENS: [u32; 6] = [1, 5, 9, 2, 30, 7];

fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    Checkpoint::open(path, &OpenOptions::default())
}

fn logits(path: &Path) -> Vec<u32> {
    let model = Model::load(&open(path).unwrap(), &LoadOptions::default()).unwrap();
    let mut session = model.session(TOKENS.len()).unwrap();
    let logits = model.forward(&mut session, &TOKENS, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

#[test]
fn the_scales_survive_every_container() {
    let Some(fixture) = fixture("bitcpm") else {
        return; // fixtures of somebody else
    };
    let config = open(&fixture.checkpoint).unwrap().config;
    let expected = Factors {
        embedding: 12.0,
        residual: (1.4 / 2f64.sqrt()) as f32,
        head_divisor: 4.0,
        query_pre_attn_scalar: None,
    };
    assert_eq!(config.factors, expected);
    let want = logits(&fixture.checkpoint);
    let dir = tempfile::tempdir().unwrap();
    let mut last = fixture.checkpoint.clone();
    for (n, to) in [
        "gguf-pq2_0",
        "mlx-2bit",
        "gguf-q2_0",
        "hf-bf16",
        "gguf-f32",
        "packed",
        "gguf-pq2_0",
    ]
    .into_iter()
    .enumerate()
    {
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = dir.path().join(format!("{n}-{to}{suffix}"));
        let source = if to == "hf-bf16" {
            &fixture.checkpoint
        } else {
            &last
        };
        let words = [
            source.to_str().unwrap(),
            "-o",
            output.to_str().unwrap(),
            "--to",
            to,
            "--allow-scale-rounding",
        ];
        let ran = program::run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stderr);
        assert_eq!(open(&output).unwrap().config, config, "{to}");
        if to == "hf-bf16" {
            continue; // scales of 16 bits are others there
        }
        assert_eq!(logits(&output), want, "{to}");
        last = output;
    }
}

/// A copy of a checkpoint with another `config.json`.
fn with_config(source: &Path, change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config = read_json(&path);
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    dir
}

#[test]
fn divisors_of_the_frequencies_survive_every_container() {
    let Some(fixture) = fixture("bitcpm-longrope") else {
        return;
    };
    let config = open(&fixture.checkpoint).unwrap().config;
    let long_rope = config.long_rope.clone().unwrap();
    assert_eq!((long_rope.long[3], long_rope.short[3]), (1.75, 1.03));
    // sqrt(1 + ln 4 / ln 256)
    assert_eq!(long_rope.attention_factor, 1.25f32.sqrt());
    assert_eq!(config.rope_divisors(), Some(&long_rope.long[..]));
    let want = logits(&fixture.checkpoint);
    let dir = tempfile::tempdir().unwrap();
    let mut last = fixture.checkpoint.clone();
    for (n, to) in ["gguf-f32", "packed", "gguf-f32", "mlx-2bit", "hf-bf16"]
        .into_iter()
        .enumerate()
    {
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = dir.path().join(format!("{n}-{to}{suffix}"));
        let words = [
            last.to_str().unwrap(),
            "-o",
            output.to_str().unwrap(),
            "--to",
            to,
        ];
        let ran = program::run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stderr);
        assert_eq!(open(&output).unwrap().config, config, "{to}");
        assert_eq!(logits(&output), want, "{to}");
        last = output;
    }
    // a context up to the original one takes the short list, and no factor
    let short = with_config(&fixture.checkpoint, |config| {
        config["max_position_embeddings"] = json!(256)
    });
    let config = open(short.path()).unwrap().config;
    let long_rope = config.long_rope.clone().unwrap();
    assert_eq!(config.rope_divisors(), Some(&long_rope.short[..]));
    assert_eq!(long_rope.attention_factor, 1.0);
    assert_ne!(logits(short.path()), want);
    // transformers' own Llama changes the list with the length of a text
    let llama = |context: usize| {
        let dir = with_config(&fixture.checkpoint, |config| {
            config["model_type"] = json!("llama");
            config["architectures"] = json!(["LlamaForCausalLM"]);
            config["max_position_embeddings"] = json!(context);
            for key in ["scale_emb", "scale_depth", "dim_model_base"] {
                config.as_object_mut().unwrap().remove(key);
            }
        });
        open(dir.path()).map(|checkpoint| checkpoint.config.long_rope)
    };
    assert_eq!(llama(256).unwrap().unwrap().short, long_rope.short);
    let refused = llama(1024).unwrap_err();
    assert_eq!(refused.tensor.as_deref(), Some("max_position_embeddings"));
    // a file of this architecture that loses a list, or whose key says something else
    let gguf = dir.path().join("2-gguf-f32.gguf");
    let other = bitnet_tests::gguf::rewritten(&gguf, dir.path().join("other.gguf"), |metadata| {
        let key = "minicpm.rope.scaling.type";
        metadata.set(key, bitnet_formats::MetaValue::text("none"));
        let factor = "minicpm.rope.scaling.attn_factor";
        metadata.set(factor, bitnet_formats::MetaValue::F32(1.0));
    });
    let error = open(&other).unwrap_err();
    assert_eq!(error.tensor.as_deref(), Some("minicpm.rope.scaling.type"));
}

#[test]
fn what_is_not_known_of_it_is_refused_by_name() {
    let Some(fixture) = fixture("bitcpm") else {
        return;
    };
    let with = |change: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(&fixture.checkpoint).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let path = dir.path().join("config.json");
        let mut config = read_json(&path);
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
        open(dir.path()).map(|_| ()).unwrap_err()
    };
    for (change, part) in [
        (json!({"long_factor": [1.0]}), "long_factor"),
        (json!({"short_factor": "1"}), "short_factor"),
        (json!({"long_factor": vec![0.0; 16]}), "long_factor"),
        (
            json!({"original_max_position_embeddings": 0}),
            "original_max_position_embeddings",
        ),
        (json!({"attention_factor": -1.0}), "attention_factor"),
    ] {
        let error = with(&|config| {
            config["rope_scaling"] = json!({
                "rope_type": "longrope", "original_max_position_embeddings": 512,
                "short_factor": vec![1.0; 16], "long_factor": vec![1.5; 16],
            });
            for (key, value) in change.as_object().unwrap() {
                config["rope_scaling"][key] = value.clone();
            }
        });
        assert_eq!(error.code.as_str(), "unsupported-config", "{change}");
        assert!(error.to_string().contains(part), "{change}: {error}");
    }
    for key in ["scale_emb", "scale_depth", "dim_model_base"] {
        for value in [Value::Null, json!("12"), json!(0), json!(-1), json!(1e300)] {
            let error = with(&|config| config[key] = value.clone());
            assert_eq!(
                error.code.as_str(),
                "unsupported-config",
                "{key} {value}: {error}"
            );
        }
    }
}
