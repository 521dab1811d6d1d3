//! Outputs appear whole or not at all, whatever happens to the program.
//!
//! Invariant: after SIGKILL at any moment a path holds what it held before or the whole output; after
//! SIGINT nothing but that is left in the directory either.

#![cfg(unix)]

use bitnet_tests::fixtures::checkpoint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const SOURCE: &str = "falcon-e-prequantized";
const OTHER: &str = "falcon-e";

fn start(source: &str, output: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_convert_under_test"))
        .arg(checkpoint(source))
        .arg("-o")
        .arg(output)
        .args(["--quiet", "--force", "--ternary-trained"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn convert(source: &str, output: &Path) {
    assert!(start(source, output).wait().unwrap().success());
}

/// The bytes of a file, or of every file of a directory; `None` when there is nothing.
fn content(path: &Path) -> Option<BTreeMap<PathBuf, Vec<u8>>> {
    if path.is_dir() {
        let files = std::fs::read_dir(path).unwrap().map(|e| {
            let path = e.unwrap().path();
            (
                path.file_name().unwrap().into(),
                std::fs::read(path).unwrap(),
            )
        });
        return Some(files.collect());
    }
    Some(BTreeMap::from([(
        PathBuf::new(),
        std::fs::read(path).ok()?,
    )]))
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// How long one conversion takes here, fsync included.
fn duration(output: &Path) -> Duration {
    convert(SOURCE, output);
    let started = Instant::now();
    convert(SOURCE, output);
    started.elapsed()
}

/// Moments spread over a conversion and a little beyond, the same in every run of the test.
fn moments(whole: Duration, count: u32) -> impl Iterator<Item = Duration> {
    let mut state = 0x9e37_79b9u32;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        whole.mul_f64(f64::from(state % 1200) / 1000.0)
    })
}

#[test]
fn kill_9_leaves_what_was_there_or_the_whole_output() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["out.gguf", "out"] {
        let output = dir.path().join(name);
        let whole = duration(&output);
        let new = content(&output).unwrap();
        convert(OTHER, &output);
        let old = content(&output).unwrap();
        assert_ne!(old, new);
        let remove = |path: &Path| {
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                let _ = std::fs::remove_file(path);
            }
        };
        let mut seen = [0; 3];
        for (n, moment) in moments(whole, 60).enumerate() {
            // half of the runs replace an older output
            remove(&output);
            let before = n % 2 == 1;
            if before {
                convert(OTHER, &output);
            }
            let mut child = start(SOURCE, &output);
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            match content(&output) {
                None => {
                    assert!(
                        !before,
                        "{name}: the old output is gone and the new one not there"
                    );
                    seen[0] += 1;
                }
                Some(found) if found == new => seen[1] += 1,
                Some(found) => {
                    assert!(
                        before && found == old,
                        "{name}: neither the old nor the new output"
                    );
                    seen[2] += 1;
                }
            }
        }
        // the moments were not all on one side
        assert!(seen[0] + seen[2] > 0, "{name}: {seen:?}");
        // the next conversion cleans up after the killed ones
        convert(SOURCE, &output);
        assert_eq!(content(&output).unwrap(), new);
        let left = names(dir.path());
        assert!(!left.iter().any(|n| n.contains("partial")), "{left:?}");
    }
}

#[test]
fn an_interrupted_conversion_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["out.gguf", "out"] {
        let output = dir.path().join(name);
        let whole = duration(&output);
        let new = content(&output).unwrap();
        let mut interrupted = 0;
        for moment in moments(whole, 30) {
            for entry in names(dir.path()) {
                let path = dir.path().join(entry);
                let _ = if path.is_dir() {
                    std::fs::remove_dir_all(path)
                } else {
                    std::fs::remove_file(path)
                };
            }
            let mut child = start(SOURCE, &output);
            std::thread::sleep(moment);
            let signalled = Command::new("kill")
                .args(["-INT", &child.id().to_string()])
                .status();
            assert!(signalled.is_ok());
            let status = child.wait().unwrap();
            // 130 by our handler, no code when the signal came before it was installed
            interrupted += u32::from(status.code() != Some(0));
            assert!(matches!(status.code(), None | Some(0 | 130)), "{status:?}");
            let left = names(dir.path());
            let known = |n: &String| *n == name || *n == format!("{name}.certificate.json");
            assert!(left.iter().all(known), "{name}: {left:?}");
            if let Some(found) = content(&output) {
                assert!(found == new, "{name}: the output is not whole");
            }
        }
        assert!(interrupted > 0, "{name}");
    }
}
