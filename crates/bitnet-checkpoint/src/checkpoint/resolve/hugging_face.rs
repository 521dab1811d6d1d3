//! Hugging Face checkpoints: the slots from tensor names, their storage from `config.json`, and where
//! that says nothing from the values.
//!
//! Invariant: what `config.json` says about the linears holds for all of them, or opening fails.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Resolved, dense};
use crate::checkpoint::shaping::{Form, Shaping};
use crate::checkpoint::{DenseMeaning, OpenOptions, Source, directory_of};
use crate::config::{ActivationQuantization, Config};
use crate::family::{self, Family, Quantization, ScaleDirection, Shared, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use crate::storage::tensors::{Tensors, error, missing};
use crate::storage::{self, Asked, Found, Marks, Rows, Said, Stored, unmarked};
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorFile, TensorInfo, read_side_file};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Rows by which the embeddings may differ from `vocab_size`: one of them counts padding, up to a multiple of
/// some hundreds. Beyond, they are not of the same model.
const MOST_PADDING: usize = 1024;

/// Rows of the embeddings, stored as numbers.
fn table_rows(file: &TensorFile, family: &Family) -> Option<usize> {
    let names = spellings(&(family.tensor_name)(Slot::TokenEmbeddings));
    let info = names.iter().find_map(|name| file.tensor(name))?;
    match info.shape[..] {
        [rows, _] if rows > 0 => Some(rows),
        _ => None,
    }
}

/// The names under which a tensor may stand: embedding models and some exports leave the prefix away, models with a
/// vision tower put the text network one level deeper.
fn spellings(name: &str) -> [String; 4] {
    let short = name.strip_prefix("model.").unwrap_or(name);
    let inner = match name.starts_with("model.") {
        true => format!("model.language_model.{short}"),
        false => name.to_owned(),
    };
    let outer = format!("language_model.{name}");
    [name.to_owned(), short.to_owned(), inner, outer]
}

/// Sums up a file that is not GGUF with the `config.json` beside it.
pub(in crate::checkpoint) fn hugging_face(
    path: &Path,
    file: &TensorFile,
    options: &OpenOptions,
) -> Result<Resolved, FormatError> {
    let directory = directory_of(path).to_owned();
    let parsed = |name: &str, parse: fn(&[u8]) -> Result<Value, FormatError>| match read_side_file(
        &directory,
        name,
        options.limits.config_bytes,
    )? {
        None => Ok(None),
        Some(bytes) => parse(&bytes)
            .map(Some)
            .map_err(|e| e.in_file(&directory.join(name))),
    };
    let json = |name: &str| parsed(name, family::parse_json);
    refuse_adapter(file, &directory)?;
    let config_path = directory.join("config.json");
    let config_json = json("config.json")?.ok_or_else(|| no_config(path, file, &directory))?;
    let (config_json, is_nested) = family::language_model(config_json);
    let in_config = |e: FormatError| e.in_file(&config_path);
    let family = family::family_of_config(&config_json).map_err(in_config)?;
    let mut config = (family.config)(&config_json).map_err(in_config)?;
    let quantization = family.quantization(&config_json).map_err(in_config)?;
    if let Some(generation) = json("generation_config.json")? {
        family::add_generation_config(&mut config, &generation)
            .map_err(|e| e.in_file(&directory.join("generation_config.json")))?;
    }
    family::add_pooling(&mut config, |name| parsed(name, family::parse_value))
        .map_err(|e| e.in_file(&directory))?;
    let own_norm = (family.tensor_name)(Slot::Layer(0, LayerSlot::QProjNorm));
    if family.gguf_wiring.projection_norms
        && spellings(&own_norm)
            .iter()
            .any(|name| file.tensor(name).is_some())
    {
        config.norms.projections = true;
        config.attn_sub_norm = true;
        config.ffn_sub_norm = true;
    }

    let declared_vocab_size = config.vocab_size;
    if let Some(rows) = table_rows(file, family)
        && rows.abs_diff(config.vocab_size) <= MOST_PADDING
    {
        config.vocab_size = rows;
    }

    let rotation = family::rotation::read_beside(&directory, &config_json, family, &config, json)?;
    config.rotation = rotation.map(Arc::new);
    let marks = Marks {
        file,
        family,
        said: Some(Said {
            config: &config_json,
            path: &config_path,
            quantization,
        }),
        layout: None,
    };
    let rows = Rows::of(&marks)?;
    let is_affine = matches!(quantization, Quantization::Affine { .. });
    if is_affine
        && family.unmarked_floats == UnmarkedFloats::Ordinary
        && !family::affine_says_activations(&config_json)
    {
        config.activation_quantization = ActivationQuantization::None;
    }
    let name_of = |slot| -> Result<String, FormatError> {
        let own = rows.name_of(slot)?;
        Ok(own.unwrap_or_else(|| (family.tensor_name)(slot)))
    };
    let holds_gains = holds_gains(file, family, &config);
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    let mut undecided = Vec::new();
    for slot in config.slots() {
        let names = spellings(&name_of(slot)?);
        let names = names.each_ref().map(String::as_str);
        let (part, shared);
        let info = match tensors.find(&names) {
            Some(info) => {
                shared = None;
                info
            }
            None => {
                let found = among(&mut tensors, slot, &config)?;
                (part, shared) = found.ok_or_else(|| missing_among(file, &names))?;
                &part
            }
        };
        let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        let mut table = None;
        let found = match config.shape(slot)[..] {
            [rows_of, cols] if slot.is_ternary() || is_table => {
                let asked = Asked {
                    slot,
                    config: &config,
                    rows: rows_of,
                    cols,
                    info,
                    shared: shared.as_ref(),
                    order: None,
                    marks: &marks,
                };
                let found = rows.recognize(&asked, &mut tensors)?;
                if found.is_none() && slot.is_ternary() {
                    return Err(unrecognized(&asked, &mut tensors));
                }
                if found.is_none() && is_affine {
                    table = storage::affine_table(&asked, &mut tensors)?;
                }
                found
            }
            _ => None,
        };
        match found {
            Some(Found {
                linear,
                is_unmarked,
            }) => {
                undecided.extend(is_unmarked.then_some(slot));
                sources.insert(slot, Source::Linear(linear));
            }
            None => {
                if is_affine && !is_table {
                    storage::refuse_quantized(file, info).map_err(in_config)?;
                }
                let meaning = match (family.stores_gain_minus_one)(slot) && !holds_gains {
                    true => DenseMeaning::PlusOne,
                    false => scaled_bias(slot, file, quantization, &sources)?,
                };
                let form = Form {
                    meaning,
                    shaping: Shaping::of_hf(slot),
                    table,
                };
                dense(&mut tensors, &names, slot, &config, form, &mut sources)?;
            }
        }
    }
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_names = spellings(&name_of(Slot::OutputHead)?);
    let mut carried = Vec::new();
    for info in file.tensors() {
        if !tensors.is_used(info) && family.is_carried(&info.name, &config) {
            carried.push(info.clone());
        }
    }
    let is_of_others = |info: &TensorInfo| {
        is_nested
            && !head_names.contains(&info.name)
            && !info.name.starts_with(family::LANGUAGE_MODEL)
    };
    let skipped = file.tensors().iter().filter(|info| is_of_others(info));
    let skipped = skipped.map(|info| info.name.clone()).collect();
    tensors.finish(|info| {
        if is_of_others(info) {
            return Ok(true);
        }
        if info.name.ends_with(".rotary_emb.inv_freq") {
            return Ok(true); // buffers that old transformers versions saved; made from the configuration
        }
        if family.is_carried(&info.name, &config) {
            return Ok(true);
        }
        match &embedding {
            Some(embedding) if head_names.contains(&info.name) && config.tie_word_embeddings => {
                tensors.is_tied_copy(info, embedding)
            }
            _ => Ok(false),
        }
    })?;
    if !undecided.is_empty() {
        // norms in front of every linear are tensors that only networks trained for ternary weights have
        let vouched = options.ternary_trained || config.norms.projections;
        let dense = decide(file, &undecided, &mut sources, vouched)?;
        let ordinary = family.unmarked_floats == UnmarkedFloats::Ordinary;
        if dense && ordinary && !config.norms.projections {
            config.activation_quantization = ActivationQuantization::None;
        }
    }
    Ok(Resolved {
        family,
        config,
        directory: Some(directory),
        config_json: Some(config_json),
        declared_vocab_size: Some(declared_vocab_size),
        skipped,
        sources,
        carried,
    })
}

/// Whether norms hold their gains, as mlx keeps them: its loaders take them so if the kernels of the convolutions end
/// in an axis of one.
fn holds_gains(file: &TensorFile, family: &Family, config: &Config) -> bool {
    let Some(hybrid) = &config.hybrid else {
        return false;
    };
    let layers = hybrid.recurrent.iter().enumerate();
    let mut layers = layers.filter(|(_, recurrent)| **recurrent);
    let Some((first, _)) = layers.next() else {
        return false;
    };
    let name = (family.tensor_name)(Slot::Layer(first, LayerSlot::Conv1d));
    let kernel = spellings(&name).iter().find_map(|name| file.tensor(name));
    let is_last = |info: &TensorInfo| matches!(info.shape[..], [_, taps, 1] if taps > 1);
    kernel.is_some_and(is_last)
}

/// The rows of a linear in a tensor that holds others too, if there is such a tensor.
fn among(
    tensors: &mut Tensors<'_>,
    slot: Slot,
    config: &Config,
) -> Result<Option<(TensorInfo, Option<Shared>)>, FormatError> {
    for shared in family::shared_hf(slot, config) {
        let short = shared.name.strip_prefix("model.").unwrap_or(&shared.name);
        if let Some(info) = tensors.find(&[&shared.name, short]) {
            let rows = config.shape(slot).first().copied().unwrap_or(0);
            let part = storage::among::matrix(info, &shared, rows)?;
            return Ok(Some((part, Some(shared))));
        }
    }
    Ok(None)
}

/// What the numbers of a bias mean: transformers' `autobitlinear` adds it before it multiplies by `weight_scale`, so
/// there the bias that is added to the output is their product. Every other class and mode adds it as it is.
fn scaled_bias(
    slot: Slot,
    file: &TensorFile,
    quantization: Quantization,
    sources: &HashMap<Slot, Source>,
) -> Result<DenseMeaning, FormatError> {
    let Slot::Layer(layer, role) = slot else {
        return Ok(DenseMeaning::AsStored);
    };
    // the linear stands in front of its bias
    let linear = role.biased_linear().map(|role| Slot::Layer(layer, role));
    let linear = match linear.and_then(|slot| sources.get(&slot)) {
        Some(Source::Linear(linear)) => linear,
        _ => return Ok(DenseMeaning::AsStored),
    };
    match (quantization, linear.outside()) {
        (Quantization::Offline(ScaleDirection::Multiply), Some((info, _))) => {
            let scale = storage::scale_value(&Stored { file, linear }, info)?;
            Ok(match scale == 1.0 {
                true => DenseMeaning::AsStored,
                false => DenseMeaning::Times(scale),
            })
        }
        _ => Ok(DenseMeaning::AsStored),
    }
}

/// Refuses adapters: beside the weights, and instead of them.
fn refuse_adapter(file: &TensorFile, directory: &Path) -> Result<(), FormatError> {
    /// Parts of names that PEFT gives to tensors of adapters, and to those of a model with one inside.
    const MARKS: [&str; 8] = [
        ".lora_A.",
        ".lora_B.",
        ".lora_embedding_A",
        ".lora_embedding_B",
        ".lora_magnitude_vector",
        ".base_layer.",
        ".modules_to_save.",
        ".original_module.",
    ];
    let part = file.parts.first().map_or(directory, |part| part.path());
    let is_marked = |info: &&TensorInfo| MARKS.iter().any(|mark| info.name.contains(mark));
    if let Some(info) = file.tensors().iter().find(is_marked) {
        let error = bitnet_formats::adapter_alone(part, "a tensor");
        return Err(error.in_tensor(&info.name));
    }
    let name = part.file_name().unwrap_or_default().to_string_lossy();
    if name.starts_with("adapter_model.") {
        return Err(bitnet_formats::adapter_alone(part, "the weights"));
    }
    // the current directory has an empty name here
    let directory = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    bitnet_formats::refuse_adapter_beside(directory)
}

/// The error for a tensor that is not there; names it under the prefix of a wrapper, if it has one.
fn missing_among(file: &TensorFile, names: &[&str]) -> FormatError {
    /// Modules that wrappers of PyTorch and PEFT put into names.
    const WRAPPERS: [&str; 3] = ["_orig_mod", "module", "_fsdp_wrapped_module"];
    let error = missing(names);
    let unwrapped = |name: &str| {
        let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
        parts.collect::<Vec<_>>().join(".")
    };
    let is_it = |info: &&TensorInfo| {
        let found = unwrapped(&info.name);
        names.iter().any(|name| {
            let before = found.strip_suffix(name);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        })
    };
    match file.tensors().iter().find(is_it) {
        None => error,
        Some(info) => {
            let message = format!("expected this tensor, found it as `{}` only", info.name);
            let place = file.parts.get(info.part).map(|part| part.path());
            let error = error.saying(message);
            let error = place.map_or(error.clone(), |path| error.in_file(path));
            error.hint(
                "the names are those of a wrapper (torch.compile, DataParallel, PEFT): \
                 save the model inside of it, or rename the tensors",
            )
        }
    }
}

/// The error for weights without a `config.json`.
fn no_config(path: &Path, file: &TensorFile, directory: &Path) -> FormatError {
    let container = file.container;
    let place = match directory.as_os_str().is_empty() {
        true => Path::new("."),
        false => directory,
    };
    let error =
        |message: String| FormatError::new(ErrorCode::UnsupportedConfig, message).in_file(place);
    match path.extension() {
        Some(extension) if extension == "gguf" => error(format!(
            "expected a config.json beside the weights, found none: `{}` holds {container}, though its name ends in .gguf",
            path.display()
        ))
        .hint("rename the file, and put it beside its config.json"),
        _ => error("expected a config.json beside the weights, found none".to_owned())
            .hint("put the config.json of the model into the directory, or give the directory that has it"),
    }
}

/// The error for a linear that no row recognizes.
fn unrecognized(asked: &Asked<'_>, tensors: &mut Tensors<'_>) -> FormatError {
    if let Err(error) = asked.scale(tensors) {
        return error;
    }
    match asked.info.encoding {
        Encoding::Plain(_) => storage::neither_shape(asked),
        other => {
            let message = format!("expected plain numbers, found {}", other.name());
            error(ErrorCode::WrongType, asked.info, message)
        }
    }
}

/// Decides what unmarked float linears are, from their data. `true`: every one holds `trit * scale`
/// already, the model runs as a dense one. Otherwise they are master weights, if somebody vouches.
fn decide(
    file: &TensorFile,
    undecided: &[Slot],
    sources: &mut HashMap<Slot, Source>,
    vouched: bool,
) -> Result<bool, FormatError> {
    let mut proof = None;
    for slot in undecided {
        if let Some(Source::Linear(source)) = sources.get(slot)
            && unmarked::shows_master(file, source)?
        {
            proof = Some(source);
            break;
        }
    }
    match proof {
        None => Ok(true),
        Some(source) if !vouched => Err(unmarked::not_ternary(file, source)),
        Some(_) => {
            for slot in undecided {
                if let Some(Source::Linear(source)) = sources.get_mut(slot) {
                    unmarked::take_as_master(source);
                }
            }
            Ok(false)
        }
    }
}
