//! The oracle is held to the gates that the runtime is held to.
//!
//! Invariant: the same gates, the same bounds, the same fixtures (`bitnet_verify::gates`): a witness
//! that is less exact than what it judges is worth nothing. `--nocapture` prints the table.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::Checkpoint;
use bitnet_formats::ErrorCode;
use bitnet_tests::fixtures::{Fixture, fixtures, fixtures_are_foreign, skipped};
use bitnet_verify::Oracle;
use bitnet_verify::gates::{Report, Thresholds, measure};
use bitnet_verify::golden::Golden;

/// Every causal fixture and its opened checkpoint.
fn causal() -> Vec<(Fixture, Golden, Checkpoint)> {
    let mut all = Vec::new();
    for fixture in fixtures() {
        if fixture.is_embedding() {
            continue; // it has no logits
        }
        let golden = fixture.golden();
        match fixture.open() {
            Ok(checkpoint) => all.push((fixture, golden, checkpoint)),
            // what this program says about networks it does not know; anything else is a defect
            Err(e)
                if fixtures_are_foreign()
                    && matches!(
                        e.code,
                        ErrorCode::UnsupportedConfig | ErrorCode::UnknownQuantization
                    ) =>
            {
                skipped(format_args!("{}: {e}", fixture.name));
            }
            Err(e) => panic!("{}: {e}", fixture.name),
        }
    }
    assert!(
        !all.is_empty(),
        "no usable family in the folder of fixtures"
    );
    all
}

#[test]
fn the_oracle_passes_gates_2_to_5() {
    let mut table = format!("| family {}\n", Report::TITLES);
    let (bounds, mut violations) = (Thresholds::default(), Vec::new());
    for (fixture, golden, checkpoint) in causal() {
        let oracle = Oracle::new(&checkpoint);
        let report = measure(
            &golden,
            &bounds,
            |slot, x, tokens| oracle.linear(slot, x, tokens),
            |layer, x, tokens| oracle.layer(layer, x, tokens),
            |tokens| oracle.logits(tokens),
        )
        .unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        table += &format!("| {} {report}\n", fixture.name);
        assert!(report.nll.is_some(), "{}: no stream", fixture.name);
        let broken = report.violations(&bounds);
        violations.extend(broken.iter().map(|v| format!("{}: {v}", fixture.name)));
    }
    println!("{table}");
    assert!(violations.is_empty(), "{table}\n{}", violations.join("\n"));
}

#[test]
fn entries_of_the_forward_pass_agree() {
    let (_, golden, checkpoint) = causal().swap_remove(0);
    let oracle = Oracle::new(&checkpoint);
    let prompt = &golden.prompts[0].name;
    let ids = golden.ids(prompt).unwrap();
    let trace = oracle.trace(ids).unwrap();
    assert_eq!(trace.hidden[0], oracle.embeddings(ids).unwrap());
    for (layer, pair) in trace.hidden.windows(2).enumerate() {
        assert_eq!(oracle.layer(layer, &pair[0], ids.len()).unwrap(), pair[1]);
    }
    let last = trace.hidden.last().unwrap().as_slice();
    assert_eq!(
        oracle.output_norm_of(&[last]).unwrap(),
        std::slice::from_ref(&trace.normed)
    );
    let logits = oracle.logits(ids).unwrap();
    assert_eq!(
        oracle.head_of(&[&trace.normed]).unwrap(),
        std::slice::from_ref(&logits)
    );
    assert_eq!(oracle.logits_of(&[ids, &ids[..1]]).unwrap()[0], logits);
}

#[test]
fn what_does_not_fit_is_an_error() {
    let (_, _, checkpoint) = causal().swap_remove(0);
    let oracle = Oracle::new(&checkpoint);
    let config = &checkpoint.config;
    assert!(oracle.logits(&[config.vocab_size as u32]).is_err());
    assert!(
        oracle
            .layer(config.num_hidden_layers, &vec![0.0; config.hidden_size], 1)
            .is_err()
    );
    assert!(oracle.layer(0, &[0.0], 1).is_err());
    assert!(
        oracle
            .layer(0, &vec![f32::NAN; config.hidden_size], 1)
            .is_err()
    );
    assert!(oracle.logits(&[]).is_err());
}
