//! One answer: the same logits, bit for bit, for every kernel, thread count and batch split.
//!
//! A skip is never silent: the kernels that ran are printed.

#![allow(clippy::print_stdout)]

use bitnet_formats::ErrorCode;
use bitnet_kernels::{Backend, KERNELS};
use bitnet_model::{KvType, LoadOptions, Logits, Model, Session};
use bitnet_tests::digest;
use bitnet_tests::fixtures::{Fixture, fixtures};
use bitnet_verify::Golden;
use std::collections::BTreeMap;

fn load(fixture: &Fixture, backend: Backend, kv_type: KvType) -> Option<(Model, Golden)> {
    if fixture.is_embedding() {
        return None;
    }
    let checkpoint = fixture.open();
    let checkpoint = checkpoint.unwrap_or_else(|e| panic!("{}: {e}", fixture.name));
    let options = LoadOptions {
        backend,
        kv_type,
        ..LoadOptions::default()
    };
    Some((
        Model::load(&checkpoint, &options).expect("a fixture loads"),
        fixture.golden(),
    ))
}

/// More than a batch and more than a block of attention: the stream, then the prompts, again and again.
fn tokens(golden: &Golden) -> Vec<u32> {
    let prompts = golden.prompts.iter().flat_map(|p| p.ids.iter());
    let stream = golden.stream.iter().flat_map(|s| s.ids.iter());
    let tokens: Vec<u32> = stream.chain(prompts).copied().cycle().take(277).collect();
    assert!(tokens.len() > 256, "too short to cross a block");
    tokens
}

fn sha256(logits: &[f32]) -> String {
    let bytes: Vec<u8> = logits.iter().flat_map(|l| l.to_le_bytes()).collect();
    digest::sha256(&bytes)
}

/// Logits of all tokens, fed `split` at a time.
fn logits(model: &Model, tokens: &[u32], split: usize) -> Vec<f32> {
    let mut session = model.session(tokens.len()).expect("a session");
    let mut all = Vec::new();
    for tokens in tokens.chunks(split.min(tokens.len())) {
        all.extend(
            model
                .forward(&mut session, tokens, Logits::All)
                .expect("logits"),
        );
    }
    assert_eq!(session.position(), tokens.len());
    all
}

/// Batch sizes to compare. The scalar kernel costs more than all others together: the first family
/// runs it in every way, the others in one batch with either number of threads.
fn splits(backend: Backend, kv_type: KvType, first: bool) -> &'static [usize] {
    const WHOLE: usize = usize::MAX;
    let scalar = backend.name() == "scalar";
    match kv_type {
        KvType::F32 if scalar && !first => &[WHOLE],
        KvType::F32 => &[WHOLE, 1, 7],
        KvType::F16 if scalar && !first => &[],
        KvType::Q8 if scalar && !first => &[],
        // the other splits say it too
        KvType::F16 | KvType::Q8 => &[WHOLE, 7],
    }
}

#[test]
fn logits_do_not_depend_on_kernel_threads_or_batches() {
    let backends: Vec<Backend> = Backend::available().collect();
    for kernel in KERNELS {
        let runs = backends.iter().any(|b| b.name() == kernel.name);
        println!(
            "kernel {}: {}",
            kernel.name,
            if runs { "runs" } else { "not on this cpu" }
        );
    }
    let mut first = true;
    for fixture in fixtures() {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let mut answers: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for backend in &backends {
                let Some((model, golden)) = load(&fixture, *backend, kv_type) else {
                    continue;
                };
                let tokens = tokens(&golden);
                for threads in [1, 2] {
                    let model = model.with_threads(threads);
                    for &split in splits(*backend, kv_type, first) {
                        let hash = sha256(&logits(&model, &tokens, split));
                        let split = split.min(tokens.len());
                        let how = format!("{} {threads} threads split {split}", backend.name());
                        answers.entry(hash).or_default().push(how);
                    }
                }
            }
            let Some((hash, how)) = answers.first_key_value() else {
                continue;
            };
            assert_eq!(
                answers.len(),
                1,
                "{} {kv_type:?}: {answers:#?}",
                fixture.name
            );
            println!(
                "{} kv {}: {hash} x {}",
                fixture.name,
                kv_type.as_str(),
                how.len()
            );
        }
        first &= fixture.is_embedding();
    }
}

#[test]
fn the_last_logits_are_the_last_of_all_and_a_session_can_go_back() {
    for fixture in fixtures() {
        let Some((model, golden)) = load(&fixture, Backend::best(), KvType::F32) else {
            continue;
        };
        let tokens = tokens(&golden);
        let vocab = model.config().vocab_size;
        let all = logits(&model, &tokens, tokens.len());
        let mut session = model.session(tokens.len()).unwrap();
        let last = model.forward(&mut session, &tokens, Logits::Last).unwrap();
        assert_eq!(last, all[all.len() - vocab..]);
        // back by ten tokens, over what is in the cache
        session.truncate(tokens.len() - 10);
        assert!(
            model
                .forward(
                    &mut session,
                    &tokens[tokens.len() - 10..][..4],
                    Logits::None
                )
                .unwrap()
                .is_empty()
        );
        let last = model
            .forward(&mut session, &tokens[tokens.len() - 6..], Logits::Last)
            .unwrap();
        assert_eq!(last, all[all.len() - vocab..]);
        // the trace ends where the head begins
        let trace = model.trace(&tokens[..9]).unwrap();
        assert_eq!(trace.len(), model.config().num_hidden_layers + 2);
    }
}

#[test]
fn limits_are_errors_and_leave_the_session_as_it_was() {
    let (model, golden) = fixtures()
        .iter()
        .find_map(|f| load(f, Backend::best(), KvType::F32))
        .expect("a fixture");
    let tokens = tokens(&golden);
    let code = |session: &mut Session, tokens: &[u32]| {
        model
            .forward(session, tokens, Logits::Last)
            .expect_err("too much")
            .code
    };

    let mut session = model.session(10).unwrap();
    assert_eq!(
        code(&mut session, &tokens[..11]),
        ErrorCode::ContextExceeded
    );
    assert_eq!(session.position(), 0);
    let first = model
        .forward(&mut session, &tokens[..10], Logits::Last)
        .unwrap();
    assert_eq!(
        code(&mut session, &tokens[10..11]),
        ErrorCode::ContextExceeded
    );
    assert_eq!(session.position(), 10);
    session.truncate(0);
    assert_eq!(code(&mut session, &[tokens[0], u32::MAX]), ErrorCode::Usage);
    assert_eq!(session.position(), 0);
    assert_eq!(
        model
            .forward(&mut session, &tokens[..10], Logits::Last)
            .unwrap(),
        first
    );
    assert!(
        model
            .forward(&mut session, &[], Logits::All)
            .unwrap()
            .is_empty()
    );

    for context in [0, model.config().max_position_embeddings + 1] {
        assert_eq!(
            model.session(context).unwrap_err().code,
            ErrorCode::ContextExceeded
        );
    }
}

#[test]
fn keys_and_values_of_fewer_bits_are_rounded_and_smaller() {
    let fixture = fixtures()
        .into_iter()
        .find(|f| !f.is_embedding())
        .expect("a fixture");
    let run = |kv_type| {
        let (model, golden) = load(&fixture, Backend::best(), kv_type).expect("a fixture");
        let tokens = tokens(&golden);
        let mut session = model.session(tokens.len()).unwrap();
        let last = model.forward(&mut session, &tokens, Logits::Last).unwrap();
        (last, session.cache().byte_len())
    };
    let (wide, narrow, codes) = (run(KvType::F32), run(KvType::F16), run(KvType::Q8));
    assert_ne!(wide.0, narrow.0);
    assert_ne!(wide.0, codes.0);
    assert_eq!(wide.1, 2 * narrow.1);
    // 36 bytes for 32 numbers
    assert!(
        codes.1 * 4 > wide.1 && codes.1 * 2 < wide.1,
        "{} {}",
        codes.1,
        wide.1
    );
}

#[test]
fn what_is_not_finite_is_an_error_with_a_place() {
    let (model, _) = fixtures()
        .iter()
        .find_map(|f| load(f, Backend::best(), KvType::F32))
        .expect("a fixture");
    let mut x = vec![0.5; 2 * model.config().hidden_size];
    x[model.config().hidden_size + 3] = f32::NAN;
    let error = model.layer(1, &x, 2).expect_err("NaN");
    assert_eq!(error.code, ErrorCode::NonFinite);
    assert_eq!(
        error.tensor.as_deref(),
        Some("model.layers.1.self_attn.q_proj.weight")
    );
    assert!(model.layer(99, &x, 2).is_err());
    assert!(model.layer(0, &x, 3).is_err());
}
