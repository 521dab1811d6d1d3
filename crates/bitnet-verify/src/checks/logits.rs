//! Whether the model computes what it should: against its source, and against the oracle.
//!
//! Invariant: two files of one model have the same logits, bit for bit, on every kernel. Against the
//! oracle each layer is judged from the runtime's own hidden state, so that one flipped activation
//! does not hide, or excuse, what comes after it; the end-to-end figures are reported.

use super::check::{Check, Running, Subject};
use super::report::{ComparedLogits, Report};
use super::runtime::Runtime;
use super::side::{Input, Side};
use crate::checks::gates::LayerErrors;
use crate::reference::divergence::{Divergence, relative_error};
use crate::reference::oracle::Oracle;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::Checkpoint;
use bitnet_formats::FormatError;
use bitnet_kernels::Backend;
use sha2::{Digest, Sha256};

pub(super) const CHECK: Check = Check {
    name: "logits",
    what: "runtime against source, every kernel and the independent oracle; with --logits",
    start: |subject| {
        subject
            .logits
            .then(|| Box::new(Compared) as Box<dyn Running>)
    },
};

/// Relative error of embeddings, final norm and head, which no rounding step amplifies.
const EDGE_ERROR: f64 = 1e-5;

struct Compared;

impl Running for Compared {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let Some((&first, others)) = subject.kernels.split_first() else {
            return;
        };
        let Some(artifact) = subject.artifact.model() else {
            return;
        };
        let runtime = match subject.runtime() {
            None => return,
            Some(Ok(runtime)) => runtime,
            Some(Err(error)) => {
                report.checks.push(Verdict::error(CHECK.name, error));
                return;
            }
        };
        let of_prompts = |runtime: &Runtime| -> Result<Vec<_>, FormatError> {
            let prompts = subject.prompts.iter();
            prompts.map(|p| runtime.logits(&p.ids)).collect()
        };
        let logits = match of_prompts(runtime) {
            Ok(logits) => logits,
            Err(error) => {
                report.checks.push(Verdict::error(CHECK.name, &error));
                return;
            }
        };
        let run = |input: &Input, backend| of_prompts(&Runtime::load(input, backend)?);
        if let Some(source) = subject.source.and_then(Side::model) {
            let other = run(source, first);
            let check = against_source(subject, other, &logits, &mut report.logits);
            report.checks.push(check);
        }
        if !others.is_empty() {
            let mut findings = Findings::default();
            for &backend in others {
                match run(artifact, backend) {
                    Ok(found) => identical(subject, backend.name(), &logits, &found, &mut findings),
                    Err(error) => findings.unreadable(backend.name(), &error),
                }
            }
            let names: Vec<&str> = subject.kernels.iter().map(Backend::name).collect();
            let compared = format!(
                "bit-identical on {}, sha256 {}",
                names.join(", "),
                sha256(&logits)
            );
            report
                .checks
                .push(findings.into_verdict("logits-kernels", compared));
        }
        if subject.golden.is_none() {
            against_oracle(subject, artifact, runtime, &logits, report);
        }
    }
}

/// The same network in two files: bit for bit. The figures stay those of a stronger comparison, if there was
/// one.
fn against_source(
    subject: &Subject<'_>,
    expected: Result<Vec<Vec<f32>>, FormatError>,
    found: &[Vec<f32>],
    figures: &mut Option<ComparedLogits>,
) -> Verdict {
    const NAME: &str = "logits-source";
    let expected = match expected {
        Ok(expected) => expected,
        Err(error) => return Verdict::error(NAME, &error),
    };
    let mut findings = Findings::default();
    identical(subject, "artifact", &expected, found, &mut findings);
    let divergence = divergence(subject, &expected, found);
    let compared = match findings.is_empty() {
        true => format!("bit-identical to the source, sha256 {}", sha256(found)),
        false => divergence.summary(),
    };
    figures.get_or_insert(ComparedLogits {
        reference: "source",
        divergence,
    });
    findings.into_verdict(NAME, compared)
}

fn divergence(subject: &Subject<'_>, expected: &[Vec<f32>], found: &[Vec<f32>]) -> Divergence {
    let mut divergence = Divergence::default();
    for (prompt, (expected, found)) in subject.prompts.iter().zip(expected.iter().zip(found)) {
        let vocab = expected.len() / prompt.ids.len().max(1);
        divergence.add(&prompt.name, Some(&prompt.ids), vocab, expected, found);
    }
    divergence
}

fn identical(
    subject: &Subject<'_>,
    who: &str,
    expected: &[Vec<f32>],
    found: &[Vec<f32>],
    findings: &mut Findings,
) {
    for (prompt, (expected, found)) in subject.prompts.iter().zip(expected.iter().zip(found)) {
        if expected.len() != found.len() {
            findings.different(
                &prompt.name,
                format!(
                    "{who}: expected {} logits, found {}",
                    expected.len(),
                    found.len()
                ),
            );
            continue;
        }
        let differ = expected
            .iter()
            .zip(found)
            .position(|(e, f)| e.to_bits() != f.to_bits());
        if let Some(at) = differ {
            let vocab = expected.len() / prompt.ids.len().max(1);
            let (position, token) = (at / vocab.max(1), at % vocab.max(1));
            let text = format!(
                "{who}: position {position}, token {token}: expected {:e}, found {:e}",
                expected[at], found[at]
            );
            findings.different(&prompt.name, text);
        }
    }
}

/// Of all logits in order, `f32` little-endian.
fn sha256(logits: &[Vec<f32>]) -> String {
    let mut hasher = Sha256::new();
    for values in logits {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    bitnet_formats::hex(&hasher.finalize())
}

/// The runtime against other people's arithmetic.
fn against_oracle(
    subject: &Subject<'_>,
    artifact: &Input,
    runtime: &Runtime,
    logits: &[Vec<f32>],
    report: &mut Report,
) {
    const NAME: &str = "logits-oracle";
    let mut findings = Findings::default();
    match compare_oracle(
        subject,
        &artifact.checkpoint,
        runtime,
        logits,
        &mut findings,
    ) {
        Err(error) => report.checks.push(Verdict::error(NAME, &error)),
        Ok((errors, divergence)) => {
            let compared = format!(
                "{} layers, largest relative error {:.1e}; end to end {}",
                errors.layers.len(),
                errors.worst(),
                divergence.summary()
            );
            report.logits.get_or_insert(ComparedLogits {
                reference: "oracle",
                divergence,
            });
            let from = "from the runtime's hidden state, against the oracle";
            report.layers.get_or_insert((from, errors.layers));
            report.checks.push(findings.into_verdict(NAME, compared));
        }
    }
}

/// Errors of each layer, and the end-to-end divergence.
fn compare_oracle(
    subject: &Subject<'_>,
    checkpoint: &Checkpoint,
    runtime: &Runtime,
    logits: &[Vec<f32>],
    findings: &mut Findings,
) -> Result<(LayerErrors, Divergence), FormatError> {
    let oracle = Oracle::new(checkpoint);
    let config = runtime.0.config();
    let mut traces = Vec::with_capacity(subject.prompts.len());
    for prompt in subject.prompts {
        let trace = runtime.0.trace(&prompt.ids)?;
        edge(
            findings,
            "model.embed_tokens",
            &prompt.name,
            &oracle.embeddings(&prompt.ids)?,
            &trace[0],
        );
        traces.push(trace);
    }
    let mut errors = LayerErrors::default();
    for layer in 0..config.num_hidden_layers {
        let inputs: Vec<&[f32]> = traces.iter().map(|t| t[layer].as_slice()).collect();
        let outputs = oracle.layer_of(layer, &inputs)?;
        let found = traces.iter().map(|t| t[layer + 1].as_slice());
        let prompts = outputs.iter().map(Vec::as_slice).zip(found);
        errors.push(config.hidden_size, prompts);
    }
    findings.extend(errors.violations(subject.thresholds));
    let normed: Vec<&[f32]> = traces
        .iter()
        .filter_map(|t| t.last().map(Vec::as_slice))
        .collect();
    let before: Vec<&[f32]> = traces
        .iter()
        .map(|t| t[config.num_hidden_layers].as_slice())
        .collect();
    for ((prompt, expected), found) in subject
        .prompts
        .iter()
        .zip(oracle.output_norm_of(&before)?)
        .zip(&normed)
    {
        edge(findings, "model.norm", &prompt.name, &expected, found);
    }
    for ((prompt, expected), found) in subject
        .prompts
        .iter()
        .zip(oracle.head_of(&normed)?)
        .zip(logits)
    {
        edge(findings, "lm_head", &prompt.name, &expected, found);
    }
    let sequences: Vec<&[u32]> = subject.prompts.iter().map(|p| p.ids.as_slice()).collect();
    let divergence = divergence(subject, &oracle.logits_of(&sequences)?, logits);
    Ok((errors, divergence))
}

fn edge(findings: &mut Findings, place: &str, prompt: &str, expected: &[f32], found: &[f32]) {
    let error = relative_error(expected, found);
    if error > EDGE_ERROR {
        findings.different(
            place,
            format!(
                "prompt `{prompt}`: relative error {error:.2e}, expected at most {EDGE_ERROR:.0e}"
            ),
        );
    }
}
