//! Llama with ternary linears: HF1BitLLM's Llama3-8B-1.58, Falcon3-1.58bit, Falcon-E.
//!
//! Invariant: `LlamaForCausalLM` is an ordinary architecture too, so a float checkpoint counts as
//! ternary only if its data, its configuration or the user says so.

use super::hf_config::{self, Wiring};
use super::{Family, GgufWiring, ScaleDirection, UnmarkedFloats, gguf_keys, names};
use crate::config::Activation;
use serde_json::Value;

const GGUF: GgufWiring = GgufWiring {
    output_head: true,
    ..GgufWiring::plain(Activation::Silu)
};

pub(super) static FAMILY: Family = Family {
    name: "llama_b1_58",
    is_verified: true,
    matches: |config| hf_config::is_or_unsaid(config, "llama", "LlamaForCausalLM"),
    config: |config| hf_config::read(config, &Wiring::PLAIN),
    tensor_name: |slot| names::hf(slot, "attn_sub_norm", "ffn_sub_norm"),
    stores_gain_minus_one: |_| false,
    unmarked_scale: ScaleDirection::Divide,
    unmarked_floats: UnmarkedFloats::AskTheData,
    is_known_master: is_falcon_e_prequantized,
    hf_identity: ("llama", "LlamaForCausalLM"),
    hf_extra_keys: |_| Vec::new(),
    gguf_architectures: &["llama"],
    gguf_config: |file| gguf_keys::read(file, &GGUF),
    gguf_tensor_name: names::gguf,
    gguf_wiring: GGUF,
    permutes_qk: true,
};

/// Whether this is the `prequantized` revision of a Falcon-E repository: BF16 master weights of a
/// BitNet-trained model, published without any `quantization_config`.
///
/// Nothing in such a checkpoint says "ternary", and its weights look like those of any dense Llama, so
/// the only evidence is the configuration of the published models: texts end with token 11 (Falcon's
/// `<|endoftext|>`; Llama, Mistral and SmolLM end with 2, 128001 and the like), the head width is written
/// out, and the output head is not tied. Dense Falcon3 models share all of that; what tells them apart is
/// their vocabulary of 131072, which Falcon-E does not have. `rope_theta` (Falcon's 1000042) is not asked:
/// fine-tunes change it. A wrong guess here would destroy a dense model silently, so whatever misses one of
/// these is refused as `not-ternary` and needs the user's `--ternary-trained`.
fn is_falcon_e_prequantized(config: &Value) -> bool {
    /// Vocabulary of the dense Falcon3 family.
    const FALCON3_VOCABULARY: u64 = 131_072;
    const FALCON_END_OF_TEXT: u64 = 11;
    let number = |key: &str| config.get(key).and_then(Value::as_u64);
    number("eos_token_id") == Some(FALCON_END_OF_TEXT)
        && number("head_dim").is_some()
        && number("vocab_size").is_some_and(|v| v != FALCON3_VOCABULARY)
        && config.get("tie_word_embeddings") == Some(&Value::Bool(false))
}
