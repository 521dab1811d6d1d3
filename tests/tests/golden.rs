//! The runtime against Hugging Face transformers: gates 1 to 5 of `formats/numerics.md`.
//!
//! Reads `tests/fixtures`, or the folder that `BITNET_FIXTURES` names. A family that is not covered
//! yet is reported by name with the reason; a folder without any usable family fails.

#![allow(clippy::print_stdout)]

use bitnet_model::{Checkpoint, ErrorCode, FormatError, LoadOptions, Logits, Model, OpenOptions};
use bitnet_tests::gates::{self, Report};
use bitnet_tests::golden::{self, Fixture, Golden};

enum Outcome {
    Measured(Box<Report>, Vec<String>),
    Skipped(String),
}

fn say(error: FormatError) -> String {
    error.to_string()
}

fn run(fixture: &Fixture) -> Result<Outcome, String> {
    let golden = Golden::load(&fixture.golden)?;
    if golden.is_embedding() {
        return Ok(Outcome::Skipped(
            "an embedding model: it has no logits".to_owned(),
        ));
    }
    let options = OpenOptions {
        ternary_trained: golden.ternary_trained(),
        ..OpenOptions::default()
    };
    let checkpoint = match Checkpoint::open(&fixture.checkpoint, &options) {
        Ok(checkpoint) => checkpoint,
        // what this program says about networks it does not know; anything else is a defect
        Err(error)
            if golden::fixtures_are_foreign()
                && matches!(
                    error.code,
                    ErrorCode::UnsupportedConfig | ErrorCode::UnknownQuantization
                ) =>
        {
            return Ok(Outcome::Skipped(error.to_string()));
        }
        Err(error) => return Err(error.to_string()),
    };

    let mut violations = Vec::new();
    for truth in &golden.ternary {
        let matrix = checkpoint.ternary(truth.slot).map_err(say)?;
        if let Err(difference) = gates::ternary(truth, &matrix) {
            violations.push(format!("gate 1: {difference}"));
        }
    }

    let model = Model::load(checkpoint, &LoadOptions::default()).map_err(say)?;
    let logits = |tokens: &[u32]| {
        let mut session = model.session(tokens.len()).map_err(say)?;
        model
            .forward(&mut session, tokens, Logits::All)
            .map_err(say)
    };
    let report = gates::measure(
        &golden,
        |slot, x, tokens| model.linear(slot, x, tokens).map_err(say),
        |layer, x, tokens| model.layer(layer, x, tokens).map_err(say),
        logits,
    )?;
    violations.extend(report.violations());
    Ok(Outcome::Measured(Box::new(report), violations))
}

#[test]
fn the_runtime_holds_the_gates() {
    let fixtures = golden::fixtures();
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
            Ok(Outcome::Skipped(reason)) => println!("{}: skipped, {reason}", fixture.name),
            Err(error) => failed.push(format!("{}: {error}", fixture.name)),
        }
    }
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
    let dir = golden::fixtures_dir();
    assert!(
        measured > 0,
        "no usable family among {} in {}",
        fixtures.len(),
        dir.display()
    );
}
