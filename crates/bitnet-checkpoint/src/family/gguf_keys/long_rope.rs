//! `longrope` of GGUF metadata.
//!
//! Invariant: the keys say everything but the two lists. The lists are in tensors, and opening the checkpoint reads them.

use super::{GgufWiring, Keys};
use crate::config::LongRope;
use bitnet_formats::{FormatError, MetaValue, TensorFile};

/// Divisors of the rotary frequencies for long and for short contexts, `(head_dim / 2,)` f32 each.
pub(crate) const LONG_ROPE: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

/// Divisors by the length of the context, if the scaling is `longrope`. The two lists are in tensors ([`LONG_ROPE`]); they
/// are 1 until the checkpoint has read these.
pub(super) fn read(
    file: &TensorFile,
    keys: &Keys<'_>,
    wiring: &GgufWiring,
    head_dim: usize,
) -> Result<Option<LongRope>, FormatError> {
    let kind = keys.get("rope.scaling.type").and_then(MetaValue::as_str);
    if kind != Some("longrope") {
        return match LONG_ROPE.into_iter().find_map(|name| file.tensor(name)) {
            None => Ok(None),
            Some(info) => Err(keys
                .bad(
                    "rope.scaling.type",
                    &format!("\"longrope\", because of `{}`", info.name),
                )
                .hint("readers ignore these tensors; remove them, or correct the key")),
        };
    }
    if !wiring.long_rope {
        return Err(keys.bad("rope.scaling.type", "\"none\", \"linear\" or \"yarn\""));
    }
    // `Config::checked` bounds the width later
    let [long, short] = LONG_ROPE.map(|_| vec![1.0; head_dim.min(4096) / 2]);
    let context = keys.required_size("context_length")?;
    let original = match keys.size("rope.scaling.original_context_length")? {
        Some(original) if original > 0 => original,
        _ => context,
    };
    // readers multiply the rotated heads by it, and compute none themselves
    let attention_factor = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    Ok(Some(LongRope {
        long,
        short,
        original_max_position_embeddings: original,
        attention_factor,
    }))
}

/// The keys of the architecture that say what the tensors do not.
pub(super) fn keys(long_rope: &LongRope) -> [(&'static str, MetaValue); 3] {
    // `Config::checked` bounds the context far below 2^32
    let original = u32::try_from(long_rope.original_max_position_embeddings);
    [
        ("rope.scaling.type", MetaValue::text("longrope")),
        (
            "rope.scaling.original_context_length",
            MetaValue::U32(original.unwrap_or(u32::MAX)),
        ),
        (
            "rope.scaling.attn_factor",
            MetaValue::F32(long_rope.attention_factor),
        ),
    ]
}
