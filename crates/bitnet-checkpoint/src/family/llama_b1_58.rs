//! Llama with ternary linears: HF1BitLLM's Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
//!
//! Invariant: `LlamaForCausalLM` is an ordinary architecture too, so a float checkpoint counts as
//! ternary only if its data, its configuration or the user says so.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::Activation;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    long_rope: true,
    ..GgufWiring::plain(Activation::Silu)
};

pub(super) static FAMILY: Family = Family {
    name: "llama_b1_58",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "llama", "LlamaForCausalLM"),
    config: |config| hf_config::read(config, &Wiring::PLAIN),
    hf_wiring: &Wiring::PLAIN,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Divide,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("llama", "LlamaForCausalLM"),
    hf_extra_keys: |_| Vec::new(),
    gguf_architectures: &["llama"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: true,
};
