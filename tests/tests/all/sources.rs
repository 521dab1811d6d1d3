//! Checkpoints in: what is read from every source layout, and what is refused.
//!
//! Invariant: the expected trits and scales are transformers' (`golden/ternary.json`) or the peers'
//! (`vectors/gguf-files`), never this program's; every refusal is tested by its stable code and by the
//! place that its message names.

#![allow(clippy::print_stdout)] // the table is the report: `--test all sources -- --nocapture`

use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, DenseTensor, HfStorage, OpenOptions, ScaleDirection, Slot,
    TensorDigest, TernaryHasher, dense_sha256, gguf_from_hf_rows, weight_scale_bytes,
};
use bitnet_formats::{
    Container, Encoding, Gguf, MetaValue, Metadata, PackedTensor, PlainType, PlannedTensor,
    Safetensors, ScaleRounding, WritePlan, packing_by_name,
};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::{Scales, TernaryMatrix, bf16_to_f32, f16_to_f32};
use bitnet_tests::digest::{hex, sha256};
use bitnet_tests::fixtures::{self, Fixture, read_json};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

fn trits_sha256(matrix: &TernaryMatrix) -> String {
    let bytes: Vec<u8> = matrix.trits().iter().map(|&t| t as u8).collect();
    sha256(&bytes)
}

/// `values_sha256` as `formats/certificate.md` defines it: the values as f32, in blocks of 2^20.
fn values_sha256(dense: &DenseTensor<'_>) -> String {
    let halves = || {
        dense
            .bytes
            .as_chunks()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
    };
    let stored: Vec<f32> = match dense.encoding {
        Encoding::Plain(PlainType::F32) => {
            let words = dense.bytes.as_chunks().0.iter();
            words.map(|b| f32::from_le_bytes(*b)).collect()
        }
        Encoding::Plain(PlainType::F16) => halves().map(f16_to_f32).collect(),
        Encoding::Plain(PlainType::Bf16) => halves().map(bf16_to_f32).collect(),
        other => panic!("{}: {}", dense.info.name, other.name()),
    };
    let mut blocks = Vec::new();
    for block in stored.chunks(1 << 20) {
        let values = block.iter().map(|v| {
            if dense.meaning == bitnet_checkpoint::DenseMeaning::PlusOne {
                1.0 + v
            } else {
                *v
            }
        });
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let digest = sha256(&bytes);
        let byte = |at: usize| u8::from_str_radix(&digest[at..at + 2], 16).unwrap();
        blocks.extend((0..digest.len()).step_by(2).map(byte));
    }
    sha256(&blocks)
}

/// Every fixture whose ternary linears were recorded.
fn fixtures() -> impl Iterator<Item = Fixture> {
    let all = fixtures::fixtures().into_iter();
    all.filter(|f| f.golden.join("ternary.json").is_file())
}

/// Opens a fixture; `None` for an architecture that is not supported (yet), which says so by name.
fn open_fixture(fixture: &Fixture) -> Option<Checkpoint> {
    match fixture.open() {
        Ok(checkpoint) => Some(checkpoint),
        Err(e) => {
            assert_eq!(e.code, ErrorCode::UnsupportedConfig, "{e}");
            let key = e.tensor.as_deref().unwrap_or_default();
            assert!(["model_type", "architectures"].contains(&key), "{e}");
            None
        }
    }
}

fn linears(checkpoint: &Checkpoint) -> impl Iterator<Item = Slot> {
    checkpoint
        .slots_in_file_order()
        .into_iter()
        .filter(|s| checkpoint.is_ternary(*s))
}

fn ternary_sha256(checkpoint: &Checkpoint) -> String {
    let mut hasher = TernaryHasher::default();
    for slot in linears(checkpoint) {
        hasher.add(&slot.to_string(), &checkpoint.ternary(slot).unwrap());
    }
    hasher.finish()
}

// ---------------------------------------------------------------------- what transformers recorded

#[test]
fn trits_and_scales_are_those_of_transformers() {
    let mut report = String::new();
    for fixture in fixtures() {
        let name = &fixture.name;
        let Some(checkpoint) = open_fixture(&fixture) else {
            report += &format!("{name}: not supported yet\n");
            continue;
        };
        let manifest = read_json(&fixture.golden.join("manifest.json"));
        let quantised =
            checkpoint.config.activation_quantization == ActivationQuantization::Int8PerToken;
        if let Some(expected) = manifest["activation_quantised"].as_bool() {
            assert_eq!(quantised, expected, "{name}: activations");
        }
        let golden = read_json(&fixture.golden.join("ternary.json"));
        let golden = golden.as_object().unwrap();
        let (mut exact, mut worst) = (0, 0);
        for slot in linears(&checkpoint) {
            let stored = &checkpoint.tensor_range(slot).unwrap().name;
            let truth = &golden[stored];
            let matrix = checkpoint.ternary(slot).unwrap();
            assert_eq!(
                json!([matrix.rows(), matrix.cols()]),
                truth["shape"],
                "{name}: {stored}"
            );
            assert_eq!(
                trits_sha256(&matrix),
                truth["sha256_int8_row_major"],
                "{name}: {stored}"
            );
            if let Some(structure) = truth["scale_structure"].as_str() {
                let found = TensorDigest::of(stored, &matrix);
                assert_eq!(found.scale_structure, structure, "{name}: {stored}");
                assert_eq!(
                    found.scales_sha256, truth["scales_sha256"],
                    "{name}: {stored}"
                );
                exact += 1;
                continue;
            }
            if let Some(granularity) = truth["granularity"].as_str() {
                // 0 where a row or a block has no trit
                let cols = matrix.cols();
                let block = match granularity {
                    "row" => cols,
                    block => block.trim_start_matches("block").parse().unwrap(),
                };
                let starts = (0..matrix.rows() * cols).step_by(block);
                let scales = starts.flat_map(|at| {
                    let trits = &matrix.trits()[at..at + block];
                    let scale = matrix.scales().at(at / cols, at % cols, cols);
                    let scale = if trits.iter().any(|t| *t != 0) {
                        scale
                    } else {
                        0.0
                    };
                    scale.to_le_bytes()
                });
                let found = sha256(&scales.collect::<Vec<u8>>());
                assert_eq!(found, truth["scale_f32_sha256"], "{name}: {stored}");
                exact += 1;
                continue;
            }
            let &Scales::PerTensor(alpha) = matrix.scales() else {
                panic!("{name}: {stored}: {}", matrix.scales().structure());
            };
            let bits = truth["alpha_f32_hex"]
                .as_str()
                .unwrap()
                .trim_start_matches("0x");
            let distance = alpha
                .to_bits()
                .abs_diff(u32::from_str_radix(bits, 16).unwrap());
            let allowed = match checkpoint.linear(slot).unwrap().is_master() {
                true => 4,
                false => 0,
            };
            assert!(
                distance <= allowed,
                "{name}: {stored}: alpha {alpha} is {distance} ulp from {bits}"
            );
            exact += usize::from(distance == 0);
            worst = worst.max(distance);
        }
        let count = linears(&checkpoint).count();
        assert_eq!(count, golden.len(), "{name}");
        let dense = |slot: &Slot| !checkpoint.is_ternary(*slot);
        for slot in checkpoint.slots().into_iter().filter(dense) {
            let dense = checkpoint.dense(slot).unwrap();
            let found = dense_sha256(&dense).unwrap();
            assert_eq!(found, values_sha256(&dense), "{name}: {}", dense.info.name);
        }
        report += &format!(
            "{name}: {}, {count} linears, trits equal, {exact} scales equal, worst {worst} ulp, {}\n",
            checkpoint.family.name,
            ternary_sha256(&checkpoint),
        );
    }
    println!("{report}");
    if !fixtures::fixtures_are_foreign() {
        assert_eq!(
            report.lines().filter(|l| l.contains("trits equal")).count(),
            22,
            "{report}"
        );
    }
}

#[test]
fn a_file_or_its_index_opens_like_its_directory() {
    for fixture in fixtures() {
        let name = &fixture.name;
        let Some(checkpoint) = open_fixture(&fixture) else {
            continue;
        };
        let expected = ternary_sha256(&checkpoint);
        for file in ["model.safetensors", "model.safetensors.index.json"] {
            let file = fixture.checkpoint.join(file);
            if file.is_file() {
                let options = OpenOptions {
                    ternary_trained: fixture.ternary_trained(),
                    ..OpenOptions::default()
                };
                let other = Checkpoint::open(&file, &options).unwrap();
                assert_eq!(other.config, checkpoint.config, "{name}");
                assert_eq!(ternary_sha256(&other), expected, "{name}");
                assert!(
                    other.side_file("tokenizer_config.json").unwrap().is_some(),
                    "{name}"
                );
            }
        }
    }
}

// --------------------------------------------------------------------------- what other tools wrote

#[test]
fn gguf_files_of_the_peers_read_as_their_manifest_says() {
    let root = fixtures::vectors_dir().join("gguf-files");
    let manifest = read_json(&root.join("manifest.json"));
    let mut files = 0;
    for entry in manifest["entries"].as_array().unwrap() {
        let file = root.join(entry["file"].as_str().unwrap());
        let checkpoint = match Checkpoint::open(&file, &OpenOptions::default()) {
            Ok(checkpoint) => checkpoint,
            Err(e) => {
                // TL1, TL2: types without a packing (yet)
                assert_eq!(e.code, ErrorCode::UnknownType, "{e}");
                assert!(
                    e.tensor.as_deref().is_some_and(|t| t.starts_with("blk.0.")),
                    "{e}"
                );
                continue;
            }
        };
        let truth: BTreeMap<&str, &Value> = entry["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t["name"].as_str().unwrap(), t))
            .collect();
        for slot in linears(&checkpoint) {
            let source = checkpoint.linear(slot).unwrap();
            let truth = truth[source.info.name.as_str()];
            let matrix = checkpoint.ternary(slot).unwrap();
            let stored = match source.order {
                Some(order) => order.from_hf(&matrix).unwrap(),
                None => matrix,
            };
            assert_eq!(
                trits_sha256(&stored),
                truth["trits_sha256"],
                "{} {}",
                file.display(),
                source.info.name
            );
            let Scales::PerTensor(scale) = stored.normal_scales() else {
                panic!("{}", source.info.name)
            };
            assert_eq!(
                hex(&scale.to_le_bytes()),
                truth["scale_f32_hex"],
                "{}",
                source.info.name
            );
        }
        files += 1;
    }
    assert!(files > 0);
}

// ------------------------------------------------------------------------------- one model, one hash

/// A tensor to be written.
struct Out(String, Encoding, Vec<usize>, Vec<u8>);

fn write(
    container: &dyn Container,
    path: &Path,
    metadata: Vec<(String, MetaValue)>,
    tensors: &[Out],
) {
    let planned = |t: &Out| PlannedTensor {
        name: t.0.clone(),
        encoding: t.1,
        shape: t.2.clone(),
        len: t.3.len() as u64,
    };
    let plan = WritePlan {
        metadata: Metadata(metadata),
        tensors: tensors.iter().map(planned).collect(),
    };
    let header = container.header(&plan).unwrap();
    let mut bytes = header.bytes.clone();
    for (tensor, offset) in tensors.iter().zip(&header.offsets) {
        bytes.resize(*offset as usize, 0);
        bytes.extend_from_slice(&tensor.3);
    }
    bytes.resize(header.total as usize, 0);
    std::fs::write(path, bytes).unwrap();
}

/// A tensor that is no linear of a layer; tables that are ternary as numbers.
fn dense_out(checkpoint: &Checkpoint, slot: Slot, name: String) -> Out {
    if checkpoint.is_ternary(slot) {
        let matrix = checkpoint.ternary(slot).unwrap();
        let shape = vec![matrix.rows(), matrix.cols()];
        let encoding = Encoding::Plain(PlainType::F32);
        return Out(name, encoding, shape, dequantised_f32(&matrix));
    }
    let dense = checkpoint.dense(slot).unwrap();
    Out(
        name,
        dense.encoding,
        dense.shape.to_vec(),
        dense.bytes.to_vec(),
    )
}

fn dequantised_f32(matrix: &TernaryMatrix) -> Vec<u8> {
    let weight = |(i, &t): (usize, &i8)| {
        let scale = matrix
            .scales()
            .at(i / matrix.cols(), i % matrix.cols(), matrix.cols());
        (f32::from(t) * scale).to_le_bytes()
    };
    matrix.trits().iter().enumerate().flat_map(weight).collect()
}

#[test]
fn every_container_of_a_model_gives_the_same_config_and_hash() {
    let scratch = tempfile::tempdir().unwrap();
    for fixture in fixtures() {
        let name = &fixture.name;
        let Some(checkpoint) = open_fixture(&fixture) else {
            continue;
        };
        let family = checkpoint.family;
        let expected = ternary_sha256(&checkpoint);
        // stacked experts and shaped tensors are written by a conversion only: `experts::`, `qwen35::`
        if checkpoint.config.experts.is_some() || checkpoint.config.hybrid.is_some() {
            continue;
        }
        let head_dim = checkpoint.config.head_dim;
        for packing in [None, packing_by_name("i2_s")] {
            let file = scratch.path().join("model.gguf");
            let mut metadata = family
                .gguf_metadata(&checkpoint.config, Some(name))
                .unwrap();
            if let Some(bos) = checkpoint.config.bos_token_id {
                metadata.push((
                    "tokenizer.ggml.bos_token_id".to_owned(),
                    MetaValue::U32(bos),
                ));
            }
            let mut fits = true;
            let mut tensors = Vec::new();
            for slot in checkpoint.slots() {
                let name = (family.gguf_tensor_name)(slot);
                if !slot.is_ternary() {
                    tensors.push(dense_out(&checkpoint, slot, name));
                    continue;
                }
                let mut matrix = checkpoint.ternary(slot).unwrap();
                if family.permutes_qk && (name.contains("attn_q") || name.contains("attn_k")) {
                    matrix = gguf_from_hf_rows(&matrix, head_dim);
                }
                let shape = vec![matrix.rows(), matrix.cols()];
                match packing {
                    None => {
                        let encoding = Encoding::Plain(PlainType::F32);
                        tensors.push(Out(name, encoding, shape, dequantised_f32(&matrix)));
                    }
                    Some(packing) => match packing.pack(&matrix, ScaleRounding::Refuse) {
                        Ok(bytes) => {
                            tensors.push(Out(name, Encoding::Ternary(packing), shape, bytes))
                        }
                        Err(e) => {
                            assert_eq!(e.code, ErrorCode::TargetCannotHold, "{e}");
                            fits = false;
                        }
                    },
                }
            }
            for (name, values) in family.gguf_extra_tensors(&checkpoint.config) {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push(Out(
                    name,
                    Encoding::Plain(PlainType::F32),
                    vec![values.len()],
                    bytes,
                ));
            }
            if fits {
                write(&Gguf, &file, metadata, &tensors);
                let gguf = Checkpoint::open(&file, &OpenOptions::default()).unwrap();
                assert_eq!(gguf.config, checkpoint.config, "{name}");
                assert_eq!(ternary_sha256(&gguf), expected, "{name}");
            }
        }
        // packed, in the direction of the source, and turned into the other where that is exact
        let kept = checkpoint
            .scale_direction()
            .unwrap_or(ScaleDirection::Multiply);
        let one_scale = |slot: Slot| {
            let matrix = checkpoint.ternary(slot).unwrap();
            !slot.is_ternary() || matches!(matrix.scales(), Scales::PerTensor(_))
        };
        let holds = linears(&checkpoint).all(one_scale);
        for direction in [kept, ScaleDirection::Multiply]
            .into_iter()
            .filter(|_| holds)
        {
            let storage = HfStorage::Packed(direction);
            let packed = rewrite(
                &checkpoint,
                scratch.path(),
                storage,
                |slot, matrix, name| {
                    let hf_u8 = packing_by_name("hf_u8").unwrap();
                    let bytes = hf_u8.pack(matrix, ScaleRounding::Refuse).unwrap();
                    let shape = vec![matrix.rows().div_ceil(4), matrix.cols()];
                    let scale = match (direction, checkpoint.stored_scale(slot).unwrap()) {
                        (ScaleDirection::Divide, Some((stored, ScaleDirection::Divide))) => stored,
                        _ => matrix.scales().as_slice()[0],
                    };
                    let (plain, scale) = weight_scale_bytes(scale);
                    let scale_name = name.replace(".weight", ".weight_scale");
                    vec![
                        Out(name, Encoding::Plain(PlainType::U8), shape, bytes),
                        Out(scale_name, Encoding::Plain(plain), vec![1], scale),
                    ]
                },
            );
            assert_eq!(ternary_sha256(&packed), expected, "{name}: packed");
            assert_eq!(packed.scale_direction(), Some(direction), "{name}");
            assert_eq!(packed.config, checkpoint.config, "{name}");
        }
        let dense = rewrite(
            &checkpoint,
            scratch.path(),
            HfStorage::Dequantised,
            |_, matrix, name| {
                let shape = vec![matrix.rows(), matrix.cols()];
                let scale_name = name.replace(".weight", ".weight_scale");
                let bytes = dequantised_f32(matrix);
                let mut out = vec![Out(name, Encoding::Plain(PlainType::F32), shape, bytes)];
                if family.dequantised_has_scale(&checkpoint.config) {
                    let (plain, one) = weight_scale_bytes(1.0);
                    out.push(Out(scale_name, Encoding::Plain(plain), vec![1], one));
                }
                out
            },
        );
        assert_eq!(ternary_sha256(&dense), expected, "{name}: dequantised");
        assert_eq!(dense.config, checkpoint.config, "{name}: dequantised");
    }
}

/// Writes a checkpoint directory with every linear stored as `linear` says, and opens it.
fn rewrite(
    checkpoint: &Checkpoint,
    scratch: &Path,
    storage: HfStorage,
    linear: impl Fn(Slot, &TernaryMatrix, String) -> Vec<Out>,
) -> Checkpoint {
    let family = checkpoint.family;
    let mut tensors = Vec::new();
    for slot in checkpoint.slots() {
        let name = (family.tensor_name)(slot);
        if slot.is_ternary() {
            tensors.extend(linear(slot, &checkpoint.ternary(slot).unwrap(), name));
        } else {
            tensors.push(dense_out(checkpoint, slot, name));
        }
    }
    let config =
        family.hf_config_json(&checkpoint.config, checkpoint.config_json.as_ref(), storage);
    std::fs::write(scratch.join("config.json"), config.to_string()).unwrap();
    let eos = json!({"eos_token_id": checkpoint.config.eos_token_ids});
    std::fs::write(scratch.join("generation_config.json"), eos.to_string()).unwrap();
    write(
        &Safetensors,
        &scratch.join("model.safetensors"),
        Vec::new(),
        &tensors,
    );
    Checkpoint::open(&scratch.join("model.safetensors"), &OpenOptions::default()).unwrap()
}

// ---------------------------------------------------------------------------------- what is refused

const HIDDEN: usize = 32;
const INTER: usize = 64;
const KV: usize = 16;
const VOCAB: usize = 12;
const Q: &str = "model.layers.0.self_attn.q_proj.weight";

/// A small checkpoint under construction.
#[derive(Clone)]
struct Draft {
    config: Value,
    tensors: BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>,
}

/// bf16 bytes of a value.
fn bf16(x: f32) -> [u8; 2] {
    ((x.to_bits() >> 16) as u16).to_le_bytes()
}

impl Draft {
    /// A Llama of one layer whose linears hold `linear(rows, cols, index)` in bf16.
    fn llama(linear: impl Fn(usize) -> f32) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": HIDDEN, "intermediate_size": INTER, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "max_position_embeddings": 64, "vocab_size": VOCAB,
            "tie_word_embeddings": false, "eos_token_id": 2,
        });
        let mut draft = Self {
            config,
            tensors: BTreeMap::new(),
        };
        let mut dense = |name: &str, shape: &[usize]| {
            let count = shape.iter().product();
            let bytes = (0..count)
                .flat_map(|i: usize| bf16((i % 7) as f32 - 3.0))
                .collect();
            draft
                .tensors
                .insert(name.to_owned(), ("BF16", shape.to_vec(), bytes));
        };
        dense("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
        dense("lm_head.weight", &[VOCAB, HIDDEN]);
        dense("model.norm.weight", &[HIDDEN]);
        dense("model.layers.0.input_layernorm.weight", &[HIDDEN]);
        dense("model.layers.0.post_attention_layernorm.weight", &[HIDDEN]);
        for (role, rows, cols) in Self::linears() {
            let bytes = (0..rows * cols).flat_map(|i| bf16(linear(i))).collect();
            draft
                .tensors
                .insert(Self::name(role), ("BF16", vec![rows, cols], bytes));
        }
        draft
    }

    /// The same with packed linears and scales that divide.
    fn packed() -> Self {
        let mut draft = Self::llama(|_| 0.0);
        draft.config["quantization_config"] = json!({"quant_method": "bitnet"});
        for (role, rows, cols) in Self::linears() {
            let name = Self::name(role);
            let bytes = (0..rows / 4 * cols)
                .map(|i| [0x24, 0x91, 0x98, 0x49][i % 4])
                .collect();
            let scale = name.replace(".weight", ".weight_scale");
            draft
                .tensors
                .insert(name, ("U8", vec![rows / 4, cols], bytes));
            draft
                .tensors
                .insert(scale, ("BF16", vec![1], bf16(4.0).to_vec()));
        }
        draft
    }

    fn linears() -> [(&'static str, usize, usize); 7] {
        [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KV, HIDDEN),
            ("self_attn.v_proj", KV, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", INTER, HIDDEN),
            ("mlp.up_proj", INTER, HIDDEN),
            ("mlp.down_proj", HIDDEN, INTER),
        ]
    }

    fn name(role: &str) -> String {
        format!("model.layers.0.{role}.weight")
    }

    fn set(mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors
            .insert(name.to_owned(), (dtype, shape.to_vec(), bytes));
        self
    }

    fn key(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    fn write(&self, directory: &Path) {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        for (name, (dtype, shape, bytes)) in &self.tensors {
            let range = [data.len(), data.len() + bytes.len()];
            header.insert(
                name.clone(),
                json!({"dtype": dtype, "shape": shape, "data_offsets": range}),
            );
            data.extend_from_slice(bytes);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&data);
        std::fs::write(directory.join("model.safetensors"), file).unwrap();
        std::fs::write(directory.join("config.json"), self.config.to_string()).unwrap();
    }

    fn open_with(&self, options: &OpenOptions) -> Result<Checkpoint, FormatError> {
        thread_local! {
            static SCRATCH: RefCell<Vec<TempDir>> = const { RefCell::new(Vec::new()) };
        }
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().to_owned();
        // until the test ends: a file that is removed while it is read has changed
        SCRATCH.with_borrow_mut(|all| all.push(scratch));
        self.write(&path);
        Checkpoint::open(&path, options)
    }

    fn open(&self) -> Result<Checkpoint, FormatError> {
        self.open_with(&OpenOptions::default())
    }

    /// The first error of opening and reading everything.
    fn refused(&self) -> FormatError {
        let read = |checkpoint: &Checkpoint| -> Result<(), FormatError> {
            for slot in checkpoint.slots_in_file_order() {
                if slot.is_ternary() {
                    checkpoint.ternary(slot)?;
                } else {
                    checkpoint.dense(slot)?;
                }
            }
            Ok(())
        };
        match self.open() {
            Err(e) => e,
            Ok(checkpoint) => read(&checkpoint).expect_err("it should have been refused"),
        }
    }

    #[track_caller]
    fn refused_as(&self, code: ErrorCode, says: &[&str]) {
        let error = self.refused();
        let text = error.to_string();
        assert_eq!(error.code, code, "{text}");
        assert!(
            says.iter().all(|s| text.contains(s)),
            "{text} does not say {says:?}"
        );
        assert!(error.file.is_some(), "{text}");
        assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    }
}

/// Ordinary weights, by a fixed sequence.
fn ordinary(i: usize) -> f32 {
    ((i * 7919 + 13) % 1009) as f32 / 504.0 - 1.0
}

#[test]
fn the_drafts_themselves_are_sound() {
    let packed = Draft::packed().open().unwrap();
    let q = packed.ternary(packed.slots()[2]).unwrap();
    assert_eq!(q.scales(), &Scales::PerTensor(0.25));
    assert_eq!(packed.family.name, "llama_b1_58");
    let dense = Draft::llama(|i| [0.5, -0.5, 0.0][i % 3]).open().unwrap();
    assert_eq!(
        dense.config.activation_quantization,
        ActivationQuantization::None
    );
}

#[test]
fn ordinary_weights_need_the_users_word() {
    let draft = Draft::llama(ordinary);
    let error = draft.refused();
    assert_eq!(error.code, ErrorCode::NotTernary, "{error}");
    assert!(error.to_string().contains(Q), "{error}");
    assert!(
        error.to_string().contains("by 0.40 of their size"),
        "{error}"
    );
    assert!(
        error
            .hint
            .as_deref()
            .is_some_and(|h| h.contains("--ternary-trained"))
    );
    let options = OpenOptions {
        ternary_trained: true,
        ..OpenOptions::default()
    };
    let checkpoint = draft.open_with(&options).unwrap();
    assert!(checkpoint.has_master_weights());
    assert_eq!(
        checkpoint.config.activation_quantization,
        ActivationQuantization::Int8PerToken
    );
    // a configuration that says online needs no word, and keeps its meaning for ternary values too
    let online = json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online",
    });
    assert!(
        draft
            .clone()
            .key("quantization_config", online.clone())
            .open()
            .unwrap()
            .has_master_weights()
    );
    let ternary = Draft::llama(|i| [0.5, -0.5, 0.0][i % 3]).key("quantization_config", online);
    assert!(ternary.open().unwrap().has_master_weights());
}

#[test]
fn ternary_values_keep_their_own_scales() {
    // one magnitude per row: no rule would find it, and absmean would destroy it
    let rows = Draft::llama(|i| (i / 32 % 3 + 1) as f32 * [0.5, -0.5, 0.0, 0.5][i % 4]);
    let checkpoint = rows.open().unwrap();
    let matrix = checkpoint.ternary(checkpoint.slots()[2]).unwrap();
    assert!(
        matches!(matrix.scales(), Scales::PerRow(_)),
        "{}",
        matrix.scales().structure()
    );
    assert_eq!(matrix.scales().at(2, 0, HIDDEN), 1.5);
    // a second magnitude far behind what opening looks at is found by reading
    let broken = Draft::llama(|i| {
        if i == 1000 {
            0.25
        } else {
            [0.5, -0.5, 0.0][i % 3]
        }
    });
    broken.refused_as(ErrorCode::NotTernary, &[Q, "ordinary weights"]);
}

#[test]
fn scales_beside_float_values_multiply_exactly() {
    let offline = json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
    });
    let scaled = |linear: fn(usize) -> f32, scale: f32| {
        let mut draft = Draft::llama(linear).key("quantization_config", offline.clone());
        for (role, ..) in Draft::linears() {
            let name = Draft::name(role).replace(".weight", ".weight_scale");
            draft = draft.set(&name, "F32", &[], scale.to_le_bytes().to_vec());
        }
        draft
    };
    let bare = scaled(|i| [1.0, -1.0, 0.0][i % 3], 0.1).open().unwrap();
    assert_eq!(
        bare.ternary(bare.slots()[2]).unwrap().scales(),
        &Scales::PerTensor(0.1)
    );
    let both = scaled(|i| [0.75, -0.75, 0.0][i % 3], 0.5).open().unwrap();
    assert_eq!(
        both.ternary(both.slots()[2]).unwrap().scales(),
        &Scales::PerTensor(0.375)
    );
    scaled(|i| [0.75, -0.75, 0.0][i % 3], 0.1).refused_as(
        ErrorCode::ScaleRounding,
        &["down_proj.weight_scale", "0.75 * 0.1"],
    );
    let mut divides = scaled(|i| [0.75, -0.75, 0.0][i % 3], 4.0);
    divides.config["quantization_config"] = json!({"quant_method": "bitnet"});
    divides.refused_as(
        ErrorCode::Malformed,
        &["down_proj.weight", "bare trits", "0.75"],
    );
}

#[test]
fn the_direction_of_a_scale_is_never_a_matter_of_magnitude() {
    for (config, expected) in [
        (json!({"quant_method": "bitnet"}), 0.25),
        (
            json!({"quant_method": "bitnet", "linear_class": "autobitlinear"}),
            4.0,
        ),
        (Value::Null, 0.25), // model_type llama divides
    ] {
        let checkpoint = Draft::packed()
            .key("quantization_config", config)
            .open()
            .unwrap();
        let matrix = checkpoint.ternary(checkpoint.slots()[2]).unwrap();
        assert_eq!(matrix.scales(), &Scales::PerTensor(expected));
    }
}

#[test]
fn packed_codes_in_other_types_are_taken_by_value() {
    let expected = ternary_sha256(&Draft::packed().open().unwrap());
    let convert = |dtype: &'static str, value: fn(u8) -> Vec<u8>| {
        let mut draft = Draft::packed();
        for (role, ..) in Draft::linears() {
            let tensor = draft.tensors.get_mut(&Draft::name(role)).unwrap();
            *tensor = (
                dtype,
                tensor.1.clone(),
                tensor.2.iter().flat_map(|&b| value(b)).collect(),
            );
        }
        draft
    };
    for draft in [
        convert("I8", |b| vec![b]),
        convert("I16", |b| i16::from(b).to_le_bytes().to_vec()),
        convert("I32", |b| i32::from(b).to_le_bytes().to_vec()),
        convert("I64", |b| i64::from(b).to_le_bytes().to_vec()),
        convert("F32", |b| f32::from(b).to_le_bytes().to_vec()),
        convert("BF16", |b| bf16(b.into()).to_vec()),
    ] {
        assert_eq!(ternary_sha256(&draft.open().unwrap()), expected);
    }
    convert("I32", |b| (i32::from(b) + 200).to_le_bytes().to_vec())
        .refused_as(ErrorCode::Malformed, &["model.layers.0", "0 to 255"]);
}

#[test]
fn bad_numbers_are_refused_where_they_stand() {
    let scale = Q.replace(".weight", ".weight_scale");
    let with_scale = |x: f32| Draft::packed().set(&scale, "BF16", &[1], bf16(x).to_vec());
    with_scale(f32::INFINITY).refused_as(ErrorCode::NonFinite, &[&scale, "inf"]);
    with_scale(f32::NAN).refused_as(ErrorCode::NonFinite, &[&scale]);
    with_scale(0.0).refused_as(ErrorCode::Malformed, &[&scale, "positive"]);
    with_scale(-4.0).refused_as(ErrorCode::Malformed, &[&scale, "-4"]);
    with_scale(1e-39).refused_as(ErrorCode::NonFinite, &[&scale, "inverse"]);

    let mut bad = Draft::packed();
    bad.tensors.get_mut(Q).unwrap().2[HIDDEN + 5] = 0x2f; // pairs 3, 3, 2, 0
    bad.refused_as(ErrorCode::BadCode, &[Q, "row 1", "column 5"]);

    let mut nan = Draft::llama(ordinary).key("weight_bits", json!(1));
    nan.tensors.get_mut(Q).unwrap().2[2 * (3 * HIDDEN + 7)..][..2].copy_from_slice(&bf16(f32::NAN));
    nan.refused_as(ErrorCode::NonFinite, &[Q, "row 3, column 7"]);

    let mut norm = Draft::packed();
    norm.tensors.get_mut("model.norm.weight").unwrap().2[10..12]
        .copy_from_slice(&bf16(f32::INFINITY));
    norm.refused_as(ErrorCode::NonFinite, &["model.norm.weight", "element 5"]);
    let mut embedding = Draft::packed();
    let bytes = &mut embedding
        .tensors
        .get_mut("model.embed_tokens.weight")
        .unwrap()
        .2;
    bytes[2 * HIDDEN..][..2].copy_from_slice(&bf16(f32::NAN));
    embedding.refused_as(
        ErrorCode::NonFinite,
        &["model.embed_tokens.weight", "row 1, column 0"],
    );
}

#[test]
fn every_tensor_has_its_place_and_shape() {
    let without = |name: &str| {
        let mut draft = Draft::packed();
        assert!(draft.tensors.remove(name).is_some());
        draft
    };
    without(Q).refused_as(ErrorCode::MissingTensor, &[Q]);
    without("model.norm.weight").refused_as(ErrorCode::MissingTensor, &["model.norm.weight"]);
    without("lm_head.weight").refused_as(ErrorCode::MissingTensor, &["lm_head.weight"]);
    let scale = Q.replace(".weight", ".weight_scale");
    without(&scale).refused_as(ErrorCode::MissingTensor, &[&scale]);

    let extra = |name: &str| Draft::packed().set(name, "BF16", &[1], vec![0; 2]);
    extra("model.layers.1.mlp.up_proj.weight").refused_as(
        ErrorCode::ExtraTensor,
        &["model.layers.1.mlp.up_proj.weight"],
    );
    extra("model.layers.0.self_attn.q_proj.bias")
        .refused_as(ErrorCode::ExtraTensor, &["q_proj.bias", "no biases"]);
    extra("model.layers.0.self_attn.attn_sub_norm.weight")
        .refused_as(ErrorCode::ExtraTensor, &["attn_sub_norm"]);
    extra("model.layers.0.self_attn.rotary_emb.inv_freq")
        .open()
        .unwrap();

    let shaped = |name: &str, dtype, shape: &[usize], bytes: usize| {
        Draft::packed().set(name, dtype, shape, vec![0; bytes])
    };
    shaped(Q, "U8", &[HIDDEN, HIDDEN], HIDDEN * HIDDEN)
        .refused_as(ErrorCode::WrongShape, &[Q, "[8, 32]", "[32, 32]"]);
    shaped(Q, "U8", &[HIDDEN / 4, 16], HIDDEN / 4 * 16)
        .refused_as(ErrorCode::WrongShape, &[Q, "[8, 16]"]);
    shaped("model.norm.weight", "BF16", &[16], 32).refused_as(
        ErrorCode::WrongShape,
        &["model.norm.weight", "[32]", "[16]"],
    );
    shaped("model.norm.weight", "U8", &[HIDDEN], HIDDEN)
        .refused_as(ErrorCode::WrongType, &["model.norm.weight", "u8"]);
    shaped(&scale, "BF16", &[2], 4).refused_as(ErrorCode::WrongShape, &[&scale, "[2]"]);
    shaped(&scale, "I32", &[1], 4).refused_as(ErrorCode::WrongType, &[&scale, "i32"]);
    Draft::packed()
        .key("weight_bits", json!(1))
        .key("quantization_config", Value::Null)
        .refused_as(ErrorCode::WrongType, &[Q, "online"]);
}

#[test]
fn names_work_with_and_without_their_prefix() {
    let expected = ternary_sha256(&Draft::packed().open().unwrap());
    let mut draft = Draft::packed();
    let tensors = std::mem::take(&mut draft.tensors).into_iter();
    draft.tensors = tensors
        .map(|(k, v)| (k.strip_prefix("model.").unwrap_or(&k).to_owned(), v))
        .collect();
    assert_eq!(ternary_sha256(&draft.open().unwrap()), expected);
}

#[test]
fn a_tied_head_may_only_repeat_the_embedding() {
    let tied = Draft::packed().key("tie_word_embeddings", json!(true));
    tied.open().unwrap();
    let mut other = tied;
    other.tensors.get_mut("lm_head.weight").unwrap().2[0] ^= 1;
    other.refused_as(
        ErrorCode::ExtraTensor,
        &["lm_head.weight", "model.embed_tokens.weight"],
    );
}

#[test]
fn unknown_configurations_are_refused() {
    let with = |key: &str, value: Value| Draft::packed().key(key, value);
    with("quantization_config", json!({"quant_method": "gptq"})).refused_as(
        ErrorCode::UnknownQuantization,
        &["quantization_config.quant_method", "gptq", "config.json"],
    );
    with("hidden_act", json!("gelu_new"))
        .refused_as(ErrorCode::UnsupportedConfig, &["hidden_act", "gelu_new"]);
    with("model_type", json!("mamba"))
        .refused_as(ErrorCode::UnsupportedConfig, &["model_type", "mamba"]);
    with("rope_scaling", json!({"rope_type": "dynamic", "factor": 4})).refused_as(
        ErrorCode::UnsupportedConfig,
        &["rope_scaling.rope_type", "dynamic"],
    );
    with(
        "rope_scaling",
        json!({"rope_type": "longrope", "short_factor": [1.0]}),
    )
    .refused_as(ErrorCode::UnsupportedConfig, &["rope_scaling.long_factor"]);
    let scratch = tempfile::tempdir().unwrap();
    let draft = Draft::packed();
    draft.write(scratch.path());
    std::fs::remove_file(scratch.path().join("config.json")).unwrap();
    let error = Checkpoint::open(scratch.path(), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnsupportedConfig);
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn repeated_keys_of_a_config_take_the_last() {
    let scratch = tempfile::tempdir().unwrap();
    let draft = Draft::packed();
    draft.write(scratch.path());
    let text = draft.config.to_string();
    let twice = text.replacen(
        '{',
        "{\"quantization_config\": {\"quant_method\": \"awq\"}, ",
        1,
    );
    std::fs::write(scratch.path().join("config.json"), twice).unwrap();
    Checkpoint::open(scratch.path(), &OpenOptions::default()).unwrap();
}

#[test]
fn a_truncated_file_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    Draft::packed().write(scratch.path());
    let file = scratch.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for keep in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..keep]).unwrap();
        let error = Checkpoint::open(scratch.path(), &OpenOptions::default()).unwrap_err();
        let fine = [ErrorCode::Truncated, ErrorCode::UnknownContainer].contains(&error.code);
        assert!(fine, "{keep}: {} {error}", error.code.as_str());
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn a_forced_layout_has_to_exist_and_changes_what_is_read() {
    let file = fixtures::repository().join("formats/vectors/gguf-files/b158_packed-i2_s.gguf");
    let open = |layout: Option<&str>| {
        let options = OpenOptions {
            layout: layout.map(str::to_owned),
            ..OpenOptions::default()
        };
        Checkpoint::open(&file, &options)
    };
    let plain = ternary_sha256(&open(None).unwrap());
    assert_eq!(ternary_sha256(&open(Some("i2_s")).unwrap()), plain);
    assert_ne!(ternary_sha256(&open(Some("i2_s-arm64")).unwrap()), plain);
    for bad in ["hf_u8", "nonsense"] {
        let error = open(Some(bad)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage);
        assert!(error.to_string().contains(bad), "{error}");
    }
}

#[test]
fn packings_agree_with_what_the_checkpoint_reads() {
    // the parallel reading of pieces equals the packing's own reading of the whole
    let checkpoint = Draft::packed().open().unwrap();
    for slot in linears(&checkpoint) {
        let source = checkpoint.linear(slot).unwrap();
        let bytes = checkpoint.file.read(&source.info).unwrap();
        let whole = PackedTensor {
            bytes: &bytes,
            rows: source.rows,
            cols: source.cols,
            outside: Some(&Scales::PerTensor(0.25)),
        };
        let expected = packing_by_name("hf_u8").unwrap().unpack(&whole).unwrap();
        assert_eq!(checkpoint.ternary(slot).unwrap(), expected);
    }
}
