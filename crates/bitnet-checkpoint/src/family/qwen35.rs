//! Hybrids of Gated DeltaNet and gated attention with ternary linears: text models of Qwen3.5, 3.6 and 3.8, as
//! Ternary-Bonsai-27B is one. Activations are not quantized.
//!
//! Invariant: Hugging Face norms hold `w` and mean `1 + w`, but for the gated norm, which means what it holds; GGUF
//! norms hold the gain. `A_log` and GGUF's `ssm_a` both mean the rate `-exp(A_log)`. GGUF keeps value heads tiled
//! over the key heads.

use super::hf_config::{self, Wiring, hybrid};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names, rotation};
use crate::config::{Activation, ActivationQuantization};
use crate::slot::{LayerSlot, Slot};

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    head_norms: true,
    hybrid: true,
    activations: ActivationQuantization::None,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    head_norms: true,
    hybrid: true,
    ..Wiring::PLAIN
};

/// The class with a place for a vision tower, and the text model alone.
const NESTED: (&str, &str) = ("qwen3_5", "Qwen3_5ForConditionalGeneration");
const FLAT: (&str, &str) = ("qwen3_5_text", "Qwen3_5ForCausalLM");

pub(super) static FAMILY: Family = Family {
    name: "qwen35",
    is_verified: true,
    matches: |config| {
        hf_config::is_or_unsaid(config, NESTED.0, NESTED.1)
            || hf_config::is_or_unsaid(config, FLAT.0, FLAT.1)
            || hf_config::is(config, NESTED.0, FLAT.1)
            || hf_config::is_or_unsaid(config, rotation::MLX_PACK, NESTED.1)
    },
    config: |config| hf_config::read(&*hybrid::flat(config)?, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: NESTED,
    hf_extra_keys: hybrid::extra_keys,
    gguf_architectures: &["qwen35"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name,
    gguf_wiring: GGUF,
    permutes_qk: false,
};

fn stores_gain_minus_one(slot: Slot) -> bool {
    match slot {
        Slot::OutputNorm => true,
        Slot::Layer(_, slot) => matches!(
            slot,
            LayerSlot::InputNorm
                | LayerSlot::QNorm
                | LayerSlot::KNorm
                | LayerSlot::PostAttentionNorm
        ),
        Slot::TokenEmbeddings | Slot::OutputHead => false,
    }
}

fn gguf_tensor_name(slot: Slot) -> String {
    match slot {
        Slot::Layer(layer, LayerSlot::PostAttentionNorm) => {
            format!("blk.{layer}.post_attention_norm.weight")
        }
        other => names::gguf(other),
    }
}
