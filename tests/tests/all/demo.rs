//! The demo model answers questions: exactly, and the same on every kernel, in every format.
//!
//! The one test on trained weights: what all others prove about bytes and bits, this one shows in
//! answers that a person can check. Questions and expected answers are `tests/fixtures/demo/questions.jsonl`,
//! held out in training (`scripts/demo_questions.py`).
//!
//! A skip is never silent: the kernels that ran are printed.

#![allow(clippy::print_stdout)]

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::{Backend, KERNELS};
use bitnet_model::{LoadOptions, Logits, Model, Sampler};
use bitnet_tests::fixtures::repository;
use bitnet_tests::program;
use bitnet_text::{ChatMessage, ChatTemplate, Tokenizer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Right answers that each task needs, of 100.
const NEEDED: [(&str, usize); 5] = [
    ("arithmetic", 95),
    ("count", 95),
    ("dates", 95),
    ("sort", 95),
    ("story", 95),
];
/// Longer than any answer.
const MOST_TOKENS: usize = 40;
/// The fastest kernel answers every question in every format, the others every n-th.
const STRIDE: usize = 5;
/// The scalar definition costs more than all kernels together.
const SCALAR_STRIDE: usize = 25;

struct Question {
    task: String,
    text: String,
    answer: String,
}

fn demo(part: &str) -> PathBuf {
    repository().join("tests/fixtures/demo").join(part)
}

fn questions() -> Vec<Question> {
    let text = std::fs::read_to_string(demo("questions.jsonl")).unwrap();
    let field = |line: &Value, key: &str| line[key].as_str().unwrap().to_owned();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .map(|line: Value| Question {
            task: field(&line, "task"),
            text: field(&line, "question"),
            answer: field(&line, "answer"),
        })
        .collect()
}

/// The checkpoint in the format that `--to` names.
fn converted(dir: &Path, target: &str) -> PathBuf {
    let out = dir.join(format!("{target}.gguf"));
    let source = demo("checkpoint");
    let words: [&OsStr; 5] = [
        source.as_ref(),
        "-o".as_ref(),
        out.as_ref(),
        "--to".as_ref(),
        target.as_ref(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status.code(), 0, "{target}: {}", ran.stderr);
    out
}

struct Talker {
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Talker {
    fn load(path: &Path, backend: Backend) -> Self {
        let checkpoint = Checkpoint::open(path, &OpenOptions::default()).unwrap();
        let options = LoadOptions {
            backend,
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, &options).unwrap();
        let tokenizer = match path.is_dir() {
            true => Tokenizer::from_directory(path),
            false => Tokenizer::from_gguf(&checkpoint.file.metadata),
        };
        let tokenizer = tokenizer.unwrap().unwrap();
        let template = tokenizer.chat().unwrap().unwrap();
        Self {
            model,
            tokenizer,
            template,
        }
    }

    /// What `bitnet-run --chat` prints.
    fn answer(&self, question: &str) -> String {
        let messages = [ChatMessage::user(question)];
        let prompt = self.template.render(&messages, true).unwrap();
        let mut feed = self.tokenizer.encode(&prompt, false).unwrap();
        let mut session = self.model.session(feed.len() + MOST_TOKENS).unwrap();
        let (mut sampler, mut answer) = (Sampler::greedy(), Vec::new());
        while answer.len() < MOST_TOKENS {
            let logits = self
                .model
                .forward(&mut session, &feed, Logits::Last)
                .unwrap();
            let token = sampler.sample(&logits);
            if self.tokenizer.stop_tokens().contains(&token) {
                break;
            }
            answer.push(token);
            feed = vec![token];
        }
        self.tokenizer.decode(&answer, true).unwrap()
    }
}

#[test]
fn both_layouts_that_ship_hold_one_model() {
    let (packed, master) = (demo("packed"), demo("checkpoint"));
    let words = [packed.as_os_str(), "--against".as_ref(), master.as_os_str()];
    let ran = program::run(bitnet_verify::run, words);
    assert_eq!(ran.status.code(), 0, "{}{}", ran.stdout, ran.stderr);
    let files = [master, packed].into_iter().flat_map(|dir| {
        let files = std::fs::read_dir(dir).unwrap();
        files.map(|file| file.unwrap().metadata().unwrap().len())
    });
    let bytes: u64 = files.sum();
    assert!(bytes <= 6_000_000, "{bytes} bytes");
}

#[test]
fn held_out_questions_are_answered_alike_everywhere() {
    let questions = questions();
    let dir = tempfile::tempdir().unwrap();
    let formats = [
        demo("packed"),
        converted(dir.path(), "gguf-i2_s"),
        converted(dir.path(), "gguf-tq1_0"),
    ];
    let best = Talker::load(&demo("checkpoint"), Backend::best());
    let answers: Vec<String> = questions.iter().map(|q| best.answer(&q.text)).collect();

    let mut tasks: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (question, answer) in questions.iter().zip(&answers) {
        let (right, asked) = tasks.entry(&question.task).or_default();
        *right += usize::from(*answer == question.answer);
        *asked += 1;
    }
    for (task, needed) in NEEDED {
        let (right, asked) = tasks[task];
        println!("{task}: {right} of {asked} held-out questions");
        assert!(asked >= 200, "{task}: only {asked} questions");
        assert!(100 * right >= needed * asked, "{task}: {right} of {asked}");
    }

    for kernel in KERNELS {
        let Some(backend) = Backend::available().find(|b| b.name() == kernel.name) else {
            println!("kernel {}: not on this cpu", kernel.name);
            continue;
        };
        let stride = match kernel.name {
            name if name == Backend::best().name() => 1,
            "scalar" => SCALAR_STRIDE,
            _ => STRIDE,
        };
        for format in &formats {
            let talker = Talker::load(format, backend);
            let asked = questions.iter().zip(&answers).step_by(stride);
            for (question, answer) in asked {
                let got = talker.answer(&question.text);
                assert_eq!(got, *answer, "{} {format:?}", kernel.name);
            }
        }
        println!("kernel {}: the same answers", kernel.name);
    }
}
