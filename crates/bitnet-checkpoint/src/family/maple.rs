//! Maple with ternary linears: `deepgrove/maple-preview`, a mixture of experts whose layers with a window rotate half of
//! each head and whose other layers rotate nothing.
//!
//! Invariant: the bound of 7 in front of the experts' activation function is part of the network, and stands in no
//! `config.json`; GGUF says it for every layer. The router is computed in f32.

use super::hf_config::{self, Neutral, Wiring, experts};
use super::{
    Family, GgufExperts, GgufWindows, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names,
};
use crate::config::{Activation, ActivationQuantization, Config};
use crate::slot::Slot;
use serde_json::{Value, json};

/// What bounds the inputs of the activation function of an expert.
const CLAMP: f32 = 7.0;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    head_norms: true,
    partial_rope: true,
    activations: ActivationQuantization::None,
    experts: Some(GgufExperts { clamp: true }),
    windows: Some(GgufWindows {
        flags: true,
        full_rope: false,
        ..GgufWindows::every(4, 10_000.0)
    }),
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    head_norms: true,
    window_rope: true,
    experts: Some(experts::ExpertWiring {
        clamp: Some(CLAMP),
        normalizes: true,
        always: Some(true),
    }),
    own_keys: &[("use_qk_norm", Neutral::True)],
    unused_keys: &["quantize", "preaffine", "flash_head", "use_flash_head"],
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "maple",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "maple", "MapleForCausalLM"),
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| match slot {
        Slot::TokenEmbeddings => "model.word_embeddings.weight".to_owned(),
        other => names::hf(other, "attn_sub_norm", "ffn_sub_norm"),
    },
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("maple", "MapleForCausalLM"),
    hf_extra_keys,
    gguf_architectures: &["maple"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};

fn hf_extra_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let kind = |layer| match config.window(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    let kinds: Vec<_> = (0..config.num_hidden_layers).map(kind).collect();
    let window = config.sliding.as_ref().map(|sliding| sliding.tokens);
    let part = hf_config::hybrid::rotary_factor(config.head_dim, config.rotary_dim);
    let mut keys = vec![
        ("layer_types", json!(kinds)),
        ("sliding_window", json!(window)),
        ("nope_on_global_attention", json!(true)),
        ("partial_rotary_factor", json!(part)),
        ("use_qk_norm", json!(true)),
        ("router_dtype", json!("fp32")),
        ("num_shared_experts", json!(0)),
        ("moe_router_enable_expert_bias", json!(false)),
    ];
    let first = config.experts.as_ref();
    let first = first.and_then(|e| e.layers.iter().position(|has| *has));
    keys.extend(
        experts::keys(config)
            .into_iter()
            .filter_map(|(key, value)| match key {
                // the first layers without experts
                "mlp_only_layers" => Some(("first_k_dense_replace", json!(first.unwrap_or(0)))),
                "decoder_sparse_step" => None,
                _ => Some((key, value)),
            }),
    );
    keys
}
