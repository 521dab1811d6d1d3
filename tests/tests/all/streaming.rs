//! Working memory is a few tensors, not the model.
//!
//! Invariant: anonymous memory of a conversion stays below what the plan promised, and far below the
//! size of the model, for every kind of output.

#![cfg(target_os = "linux")]

use bitnet_formats::{
    Container, Encoding, Metadata, PlainType, PlannedTensor, Safetensors, WritePlan,
};
use serde_json::{Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 2816;
const LAYERS: usize = 4;
const VOCABULARY: usize = 32768;

/// Writes BF16 master weights of the 2B4T architecture; returns the bytes written.
fn write_checkpoint(directory: &Path) -> u64 {
    let mut shapes = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![VOCABULARY, HIDDEN],
        ),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.attn_sub_norm", vec![HIDDEN]),
            ("mlp.ffn_sub_norm", vec![INTERMEDIATE]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 4, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 4, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let tensors: Vec<PlannedTensor> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let len = 2 * shape.iter().product::<usize>() as u64;
            PlannedTensor {
                name,
                encoding: Encoding::Plain(PlainType::Bf16),
                shape,
                len,
            }
        })
        .collect();
    let plan = WritePlan {
        metadata: Metadata::default(),
        tensors,
    };
    let header = Safetensors.header(&plan).unwrap();
    let file = std::fs::File::create(directory.join("model.safetensors")).unwrap();
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&header.bytes).unwrap();
    let mut state = 1u64;
    let values: u64 = plan.tensors.iter().map(|t| t.len / 2).sum();
    for _ in 0..values / 4 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // random signs and mantissas, magnitudes from 2^-7 to 2^-3
        let four = state & 0x81ff_81ff_81ff_81ff | 0x3c00_3c00_3c00_3c00;
        out.write_all(&four.to_le_bytes()).unwrap();
    }
    out.flush().unwrap();
    let config = json!({
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "hidden_act": "relu2",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
        },
    });
    std::fs::write(directory.join("config.json"), config.to_string()).unwrap();
    header.total
}

/// A directory, the checkpoint in it, and the bytes of its weights.
fn source() -> (tempfile::TempDir, String, u64) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let total = write_checkpoint(&source);
    assert!(total > 100 << 20, "{total}");
    let source = source.to_str().unwrap().to_owned();
    (dir, source, total)
}

fn run(args: &[&str]) -> Value {
    run_with(u64::MAX, args)
}

/// Runs in so many bytes of addresses.
fn run_with(addresses: u64, args: &[&str]) -> Value {
    let limit = match addresses {
        u64::MAX => "unlimited".to_owned(),
        bytes => (bytes >> 10).to_string(),
    };
    let output = Command::new("sh")
        .args(["-c", "ulimit -v \"$0\" && exec \"$@\"", &limit])
        .arg(env!("CARGO_BIN_EXE_convert_under_test"))
        .args(args)
        .args(["--json", "--threads", "2"])
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}: {json}");
    json
}

#[test]
fn memory_is_a_few_tensors() {
    let (dir, source, total) = source();
    let source = source.as_str();
    let packed = dir.path().join("packed.gguf");
    let packed = packed.to_str().unwrap();
    for (from, to, more) in [
        (source, "gguf-i2_s", &[][..]),
        (source, "gguf-f32", &[]),
        (source, "gguf-i2_s", &["--embeddings", "f16"]),
        (source, "hf-packed", &[]),
        (source, "hf-bf16", &[]),
        (packed, "hf-packed", &[]),
    ] {
        if from == packed {
            run(&[source, "-o", packed]);
        }
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = dir.path().join(format!("{to}{suffix}"));
        let mut args = vec![from, "-o", output.to_str().unwrap(), "--to", to, "--force"];
        args.extend(more);
        let converted = run(&args);
        args.push("--dry-run");
        let planned = run(&args);
        let peak = converted["rss_anon_peak_bytes"].as_u64().unwrap();
        let promised = planned["peak_memory_bytes"].as_u64().unwrap();
        assert!(
            peak <= promised,
            "{to} {more:?}: {peak} bytes, promised {promised}"
        );
        assert!(
            peak < 64 << 20,
            "{to} {more:?}: {peak} bytes for a model of {total}"
        );
    }
}

#[test]
fn a_model_that_cannot_be_mapped_takes_no_more_memory() {
    let (dir, source, total) = source();
    let source = source.as_str();
    // the embedding is copied, rounded, and widened
    for (to, more) in [
        ("gguf-i2_s", &[][..]),
        ("gguf-f32", &[]),
        ("gguf-i2_s", &["--embeddings", "f16"]),
        ("hf-packed", &[]),
    ] {
        let files = ["mapped", "read"].map(|name| dir.path().join(format!("{name}-{to}")));
        let [mapped, read] = files.each_ref().map(|file| file.to_str().unwrap());
        let all = |output| [&[source, "-o", output, "--to", to, "--force"][..], more].concat();
        let expected = run(&all(mapped));
        // the program itself is there, too, so the file has no room
        let found = run_with(total, &all(read));
        let peak = found["rss_anon_peak_bytes"].as_u64().unwrap();
        assert!(peak < 64 << 20, "{to} {more:?}: {peak} bytes");
        let hashes = |report: &Value| -> Vec<Value> {
            let files = report["output"]["files"].as_array().unwrap();
            files.iter().map(|file| file["sha256"].clone()).collect()
        };
        assert_eq!(hashes(&found), hashes(&expected), "{to} {more:?}");
        assert!(!hashes(&found).is_empty() && hashes(&found)[0].is_string());
    }
}
