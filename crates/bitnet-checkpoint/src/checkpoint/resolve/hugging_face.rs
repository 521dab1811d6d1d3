//! Hugging Face checkpoints: the slots from tensor names, their storage from `config.json`, and where
//! that says nothing from the values.
//!
//! Invariant: what `config.json` says about the linears holds for all of them, or opening fails.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::{Resolved, dense};
use crate::checkpoint::{OpenOptions, Source, directory_of};
use crate::config::ActivationQuantization;
use crate::family::{self, Family, Quantization, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use crate::storage::tensors::{Tensors, error, missing};
use crate::storage::{self, Asked, Found, Marks, Rows, Said, unmarked};
use bitnet_formats::{Encoding, ErrorCode, FormatError, TensorFile, TensorInfo, read_side_file};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// Rows by which the embeddings may differ from `vocab_size`: one of them counts padding, up to a multiple of
/// some hundreds. Beyond, they are not of the same model.
const MOST_PADDING: usize = 1024;

/// Rows of the embeddings, stored as numbers.
fn table_rows(file: &TensorFile, family: &Family) -> Option<usize> {
    let name = (family.tensor_name)(Slot::TokenEmbeddings);
    let short = name.strip_prefix("model.").unwrap_or(&name);
    let info = file.tensor(&name).or_else(|| file.tensor(short))?;
    match info.shape[..] {
        [rows, _] if rows > 0 => Some(rows),
        _ => None,
    }
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
    let prefixed = |name: &str| {
        [
            name.to_owned(),
            name.strip_prefix("model.").unwrap_or(name).to_owned(),
        ]
    };
    let own_norm = (family.tensor_name)(Slot::Layer(0, LayerSlot::QProjNorm));
    if family.gguf_wiring.projection_norms
        && prefixed(&own_norm)
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
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    let mut undecided = Vec::new();
    for slot in config.slots() {
        // embedding models and some exports leave the prefix away
        let [long, short] = prefixed(&name_of(slot)?);
        let names = [long.as_str(), short.as_str()];
        let info = (tensors.find(&names)).ok_or_else(|| missing_among(file, &names))?;
        let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        let found = match config.shape(slot)[..] {
            [rows_of, cols] if slot.is_ternary() || is_table => {
                let asked = Asked {
                    slot,
                    config: &config,
                    rows: rows_of,
                    cols,
                    info,
                    permuted_head_dim: None,
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
                let plus_one = (family.stores_gain_minus_one)(slot);
                dense(&mut tensors, &names, slot, &config, plus_one, &mut sources)?;
            }
        }
    }
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_name = name_of(Slot::OutputHead)?;
    tensors.finish(|info| {
        if info.name.ends_with(".rotary_emb.inv_freq") {
            return Ok(true); // buffers that old transformers versions saved; made from the configuration
        }
        match &embedding {
            Some(embedding) if info.name == head_name && config.tie_word_embeddings => {
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
        sources,
    })
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
