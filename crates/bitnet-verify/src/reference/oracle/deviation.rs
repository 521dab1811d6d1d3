//! What other programs do otherwise on the same network, one thing at a time.
//!
//! Invariant: a deviation changes the reading of a network, never the network: weights, sizes and tokens stay
//! those of the checkpoint, so what explains a record names a difference of arithmetic or of wiring.

use bitnet_checkpoint::{
    Activation, ActivationQuantization, Config, LayerSlot, Rope, RopeScaling, gguf_row, hf_row,
};
use bitnet_ternary::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use candle_core::Tensor;

/// One thing done otherwise than the checkpoint says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Deviation {
    /// Another activation function.
    Activation(Activation),
    /// A norm is left out.
    Without(LayerSlot),
    /// Biases are left out.
    NoBiases,
    /// Another epsilon, in every norm.
    Epsilon(f32),
    /// Another base of the rotary frequencies.
    Theta(f64),
    /// Rotary frequencies are not scaled.
    NoRopeScaling,
    /// Heads are normed on the other side of rotation.
    NormsAcrossRope,
    /// So many dimensions of a head are rotated.
    RotaryDim(usize),
    /// Layers that know no positions are rotated as the others are.
    RopeEverywhere,
    /// The bound of experts stands elsewhere than in front of the activation function.
    Clamp(ClampAt),
    /// Weights of experts are divided by their sum where the network does not, or the reverse.
    ExpertWeights,
    /// Every expert is the one so many places behind it.
    ExpertsShifted(usize),
    /// Neighbouring elements of a head are rotated together, not those half a head apart.
    NeighbouringPairs,
    /// The rows of `q_proj`, `k_proj` or (`None`) of both stand in another order.
    Rows(Option<LayerSlot>, RowOrder),
    /// The scales of one linear, or (`None`) of all, are taken as something else.
    Scale(Option<LayerSlot>, ScaleAs),
    /// The inputs of linears are rounded in another way.
    Rounding(Rounding),
    /// Norms that hold `w` and mean `1 + w` multiply by `w`.
    NormOffset,
    /// The gated norm multiplies by `1 + w`, not by `w`.
    GatedNormOffset,
    /// Value head `h` reads key head `h mod key heads`, as GGUF's tiled order has them.
    HeadPairing,
    /// The taps of the convolution stand in the other order.
    ReversedTaps,
    /// Queries of a recurrent layer are not divided by the root of their width.
    UnscaledQuery,
    /// The state is read before the token corrects it.
    EarlyOutput,
    /// The correction is taken from the state before it decays.
    EarlyPrediction,
    /// All dimensions of a head are rotated.
    WholeRotary,
    /// Columns of `out_proj` stand in GGUF's tiled order of value heads.
    TiledColumns,
    /// The rows of `q_proj` are taken for all queries, then all gates; they alternate head by head.
    GateRows,
    /// What attention found is not multiplied by the sigmoid of its gate.
    NoOutputGate,
    /// Inputs of rotated weights, or rows of rotated embeddings, are turned in another way.
    Rotation(RotatedAs),
}

/// What is done otherwise where weights are rotated (`formats/rotation.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotatedAs {
    /// Nothing is rotated, and rows of embeddings are used as they are stored.
    Nothing,
    /// The transform without the signs.
    Unsigned,
    /// The transform first, the signs behind it: of inputs, and of rows of embeddings (or of inputs alone).
    SignsBehind {
        /// Whether signs of embeddings stand in front of the transform, too.
        tables: bool,
    },
    /// Blocks of so many features.
    Block(usize),
    /// Rows of embeddings are used as stored where the file says that they are rotated, or the reverse.
    Embeddings,
    /// The input of the output head is not rotated where the file says that it is, or the reverse.
    Head,
    /// Value heads are rotated in GGUF's order where the file says that they are in the checkpoint's, or the reverse.
    ValueOrder,
}

/// Where the bound of experts stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClampAt {
    /// In front of the activation function: the rule.
    Input,
    /// Behind it.
    Output,
    /// Nowhere.
    Nowhere,
}

/// The order of the rows of `q_proj` and `k_proj` (`formats/container/gguf.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// As GGUF's `llama` keeps them.
    Gguf,
    /// As they become when rows that were never moved are put back from GGUF's order.
    FromGguf,
}

impl RowOrder {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Gguf, Self::FromGguf];

    /// The row of the right matrix that stands in place `row` of the wrong one.
    pub fn source(self, row: usize, head_dim: usize) -> usize {
        match self {
            Self::Gguf => hf_row(row, head_dim),
            Self::FromGguf => gguf_row(row, head_dim),
        }
    }

    /// The row of the wrong matrix that stands in place `row` of the right one.
    pub fn undone(self, row: usize, head_dim: usize) -> usize {
        match self {
            Self::Gguf => gguf_row(row, head_dim),
            Self::FromGguf => hf_row(row, head_dim),
        }
    }
}

/// What a scale is taken as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleAs {
    /// A divisor.
    Inverse,
    /// Rounded to f16.
    F16,
    /// Rounded to bf16.
    Bf16,
}

impl ScaleAs {
    /// All.
    pub const ALL: [Self; 3] = [Self::Inverse, Self::F16, Self::Bf16];

    /// The multiplier that `scale` becomes.
    pub fn of(self, scale: f32) -> f32 {
        match self {
            Self::Inverse => 1.0 / scale,
            Self::F16 => f16_to_f32(f32_to_f16(scale)),
            Self::Bf16 => bf16_to_f32(f32_to_bf16(scale)),
        }
    }
}

/// How activations become integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, halves to even: the rule.
    HalfEven,
    /// As the rule, scaled by `127 / max` in one rounding.
    OneDivision,
    /// To the nearest, halves upwards: `floor(x + 0.5)`.
    HalfUp,
    /// To the nearest, halves away from zero: C's `roundf`.
    HalfAway,
    /// Towards zero: a cast.
    TowardsZero,
    /// Not at all.
    None,
}

impl Rounding {
    /// For a sentence.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HalfEven => "rounded half to even",
            Self::OneDivision => "scaled by 127 / max in one rounding",
            Self::HalfUp => "rounded half up",
            Self::HalfAway => "rounded half away from zero",
            Self::TowardsZero => "cut off towards zero",
            Self::None => "not quantized",
        }
    }
}

/// A configuration as one program reads it.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) config: &'a Config,
    pub(super) how: Option<Deviation>,
}

impl Reading<'_> {
    pub(super) fn activation(&self) -> Activation {
        match self.how {
            Some(Deviation::Activation(activation)) => activation,
            _ => self.config.hidden_act,
        }
    }

    pub(super) fn epsilon(&self) -> f32 {
        match self.how {
            Some(Deviation::Epsilon(epsilon)) => epsilon,
            _ => self.config.rms_norm_eps,
        }
    }

    /// The gain that a norm multiplies with; `None` stands for the norm behind all layers.
    pub(super) fn gain(
        &self,
        slot: Option<LayerSlot>,
        gain: &Tensor,
    ) -> candle_core::Result<Tensor> {
        use LayerSlot::{InputNorm, KNorm, PostAttentionNorm, QNorm};
        let slots = [InputNorm, QNorm, KNorm, PostAttentionNorm];
        let is_offset = slot.is_none_or(|slot| slots.contains(&slot));
        match self.how {
            Some(Deviation::NormOffset) if is_offset => gain - 1.0,
            _ => Ok(gain.clone()),
        }
    }

    pub(super) fn leaves_out(&self, norm: LayerSlot) -> bool {
        self.how == Some(Deviation::Without(norm))
    }

    pub(super) fn leaves_out_biases(&self) -> bool {
        self.how == Some(Deviation::NoBiases)
    }

    pub(super) fn rope(&self, rope: Rope) -> Rope {
        match self.how {
            Some(Deviation::Theta(theta)) => Rope { theta, ..rope },
            Some(Deviation::NoRopeScaling) => Rope {
                scaling: RopeScaling::None,
                ..rope
            },
            _ => rope,
        }
    }

    /// Whether heads are normed after rotation, where the network says whether they are.
    pub(super) fn norms_after_rope(&self, after: bool) -> bool {
        after != (self.how == Some(Deviation::NormsAcrossRope))
    }

    /// Where the bound of experts stands.
    pub(super) fn clamp(&self) -> ClampAt {
        match self.how {
            Some(Deviation::Clamp(at)) => at,
            _ => ClampAt::Input,
        }
    }

    /// Whether weights of experts are divided by their sum, where the network says whether they are.
    pub(super) fn normalizes_experts(&self, normalizes: bool) -> bool {
        normalizes != (self.how == Some(Deviation::ExpertWeights))
    }

    /// The expert that computes in the place of another, of so many.
    pub(super) fn expert(&self, number: usize, count: usize) -> usize {
        match self.how {
            Some(Deviation::ExpertsShifted(places)) => (number + places) % count.max(1),
            _ => number,
        }
    }

    /// Dimensions of a head that a layer rotates, where the network rotates so many in it.
    pub(super) fn rotary_dim(&self, dim: usize, head_dim: usize) -> usize {
        match self.how {
            Some(Deviation::WholeRotary) => head_dim,
            Some(Deviation::RotaryDim(other)) if dim > 0 => other,
            Some(Deviation::RopeEverywhere) if dim == 0 => self.config.rotary_dim(),
            _ => dim,
        }
    }

    /// Divisors of the rotary frequencies by the length of the context, and the factor of the tables.
    pub(super) fn long_rope(&self) -> Option<(&[f32], f32)> {
        if self.how == Some(Deviation::NoRopeScaling) {
            return None;
        }
        let factor = self.config.long_rope.as_ref()?.attention_factor;
        Some((self.config.rope_divisors()?, factor))
    }

    /// How rotated weights are read, where it is otherwise.
    pub(super) fn rotated_as(&self) -> Option<RotatedAs> {
        match self.how {
            Some(Deviation::Rotation(how)) => Some(how),
            _ => None,
        }
    }

    pub(super) fn rotates_neighbours(&self) -> bool {
        self.how == Some(Deviation::NeighbouringPairs)
    }

    pub(super) fn rows(&self, linear: LayerSlot) -> Option<RowOrder> {
        let is_rotary = matches!(linear, LayerSlot::QProj | LayerSlot::KProj);
        match self.how {
            Some(Deviation::Rows(which, order)) if is_rotary => {
                which.is_none_or(|which| which == linear).then_some(order)
            }
            _ => None,
        }
    }

    pub(super) fn scale(&self, linear: LayerSlot) -> Option<ScaleAs> {
        match self.how {
            Some(Deviation::Scale(which, scale)) => {
                which.is_none_or(|which| which == linear).then_some(scale)
            }
            _ => None,
        }
    }

    pub(super) fn rounding(&self) -> Rounding {
        match (self.how, self.config.activation_quantization) {
            (Some(Deviation::Rounding(rounding)), _) => rounding,
            (_, ActivationQuantization::Int8PerToken) => Rounding::HalfEven,
            (_, ActivationQuantization::None) => Rounding::None,
        }
    }
}
