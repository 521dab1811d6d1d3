//! Sets of files appear whole: the parts of a split model, a model and its certificate.
//!
//! Invariant: whatever happens to a writer, and however many write at once, a reader gets the old model, the
//! new model, or a refusal; a certificate is that of the file beside it.

use bitnet_cli::ExitStatus;
use bitnet_formats::{ErrorCode, Gguf, Limits};
use bitnet_tests::digest::sha256;
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program::{self, Ran};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const OLD: &str = "falcon-e";
const NEW: &str = "falcon-e-prequantized";
/// A part for every tensor.
const MANY: [&str; 2] = ["--split-max-size", "1K"];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(source: &Path, output: &Path, more: &[&str]) -> Ran {
    let how = ["-o", text(output), "--json", "--ternary-trained"];
    let words = [&[text(source)], &how[..], more].concat();
    program::run(bitnet_convert::run, words)
}

fn convert(source: &str, output: &Path, more: &[&str]) -> serde_json::Value {
    let ran = run(&checkpoint(source), output, more);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    let json = ran.json();
    for file in json["output"]["files"].as_array().unwrap() {
        let path = Path::new(file["path"].as_str().unwrap());
        assert_eq!(
            sha256(&fs::read(path).unwrap()),
            file["sha256"].as_str().unwrap()
        );
    }
    assert!(Path::new(json["output"]["path"].as_str().unwrap()).exists());
    json
}

fn start(source: &str, output: &Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_convert_under_test"))
        .arg(checkpoint(source))
        .arg("-o")
        .arg(output)
        .args(["--quiet", "--force", "--ternary-trained"])
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The visible files of a directory.
fn files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
    let visible = entries.filter(|p| !text(p.file_name().unwrap().as_ref()).starts_with('.'));
    visible
        .map(|p| {
            (
                p.file_name().unwrap().to_str().unwrap().to_owned(),
                fs::read(&p).unwrap(),
            )
        })
        .collect()
}

fn weights(files: &BTreeMap<String, Vec<u8>>) -> BTreeMap<&String, &Vec<u8>> {
    files
        .iter()
        .filter(|(name, _)| name.ends_with(".gguf"))
        .collect()
}

fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

fn fill(directory: &Path, files: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in files {
        fs::write(directory.join(name), bytes).unwrap();
    }
}

/// Whether the certificate in `files` is that of the weights in it.
fn is_certified(files: &BTreeMap<String, Vec<u8>>, certificate: &str) -> bool {
    let Some(json) = files.get(certificate) else {
        return false;
    };
    let json: serde_json::Value = serde_json::from_slice(json).unwrap();
    let listed: BTreeMap<&str, &str> = json["output"]["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| (f["name"].as_str().unwrap(), f["sha256"].as_str().unwrap()))
        .collect();
    let found: Vec<(&String, String)> = weights(files)
        .into_iter()
        .map(|(name, bytes)| (name, sha256(bytes)))
        .collect();
    found.len() == listed.len()
        && found
            .iter()
            .all(|(name, hash)| listed.get(name.as_str()) == Some(&hash.as_str()))
}

#[test]
fn parts_of_two_conversions_are_refused_in_every_mixture() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let output = place.join("m.gguf");
    convert(OLD, &output, &MANY);
    let old = files(place);
    let again = convert(OLD, &output, &[&MANY[..], &["--force"]].concat());
    assert!(files(place) == old, "a conversion gives the same bytes");
    assert_eq!(
        again["output"]["files"].as_array().unwrap().len() + 1,
        old.len()
    );
    clear(place);
    convert(NEW, &output, &MANY);
    let new = files(place);
    assert_eq!(
        old.keys().collect::<Vec<_>>(),
        new.keys().collect::<Vec<_>>()
    );
    let parts: Vec<&String> = weights(&new).into_keys().collect();
    let id = |files: &BTreeMap<String, Vec<u8>>, part: &String| {
        let metadata = Gguf::metadata(&files[part], &Limits::default()).unwrap();
        let id = metadata.get("bitnet.split_id").unwrap();
        id.as_str().unwrap().to_owned()
    };
    for part in &parts {
        assert_eq!(id(&old, part), id(&old, parts[0]));
        assert_eq!(id(&new, part), id(&new, parts[0]));
    }
    assert_ne!(id(&old, parts[0]), id(&new, parts[0]));
    let limits = Limits::default();
    for count in 0..=parts.len() {
        for from_the_end in [false, true] {
            // the order in which they are renamed, and the reverse
            fill(place, &old);
            let renamed: Vec<&&String> = match from_the_end {
                true => parts.iter().rev().take(count).collect(),
                false => parts.iter().take(count).collect(),
            };
            for part in renamed {
                fs::write(place.join(part), &new[*part]).unwrap();
            }
            for path in [
                place.to_owned(),
                place.join(parts[0]),
                place.join(parts[count / 2]),
            ] {
                let opened = bitnet_formats::open(&path, &limits);
                if count == 0 || count == parts.len() {
                    opened.unwrap();
                    continue;
                }
                let error = opened.unwrap_err();
                assert_eq!(error.code, ErrorCode::Malformed);
                for id in [id(&old, parts[0]), id(&new, parts[0])] {
                    assert!(error.message.contains(&id), "{error}");
                }
                assert!(error.hint.is_some());
            }
        }
    }
    // a part of another program has no id
    fill(place, &old);
    let mut bytes = old[parts[1]].clone();
    let key = b"bitnet.split_id";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    bytes[at] = b'x';
    fs::write(place.join(parts[1]), &bytes).unwrap();
    let error = bitnet_formats::open(place, &limits).unwrap_err();
    assert!(error.message.contains("no id"), "{error}");
    // and a whole set without ids is one
    for part in &parts {
        let mut bytes = old[*part].clone();
        let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
        bytes[at] = b'x';
        fs::write(place.join(part), &bytes).unwrap();
    }
    bitnet_formats::open(place, &limits).unwrap();
}

#[test]
fn an_output_leaves_no_older_one_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let output = place.join("m.gguf");
    let ways: [&[&str]; 3] = [&[], &["--split-max-size", "200K"], &MANY];
    for before in ways {
        for after in ways {
            clear(place);
            convert(OLD, &output, before);
            let old = files(place);
            // not without a word
            let ran = run(&checkpoint(NEW), &output, after);
            assert_eq!(ran.json()["error"]["code"], "exists", "{}", ran.stdout);
            assert!(files(place) == old);
            let json = convert(NEW, &output, &[after, &["--force"]].concat());
            let found = files(place);
            let listed = json["output"]["files"].as_array().unwrap();
            assert_eq!(weights(&found).len(), listed.len(), "{:?}", found.keys());
            assert!(is_certified(&found, "m.gguf.certificate.json"));
            bitnet_formats::open(place, &Limits::default()).unwrap();
        }
    }
    // parts that say nothing of this program are named, and stay
    for (foreign, more) in [
        ("m-00001-of-00005.gguf", &[][..]),
        ("m-00002-of-00002.gguf", &MANY[..]),
        ("m.gguf", &MANY[..]),
    ] {
        clear(place);
        fs::write(place.join(foreign), b"GGUF of somebody").unwrap();
        let before = files(place);
        let ran = run(&checkpoint(NEW), &output, &[more, &["--force"]].concat());
        let json = ran.json();
        assert_eq!(json["error"]["code"], "exists", "{json}");
        assert!(
            json["error"]["message"].as_str().unwrap().contains(foreign),
            "{json}"
        );
        assert!(files(place) == before);
    }
    // nor do the parts of the source go
    clear(place);
    convert(OLD, &output, &MANY);
    let before = files(place);
    let part = place.join(weights(&before).keys().next().unwrap());
    let ran = run(&part, &output, &["--force"]);
    assert_eq!(ran.json()["error"]["code"], "usage", "{}", ran.stdout);
    assert!(files(place) == before);
}

#[test]
fn two_models_in_a_directory_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let mut all = BTreeMap::new();
    for more in [&[][..], &["--split-max-size", "200K"], &MANY] {
        clear(place);
        convert(OLD, &place.join("m.gguf"), more);
        all.extend(files(place));
    }
    let sets: [fn(&str) -> bool; 3] = [
        |name| name == "m.gguf",
        |name| name.contains("-of-00004"),
        |name| name.contains("-of-") && !name.contains("-of-00004"),
    ];
    for sets in [vec![0, 1], vec![0, 2], vec![1, 2], vec![0, 1, 2]]
        .map(|set| set.into_iter().map(|n| sets[n]).collect::<Vec<_>>())
    {
        clear(place);
        for (name, bytes) in &all {
            if sets.iter().any(|is| is(name)) {
                fs::write(place.join(name), bytes).unwrap();
            }
        }
        let error = bitnet_formats::open(place, &Limits::default()).unwrap_err();
        let expected = format!("expected one .gguf file, found {}", sets.len());
        assert!(error.message.contains(&expected), "{error}");
        assert_eq!(error.code, ErrorCode::UnknownContainer);
    }
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

#[cfg(unix)]
#[test]
fn kill_9_leaves_the_old_set_the_new_one_or_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let output = place.join("m.gguf");
    for (before, after) in [(&MANY, &MANY), (&["--split-max-size", "200K"], &MANY)] {
        clear(place);
        convert(OLD, &output, before);
        let old = files(place);
        clear(place);
        convert(NEW, &output, after);
        let new = files(place);
        let started = Instant::now();
        assert!(start(NEW, &output, after).wait().unwrap().success());
        let whole = started.elapsed();
        assert!(files(place) == new);
        // old, new, refused
        let mut seen = [0; 3];
        for moment in moments(whole, 60) {
            clear(place);
            fill(place, &old);
            let mut child = start(NEW, &output, after);
            std::thread::sleep(moment);
            child.kill().unwrap();
            child.wait().unwrap();
            let found = files(place);
            let opened = bitnet_formats::open(place, &Limits::default());
            if weights(&found) == weights(&old) {
                seen[0] += 1;
            } else if weights(&found) == weights(&new) {
                seen[1] += 1;
            } else {
                seen[2] += 1;
                assert!(opened.is_err(), "a mixture opens: {:?}", found.keys());
                continue;
            }
            opened.unwrap();
            // a kill in the microseconds between the two is told by the certificate's own check
            let whole = is_certified(&found, "m.gguf.certificate.json");
            assert!(whole || found["m.gguf.certificate.json"] == new["m.gguf.certificate.json"]);
        }
        assert!(seen[0] > 0 && seen[0] < 60, "{seen:?}");
        // the next conversion cleans up
        convert(NEW, &output, &[&after[..], &["--force"]].concat());
        assert!(files(place) == new);
        let left: Vec<PathBuf> = fs::read_dir(place)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect();
        assert_eq!(left.len(), new.len(), "{left:?}");
    }
}

#[test]
fn two_conversions_to_one_output_leave_one_of_them_whole() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path();
    let split = ["--split-max-size", "200K"];
    let mut refused = 0;
    for round in 0..25 {
        for (name, more) in [("m.gguf", &[][..]), ("m.gguf", &split[..]), ("m", &[][..])] {
            let output = place.join(name);
            let mut both = [start(OLD, &output, more), start(NEW, &output, more)];
            let codes = both.each_mut().map(|child| child.wait().unwrap().code());
            assert!(codes.iter().all(|c| matches!(c, Some(0 | 2))), "{codes:?}");
            assert!(codes.contains(&Some(0)), "{codes:?}");
            refused += codes.iter().filter(|c| **c == Some(2)).count();
            if name == "m" {
                let found = files(&output);
                let json = read_json(&output.join("certificate.json"));
                for file in json["output"]["files"].as_array().unwrap() {
                    let bytes = &found[file["name"].as_str().unwrap()];
                    assert_eq!(
                        sha256(bytes),
                        file["sha256"].as_str().unwrap(),
                        "round {round}"
                    );
                }
                fs::remove_dir_all(&output).unwrap();
                continue;
            }
            let found = files(place);
            assert!(
                is_certified(&found, "m.gguf.certificate.json"),
                "round {round}"
            );
            let left = fs::read_dir(place).unwrap().count();
            assert_eq!(left, found.len(), "something is left in round {round}");
        }
    }
    assert!(refused > 0, "no two conversions met");
}

#[test]
fn a_second_writer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("m.gguf");
    let lock = bitnet_formats::OutputLock::take(&output).unwrap();
    for force in [&[][..], &["--force"]] {
        let ran = run(&checkpoint(NEW), &output, force);
        assert_eq!(ran.status, ExitStatus::CouldNot);
        assert_eq!(ran.json()["error"]["code"], "busy", "{}", ran.stdout);
    }
    // a plan writes nothing
    let ran = run(&checkpoint(NEW), &output, &["--dry-run"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    drop(lock);
    convert(NEW, &output, &[]);
}
