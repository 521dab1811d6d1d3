//! Mixtures of experts in `config.json`.
//!
//! Invariant: what is written reads back as the same experts; a key that would choose or weigh experts otherwise is
//! refused.

use super::{Keys, Neutral};
use crate::config::{Config, MixtureOfExperts, SlidingWindow};
use bitnet_formats::FormatError;
use serde_json::{Value, json};

/// What an architecture decides about its experts and `config.json` does not say.
#[derive(Debug, Clone, Copy)]
pub(in crate::family) struct ExpertWiring {
    /// What bounds the inputs of the activation function.
    pub clamp: Option<f32>,
    /// What an absent `norm_topk_prob` means.
    pub normalizes: bool,
    /// The value that `norm_topk_prob` must have, if programs do not read it.
    pub always: Option<bool>,
}

/// Keys of other mixtures, and the values that are computed here.
pub(in crate::family) const KEYS: [(&str, Neutral); 15] = [
    ("num_experts", Neutral::Any),
    ("num_experts_per_tok", Neutral::Any),
    ("moe_intermediate_size", Neutral::Any),
    ("norm_topk_prob", Neutral::Any),
    ("decoder_sparse_step", Neutral::Any),
    ("mlp_only_layers", Neutral::Any),
    ("first_k_dense_replace", Neutral::Any),
    ("num_shared_experts", Neutral::Zero),
    ("moe_router_enable_expert_bias", Neutral::False),
    ("router_dtype", Neutral::Is("fp32")),
    ("scoring_func", Neutral::Is("softmax")),
    ("routed_scaling_factor", Neutral::One),
    ("n_group", Neutral::One),
    ("topk_group", Neutral::One),
    ("output_router_logits", Neutral::Any),
];

/// The experts of a network of so many layers.
pub(super) fn read(
    keys: Keys<'_>,
    wiring: ExpertWiring,
    layers: usize,
) -> Result<Option<MixtureOfExperts>, FormatError> {
    let count = keys.required_size("num_experts")?;
    if count == 0 {
        return Ok(None);
    }
    let normalize = keys.flag("norm_topk_prob")?;
    if let (Some(always), Some(found)) = (wiring.always, normalize)
        && found != always
    {
        return Err(keys.bad("norm_topk_prob", &always.to_string()));
    }
    let layers = with_experts(keys, layers)?;
    if !layers.contains(&true) {
        return Ok(None);
    }
    Ok(Some(MixtureOfExperts {
        count,
        used: keys.required_size("num_experts_per_tok")?,
        intermediate_size: keys.required_size("moe_intermediate_size")?,
        normalize: normalize.unwrap_or(wiring.normalizes),
        clamp: wiring.clamp,
        layers,
    }))
}

/// Which of so many layers have experts: those from `first_k_dense_replace` on whose number, counted from 1, is a
/// multiple of `decoder_sparse_step`, without those that `mlp_only_layers` lists.
fn with_experts(keys: Keys<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    let first = keys.size("first_k_dense_replace")?.unwrap_or(0);
    let step = keys.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(keys.bad("decoder_sparse_step", "a number from 1 on"));
    }
    let dense = match keys.get("mlp_only_layers") {
        None => Vec::new(),
        Some(list) => {
            let number = |n: &Value| n.as_u64().and_then(|n| usize::try_from(n).ok());
            let list = list.as_array();
            let list = list.and_then(|l| l.iter().map(number).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| keys.bad("mlp_only_layers", "a list of layers"))?
        }
    };
    // `Config::checked` bounds the number later
    let layers = 0..layers.min(1024);
    let is_sparse = |layer: usize| {
        layer >= first && layer.saturating_add(1).is_multiple_of(step) && !dense.contains(&layer)
    };
    Ok(layers.map(is_sparse).collect())
}

/// The keys of the experts of a network.
pub(in crate::family) fn keys(config: &Config) -> Vec<(&'static str, Value)> {
    let Some(experts) = &config.experts else {
        return vec![("num_experts", json!(0))];
    };
    let layers = experts.layers.iter().enumerate();
    let dense = layers.filter(|(_, has)| !**has).map(|(layer, _)| layer);
    vec![
        ("num_experts", json!(experts.count)),
        ("num_experts_per_tok", json!(experts.used)),
        ("moe_intermediate_size", json!(experts.intermediate_size)),
        ("norm_topk_prob", json!(experts.normalize)),
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!(dense.collect::<Vec<_>>())),
    ]
}

/// Maple's windows: the layers that `layer_types` names see the last tokens, the others see all and rotate nothing.
/// There are no others without that key.
pub(super) fn windows(
    keys: Keys<'_>,
    rope_theta: f64,
    layers: usize,
) -> Result<Option<SlidingWindow>, FormatError> {
    let expected = "a list of sliding_attention and full_attention";
    let layers = match keys.get("layer_types") {
        None => vec![false; layers.min(1024)],
        Some(types) => {
            let kind = |t: &Value| match t.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            let types = types.as_array();
            let kinds = types.and_then(|t| t.iter().map(kind).collect::<Option<Vec<_>>>());
            kinds.ok_or_else(|| keys.bad("layer_types", expected))?
        }
    };
    let tokens = match layers.contains(&true) {
        true => keys.required_size("sliding_window")?,
        false => keys.size("sliding_window")?.unwrap_or(1),
    };
    Ok(Some(SlidingWindow {
        tokens,
        rope_theta,
        layers,
        full_rope: false,
    }))
}
