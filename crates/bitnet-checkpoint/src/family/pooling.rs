//! How an embedding model makes one vector of a text, as sentence-transformers keeps it beside the weights.
//!
//! Invariant: every key of the pipeline's files is computed, known to be harmless, or refused by name: with a setting
//! ignored, the vectors would be others. The facts are those of sentence-transformers 6.2
//! (`base/modules/transformer.py`, `sentence_transformer/modules/pooling.py`, `sentence_transformer/model.py`).

use super::hf_config::{parse_value, show};
use crate::config::{Config, EmbeddingSettings, Pooling, bad_key};
use bitnet_formats::FormatError;
use serde_json::{Map, Value, json};

/// The list of a pipeline's stages.
const MODULES: &str = "modules.json";
/// Prompts and the like.
const PIPELINE: &str = "config_sentence_transformers.json";
/// Where a Transformer stage keeps its settings: the first file that exists.
const TRANSFORMER: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];
/// Where a tokenizer says how long its inputs are.
const TOKENIZER: &str = "tokenizer_config.json";
/// The library whose stages these are; a class of the same name elsewhere is other code.
const LIBRARY: &str = "sentence_transformers.";

/// Keys of [`PIPELINE`] that do not change a vector.
const HARMLESS: [&str; 4] = [
    "__version__",
    "similarity_fn_name",
    "model_type",
    "requirements",
];

/// The longest list of prompts, and the longest prompt in bytes.
const MOST_PROMPTS: usize = 1024;
const LONGEST_PROMPT: usize = 64 << 10;

/// The keys of a pooling stage, and what they mean; of others this program knows nothing.
const MODES: [(&str, Option<Pooling>); 6] = [
    ("pooling_mode_cls_token", Some(Pooling::First)),
    ("pooling_mode_mean_tokens", Some(Pooling::Mean)),
    ("pooling_mode_lasttoken", Some(Pooling::Last)),
    ("pooling_mode_max_tokens", None),
    ("pooling_mode_mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", None),
];

type Read<'a> = &'a dyn Fn(&str) -> Result<Option<Value>, FormatError>;

/// Adds what `modules.json` and the files that belong to it say, if there is one. `read` reads a JSON file below the
/// checkpoint's directory.
///
/// # Errors
/// `unsupported-config` naming the file or key: a stage, an order of stages or a setting that is not computed.
pub(crate) fn add_pooling(
    config: &mut Config,
    read: impl Fn(&str) -> Result<Option<Value>, FormatError>,
) -> Result<(), FormatError> {
    let Some(modules) = read(MODULES)? else {
        return Ok(());
    };
    let stages = modules.as_array().map_or(&[][..], Vec::as_slice);
    let kinds: Vec<_> = stages.iter().map(kind).collect();
    let normalize = match kinds[..] {
        [Some("Transformer"), Some("Pooling"), Some("Normalize")] => true,
        [Some("Transformer"), Some("Pooling")] => false,
        _ => {
            let kinds = stages
                .iter()
                .map(|stage| show(stage.get("type").unwrap_or(&Value::Null)));
            let found = match stages {
                [] => show(&modules),
                _ => format!("the stages {}", kinds.collect::<Vec<_>>().join(", ")),
            };
            let expected = "sentence_transformers' Transformer, Pooling and optionally Normalize, in this order";
            return Err(bad_key(MODULES, &found, expected).hint(
                "this program computes no other pipeline; embed with sentence-transformers",
            ));
        }
    };
    let stage = |n: usize| stages.get(n).unwrap_or(&Value::Null);
    let path = stage(0).get("path").unwrap_or(&Value::Null);
    if !path.is_null() && path != "" {
        return Err(bad_key(
            MODULES,
            &show(path),
            "the Transformer stage in the directory itself (path \"\")",
        ));
    }
    let Some(name) = settings(stage(1)) else {
        let path = show(stage(1).get("path").unwrap_or(&Value::Null));
        return Err(bad_key(MODULES, &path, "the path of a directory beside it"));
    };
    let stage =
        read(&name)?.ok_or_else(|| bad_key(&name, "nothing", "a pooling stage's settings"))?;
    let mut embedding = EmbeddingSettings {
        normalize,
        ..EmbeddingSettings::default()
    };
    add_pipeline(&mut embedding, &read)?;
    let prompted = embedding.prompts.iter().any(|(_, text)| !text.is_empty());
    config.pooling = Some(pooling(&name, &stage, config.hidden_size, prompted)?);
    embedding.max_seq_length = max_seq_length(&read, config.max_position_embeddings)?;
    config.embedding = checked(embedding, ["default_prompt_name", "max_seq_length"])?;
    Ok(())
}

/// Refuses what contradicts itself; `keys` are the names of the default prompt and of the length.
pub(super) fn checked(
    settings: EmbeddingSettings,
    [default, length]: [&str; 2],
) -> Result<EmbeddingSettings, FormatError> {
    if let Some(name) = &settings.default_prompt_name
        && settings.prompt(name).is_none()
    {
        let names: Vec<_> = settings
            .prompts
            .iter()
            .map(|(name, _)| name.as_str())
            .collect();
        let expected = format!("one of the prompts ({})", names.join(", "));
        return Err(bad_key(default, &format!("{name:?}"), &expected));
    }
    match settings.max_seq_length {
        Some(n) if n == 0 || n > u32::MAX as usize => {
            Err(bad_key(length, &n.to_string(), "a number of tokens"))
        }
        _ => Ok(settings),
    }
}

/// Prompts, from [`PIPELINE`].
fn add_pipeline(embedding: &mut EmbeddingSettings, read: Read<'_>) -> Result<(), FormatError> {
    let Some(pipeline) = read(PIPELINE)? else {
        return Ok(());
    };
    for (key, value) in object(PIPELINE, &pipeline)? {
        match key.as_str() {
            "prompts" => embedding.prompts = prompts(PIPELINE, Some(value))?,
            "default_prompt_name" => {
                embedding.default_prompt_name = match value {
                    Value::Null => None,
                    Value::String(name) => Some(name.clone()),
                    other => {
                        return Err(bad_key(key, &show(other), "the name of a prompt, or null"));
                    }
                }
            }
            // whatever cuts or quantizes the finished vector
            _ if is_off(value) || HARMLESS.contains(&key.as_str()) => {}
            _ => return Err(unknown(PIPELINE, key, value)),
        }
    }
    Ok(())
}

/// The texts of prompts by name.
pub(super) fn prompts(
    file: &str,
    value: Option<&Value>,
) -> Result<Vec<(String, String)>, FormatError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(Vec::new());
    };
    let all = object(file, value)?;
    if all.len() > MOST_PROMPTS {
        let found = format!("{} prompts", all.len());
        return Err(bad_key(file, &found, &format!("at most {MOST_PROMPTS}")));
    }
    let text = |(name, text): (&String, &Value)| match text.as_str() {
        Some(text) if text.len() <= LONGEST_PROMPT => Ok((name.clone(), text.to_owned())),
        Some(text) => {
            let found = format!("a prompt of {} bytes", text.len());
            Err(bad_key(
                name,
                &found,
                &format!("at most {LONGEST_PROMPT} bytes"),
            ))
        }
        None => Err(bad_key(name, &show(text), "the text of a prompt")),
    };
    all.iter().map(text).collect()
}

/// The JSON of prompts.
pub(super) fn prompts_json(prompts: &[(String, String)]) -> Value {
    let pairs = prompts
        .iter()
        .map(|(name, text)| (name.clone(), json!(text)));
    Value::Object(pairs.collect::<Map<_, _>>())
}

/// Where inputs are cut: what the Transformer stage says, else what its tokenizer says, if that is below what the
/// network was made for.
fn max_seq_length(read: Read<'_>, positions: usize) -> Result<Option<usize>, FormatError> {
    let mut length = None;
    for name in TRANSFORMER {
        let Some(settings) = read(name)? else {
            continue;
        };
        for (key, value) in object(name, &settings)? {
            let fine = match key.as_str() {
                "max_seq_length" => {
                    length = match value {
                        Value::Null => None,
                        value => Some(whole(key, value)?),
                    };
                    true
                }
                "transformer_task" => value == "feature-extraction",
                "module_output_name" => value == "token_embeddings",
                "modality_config" => {
                    *value
                        == json!({"text": {"method": "forward", "method_output_name": "last_hidden_state"}})
                }
                _ => false,
            };
            if !fine && !is_off(value) {
                let error = unknown(name, key, value);
                return Err(match key.as_str() {
                    "do_lower_case" => error.hint(
                        "lower the case of the texts yourself and set do_lower_case to false",
                    ),
                    _ => error,
                });
            }
        }
        break;
    }
    let tokenizer = read(TOKENIZER)?.unwrap_or(Value::Null);
    if length.is_none() {
        // a number far beyond every context (1e30) says that there is no limit
        let said = tokenizer.get("model_max_length").and_then(Value::as_f64);
        length = said
            .filter(|n| *n >= 1.0 && *n < positions as f64 && n.fract() == 0.0)
            .map(|n| n as usize);
    }
    if length.is_some()
        && tokenizer
            .get("truncation_side")
            .is_some_and(|side| side == "left")
    {
        return Err(bad_key("truncation_side", "\"left\"", "\"right\""));
    }
    Ok(length)
}

fn whole(key: &str, value: &Value) -> Result<usize, FormatError> {
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    number.ok_or_else(|| bad_key(key, &show(value), "a number of tokens"))
}

fn object<'a>(name: &str, value: &'a Value) -> Result<&'a Map<String, Value>, FormatError> {
    value
        .as_object()
        .ok_or_else(|| bad_key(name, &show(value), "a JSON object"))
}

/// Whether a setting says nothing: null, false, or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(keys) => keys.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

fn unknown(file: &str, key: &str, value: &Value) -> FormatError {
    bad_key(
        key,
        &show(value),
        "no such setting: it would change the vectors, and this program does not compute it",
    )
    .hint(format!(
        "the key is in {file}; embed with sentence-transformers where it is needed"
    ))
}

/// `Pooling` of `sentence_transformers.models.Pooling`.
fn kind(stage: &Value) -> Option<&str> {
    let class = stage.get("type")?.as_str()?.strip_prefix(LIBRARY)?;
    class.rsplit('.').next()
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

/// The one mode that a stage has. `prompted`: whether the pipeline has prompts.
fn pooling(
    name: &str,
    stage: &Value,
    hidden_size: usize,
    prompted: bool,
) -> Result<Pooling, FormatError> {
    let mut modes = Vec::new();
    let mut include_prompt = true;
    for (key, value) in object(name, stage)? {
        match key.as_str() {
            "include_prompt" => {
                include_prompt = value
                    .as_bool()
                    .ok_or_else(|| bad_key(key, &show(value), "true or false"))?;
            }
            "word_embedding_dimension" | "embedding_dimension" => {
                if !value.is_null() && value.as_u64() != Some(hidden_size as u64) {
                    return Err(bad_key(
                        key,
                        &show(value),
                        &format!("the hidden size, {hidden_size}"),
                    ));
                }
            }
            // later versions have one word, or a list of words, instead of the flags
            "pooling_mode" => {
                let words = match value {
                    Value::Array(words) => words.as_slice(),
                    word => std::slice::from_ref(word),
                };
                for word in words {
                    let mode = word.as_str().and_then(mode_of_word);
                    modes.push(
                        mode.ok_or_else(|| bad_key(key, &show(word), "cls, mean or lasttoken"))?,
                    );
                }
            }
            _ if is_off(value) => {}
            _ => match MODES.iter().find(|(flag, _)| flag == key) {
                Some(mode) if *value == Value::Bool(true) => modes.push(mode),
                _ => return Err(unknown(name, key, value)),
            },
        }
    }
    let pooling = match modes[..] {
        [(_, Some(pooling))] => *pooling,
        [(key, None)] => return Err(bad_key(name, key, "cls_token, mean_tokens or lasttoken")),
        _ => {
            let found = format!("{} known modes", modes.len());
            return Err(bad_key(name, &found, "one pooling mode"));
        }
    };
    if !include_prompt && prompted && pooling != Pooling::Last {
        return Err(bad_key(
            "include_prompt",
            "false",
            "true: this program pools over prompts too",
        )
        .hint(format!("the key is in {name}")));
    }
    Ok(pooling)
}

/// `cls` and `cls_token`, `mean` and `mean_tokens`, and so on.
fn mode_of_word(word: &str) -> Option<&'static (&'static str, Option<Pooling>)> {
    MODES.iter().find(|(key, _)| {
        let of_flag = key.trim_start_matches("pooling_mode_");
        let short = of_flag
            .trim_end_matches("_tokens")
            .trim_end_matches("_token");
        word == of_flag || word == short
    })
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
    let mut modules = vec![
        stage(0, "", "Transformer"),
        stage(1, "1_Pooling", "Pooling"),
    ];
    let EmbeddingSettings {
        normalize,
        prompts,
        default_prompt_name,
        max_seq_length,
    } = &config.embedding;
    if *normalize {
        modules.push(stage(2, "2_Normalize", "Normalize"));
    }
    let modes = MODES.map(|(key, mode)| (key, json!(mode == Some(pooling))));
    let settings: Map<String, Value> = [("word_embedding_dimension", json!(config.hidden_size))]
        .into_iter()
        .chain(modes)
        .chain([("include_prompt", json!(true))])
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    let mut files = vec![
        (MODULES.to_owned(), json!(modules)),
        ("1_Pooling/config.json".to_owned(), Value::Object(settings)),
    ];
    if !prompts.is_empty() {
        let pipeline = json!({
            "prompts": prompts_json(prompts),
            "default_prompt_name": default_prompt_name,
        });
        files.push((PIPELINE.to_owned(), pipeline));
    }
    if let Some(tokens) = max_seq_length {
        let transformer = json!({"max_seq_length": tokens, "do_lower_case": false});
        files.push((TRANSFORMER[0].to_owned(), transformer));
    }
    files
}
