//! Random `config.json` of every family.
//!
//! Invariant: whatever is written here is a configuration that programs of the family read; sizes that no checkpoint has are
//! meant.

use super::{once_in, pick};
use crate::random::Random;
use bitnet_checkpoint::Family;
use serde_json::{Map, Value, json};

/// Sizes that all families have.
struct Sizes {
    hidden: usize,
    inter: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
    vocab: usize,
    context: usize,
    /// Columns of every linear are a multiple of it.
    unit: usize,
}

impl Sizes {
    fn random(random: &mut Random) -> Self {
        let (unit, hidden, inter, head_dim) = match random.below(16) {
            0..4 => (
                1,
                pick(random, &[20, 36, 52, 100]),
                pick(random, &[28, 44, 92]),
                pick(random, &[6, 10, 12, 20]),
            ),
            4..10 => (
                32,
                pick(random, &[32, 64, 96, 160]),
                pick(random, &[32, 96, 128, 224]),
                pick(random, &[8, 16, 32]),
            ),
            10..15 => (
                128,
                pick(random, &[128, 256]),
                pick(random, &[128, 256, 384]),
                pick(random, &[32, 64, 128]),
            ),
            // the least columns that some packings take
            _ => (512, 512, 512, 128),
        };
        let kv_heads: usize = pick(random, &[1, 2]);
        let mut share = match unit {
            1 => pick(random, &[1, 2, 3]),
            _ => pick(random, &[1, 2, 4]),
        };
        while !(kv_heads * share * head_dim).is_multiple_of(unit) {
            share *= 2;
        }
        Self {
            hidden,
            inter,
            heads: kv_heads * share,
            kv_heads,
            head_dim,
            layers: if unit == 512 { 1 } else { 1 + random.below(3) },
            vocab: pick(random, &[17, 33, 64, 100, 257]),
            context: pick(random, &[16, 40, 64, 300]),
            unit,
        }
    }

    /// A multiple of the unit.
    fn width(&self, random: &mut Random) -> usize {
        match self.unit {
            1 => pick(random, &[12, 20, 36]),
            unit => unit * (1 + random.below(2)),
        }
    }
}

/// A random `config.json`.
pub(super) fn random(family: &Family, random: &mut Random) -> Value {
    let sizes = Sizes::random(random);
    let (model_type, architecture) = family.hf_identity;
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inter,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": sizes.context,
        "rms_norm_eps": pick(random, &[1e-6, 1e-5, 1e-4, 3e-3]),
        "rope_theta": pick(random, &[100.0, 10_000.0, 7_777.75, 500_000.0, 1e6]),
        "tie_word_embeddings": once_in(random, 2),
        "bos_token_id": 1,
        "eos_token_id": pick(random, &[json!(2), json!([2, 5])]),
        "torch_dtype": "bfloat16",
    });
    let own = family.gguf_wiring.activation.as_str();
    let activation = match once_in(random, 5) {
        true => pick(random, &["silu", "relu2", "gelu_pytorch_tanh"]),
        false => own,
    };
    let key = match family.name {
        "gemma3" => "hidden_activation",
        _ => "hidden_act",
    };
    config[key] = json!(activation);
    match family.name {
        "gemma3" => windows(&mut config, &sizes, random),
        "minicpm" => {
            config["scale_emb"] = json!(pick(random, &[1.0, 12.0, 0.75]));
            config["scale_depth"] = json!(pick(random, &[1.4, 1.0, 0.5]));
            config["dim_model_base"] = json!(pick(random, &[16, 24, 256]));
            scaling(&mut config, &sizes, random, true);
        }
        "hunyuan" => {
            config["use_qk_norm"] = json!(true);
            config["attention_head_dim"] = json!(sizes.head_dim);
            match once_in(random, 2) {
                true => {
                    let alpha = pick(random, &[1000.0, 2.5]);
                    config["rope_scaling"] = json!({"type": "dynamic", "alpha": alpha});
                }
                false => scaling(&mut config, &sizes, random, false),
            }
        }
        "qwen35" => return hybrid(config, &sizes, random),
        "qwen3_moe" => {
            experts(&mut config, &sizes, random);
            config["norm_topk_prob"] = json!(!once_in(random, 3));
            if once_in(random, 4) {
                config["mlp_only_layers"] = json!([0]);
            }
        }
        "maple" => maple(&mut config, &sizes, random),
        name => scaling(&mut config, &sizes, random, name == "llama_b1_58"),
    }
    config
}

/// Frequencies that are scaled, half of the time; `long`: also by the length of the context.
fn scaling(config: &mut Value, sizes: &Sizes, random: &mut Random, long: bool) {
    let factors = |random: &mut Random| -> Vec<f64> {
        let half = 0..sizes.head_dim / 2;
        half.map(|_| 1.0 + random.below(64) as f64 / 16.0).collect()
    };
    let scaling = match random.below(10) {
        0 => json!({"rope_type": "linear", "factor": pick(random, &[2.0, 3.7])}),
        1 => json!({
            "rope_type": "llama3",
            "factor": pick(random, &[8.0, 2.5]),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": pick(random, &[16, 64]),
        }),
        2 => yarn(random),
        3 if long => {
            let (short, long) = (factors(random), factors(random));
            // where both lists count, they are one
            let is_llama = config["model_type"] == "llama";
            let original = match is_llama {
                true => 2 * sizes.context,
                false => pick(random, &[sizes.context / 2, 2 * sizes.context]),
            };
            json!({
                "type": "longrope",
                "long_factor": long,
                "short_factor": short,
                "original_max_position_embeddings": original,
            })
        }
        _ => return,
    };
    config["rope_scaling"] = scaling;
    if once_in(random, 2) {
        let keys = config.as_object_mut().expect("an object");
        if let (Some(theta), Some(mut scaling)) = (
            keys.shift_remove("rope_theta"),
            keys.shift_remove("rope_scaling"),
        ) {
            scaling["rope_theta"] = theta;
            keys.insert("rope_parameters".to_owned(), scaling);
        }
    }
}

fn yarn(random: &mut Random) -> Value {
    let mut yarn = json!({
        "rope_type": "yarn",
        "factor": pick(random, &[4.0, 1.5]),
        "original_max_position_embeddings": pick(random, &[8, 32]),
    });
    if once_in(random, 2) {
        yarn["attention_factor"] = json!(1.25);
    }
    if once_in(random, 3) {
        yarn["beta_fast"] = json!(16.0);
        yarn["beta_slow"] = json!(2.0);
    }
    yarn
}

/// One of two words for each layer.
fn layers(sizes: &Sizes, words: [&str; 2], random: &mut Random) -> Vec<String> {
    let layers = 0..sizes.layers;
    layers.map(|_| pick(random, &words).to_owned()).collect()
}

fn windows(config: &mut Value, sizes: &Sizes, random: &mut Random) {
    let mut kinds = layers(sizes, ["sliding_attention", "full_attention"], random);
    kinds[0] = "sliding_attention".to_owned();
    config["layer_types"] = json!(kinds);
    config["sliding_window"] = json!(pick(random, &[1, 3, 8, 29]));
    config["rope_local_base_freq"] = json!(pick(random, &[10_000.0, 123.0]));
    let scalar = pick(random, &[sizes.head_dim, 2 * sizes.head_dim, 3]);
    config["query_pre_attn_scalar"] = json!(scalar);
}

fn experts(config: &mut Value, sizes: &Sizes, random: &mut Random) {
    let count = 1 + random.below(6);
    config["num_experts"] = json!(count);
    config["num_experts_per_tok"] = json!(1 + random.below(count));
    config["moe_intermediate_size"] = json!(sizes.width(random));
}

/// A part of a head that is rotated, as a factor.
fn part(head_dim: usize, random: &mut Random) -> f64 {
    let rotated = 2 * (1 + random.below(head_dim / 2));
    let factor = rotated as f64 / head_dim as f64;
    match (head_dim as f64 * factor) as usize == rotated {
        true => factor,
        false => factor.next_up(),
    }
}

fn maple(config: &mut Value, sizes: &Sizes, random: &mut Random) {
    experts(config, sizes, random);
    let mut kinds = layers(sizes, ["sliding_attention", "full_attention"], random);
    kinds[0] = "sliding_attention".to_owned();
    config["layer_types"] = json!(kinds);
    config["sliding_window"] = json!(pick(random, &[1, 3, 8, 29]));
    config["nope_on_global_attention"] = json!(true);
    config["partial_rotary_factor"] = json!(part(sizes.head_dim, random));
    config["use_qk_norm"] = json!(true);
    config["router_dtype"] = json!("fp32");
    if once_in(random, 4) {
        config["first_k_dense_replace"] = json!(1);
    }
}

fn hybrid(mut config: Value, sizes: &Sizes, random: &mut Random) -> Value {
    let key_heads = 1 + random.below(2);
    let value_dim = sizes.head_dim;
    let mut value_heads: usize = key_heads * (1 + random.below(3));
    while !(value_heads * value_dim).is_multiple_of(sizes.unit) {
        value_heads *= 2;
    }
    let kinds = layers(sizes, ["linear_attention", "full_attention"], random);
    let mut rope = match once_in(random, 3) {
        true => yarn(random),
        false => json!({"rope_type": "default"}),
    };
    rope["rope_theta"] = config["rope_theta"].clone();
    rope["partial_rotary_factor"] = json!(part(sizes.head_dim, random));
    rope["mrope_section"] = json!([2, 1, 1]);
    rope["mrope_interleaved"] = json!(true);
    let own = json!({
        "layer_types": kinds,
        "linear_num_key_heads": key_heads,
        "linear_key_head_dim": pick(random, &[8, 12, 16]),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": value_dim,
        "linear_conv_kernel_dim": 1 + random.below(4),
        "attn_output_gate": true,
        "rope_parameters": rope,
    });
    let keys = config.as_object_mut().expect("an object");
    keys.shift_remove("rope_theta");
    keys.extend(own.as_object().expect("an object").clone());
    if once_in(random, 3) {
        config["architectures"] = json!(["Qwen3_5ForCausalLM"]);
        config["model_type"] = json!("qwen3_5_text");
        return config;
    }
    let mut outer = Map::new();
    let keys = config.as_object_mut().expect("an object");
    for key in ["architectures", "model_type"] {
        outer.extend(keys.shift_remove(key).map(|value| (key.to_owned(), value)));
    }
    keys.insert("model_type".to_owned(), json!("qwen3_5_text"));
    outer.insert("text_config".to_owned(), config);
    Value::Object(outer)
}
