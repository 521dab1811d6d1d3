//! Qwen3 with ternary linears: `microsoft/bitnet-embedding-0.6b` (`Qwen3Model`, a norm in front of every
//! linear), and ternary checkpoints of `Qwen3ForCausalLM`: Ternary Bonsai 1.7B, 4B and 8B, whose activations
//! are not quantised.
//!
//! Invariant: Qwen3 is an ordinary architecture too. Float linears count as master weights only if every
//! linear has an input norm of its own, which no dense Qwen3 has, or if the user says so; else their data
//! has to show that they are ternary.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::{Activation, ActivationQuantization};
use serde_json::json;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    head_norms: true,
    projection_norms: true,
    // Ternary Bonsai, which says nothing
    activations: ActivationQuantization::None,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    head_norms: true,
    ..Wiring::PLAIN
};

/// What the published embedding model names: the network without a head.
const HEADLESS: &str = "Qwen3Model";

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    is_verified: true,
    matches: |config| {
        hf_config::is_or_unsaid(config, "qwen3", "Qwen3ForCausalLM")
            || hf_config::is(config, "qwen3", HEADLESS)
    },
    config: |config| hf_config::read_for(config, &HF, HEADLESS),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "o_proj.norm", "down_proj.norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Multiply,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("qwen3", "Qwen3ForCausalLM"),
    hf_extra_keys: |config| match config.pooling {
        Some(_) => vec![("architectures", json!([HEADLESS]))],
        None => Vec::new(),
    },
    gguf_architectures: &["qwen3"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: |slot| names::gguf_with(slot, "attn_output_norm_in", "ffn_down_norm_in"),
    gguf_wiring: GGUF,
    permutes_qk: false,
};
