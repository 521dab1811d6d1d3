use super::*;
use crate::config::{Rope, RopeScaling, Yarn};
use serde_json::json;

/// A configuration each family accepts.
fn sample(family: &Family) -> Value {
    let (model_type, architecture) = family.hf_identity;
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": family.gguf_wiring.activation.as_str(),
        "hidden_size": 256,
        "intermediate_size": 512,
        "max_position_embeddings": 4096,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": !family.gguf_wiring.output_head,
        "torch_dtype": "bfloat16",
        "vocab_size": 400,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
    });
    // keys that one family demands and none is bothered by
    if family.name == "gemma3" {
        config["hidden_activation"] = config["hidden_act"].clone();
        config["head_dim"] = json!(64);
        config["query_pre_attn_scalar"] = json!(64);
        config["layer_types"] = json!(["sliding_attention", "sliding_attention"]);
        config["sliding_window"] = json!(16);
        config["rope_local_base_freq"] = json!(10000.0);
    }
    if family.name == "qwen35" {
        config["head_dim"] = json!(64);
        config["layer_types"] = json!(["linear_attention", "full_attention"]);
        config["linear_num_key_heads"] = json!(2);
        config["linear_num_value_heads"] = json!(6);
        config["linear_key_head_dim"] = json!(16);
        config["linear_value_head_dim"] = json!(32);
    }
    if family.gguf_wiring.experts.is_some() {
        config["num_experts"] = json!(3);
        config["num_experts_per_tok"] = json!(2);
        config["moe_intermediate_size"] = json!(128);
        config["norm_topk_prob"] = json!(true);
    }
    if family.name == "maple" {
        config["layer_types"] = json!(["sliding_attention", "full_attention"]);
        config["sliding_window"] = json!(16);
        config["nope_on_global_attention"] = json!(true);
        config["partial_rotary_factor"] = json!(0.5);
    }
    if family.name == "minicpm" {
        config["scale_emb"] = json!(12);
        config["scale_depth"] = json!(1.4);
        config["dim_model_base"] = json!(64);
    }
    config
}

fn llama() -> &'static Family {
    family_by_name("llama_b1_58").unwrap()
}

/// The configuration of the llama sample with one key changed.
fn with(key: &str, value: Value) -> Result<Config, FormatError> {
    let mut config = sample(llama());
    config[key] = value;
    (llama().config)(&config)
}

#[test]
fn every_name_is_its_files_stem_and_every_config_has_one_family() {
    for family in FAMILIES {
        let file = format!(
            "{}/src/family/{}.rs",
            env!("CARGO_MANIFEST_DIR"),
            family.name
        );
        assert!(std::path::Path::new(&file).is_file(), "{file}");
        let config = sample(family);
        let claims: Vec<_> = FAMILIES
            .iter()
            .filter(|f| (f.matches)(&config))
            .map(|f| f.name)
            .collect();
        assert_eq!(claims, [family.name]);
    }
    let mut architectures: Vec<_> = FAMILIES.iter().flat_map(|f| f.gguf_architectures).collect();
    architectures.sort();
    assert!(
        architectures.windows(2).all(|w| w[0] != w[1]),
        "one architecture, one family"
    );
}

#[test]
fn names_of_different_slots_differ() {
    for family in FAMILIES {
        let mut config = (family.config)(&sample(family)).unwrap();
        config.norms.projections = family.gguf_wiring.projection_norms;
        config.attn_sub_norm |= config.norms.projections;
        config.ffn_sub_norm |= config.norms.projections;
        let slots = config.slots();
        for name in [family.tensor_name, family.gguf_tensor_name] {
            let mut names: Vec<_> = slots.iter().map(|s| name(*s)).collect();
            names.sort();
            names.dedup();
            // GGUF keeps the matrices of all three experts in one tensor
            let shared = config.experts.is_some() && name(slots[0]) == "token_embd.weight";
            let others = if shared {
                2 * 3 * config.num_hidden_layers
            } else {
                0
            };
            assert_eq!(names.len() + others, slots.len());
        }
    }
}

#[test]
fn unknown_values_are_refused_with_key_and_value() {
    for (key, value, shown) in [
        ("hidden_act", json!("gelu_new"), "\"gelu_new\""),
        ("hidden_act", Value::Null, "nothing"),
        ("attention_bias", json!(true), "true"),
        ("mlp_bias", json!(true), "true"),
        ("sliding_window", json!(4096), "4096"),
        ("logits_scaling", json!(8.0), "8.0"),
        ("final_logit_softcapping", json!(30.0), "30.0"),
        ("num_local_experts", json!(8), "8"),
        (
            "layer_types",
            json!(["full_attention", "sliding_attention"]),
            "sliding_attention",
        ),
        ("activation", json!("geglu"), "\"geglu\""),
        ("hidden_size", json!("wide"), "\"wide\""),
        ("hidden_size", json!(-1), "-1"),
        ("hidden_size", json!(1_u64 << 40), "1099511627776"),
        ("num_key_value_heads", json!(3), "3"),
        ("num_attention_heads", json!(7), "7"),
        ("num_attention_heads", json!(0), "0"),
        ("head_dim", json!(63), "63"),
        ("rms_norm_eps", json!("tiny"), "\"tiny\""),
        ("rms_norm_eps", json!(0.0), "0"),
        ("tie_word_embeddings", json!("yes"), "\"yes\""),
        ("eos_token_id", json!(["a"]), "[\"a\"]"),
        (
            "rope_scaling",
            json!({"rope_type": "longrope", "factor": 4.0}),
            "nothing",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "dynamic", "factor": 4.0}),
            "\"dynamic\"",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 0.5}),
            "0.5",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 4.0, "truncate": false}),
            "false",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 0.5}),
            "0.5",
        ),
        ("rope_scaling", json!("linear"), "\"linear\""),
        (
            "rope_parameters",
            json!({"rope_theta": 10000.0, "rope_type": "default"}),
            "10000",
        ),
    ] {
        let error = with(key, value.clone()).unwrap_err();
        assert_eq!(
            error.code,
            ErrorCode::UnsupportedConfig,
            "{key} = {value}: {error}"
        );
        assert!(
            error.tensor.as_deref().is_some_and(|t| t.starts_with(key)),
            "{error}"
        );
        assert!(error.message.contains(shown), "{error}");
    }
    let mut config = sample(llama());
    config["model_type"] = json!("mamba");
    let error = family_of_config(&config).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`model_type`: expected one of bitnet, gemma3_text, hunyuan_v1_dense, llama, maple, minicpm, qwen2, qwen3, qwen3_5, qwen3_moe, found \"mamba\""
    );
    config["model_type"] = json!("llama");
    config["architectures"] = json!(["LlamaForSequenceClassification"]);
    let error = family_of_config(&config).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("`architectures`: expected one of"),
        "{error}"
    );
}

#[test]
fn harmless_keys_pass() {
    for (key, value) in [
        ("activation", json!("swiglu")),
        ("auto_map", json!({"AutoConfig": "x.Y"})),
        ("is_bitnet_config", json!(true)),
        ("pretraining_tp", json!(1)),
        ("rope_interleaved", json!(false)),
        ("sliding_window", Value::Null),
        ("attention_dropout", json!(0.0)),
        ("rope_scaling", json!({"type": "linear", "factor": 1.0})),
        ("rope_theta", json!(500_000)),
        (
            "rope_parameters",
            json!({"rope_theta": 500000.0, "rope_type": "default"}),
        ),
        ("layer_types", json!(["full_attention", "full_attention"])),
    ] {
        assert_eq!(
            with(key, value).unwrap(),
            (llama().config)(&sample(llama())).unwrap(),
            "{key}"
        );
    }
}

#[test]
fn both_spellings_of_rope_say_the_same() {
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let old = with("rope_scaling", llama3.clone()).unwrap();
    let mut new = sample(llama());
    new.as_object_mut().unwrap().remove("rope_theta");
    new.as_object_mut().unwrap().remove("torch_dtype");
    new["dtype"] = json!("bfloat16");
    new["rope_parameters"] = llama3;
    new["rope_parameters"]["rope_theta"] = json!(500000.0);
    assert_eq!((llama().config)(&new).unwrap(), old);
    // a copy has the old keys as well, for readers that know no others
    let copy = llama().hf_config_json(&old, Some(&new), HfStorage::MasterWeights);
    assert_eq!(copy["rope_theta"], json!(500000.0));
    assert_eq!(copy["rope_scaling"]["factor"], json!(32.0));
    assert_eq!(copy["rope_parameters"], new["rope_parameters"]);
    assert_eq!((llama().config)(&copy).unwrap(), old);
    assert!(matches!(
        old.rope.scaling,
        RopeScaling::Llama3 { factor: 32.0, .. }
    ));
    // 0.1 is no f32: GGUF would round it, so this container does too
    let odd = with("rope_theta", json!(10000.1)).unwrap();
    assert_eq!(
        odd.rope,
        Rope {
            theta: f64::from(10000.1f32),
            scaling: RopeScaling::None
        }
    );
}

#[test]
fn yarn_reads_as_transformers_fills_it_in() {
    let yarn = |object: Value| match with("rope_scaling", object).unwrap().rope.scaling {
        RopeScaling::Yarn(yarn) => yarn,
        other => panic!("{other:?}"),
    };
    let plain = yarn(json!({"type": "yarn", "factor": 4.0}));
    assert_eq!(plain.original_max_position_embeddings, 4096);
    assert_eq!((plain.beta_fast, plain.beta_slow), (32.0, 1.0));
    assert_eq!(plain.attention_factor as f32, 1.138_629_4);
    let full = yarn(json!({
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
        "beta_fast": 16, "beta_slow": 0, "attention_factor": 1.5,
    }));
    assert_eq!(full.original_max_position_embeddings, 1024);
    assert_eq!((full.beta_fast, full.beta_slow), (16.0, 1.0));
    assert_eq!(full.attention_factor, 1.5);
    let scales = json!({"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0});
    assert_eq!(yarn(scales).attention_factor, 1.0);
    let ratio = yarn(json!({"rope_type": "yarn", "original_max_position_embeddings": 2048}));
    assert_eq!(ratio.factor, 2.0);

    let of = |yarn| {
        let config = with("rope_scaling", Value::Null).unwrap();
        let rope = Rope {
            scaling: RopeScaling::Yarn(yarn),
            ..config.rope
        };
        Config { rope, ..config }
    };
    // every container says the same
    for yarn in [
        plain,
        Yarn {
            attention_factor: 1.5,
            ..plain
        },
    ] {
        let config = of(yarn);
        let json = llama().hf_config_json(&config, None, HfStorage::Dequantised);
        assert_eq!((llama().config)(&json).unwrap().rope, config.rope);
    }
    // what no GGUF reader of the architecture would compute
    let error = llama().gguf_metadata(&of(full), None).unwrap_err();
    assert_eq!(error.code, ErrorCode::TargetCannotHold);
}

#[test]
fn quantization_says_which_way_scales_work() {
    use Quantization::{Offline, Online, Unmarked};
    let read = |section: Value| {
        let mut config = sample(llama());
        config["quantization_config"] = section;
        llama().quantization(&config)
    };
    let bitnet = |class: Option<&str>, mode: Option<&str>| {
        let mut section = json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]});
        for (key, value) in [("linear_class", class), ("quantization_mode", mode)] {
            if let Some(value) = value {
                section[key] = json!(value);
            }
        }
        read(section)
    };
    assert_eq!(bitnet(None, None), Ok(Offline(ScaleDirection::Divide)));
    assert_eq!(
        bitnet(Some("bitlinear"), None),
        Ok(Offline(ScaleDirection::Divide))
    );
    assert_eq!(
        bitnet(Some("autobitlinear"), None),
        Ok(Offline(ScaleDirection::Multiply))
    );
    assert_eq!(
        bitnet(Some("autobitlinear"), Some("offline")),
        Ok(Offline(ScaleDirection::Multiply))
    );
    assert_eq!(bitnet(Some("autobitlinear"), Some("online")), Ok(Online));
    assert_eq!(read(Value::Null), Ok(Unmarked));
    for (section, key) in [
        (
            json!({"quant_method": "gptq", "bits": 4}),
            "quantization_config.quant_method",
        ),
        (json!({}), "quantization_config.quant_method"),
        (json!("bitnet"), "quantization_config"),
        (
            json!({"quant_method": "bitnet", "linear_class": "nf4"}),
            "quantization_config.linear_class",
        ),
        (
            json!({"quant_method": "bitnet", "quantization_mode": "x"}),
            "quantization_config.quantization_mode",
        ),
        (
            json!({"quant_method": "bitnet", "use_rms_norm": true}),
            "quantization_config.use_rms_norm",
        ),
        (
            json!({"quant_method": "bitnet", "modules_to_not_convert": ["o_proj"]}),
            "quantization_config.modules_to_not_convert",
        ),
    ] {
        let error = read(section).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownQuantization);
        assert_eq!(error.tensor.as_deref(), Some(key), "{error}");
    }
    let mut config = sample(llama());
    config["weight_bits"] = json!(1);
    assert_eq!(llama().quantization(&config), Ok(Online));
    config["weight_bits"] = json!(4);
    assert!(llama().quantization(&config).is_err());
}

#[test]
fn repeated_keys_take_the_last() {
    let text = br#"{"quantization_config": {"quant_method": "gptq"}, "a": 1,
        "quantization_config": {"quant_method": "bitnet"}}"#;
    let config = parse_json(text).unwrap();
    assert_eq!(
        quantization::read(&config, false),
        Ok(Quantization::Offline(ScaleDirection::Divide))
    );
    assert!(parse_json(b"[1]").is_err());
    assert!(parse_json(b"{\"a\": 1").is_err());
    assert!(parse_json(&[b'['; 100_000]).is_err());
}

#[test]
fn a_config_json_written_from_nothing_reads_back() {
    for family in FAMILIES {
        for activations in [
            ActivationQuantization::Int8PerToken,
            ActivationQuantization::None,
        ] {
            let mut config = (family.config)(&sample(family)).unwrap();
            config.activation_quantization = activations;
            // a family that rotates only the layers with a window refuses a scaling
            if config.sliding.as_ref().is_none_or(|s| s.full_rope) {
                config.rope.scaling = RopeScaling::Linear { factor: 4.0 };
            }
            for storage in [
                HfStorage::Packed(ScaleDirection::Multiply),
                HfStorage::Packed(ScaleDirection::Divide),
                HfStorage::Dequantised,
            ] {
                let json = family.hf_config_json(&config, None, storage);
                assert!((family.matches)(&json));
                let read = (family.config)(&json).unwrap();
                let quantization = family.quantization(&json).unwrap();
                match storage {
                    HfStorage::Packed(direction) => {
                        assert_eq!(read, config);
                        assert_eq!(quantization, Quantization::Offline(direction));
                    }
                    _ if family.dequantised_has_scale(&config) => {
                        assert_eq!(read, config);
                        assert_eq!(
                            quantization,
                            Quantization::Offline(ScaleDirection::Multiply)
                        );
                    }
                    _ => assert_eq!(quantization, Quantization::Unmarked),
                }
            }
        }
    }
}

#[test]
fn an_original_config_json_keeps_its_keys() {
    let mut original = sample(llama());
    original["answer"] = json!(42);
    original["quantization_config"] =
        json!({"quant_method": "bitnet", "modules_to_not_convert": ["lm_head"]});
    let config = (llama().config)(&original).unwrap();
    let same = llama().hf_config_json(
        &config,
        Some(&original),
        HfStorage::Packed(ScaleDirection::Divide),
    );
    assert_eq!(same, original);
    let turned = llama().hf_config_json(&config, Some(&original), HfStorage::Dequantised);
    assert_eq!(turned["answer"], 42);
    assert_eq!(
        turned["quantization_config"]["modules_to_not_convert"],
        json!(["lm_head"])
    );
    assert_eq!(
        turned["quantization_config"]["linear_class"],
        "autobitlinear"
    );
    assert_eq!(
        turned["quantization_config"]["quantization_mode"],
        "offline"
    );
    let master = llama().hf_config_json(&config, Some(&original), HfStorage::MasterWeights);
    assert_eq!(master, original);
}

#[test]
fn gguf_targets_refuse_what_their_readers_would_compute_differently() {
    for family in FAMILIES {
        let config = (family.config)(&sample(family)).unwrap();
        let keys = family.gguf_metadata(&config, Some("name")).unwrap();
        assert_eq!(keys[0].1, MetaValue::text(family.gguf_architectures[0]));
        let other = Config {
            hidden_act: match config.hidden_act {
                Activation::GeluTanh => Activation::Silu,
                _ => Activation::GeluTanh,
            },
            ..config.clone()
        };
        assert_eq!(
            family.gguf_metadata(&other, None).unwrap_err().code,
            ErrorCode::TargetCannotHold
        );
        let other = Config {
            attn_sub_norm: !config.attn_sub_norm,
            ..config.clone()
        };
        assert!(family.gguf_metadata(&other, None).is_err());
        let other = Config {
            tie_word_embeddings: false,
            ..config
        };
        assert_eq!(
            family.gguf_metadata(&other, None).is_ok(),
            family.gguf_wiring.output_head
        );
    }
}
