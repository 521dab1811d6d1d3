//! MiniCPM with ternary linears: `openbmb/BitCPM4-0.5B`, `-1B`. UNVERIFIED: its keys and arithmetic are those of
//! the published custom code and of llama.cpp, but no file of it was seen.
//!
//! Invariant: a Llama whose embeddings, residual additions and final hidden state are scaled; the three
//! numbers are in every file, in other terms in each container. Its `longrope` has one list of divisors for the model's
//! own context, as in its code.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::{Activation, ActivationQuantization, Config};
use serde_json::{Value, json};

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    long_rope: true,
    factor_keys: true,
    // as in other families whose published files hold trit * scale and say nothing
    activations: ActivationQuantization::None,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    factors: true,
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "minicpm",
    is_verified: false,
    matches: |config| hf_config::is_or_unsaid(config, "minicpm", "MiniCPMForCausalLM"),
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Divide,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("minicpm", "MiniCPMForCausalLM"),
    hf_extra_keys,
    gguf_architectures: &["minicpm"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: true,
};

/// The inverse of what [`hf_config::read`] makes of these keys: in f64, so that the f32 comes back.
fn hf_extra_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let layers = config.num_hidden_layers as f64;
    let depth = f64::from(config.factors.residual) * layers.sqrt();
    let base = config.hidden_size as f64 / f64::from(config.factors.head_divisor);
    vec![
        ("scale_emb", hf_config::decimal(config.factors.embedding)),
        ("scale_depth", json!(depth)),
        ("dim_model_base", json!(base)),
    ]
}
