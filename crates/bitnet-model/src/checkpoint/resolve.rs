//! Which tensor fills which slot, and by what rule.
//!
//! Invariant: every tensor of the file ends in exactly one place: a slot, the scale of a slot, or the
//! short list of tensors that are known to say nothing new. Whatever is missing, left over, of another
//! shape or of another type is an error naming the tensor.

use super::values::{self, Evidence};
use super::{LinearRule, LinearSource, OpenOptions, Source, read_bounded};
use crate::config::{ActivationQuantization, Config};
use crate::family::{self, Family, Quantization, ScaleDirection, UnmarkedFloats};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Packing, PlainType, TensorFile, TensorInfo, packing_by_name,
};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Everything a checkpoint is besides its file.
pub(super) struct Resolved {
    pub family: &'static Family,
    pub config: Config,
    pub directory: Option<PathBuf>,
    pub config_json: Option<Value>,
    pub sources: HashMap<Slot, Source>,
}

/// The packing of transformers' U8 tensors.
const HF_PACKING: &str = "hf_u8";

fn error(code: ErrorCode, info: &TensorInfo, message: String) -> FormatError {
    FormatError::new(code, message).in_tensor(&info.name)
}

/// Tensors of a file by name, and which of them were asked for.
struct Tensors<'a> {
    file: &'a TensorFile,
    used: HashSet<&'a str>,
}

impl<'a> Tensors<'a> {
    fn new(file: &'a TensorFile) -> Self {
        Self {
            file,
            used: HashSet::new(),
        }
    }

    /// The tensor of one of these names.
    fn find(&mut self, names: &[&str]) -> Option<&'a TensorInfo> {
        let info = names.iter().find_map(|name| self.file.tensor(name))?;
        self.used.insert(&info.name);
        Some(info)
    }

    fn dense(
        &mut self,
        names: &[&str],
        slot: Slot,
        config: &Config,
        sources: &mut HashMap<Slot, Source>,
    ) -> Result<(), FormatError> {
        let info = self.find(names).ok_or_else(|| missing(names))?;
        let expected = config.shape(slot);
        if info.shape != expected {
            let message = format!("expected shape {expected:?}, found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        let vector = expected.len() == 1;
        match info.encoding {
            Encoding::Plain(plain) if plain.is_float_weight() => {}
            Encoding::Block(_) if !vector => {}
            Encoding::Unknown(id) => {
                let message = format!("expected floats, found the unknown type {id}");
                return Err(error(ErrorCode::UnknownType, info, message));
            }
            other => {
                let expected = if vector {
                    "f32, f16 or bf16"
                } else {
                    "f32, f16, bf16, q8_0 or q6_k"
                };
                let message = format!("expected {expected}, found {}", other.name());
                return Err(error(ErrorCode::WrongType, info, message));
            }
        }
        let source = Source::Dense {
            info: info.clone(),
            finite: AtomicBool::new(false),
        };
        sources.insert(slot, source);
        Ok(())
    }

    /// A scale beside a linear: one float.
    fn scale(&mut self, name: &str) -> Result<Option<TensorInfo>, FormatError> {
        let Some(info) = self.find(&[name]) else {
            return Ok(None);
        };
        if info.shape.iter().product::<usize>() != 1 || info.shape.len() > 2 {
            let message = format!("expected shape [1], found {:?}", info.shape);
            return Err(error(ErrorCode::WrongShape, info, message));
        }
        match info.encoding {
            Encoding::Plain(plain) if plain.is_float_weight() => Ok(Some(info.clone())),
            other => {
                let message = format!("expected bf16, f16 or f32, found {}", other.name());
                Err(error(ErrorCode::WrongType, info, message))
            }
        }
    }

    /// Refuses every tensor that nothing asked for and that `tolerated` does not explain away.
    fn finish(
        &self,
        tolerated: impl Fn(&TensorInfo) -> Result<bool, FormatError>,
    ) -> Result<(), FormatError> {
        for info in self.file.tensors() {
            if self.used.contains(info.name.as_str()) || tolerated(info)? {
                continue;
            }
            let message = if info.name.ends_with(".bias") {
                "expected no biases, found one".to_owned()
            } else {
                format!(
                    "expected no tensor of this name, found {:?} {}",
                    info.shape,
                    info.encoding.name()
                )
            };
            return Err(error(ErrorCode::ExtraTensor, info, message).hint(
                "the configuration has no place for it: the model would compute something else",
            ));
        }
        Ok(())
    }

    /// Whether an output head that the configuration says is tied holds the same bytes as the
    /// embedding; an error naming both when not.
    fn is_tied_copy(&self, head: &TensorInfo, embedding: &TensorInfo) -> Result<bool, FormatError> {
        if head.encoding == embedding.encoding
            && head.shape == embedding.shape
            && self.file.bytes(head) == self.file.bytes(embedding)
        {
            return Ok(true);
        }
        let message = format!(
            "expected the bytes of `{}` (the configuration ties the two), found others",
            embedding.name
        );
        Err(error(ErrorCode::ExtraTensor, head, message))
    }
}

fn missing(names: &[&str]) -> FormatError {
    let name = names.first().copied().unwrap_or_default();
    FormatError::new(ErrorCode::MissingTensor, "expected this tensor, found none").in_tensor(name)
}

/// Sums up a file that is not GGUF with the `config.json` beside it.
pub(super) fn hugging_face(
    path: &Path,
    file: &TensorFile,
    options: &OpenOptions,
) -> Result<Resolved, FormatError> {
    let directory = if path.is_dir() {
        path.to_owned()
    } else {
        path.parent().map(Path::to_owned).unwrap_or_default()
    };
    let json = |name: &str| {
        let path = directory.join(name);
        match read_bounded(&path, options.limits.json_bytes)? {
            None => Ok(None),
            Some(bytes) => family::parse_json(&bytes)
                .map(Some)
                .map_err(|e| e.in_file(&path)),
        }
    };
    let config_path = directory.join("config.json");
    let config_json = json("config.json")?.ok_or_else(|| {
        FormatError::new(
            ErrorCode::UnsupportedConfig,
            "expected a config.json beside the weights, found none",
        )
        .in_file(&directory)
    })?;
    let in_config = |e: FormatError| e.in_file(&config_path);
    let family = family::family_of_config(&config_json).map_err(in_config)?;
    let mut config = (family.config)(&config_json).map_err(in_config)?;
    let quantization = family.quantization(&config_json).map_err(in_config)?;
    if let Some(generation) = json("generation_config.json")? {
        family::add_generation_config(&mut config, &generation)
            .map_err(|e| e.in_file(&directory.join("generation_config.json")))?;
    }

    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    let mut undecided = Vec::new();
    for slot in config.slots() {
        let name = (family.tensor_name)(slot);
        // embedding models and some exports leave the prefix away
        let names = [name.as_str(), name.strip_prefix("model.").unwrap_or(&name)];
        if !slot.is_ternary() {
            tensors.dense(&names, slot, &config, &mut sources)?;
            continue;
        }
        let info = tensors.find(&names).ok_or_else(|| missing(&names))?;
        let scale_name = info
            .name
            .strip_suffix("weight")
            .map(|stem| format!("{stem}weight_scale"));
        let scale = tensors.scale(&scale_name.unwrap_or_default())?;
        let shape = config.shape(slot);
        let (rows, cols) = (shape[0], shape[1]);
        let rule = hf_rule(family, quantization, info, rows, cols, scale)?;
        let rule = rule.unwrap_or_else(|| {
            undecided.push(slot);
            LinearRule::Absmean
        });
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
    tensors.finish(|info| {
        if info.name.ends_with(".rotary_emb.inv_freq") {
            return Ok(true); // buffers that old transformers versions saved; made from the configuration
        }
        match &embedding {
            Some(embedding) if info.name == "lm_head.weight" && config.tie_word_embeddings => {
                tensors.is_tied_copy(info, embedding)
            }
            _ => Ok(false),
        }
    })?;
    if !undecided.is_empty() {
        let known = (family.is_known_master)(&config_json);
        let dense = decide(
            file,
            &undecided,
            &mut sources,
            options.ternary_trained || known,
        )?;
        if dense {
            config.activation_quantization = ActivationQuantization::None;
        }
    }
    Ok(Resolved {
        family,
        config,
        directory: Some(directory),
        config_json: Some(config_json),
        sources,
    })
}

/// The rule of one linear (`formats/hf-packed.md`, `formats/hf-bf16.md`); `None` when only the data
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
        Quantization::Unmarked | Quantization::Online => family.unmarked_scale,
    };
    let Some(scale) = scale else {
        if is_packed || !plain.is_float_weight() || quantization != Quantization::Unmarked {
            let name = info.name.strip_suffix("weight").unwrap_or(&info.name);
            return Err(missing(&[&format!("{name}weight_scale")])
                .hint("trits without a scale are not weights; is the download complete?"));
        }
        return Ok(match family.unmarked_floats {
            UnmarkedFloats::MasterWeights => Some(LinearRule::Absmean),
            UnmarkedFloats::AskTheData => None,
        });
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

fn look(file: &TensorFile, source: &LinearSource) -> Result<Evidence, FormatError> {
    match source.info.encoding {
        Encoding::Plain(plain) => values::evidence(plain, file.bytes(&source.info), source.cols)
            .map_err(|e| e.in_tensor(&source.info.name)),
        _ => Ok(Evidence::Zeros),
    }
}

fn not_ternary(file: &TensorFile, source: &LinearSource) -> FormatError {
    let place = |e: FormatError| match file.parts.get(source.info.part) {
        Some(part) => e.in_tensor(&source.info.name).in_file(part.path()),
        None => e.in_tensor(&source.info.name),
    };
    let Encoding::Plain(plain) = source.info.encoding else {
        return place(FormatError::new(
            ErrorCode::NotTernary,
            "expected ternary weights",
        ));
    };
    match values::absmean_error(plain, file.bytes(&source.info), source.cols) {
        Err(e) => place(e),
        Ok(figure) => place(
            FormatError::new(
                ErrorCode::NotTernary,
                format!(
                    "expected one magnitude per tensor, row or group, found ordinary weights; \
                     rounding them to trits would change them by {figure:.2} of their size"
                ),
            )
            .hint("--ternary-trained if these are master weights of a BitNet-trained model"),
        ),
    }
}

/// Sums up a GGUF file, which brings everything along.
pub(super) fn gguf(file: &TensorFile, options: &OpenOptions) -> Result<Resolved, FormatError> {
    let family = family::family_of_gguf(file)?;
    let config = (family.gguf_config)(file)?;
    let layout = forced_layout(options)?;
    let mut tensors = Tensors::new(file);
    let mut sources = HashMap::new();
    for slot in config.slots() {
        let name = (family.gguf_tensor_name)(slot);
        let names = [name.as_str()];
        if !slot.is_ternary() {
            tensors.dense(&names, slot, &config, &mut sources)?;
            continue;
        }
        let info = tensors.find(&names).ok_or_else(|| missing(&names))?;
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
        if matches!(source.rule, LinearRule::Dequantised { .. })
            && look(file, &source)? == Evidence::Master
        {
            if !options.ternary_trained {
                return Err(not_ternary(file, &source));
            }
            source.rule = LinearRule::Absmean;
        }
        sources.insert(slot, Source::Linear(source));
    }
    let embedding = sources
        .get(&Slot::TokenEmbeddings)
        .map(|s| s.info().clone());
    let head_name = (family.gguf_tensor_name)(Slot::OutputHead);
    tensors.finish(|info| {
        if info.name == family::ROPE_FREQUENCIES {
            let Encoding::Plain(plain) = info.encoding else {
                return Ok(false);
            };
            let divisors = values::small_values(plain, file.bytes(info))?;
            family::check_rope_frequencies(&config, info, &divisors)?;
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
        sources,
    })
}

fn forced_layout(options: &OpenOptions) -> Result<Option<&'static dyn Packing>, FormatError> {
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
