//! The oracle is held to the gates that the runtime is held to.
//!
//! Invariant: the same gates, the same bounds, the same fixtures (`bitnet_tests::gates`): a witness
//! that is less exact than what it judges is worth nothing. `--nocapture` prints the table.

#![allow(clippy::print_stdout)]

use bitnet_model::{Checkpoint, OpenOptions};
use bitnet_tests::gates::{Report, measure};
use bitnet_tests::golden::{Fixture, Golden, fixtures, fixtures_are_foreign};
use bitnet_verify::Oracle;

fn open(fixture: &Fixture, golden: &Golden) -> Result<Checkpoint, String> {
    let options = OpenOptions {
        ternary_trained: golden.ternary_trained(),
        ..OpenOptions::default()
    };
    Checkpoint::open(&fixture.checkpoint, &options).map_err(|e| e.to_string())
}

/// Every causal fixture and its opened checkpoint.
fn causal() -> Vec<(Fixture, Golden, Checkpoint)> {
    let mut all = Vec::new();
    for fixture in fixtures() {
        let golden = Golden::load(&fixture.golden).unwrap();
        // embedding models are a later issue
        if golden.is_embedding() && !fixtures_are_foreign() {
            continue;
        }
        let checkpoint =
            open(&fixture, &golden).unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        all.push((fixture, golden, checkpoint));
    }
    all
}

#[test]
fn the_oracle_passes_gates_2_to_5() {
    let mut table = format!("| family {}\n", Report::TITLES);
    let mut violations = Vec::new();
    for (fixture, golden, checkpoint) in causal() {
        let oracle = Oracle::new(&checkpoint);
        let report = measure(
            &golden,
            |slot, x, tokens| oracle.linear(slot, x, tokens).map_err(|e| e.to_string()),
            |layer, x, tokens| oracle.layer(layer, x, tokens).map_err(|e| e.to_string()),
            |tokens| oracle.logits(tokens).map_err(|e| e.to_string()),
        )
        .unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
        table += &format!("| {} {report}\n", fixture.name);
        violations.extend(
            report
                .violations()
                .into_iter()
                .map(|v| format!("{}: {v}", fixture.name)),
        );
    }
    println!("{table}");
    assert!(violations.is_empty(), "{table}\n{}", violations.join("\n"));
}

#[test]
fn entries_of_the_forward_pass_agree() {
    let (_, golden, checkpoint) = causal().swap_remove(0);
    let oracle = Oracle::new(&checkpoint);
    let ids = golden.trace_ids();
    let trace = oracle.trace(ids).unwrap();
    assert_eq!(trace.hidden[0], oracle.embeddings(ids).unwrap());
    for (layer, pair) in trace.hidden.windows(2).enumerate() {
        assert_eq!(oracle.layer(layer, &pair[0], ids.len()).unwrap(), pair[1]);
    }
    let last = trace.hidden.last().unwrap().as_slice();
    assert_eq!(
        oracle.output_norm_of(&[last]).unwrap(),
        [trace.normed.clone()]
    );
    let logits = oracle.logits(ids).unwrap();
    assert_eq!(oracle.head_of(&[&trace.normed]).unwrap(), [logits.clone()]);
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
