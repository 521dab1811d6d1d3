//! A rotated hybrid as a pack for MLX: names of tensors, `config.json` and `hadamard.json`.
//!
//! Invariant: what is written here reads back as the same network and the same rotation, and has the keys and values
//! that mlx-lm's loader of such packs insists on.

use super::written::keys;
use super::{MLX_FILE, MLX_KEY, MLX_PACK};
use crate::config::Config;
use crate::family::Family;
use crate::family::hf_config::{self, hybrid};
use crate::family::quantization::Quantization;
use crate::slot::Slot;
use bitnet_formats::{MetaArray, MetaValue};
use serde_json::{Map, Value, json};

/// What stands in front of the names of tensors.
const PREFIX: &str = "language_model.";
/// Version and kind of names.
const NAMESPACE: (u64, &str) = (2, "mlx-vlm-qwen3_5");

/// The name of a slot's tensor.
pub(crate) fn name(family: &Family, slot: Slot) -> String {
    format!("{PREFIX}{}", (family.tensor_name)(slot))
}

/// `config.json` and `hadamard.json`. `codes` are the matrices that are stored as codes.
pub(crate) fn files(
    family: &Family,
    config: &Config,
    original: Option<&Value>,
    codes: &[Slot],
) -> Vec<(&'static str, Value)> {
    let rotation = keys(config, |slot| name(family, slot)).into_iter();
    let rotation: Map<String, Value> = rotation.map(|(key, value)| (key, to_json(value))).collect();
    let (schema, namespace) = NAMESPACE;
    let outer = json!({
        "schema_version": schema,
        "model_type": MLX_PACK,
        "base_model_type": family.hf_identity.0,
        MLX_KEY: MLX_FILE,
        "tensor_namespace": namespace,
        "gdn_activation_layout": "grouped",
        // the loader compares the whole object
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": modules(family, config, codes),
        "tie_word_embeddings": config.tie_word_embeddings,
        hybrid::TEXT: text_config(family, config, original),
    });
    vec![("config.json", outer), (MLX_FILE, Value::Object(rotation))]
}

/// The keys of the text network: those of the original, or all that there are.
fn text_config(family: &Family, config: &Config, original: Option<&Value>) -> Value {
    let original = original.filter(|json| !super::is_pack(json));
    let from_nothing = || hf_config::from_nothing(family, config);
    let written = hf_config::write(config, original, from_nothing, Quantization::Unmarked);
    let mut text = match hybrid::flat(&written).map(|flat| flat.into_owned()) {
        Ok(Value::Object(text)) => text,
        _ => Map::new(),
    };
    for key in ["architectures", "torch_dtype"] {
        text.shift_remove(key);
    }
    text.insert("model_type".to_owned(), json!("qwen3_5_text"));
    text.insert("dtype".to_owned(), json!("float16"));
    Value::Object(text)
}

/// The list that programs read instead of the keys.
fn modules(family: &Family, config: &Config, codes: &[Slot]) -> Value {
    let rotation = config.rotation.as_deref();
    let record = |slot: &Slot| {
        let name = (family.tensor_name)(*slot);
        let turned = rotation.filter(|rotation| rotation.turns(*slot));
        json!({
            "path": name.strip_suffix(".weight").unwrap_or(&name),
            "block": turned.map_or(0, |rotation| rotation.block_size),
            "embedding": *slot == Slot::TokenEmbeddings,
            "dtype": "float16",
        })
    };
    codes.iter().map(record).collect()
}

/// A key of a rotation as JSON.
fn to_json(value: MetaValue) -> Value {
    match &value {
        MetaValue::Array(MetaArray::I32(list)) => json!(list),
        MetaValue::Array(MetaArray::String(list)) => {
            let names = list.iter().map(String::from_utf8_lossy);
            names.map(|name| json!(name)).collect()
        }
        other => match (other.as_str(), other.as_bool(), other.as_u64()) {
            (Some(text), _, _) => json!(text),
            (_, Some(flag), _) => json!(flag),
            (_, _, number) => json!(number),
        },
    }
}
