//! Qwen3 mixtures of experts with ternary linears (`Qwen3MoeForCausalLM`). No published checkpoint was seen; names and
//! arithmetic are those of transformers and of llama.cpp.
//!
//! Invariant: an ordinary architecture too: float linears count as ternary only if their data shows it, or if the user
//! says so. `config.json` says whether weights of chosen experts are divided by their sum; programs that read GGUF always
//! divide them.

use super::hf_config::{self, Wiring, experts};
use super::{Family, GgufExperts, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::{Activation, ActivationQuantization};

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    head_norms: true,
    activations: ActivationQuantization::None,
    experts: Some(GgufExperts { clamp: false }),
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    head_norms: true,
    experts: Some(experts::ExpertWiring {
        clamp: None,
        normalizes: false,
        always: None,
    }),
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_moe",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "qwen3_moe", "Qwen3MoeForCausalLM"),
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("qwen3_moe", "Qwen3MoeForCausalLM"),
    hf_extra_keys: experts::keys,
    gguf_architectures: &["qwen3moe"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};
