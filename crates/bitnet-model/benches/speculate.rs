//! What guesses are worth: `cargo bench -p bitnet-model --bench speculate -- MODEL [TOKENS] [ROUNDS] [KERNEL]`, with any
//! checkpoint.
//!
//! A text is generated token by token; then the same text again with guesses that are known to be right, except that
//! every so many a wrong one is among them. Both run in turn. Printed are milliseconds of a step (median) with so many guesses
//! and the speed of the text in times of that without guesses (median of the rounds' ratios). The tokens are compared.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Model, Slice, Want, Workspace};
use std::path::Path;
use std::time::Instant;

/// Guesses of a step, and after how many right ones a wrong one comes; 0: never.
const CASES: [(usize, usize); 8] = [
    (1, 0),
    (2, 0),
    (4, 0),
    (8, 0),
    (16, 0),
    (4, 4),
    (4, 2),
    (8, 4),
];

/// Tokens of the prompt.
const PROMPT: usize = 32;

fn main() {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|w| w != "--bench")
        .collect();
    let Some(path) = words.first() else {
        println!("no model named: nothing measured");
        return;
    };
    let mut numbers = words.iter().filter_map(|w| w.parse().ok());
    let (count, rounds) = (numbers.next().unwrap_or(64), numbers.next().unwrap_or(5));
    let backend = words.iter().find_map(|w| Backend::by_name(w).ok());
    let checkpoint = Checkpoint::open(Path::new(path), &OpenOptions::default()).unwrap();
    let options = LoadOptions {
        backend: backend.unwrap_or(Backend::best()),
        ..LoadOptions::default()
    };
    let model = Model::load(&checkpoint, &options).unwrap();
    let mut workspace = model.workspace();
    let (text, _) = run(&model, &mut workspace, count, None, (0, 0));
    for case in CASES {
        let (mut steps, mut ratios) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let mut plain = || run(&model, &mut workspace, count, None, (0, 0));
            let before = (round % 2 == 0).then(&mut plain);
            let (tokens, times) = {
                let mut other = model.workspace();
                run(&model, &mut other, count, Some(&text), case)
            };
            let (_, alone) = before.unwrap_or_else(plain);
            assert_eq!(tokens, text, "guesses changed the text");
            ratios.push(alone.iter().sum::<f64>() / times.iter().sum::<f64>());
            steps.extend(times);
        }
        println!(
            "{} guesses, wrong after {}: step {:.2} ms, {:.2} times as fast",
            case.0,
            case.1,
            1e3 * median(steps),
            median(ratios)
        );
    }
}

/// A text of `count` tokens behind a prompt, and the seconds of each step; with guesses from `known`, if it is given.
fn run(
    model: &Model,
    workspace: &mut Workspace,
    count: usize,
    known: Option<&[u32]>,
    (guesses, wrong): (usize, usize),
) -> (Vec<u32>, Vec<f64>) {
    let vocab = model.config().vocab_size;
    let mut fed: Vec<u32> = (0..PROMPT)
        .map(|i| ((i * 7919 + 131) % vocab) as u32)
        .collect();
    let mut sequence = model.sequence(PROMPT + count + 32).unwrap();
    let (mut text, mut times) = (Vec::new(), Vec::new());
    while text.len() < count {
        let begun = Instant::now();
        let mut tokens = fed.clone();
        if let (Some(known), false) = (known, text.is_empty()) {
            let next = known[text.len()..].iter().take(guesses).enumerate();
            tokens.extend(
                next.map(|(i, token)| match wrong > 0 && (i + 1) % (wrong + 1) == 0 {
                    true => (token + 1) % vocab as u32,
                    false => *token,
                }),
            );
        }
        let before = sequence.position() + fed.len();
        let slice = Slice {
            sequence: &mut sequence,
            tokens: &tokens,
            want: match fed.len() {
                1 => Want::TopOfEach(1),
                _ => Want::Top(1),
            },
        };
        let found = model.step(&mut [slice], workspace).unwrap().remove(0);
        let drawn: Vec<u32> = match fed.len() {
            1 => found
                .into_top_of_each()
                .iter()
                .map(|top| top[0].0)
                .collect(),
            _ => vec![found.into_top()[0].0],
        };
        let right = tokens[fed.len()..]
            .iter()
            .zip(&drawn)
            .take_while(|(guess, token)| guess == token)
            .count();
        sequence.truncate(before + right);
        text.extend_from_slice(&drawn[..=right]);
        if fed.len() == 1 {
            times.push(begun.elapsed().as_secs_f64());
        }
        fed = vec![drawn[right]];
    }
    text.truncate(count);
    (text, times)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
