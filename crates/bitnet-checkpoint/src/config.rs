//! What a network looks like: sizes and wiring, as data.
//!
//! Invariant: every number is bounded and consistent (families build a `Config` only through
//! [`Config::checked`]), and nothing about the wiring is guessed: an unknown value in a checkpoint's
//! configuration is an error naming key and value, never a default.

mod rotated;

pub use crate::block::Activation;
use crate::block::{Attention, Block, Experts, Gated, GatedDeltaNet, Mixer, Mlp};
use crate::rotation::Rotation;
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::MAX_COLS;
use std::sync::Arc;

/// Whether inputs of ternary linears are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationQuantization {
    /// int8 per token, absmax (BitNet b1.58).
    Int8PerToken,
    /// None: a checkpoint of dequantised weights that runs as an ordinary dense model.
    None,
}

/// How rotary frequencies are scaled, as transformers defines it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// `default`: not scaled.
    None,
    /// `linear`: frequencies divided by the factor.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// `llama3`: frequencies scaled by wavelength band.
    Llama3 {
        /// Divisor of the low band.
        factor: f64,
        /// `low_freq_factor`
        low_freq_factor: f64,
        /// `high_freq_factor`
        high_freq_factor: f64,
        /// `original_max_position_embeddings`
        original_max_position_embeddings: usize,
    },
    /// `yarn`: long waves divided, short ones kept, and both tables scaled.
    Yarn(Yarn),
}

/// The numbers of YaRN; each is one that f32 holds, so that every container keeps it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// Divisor of the long waves.
    pub factor: f64,
    /// Context that the frequencies were trained on.
    pub original_max_position_embeddings: usize,
    /// Rotations in that context from which on a wave is kept.
    pub beta_fast: f64,
    /// Rotations up to which a wave is divided.
    pub beta_slow: f64,
    /// What cosines and sines are multiplied by, at every position.
    pub attention_factor: f64,
}

impl Yarn {
    /// `beta_fast` where nothing says otherwise.
    pub const BETA_FAST: f64 = 32.0;
    /// `beta_slow` where nothing says otherwise.
    pub const BETA_SLOW: f64 = 1.0;

    /// `0.1 mscale ln(factor) + 1`, the paper's attention factor for `mscale = 1`, in f64.
    pub fn attention_factor_of(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 {
            return 1.0;
        }
        0.1 * mscale * libm::log(factor) + 1.0
    }
}

/// Divisors of the rotary frequencies, one list for short and one for long contexts (`longrope`).
///
/// The model's own context decides which list counts, for every position of every text: the key of the cache of a
/// token never changes. Each number is one that f32 holds.
#[derive(Debug, Clone, PartialEq)]
pub struct LongRope {
    /// Divisors for contexts beyond the original one, `(head_dim / 2,)`.
    pub long: Vec<f32>,
    /// Divisors for contexts up to the original one, `(head_dim / 2,)`.
    pub short: Vec<f32>,
    /// Context that the frequencies were trained on.
    pub original_max_position_embeddings: usize,
    /// What cosines and sines are multiplied by, at every position.
    pub attention_factor: f32,
}

impl LongRope {
    /// `sqrt(1 + ln(context / original) / ln(original))`, in f64; 1 for a context up to the original one.
    pub fn attention_factor_of(context: f64, original: f64) -> f64 {
        let scale = context / original;
        if scale <= 1.0 || original <= 1.0 {
            return 1.0;
        }
        libm::sqrt(1.0 + libm::log(scale) / libm::log(original))
    }
}

/// Rotary position embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling.
    pub scaling: RopeScaling,
}

/// Norms that only some networks have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExtraNorms {
    /// Whether every head of queries and keys is normed (`q_norm`, `k_norm`).
    pub heads: bool,
    /// Whether heads are normed after rotation; before it otherwise.
    pub heads_after_rope: bool,
    /// Whether q, k, v, gate and up each have an input norm of their own (`q_proj.norm`), behind the
    /// one they share. Those of o and down are `attn_sub_norm` and `ffn_sub_norm` by another name.
    pub projections: bool,
    /// Whether what attention and MLP add to the residual stream is normed first.
    pub branches: bool,
}

/// Factors that leave most networks as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Factors {
    /// Times every embedding row, on its way into the residual stream.
    pub embedding: f32,
    /// Times what attention and MLP add to the residual stream.
    pub residual: f32,
    /// The final hidden state is divided by it in front of the output head.
    pub head_divisor: f32,
    /// Attention scores are divided by its root; `None`: by that of the head width.
    pub query_pre_attn_scalar: Option<f32>,
}

impl Default for Factors {
    fn default() -> Self {
        Self {
            embedding: 1.0,
            residual: 1.0,
            head_divisor: 1.0,
            query_pre_attn_scalar: None,
        }
    }
}

/// Layers that see only the last tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingWindow {
    /// Tokens that a token sees, itself included.
    pub tokens: usize,
    /// Base of the rotary frequencies in these layers, which are not scaled.
    pub rope_theta: f64,
    /// Which layers, `(num_hidden_layers,)`.
    pub layers: Vec<bool>,
    /// Whether the other layers rotate queries and keys; without it they know no positions.
    pub full_rope: bool,
}

/// Layers whose MLP is a mixture of experts.
#[derive(Debug, Clone, PartialEq)]
pub struct MixtureOfExperts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that each token goes to.
    pub used: usize,
    /// Width of one expert.
    pub intermediate_size: usize,
    /// Whether the weights of the chosen experts are divided by their sum.
    pub normalize: bool,
    /// What bounds the gate from above and the other factor on both sides, in front of the activation function.
    pub clamp: Option<f32>,
    /// Which layers, `(num_hidden_layers,)`; the others have one gated MLP.
    pub layers: Vec<bool>,
}

impl MixtureOfExperts {
    /// Most linears of all experts together: as many as a model may have tensors.
    const MOST: usize = 131_072;

    fn check(&self, layers: usize) -> Result<(), FormatError> {
        let bad = |key: &str, found: usize, expected: &str| {
            Err(bad_key(key, &found.to_string(), expected))
        };
        let linears = self.count.saturating_mul(layers).saturating_mul(3);
        if self.count == 0 || self.count > usize::from(u16::MAX) || linears > Self::MOST {
            let expected = format!(
                "1 or more, and at most {} linears in {layers} layers",
                Self::MOST
            );
            return bad("num_experts", self.count, &expected);
        }
        if self.used == 0 || self.used > self.count {
            let expected = format!("a number from 1 to num_experts = {}", self.count);
            return bad("num_experts_per_tok", self.used, &expected);
        }
        if self.intermediate_size == 0 || self.intermediate_size >= MAX_COLS {
            let expected = format!("a number from 1 to {}", MAX_COLS - 1);
            return bad("moe_intermediate_size", self.intermediate_size, &expected);
        }
        if self.layers.len() != layers {
            let expected = format!("num_hidden_layers = {layers}");
            return bad("layers with experts", self.layers.len(), &expected);
        }
        match self.clamp {
            Some(most) if !(most.is_finite() && most > 0.0) => {
                let found = most.to_string();
                Err(bad_key("clamp of experts", &found, "a positive number"))
            }
            _ => Ok(()),
        }
    }
}

/// What a hybrid of attention and recurrent layers has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hybrid {
    /// Sizes of the layers with a recurrent state.
    pub delta: GatedDeltaNet,
    /// Which layers have one, `(num_hidden_layers,)`; the others have attention with an output gate.
    pub recurrent: Vec<bool>,
    /// Leading dimensions of a head of attention that are rotated.
    pub rotary_dim: usize,
    /// How many frequencies turn with each of the three coordinates of an image's position; the positions of a text
    /// have three equal ones.
    pub rope_sections: [usize; 3],
}

impl Hybrid {
    /// `mrope_section` where nothing says otherwise.
    pub const ROPE_SECTIONS: [usize; 3] = [11, 11, 10];
}

/// How the hidden states of a text become one vector; then divided by its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// That of the first token.
    First,
    /// That of the last token.
    Last,
}

impl Pooling {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Mean, Self::First, Self::Last];

    /// `mean`, `cls` or `last`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::First => "cls",
            Self::Last => "last",
        }
    }
}

/// What the pipeline of an embedding model does besides running the network and pooling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddingSettings {
    /// Whether the pooled vector is divided by its Euclidean length.
    pub normalize: bool,
    /// Texts that are put in front of the input, by name.
    pub prompts: Vec<(String, String)>,
    /// The prompt that is used when the user names none; one of `prompts`.
    pub default_prompt_name: Option<String>,
    /// Longer inputs are cut to this number of tokens, special tokens included.
    pub max_seq_length: Option<usize>,
}

impl Default for EmbeddingSettings {
    fn default() -> Self {
        Self {
            normalize: true,
            prompts: Vec::new(),
            default_prompt_name: None,
            max_seq_length: None,
        }
    }
}

impl EmbeddingSettings {
    /// The text of a prompt.
    pub fn prompt(&self, name: &str) -> Option<&str> {
        let mut prompts = self.prompts.iter();
        prompts
            .find(|(key, _)| key == name)
            .map(|(_, text)| text.as_str())
    }

    /// The text that precedes every input when the user names no prompt.
    pub fn default_prompt(&self) -> Option<&str> {
        self.prompt(self.default_prompt_name.as_deref()?)
    }
}

/// Sizes and wiring of one network.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head (`head_dim` if given, not `hidden / heads`).
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of every norm.
    pub rms_norm_eps: f32,
    /// Rotary embedding.
    pub rope: Rope,
    /// Dimensions of a head that are rotated, the first ones; the others pass as they are.
    pub rotary_dim: usize,
    /// Divisors of its frequencies by the length of the context, if it has some; `rope` is not scaled otherwise then.
    pub long_rope: Option<LongRope>,
    /// The MLP's activation function.
    pub hidden_act: Activation,
    /// Whether `o_proj` has an input norm (`attn_sub_norm`).
    pub attn_sub_norm: bool,
    /// Whether `down_proj` has an input norm (`ffn_sub_norm`).
    pub ffn_sub_norm: bool,
    /// Norms that only some networks have.
    pub norms: ExtraNorms,
    /// Whether q, k and v have biases.
    pub biases: bool,
    /// Factors that leave most networks as they are.
    pub factors: Factors,
    /// Layers that see only the last tokens.
    pub sliding: Option<SlidingWindow>,
    /// Layers with a recurrent state, if there are any.
    pub hybrid: Option<Hybrid>,
    /// What was done to the inputs of some matrices before they were made ternary, if anything.
    pub rotation: Option<Arc<Rotation>>,
    /// Layers with experts.
    pub experts: Option<MixtureOfExperts>,
    /// How hidden states become one vector, if that is what the network is for.
    pub pooling: Option<Pooling>,
    /// What the pipeline of an embedding model does besides.
    pub embedding: EmbeddingSettings,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether inputs of ternary linears are quantised.
    pub activation_quantization: ActivationQuantization,
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text; several for chat models.
    pub eos_token_ids: Vec<u32>,
}

impl Config {
    /// Checks bounds and consistency.
    ///
    /// # Errors
    /// `unsupported-config`, naming the key, the value and the bound.
    pub fn checked(self) -> Result<Self, FormatError> {
        let bounds: [(&str, usize, usize); 8] = [
            ("hidden_size", self.hidden_size, MAX_COLS - 1),
            ("intermediate_size", self.intermediate_size, MAX_COLS - 1),
            ("num_hidden_layers", self.num_hidden_layers, 1024),
            ("num_attention_heads", self.num_attention_heads, 4096),
            (
                "num_key_value_heads",
                self.num_key_value_heads,
                self.num_attention_heads,
            ),
            ("head_dim", self.head_dim, 4096),
            ("vocab_size", self.vocab_size, 1 << 24),
            (
                "max_position_embeddings",
                self.max_position_embeddings,
                1 << 24,
            ),
        ];
        for (key, value, most) in bounds {
            if value == 0 || value > most {
                return Err(bad_key(
                    key,
                    &value.to_string(),
                    &format!("a number from 1 to {most}"),
                ));
            }
        }
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return Err(bad_key(
                "num_key_value_heads",
                &self.num_key_value_heads.to_string(),
                &format!(
                    "a divisor of num_attention_heads = {}",
                    self.num_attention_heads
                ),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(bad_key(
                "head_dim",
                &self.head_dim.to_string(),
                "an even number",
            ));
        }
        if !self.rotary_dim.is_multiple_of(2)
            || self.rotary_dim == 0
            || self.rotary_dim > self.head_dim
        {
            return Err(bad_key(
                "rotary_dim",
                &self.rotary_dim.to_string(),
                &format!("an even number from 2 to head_dim = {}", self.head_dim),
            ));
        }
        if self.num_attention_heads.saturating_mul(self.head_dim) >= MAX_COLS {
            return Err(bad_key(
                "head_dim",
                &self.head_dim.to_string(),
                &format!("num_attention_heads * head_dim below {MAX_COLS}"),
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(bad_key(
                "rms_norm_eps",
                &self.rms_norm_eps.to_string(),
                "a number between 0 and 1",
            ));
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return Err(bad_key(
                "rope_theta",
                &self.rope.theta.to_string(),
                "a positive number",
            ));
        }
        if let RopeScaling::Yarn(yarn) = self.rope.scaling {
            let positive = |x: f64| x.is_finite() && x > 0.0;
            if yarn.original_max_position_embeddings == 0 {
                return Err(bad_key(
                    "original_max_position_embeddings",
                    "0",
                    "a number from 1 on",
                ));
            }
            if !(yarn.factor.is_finite() && yarn.factor >= 1.0) {
                let found = yarn.factor.to_string();
                return Err(bad_key("factor", &found, "a number from 1 on"));
            }
            for (key, value) in [
                ("beta_fast", yarn.beta_fast),
                ("beta_slow", yarn.beta_slow),
                ("attention_factor", yarn.attention_factor),
            ] {
                if !positive(value) {
                    return Err(bad_key(key, &value.to_string(), "a positive number"));
                }
            }
        }
        self.check_factors()?;
        self.check_long_rope()?;
        self.check_sliding()?;
        self.check_hybrid()?;
        if let Some(experts) = &self.experts {
            experts.check(self.num_hidden_layers)?;
            let norms = self.norms;
            if norms.projections || norms.branches || self.ffn_sub_norm {
                let expected = "experts without norms of their own";
                return Err(bad_key("norms of linears", "some", expected));
            }
        }
        Ok(self)
    }

    fn check_factors(&self) -> Result<(), FormatError> {
        let Factors {
            embedding,
            residual,
            head_divisor,
            query_pre_attn_scalar,
        } = self.factors;
        for (key, value) in [
            ("embedding factor", embedding),
            ("residual factor", residual),
            ("head divisor", head_divisor),
            (
                "query_pre_attn_scalar",
                query_pre_attn_scalar.unwrap_or(1.0),
            ),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(bad_key(key, &value.to_string(), "a positive number"));
            }
        }
        Ok(())
    }

    fn check_long_rope(&self) -> Result<(), FormatError> {
        let Some(long_rope) = &self.long_rope else {
            return Ok(());
        };
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let half = self.rotary_dim() / 2;
        for (key, list) in [
            ("long_factor", &long_rope.long),
            ("short_factor", &long_rope.short),
        ] {
            if list.len() != half {
                let found = format!("{} numbers", list.len());
                let expected = format!("{half} numbers, one for each rotated pair");
                return Err(bad_key(key, &found, &expected));
            }
            if let Some(wrong) = list.iter().find(|n| !positive(**n)) {
                return Err(bad_key(key, &wrong.to_string(), "positive numbers"));
            }
        }
        if long_rope.original_max_position_embeddings == 0 {
            let key = "original_max_position_embeddings";
            return Err(bad_key(key, "0", "a number from 1 on"));
        }
        if !positive(long_rope.attention_factor) {
            let found = long_rope.attention_factor.to_string();
            return Err(bad_key("attention_factor", &found, "a positive number"));
        }
        if self.rope.scaling != RopeScaling::None {
            let found = format!("{:?}", self.rope.scaling);
            return Err(bad_key("rope_scaling", &found, "longrope alone"));
        }
        Ok(())
    }

    /// The divisors of the rotary frequencies that count for the model's own context.
    pub fn rope_divisors(&self) -> Option<&[f32]> {
        let long_rope = self.long_rope.as_ref()?;
        let is_long = self.max_position_embeddings > long_rope.original_max_position_embeddings;
        Some(match is_long {
            true => &long_rope.long,
            false => &long_rope.short,
        })
    }

    fn check_sliding(&self) -> Result<(), FormatError> {
        let Some(sliding) = &self.sliding else {
            return Ok(());
        };
        if sliding.tokens == 0 {
            return Err(bad_key("sliding_window", "0", "a number from 1 on"));
        }
        let is_scaled = self.rope.scaling != RopeScaling::None || self.long_rope.is_some();
        if !sliding.full_rope && is_scaled {
            let expected = "none, because only layers with a window are rotated";
            return Err(bad_key("rope_scaling", "some", expected));
        }
        if !(sliding.rope_theta.is_finite() && sliding.rope_theta > 0.0) {
            let found = sliding.rope_theta.to_string();
            return Err(bad_key("rope_local_base_freq", &found, "a positive number"));
        }
        if sliding.layers.len() != self.num_hidden_layers {
            let found = format!("{} layers", sliding.layers.len());
            let expected = format!("num_hidden_layers = {}", self.num_hidden_layers);
            return Err(bad_key("layer_types", &found, &expected));
        }
        Ok(())
    }

    fn check_hybrid(&self) -> Result<(), FormatError> {
        /// Largest width of a state, and of a convolution.
        const MOST: usize = 4096;
        let Some(hybrid) = &self.hybrid else {
            return Ok(());
        };
        let delta = hybrid.delta;
        for (key, value, most) in [
            ("linear_num_value_heads", delta.value_heads, MOST),
            ("linear_num_key_heads", delta.key_heads, delta.value_heads),
            ("linear_key_head_dim", delta.key_dim, MOST),
            ("linear_value_head_dim", delta.value_dim, MOST),
            ("linear_conv_kernel_dim", delta.conv_kernel, 64),
        ] {
            if value == 0 || value > most {
                let expected = format!("a number from 1 to {most}");
                return Err(bad_key(key, &value.to_string(), &expected));
            }
        }
        if !delta.value_heads.is_multiple_of(delta.key_heads) {
            let found = delta.key_heads.to_string();
            let expected = format!(
                "a divisor of linear_num_value_heads = {}",
                delta.value_heads
            );
            return Err(bad_key("linear_num_key_heads", &found, &expected));
        }
        for (key, width) in [
            ("linear_key_head_dim", delta.key_width()),
            ("linear_value_head_dim", delta.value_width()),
        ] {
            if width >= MAX_COLS {
                let expected = format!("heads times their width below {MAX_COLS}");
                return Err(bad_key(key, &width.to_string(), &expected));
            }
        }
        if hybrid.recurrent.len() != self.num_hidden_layers {
            let found = format!("{} layers", hybrid.recurrent.len());
            let expected = format!("num_hidden_layers = {}", self.num_hidden_layers);
            return Err(bad_key("layer_types", &found, &expected));
        }
        let rotary = hybrid.rotary_dim;
        if rotary == 0 || rotary > self.head_dim || !rotary.is_multiple_of(2) {
            let found = format!("{rotary} of {} dimensions of a head", self.head_dim);
            let expected = "an even number of rotated dimensions of a head";
            return Err(bad_key("partial_rotary_factor", &found, expected));
        }
        let frequencies = hybrid
            .rope_sections
            .iter()
            .try_fold(0usize, |a, b| a.checked_add(*b));
        if frequencies.is_none_or(|n| n > MOST) {
            let found = format!("{:?}", hybrid.rope_sections);
            return Err(bad_key("mrope_section", &found, "three small numbers"));
        }
        Ok(())
    }

    /// Leading dimensions of a head that are rotated.
    pub fn rotary_dim(&self) -> usize {
        let hybrid = self.hybrid.as_ref();
        hybrid.map_or(self.rotary_dim, |hybrid| hybrid.rotary_dim)
    }

    /// Times attention scores, f32: the number under the root is taken in f64, as transformers does.
    pub fn attention_factor(&self) -> f32 {
        let scalar = self.factors.query_pre_attn_scalar.map(f64::from);
        (1.0 / scalar.unwrap_or(self.head_dim as f64).sqrt()) as f32
    }

    /// The window of a layer, if it has one.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let sliding = self.sliding.as_ref()?;
        sliding.layers.get(layer)?.then_some(sliding.tokens)
    }

    /// Dimensions of a head that a layer rotates; 0 in a layer that knows no positions.
    pub fn rotary_dim_of(&self, layer: usize) -> usize {
        match &self.sliding {
            Some(sliding) if !sliding.full_rope && self.window(layer).is_none() => 0,
            _ => self.rotary_dim(),
        }
    }

    /// The rotary embedding of layers with a window, if there are any.
    pub fn sliding_rope(&self) -> Option<Rope> {
        self.sliding.as_ref().map(|sliding| Rope {
            theta: sliding.rope_theta,
            scaling: RopeScaling::None,
        })
    }

    /// What a layer is made of.
    pub fn block(&self, layer: usize) -> Block {
        let (hidden_size, norms) = (self.hidden_size, self.norms);
        let hybrid = self.hybrid.as_ref();
        let recurrent = hybrid.filter(|hybrid| hybrid.recurrent.get(layer) == Some(&true));
        let mixer = match recurrent {
            Some(hybrid) => Mixer::GatedDeltaNet(hybrid.delta),
            None => Mixer::Attention(Attention {
                hidden_size,
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                factor: self.attention_factor(),
                window: self.window(layer),
                rotary_dim: self.rotary_dim_of(layer),
                input_norms: norms.projections,
                biases: self.biases,
                head_norms: norms.heads,
                norms_after_rope: norms.heads_after_rope,
                sub_norm: self.attn_sub_norm,
                branch_norm: norms.branches,
                output_gate: hybrid.is_some(),
            }),
        };
        Block {
            mixer,
            mlp: self.mlp(layer),
        }
    }

    fn mlp(&self, layer: usize) -> Mlp {
        let hidden_size = self.hidden_size;
        let has_experts = |e: &&MixtureOfExperts| e.layers.get(layer) == Some(&true);
        if let Some(experts) = self.experts.as_ref().filter(has_experts) {
            return Mlp::Experts(Experts {
                hidden_size,
                count: experts.count,
                used: experts.used,
                intermediate_size: experts.intermediate_size,
                act: self.hidden_act,
                normalize: experts.normalize,
                clamp: experts.clamp,
            });
        }
        Mlp::Gated(Gated {
            hidden_size,
            intermediate_size: self.intermediate_size,
            act: self.hidden_act,
            input_norms: self.norms.projections,
            sub_norm: self.ffn_sub_norm,
            branch_norm: self.norms.branches,
        })
    }

    /// Every layer, in order.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        (0..self.num_hidden_layers).map(|layer| self.block(layer))
    }

    /// Every slot a network of this configuration has, in the order of the forward pass.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots = vec![Slot::TokenEmbeddings];
        for (layer, block) in self.blocks().enumerate() {
            let tensors = block.tensors().into_iter();
            slots.extend(tensors.map(|(slot, _)| Slot::Layer(layer, slot)));
        }
        slots.push(Slot::OutputNorm);
        if !self.tie_word_embeddings {
            slots.push(Slot::OutputHead);
        }
        slots
    }

    /// The shape of a slot's tensor, outermost first; empty for a slot that no network of this kind has.
    pub fn shape(&self, slot: Slot) -> Vec<usize> {
        match slot {
            Slot::TokenEmbeddings | Slot::OutputHead => vec![self.vocab_size, self.hidden_size],
            Slot::OutputNorm => vec![self.hidden_size],
            Slot::Layer(layer, slot) => self.block(layer).shape(slot).unwrap_or_default(),
        }
    }
}

/// An error for a configuration key with a value this program does not know.
pub(crate) fn bad_key(key: &str, found: &str, expected: &str) -> FormatError {
    FormatError::new(
        ErrorCode::UnsupportedConfig,
        format!("expected {expected}, found {found}"),
    )
    .in_tensor(key)
}
