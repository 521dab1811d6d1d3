//! Runs that a caller of the library watches and ends.
//!
//! Invariant: a run that is ended leaves nothing, says `interrupted`, and never says `same`; a run that is only watched
//! gives what it gives alone.

use bitnet_cli::{ExitStatus, Observer, observed};
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{self, Ran};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Ends a run when it has heard of its progress so often.
struct Ends {
    after: u64,
    heard: AtomicU64,
    steps: Mutex<Vec<(u64, u64)>>,
}

impl Ends {
    fn after(after: u64) -> Arc<Self> {
        Arc::new(Self {
            after,
            heard: AtomicU64::new(0),
            steps: Mutex::default(),
        })
    }
}

impl Observer for Ends {
    fn progress(&self, done: u64, total: u64) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.steps.lock().unwrap().push((done, total));
    }

    fn is_cancelled(&self) -> bool {
        self.heard.load(Ordering::Relaxed) > self.after
    }
}

fn convert(source: &Path, output: &Path) -> Ran {
    let words = [
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--to",
        "gguf-i2_s",
        "--json",
    ];
    program::run(bitnet_convert::run, words.to_vec())
}

fn verify(artifact: &Path, source: &Path) -> Ran {
    let words = [
        artifact.to_str().unwrap(),
        "--against",
        source.to_str().unwrap(),
        "--json",
    ];
    program::run(bitnet_verify::run, words.to_vec())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_conversion_that_is_ended_leaves_nothing_and_can_be_repeated() {
    let (source, dir) = (checkpoint("bitnet-2b4t-bf16"), tempfile::tempdir().unwrap());
    let output = dir.path().join("m.gguf");
    let mut ended = 0;
    for after in [0, 1, 2, 5, 11] {
        let ends = Ends::after(after);
        let ran = observed(ends.clone(), || convert(&source, &output));
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        assert_eq!(ran.json()["error"]["code"], "interrupted", "{}", ran.stdout);
        assert_eq!(names(dir.path()), Vec::<String>::new());
        ended += 1;
    }
    assert_eq!(ended, 5);
    let watches = Ends::after(u64::MAX);
    let ran = observed(watches.clone(), || convert(&source, &output));
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let steps = watches.steps.lock().unwrap();
    assert!(steps.is_sorted() && steps.len() > 10, "{steps:?}");
    let bytes = fs::metadata(&output).unwrap().len();
    assert_eq!(steps.last(), Some(&(bytes, bytes)));
    let alone = dir.path().join("alone.gguf");
    assert_eq!(convert(&source, &alone).status, ExitStatus::Done);
    assert_eq!(fs::read(&alone).unwrap(), fs::read(&output).unwrap());
}

#[test]
fn a_comparison_that_is_ended_is_an_error() {
    let (source, dir) = (checkpoint("bitnet-2b4t-bf16"), tempfile::tempdir().unwrap());
    let output = dir.path().join("m.gguf");
    assert_eq!(convert(&source, &output).status, ExitStatus::Done);
    let ran = observed(Ends::after(3), || verify(&output, &source));
    assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    assert_eq!(ran.json()["status"], "error");
    assert!(ran.stdout.contains("interrupted"), "{}", ran.stdout);
    let watches = Ends::after(u64::MAX);
    let ran = observed(watches.clone(), || verify(&output, &source));
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let steps = watches.steps.lock().unwrap();
    let last = steps.last().copied().unwrap();
    assert!(last.0 == last.1 && last.1 > 0, "{steps:?}");
}
