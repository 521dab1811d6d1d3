//! The runtime against Hugging Face transformers: gates 1 to 5 of `formats/numerics.md`.
//!
//! Reads `tests/fixtures`, or the folder that `BITNET_FIXTURES` names. A family that is not covered
//! yet is reported by name with the reason; a folder without any usable family fails.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{ActivationQuantization, Checkpoint};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_ternary::Scales;
use bitnet_tests::fixtures::{
    Fixture, fixtures, fixtures_are_foreign, fixtures_dir, rotated_fixtures, skipped,
};
use bitnet_verify::gates::{self, Report, Thresholds};
use bitnet_verify::golden::{Golden, TernaryTruth, TrueScales};

enum Outcome {
    Measured(Box<Report>, Vec<String>),
    Embedded(String, Vec<f64>, Vec<String>),
    Skipped(String),
}

/// Gate 1 of one linear; where one scale is expected, the Hugging Face checkpoint has it as one.
fn codes(checkpoint: &Checkpoint, golden: &Golden, truth: &TernaryTruth) -> Result<(), String> {
    let is_meant = |slot| golden.truth_of(checkpoint, slot).map(|t| &t.name) == Some(&truth.name);
    let slot = checkpoint.slots().into_iter().find(|s| is_meant(*s));
    let slot = slot.ok_or("not a linear of the checkpoint")?;
    let matrix = checkpoint.ternary(slot).map_err(|e| e.to_string())?;
    gates::check_codes(truth, &matrix)?;
    match (&truth.scales, matrix.scales()) {
        (TrueScales::Several { .. } | TrueScales::Each { .. }, _) | (_, Scales::PerTensor(_)) => {
            Ok(())
        }
        (_, other) => Err(format!("expected one scale, found {}", other.structure())),
    }
}

fn run(fixture: &Fixture) -> Result<Outcome, FormatError> {
    let golden = Golden::read(&fixture.golden)?;
    let checkpoint = match fixture.open() {
        Ok(checkpoint) => checkpoint,
        // what this program says about networks it does not know; anything else is a defect
        Err(error)
            if fixtures_are_foreign()
                && matches!(
                    error.code,
                    ErrorCode::UnsupportedConfig | ErrorCode::UnknownQuantization
                ) =>
        {
            return Ok(Outcome::Skipped(error.to_string()));
        }
        Err(error) => return Err(error),
    };

    let mut violations = Vec::new();
    for truth in &golden.ternary {
        if let Err(difference) = codes(&checkpoint, &golden, truth) {
            violations.push(format!("gate 1: `{}`: {difference}", truth.name));
        }
    }

    let bounds = Thresholds::default();
    let model = Model::load(&checkpoint, &LoadOptions::default())?;
    if fixture.is_embedding() {
        let linears = gates::linears(&golden, |slot, x, tokens| model.linear(slot, x, tokens))?;
        let layers = gates::layers(&golden, |layer, x, tokens| model.layer(layer, x, tokens))?;
        let pooling = model.config().pooling.expect("an embedding model says how");
        let vectors = gates::embeddings(&golden, |tokens| model.embed(tokens, pooling))?;
        let gates = [
            gates::linear_violations(&linears, &bounds),
            layers.violations(&bounds),
            vectors.violations(&bounds),
        ];
        violations.extend(gates.iter().flatten().map(ToString::to_string));
        assert!(!linears.is_empty() && !layers.layers.is_empty() && !vectors.ours.is_empty());
        let worst = linears.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        let text = format!("linears within {worst:.1e}; {}", vectors.summary());
        return Ok(Outcome::Embedded(text, layers.layers, violations));
    }
    let report = gates::measure(
        &golden,
        &bounds,
        |slot, x, tokens| model.linear(slot, x, tokens),
        |layer, x, tokens| model.layer(layer, x, tokens),
        |tokens| {
            let mut session = model.session(tokens.len())?;
            model.forward(&mut session, tokens, Logits::All)
        },
    )?;
    violations.extend(report.violations(&bounds).iter().map(ToString::to_string));
    // where nothing is rounded on the way, nothing cascades
    let ours = &report.end_to_end.ours;
    let exact = checkpoint.config.activation_quantization == ActivationQuantization::None;
    let close = ours.kl_mean() <= 1e-6 && ours.top1_agreement() == 1.0 && ours.max_abs() <= 1e-3;
    if exact && !close {
        violations.push(format!(
            "without activation quantization: mean divergence {:.1e} (at most 1e-6), same most likely token {} (1), \
             logits within {:.1e} (1e-3)",
            ours.kl_mean(),
            ours.top1_agreement(),
            ours.max_abs()
        ));
    }
    if report.nll.is_none() {
        violations.push("gate 5: no stream was recorded".to_owned());
    }
    Ok(Outcome::Measured(Box::new(report), violations))
}

#[test]
fn the_runtime_holds_the_gates() {
    let mut fixtures = fixtures();
    if !fixtures_are_foreign() {
        fixtures.extend(rotated_fixtures());
    }
    let (mut measured, mut failed) = (0, Vec::new());
    println!("| family {}", Report::TITLES);
    println!("|{}", "---|".repeat(Report::TITLES.matches('|').count()));
    for fixture in &fixtures {
        match run(fixture) {
            Ok(Outcome::Measured(report, violations)) => {
                println!("| {} {report}", fixture.name);
                measured += 1;
                failed.extend(
                    violations
                        .into_iter()
                        .map(|v| format!("{}: {v}", fixture.name)),
                );
            }
            Ok(Outcome::Embedded(text, its_layers, violations)) => {
                let errors: Vec<_> = its_layers.iter().map(|e| format!("{e:.1e}")).collect();
                println!("{}: layers {}, {text}", fixture.name, errors.join(" "));
                measured += 1;
                failed.extend(
                    violations
                        .into_iter()
                        .map(|v| format!("{}: {v}", fixture.name)),
                );
            }
            Ok(Outcome::Skipped(reason)) => skipped(format_args!("{}: {reason}", fixture.name)),
            Err(error) => failed.push(format!("{}: {error}", fixture.name)),
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
    let dir = fixtures_dir();
    assert!(
        measured > 0,
        "no usable family among {} in {}",
        fixtures.len(),
        dir.display()
    );
}
