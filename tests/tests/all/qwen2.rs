//! Biases of Qwen2 in every container, and what of its configurations is refused.
//!
//! Invariant: the golden test holds the arithmetic; here is that no container changes a bias, that each class of
//! linears adds it where transformers does, and that no bias is lost without a word.

use bitnet_checkpoint::{ActivationQuantization, Checkpoint, LayerSlot, OpenOptions, Slot};
use bitnet_cli::ExitStatus;
use bitnet_formats::FormatError;
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_tests::fixtures::{fixture, read_json};
use bitnet_tests::other_runtime::{OtherRuntime, Wrong};
use bitnet_tests::program::{self, Ran};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const TOKENS: [u32; 6] = [1, 5, 9, 2, 30, 7];
const BIASES: [LayerSlot; 3] = [LayerSlot::QBias, LayerSlot::KBias, LayerSlot::VBias];

fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    Checkpoint::open(path, &OpenOptions::default())
}

fn logits(path: &Path) -> Vec<u32> {
    let model = Model::load(&open(path).unwrap(), &LoadOptions::default()).unwrap();
    let mut session = model.session(TOKENS.len()).unwrap();
    let logits = model.forward(&mut session, &TOKENS, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

/// The values of the biases of layer 0.
fn biases(path: &Path) -> Vec<Vec<f32>> {
    let checkpoint = open(path).unwrap();
    let values = |role| {
        let tensor = checkpoint.dense(Slot::Layer(0, role)).unwrap();
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.widen(&tensor.bytes, &mut values).unwrap();
        values
    };
    BIASES.map(values).into()
}

fn convert(source: &Path, output: &Path, to: &str, words: &[&str]) -> Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let mut all = vec![source, "-o", output, "--to", to, "--json"];
    all.extend(words);
    program::run(bitnet_convert::run, all)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A copy of a checkpoint with other tensors and another configuration.
fn changed(source: &Path, tensors: impl Fn(&mut Tensors), config: impl Fn(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut json = read_json(&path);
    config(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(name, view): (String, TensorView<'_>)| {
        (
            name,
            (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
        )
    };
    let mut all: Tensors = stored.tensors().into_iter().map(own).collect();
    tensors(&mut all);
    let views = all.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    let written = safetensors::serialize(views, metadata).unwrap();
    std::fs::write(&path, written).unwrap();
    dir
}

/// The bytes of every tensor, by name.
fn stored_tensors(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = stored.tensors().into_iter();
    tensors
        .map(|(name, view)| (name, view.data().to_vec()))
        .collect()
}

fn sources() -> Vec<PathBuf> {
    let named = ["qwen2", "qwen2-untied"].into_iter().filter_map(fixture);
    named.map(|fixture| fixture.checkpoint).collect()
}

#[test]
fn biases_survive_every_container() {
    for source in sources() {
        let config = open(&source).unwrap().config;
        assert!(config.biases);
        let (want, values) = (logits(&source), biases(&source));
        assert!(values.iter().flatten().any(|bias| bias.abs() > 10.0));
        let dir = tempfile::tempdir().unwrap();
        let mut last = source.clone();
        for (n, to) in [
            "gguf-pq2_0",
            "mlx-2bit",
            "gguf-i2_s",
            "packed",
            "gguf-f32",
            "hf-bf16",
            "gguf-q2_0",
        ]
        .into_iter()
        .enumerate()
        {
            let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
            let output = dir.path().join(format!("{n}-{to}{suffix}"));
            let ran = convert(&last, &output, to, &[]);
            assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
            assert_eq!(open(&output).unwrap().config, config, "{to}");
            assert_eq!(biases(&output), values, "{to}");
            let inspected = program::run(
                bitnet_convert::run,
                ["inspect", output.to_str().unwrap(), "--json"],
            );
            assert_eq!(inspected.json()["wiring"]["qkv_biases"], true, "{to}");
            assert_eq!(logits(&output), want, "{to}");
            let against = [
                output.to_str().unwrap(),
                "--against",
                last.to_str().unwrap(),
            ];
            let ran = program::run(bitnet_verify::run, against);
            assert_eq!(
                ran.status,
                ExitStatus::Done,
                "{to}: {}{}",
                ran.stdout,
                ran.stderr
            );
            last = output;
        }
    }
}

/// Published GGUF files of this network are I2_S, say nothing about activations, and their own runtime quantizes them.
#[test]
fn a_file_that_says_nothing_quantizes_activations() {
    let Some(source) = sources().into_iter().next() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let gguf = dir.path().join("said.gguf");
    let ran = convert(&source, &gguf, "gguf-i2_s", &[]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let activations = |path: &Path| open(path).unwrap().config.activation_quantization;
    assert_eq!(activations(&gguf), ActivationQuantization::None);
    let silent = bitnet_tests::gguf::rewritten(&gguf, dir.path().join("silent.gguf"), |metadata| {
        metadata
            .0
            .retain(|(key, _)| key != "ternary.activation_quantization");
    });
    assert_eq!(activations(&silent), ActivationQuantization::Int8PerToken);
    assert_eq!(biases(&silent), biases(&source));
}

/// The linears of the fixture with one power of two as the scale of all, so that a bias over the scale is exact.
fn with_scale(tensors: &mut Tensors, scale: u16) {
    for (name, (_, _, data)) in tensors
        .iter_mut()
        .filter(|(name, _)| name.contains("_proj.weight"))
    {
        for number in data.as_chunks_mut::<2>().0 {
            let bits = u16::from_le_bytes(*number);
            if bits & 0x7fff != 0 {
                *number = (bits & 0x8000 | scale).to_le_bytes();
            }
        }
        assert!(name.ends_with(".weight"));
    }
}

#[test]
fn packed_checkpoints_add_a_bias_where_their_class_does() {
    let Some(source) = sources().into_iter().next() else {
        return; // fixtures of somebody else
    };
    // 0x3d80 is 0.0625
    let masters = changed(&source, |tensors| with_scale(tensors, 0x3d80), |_| {});
    let (want, values) = (logits(masters.path()), biases(masters.path()));
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    let ran = convert(masters.path(), &packed, "hf-packed", &[]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    assert_eq!(
        read_json(&packed.join("config.json"))["quantization_config"]["linear_class"],
        "autobitlinear"
    );
    assert_eq!(
        (biases(&packed), logits(&packed)),
        (values.clone(), want.clone())
    );
    let stored = changed(
        &packed,
        |_| {},
        |config| {
            config["quantization_config"]["linear_class"] = json!("bitlinear");
        },
    );
    // that class scales before it adds: the numbers of the file are the biases
    let over: Vec<Vec<f32>> = values
        .iter()
        .map(|v| v.iter().map(|b| b * 16.0).collect())
        .collect();
    assert_eq!(biases(stored.path()), over);
    // a copy keeps scale and bias to the bit, and other targets get the product
    for (source, to, expected) in [
        (&packed, "hf-packed", &values),
        (&packed, "gguf-pq2_0", &values),
        (&packed, "mlx-2bit", &values),
        (&stored.path().to_owned(), "hf-packed", &over),
        (&stored.path().to_owned(), "gguf-i2_s", &over),
    ] {
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = dir.path().join(format!("{to}-{}{suffix}", expected[0][0]));
        let ran = convert(source, &output, to, &[]);
        assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
        assert_eq!(&biases(&output), expected, "{to}");
        assert_eq!(logits(&output), logits(source), "{to}");
        if to == "hf-packed" {
            assert_eq!(stored_tensors(&output), stored_tensors(source));
        }
    }
    // with another scale most biases have no f32 that gives them
    let other = changed(&source, |tensors| with_scale(tensors, 0x3dab), |_| {});
    let output = dir.path().join("other");
    let ran = convert(other.path(), &output, "hf-packed", &[]);
    assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    assert_eq!(ran.json()["error"]["code"], "target-cannot-hold");
    assert!(!output.exists());
    let ran = convert(
        other.path(),
        &output,
        "hf-packed",
        &["--allow-scale-rounding"],
    );
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    assert_eq!(ran.json()["lossless"], false);
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
    let (found, expected) = (biases(&output), biases(other.path()));
    assert!(
        found
            .iter()
            .flatten()
            .zip(expected.iter().flatten())
            .all(near)
    );
}

#[test]
fn what_is_not_this_network_is_refused_by_name() {
    let Some(source) = sources().into_iter().next() else {
        return;
    };
    let refused = |tensors: &dyn Fn(&mut Tensors), config: &dyn Fn(&mut Value)| {
        let dir = changed(&source, tensors, config);
        open(dir.path()).map(|_| ()).unwrap_err()
    };
    let name = "model.layers.0.self_attn.k_proj.bias";
    let lost = refused(&|tensors| drop(tensors.remove(name)), &|_| {});
    assert_eq!(
        (lost.code.as_str(), lost.tensor.as_deref()),
        ("missing-tensor", Some(name))
    );
    let norm = "model.layers.0.self_attn.q_proj.rms_norm.weight";
    let own_norm = refused(
        &|tensors| {
            let gain = tensors["model.norm.weight"].clone();
            tensors.insert(norm.to_owned(), gain);
        },
        &|_| {},
    );
    assert_eq!(
        (own_norm.code.as_str(), own_norm.tensor.as_deref()),
        ("extra-tensor", Some(norm))
    );
    let window = refused(&|_| {}, &|config| {
        config["use_sliding_window"] = json!(true)
    });
    assert_eq!(window.tensor.as_deref(), Some("use_sliding_window"));
    let norms = refused(&|_| {}, &|config| {
        config["quantization_config"] = json!({"quant_method": "bitnet", "use_rms_norm": true});
    });
    assert_eq!(norms.code.as_str(), "unknown-quantization");
    // a window that is switched off, and keys that no class of transformers reads here, change nothing
    let same = changed(
        &source,
        |_| {},
        |config| {
            config["sliding_window"] = json!(7);
            config["attention_bias"] = json!(false);
            config["layer_types"] = json!(["full_attention", "full_attention"]);
        },
    );
    assert_eq!(logits(same.path()), logits(&source));
    // a network without biases is not this one
    let llama = refused(&|_| {}, &|config| {
        config["model_type"] = json!("llama");
        config["architectures"] = json!(["LlamaForCausalLM"]);
        config["sliding_window"] = Value::Null;
    });
    assert_eq!(llama.code.as_str(), "extra-tensor");
}

#[test]
fn biases_that_another_program_leaves_out_are_named() {
    let Some(fixture) = fixture("qwen2") else {
        return;
    };
    let checkpoint = open(&fixture.checkpoint).unwrap();
    let golden = fixture.golden();
    let ids = golden.ids("short").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (wrong, status) in [
        (Wrong::Nothing, ExitStatus::Done),
        (Wrong::NoBiases, ExitStatus::Different),
    ] {
        let record = dir.path().join(format!("{wrong:?}"));
        OtherRuntime::new(&checkpoint, wrong).record(&[("short", ids)], &record);
        let words = [
            "--json",
            fixture.checkpoint.to_str().unwrap(),
            "--golden",
            record.to_str().unwrap(),
        ];
        let ran = program::run(bitnet_verify::run, words);
        assert_eq!(ran.status, status, "{wrong:?}: {}", ran.stdout);
        if status == ExitStatus::Different {
            let fault = ran.json()["faults"][0].clone();
            assert_eq!(fault["name"], "missing-bias", "{fault}");
            assert_eq!(fault["layer"], 0, "{fault}");
        }
    }
}

/// The language model of a larger checkpoint: keys and tensors one level deeper, beside parts that are not read.
#[test]
fn the_language_model_of_a_larger_checkpoint_is_read_alone() {
    let Some(source) = sources().into_iter().next() else {
        return;
    };
    let whole = changed(
        &source,
        |tensors| {
            let own = std::mem::take(tensors);
            for (name, tensor) in own {
                let inner = name.strip_prefix("model.").unwrap();
                tensors.insert(format!("model.language_model.{inner}"), tensor);
            }
            let part = (Dtype::F32, vec![2, 3], vec![0; 24]);
            for name in [
                "acoustic_tokenizer.encoder.0.weight",
                "acoustic_connector.fc1.bias",
            ] {
                tensors.insert(format!("model.{name}"), part.clone());
            }
        },
        |config| {
            let mut decoder = config.clone();
            decoder.as_object_mut().unwrap().remove("architectures");
            *config = json!({
                "model_type": "vibevoice", "architectures": ["VibeVoiceForASR"], "decoder_config": decoder,
                "acoustic_tokenizer_config": {"model_type": "vibevoice_acoustic_tokenizer"},
                "bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"],
            });
        },
    );
    assert_eq!(
        open(whole.path()).unwrap().config,
        open(&source).unwrap().config
    );
    assert_eq!(logits(whole.path()), logits(&source));
    let dir = tempfile::tempdir().unwrap();
    for to in ["gguf-f32", "hf-bf16", "packed"] {
        let output = dir.path().join(format!(
            "{to}{}",
            if to == "gguf-f32" { ".gguf" } else { "" }
        ));
        let ran = convert(whole.path(), &output, to, &[]);
        assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
        let parts = json!({"acoustic_tokenizer": 1, "acoustic_connector": 1});
        assert_eq!(ran.json()["skipped_parts"], parts, "{to}");
        assert_eq!(logits(&output), logits(&source), "{to}");
        if to != "gguf-f32" {
            assert_eq!(
                read_json(&output.join("config.json"))["model_type"],
                "qwen2",
                "{to}"
            );
        }
    }
    let lost = changed(
        whole.path(),
        |tensors| drop(tensors.remove("model.language_model.layers.1.self_attn.v_proj.bias")),
        |_| {},
    );
    assert_eq!(
        open(lost.path()).unwrap_err().code.as_str(),
        "missing-tensor"
    );
}
