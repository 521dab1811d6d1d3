//! `config.json` written from a [`Config`].
//!
//! Invariant: what is written reads back as the same `Config`.

use super::super::Family;
use super::super::json_values::decimal;
use super::super::quantization::{self, Quantization};
use crate::config::{Config, RopeScaling};
use serde_json::{Map, Value, json};

/// A `config.json`; see [`Family::hf_config_json`].
pub(in crate::family) fn write(
    config: &Config,
    original: Option<&Value>,
    from_nothing: impl FnOnce() -> Map<String, Value>,
    quantization: Quantization,
) -> Value {
    let mut object = match original {
        Some(Value::Object(original)) => original.clone(),
        _ => from_nothing(),
    };
    // readers size the tables by it, whatever the original said
    let size = "vocab_size";
    if original.is_some_and(|o| o.get(size).is_some()) {
        object.insert(size.to_owned(), json!(config.vocab_size));
    }
    if let Some(Value::Object(text)) = object.get_mut(super::hybrid::TEXT)
        && text.contains_key(size)
    {
        text.insert(size.to_owned(), json!(config.vocab_size));
    }
    quantization::write(&mut object, quantization, config);
    Value::Object(object)
}

/// The keys of a `config.json` of a family, `quantization_config` excepted.
pub(in crate::family) fn from_nothing(family: &Family, config: &Config) -> Map<String, Value> {
    let (model_type, architecture) = family.hf_identity;
    let scaling = match config.rope.scaling {
        RopeScaling::None => match &config.long_rope {
            None => Value::Null,
            Some(long_rope) => {
                let list = |list: &[f32]| list.iter().map(|n| decimal(*n)).collect::<Value>();
                let original = long_rope.original_max_position_embeddings;
                json!({
                    "rope_type": "longrope",
                    "type": "longrope",
                    "long_factor": list(&long_rope.long),
                    "short_factor": list(&long_rope.short),
                    "original_max_position_embeddings": original,
                    "attention_factor": decimal(long_rope.attention_factor),
                })
            }
        },
        RopeScaling::Linear { factor } => {
            json!({"rope_type": "linear", "type": "linear", "factor": factor})
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn(yarn) => json!({
            "rope_type": "yarn",
            "type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "attention_factor": yarn.attention_factor,
        }),
    };
    let eos = match config.eos_token_ids.as_slice() {
        [] => Value::Null,
        [one] => json!(one),
        several => json!(several),
    };
    let pairs = [
        ("architectures", json!([architecture])),
        ("attention_bias", json!(false)),
        ("bos_token_id", json!(config.bos_token_id)),
        ("eos_token_id", eos),
        ("head_dim", json!(config.head_dim)),
        ("hidden_act", json!(config.hidden_act.as_str())),
        ("hidden_size", json!(config.hidden_size)),
        ("intermediate_size", json!(config.intermediate_size)),
        (
            "max_position_embeddings",
            json!(config.max_position_embeddings),
        ),
        ("model_type", json!(model_type)),
        ("num_attention_heads", json!(config.num_attention_heads)),
        ("num_hidden_layers", json!(config.num_hidden_layers)),
        ("num_key_value_heads", json!(config.num_key_value_heads)),
        ("rms_norm_eps", decimal(config.rms_norm_eps)),
        ("rope_scaling", scaling),
        ("rope_theta", json!(config.rope.theta)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        ("torch_dtype", json!("bfloat16")),
        ("use_cache", json!(true)),
        ("vocab_size", json!(config.vocab_size)),
    ];
    // readers of the key take it for biases of every linear of attention
    let pairs = (pairs.into_iter()).filter(|(key, _)| !config.biases || *key != "attention_bias");
    let pairs = pairs.chain((family.hf_extra_keys)(config));
    let object = pairs.map(|(k, v)| (k.to_owned(), v)).collect();
    match config.hybrid {
        Some(_) => super::hybrid::nest(object, config),
        None => object,
    }
}
