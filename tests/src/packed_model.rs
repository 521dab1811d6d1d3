//! A small network with packed linears, of any size of vocabulary, written without a converter.
//!
//! Invariant: every conversion of it to a target with one scale per tensor is lossless.

use serde_json::{Map, Value, json};
use std::path::Path;

const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;

/// A tensor of the file: name, type, sizes, bytes.
type Tensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// Writes `config.json` and `model.safetensors` of a network of one layer with this many tokens.
///
/// # Panics
/// If the files cannot be written.
pub fn write(directory: &Path, vocabulary: usize) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
        "bos_token_id": 1,
        "eos_token_id": 2,
    });
    std::fs::write(directory.join("config.json"), config.to_string()).expect("written");
    write_tensors(&directory.join("model.safetensors"), &tensors(vocabulary));
}

fn tensors(vocabulary: usize) -> Vec<Tensor> {
    let mut all: Vec<Tensor> = Vec::new();
    let layer = "model.layers.0";
    let linears = [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", HIDDEN / 2, HIDDEN),
        ("self_attn.v_proj", HIDDEN / 2, HIDDEN),
        ("self_attn.o_proj", HIDDEN, HIDDEN),
        ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
        ("mlp.up_proj", INTERMEDIATE, HIDDEN),
        ("mlp.down_proj", HIDDEN, INTERMEDIATE),
    ];
    for (name, rows, cols) in linears {
        // codes 0, 1 and 2 by turns
        let codes = (0..rows / 4 * cols).map(|i| [0x24, 0x92, 0x49 & 0x2a, 0x16][i % 4]);
        let shape = vec![rows / 4, cols];
        all.push((
            format!("{layer}.{name}.weight"),
            "U8",
            shape,
            codes.collect(),
        ));
        // 2.0 as bf16
        let scale = vec![0x00, 0x40];
        all.push((
            format!("{layer}.{name}.weight_scale"),
            "BF16",
            vec![1],
            scale,
        ));
    }
    for name in ["input_layernorm", "post_attention_layernorm"] {
        let gains = [0x80, 0x3f].repeat(HIDDEN);
        all.push((
            format!("{layer}.{name}.weight"),
            "BF16",
            vec![HIDDEN],
            gains,
        ));
    }
    let gains = [0x80, 0x3f].repeat(HIDDEN);
    all.push(("model.norm.weight".to_owned(), "BF16", vec![HIDDEN], gains));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        // bf16 numbers between 1 and 2 that differ, so that the tables are no trits times a scale
        let values = (0..vocabulary * HIDDEN).flat_map(|i| [(i % 127) as u8, 0x3f + (i % 2) as u8]);
        let shape = vec![vocabulary, HIDDEN];
        all.push((name.to_owned(), "BF16", shape, values.collect()));
    }
    all
}

fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let mut header = Map::new();
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        let entry: Value = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    for (.., bytes) in tensors {
        file.extend_from_slice(bytes);
    }
    std::fs::write(path, file).expect("written");
}
