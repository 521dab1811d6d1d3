//! Scaling of rotary positions in GGUF metadata.
//!
//! Invariant: the scaling is what llama.cpp computes with the same keys; `ternary.rope.scaling.` keys add only what no key of
//! llama.cpp can say.

use super::{
    Keys, SCALING_ATTENTION, SCALING_FACTOR, SCALING_HIGH, SCALING_LOW, SCALING_ORIGINAL,
    SCALING_TYPE,
};
use crate::config::{RopeScaling, Yarn};
use crate::family::hf_config::linear;
use bitnet_formats::FormatError;

/// The scaling that the keys mean.
///
/// # Errors
/// `unsupported-config` for another scaling, and for numbers that readers do not compute with.
pub(super) fn read(keys: &Keys<'_>) -> Result<RopeScaling, FormatError> {
    let own = format!("/{SCALING_TYPE}");
    match keys.get(&own).map(|v| v.as_str().unwrap_or("")) {
        None => {}
        Some("llama3") => {
            let number = |name: &str| keys.required_number(&format!("/{name}"));
            return Ok(RopeScaling::Llama3 {
                factor: number(SCALING_FACTOR)?.into(),
                low_freq_factor: number(SCALING_LOW)?.into(),
                high_freq_factor: number(SCALING_HIGH)?.into(),
                original_max_position_embeddings: keys
                    .required_size(&format!("/{SCALING_ORIGINAL}"))?,
            });
        }
        Some(_) => return Err(keys.bad(&own, "\"llama3\"")),
    }
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => factor,
        None => keys.number("rope.scale_linear")?.unwrap_or(1.0),
    };
    let scaling = keys.get("rope.scaling.type");
    let scaling = scaling.map(|v| v.as_str().unwrap_or(""));
    // readers multiply the rotated heads by it whatever the type is
    let relative = keys.number("rope.scaling.attn_factor")?;
    if !matches!(scaling, Some("yarn" | "longrope")) && relative.is_some_and(|factor| factor != 1.0)
    {
        return Err(keys.bad("rope.scaling.attn_factor", "1"));
    }
    match scaling {
        // `long_rope` reads the other numbers
        Some("none" | "longrope") => Ok(RopeScaling::None),
        None | Some("linear") if factor >= 1.0 => Ok(linear(factor)),
        Some("yarn") if factor >= 1.0 => yarn(keys, factor).map(RopeScaling::Yarn),
        None | Some("linear" | "yarn") => {
            Err(keys.bad("rope.scaling.factor", "a number from 1 on"))
        }
        Some(_) => Err(keys.bad(
            "rope.scaling.type",
            "\"none\", \"linear\", \"yarn\" or \"longrope\"",
        )),
    }
}

/// The numbers of YaRN as llama.cpp computes with them: `attn_factor` multiplies `1 + 0.1 ln(factor)`, and for
/// these architectures no other key is looked at, so one that says something else is refused.
fn yarn(keys: &Keys<'_>, factor: f32) -> Result<Yarn, FormatError> {
    for (name, readers) in [
        ("rope.scaling.yarn_beta_fast", Yarn::BETA_FAST),
        ("rope.scaling.yarn_beta_slow", Yarn::BETA_SLOW),
        ("rope.scaling.yarn_ext_factor", 1.0),
        ("rope.scaling.yarn_attn_factor", 1.0),
        ("rope.scaling.yarn_log_multiplier", 0.0),
    ] {
        if keys.number(name)?.is_some_and(|n| f64::from(n) != readers) {
            return Err(keys.bad(name, &readers.to_string()));
        }
    }
    let own = keys.number(&format!("/{SCALING_ATTENTION}"))?;
    let relative = keys.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
    let readers = f64::from(relative) * Yarn::attention_factor_of(factor.into(), 1.0);
    if let Some(own) = own
        && (f64::from(own) - readers).abs() > 1e-5 * readers.abs()
    {
        let expected = format!("what {SCALING_ATTENTION} = {own} means");
        return Err(keys.bad("rope.scaling.attn_factor", &expected));
    }
    let original = match keys.size("rope.scaling.original_context_length")? {
        Some(original) if original > 0 => original,
        _ => keys.required_size("context_length")?,
    };
    Ok(Yarn {
        factor: factor.into(),
        original_max_position_embeddings: original,
        beta_fast: Yarn::BETA_FAST,
        beta_slow: Yarn::BETA_SLOW,
        attention_factor: own.unwrap_or(readers as f32).into(),
    })
}
