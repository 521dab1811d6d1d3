//! Mixtures of experts in GGUF metadata.
//!
//! Invariant: what is written reads back as the same experts; a key that would choose or weigh experts otherwise is
//! refused.

use super::{Keys, WINDOW_PATTERN};
use crate::config::MixtureOfExperts;
use bitnet_formats::{FormatError, MetaArray, MetaValue};

pub(super) const COUNT: &str = "expert_count";
const USED: &str = "expert_used_count";
const WIDTH: &str = "expert_feed_forward_length";
const CLAMP: &str = "swiglu_clamp_exp";
/// llama.cpp's number for the softmax of the router's logits.
const SOFTMAX: f64 = 1.0;

/// Keys that are read here, or that have one value.
pub(super) const KEYS: [&str; 9] = [
    COUNT,
    USED,
    WIDTH,
    CLAMP,
    "expert_shared_count",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    "leading_dense_block_count",
];

/// The experts of a network of so many layers. `clamp`: whether the architecture bounds their gates.
pub(super) fn read(
    keys: &Keys<'_>,
    clamp: bool,
    layers: usize,
) -> Result<Option<MixtureOfExperts>, FormatError> {
    let count = keys.required_size(COUNT)?;
    if count == 0 {
        return Err(keys.bad(COUNT, "a number from 1 on"));
    }
    for (name, fine) in [
        ("expert_shared_count", &[0.0][..]),
        ("leading_dense_block_count", &[0.0]),
        ("expert_weights_scale", &[0.0, 1.0]),
        ("expert_gating_func", &[SOFTMAX]),
    ] {
        if keys
            .number(name)?
            .is_some_and(|n| !fine.contains(&f64::from(n)))
        {
            let fine: Vec<String> = fine.iter().map(f64::to_string).collect();
            return Err(keys.bad(name, &fine.join(" or ")));
        }
    }
    let divides = keys.get("expert_weights_norm");
    if divides.is_some_and(|divides| divides.as_bool() != Some(true)) {
        return Err(keys.bad("expert_weights_norm", "true"));
    }
    let used = keys.required_size(USED)?;
    let intermediate_size = match (keys.size(WIDTH)?, clamp) {
        (Some(width), _) => width,
        (None, true) => keys.required_size(WIDTH)?,
        // what readers take then
        (None, false) => {
            let all = keys.required_size("feed_forward_length")?;
            all.checked_div(used).unwrap_or(0)
        }
    };
    // `Config::checked` bounds the number later
    let layers = layers.min(1024);
    Ok(Some(MixtureOfExperts {
        count,
        used,
        intermediate_size,
        normalize: true,
        clamp: match clamp {
            true => clamp_of(keys, layers)?,
            false => None,
        },
        layers: vec![true; layers],
    }))
}

/// The bound that a file says for every layer; 0 is none.
fn clamp_of(keys: &Keys<'_>, layers: usize) -> Result<Option<f32>, FormatError> {
    let expected = format!("{layers} equal numbers (f32), 0 for none");
    let bad = || keys.bad(CLAMP, &expected);
    let numbers = match keys.get(CLAMP) {
        Some(MetaValue::Array(MetaArray::F32(numbers))) => numbers.clone(),
        Some(MetaValue::F32(number)) => vec![*number; layers],
        _ => return Err(bad()),
    };
    let first = numbers.first().copied().unwrap_or(0.0);
    let is_one = numbers.iter().all(|n| n.to_bits() == first.to_bits());
    if numbers.len() != layers || !is_one || !first.is_finite() || first < 0.0 {
        return Err(bad());
    }
    Ok((first != 0.0).then_some(first))
}

/// Which layers have a window, by the list that a file has to have.
pub(super) fn window_flags(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    let flags = match keys.get(WINDOW_PATTERN) {
        Some(MetaValue::Array(MetaArray::Bool(flags))) => Some(flags.clone()),
        // readers take numbers of this type too
        Some(MetaValue::Array(MetaArray::U32(flags))) => {
            Some(flags.iter().map(|flag| *flag != 0).collect())
        }
        Some(MetaValue::Array(MetaArray::I32(flags))) => {
            Some(flags.iter().map(|flag| *flag != 0).collect())
        }
        _ => None,
    };
    let flags = flags.filter(|flags| flags.len() == layers);
    flags.ok_or_else(|| {
        let expected = format!("{layers} flags, true for layers with a window");
        keys.bad(WINDOW_PATTERN, &expected)
    })
}

/// The keys of the experts of a network.
pub(super) fn keys(experts: &MixtureOfExperts, clamp: bool) -> Vec<(&'static str, MetaValue)> {
    // `Config::checked` bounds every size far below 2^32
    let size = |v: usize| MetaValue::U32(u32::try_from(v).unwrap_or(u32::MAX));
    let mut keys = vec![
        (COUNT, size(experts.count)),
        (USED, size(experts.used)),
        (WIDTH, size(experts.intermediate_size)),
    ];
    if clamp {
        let most = experts.clamp.unwrap_or(0.0);
        let numbers = MetaArray::F32(vec![most; experts.layers.len()]);
        keys.push((CLAMP, MetaValue::Array(numbers)));
    }
    keys
}
