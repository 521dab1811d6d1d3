//! Qwen2 and Qwen2.5 with ternary linears: the language model of `microsoft/VibeVoice-ASR-BitNet`, and fine-tunes.
//!
//! Invariant: a Llama with biases on q, k and v: no number of a bias is quantized or part of a scale. No file of
//! these models has a key for them, so every network of this architecture has them. UNVERIFIED: whether the published
//! model was trained with quantized activations. Its own runtime quantizes them, and so does this program.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::Activation;
use serde_json::json;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    biases: true,
    ..GgufWiring::plain(Activation::Silu)
};

const HF: Wiring = Wiring {
    biases: true,
    ..Wiring::PLAIN
};

pub(super) static FAMILY: Family = Family {
    name: "qwen2",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "qwen2", "Qwen2ForCausalLM"),
    config: |config| hf_config::read(config, &HF),
    hf_wiring: &HF,
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Divide,
    unmarked_floats: UnmarkedFloats::Ordinary,
    hf_identity: ("qwen2", "Qwen2ForCausalLM"),
    hf_extra_keys: |_| vec![("use_sliding_window", json!(false))],
    gguf_architectures: &["qwen2"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: false,
};
