//! What `bitnet-verify` writes beside its answer: pages, baselines, settings, and the step of a CI server.
//!
//! Invariant: every form of a report says the verdict that the exit status says.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{checkpoint, repository};
use bitnet_tests::program::{Ran, run};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const FAMILY: &str = "bitnet-2b4t-packed";

fn golden() -> PathBuf {
    checkpoint(FAMILY).with_file_name("golden")
}

fn converted(dir: &Path) -> PathBuf {
    let output = dir.join("model.gguf");
    let (source, out) = (checkpoint(FAMILY), output.to_str().unwrap());
    let words = [source.to_str().unwrap(), "-o", out, "--to", "gguf-i2_s"];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    output
}

/// The same file with one trit of a linear changed.
fn damaged(artifact: &Path) -> PathBuf {
    let file = bitnet_formats::open(artifact, &bitnet_formats::Limits::default()).unwrap();
    let linear = file.tensor("blk.0.ffn_down.weight").expect("a linear");
    let at = linear.offset as usize;
    let mut bytes = std::fs::read(artifact).unwrap();
    // of two codes 0, 1, 2 the low bit of the lowest: never code 3 for a code below 2
    let byte = (at..).find(|&i| bytes[i] & 3 < 2).unwrap();
    bytes[byte] ^= 1;
    let path = artifact.with_file_name("damaged.gguf");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn verify(artifact: &Path, words: &[&str]) -> Ran {
    let source = checkpoint(FAMILY);
    let fixed = [
        artifact.to_str().unwrap(),
        "--against",
        source.to_str().unwrap(),
    ];
    run(bitnet_verify::run, fixed.iter().chain(words))
}

#[test]
fn pages_say_what_the_exit_status_says() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = converted(dir.path());
    let damaged = damaged(&artifact);
    for (artifact, status, word) in [
        (artifact.as_path(), ExitStatus::Done, "Same"),
        (damaged.as_path(), ExitStatus::Different, "Different"),
        (
            Path::new("absent.gguf"),
            ExitStatus::CouldNot,
            "Could not compare",
        ),
    ] {
        let (html, markdown) = (dir.path().join("r.html"), dir.path().join("r.md"));
        let written = [
            "--html",
            html.to_str().unwrap(),
            "--markdown",
            markdown.to_str().unwrap(),
        ];
        let ran = verify(artifact, &[&written[..], &["--logits", "--force"]].concat());
        assert_eq!(ran.status, status, "{}", ran.stderr);
        let (html, markdown) = (read(&html), read(&markdown));
        assert!(html.contains(&format!("<h1>{word}</h1>")), "{html}");
        assert!(markdown.starts_with(&format!("## {word}: ")), "{markdown}");
        if status == ExitStatus::Different {
            let place = "model.layers.0.mlp.down_proj.weight";
            assert!(html.contains(place) && markdown.contains(place));
        }
    }
    // nothing is overwritten unasked
    let html = dir.path().join("r.html");
    let ran = verify(&artifact, &["--html", html.to_str().unwrap()]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
}

/// Pages travel: into issues, model cards, mails.
#[test]
fn pages_say_where_they_come_from_and_name_nothing_local() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("private place");
    std::fs::create_dir(&place).unwrap();
    let artifact = converted(&place);
    let damaged = damaged(&artifact);
    let cut = place.join("cut.gguf");
    std::fs::write(&cut, &std::fs::read(&artifact).unwrap()[..5000]).unwrap();
    let (html, markdown) = (place.join("r.html"), place.join("r.md"));
    let certificate = place.join("model.gguf.certificate.json");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut local = vec![
        "private place".to_owned(),
        dir.path().display().to_string(),
        repository().display().to_string(),
        host.trim().to_owned(),
    ];
    local.extend(std::env::var("HOME"));
    local.retain(|name| name.len() > 3);
    for artifact in [&artifact, &damaged, &cut] {
        let words = [
            "--certificate",
            certificate.to_str().unwrap(),
            "--html",
            html.to_str().unwrap(),
            "--markdown",
            markdown.to_str().unwrap(),
            "--force",
            "--json",
        ];
        let ran = verify(artifact, &words);
        let (html, markdown) = (read(&html), read(&markdown));
        let name = artifact.file_name().unwrap().to_str().unwrap();
        for page in [&html, &markdown] {
            assert!(page.contains(name), "{name}: {page}");
            for local in &local {
                assert!(!page.contains(local.as_str()), "{local}: {page}");
            }
            assert!(page.contains("--against checkpoint"), "{page}");
        }
        if ran.status == ExitStatus::CouldNot {
            continue;
        }
        let provenance = &ran.json()["provenance"];
        let models = provenance["models"].as_array().unwrap();
        let roles: Vec<&str> = models.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["artifact", "source", "certified source"]);
        let sha256 = bitnet_tests::digest::sha256(&std::fs::read(artifact).unwrap());
        assert_eq!(models[0]["files"][0]["sha256"], sha256);
        assert_eq!(models[0]["format"], "gguf: i2_s");
        assert!(models[0]["bits_per_weight"].as_f64().unwrap() < 2.1);
        assert!(html.contains(&format!("<code class=\"hash\">{sha256}</code>")));
        assert!(markdown.contains(&sha256));
        // what the certificate says stands in rows
        assert!(
            html.contains("<dt>certificate of</dt><dd>bitnet-convert"),
            "{html}"
        );
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn a_baseline_fails_where_a_run_is_worse() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = converted(dir.path());
    let golden = golden();
    let with_golden = ["--golden", golden.to_str().unwrap(), "--json"];
    let before = verify(&artifact, &with_golden);
    assert_eq!(before.status, ExitStatus::Done, "{}", before.stdout);
    let baseline = dir.path().join("baseline.json");
    std::fs::write(&baseline, &before.stdout).unwrap();
    let run = |path: &Path| {
        let words = [&with_golden[..], &["--baseline", path.to_str().unwrap()]].concat();
        let ran = verify(&artifact, &words);
        let report = ran.json();
        let row = report["checks"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(row["name"], "baseline");
        (ran.status, row)
    };
    let (status, row) = run(&baseline);
    assert_eq!(status, ExitStatus::Done, "{row}");
    // an earlier run that was better than this one
    let mut better: Value = before.json();
    let kl = better["logits"]["kl_mean"].as_f64().unwrap();
    better["logits"]["kl_mean"] = (kl / 2.0).into();
    std::fs::write(&baseline, better.to_string()).unwrap();
    let (status, row) = run(&baseline);
    assert_eq!(status, ExitStatus::Different);
    assert_eq!(row["differences"][0]["place"], "logits.kl_mean", "{row}");
}

#[test]
fn a_baseline_that_is_no_report_is_malformed() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = converted(dir.path());
    let before = verify(&artifact, &["--json"]).json();
    let baseline = dir.path().join("baseline.json");
    let run = |text: &str| {
        std::fs::write(&baseline, text).unwrap();
        verify(
            &artifact,
            &["--json", "--baseline", baseline.to_str().unwrap()],
        )
    };
    let mut contradicts = before.clone();
    contradicts["status"] = "different".into();
    let mut unknown = before.clone();
    unknown["checks"][0]["status"] = "fine".into();
    let mut nothing = before.clone();
    nothing["checks"] = Value::Array(Vec::new());
    for text in [
        r#"{"a": {"ids": [1, 2, 3]}}"#,
        "[[1, 2, 3]]",
        "{}",
        "null",
        r#"{"status": "error", "error": {"code": "io", "message": "m", "hint": null}}"#,
        &contradicts.to_string(),
        &unknown.to_string(),
        &nothing.to_string(),
    ] {
        let ran = run(text);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{text}: {}", ran.stdout);
        let error = ran.json()["error"].clone();
        assert_eq!(error["code"], "malformed", "{text}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("baseline.json: "), "{message}");
        assert!(
            error["hint"].as_str().unwrap().contains("--json"),
            "{error}"
        );
    }
    assert_eq!(run(&before.to_string()).status, ExitStatus::Done);
}

#[test]
fn thresholds_come_from_a_file_and_flags_are_stronger() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = converted(dir.path());
    let golden = golden();
    let config = dir.path().join("bitnet-verify.toml");
    let words = [
        "--golden",
        golden.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
    ];
    std::fs::write(&config, "[thresholds]\nmax_kl = 1e-12\n").unwrap();
    let strict = verify(&artifact, &words);
    assert_eq!(strict.status, ExitStatus::Different, "{}", strict.stdout);
    assert!(
        strict.stderr.contains("bitnet-verify.toml"),
        "{}",
        strict.stderr
    );
    let flag = verify(&artifact, &[&words[..], &["--max-kl", "1"]].concat());
    assert_eq!(flag.status, ExitStatus::Done, "{}", flag.stdout);
    std::fs::write(&config, "[thresholds]\nmax_lk = 1\n").unwrap();
    let typo = verify(&artifact, &words);
    assert_eq!(typo.status, ExitStatus::CouldNot);
    assert!(typo.stderr.contains("max_lk"), "{}", typo.stderr);
}

/// The step of `scripts/verify-action`, as a CI server runs it.
#[cfg(unix)]
#[test]
fn the_step_of_the_action_reports_and_fails_with_the_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let artifact = converted(dir.path());
    let damaged = damaged(&artifact);
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let program = env!("CARGO_BIN_EXE_verify_under_test");
    std::os::unix::fs::symlink(program, bin.join("bitnet-verify")).unwrap();
    let root = repository();
    let source = checkpoint(FAMILY);
    for (artifact, code, word) in [(&artifact, 0, "same"), (&damaged, 1, "different")] {
        let (report, output) = (dir.path().join(word), dir.path().join("output"));
        let path = std::env::var("PATH").unwrap();
        let step = Command::new("bash")
            .arg(root.join("scripts/verify-action/verify"))
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("ARTIFACT", artifact)
            .env("ARGUMENTS", format!("--against {}", source.display()))
            .env("REPORT", &report)
            .env("GITHUB_OUTPUT", &output)
            .env("GITHUB_STEP_SUMMARY", dir.path().join("summary.md"))
            .output()
            .unwrap();
        assert_eq!(step.status.code(), Some(code), "{step:?}");
        let json: Value = serde_json::from_str(&read(&report.join("report.json"))).unwrap();
        assert_eq!(json["status"], word);
        for file in ["report.xml", "report.html", "report.md"] {
            assert!(report.join(file).is_file(), "{file}");
        }
        assert!(read(&output).ends_with(&format!("status={word}\n")));
    }
    let action = read(&root.join("scripts/verify-action/action.yml"));
    assert!(action.contains("using: composite") && action.contains("$GITHUB_ACTION_PATH/verify"));
}
