//! GGUF metadata, read into a [`Config`] and written from one (`formats/container/gguf.md`).
//!
//! Invariant: what is written reads back as the same `Config`; keys of our own begin with `ternary.`
//! and only say what no reader's key can.

mod experts;
mod hybrid;
mod long_rope;
mod rope_frequencies;
mod rope_scaling;

pub(crate) use long_rope::LONG_ROPE;
pub(crate) use rope_frequencies::{
    ROPE_FREQUENCIES, check_rope_frequencies, infer_rope_scaling, rope_frequency_factors,
    unread_rope_frequencies,
};

use super::known_keys::UnknownKey;
use super::{GgufWindows, GgufWiring, names};
use crate::config::{
    ActivationQuantization, Config, EmbeddingSettings, ExtraNorms, Factors, Pooling, Rope,
    RopeScaling, SlidingWindow, Yarn, bad_key,
};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{
    ErrorCode, FormatError, GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY, MetaArray, MetaValue, Metadata,
    TensorFile,
};

pub(super) const ARCHITECTURE: &str = "general.architecture";
/// Scales of embeddings and of residual additions, and what the final hidden state is divided by.
const FACTORS: [&str; 3] = ["embedding_scale", "residual_scale", "logit_scale"];
const WINDOW: &str = "attention.sliding_window";
const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
const WINDOW_THETA: &str = "rope.freq_base_swa";
const WINDOW_DIM: &str = "rope.dimension_count_swa";
const POOLING: &str = "pooling_type";
const NORMALIZE: &str = "ternary.embedding.normalize";
const PROMPTS: &str = "ternary.embedding.prompts";
const DEFAULT_PROMPT: &str = "ternary.embedding.default_prompt_name";
const MAX_SEQ_LENGTH: &str = "ternary.embedding.max_seq_length";
const ACTIVATIONS: &str = "ternary.activation_quantization";
const EOS_TOKEN_IDS: &str = "ternary.eos_token_ids";
/// What `config.json` calls begin of text, where the tokenizer has another token; [`NO_TOKEN`] for none.
const BOS_TOKEN_ID: &str = "ternary.bos_token_id";
const TOKENIZER_BOS: &str = "tokenizer.ggml.bos_token_id";
/// Keys of the tokenizer that name ends of a text, of a turn and of a message.
const ENDS: [&str; 3] = ["eos_token_id", "eot_token_id", "eom_token_id"];
/// How llama.cpp writes that there is no such token.
const NO_TOKEN: u32 = u32::MAX;
const SCALING_TYPE: &str = "ternary.rope.scaling.type";
const SCALING_FACTOR: &str = "ternary.rope.scaling.factor";
const SCALING_LOW: &str = "ternary.rope.scaling.low_freq_factor";
const SCALING_HIGH: &str = "ternary.rope.scaling.high_freq_factor";
const SCALING_ORIGINAL: &str = "ternary.rope.scaling.original_context_length";
/// The whole factor of YaRN's tables: readers' own key holds it divided by a logarithm.
const SCALING_ATTENTION: &str = "ternary.rope.scaling.attention_factor";

/// Keys of other networks, and the number that leaves them without effect.
const NEUTRAL: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("attention.sliding_window", 0.0),
    ("attention.scale", 0.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.shared_kv_layers", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("embedding_scale", 1.0),
];

/// Keys of an architecture that are read here, or that do not change what it computes.
const KNOWN: &[&str] = &[
    "attention.causal",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "pooling_type",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
    "tensor_data_layout",
    "use_parallel_residual",
    "vocab_size",
];
/// Beginnings of keys outside the architecture's own that some known program reads or writes.
const KNOWN_PREFIXES: &[&str] = &[
    "general.",
    "tokenizer.",
    "ternary.",
    "bitnet.",
    "split.",
    "prism.",
    "quantize.",
    "adapter.",
];

fn show(value: Option<&MetaValue>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(MetaValue::Array(_)) => "an array".to_owned(),
        Some(MetaValue::String(s)) => {
            let text: String = String::from_utf8_lossy(s).chars().take(60).collect();
            format!("{text:?}")
        }
        Some(number) => match (number.as_u64(), number.as_f64(), number.as_bool()) {
            (Some(v), _, _) => v.to_string(),
            (_, Some(v), _) => v.to_string(),
            (_, _, Some(v)) => v.to_string(),
            _ => "a negative number".to_owned(),
        },
    }
}

/// `general.architecture`.
pub(super) fn architecture(file: &TensorFile) -> Result<&str, FormatError> {
    let value = file.metadata.get(ARCHITECTURE);
    if value.is_none() {
        let message =
            "the key is missing: it names the network, and the file cannot be read without it";
        let error = FormatError::new(ErrorCode::UnsupportedConfig, message);
        return Err(error.in_tensor(ARCHITECTURE).hint(
            "write the file again with a converter that knows the model, or get another copy",
        ));
    }
    let text = value.and_then(MetaValue::as_str);
    text.ok_or_else(|| bad_key(ARCHITECTURE, &show(value), "a string"))
}

/// Typed access to the keys of one architecture; a name that begins with `/` is a whole key.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        match name.strip_prefix('/') {
            Some(absolute) => absolute.to_owned(),
            None => format!("{}.{name}", self.architecture),
        }
    }

    fn get(&self, name: &str) -> Option<&MetaValue> {
        self.metadata.get(&self.key(name))
    }

    fn bad(&self, name: &str, expected: &str) -> FormatError {
        bad_key(&self.key(name), &show(self.get(name)), expected)
    }

    fn size(&self, name: &str) -> Result<Option<usize>, FormatError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        // readers of llama.cpp's kind refuse a key of another type, signed ones as well
        let is_signed = matches!(
            value,
            MetaValue::I8(_) | MetaValue::I16(_) | MetaValue::I32(_) | MetaValue::I64(_)
        );
        let size = value.as_u64().filter(|_| !is_signed);
        let size = size.and_then(|v| usize::try_from(v).ok());
        size.map(Some)
            .ok_or_else(|| self.bad(name, "an unsigned whole number"))
    }

    fn required_size(&self, name: &str) -> Result<usize, FormatError> {
        self.size(name)?
            .ok_or_else(|| self.bad(name, "a whole number"))
    }

    fn number(&self, name: &str) -> Result<Option<f32>, FormatError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
        number.map(Some).ok_or_else(|| self.bad(name, "a number"))
    }

    fn required_number(&self, name: &str) -> Result<f32, FormatError> {
        self.number(name)?.ok_or_else(|| self.bad(name, "a number"))
    }

    fn token(&self, name: &str) -> Result<Option<u32>, FormatError> {
        let Some(id) = self.size(name)? else {
            return Ok(None);
        };
        match u32::try_from(id) {
            Ok(NO_TOKEN) => Ok(None),
            Ok(id) => Ok(Some(id)),
            Err(_) => Err(self.bad(name, "a token id")),
        }
    }
}

/// Whether a file says how inputs of linears are quantised.
pub(crate) fn says_activations(file: &TensorFile) -> bool {
    file.metadata.get(ACTIVATIONS).is_some()
}

/// The rows of the vocabulary by the metadata, which some files have wrong.
pub(crate) fn declared_vocab_size(file: &TensorFile) -> Option<usize> {
    let key = format!("{}.vocab_size", architecture(file).ok()?);
    usize::try_from(file.metadata.get(&key)?.as_u64()?).ok()
}

/// Reads sizes and wiring.
pub(super) fn read(file: &TensorFile, wiring: &GgufWiring) -> Result<Config, FormatError> {
    let keys = Keys {
        metadata: &file.metadata,
        architecture: architecture(file)?,
    };
    for &(name, neutral) in NEUTRAL {
        let means_this = name == WINDOW && wiring.windows.is_some()
            || name == experts::COUNT && wiring.experts.is_some()
            || FACTORS.contains(&name) && wiring.factor_keys;
        if means_this {
            continue;
        }
        if let Some(value) = keys.get(name) {
            let number = value.as_u64().map(|v| v as f64).or(value.as_f64());
            if number != Some(neutral) {
                return Err(keys.bad(name, &neutral.to_string()));
            }
        }
    }
    for (name, neutral) in [("attention.causal", true), ("use_parallel_residual", false)] {
        if keys.get(name).is_some_and(|v| v.as_bool() != Some(neutral)) {
            return Err(keys.bad(name, &neutral.to_string()));
        }
    }
    for (name, value) in unread(&keys, wiring) {
        if super::known_keys::is_suspect(name) || is_of_other_networks(name) {
            let found = show(Some(value));
            return Err(bad_key(&keys.key(name), &found, "no such key").hint(
                "the key is unknown here and may change the network; remove it from the file if it does not",
            ));
        }
    }
    let hidden_size = keys.required_size("embedding_length")?;
    let heads = keys.required_size("attention.head_count")?;
    let head_dim = match keys.size("attention.key_length")? {
        Some(head_dim) => head_dim,
        None if heads != 0 && hidden_size.is_multiple_of(heads) => {
            hidden_size.checked_div(heads).unwrap_or(0)
        }
        None => {
            let expected = format!("a divisor of embedding_length = {hidden_size}");
            return Err(keys.bad("attention.head_count", &expected));
        }
    };
    for name in ["attention.value_length", "rope.dimension_count"] {
        if wiring.hybrid && name == hybrid::ROTARY
            || wiring.partial_rope && name == "rope.dimension_count"
        {
            continue;
        }
        if keys.size(name)?.is_some_and(|n| n != head_dim) {
            return Err(keys.bad(name, &format!("the head width, {head_dim}")));
        }
    }
    // the embedding's own shape is the truth; `vocab_size` is absent or stale in some files
    let embedding = file.tensor(&names::gguf(Slot::TokenEmbeddings));
    let vocab_size = match embedding.and_then(|t| t.shape.first()) {
        Some(&rows) => rows,
        None => keys.required_size("vocab_size")?,
    };
    let num_hidden_layers = match wiring.hybrid {
        true => hybrid::layers(&keys)?,
        false => keys.required_size("block_count")?,
    };
    let own_norm = names::gguf(Slot::Layer(0, LayerSlot::QProjNorm));
    let projections = wiring.projection_norms && file.tensor(&own_norm).is_some();
    let sub_norms = wiring.sub_norms || projections;
    let own_head = file.tensor(&names::gguf(Slot::OutputHead)).is_some();
    Config {
        hidden_size,
        intermediate_size: keys.required_size("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.size("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        vocab_size,
        max_position_embeddings: keys.required_size("context_length")?,
        rms_norm_eps: keys.required_number("attention.layer_norm_rms_epsilon")?,
        rope: Rope {
            // every reader's value for an absent key
            theta: keys.number("rope.freq_base")?.unwrap_or(10_000.0).into(),
            scaling: rope_scaling::read(&keys)?,
        },
        rotary_dim: match wiring.partial_rope {
            true => keys.size("rope.dimension_count")?.unwrap_or(head_dim),
            false => head_dim,
        },
        long_rope: long_rope::read(file, &keys, wiring, head_dim)?,
        hidden_act: wiring.activation,
        attn_sub_norm: sub_norms,
        ffn_sub_norm: sub_norms,
        norms: ExtraNorms {
            heads: wiring.head_norms,
            heads_after_rope: wiring.norms_after_rope,
            projections,
            branches: wiring.branch_norms,
        },
        biases: wiring.biases,
        factors: factors(&keys, wiring, hidden_size)?,
        sliding: sliding(&keys, wiring, num_hidden_layers)?,
        hybrid: match wiring.hybrid {
            true => Some(hybrid::read(
                &keys,
                hidden_size,
                num_hidden_layers,
                head_dim,
            )?),
            false => None,
        },
        // resolved with the names of all tensors
        rotation: None,
        experts: match wiring.experts {
            Some(readers) => experts::read(&keys, readers.clamp, num_hidden_layers)?,
            None => None,
        },
        pooling: pooling(&keys)?,
        embedding: embedding_settings(&keys)?,
        tie_word_embeddings: !(wiring.output_head && own_head),
        activation_quantization: activations(&keys)?.unwrap_or(match projections {
            true => ActivationQuantization::Int8PerToken,
            false => wiring.activations,
        }),
        bos_token_id: bos(&keys)?,
        eos_token_ids: eos(&keys)?,
    }
    .checked()
}

/// Keys of the architecture that nothing here reads, and whose values do not switch them off.
fn unread<'a>(
    keys: &Keys<'a>,
    wiring: &GgufWiring,
) -> impl Iterator<Item = (&'a str, &'a MetaValue)> + use<'a> {
    let own = format!("{}.", keys.architecture);
    let (windows, hybrid) = (wiring.windows.is_some(), wiring.hybrid);
    let flags = wiring.windows.is_some_and(|windows| windows.flags);
    let has_experts = wiring.experts.is_some();
    let entries = keys.metadata.0.iter();
    entries.filter_map(move |(key, value)| {
        let name = key.strip_prefix(&own)?;
        // these begin like the keys of the architecture `bitnet`
        let known = [GGUF_LAYOUT_KEY, GGUF_SPLIT_ID_KEY].contains(&key.as_str())
            || KNOWN.contains(&name)
            || NEUTRAL.iter().any(|(neutral, _)| *neutral == name)
            || has_experts && experts::KEYS.contains(&name)
            || flags && name == WINDOW_DIM
            || windows && [WINDOW, WINDOW_PATTERN, WINDOW_THETA].contains(&name)
            || hybrid && hybrid::KEYS.contains(&name);
        let number = value.as_u64().map(|v| v as f64).or(value.as_f64());
        let off = match value {
            MetaValue::String(text) => text.is_empty(),
            other => other.as_bool() == Some(false) || matches!(number, Some(0.0 | 1.0)),
        };
        (!known && !off).then_some((name, value))
    })
}

/// Whether the first part of a key names something that networks of these architectures do not have.
fn is_of_other_networks(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    [
        "attention",
        "rope",
        "ssm",
        "wkv",
        "time_mix",
        "decoder",
        "encoder",
    ]
    .contains(&first)
}

/// The keys of a file that nothing here reads.
pub(super) fn unknown_keys(file: &TensorFile, wiring: &GgufWiring) -> Vec<UnknownKey> {
    let Ok(architecture) = architecture(file) else {
        return Vec::new();
    };
    let keys = Keys {
        metadata: &file.metadata,
        architecture,
    };
    let own = format!("{architecture}.");
    let foreign = file.metadata.0.iter().filter(|(key, _)| {
        !key.starts_with(&own) && !KNOWN_PREFIXES.iter().any(|known| key.starts_with(known))
    });
    let unknown = |key: String, value: &MetaValue| UnknownKey {
        key,
        value: show(Some(value)),
    };
    unread(&keys, wiring)
        .map(|(name, value)| unknown(keys.key(name), value))
        .chain(foreign.map(|(key, value)| unknown(key.clone(), value)))
        .collect()
}

/// By what embeddings, residual additions and the final hidden state are scaled. No reader agrees with another
/// on what absent keys mean, so they have to be there.
fn factors(
    keys: &Keys<'_>,
    wiring: &GgufWiring,
    hidden_size: usize,
) -> Result<Factors, FormatError> {
    if !wiring.factor_keys {
        return Ok(wiring.factors(hidden_size));
    }
    let [embedding, residual, head_divisor] = FACTORS;
    Ok(Factors {
        embedding: keys.required_number(embedding)?,
        residual: keys.required_number(residual)?,
        head_divisor: keys.required_number(head_divisor)?,
        query_pre_attn_scalar: None,
    })
}

/// The layers with a window, if the file says how long it is.
fn sliding(
    keys: &Keys<'_>,
    wiring: &GgufWiring,
    num_hidden_layers: usize,
) -> Result<Option<SlidingWindow>, FormatError> {
    let tokens = keys.size(WINDOW)?;
    if wiring.windows.is_some_and(|windows| windows.flags) && tokens.unwrap_or(0) == 0 {
        return Err(keys.bad(WINDOW, "a number from 1 on"));
    }
    let (Some(windows), Some(tokens)) = (wiring.windows, tokens) else {
        return Ok(None);
    };
    // `Config::checked` bounds the number later
    if tokens == 0 || num_hidden_layers > 1024 {
        return Ok(None);
    }
    if windows.flags {
        let all = keys.number("rope.freq_base")?.map(f64::from);
        let own = keys.number(WINDOW_THETA)?.map(f64::from);
        let (dim, own_dim) = (keys.size("rope.dimension_count")?, keys.size(WINDOW_DIM)?);
        if own_dim.is_some() && own_dim != dim {
            return Err(keys.bad(WINDOW_DIM, "what rope.dimension_count says"));
        }
        return Ok(Some(SlidingWindow {
            tokens,
            rope_theta: own.or(all).unwrap_or(windows.rope_theta),
            layers: experts::window_flags(keys, num_hidden_layers)?,
            full_rope: windows.full_rope,
        }));
    }
    let every = keys.size(WINDOW_PATTERN)?.unwrap_or(windows.every);
    if every == 0 {
        return Err(keys.bad(WINDOW_PATTERN, "a number from 1 on"));
    }
    let theta = keys.number(WINDOW_THETA)?.map(f64::from);
    Ok(Some(SlidingWindow {
        tokens,
        rope_theta: theta.unwrap_or(windows.rope_theta),
        layers: GgufWindows { every, ..windows }.layers(num_hidden_layers),
        full_rope: true,
    }))
}

/// How the network is pooled, if it is an embedding model.
fn pooling(keys: &Keys<'_>) -> Result<Option<Pooling>, FormatError> {
    match keys.size(POOLING)? {
        None | Some(0) => Ok(None),
        Some(n) => match Pooling::ALL.get(n.saturating_sub(1)) {
            Some(pooling) => Ok(Some(*pooling)),
            None => Err(keys.bad(POOLING, "0 (none), 1 (mean), 2 (cls) or 3 (last)")),
        },
    }
}

/// The settings of an embedding pipeline: no reader's keys say them, ours do where they are not the usual ones.
fn embedding_settings(keys: &Keys<'_>) -> Result<EmbeddingSettings, FormatError> {
    let own = |name: &str| keys.metadata.get(name);
    let bad = |name: &str, expected: &str| bad_key(name, &show(own(name)), expected);
    let text = |name: &str| match own(name) {
        None => Ok(None),
        Some(value) => value
            .as_str()
            .map(Some)
            .ok_or_else(|| bad(name, "a string")),
    };
    let prompts = match text(PROMPTS)? {
        None => Vec::new(),
        Some(text) => {
            let json =
                super::hf_config::parse_value(text.as_bytes()).map_err(|e| e.in_tensor(PROMPTS))?;
            super::pooling::prompts(PROMPTS, Some(&json))?
        }
    };
    let settings = EmbeddingSettings {
        normalize: match own(NORMALIZE) {
            None => true,
            Some(value) => value
                .as_bool()
                .ok_or_else(|| bad(NORMALIZE, "true or false"))?,
        },
        prompts,
        default_prompt_name: text(DEFAULT_PROMPT)?.map(str::to_owned),
        max_seq_length: keys.size(&format!("/{MAX_SEQ_LENGTH}"))?,
    };
    super::pooling::checked(settings, [DEFAULT_PROMPT, MAX_SEQ_LENGTH])
}

/// What our own key says; `None` without it.
fn activations(keys: &Keys<'_>) -> Result<Option<ActivationQuantization>, FormatError> {
    let name = format!("/{ACTIVATIONS}");
    match keys.get(&name).map(|v| v.as_str().unwrap_or("")) {
        None => Ok(None),
        Some("int8_per_token") => Ok(Some(ActivationQuantization::Int8PerToken)),
        Some("none") => Ok(Some(ActivationQuantization::None)),
        Some(_) => Err(keys.bad(&name, "\"int8_per_token\" or \"none\"")),
    }
}

fn bos(keys: &Keys<'_>) -> Result<Option<u32>, FormatError> {
    match keys.metadata.get(BOS_TOKEN_ID) {
        Some(_) => keys.token(&format!("/{BOS_TOKEN_ID}")),
        None => keys.token(&format!("/{TOKENIZER_BOS}")),
    }
}

/// See [`Family::settle_blocks`](super::Family::settle_blocks).
pub(super) fn settle_blocks(
    architecture: &str,
    config: &Config,
    blocks: Option<u32>,
    metadata: &mut Metadata,
) {
    let key = format!("{architecture}.{}", hybrid::PREDICTORS);
    let Some(blocks) = blocks else {
        metadata.0.retain(|(known, _)| *known != key);
        return;
    };
    let said = metadata.get(&key).and_then(MetaValue::as_u64);
    let blocks = said.and_then(|n| u32::try_from(n).ok()).unwrap_or(blocks);
    metadata.set(key, MetaValue::U32(blocks));
    let layers = u32::try_from(config.num_hidden_layers).unwrap_or(u32::MAX);
    let all = MetaValue::U32(layers.saturating_add(blocks));
    metadata.set(format!("{architecture}.block_count"), all);
    // readers want an entry for each block; these have attention
    let key = format!("{architecture}.{}", hybrid::RECURRENT);
    if let Some(MetaValue::Array(MetaArray::Bool(list))) = metadata.get(&key) {
        let mut list = list.clone();
        let all = config.num_hidden_layers.saturating_add(blocks as usize);
        list.resize(all.max(list.len()), false);
        metadata.set(key, MetaValue::Array(MetaArray::Bool(list)));
    }
}

/// Says the begin of text of `config.json` in a key of our own, where the keys of the tokenizer say another.
pub(super) fn settle_special_tokens(config: &Config, metadata: &mut Metadata) {
    let said = metadata.get(TOKENIZER_BOS).and_then(MetaValue::as_u64);
    let said = said.and_then(|id| u32::try_from(id).ok());
    if said.filter(|id| *id != NO_TOKEN) != config.bos_token_id {
        let id = config.bos_token_id.unwrap_or(NO_TOKEN);
        metadata.set(BOS_TOKEN_ID, MetaValue::U32(id));
    }
    let is_end = |name: &str| {
        let id = metadata.get(&format!("tokenizer.ggml.{name}"));
        id.and_then(MetaValue::as_u64)
            .is_some_and(|id| id != u64::from(NO_TOKEN))
    };
    if config.eos_token_ids.is_empty() && ENDS.into_iter().any(is_end) {
        let none = MetaArray::U32(Vec::new());
        metadata.set(EOS_TOKEN_IDS, MetaValue::Array(none));
    }
}

fn eos(keys: &Keys<'_>) -> Result<Vec<u32>, FormatError> {
    if let Some(list) = keys.metadata.get(EOS_TOKEN_IDS) {
        return match list {
            MetaValue::Array(MetaArray::U32(ids)) => Ok(ids.clone()),
            other => Err(bad_key(
                EOS_TOKEN_IDS,
                &show(Some(other)),
                "an array of u32",
            )),
        };
    }
    let mut ids = Vec::new();
    for name in ENDS {
        if let Some(id) = keys.token(&format!("/tokenizer.ggml.{name}"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// All keys but `general.file_type` and the tokenizer's.
pub(super) fn metadata(
    wiring: &GgufWiring,
    architecture: &str,
    config: &Config,
    name: Option<&str>,
) -> Vec<(String, MetaValue)> {
    // `Config::checked` bounds every size far below 2^32
    let size = |v: usize| MetaValue::U32(u32::try_from(v).unwrap_or(u32::MAX));
    let number = |v: f64| MetaValue::F32(v as f32);
    let mut keys = vec![
        (ARCHITECTURE.to_owned(), MetaValue::text(architecture)),
        ("general.type".to_owned(), MetaValue::text("model")),
    ];
    if let Some(name) = name {
        keys.push(("general.name".to_owned(), MetaValue::text(name)));
    }
    keys.push(("general.quantization_version".to_owned(), MetaValue::U32(2)));
    let own = [
        ("block_count", size(config.num_hidden_layers)),
        ("context_length", size(config.max_position_embeddings)),
        ("embedding_length", size(config.hidden_size)),
        ("feed_forward_length", size(config.intermediate_size)),
        ("attention.head_count", size(config.num_attention_heads)),
        ("attention.head_count_kv", size(config.num_key_value_heads)),
        ("attention.key_length", size(config.head_dim)),
        ("attention.value_length", size(config.head_dim)),
        (
            "attention.layer_norm_rms_epsilon",
            MetaValue::F32(config.rms_norm_eps),
        ),
        ("rope.dimension_count", size(config.rotary_dim())),
        ("rope.freq_base", number(config.rope.theta)),
        ("vocab_size", size(config.vocab_size)),
    ];
    keys.extend(own.map(|(k, v)| (format!("{architecture}.{k}"), v)));
    let own = |key: &str| format!("{architecture}.{key}");
    if let Some(hybrid) = &config.hybrid {
        keys.extend(
            hybrid::metadata(hybrid)
                .into_iter()
                .map(|(k, v)| (own(k), v)),
        );
    }
    if let (Some(sliding), Some(windows)) = (&config.sliding, wiring.windows) {
        keys.push((own(WINDOW), size(sliding.tokens)));
        let pattern = match windows.flags {
            true => MetaValue::Array(MetaArray::Bool(sliding.layers.clone())),
            false => size(windows.every),
        };
        keys.push((own(WINDOW_PATTERN), pattern));
        if !windows.flags || sliding.rope_theta != config.rope.theta {
            keys.push((own(WINDOW_THETA), number(sliding.rope_theta)));
        }
    }
    if let (Some(experts), Some(readers)) = (&config.experts, wiring.experts) {
        let pairs = experts::keys(experts, readers.clamp).into_iter();
        keys.extend(pairs.map(|(key, value)| (own(key), value)));
    }
    if wiring.factor_keys {
        let Factors {
            embedding,
            residual,
            head_divisor,
            query_pre_attn_scalar: _, // refused before
        } = config.factors;
        for (key, factor) in FACTORS.iter().zip([embedding, residual, head_divisor]) {
            keys.push((own(key), MetaValue::F32(factor)));
        }
    }
    if let Some(pooling) = config.pooling {
        let place = Pooling::ALL.iter().position(|p| *p == pooling);
        keys.push((own(POOLING), size(place.map_or(0, |p| p.saturating_add(1)))));
    }
    let EmbeddingSettings {
        normalize,
        prompts,
        default_prompt_name,
        max_seq_length,
    } = &config.embedding;
    if !normalize {
        keys.push((NORMALIZE.to_owned(), MetaValue::Bool(false)));
    }
    if !prompts.is_empty() {
        let texts = super::pooling::prompts_json(prompts).to_string();
        keys.push((PROMPTS.to_owned(), MetaValue::text(&texts)));
    }
    if let Some(name) = default_prompt_name {
        keys.push((DEFAULT_PROMPT.to_owned(), MetaValue::text(name)));
    }
    if let Some(tokens) = max_seq_length {
        keys.push((MAX_SEQ_LENGTH.to_owned(), size(*tokens)));
    }
    let long_rope = config.long_rope.iter().flat_map(long_rope::keys);
    keys.extend(long_rope.map(|(name, value)| (own(name), value)));
    match config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            keys.push((
                format!("{architecture}.rope.scaling.type"),
                MetaValue::text("linear"),
            ));
            keys.push((
                format!("{architecture}.rope.scaling.factor"),
                number(factor),
            ));
        }
        // readers take this one from `rope_freqs.weight`; the numbers it was made of are ours
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => keys.extend([
            (SCALING_TYPE.to_owned(), MetaValue::text("llama3")),
            (SCALING_FACTOR.to_owned(), number(factor)),
            (SCALING_LOW.to_owned(), number(low_freq_factor)),
            (SCALING_HIGH.to_owned(), number(high_freq_factor)),
            (
                SCALING_ORIGINAL.to_owned(),
                size(original_max_position_embeddings),
            ),
        ]),
        RopeScaling::Yarn(yarn) => {
            let mut push = |name: &str, value| keys.push((format!("{architecture}.{name}"), value));
            push("rope.scaling.type", MetaValue::text("yarn"));
            push("rope.scaling.factor", number(yarn.factor));
            let original = yarn.original_max_position_embeddings;
            push("rope.scaling.original_context_length", size(original));
            let by_factor = Yarn::attention_factor_of(yarn.factor, 1.0);
            if yarn.attention_factor as f32 != by_factor as f32 {
                let relative = yarn.attention_factor / by_factor;
                push("rope.scaling.attn_factor", number(relative));
                keys.push((SCALING_ATTENTION.to_owned(), number(yarn.attention_factor)));
            }
        }
    }
    let activations = match config.activation_quantization {
        ActivationQuantization::Int8PerToken => "int8_per_token",
        ActivationQuantization::None => "none",
    };
    keys.push((ACTIVATIONS.to_owned(), MetaValue::text(activations)));
    if !config.eos_token_ids.is_empty() {
        let ids = MetaArray::U32(config.eos_token_ids.clone());
        keys.push((EOS_TOKEN_IDS.to_owned(), MetaValue::Array(ids)));
    }
    keys
}
