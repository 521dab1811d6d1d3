//! GGUF files: slots, sizes and storages from the file alone.
//!
//! Invariant: nothing beside the file is read.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Resolved, dense};
use crate::checkpoint::shaping::{Form, Shaping};
use crate::checkpoint::{DenseMeaning, OpenOptions, Source};
use crate::config::{ActivationQuantization, Config};
use crate::family::{self, Family, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use crate::storage::tensors::{Tensors, error, missing};
use crate::storage::{self, Asked, Found, Marks, Rows, unmarked, values};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, MetaValue, Packing, TensorFile, packing_by_name,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Sums up a GGUF file, which brings everything along.
pub(in crate::checkpoint) fn gguf(
    file: &TensorFile,
    options: &OpenOptions,
) -> Result<Resolved, FormatError> {
    let kind = file
        .metadata
        .get("general.type")
        .and_then(MetaValue::as_str);
    if kind == Some("adapter") {
        let path = file.parts.first().map_or(Path::new(""), |part| part.path());
        return Err(bitnet_formats::adapter_alone(path, "the weights"));
    }
    let family = family::family_of_gguf(file)?;
    let mut config = (family.gguf_config)(file)?;
    refuse_other_quantizations(file, family, &config)?;
    // which columns are moved depends on it
    config.rotation = family::rotation::read_gguf(file, family, &config)?.map(Arc::new);
    let divisors = rope_frequencies(file, &config)?;
    if let Some(long_rope) = &mut config.long_rope {
        let shape = [config.head_dim / 2];
        let [long, short] = family::LONG_ROPE.map(|name| divisors_in(file, name, shape));
        let missing = |name| missing(&[name]);
        let [long_name, short_name] = family::LONG_ROPE;
        long_rope.long = long?.ok_or_else(|| missing(long_name))?.1;
        long_rope.short = short?.ok_or_else(|| missing(short_name))?.1;
        config = config.checked()?;
    }
    if let Some((_, divisors)) = &divisors {
        family::infer_rope_scaling(&mut config, divisors);
    }
    let marks = Marks {
        file,
        family,
        said: None,
        layout: forced_layout(options)?,
    };
    let rows = Rows::of(&marks)?;
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    for slot in config.slots() {
        let name = (family.gguf_tensor_name)(slot);
        let names = [name.as_str()];
        let info = tensors.find(&names).ok_or_else(|| missing(&names))?;
        let is_expert = matches!(slot, Slot::Layer(_, LayerSlot::Expert(..)));
        let shared = is_expert.then(|| family::stacked(name.clone(), slot, &config));
        let rows_of = |shared| {
            storage::among::matrix(
                info,
                shared,
                config.shape(slot).first().copied().unwrap_or(0),
            )
        };
        let part = shared.as_ref().map(rows_of).transpose()?;
        let info = part.as_ref().unwrap_or(info);
        let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        let found = match config.shape(slot)[..] {
            [rows_of, cols] if slot.is_ternary() || is_table => {
                let asked = Asked {
                    slot,
                    config: &config,
                    rows: rows_of,
                    cols,
                    info,
                    shared: shared.as_ref(),
                    order: family.gguf_order(&config, slot),
                    marks: &marks,
                };
                let found = rows.recognize(&asked, &mut tensors)?;
                if found.is_none() && slot.is_ternary() {
                    return Err(unrecognized(&asked, &mut tensors));
                }
                found
            }
            _ => None,
        };
        let Some(Found {
            mut linear,
            is_unmarked,
        }) = found
        else {
            let form = Form {
                meaning: DenseMeaning::AsStored,
                shaping: Shaping::of_gguf(slot, family.gguf_order(&config, slot)),
                table: None,
            };
            dense(&mut tensors, &names, slot, &config, form, &mut sources)?;
            continue;
        };
        if is_unmarked && unmarked::shows_master(file, &linear)? {
            if !options.ternary_trained {
                return Err(unmarked::not_ternary(file, &linear));
            }
            unmarked::take_as_master(&mut linear);
        }
        sources.insert(slot, Source::Linear(linear));
    }
    let numbers = sources.values().all(Source::is_numbers);
    settle_activations(file, family, numbers, &mut config);
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_name = (family.gguf_tensor_name)(Slot::OutputHead);
    let mut carried = Vec::new();
    for info in file.tensors() {
        if !tensors.is_used(info) && family.is_carried(&info.name, &config) {
            carried.push(info.clone());
        }
    }
    tensors.finish(|info| {
        if let Some((name, divisors)) = &divisors
            && info.name == *name
        {
            family::check_rope_frequencies(&config, info, divisors)?;
            return Ok(true);
        }
        if family.is_carried(&info.name, &config) {
            return Ok(true);
        }
        if config.long_rope.is_some() && family::LONG_ROPE.contains(&info.name.as_str()) {
            return Ok(true);
        }
        match &embedding {
            Some(embedding) if info.name == head_name && config.tie_word_embeddings => {
                tensors.is_tied_copy(info, embedding)
            }
            _ => Ok(false),
        }
    })?;
    Ok(Resolved {
        family,
        config,
        directory: None,
        config_json: None,
        declared_vocab_size: family::declared_vocab_size(file),
        skipped: Vec::new(),
        sources,
        carried,
    })
}

/// The divisors of the rotary frequencies that a file brings along, and the name of their tensor.
fn rope_frequencies<'a>(
    file: &'a TensorFile,
    config: &Config,
) -> Result<Option<(&'a str, Vec<f32>)>, FormatError> {
    divisors_in(file, family::ROPE_FREQUENCIES, [config.rotary_dim / 2])
}

/// The divisors in a tensor, and its name.
fn divisors_in<'a>(
    file: &'a TensorFile,
    name: &str,
    shape: [usize; 1],
) -> Result<Option<(&'a str, Vec<f32>)>, FormatError> {
    let Some(info) = file.tensor(name) else {
        return Ok(None);
    };
    let Encoding::Plain(plain) = info.encoding else {
        let message = format!("expected plain numbers, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message));
    };
    if info.shape != shape {
        let message = format!("expected shape {shape:?}, found {:?}", info.shape);
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    let divisors = values::small_values(plain, &file.read(info)?)?;
    Ok(Some((&info.name, divisors)))
}

/// Refuses a network whose linears are stored in block quantizations of ordinary weights, before any of its tensors is
/// judged by itself: its embeddings may be in such a type as well.
fn refuse_other_quantizations(
    file: &TensorFile,
    family: &Family,
    config: &Config,
) -> Result<(), FormatError> {
    for slot in config.slots().into_iter().filter(|slot| slot.is_ternary()) {
        let Some(info) = file.tensor(&(family.gguf_tensor_name)(slot)) else {
            continue;
        };
        let what = match info.encoding {
            Encoding::Foreign(foreign) => foreign.what(),
            Encoding::Block(_) => "a block quantization of ordinary weights",
            _ => continue,
        };
        let name = info.encoding.name();
        let message = format!("expected a ternary type or floats, found {name}, {what}");
        return Err(error(ErrorCode::NotTernary, info, message).hint(
            "run the file with llama.cpp; these programs read ternary models (`bitnet-convert list`)",
        ));
    }
    Ok(())
}

/// As for Hugging Face checkpoints: numbers that nothing marks run as they are. `numbers`: whether there is
/// nothing but such in the file.
pub(in crate::checkpoint) fn settle_activations(
    file: &TensorFile,
    family: &Family,
    numbers: bool,
    config: &mut Config,
) {
    if family.unmarked_floats == UnmarkedFloats::Ordinary
        && !family::says_activations(file)
        && numbers
    {
        config.activation_quantization = ActivationQuantization::None;
    }
}

pub(in crate::checkpoint) fn forced_layout(
    options: &OpenOptions,
) -> Result<Option<&'static dyn Packing>, FormatError> {
    let Some(name) = &options.layout else {
        return Ok(None);
    };
    match packing_by_name(name) {
        Some(packing) if packing.gguf_type().is_some() => Ok(Some(packing)),
        _ => Err(FormatError::new(
            ErrorCode::Usage,
            format!("expected the name of a GGUF packing as layout, found `{name}`"),
        )),
    }
}

/// The error for a linear that no row recognizes.
fn unrecognized(asked: &Asked<'_>, tensors: &mut Tensors<'_>) -> FormatError {
    let info = asked.info;
    let shape = [asked.rows, asked.cols];
    let wrong = asked.scale(tensors).err();
    if let Some(error) = wrong.or_else(|| tensors.check_shape(info, &shape).err()) {
        return error;
    }
    match info.encoding {
        Encoding::Unknown(id) => {
            let message = format!("expected a ternary type or floats, found the unknown type {id}");
            error(ErrorCode::UnknownType, info, message)
        }
        other => {
            let message = format!("expected a ternary type or floats, found {}", other.name());
            error(ErrorCode::WrongType, info, message)
        }
    }
}
