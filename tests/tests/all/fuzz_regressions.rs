//! Every input that a fuzzer once found something with, read again; and the checks that fuzzing relies on.
//!
//! Invariant: the inputs are read by the functions that are fuzzed (`tests/fuzz/targets`), twice, with the same limits of
//! memory and time.

use bitnet_fuzz_targets::{Record, TARGETS, Target, directory, seeds, target_by_name};
use bitnet_tests::counting::peak_of;
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

fn files(folder: &str) -> Vec<(&'static Target, String, Vec<u8>)> {
    let mut all = Vec::new();
    let root = directory().join(folder);
    for entry in fs::read_dir(&root).unwrap() {
        let dir = entry.unwrap().path();
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let target = target_by_name(&name).unwrap_or_else(|| panic!("no target `{name}`"));
        for file in fs::read_dir(&dir).unwrap() {
            let path = file.unwrap().path();
            all.push((target, path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    all
}

#[test]
fn what_once_failed_passes() {
    let inputs = files("regressions");
    assert!(!inputs.is_empty());
    let mut failed = Vec::new();
    for (target, path, bytes) in inputs {
        let run = AssertUnwindSafe(|| target.examine(&bytes, true, peak_of));
        if catch_unwind(run).is_err() {
            failed.push(path);
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_target_has_seeds_that_pass() {
    let mut seen = BTreeSet::new();
    for (name, seed, bytes) in seeds::seeds() {
        let target = target_by_name(name).unwrap_or_else(|| panic!("no target `{name}`"));
        let run = AssertUnwindSafe(|| target.examine(&bytes, false, peak_of));
        assert!(catch_unwind(run).is_ok(), "{name}/{seed}");
        seen.insert(name);
    }
    let all: BTreeSet<&str> = TARGETS.iter().map(|target| target.name).collect();
    assert_eq!(seen, all);
}

#[test]
fn every_target_is_an_executable() {
    let executables = fs::read_dir(directory().join("fuzz_targets")).unwrap();
    let stems = executables.map(|e| e.unwrap().path().file_stem().unwrap().to_owned());
    let stems: BTreeSet<String> = stems.map(|s| s.to_string_lossy().into_owned()).collect();
    let mut all: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    all.insert("seeds".to_owned());
    assert_eq!(stems, all);
}

#[test]
fn memory_and_differences_are_noticed() {
    let fails = |read: fn(&[u8], &mut Record), says: &str| {
        let target = Target::new("planted", read);
        let run = AssertUnwindSafe(|| target.examine(b"x", true, peak_of));
        let panic = catch_unwind(run).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains(says), "{text}");
    };
    fails(
        |_, _| drop(std::hint::black_box(vec![1u8; 17 << 20])),
        "bytes of memory",
    );
    fails(
        |_, record| record.note(&std::time::Instant::now()),
        "different results",
    );
    fails(|_, record| record.error(&"two\nlines"), "not one line");
    let mut slow = Target::new("planted", |_, _| {
        let mut n = 1u64;
        for _ in 0..1_000_000_000u64 {
            n = std::hint::black_box(n.wrapping_mul(3));
        }
    });
    slow.most_time = Duration::from_millis(20);
    let run = AssertUnwindSafe(|| slow.examine(b"x", true, peak_of));
    let panic = catch_unwind(run).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("at most 20ms are allowed"), "{text}");
    let fine = Target::new("planted", |_, record| record.note(&1));
    fine.examine(b"x", true, peak_of);
}
