use super::*;
use serde_json::json;

fn keys_of(config: &Value) -> Vec<String> {
    unknown(config, |_| false)
        .into_iter()
        .map(|k| k.key)
        .collect()
}

#[test]
fn keys_pass_are_reported_or_are_refused() {
    let harmless = json!({
        "use_cache": true, "torch_dtype": "bfloat16", "attention_dropout": 0.1, "temperature": 0.6,
        "brand_new_switch": false, "brand_new_list": [], "brand_new_factor": 1.0, "rope_new": null,
    });
    assert_eq!(refuse(&harmless, |_| false), Ok(()));
    assert!(keys_of(&harmless).is_empty());
    let reported = json!({"answer": 42, "origin": "a laboratory", "vision_tower": {"a": 1}});
    assert_eq!(refuse(&reported, |_| false), Ok(()));
    assert_eq!(keys_of(&reported), ["answer", "origin", "vision_tower"]);
    for (key, value) in [
        ("attn_scale", json!(0.5)),
        ("new_rope_mode", json!("other")),
        ("embed_norm", json!(true)),
        ("logit_softcap", json!(30.0)),
        ("text_config", json!({"hidden_size": 8})),
        ("num_local_experts", json!(8)),
        ("mup_multiplier", json!(2)),
        ("sinks2", json!(true)),
        ("modules_to_not_convert", json!(["lm_head"])),
        ("transformers_weights", json!("other.safetensors")),
    ] {
        let error = refuse(&json!({key: value}), |_| false).unwrap_err();
        assert_eq!(error.tensor.as_deref(), Some(key), "{error}");
        // a list of the caller may know better
        assert_eq!(refuse(&json!({key: value}), |k| k == key), Ok(()), "{key}");
    }
}

#[test]
fn code_beside_the_weights_is_named() {
    let with = |class: &str, model_type: &str, architecture: &str| {
        json!({
            "architectures": [architecture], "model_type": model_type,
            "auto_map": {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": class},
        })
    };
    let own = with(
        "modeling_bitnet.BitNetForCausalLM",
        "bitnet",
        "BitNetForCausalLM",
    );
    assert!(keys_of(&own).is_empty());
    let same = with(
        "o/r--modeling_llama.LlamaForCausalLM",
        "llama",
        "LlamaForCausalLM",
    );
    assert_eq!(refuse(&same, |_| false), Ok(()));
    assert_eq!(keys_of(&same), ["auto_map"]);
    let other = with("modeling_x.XForCausalLM", "llama", "LlamaForCausalLM");
    let error = refuse(&other, |_| false).unwrap_err();
    assert_eq!(
        error.tensor.as_deref(),
        Some("auto_map.AutoModelForCausalLM")
    );
    assert!(refuse(&json!({"auto_map": "x"}), |_| false).is_err());
}
