//! Golden directories: what Hugging Face transformers computed for a checkpoint.
//!
//! Invariant: nothing here computes; what is loaded is what the files say. Fixtures lie in
//! `tests/fixtures/<family>/{checkpoint,golden}`, or in the folder that `BITNET_FIXTURES` names, in
//! the same layout.

use bitnet_model::{LayerSlot, Slot};
use bitnet_ternary::{bf16_to_f32, f16_to_f32};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One family's directories.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// Directory name, for reports only.
    pub name: String,
    /// The Hugging Face checkpoint.
    pub checkpoint: PathBuf,
    /// The golden files.
    pub golden: PathBuf,
}

/// `BITNET_FIXTURES`, else the fixtures of this repository.
pub fn fixtures_dir() -> PathBuf {
    std::env::var_os("BITNET_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures"),
        PathBuf::from,
    )
}

/// Whether the fixtures are somebody else's.
pub fn fixtures_are_foreign() -> bool {
    std::env::var_os("BITNET_FIXTURES").is_some()
}

/// Every fixture of [`fixtures_dir`], sorted by name.
///
/// # Panics
/// If the folder cannot be read.
pub fn fixtures() -> Vec<Fixture> {
    let dir = fixtures_dir();
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut all: Vec<Fixture> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let (checkpoint, golden) = (path.join("checkpoint"), path.join("golden"));
            let name = path.file_name()?.to_string_lossy().into_owned();
            (checkpoint.is_dir() && golden.is_dir()).then_some(Fixture {
                name,
                checkpoint,
                golden,
            })
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A float tensor of a golden file, widened.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Tensor {
    /// Sizes of a matrix; `(1, n)` for a vector.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.data.len()),
        }
    }
}

/// One prompt with everything recorded for it.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// `short`, `english`, ...
    pub name: String,
    /// The text, if the ids come from one.
    pub text: Option<String>,
    /// Token ids.
    pub ids: Vec<u32>,
    /// f32 logits of every position, `(tokens, vocab)`.
    pub logits: Option<Tensor>,
    /// The same in the checkpoint's own dtype, if that is not f32.
    pub native_logits: Option<Tensor>,
    /// Greedy continuation in f32.
    pub greedy: Vec<u32>,
    /// Distance of the two largest logits at each of its steps.
    pub greedy_margins: Vec<f64>,
}

/// The truth about one ternary linear.
#[derive(Debug, Clone)]
pub struct TernaryTruth {
    /// Name in the checkpoint.
    pub name: String,
    /// Which linear.
    pub slot: Slot,
    /// `[rows, cols]`
    pub shape: Vec<usize>,
    /// Of the int8 codes, row-major, hex.
    pub sha256: String,
    /// `weight = code * alpha`
    pub alpha: f32,
    /// Whether the scale is stored (or read off the values) and therefore exact; else absmean.
    pub alpha_is_exact: bool,
}

/// Everything of one golden directory.
#[derive(Debug, Clone)]
pub struct Golden {
    /// `manifest.json`
    pub manifest: Value,
    /// Prompts in file order.
    pub prompts: Vec<Prompt>,
    /// Ternary linears in file order.
    pub ternary: Vec<TernaryTruth>,
    /// `trace_short_f32.safetensors`; empty if it was not recorded.
    pub trace: BTreeMap<String, Tensor>,
    /// The perplexity stream; empty for embedding models.
    pub stream: Vec<u32>,
    /// Its mean negative log likelihood in f32.
    pub stream_nll: f64,
}

impl Golden {
    /// Whether this is an embedding model (no logits).
    pub fn is_embedding(&self) -> bool {
        !self.manifest["pooling"].is_null()
    }

    /// Whether the reference quantised activations, or ran the checkpoint as a dense model.
    pub fn activation_quantised(&self) -> bool {
        self.manifest["activation_quantised"]
            .as_bool()
            .unwrap_or(true)
    }

    /// Whether the reference had to be told that the checkpoint is ternary-trained: open it with
    /// `OpenOptions::ternary_trained`.
    pub fn ternary_trained(&self) -> bool {
        !self.manifest["mapping"].is_null()
    }

    /// Reads a directory.
    ///
    /// # Errors
    /// What could not be read or understood, with its file.
    pub fn load(dir: &Path) -> Result<Self, String> {
        let manifest = json(&dir.join("manifest.json"))?;
        let native = manifest["dtypes"]
            .as_array()
            .and_then(|dtypes| {
                dtypes
                    .iter()
                    .filter_map(Value::as_str)
                    .find(|d| *d != "f32")
            })
            .map(str::to_owned);
        let mut logits = tensors_if_there(&dir.join("logits_f32.safetensors"))?;
        let mut native_logits = match &native {
            Some(native) => tensors_if_there(&dir.join(format!("logits_{native}.safetensors")))?,
            None => BTreeMap::new(),
        };
        let greedy = json_if_there(&dir.join("greedy.json"))?;
        let perplexity = json_if_there(&dir.join("perplexity.json"))?;

        let mut prompts = Vec::new();
        for (name, prompt) in object(&json(&dir.join("prompts.json"))?)? {
            let key = format!("{name}.logits");
            prompts.push(Prompt {
                text: prompt["text"].as_str().map(str::to_owned),
                ids: ids(&prompt["ids"])?,
                logits: logits.remove(&key),
                native_logits: native_logits.remove(&key),
                greedy: ids(&greedy[name]["f32"])?,
                greedy_margins: numbers(&greedy[name]["f32_margins"]),
                name: name.clone(),
            });
        }
        let mut ternary = Vec::new();
        for (name, truth) in object(&json(&dir.join("ternary.json"))?)? {
            let bits = truth["alpha_f32_hex"].as_str().unwrap_or_default();
            let bits = u32::from_str_radix(bits.trim_start_matches("0x"), 16)
                .map_err(|e| format!("{name}: alpha_f32_hex: {e}"))?;
            ternary.push(TernaryTruth {
                slot: linear_slot(name).ok_or_else(|| format!("{name}: not a linear"))?,
                shape: numbers(&truth["shape"])
                    .iter()
                    .map(|n| *n as usize)
                    .collect(),
                sha256: truth["sha256_int8_row_major"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
                alpha: f32::from_bits(bits),
                alpha_is_exact: truth.get("exact_ties").is_none(),
                name: name.clone(),
            });
        }
        Ok(Self {
            prompts,
            ternary,
            trace: tensors_if_there(&dir.join("trace_short_f32.safetensors"))?,
            stream: ids(&perplexity["tokens"])?,
            stream_nll: perplexity["nll_mean_f32"].as_f64().unwrap_or(f64::NAN),
            manifest,
        })
    }

    /// The tokens that the trace was recorded for: those of the prompt `short`.
    pub fn trace_ids(&self) -> &[u32] {
        self.prompts
            .iter()
            .find(|p| p.name == "short")
            .map_or(&[], |p| &p.ids)
    }
}

/// The slot of `model.layers.3.self_attn.q_proj.weight`, with or without `model.` and `.weight`.
pub fn linear_slot(name: &str) -> Option<Slot> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let (layer, path) = name.strip_prefix("layers.")?.split_once('.')?;
    let slot = LayerSlot::LINEARS
        .into_iter()
        .find(|slot| slot.canonical() == path)?;
    Some(Slot::Layer(layer.parse().ok()?, slot))
}

/// Every float tensor of a safetensors file, widened to f32.
///
/// # Errors
/// What is wrong with the file.
pub fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    let place = |e: String| format!("{}: {e}", path.display());
    let bytes = std::fs::read(path).map_err(|e| place(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| place(e.to_string()))?;
    let mut all = BTreeMap::new();
    for (name, view) in file.tensors() {
        let halves = || {
            view.data()
                .as_chunks()
                .0
                .iter()
                .map(|b| u16::from_le_bytes(*b))
        };
        let data = match view.dtype() {
            Dtype::F32 => view
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Dtype::F16 => halves().map(f16_to_f32).collect(),
            Dtype::BF16 => halves().map(bf16_to_f32).collect(),
            other => return Err(place(format!("{name}: expected floats, found {other:?}"))),
        };
        all.insert(
            name,
            Tensor {
                shape: view.shape().to_vec(),
                data,
            },
        );
    }
    Ok(all)
}

fn tensors_if_there(path: &Path) -> Result<BTreeMap<String, Tensor>, String> {
    if path.exists() {
        tensors(path)
    } else {
        Ok(BTreeMap::new())
    }
}

fn json(path: &Path) -> Result<Value, String> {
    let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn json_if_there(path: &Path) -> Result<Value, String> {
    if path.exists() {
        json(path)
    } else {
        Ok(Value::Null)
    }
}

fn object(value: &Value) -> Result<&serde_json::Map<String, Value>, String> {
    value
        .as_object()
        .ok_or_else(|| "expected a JSON object".to_owned())
}

fn ids(value: &Value) -> Result<Vec<u32>, String> {
    let list = value.as_array().map_or(&[][..], |list| list);
    list.iter()
        .map(|id| {
            id.as_u64()
                .and_then(|id| id.try_into().ok())
                .ok_or_else(|| format!("expected a token id, found {id}"))
        })
        .collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map_or_else(Vec::new, |list| {
        list.iter().filter_map(Value::as_f64).collect()
    })
}
