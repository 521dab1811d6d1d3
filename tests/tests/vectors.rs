//! Format vectors: bytes that other people's encoders made, against ours, in both directions.
//!
//! Invariant: nothing here lists vectors. Whatever folders and entries the manifests under
//! `formats/vectors` (or the folder in `BITNET_VECTORS`) hold are checked, so vectors never seen
//! before are put beside the others and run. A folder whose packing is not registered yet is
//! reported, never silently passed; its files' digests are verified all the same.

#![allow(clippy::print_stdout)] // the table is the report: `--test vectors -- --nocapture`

#[path = "vectors/folder.rs"]
mod folder;
#[path = "vectors/groups.rs"]
mod groups;
#[path = "vectors/one_in_four.rs"]
mod one_in_four;
#[path = "vectors/packings.rs"]
mod packings;
#[path = "vectors/quantisers.rs"]
mod quantisers;
#[path = "vectors/rotations.rs"]
mod rotations;

use bitnet_formats::PACKINGS;
use bitnet_tests::digest::sha256;
use bitnet_tests::fixtures::{repository, skipped, vectors_dir};
use folder::{Checked, Outcome, Vectors, json, read};
use groups::{check_affine, check_blocks, check_one_in_all};
use one_in_four::check_one_in_four;
use packings::{check_gguf_tensor, check_packed, packing_of, same_bytes};
use quantisers::{check_activations, check_input, check_master};
use rotations::check_rotation;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// One line of the table.
#[derive(Default)]
struct Line {
    folder: String,
    against: String,
    entries: usize,
    passed: usize,
    refused: usize,
    skipped: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Report {
    lines: Vec<Line>,
    failures: Vec<String>,
    files: usize,
    /// What could not be checked.
    notes: Vec<&'static str>,
}

impl Report {
    /// Entries that said something about a format; the inputs alone say nothing.
    fn usable(&self) -> usize {
        self.lines
            .iter()
            .filter(|l| l.folder != "inputs")
            .map(|l| l.passed)
            .sum()
    }

    fn print(&self) {
        println!(
            "{:<22} {:<12} {:>7} {:>7} {:>8}  skipped",
            "format", "against", "entries", "passed", "refused"
        );
        for l in &self.lines {
            let skipped: Vec<String> = l
                .skipped
                .iter()
                .map(|(why, n)| format!("{n}: {why}"))
                .collect();
            println!(
                "{:<22} {:<12} {:>7} {:>7} {:>8}  {}",
                l.folder,
                l.against,
                l.entries,
                l.passed,
                l.refused,
                skipped.join("; ")
            );
        }
        println!("{} files verified by length and sha256", self.files);
        self.notes.iter().for_each(skipped);
        for l in &self.lines {
            for (why, n) in &l.skipped {
                skipped(format_args!("{}: {n} entries: {why}", l.folder));
            }
        }
    }
}

/// Verifies every `{"file", "sha256", "bytes"?}` object anywhere in a manifest.
fn verify_files(folder: &Path, value: &Value, report: &mut Report) {
    if let (Some(file), Some(digest)) = (value["file"].as_str(), value["sha256"].as_str()) {
        report.files += 1;
        match read(&folder.join(file)) {
            Err(e) => report.failures.push(e),
            Ok(bytes) => {
                if value["bytes"]
                    .as_u64()
                    .is_some_and(|n| n != bytes.len() as u64)
                {
                    let (n, path) = (bytes.len(), folder.join(file));
                    report.failures.push(format!(
                        "{}: {} bytes promised, {n} found",
                        path.display(),
                        value["bytes"]
                    ));
                } else if sha256(&bytes) != digest {
                    report
                        .failures
                        .push(format!("{}: sha256 differs", folder.join(file).display()));
                }
            }
        }
    }
    match value {
        Value::Array(items) => items.iter().for_each(|v| verify_files(folder, v, report)),
        Value::Object(map) => map.values().for_each(|v| verify_files(folder, v, report)),
        _ => {}
    }
}

/// Verifies the digests of the manifests themselves, where the top manifest gives them.
fn verify_manifests(vectors: &Vectors, report: &mut Report) {
    let top = json(&vectors.root.join("manifest.json")).unwrap_or_default();
    let Some(formats) = top["formats"].as_object() else {
        report
            .notes
            .push("manifest.json of the folder does not give the digests of the manifests");
        return;
    };
    for (folder, promised) in formats {
        let Some(digest) = promised["manifest_sha256"].as_str() else {
            continue;
        };
        match read(&vectors.root.join(folder).join("manifest.json")) {
            Ok(bytes) if sha256(&bytes) == digest => {
                let found = vectors.entries(folder).len() as u64;
                if promised["entries"].as_u64().is_some_and(|n| n != found) {
                    report.failures.push(format!(
                        "{folder}: {} entries promised, {found} found",
                        promised["entries"]
                    ));
                }
            }
            Ok(_) => report
                .failures
                .push(format!("{folder}/manifest.json: sha256 differs")),
            Err(e) => report.failures.push(e),
        }
    }
}

fn run(root: &Path) -> Result<Report, String> {
    let vectors = Vectors::open(root)?;
    let mut report = Report::default();
    verify_manifests(&vectors, &mut report);
    for (folder, manifest) in &vectors.manifests {
        verify_files(&root.join(folder), manifest, &mut report);
        let mut line = Line {
            folder: folder.clone(),
            ..Line::default()
        };
        let mut checks: Vec<(String, Checked)> = Vec::new();
        let named = |e: &Value| {
            let name = e["packed"]["file"]
                .as_str()
                .or(e["name"].as_str())
                .or(e["input"].as_str());
            name.unwrap_or("?").to_owned()
        };
        let entries = vectors.entries(folder);
        let cases = vectors.cases(folder);
        match (folder.as_str(), packing_of(folder)) {
            ("mlx-affine-2bit-g128", Some(packing)) => {
                line.against = packing.name().to_owned();
                checks.extend(
                    cases
                        .iter()
                        .map(|c| (named(c), check_affine(&vectors, folder, c))),
                );
            }
            ("stq1_0", Some(packing)) => {
                line.against = packing.name().to_owned();
                checks.extend(
                    entries
                        .iter()
                        .map(|e| (named(e), check_one_in_four(&vectors, folder, packing, e))),
                );
            }
            (_, Some(packing)) if !cases.is_empty() => {
                line.against = packing.name().to_owned();
                checks.extend(
                    cases
                        .iter()
                        .map(|c| (named(c), check_blocks(&vectors, folder, packing, c))),
                );
            }
            ("prism-hadamard", _) => {
                line.against = "every kernel".to_owned();
                checks.extend(
                    cases
                        .iter()
                        .map(|c| (named(c), check_rotation(&vectors, folder, c))),
                );
            }
            ("cross-g128", _) => {
                line.against = "each other".to_owned();
                checks.extend(check_one_in_all(&vectors, folder, manifest));
            }
            (_, Some(packing)) => {
                line.against = packing.name().to_owned();
                checks.extend(
                    entries
                        .iter()
                        .map(|e| (named(e), check_packed(&vectors, folder, packing, e))),
                );
            }
            ("inputs", _) => {
                line.against = "itself".to_owned();
                checks.extend(entries.iter().map(|e| (named(e), check_input(&vectors, e))));
            }
            ("hf-bf16", _) => {
                line.against = "absmean".to_owned();
                checks.extend(
                    entries
                        .iter()
                        .map(|e| (named(e), check_master(&vectors, e))),
                );
            }
            ("hf-act", _) => {
                line.against = "absmax".to_owned();
                checks.extend(
                    entries
                        .iter()
                        .map(|e| (named(e), check_activations(&vectors, e))),
                );
            }
            ("gguf-files", _) => {
                line.against = "by type id".to_owned();
                for e in entries {
                    let file = e["file"].as_str().unwrap_or("?");
                    let bytes = read(&root.join(folder).join(file)).unwrap_or_default();
                    let ternary = e["tensors"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter(|t| t["trits_sha256"].is_string());
                    checks.extend(ternary.map(|t| {
                        (
                            format!("{file} {}", t["name"]),
                            check_gguf_tensor(&bytes, e, t),
                        )
                    }));
                }
            }
            _ => {
                let count = entries.len().max(cases.len()).max(1);
                let wait = || Ok(Outcome::Skipped("not yet".to_owned()));
                checks.extend((0..count).map(|_| (String::new(), wait())));
            }
        }
        line.entries = checks.len();
        for (name, checked) in checks {
            match checked {
                Ok(Outcome::Passed) => line.passed += 1,
                Ok(Outcome::Refused) => line.refused += 1,
                Ok(Outcome::Skipped(why)) => *line.skipped.entry(why).or_default() += 1,
                Err(e) => report.failures.push(format!("{folder}/{name}: {e}")),
            }
        }
        report.lines.push(line);
    }
    Ok(report)
}

#[test]
fn vectors_hold_both_ways() {
    let root = vectors_dir();
    let report = run(&root).expect("a folder of vectors");
    report.print();
    assert!(
        report.failures.is_empty(),
        "{} failures:\n{}",
        report.failures.len(),
        report.failures.join("\n")
    );
    assert!(
        report.usable() > 0,
        "{}: no entry that a registered format can use",
        root.display()
    );
}

#[test]
fn every_packing_has_its_file_its_page_and_its_vectors() {
    let root = repository();
    let vectors = Vectors::open(&root.join("formats/vectors")).expect("the repository's vectors");
    for packing in PACKINGS {
        let name = packing.name();
        // siblings (`i2_s-arm64`) share the file and the page of their stem
        let stem = name.split('-').next().unwrap_or(name);
        for path in [
            format!("crates/bitnet-formats/src/packing/{stem}.rs"),
            format!("formats/packing/{stem}.md"),
        ] {
            assert!(root.join(&path).is_file(), "packing `{name}` has no {path}");
        }
        let count: usize = vectors
            .manifests
            .keys()
            .filter(|f| {
                packing_of(f).is_some_and(|p| p.name() == name || same_bytes(p.name()) == name)
            })
            .map(|f| vectors.entries(f).len() + vectors.cases(f).len())
            .sum();
        assert!(count > 0, "packing `{name}` has no vectors");
    }
}

/// The checker must be able to fail.
#[test]
fn a_damaged_or_empty_folder_is_noticed() {
    let source = repository().join("formats/vectors");
    let dir = tempfile::tempdir().expect("a temporary folder");
    assert_eq!(run(dir.path()).expect("an empty folder").usable(), 0);
    for folder in ["inputs", "tq2_0"] {
        std::fs::create_dir(dir.path().join(folder)).expect("a folder");
        for file in std::fs::read_dir(source.join(folder)).expect("vectors") {
            let file = file.expect("a vector");
            std::fs::copy(file.path(), dir.path().join(folder).join(file.file_name()))
                .expect("a copy");
        }
    }
    let clean = run(dir.path()).expect("two folders");
    assert_eq!(clean.failures, [] as [String; 0]);
    let vectors = Vectors::open(dir.path()).expect("two folders");
    let entry = &vectors.entries("tq2_0")[0];
    let victim = dir
        .path()
        .join("tq2_0")
        .join(entry["packed"]["file"].as_str().expect("a file"));
    let mut bytes = read(&victim).expect("its bytes");
    bytes[1] ^= 0b10;
    std::fs::write(&victim, &bytes).expect("written");
    let damaged = run(dir.path()).expect("two folders");
    // once by its digest, once by what it says
    assert_eq!(damaged.failures.len(), 2, "{:?}", damaged.failures);
}
