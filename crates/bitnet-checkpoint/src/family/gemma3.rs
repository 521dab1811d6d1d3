//! Gemma 3 with ternary linears: `microsoft/bitnet-embedding-270m` (`Gemma3TextModel`, a norm in front of
//! every linear).
//!
//! Invariant: Hugging Face tensors of Gemma's own norms hold `w` and mean `1 + w`; those in front of single
//! linears mean what they hold, and so does every norm in GGUF.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::{Activation, Config};
use crate::slot::{LayerSlot, Slot};
use serde_json::{Value, json};

const GGUF: GgufWiring = GgufWiring {
    head_norms: true,
    projection_norms: true,
    branch_norms: true,
    embedding_root: true,
    windows: Some(WINDOWS),
    ..GgufWiring::plain(Activation::GeluTanh)
};

/// What GGUF readers compute and files mostly do not say: every sixth layer sees everything, and the others
/// have this base.
const WINDOWS: super::GgufWindows = super::GgufWindows::every(6, 10_000.0);

const HF: Wiring = Wiring {
    head_norms: true,
    branch_norms: true,
    embedding_root: true,
    windows_every: Some(6),
    activation_key: "hidden_activation",
    tied_by_default: true,
    ..Wiring::PLAIN
};

/// What the published embedding model names: the network without a head.
const HEADLESS: &str = "Gemma3TextModel";

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    is_verified: true,
    matches: |config| {
        hf_config::is_or_unsaid(config, "gemma3_text", "Gemma3ForCausalLM")
            || hf_config::is(config, "gemma3_text", HEADLESS)
    },
    config: |config| hf_config::read_for(config, &HF, HEADLESS),
    hf_wiring: &HF,
    tensor_name,
    stores_gain_minus_one,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("gemma3_text", "Gemma3ForCausalLM"),
    hf_extra_keys,
    gguf_architectures: &["gemma3"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: |slot| names::gguf_with(slot, "attn_output_norm_in", "ffn_down_norm_in"),
    gguf_wiring: GGUF,
    permutes_qk: false,
};

/// What other families call `post_attention_layernorm` stands in front of the MLP; Gemma's of that name
/// stands behind attention.
fn tensor_name(slot: Slot) -> String {
    let norm = |layer, name| format!("model.layers.{layer}.{name}.weight");
    match slot {
        Slot::Layer(layer, LayerSlot::AttnBranchNorm) => norm(layer, "post_attention_layernorm"),
        Slot::Layer(layer, LayerSlot::PostAttentionNorm) => {
            norm(layer, "pre_feedforward_layernorm")
        }
        Slot::Layer(layer, LayerSlot::FfnBranchNorm) => norm(layer, "post_feedforward_layernorm"),
        other => names::hf(other, "o_proj.norm", "down_proj.norm"),
    }
}

fn stores_gain_minus_one(slot: Slot) -> bool {
    match slot {
        Slot::OutputNorm => true,
        Slot::Layer(_, slot) => matches!(
            slot,
            LayerSlot::InputNorm
                | LayerSlot::QNorm
                | LayerSlot::KNorm
                | LayerSlot::AttnBranchNorm
                | LayerSlot::PostAttentionNorm
                | LayerSlot::FfnBranchNorm
        ),
        Slot::TokenEmbeddings | Slot::OutputHead => false,
    }
}

fn hf_extra_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let mut keys = vec![
        ("hidden_activation", json!(config.hidden_act.as_str())),
        ("attn_logit_softcapping", Value::Null),
        ("final_logit_softcapping", Value::Null),
        ("use_bidirectional_attention", json!(false)),
    ];
    let scalar = config.factors.query_pre_attn_scalar;
    keys.push((
        "query_pre_attn_scalar",
        scalar.map_or_else(|| json!(config.head_dim), hf_config::decimal),
    ));
    let kind = |layer| match config.window(layer) {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    let kinds: Vec<_> = (0..config.num_hidden_layers).map(kind).collect();
    keys.push(("layer_types", json!(kinds)));
    if let Some(sliding) = &config.sliding {
        keys.push(("sliding_window", json!(sliding.tokens)));
        keys.push(("rope_local_base_freq", json!(sliding.rope_theta)));
    }
    if config.pooling.is_some() {
        keys.push(("architectures", json!([HEADLESS])));
    }
    keys
}
