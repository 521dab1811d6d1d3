//! Hugging Face checkpoints: the slots from tensor names, the rules from `config.json`, and where
//! that says nothing from the values.

use super::{Resolved, Tensors, affine, error, gpu, look, missing, not_ternary, tiles};
use crate::checkpoint::values::Evidence;
use crate::checkpoint::{LinearRule, LinearSource, OpenOptions, Source, directory_of};
use crate::config::ActivationQuantization;
use crate::family::{self, Family, Quantization, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, PlainType, TensorFile, TensorInfo, packing_by_name,
    read_side_file,
};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;

/// The packing of transformers' U8 tensors.
pub const HF_PACKING: &str = "hf_u8";

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

    let in_tiles = tiles::is_profile(file)?;
    let fused = gpu::is_fused(file);
    let is_affine = matches!(quantization, Quantization::Affine { .. });
    if is_affine
        && family.unmarked_floats == UnmarkedFloats::Ordinary
        && !family::affine_says_activations(&config_json)
    {
        config.activation_quantization = ActivationQuantization::None;
    }
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    let mut undecided = Vec::new();
    for slot in config.slots() {
        if fused && slot.is_ternary() {
            let source = gpu::linear(&mut tensors, slot, &config)?;
            sources.insert(slot, Source::Linear(source));
            continue;
        }
        let name = match fused {
            true => gpu::name(slot)?,
            false => (family.tensor_name)(slot),
        };
        // embedding models and some exports leave the prefix away
        let names = prefixed(&name);
        let names = [names[0].as_str(), names[1].as_str()];
        let info = (tensors.find(&names)).ok_or_else(|| missing_among(file, &names))?;
        let shape = config.shape(slot);
        let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
        let as_tiles = in_tiles && (slot.is_ternary() || tiles::is_entry(file, info));
        let as_affine = is_affine && (slot.is_ternary() || affine::is_quantised(file, info));
        let by_values =
            is_table && !as_tiles && !as_affine && tensors.is_ternary_table(info, &shape)?;
        if !(slot.is_ternary() || is_table && (as_tiles || as_affine || by_values)) {
            if is_affine {
                affine::refuse_quantised(file, info).map_err(in_config)?;
            }
            let plus_one = (family.stores_gain_minus_one)(slot);
            tensors.dense(&names, slot, &config, plus_one, &mut sources)?;
            continue;
        }
        let (rows, cols) = (shape[0], shape[1]);
        let affine = match as_affine {
            true => family::affine_group(&config_json, affine::module(&info.name)),
            false => Ok(None),
        };
        let rule = if as_tiles {
            tiles::rule(&mut tensors, info, rows, cols)?
        } else if let Some(group) = affine.map_err(in_config)? {
            affine::rule(&mut tensors, info, rows, cols, group)?
        } else if by_values {
            LinearRule::Dequantised { outside: None }
        } else {
            let scale_name = info
                .name
                .strip_suffix("weight")
                .map(|stem| format!("{stem}weight_scale"));
            let scale = tensors.scale(&scale_name.unwrap_or_default())?;
            let rule = hf_rule(family, quantization, info, rows, cols, scale)?;
            rule.unwrap_or_else(|| {
                undecided.push(slot);
                LinearRule::Absmean
            })
        };
        let source = LinearSource {
            info: info.clone(),
            rows,
            cols,
            rule,
            permuted_head_dim: None,
        };
        sources.insert(slot, Source::Linear(source));
    }
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_name = match fused {
        true => gpu::name(Slot::OutputHead)?,
        false => (family.tensor_name)(Slot::OutputHead),
    };
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
            let error = FormatError { message, ..error };
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

/// The rule of one linear (`formats/packing/hf_u8.md`, `formats/absmean.md`); `None` when only the data
/// can tell.
fn hf_rule(
    family: &Family,
    quantization: Quantization,
    info: &TensorInfo,
    rows: usize,
    cols: usize,
    scale: Option<TensorInfo>,
) -> Result<Option<LinearRule>, FormatError> {
    let Encoding::Plain(plain) = info.encoding else {
        let message = format!("expected plain numbers, found {}", info.encoding.name());
        return Err(error(ErrorCode::WrongType, info, message));
    };
    let (full, packed) = ([rows, cols], [rows.div_ceil(4), cols]);
    let is_full = info.shape == full;
    // a matrix of one row has the same shape either way: whole numbers are codes, floats are trits
    let is_packed = info.shape == packed && !(is_full && plain.is_float_weight());
    let wrong_shape = |expected: String| {
        let message = format!("expected shape {expected}, found {:?}", info.shape);
        Err(error(ErrorCode::WrongShape, info, message))
    };
    if quantization == Quantization::Online {
        // the configuration says master weights, and readers quantise whatever numbers stand here
        if !plain.is_float_weight() {
            let found = info.encoding.name();
            let message = format!(
                "expected f32, f16 or bf16 master weights (online quantization), found {found}"
            );
            return Err(error(ErrorCode::WrongType, info, message));
        }
        if !is_full {
            return wrong_shape(format!("{full:?}"));
        }
        if let Some(scale) = scale {
            let message =
                "expected no scale beside master weights (online quantization), found one";
            return Err(error(ErrorCode::ExtraTensor, &scale, message.to_owned()));
        }
        return Ok(Some(LinearRule::Absmean));
    }
    if plain == PlainType::U8 && !is_packed {
        return wrong_shape(format!("{packed:?} ({rows} rows packed by four)"));
    }
    if !is_full && (!is_packed || scale.is_none() && plain.is_float_weight()) {
        return wrong_shape(format!("{full:?} (or {packed:?} packed)"));
    }
    let direction = match quantization {
        Quantization::Offline(direction) => direction,
        // a module that MLX left alone is as good as unmarked
        Quantization::Unmarked | Quantization::Online | Quantization::Affine { .. } => {
            family.unmarked_scale
        }
    };
    let marked = matches!(quantization, Quantization::Offline(_));
    let Some(scale) = scale else {
        if is_packed || !plain.is_float_weight() || marked {
            let name = info.name.strip_suffix("weight").unwrap_or(&info.name);
            return Err(missing(&[&format!("{name}weight_scale")])
                .hint("trits without a scale are not weights; is the download complete?"));
        }
        return Ok(None);
    };
    let outside = Some((scale, direction));
    if !is_packed {
        return Ok(Some(LinearRule::Dequantised { outside }));
    }
    let packing = packing_by_name(HF_PACKING).ok_or_else(|| {
        error(
            ErrorCode::WrongType,
            info,
            format!("no packing `{HF_PACKING}`"),
        )
    })?;
    Ok(Some(match plain {
        PlainType::U8 => LinearRule::Packed { packing, outside },
        _ => LinearRule::PackedValues { packing, outside },
    }))
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
            && look(file, source)? == Evidence::Master
        {
            proof = Some(source);
            break;
        }
    }
    match proof {
        Some(_) if vouched => Ok(false),
        Some(source) => Err(not_ternary(file, source)),
        None => {
            for slot in undecided {
                if let Some(Source::Linear(source)) = sources.get_mut(slot) {
                    source.rule = LinearRule::Dequantised { outside: None };
                }
            }
            Ok(true)
        }
    }
}
