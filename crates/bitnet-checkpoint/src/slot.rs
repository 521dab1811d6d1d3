//! The role a tensor plays.
//!
//! Invariant: code above the families speaks of slots only; how a checkpoint spells them is a
//! family's business, and Hugging Face and GGUF names of the same thing meet here.

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
    /// `(num_attention_heads * head_dim, hidden_size)`, ternary.
    QProj,
    /// Input norm of `k_proj` alone, `(hidden_size,)`.
    KProjNorm,
    /// `(num_key_value_heads * head_dim, hidden_size)`, ternary.
    KProj,
    /// Input norm of `v_proj` alone, `(hidden_size,)`.
    VProjNorm,
    /// `(num_key_value_heads * head_dim, hidden_size)`, ternary.
    VProj,
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
    /// Norm of what the MLP adds to the residual stream, `(hidden_size,)`.
    FfnBranchNorm,
}

impl LayerSlot {
    /// The seven linears of a layer, in the order of the forward pass.
    pub const LINEARS: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Whether the tensor is a ternary linear.
    pub fn is_ternary(self) -> bool {
        Self::LINEARS.contains(&self)
    }

    /// The published module path inside a layer, as transformers spells it for BitNet 2B4T
    /// (`self_attn.q_proj`): the canonical name, whatever the checkpoint calls it. Places that 2B4T does
    /// not have are named as the families that have them agree to, else by their role.
    pub fn canonical(self) -> &'static str {
        match self {
            Self::InputNorm => "input_layernorm",
            Self::QProjNorm => "self_attn.q_proj.norm",
            Self::QProj => "self_attn.q_proj",
            Self::KProjNorm => "self_attn.k_proj.norm",
            Self::KProj => "self_attn.k_proj",
            Self::VProjNorm => "self_attn.v_proj.norm",
            Self::VProj => "self_attn.v_proj",
            Self::QNorm => "self_attn.q_norm",
            Self::KNorm => "self_attn.k_norm",
            Self::AttnSubNorm => "self_attn.attn_sub_norm",
            Self::OProj => "self_attn.o_proj",
            Self::AttnBranchNorm => "self_attn.branch_norm",
            Self::PostAttentionNorm => "post_attention_layernorm",
            Self::GateProjNorm => "mlp.gate_proj.norm",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProjNorm => "mlp.up_proj.norm",
            Self::UpProj => "mlp.up_proj",
            Self::FfnSubNorm => "mlp.ffn_sub_norm",
            Self::DownProj => "mlp.down_proj",
            Self::FfnBranchNorm => "mlp.branch_norm",
        }
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
                write!(f, "model.layers.{layer}.{}.weight", slot.canonical())
            }
        }
    }
}
