//! Golden files: what Hugging Face transformers computed for a checkpoint.
//!
//! Invariant: a [`Golden`] is consistent in itself: logits have as many rows as their prompt has
//! tokens. Files other than `prompts.json` and `logits_f32.safetensors`, or `embeddings_f32.safetensors` of
//! an embedding model, may be absent.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::reference::prompts::{Prompt, read_json, read_prompts_and_texts, token_ids};
use bitnet_checkpoint::{Checkpoint, Slot};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Limits, PlainType, TensorFile, dense_to_f32, open,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// A `(rows, cols)` matrix of recorded values.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// Rows (tokens).
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major.
    pub values: Vec<f32>,
}

/// A greedy continuation of a prompt.
#[derive(Debug, Clone)]
pub struct Greedy {
    /// Name of the prompt.
    pub prompt: String,
    /// Continuation.
    pub ids: Vec<u32>,
    /// Logit margin of the best over the second token, at each step.
    pub margins: Vec<f64>,
}

/// What the scales of a ternary linear must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrueScales {
    /// One.
    One {
        /// Bits of the multiplier.
        alpha_bits: u32,
        /// Whether it was stored or read off the values, hence exact; otherwise it is the mean of master
        /// weights, whose summation order is free.
        exact: bool,
    },
    /// One per row, or per so many columns of a row, 0 where these are zeros.
    Each {
        /// Columns, if not the whole row.
        columns: Option<usize>,
        /// sha256 of the scales, f32.
        sha256: String,
    },
    /// Several, exact.
    Several {
        /// `row` or `group-N`, in normal form (`formats/certificate.md`).
        structure: String,
        /// sha256 of the scales in normal form, f32.
        sha256: String,
    },
}

/// What a ternary linear must be.
#[derive(Debug, Clone)]
pub struct TernaryTruth {
    /// Name of the tensor in the checkpoint.
    pub name: String,
    /// `[rows, cols]`
    pub shape: Vec<usize>,
    /// sha256 of the `int8` codes, row-major.
    pub sha256: String,
    /// How many are -1, 0, +1, where the record says so.
    pub counts: Option<[u64; 3]>,
    /// Its scales.
    pub scales: TrueScales,
}

/// A longer text, for its likelihood.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Mean negative log likelihood of each next token.
    pub nll_mean: f64,
}

/// The experts of the tokens of a prompt in one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedRouting {
    /// Name of the prompt.
    pub prompt: String,
    /// The layer.
    pub layer: usize,
    /// Numbers of experts, `(tokens, used)`.
    pub ids: Vec<u32>,
    /// Weights of experts, `(tokens, used)`.
    pub weights: Recorded,
    /// Logits of the router, `(tokens, experts)`, if they were recorded.
    pub logits: Option<Recorded>,
}

impl RecordedRouting {
    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.weights.rows
    }

    /// The experts of a token, with their weights.
    pub fn chosen(&self, token: usize) -> Vec<(u32, f32)> {
        let used = self.weights.cols;
        let of = |n: usize| n.saturating_mul(used);
        let ids = self.ids.iter().skip(of(token)).take(used).copied();
        let weights = self.weights.values.iter().skip(of(token)).copied();
        ids.zip(weights).collect()
    }

    /// By how much the logit of the last chosen expert of a token is above that of the first rejected one; infinite
    /// where that is not known.
    pub fn gap(&self, token: usize) -> f32 {
        let Some(logits) = &self.logits else {
            return f32::INFINITY;
        };
        let mut row: Vec<f32> = logits
            .values
            .chunks(logits.cols.max(1))
            .nth(token)
            .map(<[f32]>::to_vec)
            .unwrap_or_default();
        row.sort_by(|a, b| b.total_cmp(a));
        let last = self.weights.cols.checked_sub(1).and_then(|n| row.get(n));
        match (last, row.get(self.weights.cols)) {
            (Some(last), Some(next)) => last - next,
            _ => f32::INFINITY,
        }
    }
}

/// Everything that was recorded.
#[derive(Debug, Clone, Default)]
pub struct Golden {
    /// The prompts, in file order.
    pub prompts: Vec<Prompt>,
    /// The texts of those prompts that were made from one.
    pub texts: BTreeMap<String, String>,
    /// Logits per prompt, `f32` reference; `(tokens, vocab)`.
    pub logits: BTreeMap<String, Recorded>,
    /// The reference in the checkpoint's own 16-bit type, where it has one.
    pub native: Option<BTreeMap<String, Recorded>>,
    /// Vectors per prompt of an embedding model, `f32` reference; `(width,)`.
    pub embeddings: BTreeMap<String, Vec<f32>>,
    /// The reference in the checkpoint's own 16-bit type.
    pub native_embeddings: BTreeMap<String, Vec<f32>>,
    /// Greedy continuations.
    pub greedy: Vec<Greedy>,
    /// A longer text and its likelihood.
    pub stream: Option<Stream>,
    /// Codes and scales.
    pub ternary: Vec<TernaryTruth>,
    /// Experts of every token, by prompt and layer.
    pub routing: Vec<RecordedRouting>,
    /// Inputs and outputs of layer 0, and all hidden states, of the prompt `short`.
    pub trace: BTreeMap<String, Recorded>,
}

impl Golden {
    /// Reads a directory.
    ///
    /// # Errors
    /// A file that is missing (of the two that must be there), unreadable or inconsistent.
    pub fn read(dir: &Path) -> Result<Self, FormatError> {
        let path = dir.join("prompts.json");
        let (prompts, texts) = read_prompts_and_texts(&path)?;
        let vectors = |kind: &str| dir.join(format!("embeddings_{kind}.safetensors"));
        let none = |what: &str, path: &Path| {
            let text = format!("expected `<prompt>.{what}` for at least one prompt, found none");
            FormatError::new(ErrorCode::MissingTensor, text).in_file(path)
        };
        let (mut logits, mut embeddings) = (BTreeMap::new(), BTreeMap::new());
        let path = vectors("f32");
        if path.exists() {
            embeddings = read_vectors(&path)?;
            if embeddings.is_empty() {
                return Err(none("embedding", &path));
            }
        } else {
            let path = dir.join("logits_f32.safetensors");
            logits = read_logits(&path, &prompts)?;
            if logits.is_empty() {
                return Err(none("logits", &path));
            }
        }
        let native_embeddings = ["bf16", "f16"].map(vectors);
        let native_embeddings = native_embeddings.iter().find(|p| p.exists());
        let native_embeddings = native_embeddings.map(|p| read_vectors(p)).transpose()?;
        let native = ["bf16", "f16"].map(|t| dir.join(format!("logits_{t}.safetensors")));
        let native = native
            .iter()
            .find(|p| p.exists())
            .map(|p| read_logits(p, &prompts))
            .transpose()?;
        let optional = |name: &str| {
            let path = dir.join(name);
            path.exists().then_some(path)
        };
        let greedy = optional("greedy.json")
            .map(|p| read(&p, parse_greedy))
            .transpose()?;
        let stream = optional("perplexity.json")
            .map(|p| read(&p, parse_stream))
            .transpose()?;
        let ternary = optional("ternary.json")
            .map(|p| read(&p, parse_ternary))
            .transpose()?;
        let trace = optional("trace_short_f32.safetensors")
            .map(|p| read_matrices(&p))
            .transpose()?;
        let routing = optional("moe_f32.safetensors")
            .map(|p| read_routing(&p, &prompts))
            .transpose()?;
        Ok(Self {
            routing: routing.unwrap_or_default(),
            prompts,
            texts,
            logits,
            native,
            embeddings,
            native_embeddings: native_embeddings.unwrap_or_default(),
            greedy: greedy.unwrap_or_default(),
            stream,
            ternary: ternary.unwrap_or_default(),
            trace: trace.unwrap_or_default(),
        })
    }

    /// What a linear must be, under the checkpoint's own name for it or the canonical one.
    pub fn truth_of(&self, checkpoint: &Checkpoint, slot: Slot) -> Option<&TernaryTruth> {
        let (canonical, name) = (slot.to_string(), (checkpoint.family.tensor_name)(slot));
        let config_json = checkpoint.config_json.as_ref();
        let own = checkpoint.family.hf_name(config_json, slot);
        // embedding models leave the prefix away
        let plain = name.strip_prefix("model.");
        let is_it = |t: &&TernaryTruth| {
            t.name == name || t.name == canonical || t.name == own || Some(t.name.as_str()) == plain
        };
        self.ternary.iter().find(is_it)
    }

    /// Token ids of a prompt.
    pub fn ids(&self, prompt: &str) -> Option<&[u32]> {
        self.prompts
            .iter()
            .find(|p| p.name == prompt)
            .map(|p| p.ids.as_slice())
    }
}

/// sha256 of codes as `ternary.json` has it: one byte each, row-major.
pub fn codes_sha256(trits: &[i8]) -> String {
    let codes: Vec<u8> = trits.iter().map(|t| t.cast_unsigned()).collect();
    bitnet_formats::hex(&Sha256::digest(&codes))
}

fn read<T>(path: &Path, parse: fn(&Value) -> Option<T>) -> Result<T, FormatError> {
    parse(&read_json(path)?).ok_or_else(|| {
        FormatError::new(ErrorCode::Malformed, "not as golden.py writes it").in_file(path)
    })
}

fn parse_greedy(value: &Value) -> Option<Vec<Greedy>> {
    let entry = |(prompt, v): (&String, &Value)| {
        let ids = token_ids(v.get("f32")?).ok()?;
        let margins: Option<Vec<f64>> = v
            .get("f32_margins")?
            .as_array()?
            .iter()
            .map(Value::as_f64)
            .collect();
        let margins = margins.filter(|m| m.len() == ids.len())?;
        Some(Greedy {
            prompt: prompt.clone(),
            ids,
            margins,
        })
    };
    value.as_object()?.iter().map(entry).collect()
}

fn parse_stream(value: &Value) -> Option<Stream> {
    Some(Stream {
        ids: token_ids(value.get("tokens")?).ok()?,
        nll_mean: value.get("nll_mean_f32")?.as_f64()?,
    })
}

fn parse_ternary(value: &Value) -> Option<Vec<TernaryTruth>> {
    let entry = |(name, v): (&String, &Value)| {
        let scales = match (v.get("scale_structure"), v.get("granularity")) {
            (None, Some(granularity)) => TrueScales::Each {
                columns: match granularity.as_str()? {
                    "row" => None,
                    block => Some(block.strip_prefix("block")?.parse().ok()?),
                },
                sha256: v.get("scale_f32_sha256")?.as_str()?.to_owned(),
            },
            (Some(structure), _) => TrueScales::Several {
                structure: structure.as_str()?.to_owned(),
                sha256: v.get("scales_sha256")?.as_str()?.to_owned(),
            },
            (None, None) => {
                let hex = v.get("alpha_f32_hex")?.as_str()?.strip_prefix("0x")?;
                TrueScales::One {
                    alpha_bits: u32::from_str_radix(hex, 16).ok()?,
                    exact: v.get("stored_scale").is_some() || v.get("absmean_would_be").is_some(),
                }
            }
        };
        let count = |kind: &str| v.get(kind).and_then(Value::as_u64);
        let sizes = v.get("shape")?.as_array()?.iter();
        Some(TernaryTruth {
            name: name.clone(),
            shape: sizes
                .map(|n| n.as_u64()?.try_into().ok())
                .collect::<Option<_>>()?,
            sha256: v.get("sha256_int8_row_major")?.as_str()?.to_owned(),
            counts: count("minus")
                .zip(count("zero"))
                .zip(count("plus"))
                .map(|((minus, zero), plus)| [minus, zero, plus]),
            scales,
        })
    };
    value.as_object()?.iter().map(entry).collect()
}

fn read_logits(path: &Path, prompts: &[Prompt]) -> Result<BTreeMap<String, Recorded>, FormatError> {
    let mut all = read_matrices(path)?;
    let mut logits = BTreeMap::new();
    for prompt in prompts {
        let Some(found) = all.remove(&format!("{}.logits", prompt.name)) else {
            continue;
        };
        if found.rows != prompt.ids.len() {
            let text = format!(
                "expected {} positions, found {}",
                prompt.ids.len(),
                found.rows
            );
            return Err(FormatError::new(ErrorCode::WrongShape, text)
                .in_file(path)
                .in_tensor(&prompt.name));
        }
        logits.insert(prompt.name.clone(), found);
    }
    Ok(logits)
}

/// `<prompt>.layer<N>.expert_ids`, `expert_weights` and `router_logits` of a file.
fn read_routing(path: &Path, prompts: &[Prompt]) -> Result<Vec<RecordedRouting>, FormatError> {
    let file: TensorFile = open(path, &Limits::default())?;
    let mut numbers = read_matrices(path)?;
    let mut found = Vec::new();
    for prompt in prompts {
        for layer in 0.. {
            let name = |what: &str| format!("{}.layer{layer}.{what}", prompt.name);
            let Some(info) = file.tensor(&name("expert_ids")) else {
                if layer < MOST_DENSE {
                    continue; // a layer without experts
                }
                break;
            };
            let bad = |text: String| {
                let error = FormatError::new(ErrorCode::WrongShape, text);
                error.in_file(path).in_tensor(&info.name)
            };
            if info.encoding != Encoding::Plain(PlainType::I32) {
                return Err(bad(format!("expected i32, found {}", info.encoding.name())));
            }
            let bytes = file.read(info)?;
            let (words, _) = bytes.as_chunks::<4>();
            let ids = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
            let weights = numbers.remove(&name("expert_weights"));
            let fits = |w: &Recorded| info.shape == [w.rows, w.cols] && w.rows == prompt.ids.len();
            let weights = weights
                .filter(fits)
                .ok_or_else(|| bad(format!("expected weights of {:?} experts", info.shape)))?;
            let logits = numbers.remove(&name("router_logits"));
            found.push(RecordedRouting {
                prompt: prompt.name.clone(),
                layer,
                ids,
                logits: logits.filter(|l| l.rows == weights.rows),
                weights,
            });
        }
    }
    Ok(found)
}

/// Layers that are looked at before a record counts as over.
const MOST_DENSE: usize = 1024;

/// `<prompt>.embedding` of a file, by prompt.
fn read_vectors(path: &Path) -> Result<BTreeMap<String, Vec<f32>>, FormatError> {
    let all = read_shaped(path, |shape| match *shape {
        [cols] => Some((1, cols)),
        _ => None,
    })?;
    let named = all.into_iter().filter_map(|(name, vector)| {
        let prompt = name.strip_suffix(".embedding")?;
        Some((prompt.to_owned(), vector.values))
    });
    Ok(named.collect())
}

/// Every matrix of a file of plain floats, by name.
pub(crate) fn read_matrices(path: &Path) -> Result<BTreeMap<String, Recorded>, FormatError> {
    read_shaped(path, |shape| match *shape {
        [rows, cols] => Some((rows, cols)),
        _ => None,
    })
}

/// The tensors of a file of plain floats whose shape `rows_cols` takes for rows and columns, by name.
fn read_shaped(
    path: &Path,
    rows_cols: fn(&[usize]) -> Option<(usize, usize)>,
) -> Result<BTreeMap<String, Recorded>, FormatError> {
    let file: TensorFile = open(path, &Limits::default())?;
    let mut matrices = BTreeMap::new();
    for info in file.tensors() {
        let (Some((rows, cols)), Encoding::Plain(plain)) = (rows_cols(&info.shape), info.encoding)
        else {
            continue;
        };
        if !matches!(plain, PlainType::F32 | PlainType::F16 | PlainType::Bf16) {
            continue;
        }
        if cols == 0 {
            let error = FormatError::new(ErrorCode::Malformed, "rows of 0 columns record nothing");
            return Err(error.in_file(path).in_tensor(&info.name));
        }
        let bytes = file.read(info)?;
        let mut values = vec![0.0; bytes.len().checked_div(plain.size()).unwrap_or(0)];
        dense_to_f32(info.encoding, &bytes, &mut values)
            .map_err(|e| e.in_file(path).in_tensor(&info.name))?;
        if rows.checked_mul(cols) == Some(values.len()) {
            matrices.insert(info.name.clone(), Recorded { rows, cols, values });
        }
    }
    Ok(matrices)
}
