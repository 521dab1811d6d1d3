//! Keys of `config.json` and GGUF metadata that nothing here reads: harmless ones, dangerous ones, and the rest.
//!
//! Invariant: a key that is not read is on the list of harmless keys, or has a value that switches it off, or is
//! reported, or is refused because its name says that it changes the network.

use super::hf_config::show;
use crate::config::bad_key;
use bitnet_formats::FormatError;
use serde_json::Value;

/// Keys that are read, or compared with the one value that is computed here (`hf_config`, `quantization`).
const READ: &[&str] = &[
    "activation",
    "architectures",
    "auto_map",
    "base_model_type",
    "bos_token_id",
    "compression_config",
    "eos_token_id",
    "gdn_activation_layout",
    "hadamard_config",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "input_bits",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "modules",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "packed",
    "quant_bits",
    "quantization",
    "quantization_bit",
    "quantization_config",
    "requires_runtime",
    "schema_version",
    "tensor_namespace",
    "_sliding_window_pattern",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window_pattern",
    "tie_word_embeddings",
    "vocab_size",
    "weight_bits",
];

/// Keys that do not change what a network computes: training, generation, storage, bookkeeping.
const HARMLESS: &[&str] = &[
    // bookkeeping
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_from_model_config",
    "_name_or_path",
    "attn_implementation",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "finetuning_task",
    "id2label",
    "is_bitnet_config",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "model_max_length",
    // of heads for speculation
    "mup_denominator",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "prefix",
    "problem_type",
    "pruned_heads",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attn",
    // windows that `use_sliding_window` switches on
    "max_window_layers",
    // training
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_range",
    "resid_pdrop",
    "router_aux_loss_coef",
    // tokens
    "begin_suppress_tokens",
    "bad_words_ids",
    "cls_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "suppress_tokens",
    "unk_token_id",
    // generation, as old versions saved it here
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// Objects that hold the configuration of the network one level deeper.
const NESTED: &[&str] = &[
    "language_config",
    "llm_config",
    "text_config",
    "text_model_config",
    "thinker_config",
];

/// Words of names whose owners change the arithmetic of a network.
const SUSPECT: &[&str] = &[
    "act",
    "activation",
    "activations",
    "adapter",
    "adapters",
    "alibi",
    "altup",
    "attention",
    "attn",
    "bias",
    "bidirectional",
    "bits",
    "causal",
    "clamp",
    "clip",
    "conv",
    "cross",
    "expert",
    "experts",
    "gate",
    "gated",
    "gating",
    "hadamard",
    "kv",
    "laurel",
    "layernorm",
    "logit",
    "logits",
    "lora",
    "mamba",
    "moe",
    "multiplier",
    "mup",
    "nope",
    "norm",
    "norms",
    "position",
    "positional",
    "qk",
    "qkv",
    "quant",
    "quantization",
    "quantize",
    "quantized",
    "residual",
    "rmsnorm",
    "rope",
    "rotary",
    "rotation",
    "scale",
    "scaler",
    "scales",
    "scaling",
    "sink",
    "sinks",
    "skip",
    "softcap",
    "softcapping",
    "softmax",
    "ssm",
    "swa",
    "window",
    "windows",
    "yarn",
];

/// Names in several words that are refused as well.
const REFUSED: &[&str] = &["modules_to_not_convert", "transformers_weights"];

/// A key that nothing here reads and no list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownKey {
    /// The key.
    pub key: String,
    /// Its value on one short line.
    pub value: String,
}

/// Whether a name says that its key changes the network.
pub(super) fn is_suspect(name: &str) -> bool {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let suspect =
        |word: &str| SUSPECT.contains(&word.trim_end_matches(|c: char| c.is_ascii_digit()));
    REFUSED.contains(&name)
        || words
            .map(str::to_ascii_lowercase)
            .any(|word| suspect(&word))
}

/// Whether a value switches its key off: nothing, no, a factor of 1, an addend or a count of 0.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => matches!(number.as_f64(), Some(0.0 | 1.0)),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
    }
}

/// The keys that are neither read nor harmless, in the order of the file.
fn others(config: &Value, is_read: impl Fn(&str) -> bool) -> impl Iterator<Item = (&str, &Value)> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(move |(key, value)| {
            let key = key.as_str();
            !READ.contains(&key) && !HARMLESS.contains(&key) && !is_read(key) && !is_off(value)
        })
        .map(|(key, value)| (key.as_str(), value))
}

/// Refuses unknown keys that belong to another network by their names. `is_read`: keys that a list of the caller
/// compares with the value that is computed here.
pub(super) fn refuse(config: &Value, is_read: impl Fn(&str) -> bool) -> Result<(), FormatError> {
    for (key, value) in others(config, is_read) {
        if NESTED.contains(&key) {
            return Err(bad_key(key, &show(value), "nothing").hint(
                "the network is described one level deeper, and such models are not read here",
            ));
        }
        if is_suspect(key) {
            return Err(bad_key(key, &show(value), "no such key").hint(
                "the key is unknown here and may change the network; remove it from config.json if it does not",
            ));
        }
    }
    code_of_its_own(config).map(|_| ())
}

/// The unknown keys that are let pass.
pub(super) fn unknown(config: &Value, is_read: impl Fn(&str) -> bool) -> Vec<UnknownKey> {
    let unknown = |(key, value): (&str, &Value)| UnknownKey {
        key: key.to_owned(),
        value: show(value),
    };
    let mut all: Vec<_> = others(config, is_read).map(unknown).collect();
    if code_of_its_own(config) == Ok(true) {
        all.push(UnknownKey {
            key: "auto_map".to_owned(),
            value: show(config.get("auto_map").unwrap_or(&Value::Null)),
        });
    }
    all
}

/// Whether the repository brings code for an architecture that transformers has itself. Its classes must carry the
/// names that `architectures` says: other code is another network.
fn code_of_its_own(config: &Value) -> Result<bool, FormatError> {
    let map = match config.get("auto_map") {
        None | Some(Value::Null) => return Ok(false),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(bad_key("auto_map", &show(other), "an object")),
    };
    let architectures = config.get("architectures").and_then(Value::as_array);
    let mut has_model = false;
    for (auto, class) in map.iter().filter(|(auto, _)| auto.starts_with("AutoModel")) {
        let name = class.as_str().and_then(|class| class.rsplit('.').next());
        let says = |list: &Vec<Value>| list.iter().any(|a| a.as_str() == name);
        // a second entry for the network without its head is not what is run here
        let is_model = ["AutoModelForCausalLM", "AutoModel"].contains(&auto.as_str());
        if auto == "AutoModelForCausalLM" && architectures.is_some_and(|list| !says(list)) {
            return Err(bad_key(
                &format!("auto_map.{auto}"),
                &show(class),
                "a class that `architectures` names",
            )
            .hint("the repository computes its network with its own code, which is not run here"));
        }
        has_model |= is_model;
    }
    // these were published with code before transformers had them, and MiniCPM is nowhere else
    let model_type = config.get("model_type").and_then(Value::as_str);
    Ok(has_model && !matches!(model_type, Some("bitnet" | "minicpm")))
}

#[cfg(test)]
mod tests;
