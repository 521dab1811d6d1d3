//! Families: ways checkpoints name and wire the same network.
//!
//! Invariant: a family is data. Nothing outside this room asks for a family's name, nothing in it
//! looks at a path or a repository name, and keys of `config.json` and GGUF metadata are read here
//! only: everything behind it speaks of [`Config`] and [`Slot`].

#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod bitnet_2b_4t;
mod bitnet_b1_58;
mod described;
mod gemma3;
mod gguf_keys;
mod gpu_names;
mod hf_config;
mod hunyuan;
mod json_values;
mod known_keys;
mod llama_b1_58;
mod maple;
mod minicpm;
mod module_patterns;
mod names;
mod nested;
mod pooling;
mod predictors;
mod quantization;
mod qwen2;
mod qwen3;
mod qwen35;
mod qwen3_moe;
pub(crate) mod rotation;

pub use described::{GGUF_ARCHITECTURE_KEY, GGUF_FILE_TYPE_KEY, gguf_architecture};
pub(crate) use described::{carried_keys, descriptions, gguf_name};
pub use hf_config::HfStorage;
pub use known_keys::UnknownKey;
pub use names::stacked_hf;
pub(crate) use names::{Shared, shared_hf, stacked};
pub use quantization::{Quantization, ScaleDirection};

pub(crate) use gguf_keys::{
    LONG_ROPE, ROPE_FREQUENCIES, check_rope_frequencies, declared_vocab_size, infer_rope_scaling,
    rope_frequency_factors, says_activations, unread_rope_frequencies,
};
pub use gpu_names::{GPU_SCALES, GpuPlace, check_gpu_network, gpu_place};
pub(crate) use hf_config::{add_generation_config, parse_json, parse_value};
pub(crate) use nested::{PREFIX as LANGUAGE_MODEL, language_model};
pub use pooling::pooling_settings;
pub(crate) use pooling::{add_pooling, pooling_files};
pub use predictors::Counterpart;
pub(crate) use quantization::{AffineForm, affine_form, affine_says_activations};

use crate::config::{Activation, ActivationQuantization, Config, Factors, RopeScaling, Yarn};
use crate::row_order::{StoredOrder, TiledHeads};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError, MetaValue, Metadata, TensorFile};
use serde_json::Value;

/// Most layers of a network ([`Config::checked`]).
const MOST_LAYERS: u64 = 1024;

/// How float linears are computed when `config.json` does not say. What they are, master weights or trits times
/// scales, their values tell, or the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmarkedFloats {
    /// With quantised inputs: the architecture has no other linears than ternary ones.
    Ternary,
    /// Trits times scales run as they are, with inputs as they are: the architecture is an ordinary one.
    Ordinary,
}

/// One way checkpoints name and wire the network.
#[derive(Debug)]
pub struct Family {
    /// Its file's stem; for reports, never for decisions.
    pub name: &'static str,
    /// Whether it was held against files or outputs that other programs made.
    pub is_verified: bool,
    /// Whether a `config.json` is of this family; at most one family says yes.
    pub matches: fn(&Value) -> bool,
    /// Sizes and wiring from `config.json`.
    pub config: fn(&Value) -> Result<Config, FormatError>,
    /// What the architecture decides and `config.json` does not say.
    hf_wiring: &'static hf_config::Wiring,
    /// The Hugging Face name of a slot's tensor.
    pub tensor_name: fn(Slot) -> String,
    /// Whether Hugging Face checkpoints store `gain - 1` in a slot of a norm. GGUF always stores the gain.
    pub stores_gain_minus_one: fn(Slot) -> bool,
    /// What a stored `weight_scale` means when `config.json` does not say (`formats/packing/hf_u8.md`).
    pub unmarked_scale: ScaleDirection,
    /// How float linears are computed when `config.json` does not say.
    pub unmarked_floats: UnmarkedFloats,
    /// `model_type` and `architectures` of a `config.json` written from nothing.
    pub hf_identity: (&'static str, &'static str),
    /// Keys of such a `config.json` that only this family has, or spells otherwise.
    pub hf_extra_keys: fn(&Config) -> Vec<(&'static str, Value)>,
    /// `general.architecture` strings read; the first is written.
    pub gguf_architectures: &'static [&'static str],
    /// Sizes and wiring from GGUF metadata, and from which tensors there are.
    pub gguf_config: fn(&TensorFile) -> Result<Config, FormatError>,
    /// The GGUF name of a slot's tensor.
    pub gguf_tensor_name: fn(Slot) -> String,
    /// The network that readers compute for the written architecture, whatever the metadata say.
    pub gguf_wiring: GgufWiring,
    /// Whether GGUF rows of q and k are in the order of paired rotary dimensions.
    pub permutes_qk: bool,
}

/// What a GGUF architecture string alone decides in its readers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufWiring {
    /// The MLP's activation function.
    pub activation: Activation,
    /// Whether both sub-norms are there (or neither).
    pub sub_norms: bool,
    /// Whether an `output.weight` of its own is looked at.
    pub output_head: bool,
    /// Whether heads of queries and keys are normed.
    pub head_norms: bool,
    /// Whether they are normed after rotation.
    pub norms_after_rope: bool,
    /// Whether the file says how many dimensions of a head are rotated.
    pub partial_rope: bool,
    /// Whether linears may each have an input norm of their own; the tensors tell.
    pub projection_norms: bool,
    /// Whether what attention and MLP add to the residual stream is normed.
    pub branch_norms: bool,
    /// Whether q, k and v have biases.
    pub biases: bool,
    /// Whether embedding rows are multiplied by the root of their width.
    pub embedding_root: bool,
    /// How inputs of linears without a norm of their own are quantised where the file does not say.
    pub activations: ActivationQuantization,
    /// Whether the file says by what embeddings, residual additions and the final hidden state are scaled.
    pub factor_keys: bool,
    /// Whether readers take divisors of the rotary frequencies by the length of the context.
    pub long_rope: bool,
    /// Which layers see the last tokens only, if the file says how many.
    pub windows: Option<GgufWindows>,
    /// Whether layers may have a recurrent state; attention has an output gate then, and value heads are tiled.
    pub hybrid: bool,
    /// Mixtures of experts, if the architecture has some.
    pub experts: Option<GgufExperts>,
}

/// Mixtures of experts, as readers know them: in every layer, and the weights of chosen experts divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufExperts {
    /// Whether the file says by what the inputs of the activation function are bounded.
    pub clamp: bool,
}

/// Layers with a window, as readers know them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GgufWindows {
    /// One layer in so many, the last of them, sees everything.
    pub every: usize,
    /// Base of the rotary frequencies in the others.
    pub rope_theta: f64,
    /// Whether the file lists the layers, which it then has to, and bases that are not said are those of all layers.
    pub flags: bool,
    /// Whether layers that see everything rotate queries and keys.
    pub full_rope: bool,
}

impl GgufWindows {
    /// One layer in so many sees everything, and the others have this base.
    const fn every(every: usize, rope_theta: f64) -> Self {
        Self {
            every,
            rope_theta,
            flags: false,
            full_rope: true,
        }
    }

    /// Whether each of `layers` has a window.
    fn layers(self, layers: usize) -> Vec<bool> {
        windows_every(self.every, layers)
    }
}

/// Whether each of `layers` has a window, when one in `every` has none.
fn windows_every(every: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|n| !n.is_multiple_of(every)).collect()
}

impl GgufWiring {
    /// A Llama without an output head of its own.
    const fn plain(activation: Activation) -> Self {
        Self {
            activation,
            sub_norms: false,
            output_head: false,
            head_norms: false,
            norms_after_rope: false,
            partial_rope: false,
            projection_norms: false,
            branch_norms: false,
            biases: false,
            embedding_root: false,
            factor_keys: false,
            long_rope: false,
            activations: ActivationQuantization::Int8PerToken,
            windows: None,
            hybrid: false,
            experts: None,
        }
    }

    /// The factors of a network of this width, where the file does not say them.
    fn factors(&self, hidden_size: usize) -> Factors {
        root_factors(self.embedding_root, hidden_size)
    }
}

/// Factors of a network that multiplies embedding rows by the root of their width, or by nothing.
fn root_factors(embedding_root: bool, hidden_size: usize) -> Factors {
    Factors {
        embedding: match embedding_root {
            true => (hidden_size as f64).sqrt() as f32,
            false => 1.0,
        },
        ..Factors::default()
    }
}

/// Whether the architecture is the network without an output head.
fn is_headless(config_json: &Value) -> bool {
    let architectures = config_json.get("architectures").and_then(Value::as_array);
    let has_head = |name: &Value| name.as_str().is_none_or(|n| n.ends_with("ForCausalLM"));
    architectures.is_some_and(|list| !list.iter().all(has_head))
}

/// "such things" or "no such things".
fn say(there: bool, what: &str) -> String {
    match there {
        true => what.to_owned(),
        false => format!("no {what}"),
    }
}

impl Family {
    /// The name of the architecture in GGUF files that are written.
    pub fn gguf_architecture(&self) -> &'static str {
        self.gguf_architectures.first().copied().unwrap_or_default()
    }

    /// In which order GGUF files of this family keep the rows or columns of a tensor, where that is not the one of the
    /// Hugging Face checkpoint.
    pub fn gguf_order(&self, config: &Config, slot: Slot) -> Option<StoredOrder> {
        let Slot::Layer(_, role) = slot else {
            return None;
        };
        let is_qk = matches!(role, LayerSlot::QProj | LayerSlot::KProj);
        if is_qk {
            let head_dim = config.head_dim;
            return self
                .permutes_qk
                .then_some(StoredOrder::PairedRows { head_dim });
        }
        let delta = config.hybrid.as_ref()?.delta;
        let (keys, width) = (delta.key_width().saturating_mul(2), delta.value_dim);
        let rows =
            |before, width| TiledHeads::of(&delta, before, width).map(StoredOrder::TiledRows);
        match role {
            LayerSlot::InProjQkv | LayerSlot::Conv1d => rows(keys, width),
            LayerSlot::InProjZ => rows(0, width),
            LayerSlot::InProjA | LayerSlot::InProjB | LayerSlot::ALog | LayerSlot::DtBias => {
                rows(0, 1)
            }
            // rotated columns stay as they were rotated: neighbors are mixed
            LayerSlot::OutProj if config.rotation.as_deref().is_some_and(|r| r.turns(slot)) => None,
            LayerSlot::OutProj => TiledHeads::of(&delta, 0, width).map(StoredOrder::TiledColumns),
            _ => None,
        }
    }

    /// Whether a tensor belongs to a part of the model that is carried along and not computed: blocks that predict
    /// further tokens, a vision tower.
    pub(crate) fn is_carried(&self, name: &str, config: &Config) -> bool {
        /// Beginnings of names in Hugging Face checkpoints.
        const PARTS: [&str; 8] = [
            "mtp.",
            "model.mtp.",
            "language_model.mtp.",
            "model.visual.",
            "visual.",
            "vision_tower.",
            "model.vision_tower.",
            "nextn.",
        ];
        let is_later_block = || {
            let block = name.strip_prefix("blk.")?.split('.').next()?;
            Some(block.parse::<usize>().ok()? >= config.num_hidden_layers)
        };
        self.gguf_wiring.hybrid
            && (PARTS.iter().any(|part| name.starts_with(part)) || is_later_block() == Some(true))
    }

    /// The Hugging Face name of a slot's tensor in a checkpoint with this `config.json`, or in one that is written
    /// from nothing.
    pub fn hf_name(&self, config_json: Option<&Value>, slot: Slot) -> String {
        let name = (self.tensor_name)(slot);
        let is_nested = match config_json {
            Some(json) => json.get(hf_config::hybrid::TEXT).is_some(),
            None => self.gguf_wiring.hybrid,
        };
        match name.strip_prefix("model.") {
            Some(rest) if is_nested => format!("model.language_model.{rest}"),
            _ => name,
        }
    }

    /// The metadata GGUF readers need, `general.file_type` and the tokenizer excepted.
    ///
    /// # Errors
    /// `target-cannot-hold` when the architecture's readers would compute another network.
    pub fn gguf_metadata(
        &self,
        config: &Config,
        name: Option<&str>,
    ) -> Result<Vec<(String, MetaValue)>, FormatError> {
        self.check_gguf_wiring(config)?;
        let wiring = &self.gguf_wiring;
        let mut metadata = gguf_keys::metadata(wiring, self.gguf_architecture(), config, name);
        metadata.extend(rotation::gguf_rotation(self, config));
        Ok(metadata)
    }

    /// The file beside a Hugging Face checkpoint that says how its weights are rotated, if they are.
    pub fn hf_rotation(
        &self,
        config: &Config,
        config_json: Option<&Value>,
    ) -> Option<(&'static str, Value)> {
        rotation::hf_rotation(self, config, config_json)
    }

    /// The name of a slot's tensor in a pack of rotated weights for MLX.
    pub fn pack_name(&self, slot: Slot) -> String {
        rotation::pack_name(self, slot)
    }

    /// `config.json` and `hadamard.json` of a pack of rotated weights for MLX. `original` is a `config.json` of the same
    /// model, `codes` are the matrices that are stored as codes.
    pub fn pack_files(
        &self,
        config: &Config,
        original: Option<&Value>,
        codes: &[Slot],
    ) -> Vec<(&'static str, Value)> {
        rotation::pack_files(self, config, original, codes)
    }

    /// Adds what the keys of a tokenizer in `metadata` do not say of `config`'s special tokens.
    pub fn settle_special_tokens(&self, config: &Config, metadata: &mut Metadata) {
        gguf_keys::settle_special_tokens(config, metadata);
    }

    /// Counts the blocks behind the layers, which predict further tokens, if a file has them (`blocks`, where nothing
    /// says how many); a file without them says nothing of them.
    pub fn settle_blocks(&self, config: &Config, blocks: Option<u32>, metadata: &mut Metadata) {
        gguf_keys::settle_blocks(self.gguf_architecture(), config, blocks, metadata);
    }

    /// Tensors that GGUF readers want besides the slots: `rope_freqs.weight` (f32) when frequencies
    /// are scaled by band, `rope_factors_long.weight` and `rope_factors_short.weight` when by the length of the context.
    pub fn gguf_extra_tensors(&self, config: &Config) -> Vec<(String, Vec<f32>)> {
        let factors = rope_frequency_factors(config).into_iter();
        let factors = factors.map(|f| (ROPE_FREQUENCIES.to_owned(), f));
        let [long, short] = LONG_ROPE.map(str::to_owned);
        let long_rope = config.long_rope.iter();
        let long_rope = long_rope.flat_map(|l| {
            [
                (long.clone(), l.long.clone()),
                (short.clone(), l.short.clone()),
            ]
        });
        factors.chain(long_rope).collect()
    }

    /// The `config.json` of a checkpoint stored as `storage`. Keys of `original` (a `config.json` of
    /// the same model) are kept; without one it is written from nothing.
    pub fn hf_config_json(
        &self,
        config: &Config,
        original: Option<&Value>,
        storage: HfStorage,
    ) -> Value {
        let original = original.filter(|json| !rotation::is_pack(json));
        let quantization = match storage {
            HfStorage::MasterWeights => match original {
                Some(original) if !self.needs_marking(config, original) => {
                    return hf_config::with_old_rope_keys(original.clone());
                }
                _ => Quantization::Online,
            },
            HfStorage::Packed(direction) => Quantization::Offline(direction),
            HfStorage::Affine { group } => Quantization::Affine { group },
            HfStorage::Dequantised if self.dequantised_has_scale(config) => {
                Quantization::Offline(ScaleDirection::Multiply)
            }
            HfStorage::Dequantised => Quantization::Unmarked,
        };
        let from_nothing = || hf_config::from_nothing(self, config);
        let written = hf_config::write(config, original, from_nothing, quantization);
        hf_config::with_old_rope_keys(written)
    }

    /// Whether a linear stored as `trit * scale` numbers needs a `weight_scale` of 1 beside it: with
    /// one, readers quantise activations as the `quantization_config` says and take the numbers as they are;
    /// without one and without a `quantization_config`, they run an ordinary dense model, or take norms in front of
    /// every linear for a model with 8-bit activations.
    pub fn dequantised_has_scale(&self, config: &Config) -> bool {
        config.activation_quantization == ActivationQuantization::Int8PerToken
            || self.unmarked_floats == UnmarkedFloats::Ternary
            || config.norms.projections
    }

    /// Whether nothing in a `config.json` would tell readers of a copy that its floats are master weights. Norms
    /// in front of every linear tell, and transformers has no names for these.
    fn needs_marking(&self, config: &Config, original: &Value) -> bool {
        let quantization = self.quantization(original);
        !config.norms.projections
            && quantization.is_ok_and(|said| quantization::needs_marking(original, said))
    }

    fn check_gguf_wiring(&self, config: &Config) -> Result<(), FormatError> {
        let arch = self.gguf_architecture();
        let wiring = self.gguf_wiring;
        let refuse = |key: &str, found: String, expected: String| {
            Err(FormatError::new(
                ErrorCode::TargetCannotHold,
                format!(
                    "readers of architecture `{arch}` compute {expected}, the model has {found}"
                ),
            )
            .in_tensor(key)
            .hint("choose a Hugging Face target"))
        };
        if config.hidden_act != wiring.activation {
            let (found, expected) = (config.hidden_act.as_str(), wiring.activation.as_str());
            return refuse("hidden_act", found.to_owned(), expected.to_owned());
        }
        if config.long_rope.is_some() && !wiring.long_rope {
            let expected = "frequencies that do not change with the context".to_owned();
            return refuse("rope_scaling", "longrope".to_owned(), expected);
        }
        if let RopeScaling::Yarn(yarn) = config.rope.scaling {
            let found = (yarn.beta_fast, yarn.beta_slow);
            let readers = (Yarn::BETA_FAST, Yarn::BETA_SLOW);
            if found != readers {
                let say = |(fast, slow)| format!("YaRN with beta_fast {fast}, beta_slow {slow}");
                return refuse("rope_scaling", say(found), say(readers));
            }
        }
        let projections = config.norms.projections;
        let sub_norms = wiring.sub_norms || wiring.projection_norms && projections;
        for (key, what, found, expected) in [
            ("sub_norm", "sub-norms", config.attn_sub_norm, sub_norms),
            ("sub_norm", "sub-norms", config.ffn_sub_norm, sub_norms),
            (
                "q_norm",
                "norms of heads",
                config.norms.heads,
                wiring.head_norms,
            ),
            (
                "q_norm",
                "norms of heads after rotation",
                config.norms.heads_after_rope,
                wiring.norms_after_rope,
            ),
            (
                "q_proj.norm",
                "norms of single linears",
                projections,
                projections && wiring.projection_norms,
            ),
            (
                "q_proj.bias",
                "biases of q, k and v",
                config.biases,
                wiring.biases,
            ),
            (
                "post_feedforward_layernorm",
                "norms behind attention and MLP",
                config.norms.branches,
                wiring.branch_norms,
            ),
        ] {
            if found != expected {
                return refuse(key, say(found, what), say(expected, what));
            }
        }
        if config.rotary_dim != config.head_dim && !wiring.partial_rope {
            let say = |dim| format!("rotation of {dim} dimensions of a head");
            return refuse("rotary_dim", say(config.rotary_dim), say(config.head_dim));
        }
        let factors = match wiring.factor_keys {
            true => Factors {
                query_pre_attn_scalar: None,
                ..config.factors
            },
            false => wiring.factors(config.hidden_size),
        };
        if config.factors != factors {
            return refuse(
                "factors",
                format!("{:?}", config.factors),
                format!("{factors:?}"),
            );
        }
        if let Some(sliding) = &config.sliding
            && let Some(windows) = wiring.windows.filter(|windows| windows.flags)
        {
            if sliding.full_rope != windows.full_rope {
                let say = |rotates| say(rotates, "rotation in layers without a window");
                let (found, expected) = (say(sliding.full_rope), say(windows.full_rope));
                return refuse("sliding_window", found, expected);
            }
        } else if let Some(sliding) = &config.sliding {
            let windows = |windows: &GgufWindows| {
                let layers = windows.layers(config.num_hidden_layers);
                (layers, windows.rope_theta)
            };
            let readers = wiring.windows.as_ref().map(windows);
            let found = (sliding.layers.clone(), sliding.rope_theta);
            if readers.as_ref() != Some(&found) {
                let show = |(layers, theta): (Vec<bool>, f64)| {
                    let letters = layers.iter().map(|w| if *w { 'w' } else { 'f' });
                    let letters: String = letters.collect();
                    format!("windows (w) in layers {letters} with rope_theta {theta}")
                };
                let expected = readers.map_or("no windows".to_owned(), show);
                return refuse("sliding_window", show(found), expected);
            }
        }
        self.check_gguf_experts(config)?;
        if !config.tie_word_embeddings && !wiring.output_head {
            let expected = "the embedding as output head".to_owned();
            return refuse(
                "lm_head.weight",
                "an output head of its own".to_owned(),
                expected,
            );
        }
        Ok(())
    }

    /// Refuses experts that readers of the architecture would compute otherwise.
    fn check_gguf_experts(&self, config: &Config) -> Result<(), FormatError> {
        let Some(experts) = &config.experts else {
            return match self.gguf_wiring.experts {
                None => Ok(()),
                Some(_) => Err(self.no_gguf("num_experts", "experts", "none")),
            };
        };
        let Some(readers) = self.gguf_wiring.experts else {
            return Err(self.no_gguf("num_experts", "no experts", "some"));
        };
        if !experts.normalize {
            let key = "norm_topk_prob";
            let expected = "weights of experts divided by their sum";
            return Err(self.no_gguf(key, expected, "weights that are not divided"));
        }
        if experts.layers.contains(&false) {
            let found = "layers without experts";
            return Err(self.no_gguf("mlp_only_layers", "experts in every layer", found));
        }
        if experts.clamp.is_some() && !readers.clamp {
            let found = "bounds of the activation function's inputs";
            return Err(self.no_gguf("swiglu_clamp_exp", "no bounds", found));
        }
        Ok(())
    }

    fn no_gguf(&self, key: &str, expected: &str, found: &str) -> FormatError {
        let arch = self.gguf_architecture();
        let message =
            format!("readers of architecture `{arch}` compute {expected}, the model has {found}");
        FormatError::new(ErrorCode::TargetCannotHold, message)
            .in_tensor(key)
            .hint("choose a Hugging Face target")
    }

    /// Refuses a network that `config.json` of the family cannot say.
    ///
    /// # Errors
    /// `target-cannot-hold`.
    pub fn check_hf_network(&self, config: &Config) -> Result<(), FormatError> {
        let (Some(experts), Some(wiring)) = (&config.experts, self.hf_wiring.experts) else {
            return Ok(());
        };
        if experts.clamp == wiring.clamp {
            return Ok(());
        }
        let say = |clamp: Option<f32>| match clamp {
            Some(most) => format!("experts bounded at {most}"),
            None => "experts without bounds".to_owned(),
        };
        let message = format!(
            "programs that read `{}` compute {}, the model has {}",
            self.hf_identity.1,
            say(wiring.clamp),
            say(experts.clamp)
        );
        Err(FormatError::new(ErrorCode::TargetCannotHold, message)
            .in_tensor("swiglu_clamp_exp")
            .hint("choose a GGUF target"))
    }

    /// What `config.json` says about the linears.
    ///
    /// # Errors
    /// `unknown-quantization`, naming key and value.
    pub fn quantization(&self, config_json: &Value) -> Result<Quantization, FormatError> {
        let read = quantization::read(config_json, self.gguf_wiring.projection_norms)?;
        let headless = is_headless(config_json);
        quantization::check_not_converted(config_json, read, !headless, || {
            self.linear_modules(config_json, headless)
        })?;
        Ok(read)
    }

    /// Keys of a `config.json` that nothing here reads and that are not known to be harmless.
    pub fn unknown_keys(&self, config_json: &Value) -> Vec<UnknownKey> {
        hf_config::unknown_keys(config_json, self.hf_wiring)
    }

    /// Keys of GGUF metadata that nothing here reads and that are not known to be harmless.
    pub fn unknown_gguf_keys(&self, file: &TensorFile) -> Vec<UnknownKey> {
        gguf_keys::unknown_keys(file, &self.gguf_wiring)
    }

    /// The modules of the linears of all layers, as transformers names them. Models without a head are modules
    /// of their own, and parts of one with a head where that is loaded instead: both names count then.
    fn linear_modules(&self, config_json: &Value, headless: bool) -> Vec<String> {
        let text = config_json
            .get(hf_config::hybrid::TEXT)
            .unwrap_or(config_json);
        let layers = text.get("num_hidden_layers").and_then(Value::as_u64);
        let layers = layers.unwrap_or(1).clamp(1, MOST_LAYERS) as usize;
        let mut modules = Vec::new();
        for layer in 0..layers {
            for linear in LayerSlot::LINEARS {
                let tensor = (self.tensor_name)(Slot::Layer(layer, linear));
                let module = tensor.strip_suffix(".weight").unwrap_or(&tensor).to_owned();
                if headless && let Some(short) = module.strip_prefix("model.") {
                    modules.push(short.to_owned());
                }
                modules.push(module);
            }
            for module in ["experts", "experts.0"] {
                modules.push(format!("model.layers.{layer}.mlp.{module}"));
            }
        }
        modules
    }
}

/// Every family. Adding one is a file, a `mod` line and a row.
pub static FAMILIES: &[&Family] = &[
    &bitnet_2b_4t::FAMILY,
    &llama_b1_58::FAMILY,
    &bitnet_b1_58::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen35::FAMILY,
    &gemma3::FAMILY,
    &minicpm::FAMILY,
    &hunyuan::FAMILY,
    &maple::FAMILY,
    &qwen3_moe::FAMILY,
];

/// The family of this name.
pub fn family_by_name(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().copied().find(|f| f.name == name)
}

/// The family a `config.json` belongs to.
pub(crate) fn family_of_config(config: &Value) -> Result<&'static Family, FormatError> {
    let found = FAMILIES.iter().copied().find(|f| (f.matches)(config));
    found.ok_or_else(|| hf_config::unknown_family(config, FAMILIES.iter().map(|f| f.hf_identity)))
}

/// The family of a GGUF file's architecture string.
pub(crate) fn family_of_gguf(file: &TensorFile) -> Result<&'static Family, FormatError> {
    let arch = gguf_keys::architecture(file)?;
    let found = FAMILIES
        .iter()
        .copied()
        .find(|f| f.gguf_architectures.contains(&arch));
    found.ok_or_else(|| {
        let known: Vec<_> = FAMILIES
            .iter()
            .flat_map(|f| f.gguf_architectures.iter().copied())
            .collect();
        crate::config::bad_key(
            gguf_keys::ARCHITECTURE,
            &format!("`{arch}`"),
            &format!("one of {}", known.join(", ")),
        )
    })
}

#[cfg(test)]
mod tests;
