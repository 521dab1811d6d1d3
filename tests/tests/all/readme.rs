//! README.md tells the truth: its support table is what the program prints, its tables name what is
//! there, and every command in it runs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
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
        blocks(&readme(), "text")
            .iter()
            .any(|b| b.trim_end() == printed.trim_end()),
        "README.md has no ```text block equal to `bitnet-convert list`, which prints:\n{printed}"
    );
}

#[test]
fn every_crate_has_its_row_and_every_link_its_file() {
    let text = readme();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            text.contains(&format!("`{name}`")),
            "README.md does not name crate {name}"
        );
    }
    for link in text
        .split("](")
        .skip(1)
        .map(|rest| rest.split(')').next().unwrap())
    {
        assert!(
            link.starts_with("http") || root().join(link).exists(),
            "README.md links to {link}"
        );
    }
}

#[test]
fn every_kernel_of_this_machine_has_its_row() {
    let text = readme();
    for kernel in bitnet_kernels::KERNELS {
        let row = format!("| `{}` | {} |", kernel.name, kernel.requires);
        assert!(text.contains(&row), "README.md has no row {row}");
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
        std::os::unix::fs::symlink(root().join("target"), place.path().join("target")).unwrap();
    }
    let mut ran = 0;
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
                    "scripts/demo" => "scripts/demo --built",
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
}
