//! Certificates: written alike for one model whatever its container, read in every version there was, and
//! never believed where they contradict the model, another certificate or themselves.
//!
//! Invariant: the golden files in `tests/certificates` are what the converter writes, byte for byte but for
//! the name of the tool; those below `version-1` are as the first release wrote them and are never renewed.
//! `BITNET_RENEW=1` writes the others anew.

#![allow(clippy::print_stdout)]

use bitnet_cli::ExitStatus;
use bitnet_convert::{TARGETS, Target};
use bitnet_tests::conversions::{certificate_of, convert};
use bitnet_tests::fixtures::{
    Fixture, fixture, fixtures, fixtures_are_foreign, read_json, skips_foreign_fixtures,
};
use bitnet_tests::program::run;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

fn own_fixtures() -> Vec<Fixture> {
    match skips_foreign_fixtures() {
        true => Vec::new(),
        false => fixtures(),
    }
}

fn own(name: &str) -> Option<Fixture> {
    match skips_foreign_fixtures() {
        true => None,
        false => fixture(name),
    }
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|t| t.name == name).unwrap()
}

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("certificates")
}

/// Verifies with these words: status, report.
fn verify(words: &[&dyn AsRef<std::ffi::OsStr>]) -> (ExitStatus, Value) {
    let words = words.iter().map(|w| w.as_ref().to_owned());
    let all = [OsString::from("--json"), "-j2".into()].into_iter();
    let ran = run(bitnet_verify::run, all.chain(words));
    (ran.status, ran.json())
}

/// Places of all differences, by check.
fn differences(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().into_iter().flatten();
    let of_check = |check: &Value| -> Vec<(String, String)> {
        let list = check["differences"].as_array().into_iter().flatten();
        list.map(|d| (text(&check["name"]), text(&d["place"])))
            .collect()
    };
    checks.flat_map(of_check).collect()
}

/// What is compared of a golden certificate: everything but the tool, and the hash that covers its name.
fn lasting(certificate: &Value) -> Value {
    let mut lasting = certificate.clone();
    lasting["tool"] = Value::Null;
    lasting["certificate_sha256"] = Value::Null;
    lasting
}

#[test]
fn every_fixture_is_certified_as_it_was() {
    let renew = std::env::var_os("BITNET_RENEW").is_some();
    let dir = tempfile::tempdir().unwrap();
    own_fixtures().par_iter().for_each(|source| {
        // what holds every scale structure
        let output = convert(source, target("packed"), dir.path()).unwrap();
        let found = certificate_of(&output);
        let golden = golden_dir().join(format!("{}.certificate.json", source.name));
        if renew {
            fs::copy(&found, &golden).unwrap();
        }
        let text = |path: &Path| format!("{:#}", lasting(&read_json(path)));
        let (found, golden) = (text(&found), text(&golden));
        let line = found.lines().zip(golden.lines()).find(|(f, g)| f != g);
        assert!(found == golden, "{}: {line:?}", source.name);
        // the output itself, and the source that was converted
        let certificate = certificate_of(&output);
        let (status, report) = verify(&[&output, &"--certificate", &certificate]);
        assert_eq!(status, ExitStatus::Done, "{}: {report:#}", source.name);
    });
}

#[test]
fn certificates_of_the_first_version_still_pass() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["bitnet-2b4t-packed", "falcon3-1.58"] {
        let Some(source) = own(name) else { continue };
        let old = golden_dir().join(format!("version-1/{name}.certificate.json"));
        let output = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
        for artifact in [&output, &source.checkpoint] {
            let (status, report) = verify(&[artifact, &"--certificate", &old]);
            assert_eq!(status, ExitStatus::Done, "{name}: {report:#}");
            let detail = report["checks"][0]["detail"].as_str().unwrap();
            assert!(detail.contains("tokenizer not certified"), "{detail}");
        }
        // against one of today, and the other way round
        let new = certificate_of(&output);
        for [one, other] in [[&old, &new], [&new, &old]] {
            let (status, report) = verify(&[one, &"--certificate", other]);
            assert_eq!(status, ExitStatus::Done, "{name}: {report:#}");
        }
    }
}

/// One model in every container that holds it has one certificate, but for names and bytes of files.
#[test]
fn certificates_of_one_model_agree_whatever_the_container() {
    let mut pairs = 0;
    for source in own_fixtures() {
        let dir = tempfile::tempdir().unwrap();
        let outputs: Vec<PathBuf> = TARGETS
            .par_iter()
            .filter_map(|target| convert(&source, target, dir.path()))
            .collect();
        let first = certificate_of(&outputs[0]);
        let count = |output: &PathBuf| {
            let (status, report) = verify(&[&certificate_of(output), &"--certificate", &first]);
            assert_eq!(status, ExitStatus::Done, "{}: {report:#}", output.display());
            // and of what is converted on
            let (status, report) = verify(&[output, &"--certificate", &first]);
            assert_eq!(status, ExitStatus::Done, "{}: {report:#}", output.display());
        };
        outputs.par_iter().for_each(count);
        println!(
            "{}: {} containers, one certificate",
            source.name,
            outputs.len()
        );
        pairs += outputs.len();
    }
    assert!(pairs > 60 || fixtures_are_foreign(), "{pairs}");
}

/// The JSON pointers of every hash in a certificate, and of every scale's pattern.
fn hashes(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(keys) => {
            for (key, value) in keys {
                hashes(value, &format!("{at}/{key}"), into);
            }
        }
        Value::Array(list) => {
            for (i, value) in list.iter().enumerate() {
                hashes(value, &format!("{at}/{i}"), into);
            }
        }
        Value::String(text) => {
            let is_hash = at.ends_with("sha256") || at.ends_with("/bits");
            if is_hash && matches!(text.len(), 8 | 64) {
                into.push(at.to_owned());
            }
        }
        _ => {}
    }
}

/// Changes the hex digit `at` of a hash.
fn change_digit(certificate: &mut Value, pointer: &str, at: usize) {
    let hash = certificate.pointer_mut(pointer).unwrap();
    let mut text = hash.as_str().unwrap().to_owned().into_bytes();
    let at = at % text.len();
    text[at] = if text[at] == b'7' { b'8' } else { b'7' };
    *hash = String::from_utf8(text).unwrap().into();
}

#[test]
fn one_wrong_digit_in_any_hash_is_found() {
    let Some(source) = own("bitnet-2b4t-packed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let good = certificate_of(&output);
    let whole = read_json(&good);
    let mut pointers = Vec::new();
    hashes(&whole, "", &mut pointers);
    // linears with scale patterns, dense tensors, files of both sides, text, the whole
    let count = |part: &str| pointers.iter().filter(|p| p.contains(part)).count();
    assert!(
        count("/ternary/") >= 3 * 14 && count("/dense/") >= 5,
        "{pointers:?}"
    );
    assert!(
        count("/source/") >= 5 && count("/output/") == 1,
        "{pointers:?}"
    );
    assert!(count("/tokenizer/") == 3 && count("chat_template") == 1 && count("certificate_") == 1);
    // what no hash over the certificate protects: those of the artifact and what is said twice
    let own = |p: &str| !p.starts_with("/source/") && p != "/certificate_sha256";
    let tamper = |(n, pointer): (usize, &String)| {
        for sealed in [true, false] {
            if !sealed && !own(pointer) {
                continue;
            }
            let mut bad = whole.clone();
            change_digit(&mut bad, pointer, n * 7);
            if !sealed {
                bad.as_object_mut().unwrap().remove("certificate_sha256");
            }
            let path = dir.path().join(format!("{n}-{sealed}.certificate.json"));
            fs::write(&path, bad.to_string()).unwrap();
            let (status, report) = verify(&[&output, &"--certificate", &path]);
            assert_eq!(status, ExitStatus::Different, "{pointer}: {report:#}");
            let named = differences(&report).into_iter().map(|(_, place)| place);
            assert!(
                !sealed || named.clone().any(|p| p == "certificate_sha256"),
                "{pointer}"
            );
            // two certificates: all but the bytes of files, which may differ
            for [one, other] in [[&path, &good], [&good, &path]] {
                let (status, report) = verify(&[one, &"--certificate", other]);
                let is_file = pointer.starts_with("/output/");
                let expected = match sealed || !is_file {
                    true => ExitStatus::Different,
                    false => ExitStatus::Done,
                };
                assert_eq!(status, expected, "{pointer}: {report:#}");
            }
        }
    };
    pointers.par_iter().enumerate().for_each(tamper);
    println!("{} hashes, one digit each: all found", pointers.len());
}

/// A source, its I2_S file, and the certificate of that without the hash over itself, so that it can be changed.
fn unsealed(dir: &Path) -> Option<(Fixture, PathBuf, Value)> {
    let source = own("bitnet-2b4t-packed")?;
    let output = convert(&source, target("gguf-i2_s"), dir).unwrap();
    let mut certificate = read_json(&certificate_of(&output));
    certificate
        .as_object_mut()
        .unwrap()
        .remove("certificate_sha256");
    Some((source, output, certificate))
}

#[test]
fn hashes_of_the_source_are_held_against_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let Some((source, output, certificate)) = unsealed(dir.path()) else {
        return;
    };
    let path = dir.path().join("certificate.json");
    let check = |certificate: &Value| {
        fs::write(&path, certificate.to_string()).unwrap();
        verify(&[
            &output,
            &"--against",
            &source.checkpoint,
            &"--certificate",
            &path,
        ])
    };
    let (status, report) = check(&certificate);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    for n in 0..certificate["source"]["files"].as_array().unwrap().len() {
        let mut bad = certificate.clone();
        change_digit(&mut bad, &format!("/source/files/{n}/sha256"), n);
        let (status, report) = check(&bad);
        assert_eq!(status, ExitStatus::Different, "{report:#}");
        let name = certificate["source"]["files"][n]["name"].as_str().unwrap();
        assert_eq!(
            differences(&report),
            [("digest".to_owned(), name.to_owned())]
        );
    }
}

/// What two certificates differ in is named in the check that speaks of it.
#[test]
fn two_certificates_differ_where_the_models_do() {
    let Some(source) = own("bitnet-2b4t-packed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let good = certificate_of(&output);
    let zeros = json!("0".repeat(64));
    let q = "/ternary/0";
    let cases: &[(&str, Value, &str)] = &[
        (&format!("{q}/trits_sha256"), zeros.clone(), "trits"),
        (&format!("{q}/scales/sha256"), zeros.clone(), "scales"),
        (&format!("{q}/rows"), json!(3), "structure"),
        ("/dense/0/values_sha256", zeros.clone(), "dense"),
        ("/dense/0/shape", json!([1, 2]), "structure"),
        ("/dense/0/name", json!("model.other.weight"), "structure"),
        ("/family", json!("llama_b1_58"), "structure"),
        ("/wiring/hidden_act", json!("silu"), "metadata"),
        ("/wiring/rms_norm_eps", json!(1e-6), "metadata"),
        ("/wiring/rope_theta", json!(10000.0), "metadata"),
        ("/wiring/tie_word_embeddings", json!(false), "metadata"),
        ("/tokenizer", Value::Null, "metadata"),
        ("/tokenizer/vocabulary_sha256", zeros.clone(), "metadata"),
        ("/tokenizer/pre_tokenizer", json!("gpt-2"), "metadata"),
        ("/tokenizer/stop_token_ids", json!([1]), "metadata"),
        ("/chat_template_sha256", zeros.clone(), "metadata"),
        ("/ternary_sha256", zeros, "digest"),
    ];
    for (pointer, value, check) in cases {
        let mut other = read_json(&good);
        *other.pointer_mut(pointer).unwrap() = value.clone();
        other.as_object_mut().unwrap().remove("certificate_sha256");
        let path = dir.path().join("other.json");
        fs::write(&path, other.to_string()).unwrap();
        let (status, report) = verify(&[&path, &"--certificate", &good]);
        assert_eq!(status, ExitStatus::Different, "{pointer}: {report:#}");
        let checks: Vec<String> = differences(&report).into_iter().map(|d| d.0).collect();
        assert!(checks.iter().any(|c| c == check), "{pointer}: {report:#}");
    }
    // files are told, not judged
    let other = convert(&source, target("hf-packed"), dir.path()).unwrap();
    let (status, report) = verify(&[&certificate_of(&other), &"--certificate", &good]);
    assert_eq!(status, ExitStatus::Done, "{report:#}");
    let files = report["checks"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(files["status"], "skipped", "{files}");
    let detail = files["detail"].as_str().unwrap();
    assert!(detail.contains("from the same source files"), "{detail}");
    assert!(
        detail.contains("model.safetensors") && detail.contains(".gguf"),
        "{detail}"
    );
}

#[test]
fn a_certificate_is_no_model() {
    let Some(source) = own("bitnet-2b4t-packed") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let output = convert(&source, target("gguf-i2_s"), dir.path()).unwrap();
    let good = certificate_of(&output);
    let code = |words: &[&dyn AsRef<std::ffi::OsStr>]| {
        let (status, report) = verify(words);
        assert_eq!(status, ExitStatus::CouldNot, "{report:#}");
        report["error"]["code"].as_str().unwrap().to_owned()
    };
    assert_eq!(code(&[&good]), "usage");
    assert_eq!(code(&[&good, &"--against", &source.checkpoint]), "usage");
    assert_eq!(
        code(&[&good, &"--certificate", &good, &"--logits"]),
        "usage"
    );
    let text = fs::read_to_string(&good).unwrap();
    let path = dir.path().join("broken.certificate.json");
    let broken = [
        text[..text.len() / 2].to_owned(),
        text.replacen("\"certificate\": 1", "\"certificate\": 2", 1),
        text.replacen("\"lossless\": true", "\"lossless\": 1", 1),
        text.replacen("\"tokens\":", "\"token\":", 1),
    ];
    for text in broken {
        fs::write(&path, text).unwrap();
        assert_eq!(code(&[&path, &"--certificate", &good]), "malformed");
        assert_eq!(code(&[&good, &"--certificate", &path]), "malformed");
    }
}

/// A GGUF file tells its tokenizer twice; readers that know only one of the two must get the same.
#[test]
fn both_tellings_of_a_tokenizer_are_held_against_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_, output, mut certificate)) = unsealed(dir.path()) else {
        return;
    };
    certificate["output"]["files"] = json!([]);
    let path = dir.path().join("certificate.json");
    fs::write(&path, certificate.to_string()).unwrap();
    let whole = fs::read(&output).unwrap();
    let find = |text: &[u8]| whole.windows(text.len()).position(|w| w == text).unwrap();
    let edit = |text: &str, to: &str| {
        let mut bytes = whole.clone();
        let at = find(text.as_bytes());
        assert_eq!(text.len(), to.len());
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let edited = dir.path().join("edited.gguf");
        fs::write(&edited, bytes).unwrap();
        let (status, report) = verify(&[&edited, &"--certificate", &path]);
        let places = differences(&report).into_iter().map(|d| d.1);
        (status, places.collect::<Vec<_>>())
    };
    let nothing: Vec<String> = Vec::new();
    assert_eq!(edit("llama-bpe", "llama-bpe"), (ExitStatus::Done, nothing));
    // the keys come before the whole `tokenizer.json`
    let differs = |key: &str| (ExitStatus::Different, vec![key.to_owned()]);
    assert_eq!(
        edit("<|eot_id|>", "<|eat_id|>"),
        differs("tokenizer.ggml.tokens")
    );
    let (status, places) = edit("tokenizer.huggingface.json", "tokenizer.huggingface.gone");
    // rebuilt from the keys, it is the same tokenizer
    assert_eq!((status, places.len()), (ExitStatus::Done, 0), "{places:?}");
    let (status, places) = edit("tokenizer.chat_template", "tokenizer.chat_templatf");
    assert_eq!((status, places), differs("chat_template_sha256"));
}
