//! README.md and the pages that it links to tell the truth.
//!
//! Invariant: the tables of `formats/support.md` are what the programs print, every link has its file,
//! every command of README.md runs, and the chart shows the measurement beside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn page(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

fn readme() -> String {
    page("README.md")
}

/// The contents of all fenced blocks with this language tag.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    text.split(fence.as_str())
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

fn convert_list() -> String {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = ["bitnet-convert", "list"].map(OsString::from);
    let status = bitnet_convert::run(args.into_iter(), &mut out, &mut err);
    assert_eq!(status.code(), 0, "{}", String::from_utf8_lossy(&err));
    String::from_utf8(out).unwrap()
}

#[test]
fn the_support_table_is_what_the_program_prints() {
    let printed = convert_list();
    assert!(
        blocks(&page("formats/support.md"), "text")
            .iter()
            .any(|b| b.trim_end() == printed.trim_end()),
        "formats/support.md has no ```text block equal to `bitnet-convert list`, which prints:\n{printed}"
    );
    let text = readme();
    for line in printed.lines().skip(1).take_while(|line| !line.is_empty()) {
        let target = line.split_whitespace().next().unwrap();
        assert!(
            text.contains(&format!("`{target}`")),
            "README.md does not name the target {target}"
        );
    }
    assert!(text.lines().count() < 150, "README.md is short");
}

#[test]
fn chart_and_tables_show_the_measurement() {
    let output = Command::new("python3")
        .args(["scripts/bench-report", "--check"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Markdown files that people read first, and every page of `formats/`.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = [
        "README.md",
        "crates/README.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
    ]
    .map(PathBuf::from)
    .into();
    let mut folders = vec![PathBuf::from("formats")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let name = folder.join(entry.unwrap().file_name());
            if root().join(&name).is_dir() {
                folders.push(name);
            } else if name.extension().is_some_and(|e| e == "md") {
                pages.push(name);
            }
        }
    }
    pages
}

#[test]
fn every_crate_has_its_row_and_every_link_its_file() {
    let text = readme();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            !entry.path().is_dir() || text.contains(&format!("`{name}`")),
            "README.md does not name crate {name}"
        );
    }
    let crates = page("crates/README.md");
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            !entry.path().is_dir() || crates.contains(&format!("`{name}`")),
            "crates/README.md does not name crate {name}"
        );
    }
    let mut links = 0;
    for path in pages() {
        let text = std::fs::read_to_string(root().join(&path)).unwrap();
        for link in text
            .split("](")
            .skip(1)
            .map(|rest| rest.split([')', '#']).next().unwrap())
        {
            links += 1;
            let file = path.parent().unwrap_or(Path::new("")).join(link);
            assert!(
                link.starts_with("http") || root().join(file).exists(),
                "{} links to {link}",
                path.display()
            );
        }
    }
    assert!(links > 50, "only {links} links were found");
}

#[test]
fn every_kernel_of_this_machine_has_its_row() {
    let text = page("formats/support.md");
    for kernel in bitnet_kernels::KERNELS {
        let row = format!("| `{}` | {} |", kernel.name, kernel.requires);
        assert!(text.contains(&row), "formats/support.md has no row {row}");
    }
}

/// Every line of every `sh` block. The published checkpoint that the text names is a fixture here;
/// `scripts/check` is what runs this test, so that it exists and can be executed has to do.
#[test]
fn every_command_runs() {
    let bin = root().join("target/release");
    if cfg!(debug_assertions) || !bin.join("bitnet-run").exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--workspace", "--bins"])
            .current_dir(root())
            .status()
            .unwrap();
        assert!(built.success());
    }
    let place = tempfile::tempdir().unwrap();
    let fixture = root().join("tests/fixtures/bitnet-2b4t-bf16/checkpoint");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&fixture, place.path().join("bitnet-b1.58-2B-4T")).unwrap();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        std::os::unix::fs::symlink(root().join(target), place.path().join("target")).unwrap();
    }
    let (mut ran, mut demos) = (0, 0);
    for line in blocks(&readme(), "sh").iter().flat_map(|b| b.lines()) {
        let command = line.split('#').next().unwrap().trim();
        match command {
            "" => continue,
            "scripts/check" | "scripts/readers-check" => {
                use std::os::unix::fs::PermissionsExt;
                let mode = std::fs::metadata(root().join(command))
                    .unwrap()
                    .permissions()
                    .mode();
                assert!(mode & 0o111 != 0, "{command} is not executable");
            }
            // done above or by whoever built this test; cargo would resolve other features without the tests and
            // compile everything once more
            "cargo build --release" => ran += 1,
            _ => {
                let command = match command {
                    "scripts/demo" => {
                        demos += 1;
                        "scripts/demo --built"
                    }
                    other => other,
                };
                let here = command.starts_with("scripts/") || command.starts_with("cargo ");
                let directory = if here {
                    root()
                } else {
                    place.path().to_owned()
                };
                let output = Command::new("bash")
                    .args(["-c", command])
                    .current_dir(directory)
                    .output()
                    .unwrap();
                assert!(
                    output.status.success(),
                    "{command}\n{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
                ran += 1;
            }
        }
    }
    assert!(ran >= 4, "README.md shows only {ran} commands");
    // the only place where the tests run it
    assert_eq!(demos, 1, "README.md does not show scripts/demo once");
}
