//! `longrope` of `config.json`.
//!
//! Invariant: a list that would change with the length of a text is refused.

use super::{Keys, Wiring};
use crate::config::LongRope;
use bitnet_formats::FormatError;
use serde_json::Value;

/// Divisors by the length of the context.
///
/// The code of MiniCPM makes one table, for the model's own context; transformers' own classes change the table with
/// the length of a text, which comes to the same unless the context is longer than the original one.
pub(super) fn read(keys: Keys<'_>, wiring: &Wiring) -> Result<Option<LongRope>, FormatError> {
    let mut found: Option<LongRope> = None;
    for (key, path) in [
        ("rope_scaling", "rope_scaling."),
        ("rope_parameters", "rope_parameters."),
    ] {
        let Some(object) = keys.get(key).filter(|object| object.is_object()) else {
            continue;
        };
        let inner = Keys { object, path };
        if inner.kind()? != Some("longrope") {
            continue;
        }
        let list = |name: &str| {
            let numbers = inner.get(name).and_then(Value::as_array);
            let number = |n: &Value| n.as_f64().map(|n| n as f32).filter(|n| n.is_finite());
            let list = numbers.and_then(|list| list.iter().map(number).collect::<Option<Vec<_>>>());
            list.ok_or_else(|| inner.bad(name, "a list of numbers"))
        };
        let (long, short) = (list("long_factor")?, list("short_factor")?);
        let context = keys.required_size("max_position_embeddings")?;
        const ORIGINAL: &str = "original_max_position_embeddings";
        let original = match keys.size(ORIGINAL)? {
            Some(original) => original,
            None => inner.size(ORIGINAL)?.unwrap_or(context),
        };
        if original == 0 {
            return Err(inner.bad(ORIGINAL, "a number from 1 on"));
        }
        if !wiring.factors && context > original && long != short {
            return Err(keys.bad("max_position_embeddings", &format!("at most {original}")).hint(
                "this class changes the frequencies with the length of a text beyond its original context; set \
                 max_position_embeddings to the original context for shorter texts",
            ));
        }
        let factor = match inner.number("factor")? {
            // transformers' own classes scale by it
            Some(factor) if !wiring.factors => f64::from(factor) * original as f64,
            _ => context as f64,
        };
        let own = inner.number("attention_factor")?;
        let computed = LongRope::attention_factor_of(factor, original as f64);
        let this = LongRope {
            long,
            short,
            original_max_position_embeddings: original,
            attention_factor: own.unwrap_or(computed as f32),
        };
        if found.as_ref().is_some_and(|other| *other != this) {
            return Err(keys.bad(key, "what rope_scaling says"));
        }
        found = Some(this);
    }
    Ok(found)
}
