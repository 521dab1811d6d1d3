//! The block of a hybrid that predicts a further token (MTP), by its names in both containers.
//!
//! Invariant: it is carried, never computed. A tensor has a counterpart only where its bytes, or the gain of a norm, mean
//! the same there; every other one is named and left out.

use super::Family;
use super::hf_config::hybrid::TEXT;
use crate::config::Config;
use serde_json::{Value, json};

/// Beginnings of names in Hugging Face checkpoints.
const PREFIXES: [&str; 3] = ["mtp.", "model.mtp.", "language_model.mtp."];
/// Tensors of the one block, of a checkpoint below `layers.0.` and of GGUF below `blk.N.`; norms hold `w` there, and `1 + w`
/// here.
const OF_LAYER: [(&str, &str, bool); 11] = [
    ("input_layernorm.weight", "attn_norm.weight", true),
    ("self_attn.q_proj.weight", "attn_q.weight", false),
    ("self_attn.k_proj.weight", "attn_k.weight", false),
    ("self_attn.v_proj.weight", "attn_v.weight", false),
    ("self_attn.o_proj.weight", "attn_output.weight", false),
    ("self_attn.q_norm.weight", "attn_q_norm.weight", true),
    ("self_attn.k_norm.weight", "attn_k_norm.weight", true),
    (
        "post_attention_layernorm.weight",
        "post_attention_norm.weight",
        true,
    ),
    ("mlp.gate_proj.weight", "ffn_gate.weight", false),
    ("mlp.up_proj.weight", "ffn_up.weight", false),
    ("mlp.down_proj.weight", "ffn_down.weight", false),
];
/// Tensors around it: of a checkpoint below `mtp.`.
const AROUND: [(&str, &str, bool); 4] = [
    ("fc.weight", "nextn.eh_proj.weight", false),
    ("pre_fc_norm_embedding.weight", "nextn.enorm.weight", true),
    ("pre_fc_norm_hidden.weight", "nextn.hnorm.weight", true),
    ("norm.weight", "nextn.shared_head_norm.weight", true),
];

/// The name of a tensor in the other container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counterpart {
    /// Its name there.
    pub name: String,
    /// Whether it is a norm.
    pub is_norm: bool,
}

/// The part of a name behind `mtp.`.
fn of_checkpoint(name: &str) -> Option<&str> {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))
}

impl Family {
    /// Says in a `config.json` that was written from nothing how many such blocks there are.
    pub fn add_predictors(&self, config_json: &mut Value, blocks: usize) {
        if let Some(Value::Object(text)) = config_json.get_mut(TEXT) {
            text.insert("mtp_num_hidden_layers".to_owned(), json!(blocks));
            text.insert("mtp_use_dedicated_embeddings".to_owned(), json!(false));
        }
    }

    /// The name in GGUF of a tensor of a checkpoint, or the name in a checkpoint of a tensor of GGUF; `None` for what the
    /// other container has no place for.
    pub fn predictor(&self, name: &str, config: &Config) -> Option<Counterpart> {
        if !self.gguf_wiring.hybrid {
            return None;
        }
        let block = format!("blk.{}.", config.num_hidden_layers);
        if let Some(part) = name.strip_prefix(&block) {
            let find = |rows: &'static [(&str, &str, bool)]| {
                rows.iter().find(|(_, gguf, _)| *gguf == part)
            };
            let in_layer =
                find(&OF_LAYER).map(|(hf, _, norm)| (format!("mtp.layers.0.{hf}"), norm));
            let around = || find(&AROUND).map(|(hf, _, norm)| (format!("mtp.{hf}"), norm));
            let (name, is_norm) = in_layer.or_else(around)?;
            let is_norm = *is_norm;
            return Some(Counterpart { name, is_norm });
        }
        let part = of_checkpoint(name)?;
        let rows = match part.strip_prefix("layers.0.") {
            Some(_) => &OF_LAYER[..],
            None => &AROUND[..],
        };
        let part = part.strip_prefix("layers.0.").unwrap_or(part);
        let (_, gguf, is_norm) = rows.iter().find(|(hf, _, _)| *hf == part)?;
        Some(Counterpart {
            name: format!("{block}{gguf}"),
            is_norm: *is_norm,
        })
    }

    /// Whether a tensor is of a second such block, which shares what stands around with the first: a checkpoint has
    /// this once, GGUF once a block.
    pub(crate) fn is_later_predictor(&self, name: &str, config: &Config) -> bool {
        let number = |text: &str| text.split('.').next().and_then(|n| n.parse::<usize>().ok());
        if let Some(rest) = name.strip_prefix("blk.") {
            return number(rest).is_some_and(|block| block > config.num_hidden_layers);
        }
        let layer = of_checkpoint(name).and_then(|part| part.strip_prefix("layers."));
        layer.and_then(number).is_some_and(|layer| layer > 0)
    }
}
