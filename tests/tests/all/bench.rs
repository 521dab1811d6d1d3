//! `bitnet-run bench` says what it measured: the CPU, how tokens were found, and the tokenizer.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::repository;
use bitnet_tests::program::{Ran, run};

fn bench(more: &[&str]) -> Ran {
    let demo = repository().join("tests/fixtures/demo/checkpoint");
    let mut words = vec![
        "bench",
        demo.to_str().unwrap(),
        "-p",
        "4",
        "-n",
        "3",
        "-r",
        "1",
        "-t",
        "1",
    ];
    words.extend(more);
    let ran = run(bitnet_run::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    ran
}

#[test]
fn every_row_says_how_the_head_was_computed() {
    for (how, expected) in [
        ("auto", vec![("pp4", "full"), ("tg3", "auto")]),
        ("full", vec![("pp4", "full"), ("tg3", "full")]),
        (
            "auto,full",
            vec![("pp4", "full"), ("tg3", "full"), ("tg3", "auto")],
        ),
    ] {
        let report = bench(&["--head", how, "--json"]).json();
        let rows = report["rows"].as_array().unwrap();
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        let found: Vec<_> = rows
            .iter()
            .map(|row| (text(row, "test"), text(row, "head")))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(t, h)| (t.to_string(), h.to_string()))
            .collect();
        assert_eq!(found, expected, "{how}");
        // the full product never goes by candidates
        let screened = report["head"]["screened"].as_u64().unwrap();
        assert_eq!(screened == 0, how == "full", "{how}: {report}");
    }
    let report = bench(&["--head", "auto,full", "--json"]).json();
    let bytes = |head: &str| {
        let rows = report["rows"].as_array().unwrap();
        let row = rows
            .iter()
            .find(|r| r["test"] == "tg3" && r["head"] == head)
            .unwrap();
        row["bytes_per_token"].as_f64().unwrap()
    };
    // the demo's head: 576 rows of 256 bf16 against one byte and a little for each
    assert!(bytes("full") > bytes("auto"), "{report}");
}

#[test]
fn the_machine_and_the_tokenizer_are_named() {
    let report = bench(&["--json"]).json();
    let features = report["features"].as_array().unwrap();
    #[cfg(target_arch = "x86_64")]
    assert_eq!(
        features.iter().any(|f| f == "AVX2"),
        std::arch::is_x86_feature_detected!("avx2")
    );
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match report["cpu"].as_str() {
        Some(cpu) => assert!(model.contains(cpu), "{cpu}"),
        None => assert!(!model.contains("model name"), "{report}"),
    }
    assert_eq!(report["vocab_size"], 576);
    assert_eq!(report["tokenizer"]["vocab_size"], 576);
    assert!(report["tokenizer"]["load_seconds"].as_f64().unwrap() > 0.0);
    let people = bench(&[]);
    assert!(people.stderr.contains("cpu: "), "{}", people.stderr);
    assert!(
        people.stderr.contains("tokenizer: 576 tokens, loaded in"),
        "{}",
        people.stderr
    );
    assert!(
        features
            .iter()
            .all(|f| people.stderr.contains(f.as_str().unwrap()))
    );
}

#[test]
fn sequences_are_generated_together() {
    let report = bench(&["--sequences", "1,3", "--head", "auto,full", "--json"]).json();
    let rows = report["rows"].as_array().unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap();
            (
                text("test"),
                text("head"),
                row["sequences"].as_u64().unwrap(),
            )
        })
        .collect();
    let expected = [
        ("pp4", "full", 1),
        ("tg3", "full", 1),
        ("tg3 x3", "full", 3),
        ("tg3", "auto", 1),
        ("tg3 x3", "auto", 3),
    ];
    assert_eq!(found, expected);
    // three sequences read the weights once: of the full product each has a third
    let bytes = |row: usize| rows[row]["bytes_per_token"].as_f64().unwrap();
    assert!(bytes(2) < bytes(1) / 2.0, "{report}");
    for count in ["0", "257", "x", "1,"] {
        let demo = repository().join("tests/fixtures/demo/checkpoint");
        let words = ["bench", demo.to_str().unwrap(), "--sequences", count];
        let ran = run(bitnet_run::run, words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{count}");
        assert!(ran.stderr.contains("from 1 to 256"), "{}", ran.stderr);
    }
}

/// A tree as Linux shows it below `/sys/class/powercap`, with one package whose counter grows.
fn powercap() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let package = root.path().join("intel-rapl:0");
    std::fs::create_dir(&package).unwrap();
    for (file, text) in [
        ("name", "package-0\n"),
        ("energy_uj", "262143000000\n"),
        ("max_energy_range_uj", "262143328850\n"),
    ] {
        std::fs::write(package.join(file), text).unwrap();
    }
    root
}

#[test]
fn energy_is_measured_or_the_reason_is_said() {
    let root = powercap();
    let directory = root.path().to_str().unwrap().to_owned();
    let counter = root.path().join("intel-rapl:0/energy_uj");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        // 1 mJ for each write; the counter begins anew after 328 of them
        scope.spawn(|| {
            let mut microjoules = 262_143_000_000u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                microjoules = (microjoules + 1000) % 262_143_328_850;
                let next = root.path().join("next");
                std::fs::write(&next, format!("{microjoules}\n")).unwrap();
                std::fs::rename(next, &counter).unwrap();
            }
        });
        let report = bench(&["--energy", "--powercap", &directory, "--json"]).json();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        report
    });
    assert_eq!(report["energy"]["measured"], true);
    assert_eq!(report["energy"]["counters"][0], "package-0");
    for row in report["rows"].as_array().unwrap() {
        let joules = row["joules_per_token"].as_f64().unwrap();
        // never the 262 kJ that a subtraction across the end of the range would give
        assert!((0.0..1000.0).contains(&joules), "{row}");
    }
    let report = bench(&["--energy", "--powercap", "/nowhere", "--json"]).json();
    assert_eq!(report["energy"]["measured"], false);
    let reason = report["energy"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("/nowhere: "), "{reason}");
    assert!(report["rows"][0].get("joules_per_token").is_none());
    assert!(bench(&["--json"]).json()["energy"].is_null());
}

#[test]
fn a_verdict_says_whether_the_machine_was_quiet() {
    let noise = &bench(&["--json"]).json()["noise"];
    let reasons = noise["reasons"].as_array().unwrap();
    let verdict = if reasons.is_empty() { "quiet" } else { "noisy" };
    assert_eq!(noise["verdict"], verdict);
    #[cfg(target_os = "linux")]
    assert!((0.0..=1.0).contains(&noise["other_programs_share"].as_f64().unwrap()));
}
