//! The screened head: the largest logits of the full product, to the bit, on every kernel.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_formats::ErrorCode;
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Logits, Model, Sampler, SamplerOptions};
use safetensors::SafeTensors;
use std::path::Path;

#[test]
fn top_k_is_that_of_the_full_product() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut screened = 0;
    for name in ["bitnet-2b4t-packed", "falcon-e", "llama3-8b-1.58"] {
        for backend in Backend::available() {
            let checkpoint = Checkpoint::open(
                &fixtures.join(name).join("checkpoint"),
                &OpenOptions::default(),
            )
            .expect(name);
            let options = LoadOptions {
                backend,
                threads: 2,
                ..LoadOptions::default()
            };
            let model = Model::load(&checkpoint, &options).expect(name);
            let (mut full, mut top) = (model.session(64).unwrap(), model.session(64).unwrap());
            let vocab = model.config().vocab_size as u32;
            for token in 0..24 {
                let ids = [token * 7 % vocab];
                let logits = model.forward(&mut full, &ids, Logits::Last).unwrap();
                let mut want: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
                want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
                let k = [1, 2, 40, 64][token as usize % 4].min(vocab as usize);
                let got = model.forward_top_k(&mut top, &ids, k).unwrap();
                let bits = |top: &[(u32, f32)]| -> Vec<(u32, u32)> {
                    top.iter()
                        .map(|(id, logit)| (*id, logit.to_bits()))
                        .collect()
                };
                assert_eq!(
                    bits(&got),
                    bits(&want[..k]),
                    "{name}, {backend:?}, token {token}"
                );

                // and the sampler draws the same from them as from all
                for seed in 0..20 {
                    let options = SamplerOptions {
                        top_k: k,
                        seed,
                        ..SamplerOptions::default()
                    };
                    let from_all = Sampler::new(options).sample(&logits);
                    assert_eq!(Sampler::new(options).sample_top(&got), from_all);
                }
            }
            let passes = model.head_passes();
            assert_eq!(passes.screened + passes.full, 24);
            screened += passes.screened;
        }
    }
    assert!(screened > 0, "the bounds never helped");
}

/// A model whose head has the rows that `edit` makes of those of a fixture, bf16, `(400, 256)`.
fn with_head(backend: Backend, edit: impl FnOnce(&mut [[u16; 256]])) -> Model {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/falcon-e/checkpoint");
    let to = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.path().join(file.file_name())).unwrap();
    }
    let path = to.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let range = {
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let data = tensors
            .tensor("lm_head.weight")
            .unwrap()
            .data()
            .as_ptr_range();
        let start = data.start as usize - bytes.as_ptr() as usize;
        start..start + (data.end as usize - data.start as usize)
    };
    let values = bytes[range.clone()].as_chunks().0.iter();
    let mut values: Vec<u16> = values.map(|b| u16::from_le_bytes(*b)).collect();
    edit(values.as_chunks_mut().0);
    let values: Vec<u8> = values.into_iter().flat_map(u16::to_le_bytes).collect();
    bytes[range].copy_from_slice(&values);
    std::fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(to.path(), &OpenOptions::default()).unwrap();
    let options = LoadOptions {
        backend,
        threads: 2,
        ..LoadOptions::default()
    };
    Model::load(&checkpoint, &options).unwrap()
}

#[test]
fn ties_denormals_and_zeros_are_those_of_the_full_product() {
    for backend in Backend::available() {
        let all_equal = with_head(backend, |rows| {
            let one = rows[5];
            rows.fill(one);
        });
        let mixed = with_head(backend, |rows| {
            let one = rows[5];
            rows[10..90].fill(one); // more ties than are asked for
            rows[100..120].fill([0; 256]);
            rows[120..140].fill([0x8000; 256]); // -0
            rows[140..160].fill([1; 256]); // the smallest bf16
            rows[160..200]
                .iter_mut()
                .flatten()
                .for_each(|w| *w &= 0x80ff); // subnormal
            rows[200]
                .iter_mut()
                .for_each(|w| *w = (*w & 0x807f) | 0x6000); // some 1e19
        });
        for (model, helps) in [(all_equal, false), (mixed, true)] {
            for token in 0..12 {
                let state = model.trace(&[token * 31]).unwrap().pop().unwrap();
                let logits = model.head(&state).unwrap();
                let mut want: Vec<(u32, f32)> = (0..).zip(logits).collect();
                want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
                for k in [1, 2, 40, 64, 400, 1000] {
                    let got = model.head_top_k(&state, k).unwrap();
                    let want = &want[..k.min(400)];
                    assert_eq!(got, want, "{backend:?}, token {token}, k {k}");
                }
            }
            let passes = model.head_passes();
            assert_eq!(passes.screened + passes.full, 12 * 6);
            // of 400 equal rows none can be ruled out: only the last two k are not too few for that
            assert_eq!(passes.full < 12 * 4, helps, "{passes:?}");
        }
    }
}

#[test]
fn a_logit_beyond_f32_is_refused_either_way() {
    for backend in Backend::available() {
        let model = with_head(backend, |rows| {
            rows[77]
                .iter_mut()
                .for_each(|w| *w = (*w & 0x8000) | 0x7f7f); // the largest bf16
        });
        let state = vec![1e3; 256];
        assert_eq!(model.head(&state).unwrap_err().code, ErrorCode::NonFinite);
        for _ in 0..3 {
            let error = model.head_top_k(&state, 4).unwrap_err();
            assert_eq!(error.code, ErrorCode::NonFinite);
        }
    }
}
