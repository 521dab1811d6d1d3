//! GGUF keys of hybrids: which layers have a recurrent state, and its sizes.
//!
//! Invariant: what is written reads back as the same `Hybrid`.

use super::{Keys, show};
use crate::block::GatedDeltaNet;
use crate::config::{Hybrid, bad_key};
use bitnet_formats::{FormatError, MetaArray, MetaValue};

/// Rotated dimensions of a head.
pub(super) const ROTARY: &str = "rope.dimension_count";
const SECTIONS: &str = "rope.dimension_sections";
const INTERVAL: &str = "full_attention_interval";
pub(super) const RECURRENT: &str = "attention.recurrent_layers";
const CONV: &str = "ssm.conv_kernel";
const KEY_DIM: &str = "ssm.state_size";
const KEY_HEADS: &str = "ssm.group_count";
const VALUE_HEADS: &str = "ssm.time_step_rank";
const VALUE_WIDTH: &str = "ssm.inner_size";
/// Blocks at the end that predict further tokens.
pub(super) const PREDICTORS: &str = "nextn_predict_layers";

/// The keys that are read here.
pub(super) const KEYS: [&str; 9] = [
    SECTIONS,
    INTERVAL,
    RECURRENT,
    CONV,
    KEY_DIM,
    KEY_HEADS,
    VALUE_HEADS,
    VALUE_WIDTH,
    PREDICTORS,
];

/// Most blocks that predict further tokens. Published models have one.
const MOST_PREDICTORS: usize = 1024;

/// Layers of the network: the blocks without those that predict further tokens.
pub(super) fn layers(keys: &Keys<'_>) -> Result<usize, FormatError> {
    let blocks = keys.required_size("block_count")?;
    let predictors = keys.size(PREDICTORS)?.unwrap_or(0);
    let layers = blocks.checked_sub(predictors);
    match layers.filter(|_| predictors <= MOST_PREDICTORS) {
        Some(layers) => Ok(layers),
        None => {
            let most = format!("at most block_count = {blocks}, and at most {MOST_PREDICTORS}");
            Err(keys.bad(PREDICTORS, &most))
        }
    }
}

/// Reads what only hybrids have.
pub(super) fn read(
    keys: &Keys<'_>,
    hidden_size: usize,
    layers: usize,
    head_dim: usize,
) -> Result<Hybrid, FormatError> {
    let value_heads = keys.required_size(VALUE_HEADS)?;
    let value_width = keys.required_size(VALUE_WIDTH)?;
    if value_heads == 0 || !value_width.is_multiple_of(value_heads) {
        let expected = format!("a multiple of {VALUE_HEADS} = {value_heads}");
        return Err(keys.bad(VALUE_WIDTH, &expected));
    }
    Ok(Hybrid {
        delta: GatedDeltaNet {
            hidden_size,
            key_heads: keys.required_size(KEY_HEADS)?,
            value_heads,
            key_dim: keys.required_size(KEY_DIM)?,
            value_dim: value_width.checked_div(value_heads).unwrap_or(0),
            conv_kernel: keys.required_size(CONV)?,
        },
        recurrent: recurrent(keys, layers)?,
        rotary_dim: keys.size(ROTARY)?.unwrap_or(head_dim),
        rope_sections: sections(keys)?,
    })
}

/// Which layers have a state: a list of them, else all but every so many.
fn recurrent(keys: &Keys<'_>, layers: usize) -> Result<Vec<bool>, FormatError> {
    if let Some(found) = keys.get(RECURRENT) {
        let MetaValue::Array(MetaArray::Bool(list)) = found else {
            return Err(keys.bad(RECURRENT, "an array of true and false"));
        };
        // blocks that predict further tokens stand behind the layers
        return match list.get(..layers) {
            Some(list) => Ok(list.to_vec()),
            None => {
                let found = format!("{} layers", list.len());
                let expected = format!("block_count = {layers}");
                Err(bad_key(&keys.key(RECURRENT), &found, &expected))
            }
        };
    }
    // every reader's value for an absent key
    let every = keys.size(INTERVAL)?.unwrap_or(4);
    // `Config::checked` bounds the number of layers later
    if every == 0 || layers > super::super::MOST_LAYERS as usize {
        return Err(keys.bad(INTERVAL, "a number from 1 on"));
    }
    Ok(super::super::windows_every(every, layers))
}

/// `rope.dimension_sections`: three numbers and a zero.
fn sections(keys: &Keys<'_>) -> Result<[usize; 3], FormatError> {
    let Some(found) = keys.get(SECTIONS) else {
        return Ok(Hybrid::ROPE_SECTIONS);
    };
    let list: Option<Vec<i64>> = match found {
        MetaValue::Array(MetaArray::I32(a)) => Some(a.iter().map(|v| (*v).into()).collect()),
        MetaValue::Array(MetaArray::U32(a)) => Some(a.iter().map(|v| (*v).into()).collect()),
        _ => None,
    };
    let list = list.unwrap_or_default();
    let sizes: Option<Vec<usize>> = list.iter().map(|n| usize::try_from(*n).ok()).collect();
    match sizes.as_deref() {
        Some(&([t, h, w] | [t, h, w, 0])) => Ok([t, h, w]),
        _ => Err(bad_key(
            &keys.key(SECTIONS),
            &show(Some(found)),
            "three whole numbers and 0",
        )),
    }
}

/// The keys, without the architecture in front.
pub(super) fn metadata(hybrid: &Hybrid) -> Vec<(&'static str, MetaValue)> {
    // `Config::checked` bounds every size far below 2^31
    let size = |v: usize| MetaValue::U32(u32::try_from(v).unwrap_or(u32::MAX));
    let Hybrid {
        delta,
        recurrent,
        rotary_dim: _, // with the keys that every architecture has
        rope_sections,
    } = hybrid;
    let sections = rope_sections.iter().chain(&[0]);
    let sections = sections.map(|n| i32::try_from(*n).unwrap_or(i32::MAX));
    let mut keys = vec![
        (
            SECTIONS,
            MetaValue::Array(MetaArray::I32(sections.collect())),
        ),
        (CONV, size(delta.conv_kernel)),
        (KEY_DIM, size(delta.key_dim)),
        (KEY_HEADS, size(delta.key_heads)),
        (VALUE_HEADS, size(delta.value_heads)),
        (VALUE_WIDTH, size(delta.value_width())),
    ];
    let layers = recurrent.len();
    let is_every = |every: &usize| super::super::windows_every(*every, layers) == *recurrent;
    // readers take 4 where nothing is said
    let every = [4].into_iter().chain(1..=layers.saturating_add(1));
    match every.into_iter().find(is_every) {
        Some(every) => keys.push((INTERVAL, size(every))),
        // older readers do not know the list: they miss tensors, and say so
        None => {
            let list = MetaArray::Bool(recurrent.clone());
            keys.push((RECURRENT, MetaValue::Array(list)));
        }
    }
    keys
}
