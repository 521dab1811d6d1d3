//! File calls that fail, each in turn, and programs that are killed.
//!
//! Invariant: whatever call fails, a program ends with status 0 or 2 and an error that names a file, and the complete old output
//! or the complete new output is there. What a killed program leaves becomes the one or the other when the next program
//! takes the lock of the output. `BITNET_FAULTS=all` tries every call; otherwise some are left out. `--nocapture` prints the counts.

#![cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#![allow(clippy::print_stdout)]

mod power_cuts;
mod scenarios;

use self::scenarios::{Complaint, Place, SCENARIOS, Scenario, all};
use bitnet_tests::file_faults::{Fault, Shim, plant, succeed};
use bitnet_tests::fixtures::skips_foreign_fixtures;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The calls that are tried: all, or a sample, which is denser for what leaves most behind.
fn tried(fault: Fault, count: u64) -> Vec<u64> {
    let step = match (all(), fault) {
        (true, _) => 1,
        (_, Fault::Kill | Fault::Enospc) => 3,
        (_, Fault::Look) => 53,
        (_, Fault::Eio | Fault::Full) => 5,
        _ => 11,
    };
    (1..=count).step_by(step).collect()
}

/// Runs a scenario with every fault, on two threads.
fn inject(
    shim: &Shim,
    scenario: &Scenario,
    faults: &[Fault],
    counts: &Mutex<BTreeMap<Fault, [usize; 3]>>,
) -> Vec<Complaint> {
    let dir = tempfile::tempdir().unwrap();
    let first = Place::new(scenario, dir.path(), 0);
    let mut runs: Vec<(Fault, u64)> = Vec::new();
    for &fault in faults {
        let count = shim
            .count(first.command(), &first.root, &first.who, fault)
            .len() as u64;
        plant(&first.out(), &first.old);
        runs.extend(tried(fault, count).into_iter().map(|n| (fault, n)));
    }
    let next = AtomicUsize::new(0);
    let complaints = Mutex::new(Vec::new());
    let work = |place: &Place<'_>| {
        while let Some(&(fault, n)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (ended, hit) = shim.run(place.command(), &place.root, &place.who, fault, n);
            let mut counts = counts.lock().unwrap();
            let count = counts.entry(fault).or_default();
            count[0] += 1;
            count[1] += usize::from(ended.status.code() == Some(0));
            count[2] += usize::from(ended.status.code() == Some(2));
            drop(counts);
            if let Err(what) = place.check(fault, hit.as_ref(), &ended) {
                let call = hit.map(|call| format!("{} {:?}", call.name, call.paths));
                let what = format!("{}, {} {n}, {call:?}: {what}", scenario.name, fault.name());
                complaints
                    .lock()
                    .unwrap()
                    .push(what.replace(place.root.to_str().unwrap(), ""));
                plant(&place.out(), &place.old);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(&first));
        let second = Place::new(scenario, dir.path(), 1);
        work(&second);
    });
    complaints.into_inner().unwrap()
}

fn inject_all(names: &[&str]) {
    if skips_foreign_fixtures() {
        return;
    }
    let Some(shim) = Shim::build() else {
        return;
    };
    let mut complaints = Vec::new();
    let mut table = String::new();
    for name in names {
        let scenario = SCENARIOS
            .iter()
            .find(|scenario| scenario.name == *name)
            .unwrap();
        let counts = Mutex::new(BTreeMap::new());
        let started = Instant::now();
        complaints.extend(inject(&shim, scenario, &Fault::ALL, &counts));
        for (fault, [runs, done, errors]) in counts.into_inner().unwrap() {
            let _ = writeln!(
                table,
                "{name:32} {:8} {runs:5} runs, {done:5} done, {errors:5} errors",
                fault.name()
            );
            assert!(runs > 0);
        }
        let _ = writeln!(table, "{name:32} {:.1} s", started.elapsed().as_secs_f64());
    }
    println!("{table}");
    assert!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}

#[test]
fn conversions_leave_the_old_or_the_new_output() {
    inject_all(&[
        "GGUF, new",
        "GGUF over an older one",
        "signed GGUF over a signed one",
        "split GGUF over an older one",
        "split GGUF over a whole one",
        "directory over an older one",
        "GGUF, reading by range",
    ]);
}

#[test]
fn jobs_leave_the_old_or_the_new_output() {
    inject_all(&["plan", "job", "finish"]);
}

#[test]
fn runs_leave_the_old_or_the_new_output() {
    inject_all(&["logits", "answers of a batch"]);
}

#[test]
fn kill_9_at_any_moment_leaves_the_old_or_the_new_output() {
    if skips_foreign_fixtures() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "GGUF over an older one",
        "split GGUF over an older one",
        "directory over an older one",
        "finish",
    ];
    let count = if all() { 1000 } else { 40 };
    let mut random = bitnet_tests::random::Random(9);
    let mut complaints = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let scenario = SCENARIOS
            .iter()
            .find(|scenario| scenario.name == *name)
            .unwrap();
        let place = Place::new(scenario, dir.path(), n);
        let started = Instant::now();
        succeed(&mut place.command());
        let whole = started.elapsed();
        plant(&place.out(), &place.old);
        let mut killed = 0;
        for _ in 0..count / names.len() {
            let moment = whole.mul_f64(random.below(1200) as f64 / 1000.0);
            let mut child = place
                .command()
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::thread::sleep(moment.max(Duration::from_micros(1)));
            child.kill().unwrap();
            let ended = child.wait_with_output().unwrap();
            killed += usize::from(ended.status.code().is_none());
            if let Err(what) = place.check(Fault::Kill, None, &ended) {
                complaints.push(format!("{name}, {moment:?}: {what}"));
                plant(&place.out(), &place.old);
            }
        }
        println!("{name}: {killed} of {} killed", count / names.len());
        assert!(killed > 0);
    }
    assert!(
        complaints.is_empty(),
        "{} complaints:\n{}",
        complaints.len(),
        complaints.join("\n")
    );
}
