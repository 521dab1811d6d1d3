//! A rotation as files of each container say it.
//!
//! Invariant: what is written here reads back as the same rotation.

use super::keys::has_two_orders;
use super::{AXIS, HF_FILE, TRANSFORM};
use crate::config::Config;
use crate::family::Family;
use crate::rotation::{ROTATION_KEYS, Rotation};
use crate::slot::Slot;
use bitnet_formats::{MetaArray, MetaValue, Strings};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Whether one stored table serves lookup and output.
fn is_tied(rotation: &Rotation, config: &Config) -> bool {
    rotation.embeddings && config.tie_word_embeddings
}

/// Rotated matrices of a network, in the order of the forward pass.
fn folded<'a>(rotation: &'a Rotation, config: &Config) -> impl Iterator<Item = Slot> + use<'a> {
    let slots = config.slots().into_iter();
    slots.filter(|slot| rotation.folded.contains(slot))
}

/// The keys of GGUF metadata.
pub(crate) fn gguf_rotation(family: &Family, config: &Config) -> Vec<(String, MetaValue)> {
    keys(config, family.gguf_tensor_name)
}

/// The keys with the names that a file has; none if nothing is rotated.
pub(super) fn keys(config: &Config, name: impl Fn(Slot) -> String) -> Vec<(String, MetaValue)> {
    let Some(rotation) = config.rotation.as_deref() else {
        return Vec::new();
    };
    let tied = is_tied(rotation, config);
    let names = |slots: &mut dyn Iterator<Item = Slot>| {
        let names = each_once(slots.map(&name));
        let names: Strings = names.iter().map(String::as_str).collect();
        MetaValue::Array(MetaArray::String(names))
    };
    let mut keys = vec![
        ("version", MetaValue::U32(if tied { 2 } else { 1 })),
        (
            "block_size",
            MetaValue::U32(rotation.block_size.try_into().unwrap_or(0)),
        ),
        ("transform", MetaValue::text(TRANSFORM)),
        ("axis", MetaValue::text(AXIS)),
        ("sign_mode", MetaValue::text(sign_mode(rotation))),
    ];
    if !rotation.signs.is_empty() {
        let widths = rotation
            .signs
            .keys()
            .map(|w| i32::try_from(*w).unwrap_or(0));
        let values = rotation.signs.values().flatten().map(|s| i32::from(*s));
        keys.push((
            "sign_widths",
            MetaValue::Array(MetaArray::I32(widths.collect())),
        ));
        keys.push((
            "sign_values",
            MetaValue::Array(MetaArray::I32(values.collect())),
        ));
    }
    keys.push(("weight_names", names(&mut folded(rotation, config))));
    if rotation.embeddings {
        let table = &mut std::iter::once(Slot::TokenEmbeddings);
        keys.push(("inverse_weight_names", names(table)));
    }
    let two_orders = |slot: &Slot| has_two_orders(config, *slot);
    if !rotation.tiled_values && rotation.folded.iter().any(two_orders) {
        keys.push(("gdn_v_grouped", MetaValue::Bool(true)));
    }
    if tied {
        keys.push(("tied_output", MetaValue::Bool(true)));
    }
    let keys = keys.into_iter();
    keys.map(|(key, value)| (format!("{ROTATION_KEYS}{key}"), value))
        .collect()
}

/// The names in their order; the linears of all experts of a layer may be one tensor.
fn each_once(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(name.clone())).collect()
}

fn sign_mode(rotation: &Rotation) -> &'static str {
    match rotation.signs.is_empty() {
        true => "identity",
        false => "explicit",
    }
}

/// The file beside a Hugging Face checkpoint, if its weights are rotated: its name and what is in it.
pub(crate) fn hf_rotation(
    family: &Family,
    config: &Config,
    config_json: Option<&Value>,
) -> Option<(&'static str, Value)> {
    let rotation = config.rotation.as_deref()?;
    let tied = is_tied(rotation, config);
    let record = |name: String, role: &str| json!({"name": name, "axis": -1, "role": role});
    let name = |slot: Slot| family.hf_name(config_json, slot);
    let table = rotation.embeddings.then_some(Slot::TokenEmbeddings);
    let tables = table.map(|slot| record(name(slot), "inverse-after-lookup"));
    let matrices = each_once(folded(rotation, config).map(name)).into_iter();
    let matrices = matrices.map(|name| record(name, "fold-before-matmul"));
    let signs = rotation.signs.iter();
    let signs: Map<String, Value> = signs.map(|(w, s)| (w.to_string(), json!(s))).collect();
    let mut manifest = json!({
        "schema_version": if tied { 3 } else { 2 },
        "kind": "hadamard-weight-fold",
        "status": "requires-matching-runtime",
        "transform": {
            "name": "normalized-signed-sylvester-walsh-hadamard",
            "block_size": rotation.block_size,
            "sign_mode": sign_mode(rotation),
        },
        "signs": signs,
        "tensors": tables.into_iter().chain(matrices).collect::<Value>(),
    });
    if let (true, Value::Object(keys)) = (tied, &mut manifest) {
        keys.insert("tied_output".to_owned(), json!(true));
    }
    Some((HF_FILE, manifest))
}
