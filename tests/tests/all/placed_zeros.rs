//! Models in the packings whose codes have zeros only in some places: STQ1_0 (one in four) and Q1_0 (none).
//!
//! Invariant: the sources are built here, from a fixture whose trits are rewritten in its own file, and what a model
//! computes in such a packing is, to the bit, what it computes in f32.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_formats::{
    Encoding, Limits, MetaValue, PackedTensor, ScaleRounding, TensorFile, packing_by_name,
};
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_ternary::{Scales, TernaryMatrix};
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{self, Ran};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

fn run(source: &Path, target: &str, output: &Path, more: &[&str]) -> Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", target, "--json"];
    program::run(bitnet_convert::run, words.iter().chain(more))
}

fn converted(source: &Path, target: &str, output: &Path) -> Value {
    let ran = run(source, target, output, &[]);
    let json = ran.json();
    assert_eq!(ran.status.code(), 0, "{}: {json}", output.display());
    assert_eq!(json["lossless"], true, "{}: {json}", output.display());
    json
}

/// The error of a conversion that is refused, the same under `--dry-run`.
fn refusal(source: &Path, target: &str, output: &Path, more: &[&str]) -> Value {
    let ran = run(source, target, output, more);
    assert_eq!(ran.status.code(), 2, "{target}: {}", ran.stdout);
    assert!(!output.exists(), "{target}");
    let error = ran.json()["error"].clone();
    assert!(error["hint"].is_string(), "{error}");
    let planned = run(source, target, output, &[more, &["--dry-run"]].concat());
    assert_eq!(planned.status.code(), 2, "{target}: {}", planned.stdout);
    // a plan looks at fewer tensors, so it counts fewer behind the first that does not fit
    let place = |error: &Value| {
        let message = error["message"].as_str().unwrap();
        (
            error["code"].clone(),
            message.split(';').next().unwrap().to_owned(),
        )
    };
    assert_eq!(place(&planned.json()["error"]), place(&error), "{target}");
    error
}

fn open(path: &Path) -> TensorFile {
    bitnet_formats::open(path, &Limits::default()).unwrap()
}

/// The fixture as a GGUF file of this target.
fn base(fixture: &str, target: &str, dir: &Path) -> PathBuf {
    let source = repository().join("tests/fixtures").join(fixture);
    let output = dir.join(format!("base-{target}.gguf"));
    converted(&source.join("checkpoint"), target, &output);
    output
}

/// A copy of a GGUF file in which each ternary matrix is what `change` makes of it.
fn rewritten(source: &Path, output: &Path, change: impl Fn(&str, TernaryMatrix) -> TernaryMatrix) {
    let file = open(source);
    let mut bytes = fs::read(source).unwrap();
    for info in file.tensors() {
        let Encoding::Ternary(packing) = info.encoding else {
            continue;
        };
        let (start, len) = (info.offset as usize, info.len as usize);
        let place = &mut bytes[start..start + len];
        let matrix = packing
            .unpack(&PackedTensor {
                bytes: place,
                rows: info.shape[0],
                cols: info.shape[1],
                outside: None,
            })
            .unwrap();
        let matrix = change(&info.name, matrix);
        place.copy_from_slice(&packing.pack(&matrix, ScaleRounding::Refuse).unwrap());
    }
    fs::write(output, bytes).unwrap();
}

/// Scales that differ from group to group, and a matrix whose zeros are where `is_zero` says by row and column.
fn with_zeros(
    matrix: TernaryMatrix,
    group: usize,
    is_zero: impl Fn(usize, usize) -> bool,
) -> TernaryMatrix {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let scales = (0..rows * cols / group).map(|i| (3 + i % 5) as f32 / 256.0);
    let scales = scales.collect();
    let mut trits = matrix.into_trits();
    for (i, trit) in trits.iter_mut().enumerate() {
        *trit = match is_zero(i / cols, i % cols) {
            true => 0,
            false if *trit == 0 => 1 - (i * i / 3 % 2 * 2) as i8,
            false => *trit,
        };
    }
    TernaryMatrix::new(rows, cols, trits, Scales::PerGroup { group, scales }).unwrap()
}

/// One zero in four columns 16 apart; the second block of row 1 is zero throughout.
fn one_in_four(row: usize, col: usize) -> bool {
    (row, col / 256) == (1, 1) || col / 16 % 4 == (row + col) % 4
}

fn logits(path: &Path) -> Vec<u32> {
    let checkpoint = Checkpoint::open(path, &OpenOptions::default()).unwrap();
    let model = Model::load(&checkpoint, &LoadOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..100).map(|i| i * 37 % 380).collect();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

fn linear_types(path: &Path) -> Vec<String> {
    let file = open(path);
    let linears = file.tensors().iter();
    let ternary = linears.filter(|t| matches!(t.encoding, Encoding::Ternary(_)));
    let mut names: Vec<String> = ternary.map(|t| t.encoding.name()).collect();
    names.dedup();
    names
}

/// Through one packing and back, and to f32: the same hash, the same logits.
fn holds_the_model(source: &Path, target: &str, others: &[&str], dir: &Path) -> PathBuf {
    let output = dir.join(format!("{target}.gguf"));
    let hash = converted(source, target, &output)["ternary_sha256"].clone();
    let packing = target.strip_prefix("gguf-").unwrap();
    assert_eq!(linear_types(&output), [packing]);
    let floats = dir.join("f32.gguf");
    converted(source, "gguf-f32", &floats);
    let expected = logits(&floats);
    assert!(expected.iter().any(|bits| *bits != expected[0]));
    assert!(
        logits(&output) == expected,
        "{target}: other logits than in f32"
    );
    let against = [&output, Path::new("--against"), source];
    let ran = program::run(bitnet_verify::run, against);
    assert_eq!(ran.status.code(), 0, "{target}: {}", ran.stdout);
    for other in others {
        let next = dir.join(format!("next-{other}.gguf"));
        assert_eq!(
            converted(&output, other, &next)["ternary_sha256"],
            hash,
            "{other}"
        );
        let back = dir.join(format!("back-{other}.gguf"));
        assert_eq!(
            converted(&next, target, &back)["ternary_sha256"],
            hash,
            "{other}"
        );
        let (a, b) = (open(&output), open(&back));
        for info in a.tensors() {
            let copy = b.tensor(&info.name).unwrap();
            assert!(
                a.read(info).unwrap() == b.read(copy).unwrap(),
                "{other}: {}",
                info.name
            );
        }
    }
    output
}

/// The file with another type id in place of `from`, in the headers of its tensors.
fn retagged(source: &Path, output: &Path, to: u32) {
    let file = open(source);
    let mut bytes = fs::read(source).unwrap();
    for info in file.tensors() {
        if !matches!(info.encoding, Encoding::Ternary(_)) {
            continue;
        }
        let name = info.name.as_bytes();
        let header = [&(name.len() as u64).to_le_bytes()[..], name].concat();
        let at = bytes.windows(header.len()).position(|w| w == header);
        // behind the number of sizes and the sizes
        let at = at.unwrap() + header.len() + 4 + 8 * info.shape.len();
        bytes[at..at + 4].copy_from_slice(&to.to_le_bytes());
    }
    fs::write(output, bytes).unwrap();
}

#[test]
fn one_zero_in_four_is_held_and_computed_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = base("bitnet-2b4t-packed", "gguf-tq2_0", dir);
    let source = dir.join("source.gguf");
    rewritten(&base, &source, |_, m| with_zeros(m, 256, one_in_four));
    let others = [
        "gguf-tq1_0",
        "gguf-q2_0",
        "gguf-pq2_0",
        "gguf-ptq1_0",
        "gguf-f16",
    ];
    let packed = holds_the_model(&source, "gguf-stq1_0", &others, dir);
    let file = open(&packed);
    assert_eq!(
        file.metadata.get("general.file_type"),
        Some(&MetaValue::U32(42))
    );
    // published files have other ids: the distances between tensors tell
    let expected = logits(&packed);
    for id in [42, 40] {
        let path = dir.join(format!("{id}.gguf"));
        retagged(&packed, &path, id);
        assert_eq!(linear_types(&path), ["stq1_0"], "id {id}");
        assert!(logits(&path) == expected, "id {id}");
        let again = dir.join(format!("{id}-again.gguf"));
        converted(&path, "gguf-stq1_0", &again);
        assert_eq!(
            fs::read(&again).unwrap(),
            fs::read(&packed).unwrap(),
            "id {id}"
        );
        let words = ["inspect", "--json", path.to_str().unwrap()];
        let report = program::run(bitnet_convert::run, words).json();
        let ruled_out = report["ruled_out"].to_string();
        assert!(
            ruled_out.contains("q2_0") && ruled_out.contains("nvfp4"),
            "{ruled_out}"
        );
    }
}

#[test]
fn the_first_group_without_exactly_one_zero_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = base("bitnet-2b4t-packed", "gguf-tq2_0", dir);
    let (source, output) = (dir.join("source.gguf"), dir.join("output.gguf"));
    let victim = "blk.1.ffn_down.weight";
    let refused = |change: &dyn Fn(TernaryMatrix) -> TernaryMatrix, more: &[&str]| {
        rewritten(&base, &source, |name, m| {
            let legal = with_zeros(m, 256, one_in_four);
            if name == victim { change(legal) } else { legal }
        });
        refusal(&source, "gguf-stq1_0", &output, more)
    };
    // row 5, columns 267, 283, 299 and 315
    for (is_zero, found) in [
        ([true; 4], 4),
        ([false; 4], 0),
        ([true, false, true, false], 2),
    ] {
        let change = |m: TernaryMatrix| {
            with_zeros(m, 256, |row, col| match (row, col) {
                (5, 256..320) if col % 16 == 11 => is_zero[(col - 256) / 16],
                _ => one_in_four(row, col),
            })
        };
        for more in [&[][..], &["--allow-scale-rounding"]] {
            let error = refused(&change, more);
            assert_eq!(error["code"], "target-cannot-hold", "{error}");
            let message = error["message"].as_str().unwrap();
            let expected = format!(
                "`{victim}`: row 5, columns 267, 283, 299 and 315: stq1_0 holds exactly one 0 among these four, found {found}"
            );
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    // two scales in a block: only a source with finer blocks can have them
    let finer = dir.join("finer.gguf");
    converted(&base, "gguf-q2_0", &finer);
    rewritten(&finer, &source, |_, m| with_zeros(m, 128, one_in_four));
    let error = refusal(&source, "gguf-stq1_0", &output, &[]);
    assert_eq!(error["code"], "target-cannot-hold", "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("stq1_0 holds one scale per 256"),
        "{error}"
    );
}

#[test]
fn binary_models_are_held_and_computed_exactly_and_no_zero_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let base = base("bonsai-8b", "gguf-pq2_0", dir);
    let source = dir.join("source.gguf");
    // a group of zeros is held: its scale is 0
    let silent = |row: usize, col: usize| (row, col / 128) == (3, 0);
    rewritten(&base, &source, |_, m| with_zeros(m, 128, silent));
    let others = ["gguf-q2_0", "gguf-pq2_0", "gguf-ptq1_0", "gguf-f16"];
    let packed = holds_the_model(&source, "gguf-q1_0", &others, dir);
    let file = open(&packed);
    assert_eq!(
        file.metadata.get("general.file_type"),
        Some(&MetaValue::U32(40))
    );
    // embeddings and head as well
    let is_q1_0 = |name: &str| file.tensor(name).unwrap().encoding.name() == "q1_0";
    assert!(is_q1_0("token_embd.weight") && is_q1_0("output.weight"));
    // one zero among others
    let (victim, output) = ("blk.0.ffn_up.weight", dir.join("output.gguf"));
    rewritten(&base, &source, |name, m| {
        let one = |row, col| silent(row, col) || name == victim && (row, col) == (7, 200);
        with_zeros(m, 128, one)
    });
    for more in [&[][..], &["--allow-scale-rounding"]] {
        let error = refusal(&source, "gguf-q1_0", &output, more);
        assert_eq!(error["code"], "target-cannot-hold", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with(&format!("`{victim}`: row 7, column 200: q1_0 holds no 0")),
            "{message}"
        );
    }
    // rows that are no whole blocks
    let packing = packing_by_name("q1_0").unwrap();
    let short = packing.packed_len(4, 192).unwrap_err();
    assert!(
        short.hint.is_some() && short.message.contains("multiple of 128 columns"),
        "{short}"
    );
}

#[test]
fn the_other_type_of_id_41_is_named() {
    let dir = tempfile::tempdir().unwrap();
    // two linears of 512 columns, 130 bytes for each row
    let mut bytes = b"GGUF".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(3u32.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    for (n, name) in ["blk.0.attn_q.weight", "blk.0.attn_k.weight"]
        .iter()
        .enumerate()
    {
        text(&mut bytes, name);
        bytes.extend(2u32.to_le_bytes());
        bytes.extend(512u64.to_le_bytes());
        bytes.extend(64u64.to_le_bytes());
        bytes.extend(41u32.to_le_bytes());
        bytes.extend((n as u64 * 130 * 64).to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32) + 2 * 130 * 64, 0x3c);
    let path = dir.path().join("two_bits.gguf");
    fs::write(&path, bytes).unwrap();
    let words = ["inspect", "--json", path.to_str().unwrap()];
    let report = program::run(bitnet_convert::run, words);
    assert!(
        report.stdout.contains("angelslim_2bit"),
        "{}",
        report.stdout
    );
    let doctor = program::run(
        bitnet_verify::run,
        ["doctor", "--json", path.to_str().unwrap()],
    );
    assert!(
        doctor.stdout.contains("angelslim_2bit"),
        "{}",
        doctor.stdout
    );
    let ran = run(&path, "gguf-f32", &dir.path().join("out.gguf"), &[]);
    assert_eq!(ran.status.code(), 2, "{}", ran.stdout);
}

#[test]
fn damaged_files_are_an_error_or_a_model() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (fixture, from, target, group) in [
        ("bitnet-2b4t-packed", "gguf-tq2_0", "gguf-stq1_0", 256),
        ("bonsai-8b", "gguf-pq2_0", "gguf-q1_0", 128),
    ] {
        let base = base(fixture, from, dir);
        let (source, packed) = (dir.join("source.gguf"), dir.join(format!("{target}.gguf")));
        rewritten(&base, &source, |_, m| {
            with_zeros(m, group, |row, col| group == 256 && one_in_four(row, col))
        });
        converted(&source, target, &packed);
        let whole = fs::read(&packed).unwrap();
        let (damaged, output) = (dir.join("damaged.gguf"), dir.join("damaged-f32.gguf"));
        let mut refused = 0;
        for step in 0..48 {
            let at = whole.len() * step / 48;
            let mut bytes = whole.clone();
            match step % 2 {
                0 => bytes.truncate(at),
                _ => bytes[at..].iter_mut().take(64).for_each(|b| *b ^= 0x7f),
            }
            fs::write(&damaged, bytes).unwrap();
            let status = run(&damaged, "gguf-f32", &output, &["--force"])
                .status
                .code();
            assert!([0, 2].contains(&status), "{target}, {at}");
            refused += usize::from(status == 2);
        }
        assert!(refused >= 24, "{target}: {refused}");
    }
}
