//! The crates as packages of a registry: what a manifest says, and that a package has every file that its code includes.
//!
//! Invariant: `cargo package` needs no file of this repository outside the folder of its crate, except the README.
//! `scripts/rooms` lists the files of every package with cargo.

use bitnet_tests::fixtures::repository;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Members that are for this repository alone.
const PRIVATE: [&str; 3] = ["bitnet-python", "bitnet-tests", "bitnet-fuzz-targets"];

/// Name, folder and manifest of every member of the workspace.
fn members() -> BTreeMap<String, (PathBuf, String)> {
    let root = repository();
    let crates = fs::read_dir(root.join("crates")).unwrap();
    let mut folders: Vec<PathBuf> = crates.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.is_dir());
    folders.extend([root.join("tests"), root.join("tests/fuzz/targets")]);
    let read = |folder: PathBuf| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let name = value(&manifest, "name").unwrap().to_owned();
        (name, (folder, manifest))
    };
    folders.into_iter().map(read).collect()
}

/// The string of the first `KEY = "…"`.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| {
        let rest = line.strip_prefix(key)?.trim_start();
        rest.strip_prefix('=')
    })?;
    line.trim().strip_prefix('"')?.strip_suffix('"')
}

#[test]
fn every_package_says_what_a_registry_asks_for() {
    let workspace = fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let version = value(&workspace, "version").unwrap();
    for key in ["license", "readme"] {
        assert!(
            value(&workspace, key).is_some(),
            "the workspace has no {key}"
        );
    }
    let members = members();
    assert_eq!(members.len(), 13 + PRIVATE.len());
    for (name, (_, manifest)) in &members {
        let description = value(manifest, "description").unwrap_or_default();
        assert!(
            (10..=200).contains(&description.len()),
            "{name}: {description:?}"
        );
        let has = |line: &str| manifest.lines().any(|l| l == line);
        assert!(
            has("license.workspace = true") && has("version.workspace = true"),
            "{name}"
        );
        assert_eq!(has("publish = false"), PRIVATE.contains(&&**name), "{name}");
        if PRIVATE.contains(&&**name) {
            continue;
        }
        for key in ["readme", "keywords", "include", "rust-version"] {
            assert!(
                has(&format!("{key}.workspace = true")),
                "{name} needs {key}.workspace = true"
            );
        }
        for line in manifest.lines().filter(|line| line.starts_with("bitnet-")) {
            let (needed, how) = line.split_once('.').unwrap_or((line, ""));
            assert!(how.starts_with("workspace = true"), "{name}: {line}");
            assert!(members.contains_key(needed), "{name} needs {needed}");
            assert!(
                !PRIVATE.contains(&needed),
                "{name} needs {needed}, which is not published"
            );
        }
    }
    // a path alone is no dependency of a package
    let paths = workspace
        .lines()
        .filter(|line| line.contains("path = \"crates/"));
    let mut found = 0;
    for line in paths {
        assert!(line.contains(&format!("version = \"{version}\"")), "{line}");
        found += 1;
    }
    assert!(found >= 12, "{found}");
}

/// The arguments of `include_str!` and `include_bytes!` that are literals, with the file that has them.
fn included(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            included(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for start in ["include_str!(\"", "include_bytes!(\""] {
                for (at, _) in text.match_indices(start) {
                    let name = text[at + start.len()..].split('"').next().unwrap();
                    if !name.contains('{') {
                        found.push((path.clone(), name.to_owned()));
                    }
                }
            }
        }
    }
}

#[test]
fn every_package_has_the_files_that_its_code_includes() {
    let mut count = 0;
    for (name, (folder, _)) in members() {
        if PRIVATE.contains(&&*name) {
            continue;
        }
        let folder = folder.canonicalize().unwrap();
        let mut found = Vec::new();
        included(&folder.join("src"), &mut found);
        for (file, included) in found {
            let path = file.parent().unwrap().join(&included).canonicalize();
            let path = path.unwrap_or_else(|e| panic!("{}: {included}: {e}", file.display()));
            let inside = ["src", "demo"].map(|part| folder.join(part));
            let is_inside = inside.iter().any(|part| path.starts_with(part));
            assert!(
                is_inside,
                "{} includes {included} from elsewhere",
                file.display()
            );
            count += 1;
        }
        for license in ["LICENSE-MIT", "LICENSE-APACHE"] {
            let own = fs::read(folder.join(license)).unwrap();
            assert!(
                own == fs::read(repository().join(license)).unwrap(),
                "{name}: {license}"
            );
        }
    }
    // the table of readers, a style sheet, three files of the page, six of the demo model
    assert!(count >= 11, "{count}");
}

#[test]
fn files_that_packages_have_a_copy_of_are_the_same() {
    let root = repository();
    let readers = |path: &str| fs::read(root.join(path)).unwrap();
    assert!(
        readers("formats/readers.json") == readers("crates/bitnet-convert/src/readers.json"),
        "copy formats/readers.json to crates/bitnet-convert/src/readers.json"
    );
    let files = |folder: &str| -> BTreeMap<String, Vec<u8>> {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read(path).unwrap())
            })
            .collect()
    };
    let (model, copy) = (
        files("tests/fixtures/demo/packed"),
        files("crates/bitnet-run/demo"),
    );
    assert!(model.contains_key("model.safetensors"));
    assert_eq!(
        model.keys().collect::<Vec<_>>(),
        copy.keys().collect::<Vec<_>>()
    );
    assert!(
        model == copy,
        "copy tests/fixtures/demo/packed to crates/bitnet-run/demo"
    );
    // and the program takes every one
    let code = fs::read_to_string(root.join("crates/bitnet-run/src/demo.rs")).unwrap();
    for name in model.keys() {
        assert!(
            code.contains(&format!("include_bytes!(\"../demo/{name}\")")),
            "{name}"
        );
    }
}
