//! Checkpoints as PyTorch saves them: `pytorch_model.bin`, whole or in shards.
//!
//! Invariant: a model is the same, tensor for tensor and hash for hash, whether safetensors or pickles hold
//! it; what torch itself wrote is read as torch reads it.

use bitnet_cli::ExitStatus;
use bitnet_formats::{Encoding, ErrorCode, Limits, PlainType, TensorFile, open};
use bitnet_tests::fixtures::{checkpoint, repository};
use bitnet_tests::program::{self, Ran};
use bitnet_tests::torch_archive::{Saved, archive_of, storage_of};
use serde_json::json;
use std::path::{Path, PathBuf};

fn by_torch(name: &str) -> PathBuf {
    repository().join("tests/files/pytorch").join(name)
}

fn read(path: &Path) -> Result<TensorFile, bitnet_formats::FormatError> {
    open(path, &Limits::default())
}

#[test]
fn what_torch_wrote_is_read_as_torch_reads_it() {
    let file = read(&by_torch("state_dict.pt")).unwrap();
    assert_eq!(file.container, "pytorch");
    let bf16 = |range: std::ops::Range<i32>| -> Vec<u8> {
        let high = |n: i32| ((n as f32).to_bits() >> 16) as u16;
        range.flat_map(|n| high(n).to_le_bytes()).collect()
    };
    let expected: [(&str, PlainType, &[usize], Vec<u8>); 4] = [
        ("a.weight", PlainType::Bf16, &[3, 4], bf16(0..12)),
        (
            "b.i8",
            PlainType::I8,
            &[8],
            (-4..4i8).map(|n| n as u8).collect(),
        ),
        ("c", PlainType::F16, &[2, 2], [0x00, 0x3c].repeat(4)),
        ("rows", PlainType::Bf16, &[2, 4], bf16(4..12)),
    ];
    assert_eq!(file.tensors().len(), expected.len());
    for (name, plain, shape, bytes) in expected {
        let info = file.tensor(name).unwrap();
        assert_eq!(info.encoding, Encoding::Plain(plain), "{name}");
        assert_eq!(info.shape, shape, "{name}");
        assert_eq!(file.read(info).unwrap(), bytes, "{name}");
    }
    let file = read(&by_torch("module.pt")).unwrap();
    let mut names: Vec<_> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["bias", "weight"]);
}

#[test]
fn what_cannot_be_mapped_is_refused_with_what_to_do() {
    for (name, code, says, hint) in [
        (
            "strided.pt",
            ErrorCode::Malformed,
            "strides [1, 4]",
            "contiguous()",
        ),
        (
            "legacy.pt",
            ErrorCode::UnknownContainer,
            "bare pickle",
            "torch.save",
        ),
        (
            "object.pt",
            ErrorCode::Malformed,
            "dict of tensors",
            "state_dict()",
        ),
    ] {
        let path = by_torch(name);
        let error = read(&path).map(|_| ()).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.file.as_deref(), Some(path.as_path()), "{error}");
        assert!(error.hint.unwrap().contains(hint), "{name}");
    }
}

/// The tensors of a checkpoint as torch would save them.
fn saved(source: &Path) -> Vec<Saved> {
    let file = read(source).unwrap();
    let save = |info: &bitnet_formats::TensorInfo| {
        let dtype = info.encoding.name().to_uppercase();
        let (storage, size) = storage_of(&dtype);
        Saved {
            name: info.name.clone(),
            storage,
            size,
            shape: info.shape.clone(),
            bytes: file.read(info).unwrap().to_vec(),
        }
    };
    file.tensors().iter().map(save).collect()
}

/// A copy of a checkpoint directory with its weights in this many pickles.
fn pickled(source: &Path, directory: &Path, shards: usize) {
    std::fs::create_dir(directory).unwrap();
    for entry in std::fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && !name.contains(".safetensors") {
            std::fs::copy(&path, directory.join(name)).unwrap();
        }
    }
    let tensors = saved(source);
    if shards == 1 {
        std::fs::write(directory.join("pytorch_model.bin"), archive_of(&tensors)).unwrap();
        return;
    }
    let mut map = serde_json::Map::new();
    let most = tensors.len().div_ceil(shards);
    for (n, part) in tensors.chunks(most).enumerate() {
        let name = format!("pytorch_model-{:05}-of-{shards:05}.bin", n + 1);
        std::fs::write(directory.join(&name), archive_of(part)).unwrap();
        map.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    let path = directory.join("pytorch_model.bin.index.json");
    std::fs::write(path, index.to_string()).unwrap();
}

fn converted(source: &Path, output: &Path) -> Ran {
    let words = [
        "--json".as_ref(),
        source.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        // one of the sources has nothing else that says so
        "--ternary-trained".as_ref(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran
}

#[test]
fn a_model_is_the_same_in_pickles() {
    let dir = tempfile::tempdir().unwrap();
    // packed with scales, master weights, several shards, ternary floats
    for name in [
        "bitnet-2b4t-packed",
        "bitnet-2b4t-bf16",
        "falcon-e-prequantized",
        "falcon-e-bfloat16",
    ] {
        let source = checkpoint(name);
        let from_safetensors = dir.path().join(format!("{name}.gguf"));
        let expected = converted(&source, &from_safetensors).json();
        for shards in [1, 3] {
            let directory = dir.path().join(format!("{name}-{shards}"));
            pickled(&source, &directory, shards);
            let output = dir.path().join(format!("{name}-{shards}.gguf"));
            let json = converted(&directory, &output).json();
            assert_eq!(json["source"]["container"], "pytorch");
            assert_eq!(json["ternary_sha256"], expected["ternary_sha256"], "{name}");
            // dense tensors are the same too; only their order is that of the source
            let words = [
                "--ternary-trained".as_ref(),
                "--against".as_ref(),
                source.as_os_str(),
                output.as_os_str(),
            ];
            let verified = program::run(bitnet_verify::run, words);
            assert_eq!(verified.status, ExitStatus::Done, "{}", verified.stdout);
            if shards > 1 {
                let shard = directory.join("pytorch_model-00002-of-00003.bin");
                let index = directory.join("pytorch_model.bin.index.json");
                for path in [&shard, &index] {
                    let file = read(path).unwrap();
                    assert_eq!(file.parts.len(), 3, "{}", path.display());
                }
                std::fs::remove_file(&shard).unwrap();
                let error = read(&directory).map(|_| ()).unwrap_err();
                assert_eq!(error.code, ErrorCode::Io);
                assert_eq!(error.file.as_deref(), Some(shard.as_path()));
            }
        }
    }
}

#[test]
fn safetensors_come_first_and_optimizer_states_never() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("both");
    pickled(&checkpoint("falcon-e"), &directory, 1);
    std::fs::write(directory.join("optimizer.bin"), b"no model").unwrap();
    assert_eq!(read(&directory).unwrap().container, "pytorch");
    std::fs::copy(
        checkpoint("falcon-e").join("model.safetensors"),
        directory.join("model.safetensors"),
    )
    .unwrap();
    assert_eq!(read(&directory).unwrap().container, "safetensors");
    std::fs::remove_file(directory.join("model.safetensors")).unwrap();
    std::fs::remove_file(directory.join("pytorch_model.bin")).unwrap();
    assert_eq!(
        read(&directory).map(|_| ()).unwrap_err().code,
        ErrorCode::UnknownContainer
    );
}
