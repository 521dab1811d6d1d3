//! The `packed` profile (`formats/packed.md`): mapped or laid out anew, the same answer; hostile files are
//! refused, each with its reason.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::FormatError;
use bitnet_formats::{ErrorCode, Limits};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Logits, Model, TilesIn};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program;
use serde_json::Value;
use std::path::{Path, PathBuf};

const TARGETS: [(&str, &str); 2] = [("packed", "tile32-1.6bit"), ("packed-2bit", "tile32-2bit")];

/// Converts a fixture; the directory it was converted to.
fn convert(source: &Path, to: &str, directory: &Path) -> PathBuf {
    let output = directory.join(to);
    let words = [
        source.to_str().unwrap(),
        "--to",
        to,
        "--force",
        "-o",
        output.to_str().unwrap(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    output
}

fn load(path: &Path, backend: Backend, tiles: TilesIn) -> Result<Model, FormatError> {
    let options = LoadOptions {
        backend,
        tiles,
        ..LoadOptions::default()
    };
    Model::load(&Checkpoint::open(path, &OpenOptions::default())?, &options)
}

fn logits(model: &Model) -> Vec<u32> {
    let tokens = [1, 5, 9, 2];
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

#[test]
fn mapped_or_laid_out_anew_the_answer_is_the_source_s() {
    let dir = tempfile::tempdir().unwrap();
    for fixture in ["bitnet-2b4t-bf16", "falcon3-1.58"] {
        let source = checkpoint(fixture);
        let expected = logits(&load(&source, Backend::best(), TilesIn::File).unwrap());
        for (to, layout) in TARGETS {
            let packed = convert(&source, to, dir.path());
            for backend in Backend::available() {
                let what = format!("{fixture} {to} {}", backend.name());
                let reads = backend.layout(&bitnet_kernels::Scales::PerTensor(1.0)) == layout;
                for tiles in [TilesIn::FileOrMemory, TilesIn::Memory] {
                    let model = load(&packed, backend, tiles).unwrap();
                    assert_eq!(logits(&model), expected, "{what} {tiles:?}");
                }
                match load(&packed, backend, TilesIn::File) {
                    Ok(model) => {
                        assert!(reads, "{what}");
                        assert_eq!(logits(&model), expected, "{what}");
                    }
                    Err(error) => {
                        assert!(!reads, "{what}: {error}");
                        assert_eq!(error.code, ErrorCode::Kernel);
                        let hint = error.hint.unwrap();
                        assert!(hint.contains("--repack"), "{hint}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_program_takes_a_kernel_that_reads_the_file_or_says_which_would() {
    let dir = tempfile::tempdir().unwrap();
    for (to, layout) in TARGETS {
        let packed = convert(&checkpoint("bitnet-2b4t-packed"), to, dir.path());
        let run = |more: &[&str]| {
            let words = [
                packed.to_str().unwrap(),
                "--tokens",
                "1,2,3",
                "-n",
                "4",
                "--json",
            ];
            program::run(bitnet_run::run, words.iter().chain(more))
        };
        let readers = Backend::available()
            .filter(|b| b.layout(&bitnet_kernels::Scales::PerTensor(1.0)) == layout)
            .map(|b| b.name())
            .collect::<Vec<_>>();
        let named = run(&["--kernel", "scalar"]);
        assert_eq!(named.status, ExitStatus::CouldNot);
        assert_eq!(named.json()["error"]["code"], "kernel");
        let hint = named.json()["error"]["hint"].as_str().unwrap().to_owned();
        assert!(hint.contains("--repack"), "{hint}");
        assert!(readers.iter().all(|r| hint.contains(r)), "{hint}");

        let repacked = run(&["--kernel", "scalar", "--repack"]);
        assert_eq!(repacked.status, ExitStatus::Done, "{}", repacked.stderr);
        assert_eq!(repacked.json()["kernel"], "scalar");
        let best = run(&["--repack"]);
        assert_eq!(best.json()["kernel"], Backend::best().name());
        assert_eq!(best.json()["tokens"], repacked.json()["tokens"]);
        let unnamed = run(&[]);
        match readers.first() {
            None => assert_eq!(unnamed.status, ExitStatus::CouldNot),
            Some(fastest) => {
                assert_eq!(unnamed.json()["kernel"], *fastest);
                assert_eq!(unnamed.json()["tokens"], repacked.json()["tokens"]);
            }
        }
    }
}

/// A packed fixture whose file can be edited.
struct Edited {
    directory: tempfile::TempDir,
    header: String,
    data: Vec<u8>,
}

impl Edited {
    fn new(to: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let packed = convert(&checkpoint("bitnet-2b4t-packed"), to, directory.path());
        let bytes = std::fs::read(packed.join("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + length])
            .unwrap()
            .trim_end()
            .to_owned();
        std::fs::rename(packed, directory.path().join("model")).unwrap();
        Self {
            directory,
            header,
            data: bytes[8 + length..].to_vec(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("model")
    }

    /// Writes the file with this header, its end at a multiple of `align`, and data; what comes of it.
    fn open(&self, header: &str, align: usize, data: &[u8]) -> Result<Checkpoint, FormatError> {
        let length = (8 + header.len()).next_multiple_of(align) - 8;
        let mut bytes = (length as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(8 + length, b' ');
        bytes.extend(data);
        std::fs::write(self.path().join("model.safetensors"), bytes).unwrap();
        Checkpoint::open(&self.path(), &OpenOptions::default())
    }

    /// With `from` in the header turned into `to`.
    fn header(&self, from: &str, to: &str) -> FormatError {
        assert!(self.header.contains(from), "{from}");
        self.open(&self.header.replacen(from, to, 1), 64, &self.data)
            .unwrap_err()
    }
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn metadata_that_say_something_else_are_refused() {
    let file = Edited::new("packed");
    file.open(&file.header, 64, &file.data).unwrap();
    let json: Value = serde_json::from_str(&file.header).unwrap();
    let entry = json["__metadata__"][Q].as_str().unwrap();
    let (layout, shape) = entry.split_once(' ').unwrap();
    let line = format!("\"{Q}\":\"{entry}\"");
    let with = |entry: &str| file.header(&line, &format!("\"{Q}\":\"{entry}\""));

    let version = file.header(r#""version":"1""#, r#""version":"2""#);
    assert_eq!(version.code, ErrorCode::UnknownQuantization, "{version}");
    assert!(version.message.contains("found 2"), "{version}");
    let none = file.header(r#""version":"1","#, "");
    assert_eq!(none.code, ErrorCode::UnknownQuantization, "{none}");
    let layout_error = with(&format!("tile64-1bit {shape}"));
    assert_eq!(
        layout_error.code,
        ErrorCode::UnknownQuantization,
        "{layout_error}"
    );
    assert!(
        layout_error.message.contains("tile64-1bit"),
        "{layout_error}"
    );
    for other in ["", "tile32-1.6bit", shape] {
        assert_eq!(with(other).code, ErrorCode::Malformed, "{other}");
    }
    assert_eq!(with(&format!("{layout} 1x1")).code, ErrorCode::WrongShape);
    assert_eq!(
        with(&format!("tile32-2bit {shape}")).code,
        ErrorCode::WrongShape
    );
    // another format: the bytes are then not what config.json says
    let foreign = file.header("ternary-packed", "pt");
    assert_eq!(foreign.code, ErrorCode::WrongShape, "{foreign}");
    // scales of another shape or type, or none at all
    let scale = format!("\"{Q}_scale\":{{\"dtype\":\"F32\",\"shape\":[1]");
    for (to, code) in [
        (
            format!("\"{Q}_scale\":{{\"dtype\":\"F32\",\"shape\":[1,1,1]"),
            ErrorCode::WrongShape,
        ),
        (
            format!("\"{Q}_scale\":{{\"dtype\":\"I32\",\"shape\":[1]"),
            ErrorCode::WrongType,
        ),
        (
            format!("\"{Q}_sale\":{{\"dtype\":\"F32\",\"shape\":[1]"),
            ErrorCode::MissingTensor,
        ),
    ] {
        assert_eq!(file.header(&scale, &to).code, code, "{to}");
    }
}

#[test]
fn tiles_that_are_not_on_a_line_are_refused() {
    let file = Edited::new("packed-2bit");
    for align in [8, 16, 32] {
        // as many spaces as put the data next to a line
        let mut header = file.header.clone();
        while (8 + header.len())
            .next_multiple_of(align)
            .is_multiple_of(64)
        {
            header.push(' ');
        }
        let error = file.open(&header, align, &file.data).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed, "{error}");
        assert!(error.message.contains("multiple of 64"), "{error}");
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = Edited::new("packed");
    for cut in [1, 63, 64, 4096, file.data.len() / 2, file.data.len()] {
        let data = &file.data[..file.data.len() - cut];
        let error = file.open(&file.header, 64, data).unwrap_err();
        assert_eq!(error.code, ErrorCode::Truncated, "{error}");
    }
}

#[test]
fn a_byte_that_no_trits_have_is_found_before_anything_is_computed() {
    for (to, layout) in TARGETS {
        let file = Edited::new(to);
        let json: Value = serde_json::from_str(&file.header).unwrap();
        let offsets = &json[Q]["data_offsets"];
        let (start, end) = (
            offsets[0].as_u64().unwrap() as usize,
            offsets[1].as_u64().unwrap() as usize,
        );
        for at in [start, (start + end) / 2, end - 1] {
            let mut data = file.data.clone();
            data[at] = 0xff;
            file.open(&file.header, 64, &data).unwrap();
            for backend in Backend::available() {
                for tiles in [TilesIn::FileOrMemory, TilesIn::Memory] {
                    let error = load(&file.path(), backend, tiles).unwrap_err();
                    let what = format!("{layout} {} {tiles:?}: {error}", backend.name());
                    assert_eq!(error.code, ErrorCode::BadCode, "{what}");
                    assert!(error.message.starts_with("row "), "{what}");
                    assert_eq!(error.tensor.as_deref(), Some(Q), "{what}");
                }
            }
        }
        // scales too
        let scale = json[format!("{Q}_scale")]["data_offsets"][0]
            .as_u64()
            .unwrap() as usize;
        for (value, code) in [
            (f32::NAN, ErrorCode::NonFinite),
            (-1.0, ErrorCode::Malformed),
        ] {
            let mut data = file.data.clone();
            data[scale..scale + 4].copy_from_slice(&value.to_le_bytes());
            file.open(&file.header, 64, &data).unwrap();
            let error = load(&file.path(), Backend::best(), TilesIn::FileOrMemory).unwrap_err();
            assert_eq!(error.code, code, "{error}");
        }
    }
}

#[test]
fn any_other_byte_gives_every_kernel_the_same_weights() {
    // flips that stay codes: mapped, unpacked and packed again must agree on what they mean
    for (to, _) in TARGETS {
        let file = Edited::new(to);
        let mut data = file.data.clone();
        for (i, byte) in data.iter_mut().enumerate().take(1 << 14) {
            if i % 37 == 0 {
                *byte = [0, 1, 0x55, 0xa8, 121, 0x2a][i / 37 % 6] & 0xaa;
            }
        }
        file.open(&file.header, 64, &data).unwrap();
        let mut all = Backend::available()
            .map(|backend| logits(&load(&file.path(), backend, TilesIn::FileOrMemory).unwrap()));
        let first = all.next().unwrap();
        assert!(all.all(|other| other == first), "{to}");
    }
}

#[test]
fn group_scales_go_into_the_layout_that_holds_them_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    // block scales: q2_0 as the peers write it has one per 64 columns
    let source = dir.path().join("source.gguf");
    let words = [
        checkpoint("bitnet-2b4t-packed")
            .to_str()
            .unwrap()
            .to_owned(),
        "--to".to_owned(),
        "gguf-q2_0".to_owned(),
        "-o".to_owned(),
        source.to_str().unwrap().to_owned(),
    ];
    let ran = program::run(bitnet_convert::run, &words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    // every second block of the first matrix gets twice the scale
    let file = bitnet_formats::open(&source, &Limits::default()).unwrap();
    let info = file
        .tensors()
        .iter()
        .find(|t| t.name.ends_with("attn_q.weight"))
        .unwrap()
        .clone();
    drop(file);
    let mut bytes = std::fs::read(&source).unwrap();
    let (start, end) = (info.offset as usize, (info.offset + info.len) as usize);
    for block in bytes[start..end].chunks_exact_mut(36) {
        let scale = u16::from_le_bytes([block[0], block[1]]);
        if scale != 0 {
            block[..2].copy_from_slice(&(scale + (1 << 10)).to_le_bytes());
        }
    }
    std::fs::write(&source, bytes).unwrap();
    let expected = logits(&load(&source, Backend::best(), TilesIn::File).unwrap());
    for (to, _) in TARGETS {
        let packed = convert(&source, to, dir.path());
        let opened = Checkpoint::open(&packed, &OpenOptions::default()).unwrap();
        let entry = opened
            .file
            .metadata
            .get(Q)
            .and_then(|v| v.as_str())
            .unwrap();
        assert!(entry.starts_with("tile32-2bit "), "{entry}");
        let scales = opened.file.tensor(&format!("{Q}_scale")).unwrap();
        assert_eq!(scales.shape[0], info.shape[0]);
        assert!(scales.shape[1] > 1, "{:?}", scales.shape);
        for backend in Backend::available() {
            let model = load(&packed, backend, TilesIn::FileOrMemory).unwrap();
            assert_eq!(logits(&model), expected, "{to} {}", backend.name());
        }
        let ran = program::run(
            bitnet_verify::run,
            [
                packed.to_str().unwrap(),
                "--against",
                source.to_str().unwrap(),
                "--json",
            ],
        );
        assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    }
}
