//! Ternary Bonsai: embeddings, head, scales per 128 columns and metadata through every container.
//!
//! The GGUF files were written by `scripts/bonsai_fixtures.py` from codes, in the layouts of the published files:
//! negative scales, codes turned round, a stale vocabulary size.

use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, OpenOptions, RopeScaling, Slot, TernaryHasher,
};
use bitnet_formats::{ErrorCode, Limits, MetaValue, TensorFile};
use bitnet_model::{LoadOptions, Logits, Model, TilesIn};
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{self, Ran};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    repository().join("tests/fixtures").join(name)
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn file(path: &Path) -> TensorFile {
    bitnet_formats::open(path, &Limits::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn ternary_sha256(checkpoint: &Checkpoint) -> String {
    let mut hasher = TernaryHasher::default();
    let slots = checkpoint.slots().into_iter();
    for slot in slots.filter(|s| checkpoint.is_ternary(*s)) {
        hasher.add(&slot.to_string(), &checkpoint.ternary(slot).unwrap());
    }
    hasher.finish()
}

fn logits(checkpoint: Checkpoint) -> Vec<u32> {
    let options = LoadOptions {
        tiles: TilesIn::FileOrMemory,
        ..LoadOptions::default()
    };
    let model = Model::load(&checkpoint, &options).unwrap();
    let tokens: Vec<u32> = (0..200).map(|i| i * 37 % 399).collect();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

fn converted(source: &Path, target: &str, output: &Path) {
    let ran = run(source, target, output);
    assert_eq!(ran.status.code(), 0, "{}: {}", source.display(), ran.stderr);
    assert!(ran.json()["lossless"] == true, "{}", ran.stdout);
}

fn run(source: &Path, target: &str, output: &Path) -> Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", target, "--json", "--force"];
    program::run(bitnet_convert::run, words)
}

#[test]
fn every_layout_of_a_bonsai_is_the_same_model() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, layouts) in [
        ("bonsai-1.7b", ["q2_0-g128", "q2_0"]),
        ("bonsai-8b", ["pq2_0", "ptq1_0"]),
    ] {
        let home = fixture(name);
        let source = open(&home.join("checkpoint"));
        assert!(source.is_ternary(Slot::TokenEmbeddings), "{name}");
        assert_eq!(
            source.config.activation_quantization,
            ActivationQuantization::None
        );
        assert!(matches!(source.config.rope.scaling, RopeScaling::Yarn(_)));
        let (config, hash) = (source.config.clone(), ternary_sha256(&source));
        let expected = logits(source);
        let mut sources = vec![home.join("checkpoint")];
        for layout in layouts {
            let path = home.join(format!("{layout}.gguf"));
            let gguf = open(&path);
            assert_eq!(gguf.config, config, "{layout}");
            assert_eq!(gguf.declared_vocab_size, Some(512), "{layout}");
            assert_eq!(ternary_sha256(&gguf), hash, "{layout}");
            assert!(logits(gguf) == expected, "{layout}");
            sources.push(path);
        }
        for (s, source) in sources.iter().enumerate() {
            for target in [
                "gguf-q2_0",
                "gguf-pq2_0",
                "gguf-ptq1_0",
                "gguf-f16",
                "gguf-f32",
                "packed-2bit",
            ] {
                let output = scratch.path().join(match target.starts_with("gguf") {
                    true => format!("{name}-{s}-{target}.gguf"),
                    false => format!("{name}-{s}-{target}"),
                });
                converted(source, target, &output);
                let copy = open(&output);
                let stored = copy.tensor_range(Slot::TokenEmbeddings).unwrap();
                let packing = target.strip_prefix("gguf-").unwrap_or("u8");
                if target != "gguf-f32" {
                    assert_eq!(stored.encoding.name(), packing, "{target}: embeddings");
                }
                assert_eq!(copy.config, config, "{target}");
                assert_eq!(ternary_sha256(&copy), hash, "{target}");
                assert!(logits(copy) == expected, "{target} of {}", source.display());
            }
            // two scales in most blocks of 256, no scale per row, bf16 with three bits less
            for target in ["gguf-tq2_0", "gguf-i2_s", "hf-packed", "hf-bf16"] {
                let ran = run(source, target, &scratch.path().join("refused"));
                assert_eq!(ran.status.code(), 2, "{target}: {}", ran.stdout);
            }
        }
    }
}

#[test]
fn a_legacy_file_is_retagged_without_touching_a_byte_of_its_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-1.7b").join("q2_0-g128.gguf");
    let output = scratch.path().join("retagged.gguf");
    converted(&source, "gguf-pq2_0", &output);
    let (before, after) = (file(&source), file(&output));
    let mut retagged = 0;
    for info in before.tensors() {
        let copy = after.tensor(&info.name).expect("the same tensors");
        assert_eq!(
            before.read(info).unwrap(),
            after.read(copy).unwrap(),
            "{}",
            info.name
        );
        if info.encoding.name() == "q2_0-g128" {
            assert_eq!(copy.encoding.name(), "pq2_0", "{}", info.name);
            retagged += 1;
        }
    }
    assert_eq!(retagged, 15);
    assert_eq!(before.tensors().len(), after.tensors().len());
    let negative = |file: &TensorFile| {
        let info = file.tensor("blk.0.attn_q.weight").expect("a linear");
        file.read(info)
            .unwrap()
            .chunks(34)
            .filter(|b| b[1] & 0x80 != 0)
            .count()
    };
    assert!(negative(&before) > 0 && negative(&before) == negative(&after));
    // what describes the model came along, what describes the file did not
    for key in ["general.author", "general.license", "general.tags"] {
        assert_eq!(before.metadata.get(key), after.metadata.get(key), "{key}");
    }
    let file_type = after.metadata.get("general.file_type");
    assert_eq!(file_type, Some(&MetaValue::U32(141)));
    assert_eq!(
        after.metadata.get("qwen3.vocab_size"),
        Some(&MetaValue::U32(399))
    );
    // once more is a copy
    let again = scratch.path().join("again.gguf");
    converted(&output, "gguf-pq2_0", &again);
    assert_eq!(
        std::fs::read(&output).unwrap(),
        std::fs::read(&again).unwrap()
    );
}

#[test]
fn metadata_without_a_place_in_a_hugging_face_checkpoint_lie_beside_the_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("tiles");
    converted(
        &fixture("bonsai-8b").join("pq2_0.gguf"),
        "packed-2bit",
        &output,
    );
    let weights = file(&output);
    let text = |key: &str| weights.metadata.get(key).and_then(|v| v.as_str());
    assert_eq!(text("general.license"), Some("apache-2.0"));
    assert_eq!(text("general.tags"), Some("[\"ternary\",\"test\"]"));
}

#[test]
fn tensors_decide_the_size_of_the_vocabulary_within_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let source = fixture("bonsai-1.7b").join("checkpoint");
    for entry in std::fs::read_dir(&source).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = std::fs::read_to_string(source.join("config.json")).unwrap();
    let with = |size: usize| {
        let text = config.replace("\"vocab_size\": 399", &format!("\"vocab_size\": {size}"));
        std::fs::write(scratch.path().join("config.json"), text).unwrap();
        Checkpoint::open(scratch.path(), &OpenOptions::default())
    };
    let checkpoint = with(512).unwrap();
    assert_eq!(checkpoint.config.vocab_size, 399);
    assert_eq!(checkpoint.declared_vocab_size, Some(512));
    assert_eq!(with(399).unwrap().declared_vocab_size, None);
    assert_eq!(with(50_000).unwrap_err().code, ErrorCode::WrongShape);
}
