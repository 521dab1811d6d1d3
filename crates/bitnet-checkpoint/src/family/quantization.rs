//! `quantization_config`: what a checkpoint says about its linears (`formats/packing/hf_u8.md`).
//!
//! Invariant: the direction of a stored scale comes from here or from the family, never from its
//! magnitude; a method, class or mode this program does not know is an error naming key and value.

use super::hf_config::{decimal, show};
use super::module_patterns::ModulePattern;
use crate::config::{ActivationQuantization, Config};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Map, Value, json};

const CONFIG: &str = "quantization_config";
const CLASS: &str = "linear_class";
const MODE: &str = "quantization_mode";
/// Flags that stood for a mode of `autobitlinear` before transformers had [`CLASS`] and [`MODE`].
const EARLY: [(&str, &str); 2] = [
    ("offline_quantization", "offline"),
    ("online_quantization", "online"),
];
/// The list of modules that stay dense; transformers ignores the second spelling for BitNet checkpoints.
const SKIPPED: [&str; 2] = ["modules_to_not_convert", "llm_int8_skip_modules"];
/// Steps that matching all entries of a list may take.
const MATCH_STEPS: u64 = 20_000_000;
/// MLX's key, and what others that leave a key of this name mean is not known.
const AFFINE: &str = "quantization";
/// Our own key for checkpoints of dequantised weights whose activations are not quantised.
const ACTIVATIONS: &str = "activation_quantization";
/// transformers' key for a norm in front of every linear; its epsilon has a key of its own.
const NORMS: &str = "use_rms_norm";
const NORMS_EPS: &str = "rms_norm_eps";

/// Which way a stored `weight_scale` works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleDirection {
    /// `weight = trit * weight_scale` (AutoBitLinear).
    Multiply,
    /// `weight = trit / weight_scale` (BitLinear).
    Divide,
}

/// What `config.json` says about the linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// Nothing.
    Unmarked,
    /// Master weights, quantised at every forward pass.
    Online,
    /// Trits and a scale of this direction.
    Offline(ScaleDirection),
    /// MLX's codes with scales and biases (`formats/packing/mlx_2bit.md`), in groups of so many columns
    /// where a module has no settings of its own.
    Affine {
        /// Columns per scale.
        group: usize,
    },
}

/// Keys that other quantisers leave; with any of them the layout is not one of this page.
const FOREIGN: [&str; 4] = [
    "compression_config",
    "quant_bits",
    "quantization_bit",
    "packed",
];

fn unknown(key: &str, found: &Value, expected: &str) -> FormatError {
    let message = format!("expected {expected}, found {}", show(found));
    FormatError::new(ErrorCode::UnknownQuantization, message).in_tensor(key)
}

/// The `quantization_config` object, if there is one.
fn section(config: &Value) -> Result<Option<&Map<String, Value>>, FormatError> {
    match config.get(CONFIG) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(section)) => Ok(Some(section)),
        Some(other) => Err(unknown(CONFIG, other, "an object")),
    }
}

/// What `config.json` says about the linears. `projection_norms`: whether the architecture may have a norm
/// in front of every linear.
pub(super) fn read(config: &Value, projection_norms: bool) -> Result<Quantization, FormatError> {
    for key in FOREIGN {
        match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(other) => return Err(unknown(key, other, "no such key")),
        }
    }
    if let Some(section) = affine(config)? {
        // mlx writes its key twice, under the name that others look for
        match config.get(CONFIG) {
            None | Some(Value::Null) => {}
            Some(twice) if config.get(AFFINE) == Some(twice) => {}
            Some(other) => return Err(unknown(CONFIG, other, "the same as in `quantization`")),
        }
        let AffineForm { group, .. } = affine_settings(section, AFFINE, false)?;
        return Ok(Quantization::Affine { group });
    }
    for (key, known) in [("weight_bits", 1), ("input_bits", 8)] {
        match config.get(key) {
            None | Some(Value::Null) => {}
            Some(bits) if bits.as_u64() == Some(known) => {}
            Some(other) => return Err(unknown(key, other, &known.to_string())),
        }
    }
    let Some(section) = section(config)? else {
        let one_bit = config.get("weight_bits").and_then(Value::as_u64).is_some();
        return Ok(if one_bit {
            Quantization::Online
        } else {
            Quantization::Unmarked
        });
    };
    let key = |name: &str| format!("{CONFIG}.{name}");
    match section.get("quant_method") {
        Some(method) if method == "bitnet" => {}
        other => {
            let found = other.unwrap_or(&Value::Null);
            return Err(unknown(&key("quant_method"), found, "\"bitnet\"")
                .hint("convert the model it was made from: other quantization methods cannot be converted without loss"));
        }
    }
    match section.get(NORMS) {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::Bool(true)) if projection_norms => {
            // transformers' default; here all norms have one epsilon
            let own = section.get(NORMS_EPS).map_or(Some(1e-6), Value::as_f64);
            let all = config.get(NORMS_EPS).and_then(Value::as_f64);
            if own.map(|eps| eps as f32) != all.map(|eps| eps as f32) {
                let found = section.get(NORMS_EPS).unwrap_or(&Value::Null);
                return Err(unknown(&key(NORMS_EPS), found, "the model's rms_norm_eps"));
            }
        }
        Some(other) => {
            return Err(unknown(&key(NORMS), other, "false")
                .hint("this architecture has no norms in front of single projections"));
        }
    }
    refuse_unknown_keys(section)?;
    let early = early_mode(section)?;
    let mode = match section.get(MODE) {
        None => early.unwrap_or("offline"),
        Some(Value::String(mode)) if mode == "offline" || mode == "online" => mode,
        Some(other) => return Err(unknown(&key(MODE), other, "\"offline\" or \"online\"")),
    };
    if let Some(early) = early.filter(|early| *early != mode) {
        let expected = format!("\"{early}\", as `{early}_quantization` says");
        return Err(unknown(&key(MODE), &json!(mode), &expected));
    }
    match section.get(CLASS) {
        // the early flags had one class
        None if early.is_some() => Ok(autobitlinear(mode)),
        // the mode means nothing to this class: it always holds packed codes
        None => Ok(Quantization::Offline(ScaleDirection::Divide)),
        Some(class) if class == "bitlinear" && early.is_none() => {
            Ok(Quantization::Offline(ScaleDirection::Divide))
        }
        Some(class) if class == "autobitlinear" => Ok(autobitlinear(mode)),
        Some(other) if early.is_some() => Err(unknown(&key(CLASS), other, "\"autobitlinear\"")),
        Some(other) => Err(unknown(
            &key(CLASS),
            other,
            "\"bitlinear\" or \"autobitlinear\"",
        )),
    }
}

fn autobitlinear(mode: &str) -> Quantization {
    match mode {
        "online" => Quantization::Online,
        _ => Quantization::Offline(ScaleDirection::Multiply),
    }
}

/// The mode by the early flags. A flag that is false decides nothing beside the keys of today, and is not
/// understood alone.
fn early_mode(section: &Map<String, Value>) -> Result<Option<&'static str>, FormatError> {
    let key = |name: &str| format!("{CONFIG}.{name}");
    let mut mode = None;
    for (name, means) in EARLY {
        match section.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) if mode.is_none() => mode = Some(means),
            Some(Value::Bool(true)) => {
                return Err(unknown(&key(name), &json!(true), "one of the two modes"));
            }
            Some(other) => return Err(unknown(&key(name), other, "true or false")),
        }
    }
    if mode.is_none() && section.get(CLASS).is_none() {
        for (name, _) in EARLY {
            if section.get(name) == Some(&Value::Bool(false)) {
                return Err(unknown(&key(name), &json!(false), "true")
                    .hint("set linear_class and quantization_mode instead of the early key"));
            }
        }
    }
    Ok(mode)
}

/// Refuses keys of the section that this program does not know: any of them may change what the linears mean.
fn refuse_unknown_keys(section: &Map<String, Value>) -> Result<(), FormatError> {
    const KNOWN: [&str; 6] = ["quant_method", CLASS, MODE, NORMS, NORMS_EPS, ACTIVATIONS];
    let is_known = |name: &str| {
        KNOWN.contains(&name)
            || SKIPPED.contains(&name)
            || EARLY.iter().any(|(early, _)| *early == name)
    };
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    };
    match section
        .iter()
        .find(|(name, value)| !is_known(name) && !is_off(value))
    {
        None => Ok(()),
        Some((name, value)) => Err(unknown(&format!("{CONFIG}.{name}"), value, "no such key")
            .hint(
                "remove the key from config.json if it does not change the meaning of the weights",
            )),
    }
}

/// MLX's object, if there is one.
fn affine(config: &Value) -> Result<Option<&Map<String, Value>>, FormatError> {
    match config.get(AFFINE) {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::Object(section)) if section.contains_key("bits") => Ok(Some(section)),
        Some(other) => Err(unknown(AFFINE, other, "no such key, or mlx's")),
    }
}

/// How MLX stores a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AffineForm {
    /// Bits of a code: 1 or 2; of tables also 3 to 6, or 8.
    pub(crate) bits: usize,
    /// Columns per scale.
    pub(crate) group: usize,
}

impl AffineForm {
    /// Whether the codes are ternary or binary.
    pub(crate) fn is_trits(&self) -> bool {
        self.bits <= 2
    }
}

/// The settings of mlx: ternary or binary codes; of embeddings and output head wider ones as well.
fn affine_settings(
    settings: &Map<String, Value>,
    path: &str,
    is_table: bool,
) -> Result<AffineForm, FormatError> {
    let of = |name: &str| settings.get(name).unwrap_or(&Value::Null);
    let key = |name: &str| format!("{path}.{name}");
    let bits = match of("bits").as_u64() {
        Some(bits @ (1 | 2)) => bits as usize,
        Some(bits @ (3..=6 | 8)) if is_table => bits as usize,
        _ if is_table => return Err(unknown(&key("bits"), of("bits"), "1 to 6, or 8")),
        _ => {
            let error = unknown(&key("bits"), of("bits"), "1 or 2");
            return Err(error.hint(
                "ternary weights have 2 bits, binary ones 1; other widths cannot be converted without loss",
            ));
        }
    };
    // modules have keys of their own beside these
    let is_known = |name: &str| ["bits", "group_size", "mode", ACTIVATIONS].contains(&name);
    let is_module = |value: &Value| value.is_object() || value.is_boolean() || value.is_null();
    if let Some((name, value)) = (settings.iter()).find(|(k, v)| !is_known(k) && !is_module(v)) {
        return Err(unknown(&key(name), value, "no such key"));
    }
    let mode = of("mode");
    if !mode.is_null() && mode != "affine" {
        return Err(unknown(&key("mode"), mode, "\"affine\""));
    }
    match of("group_size").as_u64() {
        Some(group @ (32 | 64 | 128)) => Ok(AffineForm {
            bits,
            group: group as usize,
        }),
        _ => Err(unknown(
            &key("group_size"),
            of("group_size"),
            "32, 64 or 128",
        )),
    }
}

/// How a module of an MLX checkpoint is stored; `None` for one that is not quantised. `is_table`: whether it is
/// the embeddings or the output head, which may have wider codes.
pub(crate) fn affine_form(
    config: &Value,
    module: &str,
    is_table: bool,
) -> Result<Option<AffineForm>, FormatError> {
    let Some(section) = affine(config)? else {
        return Ok(None);
    };
    match section.get(module) {
        None | Some(Value::Bool(true)) => affine_settings(section, AFFINE, is_table).map(Some),
        Some(Value::Bool(false)) => Ok(None),
        Some(Value::Object(own)) => {
            affine_settings(own, &format!("{AFFINE}.{module}"), is_table).map(Some)
        }
        Some(other) => {
            let key = format!("{AFFINE}.{module}");
            Err(unknown(&key, other, "false or an object"))
        }
    }
}

/// Whether an MLX checkpoint says what happens to the inputs of its linears. MLX itself never quantises them,
/// so silence means that, unless the architecture has no other linears than BitNet's.
pub(crate) fn affine_says_activations(config: &Value) -> bool {
    let section = config.get(AFFINE);
    section.is_some_and(|section| section.get(ACTIVATIONS).is_some())
}

/// Refuses lists of modules that stay dense, unless they name only what is dense here: every linear of a layer
/// is ternary. `linears` are the names of their modules as transformers has them.
pub(super) fn check_not_converted(
    config: &Value,
    quantization: Quantization,
    has_head: bool,
    linears: impl Fn() -> Vec<String>,
) -> Result<(), FormatError> {
    let Some(section) = section(config)? else {
        return Ok(());
    };
    if config.get(AFFINE) == config.get(CONFIG) {
        return Ok(());
    }
    let mut steps = MATCH_STEPS;
    for list in SKIPPED {
        let key = format!("{CONFIG}.{list}");
        let entries = match section.get(list) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(entries)) => entries,
            Some(other) => {
                return Err(unknown(&key, other, "a list of module names, or null"));
            }
        };
        let linears = linears();
        let mut names_head = false;
        for entry in entries {
            let Value::String(text) = entry else {
                return Err(unknown(&key, entry, "names of modules"));
            };
            let refuse = |why: String| {
                let message = format!("the entry {} {why}", show(entry));
                FormatError::new(ErrorCode::UnknownQuantization, message).in_tensor(&key)
            };
            let unclear = |why: super::module_patterns::NoAnswer| {
                refuse(why.reason()).hint("write the full names of the modules that stay dense")
            };
            let pattern = ModulePattern::new(text).map_err(unclear)?;
            for module in &linears {
                if pattern.names(module, &mut steps).map_err(unclear)? {
                    return Err(refuse(format!(
                        "names {module}, which stays dense then; expected modules outside the decoder \
                         layers, whose linears are all ternary here"
                    ))
                    .hint("mixed models are not computed here: convert the modules, or run the model with transformers"));
                }
            }
            names_head |= pattern.names("lm_head", &mut steps).map_err(unclear)?;
        }
        // without a list transformers leaves the head alone; with one only if the list names it
        if list == SKIPPED[0] && quantization == Quantization::Online && has_head && !names_head {
            let found = section.get(list).unwrap_or(&Value::Null);
            return Err(unknown(&key, found, "a list that names lm_head, or null").hint(
                "with this list transformers makes the output head ternary, which is not computed here: add \"lm_head\"",
            ));
        }
    }
    Ok(())
}

/// Whether a configuration spells its mode in a way that only early programs read.
fn is_early(section: &Map<String, Value>) -> bool {
    EARLY.iter().any(|(name, _)| section.contains_key(*name))
}

/// Whether a copy of master weights needs another `quantization_config` than the original's: one that transformers
/// reads as master weights.
pub(super) fn needs_marking(config: &Value, quantization: Quantization) -> bool {
    match quantization {
        Quantization::Unmarked => true,
        Quantization::Online => {
            matches!(config.get(CONFIG), Some(Value::Object(section)) if is_early(section))
        }
        Quantization::Offline(_) | Quantization::Affine { .. } => false,
    }
}

/// Whether inputs of the linears are quantised, by our own key; BitNet's answer is yes.
pub(super) fn activations(config: &Value) -> Result<ActivationQuantization, FormatError> {
    let said = match affine(config)? {
        Some(section) => section.get(ACTIVATIONS),
        None => section(config)?.and_then(|s| s.get(ACTIVATIONS)),
    };
    match said {
        None => Ok(ActivationQuantization::Int8PerToken),
        Some(Value::String(s)) if s == "int8_per_token" => Ok(ActivationQuantization::Int8PerToken),
        Some(Value::String(s)) if s == "none" => Ok(ActivationQuantization::None),
        Some(other) => Err(unknown(
            ACTIVATIONS,
            other,
            "\"int8_per_token\" or \"none\"",
        )),
    }
}

/// Sets `quantization_config` to what the stored tensors mean; keys we do not know stay.
pub(super) fn write(config: &mut Map<String, Value>, quantization: Quantization, meant: &Config) {
    config.shift_remove(AFFINE);
    if quantization == Quantization::Unmarked {
        config.shift_remove(CONFIG);
        return;
    }
    if let Quantization::Affine { group } = quantization {
        config.shift_remove(CONFIG);
        let activations = match meant.activation_quantization {
            ActivationQuantization::Int8PerToken => "int8_per_token",
            ActivationQuantization::None => "none",
        };
        let section = json!({
            "group_size": group, "bits": 2, "mode": "affine", ACTIVATIONS: activations,
        });
        config.insert(AFFINE.to_owned(), section);
        return;
    }
    let mut section = match config.get(CONFIG) {
        Some(Value::Object(section)) => section.clone(),
        _ => Map::new(),
    };
    section.insert("quant_method".to_owned(), json!("bitnet"));
    for (early, _) in EARLY {
        section.shift_remove(early);
    }
    let class = match quantization {
        Quantization::Offline(ScaleDirection::Divide) => ("bitlinear", "offline"),
        Quantization::Offline(ScaleDirection::Multiply) => ("autobitlinear", "offline"),
        Quantization::Online | Quantization::Unmarked | Quantization::Affine { .. } => {
            ("autobitlinear", "online")
        }
    };
    // an absent class is `bitlinear`: published files of that kind have no key, so none is added
    if class.0 == "autobitlinear" || section.contains_key(CLASS) {
        section.insert(CLASS.to_owned(), json!(class.0));
        section.insert(MODE.to_owned(), json!(class.1));
    }
    if let Quantization::Offline(_) = quantization {
        name_dense_modules(&mut section, meant);
    }
    if meant.norms.projections {
        section.insert(NORMS.to_owned(), json!(true));
        section.insert(NORMS_EPS.to_owned(), decimal(meant.rms_norm_eps));
    }
    match meant.activation_quantization {
        ActivationQuantization::Int8PerToken => _ = section.shift_remove(ACTIVATIONS),
        ActivationQuantization::None => _ = section.insert(ACTIVATIONS.to_owned(), json!("none")),
    }
    config.insert(CONFIG.to_owned(), Value::Object(section));
}

/// Writes down which modules are dense, if the section does not: transformers finds the output head by itself, mlx-lm
/// takes an absent list for an empty one and a null list for an error.
///
/// Layers with a recurrent state have dense modules of their own; a list that names these has to name the head, too.
fn name_dense_modules(section: &mut Map<String, Value>, meant: &Config) {
    if section.get(SKIPPED[0]).is_some_and(|list| !list.is_null()) {
        return;
    }
    if meant.hybrid.is_some() {
        let dense = json!(["lm_head", "in_proj_a", "in_proj_b"]);
        section.insert(SKIPPED[0].to_owned(), dense);
    } else if meant.tie_word_embeddings {
        section.shift_remove(SKIPPED[0]);
    } else {
        section.insert(SKIPPED[0].to_owned(), json!(["lm_head"]));
    }
}
