//! `bitnet-verify doctor --bundle`: what is in the archive, and what never is.
//!
//! Invariant: a bundle is read here by its own bytes, not by the crate that wrote it. No 16 bytes of weights that are not
//! all alike are anywhere in it.

use bitnet_cli::ExitStatus;
use bitnet_formats::Limits;
use bitnet_tests::digest::sha256;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::program::{Ran, run};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const PACKED: &str = "bitnet-2b4t-packed";
/// What a bundle may weigh: its bound, and room for the names and the frames of the archive.
const MOST: usize = (16 << 20) + (1 << 20);

fn doctor(model: &Path, bundle: &Path, words: &[&str]) -> Ran {
    let fixed = ["doctor", "--json", "--no-run"].map(OsString::from);
    let paths = [
        model.as_os_str().to_owned(),
        "--bundle".into(),
        bundle.into(),
    ];
    let words = words.iter().map(OsString::from);
    run(
        bitnet_verify::run,
        fixed.into_iter().chain(paths).chain(words),
    )
}

/// Names and contents of an archive of stored entries, by its central directory.
fn unzipped(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let u16_at = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let u32_at = |at: usize| u16_at(at) | u16_at(at + 2) << 16;
    let end = bytes.len() - 22;
    assert_eq!(u32_at(end), 0x0605_4b50, "an archive without a comment");
    let mut at = u32_at(end + 16);
    let mut entries = BTreeMap::new();
    let mut order = Vec::new();
    for _ in 0..u16_at(end + 10) {
        assert_eq!(u32_at(at), 0x0201_4b50);
        assert_eq!(u16_at(at + 10), 0, "stored");
        assert_eq!((u16_at(at + 12), u16_at(at + 14)), (0, 0x21), "1980-01-01");
        let (len, name_len) = (u32_at(at + 24), u16_at(at + 28));
        let name = String::from_utf8(bytes[at + 46..at + 46 + name_len].to_vec()).unwrap();
        let local = u32_at(at + 42);
        assert_eq!(u32_at(local), 0x0403_4b50);
        let start = local + 30 + u16_at(local + 26) + u16_at(local + 28);
        order.push(name.clone());
        entries.insert(name, bytes[start..start + len].to_vec());
        at += 46 + name_len + u16_at(at + 30) + u16_at(at + 32);
    }
    let sorted: Vec<String> = entries.keys().cloned().collect();
    assert_eq!(order, sorted);
    entries
}

fn text<'a>(entries: &'a BTreeMap<String, Vec<u8>>, name: &str) -> &'a str {
    let bytes = entries
        .get(name)
        .unwrap_or_else(|| panic!("{name}: {:?}", entries.keys()));
    std::str::from_utf8(bytes).unwrap()
}

fn object(entries: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_str(text(entries, name)).unwrap()
}

/// Every place of weights in the files of a model, by the offsets of a whole copy.
fn has_no_weights(whole: &Path, damaged: &[u8], bundle: &[u8]) {
    let windows: HashSet<&[u8]> = bundle.windows(16).collect();
    let file = bitnet_formats::open(whole, &Limits::default()).unwrap();
    let mut looked = 0;
    for tensor in file.tensors() {
        let start = (tensor.offset as usize).min(damaged.len());
        let end = ((tensor.offset + tensor.len) as usize).min(damaged.len());
        for (at, window) in damaged[start..end].windows(16).enumerate() {
            let is_plain = window.iter().all(|byte| *byte == window[0]);
            assert!(
                is_plain || !windows.contains(window),
                "`{}`, byte {at}: {window:?}",
                tensor.name
            );
            looked += usize::from(!is_plain);
        }
    }
    assert!(looked > 1000, "{looked}");
}

fn converted(dir: &Path) -> PathBuf {
    let output = dir.join("model.gguf");
    let source = checkpoint(PACKED);
    let words = [
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--to",
        "gguf-i2_s",
    ];
    let ran = run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    output
}

/// What no bundle of a model in this directory may name.
fn names_nothing_local(dir: &Path, bundle: &[u8]) {
    let all = String::from_utf8_lossy(bundle);
    let real = fs::canonicalize(dir).unwrap();
    let mut local = vec![dir.display().to_string(), real.display().to_string()];
    for name in ["HOME", "USER", "LOGNAME", "HOSTNAME"] {
        local.extend(std::env::var(name).ok().filter(|value| value.len() > 4));
    }
    local.extend(fs::read_to_string("/proc/sys/kernel/hostname").ok());
    for name in local {
        let name = name.trim();
        assert!(name.len() < 4 || !all.contains(name), "{name}");
    }
}

#[test]
fn a_bundle_describes_the_model_and_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let model = converted(dir.path());
    let bundle = dir.path().join("report.zip");
    let ran = doctor(&model, &bundle, &[]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    let bytes = fs::read(&bundle).unwrap();
    let named = &ran.json()["bundle"];
    assert_eq!(named["path"], bundle.display().to_string());
    assert_eq!(named["bytes"], bytes.len());
    assert_eq!(named["sha256"], sha256(&bytes));
    let entries = unzipped(&bundle);
    let names: Vec<&str> = entries.keys().map(String::as_str).collect();
    assert_eq!(named["entries"], json!(names));
    for name in ["README.txt", "bundle.json", "doctor.json", "headers.json"] {
        assert!(names.contains(&name), "{names:?}");
    }
    // the certificate lies beside the model: the doctor has compared the two
    let examined = object(&entries, "doctor.json");
    assert_eq!(examined["status"], "sound");
    assert_eq!(
        examined["certificate"]["path"],
        "model.gguf.certificate.json"
    );
    let about = object(&entries, "bundle.json");
    assert_eq!(about["program"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["machine"]["architecture"], std::env::consts::ARCH);
    let kernels = about["machine"]["kernels"].as_array().unwrap();
    assert!(
        kernels
            .iter()
            .any(|k| k["name"] == "scalar" && k["available"] == true)
    );
    let file = &about["model"]["files"][0];
    assert_eq!(file["name"], "model.gguf");
    assert_eq!(file["sha256"], sha256(&fs::read(&model).unwrap()));
    // every tensor, where it is, and the hash of its bytes
    let headers = object(&entries, "headers.json");
    let whole = bitnet_formats::open(&model, &Limits::default()).unwrap();
    let rows = headers["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), whole.tensors().len());
    for (row, tensor) in rows.iter().zip(whole.tensors()) {
        assert_eq!(row["name"], tensor.name);
        assert_eq!(row["type"], tensor.encoding.name());
        assert_eq!(row["shape"], json!(tensor.shape));
        assert_eq!(row["offset"], tensor.offset);
        assert_eq!(row["sha256"], sha256(&whole.read(tensor).unwrap()));
    }
    // of the vocabulary the first tokens and their number
    let tokens = &headers["metadata"]["tokenizer.ggml.tokens"];
    assert!(tokens["entries"].as_u64().unwrap() > 64, "{tokens}");
    assert_eq!(tokens["first"].as_array().unwrap().len(), 8);
    let template = &headers["metadata"]["tokenizer.chat_template"]["file"];
    assert!(names.contains(&template.as_str().unwrap()), "{template}");
    has_no_weights(&model, &fs::read(&model).unwrap(), &bytes);
    names_nothing_local(dir.path(), &bytes);
    // again: the same bytes
    let again = dir.path().join("again.zip");
    doctor(&model, &again, &[]);
    assert_eq!(fs::read(&again).unwrap(), bytes);
}

#[test]
fn a_bundle_replaces_nothing_unasked_and_never_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = converted(dir.path());
    let before = fs::read(&model).unwrap();
    let bundle = dir.path().join("report.zip");
    fs::write(&bundle, "mine").unwrap();
    let refused = |path: &Path, words: &[&str], code: &str| {
        let ran = doctor(&model, path, words);
        assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
        assert_eq!(ran.json()["error"]["code"], code, "{}", ran.stdout);
    };
    refused(&bundle, &[], "exists");
    assert_eq!(fs::read(&bundle).unwrap(), b"mine");
    refused(&model, &["--force"], "usage");
    refused(dir.path(), &["--force"], "usage");
    refused(&dir.path().join("absent/report.zip"), &[], "io");
    refused(Path::new("-"), &[], "usage");
    assert_eq!(fs::read(&model).unwrap(), before);
    let ran = doctor(&model, &bundle, &["--force"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stderr);
    assert!(unzipped(&bundle).contains_key("README.txt"));
    // of a model that is not there no bundle is left
    let left = dir.path().join("left.zip");
    let ran = doctor(&dir.path().join("absent.gguf"), &left, &[]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert!(!left.exists());
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 3, "model, certificate, bundle");
}

/// This is what a bundle is for.
#[test]
fn broken_files_have_bundles_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    let model = converted(dir.path());
    let whole = fs::read(&model).unwrap();
    let file = bitnet_formats::open(&model, &Limits::default()).unwrap();
    let data = file.tensors()[0].offset as usize;
    let broken = dir.path().join("broken.gguf");
    let bundle = dir.path().join("report.zip");
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("cut in the data".into(), whole[..data + 5000].to_vec()),
        ("cut in the header".into(), whole[..data / 2].to_vec()),
        ("cut among the tensors".into(), whole[..data - 200].to_vec()),
        ("empty".into(), Vec::new()),
        ("other magic".into(), [&b"FFUG"[..], &whole[4..]].concat()),
    ];
    // more tensors and entries than there are: a reader that believes it runs into the data
    for at in [8, 16] {
        let mut bytes = whole.clone();
        bytes[at] = bytes[at].wrapping_add(3);
        cases.push((format!("count at {at}"), bytes));
    }
    // lengths and types all over the header
    let step = (data / 60).max(1) | 1;
    for at in (4..data).step_by(step) {
        for bit in [0x10, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= bit;
            cases.push((format!("bit {bit:#x} of byte {at}"), bytes));
        }
    }
    let mut unreadable = 0;
    for (what, bytes) in cases {
        fs::write(&broken, &bytes).unwrap();
        let _ = fs::remove_file(&bundle);
        let ran = doctor(&broken, &bundle, &[]);
        let object = ran.json();
        match ran.status {
            // what cannot be examined is described as well
            ExitStatus::CouldNot => {
                let hint = object["error"]["hint"].as_str().unwrap();
                assert!(
                    hint.contains("attach ") && hint.contains("report.zip"),
                    "{what}: {hint}"
                );
            }
            _ => assert!(object["bundle"].is_object(), "{what}: {object:#}"),
        }
        let entries = unzipped(&bundle);
        let all = fs::read(&bundle).unwrap();
        assert!(all.len() < MOST, "{what}");
        has_no_weights(&model, &bytes_or(&bytes, &whole), &all);
        let headers: Value = serde_json::from_str(text(&entries, "headers.json")).unwrap();
        if headers["error"].is_object() {
            unreadable += 1;
            assert_ne!(ran.status, ExitStatus::Done, "{what}");
        }
        if what.starts_with("cut among") {
            let readable = &headers["readable"][0];
            let tensors = readable["tensors"].as_array().unwrap();
            let expected = file.tensors().len();
            assert!(
                !tensors.is_empty() && tensors.len() < expected,
                "{readable}"
            );
            assert_eq!(tensors[0]["name"], file.tensors()[0].name);
            assert_eq!(readable["counts"]["tensors"], expected);
            assert!(readable["stopped"].is_string());
        }
    }
    assert!(unreadable > 20, "{unreadable}");
}

/// The damaged file as long as the whole one: weights that were cut off cannot be looked for.
fn bytes_or(damaged: &[u8], whole: &[u8]) -> Vec<u8> {
    match damaged.len() < whole.len() {
        true => whole.to_vec(),
        false => damaged.to_vec(),
    }
}

#[test]
fn the_bundle_of_a_directory_has_its_settings_without_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("private place/my model");
    fs::create_dir_all(&model).unwrap();
    for entry in fs::read_dir(checkpoint(PACKED)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
    }
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap();
    config["_name_or_path"] = json!("/home/somebody/secret-project/base");
    config["token"] = json!("correct horse");
    let key = ["hf", "_AbCdEfGhIjKlMnOpQrStUvWxYz0123456"].concat();
    config["note"] = json!(format!("made with {key} from https://me:pw@host/x?sig=1"));
    fs::write(model.join("config.json"), format!("{config:#}")).unwrap();
    fs::write(
        model.join("generation_config.json"),
        "{\"temperature\": 0.5}",
    )
    .unwrap();
    fs::write(model.join("quantize_config.json"), "{\"bits\": 2,").unwrap();
    let broken = "{\"password\": \"nobody knows\",";
    fs::write(model.join("preprocessor_config.json"), broken).unwrap();
    fs::write(
        model.join("chat_template.jinja"),
        "{{ messages }}</think> /no_think",
    )
    .unwrap();
    fs::write(dir.path().join("outside"), "words outside").unwrap();
    fs::remove_file(model.join("special_tokens_map.json")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../../outside", model.join("special_tokens_map.json")).unwrap();
    let bundle = dir.path().join("report.zip");
    let ran = doctor(&model, &bundle, &[]);
    assert!(bundle.exists(), "{}", ran.stdout);
    let entries = unzipped(&bundle);
    let bytes = fs::read(&bundle).unwrap();
    let all = String::from_utf8_lossy(&bytes);
    for secret in [
        &key,
        "correct horse",
        "somebody",
        "secret-project",
        "pw@",
        "sig=1",
        "private place",
        "words outside",
        "nobody knows",
    ] {
        assert!(!all.contains(secret), "{secret}");
    }
    let shown = object(&entries, "files/config.json");
    assert_eq!(shown["_name_or_path"], "base");
    assert_eq!(shown["token"], "[removed]");
    assert_eq!(shown["note"], "made with [removed] from https://host/x");
    assert_eq!(shown["hidden_size"], config["hidden_size"]);
    // what has nothing to hide is there byte for byte, valid or not
    for name in [
        "generation_config.json",
        "quantize_config.json",
        "chat_template.jinja",
    ] {
        let own = fs::read(model.join(name)).unwrap();
        assert_eq!(entries[&format!("files/{name}")], own, "{name}");
    }
    let about = object(&entries, "bundle.json");
    assert!(about["changed"]["config.json"].is_string(), "{about:#}");
    let hashed = about["side_files"].as_array().unwrap();
    let config_row = hashed
        .iter()
        .find(|row| row["name"] == "config.json")
        .unwrap();
    let own = fs::read(model.join("config.json")).unwrap();
    assert_eq!(config_row["sha256"], sha256(&own));
    #[cfg(unix)]
    assert!(
        about["left_out"]["special_tokens_map.json"]
            .as_str()
            .unwrap()
            .starts_with("outside-link")
    );
    // of the tokenizer the settings, not the vocabulary
    let tokenizer = object(&entries, "files/tokenizer.json");
    assert_eq!(
        tokenizer["model"]["vocab"]["first"]
            .as_object()
            .unwrap()
            .len(),
        8
    );
    assert!(tokenizer["model"]["type"].is_string());
    has_no_weights(
        &model,
        &fs::read(model.join("model.safetensors")).unwrap(),
        &bytes,
    );
    names_nothing_local(dir.path(), &bytes);

    // a shard of another length: the header can still be read
    let weights = fs::read(model.join("model.safetensors")).unwrap();
    fs::write(
        model.join("model.safetensors"),
        &weights[..weights.len() / 2],
    )
    .unwrap();
    let ran = doctor(&model, &bundle, &["--force"]);
    assert_eq!(ran.status, ExitStatus::Different, "{}", ran.stdout);
    let headers = object(&unzipped(&bundle), "headers.json");
    assert_eq!(headers["readable"][0]["file"], "model.safetensors");
    assert!(headers["readable"][0]["tensors"].as_array().unwrap().len() > 10);
}

#[test]
fn a_hostile_file_does_not_make_a_bundle_large() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("report.zip");
    let string = |text: &[u8]| [&(text.len() as u64).to_le_bytes()[..], text].concat();
    let file = |entries: &[Vec<u8>], tensors: u64| {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend_from_slice(&tensors.to_le_bytes());
        bytes.extend_from_slice(&(entries.len() as u64).to_le_bytes());
        bytes.extend(entries.concat());
        bytes
    };
    let long = vec![b'x'; 20 << 20];
    let entry = |key: &str, text: &[u8]| {
        [
            string(key.as_bytes()),
            8u32.to_le_bytes().to_vec(),
            string(text),
        ]
        .concat()
    };
    // long texts, a long template, many keys of long names, many tensors of long names
    let template = entry("tokenizer.chat_template", &long);
    let texts = file(&[entry("general.name", &long), template], 0);
    let keys: Vec<Vec<u8>> = (0..3000)
        .map(|i| entry(&format!("{i}{}", "k".repeat(5000)), &[b'v'; 5000]))
        .collect();
    let mut tensors = file(&[], 3000);
    for i in 0..3000 {
        tensors.extend(string(
            format!("{i}{}", "\u{1f600}".repeat(2000)).as_bytes(),
        ));
        tensors.extend_from_slice(&1u32.to_le_bytes());
        tensors.extend_from_slice(&32u64.to_le_bytes());
        tensors.extend_from_slice(&0u32.to_le_bytes());
        tensors.extend_from_slice(&(i * 128u64).to_le_bytes());
    }
    for bytes in [texts, file(&keys, 0), tensors] {
        let model = dir.path().join("hostile.gguf");
        fs::write(&model, bytes).unwrap();
        let ran = doctor(&model, &bundle, &["--force"]);
        assert!(bundle.exists(), "{}", ran.stderr);
        let len = fs::metadata(&bundle).unwrap().len() as usize;
        assert!(len < MOST, "{len}");
        object(&unzipped(&bundle), "headers.json");
        fs::remove_file(&bundle).unwrap();
    }
}
