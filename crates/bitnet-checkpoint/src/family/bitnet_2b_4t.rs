//! BitNet b1.58 2B4T: transformers' `BitNetForCausalLM`, `microsoft/bitnet-b1.58-2B-4T` and `-bf16`.
//!
//! Invariant: the architecture has ternary linears only, so float linears that nothing marks are
//! master weights, and a scale that nothing marks multiplies (`formats/packing/hf_u8.md`).

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::Activation;

const GGUF: GgufWiring = GgufWiring {
    sub_norms: true,
    ..GgufWiring::plain(Activation::Relu2)
};

const HF: Wiring = Wiring {
    sub_norms: true,
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "bitnet_2b_4t",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "bitnet", "BitNetForCausalLM"),
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ternary,
    hf_identity: ("bitnet", "BitNetForCausalLM"),
    hf_extra_keys: |_| Vec::new(),
    // `bitnet-25` is what the first upload of the published file said, before 2025-04-22
    gguf_architectures: &["bitnet-b1.58", "bitnet-25"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};
