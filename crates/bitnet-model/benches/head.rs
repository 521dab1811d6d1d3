//! The largest logits of a model's head against all of them: `cargo bench -p bitnet-model --bench head --
//! MODEL [ROUNDS] [KERNEL]`, with any checkpoint.
//!
//! Hidden states are random normal numbers, the hardest case: no logit stands out. On 1 and 2 threads, in turn
//! with the full product, whose rows lie on mapped pages that are already there: milliseconds (median), share of
//! the full product (median of the rounds' ratios), rows looked at again with all bits of the screen, and rows
//! computed. What the first state of a round returns is compared with the full product, to the bit.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Model};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

const KS: [usize; 4] = [1, 10, 40, 64];

/// States of a round that are not timed: as in a text, few pages of the file are mapped behind them.
const WARM: usize = 3;

/// States of a round that are timed together.
const TIMED: usize = 5;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let Some(path) = words.first() else {
        println!("no model named: nothing measured");
        return;
    };
    let rounds = words.iter().find_map(|w| w.parse().ok()).unwrap_or(9);
    let backend = words.iter().find_map(|w| Backend::by_name(w).ok());
    for threads in [1, 2] {
        let checkpoint = Checkpoint::open(Path::new(path), &OpenOptions::default()).unwrap();
        let options = LoadOptions {
            threads,
            backend: backend.unwrap_or(Backend::best()),
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, &options).unwrap();
        let mut state = 1;
        let mut logits = Vec::new();
        let mut full = Vec::new();
        let mut found: [Vec<f64>; KS.len()] = Default::default();
        let mut ratios: [Vec<f64>; KS.len()] = Default::default();
        let mut rows = [(0, 0); KS.len()];
        while model.head_passes().screened == 0 {
            let h = normal(model.config().hidden_size, &mut state);
            model.head_top_k(&h, 1).unwrap();
        }
        for _ in 0..rounds {
            for (i, &k) in KS.iter().enumerate() {
                let states: Vec<Vec<f32>> = (0..WARM + TIMED)
                    .map(|_| normal(model.config().hidden_size, &mut state))
                    .collect();
                let h = &states[0];
                model.head(h).unwrap(); // maps the pages that were given back
                let all = seconds(|| logits = model.head(h).unwrap());
                check(&model.head_top_k(h, k).unwrap(), &logits);
                // so many rows that the mapped pages are given back
                model.head_top_k(&states[1], 64).unwrap();
                model.head_top_k(&states[2], k).unwrap();
                let before = model.head_passes();
                let some = seconds(|| {
                    for h in &states[WARM..] {
                        black_box(model.head_top_k(h, k).unwrap());
                    }
                }) / TIMED as f64;
                let after = model.head_passes();
                assert_eq!(after.full, before.full, "the bounds did not help");
                full.push(all);
                found[i].push(some);
                ratios[i].push(some / all);
                rows[i].0 += after.rows.0 - before.rows.0;
                rows[i].1 += after.rows.1 - before.rows.1;
            }
        }
        println!(
            "{threads} threads, {}: all {:.2} ms",
            model.backend().name(),
            1e3 * median(full)
        );
        for (i, k) in KS.iter().enumerate() {
            println!(
                "  top {k}: {:.2} ms, {:.1} %; {} rows again, {} computed",
                1e3 * median(found[i].clone()),
                1e2 * median(ratios[i].clone()),
                rows[i].0 / rounds / TIMED,
                rows[i].1 / rounds / TIMED,
            );
        }
    }
}

/// The largest logits are those of the full product.
fn check(top: &[(u32, f32)], logits: &[f32]) {
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    for (a, b) in top.iter().zip(&all) {
        assert_eq!((a.0, a.1.to_bits()), (b.0, b.1.to_bits()));
    }
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// The sum of twelve uniform numbers is normal enough.
fn normal(count: usize, state: &mut u64) -> Vec<f32> {
    let mut uniform = || {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (*state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count)
        .map(|_| (0..12).map(|_| uniform()).sum())
        .collect()
}
