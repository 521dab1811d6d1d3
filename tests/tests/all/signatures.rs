//! Signed outputs: `bitnet-convert --sign` and `bitnet-verify --trusted-keys`, and that ssh-keygen reads the signature.
//!
//! Invariant: the keys in `tests/keys` are of these tests alone; `ssh-keygen -t ed25519 -N ''` made them.

use bitnet_cli::ExitStatus;
use bitnet_tests::fixtures::{repository, skipped};
use bitnet_tests::program::{Ran, run};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn key(name: &str) -> PathBuf {
    repository().join("tests/keys").join(name)
}

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/packed")
}

fn convert(output: &Path, more: &[&str]) -> Ran {
    let (source, output) = (demo(), output.as_os_str().to_owned());
    let first = [
        source.into_os_string(),
        "-o".into(),
        output,
        "--json".into(),
        "-j2".into(),
    ];
    let words = first.into_iter().chain(more.iter().map(OsString::from));
    run(bitnet_convert::run, words)
}

fn verify(artifact: &Path, certificate: &Path, keys: &Path) -> (ExitStatus, Value) {
    let words = [
        artifact.as_os_str(),
        "--certificate".as_ref(),
        certificate.as_os_str(),
        "--trusted-keys".as_ref(),
        keys.as_os_str(),
        "--json".as_ref(),
    ];
    let ran = run(bitnet_verify::run, words.map(OsString::from));
    (ran.status, ran.json())
}

fn check<'r>(report: &'r Value, name: &str) -> &'r Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap()
}

/// A signed GGUF file in a directory of its own: directory, file, certificate.
fn signed() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let ran = convert(&output, &["--sign", key("signer").to_str().unwrap()]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let certificate = directory.path().join("m.gguf.certificate.json");
    (directory, output, certificate)
}

#[test]
fn a_trusted_key_and_no_other_counts() {
    let (directory, output, certificate) = signed();
    let (status, report) = verify(&output, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::Done, "{report}");
    let found = check(&report, "signature");
    assert_eq!(found["status"], "same");
    assert_eq!(found["detail"], "signed by signer@tests: 2 files");
    // allowed signers: names before the keys, comments and empty lines
    let public = fs::read_to_string(key("signer.pub")).unwrap();
    let list = directory.path().join("allowed_signers");
    let stranger = fs::read_to_string(key("stranger.pub")).unwrap();
    fs::write(
        &list,
        format!("# keys\n\n{stranger}release@example.org {public}"),
    )
    .unwrap();
    let (status, report) = verify(&output, &certificate, &list);
    assert_eq!(status, ExitStatus::Done, "{report}");
    let found = check(&report, "signature");
    assert_eq!(found["detail"], "signed by release@example.org: 2 files");
    // everything else is the same, but the key is not trusted
    let (status, report) = verify(&output, &certificate, &key("stranger.pub"));
    assert_eq!(status, ExitStatus::Different, "{report}");
    assert_eq!(check(&report, "signature")["status"], "different");
    assert_eq!(check(&report, "digest")["status"], "same");
    // a certificate alone
    let (status, report) = verify(&certificate, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::Done, "{report}");
    assert_eq!(
        check(&report, "signature")["detail"],
        "signed by signer@tests: 1 files"
    );
    let (status, _) = verify(&certificate, &certificate, &key("stranger.pub"));
    assert_eq!(status, ExitStatus::Different);
    let private = fs::read_to_string(key("signer")).unwrap();
    let secret = private.lines().nth(3).unwrap();
    for entry in fs::read_dir(directory.path()).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        let held = bytes
            .windows(secret.len())
            .any(|window| window == secret.as_bytes());
        assert!(!held, "a file holds the private key");
    }
}

#[test]
fn every_signed_byte_counts() {
    let (directory, output, certificate) = signed();
    let path = |name: &str| directory.path().join(name);
    let statement = path("m.gguf.certificate.intoto.json");
    let signature = path("m.gguf.certificate.intoto.json.sig");
    for (file, at) in [
        (&statement, 300),
        (&certificate, 40),
        (&output, fs::metadata(&output).unwrap().len() as usize - 5),
    ] {
        let whole = fs::read(file).unwrap();
        let mut changed = whole.clone();
        // a letter or a digit in text, a byte of the weights
        changed[at] ^= 1;
        fs::write(file, changed).unwrap();
        let (status, report) = verify(&output, &certificate, &key("signer.pub"));
        assert_ne!(status, ExitStatus::Done, "{}: {report}", file.display());
        fs::write(file, whole).unwrap();
    }
    // of another output of the same key
    let (_other, _, other) = signed_as("gguf-tq2_0");
    let theirs = other.with_extension("intoto.json");
    fs::copy(&theirs, &statement).unwrap();
    fs::copy(theirs.with_extension("json.sig"), &signature).unwrap();
    let (status, report) = verify(&output, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::Different, "{report}");
    fs::remove_file(&signature).unwrap();
    let (status, report) = verify(&output, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::CouldNot, "{report}");
    assert_eq!(check(&report, "signature")["status"], "error");
}

fn signed_as(target: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    let key = key("signer");
    let ran = convert(&output, &["--to", target, "--sign", key.to_str().unwrap()]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let certificate = directory.path().join("m.gguf.certificate.json");
    (directory, output, certificate)
}

#[test]
fn directories_hold_their_statement() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("model");
    let key_file = key("signer");
    let sign = ["--to", "hf-bf16", "--sign", key_file.to_str().unwrap()];
    let ran = convert(&output, &sign);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let report = ran.json();
    let named = report["output"]["statement"].as_str().unwrap();
    assert_eq!(Path::new(named), output.join("certificate.intoto.json"));
    let certificate = output.join("certificate.json");
    let (status, report) = verify(&output, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::Done, "{report}");
    // a file beside the weights is signed as well
    let tokenizer = output.join("tokenizer_config.json");
    let whole = fs::read(&tokenizer).unwrap();
    fs::write(&tokenizer, [&whole[..], b"\n"].concat()).unwrap();
    let (status, report) = verify(&output, &certificate, &key("signer.pub"));
    assert_eq!(status, ExitStatus::Different, "{report}");
    let found = check(&report, "signature");
    assert_eq!(found["differences"][0]["place"], "tokenizer_config.json");
    fs::write(&tokenizer, whole).unwrap();
    // replaced with --force: the old statement is gone, never beside another certificate
    let ran = convert(&output, &["--to", "hf-packed", "--force"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    assert!(!output.join("certificate.intoto.json").exists());
    assert!(!output.join("certificate.intoto.json.sig").exists());
    // a stranger's statement is replaced neither with --sign nor without
    let foreign = output.join("certificate.intoto.json");
    fs::write(&foreign, "{}").unwrap();
    for words in [
        &["--to", "hf-packed", "--force"][..],
        &[&sign[..], &["--force"]].concat(),
    ] {
        let ran = convert(&output, words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{words:?}");
        assert_eq!(fs::read(&foreign).unwrap(), b"{}", "{words:?}");
    }
}

#[test]
fn only_statements_of_this_program_are_replaced() {
    let (directory, output, _) = signed();
    let statement = directory.path().join("m.gguf.certificate.intoto.json");
    let signature = directory.path().join("m.gguf.certificate.intoto.json.sig");
    let key_file = key("signer");
    let sign = ["--sign", key_file.to_str().unwrap(), "--force"];
    let before = fs::read(&signature).unwrap();
    assert_eq!(convert(&output, &sign).status, ExitStatus::Done);
    // ed25519 signs the same bytes alike
    assert_eq!(fs::read(&signature).unwrap(), before);
    assert_eq!(convert(&output, &["--force"]).status, ExitStatus::Done);
    assert!(!statement.exists() && !signature.exists());
    fs::write(&statement, "{\"predicateType\": \"of another tool\"}").unwrap();
    let ran = convert(&output, &sign);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert_eq!(ran.json()["error"]["code"], "exists");
    // without --sign it is none of this run's files, and neither is the signature of a stranger's statement
    fs::write(&signature, "-----BEGIN SSH SIGNATURE-----\n").unwrap();
    assert_eq!(convert(&output, &["--force"]).status, ExitStatus::Done);
    assert!(statement.exists() && signature.exists());
}

#[test]
fn keys_that_cannot_sign_are_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("m.gguf");
    for (name, message) in [
        ("locked", "the key is protected by a password"),
        (
            "ecdsa",
            "expected an OpenSSH private key of the kind ed25519",
        ),
        ("signer.pub", "expected an OpenSSH private key"),
        ("nothing", "no such file"),
    ] {
        let ran = convert(&output, &["--sign", key(name).to_str().unwrap()]);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{name}");
        let said = ran.json()["error"]["message"].to_string();
        assert!(said.contains(message), "{name}: {said}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{name}");
    }
    // a key is an input: an output never replaces it
    let own = directory.path().join("own");
    fs::copy(key("signer"), &own).unwrap();
    let ran = convert(
        &own,
        &[
            "--to",
            "gguf-tq2_0",
            "--force",
            "--sign",
            own.to_str().unwrap(),
        ],
    );
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert_eq!(fs::read(own).unwrap(), fs::read(key("signer")).unwrap());
}

#[test]
fn ssh_keygen_reads_the_signature() {
    if Command::new("ssh-keygen").arg("-?").output().is_err() {
        skipped("the signature as OpenSSH reads it: there is no ssh-keygen");
        return;
    }
    let (directory, _, certificate) = signed();
    let statement = certificate.with_extension("intoto.json");
    let signature = certificate.with_extension("intoto.json.sig");
    let list = directory.path().join("allowed_signers");
    let public = fs::read_to_string(key("signer.pub")).unwrap();
    fs::write(&list, format!("release@example.org {public}")).unwrap();
    let check = |bytes: &Path| {
        let mut command = Command::new("ssh-keygen");
        command.args([
            "-Y",
            "verify",
            "-I",
            "release@example.org",
            "-n",
            "bitnet-conversion",
        ]);
        command.arg("-f").arg(&list).arg("-s").arg(&signature);
        command.stdin(fs::File::open(bytes).unwrap());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    };
    assert!(check(&statement));
    assert!(!check(&certificate));
    let text: Value = serde_json::from_slice(&fs::read(&statement).unwrap()).unwrap();
    assert_eq!(text["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(text["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(text["subject"][0]["name"], "m.gguf");
    assert_eq!(text["subject"][1]["name"], "m.gguf.certificate.json");
}
