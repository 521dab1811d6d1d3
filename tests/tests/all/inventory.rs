//! The tables of crates/README.md: direct dependencies, and `unsafe` in each file.
//!
//! Invariant: a row for everything that is there, and nothing else; the failure shows the row to write.

use bitnet_tests::fixtures::repository;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The rows of a section of crates/README.md, cell by cell.
fn table(section: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(repository().join("crates/README.md")).unwrap();
    let (_, behind) = text.split_once(&format!("\n## {section}\n")).unwrap();
    behind
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .skip(1)
        .map(|row| row.split(" | ").map(str::to_owned).collect())
        .collect()
}

/// The packages that a manifest names in its tables of dependencies, and whether only tests need them.
fn dependencies(manifest: &str) -> BTreeMap<String, bool> {
    let mut found = BTreeMap::new();
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if section.ends_with("dependencies")
            && let Some((key, _)) = line.split_once('=')
            && !line.starts_with('#')
        {
            let name = key.trim().trim_end_matches(".workspace");
            let tests_only = section.ends_with("dev-dependencies");
            let known = found.entry(name.to_owned()).or_insert(tests_only);
            *known &= tests_only;
        }
    }
    found
}

#[test]
fn every_direct_dependency_has_its_row() {
    let root = repository();
    let mut manifests: Vec<(String, PathBuf)> = fs::read_dir(root.join("crates"))
        .unwrap()
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir())
        .map(|e| {
            let name = e.file_name().into_string().unwrap();
            (
                name.trim_start_matches("bitnet-").to_owned(),
                e.path().join("Cargo.toml"),
            )
        })
        .collect();
    manifests.push(("tests".to_owned(), root.join("tests/Cargo.toml")));
    manifests.sort();
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, manifest) in manifests {
        for (package, tests_only) in dependencies(&fs::read_to_string(manifest).unwrap()) {
            if !package.starts_with("bitnet-") {
                let user = format!("{name}{}", if tests_only { " (tests)" } else { "" });
                users.entry(package).or_default().push(user);
            }
        }
    }
    assert!(users.len() > 30, "{users:?}");
    let rows = table("Dependencies");
    for (package, users) in &users {
        let users = users.join(", ");
        let row = rows.iter().find(|row| row[0] == format!("`{package}`"));
        assert!(
            row.is_some_and(|row| row[2] == users && row[1].contains('/') && !row[3].is_empty()),
            "crates/README.md needs the row `| `{package}` | OWNER/REPOSITORY | {users} | WHAT FOR |`, and has {row:?}"
        );
    }
    for row in &rows {
        let name = row[0].trim_matches('`');
        assert!(users.contains_key(name), "no crate depends on {name}");
    }
    assert_eq!(rows.len(), users.len(), "a package has two rows");
    // C code is named
    let lock = fs::read_to_string(root.join("Cargo.lock")).unwrap();
    let text = fs::read_to_string(root.join("crates/README.md")).unwrap();
    for native in ["onig_sys", "ring"] {
        assert!(
            lock.contains(&format!("name = \"{native}\"")) && text.contains(&format!("`{native}`"))
        );
    }
}

/// `.github/SECURITY.md` names the limits that are in force.
#[test]
fn the_threat_model_names_the_limits() {
    let text = fs::read_to_string(repository().join(".github/SECURITY.md")).unwrap();
    let limits = bitnet_formats::Limits::default();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let (config, side, index) = (
        mib(limits.config_bytes),
        mib(limits.side_file_bytes),
        mib(limits.json_bytes),
    );
    for row in [
        format!(
            "| PyTorch pickles | {}, 64 levels",
            mib(limits.pickle_bytes)
        ),
        format!("| `config.json`, tokenizers, indexes | {config}, {side}, {index} |"),
    ] {
        assert!(text.contains(&row), "{row}");
    }
}

#[test]
fn a_manifest_is_read_as_cargo_reads_it() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\nb = { version = \"1\", optional = true }\n\
                    # c = \"1\"\n[target.'cfg(unix)'.dependencies]\nd = \"1\"\n[dev-dependencies]\na.workspace = true\ne = \"1\"\n\
                    [features]\nf = []\n";
    let found = dependencies(manifest);
    let expected = [("a", false), ("b", false), ("d", false), ("e", true)];
    assert_eq!(
        found,
        expected
            .map(|(name, tests)| (name.to_owned(), tests))
            .into()
    );
}

/// The blocks, implementations and foreign declarations that are `unsafe`, comments left out.
fn unsafe_blocks(code: &str) -> usize {
    let code: Vec<&str> = code
        .lines()
        .map(|l| l.split("//").next().unwrap())
        .collect();
    let code = code.join("\n");
    code.match_indices("unsafe")
        .filter(|(at, word)| {
            let before = code[..*at].chars().next_back();
            let is_word = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '"');
            let behind = &code[at + word.len()..];
            let next = behind.trim_start();
            let starts = |keyword: &str| behind != next && next.starts_with(keyword);
            is_word && (next.starts_with('{') || starts("impl") || starts("extern"))
        })
        .count()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_file_with_unsafe_code_has_its_row() {
    let root = repository().canonicalize().unwrap();
    let mut files = Vec::new();
    rust_files(&root.join("crates"), &mut files);
    rust_files(&root.join("tests/src"), &mut files);
    rust_files(&root.join("tests/pool-model/src"), &mut files);
    rust_files(&root.join("tests/fuzz/targets/src"), &mut files);
    let mut counted: BTreeMap<String, usize> = BTreeMap::new();
    for path in files {
        let count = unsafe_blocks(&fs::read_to_string(&path).unwrap());
        if count > 0 {
            let name = path.strip_prefix(&root).unwrap();
            let name = name.strip_prefix("crates").unwrap_or(name);
            counted.insert(name.display().to_string(), count);
        }
    }
    let rows = table("Unsafe code");
    for (file, count) in &counted {
        let row = rows.iter().find(|row| row[0] == format!("`{file}`"));
        assert!(
            row.is_some_and(|row| row[1] == count.to_string() && !row[2].is_empty()),
            "crates/README.md needs the row `| `{file}` | {count} | WHAT |`, and has {row:?}"
        );
    }
    for row in &rows {
        let file = row[0].trim_matches('`');
        assert!(counted.contains_key(file), "{file} has no unsafe code");
    }
    assert_eq!(rows.len(), counted.len(), "a file has two rows");
}

#[test]
fn what_counts_as_unsafe_code() {
    for (code, count) in [
        ("unsafe { x }", 1),
        (
            "unsafe{ x }\nunsafe impl Send for X {}\nunsafe extern \"C\" {}",
            3,
        ),
        ("unsafe fn f() {}\ntype F = unsafe fn();", 0),
        ("// unsafe { x }\n/// unsafe { x }", 0),
        (
            "#![forbid(unsafe_code)] #![deny(unsafe_op_in_unsafe_fn)]",
            0,
        ),
        ("let x = unsafe {\n y };", 1),
    ] {
        assert_eq!(unsafe_blocks(code), count, "{code}");
    }
}
