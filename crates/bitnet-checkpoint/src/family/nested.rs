//! Configurations that hold the language model of a larger one: `decoder_config` of VibeVoice.
//!
//! Invariant: what is read is the language model alone. Its keys count as if they stood on the first level, and its
//! tensors lie below [`PREFIX`]; tensors of other parts are skipped and listed, never taken for its own.

use super::{FAMILIES, Family};
use serde_json::Value;

/// The object of the language model.
const DECODER: &str = "decoder_config";
/// Where its tensors lie.
pub(crate) const PREFIX: &str = "model.language_model.";
/// Keys of the whole that count for the language model if it does not have them itself.
const SHARED: [&str; 4] = [
    "quantization_config",
    "bos_token_id",
    "eos_token_id",
    "torch_dtype",
];

/// The configuration of the language model, and whether it lay one level deeper.
pub(crate) fn language_model(config: Value) -> (Value, bool) {
    let is_known = |config: &Value| FAMILIES.iter().any(|family| (family.matches)(config));
    if is_known(&config) {
        return (config, false);
    }
    let Some(Value::Object(decoder)) = config.get(DECODER) else {
        return (config, false);
    };
    let mut flat = decoder.clone();
    if flat.get("architectures").is_none_or(Value::is_null)
        && let Some(family) = family_of_type(&flat)
    {
        let (_, architecture) = family.hf_identity;
        flat.insert(
            "architectures".to_owned(),
            serde_json::json!([architecture]),
        );
    }
    for key in SHARED {
        if let (None, Some(value)) = (flat.get(key), config.get(key)) {
            flat.insert(key.to_owned(), value.clone());
        }
    }
    let flat = Value::Object(flat);
    match is_known(&flat) {
        true => (flat, true),
        false => (config, false),
    }
}

fn family_of_type(config: &serde_json::Map<String, Value>) -> Option<&'static Family> {
    let named = config.get("model_type")?.as_str()?;
    let mut families = FAMILIES.iter().copied();
    families.find(|family| family.hf_identity.0 == named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_decoder_of_a_known_family_is_taken() {
        let decoder = json!({"model_type": "qwen2", "hidden_size": 64});
        let whole = json!({
            "model_type": "vibevoice", "architectures": ["VibeVoiceForASR"], "decoder_config": decoder,
            "quantization_config": {"quant_method": "bitnet"}, "acoustic_tokenizer_config": {"model_type": "x"},
        });
        let (flat, is_nested) = language_model(whole.clone());
        assert!(is_nested);
        assert_eq!(
            flat,
            json!({
                "model_type": "qwen2", "hidden_size": 64, "architectures": ["Qwen2ForCausalLM"],
                "quantization_config": {"quant_method": "bitnet"},
            })
        );
        for other in [json!({"model_type": "mamba"}), json!("qwen2"), json!(null)] {
            let mut config = whole.clone();
            config["decoder_config"] = other;
            assert_eq!(language_model(config.clone()), (config, false));
        }
        let plain = json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]});
        assert_eq!(language_model(plain.clone()), (plain, false));
    }
}
