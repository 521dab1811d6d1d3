//! Types of the KV cache: what they cost in memory and in answers.
//!
//! A measured value is never silent: the divergences are printed.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::Backend;
use bitnet_model::{KvType, LoadOptions, Logits, Model};
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::run;
use bitnet_text::{ChatMessage, Tokenizer};
use serde_json::{Value, json};
use std::path::PathBuf;

/// One question in so many is asked.
const STRIDE: usize = 25;

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

fn load(kv_type: KvType) -> Model {
    let checkpoint = Checkpoint::open(&demo(), &OpenOptions::default()).unwrap();
    let options = LoadOptions {
        backend: Backend::best(),
        kv_type,
        ..LoadOptions::default()
    };
    Model::load(&checkpoint, &options).unwrap()
}

/// Chats of the demo model with their answers.
fn texts() -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_directory(&demo()).unwrap().unwrap();
    let template = tokenizer.chat().unwrap().unwrap();
    let questions = repository().join("tests/fixtures/demo/questions.jsonl");
    let questions = std::fs::read_to_string(questions).unwrap();
    let lines = questions.lines().step_by(STRIDE);
    lines
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let message = ChatMessage::user(line["question"].as_str().unwrap());
            let prompt = template.render(&[message], true).unwrap();
            let text = prompt + line["answer"].as_str().unwrap();
            tokenizer.encode(&text, false).unwrap()
        })
        .collect()
}

/// The probabilities that logits mean.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let weights: Vec<f64> = logits.iter().map(|v| f64::from(v - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

#[test]
fn fewer_bits_diverge_little_from_f32() {
    let texts = texts();
    let logits = |kv_type| -> Vec<Vec<f32>> {
        let model = load(kv_type);
        let logits = texts.iter().map(|text| {
            let mut session = model.session(text.len()).unwrap();
            model.forward(&mut session, text, Logits::All).unwrap()
        });
        logits.collect()
    };
    let vocab = load(KvType::F32).config().vocab_size;
    let wide = logits(KvType::F32);
    // mean and largest KL divergence, and the share of positions with another likeliest token
    let mut measured = Vec::new();
    for kv_type in [KvType::F16, KvType::Q8] {
        let (mut sum, mut largest, mut flips, mut count) = (0.0, 0.0f64, 0, 0);
        let narrow = logits(kv_type);
        for (wide, narrow) in rows(&wide, vocab).zip(rows(&narrow, vocab)) {
            let (p, q) = (softmax(wide), softmax(narrow));
            let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
            let kl: f64 = terms.map(|(p, q)| p * (p / q.max(1e-300)).ln()).sum();
            (sum, largest, count) = (sum + kl, largest.max(kl), count + 1);
            let best = |x: &[f64]| (0..vocab).max_by(|a, b| x[*a].total_cmp(&x[*b])).unwrap();
            flips += usize::from(best(&p) != best(&q));
        }
        let mean = sum / f64::from(count);
        println!(
            "{}: mean KL {mean:.2e}, largest {largest:.2e}, {flips} of {count} likeliest tokens differ",
            kv_type.as_str()
        );
        measured.push((mean, flips, count));
    }
    // rounding flips int8 activations, whatever the type: what differs is how many
    for (mean, flips, count) in measured {
        assert!(mean > 0.0 && mean < 1e-4, "{mean}");
        assert!(50 * flips < count as usize, "{flips} of {count}");
    }
}

/// Rows of logits of several texts.
fn rows(texts: &[Vec<f32>], vocab: usize) -> impl Iterator<Item = &[f32]> {
    texts.iter().flat_map(move |text| text.chunks_exact(vocab))
}

#[test]
fn memory_is_what_the_rule_says() {
    let text = [1, 2, 3];
    let bytes = |kv_type| {
        let model = load(kv_type);
        let mut session = model.session(300).unwrap();
        model.forward(&mut session, &text, Logits::None).unwrap();
        let cache = session.cache();
        assert_eq!(cache.byte_len(), 256 * cache.position_bytes());
        cache.position_bytes()
    };
    // keys and values of 4 layers with 2 heads of 64
    assert_eq!(bytes(KvType::F32), 2 * 4 * 2 * 64 * 4);
    assert_eq!(bytes(KvType::F16), 2 * 4 * 2 * 64 * 2);
    assert_eq!(bytes(KvType::Q8), 2 * 4 * 2 * (64 + 2 * 4));
    for name in ["f32", "f16", "q8"] {
        assert_eq!(KvType::by_name(name).unwrap().as_str(), name);
    }
    assert_eq!(KvType::by_name("q4"), None);
}

#[test]
fn many_texts_at_once_have_the_tokens_of_each_alone() {
    let prompts = ["Add 34 and 28.", "One", "Sort these words: moon, nest, key"];
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let lines = prompts.iter().map(|prompt| {
        json!({"prompt": prompt, "max_tokens": 30, "temperature": 0}).to_string() + "\n"
    });
    std::fs::write(&input, lines.collect::<String>()).unwrap();
    let model = demo().into_os_string();
    let mut words = vec![model.clone(), "--batch".into(), input.into(), "-o".into()];
    words.push(output.clone().into());
    words.extend(["--kv-type", "q8"].map(Into::into));
    let ran = run(bitnet_run::run, words);
    assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
    let answers = std::fs::read_to_string(output).unwrap();
    assert_eq!(answers.lines().count(), prompts.len());
    for (prompt, answer) in prompts.into_iter().zip(answers.lines()) {
        let answer: Value = serde_json::from_str(answer).unwrap();
        for mode in ["off", "prompt-lookup"] {
            let words = [
                "-p",
                prompt,
                "-n",
                "30",
                "--kv-type",
                "q8",
                "--json",
                "--speculate",
                mode,
            ];
            let words = [model.clone()].into_iter().chain(words.map(Into::into));
            let alone = run(bitnet_run::run, words).json();
            let found = answer
                .pointer("/choices/0/text")
                .or(answer.pointer("/response/body/choices/0/text"));
            assert_eq!(found, Some(&alone["text"]), "{answer}");
        }
    }
}
