//! GGUF files: slots, sizes and rules from the file alone.

use super::{Resolved, Tensors, error, look, missing, not_ternary};
use crate::checkpoint::values::{self, Evidence};
use crate::checkpoint::{LinearRule, LinearSource, OpenOptions, Source};
use crate::config::{ActivationQuantization, Config};
use crate::family::{self, Family, ScaleDirection, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, MetaValue, Packing, TensorFile, TensorInfo, packing_by_name,
};
use std::collections::HashMap;
use std::path::Path;

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
    let divisors = rope_frequencies(file, &config)?;
    if let Some((_, divisors)) = &divisors {
        family::infer_rope_scaling(&mut config, divisors);
    }
    let layout = forced_layout(options)?;
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    for slot in config.slots() {
        let name = (family.gguf_tensor_name)(slot);
        let names = [name.as_str()];
        let info = tensors.find(&names).ok_or_else(|| missing(&names))?;
        let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        let is_ternary = slot.is_ternary()
            || is_table
                && (matches!(info.encoding, Encoding::Ternary(_))
                    || tensors.is_ternary_table(info, &config.shape(slot))?);
        if !is_ternary {
            tensors.dense(&names, slot, &config, false, &mut sources)?;
            continue;
        }
        let scale_name = name
            .strip_suffix("weight")
            .map(|stem| format!("{stem}scale"));
        let scale = tensors.scale(&scale_name.unwrap_or_default())?;
        let outside = scale.map(|scale| (scale, ScaleDirection::Multiply));
        let shape = config.shape(slot);
        let (rows, cols) = (shape[0], shape[1]);
        if info.shape != shape {
            let message = format!("expected shape {shape:?}, found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let rule = gguf_rule(info, rows, cols, outside, layout)?;
        let rotary = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
        let permuted_head_dim = (rotary && family.permutes_qk).then_some(config.head_dim);
        let mut source = LinearSource {
            info: info.clone(),
            rows,
            cols,
            rule,
            permuted_head_dim,
        };
        if slot.is_ternary()
            && matches!(source.rule, LinearRule::Dequantised { .. })
            && look(file, &source)? == Evidence::Master
        {
            if !options.ternary_trained {
                return Err(not_ternary(file, &source));
            }
            source.rule = LinearRule::Absmean;
        }
        sources.insert(slot, Source::Linear(source));
    }
    let numbers = sources.values().all(Source::is_numbers);
    settle_activations(file, family, numbers, &mut config);
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_name = (family.gguf_tensor_name)(Slot::OutputHead);
    tensors.finish(|info| {
        if let Some((name, divisors)) = &divisors
            && info.name == *name
        {
            family::check_rope_frequencies(&config, info, divisors)?;
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
        sources,
    })
}

/// The divisors of the rotary frequencies that a file brings along, and the name of their tensor.
fn rope_frequencies<'a>(
    file: &'a TensorFile,
    config: &Config,
) -> Result<Option<(&'a str, Vec<f32>)>, FormatError> {
    let Some(info) = file.tensor(family::ROPE_FREQUENCIES) else {
        return Ok(None);
    };
    let Encoding::Plain(plain) = info.encoding else {
        let message = format!("expected plain numbers, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message));
    };
    let shape = [config.head_dim / 2];
    if info.shape != shape {
        let message = format!("expected shape {shape:?}, found {:?}", info.shape);
        return Err(error(ErrorCode::WrongShape, info, message));
    }
    let divisors = values::small_values(plain, file.bytes(info))?;
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
        if matches!(info.encoding, Encoding::Foreign(_) | Encoding::Block(_)) {
            let message = format!(
                "expected a ternary type or floats, found {}, a block quantization of ordinary weights",
                info.encoding.name()
            );
            return Err(error(ErrorCode::NotTernary, info, message).hint(
                "run the file with llama.cpp; these programs read ternary models (`bitnet-convert list`)",
            ));
        }
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

fn gguf_rule(
    info: &TensorInfo,
    rows: usize,
    cols: usize,
    outside: Option<(TensorInfo, ScaleDirection)>,
    layout: Option<&'static dyn Packing>,
) -> Result<LinearRule, FormatError> {
    match info.encoding {
        Encoding::Ternary(packing) => {
            let sibling = layout.filter(|l| l.gguf_type() == packing.gguf_type());
            let packing = sibling.unwrap_or(packing);
            let expected = packing
                .stored_len(rows, cols)
                .map_err(|e| e.in_tensor(&info.name))?;
            if info.len != expected {
                let message = format!(
                    "expected {expected} bytes of {}, found {}",
                    packing.name(),
                    info.len
                );
                return Err(error(ErrorCode::WrongShape, info, message));
            }
            Ok(LinearRule::Packed { packing, outside })
        }
        Encoding::Plain(plain) if plain.is_float_weight() => {
            Ok(LinearRule::Dequantised { outside })
        }
        Encoding::Unknown(id) => {
            let message = format!("expected a ternary type or floats, found the unknown type {id}");
            Err(error(ErrorCode::UnknownType, info, message))
        }
        other => {
            let message = format!("expected a ternary type or floats, found {}", other.name());
            Err(error(ErrorCode::WrongType, info, message))
        }
    }
}
