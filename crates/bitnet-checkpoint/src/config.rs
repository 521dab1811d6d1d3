//! What a network looks like: sizes and wiring, as data.
//!
//! Invariant: every number is bounded and consistent (families build a `Config` only through
//! [`Config::checked`]), and nothing about the wiring is guessed: an unknown value in a checkpoint's
//! configuration is an error naming key and value, never a default.

pub use crate::block::Activation;
use crate::block::{Attention, Block, Gated, Mixer, Mlp};
use crate::slot::Slot;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_ternary::MAX_COLS;

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
    /// Whether every head of queries and keys is normed before rotation (`q_norm`, `k_norm`).
    pub heads: bool,
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
    /// The MLP's activation function.
    pub hidden_act: Activation,
    /// Whether `o_proj` has an input norm (`attn_sub_norm`).
    pub attn_sub_norm: bool,
    /// Whether `down_proj` has an input norm (`ffn_sub_norm`).
    pub ffn_sub_norm: bool,
    /// Norms that only some networks have.
    pub norms: ExtraNorms,
    /// Factors that leave most networks as they are.
    pub factors: Factors,
    /// Layers that see only the last tokens.
    pub sliding: Option<SlidingWindow>,
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
        if self.num_attention_heads * self.head_dim >= MAX_COLS {
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
        self.check_sliding()?;
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

    fn check_sliding(&self) -> Result<(), FormatError> {
        let Some(sliding) = &self.sliding else {
            return Ok(());
        };
        if sliding.tokens == 0 {
            return Err(bad_key("sliding_window", "0", "a number from 1 on"));
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
        Block {
            mixer: Mixer::Attention(Attention {
                hidden_size,
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                factor: self.attention_factor(),
                window: self.window(layer),
                input_norms: norms.projections,
                head_norms: norms.heads,
                sub_norm: self.attn_sub_norm,
                branch_norm: norms.branches,
            }),
            mlp: Mlp::Gated(Gated {
                hidden_size,
                intermediate_size: self.intermediate_size,
                act: self.hidden_act,
                input_norms: norms.projections,
                sub_norm: self.ffn_sub_norm,
                branch_norm: norms.branches,
            }),
        }
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
