//! How an embedding model makes one vector of a text, as sentence-transformers keeps it beside the weights.
//!
//! Invariant: a pipeline that does anything but run the network, pool and normalise is refused: its vectors
//! would be others.

use super::hf_config::{parse_value, show};
use crate::config::{Config, Pooling, bad_key};
use bitnet_formats::FormatError;
use serde_json::{Value, json};

/// The list of a pipeline's stages.
const MODULES: &str = "modules.json";

/// The keys of a pooling stage, and what they mean; of others this program knows nothing.
const MODES: [(&str, Option<Pooling>); 6] = [
    ("pooling_mode_cls_token", Some(Pooling::First)),
    ("pooling_mode_mean_tokens", Some(Pooling::Mean)),
    ("pooling_mode_lasttoken", Some(Pooling::Last)),
    ("pooling_mode_max_tokens", None),
    ("pooling_mode_mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", None),
];

/// Adds what `modules.json` says, if there is one. `read` reads a JSON file below the checkpoint's directory.
pub(crate) fn add_pooling(
    config: &mut Config,
    read: impl Fn(&str) -> Result<Option<Value>, FormatError>,
) -> Result<(), FormatError> {
    let Some(modules) = read(MODULES)? else {
        return Ok(());
    };
    let stages = modules.as_array().map_or(&[][..], Vec::as_slice);
    if stages.is_empty() {
        return Err(bad_key(MODULES, &show(&modules), "a list of stages"));
    }
    for stage in stages {
        match kind(stage) {
            Some("Transformer" | "Normalize") => {}
            Some("Pooling") => {
                let Some(name) = settings(stage) else {
                    let path = show(stage.get("path").unwrap_or(&Value::Null));
                    return Err(bad_key(MODULES, &path, "the path of a directory beside it"));
                };
                let stage = read(&name)?
                    .ok_or_else(|| bad_key(&name, "nothing", "a pooling stage's settings"))?;
                config.pooling = Some(pooling(&name, &stage)?);
            }
            _ => {
                let kind = show(stage.get("type").unwrap_or(&Value::Null));
                let expected = "stages Transformer, Pooling and Normalize";
                return Err(bad_key(MODULES, &kind, expected));
            }
        }
    }
    Ok(())
}

/// `Pooling` of `sentence_transformers.models.Pooling`.
fn kind(stage: &Value) -> Option<&str> {
    stage.get("type")?.as_str()?.rsplit('.').next()
}

/// Where a stage keeps its settings, in a directory beside the weights.
fn settings(stage: &Value) -> Option<String> {
    let path = stage.get("path")?.as_str()?;
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    (!path.is_empty() && path.chars().all(fine)).then(|| format!("{path}/config.json"))
}

/// The paths of the settings that a `modules.json` names, below its directory.
///
/// # Errors
/// `malformed` for what is no JSON.
pub fn pooling_settings(modules: &[u8]) -> Result<Vec<String>, FormatError> {
    let modules = parse_value(modules)?;
    let stages = modules.as_array().map_or(&[][..], Vec::as_slice);
    let pooling = stages.iter().filter(|stage| kind(stage) == Some("Pooling"));
    Ok(pooling.filter_map(settings).collect())
}

/// The one mode that a stage has.
fn pooling(name: &str, stage: &Value) -> Result<Pooling, FormatError> {
    let on = |key: &str| stage.get(key) == Some(&Value::Bool(true));
    let mut modes: Vec<_> = MODES.iter().filter(|(key, _)| on(key)).collect();
    // later versions have one word instead of the flags
    let word = stage.get("pooling_mode").and_then(Value::as_str);
    if let Some(word) = word {
        modes = MODES
            .iter()
            .filter(|(key, _)| {
                let of_flag = key.trim_start_matches("pooling_mode_");
                word == of_flag
                    || word
                        == of_flag
                            .trim_end_matches("_tokens")
                            .trim_end_matches("_token")
            })
            .collect();
    }
    match modes[..] {
        [(_, Some(pooling))] => Ok(*pooling),
        [(key, None)] => Err(bad_key(name, key, "cls_token, mean_tokens or lasttoken")),
        _ => Err(bad_key(
            name,
            &format!("{} known modes", modes.len()),
            "one pooling mode",
        )),
    }
}

/// The files that say how `config` pools, by their path below the checkpoint's directory; none for a network
/// that is no embedding model.
pub fn pooling_files(config: &Config) -> Vec<(String, Value)> {
    let Some(pooling) = config.pooling else {
        return Vec::new();
    };
    let stage = |number: usize, path: &str, kind: &str| {
        json!({
            "idx": number,
            "name": number.to_string(),
            "path": path,
            "type": format!("sentence_transformers.models.{kind}"),
        })
    };
    let modules = json!([
        stage(0, "", "Transformer"),
        stage(1, "1_Pooling", "Pooling"),
        stage(2, "2_Normalize", "Normalize"),
    ]);
    let mut settings = json!({"word_embedding_dimension": config.hidden_size});
    for (key, mode) in MODES {
        settings[key] = json!(mode == Some(pooling));
    }
    settings["include_prompt"] = json!(true);
    vec![
        (MODULES.to_owned(), modules),
        ("1_Pooling/config.json".to_owned(), settings),
    ]
}
