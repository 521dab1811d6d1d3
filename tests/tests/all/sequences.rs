//! Several sequences in one step: the bits of each are those of the sequence alone.

use bitnet_formats::ErrorCode;
use bitnet_kernels::Backend;
use bitnet_model::{KvType, LoadOptions, Model, Sequence, Slice, StepLogits, Want, Workspace};
use bitnet_tests::fixtures::fixture;

/// Networks of different wiring: quantized activations; windows of 16 positions and one KV head; activations that
/// are not quantized, and scales of groups; recurrent states and gated attention.
const NETWORKS: [&str; 4] = [
    "bitnet-2b4t-packed",
    "bitnet-embedding-270m",
    "bonsai-1.7b",
    "qwen35",
];

fn load(name: &str, backend: Backend, kv_type: KvType) -> Model {
    let fixture = fixture(name).expect(name);
    let options = LoadOptions {
        backend,
        kv_type,
        threads: 1,
        ..LoadOptions::default()
    };
    // the checkpoint ends here: the model never looks back
    Model::load(&fixture.open().expect(name), &options).expect(name)
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn tokens(model: &Model, seed: usize, count: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size;
    (0..count)
        .map(|i| ((seed * 7919 + i * 131 + i * i * 17) % vocab) as u32)
        .collect()
}

/// A text that joins at some step, feeds its prompt in parts, then one token a step, and leaves.
struct Text {
    joins: usize,
    tokens: Vec<u32>,
    parts: Vec<usize>,       // how many tokens each of its steps reads
    want: fn(usize) -> Want, // at each of its steps
    alone: Vec<Vec<u32>>,    // bits of all logits of each token
}

/// How many tokens the prompts have, and how many more come one by one.
const LENGTHS: [(usize, usize); 17] = [
    (5, 4),
    (1, 6),
    (270, 3), // more than a round, and than a block of keys
    (33, 2),
    (17, 5),
    (2, 1),
    (64, 3),
    (1, 1),
    (3, 7),
    (40, 2),
    (9, 3),
    (1, 9),
    (25, 1),
    (7, 4),
    (12, 3),
    (4, 4),
    (20, 2),
];

/// The texts, and what a model of one thread says of each of them alone.
fn texts(model: &Model) -> Vec<Text> {
    const WANTS: [fn(usize) -> Want; 4] = [
        |_| Want::Last,
        |step| if step == 0 { Want::All } else { Want::Top(5) },
        |step| {
            if step % 2 == 0 {
                Want::Nothing
            } else {
                Want::Last
            }
        },
        |step| {
            if step < 2 {
                Want::TopOfEach(3)
            } else {
                Want::Top(2)
            }
        },
    ];
    let vocab = model.config().vocab_size;
    let lengths = LENGTHS.iter().enumerate();
    let text = |(number, &(prompt, more)): (usize, &(usize, usize))| {
        let tokens = tokens(model, number, prompt + more);
        let mut session = model.session(tokens.len()).unwrap();
        let all = model.forward(&mut session, &tokens, bitnet_model::Logits::All);
        // long prompts come in two parts
        let mut parts = match prompt {
            1..20 => vec![prompt],
            _ => vec![prompt / 3, prompt - prompt / 3],
        };
        parts.extend(vec![1; more]);
        Text {
            joins: number % 4,
            tokens,
            parts,
            want: WANTS[number % WANTS.len()],
            alone: all.unwrap().chunks(vocab).map(bits).collect(),
        }
    };
    lengths.map(text).collect()
}

/// The `k` largest of some logits, given as bits, with their tokens.
fn largest_of(logits: &[u32], k: usize) -> Vec<(u32, f32)> {
    let logits = logits.iter().map(|bits| f32::from_bits(*bits));
    let mut all: Vec<(u32, f32)> = (0..).zip(logits).collect();
    all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    all.truncate(k);
    all
}

/// Runs some texts together and compares each with itself alone. Returns how many sequences the largest step had.
fn together(model: &Model, texts: &[Text], workspace: &mut Workspace, what: &str) -> usize {
    struct Run<'a> {
        text: &'a Text,
        sequence: Sequence,
        step: usize,
    }
    let mut runs: Vec<Run<'_>> = texts
        .iter()
        .map(|text| Run {
            text,
            sequence: model.sequence(text.tokens.len()).unwrap(),
            step: 0,
        })
        .collect();
    let (mut time, mut largest) = (0, 0);
    while runs.iter().any(|run| run.step < run.text.parts.len()) {
        let mut active: Vec<&mut Run<'_>> = runs
            .iter_mut()
            .filter(|run| run.text.joins <= time && run.step < run.text.parts.len())
            .collect();
        let mut batch: Vec<Slice<'_>> = active
            .iter_mut()
            .map(|run| {
                let Run {
                    text,
                    sequence,
                    step,
                } = &mut **run;
                let at = sequence.position();
                Slice {
                    sequence,
                    tokens: &text.tokens[at..at + text.parts[*step]],
                    want: (text.want)(*step),
                }
            })
            .collect();
        largest = largest.max(batch.len());
        let found = model.step(&mut batch, workspace).unwrap();
        for (number, (run, found)) in active.into_iter().zip(found).enumerate() {
            let end = run.sequence.position();
            let read = run.text.parts[run.step];
            let alone = &run.text.alone[end - read..end];
            let last = alone.last().unwrap();
            let place = format!("{what}: slice {number} at {end}");
            match ((run.text.want)(run.step), found) {
                (Want::Nothing, StepLogits::Nothing) => {}
                (Want::Last, StepLogits::Rows(rows)) => assert_eq!(bits(&rows), *last, "{place}"),
                (Want::All, StepLogits::Rows(rows)) => {
                    assert_eq!(bits(&rows), alone.concat(), "{place}");
                }
                (Want::Top(k), StepLogits::Top(top)) => {
                    assert_eq!(top, largest_of(last, k), "{place}");
                }
                (Want::TopOfEach(k), StepLogits::TopOfEach(top)) => {
                    let want: Vec<_> = alone.iter().map(|row| largest_of(row, k)).collect();
                    assert_eq!(top, want, "{place}");
                }
                (want, found) => panic!("{place}: wanted {want:?}, found {found:?}"),
            }
            run.step += 1;
        }
        time += 1;
    }
    for run in &runs {
        assert_eq!(run.sequence.position(), run.text.tokens.len());
    }
    largest
}

#[test]
fn the_bits_of_a_sequence_do_not_depend_on_who_else_is_in_the_batch() {
    for name in NETWORKS {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let texts = texts(&load(name, Backend::best(), kv_type));
            for backend in Backend::available() {
                let model = load(name, backend, kv_type);
                // the scalar definition takes longer than all kernels together
                let counts: &[usize] = match (backend.name(), kv_type) {
                    ("scalar", KvType::F32) => &[3, 17],
                    ("scalar", KvType::F16 | KvType::Q8) => &[8],
                    _ => &[1, 2, 3, 8, 17],
                };
                for threads in [1, 2] {
                    let model = model.with_threads(threads);
                    // one workspace for all, whatever it was used for before
                    let mut workspace = model.workspace();
                    for &count in counts {
                        let what = format!(
                            "{name} {} {} {threads} threads {count} sequences",
                            backend.name(),
                            kv_type.as_str()
                        );
                        let largest = together(&model, &texts[..count], &mut workspace, &what);
                        assert!(largest == count || count > 3, "{what}: {largest}");
                    }
                }
            }
        }
    }
}

#[test]
fn neither_the_order_of_a_batch_nor_the_size_of_rounds_changes_a_bit() {
    for name in NETWORKS {
        let model = load(name, Backend::best(), KvType::F32).with_threads(2);
        let mut texts = texts(&model);
        texts.reverse();
        for text in &mut texts {
            text.joins = 0;
        }
        for rows in [1, 5, 64, 1000] {
            let mut workspace = model.workspace_of(rows);
            let what = format!("{name}, rounds of {rows}");
            assert_eq!(together(&model, &texts, &mut workspace, &what), 17);
        }
    }
}

/// The logits of the last of some more tokens of a sequence.
fn next(model: &Model, sequence: &mut Sequence, tokens: &[u32]) -> Vec<u32> {
    let slice = Slice {
        sequence,
        tokens,
        want: Want::Last,
    };
    let found = model.step(&mut [slice], &mut model.workspace()).unwrap();
    bits(&found.into_iter().next().unwrap().into_rows())
}

#[test]
fn a_fork_gives_the_same_bits_and_shares_memory() {
    for name in NETWORKS {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let model = load(name, Backend::best(), kv_type).with_threads(2);
            let prefix = tokens(&model, 1, 300);
            let mut first = model.sequence(400).unwrap();
            next(&model, &mut first, &prefix);
            let block = first.cache().byte_len() / 2;
            for position in [0, 1, 100, 255, 256, 257, 300] {
                let more = tokens(&model, position, 9);
                let mut alone = model.sequence(400).unwrap();
                let want = next(&model, &mut alone, &[&prefix[..position], &more].concat());

                let mut fork = first.fork(position).unwrap();
                assert_eq!((fork.position(), fork.context()), (position, 400));
                let shared = position.div_ceil(256) * block;
                assert_eq!(fork.cache().byte_len(), shared, "{name} {position}");
                assert_eq!(fork.cache().shared_byte_len(), shared);
                assert_eq!(first.cache().shared_byte_len(), shared);
                assert_eq!(next(&model, &mut fork, &more), want, "{name} {position}");
                // full blocks stay shared, the one that was written to does not
                let full = position / 256 * block;
                assert_eq!(fork.cache().shared_byte_len(), full, "{name} {position}");
                assert_eq!(first.cache().shared_byte_len(), full);
            }
            // the forks changed nothing of the first, and it copies what it shares when it goes on
            let keeper = first.fork(300).unwrap();
            let more = tokens(&model, 77, 5);
            let mut alone = model.sequence(400).unwrap();
            let want = next(&model, &mut alone, &[&prefix[..], &more].concat());
            assert_eq!(next(&model, &mut first, &more), want);
            let mut keeper = keeper.fork(300).unwrap();
            assert_eq!(next(&model, &mut keeper, &more), want);

            let error = first.fork(306).unwrap_err();
            assert_eq!(error.code, ErrorCode::ContextExceeded);
        }
    }
}

#[test]
fn a_sequence_goes_back_and_on() {
    for name in [NETWORKS[1], NETWORKS[3]] {
        let model = load(name, Backend::best(), KvType::F32);
        let text = tokens(&model, 3, 280);
        let mut sequence = model.sequence(300).unwrap();
        let want = next(&model, &mut sequence, &text);
        for back in [279, 256, 255, 100, 0, 279, 30] {
            sequence.truncate(back);
            assert_eq!(sequence.position(), back);
            assert_eq!(
                next(&model, &mut sequence, &text[back..]),
                want,
                "{name} {back}"
            );
        }
        sequence.truncate(1000);
        assert_eq!(sequence.position(), 280);
    }
}

#[test]
fn a_recurrent_state_goes_back_by_snapshots_whatever_came_between() {
    let model = load(NETWORKS[3], Backend::best(), KvType::F32).with_threads(2);
    let text = tokens(&model, 5, 700);
    let mut sequence = model.sequence(1000).unwrap();
    assert_eq!(sequence.recurrent_byte_len(), 0);
    next(&model, &mut sequence, &text[..3]);
    let one = sequence.recurrent_byte_len();
    // forward token by token and in runs, back to places with a snapshot and without, and on otherwise
    for (to, back) in [
        (40, 7),
        (300, 290),
        (301, 299),
        (600, 128),
        (700, 699),
        (700, 2),
    ] {
        while sequence.position() < to {
            let at = sequence.position();
            let count = if at.is_multiple_of(3) {
                1
            } else {
                (to - at).min(37)
            };
            next(&model, &mut sequence, &text[at..at + count]);
        }
        sequence.truncate(back);
        let other = tokens(&model, back, 6);
        let mut fork = sequence.fork(back).unwrap();
        let mut alone = model.sequence(1000).unwrap();
        let want = next(&model, &mut alone, &[&text[..back], &other].concat());
        assert_eq!(next(&model, &mut fork, &other), want, "{to} {back}");
        // several states at once, each from a place of its own
        let mut another = sequence.fork(back / 2).unwrap();
        let mut batch = [
            Slice {
                sequence: &mut another,
                tokens: &text[back / 2..back],
                want: Want::Nothing,
            },
            Slice {
                sequence: &mut sequence,
                tokens: &other,
                want: Want::Last,
            },
        ];
        let found = model.step(&mut batch, &mut model.workspace()).unwrap();
        let last = found.into_iter().last().unwrap().into_rows();
        assert_eq!(bits(&last), want, "{to} {back}");
        assert_eq!(next(&model, &mut another, &other), want, "{to} {back}");
        sequence.truncate(back);
    }
    // the state and at most three snapshots
    assert!(sequence.recurrent_byte_len() <= 4 * one, "{one}");
}

#[test]
fn a_step_that_is_refused_leaves_every_sequence_where_it_was() {
    let backend = Backend::best();
    let (model, other) = (
        load(NETWORKS[0], backend, KvType::F32),
        load(NETWORKS[0], backend, KvType::F32),
    );
    let text = tokens(&model, 1, 20);
    let mut sequences = [(); 3].map(|()| model.sequence(20).unwrap());
    for sequence in &mut sequences {
        next(&model, sequence, &text[..10]);
    }
    let mut refused = |last: &[u32], workspace: &mut Workspace, foreign: Option<&mut Sequence>| {
        let [first, second, third] = &mut sequences;
        let slice = |sequence, tokens| Slice {
            sequence,
            tokens,
            want: Want::Last,
        };
        let third = foreign.unwrap_or(third);
        let before = third.position();
        let mut batch = [
            slice(first, &text[10..12]),
            slice(second, &text[10..11]),
            slice(third, last),
        ];
        let error = model.step(&mut batch, workspace).unwrap_err();
        let positions = batch.map(|slice| slice.sequence.position());
        assert_eq!(positions, [10, 10, before]);
        error.code
    };
    let mut workspace = model.workspace();
    assert_eq!(refused(&[u32::MAX], &mut workspace, None), ErrorCode::Usage);
    assert_eq!(
        refused(&text[..11], &mut workspace, None),
        ErrorCode::ContextExceeded
    );
    let mut foreign = other.sequence(20).unwrap();
    assert_eq!(
        refused(&text[..1], &mut workspace, Some(&mut foreign)),
        ErrorCode::Usage
    );
    assert_eq!(
        refused(&text[..1], &mut other.workspace(), None),
        ErrorCode::Usage
    );
    // the same weights on other threads are the same model
    let mut alone = model.sequence(20).unwrap();
    let want = next(&model, &mut alone, &text);
    let more = model.with_threads(2);
    for sequence in &mut sequences {
        assert_eq!(next(&more, sequence, &text[10..]), want);
    }
}

#[test]
fn no_slices_and_no_tokens_are_nothing() {
    let model = load(NETWORKS[0], Backend::best(), KvType::F32);
    let mut workspace = model.workspace();
    assert_eq!(model.step(&mut [], &mut workspace).unwrap(), []);
    let mut sequence = model.sequence(4).unwrap();
    let slice = Slice {
        sequence: &mut sequence,
        tokens: &[],
        want: Want::Last,
    };
    let found = model.step(&mut [slice], &mut workspace).unwrap();
    assert_eq!(found, [StepLogits::Nothing]);
    assert_eq!((sequence.position(), sequence.cache().byte_len()), (0, 0));
}

#[test]
fn steps_of_one_model_on_several_threads_wait_for_each_other() {
    let model = load(NETWORKS[0], Backend::best(), KvType::F32).with_threads(2);
    let texts: Vec<Vec<u32>> = (0..4).map(|seed| tokens(&model, seed, 30)).collect();
    let run = |text: &Vec<u32>| next(&model, &mut model.sequence(30).unwrap(), text);
    let want: Vec<_> = texts.iter().map(run).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = texts
            .iter()
            .map(|text| scope.spawn(move || run(text)))
            .collect();
        let found: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(found, want);
    });
}
