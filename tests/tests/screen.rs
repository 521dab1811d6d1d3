//! The screened head: the largest logits of the full product, to the bit, on every kernel.

use bitnet_kernels::Backend;
use bitnet_model::{Checkpoint, LoadOptions, Logits, Model, OpenOptions, Sampler, SamplerOptions};
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
            let model = Model::load(checkpoint, &options).expect(name);
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
