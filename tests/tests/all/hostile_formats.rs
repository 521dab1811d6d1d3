//! Damaged files of the group-scaled and tiled formats: truncated, flipped, with sizes and groups that are not
//! theirs, and without their scales.
//!
//! Invariant: opening such a file and reading every linear never panics and allocates in proportion to the file,
//! and what is refused is said with its file and a code.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::FormatError;
use bitnet_tests::counting::asked;
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program;
use bitnet_tests::random::Random;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A model in one of the formats, and which of its files holds the weights.
struct Model {
    directory: TempDir,
    path: PathBuf,
    weights: PathBuf,
    bytes: Vec<u8>,
}

impl Model {
    /// `fixture` converted; the plain files of a tokenizer are not asked for here and stay away.
    fn new(fixture: &str, target: &str, weights: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = match weights {
            "" => directory.path().join("model.gguf"),
            _ => directory.path().join("model"),
        };
        let source = checkpoint(fixture);
        let words = [
            source.to_str().unwrap(),
            "-o",
            path.to_str().unwrap(),
            "--to",
            target,
            "--allow-scale-rounding",
        ];
        let ran = program::run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{target}: {}", ran.stderr);
        let weights = if weights.is_empty() {
            path.clone()
        } else {
            path.join(weights)
        };
        let bytes = std::fs::read(&weights).unwrap();
        Self {
            directory,
            path,
            weights,
            bytes,
        }
    }

    /// Opens it with these bytes as weights and reads all linears.
    fn open(&self, bytes: &[u8]) -> Result<(), FormatError> {
        // a new file each time: the one before may still be mapped
        std::fs::remove_file(&self.weights).unwrap();
        std::fs::write(&self.weights, bytes).unwrap();
        let before = asked();
        let result = read_all(&self.path);
        let cost = asked() - before;
        // every trit is a byte, read once; configuration and tokenizer are a few hundred kilobytes
        let bound = (4 << 20) + 64 * self.bytes.len();
        assert!(
            cost <= bound,
            "{}: {cost} bytes allocated",
            self.weights.display()
        );
        if let Err(error) = &result {
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.contains('\n') && text.len() < 2000,
                "{text:?}"
            );
            assert!(error.file.is_some(), "no file in `{text}`");
        }
        result
    }

    fn refused(&self, bytes: &[u8], what: &str) -> FormatError {
        match self.open(bytes) {
            Ok(()) => panic!("{}: accepted {what}", self.weights.display()),
            Err(error) => error,
        }
    }

    /// Where the header ends: what is behind are weights.
    fn header(&self) -> usize {
        if self.weights.extension().is_some_and(|e| e == "safetensors") {
            let len = u64::from_le_bytes(self.bytes[..8].try_into().unwrap());
            return 8 + len as usize;
        }
        let file = bitnet_formats::open(&self.weights, &bitnet_formats::Limits::default()).unwrap();
        file.tensors().iter().map(|t| t.offset).min().unwrap() as usize
    }

    /// The same file with `from` replaced by `to`, of the same length, wherever it stands in the header.
    fn replaced(&self, from: &str, to: &str) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = self.bytes.clone();
        let end = self.header();
        let mut found = 0;
        for at in 0..end - from.len() {
            if &bytes[at..at + from.len()] == from.as_bytes() {
                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
                found += 1;
            }
        }
        assert!(found > 0, "no `{from}`");
        bytes
    }
}

fn read_all(path: &Path) -> Result<(), FormatError> {
    let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
    for slot in checkpoint.slots() {
        if checkpoint.is_ternary(slot) {
            checkpoint.ternary(slot)?;
        }
    }
    Ok(())
}

/// Fixture, target, file of weights.
const MODELS: [(&str, &str, &str); 8] = [
    ("bonsai-1.7b", "mlx-2bit", "model.safetensors"),
    ("bonsai-8b", "gguf-pq2_0", ""),
    ("bonsai-8b", "gguf-ptq1_0", ""),
    ("bonsai-1.7b", "gguf-q2_0", ""),
    ("bitnet-2b4t-packed", "gguf-iq2_bn_r4", ""),
    ("bitnet-2b4t-packed", "gguf-iq1_bn", ""),
    ("bitnet-2b4t-packed", "ms-gpu-int2", "model_state_int2.pt"),
    ("bonsai-8b", "packed", "model.safetensors"),
];

#[test]
fn truncated_and_flipped_anywhere() {
    for (fixture, target, weights) in MODELS {
        let model = Model::new(fixture, target, weights);
        model.open(&model.bytes).unwrap();
        let whole = &model.bytes;
        let mut random = Random(whole.len() as u64);
        for n in 0..60 {
            // the first kilobyte closely, then anywhere, then the last bytes
            let end = match n % 3 {
                0 => random.below(1024),
                1 => random.below(whole.len()),
                _ => whole.len() - 1 - random.below(2),
            };
            model.refused(&whole[..end], "a file cut off");
        }
        for n in 0..120 {
            let mut flipped = whole.clone();
            let at = match n % 4 {
                0 => random.below(64),
                1 | 2 => random.below(whole.len().min(8192)),
                _ => random.below(whole.len()),
            };
            flipped[at] ^= 1 << random.below(8);
            let _ = model.open(&flipped);
        }
    }
}

#[test]
fn sizes_that_are_huge_or_not_theirs() {
    for (fixture, target, weights) in MODELS {
        let model = Model::new(fixture, target, weights);
        if model
            .weights
            .extension()
            .is_some_and(|e| e == "safetensors")
        {
            let header: Value = serde_json::from_slice(&model.bytes[8..model.header()]).unwrap();
            let shapes = header.as_object().unwrap().values();
            let mut shapes = shapes.filter_map(|tensor| tensor["shape"].as_array());
            let shape = shapes.find(|shape| shape.len() == 2).unwrap();
            let from = format!("[{}, {}]", shape[0], shape[1]);
            let huge = format!("[{}, {}]", "9".repeat(shape[0].to_string().len()), shape[1]);
            model.refused(&model.replaced(&from, &huge), "other sizes");
            continue;
        }
        // every 8 bytes of the header that are a size or an offset, made huge
        let end = model.header().min(model.bytes.len());
        let mut random = Random(end as u64);
        for _ in 0..150 {
            let at = random.below(end - 8);
            for value in [u64::MAX, 1 << 62, 1 << 40, 0] {
                let mut bytes = model.bytes.clone();
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let _ = model.open(&bytes);
            }
        }
    }
}

#[test]
fn groups_that_are_not_theirs_and_scales_that_are_missing() {
    let model = Model::new("bonsai-1.7b", "mlx-2bit", "model.safetensors");
    let config = model.path.join("config.json");
    let sound = read_json(&config);
    for (key, value) in [
        ("group_size", json!(64)),
        ("group_size", json!(32)),
        ("group_size", json!(0)),
        ("group_size", json!(-128)),
        ("group_size", json!(1u64 << 40)),
        ("group_size", json!("128")),
        ("group_size", Value::Null),
        ("bits", json!(4)),
        ("bits", json!(0)),
        ("mode", json!("mxfp4")),
    ] {
        let mut changed = sound.clone();
        let places = ["quantization", "quantization_config"];
        for place in places.into_iter().filter(|place| sound[*place].is_object()) {
            changed[place][key] = value.clone();
        }
        std::fs::write(&config, changed.to_string()).unwrap();
        let error = model.refused(&model.bytes, &format!("{key} {value}"));
        assert!(error.to_string().len() < 1000, "{error}");
    }
    std::fs::write(&config, sound.to_string()).unwrap();
    for role in ["scales", "biases"] {
        let gone = model.replaced(
            &format!("q_proj.{role}"),
            &format!("q_proj.{}", "x".repeat(role.len())),
        );
        let error = model.refused(&gone, role);
        assert!(error.to_string().contains("q_proj"), "{error}");
    }
    // the codes of the GPU program without their scales
    let gpu = Model::new("bitnet-2b4t-packed", "ms-gpu-int2", "model_state_int2.pt");
    let gone = gpu.bytes.clone();
    let name = b"wqkv.weight_scale";
    let at = gone
        .windows(name.len())
        .position(|w| w == name)
        .expect("scales by name");
    let mut gone = gone;
    gone[at + 5..at + 6].copy_from_slice(b"v");
    let error = gpu.refused(&gone, "no scales");
    assert!(!error.code.as_str().is_empty(), "{error}");
    drop(gpu.directory);
}
