//! Mixtures of experts of any size, in every way in which checkpoints lay out their experts.
//!
//! Invariant: the numbers of a matrix follow from the seed and its canonical name, so layouts of one seed hold one model.

use crate::random::Random;
use bitnet_ternary::{bf16_to_f32, f32_to_bf16};
use serde_json::{Map, Value, json};
use std::io::{BufWriter, Write};
use std::path::Path;

/// How the linears of experts lie in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// A tensor each, as Hugging Face checkpoints have them.
    Each,
    /// `gate_up_proj` and `down_proj` of all experts.
    Fused,
    /// MLX's codes, stacked, with a scale per row.
    RowScale,
    /// MLX's codes, stacked, with scales and biases per 32 columns.
    Grouped,
}

/// A network.
#[derive(Debug, Clone)]
pub struct Shape {
    /// Whether it is Maple; Qwen3 otherwise.
    pub maple: bool,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of an expert.
    pub inter: usize,
    /// Width of a head, of which there are two for queries and one for keys.
    pub head_dim: usize,
    /// Layers.
    pub layers: usize,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes to.
    pub used: usize,
    /// Tokens.
    pub vocab: usize,
    /// Where the numbers come from.
    pub seed: u64,
    /// Layers with one MLP of twice the width.
    pub dense: Vec<usize>,
    /// Further keys of `config.json`.
    pub keys: Vec<(&'static str, Value)>,
}

const HEADS: usize = 2;

/// A tensor that is still to be made: name, type, sizes, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

impl Shape {
    /// A small network of either kind.
    pub fn small(maple: bool, seed: u64) -> Self {
        Self {
            maple,
            hidden: 64,
            inter: 32,
            head_dim: 16,
            layers: 2,
            experts: 5,
            used: 2,
            vocab: 48,
            seed,
            dense: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// Writes `config.json` and `model.safetensors`.
    ///
    /// # Panics
    /// If the files cannot be written.
    pub fn write(&self, directory: &Path, layout: Layout) {
        std::fs::create_dir_all(directory).expect("a directory");
        let mut config = self.config();
        if matches!(layout, Layout::RowScale | Layout::Grouped) {
            config["quantization"] = json!({"group_size": 32, "bits": 2});
        }
        for (key, value) in &self.keys {
            config[*key] = value.clone();
        }
        std::fs::write(directory.join("config.json"), config.to_string()).expect("written");
        write_tensors(&directory.join("model.safetensors"), &self.tensors(layout));
    }

    fn config(&self) -> Value {
        let (model_type, architecture) = match self.maple {
            true => ("maple", "MapleForCausalLM"),
            false => ("qwen3_moe", "Qwen3MoeForCausalLM"),
        };
        let mut config = json!({
            "architectures": [architecture],
            "model_type": model_type,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "max_position_embeddings": 512,
            "num_attention_heads": HEADS,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": 1,
            "head_dim": self.head_dim,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "num_experts": self.experts,
            "num_experts_per_tok": self.used,
            "moe_intermediate_size": self.inter,
            "norm_topk_prob": true,
        });
        if self.maple {
            let kind = |layer: usize| match layer % 4 {
                3 => "full_attention",
                _ => "sliding_attention",
            };
            let kinds: Vec<_> = (0..self.layers).map(kind).collect();
            config["layer_types"] = json!(kinds);
            config["sliding_window"] = json!(8);
            config["nope_on_global_attention"] = json!(true);
            config["partial_rotary_factor"] = json!(0.5);
            config["use_qk_norm"] = json!(true);
            config["router_dtype"] = json!("fp32");
        } else {
            config["mlp_only_layers"] = json!(self.dense);
        }
        config
    }

    fn random(&self, name: &str) -> Random {
        let start = 0xcbf2_9ce4_8422_2325 ^ self.seed;
        let fnv = |hash: u64, b: u8| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        Random(name.bytes().fold(start, fnv))
    }

    /// Trits and one bf16 scale per row.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> (Vec<i8>, Vec<u16>) {
        let mut random = self.random(name);
        let trits = (0..rows * cols)
            .map(|_| random.below(3) as i8 - 1)
            .collect();
        let size = 1.5 / (cols as f32).sqrt();
        let scale = |n: usize| f32_to_bf16(size * (0.5 + n as f32 / 64.0));
        let scales = (0..rows).map(|_| scale(random.below(64))).collect();
        (trits, scales)
    }

    fn numbers(&self, name: &str, rows: usize, cols: usize, size: f32, mean: f32) -> Tensor {
        let mut random = self.random(name);
        let number = |n: usize| mean + size * (n as f32 / 512.0 - 1.0);
        let bytes = (0..rows * cols).flat_map(|_| {
            let number = f32_to_bf16(number(random.below(1024)));
            number.to_le_bytes()
        });
        let bytes = bytes.collect();
        let shape = match name.contains("norm.weight") {
            true => vec![cols],
            false => vec![rows, cols],
        };
        (name.to_owned(), "BF16", shape, bytes)
    }

    fn tensors(&self, layout: Layout) -> Vec<Tensor> {
        let (hidden, inter) = (self.hidden, self.inter);
        let embeddings = match self.maple {
            true => "model.word_embeddings.weight",
            false => "model.embed_tokens.weight",
        };
        let mut all = vec![
            self.numbers(embeddings, self.vocab, hidden, 0.5, 0.0),
            self.numbers("lm_head.weight", self.vocab, hidden, 0.4, 0.0),
            self.numbers("model.norm.weight", 1, hidden, 0.2, 1.0),
        ];
        let width = HEADS * self.head_dim;
        for layer in 0..self.layers {
            let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                all.push(self.numbers(&at(norm), 1, hidden, 0.2, 1.0));
            }
            for norm in ["self_attn.q_norm", "self_attn.k_norm"] {
                all.push(self.numbers(&at(norm), 1, self.head_dim, 0.2, 1.0));
            }
            let mut linears = vec![
                ("self_attn.q_proj", width, hidden),
                ("self_attn.k_proj", self.head_dim, hidden),
                ("self_attn.v_proj", self.head_dim, hidden),
                ("self_attn.o_proj", hidden, width),
            ];
            let is_dense = self.dense.contains(&layer);
            if is_dense {
                linears.extend([
                    ("mlp.gate_proj", 2 * hidden, hidden),
                    ("mlp.up_proj", 2 * hidden, hidden),
                    ("mlp.down_proj", hidden, 2 * hidden),
                ]);
            }
            for (name, rows, cols) in linears {
                self.push(
                    &mut all,
                    layout,
                    &at(name),
                    &[(&at(name), rows, cols)],
                    &[rows],
                );
            }
            if is_dense {
                continue;
            }
            all.push(self.numbers(&at("mlp.gate"), self.experts, hidden, 0.4, 0.0));
            self.push_experts(&mut all, layout, layer, inter);
        }
        all
    }

    fn push_experts(&self, all: &mut Vec<Tensor>, layout: Layout, layer: usize, inter: usize) {
        let hidden = self.hidden;
        let name = |e: usize, linear: &str| {
            format!("model.layers.{layer}.mlp.experts.{e}.{linear}.weight")
        };
        let kinds = [
            ("gate_proj", inter, hidden),
            ("up_proj", inter, hidden),
            ("down_proj", hidden, inter),
        ];
        match layout {
            Layout::Each => {
                for e in 0..self.experts {
                    for (linear, rows, cols) in kinds {
                        let name = name(e, linear);
                        self.push(all, layout, &name, &[(&name, rows, cols)], &[rows]);
                    }
                }
            }
            Layout::Fused => {
                let both = |e| ["gate_proj", "up_proj"].map(|linear| name(e, linear));
                let names: Vec<String> = (0..self.experts).flat_map(both).collect();
                let parts: Vec<_> = names.iter().map(|n| (&n[..], inter, hidden)).collect();
                let fused = format!("model.layers.{layer}.mlp.experts.gate_up_proj");
                self.push(all, layout, &fused, &parts, &[self.experts, 2 * inter]);
                let names: Vec<_> = (0..self.experts).map(|e| name(e, "down_proj")).collect();
                let parts: Vec<_> = names.iter().map(|n| (&n[..], hidden, inter)).collect();
                let fused = format!("model.layers.{layer}.mlp.experts.down_proj");
                self.push(all, layout, &fused, &parts, &[self.experts, hidden]);
            }
            Layout::RowScale | Layout::Grouped => {
                for (linear, rows, cols) in kinds {
                    let names: Vec<_> = (0..self.experts).map(|e| name(e, linear)).collect();
                    let parts: Vec<_> = names.iter().map(|n| (&n[..], rows, cols)).collect();
                    let stacked = format!("model.layers.{layer}.mlp.switch_mlp.{linear}.weight");
                    self.push(all, layout, &stacked, &parts, &[self.experts, rows]);
                }
            }
        }
    }

    /// A tensor of matrices one below the other.
    fn push(
        &self,
        all: &mut Vec<Tensor>,
        layout: Layout,
        name: &str,
        parts: &[(&str, usize, usize)],
        leading: &[usize],
    ) {
        let cols = parts[0].2;
        let made = parts
            .iter()
            .map(|(name, rows, cols)| self.matrix(name, *rows, *cols));
        let made: Vec<_> = made.collect();
        let shape = |last: usize| [leading, &[last]].concat();
        if matches!(layout, Layout::Each | Layout::Fused) {
            let mut bytes = Vec::new();
            for (trits, scales) in &made {
                for (row, scale) in trits.chunks(cols).zip(scales) {
                    for trit in row {
                        // a zero with either sign
                        let number = f32::from(*trit) * bf16_to_f32(*scale);
                        bytes.extend(f32_to_bf16(number).to_le_bytes());
                    }
                }
            }
            all.push((name.to_owned(), "BF16", shape(cols), bytes));
            return;
        }
        let words = made
            .iter()
            .flat_map(|(trits, _)| trits.chunks(16))
            .flat_map(|word| {
                let code =
                    |word: u32, (n, trit): (usize, &i8)| word | ((trit + 1) as u32) << (2 * n);
                word.iter().enumerate().fold(0, code).to_le_bytes()
            });
        all.push((name.to_owned(), "U32", shape(cols / 16), words.collect()));
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let scales = || made.iter().flat_map(|(_, scales)| scales.iter().copied());
        if layout == Layout::RowScale {
            let bytes = scales().flat_map(u16::to_le_bytes).collect();
            all.push((
                format!("{module}.row_alpha"),
                "BF16",
                leading.to_vec(),
                bytes,
            ));
            return;
        }
        for (role, sign) in [("scales", 0), ("biases", 0x8000)] {
            let groups = cols / 32;
            let repeated = scales().flat_map(|s| std::iter::repeat_n(s ^ sign, groups));
            let bytes = repeated.flat_map(u16::to_le_bytes).collect();
            all.push((format!("{module}.{role}"), "BF16", shape(groups), bytes));
        }
    }
}

/// Writes a safetensors file.
fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(std::fs::File::create(path).expect("a file"));
    let mut write = |bytes: &[u8]| file.write_all(bytes).expect("written");
    write(&(header.len() as u64).to_le_bytes());
    write(&header);
    tensors.iter().for_each(|tensor| write(&tensor.3));
}
