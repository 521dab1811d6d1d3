//! The first reproduction of BitNet b1.58: `1bitLLM/bitnet_b1_58-large`, `-xl`, `-3B`.
//!
//! Invariant: `BitnetForCausalLM` (lower-case n) has ternary linears only and calls its sub-norms
//! `inner_attn_ln` and `ffn_layernorm`; its `model_type` is `llama`, so `architectures` decides.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::Activation;

const GGUF: GgufWiring = GgufWiring {
    sub_norms: true,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    sub_norms: true,
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "bitnet_b1_58",
    is_verified: true,
    matches: |config| {
        hf_config::is(config, "llama", "BitnetForCausalLM")
            || hf_config::is(config, "bitnet", "BitnetForCausalLM")
    },
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "inner_attn_ln", "ffn_layernorm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Divide,
    unmarked_floats: UnmarkedFloats::Ternary,
    hf_identity: ("llama", "BitnetForCausalLM"),
    hf_extra_keys: |_| Vec::new(),
    gguf_architectures: &["bitnet"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};
