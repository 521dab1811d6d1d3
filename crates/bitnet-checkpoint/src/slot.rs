//! The role a tensor plays.
//!
//! Invariant: code above the families speaks of slots only; how a checkpoint spells them is a
//! family's business, and Hugging Face and GGUF names of the same thing meet here.

use std::borrow::Cow;
use std::fmt;

/// A place in the network that one tensor fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// `(vocab_size, hidden_size)`, dense or ternary.
    TokenEmbeddings,
    /// A tensor of one decoder layer.
    Layer(usize, LayerSlot),
    /// Gain of the final norm, `(hidden_size,)`.
    OutputNorm,
    /// `(vocab_size, hidden_size)`, dense or ternary; absent when tied to the embeddings.
    OutputHead,
}

/// A place in one decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerSlot {
    /// `input_layernorm`, `(hidden_size,)`.
    InputNorm,
    /// Input norm of `q_proj` alone, behind `input_layernorm`, `(hidden_size,)`.
    QProjNorm,
    /// `(num_attention_heads * head_dim, hidden_size)`, ternary; twice as many rows where every head has a gate
    /// behind its query.
    QProj,
    /// Added to the output of `q_proj`, before rotation, `(num_attention_heads * head_dim,)`.
    QBias,
    /// Input norm of `k_proj` alone, `(hidden_size,)`.
    KProjNorm,
    /// `(num_key_value_heads * head_dim, hidden_size)`, ternary.
    KProj,
    /// Added to the output of `k_proj`, before rotation, `(num_key_value_heads * head_dim,)`.
    KBias,
    /// Input norm of `v_proj` alone, `(hidden_size,)`.
    VProjNorm,
    /// `(num_key_value_heads * head_dim, hidden_size)`, ternary.
    VProj,
    /// Added to the output of `v_proj`, `(num_key_value_heads * head_dim,)`.
    VBias,
    /// Norm of every query head before rotation, `(head_dim,)`.
    QNorm,
    /// Norm of every key head before rotation, `(head_dim,)`.
    KNorm,
    /// `attn_sub_norm`, input norm of `o_proj`, `(num_attention_heads * head_dim,)`.
    AttnSubNorm,
    /// `(hidden_size, num_attention_heads * head_dim)`, ternary.
    OProj,
    /// Norm of what attention adds to the residual stream, `(hidden_size,)`. Gemma calls this one
    /// `post_attention_layernorm`.
    AttnBranchNorm,
    /// Queries, keys and values of a Gated DeltaNet before its convolution, `(2 K + V, hidden_size)`, ternary.
    InProjQkv,
    /// The gate behind its core, `(V, hidden_size)`, ternary.
    InProjZ,
    /// How far each value head corrects its state, before the sigmoid, `(value heads, hidden_size)`.
    InProjB,
    /// How much each value head forgets, `(value heads, hidden_size)`.
    InProjA,
    /// Kernel of the causal convolution, `(2 K + V, taps)`, the current token's tap last.
    Conv1d,
    /// Decay rates of the value heads, `(value heads,)`: `-exp(A_log)`, whatever form a file stores.
    ALog,
    /// Addend of `InProjA`'s output, `(value heads,)`.
    DtBias,
    /// Norm of each value head's output, in front of the gate, `(value width,)`.
    GatedNorm,
    /// `(hidden_size, V)`, ternary.
    OutProj,
    /// Norm of the MLP's input, `(hidden_size,)`: `post_attention_layernorm`; Gemma's
    /// `pre_feedforward_layernorm`.
    PostAttentionNorm,
    /// Input norm of `gate_proj` alone, `(hidden_size,)`.
    GateProjNorm,
    /// `(intermediate_size, hidden_size)`, ternary.
    GateProj,
    /// Input norm of `up_proj` alone, `(hidden_size,)`.
    UpProjNorm,
    /// `(intermediate_size, hidden_size)`, ternary.
    UpProj,
    /// `ffn_sub_norm`, input norm of `down_proj`, `(intermediate_size,)`.
    FfnSubNorm,
    /// `(hidden_size, intermediate_size)`, ternary.
    DownProj,
    /// What chooses the experts of a token, `(num_experts, hidden_size)`, dense.
    Router,
    /// A linear of an expert, by its number, ternary.
    Expert(u16, ExpertLinear),
    /// Norm of what the MLP adds to the residual stream, `(hidden_size,)`.
    FfnBranchNorm,
}

/// A linear of an expert, which is a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpertLinear {
    /// `(moe_intermediate_size, hidden_size)`
    Gate,
    /// `(moe_intermediate_size, hidden_size)`
    Up,
    /// `(hidden_size, moe_intermediate_size)`
    Down,
}

impl ExpertLinear {
    /// All of an expert, in the order of the forward pass.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];

    /// `gate_proj`, `up_proj` or `down_proj`.
    pub fn module(self) -> &'static str {
        match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }
}

impl LayerSlot {
    /// The linears that a layer without experts may have, in the order of the forward pass.
    pub const LINEARS: [Self; 10] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::InProjQkv,
        Self::InProjZ,
        Self::OutProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Whether the tensor is a ternary linear.
    pub fn is_ternary(self) -> bool {
        Self::LINEARS.contains(&self) || matches!(self, Self::Expert(..))
    }

    /// A linear of an expert; [`Config::checked`](crate::Config::checked) bounds their number.
    pub fn expert(expert: usize, linear: ExpertLinear) -> Self {
        Self::Expert(u16::try_from(expert).unwrap_or(u16::MAX), linear)
    }

    /// The published module path inside a layer, as transformers spells it for BitNet 2B4T
    /// (`self_attn.q_proj`): the canonical name, whatever the checkpoint calls it. Places that 2B4T does
    /// not have are named as the families that have them agree to, else by their role.
    pub fn canonical(self) -> Cow<'static, str> {
        let name = match self {
            Self::Expert(expert, linear) => {
                return format!("mlp.experts.{expert}.{}", linear.module()).into();
            }
            Self::Router => "mlp.gate",
            Self::InputNorm => "input_layernorm",
            Self::QProjNorm => "self_attn.q_proj.norm",
            Self::QProj | Self::QBias => "self_attn.q_proj",
            Self::KProjNorm => "self_attn.k_proj.norm",
            Self::KProj | Self::KBias => "self_attn.k_proj",
            Self::VProjNorm => "self_attn.v_proj.norm",
            Self::VProj | Self::VBias => "self_attn.v_proj",
            Self::QNorm => "self_attn.q_norm",
            Self::KNorm => "self_attn.k_norm",
            Self::AttnSubNorm => "self_attn.attn_sub_norm",
            Self::OProj => "self_attn.o_proj",
            Self::AttnBranchNorm => "self_attn.branch_norm",
            Self::InProjQkv => "linear_attn.in_proj_qkv",
            Self::InProjZ => "linear_attn.in_proj_z",
            Self::InProjB => "linear_attn.in_proj_b",
            Self::InProjA => "linear_attn.in_proj_a",
            Self::Conv1d => "linear_attn.conv1d",
            Self::ALog => "linear_attn.A_log",
            Self::DtBias => "linear_attn.dt_bias",
            Self::GatedNorm => "linear_attn.norm",
            Self::OutProj => "linear_attn.out_proj",
            Self::PostAttentionNorm => "post_attention_layernorm",
            Self::GateProjNorm => "mlp.gate_proj.norm",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProjNorm => "mlp.up_proj.norm",
            Self::UpProj => "mlp.up_proj",
            Self::FfnSubNorm => "mlp.ffn_sub_norm",
            Self::DownProj => "mlp.down_proj",
            Self::FfnBranchNorm => "mlp.branch_norm",
        };
        Cow::Borrowed(name)
    }

    /// The end of the tensor's name, behind its module: parameters of a module itself have none.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::QBias | Self::KBias | Self::VBias => ".bias",
            Self::ALog | Self::DtBias => "",
            _ => ".weight",
        }
    }

    /// The bias that is added to the output of a linear, if networks have one there.
    pub fn bias(self) -> Option<Self> {
        match self {
            Self::QProj => Some(Self::QBias),
            Self::KProj => Some(Self::KBias),
            Self::VProj => Some(Self::VBias),
            _ => None,
        }
    }

    /// The linear that a bias is added to.
    pub fn biased_linear(self) -> Option<Self> {
        let mut linears = Self::LINEARS.into_iter();
        linears.find(|linear| linear.bias() == Some(self))
    }
}

impl Slot {
    /// Whether the tensor is a ternary linear of a layer; what tables of rows are depends on the checkpoint
    /// ([`Checkpoint::is_ternary`](crate::Checkpoint::is_ternary)).
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::Layer(_, slot) if slot.is_ternary())
    }
}

impl fmt::Display for Slot {
    /// The canonical name, `model.layers.0.self_attn.q_proj.weight`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TokenEmbeddings => f.write_str("model.embed_tokens.weight"),
            Self::OutputNorm => f.write_str("model.norm.weight"),
            Self::OutputHead => f.write_str("lm_head.weight"),
            Self::Layer(layer, slot) => {
                let (module, suffix) = (slot.canonical(), slot.suffix());
                write!(f, "model.layers.{layer}.{module}{suffix}")
            }
        }
    }
}
