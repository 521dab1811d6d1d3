//! Every way to store a linear: its page, a checkpoint that has it, and damaged ones.
//!
//! Invariant: a row of `STORAGES` without a checkpoint here fails the test, so that a way to store linears cannot
//! be added untested.

use bitnet_checkpoint::{Checkpoint, OpenOptions, STORAGES, Slot, Storage, storage_by_name};
use bitnet_cli::ExitStatus;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_tests::fixtures::{checkpoint, read_json, repository};
use bitnet_tests::program::run;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions as FileOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PACKED: &str = "bitnet-2b4t-packed";

/// How a checkpoint of a row comes about.
enum Made {
    /// A copy of a fixture.
    Copied(&'static str),
    /// [`PACKED`], converted to a target.
    Converted(&'static str),
    /// [`PACKED`], its bytes stored as numbers of 16 bits.
    AsNumbers,
}

/// A checkpoint of every row.
const MADE: &[(&str, Made)] = &[
    ("ms_gpu_int2", Made::Converted("ms-gpu-int2")),
    ("tiles", Made::Converted("packed")),
    ("mlx_2bit", Made::Converted("mlx-2bit")),
    ("packed", Made::Converted("gguf-i2_s")),
    ("master", Made::Copied("bitnet-2b4t-bf16")),
    ("hf_u8", Made::Copied(PACKED)),
    ("hf_u8-values", Made::AsNumbers),
    ("floats", Made::Converted("gguf-f32")),
];

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

impl Made {
    /// The checkpoint, below an empty directory.
    fn write(&self, directory: &Path) -> PathBuf {
        let source = checkpoint(PACKED);
        match self {
            Self::Copied(name) => {
                copy(&checkpoint(name), directory);
                directory.to_owned()
            }
            Self::Converted(target) => {
                let end = match target.starts_with("gguf") {
                    true => "model.gguf",
                    false => "model",
                };
                let output = directory.join(end);
                let words: [OsString; 5] = [
                    source.into(),
                    "-o".into(),
                    output.clone().into(),
                    "--to".into(),
                    target.into(),
                ];
                let ran = run(bitnet_convert::run, words);
                assert_eq!(ran.status, ExitStatus::Done, "{target}: {}", ran.stderr);
                output
            }
            Self::AsNumbers => {
                copy(&source, directory);
                let path = directory.join("model.safetensors");
                let bytes = fs::read(&path).unwrap();
                let tensors = SafeTensors::deserialize(&bytes).unwrap();
                let widened: Vec<_> = tensors
                    .tensors()
                    .into_iter()
                    .map(|(name, view)| match view.dtype() {
                        Dtype::U8 => {
                            let wide = view.data().iter().flat_map(|b| [*b, 0]).collect();
                            (name, Dtype::I16, view.shape().to_vec(), wide)
                        }
                        other => (name, other, view.shape().to_vec(), view.data().to_vec()),
                    })
                    .collect();
                let views = widened.iter().map(|(name, dtype, shape, data)| {
                    let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
                    (name.as_str(), view)
                });
                let written = safetensors::serialize(views, None).unwrap();
                fs::write(&path, written).unwrap();
                directory.to_owned()
            }
        }
    }
}

fn open(path: &Path) -> Result<Checkpoint, FormatError> {
    let options = OpenOptions {
        ternary_trained: true,
        ..OpenOptions::default()
    };
    Checkpoint::open(path, &options)
}

/// A fresh checkpoint of a row: its directory lives as long as the first value.
fn make(row: &dyn Storage) -> (tempfile::TempDir, PathBuf) {
    let made = MADE.iter().find(|(name, _)| *name == row.name());
    let (_, made) = made.unwrap_or_else(|| panic!("no checkpoint of `{}`", row.name()));
    let directory = tempfile::tempdir().unwrap();
    let path = made.write(directory.path());
    (directory, path)
}

/// The linears of a checkpoint.
fn linears(checkpoint: &Checkpoint) -> Vec<Slot> {
    let slots = checkpoint.slots_in_file_order().into_iter();
    slots.filter(|slot| slot.is_ternary()).collect()
}

#[test]
fn every_row_has_one_name_and_a_page_about_it() {
    let names: BTreeSet<_> = STORAGES.iter().map(|row| row.name()).collect();
    assert_eq!(names.len(), STORAGES.len());
    let made: BTreeSet<_> = MADE.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names, made,
        "a checkpoint of every row, and of nothing else"
    );
    let index = fs::read_to_string(repository().join("formats/README.md")).unwrap();
    for row in STORAGES {
        let found = storage_by_name(row.name()).map(|row| row.name());
        assert_eq!(found, Some(row.name()));
        let page = repository().join("formats").join(row.page());
        assert!(page.is_file(), "{}", page.display());
        let line = format!("| `{}` | ", row.name());
        let line = index
            .lines()
            .find(|l| l.starts_with(&line) && l.contains(row.page()));
        assert!(
            line.is_some(),
            "no line for {} in formats/README.md",
            row.name()
        );
    }
}

#[test]
fn a_checkpoint_of_every_row_is_recognized_and_read() {
    let trits = |checkpoint: &Checkpoint| -> Vec<_> {
        let read = |slot| checkpoint.ternary(slot).unwrap().into_trits();
        linears(checkpoint)
            .into_iter()
            .map(|slot| (slot, read(slot)))
            .collect()
    };
    let sorted = |mut all: Vec<(Slot, Vec<i8>)>| {
        all.sort();
        all
    };
    let expected = sorted(trits(&open(&checkpoint(PACKED)).unwrap()));
    for row in STORAGES {
        let (_directory, path) = make(*row);
        let checkpoint = open(&path).unwrap_or_else(|e| panic!("{}: {e}", row.name()));
        for slot in linears(&checkpoint) {
            let linear = checkpoint.linear(slot).unwrap();
            assert_eq!(linear.storage.name(), row.name(), "{slot}");
            let (rows, cols) = (linear.rows, linear.cols);
            assert_eq!([rows, cols], checkpoint.config.shape(slot)[..], "{slot}");
        }
        let is_same = !matches!(row.name(), "master");
        assert!(
            !is_same || sorted(trits(&checkpoint)) == expected,
            "{}",
            row.name()
        );
        // what is known without the weights is what reading them gives
        for slot in linears(&checkpoint) {
            let read = checkpoint.ternary(slot).unwrap();
            if let Some(one) = checkpoint.one_scale(slot) {
                assert_eq!(
                    read.normal_scales().as_slice(),
                    [one],
                    "{}: {slot}",
                    row.name()
                );
            }
            if let Some(scales) = checkpoint.packed_scales_of(slot).unwrap() {
                assert_eq!(*read.scales(), scales, "{}: {slot}", row.name());
            }
            let change = checkpoint.absmean_change(slot).unwrap();
            assert_eq!(change.is_some(), row.is_master(), "{}: {slot}", row.name());
        }
    }
}

#[test]
fn half_a_linear_of_every_row_is_refused() {
    for row in STORAGES {
        let (_directory, path) = make(*row);
        let checkpoint = open(&path).unwrap();
        let slot = *linears(&checkpoint).last().unwrap();
        let info = checkpoint.tensor_range(slot).unwrap().clone();
        let file = checkpoint.file.parts[info.part].path().to_owned();
        drop(checkpoint);
        let file = FileOptions::new().write(true).open(file).unwrap();
        file.set_len(info.offset + info.len / 2).unwrap();
        let error = open(&path).unwrap_err();
        let expected = [ErrorCode::Truncated, ErrorCode::Malformed];
        assert!(expected.contains(&error.code), "{}: {error}", row.name());
    }
}

#[test]
fn codes_and_numbers_that_mean_nothing_are_refused_in_every_row() {
    for row in STORAGES {
        let (_directory, path) = make(*row);
        let checkpoint = open(&path).unwrap();
        let slot = *linears(&checkpoint).last().unwrap();
        let info = checkpoint.tensor_range(slot).unwrap().clone();
        let file = checkpoint.file.parts[info.part].path().to_owned();
        drop(checkpoint);
        // code 3, a byte of no five trits, NaN, a negative byte
        let byte = match row.name() {
            "ms_gpu_int2" => 0, // codes begin at 1
            "mlx_2bit" => 0xe4, // all four codes: nothing but 3 would be trits of twice the scale
            _ => 0xff,
        };
        let wrong = vec![byte; usize::try_from(info.len).unwrap()];
        let file = FileOptions::new().write(true).open(file).unwrap();
        file.write_all_at(&wrong, info.offset).unwrap();
        drop(file);
        let error = match open(&path) {
            Err(error) => error,
            Ok(checkpoint) => {
                let read = checkpoint.ternary(slot).map(|_| ());
                read.expect_err(row.name())
            }
        };
        let expected = match row.name() {
            "master" | "floats" => ErrorCode::NonFinite,
            "hf_u8-values" => ErrorCode::Malformed,
            "mlx_2bit" => ErrorCode::NotTernary,
            // the scale lies behind the codes and is overwritten as well
            "packed" => ErrorCode::NonFinite,
            _ => ErrorCode::BadCode,
        };
        assert_eq!(error.code, expected, "{}: {error}", row.name());
        assert_eq!(error.tensor, Some(info.name), "{}: {error}", row.name());
    }
}

#[test]
fn a_shape_that_is_not_the_networks_is_refused_in_every_row() {
    const KEY: &str = "feed_forward_length";
    for row in STORAGES {
        let (_directory, path) = make(*row);
        if path.is_dir() {
            let config = path.join("config.json");
            let mut json = read_json(&config);
            let size = json["intermediate_size"].as_u64().unwrap();
            json["intermediate_size"] = (size + 32).into();
            fs::write(&config, json.to_string()).unwrap();
        } else {
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(KEY.len()).position(|w| w == KEY.as_bytes());
            // the type of the value stands before it
            let value = &mut bytes[at.unwrap() + KEY.len() + 4..][..4];
            let size = u32::from_le_bytes(value.try_into().unwrap());
            value.copy_from_slice(&(size + 32).to_le_bytes());
            fs::write(&path, bytes).unwrap();
        }
        let error = open(&path).unwrap_err();
        assert_eq!(error.code, ErrorCode::WrongShape, "{}: {error}", row.name());
        let tensor = error.tensor.as_deref().unwrap_or_default();
        let is_mlp = ["mlp.", "ffn_", "feed_forward."]
            .iter()
            .any(|part| tensor.contains(part));
        assert!(is_mlp, "{}: {error}", row.name());
    }
}
