//! `inspect` over whole files of every layout, and over files in which only evidence tells the layout.
//!
//! Invariant: a verdict is right or said to be open, with what is true among its candidates; never wrong.
//! Both tables are printed: `--test all inspect_vectors -- --nocapture`.

#![allow(clippy::print_stdout)] // the tables are the report

#[path = "inspect_vectors/matrices.rs"]
mod matrices;

use bitnet_checkpoint::{LayoutSample, layout_readings};
use bitnet_cli::ExitStatus;
use bitnet_formats::{PackedTensor, Packing, layouts_like, packing_by_name};
use bitnet_ternary::TernaryMatrix;
use bitnet_tests::fixtures::repository;
use bitnet_tests::program;
use bitnet_tests::random::Random;
use matrices::{KINDS, Kind, gains_of, grouped, matrix};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn inspect(path: &Path) -> (ExitStatus, Value) {
    let words = ["--json", "inspect", path.to_str().unwrap()];
    let ran = program::run(bitnet_convert::run, words);
    (ran.status, ran.json())
}

fn names(object: &Value) -> String {
    let names: Vec<_> = object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    names.join(", ")
}

fn strings(array: &Value) -> Vec<&str> {
    array
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// What is said of a file, in one line.
fn verdict(json: &Value) -> String {
    let layout = match &json["layout"] {
        Value::Null => "by its type".to_owned(),
        layout if layout["decided"] == true => layout["reason"].as_str().unwrap().to_owned(),
        layout => format!("undecided: {}", strings(&layout["candidates"]).join(" ")),
    };
    let scales = names(&json["data"]["scale_structures"]);
    let direction = json["scales"]["direction"]
        .as_str()
        .map_or(String::new(), |d| format!(", {d}"));
    let ruled_out: Vec<_> = json["ruled_out"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|c| strings(&c["others"]))
        .collect();
    format!(
        "{} | {} | {} | {layout} | {scales}{direction} | {}",
        json["container"].as_str().unwrap(),
        json["architecture"].as_str().unwrap(),
        names(&json["linears"]),
        ruled_out.join(" "),
    )
}

/// The whole files of the repository: those of other programs' writers, and the checkpoints.
fn whole_files() -> Vec<(String, PathBuf)> {
    let root = repository();
    let listed = |directory: PathBuf| {
        let entries = std::fs::read_dir(&directory).unwrap();
        let mut paths: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
        paths.sort();
        paths
    };
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|e| e == "gguf");
    let mut files = listed(root.join("formats/vectors/gguf-files"));
    for fixture in listed(root.join("tests/fixtures"))
        .into_iter()
        .filter(|p| p.is_dir())
    {
        files.extend(listed(fixture.clone()).into_iter().filter(is_gguf));
        files.push(fixture.join("checkpoint"));
    }
    let name = |path: &Path| {
        let mut parts: Vec<_> = path
            .iter()
            .rev()
            .take(2)
            .map(|p| p.to_str().unwrap())
            .collect();
        parts.reverse();
        parts.join("/")
    };
    let is_model = |path: &PathBuf| is_gguf(path) || path.join("config.json").is_file();
    files
        .into_iter()
        .filter(is_model)
        .map(|path| (name(&path), path))
        .collect()
}

#[test]
fn whole_files_are_what_they_are() {
    let expected = include_str!("inspect_vectors/whole_files.txt");
    let mut table =
        String::from("# file | container | architecture | linears | layout | scales | ruled out\n");
    for (name, path) in whole_files() {
        let (status, json) = inspect(&path);
        assert_eq!(status, ExitStatus::Done, "{name}: {json}");
        table += &format!("{name} | {}\n", verdict(&json));
    }
    println!("{table}");
    assert_eq!(
        table, expected,
        "tests/tests/inspect_vectors/whole_files.txt"
    );
}

/// How often a verdict was right, open, and wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Tally {
    right: usize,
    open: usize,
    wrong: usize,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.open += other.open;
        self.wrong += other.wrong;
    }

    fn of(truth: &str, candidates: &[&str]) -> Self {
        let mut tally = Self::default();
        match candidates {
            [one] if *one == truth => tally.right = 1,
            several if several.len() > 1 && several.contains(&truth) => tally.open = 1,
            _ => tally.wrong = 1,
        }
        tally
    }
}

fn print(title: &str, tallies: &BTreeMap<String, Tally>) {
    println!(
        "{title:<34} {:>6} {:>10} {:>6}",
        "right", "undecided", "wrong"
    );
    for (name, Tally { right, open, wrong }) in tallies {
        println!("{name:<34} {right:>6} {open:>10} {wrong:>6}");
    }
    let wrong: Vec<_> = tallies.iter().filter(|(_, t)| t.wrong > 0).collect();
    assert!(wrong.is_empty(), "wrong verdicts: {wrong:?}");
}

fn encode(packing: &dyn Packing, matrix: &TernaryMatrix) -> Vec<u8> {
    let len = packing.stored_len(matrix.rows(), matrix.cols()).unwrap() as usize;
    let trailer = packing.trailer(matrix);
    let mut bytes = vec![0; len - trailer.len()];
    packing.pack_units(matrix, 0, &mut bytes);
    bytes.extend(trailer);
    bytes
}

const I2_S: [&str; 3] = ["i2_s", "i2_s-arm64", "i2_s-rows4"];

/// Every kind of structure in every order of I2_S, with norm gains that the columns follow, that they do not
/// follow, that are all 1, and without.
#[test]
fn no_order_of_i2_s_is_ever_taken_for_another() {
    let shapes = [
        (4, 128),
        (4, 512),
        (16, 384),
        (64, 256),
        (96, 640),
        (256, 512),
        (32, 2560),
    ];
    let cases: Vec<_> = KINDS
        .iter()
        .flat_map(|kind| shapes.map(|shape| (*kind, shape)))
        .collect();
    let found: Vec<(String, Tally)> = cases
        .par_iter()
        .flat_map(|&(kind, (rows, cols))| {
            let mut tallies = Vec::new();
            for seed in 0..3 {
                let mut random = Random(seed ^ (rows * cols) as u64);
                for truth in I2_S {
                    let packing = packing_by_name(truth).unwrap();
                    let gains = gains_of(seed as usize, cols, &mut random);
                    let of_file: Vec<_> = (0..1 + seed as usize % 3)
                        .map(|_| matrix(kind, (rows, cols), gains.as_deref(), &mut random))
                        .collect();
                    let bytes: Vec<_> = of_file.iter().map(|m| encode(packing, m)).collect();
                    let samples = bytes.iter().map(|bytes| LayoutSample {
                        bytes: bytes.clone().into(),
                        rows,
                        cols,
                        gains: gains.clone(),
                    });
                    let rivals = layouts_like(packing_by_name("i2_s").unwrap(), &[(rows, cols)]);
                    let readings = layout_readings(&rivals, &samples.collect::<Vec<_>>());
                    let left: Vec<_> = readings
                        .iter()
                        .filter(|r| !r.ruled_out)
                        .map(|r| r.packing)
                        .collect();
                    // what the same bytes say under a wrong order may be the same trits
                    let same = |name: &str| {
                        let packing = packing_by_name(name).unwrap();
                        bytes.iter().zip(&of_file).all(|(bytes, m)| {
                            let tensor = PackedTensor {
                                bytes,
                                rows,
                                cols,
                                outside: None,
                            };
                            packing.unpack(&tensor).unwrap().trits() == m.trits()
                        })
                    };
                    let truth = left
                        .iter()
                        .copied()
                        .find(|name| same(name))
                        .unwrap_or(truth);
                    tallies.push((format!("{kind:?}"), Tally::of(truth, &left)));
                }
            }
            tallies
        })
        .collect();
    let mut by_kind: BTreeMap<String, Tally> = BTreeMap::new();
    for (kind, tally) in found {
        by_kind.entry(kind).or_default().add(tally);
    }
    print("order of i2_s, by structure", &by_kind);
}

/// A tensor of a file that is written here.
struct Tensor {
    shape: (usize, usize),
    id: u32,
    bytes: Vec<u8>,
}

/// A GGUF file of these tensors and nothing else: no architecture, no types of files, no names that tell.
fn gguf(tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(0u64.to_le_bytes());
    let mut offset = 0u64;
    for (n, tensor) in tensors.iter().enumerate() {
        let name = format!("t{n}");
        out.extend((name.len() as u64).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(2u32.to_le_bytes());
        for size in [tensor.shape.1, tensor.shape.0] {
            out.extend((size as u64).to_le_bytes());
        }
        out.extend(tensor.id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (tensor.bytes.len() as u64).next_multiple_of(32);
    }
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&tensor.bytes);
    }
    out
}

/// The types that the ids 36 and 38 to 43 stand for, by the id a file has.
const TYPES: [(u32, &str); 23] = [
    (36, "i2_s"),
    (36, "i2_s-arm64"),
    (36, "i2_s-rows4"),
    (38, "tl1"),
    (38, "tl1-64-64-32"),
    (38, "tl1-128-64-64"),
    (39, "tl2"),
    (39, "tl2-32-96-32"),
    (39, "tl2-128-192-32"),
    (39, "mxfp4"),
    (40, "nvfp4"),
    (40, "q1_0-g32"),
    (40, "stq1_0"),
    (41, "q1_0"),
    (41, "angelslim_2bit"),
    (42, "tl2"),
    (42, "tl2-128-192-32"),
    (42, "q2_0"),
    (42, "q2_0-g128"),
    (42, "q2_0-g128-last"),
    (42, "stq1_0"),
    (43, "stq1_0"),
    (142, "pq2_0"),
];

/// The bytes of a matrix as this type; of types that we do not read any bytes of that length.
fn bytes_as(name: &str, matrix: &TernaryMatrix, random: &mut Random) -> Vec<u8> {
    let elements = matrix.rows() * matrix.cols();
    let len = match name {
        "mxfp4" => elements / 32 * 17,
        "nvfp4" => elements / 64 * 36,
        "q1_0-g32" => elements / 32 * 6,
        "angelslim_2bit" => elements / 512 * 130,
        _ => return encode(packing_by_name(name).unwrap(), matrix),
    };
    (0..len).map(|_| random.below(256) as u8).collect()
}

/// What `inspect` leaves a tensor of a file to be; tilings are said to be open in any case.
fn candidates(json: &Value) -> Vec<String> {
    if let Some(message) = json["error"]["message"].as_str() {
        // "type 42 may be q2_0, q2_0-g128: ..."
        let listed = message
            .split_once("may be ")
            .unwrap_or_else(|| panic!("{json}"))
            .1;
        let listed = listed.split(':').next().unwrap();
        return listed.split(", ").map(str::to_owned).collect();
    }
    match &json["ternary"][0] {
        Value::Null => json["encodings"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["name"].as_str().unwrap().to_owned())
            .collect(),
        one if one["decided"] == true => vec![one["packing"].as_str().unwrap().to_owned()],
        one => strings(&one["candidates"])
            .into_iter()
            .map(str::to_owned)
            .collect(),
    }
}

#[test]
fn type_ids_alone_decide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shapes = [
        (1, 128),
        (2, 256),
        (32, 256),
        (64, 256),
        (128, 512),
        (128, 768),
        (256, 512),
    ];
    let kinds = [
        Kind::Noise,
        Kind::Sparse,
        Kind::Dense,
        Kind::Rows,
        Kind::Columns,
        Kind::ZeroBlocks,
        Kind::Ramp,
        Kind::AllZero,
        Kind::AllPlus,
        Kind::AllMinus,
    ];
    let cases: Vec<_> = TYPES
        .iter()
        .flat_map(|of| kinds.map(|kind| (*of, kind)))
        .collect();
    let found: Vec<(String, Tally)> = cases
        .par_iter()
        .flat_map(|&((id, truth), kind)| {
            let mut tallies = Vec::new();
            for (n, shape) in shapes.into_iter().enumerate() {
                let packing = packing_by_name(truth);
                if packing.is_some_and(|p| p.stored_len(shape.0, shape.1).is_err())
                    || truth.starts_with("tl2") && shape.1 <= 256 && shape.0 < 32
                    || truth == "angelslim_2bit" && !shape.1.is_multiple_of(512)
                {
                    continue;
                }
                let mut random = Random(n as u64);
                let tensors: Vec<_> = (0..1 + n % 3)
                    .map(|scales| {
                        let matrix = match truth.starts_with('q') || truth.starts_with("pq") {
                            true => grouped(kind, shape, scales + n, &mut random),
                            false => matrix(kind, shape, None, &mut random),
                        };
                        let bytes = bytes_as(truth, &matrix, &mut random);
                        Tensor { shape, id, bytes }
                    })
                    .collect();
                let path = dir.path().join(format!("{id}-{truth}-{kind:?}-{n}.gguf"));
                std::fs::write(&path, gguf(&tensors)).unwrap();
                let (_, json) = inspect(&path);
                let left = candidates(&json);
                let tiled = |name: &str| name.split('-').next().unwrap().to_owned();
                let (truth, left) = match truth.starts_with("tl") {
                    // the type; no tiling is ever claimed
                    true => {
                        let claimed = json["ternary"][0]["decided"] == true;
                        let mut types: Vec<_> = left.iter().map(|name| tiled(name)).collect();
                        types.dedup();
                        (
                            if claimed {
                                "no tiling".to_owned()
                            } else {
                                tiled(truth)
                            },
                            types,
                        )
                    }
                    false => (truth.to_owned(), left),
                };
                let left: Vec<_> = left.iter().map(String::as_str).collect();
                let tally = Tally::of(&truth, &left);
                if tally.wrong > 0 {
                    println!("{}: {json}", path.display());
                }
                tallies.push((
                    format!(
                        "{id} {}",
                        packing.map_or(truth.clone(), |p| p.name().to_owned())
                    ),
                    tally,
                ));
            }
            tallies
        })
        .collect();
    let mut by_type: BTreeMap<String, Tally> = BTreeMap::new();
    for (name, tally) in found {
        by_type.entry(name).or_default().add(tally);
    }
    print("type id and what it is", &by_type);
}
