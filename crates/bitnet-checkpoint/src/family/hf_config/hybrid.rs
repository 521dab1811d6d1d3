//! `config.json` of hybrids: keys of Gated DeltaNet layers, and the object that holds the text network one level
//! deeper.
//!
//! Invariant: a nested configuration and the flat one of the same network give the same `Config`; what the wrapper
//! says about images changes nothing in a text.

use super::super::json_values::show;
use super::Keys;
use crate::block::GatedDeltaNet;
use crate::config::{Config, Hybrid, bad_key};
use bitnet_formats::FormatError;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The object of the text network.
pub(in crate::family) const TEXT: &str = "text_config";
const TIED: &str = "tie_word_embeddings";
const LINEAR: &str = "linear_attention";
const FULL: &str = "full_attention";

/// Keys that a hybrid has and that are read here, or that do not change the network of a text.
pub(super) const KEYS: [&str; 14] = [
    "attn_output_gate",
    "full_attention_interval",
    "layer_types",
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
    "mamba_ssm_dtype",
    "mlp_only_layers",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
    "output_gate_type",
    "partial_rotary_factor",
];
/// Keys of rotary numbers that only networks with positions of images have.
pub(super) const ROPE_KEYS: [&str; 2] = ["mrope_interleaved", "mrope_section"];

/// Keys of the wrapper that are about images.
const WRAPPER: [&str; 9] = [
    TEXT,
    "image_token_id",
    "language_model_only",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
    "vision_token_id",
    "model_type",
];

/// The keys of the text network on one level: its own, and those that only the wrapper says.
///
/// # Errors
/// A `text_config` that is no object; a tie of embeddings and output head that the two levels answer differently.
pub(in crate::family) fn flat(config: &Value) -> Result<Cow<'_, Value>, FormatError> {
    let (Some(outer), Some(text)) = (config.as_object(), config.get(TEXT)) else {
        return Ok(Cow::Borrowed(config));
    };
    let Some(text) = text.as_object() else {
        return Err(bad_key(TEXT, &show(text), "an object"));
    };
    let mut flat = text.clone();
    let said = |object: &Map<String, Value>| object.get(TIED).filter(|v| !v.is_null()).cloned();
    if let (Some(outer), Some(inner)) = (said(outer), said(text))
        && outer != inner
    {
        let expected = format!("{TIED} = {}, as the keys around it say", show(&outer));
        return Err(bad_key(&format!("{TEXT}.{TIED}"), &show(&inner), &expected));
    }
    for (key, value) in outer {
        let is_said = flat.get(key).is_some_and(|value| !value.is_null());
        if !WRAPPER.contains(&key.as_str()) && !is_said {
            flat.insert(key.clone(), value.clone());
        }
    }
    for key in ["model_type", "architectures"] {
        if let Some(value) = outer.get(key) {
            flat.insert(key.to_owned(), value.clone());
        }
    }
    Ok(Cow::Owned(Value::Object(flat)))
}

/// Reads what only hybrids have; absent keys as transformers fills them in.
pub(super) fn read(
    keys: Keys<'_>,
    hidden_size: usize,
    layers: usize,
    head_dim: usize,
) -> Result<Hybrid, FormatError> {
    let size = |key: &str, absent: usize| Ok(keys.size(key)?.unwrap_or(absent));
    let delta = GatedDeltaNet {
        hidden_size,
        key_heads: size("linear_num_key_heads", 16)?,
        value_heads: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
        conv_kernel: size("linear_conv_kernel_dim", 4)?,
    };
    Ok(Hybrid {
        delta,
        recurrent: recurrent(keys, layers)?,
        rotary_dim: rotary_dim(keys, head_dim, Some(0.25))?,
        rope_sections: sections(keys)?,
    })
}

/// Which layers have a state: `layer_types`, else all but every `full_attention_interval`-th.
fn recurrent(keys: Keys<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    let Some(types) = keys.get("layer_types") else {
        let every = keys.size("full_attention_interval")?.unwrap_or(4);
        // `Config::checked` bounds the number later
        if every == 0 || layers > super::super::MOST_LAYERS as usize {
            return Err(keys.bad("full_attention_interval", "a number from 1 on"));
        }
        return Ok(super::super::windows_every(every, layers));
    };
    let kind = |t: &Value| match t.as_str() {
        Some(LINEAR) => Some(true),
        Some(FULL) => Some(false),
        _ => None,
    };
    let types = types.as_array();
    let types = types.and_then(|types| types.iter().map(kind).collect::<Option<Vec<_>>>());
    types.ok_or_else(|| {
        keys.bad(
            "layer_types",
            "a list of linear_attention and full_attention",
        )
    })
}

/// Rotated dimensions of a head: the whole part of `head_dim * partial_rotary_factor`, as transformers has it. `absent`
/// is the factor of a configuration without the key, if it may be absent.
pub(super) fn rotary_dim(
    keys: Keys<'_>,
    head_dim: usize,
    absent: Option<f64>,
) -> Result<usize, FormatError> {
    const FACTOR: &str = "partial_rotary_factor";
    let number = |value: &Value| value.as_f64().filter(|f| *f > 0.0 && *f <= 1.0);
    let mut factor = None;
    for (place, value) in [
        (
            "rope_parameters.",
            keys.object
                .pointer("/rope_parameters/partial_rotary_factor"),
        ),
        (
            "rope_scaling.",
            keys.object.pointer("/rope_scaling/partial_rotary_factor"),
        ),
        ("", keys.get(FACTOR)),
    ] {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            continue;
        };
        let key = format!("{place}{FACTOR}");
        let found = number(value);
        let found =
            found.ok_or_else(|| bad_key(&key, &show(value), "a number above 0, at most 1"))?;
        if factor.is_some_and(|other| other != found) {
            let expected = format!("{}, as the other key says", factor.unwrap_or(0.0));
            return Err(bad_key(&key, &show(value), &expected));
        }
        factor = Some(found);
    }
    let factor = factor.or(absent);
    let factor = factor.ok_or_else(|| keys.bad(FACTOR, "a number"))?;
    Ok((head_dim as f64 * factor) as usize)
}

/// `mrope_section`.
fn sections(keys: Keys<'_>) -> Result<[usize; 3], FormatError> {
    let objects = [
        "/rope_parameters/mrope_section",
        "/rope_scaling/mrope_section",
    ];
    let said = objects.iter().find_map(|path| keys.object.pointer(path));
    let Some(said) = said.filter(|said| !said.is_null()) else {
        return Ok(Hybrid::ROPE_SECTIONS);
    };
    let sizes = said.as_array().map(|list| {
        let size = |n: &Value| n.as_u64().and_then(|n| usize::try_from(n).ok());
        list.iter().map(size).collect::<Option<Vec<_>>>()
    });
    match sizes.flatten().as_deref() {
        Some(&[t, h, w]) => Ok([t, h, w]),
        _ => Err(bad_key(
            "rope_parameters.mrope_section",
            &show(said),
            "three whole numbers",
        )),
    }
}

/// Keys of a flat `config.json` that only hybrids have.
pub(in crate::family) fn extra_keys(config: &Config) -> Vec<(&'static str, Value)> {
    let Some(hybrid) = &config.hybrid else {
        return Vec::new();
    };
    let kind = |recurrent: &bool| match recurrent {
        true => LINEAR,
        false => FULL,
    };
    let kinds: Vec<_> = hybrid.recurrent.iter().map(kind).collect();
    let factor = rotary_factor(config.head_dim, hybrid.rotary_dim);
    let delta = hybrid.delta;
    vec![
        ("attn_output_gate", json!(true)),
        ("layer_types", json!(kinds)),
        ("linear_conv_kernel_dim", json!(delta.conv_kernel)),
        ("linear_key_head_dim", json!(delta.key_dim)),
        ("linear_num_key_heads", json!(delta.key_heads)),
        ("linear_num_value_heads", json!(delta.value_heads)),
        ("linear_value_head_dim", json!(delta.value_dim)),
        ("mamba_ssm_dtype", json!("float32")),
        ("partial_rotary_factor", json!(factor)),
    ]
}

/// The factor whose product with the width of a head has this whole part.
pub(in crate::family) fn rotary_factor(head_dim: usize, rotary_dim: usize) -> f64 {
    let factor = rotary_dim as f64 / head_dim as f64;
    match (head_dim as f64 * factor) as usize == rotary_dim {
        true => factor,
        false => factor.next_up(),
    }
}

/// Wraps a flat configuration written from nothing: the rotary numbers as transformers 5 has them, and the text
/// network one level deeper.
pub(in crate::family) fn nest(mut text: Map<String, Value>, config: &Config) -> Map<String, Value> {
    let mut rope = match text.shift_remove("rope_scaling") {
        Some(Value::Object(scaling)) => scaling,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    let theta = text.shift_remove("rope_theta");
    rope.insert("rope_theta".to_owned(), theta.unwrap_or(Value::Null));
    if let Some(hybrid) = &config.hybrid {
        let factor = rotary_factor(config.head_dim, hybrid.rotary_dim);
        rope.insert("partial_rotary_factor".to_owned(), json!(factor));
        rope.insert("mrope_section".to_owned(), json!(hybrid.rope_sections));
        rope.insert("mrope_interleaved".to_owned(), json!(true));
    }
    text.insert("rope_parameters".to_owned(), Value::Object(rope));
    let mut outer = Map::new();
    for key in ["architectures", "model_type"] {
        if let Some(value) = text.shift_remove(key) {
            outer.insert(key.to_owned(), value);
        }
    }
    outer.insert("language_model_only".to_owned(), json!(true));
    for key in [TIED, "torch_dtype"] {
        if let Some(value) = text.get(key) {
            outer.insert(key.to_owned(), value.clone());
        }
    }
    text.insert("model_type".to_owned(), json!("qwen3_5_text"));
    outer.insert(TEXT.to_owned(), Value::Object(text));
    outer
}
