//! Tensor names that several families share.
//!
//! Invariant: within one naming, different slots have different names, except for experts, whose matrices of one kind
//! share a tensor in GGUF.

use crate::config::Config;
use crate::slot::{ExpertLinear, LayerSlot, Slot};

/// Hugging Face names, where the two sub-norms are spelt as the family says.
pub(super) fn hf(slot: Slot, attn_sub_norm: &str, ffn_sub_norm: &str) -> String {
    match slot {
        Slot::Layer(layer, LayerSlot::AttnSubNorm) => {
            format!("model.layers.{layer}.self_attn.{attn_sub_norm}.weight")
        }
        Slot::Layer(layer, LayerSlot::FfnSubNorm) => {
            format!("model.layers.{layer}.mlp.{ffn_sub_norm}.weight")
        }
        other => other.to_string(),
    }
}

/// GGUF names (`formats/container/gguf.md`).
pub(super) fn gguf(slot: Slot) -> String {
    gguf_with(slot, "attn_sub_norm", "ffn_sub_norm")
}

/// GGUF names, where the two sub-norms are spelt as the family says.
pub(super) fn gguf_with(slot: Slot, attn_sub_norm: &str, ffn_sub_norm: &str) -> String {
    match slot {
        Slot::TokenEmbeddings => "token_embd.weight".to_owned(),
        Slot::OutputNorm => "output_norm.weight".to_owned(),
        Slot::OutputHead => "output.weight".to_owned(),
        Slot::Layer(layer, slot) => {
            let role = match slot {
                LayerSlot::InputNorm => "attn_norm",
                LayerSlot::QProjNorm => "attn_q_norm_in",
                LayerSlot::QProj | LayerSlot::QBias => "attn_q",
                LayerSlot::KProjNorm => "attn_k_norm_in",
                LayerSlot::KProj | LayerSlot::KBias => "attn_k",
                LayerSlot::VProjNorm => "attn_v_norm_in",
                LayerSlot::VProj | LayerSlot::VBias => "attn_v",
                LayerSlot::QNorm => "attn_q_norm",
                LayerSlot::KNorm => "attn_k_norm",
                LayerSlot::AttnSubNorm => attn_sub_norm,
                LayerSlot::OProj => "attn_output",
                LayerSlot::AttnBranchNorm => "post_attention_norm",
                LayerSlot::PostAttentionNorm => "ffn_norm",
                LayerSlot::GateProjNorm => "ffn_gate_norm_in",
                LayerSlot::GateProj => "ffn_gate",
                LayerSlot::UpProjNorm => "ffn_up_norm_in",
                LayerSlot::UpProj => "ffn_up",
                LayerSlot::FfnSubNorm => ffn_sub_norm,
                LayerSlot::DownProj => "ffn_down",
                LayerSlot::FfnBranchNorm => "post_ffw_norm",
                LayerSlot::InProjQkv => "attn_qkv",
                LayerSlot::InProjZ => "attn_gate",
                LayerSlot::InProjB => "ssm_beta",
                LayerSlot::InProjA => "ssm_alpha",
                LayerSlot::Conv1d => "ssm_conv1d",
                LayerSlot::ALog => return format!("blk.{layer}.ssm_a"),
                LayerSlot::DtBias => return format!("blk.{layer}.ssm_dt.bias"),
                LayerSlot::GatedNorm => "ssm_norm",
                LayerSlot::OutProj => "ssm_out",
                LayerSlot::Router => "ffn_gate_inp",
                // one tensor for all experts
                LayerSlot::Expert(_, ExpertLinear::Gate) => "ffn_gate_exps",
                LayerSlot::Expert(_, ExpertLinear::Up) => "ffn_up_exps",
                LayerSlot::Expert(_, ExpertLinear::Down) => "ffn_down_exps",
            };
            format!("blk.{layer}.{role}{}", slot.suffix())
        }
    }
}

/// Rows of a tensor that holds several matrices one below the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Name of the tensor.
    pub name: String,
    /// Its sizes but the last, outermost first.
    pub leading: Vec<usize>,
    /// The first row of the matrix.
    pub first: usize,
}

/// Tensors of Hugging Face checkpoints that hold several linears. They are looked at if a linear has no tensor of its own.
pub(crate) fn shared_hf(slot: Slot, config: &Config) -> Vec<Shared> {
    let Slot::Layer(layer, role) = slot else {
        return Vec::new();
    };
    let below = |module: &str| format!("model.layers.{layer}.mlp.{module}");
    match role {
        LayerSlot::GateProj | LayerSlot::UpProj => {
            let rows = config.intermediate_size;
            vec![Shared {
                name: below("gate_and_up_proj.weight"),
                leading: vec![rows.saturating_mul(2)],
                first: if role == LayerSlot::UpProj { rows } else { 0 },
            }]
        }
        LayerSlot::Expert(expert, linear) => {
            let Some(experts) = &config.experts else {
                return Vec::new();
            };
            let (inter, hidden) = (experts.intermediate_size, config.hidden_size);
            let (name, rows, within) = match linear {
                ExpertLinear::Gate => ("experts.gate_up_proj", inter.saturating_mul(2), 0),
                ExpertLinear::Up => ("experts.gate_up_proj", inter.saturating_mul(2), inter),
                ExpertLinear::Down => ("experts.down_proj", hidden, 0),
            };
            let first = usize::from(expert).saturating_mul(rows);
            vec![
                stacked(below(&stacked_module(linear)), slot, config),
                Shared {
                    name: below(name),
                    leading: vec![experts.count, rows],
                    first: first.saturating_add(within),
                },
            ]
        }
        _ => Vec::new(),
    }
}

/// MLX's name of a linear of all experts, below `mlp`.
fn stacked_module(linear: ExpertLinear) -> String {
    format!("switch_mlp.{}.weight", linear.module())
}

/// The name of a linear of an expert in a checkpoint that stacks them; `None` for every other slot.
pub fn stacked_hf(slot: Slot) -> Option<String> {
    match slot {
        Slot::Layer(layer, LayerSlot::Expert(_, linear)) => Some(format!(
            "model.layers.{layer}.mlp.{}",
            stacked_module(linear)
        )),
        _ => None,
    }
}

/// A matrix of an expert among those of all experts.
pub(crate) fn stacked(name: String, slot: Slot, config: &Config) -> Shared {
    let count = config.experts.as_ref().map_or(1, |experts| experts.count);
    let rows = config.shape(slot).first().copied().unwrap_or(0);
    let expert = match slot {
        Slot::Layer(_, LayerSlot::Expert(expert, _)) => usize::from(expert),
        _ => 0,
    };
    Shared {
        name,
        leading: vec![count, rows],
        first: expert.saturating_mul(rows),
    }
}
