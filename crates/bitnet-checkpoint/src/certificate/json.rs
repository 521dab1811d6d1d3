//! The values of a certificate as JSON: what it says of files, verdicts and the configuration.
//!
//! Invariant: whatever is absent or of another form is an error that names its path.

use super::{Basis, DenseRecord, FileRecord, TensorDigest, TernaryRecord, Verdict};
use crate::block::GatedDeltaNet;
use crate::config::{
    Activation, ActivationQuantization, Config, EmbeddingSettings, ExtraNorms, Factors, Hybrid,
    LongRope, MixtureOfExperts, Pooling, Rope, RopeScaling, SlidingWindow, Yarn,
};
use crate::rotation::Rotation;
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A value of a certificate and where it stands.
pub(super) struct Field<'a> {
    pub(super) value: &'a Value,
    pub(super) path: String,
}

impl<'a> Field<'a> {
    /// The whole certificate.
    pub(super) fn root(value: &'a Value) -> Self {
        let path = String::new();
        Self { value, path }
    }

    pub(super) fn at(&self, key: &str) -> Result<Field<'a>, FormatError> {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        match self.value.get(key) {
            Some(value) => Ok(Field { value, path }),
            None => Err(Field {
                value: &Value::Null,
                path,
            }
            .bad("a value")),
        }
    }

    /// The value of a key that may be absent.
    pub(super) fn maybe(&self, key: &str) -> Result<Option<Field<'a>>, FormatError> {
        match self.value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.at(key).map(Some),
        }
    }

    pub(super) fn bad(&self, expected: &str) -> FormatError {
        let found: String = self.value.to_string().chars().take(60).collect();
        let message = format!("expected {expected}, found {found}");
        FormatError::new(ErrorCode::Malformed, message).in_tensor(&self.path)
    }

    pub(super) fn text(&self) -> Result<String, FormatError> {
        self.value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| self.bad("a string"))
    }

    pub(super) fn digest(&self) -> Result<String, FormatError> {
        let is_hex =
            |s: &&str| s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let digest = self.value.as_str().filter(is_hex);
        digest
            .map(str::to_owned)
            .ok_or_else(|| self.bad("a sha256 in lower-case hex"))
    }

    pub(super) fn number(&self) -> Result<u64, FormatError> {
        self.value
            .as_u64()
            .ok_or_else(|| self.bad("a whole number"))
    }

    pub(super) fn size(&self) -> Result<usize, FormatError> {
        self.number()?
            .try_into()
            .map_err(|_| self.bad("a whole number"))
    }

    pub(super) fn token(&self) -> Result<u32, FormatError> {
        self.number()?
            .try_into()
            .map_err(|_| self.bad("a token id"))
    }

    pub(super) fn token_or_null(&self) -> Result<Option<u32>, FormatError> {
        match self.value {
            Value::Null => Ok(None),
            _ => self.token().map(Some),
        }
    }

    pub(super) fn float(&self) -> Result<f64, FormatError> {
        self.value.as_f64().ok_or_else(|| self.bad("a number"))
    }

    pub(super) fn flag(&self) -> Result<bool, FormatError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.bad("true or false"))
    }

    pub(super) fn each<T>(
        &self,
        read: impl Fn(&Field<'a>) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let items = self.value.as_array().ok_or_else(|| self.bad("a list"))?;
        let item = |(i, value)| {
            read(&Field {
                value,
                path: format!("{}[{i}]", self.path),
            })
        };
        items.iter().enumerate().map(item).collect()
    }
}

pub(super) fn file_to_json(file: &FileRecord) -> Value {
    json!({"name": file.name, "bytes": file.bytes, "sha256": file.sha256})
}

fn with_verdict(mut record: Value, verdict: Verdict) -> Value {
    let (word, error) = verdict.to_json();
    if let Value::Object(keys) = &mut record {
        keys.insert("verdict".to_owned(), word);
        keys.extend(error.map(|error| ("max_relative_error".to_owned(), error)));
    }
    record
}

pub(super) fn ternary_to_json(record: &TernaryRecord) -> Value {
    let TernaryRecord { digest: d, verdict } = record;
    let bits = d.scale_bits.map(|b| format!("{b:08x}"));
    let scales = json!({"structure": d.scale_structure, "bits": bits, "sha256": d.scales_sha256});
    let mut record = json!({
        "name": d.name, "rows": d.rows, "cols": d.cols,
        "trits_sha256": d.trits_sha256, "scales": scales,
    });
    if let (Some(basis), Value::Object(keys)) = (&d.basis, &mut record) {
        let Basis {
            block_size,
            signs_sha256,
        } = basis;
        let basis = json!({"block_size": block_size, "signs_sha256": signs_sha256});
        keys.insert("rotation".to_owned(), basis);
    }
    with_verdict(record, *verdict)
}

pub(super) fn dense_to_json(record: &DenseRecord) -> Value {
    let object = json!({
        "name": record.name, "shape": record.shape, "values_sha256": record.values_sha256,
    });
    with_verdict(object, record.verdict)
}

pub(super) fn file_from_json(field: &Field<'_>) -> Result<FileRecord, FormatError> {
    Ok(FileRecord {
        name: field.at("name")?.text()?,
        bytes: field.at("bytes")?.number()?,
        sha256: field.at("sha256")?.digest()?,
    })
}

pub(super) fn ternary_from_json(field: &Field<'_>) -> Result<TernaryRecord, FormatError> {
    let scales = field.at("scales")?;
    let scale_bits = match scales.at("bits")?.value {
        Value::Null => None,
        Value::String(s) if s.len() == 8 => {
            let bits = u32::from_str_radix(s, 16);
            Some(bits.map_err(|_| scales.bad("eight hex digits in `bits`"))?)
        }
        _ => return Err(scales.bad("eight hex digits in `bits`")),
    };
    let digest = TensorDigest {
        name: field.at("name")?.text()?,
        rows: field.at("rows")?.size()?,
        cols: field.at("cols")?.size()?,
        trits_sha256: field.at("trits_sha256")?.digest()?,
        scale_structure: scales.at("structure")?.text()?,
        scale_bits,
        scales_sha256: scales.at("sha256")?.digest()?,
        basis: match field.maybe("rotation")? {
            None => None,
            Some(basis) => Some(Basis {
                block_size: basis.at("block_size")?.size()?,
                signs_sha256: basis.at("signs_sha256")?.digest()?,
            }),
        },
    };
    Ok(TernaryRecord {
        digest,
        verdict: verdict_from_json(field)?,
    })
}

pub(super) fn dense_from_json(field: &Field<'_>) -> Result<DenseRecord, FormatError> {
    Ok(DenseRecord {
        name: field.at("name")?.text()?,
        shape: field.at("shape")?.each(|n| n.size())?,
        values_sha256: field.at("values_sha256")?.digest()?,
        verdict: verdict_from_json(field)?,
    })
}

fn verdict_from_json(field: &Field<'_>) -> Result<Verdict, FormatError> {
    let word = field.at("verdict")?;
    match word.value.as_str() {
        Some("exact") => Ok(Verdict::Exact),
        Some("rounded") => Ok(Verdict::Rounded(field.at("max_relative_error")?.float()?)),
        _ => Err(word.bad("\"exact\" or \"rounded\"")),
    }
}

/// All fields of a `Config`, under their own names.
pub(super) fn config_to_json(config: &Config) -> Value {
    let scaling = match config.rope.scaling {
        RopeScaling::None => json!({"type": "none"}),
        RopeScaling::Linear { factor } => json!({"type": "linear", "factor": factor}),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => json!({
            "type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_position_embeddings,
        }),
        RopeScaling::Yarn(yarn) => json!({
            "type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
            "attention_factor": yarn.attention_factor,
        }),
    };
    let pairs = [
        ("hidden_size", json!(config.hidden_size)),
        ("intermediate_size", json!(config.intermediate_size)),
        ("num_hidden_layers", json!(config.num_hidden_layers)),
        ("num_attention_heads", json!(config.num_attention_heads)),
        ("num_key_value_heads", json!(config.num_key_value_heads)),
        ("head_dim", json!(config.head_dim)),
        ("vocab_size", json!(config.vocab_size)),
        (
            "max_position_embeddings",
            json!(config.max_position_embeddings),
        ),
        ("rms_norm_eps", json!(f64::from(config.rms_norm_eps))),
        ("rope_theta", json!(config.rope.theta)),
        ("rope_scaling", scaling),
        ("hidden_act", json!(config.hidden_act.as_str())),
        ("attn_sub_norm", json!(config.attn_sub_norm)),
        ("ffn_sub_norm", json!(config.ffn_sub_norm)),
        ("tie_word_embeddings", json!(config.tie_word_embeddings)),
        (
            "activation_quantization",
            json!(activation_word(config.activation_quantization)),
        ),
        ("bos_token_id", json!(config.bos_token_id)),
        ("eos_token_ids", json!(config.eos_token_ids)),
    ];
    let pairs = pairs.into_iter().chain(rare_to_json(config));
    Value::Object(pairs.map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}

/// What most networks do not have, and certificates of those do not mention.
fn rare_to_json(config: &Config) -> Vec<(&'static str, Value)> {
    let ExtraNorms {
        heads,
        heads_after_rope,
        projections,
        branches,
    } = config.norms;
    let Factors {
        embedding,
        residual,
        head_divisor,
        query_pre_attn_scalar,
    } = config.factors;
    let norms = [
        ("head_norms", heads),
        ("norms_after_rope", heads_after_rope),
        ("projection_norms", projections),
        ("branch_norms", branches),
    ];
    let factors = [
        ("embedding_factor", embedding),
        ("residual_factor", residual),
        ("head_divisor", head_divisor),
    ];
    let norms = norms.into_iter().chain([("biases", config.biases)]);
    let norms = norms.filter(|(_, there)| *there);
    let factors = factors.into_iter().filter(|(_, factor)| *factor != 1.0);
    let mut pairs: Vec<_> = norms.map(|(key, there)| (key, json!(there))).collect();
    pairs.extend(factors.map(|(key, factor)| (key, json!(f64::from(factor)))));
    if let Some(scalar) = query_pre_attn_scalar {
        pairs.push(("query_pre_attn_scalar", json!(f64::from(scalar))));
    }
    if let Some(SlidingWindow {
        tokens,
        rope_theta,
        layers,
        full_rope,
    }) = &config.sliding
    {
        let mut sliding = json!({"tokens": tokens, "rope_theta": rope_theta, "layers": layers});
        if let (false, Some(sliding)) = (full_rope, sliding.as_object_mut()) {
            sliding.insert("full_rope".to_owned(), json!(false));
        }
        pairs.push(("sliding_window", sliding));
    }
    if let Some(hybrid) = &config.hybrid {
        pairs.push(("hybrid", hybrid_to_json(hybrid)));
    }
    if let Some(rotation) = config.rotation.as_deref() {
        pairs.push(("rotation", rotation_to_json(rotation)));
    }
    if let Some(experts) = &config.experts {
        let mut object = json!({
            "count": experts.count,
            "used": experts.used,
            "intermediate_size": experts.intermediate_size,
            "normalize": experts.normalize,
            "layers": experts.layers,
        });
        if let (Some(clamp), Some(object)) = (experts.clamp, object.as_object_mut()) {
            object.insert("clamp".to_owned(), json!(f64::from(clamp)));
        }
        pairs.push(("experts", object));
    }
    if config.rotary_dim != config.head_dim {
        pairs.push(("rotary_dim", json!(config.rotary_dim)));
    }
    if let Some(long_rope) = &config.long_rope {
        let LongRope {
            long,
            short,
            original_max_position_embeddings,
            attention_factor,
        } = long_rope;
        let wide = |list: &[f32]| list.iter().map(|n| json!(f64::from(*n))).collect::<Value>();
        let long_rope = json!({
            "long": wide(long),
            "short": wide(short),
            "original_max_position_embeddings": original_max_position_embeddings,
            "attention_factor": f64::from(*attention_factor),
        });
        pairs.push(("long_rope", long_rope));
    }
    if let Some(pooling) = config.pooling {
        pairs.push(("pooling", json!(pooling.as_str())));
    }
    if config.embedding != EmbeddingSettings::default() {
        pairs.push(("embedding", embedding_to_json(&config.embedding)));
    }
    pairs
}

fn sliding_from_json(field: &Field<'_>) -> Result<Option<SlidingWindow>, FormatError> {
    let Some(sliding) = field.maybe("sliding_window")? else {
        return Ok(None);
    };
    Ok(Some(SlidingWindow {
        tokens: sliding.at("tokens")?.size()?,
        rope_theta: sliding.at("rope_theta")?.float()?,
        layers: sliding.at("layers")?.each(|layer| layer.flag())?,
        full_rope: match sliding.maybe("full_rope")? {
            None => true,
            Some(rotates) => rotates.flag()?,
        },
    }))
}

fn experts_from_json(field: &Field<'_>) -> Result<Option<MixtureOfExperts>, FormatError> {
    let Some(experts) = field.maybe("experts")? else {
        return Ok(None);
    };
    Ok(Some(MixtureOfExperts {
        count: experts.at("count")?.size()?,
        used: experts.at("used")?.size()?,
        intermediate_size: experts.at("intermediate_size")?.size()?,
        normalize: experts.at("normalize")?.flag()?,
        clamp: match experts.maybe("clamp")? {
            None => None,
            Some(clamp) => Some(clamp.float()? as f32),
        },
        layers: experts.at("layers")?.each(|layer| layer.flag())?,
    }))
}

fn hybrid_to_json(hybrid: &Hybrid) -> Value {
    let Hybrid {
        delta,
        recurrent,
        rotary_dim,
        rope_sections,
    } = hybrid;
    json!({
        "key_heads": delta.key_heads,
        "value_heads": delta.value_heads,
        "key_dim": delta.key_dim,
        "value_dim": delta.value_dim,
        "conv_kernel": delta.conv_kernel,
        "recurrent": recurrent,
        "rotary_dim": rotary_dim,
        "rope_sections": rope_sections,
    })
}

fn hybrid_from_json(field: &Field<'_>, hidden_size: usize) -> Result<Option<Hybrid>, FormatError> {
    let Some(hybrid) = field.maybe("hybrid")? else {
        return Ok(None);
    };
    let size = |key: &str| hybrid.at(key)?.size();
    let sections = hybrid.at("rope_sections")?;
    let rope_sections = sections.each(|n| n.size())?.try_into();
    Ok(Some(Hybrid {
        delta: GatedDeltaNet {
            hidden_size,
            key_heads: size("key_heads")?,
            value_heads: size("value_heads")?,
            key_dim: size("key_dim")?,
            value_dim: size("value_dim")?,
            conv_kernel: size("conv_kernel")?,
        },
        recurrent: hybrid.at("recurrent")?.each(|layer| layer.flag())?,
        rotary_dim: size("rotary_dim")?,
        rope_sections: rope_sections.map_err(|_| sections.bad("three whole numbers"))?,
    }))
}

/// Signs are texts of `+` and `-`.
fn rotation_to_json(rotation: &Rotation) -> Value {
    let text = |signs: &[i8]| -> String {
        let sign = |sign: &i8| if *sign < 0 { '-' } else { '+' };
        signs.iter().map(sign).collect()
    };
    let signs = rotation.signs.iter();
    let signs: Map<String, Value> = signs
        .map(|(width, signs)| (width.to_string(), json!(text(signs))))
        .collect();
    let folded: Vec<String> = rotation.folded.iter().map(ToString::to_string).collect();
    let mut object = json!({
        "block_size": rotation.block_size,
        "signs": signs,
        "folded": folded,
        "embeddings": rotation.embeddings,
    });
    if let (true, Value::Object(keys)) = (rotation.tiled_values, &mut object) {
        keys.insert("tiled_values".to_owned(), json!(true));
    }
    object
}

/// The rotation of a network whose other settings are `config`.
fn rotation_from_json(
    field: &Field<'_>,
    config: &Config,
) -> Result<Option<Arc<Rotation>>, FormatError> {
    let Some(rotation) = field.maybe("rotation")? else {
        return Ok(None);
    };
    let mut signs = BTreeMap::new();
    let texts = rotation.at("signs")?;
    let entries = texts.value.as_object();
    for (width, text) in entries.ok_or_else(|| texts.bad("an object of widths"))? {
        let bad = || texts.bad("as many of + and - as the width");
        let width: usize = width.parse().map_err(|_| bad())?;
        let own = text.as_str().unwrap_or("").chars().map(|c| match c {
            '+' => Some(1i8),
            '-' => Some(-1),
            _ => None,
        });
        let own: Option<Vec<i8>> = own.collect();
        let own = own.filter(|own| own.len() == width && width > 0);
        signs.insert(width, own.ok_or_else(bad)?);
    }
    let slots: BTreeMap<String, Slot> = config
        .slots()
        .into_iter()
        .filter(|slot| slot.is_ternary() || *slot == Slot::OutputHead)
        .map(|slot| (slot.to_string(), slot))
        .collect();
    let folded = rotation.at("folded")?.each(|name| {
        let slot = slots.get(&name.text()?);
        slot.copied()
            .ok_or_else(|| name.bad("the name of a matrix of this network"))
    })?;
    let read = Rotation {
        block_size: rotation.at("block_size")?.size()?,
        signs,
        folded: folded.into_iter().collect(),
        embeddings: rotation.at("embeddings")?.flag()?,
        tiled_values: match rotation.maybe("tiled_values")? {
            None => false,
            Some(tiled) => tiled.flag()?,
        },
    };
    if !read.block_size.is_power_of_two() {
        return Err(rotation.at("block_size")?.bad("a power of two"));
    }
    config.check_rotation(&read)?;
    Ok(Some(Arc::new(read)))
}

fn long_rope_from_json(field: &Field<'_>) -> Result<Option<LongRope>, FormatError> {
    let Some(long_rope) = field.maybe("long_rope")? else {
        return Ok(None);
    };
    let number = |field: &Field<'_>| field.float().map(|n| n as f32);
    let original = long_rope.at("original_max_position_embeddings")?;
    Ok(Some(LongRope {
        long: long_rope.at("long")?.each(number)?,
        short: long_rope.at("short")?.each(number)?,
        original_max_position_embeddings: original.size()?,
        attention_factor: number(&long_rope.at("attention_factor")?)?,
    }))
}

fn pooling_from_json(field: &Field<'_>) -> Result<Option<Pooling>, FormatError> {
    let Some(word) = field.maybe("pooling")? else {
        return Ok(None);
    };
    let found = Pooling::ALL.into_iter().find(|p| word.value == p.as_str());
    found.map(Some).ok_or_else(|| word.bad("mean, cls or last"))
}

fn embedding_to_json(settings: &EmbeddingSettings) -> Value {
    let EmbeddingSettings {
        normalize,
        prompts,
        default_prompt_name,
        max_seq_length,
    } = settings;
    let prompts: Vec<_> = prompts
        .iter()
        .map(|(name, text)| json!([name, text]))
        .collect();
    json!({
        "normalize": normalize,
        "prompts": prompts,
        "default_prompt_name": default_prompt_name,
        "max_seq_length": max_seq_length,
    })
}

fn embedding_from_json(field: &Field<'_>) -> Result<EmbeddingSettings, FormatError> {
    let Some(settings) = field.maybe("embedding")? else {
        return Ok(EmbeddingSettings::default());
    };
    let prompts = settings.at("prompts")?.each(|pair| {
        let [name, text] = &pair.each(|f| f.text())?[..] else {
            return Err(pair.bad("a name and a text"));
        };
        Ok((name.clone(), text.clone()))
    })?;
    Ok(EmbeddingSettings {
        normalize: settings.at("normalize")?.flag()?,
        prompts,
        default_prompt_name: match settings.maybe("default_prompt_name")? {
            None => None,
            Some(name) => Some(name.text()?),
        },
        max_seq_length: match settings.maybe("max_seq_length")? {
            None => None,
            Some(length) => Some(length.size()?),
        },
    })
}

fn activation_word(activations: ActivationQuantization) -> &'static str {
    match activations {
        ActivationQuantization::Int8PerToken => "int8_per_token",
        ActivationQuantization::None => "none",
    }
}

pub(super) fn config_from_json(field: &Field<'_>) -> Result<Config, FormatError> {
    let size = |key: &str| field.at(key)?.size();
    let act = field.at("hidden_act")?;
    let known = [Activation::Relu2, Activation::Silu, Activation::GeluTanh];
    let quantization = field.at("activation_quantization")?;
    let words = [
        ActivationQuantization::Int8PerToken,
        ActivationQuantization::None,
    ];
    let scaling = field.at("rope_scaling")?;
    let number = |key: &str| scaling.at(key)?.float();
    let original = || scaling.at("original_max_position_embeddings")?.size();
    let flag = |key: &str| field.maybe(key)?.map_or(Ok(false), |f| f.flag());
    let factor = |key: &str| field.maybe(key)?.map_or(Ok(1.0), |f| f.float());
    let scalar = field.maybe("query_pre_attn_scalar")?;
    let head_dim = size("head_dim")?;
    let mut config = Config {
        hidden_size: size("hidden_size")?,
        intermediate_size: size("intermediate_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: size("num_attention_heads")?,
        num_key_value_heads: size("num_key_value_heads")?,
        head_dim,
        vocab_size: size("vocab_size")?,
        max_position_embeddings: size("max_position_embeddings")?,
        rms_norm_eps: field.at("rms_norm_eps")?.float()? as f32,
        rope: Rope {
            theta: field.at("rope_theta")?.float()?,
            scaling: match scaling.at("type")?.value.as_str() {
                Some("none") => RopeScaling::None,
                Some("linear") => RopeScaling::Linear {
                    factor: number("factor")?,
                },
                Some("llama3") => RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_max_position_embeddings: original()?,
                },
                Some("yarn") => RopeScaling::Yarn(Yarn {
                    factor: number("factor")?,
                    original_max_position_embeddings: original()?,
                    beta_fast: number("beta_fast")?,
                    beta_slow: number("beta_slow")?,
                    attention_factor: number("attention_factor")?,
                }),
                _ => return Err(scaling.bad("none, linear, llama3 or yarn as `type`")),
            },
        },
        rotary_dim: match field.maybe("rotary_dim")? {
            None => head_dim,
            Some(dim) => dim.size()?,
        },
        hidden_act: known
            .into_iter()
            .find(|a| act.value == a.as_str())
            .ok_or_else(|| act.bad("relu2, silu or gelu_pytorch_tanh"))?,
        attn_sub_norm: field.at("attn_sub_norm")?.flag()?,
        ffn_sub_norm: field.at("ffn_sub_norm")?.flag()?,
        norms: ExtraNorms {
            heads: flag("head_norms")?,
            heads_after_rope: flag("norms_after_rope")?,
            projections: flag("projection_norms")?,
            branches: flag("branch_norms")?,
        },
        biases: flag("biases")?,
        long_rope: long_rope_from_json(field)?,
        factors: Factors {
            embedding: factor("embedding_factor")? as f32,
            residual: factor("residual_factor")? as f32,
            head_divisor: factor("head_divisor")? as f32,
            query_pre_attn_scalar: match scalar {
                None => None,
                Some(scalar) => Some(scalar.float()? as f32),
            },
        },
        sliding: sliding_from_json(field)?,
        hybrid: hybrid_from_json(field, size("hidden_size")?)?,
        rotation: None,
        experts: experts_from_json(field)?,
        pooling: pooling_from_json(field)?,
        embedding: embedding_from_json(field)?,
        tie_word_embeddings: field.at("tie_word_embeddings")?.flag()?,
        activation_quantization: words
            .into_iter()
            .find(|w| quantization.value == activation_word(*w))
            .ok_or_else(|| quantization.bad("int8_per_token or none"))?,
        bos_token_id: field.at("bos_token_id")?.token_or_null()?,
        eos_token_ids: field.at("eos_token_ids")?.each(|id| id.token())?,
    }
    .checked()?;
    config.rotation = rotation_from_json(field, &config)?;
    Ok(config)
}
