//! Every source with every target: what is held survives to the bit, what is refused has its reason, and
//! `bitnet-convert list` says both beforehand.
//!
//! Invariant: nothing here lists packings or targets; a row added to a registry is tested.

use bitnet_cli::ExitStatus;
use bitnet_convert::{Condition, Pair, Source, TARGETS, Target, fits, pairs};
use bitnet_formats::{
    ErrorCode, FormatError, Limits, PackedTensor, Packing, PlainType, ScaleRounding, open,
};
use bitnet_ternary::{GROUP_SIZES, Scales, TernaryMatrix, f32_is_bf16_exact, f32_is_f16_exact};
use bitnet_tests::conversions::certificate_of;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program;
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rows and columns: whole blocks of every kind, blocks of some, rows of no tile, nothing even.
const SHAPES: [(usize, usize); 9] = [
    (32, 768),
    (64, 512),
    (32, 640),
    (32, 448),
    (32, 288),
    (12, 256),
    (3, 256),
    (6, 64),
    (5, 52),
];

/// Scales that every type holds; that are f16 but not bf16; bf16 but not f16; neither.
const SCALES: [[f32; 3]; 4] = [
    [0.5, 2.0, 0.375],
    [1.000_976_6, 0.5, 0.250_244_14],
    [9.094_947e-13, 0.5, 3.0],
    [0.1, 0.3, 1.7],
];

/// Every structure that fits the shape: scales that differ, and equal ones in a finer structure.
fn structures((rows, cols): (usize, usize), values: [f32; 3]) -> Vec<Scales> {
    let different = |n: usize| (0..n).map(|i| values[i % 3]).collect::<Vec<_>>();
    let mut all = vec![
        Scales::PerTensor(values[0]),
        Scales::PerRow(different(rows)),
        Scales::PerRow(vec![values[0]; rows]),
    ];
    for group in GROUP_SIZES.into_iter().filter(|g| cols.is_multiple_of(*g)) {
        let n = rows * (cols / group);
        // twice the same, then another: groups of twice the size
        let pairs = (0..n).map(|i| values[i / 2 % 3]).collect();
        for scales in [different(n), vec![values[0]; n], pairs] {
            all.push(Scales::PerGroup { group, scales });
        }
    }
    all
}

/// Trits with rows and blocks of zeros; without any zero; zeros alone; one zero in four trits 16 columns apart, and blocks
/// of zeros.
fn trits((rows, cols): (usize, usize)) -> [Vec<i8>; 4] {
    let mixed = |i: usize| match (i / cols % 3, i / 32 % 7) {
        (1, _) | (_, 5) => 0,
        _ => (i * i / 5 % 3) as i8 - 1,
    };
    let n = 0..rows * cols;
    [
        n.clone().map(mixed).collect(),
        n.clone()
            .map(|i| (i * i / 7 % 5 / 3 * 2) as i8 - 1)
            .collect(),
        n.clone().map(|_| 0).collect(),
        n.map(|i| match (i / cols, i % cols) {
            (2, 0..256) => 0,
            (row, col) if col / 16 % 4 == (row + col) % 4 => 0,
            _ => (i * i / 7 % 5 / 3 * 2) as i8 - 1,
        })
        .collect(),
    ]
}

fn matrices() -> Vec<TernaryMatrix> {
    let mut all = Vec::new();
    for (rows, cols) in SHAPES {
        for scales in SCALES.iter().flat_map(|v| structures((rows, cols), *v)) {
            for trits in trits((rows, cols)) {
                all.push(TernaryMatrix::new(rows, cols, trits, scales.clone()).unwrap());
            }
        }
    }
    all
}

/// What the weights are, whatever the structure of the scales: the bits of the scale of each trit.
fn weights(matrix: &TernaryMatrix) -> Vec<(i8, u32)> {
    let cols = matrix.cols();
    let scale = |i: usize| matrix.scales().at(i / cols, i % cols, cols).to_bits();
    let trits = matrix.trits().iter().enumerate();
    trits
        .map(|(i, t)| (*t, if *t == 0 { 0 } else { scale(i) }))
        .collect()
}

/// Packs, also what is only read, and unpacks.
fn through(packing: &dyn Packing, matrix: &TernaryMatrix) -> Result<TernaryMatrix, FormatError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let trailer = packing.trailer(matrix);
    let mut bytes = vec![0; packing.stored_len(rows, cols)? as usize - trailer.len()];
    packing.pack_units(matrix, 0, &mut bytes);
    bytes.extend(trailer);
    let outside = (!packing.holds_scales()).then_some(matrix.scales());
    packing.unpack(&PackedTensor {
        bytes: &bytes,
        rows,
        cols,
        outside,
    })
}

/// The scales that multiply something.
fn voters(matrix: &TernaryMatrix) -> Vec<f32> {
    let mut bits: Vec<u32> = weights(matrix)
        .iter()
        .filter(|w| w.0 != 0)
        .map(|w| w.1)
        .collect();
    bits.sort_unstable();
    bits.dedup();
    bits.into_iter().map(f32::from_bits).collect()
}

/// Whether one scale suffices for so many columns of a row.
fn agrees(matrix: &TernaryMatrix, columns: usize) -> bool {
    let weights = weights(matrix);
    let mut rows = weights.chunks(matrix.cols());
    rows.all(|row| {
        row.chunks(columns).all(|run| {
            let mut voters = run.iter().filter(|w| w.0 != 0).map(|w| w.1);
            let first = voters.next();
            voters.all(|bits| Some(bits) == first)
        })
    })
}

/// Whether a matrix fulfils a condition, told from its weights alone; `None` for shapes, which each
/// target has its own of.
fn is_fulfilled(condition: Condition, target: &Target, matrix: &TernaryMatrix) -> Option<bool> {
    Some(match condition {
        Condition::Zeros => {
            let (block, fits): (usize, fn(&[i8]) -> bool) = match target.name {
                "gguf-q1_0" => (128, |block| !block.contains(&0)),
                _ => (256, |block| {
                    let zeros = |first: usize| {
                        let four = [0, 16, 32, 48].map(|lane| block.get(first + lane));
                        four.iter().filter(|t| **t == Some(&0)).count()
                    };
                    let mut groups = (0..block.len()).filter(|column| column % 64 < 16);
                    groups.all(|first| zeros(first) == 1)
                }),
            };
            let mut rows = matrix.trits().chunks(matrix.cols());
            rows.all(|row| {
                let mut blocks = row.chunks(block);
                blocks.all(|block| block.iter().all(|&t| t == 0) || fits(block))
            })
        }
        Condition::OneScale => voters(matrix).len() <= 1,
        Condition::RowScales => agrees(matrix, matrix.cols()),
        Condition::GroupScales(columns) => agrees(matrix, columns),
        Condition::ScaleBits => {
            let all = |exact: fn(f32) -> bool| voters(matrix).into_iter().all(exact);
            match (target.form.writer.row().name(), target.form.plain) {
                ("floats" | "master", PlainType::Bf16) | ("ms_gpu_int2", _) => {
                    all(f32_is_bf16_exact)
                }
                // whichever of the two holds all of them
                ("mlx_2bit", _) => all(f32_is_f16_exact) || all(f32_is_bf16_exact),
                _ => all(f32_is_f16_exact),
            }
        }
        Condition::Shape => return None,
    })
}

/// One matrix of a source to one target.
fn check(pair: &Pair, matrix: &TernaryMatrix) {
    let Pair { source, target, .. } = pair;
    let place = format!(
        "{} to {}, {} x {}, {}",
        source.name(),
        target.name,
        matrix.rows(),
        matrix.cols(),
        matrix.scales().structure()
    );
    let unfulfilled = |(condition, _): &&(Condition, FormatError)| {
        is_fulfilled(*condition, target, matrix) == Some(false)
    };
    let broken = pair.conditions.iter().find(unfulfilled);
    match fits(target, matrix, ScaleRounding::Refuse) {
        Ok(error) => {
            assert_eq!(error, 0.0, "{place}");
            assert!(broken.is_none(), "{place}: held although {broken:?}");
            let grouped = matches!(matrix.scales(), Scales::PerGroup { .. });
            if let Some(packing) = target.packing_for(grouped) {
                let back = through(packing, matrix).unwrap();
                assert!(weights(&back) == weights(matrix), "{place}");
            }
        }
        Err(refusal) => {
            let keeps_masters = target.form.writer.row().is_master();
            let copied = keeps_masters && matches!(source, Source::Master);
            if copied {
                return;
            }
            let shape = pair.conditions.iter().any(|(c, _)| *c == Condition::Shape);
            let never = pair.refused.is_some();
            assert!(
                broken.is_some() || shape || never,
                "{place}: refused, {refusal}"
            );
            assert!(
                [ErrorCode::TargetCannotHold, ErrorCode::ScaleRounding].contains(&refusal.code),
                "{place}: {refusal:?}"
            );
            assert!(refusal.hint.is_some(), "{place}: {refusal:?}");
            if let Some((Condition::GroupScales(columns), _)) = broken
                && refusal.code == ErrorCode::TargetCannotHold
                && target
                    .packing()
                    .is_some_and(|p| p.packed_len(matrix.rows(), matrix.cols()).is_ok())
                && voters(matrix).into_iter().all(|s| s > 1e-4)
            {
                let says = format!("holds one scale per {columns}, found ");
                assert!(refusal.message.contains(&says), "{place}: {refusal}");
            }
        }
    }
}

#[test]
fn trits_and_scale_bits_survive_or_the_refusal_names_the_reason() {
    let (pairs, matrices) = (pairs(), matrices());
    let sources: Vec<Source> = Source::all().collect();
    sources.par_iter().for_each(|source| {
        let own: Vec<&Pair> = pairs
            .iter()
            .filter(|p| p.source.name() == source.name())
            .collect();
        assert_eq!(own.len(), TARGETS.len());
        let mut seen = 0;
        for matrix in matrices.iter().filter(|m| source.holds(m)) {
            // what a reader of the source sees
            let matrix = match source {
                Source::Packed(packing) => {
                    let read = through(*packing, matrix).unwrap();
                    assert!(weights(&read) == weights(matrix), "{}", packing.name());
                    read
                }
                Source::Master | Source::Dequantised => matrix.clone(),
            };
            own.iter().for_each(|pair| check(pair, &matrix));
            seen += 1;
        }
        assert!(seen > 20, "{}: {seen} matrices", source.name());
    });
}

#[test]
fn the_table_says_what_the_formats_are_known_for() {
    let pairs = pairs();
    let cell = |source: &str, target: &str| {
        let is = |p: &&Pair| p.source.name() == source && p.target.name == target;
        pairs.iter().find(is).unwrap().cell()
    };
    // one scale and blocks of 128 columns; rows of any length elsewhere
    assert_eq!(cell("hf_u8", "gguf-i2_s"), "k");
    assert_eq!(cell("i2_s", "hf-packed"), "=");
    assert_eq!(cell("dequantized", "gguf-i2_s"), "1 k");
    // f16 scales per block of 256
    assert_eq!(cell("i2_s", "gguf-tq2_0"), "s k");
    assert_eq!(cell("q2_0", "gguf-tq2_0"), "g256 k");
    assert_eq!(cell("tq2_0", "gguf-tq1_0"), "=");
    assert_eq!(cell("tq2_0", "gguf-q2_0"), "=");
    assert_eq!(cell("dequantized", "gguf-q2_0"), "g64 s k");
    assert_eq!(cell("iq2_bn", "gguf-iq1_bn"), "s");
    assert_eq!(cell("pq2_0", "gguf-iq2_bn"), "r");
    // everything fits into floats and tiles
    for source in Source::all() {
        for target in ["gguf-f32", "packed", "packed-2bit"] {
            assert_eq!(
                cell(source.name(), target),
                "=",
                "{} {target}",
                source.name()
            );
        }
    }
    assert_eq!(cell("master", "hf-bf16"), "=");
    // some packings have codes for some zeros only
    assert_eq!(cell("q1_0", "gguf-q1_0"), "=");
    assert_eq!(cell("tq2_0", "gguf-q1_0"), "z");
    assert_eq!(cell("pq2_0", "gguf-q1_0"), "z");
    assert_eq!(cell("q2_0", "gguf-q1_0"), "z g128 k");
    assert_eq!(cell("stq1_0", "gguf-q1_0"), "-");
    assert_eq!(cell("q1_0", "gguf-stq1_0"), "-");
    assert_eq!(cell("stq1_0", "gguf-stq1_0"), "=");
    assert_eq!(cell("tq1_0", "gguf-stq1_0"), "z");
    assert_eq!(cell("i2_s", "gguf-stq1_0"), "z s k");
    for target in [
        "gguf-tq2_0",
        "gguf-tq1_0",
        "gguf-q2_0",
        "gguf-pq2_0",
        "gguf-ptq1_0",
    ] {
        assert_eq!(cell("stq1_0", target), "=", "{target}");
    }
    assert_eq!(cell("iq1_bn", "gguf-f16"), "=");
    assert_eq!(cell("iq1_bn", "gguf-bf16"), "s");
}

/// Converts under `--json`.
fn convert(source: &Path, output: &Path, target: &str) -> (ExitStatus, Value) {
    let words = [
        "--json".as_ref(),
        source.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--to".as_ref(),
        target.as_ref(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    (ran.status, ran.json())
}

/// Bytes of all tensors.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = open(path, &Limits::default()).unwrap();
    let tensors = file.tensors().iter();
    tensors
        .map(|t| (t.name.clone(), file.read(t).unwrap().to_vec()))
        .collect()
}

#[test]
fn a_model_goes_through_every_target_and_comes_back_as_it_was() {
    // its scales are numbers of every type, and its shapes fit every block
    let source = checkpoint("bitnet-2b4t-packed");
    let dir = tempfile::tempdir().unwrap();
    let path = |target: &str, step: &str| -> PathBuf {
        let suffix = if target.starts_with("gguf") {
            ".gguf"
        } else {
            ""
        };
        dir.path().join(format!("{step}-{target}{suffix}"))
    };
    let first = path("hf-packed", "first");
    let (status, said) = convert(&source, &first, "hf-packed");
    assert_eq!(status, ExitStatus::Done, "{said}");
    let (hash, expected) = (said["ternary_sha256"].clone(), tensors(&first));
    assert!(hash.as_str().is_some_and(|h| h.len() == 64));
    // dense values, wiring, tokenizer and template as well, whatever container they came through
    let certificate = certificate_of(&first);
    let certified = |output: &Path| {
        let own = certificate_of(output);
        let words = [own.as_path(), Path::new("--certificate"), &certificate];
        let ran = program::run(bitnet_verify::run, words);
        assert_eq!(
            ran.status,
            ExitStatus::Done,
            "{}: {}",
            output.display(),
            ran.stdout
        );
    };
    // each from the one before, so that every target is also a source, and each back to the first
    let (mut before, mut refused) = (first, 0);
    for target in TARGETS {
        let next = path(target.name, "next");
        let (status, said) = convert(&before, &next, target.name);
        if target.packing().is_some_and(|p| !p.holds_any_trits()) {
            // no model that is trained without regard to the packing has its zeros where the codes want them
            assert_eq!(status, ExitStatus::CouldNot, "{}: {said}", target.name);
            let error = &said["error"];
            assert_eq!(error["code"], "target-cannot-hold", "{said}");
            let message = error["message"].as_str().unwrap();
            assert!(
                message.contains("row ") && message.contains("column"),
                "{said}"
            );
            assert!(!next.exists());
            refused += 1;
            continue;
        }
        assert_eq!(status, ExitStatus::Done, "{}: {said}", target.name);
        assert_eq!(said["lossless"], true, "{}", target.name);
        assert_eq!(said["ternary_sha256"], hash, "{}", target.name);
        certified(&next);
        let back = path("hf-packed", target.name);
        let (status, said) = convert(&next, &back, "hf-packed");
        assert_eq!(status, ExitStatus::Done, "{}: {said}", target.name);
        assert_eq!(said["ternary_sha256"], hash, "{}", target.name);
        certified(&back);
        let found = tensors(&back);
        for (name, bytes) in expected.iter().filter(|(n, _)| n.contains("_proj.weight")) {
            let scale = name.ends_with("_scale");
            assert!(
                scale || found.get(name) == Some(bytes),
                "{}: {name}",
                target.name
            );
        }
        before = next;
    }
    assert_eq!(refused, 2);
}
