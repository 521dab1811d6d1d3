//! HunYuan dense with ternary linears: `tencent/Hy-MT1.5-1.8B` and `Hy-MT2-1.8B` at 1.25 bits
//! (`formats/packing/stq1_0.md`).
//!
//! Invariant: a Qwen3 whose heads are normed after rotation, and whose rotary base `config.json` says as
//! `rope_theta` and `alpha`, GGUF as the product. The base is the same at every position.

use super::hf_config::{self, Neutral, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::{Activation, ActivationQuantization};
use crate::slot::{LayerSlot, Slot};
use serde_json::json;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    head_norms: true,
    norms_after_rope: true,
    // the published files, which say nothing
    activations: ActivationQuantization::None,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    head_norms: true,
    norms_after_rope: true,
    rope_alpha: true,
    own_keys: &[
        ("use_qk_norm", Neutral::True),
        ("use_cla", Neutral::False),
        // counts where `use_cla` is true
        ("cla_share_factor", Neutral::Any),
        ("norm_type", Neutral::Is("rms")),
        ("attention_head_dim", Neutral::Any),
        ("eod_token_id", Neutral::Any),
        ("org_vocab_size", Neutral::Any),
    ],
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "hunyuan",
    is_verified: true,
    matches: |config| {
        hf_config::is_or_unsaid(config, "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM")
    },
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| match slot {
        Slot::Layer(layer, LayerSlot::QNorm) => {
            format!("model.layers.{layer}.self_attn.query_layernorm.weight")
        }
        Slot::Layer(layer, LayerSlot::KNorm) => {
            format!("model.layers.{layer}.self_attn.key_layernorm.weight")
        }
        other => names::hf(other, "attn_sub_norm", "ffn_sub_norm"),
    },
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    hf_extra_keys: |config| {
        vec![
            ("attention_head_dim", json!(config.head_dim)),
            ("use_qk_norm", json!(true)),
        ]
    },
    gguf_architectures: &["hunyuan-dense"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};
