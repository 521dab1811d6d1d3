//! The table of checks: every row is documented and finds a fault that is planted for it.
//!
//! Invariant: a row without a fault here fails the test, so a new check brings its own.

use bitnet_cli::ExitStatus;
use bitnet_convert::TARGETS;
use bitnet_tests::conversions::{certificate_of, convert};
use bitnet_tests::fixtures::{Fixture, fixture, fixtures_are_foreign, read_json, repository};
use bitnet_tests::flips::flip;
use bitnet_tests::program::{Program, run};
use bitnet_verify::CHECKS;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const PACKED: &str = "bitnet-2b4t-packed";
const LINEAR: &str = "blk.0.ffn_down.weight";

/// What a check has to find.
enum Planted {
    /// A fault of files: the report of a run that meets it.
    Files(fn(&Path) -> Value),
    /// A note about files, which is never a difference.
    Note(fn(&Path) -> Value),
    /// A fault that no file can have: the name of the test beside the check.
    Beside(&'static str),
}

/// One for each check.
const PLANTED: &[(&str, Planted)] = &[
    ("structure", Planted::Files(another_network)),
    ("metadata", Planted::Files(another_rope_theta)),
    ("trits", Planted::Files(a_trit)),
    ("scales", Planted::Files(a_scale)),
    ("encoding", Planted::Files(a_byte_that_no_encoder_writes)),
    ("dense", Planted::Files(a_norm)),
    ("digest", Planted::Files(a_trit_against_the_certificate)),
    ("files", Planted::Note(certificates_of_two_containers)),
    ("signature", Planted::Files(a_key_that_is_not_trusted)),
    ("kernels", Planted::Beside("a_wrong_sum_is_found")),
    ("golden", Planted::Files(a_trit_against_the_record)),
    ("other-runtime", Planted::Files(logits_of_another_network)),
    ("logits", Planted::Files(a_trit_with_logits)),
];

#[test]
fn every_check_is_documented_and_finds_a_planted_fault() {
    let planted: Vec<&str> = PLANTED.iter().map(|(name, _)| *name).collect();
    let checks: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(planted, checks, "one fault for each check, in their order");
    let page = fs::read_to_string(repository().join("formats/report.md")).unwrap();
    for check in CHECKS {
        let line = format!("| `{}` | {} |", check.name, check.what);
        assert!(page.contains(&line), "formats/report.md lacks {line}");
    }
    for (name, fault) in PLANTED {
        let (found, expected) = match fault {
            Planted::Beside(test) => {
                let file = format!("crates/bitnet-verify/src/checks/{name}.rs");
                let text = fs::read_to_string(repository().join(file)).unwrap();
                assert!(text.contains(&format!("fn {test}()")), "{name}: {test}");
                continue;
            }
            _ if fixtures_are_foreign() => continue,
            Planted::Files(report) => (report, "different"),
            Planted::Note(report) => (report, "skipped"),
        };
        let dir = tempfile::tempdir().unwrap();
        let report = found(dir.path());
        let rows = report["checks"].as_array().unwrap().iter();
        // a check that has several rows begins each with its name
        let own = |row: &&Value| {
            let rest = row["name"].as_str().unwrap().strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let statuses: Vec<&Value> = rows.filter(own).map(|row| &row["status"]).collect();
        assert!(
            statuses.iter().any(|s| *s == expected),
            "{name}: {report:#}"
        );
    }
}

fn source() -> Fixture {
    fixture(PACKED).expect("a fixture")
}

fn converted(to: &str, dir: &Path) -> PathBuf {
    let target = TARGETS.iter().find(|t| t.name == to).unwrap();
    let dir = dir.join(to);
    fs::create_dir_all(&dir).unwrap();
    convert(&source(), target, &dir).expect("a conversion")
}

fn report(program: Program, words: &[&dyn AsRef<std::ffi::OsStr>]) -> Value {
    let words = words.iter().map(|word| word.as_ref().to_owned());
    let flags = [OsString::from("--json"), "-j2".into()];
    let ran = run(program, words.chain(flags));
    assert_ne!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    ran.json()
}

fn verify(words: &[&dyn AsRef<std::ffi::OsStr>]) -> Value {
    report(bitnet_verify::run, words)
}

/// Where a tensor is in a file, and its bytes.
fn tensor(path: &Path, name: &str) -> (u64, Vec<u8>) {
    let file = bitnet_formats::open(path, &bitnet_formats::Limits::default()).unwrap();
    let info = file.tensor(name).expect("the tensor");
    let start = usize::try_from(info.offset).unwrap();
    let len = usize::try_from(info.len).unwrap();
    let bytes = fs::read(path).unwrap();
    (info.offset, bytes[start..start + len].to_vec())
}

/// A conversion that another key signed.
fn a_key_that_is_not_trusted(dir: &Path) -> Value {
    let keys = repository().join("tests/keys");
    let output = dir.join("m.gguf");
    let key = keys.join("signer");
    let words: [&dyn AsRef<std::ffi::OsStr>; 5] =
        [&source().checkpoint, &"-o", &output, &"--sign", &key];
    report(bitnet_convert::run, &words);
    let certificate = dir.join("m.gguf.certificate.json");
    let trusted = keys.join("stranger.pub");
    verify(&[
        &output,
        &"--certificate",
        &certificate,
        &"--trusted-keys",
        &trusted,
    ])
}

/// A conversion to I2_S with one trit of a linear changed.
fn with_another_trit(dir: &Path) -> PathBuf {
    let artifact = converted("gguf-i2_s", dir);
    let (start, bytes) = tensor(&artifact, LINEAR);
    // of two codes 0, 1, 2 the low bit of the lowest: never code 3 for a code below 2
    let at = bytes.iter().position(|byte| byte & 3 < 2).unwrap();
    std::mem::forget(flip(&artifact, start + at as u64, 0));
    artifact
}

/// A copy of the source whose configuration says something else.
fn with_another_config(dir: &Path) -> PathBuf {
    let copy = dir.join("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(source().checkpoint).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
        }
    }
    let file = copy.join("config.json");
    let mut config = read_json(&file);
    config["rope_theta"] = json!(10_000.0);
    fs::write(&file, config.to_string()).unwrap();
    copy
}

fn another_network(_: &Path) -> Value {
    let other = fixture("llama3-8b-1.58").expect("a fixture");
    verify(&[&other.checkpoint, &"--against", &source().checkpoint])
}

fn another_rope_theta(dir: &Path) -> Value {
    verify(&[
        &with_another_config(dir),
        &"--against",
        &source().checkpoint,
    ])
}

fn a_trit(dir: &Path) -> Value {
    verify(&[&with_another_trit(dir), &"--against", &source().checkpoint])
}

fn a_scale(dir: &Path) -> Value {
    let artifact = converted("gguf-i2_s", dir);
    let (start, bytes) = tensor(&artifact, LINEAR);
    // the scale stands 32 bytes before the end
    let at = start + bytes.len() as u64 - 32;
    std::mem::forget(flip(&artifact, at, 3));
    verify(&[&artifact, &"--against", &source().checkpoint])
}

fn a_byte_that_no_encoder_writes(dir: &Path) -> Value {
    let artifact = converted("gguf-tq1_0", dir);
    let (start, bytes) = tensor(&artifact, LINEAR);
    // five trits of a byte, by the definition of TQ1_0
    let trits = |byte: u8| [1u8, 3, 9, 27, 81].map(|n| (u16::from(byte.wrapping_mul(n)) * 3) >> 8);
    let is_twin = |(at, byte): &(usize, &u8)| at % 54 < 48 && trits(**byte) == trits(**byte ^ 1);
    let (at, _) = bytes
        .iter()
        .enumerate()
        .find(is_twin)
        .expect("a byte with a twin");
    std::mem::forget(flip(&artifact, start + at as u64, 0));
    verify(&[&artifact, &"--against", &source().checkpoint])
}

fn a_norm(dir: &Path) -> Value {
    let artifact = converted("gguf-i2_s", dir);
    let (start, _) = tensor(&artifact, "output_norm.weight");
    std::mem::forget(flip(&artifact, start, 0));
    verify(&[&artifact, &"--against", &source().checkpoint])
}

fn a_trit_against_the_certificate(dir: &Path) -> Value {
    let artifact = with_another_trit(dir);
    verify(&[&artifact, &"--certificate", &certificate_of(&artifact)])
}

fn certificates_of_two_containers(dir: &Path) -> Value {
    let [one, other] = ["gguf-i2_s", "hf-packed"].map(|to| certificate_of(&converted(to, dir)));
    verify(&[&one, &"--certificate", &other])
}

fn a_trit_against_the_record(dir: &Path) -> Value {
    let golden = source().checkpoint.with_file_name("golden");
    verify(&[&with_another_trit(dir), &"--golden", &golden])
}

fn logits_of_another_network(dir: &Path) -> Value {
    let (prompts, logits) = (dir.join("prompts.json"), dir.join("logits.safetensors"));
    fs::write(
        &prompts,
        r#"{"p": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]}"#,
    )
    .unwrap();
    let words: [&dyn AsRef<std::ffi::OsStr>; 6] = [
        &"logits",
        &with_another_config(dir),
        &"--prompts",
        &prompts,
        &"-o",
        &logits,
    ];
    report(bitnet_run::run, &words);
    let model = source().checkpoint;
    verify(&[&model, &"--logits-from", &logits, &"--prompts", &prompts])
}

fn a_trit_with_logits(dir: &Path) -> Value {
    let artifact = with_another_trit(dir);
    verify(&[&artifact, &"--against", &source().checkpoint, &"--logits"])
}
