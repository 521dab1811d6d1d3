//! Whether the settings that change results are the source's: wiring, tokenizer, chat template.
//!
//! Invariant: compared by meaning, not by container. Two Hugging Face directories are compared file
//! by file; where one side is GGUF, both tokenizers are brought into GGUF's terms by the one
//! function that writes them.

mod text;
mod tokenizers;

pub(super) use text::compare_text;

use super::check::{Check, Running, Subject};
use super::report::Report;
use super::side::Side;
use crate::diagnose::fault::Fault;
use crate::diagnose::rotated::of_declared;
use crate::verdict::Findings;
use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, Config, ExtraNorms, Factors, Hybrid, Pooling, Quantization,
    RopeScaling, Rotation, Slot, TILES_FORMAT,
};
use bitnet_formats::{Container, MetaValue, Safetensors};
use sha2::{Digest, Sha256};
use tokenizers::compare_tokenizers;

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
        let Some((expected, found)) = subject.sides() else {
            return;
        };
        let mut findings = Findings::default();
        compare_wiring(CHECK.name, (expected, found), &mut findings, report);
        let compared = match (expected, found) {
            (Side::Model(source), Side::Model(artifact)) => {
                let (source, artifact) = (&source.checkpoint, &artifact.checkpoint);
                compare_models(source, artifact, &mut findings, report)
            }
            _ => {
                let (expected, found) = (expected.text(), found.text());
                let text = compare_text(&expected, &found, &mut findings);
                format!("wiring, {text}")
            }
        };
        report
            .checks
            .push(findings.into_verdict(CHECK.name, compared));
    }
}

/// What only models show: the tokenizer key by key or file by file, and whether readers take what the artifact says.
fn compare_models(
    source: &Checkpoint,
    artifact: &Checkpoint,
    findings: &mut Findings,
    report: &mut Report,
) -> String {
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
    check_format(artifact, findings);
    check_quantization(artifact, findings);
    let tokenizer = match compare_tokenizers(source, artifact, findings) {
        Ok((text, fault)) => {
            fault.into_iter().for_each(|fault| report.fault(fault));
            text
        }
        Err(error) => {
            findings.unreadable("tokenizer", &error);
            String::new()
        }
    };
    let settings = wiring(&source.config).len();
    format!("{settings} settings, {tokenizer}")
}

/// Compares every setting that changes a result.
pub(super) fn compare_wiring(
    check: &'static str,
    (expected, found): (Side<'_>, Side<'_>),
    findings: &mut Findings,
    report: &mut Report,
) {
    let rotations = [expected, found].map(|side| side.config().rotation.as_deref());
    let (expected, found) = (wiring(expected.config()), wiring(found.config()));
    for ((key, expected), (_, found)) in expected.into_iter().zip(found) {
        findings.expect(key, &expected, &found);
        if expected != found && key == "rotation" {
            let [expected, found] = rotations;
            for fault in of_declared(check, expected, found) {
                report.fault(fault);
            }
        } else if expected != found {
            report.fault(Fault::of_setting(check, key, &expected, &found));
        }
    }
}

/// Every setting that changes a result, as text.
fn wiring(config: &Config) -> Vec<(&'static str, String)> {
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
        rotary_dim,
        hidden_act,
        attn_sub_norm,
        ffn_sub_norm,
        norms,
        biases,
        long_rope,
        factors,
        sliding,
        hybrid,
        rotation,
        experts,
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
        heads_after_rope,
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
        ("norms_after_rope", heads_after_rope.to_string()),
        ("biases", biases.to_string()),
        ("long_rope", format!("{long_rope:?}")),
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
            "linear_attention",
            hybrid
                .as_ref()
                .map_or("none".to_owned(), layers_with_a_state),
        ),
        (
            "rotary_dim",
            hybrid
                .as_ref()
                .map_or(*rotary_dim, |hybrid| hybrid.rotary_dim)
                .to_string(),
        ),
        (
            "experts",
            experts
                .as_ref()
                .map_or("none".to_owned(), |experts| format!("{experts:?}")),
        ),
        (
            "rotation",
            rotation.as_deref().map_or("none".to_owned(), rotation_text),
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

/// Which layers have a recurrent state, and which heads they have. Sections of rotary frequencies change nothing in a
/// text.
fn layers_with_a_state(hybrid: &Hybrid) -> String {
    let Hybrid {
        delta,
        recurrent,
        rotary_dim: _,
        rope_sections: _,
    } = hybrid;
    let letters = recurrent.iter().map(|r| if *r { 'l' } else { 'f' });
    format!(
        "linear (l) and full (f) layers {}, {} key heads of {}, {} value heads of {}, {} taps",
        letters.collect::<String>(),
        delta.key_heads,
        delta.key_dim,
        delta.value_heads,
        delta.value_dim,
        delta.conv_kernel,
    )
}

/// The first digits of a hash, to tell texts apart.
fn short_sha256(bytes: &[u8]) -> String {
    let mut digits = bitnet_formats::hex(&Sha256::digest(bytes));
    digits.truncate(8);
    digits
}

/// A rotation as text: equal texts are equal rotations.
fn rotation_text(rotation: &Rotation) -> String {
    let signs = rotation.signs.iter().map(|(width, signs)| {
        let bytes: Vec<u8> = signs.iter().map(|sign| sign.to_le_bytes()[0]).collect();
        format!("{width}: {}", short_sha256(&bytes))
    });
    let signs = match rotation.signs.is_empty() {
        true => "no signs".to_owned(),
        false => format!("signs {}", signs.collect::<Vec<_>>().join(", ")),
    };
    let names: Vec<String> = rotation.folded.iter().map(ToString::to_string).collect();
    let names = short_sha256(names.join(" ").as_bytes());
    format!(
        "blocks of {}, {signs}, {} matrices ({names}){}{}",
        rotation.block_size,
        rotation.folded.len(),
        if rotation.embeddings {
            ", embeddings"
        } else {
            ""
        },
        if rotation.tiled_values {
            ", value heads tiled"
        } else {
            ""
        },
    )
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
