//! How close networks without rounded activations come to the record of Hugging Face transformers.
//!
//! Invariant: the bounds are those of float arithmetic: no flip of an int8 level explains a difference.

use crate::fixtures::Fixture;
use bitnet_checkpoint::Checkpoint;
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_verify::Divergence;

/// Largest difference of a logit, and mean divergence.
const MOST: (f64, f64) = (1e-3, 1e-6);

/// Compares all logits and greedy tokens of a checkpoint with those of a fixture; the figures on one line.
///
/// # Panics
/// If they differ by more than float arithmetic explains.
pub fn float_gates(checkpoint: &Checkpoint, fixture: &Fixture) -> String {
    let golden = fixture.golden();
    let model = Model::load(checkpoint, &LoadOptions::default()).unwrap_or_else(|e| panic!("{e}"));
    let logits = |tokens: &[u32]| {
        let mut session = model.session(tokens.len()).expect("a session");
        let found = model.forward(&mut session, tokens, Logits::All);
        found.unwrap_or_else(|e| panic!("{e}"))
    };
    let mut all = Divergence::default();
    for prompt in &golden.prompts {
        let expected = &golden.logits[&prompt.name];
        let found = logits(&prompt.ids);
        all.add(
            &prompt.name,
            Some(&prompt.ids),
            expected.cols,
            &expected.values,
            &found,
        );
    }
    assert!(all.positions() > 50, "{} positions", all.positions());
    let name = &fixture.name;
    assert!(all.max_abs() < MOST.0, "{name}: {}", all.max_abs());
    assert!(all.kl_mean() < MOST.1, "{name}: {}", all.kl_mean());
    let mut tokens = 0;
    for greedy in &golden.greedy {
        let mut ids = golden.ids(&greedy.prompt).expect("a prompt").to_vec();
        for (expected, margin) in greedy.ids.iter().zip(&greedy.margins) {
            let found = logits(&ids);
            let row = &found[found.len() - model.config().vocab_size..];
            let best = (0..row.len())
                .rev()
                .max_by(|a, b| row[*a].total_cmp(&row[*b]));
            if *margin < 2.0 * MOST.0 {
                break; // no arithmetic has to agree on a tie
            }
            assert_eq!(best, Some(*expected as usize), "{name}: {}", greedy.prompt);
            ids.push(*expected);
            tokens += 1;
        }
    }
    assert!(tokens > 30, "{tokens} greedy tokens");
    format!(
        "{name}: {} positions, max {:.1e}, KL {:.1e}, {tokens} greedy tokens equal",
        all.positions(),
        all.max_abs(),
        all.kl_mean()
    )
}
