//! Rotated weights: computed as the dense network that they stand for, carried through every container, refused when
//! they are not whole.
//!
//! The files are those of other tests with the keys of a rotation added: their trits are then those of another
//! network, which `DenseNetwork` knows without ever rotating an input.

use bitnet_checkpoint::{Checkpoint, LayerSlot, OpenOptions, Slot, StoredOrder};
use bitnet_formats::{ErrorCode, MetaArray, MetaValue, Metadata, Strings};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Logits, Model, TilesIn};
use bitnet_tests::dense_network::DenseNetwork;
use bitnet_tests::fixtures::repository;
use bitnet_tests::gguf;
use bitnet_tests::program::{self, Ran};
use bitnet_tests::random::Random;
use bitnet_verify::{Golden, Oracle};
use std::path::{Path, PathBuf};

const TOKENS: [u32; 9] = [5, 17, 300, 17, 2, 398, 44, 0, 121];

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn key(name: &str) -> String {
    format!("prism.hadamard.{name}")
}

fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> MetaValue {
    MetaValue::Array(MetaArray::String(names.into_iter().collect::<Strings>()))
}

fn integers(values: impl IntoIterator<Item = i32>) -> MetaValue {
    MetaValue::Array(MetaArray::I32(values.into_iter().collect()))
}

/// What is declared of a file's matrices: blocks of features, random signs, everything folded.
#[derive(Clone, Copy)]
struct Declared {
    block: u32,
    seed: u64,
    explicit: bool,
}

const DECLARED: Declared = Declared {
    block: 128,
    seed: 1,
    explicit: true,
};

impl Declared {
    /// The keys, as PrismML's converter writes them.
    fn write(self, checkpoint: &Checkpoint, metadata: &mut Metadata) {
        let mut set = |name: &str, value| metadata.set(key(name), value);
        let config = &checkpoint.config;
        let tied = config.tie_word_embeddings;
        let name = |slot: &Slot| (checkpoint.family.gguf_tensor_name)(*slot);
        let folded: Vec<String> = config
            .slots()
            .iter()
            .filter(|slot| slot.is_ternary() || **slot == Slot::OutputHead)
            .map(name)
            .collect();
        let mut widths: Vec<i32> = config
            .slots()
            .iter()
            .filter(|slot| slot.is_ternary())
            .map(|slot| config.shape(*slot)[1] as i32)
            .collect();
        widths.sort_unstable();
        widths.dedup();
        let mut random = Random(self.seed);
        let count = widths.iter().sum::<i32>();
        let signs: Vec<i32> = (0..count).map(|_| random.below(2) as i32 * 2 - 1).collect();
        set("version", MetaValue::U32(if tied { 2 } else { 1 }));
        set("block_size", MetaValue::U32(self.block));
        set(
            "transform",
            MetaValue::text("normalized-sylvester-walsh-hadamard"),
        );
        set("axis", MetaValue::text("input-last-dimension"));
        set(
            "sign_mode",
            MetaValue::text(if self.explicit {
                "explicit"
            } else {
                "identity"
            }),
        );
        if self.explicit {
            set("sign_widths", integers(widths));
            set("sign_values", integers(signs));
        }
        set("weight_names", names(folded.iter().map(String::as_str)));
        set("inverse_weight_names", names(["token_embd.weight"]));
        if tied {
            set("tied_output", MetaValue::Bool(true));
        }
    }
}

/// The GGUF file at `source` with these keys.
fn rotated(source: &Path, output: PathBuf, declared: Declared) -> PathBuf {
    let checkpoint = open(source);
    gguf::rewritten(source, output, |metadata| {
        declared.write(&checkpoint, metadata)
    })
}

fn model(checkpoint: &Checkpoint, backend: Backend) -> Model {
    let options = LoadOptions {
        tiles: TilesIn::FileOrMemory,
        backend,
        ..LoadOptions::default()
    };
    Model::load(checkpoint, &options).unwrap_or_else(|e| panic!("{e}"))
}

fn logits_by(checkpoint: &Checkpoint, backend: Backend) -> Vec<f32> {
    let model = model(checkpoint, backend);
    let mut session = model.session(TOKENS.len()).unwrap();
    model.forward(&mut session, &TOKENS, Logits::All).unwrap()
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    logits_by(checkpoint, Backend::best())
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// The largest difference.
fn distance(found: &[f32], expected: impl IntoIterator<Item = f64>) -> f64 {
    let pairs = found.iter().zip(expected);
    pairs
        .map(|(f, e)| (f64::from(*f) - e).abs())
        .fold(0.0, f64::max)
}

fn converted(source: &Path, target: &str, output: &Path) -> Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", target, "--json", "--force"];
    program::run(bitnet_convert::run, words)
}

fn verify(artifact: &Path, words: &[&str]) -> Ran {
    let artifact = artifact.to_str().unwrap();
    let words = ["--json", artifact]
        .into_iter()
        .chain(words.iter().copied());
    program::run(bitnet_verify::run, words)
}

/// A source of each kind: tied and not, with norms of heads and without, rows of q and k as they are and paired.
fn sources(scratch: &Path) -> Vec<PathBuf> {
    let trilm = scratch.join("trilm.gguf");
    let ran = converted(&fixture("trilm").join("checkpoint"), "gguf-f16", &trilm);
    assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
    vec![
        fixture("bonsai-1.7b").join("q2_0.gguf"),
        fixture("bonsai-8b").join("pq2_0.gguf"),
        trilm,
    ]
}

/// The dense network is right: without a rotation it is what transformers computed.
#[test]
fn the_dense_network_computes_what_transformers_does() {
    for name in ["bonsai-1.7b", "bonsai-8b"] {
        let golden = Golden::read(&fixture(name).join("golden")).unwrap();
        let network = DenseNetwork::of(&open(&fixture(name).join("checkpoint")));
        let prompt = golden.prompts.iter().find(|p| p.name == "english").unwrap();
        let expected = &golden.logits[&prompt.name].values;
        let found = network.logits(&prompt.ids).concat();
        assert_eq!(found.len(), expected.len());
        let distance = distance(expected, found);
        assert!(distance < 1e-3, "{name}: {distance}");
    }
}

#[test]
fn rotated_weights_compute_the_network_that_they_stand_for() {
    let scratch = tempfile::tempdir().unwrap();
    for (number, source) in sources(scratch.path()).iter().enumerate() {
        for (block, explicit) in [
            (128, true),
            (64, true),
            (1, true),
            (128, false),
            (32, false),
        ] {
            let declared = Declared {
                block,
                explicit,
                seed: u64::from(block) + number as u64,
            };
            let path = rotated(source, scratch.path().join("rotated.gguf"), declared);
            let checkpoint = open(&path);
            let rotation = checkpoint.config.rotation.as_deref().expect("a rotation");
            assert_eq!(rotation.block_size, block as usize);
            assert!(rotation.embeddings && !rotation.folded.is_empty());
            let expected = DenseNetwork::of(&checkpoint).logits(&TOKENS).concat();
            let found = logits(&checkpoint);
            let far = distance(&found, expected.iter().copied());
            assert!(far < 1e-3, "{}, blocks of {block}: {far}", source.display());
            // another program, which multiplies with the matrix of the transform
            let oracle = Oracle::new(&checkpoint).logits(&TOKENS).unwrap();
            let far = distance(&oracle, expected.iter().copied());
            assert!(
                far < 1e-3,
                "{}, blocks of {block}: oracle {far}",
                source.display()
            );
            // it is another network than without the keys
            let plain = distance(&logits(&open(source)), expected.iter().copied());
            assert!(
                plain > 0.1,
                "{}, blocks of {block}: {plain}",
                source.display()
            );
        }
    }
}

#[test]
fn every_kernel_and_every_way_through_gives_the_same_bits() {
    let scratch = tempfile::tempdir().unwrap();
    for source in &sources(scratch.path())[..2] {
        let path = rotated(source, scratch.path().join("rotated.gguf"), DECLARED);
        let checkpoint = open(&path);
        let expected = bits(&logits(&checkpoint));
        for backend in Backend::available() {
            assert!(
                bits(&logits_by(&checkpoint, backend)) == expected,
                "{backend:?}"
            );
        }
        // token by token, and the largest logits alone
        let model = model(&checkpoint, Backend::best());
        let mut session = model.session(TOKENS.len()).unwrap();
        let mut by_token = Vec::new();
        for token in TOKENS {
            by_token.extend(model.forward(&mut session, &[token], Logits::Last).unwrap());
        }
        assert!(bits(&by_token) == expected);
        let normed = model.trace(&TOKENS).unwrap().pop().unwrap();
        let hidden = model.config().hidden_size;
        let last = &normed[(TOKENS.len() - 1) * hidden..];
        let head = model.head(last).unwrap();
        assert!(bits(&head) == expected[expected.len() - head.len()..]);
        let top = model.head_top_k(last, 5).unwrap();
        for (token, logit) in top {
            assert_eq!(logit.to_bits(), head[token as usize].to_bits());
        }
        // a single linear takes its input as the network has it
        let slot = Slot::Layer(0, LayerSlot::DownProj);
        let network = DenseNetwork::of(&checkpoint);
        let width = checkpoint.config.shape(slot)[1];
        let x: Vec<f32> = (0..width).map(|i| (i % 7) as f32 - 3.0).collect();
        let rows = network.values(slot).chunks_exact(width);
        let y = rows.map(|w| w.iter().zip(&x).map(|(w, x)| w * f64::from(*x)).sum());
        assert!(distance(&model.linear(slot, &x, 1).unwrap(), y) < 1e-4);
    }
}

#[test]
fn a_rotation_travels_with_the_weights_through_every_container() {
    let scratch = tempfile::tempdir().unwrap();
    for (number, source) in sources(scratch.path())[..2].iter().enumerate() {
        let path = rotated(source, scratch.path().join("rotated.gguf"), DECLARED);
        let checkpoint = open(&path);
        let (config, expected) = (checkpoint.config.clone(), bits(&logits(&checkpoint)));
        assert!(config.rotation.is_some());
        let mut sources = vec![path.clone()];
        for target in ["gguf-ptq1_0", "gguf-f16", "packed", "packed-2bit", "hf-f16"] {
            let output = scratch.path().join(match target.starts_with("gguf") {
                true => format!("{number}-{target}.gguf"),
                false => format!("{number}-{target}"),
            });
            let ran = converted(&path, target, &output);
            assert_eq!(ran.status.code(), 0, "{target}: {}", ran.stderr);
            assert!(ran.json()["lossless"] == true, "{target}: {}", ran.stdout);
            assert_eq!(
                output.join("hadamard_packing.json").exists(),
                !target.starts_with("gguf")
            );
            let certificate = ran.json()["output"]["certificate"].clone();
            let certificate = certificate.as_str().unwrap();
            let verified = verify(&output, &["--certificate", certificate]);
            assert_eq!(verified.status.code(), 0, "{target}: {}", verified.stdout);
            sources.push(output);
        }
        // and back to where it came from, the same keys
        for (n, source) in sources.iter().enumerate() {
            let copy = open(source);
            assert_eq!(copy.config, config, "{}", source.display());
            assert!(bits(&logits(&copy)) == expected, "{}", source.display());
            let output = scratch.path().join(format!("{number}-{n}-back.gguf"));
            let ran = converted(source, "gguf-pq2_0", &output);
            assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
            assert_eq!(open(&output).config.rotation, config.rotation);
        }
    }
}

#[test]
fn targets_whose_programs_do_not_rotate_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b").join("pq2_0.gguf");
    let path = rotated(&source, scratch.path().join("rotated.gguf"), DECLARED);
    for target in ["mlx-2bit", "ms-gpu-int2"] {
        let output = scratch.path().join(target);
        let ran = converted(&path, target, &output);
        assert_eq!(ran.status.code(), 2, "{target}: {}", ran.stdout);
        assert_eq!(
            ran.json()["error"]["code"],
            "target-cannot-hold",
            "{}",
            ran.stdout
        );
        assert!(!output.exists());
    }
}

/// What is done to the keys.
type Change = fn(&mut Metadata);

#[test]
fn a_rotation_that_is_not_whole_is_refused_with_its_place() {
    let scratch = tempfile::tempdir().unwrap();
    let tied = fixture("bonsai-1.7b").join("q2_0.gguf");
    let untied = fixture("bonsai-8b").join("pq2_0.gguf");
    fn set(metadata: &mut Metadata, name: &str, value: MetaValue) {
        metadata.set(key(name), value);
    }
    fn remove(metadata: &mut Metadata, name: &str) {
        metadata.0.retain(|(k, _)| *k != key(name));
    }
    let text = |path: &Path, change: Change| {
        let checkpoint = open(path);
        let output = scratch.path().join("broken.gguf");
        let broken = gguf::rewritten(path, output, |metadata| {
            DECLARED.write(&checkpoint, metadata);
            change(metadata);
        });
        let error = Checkpoint::open(&broken, &OpenOptions::default()).unwrap_err();
        assert!(
            matches!(
                error.code,
                ErrorCode::Malformed | ErrorCode::UnsupportedConfig
            ),
            "{error}"
        );
        let ran = program::run(
            bitnet_convert::run,
            ["inspect", broken.to_str().unwrap(), "--json"],
        );
        assert_eq!(ran.status.code(), 2, "{}", ran.stdout);
        assert!(ran.json()["error"]["hint"].is_string(), "{}", ran.stdout);
        error.to_string()
    };
    let untied_cases: &[(&str, Change)] = &[
        ("version", |m| set(m, "version", MetaValue::U32(3))),
        ("version", |m| set(m, "version", MetaValue::U32(0))),
        ("version", |m| set(m, "version", MetaValue::text("1"))),
        // some keys, and none that says which contract
        ("version", |m| remove(m, "version")),
        ("transform", |m| set(m, "transform", MetaValue::text("dct"))),
        ("transform", |m| remove(m, "transform")),
        ("axis", |m| set(m, "axis", MetaValue::text("output"))),
        ("axis", |m| remove(m, "axis")),
        ("sign_mode", |m| {
            set(m, "sign_mode", MetaValue::text("random"))
        }),
        ("sign_mode", |m| remove(m, "sign_mode")),
        ("block_size", |m| set(m, "block_size", MetaValue::U32(96))),
        ("block_size", |m| set(m, "block_size", MetaValue::U32(0))),
        ("block_size", |m| remove(m, "block_size")),
        ("prism.hadamard.rounds", |m| {
            set(m, "rounds", MetaValue::U32(2))
        }),
        // signs
        ("sign_widths", |m| remove(m, "sign_widths")),
        ("sign_widths", |m| set(m, "sign_widths", integers([]))),
        ("sign_widths", |m| {
            set(m, "sign_widths", integers([128, 200]))
        }),
        ("sign_widths", |m| {
            set(m, "sign_widths", integers([128, -256]))
        }),
        ("128 twice", |m| {
            set(m, "sign_widths", integers([128, 128, 128]))
        }),
        ("sign_values", |m| remove(m, "sign_values")),
        ("sign_values", |m| set(m, "sign_values", integers([1; 383]))),
        ("sign_values", |m| set(m, "sign_values", integers([1; 385]))),
        ("sign_values", |m| {
            let mut signs = [1; 384];
            signs[100] = 0;
            set(m, "sign_values", integers(signs));
        }),
        ("sign_values", |m| {
            // every sign +1, and a table of signs
            set(m, "sign_mode", MetaValue::text("identity"));
            remove(m, "sign_widths");
        }),
        ("signs of its own", |m| {
            set(m, "sign_widths", integers([384]));
        }),
        ("whole blocks", |m| {
            set(m, "block_size", MetaValue::U32(256));
            set(m, "sign_widths", integers([256]));
            set(m, "sign_values", integers([1; 256]));
        }),
        // names
        ("weight_names", |m| remove(m, "weight_names")),
        ("weight_names", |m| set(m, "weight_names", names([]))),
        ("weight_names", |m| {
            set(m, "weight_names", MetaValue::U32(1))
        }),
        ("`blk.0.attn_q.weight` twice", |m| {
            set(
                m,
                "weight_names",
                names(["blk.0.attn_q.weight", "blk.0.attn_q.weight"]),
            );
        }),
        ("blk.7.attn_q.weight", |m| {
            set(m, "weight_names", names(["blk.7.attn_q.weight"]))
        }),
        ("blk.0.attn_norm.weight", |m| {
            set(m, "weight_names", names(["blk.0.attn_norm.weight"]));
        }),
        ("token_embd.weight", |m| {
            set(m, "weight_names", names(["token_embd.weight"]))
        }),
        ("output.weight", |m| {
            set(m, "inverse_weight_names", names(["output.weight"]));
        }),
        ("inverse_weight_names", |m| {
            set(
                m,
                "inverse_weight_names",
                names(["token_embd.weight", "token_embd.weight"]),
            );
        }),
        // one table and two
        ("tied_output", |m| set(m, "version", MetaValue::U32(2))),
        ("tied_output", |m| {
            set(m, "tied_output", MetaValue::Bool(true))
        }),
        ("tied_output", |m| {
            set(m, "version", MetaValue::U32(2));
            set(m, "tied_output", MetaValue::Bool(true));
        }),
        ("tied_output", |m| set(m, "tied_output", MetaValue::U32(1))),
        ("gdn_v_grouped", |m| {
            set(m, "gdn_v_grouped", MetaValue::text("yes"))
        }),
    ];
    for (says, change) in untied_cases {
        let error = text(&untied, *change);
        assert!(error.contains(says), "{says}: {error}");
    }
    let tied_cases: &[(&str, Change)] = &[
        ("version 2", |m| {
            set(m, "version", MetaValue::U32(1));
            remove(m, "tied_output");
        }),
        ("tied_output", |m| remove(m, "tied_output")),
        ("tied_output", |m| remove(m, "inverse_weight_names")),
        ("output.weight", |m| {
            set(m, "weight_names", names(["output.weight"]))
        }),
    ];
    for (says, change) in tied_cases {
        let error = text(&tied, *change);
        assert!(error.contains(says), "{says}: {error}");
    }
}

#[test]
fn linears_that_read_one_input_are_rotated_together_or_not_computed() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b").join("pq2_0.gguf");
    let checkpoint = open(&source);
    let path = scratch.path().join("some.gguf");
    let some = |folded: &[&str]| {
        gguf::rewritten(&source, path.clone(), |metadata| {
            DECLARED.write(&checkpoint, metadata);
            metadata.set(key("weight_names"), names(folded.iter().copied()));
            metadata
                .0
                .retain(|(k, _)| *k != key("inverse_weight_names"));
        });
        open(&path)
    };
    // whole groups only: the others read what they always did
    let part = some(&["blk.0.ffn_down.weight", "output.weight"]);
    let expected = DenseNetwork::of(&part).logits(&TOKENS).concat();
    assert!(distance(&logits(&part), expected) < 1e-3);
    let mixed = some(&["blk.0.attn_q.weight", "blk.0.ffn_down.weight"]);
    let error = Model::load(&mixed, &LoadOptions::default()).unwrap_err();
    assert_eq!(error.code, ErrorCode::UnsupportedConfig);
    assert!(error.to_string().contains("k_proj"), "{error}");
    // which is no reason not to convert it
    let output = scratch.path().join("copy.gguf");
    let ran = converted(&path, "gguf-ptq1_0", &output);
    assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
    assert_eq!(open(&output).config.rotation, mixed.config.rotation);
}

#[test]
fn another_rotation_is_another_model_for_verify_and_in_hashes() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b").join("pq2_0.gguf");
    let at = |name: &str| scratch.path().join(name);
    let path = rotated(&source, at("rotated.gguf"), DECLARED);
    let other = rotated(
        &source,
        at("other.gguf"),
        Declared {
            seed: 2,
            ..DECLARED
        },
    );
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    // the same bytes of weights, other signs
    let ran = verify(&other, &["--against", &text(&path)]);
    assert_eq!(ran.status.code(), 1, "{}", ran.stdout);
    let checks = ran.json()["checks"].clone();
    let of = |name: &str| {
        let mut checks = checks.as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).unwrap().clone()
    };
    assert_eq!(of("trits")["status"], "same");
    assert_eq!(of("metadata")["differences"][0]["place"], "rotation");
    assert_eq!(of("digest")["status"], "different");
    let ran = verify(&path, &["--against", &text(&path)]);
    assert_eq!(ran.status.code(), 0, "{}", ran.stdout);
    // a model that is not rotated keeps its hash, a rotated one has another
    let hash = |source: &Path, name: &str| {
        let output = at(name);
        let ran = converted(source, "gguf-ptq1_0", &output);
        assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
        (
            output,
            ran.json()["ternary_sha256"].as_str().unwrap().to_owned(),
        )
    };
    let (_, plain) = hash(&source, "plain-copy.gguf");
    let (copy, turned) = hash(&path, "rotated-copy.gguf");
    let (_, turned_otherwise) = hash(&other, "other-copy.gguf");
    assert_ne!(plain, turned);
    assert_ne!(turned, turned_otherwise);
    // the certificate of one rotation refuses the other
    let certificate = copy.with_file_name("rotated-copy.gguf.certificate.json");
    assert_eq!(
        verify(&copy, &["--certificate", &text(&certificate)])
            .status
            .code(),
        0
    );
    let ran = verify(&other, &["--certificate", &text(&certificate)]);
    assert_eq!(ran.status.code(), 1, "{}", ran.stdout);
}

#[test]
fn programs_say_which_others_print_noise() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b").join("pq2_0.gguf");
    let path = rotated(&source, scratch.path().join("rotated.gguf"), DECLARED);
    let f16 = scratch.path().join("f16.gguf");
    assert_eq!(converted(&path, "gguf-f16", &f16).status.code(), 0);
    let words = ["inspect", f16.to_str().unwrap(), "--readers", "--json"];
    let readers = program::run(bitnet_convert::run, words).json();
    assert_eq!(readers["rotation"]["block_size"], 128);
    assert_eq!(readers["rotation"]["weight_names"]["length"], 8);
    let verdict = |name: &str| {
        let mut all = readers["readers"].as_array().unwrap().iter();
        all.find(|r| r["program"] == name).unwrap()["verdict"].clone()
    };
    for program in ["llama.cpp", "ik_llama.cpp"] {
        assert_eq!(verdict(program), "differs", "{program}");
    }
    for program in ["prism-llama.cpp", "bitnet-run"] {
        assert_eq!(verdict(program), "loads", "{program}");
    }
    let words = ["doctor", f16.to_str().unwrap(), "--json"];
    let found = program::run(bitnet_verify::run, words).json();
    let mut findings = found["findings"].as_array().unwrap().iter();
    let finding = findings.find(|f| f["code"] == "rotated-weights").unwrap();
    assert_eq!(finding["severity"], "warning");
    assert!(
        finding["what"].as_str().unwrap().contains("llama.cpp"),
        "{finding}"
    );
}

#[test]
fn a_file_of_a_rotated_model_without_the_keys_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-8b").join("pq2_0.gguf");
    let named = |key: &str, name: &str| {
        let path = gguf::rewritten(&source, scratch.path().join("named.gguf"), |metadata| {
            metadata.set(key, MetaValue::text(name));
        });
        Checkpoint::open(&path, &OpenOptions::default()).map(|_| ())
    };
    for (key, name) in [
        ("general.name", "Ternary Bonsai 2 27B"),
        ("general.basename", "Ternary-Bonsai-2"),
        ("general.name", "bonsai2-9b"),
    ] {
        let error = named(key, name).unwrap_err();
        assert_eq!(error.code, ErrorCode::UnsupportedConfig, "{name}");
        assert!(error.to_string().contains("prism.hadamard."), "{error}");
    }
    for name in ["Ternary-Bonsai-27B", "Bonsai 27B", "Bonsai 1.7B", "Tiny"] {
        assert_eq!(named("general.name", name), Ok(()), "{name}");
    }
}

/// The hybrid whose `out_proj` reads value heads in another order than GGUF keeps them.
#[test]
fn a_rotated_hybrid_is_one_model_in_every_container() {
    let scratch = tempfile::tempdir().unwrap();
    let home = fixture("rotated").join("qwen35");
    let gguf = home.join("pq2_0.gguf");
    let checkpoint = open(&gguf);
    let rotation = checkpoint.config.rotation.clone().expect("a rotation");
    assert_eq!((rotation.block_size, rotation.folded.len()), (128, 26));
    assert!(rotation.embeddings && !rotation.tiled_values);
    let golden = Golden::read(&home.join("golden")).unwrap();
    let prompt = golden.prompts.iter().find(|p| p.name == "english").unwrap();
    let run = |checkpoint: &Checkpoint| {
        let model = model(checkpoint, Backend::best());
        let mut session = model.session(prompt.ids.len()).unwrap();
        model
            .forward(&mut session, &prompt.ids, Logits::All)
            .unwrap()
    };
    let expected = run(&checkpoint);
    let recorded = golden.logits[&prompt.name]
        .values
        .iter()
        .map(|l| f64::from(*l));
    let far = distance(&expected, recorded.clone());
    assert!(far < 1e-3, "{far}");
    let oracle = Oracle::new(&checkpoint).logits(&prompt.ids).unwrap();
    let far = distance(&oracle, recorded);
    assert!(far < 1e-3, "oracle {far}");
    let mut sources = vec![gguf.clone(), home.join("mlx")];
    for target in ["gguf-ptq1_0", "gguf-f16", "packed-2bit", "hf-f16"] {
        let output = scratch.path().join(match target.starts_with("gguf") {
            true => format!("{target}.gguf"),
            false => target.to_owned(),
        });
        let ran = converted(&gguf, target, &output);
        assert_eq!(ran.status.code(), 0, "{target}: {}", ran.stderr);
        sources.push(output);
    }
    for (number, source) in sources.iter().enumerate() {
        let copy = open(source);
        assert_eq!(
            copy.config.rotation.as_deref(),
            Some(&*rotation),
            "{}",
            source.display()
        );
        assert!(bits(&run(&copy)) == bits(&expected), "{}", source.display());
        let output = scratch.path().join(format!("{number}-back.gguf"));
        let ran = converted(source, "gguf-pq2_0", &output);
        assert_eq!(ran.status.code(), 0, "{}: {}", source.display(), ran.stderr);
        let back = open(&output);
        assert_eq!(
            back.config.rotation.as_deref(),
            Some(&*rotation),
            "{}",
            source.display()
        );
        assert!(bits(&run(&back)) == bits(&expected), "{}", source.display());
    }
}

/// Without the key, value heads were rotated as GGUF keeps them: another network, whose inputs are moved first.
#[test]
fn value_heads_are_rotated_in_the_order_that_the_keys_say() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("rotated").join("qwen35/pq2_0.gguf");
    let path = gguf::rewritten(&source, scratch.path().join("tiled.gguf"), |metadata| {
        metadata.0.retain(|(k, _)| *k != key("gdn_v_grouped"));
    });
    let (grouped, tiled) = (open(&source), open(&path));
    assert!(tiled.config.rotation.as_deref().unwrap().tiled_values);
    let tokens = &TOKENS.map(|token| token % 300);
    let oracle = Oracle::new(&tiled).logits(tokens).unwrap();
    let run = |checkpoint: &Checkpoint| {
        let model = model(checkpoint, Backend::best());
        let mut session = model.session(tokens.len()).unwrap();
        model.forward(&mut session, tokens, Logits::All).unwrap()
    };
    let far = distance(&run(&tiled), oracle.into_iter().map(f64::from));
    assert!(far < 1e-3, "{far}");
    let other = run(&grouped).into_iter().map(f64::from);
    assert!(distance(&run(&tiled), other) > 0.1);
    // GGUF keeps it; no other file can say it
    let copy = scratch.path().join("copy.gguf");
    assert_eq!(converted(&path, "gguf-ptq1_0", &copy).status.code(), 0);
    assert_eq!(open(&copy).config.rotation, tiled.config.rotation);
    let ran = converted(&path, "packed", &scratch.path().join("packed"));
    assert_eq!(ran.status.code(), 2, "{}", ran.stdout);
    assert_eq!(ran.json()["error"]["code"], "target-cannot-hold");
}

#[test]
fn unfold_writes_the_dense_weights_and_says_what_rounding_changed() {
    let scratch = tempfile::tempdir().unwrap();
    let plain = fixture("bonsai-8b").join("pq2_0.gguf");
    let unfold = |source: &Path, target: &str, output: &Path| {
        let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
        let words = [
            source, "-o", output, "--to", target, "--json", "--force", "--unfold",
        ];
        program::run(bitnet_convert::run, words)
    };
    let hybrid = fixture("rotated").join("qwen35/pq2_0.gguf");
    let rotated = rotated(&plain, scratch.path().join("rotated.gguf"), DECLARED);
    for source in [&rotated, &hybrid] {
        let checkpoint = open(source);
        let rotation = checkpoint.config.rotation.clone().unwrap();
        let network = DenseNetwork::of(&checkpoint);
        let output = scratch.path().join("unfolded.gguf");
        let ran = unfold(source, "gguf-f32", &output);
        assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
        // the factor of a block of 128 is no fraction
        assert_eq!(ran.json()["lossless"], false);
        let losses = ran.json()["losses"].as_array().unwrap().clone();
        assert_eq!(losses.len(), rotation.matrices());
        for loss in &losses {
            let (relative, absolute) = (&loss["max_relative"], &loss["max_absolute"]);
            assert!(
                relative.as_f64().is_some_and(|e| e > 0.0 && e < 1e-6),
                "{loss}"
            );
            assert!(
                absolute.as_f64().is_some_and(|e| e > 0.0 && e < 1e-5),
                "{loss}"
            );
        }
        let file = bitnet_formats::open(&output, &Default::default()).unwrap();
        assert!(
            !file
                .metadata
                .0
                .iter()
                .any(|(k, _)| k.starts_with("prism.hadamard."))
        );
        for slot in checkpoint
            .slots()
            .into_iter()
            .filter(|slot| rotation.turns(*slot))
        {
            let name = (checkpoint.family.gguf_tensor_name)(slot);
            let info = file.tensor(&name).unwrap();
            let bytes = file.read(info).unwrap();
            let found = bytes.as_chunks::<4>().0.iter();
            let found: Vec<f32> = found.map(|b| f32::from_le_bytes(*b)).collect();
            // value heads as GGUF keeps them: rows, and now columns
            let order = checkpoint.family.gguf_order(&checkpoint.config, slot);
            let (cols, expected) = (info.shape[1], network.values(slot));
            let is_core = matches!(slot, Slot::Layer(_, LayerSlot::OutProj));
            let delta = checkpoint.config.hybrid.as_ref().map(|h| h.delta);
            for (at, found) in found.iter().enumerate() {
                let (mut row, mut col) = (at / cols, at % cols);
                if let Some(StoredOrder::TiledRows(heads)) = order {
                    row = heads.grouped(row);
                }
                if let (true, Some(delta)) = (is_core, delta) {
                    let (head, i) = (col / delta.value_dim, col % delta.value_dim);
                    let (key, r) = (head % delta.key_heads, head / delta.key_heads);
                    col = (key * delta.repeats() + r) * delta.value_dim + i;
                }
                let expected = expected[row * cols + col];
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{name} {at}");
            }
        }
    }
    // a Hugging Face checkpoint of half precision
    let output = scratch.path().join("hf");
    let ran = unfold(&rotated, "hf-f16", &output);
    assert_eq!(ran.status.code(), 0, "{}", ran.stderr);
    assert!(!output.join("hadamard_packing.json").exists());
    // a block of 64 has the factor 1/8: exact in f32
    let declared = Declared {
        block: 64,
        ..DECLARED
    };
    let exact = self::rotated(&plain, scratch.path().join("exact.gguf"), declared);
    let ran = unfold(&exact, "gguf-f32", &scratch.path().join("exact-f32.gguf"));
    assert_eq!(ran.json()["lossless"], true, "{}", ran.stdout);
    // trits cannot hold it, and there is nothing to turn back in other models
    for (source, target, code) in [
        (&rotated, "gguf-pq2_0", "target-cannot-hold"),
        (&rotated, "packed", "target-cannot-hold"),
        (&plain, "gguf-f32", "usage"),
    ] {
        let ran = unfold(source, target, &scratch.path().join("refused.gguf"));
        assert_eq!(ran.status.code(), 2, "{target}: {}", ran.stdout);
        if target != "packed" {
            assert_eq!(ran.json()["error"]["code"], code, "{}", ran.stdout);
        }
    }
}
