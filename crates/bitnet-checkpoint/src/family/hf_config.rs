//! `config.json` of Hugging Face checkpoints, read into a [`Config`] and written from one.
//!
//! Invariant: a key that changes the network is either understood or refused with its value; keys
//! that do not change it pass. Numbers that GGUF keeps as f32 are rounded to f32 here, so that both
//! containers of a model give the same `Config`.

pub(super) mod experts;
pub(in crate::family) mod hybrid;
mod long_rope;
mod write;

pub(super) use super::json_values::{decimal, show};
pub(super) use write::{from_nothing, write};

use super::known_keys::{self, UnknownKey};
use super::quantization::{self, ScaleDirection};
use crate::config::{
    Activation, Config, ExtraNorms, Factors, Pooling, Rope, RopeScaling, SlidingWindow, Yarn,
    bad_key,
};
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::Value;

/// What the architecture decides and `config.json` does not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wiring {
    /// Whether `o_proj` and `down_proj` have input norms.
    pub sub_norms: bool,
    /// Whether heads of queries and keys are normed.
    pub head_norms: bool,
    /// Whether they are normed after rotation.
    pub norms_after_rope: bool,
    /// Whether a rotary base is scaled by `alpha` (HunYuan's `dynamic`).
    pub rope_alpha: bool,
    /// What the architecture decides about its experts, if it has some.
    pub experts: Option<experts::ExpertWiring>,
    /// Whether part of a head is rotated, and only in layers with a window.
    pub window_rope: bool,
    /// Keys that only this family has, and the values that are computed here; they win over those of all families.
    pub own_keys: &'static [(&'static str, Neutral)],
    /// Keys of this family that no known program reads; they are reported as unknown.
    pub unused_keys: &'static [&'static str],
    /// Whether what attention and MLP add to the residual stream is normed.
    pub branch_norms: bool,
    /// Whether q, k and v have biases, whatever keys say. Keys of a window count only if `use_sliding_window` is
    /// true, which is refused, and an absent `rope_theta` is 10,000 then.
    pub biases: bool,
    /// Whether embedding rows are multiplied by the root of their width.
    pub embedding_root: bool,
    /// Whether keys of windows count, and which layers have none where `layer_types` does not say: one
    /// in so many. `query_pre_attn_scalar` counts then, too, and `head_dim` has to be there.
    pub windows_every: Option<usize>,
    /// Whether embeddings, residual additions and the final hidden state are scaled as MiniCPM does.
    pub factors: bool,
    /// The key of the MLP's activation function.
    pub activation_key: &'static str,
    /// What transformers takes an absent `tie_word_embeddings` for.
    pub tied_by_default: bool,
    /// Whether layers may have a recurrent state; attention has an output gate then, and rotates a part of a head.
    pub hybrid: bool,
}

impl Wiring {
    /// A Llama.
    pub(super) const PLAIN: Self = Self {
        sub_norms: false,
        head_norms: false,
        norms_after_rope: false,
        rope_alpha: false,
        experts: None,
        window_rope: false,
        own_keys: &[],
        unused_keys: &[],
        branch_norms: false,
        biases: false,
        embedding_root: false,
        windows_every: None,
        factors: false,
        activation_key: "hidden_act",
        tied_by_default: false,
        hybrid: false,
    };

    /// Whether a key that would mean another network means this one.
    fn understands(&self, key: &str) -> bool {
        let windows = [
            "sliding_window",
            "rope_local_base_freq",
            "query_pre_attn_scalar",
            "layer_types",
        ];
        let factors = ["scale_emb", "scale_depth", "dim_model_base"];
        let biases = ["attention_bias", "qkv_bias", "sliding_window"];
        let is_own = |(own, _): &(&str, Neutral)| *own == key;
        self.own_keys.iter().any(is_own)
            || self.experts.is_some() && experts::KEYS.iter().any(is_own)
            || self.window_rope && WINDOW_ROPE.contains(&key)
            || self.biases && biases.contains(&key)
            || self.windows_every.is_some() && windows.contains(&key)
            || self.factors && factors.contains(&key)
            || self.hybrid && hybrid::KEYS.contains(&key)
    }
}

/// How the linears of a checkpoint to be written are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HfStorage {
    /// Master weights, as they were: `config.json` stays as it was.
    MasterWeights,
    /// Packed codes with a `weight_scale` of this direction.
    Packed(ScaleDirection),
    /// MLX's affine codes, one scale and one bias for so many columns.
    Affine {
        /// 32, 64 or 128.
        group: usize,
    },
    /// `trit * scale` as numbers; with a `weight_scale` of 1 when activations are quantised.
    Dequantised,
}

/// The values of a key that leave the network as this program computes it; `null` always does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    Absent,
    False,
    True,
    Zero,
    One,
    /// A word.
    Is(&'static str),
    /// Whatever it is: the family reads the key itself, or the key decides nothing.
    Any,
}

/// Keys of other architectures that would change the arithmetic.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("attention_bias", Neutral::False),
    ("is_causal", Neutral::True),
    ("use_rope", Neutral::True),
    ("bidirectional", Neutral::False),
    ("pretraining_tp", Neutral::One),
    ("rotary_pct", Neutral::One),
    ("hidden_size_per_layer_input", Neutral::Zero),
    ("num_kv_shared_layers", Neutral::Zero),
    ("num_nextn_predict_layers", Neutral::Zero),
    ("mlp_bias", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("use_bias", Neutral::False),
    ("add_bias_linear", Neutral::False),
    ("sliding_window", Neutral::Absent),
    ("use_sliding_window", Neutral::False),
    ("attention_chunk_size", Neutral::Absent),
    ("no_rope_layers", Neutral::Absent),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("query_pre_attn_scalar", Neutral::Absent),
    ("rope_local_base_freq", Neutral::Absent),
    ("attention_multiplier", Neutral::Absent),
    ("clip_qkv", Neutral::Absent),
    ("scale_depth", Neutral::Absent),
    ("dim_model_base", Neutral::Absent),
    ("logit_scale", Neutral::One),
    ("logits_scaling", Neutral::One),
    ("logits_scale", Neutral::One),
    ("lm_head_multiplier", Neutral::One),
    ("residual_multiplier", Neutral::One),
    ("residual_scale", Neutral::One),
    ("embedding_multiplier", Neutral::One),
    ("embedding_scale", Neutral::One),
    ("scale_emb", Neutral::One),
    ("partial_rotary_factor", Neutral::One),
    ("rope_ratio", Neutral::One),
    ("rope_interleaved", Neutral::False),
    ("alibi", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("qk_layernorm", Neutral::False),
    ("qk_norm", Neutral::False),
    ("parallel_attn", Neutral::False),
    ("use_parallel_residual", Neutral::False),
    ("use_bidirectional_attention", Neutral::False),
    ("is_encoder_decoder", Neutral::False),
    ("add_cross_attention", Neutral::False),
    ("num_local_experts", Neutral::Zero),
    ("num_experts", Neutral::Zero),
    ("n_routed_experts", Neutral::Zero),
];

/// Keys of networks that rotate part of a head, and only in layers with a window.
const WINDOW_ROPE: [&str; 4] = [
    "partial_rotary_factor",
    "nope_on_global_attention",
    "layer_types",
    "sliding_window",
];

/// Parses a JSON side file; of repeated keys the last wins (HF1BitLLM repeats `quantization_config`).
pub(crate) fn parse_json(bytes: &[u8]) -> Result<Value, FormatError> {
    match parse_value(bytes)? {
        Value::Object(object) => Ok(Value::Object(object)),
        other => Err(FormatError::new(
            ErrorCode::Malformed,
            format!("expected a JSON object, found {}", show(&other)),
        )),
    }
}

/// As [`parse_json`], whatever the JSON is.
pub(crate) fn parse_value(bytes: &[u8]) -> Result<Value, FormatError> {
    bitnet_formats::parse_json_value(bytes)
}

fn names_architecture(config: &Value, architecture: &str) -> bool {
    let list = config.get("architectures").and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|a| a == architecture))
}

/// Whether `config.json` names this model type and this architecture.
pub(super) fn is(config: &Value, model_type: &str, architecture: &str) -> bool {
    config.get("model_type").is_some_and(|t| t == model_type)
        && names_architecture(config, architecture)
}

/// As [`is`], or the model type alone when no architecture is named.
pub(super) fn is_or_unsaid(config: &Value, model_type: &str, architecture: &str) -> bool {
    let unsaid = match config.get("architectures") {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    };
    config.get("model_type").is_some_and(|t| t == model_type)
        && (unsaid || names_architecture(config, architecture))
}

/// The error for a `config.json` that no family claims: names the key that no family has.
pub(super) fn unknown_family<'a>(
    config: &Value,
    known: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) -> FormatError {
    let model_type = config.get("model_type").unwrap_or(&Value::Null);
    if known.clone().any(|(t, _)| model_type == t) {
        let names: Vec<_> = known.map(|(_, a)| a).collect();
        let found = show(config.get("architectures").unwrap_or(&Value::Null));
        return bad_key(
            "architectures",
            &found,
            &format!("one of {}", names.join(", ")),
        );
    }
    let mut names: Vec<_> = known.map(|(t, _)| t).collect();
    names.sort_unstable();
    names.dedup();
    bad_key(
        "model_type",
        &show(model_type),
        &format!("one of {}", names.join(", ")),
    )
}

/// Typed access to the keys of one object; `null` counts as absent.
#[derive(Clone, Copy)]
struct Keys<'a> {
    object: &'a Value,
    /// Path of the object, `rope_scaling.`
    path: &'static str,
}

impl<'a> Keys<'a> {
    fn get(self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    fn bad(self, key: &str, expected: &str) -> FormatError {
        let found = show(self.get(key).unwrap_or(&Value::Null));
        bad_key(&format!("{}{key}", self.path), &found, expected)
    }

    fn size(self, key: &str) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let size = value.as_u64().and_then(|v| usize::try_from(v).ok());
        size.map(Some)
            .ok_or_else(|| self.bad(key, "a whole number"))
    }

    fn required_size(self, key: &str) -> Result<usize, FormatError> {
        self.size(key)?
            .ok_or_else(|| self.bad(key, "a whole number"))
    }

    /// A number rounded to f32.
    fn number(self, key: &str) -> Result<Option<f32>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.bad(key, "a number"))
    }

    fn required_number(self, key: &str) -> Result<f32, FormatError> {
        self.number(key)?.ok_or_else(|| self.bad(key, "a number"))
    }

    /// The kind of scaling that an object names.
    fn kind(self) -> Result<Option<&'a str>, FormatError> {
        let (new, old) = (self.get("rope_type"), self.get("type"));
        if new.is_some() && old.is_some() && new != old {
            return Err(self.bad("type", "what rope_type says"));
        }
        Ok(new.or(old).map(|kind| kind.as_str().unwrap_or("")))
    }

    fn flag(self, key: &str) -> Result<Option<bool>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.bad(key, "true or false"))
    }
}

/// As [`read`], for a family that also has an architecture without a head: nothing else says then that
/// there is no `lm_head.weight`.
pub(super) fn read_for(
    config: &Value,
    wiring: &Wiring,
    headless: &str,
) -> Result<Config, FormatError> {
    let mut read = read(config, wiring)?;
    if names_architecture(config, headless) {
        read.tie_word_embeddings = true;
        // what such models do unless `modules.json` says otherwise
        read.pooling = Some(Pooling::Last);
    }
    Ok(read)
}

/// Reads sizes and wiring.
pub(super) fn read(config: &Value, wiring: &Wiring) -> Result<Config, FormatError> {
    let keys = Keys {
        object: config,
        path: "",
    };
    refuse_other_networks(keys, wiring)?;
    let hidden_act = activation(keys, wiring.activation_key)?;
    let heads = keys.required_size("num_attention_heads")?;
    let hidden_size = keys.required_size("hidden_size")?;
    // HunYuan has two keys of one meaning
    let second = match wiring.understands("attention_head_dim") {
        true => keys.size("attention_head_dim")?,
        false => None,
    };
    let first = keys.size("head_dim")?;
    if first.is_some() && second.is_some() && first != second {
        return Err(keys.bad("attention_head_dim", "what head_dim says"));
    }
    let head_dim = match first.or(second) {
        Some(head_dim) => head_dim,
        // transformers' own value for an absent key is not the quotient there
        None if wiring.windows_every.is_some() || wiring.hybrid => {
            return Err(keys.bad("head_dim", "a whole number"));
        }
        None if heads != 0 && hidden_size.is_multiple_of(heads) => {
            hidden_size.checked_div(heads).unwrap_or(0)
        }
        None => {
            return Err(keys.bad(
                "num_attention_heads",
                &format!("a divisor of hidden_size = {hidden_size}"),
            ));
        }
    };
    let num_hidden_layers = keys.required_size("num_hidden_layers")?;
    let rope = rope(keys, wiring, head_dim)?;
    Config {
        hidden_size,
        intermediate_size: keys.required_size("intermediate_size")?,
        num_hidden_layers,
        num_attention_heads: heads,
        // transformers' own reading of an absent key: as many as query heads
        num_key_value_heads: keys.size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        vocab_size: keys.required_size("vocab_size")?,
        max_position_embeddings: keys.required_size("max_position_embeddings")?,
        rms_norm_eps: keys.required_number("rms_norm_eps")?,
        rope,
        rotary_dim: match wiring.window_rope {
            true => partial(keys, head_dim)?,
            false => head_dim,
        },
        long_rope: long_rope::read(keys, wiring)?,
        hidden_act,
        attn_sub_norm: wiring.sub_norms,
        ffn_sub_norm: wiring.sub_norms,
        norms: ExtraNorms {
            heads: wiring.head_norms,
            heads_after_rope: wiring.norms_after_rope,
            // whether there are such tensors
            projections: false,
            branches: wiring.branch_norms,
        },
        biases: wiring.biases,
        factors: Factors {
            query_pre_attn_scalar: match wiring.windows_every {
                Some(_) => Some(keys.required_number("query_pre_attn_scalar")?)
                    .filter(|scalar| *scalar != head_dim as f32),
                None => None,
            },
            ..match wiring.factors {
                true => factors(keys, hidden_size, num_hidden_layers)?,
                false => super::root_factors(wiring.embedding_root, hidden_size),
            }
        },
        sliding: match wiring.windows_every {
            Some(every) => sliding(keys, every, num_hidden_layers)?,
            None if wiring.window_rope => experts::windows(keys, rope.theta, num_hidden_layers)?,
            None => None,
        },
        experts: match wiring.experts {
            Some(wiring) => experts::read(keys, wiring, num_hidden_layers)?,
            None => None,
        },
        hybrid: match wiring.hybrid {
            true => Some(hybrid::read(
                keys,
                hidden_size,
                num_hidden_layers,
                head_dim,
            )?),
            false => None,
        },
        // beside `config.json`
        rotation: None,
        pooling: None,
        embedding: Default::default(),
        // transformers' default for each of these architectures
        tie_word_embeddings: keys
            .flag("tie_word_embeddings")?
            .unwrap_or(wiring.tied_by_default),
        activation_quantization: quantization::activations(config)?,
        bos_token_id: token_ids(keys, "bos_token_id")?.first().copied(),
        eos_token_ids: token_ids(keys, "eos_token_id")?,
    }
    .checked()
}

fn refuse_other_networks(keys: Keys<'_>, wiring: &Wiring) -> Result<(), FormatError> {
    let others = NEUTRAL.iter().filter(|(key, _)| !wiring.understands(key));
    let experts: &[_] = match wiring.experts {
        Some(_) => &experts::KEYS,
        None => &[],
    };
    for &(key, neutral) in others.chain(wiring.own_keys).chain(experts) {
        let Some(value) = keys.get(key) else { continue };
        let (fine, expected) = match neutral {
            Neutral::Absent => (false, "nothing"),
            Neutral::False => (value == false, "false"),
            Neutral::True => (value == true, "true"),
            Neutral::Zero => (value.as_f64() == Some(0.0), "0"),
            Neutral::One => (value.as_f64() == Some(1.0), "1"),
            Neutral::Is(word) => (value == word, word),
            Neutral::Any => (true, ""),
        };
        if !fine {
            return Err(keys.bad(key, expected));
        }
    }
    let full = |layers: &Value| {
        layers
            .as_array()
            .is_some_and(|l| l.iter().all(|t| t == "full_attention"))
    };
    match keys.get("layer_types") {
        Some(layers) if !wiring.understands("layer_types") && !full(layers) => {
            return Err(keys.bad("layer_types", "\"full_attention\" everywhere"));
        }
        _ => {}
    }
    known_keys::refuse(keys.object, |key| {
        is_compared(key) || wiring.understands(key) || wiring.unused_keys.contains(&key)
    })
}

/// Whether a key is compared with the value that is computed here, or read by some family.
fn is_compared(key: &str) -> bool {
    NEUTRAL.iter().any(|(known, _)| *known == key)
}

/// The keys that nothing reads and that no list of harmless ones has.
pub(super) fn unknown_keys(config: &Value, wiring: &Wiring) -> Vec<UnknownKey> {
    // a configuration that cannot be put on one level was refused before
    let flat = hybrid::flat(config).unwrap_or(std::borrow::Cow::Borrowed(config));
    known_keys::unknown(&flat, |key| is_compared(key) || wiring.understands(key))
}

/// The first dimensions of a head that are rotated, where `partial_rotary_factor` says how many of them.
fn partial(keys: Keys<'_>, head_dim: usize) -> Result<usize, FormatError> {
    match keys.flag("nope_on_global_attention")? {
        Some(true) => {}
        _ => return Err(keys.bad("nope_on_global_attention", "true")),
    }
    hybrid::rotary_dim(keys, head_dim, None)
}

/// MiniCPM's scales: `scale_emb`, `scale_depth / sqrt(layers)`, and the final hidden state divided by
/// `hidden_size / dim_model_base`; quotients and root in f64 as its code has them.
fn factors(keys: Keys<'_>, hidden_size: usize, layers: usize) -> Result<Factors, FormatError> {
    let double = |key: &str| {
        let value = keys.get(key).and_then(Value::as_f64);
        value.ok_or_else(|| keys.bad(key, "a number"))
    };
    Ok(Factors {
        embedding: double("scale_emb")? as f32,
        residual: (double("scale_depth")? / (layers as f64).sqrt()) as f32,
        head_divisor: (hidden_size as f64 / double("dim_model_base")?) as f32,
        query_pre_attn_scalar: None,
    })
}

/// The layers with a window.
fn sliding(
    keys: Keys<'_>,
    every: usize,
    num_hidden_layers: usize,
) -> Result<Option<SlidingWindow>, FormatError> {
    let layers = match keys.get("layer_types") {
        Some(types) => {
            let kind = |t: &Value| match t.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let types = types.as_array();
            let layers = types.and_then(|types| types.iter().map(kind).collect::<Option<Vec<_>>>());
            layers.ok_or_else(|| {
                keys.bad(
                    "layer_types",
                    "a list of sliding_attention and full_attention",
                )
            })?
        }
        None => {
            let every = keys.size("sliding_window_pattern")?.unwrap_or(every);
            // `Config::checked` bounds the number later
            if every == 0 || num_hidden_layers > 1024 {
                return Err(keys.bad("sliding_window_pattern", "a number from 1 on"));
            }
            super::windows_every(every, num_hidden_layers)
        }
    };
    if layers.iter().all(|window| !window) {
        return Ok(None);
    }
    let own = keys
        .object
        .pointer("/rope_parameters/sliding_attention")
        .map(|object| Keys {
            object,
            path: "rope_parameters.sliding_attention.",
        });
    let rope_theta = match own {
        Some(own) => {
            match refuse_unknown_rope_keys(own, &[]).and_then(|()| rope_scaling(own, keys))? {
                RopeScaling::None => own.required_number("rope_theta")?,
                _ => return Err(own.bad("rope_type", "\"default\"")),
            }
        }
        None => keys.required_number("rope_local_base_freq")?,
    };
    Ok(Some(SlidingWindow {
        tokens: keys.required_size("sliding_window")?,
        rope_theta: rope_theta.into(),
        layers,
        full_rope: true,
    }))
}

fn activation(keys: Keys<'_>, key: &'static str) -> Result<Activation, FormatError> {
    let all = [Activation::Relu2, Activation::Silu, Activation::GeluTanh];
    let expected = || all.map(Activation::as_str).join(", ");
    let named = |value: &Value| all.into_iter().find(|a| value == a.as_str());
    let found = keys.get(key).and_then(named);
    let found = found.ok_or_else(|| keys.bad(key, &format!("one of {}", expected())))?;
    for other in ["hidden_act", "hidden_activation"] {
        let said = keys.get(other);
        if other != key && said.is_some_and(|value| named(value) != Some(found)) {
            let expected = format!("what {key} = {} means", found.as_str());
            return Err(keys.bad(other, &expected));
        }
    }
    // Falcon3-7B-1.58bit has this second spelling beside `hidden_act`
    match keys.get("activation") {
        Some(other)
            if !(named(other) == Some(found) || other == "swiglu" && found == Activation::Silu) =>
        {
            Err(keys.bad(
                "activation",
                &format!("what hidden_act = {} means", found.as_str()),
            ))
        }
        _ => Ok(found),
    }
}

/// The configuration with transformers 4's `rope_theta` and `rope_scaling` beside a `rope_parameters` of transformers 5:
/// mlx-lm takes its own default where they are absent, transformers 5 reads both and finds the same.
pub(super) fn with_old_rope_keys(mut config: Value) -> Value {
    let parameters = config.get("rope_parameters").and_then(Value::as_object);
    let Some((theta, mut scaling)) = parameters.and_then(|p| {
        let theta = p.get("rope_theta").filter(|theta| theta.is_number())?;
        Some((theta.clone(), p.clone()))
    }) else {
        return config;
    };
    scaling.shift_remove("rope_theta");
    let is_scaled = scaling
        .get("rope_type")
        .is_some_and(|kind| kind != "default");
    if let Some(keys) = config.as_object_mut() {
        if keys.get("rope_theta").is_none_or(Value::is_null) {
            keys.insert("rope_theta".to_owned(), theta);
        }
        if is_scaled && keys.get("rope_scaling").is_none_or(Value::is_null) {
            keys.insert("rope_scaling".to_owned(), Value::Object(scaling));
        }
    }
    config
}

/// `rope_theta` and `rope_scaling` (transformers 4) or `rope_parameters` (transformers 5).
fn rope(keys: Keys<'_>, wiring: &Wiring, head_dim: usize) -> Result<Rope, FormatError> {
    let mut theta = keys.number("rope_theta")?;
    let mut scaling = None;
    let mut alpha_theta = None;
    for (key, path) in [
        ("rope_scaling", "rope_scaling."),
        ("rope_parameters", "rope_parameters."),
    ] {
        let Some(object) = keys.get(key) else {
            continue;
        };
        if !object.is_object() {
            return Err(keys.bad(key, "an object"));
        }
        let mut inner = Keys { object, path };
        if let (Some(_), Some(object)) = (wiring.windows_every, inner.get("full_attention")) {
            // that of layers with windows is read with them
            let path = "rope_parameters.full_attention.";
            inner = Keys { object, path };
        }
        for per_layer_type in ["full_attention", "sliding_attention"] {
            if inner.get(per_layer_type).is_some() {
                return Err(inner.bad(per_layer_type, "nothing"));
            }
        }
        if !wiring.hybrid
            && !wiring.window_rope
            && inner
                .number("partial_rotary_factor")?
                .is_some_and(|f| f != 1.0)
        {
            return Err(inner.bad("partial_rotary_factor", "1"));
        }
        if let Some(inner_theta) = inner.number("rope_theta")? {
            if theta.is_some_and(|outer| outer != inner_theta) {
                return Err(inner.bad(
                    "rope_theta",
                    &format!("rope_theta = {}", theta.unwrap_or(0.0)),
                ));
            }
            theta = Some(inner_theta);
        }
        if wiring.rope_alpha && inner.get("alpha").is_some() {
            refuse_unknown_rope_keys(inner, &["alpha"])?;
            let base = theta.ok_or_else(|| keys.bad("rope_theta", "a number"))?;
            let scaled = alpha_scaled(inner, base, head_dim)?;
            if alpha_theta.is_some_and(|other| other != scaled) {
                return Err(keys.bad(key, "what rope_scaling says"));
            }
            alpha_theta = Some(scaled);
            continue;
        }
        let this = match inner.kind()? {
            // read by `long_rope`
            Some("longrope") => RopeScaling::None,
            _ => rope_scaling(inner, keys)?,
        };
        let own: &[&str] = match wiring.hybrid {
            true => &hybrid::ROPE_KEYS,
            false => &[],
        };
        refuse_unknown_rope_keys(inner, own)?;
        if scaling.is_some_and(|other| other != this) {
            return Err(keys.bad(key, "what rope_scaling says"));
        }
        scaling = Some(this);
    }
    // transformers' default of this architecture
    let theta = theta.or(wiring.biases.then_some(10_000.0));
    let theta = theta.ok_or_else(|| keys.bad("rope_theta", "a number"))?;
    if alpha_theta.is_some() && scaling.is_some() {
        return Err(keys.bad("rope_scaling", "what rope_parameters says"));
    }
    Ok(Rope {
        theta: alpha_theta.unwrap_or(theta).into(),
        scaling: scaling.unwrap_or(RopeScaling::None),
    })
}

/// `theta alpha^(d / (d - 2))` of heads of `d` dimensions, in f64 and rounded to f32: HunYuan's base, the same at
/// every position. Numbers beside `alpha` decide nothing there.
fn alpha_scaled(keys: Keys<'_>, theta: f32, head_dim: usize) -> Result<f32, FormatError> {
    let kind = keys.get("rope_type").or(keys.get("type"));
    if kind.is_none_or(|kind| kind != "dynamic") {
        return Err(keys.bad("type", "\"dynamic\" beside alpha"));
    }
    if keys.number("factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(keys.bad("factor", "1 beside alpha"));
    }
    let alpha = keys.get("alpha").and_then(Value::as_f64);
    let alpha = alpha.filter(|alpha| *alpha > 0.0);
    let alpha = alpha.ok_or_else(|| keys.bad("alpha", "a positive number"))?;
    if head_dim <= 2 {
        return Err(bad_key("head_dim", &head_dim.to_string(), "more than 2"));
    }
    let dim = head_dim as f64;
    let scaled = f64::from(theta) * libm::pow(alpha, dim / (dim - 2.0));
    let scaled = scaled as f32;
    match scaled.is_finite() {
        true => Ok(scaled),
        false => Err(keys.bad("alpha", "a base that f32 holds")),
    }
}

/// Refuses keys of an object of scaling numbers that nothing here reads; `own`: those of some networks only.
fn refuse_unknown_rope_keys(keys: Keys<'_>, own: &[&str]) -> Result<(), FormatError> {
    const KNOWN: [&str; 19] = [
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "factor",
        "finetuned",
        "full_attention",
        "high_freq_factor",
        "long_factor",
        "low_freq_factor",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "short_factor",
        "sliding_attention",
        "truncate",
        "type",
    ];
    for (key, value) in keys.object.as_object().into_iter().flatten() {
        let is_known = KNOWN.contains(&key.as_str()) || own.contains(&key.as_str());
        if !is_known && !value.is_null() && value != false {
            return Err(keys.bad(key, "no such key"));
        }
    }
    Ok(())
}

/// One object of scaling numbers; `outer` is the configuration around it.
fn rope_scaling(keys: Keys<'_>, outer: Keys<'_>) -> Result<RopeScaling, FormatError> {
    let (new, old) = (keys.get("rope_type"), keys.get("type"));
    let key = if new.is_some() { "rope_type" } else { "type" };
    if new.is_some() && old.is_some() && new != old {
        return Err(keys.bad("type", "what rope_type says"));
    }
    let factor = || {
        let factor = keys.required_number("factor")?;
        if factor >= 1.0 {
            Ok(factor)
        } else {
            Err(keys.bad("factor", "a number from 1 on"))
        }
    };
    match new.or(old).map(|v| v.as_str().unwrap_or("")) {
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(linear(factor()?)),
        Some("llama3") => {
            let (low, high) = (
                keys.required_number("low_freq_factor")?,
                keys.required_number("high_freq_factor")?,
            );
            if !(low > 0.0 && high > low) {
                return Err(keys.bad(
                    "high_freq_factor",
                    &format!("more than low_freq_factor = {low}"),
                ));
            }
            let original = keys.required_size("original_max_position_embeddings")?;
            if original == 0 {
                return Err(keys.bad("original_max_position_embeddings", "a number from 1 on"));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?.into(),
                low_freq_factor: low.into(),
                high_freq_factor: high.into(),
                original_max_position_embeddings: original,
            })
        }
        Some("yarn") => yarn(keys, outer).map(RopeScaling::Yarn),
        Some(_) => Err(keys.bad(key, "one of default, linear, llama3, yarn")),
    }
}

/// The numbers of YaRN, absent ones as transformers fills them in.
fn yarn(keys: Keys<'_>, outer: Keys<'_>) -> Result<Yarn, FormatError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let longest = outer.required_size("max_position_embeddings")?;
    let original = match outer.size(ORIGINAL)? {
        Some(original) => original,
        None => keys.size(ORIGINAL)?.unwrap_or(longest),
    };
    if original == 0 {
        return Err(keys.bad(ORIGINAL, "a number from 1 on"));
    }
    let factor = match keys.number("factor")? {
        Some(factor) => factor,
        None => (longest as f64 / original as f64) as f32,
    };
    if factor < 1.0 {
        return Err(keys.bad("factor", "a number from 1 on"));
    }
    if keys.flag("truncate")? == Some(false) {
        return Err(keys.bad("truncate", "true"));
    }
    // a zero counts as absent there
    let or = |key: &str, default: f64| -> Result<f64, FormatError> {
        let number = keys.number(key)?.filter(|n| *n != 0.0);
        Ok(number.map_or(default, f64::from))
    };
    let wide = f64::from(factor);
    let attention_factor = match keys.number("attention_factor")? {
        Some(attention_factor) => attention_factor,
        None => {
            let (one, all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
            let factor = |mscale| Yarn::attention_factor_of(wide, mscale);
            if one != 0.0 && all != 0.0 {
                (factor(one) / factor(all)) as f32
            } else {
                factor(1.0) as f32
            }
        }
    };
    Ok(Yarn {
        factor: wide,
        original_max_position_embeddings: original,
        beta_fast: or("beta_fast", Yarn::BETA_FAST)?,
        beta_slow: or("beta_slow", Yarn::BETA_SLOW)?,
        attention_factor: attention_factor.into(),
    })
}

/// Linear scaling by 1 is no scaling (llama.cpp's converter writes it for every `bitnet` file).
pub(super) fn linear(factor: f32) -> RopeScaling {
    if factor == 1.0 {
        RopeScaling::None
    } else {
        RopeScaling::Linear {
            factor: factor.into(),
        }
    }
}

/// One id, a list of ids, or nothing.
fn token_ids(keys: Keys<'_>, key: &str) -> Result<Vec<u32>, FormatError> {
    let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
    let ids = match keys.get(key) {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => id(one).map(|id| vec![id]),
    };
    ids.ok_or_else(|| keys.bad(key, "a token id or a list of them"))
}

/// Adds what `generation_config.json` says beyond `config.json`: chat models end a turn with a token
/// that only stands there (2B4T: 128009).
pub(crate) fn add_generation_config(
    config: &mut Config,
    generation: &Value,
) -> Result<(), FormatError> {
    let keys = Keys {
        object: generation,
        path: "",
    };
    for id in token_ids(keys, "eos_token_id")? {
        if !config.eos_token_ids.contains(&id) {
            config.eos_token_ids.push(id);
        }
    }
    Ok(())
}
