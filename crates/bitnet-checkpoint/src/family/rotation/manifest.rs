//! Rotations of checkpoints with a `config.json`: `hadamard.json` of MLX packs and `hadamard_packing.json` of the
//! converter that folded the weights.
//!
//! Invariant: either file becomes the keys that GGUF metadata have, and is read as these are. What `config.json` of a
//! pack says for readers that know no keys has to agree.

use super::keys::{Keys, Names};
use super::{AXIS, HF_FILE, MLX_FILE, MLX_KEY, TRANSFORM, slots_by};
use crate::config::{Config, bad_key};
use crate::family::Family;
use crate::family::json_values::show;
use crate::rotation::{NOT_WHOLE, ROTATION_KEYS, Rotation};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError, MetaArray, MetaValue, Metadata, Strings};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// The name of the transform in the manifest: signs are part of it there.
const SIGNED_TRANSFORM: &str = "normalized-signed-sylvester-walsh-hadamard";
/// What a manifest is.
const KIND: &str = "hadamard-weight-fold";
/// The manifest's version for one table of embeddings and output head.
const TIED_SCHEMA: u64 = 3;

/// A name of a tensor as the checkpoints of most families have it: without the prefixes of models that also see.
pub(super) fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("model.language_model.").map_or_else(
        || match name.strip_prefix("language_model.") {
            Some(rest) => rest.to_owned(),
            None => name.to_owned(),
        },
        |rest| format!("model.{rest}"),
    );
    match ["layers.", "embed_tokens.", "norm."]
        .iter()
        .any(|start| name.starts_with(start))
    {
        true => format!("model.{name}"),
        false => name,
    }
}

/// The rotation that the files beside a `config.json` declare. `read` gives a JSON file of the directory, if it is
/// there.
///
/// # Errors
/// As [`super::read_gguf`]; the error names file and key.
pub(crate) fn read_beside(
    directory: &Path,
    config_json: &Value,
    family: &Family,
    config: &Config,
    read: impl Fn(&str) -> Result<Option<Value>, FormatError>,
) -> Result<Option<Rotation>, FormatError> {
    let slots = slots_by(config, |slot| plain_name(&(family.tensor_name)(slot)));
    let has_own_head = !config.tie_word_embeddings;
    let is_there = |name: &str| match slots.get(name) {
        Some(slots) => has_own_head || !slots.contains(&Slot::OutputHead),
        None => false,
    };
    let name = |slot| plain_name(&(family.tensor_name)(slot));
    let names = Names {
        slots: slots.clone(),
        is_there: &is_there,
        embeddings: name(Slot::TokenEmbeddings),
        head: name(Slot::OutputHead),
        has_own_head,
        tiles_values: false,
    };
    let mlx_file = match config_json.get(MLX_KEY) {
        None | Some(Value::Null) => MLX_FILE,
        Some(Value::String(file)) if is_plain_file(file) => file,
        Some(other) => {
            let expected = "the name of a file beside config.json";
            return Err(bad_key(MLX_KEY, &show(other), expected));
        }
    };
    let mlx = read(mlx_file)?;
    if mlx.is_none() && config_json.get(MLX_KEY).is_some_and(|key| !key.is_null()) {
        let message = "expected this file, which config.json names as hadamard_config, found none";
        return Err(FormatError::new(ErrorCode::MissingTensor, message)
            .in_file(&directory.join(mlx_file))
            .hint(NOT_WHOLE));
    }
    let mlx = mlx.map(|json| {
        let keys = Keys::new(metadata_of(&json)?, |key| format!("{ROTATION_KEYS}{key}"));
        keys.read(&names, config)
    });
    let mlx = (mlx.transpose()).map_err(|e| e.in_file(&directory.join(mlx_file)))?;
    let manifest = read(HF_FILE)?.map(|json| {
        let keys = Keys::new(metadata_of_manifest(&json)?, place_in_manifest);
        keys.read(&names, config)
    });
    let manifest = (manifest.transpose()).map_err(|e| e.in_file(&directory.join(HF_FILE)))?;
    if let (Some(mlx), Some(manifest)) = (&mlx, &manifest)
        && mlx != manifest
    {
        let message = format!("expected the rotation of {mlx_file}, found another");
        return Err(FormatError::new(ErrorCode::Malformed, message)
            .in_file(&directory.join(HF_FILE))
            .hint("remove the file that does not belong to these weights"));
    }
    let rotation = mlx.or(manifest);
    check_modules(config_json, rotation.as_ref(), config, &slots)
        .map_err(|e| e.in_file(&directory.join("config.json")))?;
    Ok(rotation)
}

/// Whether a name is that of a file in the same directory.
fn is_plain_file(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\'])
}

/// The keys of `hadamard.json`.
fn metadata_of(json: &Value) -> Result<Metadata, FormatError> {
    let Value::Object(object) = json else {
        return Err(bad_key(MLX_FILE, &show(json), "an object"));
    };
    let mut entries = Vec::with_capacity(object.len());
    for (key, value) in object {
        let is_names = key.ends_with("_names");
        let value = match value {
            Value::Array(list) if is_names => names_of(list, key)?,
            other => meta(other),
        };
        let full = match key.starts_with(ROTATION_KEYS) {
            true => key.clone(),
            false => {
                return Err(bad_key(
                    key,
                    &show(json.get(key).unwrap_or(&Value::Null)),
                    "no such key",
                ));
            }
        };
        entries.push((full, value));
    }
    Ok(Metadata(entries))
}

/// A list of tensors, by their plain names.
fn names_of(list: &[Value], key: &str) -> Result<MetaValue, FormatError> {
    let mut names = Vec::with_capacity(list.len());
    for name in list {
        let Value::String(name) = name else {
            return Err(bad_key(key, &show(name), "names of tensors"));
        };
        names.push(plain_name(name));
    }
    let names: Strings = names.iter().map(String::as_str).collect();
    Ok(MetaValue::Array(MetaArray::String(names)))
}

/// A JSON value as a value of metadata; a number that is not whole, or an object, as one that no key takes.
fn meta(value: &Value) -> MetaValue {
    match value {
        Value::Bool(flag) => MetaValue::Bool(*flag),
        Value::String(text) => MetaValue::text(text),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => MetaValue::U64(whole),
            None => MetaValue::F64(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::Array(list) => {
            let whole: Option<Vec<i64>> = list.iter().map(Value::as_i64).collect();
            MetaValue::Array(match whole {
                Some(whole) => MetaArray::I64(whole),
                None => MetaArray::F64(vec![f64::NAN; list.len()]),
            })
        }
        Value::Null | Value::Object(_) => MetaValue::F64(f64::NAN),
    }
}

/// Where a key of metadata stands in the manifest.
fn place_in_manifest(key: &str) -> String {
    match key {
        "version" => "schema_version",
        "block_size" => "transform.block_size",
        "transform" => "transform.name",
        "sign_mode" => "transform.sign_mode",
        "sign_widths" | "sign_values" => "signs",
        "axis" => "tensors.axis",
        "weight_names" | "inverse_weight_names" => "tensors",
        other => other,
    }
    .to_owned()
}

/// The keys that a manifest stands for.
fn metadata_of_manifest(json: &Value) -> Result<Metadata, FormatError> {
    let of = |key: &str| json.get(key).unwrap_or(&Value::Null);
    let bad = |key: &str, expected: &str| {
        let found = json.pointer(&format!("/{}", key.replace('.', "/")));
        bad_key(key, &show(found.unwrap_or(&Value::Null)), expected).hint(NOT_WHOLE)
    };
    if !json.is_object() {
        return Err(bad_key(HF_FILE, &show(json), "an object"));
    }
    let schema = of("schema_version").as_u64();
    let schema = schema.filter(|n| (1..=TIED_SCHEMA).contains(n));
    let schema = schema.ok_or_else(|| bad("schema_version", "1, 2 or 3"))?;
    if of("kind") != KIND {
        return Err(bad("kind", KIND));
    }
    let is_tied = schema == TIED_SCHEMA;
    match of("tied_output") {
        Value::Null => {}
        Value::Bool(tied) if *tied == is_tied => {}
        _ => return Err(bad("tied_output", "true in schema 3, and only there")),
    }
    let transform = of("transform");
    if transform
        .get("name")
        .is_none_or(|name| name != SIGNED_TRANSFORM)
    {
        return Err(bad("transform.name", SIGNED_TRANSFORM));
    }
    let (widths, values) = signs_of_manifest(of("signs"), &bad)?;
    let (folded, inverse) = tensors_of_manifest(of("tensors"), &bad)?;
    let mut metadata = Metadata::default();
    let mut set =
        |key: &str, value: MetaValue| metadata.set(format!("{ROTATION_KEYS}{key}"), value);
    set("version", MetaValue::U64(if is_tied { 2 } else { 1 }));
    if is_tied {
        set("tied_output", MetaValue::Bool(true));
    }
    set("transform", MetaValue::text(TRANSFORM));
    set("axis", MetaValue::text(AXIS));
    for key in ["block_size", "sign_mode"] {
        if let Some(value) = transform.get(key) {
            set(key, meta(value));
        }
    }
    if !widths.is_empty()
        || transform
            .get("sign_mode")
            .is_some_and(|mode| mode == "explicit")
    {
        set("sign_widths", MetaValue::Array(MetaArray::I64(widths)));
        set("sign_values", MetaValue::Array(MetaArray::I64(values)));
    }
    let names = |names: Vec<String>| {
        let names: Strings = names.iter().map(String::as_str).collect();
        MetaValue::Array(MetaArray::String(names))
    };
    set("weight_names", names(folded));
    set("inverse_weight_names", names(inverse));
    Ok(metadata)
}

/// Widths and signs, one behind the other.
fn signs_of_manifest(
    signs: &Value,
    bad: &impl Fn(&str, &str) -> FormatError,
) -> Result<(Vec<i64>, Vec<i64>), FormatError> {
    let empty = Map::new();
    let signs = match signs {
        Value::Null => &empty,
        Value::Object(signs) => signs,
        _ => return Err(bad("signs", "an object of widths")),
    };
    let (mut widths, mut values) = (Vec::new(), Vec::new());
    for (width, own) in signs {
        let place = format!("signs.{width}");
        let expected = "as many of +1 and -1 as the width";
        let parsed: Option<usize> = width.parse().ok();
        let own = own.as_array().ok_or_else(|| bad(&place, expected))?;
        let width = parsed.filter(|width| *width == own.len());
        let width = width.ok_or_else(|| {
            let found = format!("{} values", own.len());
            bad_key(&place, &found, expected).hint(NOT_WHOLE)
        })?;
        widths.push(i64::try_from(width).unwrap_or(i64::MAX));
        for sign in own {
            let sign = sign.as_i64().filter(|sign| sign.abs() == 1);
            values.push(
                sign.ok_or_else(|| bad_key(&place, "another value", "+1 and -1").hint(NOT_WHOLE))?,
            );
        }
    }
    Ok((widths, values))
}

/// Names of matrices that multiply rotated inputs, and of tables that are turned back on lookup.
fn tensors_of_manifest(
    tensors: &Value,
    bad: &impl Fn(&str, &str) -> FormatError,
) -> Result<(Vec<String>, Vec<String>), FormatError> {
    let list = tensors.as_array().ok_or_else(|| bad("tensors", "a list"))?;
    let (mut folded, mut inverse) = (Vec::new(), Vec::new());
    for (number, record) in list.iter().enumerate() {
        let bad = |key: &str, expected: &str| {
            let found = show(record.get(key).unwrap_or(&Value::Null));
            bad_key(&format!("tensors.{number}.{key}"), &found, expected).hint(NOT_WHOLE)
        };
        let name = record.get("name").and_then(Value::as_str);
        let name = plain_name(name.ok_or_else(|| bad("name", "the name of a tensor"))?);
        // every matrix has two axes, so the last is 1 as well
        match record.get("axis") {
            None | Some(Value::Null) => {}
            Some(axis) if matches!(axis.as_i64(), Some(-1 | 1)) => {}
            Some(_) => return Err(bad("axis", "-1, the inputs")),
        }
        match record.get("role").map(|role| role.as_str().unwrap_or("")) {
            None | Some("fold-before-matmul") => folded.push(name),
            Some("inverse-after-lookup") => inverse.push(name),
            Some(_) => return Err(bad("role", "fold-before-matmul or inverse-after-lookup")),
        }
    }
    Ok((folded, inverse))
}

/// The list of rotated modules that programs for MLX packs read instead of the keys.
fn check_modules(
    config_json: &Value,
    rotation: Option<&Rotation>,
    config: &Config,
    slots: &std::collections::BTreeMap<String, Vec<Slot>>,
) -> Result<(), FormatError> {
    const LIST: &str = "modules";
    let refuse =
        |key: &str, found: &str, expected: &str| Err(bad_key(key, found, expected).hint(NOT_WHOLE));
    match config_json.get("gdn_activation_layout") {
        None | Some(Value::Null) => {}
        Some(layout) if layout == "grouped" => {}
        Some(other) => return refuse("gdn_activation_layout", &show(other), "grouped"),
    }
    let list = match config_json.get(LIST) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(list)) => list,
        Some(other) => return refuse(LIST, &show(other), "a list"),
    };
    let mut turned = BTreeSet::new();
    for (number, record) in list.iter().enumerate() {
        let place = format!("{LIST}.{number}");
        let path = record.get("path").and_then(Value::as_str).unwrap_or("");
        let own = slots.get(&format!("{}.weight", plain_name(path)));
        let slot = own.and_then(|own| own.first().copied());
        let block = record.get("block").and_then(Value::as_u64);
        let Some((slot, block)) = slot.zip(block) else {
            return refuse(
                &place,
                &show(record),
                "path and block of a module of this network",
            );
        };
        let expected = match rotation {
            Some(rotation) if rotation.turns(slot) => rotation.block_size,
            _ => 0,
        };
        if block != expected as u64 {
            let expected = format!("{expected}, as the keys of the rotation say");
            return refuse(&format!("{place}.block"), &block.to_string(), &expected);
        }
        if block > 0 {
            turned.extend(own.into_iter().flatten().copied());
        }
    }
    let turned = turned.len();
    let expected = rotation.map_or(0, Rotation::matrices);
    if turned != expected {
        let found = format!(
            "{turned} rotated modules of {} layers",
            config.num_hidden_layers
        );
        let expected = format!("{expected}, as the keys of the rotation say");
        return refuse(LIST, &found, &expected);
    }
    Ok(())
}
