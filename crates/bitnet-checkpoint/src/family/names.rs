//! Tensor names that several families share.
//!
//! Invariant: within one naming, different slots have different names.

use crate::slot::{LayerSlot, Slot};

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
                LayerSlot::QProj => "attn_q",
                LayerSlot::KProjNorm => "attn_k_norm_in",
                LayerSlot::KProj => "attn_k",
                LayerSlot::VProjNorm => "attn_v_norm_in",
                LayerSlot::VProj => "attn_v",
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
            };
            format!("blk.{layer}.{role}.weight")
        }
    }
}
