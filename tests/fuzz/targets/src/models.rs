//! Whole models: the configuration, every tensor, the certificate; and that programs agree on what they accept.

use crate::packings::Bytes;
use crate::record::Record;
use crate::scratch;
use bitnet_checkpoint::{Checkpoint, OpenOptions, TensorDigest};
use bitnet_cli::ExitStatus;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Fixtures with the tensors that a configuration is read with.
pub(crate) const FAMILIES: [&str; 12] = [
    "bitnet-2b4t-packed",
    "bitnet-b1.58-1bitllm",
    "bonsai-8b",
    "qwen2",
    "qwen3-moe",
    "qwen35",
    "maple",
    "hunyuan-dense",
    "bitcpm-longrope",
    "falcon-e",
    "bitnet-embedding-270m",
    "bitnet-embedding-0.6b",
];

/// The checkpoint of a fixture.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let tests = crate::directory();
    tests
        .with_file_name("fixtures")
        .join(name)
        .join("checkpoint")
}

/// A directory with the weights of a fixture.
fn weights_of(name: &str) -> PathBuf {
    let dir = scratch::path().join("config").join(name);
    if !dir.exists() {
        std::fs::create_dir_all(&dir).expect("a directory can be created");
        let entries = std::fs::read_dir(fixture(name)).expect("a fixture is there");
        for entry in entries {
            let path = entry.expect("a fixture is readable").path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let to = dir.join(path.file_name().unwrap_or_default());
                std::fs::copy(&path, to).expect("a file can be copied");
            }
        }
    }
    dir
}

/// `config.json` beside the weights of a fixture.
pub(crate) fn config(data: &[u8], record: &mut Record) {
    let Some((number, text)) = data.split_first() else {
        return;
    };
    let name = FAMILIES[usize::from(*number) % FAMILIES.len()];
    let dir = weights_of(name);
    scratch::write(&dir.join("config.json"), text);
    opened(&dir, record, false);
    record.result(&bitnet_checkpoint::pooling_settings(text));
}

/// Opens a model; with `is_read`, reads every tensor.
fn opened(path: &Path, record: &mut Record, is_read: bool) {
    let checkpoint = match Checkpoint::open(path, &OpenOptions::default()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return record.error(&error),
    };
    record.note(&(checkpoint.family.name, &checkpoint.config));
    record.note(&checkpoint.unknown_keys);
    record.note(&checkpoint.rotation_keys());
    if !is_read {
        return;
    }
    for slot in checkpoint.slots() {
        if checkpoint.is_ternary(slot) {
            match checkpoint.ternary(slot) {
                Ok(matrix) => record.note(&TensorDigest::of("t", &matrix)),
                Err(error) => record.error(&error),
            }
        } else {
            match checkpoint.dense(slot) {
                Ok(tensor) => record.note(&tensor.shape),
                Err(error) => record.error(&error),
            }
        }
    }
    record.result(&checkpoint.tokenizer().map(|t| t.map(|t| t.vocab_size())));
    record.note(&checkpoint.tokenizer_digest().map_err(|e| e.to_string()));
}

/// A model in one GGUF file.
pub(crate) fn checkpoint_gguf(data: &[u8], record: &mut Record) {
    let path = scratch::below("gguf").join("model.gguf");
    scratch::write(&path, data);
    opened(&path, record, true);
}

/// Writes a directory: a kind of weights, the configuration behind its length, the weights.
pub(crate) fn write_model(data: &[u8]) -> PathBuf {
    let mut input = Bytes(data);
    let kind = input.byte();
    let len = usize::from(input.word()).min(input.0.len());
    let (config, weights) = input.0.split_at(len);
    let dir = scratch::below("model");
    for name in ["model.safetensors", "pytorch_model.bin"] {
        let _ = std::fs::remove_file(dir.join(name));
    }
    scratch::write(&dir.join("config.json"), config);
    match kind % 2 {
        0 => scratch::write(&dir.join("model.safetensors"), weights),
        _ => scratch::write(&dir.join("pytorch_model.bin"), weights),
    }
    dir
}

/// A directory with a configuration and weights.
pub(crate) fn checkpoint(data: &[u8], record: &mut Record) {
    let dir = write_model(data);
    opened(&dir, record, true);
}

fn program(words: &[&str]) -> (ExitStatus, serde_json::Value) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let words = words.iter().map(OsString::from);
    let status = bitnet_convert::run(words, &mut out, &mut err);
    let report = serde_json::from_slice(&out);
    let report = report.unwrap_or_else(|e| panic!("--json is no JSON ({e}): {out:?}"));
    (status, report)
}

fn out_of_the_way() -> &'static str {
    static PATH: OnceLock<String> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = scratch::path().join("never.gguf");
        path.to_string_lossy().into_owned()
    })
}

/// What `inspect` and a dry run of a conversion say of the same model.
pub(crate) fn agreement(data: &[u8], record: &mut Record) {
    // the first byte is the kind of model, and the target
    let Some((number, model)) = data.split_first() else {
        return;
    };
    let path = match number % 3 {
        0 => {
            let path = scratch::below("gguf").join("model.gguf");
            scratch::write(&path, model);
            path
        }
        _ => write_model(model),
    };
    let targets = bitnet_convert::TARGETS;
    let target = targets[usize::from(number / 3) % targets.len()].name;
    let path = path.to_string_lossy();
    let (inspected, said) = program(&["bitnet-convert", "inspect", &path, "--json"]);
    let dry = [
        "bitnet-convert",
        &path,
        "-o",
        out_of_the_way(),
        "--to",
        target,
        "--allow-scale-rounding",
        "--dry-run",
        "--json",
        "--threads",
        "1",
    ];
    let (planned, plan) = program(&dry);
    record.note(&(inspected, planned, &said, plan.get("error")));
    match (inspected, planned) {
        (ExitStatus::Done, _) => {}
        (_, ExitStatus::Done) => panic!("inspect refuses what converts: {said}"),
        _ => {
            // both refuse, each with a code; the codes differ if the target is refused before the model is opened
            for report in [&said, &plan] {
                assert!(
                    report["error"]["code"].is_string(),
                    "no code of an error: {report}"
                );
            }
            let code = |report: &serde_json::Value| report["error"]["code"].clone();
            record.note(&(code(&said), code(&plan)));
        }
    }
}
