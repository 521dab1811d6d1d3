//! Whether the settings that change results are the source's: wiring, tokenizer, chat template.
//!
//! Invariant: compared by meaning, not by container. Two Hugging Face directories are compared file
//! by file; where one side is GGUF, both tokenizers are brought into GGUF's terms by the one
//! function that writes them.

use super::claims;
use super::{Check, Running, Subject};
use crate::diagnose::fault::{Fault, Kind};
use crate::report::{Findings, Report};
use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, Config, ExtraNorms, Factors, Pooling, Quantization,
    RopeScaling, Slot, TILES_FORMAT, WRITER_KEYS,
};
use bitnet_formats::{Container, FormatError, MetaArray, MetaValue, Safetensors};
use bitnet_text::{ChatTemplates, has_gguf_tokenizer, normal_template_names, tokenizer_to_gguf};
use serde_json::Value;

pub(super) const CHECK: Check = Check {
    name: "metadata",
    what: "activation, norms, rope, ties, special tokens, tokenizer, chat template",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::new(Metadata) as Box<dyn Running>)
    },
};

struct Metadata;

impl Running for Metadata {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some(source) = subject.source else { return };
        let (source, artifact) = (&source.checkpoint, &subject.artifact.checkpoint);
        let mut findings = Findings::default();
        let settings = wiring(&source.config).len();
        compare_wiring(
            CHECK.name,
            (&source.config, &artifact.config),
            &mut findings,
            report,
        );
        // an absent size is the one of the tensors; one that is there some readers believe
        if let Some(declared) = artifact.declared_vocab_size
            && source.declared_vocab_size != Some(declared)
        {
            let rows = artifact.config.vocab_size;
            findings.different(
                "vocab_size",
                format!("expected {rows}, the rows of the embeddings, found {declared}"),
            );
        }
        check_format(artifact, &mut findings);
        check_quantization(artifact, &mut findings);
        let tokenizer = match compare_tokenizers(source, artifact, &mut findings) {
            Ok((text, fault)) => {
                fault.into_iter().for_each(|fault| report.fault(fault));
                text
            }
            Err(error) => {
                findings.unreadable("tokenizer", &error);
                String::new()
            }
        };
        let compared = format!("{settings} settings, {tokenizer}");
        report
            .checks
            .push(findings.into_result(CHECK.name, compared));
    }
}

/// Compares every setting that changes a result.
pub(crate) fn compare_wiring(
    check: &'static str,
    (expected, found): (&Config, &Config),
    findings: &mut Findings,
    report: &mut Report,
) {
    for ((key, expected), (_, found)) in wiring(expected).into_iter().zip(wiring(found)) {
        findings.expect(key, &expected, &found);
        if expected != found {
            report.fault(Fault::of_setting(check, key, &expected, &found));
        }
    }
}

/// Every setting that changes a result, as text.
pub(super) fn wiring(config: &Config) -> Vec<(&'static str, String)> {
    // destructured, so that a new field cannot be forgotten here; sizes are the business of `structure`
    let Config {
        hidden_size: _,
        intermediate_size: _,
        num_hidden_layers: _,
        num_attention_heads: _,
        num_key_value_heads: _,
        head_dim: _,
        vocab_size: _,
        max_position_embeddings,
        rms_norm_eps,
        rope,
        hidden_act,
        attn_sub_norm,
        ffn_sub_norm,
        norms,
        factors,
        sliding,
        pooling,
        embedding: pipeline,
        tie_word_embeddings,
        activation_quantization,
        bos_token_id,
        eos_token_ids,
    } = config;
    let scaling = match rope.scaling {
        RopeScaling::None => "none".to_owned(),
        RopeScaling::Linear { factor } => format!("linear, factor {factor}"),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => format!(
            "llama3, factor {factor}, low {low_freq_factor}, high {high_freq_factor}, original {original_max_position_embeddings}"
        ),
        RopeScaling::Yarn(yarn) => format!(
            "yarn, factor {}, original {}, beta {} to {}, attention factor {}",
            yarn.factor,
            yarn.original_max_position_embeddings,
            yarn.beta_fast,
            yarn.beta_slow,
            yarn.attention_factor as f32,
        ),
    };
    let quantization = match activation_quantization {
        ActivationQuantization::Int8PerToken => "int8 per token",
        ActivationQuantization::None => "none",
    };
    let ExtraNorms {
        heads,
        projections,
        branches,
    } = norms;
    let Factors {
        embedding,
        residual,
        head_divisor,
        query_pre_attn_scalar,
    } = factors;
    let mut eos = eos_token_ids.clone();
    eos.sort_unstable();
    vec![
        ("hidden_act", hidden_act.as_str().to_owned()),
        ("rms_norm_eps", format!("{rms_norm_eps:e}")),
        // GGUF stores it as f32
        ("rope_theta", format!("{}", rope.theta as f32)),
        ("rope_scaling", scaling),
        ("attn_sub_norm", attn_sub_norm.to_string()),
        ("ffn_sub_norm", ffn_sub_norm.to_string()),
        ("head_norms", heads.to_string()),
        ("projection_norms", projections.to_string()),
        ("branch_norms", branches.to_string()),
        ("embedding_factor", format!("{embedding:e}")),
        ("residual_factor", format!("{residual:e}")),
        ("head_divisor", format!("{head_divisor:e}")),
        (
            "query_pre_attn_scalar",
            query_pre_attn_scalar.map_or("head_dim".to_owned(), |s| s.to_string()),
        ),
        (
            "sliding_window",
            sliding
                .as_ref()
                .map_or("none".to_owned(), |window| format!("{window:?}")),
        ),
        (
            "pooling",
            pooling.map_or("none", Pooling::as_str).to_owned(),
        ),
        ("normalize_embeddings", pipeline.normalize.to_string()),
        ("prompts", format!("{:?}", pipeline.prompts)),
        (
            "default_prompt_name",
            pipeline
                .default_prompt_name
                .clone()
                .unwrap_or_else(|| "none".to_owned()),
        ),
        (
            "max_seq_length",
            pipeline
                .max_seq_length
                .map_or("none".to_owned(), |n| n.to_string()),
        ),
        ("tie_word_embeddings", tie_word_embeddings.to_string()),
        ("activation_quantization", quantization.to_owned()),
        (
            "max_position_embeddings",
            max_position_embeddings.to_string(),
        ),
        (
            "bos_token_id",
            bos_token_id.map_or("none".to_owned(), |id| id.to_string()),
        ),
        ("eos_token_id", format!("{eos:?}")),
    ]
}

/// Values of `format` in the metadata of safetensors that transformers loads; metadata without it, too, it
/// refuses.
const FORMATS: [&str; 4] = ["pt", "tf", "flax", "mlx"];

/// Whether readers of safetensors take the metadata of a file.
fn check_format(artifact: &Checkpoint, findings: &mut Findings) {
    const KEY: &str = "format";
    let metadata = &artifact.file.metadata;
    if artifact.file.container != Safetensors.name() || metadata.0.is_empty() {
        return;
    }
    let found = metadata.get(KEY).and_then(MetaValue::as_str);
    if !found.is_some_and(|f| f == TILES_FORMAT || FORMATS.contains(&f)) {
        let found = found.unwrap_or("nothing");
        let expected = FORMATS.join(", ");
        findings.different(
            KEY,
            format!("expected one of {expected} (transformers refuses others), found {found}"),
        );
    }
}

/// Whether the configuration says that weights are packed, where they are: this program sees it by their
/// type, transformers does not.
fn check_quantization(artifact: &Checkpoint, findings: &mut Findings) {
    let said = artifact.config_json.as_ref();
    let said = said.map(|json| artifact.family.quantization(json));
    let is_packed = |slot: Slot| {
        let linear = artifact.linear(slot);
        linear.is_ok_and(|linear| linear.storage.needs_quantization_config())
    };
    if let Some(Ok(Quantization::Unmarked)) = said
        && artifact.slots().into_iter().any(is_packed)
    {
        findings.different(
            "quantization_config",
            "expected in config.json beside packed weights, not there",
        );
    }
}

/// Files of a Hugging Face directory that a tokenizer is made of.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "added_tokens.json",
];
/// Files that say in part what others say: compared where both sides have them.
const FURTHER_FILES: [&str; 2] = ["special_tokens_map.json", "generation_config.json"];

/// The key of a file's pre-tokenizer.
pub(super) const PRE: &str = "tokenizer.ggml.pre";

const EOT: &str = "tokenizer.ggml.eot_token_id";

/// Compares tokenizers and chat templates; says what was compared, and what has a name.
fn compare_tokenizers(
    source: &Checkpoint,
    artifact: &Checkpoint,
    findings: &mut Findings,
) -> Result<(String, Option<Fault>), FormatError> {
    if !source.is_gguf() && !artifact.is_gguf() {
        return compare_files(source, artifact, findings);
    }
    let (expected, found) = (gguf_tokenizer(source)?, gguf_tokenizer(artifact)?);
    if expected.is_none() && found.is_none() {
        return Ok(("the source has no tokenizer".to_owned(), None));
    }
    let (expected, found) = (expected.unwrap_or_default(), found.unwrap_or_default());
    let (mut compared, mut fault) = (0, None);
    for (key, expected) in &expected {
        compared += 1;
        match found.iter().find(|(k, _)| k == key) {
            None => findings.different(key, "expected in the artifact, not there"),
            Some((_, found)) if found == expected => {}
            Some((_, found)) => {
                let text = first_divergence(expected, found);
                if key == PRE {
                    fault = Some(Fault::of_key(
                        Kind::PreTokenizer,
                        CHECK.name,
                        PRE,
                        text.clone(),
                    ));
                }
                findings.different(key, text);
            }
        }
    }
    // a key that only the artifact has may change how text becomes tokens; no file of a Hugging Face directory names
    // an end of turn, so there it is a guess by the token's text
    let is_guess = |key: &str| key == EOT && !artifact.is_gguf();
    for (key, _) in found
        .iter()
        .filter(|(key, _)| !is_guess(key) && !expected.iter().any(|(k, _)| k == key))
    {
        findings.different(key, "not in the source");
    }
    Ok((format!("{compared} tokenizer keys"), fault))
}

/// The tokenizer in GGUF's terms; `None` if there is none.
pub(super) fn gguf_tokenizer(
    checkpoint: &Checkpoint,
) -> Result<Option<Vec<(String, MetaValue)>>, FormatError> {
    let mut pairs: Vec<(String, MetaValue)> = if checkpoint.is_gguf() {
        if !has_gguf_tokenizer(&checkpoint.file.metadata) {
            // single ids without a tokenizer are settings of the network, compared as such
            return Ok(None);
        }
        // llama.cpp writes ids of 4294967295 for tokens that the model does not have
        let is_none = |key: &str, value: &MetaValue| {
            key.ends_with("_token_id") && value.as_u64() == Some(u64::from(u32::MAX))
        };
        let pairs = checkpoint.file.metadata.0.iter();
        pairs
            .filter(|(key, value)| key.starts_with("tokenizer.") && !is_none(key, value))
            .cloned()
            .collect()
    } else {
        let Some(dir) = &checkpoint.directory else {
            return Ok(None);
        };
        tokenizer_to_gguf(dir, checkpoint.config.vocab_size)?
    };
    normal_template_names(&mut pairs);
    Ok((!pairs.is_empty()).then_some(pairs))
}

/// Compares the chat templates of two directories, whichever of their files has them.
fn compare_templates(source: &Checkpoint, artifact: &Checkpoint, findings: &mut Findings) {
    let templates = |checkpoint: &Checkpoint| match &checkpoint.directory {
        Some(directory) => ChatTemplates::of_directory(directory),
        None => Ok(ChatTemplates::default()),
    };
    let (expected, found) = match (templates(source), templates(artifact)) {
        (Ok(expected), Ok(found)) => (expected, found),
        (Err(error), _) | (_, Err(error)) => {
            return findings.unreadable("chat_template", &error);
        }
    };
    if expected.default_template() != found.default_template() {
        findings.different("chat_template", "another template");
    }
    claims::compare_named(expected.named(), found.named(), findings);
}

fn compare_files(
    source: &Checkpoint,
    artifact: &Checkpoint,
    findings: &mut Findings,
) -> Result<(String, Option<Fault>), FormatError> {
    let (mut compared, mut fault) = (Vec::new(), None);
    compare_templates(source, artifact, findings);
    let files = TOKENIZER_FILES.into_iter().chain(FURTHER_FILES);
    for name in files {
        let Some(expected) = source.side_file(name)? else {
            continue;
        };
        let found = artifact.side_file(name)?;
        if found.is_none() && FURTHER_FILES.contains(&name) {
            continue;
        }
        compared.push(name);
        match found {
            None => findings.different(name, "expected in the artifact, not there"),
            Some(found) if found == expected => {}
            Some(found) => {
                // the same JSON written another way is the same tokenizer
                let (e, f) = match (meaning(&expected), meaning(&found)) {
                    (Ok(_), Err(error)) => {
                        findings.unreadable(name, &error);
                        continue;
                    }
                    (e, f) => (e.ok(), f.ok()),
                };
                if e.is_none() || e != f {
                    let cut = |value: Option<Value>| Some(value?.get("pre_tokenizer")?.clone());
                    let (e, f) = (cut(e), cut(f));
                    if let (Some(e), Some(f)) = (&e, &f)
                        && e != f
                    {
                        let what = format!("expected {}, found {}", short(e), short(f));
                        fault = Some(Fault::of_key(Kind::PreTokenizer, CHECK.name, name, what));
                    }
                    let at = expected
                        .iter()
                        .zip(&found)
                        .take_while(|(e, f)| e == f)
                        .count();
                    findings.different(name, format!("differs from byte {at} on"));
                }
            }
        }
    }
    if compared.is_empty() {
        return Ok(("the source has no tokenizer".to_owned(), None));
    }
    Ok((compared.join(", "), fault))
}

/// The meaning of a JSON side file, whoever wrote it.
fn meaning(bytes: &[u8]) -> Result<Value, FormatError> {
    let mut value = bitnet_formats::parse_json_value(bytes)?;
    if let Value::Object(keys) = &mut value {
        keys.retain(|key, _| !WRITER_KEYS.contains(&key.as_str()));
    }
    Ok(value)
}

/// Where and how two metadata values differ.
fn first_divergence(expected: &MetaValue, found: &MetaValue) -> String {
    let (MetaValue::Array(e), MetaValue::Array(f)) = (expected, found) else {
        return format!("expected {}, found {}", show(expected), show(found));
    };
    let (e, f) = (elements(e), elements(f));
    if e.len() != f.len() {
        return format!("expected {} elements, found {}", e.len(), f.len());
    }
    let differ = e.iter().zip(&f).filter(|(e, f)| e != f).count();
    match e.iter().zip(&f).position(|(e, f)| e != f) {
        Some(at) => format!(
            "element {at}: expected {}, found {}; {differ} of {} differ",
            e[at],
            f[at],
            e.len()
        ),
        None => "expected elements of another type".to_owned(),
    }
}

fn elements(array: &MetaArray) -> Vec<String> {
    fn list<T: std::fmt::Debug>(values: &[T]) -> Vec<String> {
        values.iter().map(|v| format!("{v:?}")).collect()
    }
    match array {
        MetaArray::U8(v) => list(v),
        MetaArray::I8(v) => list(v),
        MetaArray::U16(v) => list(v),
        MetaArray::I16(v) => list(v),
        MetaArray::U32(v) => list(v),
        MetaArray::I32(v) => list(v),
        MetaArray::U64(v) => list(v),
        MetaArray::I64(v) => list(v),
        MetaArray::F32(v) => list(v),
        MetaArray::F64(v) => list(v),
        MetaArray::Bool(v) => list(v),
        MetaArray::String(v) => v.iter().map(text).collect(),
    }
}

fn show(value: &MetaValue) -> String {
    match value {
        MetaValue::String(s) => text(s),
        MetaValue::Array(a) => format!("{} elements", elements(a).len()),
        other => format!("{other:?}"),
    }
}

/// JSON for one line of a report.
fn short(value: &Value) -> String {
    text(value.to_string().as_bytes())
}

/// A string for one line of a report.
fn text(bytes: &[u8]) -> String {
    const MOST: usize = 60;
    let text = String::from_utf8_lossy(bytes);
    let cut: String = text.chars().take(MOST).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}
