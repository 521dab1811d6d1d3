//! Names and fused matrices of bitnet.cpp's GPU checkpoints (`formats/packing/ms_gpu_int2.md`).
//!
//! Invariant: the names are those of one network, BitNet 2B4T's, which is all that the GPU program computes; a
//! slot that it does not have has no place.

use crate::config::{Activation, ActivationQuantization, Config, ExtraNorms, RopeScaling};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};

/// Scales in the tensor beside a matrix, used or not.
pub const GPU_SCALES: usize = 4;

/// Where a slot lies in such a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuPlace {
    /// The tensor.
    pub name: String,
    /// All slots of the tensor, top to bottom.
    pub parts: Vec<Slot>,
    /// Which of them this one is.
    pub part: usize,
}

/// The place of a slot; `None` for one that the network does not have.
pub fn gpu_place(slot: Slot) -> Option<GpuPlace> {
    use LayerSlot::*;
    let (layer, role) = match slot {
        Slot::TokenEmbeddings => return Some(alone(slot, "tok_embeddings.weight".to_owned())),
        Slot::OutputNorm => return Some(alone(slot, "norm.weight".to_owned())),
        Slot::OutputHead => return Some(alone(slot, "output.weight".to_owned())),
        Slot::Layer(layer, role) => (layer, role),
    };
    let name = |role: &str| format!("layers.{layer}.{role}.weight");
    let (role_name, parts): (&str, &[LayerSlot]) = match role {
        InputNorm => ("attention_norm", &[]),
        QProj | KProj | VProj => ("attention.wqkv", &[QProj, KProj, VProj]),
        AttnSubNorm => ("attention.attn_sub_norm", &[]),
        OProj => ("attention.wo", &[]),
        PostAttentionNorm => ("ffn_norm", &[]),
        GateProj | UpProj => ("feed_forward.w13", &[GateProj, UpProj]),
        FfnSubNorm => ("feed_forward.ffn_sub_norm", &[]),
        DownProj => ("feed_forward.w2", &[]),
        _ => return None,
    };
    if parts.is_empty() {
        return Some(alone(slot, name(role_name)));
    }
    Some(GpuPlace {
        name: name(role_name),
        parts: parts.iter().map(|part| Slot::Layer(layer, *part)).collect(),
        part: parts.iter().position(|part| *part == role)?,
    })
}

fn alone(slot: Slot, name: String) -> GpuPlace {
    GpuPlace {
        name,
        parts: vec![slot],
        part: 0,
    }
}

/// Whether the GPU program would compute this network.
///
/// # Errors
/// `target-cannot-hold`, naming what it computes and what the model has.
pub fn check_gpu_network(config: &Config) -> Result<(), FormatError> {
    let heads = config.num_attention_heads.saturating_mul(config.head_dim);
    let says: [(&str, bool, &str); 8] = [
        (
            "rotation",
            config.rotation.is_none(),
            "weights that are not rotated",
        ),
        (
            "hidden_act",
            config.hidden_act == Activation::Relu2,
            "squared relu",
        ),
        (
            "sub_norm",
            config.attn_sub_norm && config.ffn_sub_norm,
            "sub-norms before o_proj and down_proj",
        ),
        (
            "norms",
            config.norms == ExtraNorms::default(),
            "no other norms",
        ),
        ("biases", !config.biases, "no biases"),
        (
            "activation_quantization",
            config.activation_quantization == ActivationQuantization::Int8PerToken,
            "int8 activations",
        ),
        (
            "head_dim",
            heads == config.hidden_size,
            "heads as wide together as the network",
        ),
        (
            "rope_scaling",
            config.rope.scaling == RopeScaling::None,
            "rotary frequencies that are not scaled",
        ),
    ];
    match says.iter().find(|(_, fits, _)| !fits) {
        None => Ok(()),
        Some((key, _, computes)) => Err(FormatError::new(
            ErrorCode::TargetCannotHold,
            format!("the GPU program computes {computes}, the model has something else"),
        )
        .in_tensor(key)
        .hint("it runs BitNet b1.58 2B4T; choose another target for other networks")),
    }
}
