//! Speculation changes how many steps a text takes, and nothing else.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::Backend;
use bitnet_model::{
    Generated, Generation, KvType, LoadOptions, LogitOptions, Model, Sampler, SamplerOptions,
    Speculated, Speculation, Stopped, TextStream,
};
use bitnet_tests::fixtures::{checkpoint, fixture, repository};
use bitnet_tests::program::{Ran, run};
use bitnet_text::{ChatMessage, Tokenizer};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Networks of different wiring: quantized activations; windows of 16 positions; scales of groups; recurrent states;
/// mixtures of experts.
const NETWORKS: [&str; 5] = [
    "bitnet-2b4t-packed",
    "bitnet-embedding-270m",
    "bonsai-1.7b",
    "qwen35",
    "qwen3-moe",
];

fn load(name: &str, backend: Backend, kv_type: KvType) -> Model {
    let options = LoadOptions {
        backend,
        kv_type,
        threads: 2,
        ..LoadOptions::default()
    };
    Model::load(&fixture(name).expect(name).open().expect(name), &options).expect(name)
}

/// A prompt that says things twice.
fn prompt(model: &Model, seed: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    let phrase = (0..12).map(|i| ((seed * 7919 + i * 131 + i * i * 17) % vocab) as u32);
    let mut tokens: Vec<u32> = phrase.collect();
    tokens.extend_from_within(..);
    tokens.extend_from_within(..7);
    tokens
}

/// Greedy, and drawn: from the largest logits, from all, with penalties.
fn samplers() -> Vec<(&'static str, Sampler, LogitOptions)> {
    let drawn = |seed, top_k, temperature| {
        Sampler::new(SamplerOptions {
            temperature,
            top_k,
            seed,
            ..SamplerOptions::default()
        })
    };
    let penalties = LogitOptions {
        repetition_penalty: 1.05,
        presence_penalty: 0.1,
        frequency_penalty: 0.05,
        bias: vec![(3, 0.5)],
    };
    let none = LogitOptions::default;
    vec![
        ("greedy", Sampler::greedy(), none()),
        ("drawn", drawn(7, 40, 0.8), none()),
        // so cold that a text repeats itself
        ("cold", drawn(8, 5, 0.05), none()),
        ("drawn from all", drawn(9, 0, 0.1), none()),
        ("penalties", Sampler::greedy(), penalties.clone()),
        ("drawn with penalties", drawn(10, 20, 0.3), penalties),
    ]
}

/// What a text and another one behind part of it came to.
#[derive(Debug, PartialEq)]
struct Told {
    first: (Vec<u32>, Stopped, usize),
    second: (Vec<u32>, Stopped, usize),
    third: (Vec<u32>, Stopped, usize),
}

/// A text, more of it, and another end of it.
fn tell(mut generation: Generation<'_>, prompt: &[u32]) -> (Told, Speculated) {
    let mut all = Speculated::default();
    let mut tell = |generation: &mut Generation<'_>, ids: &[u32], most, stop| {
        let mut seen = Vec::new();
        let generated = generation
            .run(ids, most, |token| {
                seen.push(token);
                Ok::<_, FormatError>(match seen.len() == stop {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                })
            })
            .unwrap();
        assert_eq!(seen, generated.tokens);
        all.drafted += generated.speculated.drafted;
        all.accepted += generated.speculated.accepted;
        all.steps += generated.speculated.steps;
        let Generated {
            tokens, stopped, ..
        } = generated;
        (tokens, stopped, generation.position())
    };
    let first = tell(&mut generation, prompt, 40, usize::MAX);
    let last = first.0.last().copied().unwrap_or(1);
    let second = tell(&mut generation, &[last, 2, 3], 25, 19);
    generation.truncate(prompt.len() + 9);
    let third = tell(&mut generation, &prompt[..5], 30, usize::MAX);
    let told = Told {
        first,
        second,
        third,
    };
    (told, all)
}

#[test]
fn tokens_do_not_depend_on_speculation() {
    let (mut hits, mut misses) = (0, 0);
    for name in NETWORKS {
        for backend in Backend::available() {
            let is_best = backend.name() == Backend::best().name();
            let model = load(name, backend, KvType::F32);
            let prompt = prompt(&model, 3);
            for (how, sampler, options) in samplers() {
                if !is_best && !["greedy", "drawn"].contains(&how) {
                    continue;
                }
                let generation = || {
                    Generation::new(&model, 400, sampler.clone(), vec![11])
                        .unwrap()
                        .with_logit_options(options.clone())
                };
                let (want, plain) = tell(generation(), &prompt);
                assert_eq!((plain.drafted, plain.accepted), (0, 0));
                for mode in [Speculation::PromptLookup, Speculation::Auto] {
                    let (got, speculated) = tell(generation().with_speculation(mode), &prompt);
                    let what = format!("{name} {} {how} {}", backend.name(), mode.as_str());
                    assert_eq!(got, want, "{what}");
                    let Speculated {
                        drafted,
                        accepted,
                        steps,
                    } = speculated;
                    assert!(accepted <= drafted, "{what}: {speculated:?}");
                    assert!(steps + accepted >= plain.steps, "{what}: {speculated:?}");
                    assert!(steps <= plain.steps, "{what}: {speculated:?}");
                    (hits, misses) = (hits + accepted, misses + drafted - accepted);
                }
            }
        }
    }
    // the test saw what it is about
    assert!(hits > 100 && misses > 100, "{hits} hits, {misses} misses");
}

#[test]
fn a_text_ends_with_its_context_as_without_speculation() {
    for name in ["bitnet-2b4t-packed", "qwen35"] {
        let model = load(name, Backend::best(), KvType::F16);
        let prompt = prompt(&model, 5);
        for room in [0, 1, 2, 9] {
            let run = |mode| {
                let mut seen = Vec::new();
                let context = prompt.len() + room;
                let mut generation = Generation::new(&model, context, Sampler::greedy(), vec![])
                    .unwrap()
                    .with_speculation(mode);
                let error = generation.run(&prompt, 60, |token| {
                    seen.push(token);
                    Ok::<_, FormatError>(ControlFlow::Continue(()))
                });
                (seen, error.unwrap_err().code, generation.position())
            };
            let want = run(Speculation::Off);
            assert_eq!(
                (want.0.len(), want.1),
                (room + 1, ErrorCode::ContextExceeded)
            );
            assert_eq!(run(Speculation::PromptLookup), want, "{name} {room}");
            assert_eq!(run(Speculation::Auto), want, "{name} {room}");
        }
    }
}

#[test]
fn an_error_of_the_caller_leaves_the_same_text() {
    let model = load("qwen35", Backend::best(), KvType::F32);
    let prompt = prompt(&model, 1);
    for fails in [1, 2, 7, 20] {
        let run = |mode| {
            let mut count = 0;
            let mut generation = Generation::new(&model, 200, Sampler::greedy(), vec![])
                .unwrap()
                .with_speculation(mode);
            let error = generation.run(&prompt, 60, |_| {
                count += 1;
                match count == fails {
                    true => Err(FormatError::new(ErrorCode::Io, "no more")),
                    false => Ok(ControlFlow::Continue(())),
                }
            });
            assert_eq!(error.unwrap_err().code, ErrorCode::Io);
            let position = generation.position();
            let more = generation.run(&[5], 10, |_| {
                Ok::<_, FormatError>(ControlFlow::Continue(()))
            });
            (position, more.unwrap().tokens)
        };
        assert_eq!(run(Speculation::PromptLookup), run(Speculation::Off));
    }
}

#[test]
fn a_draft_model_changes_nothing_and_a_perfect_one_is_always_right() {
    for name in ["bitnet-2b4t-packed", "qwen35"] {
        let model = load(name, Backend::best(), KvType::F32);
        let twin = load(name, Backend::best(), KvType::F32);
        let prompt = prompt(&model, 9);
        for (how, sampler, options) in samplers() {
            let generation = || {
                Generation::new(&model, 400, sampler.clone(), vec![11])
                    .unwrap()
                    .with_logit_options(options.clone())
            };
            let (want, plain) = tell(generation(), &prompt);
            for mode in [Speculation::PromptLookup, Speculation::Auto] {
                let drafted = generation().with_draft_model(&twin, mode).unwrap();
                let (got, speculated) = tell(drafted, &prompt);
                assert_eq!(got, want, "{name} {how} {}", mode.as_str());
                if how == "greedy" && mode == Speculation::PromptLookup {
                    // a guess behind the end of a text is never verified
                    let Speculated {
                        drafted, accepted, ..
                    } = speculated;
                    assert!(
                        accepted > 40 && accepted + 3 * 16 >= drafted,
                        "{speculated:?}"
                    );
                    assert!(2 * speculated.steps < plain.steps, "{speculated:?}");
                }
            }
        }
    }
    // another network with as many tokens, whose guesses are wrong
    let (model, other) = (
        load("bitnet-2b4t-packed", Backend::best(), KvType::F32),
        load("llama3-8b-1.58", Backend::best(), KvType::F32),
    );
    let prompt = prompt(&model, 2);
    let generation = || Generation::new(&model, 400, Sampler::greedy(), vec![]).unwrap();
    let (want, _) = tell(generation(), &prompt);
    let drafted = generation().with_draft_model(&other, Speculation::PromptLookup);
    assert_eq!(tell(drafted.unwrap(), &prompt).0, want);
    // and one with other tokens is refused
    let stranger = load("qwen35", Backend::best(), KvType::F32);
    let refused = generation().with_draft_model(&stranger, Speculation::Auto);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Usage);
}

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

#[test]
fn the_demo_answers_alike_with_fewer_steps() {
    let open = Checkpoint::open(&demo(), &OpenOptions::default()).unwrap();
    let model = Model::load(&open, &LoadOptions::default()).unwrap();
    let tokenizer = Tokenizer::from_directory(&demo()).unwrap().unwrap();
    let template = tokenizer.chat().unwrap().unwrap();
    let questions = repository().join("tests/fixtures/demo/questions.jsonl");
    let questions = std::fs::read_to_string(questions).unwrap();
    let (mut plain, mut lookup) = (0, 0);
    // chats of several questions, whose answers are like each other
    let lines: Vec<&str> = questions.lines().step_by(10).collect();
    for chat in lines.chunks(4) {
        let answers = |mode, steps: &mut usize| -> Vec<(Vec<u32>, String)> {
            let stop = Generation::stop_tokens(&model, &tokenizer);
            let mut generation = Generation::new(&model, 512, Sampler::greedy(), stop)
                .unwrap()
                .with_speculation(mode);
            let mut answer = |line: &&str| {
                let question: serde_json::Value = serde_json::from_str(line).unwrap();
                let message = ChatMessage::user(question["question"].as_str().unwrap());
                let prompt = template.render(&[message], true).unwrap();
                let prompt = tokenizer.encode(&prompt, false).unwrap();
                let mut text = String::new();
                let stream = TextStream::new(&tokenizer, &[", so".to_owned()]);
                let generated = generation
                    .run_text(stream, &prompt, 40, |piece| {
                        text.push_str(piece);
                        Ok::<_, FormatError>(())
                    })
                    .unwrap();
                *steps += generated.speculated.steps;
                (generated.tokens, text)
            };
            chat.iter().map(&mut answer).collect()
        };
        let want = answers(Speculation::Off, &mut plain);
        assert_eq!(answers(Speculation::PromptLookup, &mut lookup), want);
        assert_eq!(answers(Speculation::Auto, &mut 0), want);
    }
    assert!(10 * lookup < 9 * plain, "{lookup} steps instead of {plain}");
}

/// `bitnet-run` with these words, and `--json`.
fn bitnet_run(model: &Path, words: &[&str]) -> Ran {
    let words = words.iter().map(AsRef::as_ref);
    run(
        bitnet_run::run,
        [model.as_os_str()]
            .into_iter()
            .chain(words)
            .chain(["--json".as_ref()]),
    )
}

#[test]
fn the_program_reports_what_speculation_did() {
    let question = "Add 34 and 28.";
    for more in [
        &[][..],
        &["--temp", "0.8", "--seed", "3"],
        &["--stop", ", so"],
        &["--repetition-penalty", "1.1"],
        &["-n", "1"],
        &["-n", "0"],
    ] {
        let answer = |mode: &[&str]| {
            let words = [&["--chat", "-p", question][..], more, mode].concat();
            let ran = bitnet_run(&demo(), &words);
            assert_eq!(ran.status.code(), 0, "{words:?}: {}", ran.stderr);
            ran.json()
        };
        let off = answer(&["--speculate", "off"]);
        let tokens = off["tokens"].as_array().unwrap().len();
        let speculation = &off["speculation"];
        assert_eq!(speculation["mode"], "off");
        assert_eq!(speculation["drafted"], 0);
        let steps = speculation["steps"].as_u64().unwrap() as usize;
        assert!(steps == tokens || steps == tokens + 1, "{off}");
        let draft = demo();
        let draft = draft.to_str().unwrap();
        for (name, mode) in [
            ("auto", &[][..]),
            ("auto", &["--speculate", "auto"]),
            ("prompt-lookup", &["--speculate", "prompt-lookup"]),
            ("auto", &["--draft", draft]),
            (
                "prompt-lookup",
                &["--speculate", "prompt-lookup", "--draft", draft],
            ),
        ] {
            let got = answer(mode);
            for key in ["tokens", "text", "stopped", "prompt_tokens"] {
                assert_eq!(got[key], off[key], "{mode:?} {more:?}");
            }
            assert_eq!(got["speculation"]["mode"], name);
            if more.is_empty() && mode.len() == 4 {
                // guesses behind the end of the text are of no use
                let count = |key: &str| got["speculation"][key].as_u64().unwrap();
                assert!(count("accepted") > 4, "{got}");
                assert!(count("accepted") + 16 > count("drafted"), "{got}");
            }
        }
    }
}

#[test]
fn a_draft_model_of_another_tokenizer_is_refused() {
    let refused = |words: &[&str], code: &str, what: &str| {
        let ran = bitnet_run(&demo(), words);
        assert_eq!(ran.status.code(), 2, "{words:?}");
        let error = &ran.json()["error"];
        assert_eq!(error["code"], code, "{words:?}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(what), "{message}");
    };
    let other = checkpoint("bitnet-2b4t-packed");
    let other = other.to_str().unwrap();
    let question = ["--chat", "-p", "Add 34 and 28."];
    refused(
        &[&question[..], &["--draft", other]].concat(),
        "tokenizer",
        "expected a vocabulary of 576 tokens, found 400",
    );
    // as many tokens, two of them exchanged
    let dir = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(demo()).unwrap() {
        let file = file.unwrap();
        let text = std::fs::read(file.path()).unwrap();
        std::fs::write(dir.path().join(file.file_name()), text).unwrap();
    }
    let path = dir.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    (vocab["a"], vocab["b"]) = (b, a);
    std::fs::write(&path, json.to_string()).unwrap();
    let twisted = dir.path().to_str().unwrap();
    refused(
        &[&question[..], &["--draft", twisted]].concat(),
        "tokenizer",
        "the tokenizer of the draft model differs from that of the model",
    );
    refused(
        &[&question[..], &["--draft", twisted, "--speculate", "off"]].concat(),
        "usage",
        "--speculate off",
    );
    // token ids need no tokenizer
    let ids = ["--tokens", "1,2,3", "-n", "4", "--draft", twisted];
    let ran = bitnet_run(&demo(), &ids);
    assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
    let plain = bitnet_run(
        &demo(),
        &["--tokens", "1,2,3", "-n", "4", "--speculate", "off"],
    );
    assert_eq!(ran.json()["tokens"], plain.json()["tokens"]);
}
